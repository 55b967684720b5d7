"""Common Voice's published layout in miniature: the tables decide, the folder of clips never does."""
import shutil

import numpy as np
import pytest
import soundfile

from lib import data

HEAD = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tlocale\tsegment"


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "data"))


def line(client, path, sentence):
    return f"{client * 8}\t{path}\t{sentence}\t2\t0\t\t\t\ten\t"


def table(root, name, *lines):
    (root / name).write_text("\n".join([HEAD, *lines]) + "\n", encoding="utf-8")


def make(root, suffix="mp3"):
    """Three clips a split, one speaker each, and two more clips that only validated.tsv and nobody knows."""
    (root / "clips").mkdir(parents=True)
    tone, number = 0.2 * np.sin(np.arange(8000) * 0.3), 0
    every = []
    for name, clients in (("train.tsv", "abc"), ("dev.tsv", "def"), ("test.tsv", "ghi"), ("validated.tsv", "k"), ("", "l")):
        lines = []
        for client in clients:
            number += 1
            soundfile.write(root / "clips" / f"common_voice_en_{number}.{suffix}", tone, 16000)
            lines.append(line(client, f"common_voice_en_{number}.mp3", f'"{number}, she said; d\'accord?'))
        if name == "validated.tsv":
            lines += every
        if name:
            table(root, name, *lines)
        every += lines
    return root


def test_the_tables_are_the_splits(tmp_path):
    manifest = data.prepare("commonvoice", data_root=make(tmp_path / "en"))
    assert manifest.splits == {"train": 3, "val": 3, "test": 3}, "never all of clips/, nor what only validated.tsv lists"
    assert manifest.table["clip_id"].tolist() == [f"common_voice_en_{k}.mp3" for k in range(1, 10)]
    row = manifest.row(0)
    assert row["path"] == "clips/common_voice_en_1.mp3" and row["captions"] == ['"1, she said; d\'accord?']
    assert row["speaker"] == "a" * 8 and row["duration"] == pytest.approx(0.5, abs=0.1) and manifest.file(0).is_file()
    assert manifest.info["language"] == "en" and manifest.info["left_out"] == {} and manifest.info["health"]["kept"] == 9
    assert manifest.table.groupby("split")["speaker"].nunique().to_dict() == {"train": 3, "val": 3, "test": 3}
    part = data.prepare("commonvoice", data_root=tmp_path / "en", num_samples=3, seed=3)
    assert part.splits == {"train": 1, "val": 1, "test": 1}


def test_clips_of_other_formats_and_names_without_an_ending(tmp_path):
    root = make(tmp_path / "en", suffix="flac")
    text = (root / "dev.tsv").read_text(encoding="utf-8")
    (root / "dev.tsv").write_text(text.replace(".mp3", ""), encoding="utf-8")
    manifest = data.prepare("commonvoice", data_root=root, probe_seconds=None)
    assert manifest.splits == {"train": 3, "val": 3, "test": 3} and manifest.row(4)["clip_id"] == "common_voice_en_5"
    assert manifest.row(4)["path"] == "clips/common_voice_en_5.flac" and manifest.row(4)["duration"] == 0.5


def test_languages_of_a_corpus(tmp_path):
    corpus = tmp_path / "data" / "commonvoice" / "cv-corpus-1"
    make(corpus / "en")
    assert data.prepare("commonvoice").info["language"] == "en"
    shutil.copytree(corpus / "en", corpus / "fr")
    with pytest.raises(ValueError, match="holds several .cv-corpus-1/en, cv-corpus-1/fr.; set language"):
        data.prepare("commonvoice")
    assert data.prepare("commonvoice", language="fr").info["title"] == "Common Voice fr"
    with pytest.raises(FileNotFoundError, match="'de' is not in .*; there is en, fr"):
        data.prepare("commonvoice", language="de")
    shutil.copytree(corpus, corpus.with_name("cv-corpus-2"))
    with pytest.raises(ValueError, match="set language to the name of one and data_root to one corpus"):
        data.prepare("commonvoice", language="fr")
    assert data.prepare("commonvoice", language="fr", data_root=corpus).splits["test"] == 3


def test_some_tables(tmp_path):
    root = make(tmp_path / "en")
    (root / "train.tsv").unlink()
    assert data.prepare("commonvoice", data_root=root).splits == {"val": 3, "test": 3}
    for name in ("dev.tsv", "test.tsv"):
        (root / name).unlink()
    with pytest.raises(FileNotFoundError, match="train.tsv, dev.tsv, test.tsv .validated.tsv does not.*commonvoice.mozilla.org.*data_root"):
        data.prepare("commonvoice", data_root=root)


def test_what_is_left_out_is_counted(tmp_path):
    root = make(tmp_path / "en")
    for number in (2, 10, 11):
        (root / "clips" / f"common_voice_en_{number}.mp3").unlink()
    for number, client, name in ((20, "g", "train.tsv"), (21, "h", "dev.tsv"), (22, "d", "train.tsv"), (23, "a", "train.tsv")):
        shutil.copy(root / "clips" / "common_voice_en_1.mp3", root / "clips" / f"common_voice_en_{number}.mp3")
        with open(root / name, "a", encoding="utf-8") as file:
            file.write(line(client, f"common_voice_en_{number}.mp3", "" if number == 23 else "more") + "\n")
    with pytest.warns(UserWarning) as caught:
        manifest = data.prepare("commonvoice", data_root=root)
    assert any("3 clips were left out, as their speakers are in a later one" in str(w.message) for w in caught)
    assert manifest.splits == {"train": 2, "val": 3, "test": 3}
    assert manifest.info["left_out"] == {"spoken by someone in a later split": 3, "without a caption": 1, "file not there": 1}
    for file in (root / "clips").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match="holds none of the 10 clips of the tables beside it"):
        data.prepare("commonvoice", data_root=root)


@pytest.mark.parametrize("name, text, words", [
    ("dev.tsv", HEAD + "\n" + line("d", "common_voice_en_1.mp3", "x") + "\n", "'common_voice_en_1.mp3' is in train.tsv and in dev.tsv"),
    ("test.tsv", HEAD + "\n" + 2 * (line("d", "z.mp3", "x") + "\n"), "clip 'z.mp3' is in test.tsv and in test.tsv"),
    ("dev.tsv", HEAD + "\n" + line("d", "../../x.mp3", "x") + "\n", "path '../../x.mp3' must be the name of a file in clips/"),
    ("dev.tsv", HEAD + "\n" + line("d", "", "x") + "\n", "path '' must be"), ("test.tsv", "", "not readable as a table with tabs"),
    ("dev.tsv", "path\tsentence\nx.mp3\ty\n", "column 'client_id' is missing, it has path, sentence"),
    ("dev.tsv", HEAD + "\na\tb\tc\n" + "\t".join("abcdefghijklmn") + "\n", "not readable as a table with tabs"),
], ids=["two tables", "twice", "outside", "no name", "empty", "column", "ragged"])
def test_wrong_tables_are_named(tmp_path, name, text, words):
    root = make(tmp_path / "en")
    (root / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        data.prepare("commonvoice", data_root=root)
