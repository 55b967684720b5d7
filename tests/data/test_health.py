"""Every kind of bad file gets its reason; good ones stay; the second look is free."""
import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import psutil
import pytest
import soundfile

from lib.data import health
from lib.data.inspection import STUCK
from lib.data.manifest import Manifest
from lib.settings import ROOT

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


@pytest.mark.parametrize("workers", [0, 2])
def test_every_reason(tmp_path, workers):
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
    looked, real = [], health.inspect_all
    monkeypatch.setattr(health, "inspect_all", lambda files, *rest: looked.extend(map(os.path.basename, files)) or real(files, *rest))
    health.check(manifest)
    assert looked == []
    soundfile.write(tmp_path / "b.wav", np.zeros(2 * RATE), RATE)
    assert health.check(manifest).info["health"]["reasons"] == {"silent": 1} and looked == ["b.wav"]
    assert sorted(os.listdir(tmp_path / "data" / "manifests")) == ["health-1.lock", "health-1.parquet"]


# Files of these names do to a worker what no committed file could do to every decoder. It is loaded by the worker's interpreter alone.
EVIL = """
import os, signal, sys, time
def evil(path):
    if "hang" in path: time.sleep(1000)
    if "crash" in path: os.kill(os.getpid(), signal.SIGSEGV)
    if "greedy" in path: bytearray(1 << 40)
    if "exit" in path: sys.exit(3)
    if "slow" in path: return True
if "lib.data.inspection" in sys.orig_argv:
    import lib.media.audio as audio
    probe, blocks = audio.probe, audio.blocks
    audio.probe = lambda path: evil(os.path.basename(path)) and None or probe(path)
    def paced(path, *rest):
        for block in blocks(path):
            for part in (block[k:k + 4000] for k in range(0, len(block), 4000)):
                if "slow" in os.path.basename(path): time.sleep(1.2)
                yield part
    audio.blocks = paced
"""


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A folder whose sitecustomize makes workers hang, crash, ask for a terabyte, exit or decode slowly, by the name of the file."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(EVIL)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{ROOT}")


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_file_that_takes_its_decoder_along_costs_five_seconds_and_itself(tmp_path, evil, workers):
    names = ["a.wav", "hang.wav", "b.wav", "crash.wav", "greedy.wav", "exit.wav", "slow.wav", "c.wav"]
    for name in names:
        soundfile.write(tmp_path / name, _noise(2.5 if name == "slow.wav" else 1.0), RATE)
    files, began = [str(tmp_path / name) for name in names], time.monotonic()
    found = health.inspect(files, workers)
    spent = time.monotonic() - began
    assert [found[file].reason for file in files] == ["", "hanging", "", "crashing", "crashing", "crashing", "", ""]
    assert found[files[6]].duration == 2.5, "6 s for a good file are no hang: every block counts as progress"
    assert spent < STUCK + 6 + 4 * 5, "a hang costs 3 s, the slow file 6 s, each of four deaths the start of a worker"
    cached = health._load(tmp_path / "data" / "manifests" / "health-1.parquet")
    assert set(cached) == {files[k] for k in (0, 2, 6, 7)}, "what may have been a bad moment is looked at again"


def test_pipes_and_devices_hang_nothing(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    soundfile.write(tmp_path / "a.wav", _noise(), RATE)
    os.symlink("/dev/zero", tmp_path / "zero.wav")
    found = health.inspect([str(tmp_path / name) for name in ("pipe.wav", "zero.wav", "a.wav")])
    assert [verdict.reason for verdict in found.values()] == ["unreadable", "unreadable", ""]


def test_a_killed_check_leaves_no_process_and_goes_on(tmp_path, evil):
    for k in range(6):
        soundfile.write(tmp_path / f"slow{k}.wav", _noise(0.6), RATE)       # two pieces, 2.4 s each
    soundfile.write(tmp_path / "hang.wav", _noise(), RATE)
    code = ("import sys; from lib.data import health; health._SAVE = 0.0\n"
            "health.inspect(sorted(sys.argv[1:]), 2)")
    files = [str(path) for path in sorted(tmp_path.glob("*.wav"))]
    process = subprocess.Popen([sys.executable, "-c", code, *files], cwd=ROOT)
    cache = tmp_path / "data" / "manifests" / "health-1.parquet"
    while not cache.is_file():
        time.sleep(0.05)
        assert process.poll() is None
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 2
    process.kill()
    process.wait()
    psutil.wait_procs(children, timeout=STUCK + 4)
    assert not any(child.is_running() for child in children), "workers notice that nobody asks any more, also in the middle of a hang"
    done = set(health._load(cache))
    assert done and done < set(files)


def test_two_checks_at_once_lose_nothing(tmp_path):
    files = []
    for k in range(12):
        soundfile.write(tmp_path / f"{k}.wav", _noise(0.2), RATE)
        files.append(str(tmp_path / f"{k}.wav"))
    code = "import sys; from lib.data import health; health._SAVE = 0.0; health.inspect(sys.argv[1:])"
    processes = [subprocess.Popen([sys.executable, "-c", code, *part], cwd=ROOT) for part in (files[:6], files[6:])]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert set(health._load(tmp_path / "data" / "manifests" / "health-1.parquet")) == set(files)


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


def test_a_probe_decodes_the_beginning_only(tmp_path, monkeypatch):
    """It finds what does not open or is no number, states the header's length, and keeps its verdicts apart from those of a whole check."""
    sound = _noise(5.0)[:, 0]
    soundfile.write(tmp_path / "good.flac", sound, RATE)
    soundfile.write(tmp_path / "cut.flac", sound, RATE)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "cut.flac").read_bytes()[:-(len(sound) // 3)])
    (tmp_path / "text.flac").write_text("no sound")
    soundfile.write(tmp_path / "nan.wav", np.where(np.arange(len(sound)) == 100, np.nan, sound), RATE, subtype="FLOAT")
    files = [str(tmp_path / name) for name in ("good.flac", "cut.flac", "text.flac", "nan.wav")]
    probed, whole = health.inspect(files, seconds=0.1), health.inspect(files)
    assert [probed[file].reason for file in files] == ["", "", "unreadable", "nan"]
    assert [whole[file].reason for file in files] == ["", "truncated", "unreadable", "nan"]
    assert probed[files[1]].duration == pytest.approx(len(sound) / RATE) and whole[files[1]].duration < 0.9 * len(sound) / RATE
    monkeypatch.setattr(health, "inspect_all", lambda new, *rest: (_ for _ in ()) if not new else pytest.fail(f"decoded again: {new}"))
    assert health.inspect(files, seconds=0.1) == probed and health.inspect(files) == whole
