"""One's own audio: with and without a table, splits by table, folder or hash, and what is left out is counted."""
import os

import numpy as np
import pytest
import soundfile

from lib.data import prepare


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "data"))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "mine"


def _write(root, *names, seconds=0.25):
    for name in names:
        file = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file, "wb") as stream:
            soundfile.write(stream, 0.2 * np.sin(np.arange(round(8000 * seconds)) * 0.3), 8000, format="WAV")


def test_plain_folder(root):
    _write(root, "dogs/Big_dog-barking.2.wav", "cats/-meow.wav", "cats/old/purr <b>.wav", ".hidden/x.wav", "cats/.y.wav")
    (root / "notes.txt").write_text("no audio")
    manifest = prepare("folder", data_root=root)
    by_id = {manifest.row(i)["clip_id"]: manifest.row(i) for i in range(len(manifest))}
    assert list(by_id) == ["cats/-meow.wav", "cats/old/purr <b>.wav", "dogs/Big_dog-barking.2.wav"]
    assert by_id["dogs/Big_dog-barking.2.wav"]["captions"] == ["Big dog barking 2"] and by_id["cats/-meow.wav"]["captions"] == ["meow"]
    assert [row["labels"] for row in by_id.values()] == [["cats"], ["old"], ["dogs"]]
    assert by_id["cats/-meow.wav"]["duration"] == 0.25 and manifest.info["captions_from"] == "captions from file names"
    assert manifest.splits == {"train": 1, "val": 1, "test": 1} and manifest.info["left_out"] == {}


def test_hash_split_is_stateless(root):
    _write(root, *(f"{i}.wav" for i in range(200)), seconds=0.11)
    manifest = prepare("folder", data_root=root)
    before = dict(zip(manifest.table["clip_id"], manifest.table["split"]))
    assert abs(manifest.splits["train"] - 160) < 20 and min(manifest.splits.values()) > 8 and manifest.classes == []
    _write(root, "more.wav")
    (root / "7.wav").unlink()
    after = prepare("folder", data_root=root, seed=5)
    assert all(before.get(c, s) == s for c, s in zip(after.table["clip_id"], after.table["split"]))
    assert len(prepare("folder", data_root=root, num_samples=10)) == 10


def test_split_folders(root):
    _write(root, "train/dog/1.wav", "train/cat/2.wav", "Validation/dog/3.wav", "evaluation/cat/4.wav")
    manifest = prepare("folder", data_root=root)
    assert dict(zip(manifest.table["clip_id"], manifest.table["split"])) == {
        "train/cat/2.wav": "train", "train/dog/1.wav": "train", "Validation/dog/3.wav": "val", "evaluation/cat/4.wav": "test"}
    assert manifest.classes == ["cat", "dog"] and manifest.info["splits_from"] == "folder names"


def test_table_of_five_captions(root):
    _write(root, "a.wav", "sub/b.wav", "unused.wav")
    (root / "any.csv").write_text("\ufefffile_name,caption_1,caption_2,split,labels\n"
                                  'a.wav,"a ""dog"", barking",NA,development,dog; loud\nb.wav,<script>,,eval,\nlost.wav,x,y,train,\n', encoding="utf-8")
    with pytest.warns(UserWarning, match="1 files without a row, 1 rows without a file"):
        manifest = prepare("folder", data_root=root)
    assert manifest.row(0)["captions"] == ['a "dog", barking', "NA"] and manifest.row(0)["labels"] == ["dog", "loud"]
    assert manifest.row(1)["clip_id"] == "sub/b.wav" and manifest.row(1)["captions"] == ["<script>"] and manifest.row(1)["split"] == "test"
    assert manifest.info["left_out"] == {"files without a row": 1, "rows without a file": 1} and manifest.info["captions_from"] == "any.csv"


def test_table_of_one_caption_a_row(root):
    _write(root, "a.wav", "b.wav", "c.wav")
    (root / "other.csv").write_text("x\n")
    (root / "captions.csv").write_text("file_name,caption,label\na.wav,first,dog\nb.wav,only,cat\na.wav,second,dog\n../../c.wav,outside,dog\n")
    with pytest.warns(UserWarning):
        manifest = prepare("folder", data_root=root)
    assert [(r["captions"], r["labels"]) for r in map(manifest.row, range(2))] == [(["first", "second"], ["dog"]), (["only"], ["cat"])]
    assert len(manifest) == 2


@pytest.mark.parametrize("table, words", [
    ("file,caption\na.wav,x\n", "needs the columns file_name and caption"), ("file_name,caption\nz.wav,x\n", "no file_name in it"),
    ("file_name,caption,split\na.wav,x,dev\n", "split 'dev' of 'a.wav'"), ("file_name,caption\nb.wav,x\n", "fits 'one/b.wav' and 'two/b.wav'"),
    ("file_name,caption,split\na.wav,x,train\none/b.wav,x,\n", "none for 'one/b.wav'"),
    ("file_name,caption,split\na.wav,x,train\na.wav,x,test\n", "one file belongs to one split")])
def test_wrong_tables(root, table, words):
    _write(root, "a.wav", "one/b.wav", "two/b.wav")
    (root / "captions.csv").write_text(table)
    with pytest.raises(ValueError, match=words):
        prepare("folder", data_root=root)


def test_errors_say_what_to_do(root):
    with pytest.raises(ValueError, match="set data_root"):
        prepare("folder")
    root.mkdir()
    with pytest.raises(ValueError, match="no audio file"):
        prepare("folder", data_root=root)
    _write(root, "a.wav")
    for name in ("one.csv", "two.csv"):
        (root / name).write_text("file_name,caption\na.wav,x\n")
    with pytest.raises(ValueError, match="one.csv, two.csv"):
        prepare("folder", data_root=root)
    assert len(prepare("folder", data_root=root, captions="two.csv")) == 1
    with pytest.raises(FileNotFoundError, match="three.csv"):
        prepare("folder", data_root=root, captions="three.csv")


def test_bad_files_and_names_are_counted(root):
    _write(root, "good.wav", "naïve.wav", b"latin \xe9.wav")
    (root / "bad.wav").write_text("words")
    with pytest.warns(UserWarning, match="1 names not in UTF-8"):
        manifest = prepare("folder", data_root=root)
    assert set(manifest.table["clip_id"]) == {"good.wav", "naïve.wav"}
    assert manifest.info["health"]["reasons"] == {"unreadable": 1} and manifest.info["left_out"] == {"names not in UTF-8": 1}
