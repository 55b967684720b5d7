"""The registry and the command line."""
from importlib import import_module

import numpy as np
import pytest
import soundfile

from lib import data
from lib.data.__main__ import PUBLISHED, main
from lib.data.manifest import Manifest


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "data"))
    (tmp_path / "mine").mkdir()
    for i in range(12):
        soundfile.write(tmp_path / "mine" / f"clip {i}.wav", 0.2 * np.sin(np.arange(2000) * 0.3), 8000)
    return tmp_path / "mine"


def test_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="unknown data set 'esc'; known: soundscapes, esc50, folder"):
        data.prepare("esc")
    with pytest.raises(ValueError, match="'esc50' has no option 'fold'; it has: esc10_only, test_fold, val_share"):
        data.prepare("esc50", fold=1)
    with pytest.raises(FileNotFoundError, match="data_root: .*absent is not a folder"):
        data.prepare("folder", data_root=tmp_path / "absent")
    assert data.data_set_options("folder") == {"captions": None, "pictures": False}


def test_prepare_and_check_tools(root, tmp_path, capsys):
    assert main(["prepare", "folder", "--data-root", str(root), "--num-samples", "10", "--out", str(tmp_path / "m.parquet")]) == 0
    manifest = Manifest.load(tmp_path / "m.parquet")
    assert len(manifest) == 10 and f"fingerprint {manifest.fingerprint}" in capsys.readouterr().out
    assert manifest.fingerprint == data.prepare("folder", data_root=root, num_samples=10).fingerprint
    assert main(["check", str(tmp_path / "m.parquet")]) == 0 and "10 of 10" in capsys.readouterr().out
    manifest.file(0).unlink()
    assert main(["check", str(tmp_path / "m.parquet")]) == 1 and "1 missing" in capsys.readouterr().out
    assert main(["check", str(root)]) == 0


def test_prepare_writes_under_the_data_folder(root, tmp_path, capsys):
    assert main(["prepare", "folder", "--data-root", str(root)]) == 0
    written = [p.name for p in (tmp_path / "data" / "manifests").glob("*.parquet")]
    assert sorted(written) == [f"folder-{data.prepare('folder', data_root=root).fingerprint}.parquet", "health-1.parquet"]


@pytest.mark.parametrize("arguments, words", [
    (["prepare", "esc50"], "python -m lib.data download esc50"), (["prepare", "folder"], "set data_root"),
    (["prepare", "esc50", "--option", "fold=1"], "no option 'fold'"), (["prepare", "esc50", "--option", "fold"], "NAME=VALUE"),
    (["prepare", "esc50+esc"], "'esc'"), (["check", "nothing.parquet"], "nothing.parquet"),
    (["transcode", "nothing", "small"], "nothing is not a folder"),
    (["transcode", ".", "small", "--bitrate", "1"], "bitrate: 1 ")])
def test_errors_are_one_line(root, arguments, words, capsys):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and "Traceback" not in error


def test_help_has_every_tool(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(tool in text for tool in ("prepare", "check", "download", "transcode"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_download_asks_the_module_of_the_data_set(name, tmp_path, monkeypatch, capsys):
    module = import_module(data.DATASETS[name])
    assert callable(module.download)
    monkeypatch.setattr(module, "download", lambda: tmp_path / name)
    assert main(["download", name]) == 0 and capsys.readouterr().out == f"ready: {tmp_path / name}\n"


def test_transcode_tool(root, tmp_path, capsys, monkeypatch):
    (root / "bad.wav").write_text("no sound")
    assert main(["transcode", str(root), str(tmp_path / "small"), "--suffix", ".wav", "--workers", "1", "--bitrate", "32000",
                 "--sample-rate", "16000"]) == 1
    out = capsys.readouterr().out
    assert "transcoded 12 of 13 files, 0 were finished, 1 failed" in out and "'bad.wav': cannot be decoded" in out
    (root / "bad.wav").unlink()
    root.rename(tmp_path / "-mine")
    monkeypatch.chdir(tmp_path)
    assert main(["transcode", "--suffix", ".wav", "--", "-mine", "-small"]) == 0
    assert "transcoded 12 of 12" in capsys.readouterr().out and (tmp_path / "-small" / "clip 3.mp3").is_file()
