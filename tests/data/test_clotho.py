"""Clotho: numbers expected and found, names and folders as they lie on other people's disks, the tables of metadata.

The layouts and the archives are in test_captioned.py.
"""
import hashlib
import os
import threading
import unicodedata
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest
import soundfile

from lib import data
from lib.data import captioned, clotho


@pytest.fixture(autouse=True)
def own_data(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "data"))


def make(root, part, names, stored=None, captions=None):
    (root / part).mkdir(parents=True)
    texts = captions or {name: [f"{name} {k}" for k in range(1, 6)] for name in names}
    rows = [{"file_name": name} | {f"caption_{k}": texts[name][k - 1] for k in range(1, 6)} for name in names]
    pd.DataFrame(rows).to_csv(root / f"clotho_captions_{part}.csv", index=False)
    for name in stored or names:
        soundfile.write(root / part / name, np.random.default_rng(0).uniform(-0.3, 0.3, 4000), 8000)
    return root


def test_numbers_expected_and_found(tmp_path):
    """A table that is missing or too short is said; a clip whose captions are all blank is no clip, and is counted."""
    blank = {"a.wav": ["one", "", " ", "four", "five"], "b.wav": ["", " ", "", "", ""], "c.wav": ["1", "2", "3", "4", "5"]}
    root = make(tmp_path / "c", "evaluation", list(blank), captions=blank)
    with pytest.warns(UserWarning, match=r"fewer clips than published: 0 of 3,839 \(train\), 0 of 1,045 \(val\), 3 of 1,045 \(test\)"):
        manifest = data.prepare("clotho", data_root=root)
    assert manifest.info["found"] == {"train": 0, "val": 0, "test": 3}
    assert manifest.info["left_out"] == {"without a caption": 1}
    assert manifest.row(0)["captions"] == ["one", "four", "five"] and len(manifest) == 2


def test_whole_tables_make_no_warning(tmp_path, monkeypatch, recwarn):
    root = make(tmp_path / "c", "validation", ["a.wav", "b.wav"])
    monkeypatch.setattr(clotho, "SPLITS", {"validation": ("val", 2)})
    manifest = data.prepare("clotho", data_root=root)
    assert manifest.info["found"] == manifest.info["expected"] == {"val": 2}
    assert not [w for w in recwarn.list if w.category is UserWarning]


def test_accents_stored_in_two_characters(tmp_path):
    """One file system stores é as one character, another as e and an accent: the same name."""
    name = "caf\u00e9 d'\u00e9t\u00e9 .wav"
    decomposed = unicodedata.normalize("NFD", name)
    assert decomposed != name
    root = make(tmp_path / "c", "development", [name], stored=[decomposed.replace(" .wav", ".wav")])
    manifest = data.prepare("clotho", data_root=root)
    assert manifest.row(0)["clip_id"] == f"development/{name}" and manifest.info["left_out"] == {}


def test_audio_behind_links_and_links_in_a_circle(tmp_path):
    """Audio is often linked from another disk, as is the whole folder that aac-datasets makes of a hub's snapshot."""
    away = make(tmp_path / "other disk", "development", ["a.wav"])
    root = tmp_path / "root"
    root.mkdir()
    os.symlink(away, root / "CLOTHO_v2.1")
    os.symlink(root, away / "development" / "circle")
    manifest = data.prepare("clotho", data_root=root)
    assert manifest.splits == {"train": 1} and manifest.row(0)["path"] == "CLOTHO_v2.1/development/a.wav"
    seen: list[str] = []
    captioned.Files(root, seen.append)
    assert seen.count("development") == 2, "once itself, and once as the folder around the link back"


def test_download_with_the_tables_of_metadata(tmp_path, monkeypatch):
    """They are verified like the rest; what is there is not fetched again."""
    import py7zr
    names = [*clotho.MD5, *clotho.METADATA_MD5]
    served = tmp_path / "served"
    for part in clotho.SPLITS:
        make(served, part, ["-x 'y'.wav"])
        (served / f"clotho_metadata_{part}.csv").write_text(f"file_name,sound_id\n-x 'y'.wav,{part}\n")
        with py7zr.SevenZipFile(served / f"clotho_audio_{part}.7z", "w") as target:
            target.writeall(served / part, part)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=served))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setattr(clotho, "URL", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setattr(clotho, "MD5", {name: hashlib.md5((served / name).read_bytes()).hexdigest() for name in clotho.MD5})
        with pytest.raises(data.download.DownloadError, match="expected md5 170d20935ecfdf161ce1bb154118cda5"):
            clotho.download(metadata=True)
        monkeypatch.setattr(clotho, "METADATA_MD5",
                            {name: hashlib.md5((served / name).read_bytes()).hexdigest() for name in clotho.METADATA_MD5})
        asked.clear()
        folder = clotho.download(metadata=True)
        assert len([path for path in asked if path.startswith("/clotho")]) == len(names)
        asked.clear()
        assert clotho.download(metadata=True) == folder and asked == []
    finally:
        server.shutdown()
        server.server_close()
    assert (folder / "clotho_metadata_evaluation.csv").read_text().endswith("evaluation\n")
    assert data.prepare("clotho").splits == {"train": 1, "val": 1, "test": 1}
