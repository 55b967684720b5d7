"""Rendered triplets: every event where and when the labels say, members that differ in one thing each, splits apart."""
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from scipy.signal import fftconvolve

from lib.audio.ambisonics import direction, harmonics, intensity, unit_vector
from lib.audio.directions import DIRECTIONS, direction_word
from lib.data import event_sources, prepare, scenes, triplet_rendering, triplets
from lib.data.event_sources import SAMPLE_RATE, Recorded, Synthesised
from lib.data.manifest import Manifest
from lib.data.stclotho import ROLES
from lib.data.triplet_rendering import render
from lib.data.triplets import sample_single, sample_triplet, split_counts
from lib.media import audio
from tests.runs import kill_at_random_times

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("WORKBOOK_SHARED", ROOT / "../shared/data"))
SMALL = dict(num_samples=8, single_clips=9)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small rendering in the open."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBOOK_DATA", str(tmp_path_factory.mktemp("data")))
        yield prepare("triplets", **SMALL)


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def description(manifest, i):
    return json.loads(manifest.file(i).with_suffix(".json").read_text())


def takes(space="anechoic", count=12, split="test", seed=0, clip_seconds=2.5, event_seconds=1.2):
    bank = Synthesised(triplets._longest(event_seconds, clip_seconds, space))
    return [sample_triplet(bank, split, i, seed=seed, space=space, clip_seconds=clip_seconds) for i in range(count)]


def angle(one, other):
    a, b = unit_vector(*one), unit_vector(*other)
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b)), a @ b))


def clips_in(folder):
    return {file.relative_to(folder): file.read_bytes() for file in sorted(folder.rglob("*")) if file.suffix in (".flac", ".json")}


# ------------------------------------------------------------------------------------------------------------ the files

def test_rows_and_layout(made):
    table = made.table
    assert made.name == "triplets" and made.splits == {"train": 12 + 5, "val": 3 + 1, "test": 9 + 3} == Counter(table["split"])
    assert made.info["triplets"] == {"train": 4, "val": 1, "test": 3} and made.info["singles"] == {"train": 5, "val": 1, "test": 3}
    assert made.info["health"]["kept"] == len(made) == 33 and made.info["left_out"] == {}
    assert table["role"].tolist() == list(ROLES) * 8 + ["single"] * 9
    for b in range(8):
        rows = [made.row(i) for i in range(3 * b, 3 * b + 3)]
        assert len({row["group"] for row in rows}) == 1 and rows[0]["path"].endswith(f"triplets/temporal_{rows[0]['group'][-6:]}.flac")
    assert sorted({path.name.partition("_")[2] for path in made.root.rglob("*.flac") if path.parent.name == "single"}) == ["0.flac", "1.flac", "2.flac"]
    for i in range(len(made)):
        row, facts = made.row(i), soundfile.info(made.file(i))
        assert (facts.channels, facts.samplerate, facts.subtype, facts.frames) == (4, SAMPLE_RATE, "PCM_16", 60_000)
        count = 1 if row["role"] == "single" else 2
        assert count == len(row["labels"]) == len(row["azimuth"]) == len(row["elevation"]) == len(row["onset"])
        assert len(set(row["captions"])) == len(row["semantic_captions"]) == 5


def test_every_event_is_heard_from_its_direction_in_its_own_time(made):
    errors = []
    for i in range(len(made)):
        facts = description(made, i)
        clip = audio.read(made.file(i), sample_rate=None, mono=False).double().numpy()
        assert np.abs(clip).max() < 1
        for event in facts.get("audio_segments", [facts]):
            place = event.get("metadata", event)
            first = round(event["onset"] * SAMPLE_RATE)
            span = clip[:, first:first + round(event["duration"] * SAMPLE_RATE)]
            errors.append(angle(direction(intensity(span)), (place["azi"], place["ele"])))
            assert place["direction"] == f"The sound is coming from the {direction_word(place['azi'])}." and 1 <= place["r"] <= 4
    assert len(errors) == 8 * 6 + 9 and max(errors) < 1


def test_members_of_a_triplet_differ_in_one_thing_each(made):
    for b in range(8):
        positive, temporal, spatial = [made.row(i) for i in range(3 * b, 3 * b + 3)]
        places = [list(zip(row["azimuth"], row["elevation"])) for row in (positive, temporal, spatial)]
        assert temporal["labels"] == positive["labels"][::-1] and places[1] == places[0][::-1]
        assert spatial["labels"] == positive["labels"] and places[2] == places[0][::-1] and spatial["onset"] == positive["onset"]
        words = [direction_word(a) for a in positive["azimuth"]]
        assert words[0] != words[1] and positive["labels"][0] != positive["labels"][1]
        facts = [description(made, i)["generation_info"] for i in range(3 * b, 3 * b + 3)]
        variants = [f["variant"] for f in facts]
        assert variants == [variants[0], variants[0] ^ 2, variants[0] ^ 1] and [f["role"] for f in facts] == list(ROLES)
        for key in ("seed", "index", "room", "snr", "background"):
            assert len({json.dumps(f[key]) for f in facts}) == 1
        segments = [description(made, i)["audio_segments"] for i in range(3 * b, 3 * b + 3)]
        gaps = [round(s[1]["onset"] - s[0]["onset"] - s[0]["duration"], 4) for s in segments]
        assert gaps[0] == gaps[2] == pytest.approx(gaps[1], abs=1e-4) and gaps[0] >= triplets.GAP - 1e-4


def test_captions_tell_order_and_places_in_one_style(made):
    for b in range(8):
        members = [made.row(i) for i in range(3 * b, 3 * b + 3)]
        for k in range(5):
            hidden = []
            for row in members:
                words = re.findall(rf"\b(?:{'|'.join(DIRECTIONS)})\b", row["captions"][k])
                assert words == [direction_word(a) for a in row["azimuth"]]
                text = re.sub(rf"\b({'|'.join(DIRECTIONS)})\b", "*", row["captions"][k].lower())
                nouns = [next(noun for noun in sorted(scenes.config()["classes"][label]["nouns"], key=len, reverse=True) if noun in text)
                         for label in row["labels"]]
                assert text.index(nouns[0]) == 0 < text.index(nouns[1]), "what is heard first is named first"
                assert row["semantic_captions"][k].lower() == f"{nouns[0]}, then {nouns[1]}."
                hidden.append(text.replace(nouns[0], "#", 1).replace(nouns[1], "#", 1))
            assert len(set(hidden)) == 1


def test_no_source_is_in_two_splits(made):
    seen = {split: set() for split in ("train", "val", "test")}
    for i in range(len(made)):
        facts = description(made, i)
        seen[made.row(i)["split"]] |= {event.get("metadata", event)["ori_audiofile"] for event in facts.get("audio_segments", [facts])}
    for split in seen:  # and of many more, not rendered
        seen[split] |= {event.name for take in takes(count=200, split=split) for event in take.events}
    assert not seen["train"] & seen["val"] and not seen["train"] & seen["test"] and not seen["val"] & seen["test"]
    assert len(seen["test"]) > 80


# ------------------------------------------------------------------------------------------------------------ the draws

def test_any_variant_is_the_positive():
    drawn = [(take.positive, take.events[0].labels[0] < take.events[1].labels[0]) for take in takes(count=1200)]
    for counts in (np.bincount([p for p, _ in drawn], minlength=4), np.bincount([2 * (p & 1) + o for p, o in drawn], minlength=4)):
        expected = len(drawn) / len(counts)
        assert np.sum((counts - expected)**2) / expected < 16.3, f"chi-square with 3 degrees of freedom, p < 0.001: {counts}"


def test_places_fill_their_sectors():
    places = [p for take in takes(count=500) for p in take.places]
    azimuth, elevation, distance = (np.array([getattr(p, name) for p in places]) for name in ("azimuth", "elevation", "distance"))
    inside = (azimuth + 22.5) % 45 - 22.5
    assert np.abs(inside).max() < 22.5 and np.abs(azimuth).max() <= 180
    for values, low, high in ((inside, -22.5, 22.5), (elevation, -45, 45), (distance, 1, 4), (azimuth, -180, 180)):
        counts = np.histogram(values, 8, (low, high))[0]
        assert counts.sum() == len(places) and np.sum((counts - len(places) / 8)**2) / (len(places) / 8) < 24.3, "p < 0.001"
    assert all(direction_word(take.places[0].azimuth) != direction_word(take.places[1].azimuth) for take in takes(count=100))
    bank = Synthesised(1.2)
    for number in range(20):
        three = [sample_single(bank, "train", 3 * number + place, seed=0, space="anechoic", clip_seconds=2.5) for place in range(3)]
        assert len({direction_word(t.places[0].azimuth) for t in three}) == 3 == len({(t.lead, t.snr) for t in three})
        assert len({t.events for t in three}) == 1 and [t.place for t in three] == [0, 1, 2] and {t.index for t in three} == {number}


@pytest.mark.parametrize("space", ["anechoic", "shoebox"])
@pytest.mark.parametrize("event_seconds, clip_seconds", [(1.2, 2.5), (1.215, 2.5), (0.5, 4.0)])
def test_everything_fits(space, event_seconds, clip_seconds):
    for take in takes(space, 60, clip_seconds=clip_seconds, event_seconds=event_seconds):
        end = take.lead + take.gap + sum(event.samples for event in take.events)
        assert take.lead >= int(triplets.LEAD * SAMPLE_RATE) and take.gap >= int(triplets.GAP * SAMPLE_RATE)
        assert end <= (clip_seconds - triplets.TAIL[space]) * SAMPLE_RATE + 1
        assert max(event.samples for event in take.events) <= event_seconds * SAMPLE_RATE


def test_split_counts():
    assert split_counts(2000) == {"train": 1200, "val": 160, "test": 640}
    assert split_counts(3) == {"train": 1, "val": 1, "test": 1} and sum(split_counts(1).values()) == 1 and set(split_counts(0).values()) == {0}
    assert split_counts(92, ("train", "test")) == {"train": 60, "test": 32} and split_counts(5, ("test",)) == {"test": 5}
    assert all(sum(split_counts(n).values()) == n and min(split_counts(n).values()) >= 1 for n in range(3, 300))


# ------------------------------------------------------------------------------------------------------------ the sound

@pytest.fixture
def no_noise(monkeypatch):
    monkeypatch.setattr(triplet_rendering, "_noise", silence)


def silence(rng, samples, exponent):
    return np.zeros((4, samples), np.float32)


def dry(take):
    return [event_sources.signal(event, take.rng(triplet_rendering._SOUND, n)).astype(np.float64) for n, event in enumerate(take.events)]


@pytest.mark.parametrize("space", ["anechoic", "shoebox"])
def test_clips_are_the_naive_sum_of_their_events(space, no_noise):
    for take in takes(space, 5):
        sounds = dry(take)
        for event, sound in zip(take.events, sounds):
            assert event.samples == len(sound) and np.abs(sound).max() <= 0.2001 and event_sources.loudest(sound) <= 10**(-26 / 20) * 1.001
        answers = [harmonics(unit_vector(p.azimuth, p.elevation))[:, None] for p in take.places]
        if take.room:
            answers = triplet_rendering._responses(take)
        for clip, variant in zip(render(take), take.variants()):
            first, swapped = variant >> 1, variant & 1
            expected, begin = np.zeros((4, take.samples)), take.lead
            for number in (first, 1 - first):
                place = take.places[number ^ swapped]
                for c in range(4):
                    heard = fftconvolve(sounds[number], answers[number ^ swapped][c]) / np.sqrt(place.distance)
                    assert begin + len(heard) <= take.samples, "no tail is cut"
                    expected[c, begin:begin + len(heard)] += heard
                begin += len(sounds[number]) + take.gap
            assert np.abs(clip - expected).max() < 1e-6
            assert not clip[:, :take.lead - 1].any() and not clip[:, -10:].any()


def test_direct_sound_in_a_room_comes_from_the_place(no_noise):
    """The response begins with the gains of the direction and is faded to nothing; its room holds everyone."""
    for take in takes("shoebox", 25):
        for place, response in zip(take.places, triplet_rendering._responses(take)):
            assert np.allclose(response[:, 0], harmonics(unit_vector(place.azimuth, place.elevation)), atol=1e-6)
            assert response.shape[1] <= triplets.RESPONSE * SAMPLE_RATE and np.abs(response[:, -1]).max() < 2e-3
            assert (response[0, 1:] != 0).sum() > 50, "there are reflections"
            position = take.room.listener + place.distance * unit_vector(place.azimuth, place.elevation)
            for point in (position, take.room.listener):
                assert (point > triplets.MARGIN - 1e-9).all() and (point < take.room.size - triplets.MARGIN + 1e-9).all()
        assert (take.room.size >= triplets.SIZE[:, 0]).all() and (take.room.size <= triplets.SIZE[:, 1]).all()
        assert 0 < take.room.absorption < 1 and 0.15 <= take.room.reverberation <= 0.5
        event, number, at = take.order(take.variants()[0])[0]  # up to the first reflection, the sound in the clip is the direct one
        reflection = np.flatnonzero(np.abs(triplet_rendering._responses(take)[number][0]) > 0)[1]
        clip, place = render(take)[0][:, at:at + reflection].astype(np.float64), take.places[number]
        if np.abs(clip).max() > 1e-3:
            assert angle(direction(intensity(clip)), (place.azimuth, place.elevation)) < 0.5


def test_background_is_diffuse_and_as_loud_as_stated(monkeypatch):
    facts = []
    for take in takes(count=12):
        heard = render(take)
        with monkeypatch.context() as patch:
            patch.setattr(triplet_rendering, "_noise", silence)
            noises = [a.astype(np.float64) - b for a, b in zip(heard, render(take))]
        if take.background != "brown":  # which has few independent parts
            for one, other in ((0, 1), (0, 2), (1, 2)):
                assert abs(np.corrcoef(noises[one][0], noises[other][0])[0, 1]) < 0.15, "each member has a draw of its own"
        power = sum(np.sum(s**2) for s in dry(take)) * np.mean([1 / p.distance for p in take.places]) / sum(e.samples for e in take.events)
        for noise in noises:
            facts.append([10 * np.log10(power / np.mean(noise[0]**2)) - take.snr, *(np.mean(noise[1:]**2, axis=1) / np.mean(noise[0]**2))])
            assert np.abs(np.corrcoef(noise) - np.eye(4)).max() < 0.4
    assert np.abs(np.mean(facts, axis=0) - [0, 1 / 3, 1 / 3, 1 / 3]).max() < 0.1 and np.abs(np.array(facts)[:, 0]).max() < 1.5
    assert {take.background for take in takes(count=60)} == {"white", "pink", "brown", "blue"}


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, -1.0])
def test_noise_has_unit_power_and_its_colour(exponent):
    noise = triplet_rendering._noise(np.random.default_rng(0), 60_001, exponent)
    assert noise.shape == (4, 60_001) and np.mean(noise**2) == pytest.approx(1, abs=0.1)
    power = np.abs(np.fft.rfft(noise.astype(np.float64) * np.hanning(60_001)))**2
    f = np.fft.rfftfreq(60_001, 1 / SAMPLE_RATE)
    low, high = (np.mean(power[:, (f > a) & (f < 1.2 * a)]) for a in (300, 4800))
    assert np.log2(low / high) / 4 == pytest.approx(exponent, abs=0.15)


def test_a_loud_scene_is_made_softer_in_all_members_alike(monkeypatch):
    take = takes("shoebox", 1)[0]
    soft = render(take)
    for name, value in (("level_dbfs", 20.0), ("peak", 8.0)):
        monkeypatch.setitem(scenes.config()["scene"], name, value)
    loud = render(take)
    assert all(0.2 < np.abs(clip).max() < 1 for clip in loud)
    ratios = [np.sum(a[0] * b[0]) / np.sum(b[0]**2) for a, b in zip(loud, soft)]
    assert min(ratios) > 1.5 and np.ptp(ratios) < 1e-3 * ratios[0]


# ------------------------------------------------------------------------------------------------------------ prepare

def test_same_triplets_whatever_the_number_and_the_processes(made, data_folder):
    more = prepare("triplets", num_samples=12, single_clips=12, workers=2)
    few, many = clips_in(made.root), clips_in(more.root)
    assert more.root != made.root and set(few) < set(many) and all(many[name] == content for name, content in few.items())
    assert prepare("triplets", num_samples=12, single_clips=12).fingerprint == more.fingerprint
    other = prepare("triplets", num_samples=3, single_clips=0, seed=1)
    assert set(other.table["role"]) == set(ROLES) and not set(clips_in(other.root).values()) & set(many.values())


def test_a_killed_or_damaged_rendering_goes_on(data_folder):
    manifest = prepare("triplets", num_samples=4, single_clips=3)
    content = clips_in(manifest.root)
    files = [manifest.file(i) for i in range(len(manifest))]
    kept = files[-1].stat().st_mtime_ns
    files[0].unlink()
    files[3].with_suffix(".json").unlink()
    files[4].write_bytes(files[4].read_bytes()[:5000])
    files[6].with_suffix(".json").write_text("{half")
    part = files[1].with_name(files[1].name + ".1.part")
    part.write_bytes(b"half")
    again = prepare("triplets", num_samples=4, single_clips=3)
    assert clips_in(manifest.root) == content and not part.exists() and files[-1].stat().st_mtime_ns == kept
    assert again.fingerprint == manifest.fingerprint and again.info["health"]["kept"] == len(manifest) == 15


def test_rendering_processes_do_not_load_torch():
    code = "import sys, lib.data.triplet_rendering; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_folder_is_named_by_all_it_depends_on(made):
    first = (0, 8, 9, "soundscapes", "anechoic", 1.2, 2.5, None)
    assert triplets.digest(*first) == made.root.name
    changed = [(1, *first[1:]), (0, 9, *first[2:]), (0, 8, 8, *first[3:]), (*first[:4], "shoebox", *first[5:]), (*first[:5], 1.1, 2.5, None),
               (*first[:6], 3.0, None), (*first[:7], made)]
    assert len({triplets.digest(*values) for values in [first, *changed]}) == 8


@pytest.mark.slow
def test_kill_at_random_times(data_folder):
    """kill -9 of a rendering by two processes, again and again, then finished: not a bit differs from one never stopped."""
    arguments = dict(num_samples=120, single_clips=24, space="shoebox")
    code = f"from lib.data import prepare; prepare('triplets', workers=2, **{arguments!r})"
    interrupted = kill_at_random_times(code, data_folder, attempts=5, clips=384)
    assert interrupted >= 2
    again = prepare("triplets", workers=2, **arguments)
    content = clips_in(again.root)
    os.rename(again.root, data_folder / "before")
    assert len(again) == 384 and content == clips_in(prepare("triplets", **arguments).root)
    assert not list((data_folder / "before").rglob("*.part"))


# ------------------------------------------------------------------------------------------------------------ recordings

def write_folder(root, classes=("bell", "dog", "rain"), seconds=2.0, rows=4, rate=16_000):
    """Clips of noise that are loud for 0.3 s from 1 s on; returns the folder."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for label in classes:
            for k in range(rows):
                sound = 0.003 * rng.standard_normal((round(seconds * rate), 2))
                sound[rate:rate + rate * 3 // 10] += 0.3 * rng.standard_normal((rate * 3 // 10, 1))
                file = root / split / label / f"-{label} '{k}' from {split}.wav"
                file.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(file, sound, rate)
    return root


def test_a_folder_of_recordings(tmp_path, data_folder):
    root = write_folder(tmp_path / "mine")
    tone = 0.3 * np.sin(np.arange(32_000))  # left and right cancel: nothing is heard of it in one channel
    soundfile.write(root / "train" / "dog" / "quiet.wav", np.stack([tone, -tone], axis=1), 16_000)
    for space in ("anechoic", "shoebox"):
        manifest = prepare("triplets", data_root=root, source="folder", num_samples=25, single_clips=10, event_seconds=0.5, clip_seconds=1.5,
                           space=space)
        assert manifest.splits == {"train": 45 + 6, "val": 6 + 1, "test": 24 + 3} and manifest.info["left_out"] == {"silent": 1}
        used = {split: set() for split in manifest.splits}
        for i in range(len(manifest)):
            facts, row = description(manifest, i), manifest.row(i)
            for event in facts.get("audio_segments", [facts]):
                place = event.get("metadata", event)
                used[row["split"]].add(place["ori_audiofile"])
                assert place["ori_audio_duration"] == 2.0 and "quiet" not in place["ori_audiofile"]
                assert place["labels"] == [place["ori_audiofile"].split("/")[1]]
                if space == "anechoic":
                    span = audio.read(manifest.file(i), sample_rate=None, mono=False, start=event["onset"], duration=event["duration"])
                    assert angle(direction(intensity(span.double())), (place["azi"], place["ele"])) < 1.5
            assert len(set(row["labels"])) == len(row["onset"])
            assert row["captions"][0].lower().startswith(f"{row['labels'][0]} ") and max(len(c.split()) for c in row["captions"]) <= 40
        assert all(name.startswith(split) for split, names in used.items() for name in names) and len(used["train"]) > 8


def test_the_event_is_the_most_energetic_window(tmp_path):
    file = str(next(write_folder(tmp_path / "mine", classes=("dog",), rows=1).rglob("*.wav")))
    name, (start, level) = event_sources.window(("clip", file, 0.0, 2.0, 0.4))
    assert name == "clip" and 0.89 <= start <= 1.0 and 0.2 < level < 0.4
    assert event_sources.window(("clip", file, 1.25, 0.75, 5.0))[1][0] == 1.25, "a clip may be a part of its file"
    sound = event_sources.signal(event_sources.Event("x", (), ("x",), 9600, 2.0, file, start), np.random.default_rng(0))
    assert sound.shape == (9600,) and sound.dtype == np.float32 and sound[0] == 0 and abs(sound[-1]) < 1e-3
    assert event_sources.loudest(sound) == pytest.approx(10**(-26 / 20), rel=1e-3) or np.abs(sound).max() == pytest.approx(0.2, rel=1e-3)
    assert event_sources.loudest(np.full(30_000, 0.5)) == pytest.approx(0.5) == event_sources.loudest(np.full(1200, 0.5))


def test_captions_of_a_captioned_source(tmp_path):
    rows = [{"path": "a.wav", "start": 0.0, "duration": 1.0, "clip_id": str(k), "split": "train", "labels": [],
             "captions": [f"A man number {k} talks.", "Birds sing."][:1 + k % 2]} for k in range(4)]
    bank = Recorded(Manifest(pd.DataFrame(rows), "folder", tmp_path), 1.0, {str(k): [0.0, 0.1] for k in range(4)})
    pairs = [bank.draw(np.random.default_rng(i), "train", 2) for i in range(60)]
    assert {event.phrases for pair in pairs for event in pair} == {("a man number 0 talks",), ("a man number 2 talks",),
                                                                   ("a man number 1 talks", "birds sing"), ("a man number 3 talks", "birds sing")}
    assert not any(set(a.phrases) & set(b.phrases) for a, b in pairs), "two clips that share a caption make no pair"
    with pytest.raises(ValueError, match="split 'train'.*no two that can be heard"):
        bank.learn([(str(k), [0.0, 0.0]) for k in range(3)])


@pytest.mark.skipif(not (SHARED / "esc10").is_dir(), reason="the real ESC-10 clips are not here")
def test_real_esc10(data_folder):
    manifest = prepare("triplets", data_root=SHARED / "esc10", source="esc50", num_samples=10, single_clips=6)
    sources = prepare("esc50", data_root=SHARED / "esc10").table.set_index("path")
    assert len(manifest) == 36 and manifest.info["health"]["kept"] == 36 and manifest.info["left_out"] == {}
    errors = []
    for i in range(len(manifest)):
        facts, row = description(manifest, i), manifest.row(i)
        for event in facts.get("audio_segments", [facts]):
            place = event.get("metadata", event)
            source = sources.loc[place["ori_audiofile"]]
            assert source["split"] == row["split"] and (source["fold"] == 4) == (row["split"] == "test") and source["labels"] == place["labels"]
            span = audio.read(manifest.file(i), sample_rate=None, mono=False, start=event["onset"], duration=event["duration"])
            errors.append(angle(direction(intensity(span.double())), (place["azi"], place["ele"])))
        assert manifest.info["phrases"][row["labels"][0]] in row["captions"][0].lower()
    assert max(errors) < 2 and np.median(errors) < 0.5


# ------------------------------------------------------------------------------------------------------------ errors

@pytest.mark.parametrize("arguments, message", [
    (dict(source="nothing"), "source: 'nothing' is no data set of single sounds; known: soundscapes, esc50"),
    (dict(source="triplets"), "source: 'triplets'"),
    (dict(space="cave"), "space must be one of anechoic, shoebox, got 'cave'"),
    (dict(event_seconds=1.3), "event_seconds must be from 0.1 to 1.215 s.*clip_seconds = 2.5, got 1.3"),
    (dict(event_seconds=0.05), "event_seconds"),
    (dict(event_seconds=float("nan")), "event_seconds"),
    (dict(clip_seconds=31.0), "clip_seconds must be at most 30"),
    (dict(clip_seconds=0.4, event_seconds=0.15, space="shoebox"), "no time"),
    (dict(num_samples=0), "num_samples must be at least 1"),
    (dict(single_clips=-1), "single_clips at least 0"),
    (dict(source="folder"), "data_root"),
    (dict(source_options={"test_fold": 3}), "source_options"),
])
def test_refused(arguments, message, data_folder):
    with pytest.raises(ValueError, match=message):
        prepare("triplets", **arguments)
    assert not (data_folder / "triplets").exists()


def test_a_split_of_one_class_is_refused_by_name(tmp_path, data_folder):
    root = write_folder(tmp_path / "mine", rows=1)
    for label in ("dog", "rain"):
        for file in (root / "val" / label).iterdir():
            file.unlink()
    with pytest.raises(ValueError, match="split 'val' of 'folder'.*1 clips.*give more data"):
        prepare("triplets", data_root=root, source="folder", num_samples=5)
