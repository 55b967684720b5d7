"""The embedded data set: what the annotation says is in the audio, and a scene depends on (seed, split, index) only."""
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from lib.audio import ambisonics
from lib.audio.directions import DIRECTIONS, direction_word
from lib.audio.signals import SAMPLE_RATE, to_samples
from lib.data import scenes
from lib.data.scene_captions import caption_matches, caption_relevance, captions, compose
from lib.data.scenes import Scene, cells, config, mix, propagate, render_events, sample_scene
from lib.data.scene_space import render_foa
from lib.data.soundscapes import digest, prepare, split_counts
from lib.media import audio
from lib.settings import ROOT
from tests.runs import kill_at_random_times


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "data"))


def many(split="train", count=40, duration=5.0, seed=0):
    return [sample_scene(seed, split, i, duration) for i in range(count)]


def power(x):
    return float(np.sum(np.asarray(x, dtype=np.float64) ** 2))


# ------------------------------------------------------------------------------------------------------------- scenes

def test_taxonomy_has_three_levels_and_24_leaves():
    tree = scenes.taxonomy()
    assert len(tree) == 24 and set(tree) == set(config()["classes"])
    assert len({top for top, _ in tree.values()}) == 5 and 10 <= len({middle for _, middle in tree.values()}) <= 12


@pytest.mark.parametrize("duration", [3.0, 5.0, 30.0])
def test_scene_structure(duration):
    for scene in many("test", 150, duration):
        onsets = [e.onset for e in scene.events]
        assert 1 <= len(scene.events) <= 3 and len({e.label for e in scene.events}) == len(scene.events)
        assert sum(scene.stages, ()) == tuple(range(len(scene.events))) and onsets == sorted(onsets)
        assert onsets[0] >= 0.09 and max(e.onset + e.duration for e in scene.events) <= duration - 0.09
        for stage, following in zip(scene.stages, scene.stages[1:]):
            end = max(scene.events[i].onset + scene.events[i].duration for i in stage)
            assert min(scene.events[i].onset for i in following) - end >= 0.149, "stages must not overlap"
        for a, b in (stage for stage in scene.stages if len(stage) == 2):
            a, b = scene.events[a], scene.events[b]
            shared = min(a.onset + a.duration, b.onset + b.duration) - b.onset
            assert shared >= 0.59 * max(a.duration, b.duration), "events told with 'while' must sound together"
        low, high = config()["scene"]["snr_db"]
        assert low <= scene.snr <= high and scene.background in config()["scene"]["background"]


def test_attributes_follow_the_thirds_of_the_ranges():
    seen = set()
    for event in (e for scene in many(count=300) for e in scene.events):
        entry = config()["classes"][event.label]
        third = {}
        for axis in ("pitch", "rate"):
            low, high = np.log(entry[axis])
            third[axis] = (np.log(getattr(event, axis)) - low) / (high - low)
        expected = [word for axis, word, true in [
            ("pitch", "low", third["pitch"] < 1 / 3), ("pitch", "high", third["pitch"] > 2 / 3),
            ("rate", "slow", third["rate"] < 1 / 3), ("rate", "fast", third["rate"] > 2 / 3)] if true and axis in entry["names"]]
        expected += ["near"] * (event.distance <= 1.8) + ["far"] * (event.distance >= 8)
        assert list(event.attributes) == expected
        assert event.cell == f"{event.label}:" + "-".join(str(int(3 * u)) for u in (third["pitch"], third["rate"], event.timbre))
        seen |= set(expected)
    assert seen == set(config()["attributes"])


def test_cells_are_disjoint_and_every_split_hears_every_word():
    for label, table in cells().items():
        flat = [cell for split in table.values() for cell in split]
        assert len(flat) == len(set(flat)) == 27 and {s: len(c) for s, c in table.items()} == {"train": 19, "val": 4, "test": 4}
        assert all({cell[axis] for cell in table[split]} == {0, 1, 2} for split in table for axis in range(3))
    drawn = {split: {e.cell for scene in many(split, 300) for e in scene.events} for split in ("train", "val", "test")}
    assert not (drawn["train"] & drawn["val"] or drawn["train"] & drawn["test"] or drawn["val"] & drawn["test"])
    assert len(drawn["test"]) > 80  # nearly all of 24 x 4


def test_json_round_trip():
    for scene in many(count=10):
        assert Scene.from_dict({**json.loads(scene.to_json()), "facts": []}) == scene


# ---------------------------------------------------------------------------------------------------------- rendering

def test_level_onset_and_snr_are_as_annotated():
    for scene in many("val", 12):
        dry = render_events(scene)
        for event, signal in zip(scene.events, dry):
            assert signal.shape == (to_samples(event.duration),) and signal.dtype == np.float32
            assert np.abs(signal).max() <= 0.2 + 1e-6
        events, background = mix(scene, dry)
        assert len(events) == len(background) == to_samples(scene.duration)
        first = to_samples(scene.events[0].onset)
        assert power(events[: first - 10]) < 1e-10, "nothing may sound before the first onset"
        assert power(events[first:first + 4800]) > 0
        sounding = np.zeros(len(events), bool)
        for event in scene.events:
            sounding[round(event.onset * SAMPLE_RATE):round((event.onset + event.duration) * SAMPLE_RATE)] = True
        measured = 10 * np.log10(np.mean(events[sounding].astype(float) ** 2) / np.mean(background.astype(float) ** 2))
        assert measured == pytest.approx(scene.snr, abs=0.01)
        assert np.abs(events + background).max() < 0.9


def test_onset_can_be_found_by_energy_in_the_clip():
    errors = []
    for scene in many("val", 60):
        clip = scenes.render(scene)
        level = np.sqrt((clip[: len(clip) // 480 * 480].reshape(-1, 480) ** 2).mean(1))
        quiet = level[: int(scene.events[0].onset * 100)]
        if len(quiet) > 4:
            found = np.argmax(level > max(2.0 * quiet.max(), 0.05 * level.max())) / 100
            errors.append(found - scene.events[0].onset)
    assert len(errors) > 20 and abs(np.median(errors)) < 0.03 and np.mean(np.abs(errors) < 0.15) > 0.85


def test_near_is_louder_brighter_and_drier_than_far():
    for scene in many("train", 25):
        dry = render_events(scene)[0]
        heard = {}
        for zone in ("near", "far"):
            metres = config()["scene"]["distance"][zone][zone == "near"]  # the two that are closest to each other
            moved = replace(scene, events=(replace(scene.events[0], distance=metres), *scene.events[1:]))
            direct, diffuse = propagate(moved, 0, dry)
            total = diffuse.copy()
            total[: len(direct)] += direct
            spectrum = np.abs(np.fft.rfft(direct)) ** 2
            f = np.fft.rfftfreq(len(direct), 1 / SAMPLE_RATE)
            ratio = 10 * np.log10([power(direct) / power(diffuse), power(diffuse) / power(dry)])
            heard[zone] = 10 * np.log10(power(total)), ratio[0], (spectrum * f).sum() / spectrum.sum()
            assert ratio[1] == pytest.approx(config()["scene"]["room"]["reverberant_db"], abs=0.01)
        level, dryness, treble = np.subtract(heard["near"], heard["far"])
        spread = np.subtract(*config()["scene"]["loudness_db"][::-1])
        assert level > spread + 1, "the quietest near event must be louder than the loudest far one"
        assert dryness > 8 and treble > 0


def test_more_than_the_longest_or_shortest_scene_is_refused():
    for duration in (2.9, 30.1, float("nan")):
        with pytest.raises(ValueError, match="clip_seconds"):
            sample_scene(0, "train", 0, duration)


# ----------------------------------------------------------------------------------------------------------- captions

def test_captions_name_every_class_and_tell_the_truth():
    directions = orders = words = 0
    for scene in many("test", 150):
        texts, facts = captions(scene)
        assert len(texts) == len(set(texts)) == len(facts) == 5
        annotation = json.loads(scene.to_json())
        for text, told in zip(texts, facts):
            assert text[0].isupper() and text.endswith(".") and "{" not in text and "|" not in text and "  " not in text
            assert " a a" not in text and " an a " not in text
            assert caption_matches(told, annotation, directions=True)
            for event in scene.events:
                entry = config()["classes"][event.label]
                names = {w for phrase in [*entry["nouns"], *entry["clauses"]] for w in phrase.replace("|", " ").split()}
                names -= {"a", "an", "the", "of", "by", "person"}
                assert names & set(text.lower().replace(",", " ").replace(".", " ").split()), f"{event.label} is not in {text!r}"
                for word in told["attributes"].get(event.label, []):
                    forms = entry.get("words", {}).get(word) or sum(config()["attributes"][word].values(), [])
                    assert any(form in text.lower() for form in forms), (word, text)
                if told["directions"]:
                    assert told["directions"][event.label] == direction_word(event.azimuth)
                    assert direction_word(event.azimuth) in text
            if not told["directions"]:
                assert not any(f" {d}" in text for d in DIRECTIONS), text
        directions += any(told["directions"] for told in facts)
        words += sum(bool(told["attributes"]) for told in facts) >= 1 or not any(e.attributes for e in scene.events)
        orders += sum(told["stages"] is not None for told in facts) >= 2
    assert 40 < directions < 110 and words == orders == 150


def test_order_words_agree_with_time():
    """then, before, after and while, read back from two-event captions by their words alone."""
    rng, seen = np.random.default_rng(0), set()
    for scene in (s for s in many("train", 200) if len(s.events) == 2):
        text, facts = compose(scene, rng, 0.0, True, False)
        text = text.lower().rstrip(".")
        where = [min(text.find(p.replace("|", " ").split(" ", 1)[-1]) % 999 for p in
                     [*config()["classes"][e.label]["nouns"], *config()["classes"][e.label]["clauses"]]) for e in scene.events]
        in_order = where[0] < where[1]
        reverse = " after " in text or text.startswith("before ")
        together = any(w in text for w in ("while ", " as ", " over ", "at the same time", "together with", "along with"))
        assert together == (len(scene.stages) == 1), text
        if not together:
            assert in_order != reverse, (text, scene.audible_key())
        seen |= {w for w in ("then", "before", "while", "after") if w in text}
    assert seen == {"then", "before", "while", "after"}


def test_caption_matches_refuses_what_is_not_so():
    scene = next(s for s in many(count=100) if len(s.stages) == len(s.events) == 2 and all(e.attributes for e in s.events))
    facts = compose(scene, np.random.default_rng(0), 1.0, True, True)[1]
    annotation = json.loads(scene.to_json())
    assert caption_matches(facts, annotation, directions=True)
    a, b = annotation["events"]
    assert not caption_matches(facts, {**annotation, "events": [a]}), "a class is missing"
    assert not caption_matches(facts, {**annotation, "events": [a, {**b, "label": "none"}]})
    assert not caption_matches(facts, {**annotation, "events": [{**a, "attributes": []}, b]})
    assert not caption_matches(facts, {**annotation, "stages": [[0, 1]]}), "they do not sound together"
    assert not caption_matches(facts, {**annotation, "events": [b, a]}), "the other order"
    turned = {**annotation, "events": [{**a, "azimuth": a["azimuth"] + 90}, b]}
    assert caption_matches(facts, turned) and not caption_matches(facts, turned, directions=True)
    assert caption_matches({**facts, "stages": None, "attributes": {}}, {**annotation, "stages": [[0, 1]]})


def test_retrieval_on_the_held_out_gallery_is_well_posed():
    """Ceiling: scenes for which a caption is true tie in front, so mAP@10 of one relevant clip is the mean of 1/rank."""
    gallery = many("test", 200)
    relevance = caption_relevance([json.dumps({**json.loads(s.to_json()), "facts": captions(s)[1]}) for s in gallery])
    assert relevance.shape == (1000, 200) and relevance[np.arange(1000), np.arange(1000) // 5].all()
    ties = relevance.sum(1)
    assert np.mean([sum(1 / r for r in range(1, min(n, 10) + 1)) / n for n in ties]) >= 0.85
    keys = [s.audible_key() for s in gallery]
    assert len(set(keys)) > 180


# ------------------------------------------------------------------------------------------------------------ prepare

def test_split_counts():
    assert split_counts(2000) == {"train": 1600, "val": 200, "test": 200}
    assert split_counts(100) == {"train": 80, "val": 10, "test": 10}
    assert split_counts(40) == {"train": 24, "val": 8, "test": 8}
    assert split_counts(3) == {"train": 1, "val": 1, "test": 1}
    assert all(sum(split_counts(n).values()) == n and min(split_counts(n).values()) >= 1 for n in range(3, 200))
    with pytest.raises(ValueError, match="num_samples"):
        split_counts(2)


def test_prepare_writes_what_it_says_and_reads_it_back(tmp_path):
    manifest = prepare(tmp_path / "here", num_samples=12, clip_seconds=3.0, seed=4)
    assert manifest.splits == {"train": 6, "val": 3, "test": 3} and len(manifest.classes) == 24
    assert manifest.root == tmp_path / "here" / digest(4, 3.0) and manifest.info["health"]["kept"] == 12
    assert set(manifest.info["phrases"]) == set(manifest.info["taxonomy"]) == set(manifest.classes)
    for i in range(len(manifest)):
        row = manifest.row(i)
        scene = Scene.from_dict(json.loads(row["annotation"]))
        assert scene == sample_scene(4, row["split"], scene.index, 3.0)
        assert row["labels"] == [e.label for e in scene.events] and row["captions"] == captions(scene)[0]
        assert row["group"].split() == [e.cell for e in scene.events] and row["audible_key"] == scene.audible_key()
        assert audio.probe(manifest.file(i)).sample_rate == SAMPLE_RATE
        clip = audio.read(manifest.file(i), sample_rate=None)
        assert clip.shape == (1, to_samples(3.0))
        assert np.abs(clip[0].numpy() - scenes.render(scene)).max() < 1 / 16384  # 16 bits
        middle = audio.read(manifest.file(i), sample_rate=None, start=1.0, duration=0.5)
        assert np.array_equal(middle, clip[:, SAMPLE_RATE:SAMPLE_RATE * 3 // 2])


def test_same_scenes_whatever_the_number_and_the_processes(tmp_path):
    one = prepare(tmp_path / "one", num_samples=8, clip_seconds=3.0)
    two = prepare(tmp_path / "two", num_samples=20, clip_seconds=3.0, workers=2)
    assert prepare(tmp_path / "three", num_samples=8, clip_seconds=3.0).fingerprint == one.fingerprint != two.fingerprint
    rows = {two.row(i)["clip_id"]: i for i in range(len(two))}
    for i in range(len(one)):
        j = rows[one.row(i)["clip_id"]]
        assert one.row(i) == two.row(j) and one.file(i).read_bytes() == two.file(j).read_bytes()


def test_a_killed_rendering_goes_on(tmp_path):
    manifest = prepare(tmp_path, num_samples=6, clip_seconds=3.0)
    files = [manifest.file(i) for i in range(6)]
    content = [f.read_bytes() for f in files]
    kept = files[0].stat().st_mtime_ns
    files[1].unlink()
    files[2].write_bytes(content[2][:20])
    part = files[3].with_name(files[3].name + ".1.part")
    part.write_bytes(b"half")
    again = prepare(tmp_path, num_samples=6, clip_seconds=3.0)
    assert not part.exists(), "what a killed rendering left behind goes"
    assert [f.read_bytes() for f in files] == content and files[0].stat().st_mtime_ns == kept
    assert again.fingerprint == manifest.fingerprint


def test_a_damaged_file_is_rendered_again(tmp_path):
    manifest = prepare(tmp_path, num_samples=4, clip_seconds=3.0)
    files = [manifest.file(i) for i in range(4)]
    content = [f.read_bytes() for f in files]
    files[0].write_bytes(content[0][: len(content[0]) // 2])  # its header is whole
    files[1].write_bytes(b"")
    files[2].write_bytes(b"not a clip")
    again = prepare(tmp_path, num_samples=4, clip_seconds=3.0)
    assert [f.read_bytes() for f in files] == content and again.info["health"]["kept"] == 4


@pytest.mark.parametrize("rendering, room", [("foa", "anechoic"), ("foa_room", "shoebox")])
def test_renderings_in_space(tmp_path, rendering, room):
    plain = prepare(tmp_path, num_samples=4, clip_seconds=3.0)
    manifest = prepare(tmp_path, num_samples=4, clip_seconds=3.0, rendering=rendering)
    assert manifest.root != plain.root and manifest.splits == plain.splits and manifest.info["health"]["kept"] == 4
    facts = {"rendering": rendering, "channels": 4, "sample_rate": SAMPLE_RATE, "channel_order": "ACN W, Y, Z, X, SN3D"}
    assert facts.items() <= manifest.info.items() and plain.info["channels"] == 1 and plain.info["rendering"] == "mono"
    for i in range(4):
        row, same = manifest.row(i), plain.row(i)
        assert {name: row[name] for name in same} == same, "annotation and captions stay"
        scene = Scene.from_dict(json.loads(row["annotation"]))
        for name in ("azimuth", "elevation", "onset"):
            assert row[name] == [getattr(e, name) for e in scene.events] and len(row[name]) == len(row["labels"])
        clip = audio.read(manifest.file(i), sample_rate=None, mono=False)
        assert clip.shape == (4, to_samples(3.0)) and audio.probe(manifest.file(i)).channels == 4
        assert np.abs(clip.numpy() - render_foa(scene, room)).max() < 1 / 16384  # 16 bits


def test_direction_measured_in_the_files_is_the_annotated_one(tmp_path):
    """Scenes of one event, background and 16 bits included: within 1 degree over the event's span."""
    manifest = prepare(tmp_path, num_samples=16, clip_seconds=3.0, rendering="foa")
    errors = []
    for i in range(len(manifest)):
        row = manifest.row(i)
        if len(row["labels"]) == 1:
            event = json.loads(row["annotation"])["events"][0]
            clip = audio.read(manifest.file(i), sample_rate=None, mono=False, start=event["onset"], duration=event["duration"])
            found = ambisonics.unit_vector(*ambisonics.direction(ambisonics.intensity(clip.double())))
            true = ambisonics.unit_vector(row["azimuth"][0], row["elevation"][0])
            errors.append(np.degrees(np.arctan2(np.linalg.norm(np.cross(found, true)), found @ true)))
    assert len(errors) >= 3 and max(errors) < 1


def test_video_holds_the_same_sound(tmp_path):
    manifest = prepare(tmp_path, num_samples=3, clip_seconds=3.0, rendering="video")
    assert manifest.info["health"]["kept"] == 3 and manifest.info["channels"] == 1
    for i in range(3):
        row = manifest.row(i)
        assert row["video"] == row["path"] and row["path"].endswith(".mp4")
        scene = Scene.from_dict(json.loads(row["annotation"]))
        assert row["azimuth"] == [e.azimuth for e in scene.events]
        clip, dry = audio.read(manifest.file(i), sample_rate=SAMPLE_RATE)[0].numpy(), scenes.render(scene)
        length = min(len(clip), len(dry))
        assert abs(len(clip) - len(dry)) < 0.05 * SAMPLE_RATE
        assert np.corrcoef(clip[:length], dry[:length])[0, 1] > 0.9, "they start together"
    content = manifest.file(0).read_bytes()
    manifest.file(0).write_bytes(content[: len(content) // 2])
    prepare(tmp_path, num_samples=3, clip_seconds=3.0, rendering="video")
    assert manifest.file(0).read_bytes() == content


def test_unknown_rendering_is_refused(tmp_path):
    with pytest.raises(ValueError, match="mono, foa, foa_room, video"):
        prepare(tmp_path, num_samples=3, rendering="stereo")


def test_the_cache_is_named_by_all_it_depends_on(tmp_path, monkeypatch):
    names = {digest(0, 5.0), digest(1, 5.0), digest(0, 6.0), *(digest(0, 5.0, r) for r in ("foa", "foa_room", "video"))}
    assert digest(0, 5) == digest(0, 5.0) == digest(0, 5.0, "mono") and len(names) == 6
    changed = tmp_path / "soundscapes.yaml"
    changed.write_bytes(scenes.CONFIG.read_bytes() + b"\n# changed\n")
    monkeypatch.setattr(scenes, "CONFIG", changed)
    assert digest(0, 5.0) not in names


def test_rendering_processes_do_not_load_torch():
    code = "import sys, pyroomacoustics, lib.data.soundscapes, lib.data.scene_space; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("rendering, scale", [("foa_room", 60), ("mono", 240)])
def test_kill_at_random_times(tmp_path, rendering, scale):
    """kill -9 of a rendering by two processes, again and again, then finished: not a bit differs from one never stopped."""
    arguments = dict(num_samples=scale, clip_seconds=3.0, rendering=rendering)
    whole = prepare(tmp_path / "whole", **arguments)
    root = tmp_path / "killed"
    code = f"from lib.data.soundscapes import prepare; prepare({str(root)!r}, workers=2, **{arguments!r})"
    interrupted = kill_at_random_times(code, root, attempts=6, clips=scale)
    assert interrupted >= 2
    again = prepare(root, workers=2, **arguments)
    assert again.fingerprint == whole.fingerprint and len(again) == scale
    names = {path.name for path in again.file(0).parent.iterdir()} - {".lock"}
    assert names == {again.file(i).name for i in range(scale)}, "nothing is left over that is no clip of the manifest"
    for i in range(scale):
        assert again.file(i).read_bytes() == whole.file(i).read_bytes()
