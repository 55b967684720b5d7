"""Folders of flac to folders of mp3: same places, same lengths, same sound, whatever happens on the way."""
import json
import os
import shutil
import subprocess
import sys
import time

import av
import numpy as np
import psutil
import pytest
import soundfile

from lib.data.__main__ import main
from lib.data.transcode import transcode
from lib.data.workers import Lost, ask_all
from lib.media import audio
from lib.settings import ROOT

NAMES = ["a.flac", "deep/-b.flac", "deep/it's \"c\" & d.FLAC", "deep/er/mojibake Ã©漢%d.flac", "x.y.flac"]


def _rumble(seconds, rate=44100, channels=1, seed=0):
    """Noise that falls with frequency, as most sounds do: (samples, channels) within half of full scale."""
    signal = np.cumsum(np.random.default_rng(seed).normal(size=(round(seconds * rate), channels)), axis=0)
    signal -= np.linspace(signal[0], signal[-1], len(signal))
    return 0.5 * signal / np.abs(signal).max()


def _write(path, signal, rate=44100, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, signal, rate, **options)
    return path


@pytest.fixture
def source(tmp_path):
    for k, name in enumerate(NAMES):
        _write(tmp_path / "source" / name, _rumble(0.5 + 0.1 * k, seed=k), format="FLAC")
    (tmp_path / "source" / "table.csv").write_text("not sound")
    return tmp_path / "source"


def _tree(folder):
    files = [path for path in folder.rglob("*.mp3") if ".transcode" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("seconds, rate, channels, options", [
    (2.0, 44100, 1, {}), (1.37, 48000, 2, {"subtype": "PCM_24"}), (3.0, 32000, 1, {}), (0.5, 22050, 1, {}), (0.01, 44100, 1, {}),
    (1.0, 8000, 1, {}), (0.7, 96000, 2, {"format": "WAV", "subtype": "FLOAT"}), (0.8, 44100, 1, {"format": "OGG"}),
    (7.1, 44100, 3, {})])
def test_the_samples_of_the_source_at_their_places(tmp_path, seconds, rate, channels, options):
    file = _write(tmp_path / "source" / "a.flac", _rumble(seconds, rate, channels), rate, **({"format": "FLAC"} | options))
    assert transcode(tmp_path / "source", tmp_path / "target", workers=1).failed == {}
    expected = audio.read(file, sample_rate=32000).numpy()[0]
    result = tmp_path / "target" / "a.mp3"
    info, found = audio.probe(result), audio.read(result, sample_rate=None).numpy()[0]
    assert (info.codec, info.sample_rate, info.channels) == ("mp3/mpeg_layer_iii", 32000, 1)
    assert len(found) == len(expected) == round(info.duration * 32000), "the delay and the padding of the codec are gone"
    overlap = np.correlate(np.pad(found, 40), expected, "valid")
    assert np.argmax(overlap) == 40, "lag 0"
    assert np.mean((found - expected) ** 2) < 0.02 * np.mean(expected**2)
    with av.open(str(result)) as container:
        assert container.streams.audio[0].codec_context.bit_rate == 48000


def test_as_the_published_conversion(tmp_path):
    """The options of the baseline's script (codec mp3, 32 kHz, one channel, no bit rate) mean 48 kb/s and the same sound."""
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    file = _write(tmp_path / "source" / "a.flac", _rumble(3.0, channels=2))
    transcode(tmp_path / "source", tmp_path / "target", workers=1)
    theirs = tmp_path / "theirs.mp3"
    subprocess.run([ffmpeg, "-loglevel", "error", "-i", file, "-codec:a", "mp3", "-ar", "32000", "-ac", "1", theirs], check=True)
    ours = audio.read(tmp_path / "target" / "a.mp3", sample_rate=None)
    other = audio.read(theirs, sample_rate=None)
    assert ours.shape == other.shape and abs(theirs.stat().st_size / (tmp_path / "target" / "a.mp3").stat().st_size - 1) < 0.01
    expected = audio.read(file, sample_rate=32000)
    distance = [float((a - b).square().mean()) for a, b in ((ours, other), (ours, expected), (other, expected))]
    assert distance[0] < 0.1 * distance[1] and distance[1] < distance[2], "alike, and a little nearer to the source"


def test_layout_and_a_second_run(source, tmp_path):
    target = tmp_path / "-target"
    report = transcode(source, target, workers=2)
    made = _tree(target)
    assert set(made) == {os.path.splitext(name)[0] + ".mp3" for name in NAMES}
    assert (report.found, report.transcoded, report.skipped, report.failed) == (5, 5, 0, {})
    times = {name: os.stat(target / name).st_mtime_ns for name in made}
    assert transcode(source, target, workers=2).skipped == 5
    assert {name: os.stat(target / name).st_mtime_ns for name in made} == times
    assert sorted(os.listdir(target / ".transcode")) == ["index.jsonl", "lock"]
    _write(source / "a.flac", _rumble(0.6, seed=9))                       # another source
    (target / "deep" / "-b.mp3").write_bytes(b"\0" * 1000)                # a damaged target
    (target / "x.y.mp3").unlink()
    report = transcode(source, target, workers=2)
    assert (report.transcoded, report.skipped) == (3, 2)
    again = _tree(target)
    assert [name for name in made if again[name] != made[name]] == ["a.mp3"]
    assert transcode(source, target, workers=2, bitrate=64000).transcoded == 5, "other settings"


def test_bad_files_are_counted_and_stop_nothing(source, tmp_path):
    whole = _write(source / "cut.flac", _rumble(4)).read_bytes()
    (source / "cut.flac").write_bytes(whole[: len(whole) // 2])
    (source / "empty.flac").write_bytes(b"")
    (source / "text.flac").write_text("only words\n" * 100)
    (source / "folder.flac").mkdir()
    os.symlink("nowhere", source / "link.flac")
    os.mkfifo(source / "pipe.flac")
    nan = _rumble(1)
    nan[30000] = np.nan
    _write(source / "nan.flac", nan, format="WAV", subtype="FLOAT")
    _write(source / "nothing.flac", np.zeros((0, 1)), format="WAV")
    _write(source / "x.y.FLAC", _rumble(1), format="FLAC")                # would become x.y.mp3, as x.y.flac does
    bytes_name = os.fsencode(source) + b"/\xff.flac"
    shutil.copy(source / "a.flac", bytes_name)
    _write(source / "taken.flac", _rumble(0.3))
    (tmp_path / "target" / "taken.mp3").mkdir(parents=True)
    assert main(["transcode", str(source), str(tmp_path / "target"), "--workers", "2"]) == 1
    report = json.loads((tmp_path / "target" / "transcode.json").read_text())
    reasons = {"cut.flac": "lost sync", "empty.flac": "empty", "text.flac": "cannot be decoded", "link.flac": "does not exist",
               "pipe.flac": "does not exist", "nan.flac": "no finite numbers", "nothing.flac": "no sound",
               "x.y.flac": "x.y.FLAC", "taken.flac": "directory"}
    assert set(report["failed"]) == set(reasons)
    assert [name for name, word in reasons.items() if word not in report["failed"][name]] == []
    assert (report["found"], report["transcoded"], report["skipped"]) == (len(NAMES) + 10, len(NAMES) + 1, 0)
    names = set(os.listdir(os.fsencode(tmp_path / "target")))
    assert b"\xff.mp3" in names and b"cut.mp3" not in names and not list((tmp_path / "target" / ".transcode").glob("parts-*"))
    assert transcode(source, tmp_path / "target", workers=2).skipped == len(NAMES) + 1, "only failed files are tried again"


# Files of these names do to a worker what no committed file could do to every decoder; loaded by the worker's interpreter alone.
EVIL = """
import os, signal, sys, time
if "lib.data.transcode" in sys.orig_argv:
    import lib.media.audio as audio
    blocks = audio.blocks
    def evil(path, *rest):
        name = os.path.basename(path)
        if "hang" in name: time.sleep(1000)
        if "crash" in name: os.kill(os.getpid(), signal.SIGSEGV)
        if "greedy" in name: bytearray(1 << 40)
        if "slow" in name: time.sleep(0.5)
        return blocks(path, *rest)
    audio.blocks = evil
"""


@pytest.fixture
def evil(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(EVIL)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{ROOT}")


def test_decoders_that_hang_or_crash(source, tmp_path, evil):
    for name in ("hang.flac", "crash.flac", "greedy.flac"):
        _write(source / name, _rumble(0.3))
    report = transcode(source, tmp_path / "target", workers=2, stuck=2)
    assert set(report.failed) == {"hang.flac", "crash.flac", "greedy.flac"} and report.transcoded == len(NAMES)
    assert report.failed["hang.flac"] == "its decoder got stuck for 2 s and was ended"
    assert "crashed" in report.failed["crash.flac"] and "crashed" not in report.failed["hang.flac"]


def test_killed_in_the_middle_and_started_again(tmp_path, evil):
    for k in range(6):
        _write(tmp_path / "source" / f"slow{k}.flac", _rumble(0.5, seed=k))
    command = [sys.executable, "-m", "lib.data", "transcode", tmp_path / "source", tmp_path / "target", "--workers", "2"]
    process, deadline = subprocess.Popen(command, cwd=ROOT), time.monotonic() + 60
    while len(_tree(tmp_path / "target")) < 2 or not list((tmp_path / "target").glob(".transcode/parts-*/*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    with open(tmp_path / "target" / ".transcode" / "index.jsonl", "r+b") as index:
        index.truncate(os.path.getsize(index.name) - 5)                   # the kill may cut a line short
    before = _tree(tmp_path / "target")
    assert 2 <= len(before) < 6
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "of 6 files" in result.stdout and "0 failed" in result.stdout, result.stderr
    report = json.loads((tmp_path / "target" / "transcode.json").read_text())
    assert report["skipped"] >= len(before) - 2 and report["skipped"] + report["transcoded"] == 6
    assert not psutil.wait_procs(children, timeout=10)[1], "workers notice that nobody asks any more"
    transcode(tmp_path / "source", tmp_path / "undisturbed", workers=2)
    assert _tree(tmp_path / "target") == _tree(tmp_path / "undisturbed") and len(_tree(tmp_path / "target")) == 6


@pytest.mark.parametrize("options, words", [
    ({"bitrate": 50_000}, "bitrate: 50000 is none of mp3; choose from 32000, 40000"), ({"workers": -1}, "workers: -1"),
    ({"sample_rate": 31_000}, "sample_rate: 31000 Hz"),
    ({"suffix": ".mp3"}, "would be taken for sources"), ({"suffix": ".wma"}, "no file in .* ends in '.wma'")])
def test_refused_before_any_work(source, options, words):
    with pytest.raises(ValueError, match=words):
        transcode(source, source / "mp3", **options)
    with pytest.raises(FileNotFoundError, match="absent is not a folder"):
        transcode(source / "absent", source / "mp3")
    assert not (source / "mp3").exists()


def test_a_program_that_cannot_start_is_an_error():
    with pytest.raises(RuntimeError, match="import lib.absent"):
        list(ask_all("lib.absent", [["x"]], 2))


def test_requests_are_taken_as_processes_are_free(tmp_path, evil):
    """Answers come as they are ready; who stops asking leaves no process behind."""
    taken, slow, quick = [], _write(tmp_path / "hang.flac", _rumble(0.2)), _write(tmp_path / "b.flac", _rumble(0.2))

    def requests():
        for k in range(100):
            taken.append(k)
            yield [k, str(slow if k == 0 else quick), str(tmp_path / f"{k}.mp3"), 48000, 32000, 30]
    answers = ask_all("lib.data.transcode", requests(), 2)
    first = [next(answers) for _ in range(3)]
    assert [(request[0], answer) for request, answer in first] == [(1, ""), (2, ""), (3, "")] and len(taken) < 20
    children = [child for child in psutil.Process().children() if "lib.data.transcode" in child.cmdline()]
    assert len(children) == 2
    answers.close()
    assert not psutil.wait_procs(children, timeout=5)[1]
    assert Lost(True).hanging
