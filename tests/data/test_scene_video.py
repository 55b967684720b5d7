"""Scenes in sight, seen through a decoder: what appears, where, when and for how long is what the annotation says."""
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import av
import numpy as np
import pytest
from scipy import ndimage

from lib.audio.signals import SAMPLE_RATE, to_samples
from lib.data import scene_video
from lib.data.scene_video import (COLOURS, FRAME_RATE, HEIGHT, LOOKS, SHAPES, WIDTH, close_up, frame_count, frames, look, place, radius,
                                  write)
from lib.data.scenes import Scene, classes, config, render, sample_scene
from lib.media import audio
from lib.settings import ROOT

FRAME = 1 / FRAME_RATE
PALETTE = np.array([*COLOURS.values()], dtype=np.float32)


def hiss(scene, seed=0):
    return np.random.default_rng(seed).uniform(-0.1, 0.1, to_samples(scene.duration)).astype(np.float32)


def scene_of(*events, duration=3.0, index=0):
    """A scene with these changes to the event of sampled scene `index`, one event a dictionary."""
    scene = sample_scene(0, "train", index, duration)
    made = tuple(replace(scene.events[0], rate=middle_rate(e["label"]), **e) for e in events)
    return replace(scene, events=made, stages=tuple((i,) for i in range(len(made))))


def middle_rate(label):
    low, high = config()["classes"][label]["rate"]
    return (low * high) ** 0.5


def decode(file, **size):
    """(times in seconds, pictures uint8 (T, H, W, 3))."""
    with av.open(str(file)) as container:
        found = [(f.time, f.reformat(format="rgb24", **size).to_ndarray()) for f in container.decode(video=0)]
    return np.array([time for time, _ in found]), np.stack([picture for _, picture in found])


def colour_of(pictures):
    """Index of the nearest colour of the palette for every pixel, -1 for the dim background and blurred edges."""
    bright = pictures.max(-1) > 110  # few: the rest need not be compared
    distance = np.linalg.norm(pictures[bright][:, None].astype(np.float32) - PALETTE, axis=-1)
    colours = np.full(pictures.shape[:-1], -1)
    colours[bright] = np.where(distance.min(-1) < 50, distance.argmin(-1), -1)
    return colours


def colour_index(label):
    return list(COLOURS).index(LOOKS[label][1])


def centroid(mask):
    rows, columns = np.nonzero(mask)
    return (columns.mean() + 0.5) / mask.shape[1], (rows.mean() + 0.5) / mask.shape[0]


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """[(scene, times, pictures, file)] of sampled scenes through the encoder and back."""
    folder, films = tmp_path_factory.mktemp("films"), []
    for index in range(16):
        scene = sample_scene(3, "train", index, 5.0)
        write(scene, hiss(scene), folder / f"{index}.mp4")
        films.append((scene, *decode(folder / f"{index}.mp4"), folder / f"{index}.mp4"))
    return films


# -------------------------------------------------------------------------------------------------------------- looks

def test_every_class_has_a_look_of_its_own():
    assert list(LOOKS) == classes() and {shape for shape, _ in LOOKS.values()} == set(SHAPES)
    assert len(set(LOOKS.values())) == 24
    for (one, a), (other, b) in combinations(COLOURS.items(), 2):
        assert np.linalg.norm(np.subtract(a, b)) > 80, (one, other)
    for (one, a), (other, b) in combinations(LOOKS.items(), 2):
        if a[0] == b[0]:
            assert np.linalg.norm(np.subtract(COLOURS[a[1]], COLOURS[b[1]])) > 150, f"{one} and {other} share a shape"
    assert look("rain").colour == COLOURS["blue"] and look("rain").shape == "drop"
    with pytest.raises(ValueError, match="'piano' has no look; expected one of bird_chirp"):
        look("piano")


def test_every_shape_is_centred_on_its_place():
    for shape, inside in SHAPES.items():
        grid = np.linspace(-2, 2, 401)
        mask = inside(grid[None], grid[:, None]) < 0
        x, y = scene_video._centre(shape)
        rows, columns = np.nonzero(mask)
        assert abs(grid[columns].mean() - x) < 0.01 and abs(grid[rows].mean() - y) < 0.01
        reach = max(np.abs(grid[columns] - x).max(), np.abs(grid[rows] - y).max())
        assert 0.75 < reach <= 1.15, f"{shape} reaches {reach:.2f}: `_draw` cuts it, or it looks small"


def silhouette(mask, squash=1.0):
    """The mask around its centre of gravity, scaled to its area: (32, 32). squash: width to height of a pixel's contents."""
    middle, reach = ndimage.center_of_mass(mask), (mask.sum() * squash) ** 0.5
    steps = np.linspace(-reach, reach, 32)
    return ndimage.map_coordinates(mask, np.meshgrid(middle[0] + steps, middle[1] + steps / squash, indexing="ij"), order=1)


def foreground(picture):
    """Share of every pixel that is object, not background, (H, W), and the object's colour, for a picture with one object."""
    change = np.linalg.norm(picture - np.median(picture, axis=(0, 1)), axis=-1)
    colour = np.median(picture[change > 0.7 * change.max()], axis=0)
    level = np.linalg.norm(colour - np.median(picture, axis=(0, 1)))
    return np.where(ndimage.binary_dilation(change > level / 2), np.clip(change / level, 0, 1), 0), colour


def test_all_looks_are_told_apart_after_encoding_and_resizing(tmp_path):
    templates = {}
    for shape in SHAPES:  # large and straight from the drawing
        label = next(name for name, (its, _) in LOOKS.items() if its == shape)
        picture = next(iter(frames(scene_of({"label": label, "onset": 0.0, "duration": 3.0, "distance": 1.0}))))
        templates[shape] = silhouette(foreground(picture)[0])
    seen = {}
    for number, label in enumerate(LOOKS):
        scene = scene_of(*({"label": label, "onset": float(i), "duration": 1.0, "distance": distance, "azimuth": azimuth}
                           for i, (distance, azimuth) in enumerate([(1.0, -170.0), (3.0, 10.0), (14.0, 120.0)])), index=number)
        write(scene, hiss(scene), tmp_path / "a.mp4")
        _, pictures = decode(tmp_path / "a.mp4", width=224, height=224)
        for second in range(3):
            mask, colour = foreground(pictures[second * FRAME_RATE + 5])
            mask = silhouette(mask, squash=WIDTH / HEIGHT)
            agreement = {shape: np.minimum(mask, t).sum() / np.maximum(mask, t).sum() for shape, t in templates.items()}
            nearest = list(COLOURS)[np.linalg.norm(colour - PALETTE, axis=1).argmin()]
            seen[label, second] = max(agreement, key=agreement.get), nearest
    wrong = {key: found for key, found in seen.items() if found != LOOKS[key[0]]}
    assert len(seen) == 72 and not wrong


# -------------------------------------------------------------------------------------------------------------- places

def test_mean_of_the_path_is_the_direction_and_objects_stay_in_the_picture():
    for index in range(60):
        for event in sample_scene(1, "val", index, 5.0).events:
            times = event.onset + event.duration * np.arange(1000) / 1000
            x, y = np.array([place(event, t) for t in times]).T
            reach = max(radius(event, t) for t in times) * 1.15 + 1.6  # with its outline
            assert x.mean() == pytest.approx(0.5 - event.azimuth / 360 * 0.66, abs=1e-6)
            assert y.mean() == pytest.approx(0.5 - event.elevation / 90 * 0.55, abs=1e-6)
            assert 0.04 < np.ptp(x) < 0.06 and 0.05 < np.ptp(y) < 0.08, "it moves, but little"
            assert reach <= x.min() * WIDTH and x.max() * WIDTH <= WIDTH - reach, "cut at a side"
            assert reach <= y.min() * HEIGHT and y.max() * HEIGHT <= HEIGHT - reach, "cut above or below"


def test_behind_and_beyond():
    event = sample_scene(0, "train", 0, 5.0).events[0]

    def middle(**change):
        e = replace(event, **change)
        return np.mean([place(e, e.onset + e.duration * i / 100) for i in range(100)], axis=0)

    assert middle(azimuth=179.9)[0] < 0.2 < 0.8 < middle(azimuth=-179.9)[0], "left of straight behind is on the left"
    np.testing.assert_allclose(middle(azimuth=180.0), middle(azimuth=-180.0))
    np.testing.assert_allclose(middle(azimuth=-90.0), middle(azimuth=270.0))
    np.testing.assert_allclose(middle(elevation=90.0), middle(elevation=45.0))
    assert middle(azimuth=90.0)[0] < 0.4 and middle(azimuth=0.0)[0] == pytest.approx(0.5) and middle(elevation=30.0)[1] < 0.4


def test_nearer_is_larger_and_a_fast_event_swells_more_often():
    low, high = config()["classes"]["dog_bark"]["rate"]
    event = replace(sample_scene(0, "train", 0, 5.0).events[0], label="dog_bark", onset=0.0, duration=4.0, rate=low)
    sizes = [radius(replace(event, distance=d), 0.0) for d in (0.5, 1.0, 2.0, 4.0, 14.0)]
    assert sizes[0] == sizes[1] == 28 and all(a > 1.15 * b for a, b in zip(sizes[1:], sizes[2:])) and sizes[-1] > 11

    def swells(rate):
        size = np.array([radius(replace(event, rate=rate), t) for t in np.arange(0, 4, 0.001)])
        return int(((size[1:-1] > size[:-2]) & (size[1:-1] >= size[2:])).sum())

    assert swells(low) == 3 and swells(high) == 12  # 0.8 and 3 a second for 4 s


def test_decoded_objects_follow_their_place_while_their_event_lasts_and_only_then(films):
    checked = 0
    for scene, times, pictures, _ in films:
        colours = colour_of(pictures)
        for event in scene.events:
            number = colour_index(event.label)
            same = [e for e in scene.events if e is not event and colour_index(e.label) == number]
            visible = []
            for time, found in zip(times, colours == number):
                if any(e.onset - FRAME <= time <= e.onset + e.duration + FRAME for e in same):
                    continue
                if not event.onset <= time < event.onset + event.duration:
                    assert found.sum() < 5, f"{scene.clip_id}: {event.label} is seen at {time:.2f} s"
                    continue
                visible.append(time)
                x, y = place(event, time)
                others = [e for e in scene.events if e is not event and e.onset <= time < e.onset + e.duration]
                clear = all(np.hypot((place(e, time)[0] - x) * WIDTH, (place(e, time)[1] - y) * HEIGHT)
                            > 1.5 * (radius(e, time) + radius(event, time)) for e in others)
                assert found.sum() > 0.35 * radius(event, time) ** 2 or not clear
                if clear:
                    measured = centroid(found)
                    assert abs(measured[0] - x) < 0.008 and abs(measured[1] - y) < 0.01, (scene.clip_id, event.label, time)
                    checked += 1
            if not same:
                assert 0 <= visible[0] - event.onset < FRAME and 0 < event.onset + event.duration - visible[-1] <= FRAME
    assert checked > 400


def test_position_follows_azimuth_and_elevation(films):
    rows = []
    for scene, times, pictures, _ in films:
        colours = colour_of(pictures)
        for event in scene.events:
            if sum(colour_index(e.label) == colour_index(event.label) for e in scene.events) == 1:
                during = (event.onset <= times) & (times < event.onset + event.duration)
                middles = [centroid(c == colour_index(event.label)) for c in colours[during]]
                rows.append((event.azimuth, event.elevation, *np.mean(middles, axis=0)))
    azimuth, elevation, x, y = np.array(rows).T
    assert len(rows) > 20 and azimuth.min() < -120 and azimuth.max() > 120
    assert np.corrcoef(azimuth, x)[0, 1] < -0.995 and np.corrcoef(elevation, y)[0, 1] < -0.99
    for side in (azimuth > 15, azimuth < -15):
        assert side.any() and (np.sign(0.5 - x[side]) == np.sign(azimuth[side])).all(), "left of the picture = positive azimuth"


def test_of_two_objects_at_one_place_both_are_seen(tmp_path):
    at = {"onset": 0.5, "duration": 2.0, "azimuth": 40.0, "elevation": 10.0}
    far, near = {"label": "clapping", "distance": 12.0, **at}, {"label": "dog_bark", "distance": 1.2, **at}
    for order in ([far, near], [near, far]):
        scene = scene_of(*order)
        write(scene, hiss(scene), tmp_path / "a.mp4")
        picture = colour_of(decode(tmp_path / "a.mp4")[1][18])
        small, large = picture == colour_index("clapping"), picture == colour_index("dog_bark")
        assert small.sum() > 60 and large.sum() > 1000
        x, y = place(scene.events[0], 1.5)
        assert np.hypot(centroid(small)[0] - x, centroid(small)[1] - y) < 0.01


def test_two_events_that_overlap_in_time_are_seen_together(films):
    together = 0
    for scene, times, pictures, _ in films:
        for a, b in (tuple(scene.events[i] for i in stage) for stage in scene.stages if len(stage) == 2):
            time = (max(a.onset, b.onset) + min(a.onset + a.duration, b.onset + b.duration)) / 2
            found = colour_of(pictures[int(time * FRAME_RATE)])
            assert all((found == colour_index(e.label)).sum() > 30 for e in (a, b))
            together += 1
    assert together >= 3


# --------------------------------------------------------------------------------------------- background, file, sound

def test_backgrounds_are_dim_differ_and_know_nothing_of_the_events():
    scene, other = (replace(sample_scene(0, "train", i, 3.0), events=()) for i in (0, 1))
    pictures = list(frames(scene))
    assert all((p == pictures[0]).all() for p in pictures) and pictures[0].max() <= 72 and pictures[0].std() > 2
    assert (colour_of(pictures[0]) == -1).all()
    assert np.abs(pictures[0].astype(int) - next(iter(frames(other)))).mean() > 3
    full = next(iter(frames(scene_of({"label": "rain", "onset": 0.0, "duration": 3.0, "azimuth": 0.0}))))
    changed = (full != pictures[0]).any(-1)
    assert 100 < changed.sum() < 0.1 * changed.size


@pytest.mark.parametrize("duration", [3.0, 3.3333, 5.04, 30.0])
def test_frames_time_stamps_and_durations(tmp_path, duration):
    scene = sample_scene(0, "test", 1, duration)
    write(scene, hiss(scene), tmp_path / "a.mp4")
    times, pictures = decode(tmp_path / "a.mp4")
    count = -(-round(duration * 12000) // 1000)
    assert len(times) == frame_count(scene) == count and pictures.shape[1:] == (HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(times, np.arange(count) / 12, atol=1e-6)
    with av.open(str(tmp_path / "a.mp4")) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, sound.codec_context.name) == ("h264", "aac")
        assert (sound.rate, sound.codec_context.channels, video.frames) == (SAMPLE_RATE, 1, count)
        assert float(video.duration * video.time_base) == pytest.approx(duration, abs=1e-4)
        assert float(sound.duration * sound.time_base) == pytest.approx(duration, abs=1e-4)
        assert container.duration / 1e6 == pytest.approx(duration, abs=1e-4)
        packets = sorted((p.pos, float(p.pts * p.time_base)) for p in container.demux() if p.size)
    times = np.array([time for _, time in packets])
    assert (np.maximum.accumulate(times) - times).max() < 0.2, "picture and sound must lie side by side in the file"


def test_decoded_pictures_are_close_to_those_drawn(films):
    scene, _, pictures, _ = films[0]
    drawn = np.stack(list(frames(scene))).astype(float)
    assert drawn.shape == pictures.shape and np.abs(drawn - pictures).mean() < 4


@pytest.mark.parametrize("index, duration", [(0, 5.0), (4, 3.3333)])
def test_sound_lines_up_with_the_rendering(tmp_path, index, duration):
    scene = sample_scene(0, "train", index, duration)
    samples = render(scene)
    write(scene, samples, tmp_path / "a.mp4")
    decoded = audio.read(tmp_path / "a.mp4", sample_rate=SAMPLE_RATE)[0].numpy()
    assert 0 <= len(decoded) - len(samples) < 1024
    size = 2 * len(decoded)
    correlation = np.fft.irfft(np.conj(np.fft.rfft(samples, size)) * np.fft.rfft(decoded, size), size)
    lag = (int(correlation.argmax()) + size // 2) % size - size // 2
    assert abs(lag) < 0.005 * SAMPLE_RATE
    error = decoded[: len(samples)] - samples
    assert 10 * np.log10((samples**2).sum() / (error**2).sum()) > 8 and np.abs(decoded[len(samples):]).max(initial=0) < 0.05


def test_sound_and_sight_start_together(tmp_path):
    scene = scene_of({"label": "beep", "onset": 1.37, "duration": 1.0})
    samples = np.zeros(to_samples(3.0), np.float32)
    begin, end = to_samples(1.37), to_samples(2.37)
    samples[begin:end] = 0.3 * np.sin(np.arange(end - begin) * 2 * np.pi * 1000 / SAMPLE_RATE)
    write(scene, samples, tmp_path / "a.mp4")
    decoded = np.abs(audio.read(tmp_path / "a.mp4", sample_rate=SAMPLE_RATE)[0].numpy())
    heard = np.flatnonzero(decoded > 0.15)[[0, -1]] / SAMPLE_RATE
    times, pictures = decode(tmp_path / "a.mp4")
    seen = times[(colour_of(pictures) == colour_index("beep")).any((1, 2))][[0, -1]] + [0, FRAME]
    np.testing.assert_allclose(heard, [1.37, 2.37], atol=0.005)
    assert (np.abs(seen - heard) < FRAME + 0.005).all()


def test_same_bytes_in_another_process_with_other_threads(tmp_path):
    scene = sample_scene(0, "train", 2, 3.0)
    write(scene, hiss(scene), tmp_path / "a.mp4")
    code = ("import sys, numpy; from lib.data.scene_video import write; from lib.data.scenes import sample_scene; "
            "noise = numpy.random.default_rng(0).uniform(-0.1, 0.1, 144000).astype('float32'); "
            "write(sample_scene(0, 'train', 2, 3.0), noise, sys.argv[1])")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "b.mp4.part")], check=True, cwd=ROOT,
                   env={**os.environ, "OMP_NUM_THREADS": "3", "PYTHONPATH": str(ROOT)})
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4.part").read_bytes()
    again = Scene.from_dict({**json.loads(scene.to_json()), "facts": []})
    write(again, hiss(scene), tmp_path / "a.mp4")  # over the old file
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4.part").read_bytes()
    write(replace(scene, index=3), hiss(scene), tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").read_bytes() != (tmp_path / "b.mp4.part").read_bytes(), "another background"


def test_files_are_small(films):
    sizes = [file.stat().st_size for *_, file in films]  # of noise at full bandwidth, the dearest sound there is
    assert np.mean(sizes) < 60_000 and max(sizes) < 75_000, sizes


@pytest.mark.parametrize("name", ["-", "-i.mp4.part", "a:b \"q\" 'x' <b>.part", "ünï.mp4", "pipe:1"])
def test_any_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    scene = sample_scene(0, "train", 0, 3.0)
    write(scene, hiss(scene), Path(name))
    assert [p.name for p in tmp_path.iterdir()] == [name] and (tmp_path / name).read_bytes()[4:8] == b"ftyp"


def test_wrong_input_is_named_and_writes_nothing(tmp_path):
    scene = sample_scene(0, "train", 0, 3.0)
    good = hiss(scene)
    for bad, message in [(good[:-1], r"float32 \(144000,\), 3 s .* got float32 \(143999,\)"),
                         (good[None], r"got float32 \(1, 144000\)"), (good.astype(np.float64), "got float64"),
                         (good * 20, "within -1 to 1"), (good * np.float32(np.nan), "finite")]:
        with pytest.raises(ValueError, match=message) as error:
            write(scene, bad, tmp_path / "a.mp4")
        assert "a.mp4" in str(error.value)
    with pytest.raises(ValueError, match="'piano' has no look"):
        write(replace(scene, events=(replace(scene.events[0], label="piano"),)), good, tmp_path / "a.mp4")
    with pytest.raises(FileNotFoundError):
        write(scene, good, tmp_path / "no folder" / "a.mp4")
    assert not list(tmp_path.iterdir())


def test_a_close_up_shows_all_of_its_one_event_larger_and_somewhere_else(tmp_path):
    scenes_of_one = [scene for scene in (sample_scene(0, "train", i, 3.0) for i in range(60)) if len(scene.events) == 1][:12]
    middles = []
    for scene in scenes_of_one:
        event, camera = scene.events[0], close_up(scene)
        times = np.linspace(event.onset, event.onset + event.duration, 40, endpoint=False)
        x, y = np.array([camera.see(*place(event, t)) for t in times]).T
        reach = np.array([camera.zoom * radius(event, t) for t in times]) * 1.15 + 1.6
        assert (x * WIDTH - reach > 0).all() and (x * WIDTH + reach < WIDTH).all()
        assert (y * HEIGHT - reach > 0).all() and (y * HEIGHT + reach < HEIGHT).all()
        middles.append((x.mean(), y.mean()))
        number = int(np.ceil((event.onset + 0.3) * FRAME_RATE))
        near, far = (list(frames(scene, close))[number] for close in (True, False))
        coloured = [(np.abs(picture.astype(int) - look(event.label).colour).sum(axis=-1) < 30) for picture in (near, far)]
        assert coloured[0].sum() > 3 * coloured[1].sum() > 0
        rows, columns = np.nonzero(coloured[0])
        at = camera.see(*place(event, number / FRAME_RATE))
        assert abs(columns.mean() - at[0] * WIDTH) < 4 and abs(rows.mean() - at[1] * HEIGHT) < 4
    assert np.ptp(middles, axis=0).min() > 0.05, "not all in the middle"
    assert close_up(scenes_of_one[0]) == close_up(scenes_of_one[0])
    two = next(scene for scene in (sample_scene(0, "train", i, 3.0) for i in range(60)) if len(scene.events) == 2)
    with pytest.raises(ValueError, match="has 2; use events=1"):
        close_up(two)
