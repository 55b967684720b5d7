"""Spoken digits in the published layout in miniature, and the real ones where they are at hand."""
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lib import data
from lib.data import digits
from lib.data.download import DownloadError
from lib.data.manifest import class_prompts, fill

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("WORKBOOK_SHARED", ROOT / "../shared/data"))


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "data"))


def make(root, speakers=("anna", "bo"), numbers=(0, 3, 9), indices=range(10), suffix="wav"):
    folder = root / "recordings"
    folder.mkdir(parents=True)
    for speaker in speakers:
        for digit in numbers:
            for index in indices:
                soundfile.write(folder / f"{digit}_{speaker}_{index}.{suffix}", 0.2 * np.sin(np.arange(1200) * 0.3), 8000)
    return root


def test_layout_splits_and_labels(tmp_path):
    root = make(tmp_path / "fsdd")
    manifest = data.prepare("digits", data_root=root)
    table = manifest.table
    assert len(manifest) == 60 and manifest.classes == ["zero", "three", "nine"] and manifest.name == "digits"
    assert manifest.splits == {"train": 24, "val": 6, "test": 30}
    assert set(table["index"][table["split"] == "test"]) == {0, 1, 2, 3, 4} and table["index"][table["split"] != "test"].min() == 5
    mine = table[table["split"] == "val"].groupby(["speaker", table["labels"].str[0]]).size()
    assert (mine == 1).all() and len(mine) == 6, "one of the five of every speaker and digit"
    row = manifest.row(table.index[table["clip_id"] == "3_bo_7"][0])
    assert row["path"] == "recordings/3_bo_7.wav" and row["labels"] == ["three"] and row["speaker"] == "bo" and row["index"] == 7
    assert row["duration"] == pytest.approx(0.15) and row["captions"] == fill(digits.TEMPLATES, "three") == class_prompts(manifest)["three"]
    assert manifest.file(0).is_file() and manifest.info["left_out"] == {}


def test_splits_depend_on_names_only(tmp_path):
    """Whatever the seed, the format, the folder and what else is there."""
    first = data.prepare("digits", data_root=make(tmp_path / "one")).table.set_index("clip_id")["split"]
    other = make(tmp_path / "other", speakers=("anna", "bo", "cem"), suffix="flac")
    second = data.prepare("digits", data_root=other / "recordings", seed=5).table.set_index("clip_id")
    assert (second["split"][first.index] == first).all() and len(second) == 90 and second["path"].iloc[0] == "0_anna_0.flac"
    part = data.prepare("digits", data_root=other, seed=5, num_samples=20).table.set_index("clip_id")["split"]
    assert len(part) == 20 and (second["split"][part.index] == part).all()


def test_shares_and_speakers(tmp_path):
    root = make(tmp_path / "fsdd", indices=range(3, 12))
    shares = {share: data.prepare("digits", data_root=root, val_share=share).splits for share in (0.0, 0.05, 0.5)}
    assert shares == {0.0: {"train": 42, "test": 12}, 0.05: {"train": 36, "val": 6, "test": 12}, 0.5: {"train": 18, "val": 24, "test": 12}}
    table = data.prepare("digits", data_root=root, val_speaker="bo").table
    assert table.groupby("split")["speaker"].agg(set).to_dict() == {"train": {"anna"}, "val": {"bo"}, "test": {"anna", "bo"}}
    with pytest.raises(ValueError, match="val_speaker must be one of the speakers anna, bo of .*, got 'eve'"):
        data.prepare("digits", data_root=root, val_speaker="eve")
    with pytest.raises(ValueError, match="val_share must be from 0 to 0.9, got 1"):
        data.prepare("digits", data_root=root, val_share=1)


def test_other_names_are_counted(tmp_path):
    root = make(tmp_path / "fsdd", indices=range(6))
    for name in ("ten_anna_1.wav", "3_anna_x.wav", "12_anna_1.wav", "3_anna_1 copy.wav"):
        (root / "recordings" / name).write_bytes(b"")
    (root / "recordings" / "readme.txt").write_text("no audio")
    (root / "recordings" / "3_eve_1.wav").write_bytes(b"")
    with pytest.warns(UserWarning, match="left out 4 names that are not digit_speaker_index"):
        manifest = data.prepare("digits", data_root=root)
    assert manifest.info["left_out"] == {"names that are not digit_speaker_index": 4}
    assert len(manifest) == 36 and manifest.info["health"]["reasons"] == {"empty": 1}


def test_errors_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m lib.data download digits.*data_root"):
        data.prepare("digits")
    soundfile.write(tmp_path / "dog.wav", np.zeros(9), 8000)
    with pytest.raises(FileNotFoundError, match="no audio file called digit_speaker_index, such as recordings/7_jackson_32.wav"):
        data.prepare("digits", data_root=tmp_path)


def test_download_is_verified_and_found(tmp_path, monkeypatch):
    root = make(tmp_path / "free-spoken-digit-dataset-1.0.10", indices=range(4, 6))
    archive = tmp_path / "served.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for file in sorted(root.rglob("*.wav")):
            target.write(file, file.relative_to(tmp_path))
    fetched = []

    def fetch(url, path):
        fetched.append(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(archive.read_bytes())
        return path
    monkeypatch.setattr(digits.transfer, "fetch", fetch)
    with pytest.raises(DownloadError, match="12 recordings instead of 3,000"):
        digits.download()
    assert not (tmp_path / "data" / "digits").exists(), "nothing of a refused archive is kept"
    monkeypatch.setattr(digits.verify, "__defaults__", (12,))
    assert digits.download() == tmp_path / "data" / "digits" and fetched == [digits.URL] * 2
    assert digits.download() == tmp_path / "data" / "digits" and len(fetched) == 2, "what is there is not fetched again"
    assert not list((tmp_path / "data" / "downloads").glob("*"))
    manifest = data.prepare("digits")
    assert manifest.splits == {"train": 6, "test": 6} and manifest.file(0).is_file()


@pytest.mark.skipif(not (SHARED / "fsdd").is_dir(), reason="the real spoken digits are not here")
def test_real_digits():
    manifest = data.prepare("digits", data_root=SHARED / "fsdd")
    assert manifest.splits == {"train": 240, "val": 60, "test": 300} and manifest.info["health"]["reasons"] == {}
    assert manifest.classes == digits.WORDS and manifest.table["speaker"].nunique() == 6
    for split, count in (("train", 24), ("val", 6), ("test", 30)):
        assert manifest.select(split).targets().sum(0).tolist() == [count] * 10
