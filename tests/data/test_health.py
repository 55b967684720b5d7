"""Every kind of bad file gets its reason; good ones stay; the second look is free."""
import os

import numpy as np
import pandas as pd
import pytest
import soundfile

from lib.data import health
from lib.data.manifest import Manifest

RATE = 8000


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "data"))


def _noise(seconds=1.0, channels=1):
    return np.random.default_rng(0).uniform(-0.3, 0.3, (round(seconds * RATE), channels))


def _manifest(root, names, **columns):
    return Manifest(pd.DataFrame({"clip_id": names, "path": names, "start": 0.0, "duration": 1.0, "split": "train",
                                  "captions": [[]] * len(names), "labels": [[]] * len(names), **columns}), "toy", root)


def _make_bad_files(folder):
    """{file name: reason, "" for a good file}"""
    write = lambda name, data, **options: soundfile.write(folder / name, data, RATE, **options)  # noqa: E731
    bad = {name: "" for name in ("good.wav", "24.wav", "-stereo.flac", "wrong.mp3", "mojibake Ã©'\"<script>.ogg", "0.1.wav", "click.wav")}
    write("good.wav", _noise())
    write("24.wav", _noise(), subtype="PCM_24")
    write("-stereo.flac", _noise(channels=2))
    write("wrong.mp3", _noise(), format="WAV")
    write("mojibake Ã©'\"<script>.ogg", _noise())
    write("0.1.wav", _noise(0.1))
    click = np.zeros(RATE)
    click[-1] = 0.01
    write("click.wav", click)
    write("silent.wav", np.zeros(RATE)), write("offset.wav", np.full(RATE, 0.2))
    bad |= {"silent.wav": "silent", "offset.wav": "silent"}
    write("short.wav", _noise(0.05)), write("nothing.wav", np.zeros(0)), (folder / "empty.wav").write_bytes(b"")
    bad |= {"short.wav": "too short", "nothing.wav": "empty", "empty.wav": "empty"}
    nan, infinite = _noise(), _noise()
    nan[RATE // 2], infinite[-1] = np.nan, np.inf
    write("nan.wav", nan, subtype="FLOAT"), write("inf.wav", infinite, subtype="FLOAT")
    bad |= {"nan.wav": "nan", "inf.wav": "nan"}
    for suffix in ("wav", "aiff", "flac", "ogg", "mp3"):
        write(f"cut.{suffix}", _noise(4))
        content = (folder / f"cut.{suffix}").read_bytes()
        (folder / f"cut.{suffix}").write_bytes(content[: len(content) // 2])
        bad[f"cut.{suffix}"] = "truncated"
    piped = bytearray((folder / "good.wav").read_bytes())
    piped[4:8] = piped[40:44] = b"\xff\xff\xff\xff"  # what a program writes that cannot seek back
    (folder / "piped.wav").write_bytes(piped)
    (folder / "text.wav").write_text("only words\n" * 100)
    (folder / "folder.wav").mkdir()
    return bad | {"piped.wav": "", "text.wav": "unreadable", "folder.wav": "unreadable", "gone.wav": "missing"}


@pytest.mark.parametrize("workers", [0, 1])
def test_every_reason(tmp_path, workers, monkeypatch):
    monkeypatch.setattr(health, "_POOL_FROM", 1)
    expected = _make_bad_files(tmp_path)
    manifest = _manifest(tmp_path, list(expected), duration=[0.1 if n == "0.1.wav" else 1.0 for n in expected])
    verdicts = health.inspect([str(manifest.file(i)) for i in range(len(manifest))], workers)
    found = {os.path.basename(file): verdict.reason for file, verdict in verdicts.items()}
    assert found == {name: "" if reason == "too short" else reason for name, reason in expected.items()}
    kept = health.check(manifest, workers)
    assert set(kept.table["clip_id"]) == {name for name, reason in expected.items() if not reason}
    counts = kept.info["health"]
    assert counts["checked"] == len(expected) and counts["kept"] == len(kept)
    assert counts["reasons"] == {r: list(expected.values()).count(r) for r in health.REASONS if r in expected.values()}
    assert counts["examples"]["missing"] == ["gone.wav"] and all(len(e) <= 5 for e in counts["examples"].values())


def test_second_run_decodes_only_what_changed(tmp_path, monkeypatch):
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, _noise(), RATE)
    manifest = _manifest(tmp_path, ["a.wav", "b.wav"])
    assert len(health.check(manifest)) == 2
    looked, real = [], health.inspect_file
    monkeypatch.setattr(health, "inspect_file", lambda file: looked.append(os.path.basename(file)) or real(file))
    health.check(manifest)
    assert looked == []
    soundfile.write(tmp_path / "b.wav", np.zeros(2 * RATE), RATE)
    assert health.check(manifest).info["health"]["reasons"] == {"silent": 1} and looked == ["b.wav"]
    assert os.listdir(tmp_path / "data" / "manifests") == ["health-1.parquet"]


def test_windows_of_one_file(tmp_path):
    soundfile.write(tmp_path / "a.wav", _noise(4), RATE)
    manifest = _manifest(tmp_path, ["a", "b", "c", "d"])
    table = manifest.table.assign(path="a.wav", start=[0.0, 3.0, 3.95, 3.0], duration=[4.0, 1.0, 2.0, 2.0])
    kept = health.check(Manifest(table, "toy", tmp_path))
    assert kept.info["health"]["reasons"] == {"truncated": 1, "too short": 1} and list(kept.table["clip_id"]) == ["a", "b"]
    assert list(health.measure(kept).table["duration"]) == [4.0, 1.0]
    assert health.check(kept, min_seconds=2).info["health"]["kept"] == 1


def test_nothing_usable_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="none of its 2 clips.*missing.*x.wav"):
        health.check(_manifest(tmp_path, ["x.wav", "y.wav"]))
