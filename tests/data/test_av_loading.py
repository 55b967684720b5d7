"""Every kind of file in one data set: sound, picture and label of an item are of one clip, and what is absent is counted."""
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from lib.data import av_loading, soundscapes
from lib.data.av_loading import AudioVisualDataset, count_clips, read_window, stored_windows
from lib.data.loading import batches
from lib.data.manifest import Manifest
from lib.files import read_json
from lib.media import audio, video
from lib.settings import ROOT

MEDIA = Path(os.environ.get("WORKBOOK_SHARED", ROOT / "../shared/data")) / "media"
RATE, FPS, SIZE, FRAMES = 16000, 10, 16, 4
SETTINGS = dict(frames=FRAMES, size=SIZE, sample_rate=RATE, seconds=1.0)


def grey(number):
    return 20 + 15 * number     # of every picture of clip `number`


def pitch(number):
    return 400 + 300 * number   # Hz, of its tone


def write(path, number, seconds=1.0, picture=True, sound=True, times=None, silent=False, pcm=False):
    """A video of one grey and one tone, both told by its number. times: milliseconds of the frames."""
    times = list(range(0, round(seconds * 1000), 1000 // FPS)) if times is None else times
    with av.open(str(path), "w", format="matroska" if pcm else "mp4") as container:
        if picture:
            shown = container.add_stream("libx264", rate=FPS, options={"crf": "10"})
            shown.width = shown.height = 32
            shown.pix_fmt, shown.codec_context.time_base = "yuv420p", Fraction(1, 1000)
        if sound:
            heard = container.add_stream("pcm_f32le" if pcm else "aac", rate=48000, layout="mono")
        for time_ in times if picture else ():
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), grey(number), np.uint8))
            frame.pts, frame.time_base = time_, Fraction(1, 1000)
            container.mux(shown.encode(frame))
        if picture:
            container.mux(shown.encode(None))
        if sound:
            t = np.arange(round(seconds * 48000)) / 48000
            wave = (0.0 if silent else 0.4) * np.sin(2 * np.pi * pitch(number) * t)
            if pcm:
                wave[999] = np.nan
            frame = av.AudioFrame.from_ndarray(wave.astype(np.float32)[None], format="flt" if pcm else "fltp", layout="mono")
            frame.sample_rate, frame.pts = 48000, 0
            container.mux([*heard.encode(frame), *heard.encode(None)])


def damage(path, kind):
    """Noise in the packets of one stream; the container stays whole."""
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(**{kind: 0}) if packet.size]
    content, rng = bytearray(path.read_bytes()), np.random.default_rng(0)
    for at, size in places:
        content[at:at + size] = rng.bytes(size)
    path.write_bytes(content)


FILES = ["good.mp4", "-dash 'q\"uoted'.mp4", "broken sound.mp4", "broken picture.mp4", "silent.mp4", "no sound.mp4", "only.wav",
         "only.mp3", "variable.mp4", "one frame.mp4", "nan.mkv", "empty.mp4", "missing.mp4", "unknown.mp4"]
NO_SOUND = {"broken sound.mp4", "no sound.mp4", "nan.mkv", "empty.mp4", "missing.mp4", "unknown.mp4"}
NO_PICTURE = {"broken picture.mp4", "only.wav", "only.mp3", "empty.mp4", "missing.mp4"}
LACKING = {"both": NO_SOUND | NO_PICTURE, "audio": NO_SOUND, "video": NO_PICTURE, "any": NO_SOUND & NO_PICTURE}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """One clip of every kind; clip, grey, pitch and label have one number."""
    root = tmp_path_factory.mktemp("zoo")
    options = {"silent.mp4": dict(silent=True), "no sound.mp4": dict(sound=False), "one frame.mp4": dict(times=[0]),
               "nan.mkv": dict(pcm=True), "variable.mp4": dict(times=[0, 40, 80, 300, 800, 810, 820])}
    for number, name in enumerate(FILES):
        if name.startswith("only"):
            tone = 0.4 * np.sin(2 * np.pi * pitch(number) * np.arange(RATE) / RATE)
            soundfile.write(root / name, tone, RATE)
        elif name not in ("empty.mp4", "missing.mp4"):
            write(root / name, number, **options.get(name, {}))
    damage(root / "broken sound.mp4", "audio"), damage(root / "broken picture.mp4", "video"), (root / "empty.mp4").touch()
    coded = (root / "unknown.mp4").read_bytes()
    (root / "unknown.mp4").write_bytes(coded.replace(b"mp4a", b"zzzz").replace(b"esds", b"zzzz"))
    return Manifest(table(FILES, labels=[[f"{number:02d}"] for number in range(len(FILES))]), "zoo", root)


def table(names, **columns):
    """A manifest's table, one clip of a second a file."""
    rows = {"clip_id": names, "path": names, "start": 0.0, "duration": 1.0, "split": "train"}
    return pd.DataFrame(rows).assign(captions=[[] for _ in names], **{"labels": [[] for _ in names]} | columns)


def check(item):
    """What is there is that of the clip which the item names."""
    number = FILES.index(item["clip_id"])
    assert item["row"] == item["label"] == number
    assert item["frames"].dtype == torch.uint8 and item["frames"].shape == (FRAMES, 3, SIZE, SIZE)
    assert item["waveform"].dtype == torch.float32 and item["waveform"].shape == (RATE,)
    assert item["has_audio"] == (item["clip_id"] not in NO_SOUND) and item["has_video"] == (item["clip_id"] not in NO_PICTURE)
    assert item["missing"].keys() == {what for what in ("audio", "video") if not item[f"has_{what}"]}
    assert item["silent"] == (item["clip_id"] == "silent.mp4")
    if item["has_video"]:
        assert (item["frames"].float() - grey(number)).abs().max() <= 4
    else:
        assert not item["frames"].any()
    if item["has_audio"] and not item["silent"]:
        assert abs(np.abs(np.fft.rfft(item["waveform"])).argmax() - pitch(number)) <= 2
    else:
        assert item["waveform"].abs().max() < 1e-4


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_keeps_every_clip_with_what_it_has(zoo, stored, workers, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path))
    store = stored_windows(zoo, **SETTINGS, workers=workers) if stored else None
    for need, lacking in LACKING.items():
        dataset = AudioVisualDataset(zoo, **SETTINGS, need=need, store=store)
        batch = next(batches(dataset, len(FILES), workers=workers))
        assert batch["clip_id"] == FILES and batch["frames"].shape[0] == batch["waveform"].shape[0] == len(FILES)
        for i in range(len(FILES)):
            check({name: values[i] for name, values in batch.items()})
        failed = {entry["clip_id"]: entry["reason"] for entry in batch["failed"] if entry}
        assert failed.keys() == lacking and all(name in reason for name, reason in failed.items()), "a reason names its file"
    counts = {"clips": 14, "both": 5, "no sound": 4, "no picture": 3, "neither": 2, "silent": 1}
    assert count_clips(batch["has_audio"], batch["has_video"], batch["silent"]) == counts
    assert not stored or store.counts() == counts


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("need", ["both", "audio", "video", "any"])
def test_training_replaces_as_a_whole_and_counts(zoo, need, stored):
    usable = set(FILES) - LACKING[need]
    store = stored_windows(zoo, **SETTINGS) if stored else None
    dataset = AudioVisualDataset(zoo, **SETTINGS, train=True, need=need, seed=3, store=store)
    seen, listed = [], {}
    for epoch in range(3):
        for batch in batches(dataset, 5, epoch=epoch, seed=1, shuffle=True, skipped=listed if epoch == 2 else ()):
            for i in range(len(batch["clip_id"])):
                item = {name: values[i] for name, values in batch.items()}
                check(item)
                assert item["clip_id"] in usable
                listed |= {item["failed"]["clip_id"]: item["failed"]["reason"]} if item["failed"] else {}
                seen.append((epoch, item["clip_id"]))
    assert listed.keys() == set(FILES) - usable
    counts = {epoch: sum(e == epoch for e, _ in seen) for epoch in range(3)}
    assert set(counts.values()) == {len(FILES)} and {name for _, name in seen} == usable, "an epoch keeps its length"
    # the stand-in is a function of (seed, epoch, row) alone: the same in another order, and when the clip is known to be bad
    bad = FILES.index("empty.mp4")
    stand_ins = [dataset[epoch, bad]["clip_id"] for epoch in range(20)]
    other = AudioVisualDataset(zoo, **SETTINGS, train=True, need=need, seed=3)
    other.skipped = frozenset(listed)
    assert len(set(stand_ins)) > 2 and stand_ins == [other[epoch, bad]["clip_id"] for epoch in range(20)]
    assert other[0, bad]["failed"]["clip_id"] == "empty.mp4"


def test_nothing_usable_stops_training(zoo):
    part = zoo.select(rows=[FILES.index("only.wav"), FILES.index("empty.mp4")])
    with pytest.raises(video.VideoError, match=r"only.wav.*nor could 20 other clips.*need='both'"):
        AudioVisualDataset(part, **SETTINGS, train=True)[0, 0]
    with pytest.raises(ValueError, match="need must be one of both, audio, video, any"):
        AudioVisualDataset(part, **SETTINGS, need="sound")


def test_one_decode_pass_a_file(zoo, monkeypatch):
    opened, real = [], av.open
    monkeypatch.setattr(av, "open", lambda *a, **k: opened.append(a) or real(*a, **k))
    monkeypatch.delattr(audio, "read")
    AudioVisualDataset(zoo, **SETTINGS)[0, 0]
    assert len(opened) == 2, "once to read packets, once to decode"


@pytest.fixture
def long(tmp_path):
    """Five seconds whose pictures and sound tell the time: grey 40 a second, loudness 0.1 a second; a clip is a part of it."""
    with av.open(str(tmp_path / "long.mp4"), "w") as container:
        shown = container.add_stream("libx264", rate=FPS, options={"crf": "5"})
        heard = container.add_stream("aac", rate=RATE, layout="mono")
        shown.width, shown.height, shown.pix_fmt = 32, 32, "yuv420p"
        for k in range(50):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 + 4 * k, np.uint8))
            frame.pts = k
            container.mux(shown.encode(frame))
        t = np.arange(5 * RATE) / RATE
        wave = (0.1 * t * np.sin(2 * np.pi * 500 * t)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        container.mux([*shown.encode(None), *heard.encode(frame), *heard.encode(None)])
    rows = table(["all", "part", "short"], path="long.mp4", start=[0.0, 1.0, 4.0], duration=[5.0, 3.0, 0.5],
                 labels=[["b"], ["a", "b"], []])
    return Manifest(rows, "long", tmp_path)


def begin(item):
    """Seconds at which an item's window begins, by its first picture and by its sound."""
    level = item["waveform"][:RATE // 4].square().mean().sqrt().item()
    return (item["frames"][0].float().mean().item() - 20) / 40, level / 0.1 * 2**0.5 - 0.125


def test_windows_lie_in_the_clip_and_both_begin_together(long):
    plain, drawn = AudioVisualDataset(long, **SETTINGS), AudioVisualDataset(long, **SETTINGS, train=True, seed=5)
    assert [plain[0, row]["label"] for row in range(3)] == [1, -1, -1]
    for row, start in ((0, 0.0), (1, 1.0), (2, 4.0)):
        assert begin(plain[3, row]) == pytest.approx((start, start), abs=0.1), "at the clip's start, whatever the epoch"
    short = plain[0, 2]["waveform"]
    assert not short[RATE // 2:].any() and short[RATE // 2 - 100:RATE // 2].any()
    assert (plain[0, 2]["frames"][-1].float().mean() - 20) / 40 <= 4.55, "no picture of beyond the clip"
    begins = np.array([begin(drawn[epoch, 1]) for epoch in range(12)])
    np.testing.assert_allclose(begins[:, 0], begins[:, 1], atol=0.16)       # a picture lasts 0.1 s
    assert begins.min() > 0.8 and begins.max() < 3.1 and len(set(begins[:, 0].round(1))) > 5
    again = AudioVisualDataset(long, **SETTINGS, train=True, seed=5)
    assert all(torch.equal(drawn[7, 1][name], again[7, 1][name]) for name in ("frames", "waveform"))
    # one picture or many of a window: from its first to its last
    many = read_window(long.file(0), frames=10, size=8, sample_rate=RATE, start=2.0, duration=1.0)
    np.testing.assert_allclose((many.frames.float().mean((1, 2, 3)) - 20) / 40, np.arange(2.0, 3.0, 0.1), atol=0.03)


# ---------------------------------------------------------------------------------------------------------------- store

def same(store, manifest):
    """What a store holds against decoding afresh: frames bit for bit, sound to half a step of 16 bits."""
    plain, stored = (AudioVisualDataset(manifest, **SETTINGS, need="any", store=s) for s in (None, store))
    for row in range(len(manifest)):
        one, two = plain[0, row], stored[0, row]
        assert torch.equal(one["frames"], two["frames"]) and one["missing"] == two["missing"]
        assert (one["waveform"] - two["waveform"]).abs().max() <= one["waveform"].abs().max() / 65534 * 1.01
        assert all(one[name] == two[name] for name in one if name not in ("frames", "waveform"))


def test_store_is_what_decoding_gives_and_is_made_once(zoo, monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path))
    store = stored_windows(zoo, **SETTINGS)
    same(store, zoo)
    assert store.frames.dtype == np.uint8 and store.sound.dtype == np.int16 and store.missing.keys() == NO_SOUND | NO_PICTURE
    part = zoo.select(rows=[4, 0])
    item = AudioVisualDataset(part, **SETTINGS, store=store)[0, 1]
    assert item["clip_id"] == "good.mp4" and item["label"] == 0 and (item["frames"].float() - grey(0)).abs().max() <= 4
    monkeypatch.delattr(video, "read_clip")
    again = stored_windows(zoo, **SETTINGS)
    assert again.folder == store.folder and np.array_equal(again.sound, store.sound) and again.counts() == store.counts()
    with pytest.raises(ValueError, match="'size': 16.*'size': 32.*asked for"):
        AudioVisualDataset(zoo, **SETTINGS | {"size": 32}, store=store)
    with pytest.raises(ValueError, match="clips of 'zoo' are not in it"):
        other = zoo.table.assign(clip_id=["x" + clip for clip in FILES])
        AudioVisualDataset(Manifest(other, "zoo", zoo.root), **SETTINGS, store=store)


def test_store_is_made_anew_when_a_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "data"))
    write(tmp_path / "a.mp4", 3), (tmp_path / "b.mp4").write_bytes(b"not yet fetched" * 99)
    manifest = Manifest(table(["a.mp4", "b.mp4"]), "two", tmp_path)
    first = stored_windows(manifest, **SETTINGS)
    assert first.counts()["neither"] == 1
    write(tmp_path / "b.mp4", 5)
    second = stored_windows(manifest, **SETTINGS)
    assert second.folder != first.folder and second.counts()["both"] == 2 and not second.missing


def test_store_says_when_there_is_nothing_or_no_room(zoo, monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="no clip of zoo could be read.*empty.mp4"):
        stored_windows(zoo.select(rows=[FILES.index("empty.mp4")]), **SETTINGS)
    with pytest.raises(ValueError, match="no clip of zoo could be read.*the data set is empty"):
        stored_windows(zoo.select(rows=[]), **SETTINGS)
    free = av_loading.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(av_loading.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(OSError, match="0.0 GB are free"):
        stored_windows(zoo, **SETTINGS)


def test_store_goes_on_where_it_was_stopped(zoo, monkeypatch, tmp_path):
    """An interrupt in the middle: what was noted is not decoded again, and what had not been is."""
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path))
    monkeypatch.setattr(av_loading, "SAVED_EVERY", 0.0)
    monkeypatch.setattr(av_loading, "TOGETHER", 2)
    decoded, real, stop = [], av_loading.read_window, [7]

    def read(path, **options):
        if len(decoded) == stop[0]:
            raise KeyboardInterrupt
        decoded.append(path.name)
        return real(path, **options)
    monkeypatch.setattr(av_loading, "read_window", read)
    with pytest.raises(KeyboardInterrupt):
        stored_windows(zoo, **SETTINGS)
    assert decoded == FILES[:7]
    decoded.clear()
    stop[0] = None
    store = stored_windows(zoo, **SETTINGS)
    assert decoded == FILES[6:], "three answers of two clips had been noted"
    monkeypatch.setattr(av_loading, "read_window", real)
    same(store, zoo)
    assert store.counts()["silent"] == 1 and not (store.folder / av_loading.PROGRESS).exists()


@pytest.mark.slow
def test_store_survives_kills(zoo, monkeypatch, tmp_path):
    """kill -9 of a process that decodes with two workers, a few times: the store is that of one never stopped."""
    many = Manifest(pd.concat([zoo.table.assign(clip_id=[f"{k}/{clip}" for clip in FILES]) for k in range(40)]), "zoo", zoo.root)
    saved = many.save(tmp_path / "many.parquet")
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "killed"))
    code = ("import sys; from lib.data import av_loading; from lib.data.manifest import Manifest; av_loading.SAVED_EVERY = 0.0; "
            f"av_loading.stored_windows(Manifest.load(sys.argv[1]), workers=2, **{SETTINGS!r})")

    def notes():
        return [read_json(path)["rows"] for path in (tmp_path / "killed").glob(f"windows/*/{av_loading.PROGRESS}")]
    kills = 0
    for _ in range(4):
        before, deadline = notes(), time.monotonic() + 60
        process = subprocess.Popen([sys.executable, "-c", code, str(saved)], cwd=ROOT, start_new_session=True)
        while notes() == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        kills += process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert kills >= 2
    store = stored_windows(many, **SETTINGS)
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "whole"))
    whole = stored_windows(many, **SETTINGS)
    assert all(np.array_equal(getattr(store, name), getattr(whole, name)) for name in ("frames", "sound", "scale"))
    assert store.missing == whole.missing and store.silent == whole.silent


# ------------------------------------------------------------------------------------------- embedded data and recordings

def test_soundscapes_of_one_event_make_a_classification_set(tmp_path):
    manifest = soundscapes.prepare(tmp_path, num_samples=12, clip_seconds=3.0, rendering="video", events=1)
    assert manifest.splits == {"train": 6, "val": 3, "test": 3} and len(manifest.classes) == 24
    dataset = AudioVisualDataset(manifest, frames=8, size=64, sample_rate=RATE, seconds=3.0)
    for row in range(len(manifest)):
        item = dataset[0, row]
        assert [manifest.classes[item["label"]]] == manifest.table["labels"][row]
        assert item["has_audio"] and item["has_video"] and not item["silent"] and item["failed"] is None
    # a scene is the same whoever asks for it, so the files are shared with the whole data set
    names = list(manifest.table["clip_id"])
    assert names == [s.clip_id for split in ("train", "val", "test") for s in soundscapes._scenes(0, split, 60, 3.0, None)
                     if len(s.events) == 1 and s.clip_id in names]
    assert manifest.root == tmp_path / soundscapes.digest(0, 3.0, "video")
    for wrong in (0, 4, 1.5):
        with pytest.raises(ValueError, match="events must be one of 1, 2, 3 or None"):
            soundscapes.prepare(tmp_path, num_samples=3, events=wrong)


@pytest.mark.skipif(not MEDIA.is_dir(), reason="the real media files are not here")
def test_real_recordings():
    names = ["00W1lcxW-WU_40.000.mp4", "KlsG1EnBEjc_000361.mp4", "R9_ZSCveAHg_7s.mp3", "FwVYUHKoLtQ_000034.wav"]
    manifest = Manifest(table(names, duration=10.0), "real", MEDIA)
    dataset = AudioVisualDataset(manifest, frames=3, size=32, need="any")
    for row, name in enumerate(names):
        item = dataset[0, row]
        sound = audio.read(MEDIA / name, sample_rate=16000, duration=10.0)[0]
        torch.testing.assert_close(item["waveform"][:len(sound)], sound, atol=1e-6, rtol=0)
        assert item["waveform"].shape == (160_000,) and not item["waveform"][len(sound):].any()
        assert item["has_audio"] and item["failed"] is None
        assert item["has_video"] == name.endswith("mp4") == bool(item["frames"].float().std() > 10)
        if item["has_video"]:
            clip = video.read_clip(MEDIA / name, count=3, size=32, duration=10.0)
            assert torch.equal(item["frames"], (clip.frames * 255).round().byte())
