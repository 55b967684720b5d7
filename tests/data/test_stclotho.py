"""Folders of triplets: both layouts read alike, all damage costs a whole group and is named, two vocabularies never mix."""
import json
import math
import os
from collections import Counter

import numpy as np
import pytest
import soundfile

from lib import data
from lib.audio.directions import DIRECTIONS, direction_word
from lib.data import stclotho, stclotho_json
from lib.data.manifest import Manifest
from lib.files import write_json

PLACES = {"positive": "AB", "temporal": "BA", "spatial": "AB"}


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "data"))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "sets"


def sound(file, seconds=0.5, channels=4, rate=24000, silent=False, format="FLAC"):
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(file.name)).uniform(-0.3, 0.3, (round(seconds * rate), channels)) * (not silent)
    with open(file, "wb") as stream:  # a name may start with "-"
        soundfile.write(stream, noise, rate, format=format)


def single_facts(name, azimuth, elevation=5.0, word=None, **more):
    word = word or direction_word(azimuth)
    return {"ori_audiofile": f"{name}.wav", "caption": [f"{name} sounds {i}." for i in range(5)], "azi": azimuth,
            "ele": elevation, "r": 2.0, "room": None, "rt60": 0.3,
            "spatialized_caption": [f"{name} sounds {i} from the {word}." for i in range(5)],
            "direction": f"The sound is coming from the {word}.", "ori_audio_duration": 0.25, "labels": [name],
            "unknown key": {"x": 1}} | more


def pair_facts(role, turn=0.0, **more):
    """What both layouts hold: events A and B at 90 and -90 degrees, in the order and at the places that the role asks for."""
    at = {"A": 90.0, "B": -90.0} if role != "spatial" else {"A": -90.0, "B": 90.0}
    events = [single_facts(name, at[name], word=direction_word(at[name] + turn)) for name in PLACES[role]]
    texts = [f"{a[:-1]}, then {b}" for a, b in zip(*(event["spatialized_caption"] for event in events))]
    segments = [{"filename": f"{event['ori_audiofile'][:-4]}_0", "metadata": event} for event in events]
    return {"audio_segments": segments, "num_segments": 2, "temporal_spatial_caption": texts,
            "generation_info": {"role": role}} | more


def triplet(root, split, index, **sounds):
    for role in stclotho.ROLES:
        file, description = stclotho.member_paths(root, split, role, index)
        sound(file, **sounds)
        write_json(description, pair_facts(role))


def single(root, split, name, place, azimuth=0.0, **more):
    file, description = stclotho.single_paths(root, split, name, place)
    sound(file)
    write_json(description, single_facts(name, azimuth, **more))


def published(root, split, index, folder="metadata", seconds=0.5):
    for role, stem in stclotho.STEMS.items():
        name = f"{stem}_{index:06d}"
        top, below = ("stClotho", "") if role == "positive" else ("stClotho_negative", role)
        sound(root / top / "audio" / split / below / f"{name}.flac", seconds)
        write_json(root / top / folder / split / below / f"{name}.json", pair_facts(role))


def edit(file, change):
    facts = json.loads(file.read_text(encoding="utf-8"))
    change(facts)
    write_json(file, facts)


def check_threes(manifest):
    members = [row for row in map(manifest.row, range(len(manifest))) if row["role"] != "single"]
    assert [row["role"] for row in members] == list(stclotho.ROLES) * (len(members) // 3)
    assert all(len({row["group"] for row in members[i:i + 3]}) == 1 for i in range(0, len(members), 3))
    return members


def test_paths_of_our_layout(root):
    assert stclotho.member_paths(root, "val", "temporal", 12) == (root / "valid/triplets/temporal_negative_000012.flac",
                                                                  root / "valid/triplets/temporal_negative_000012.json")
    assert stclotho.member_paths(root, "train", "positive", 0)[0].name == "temporal_000000.flac"
    assert stclotho.member_paths(root, "test", "spatial", 3)[1].name == "spatial_negative_000003.json"
    assert stclotho.single_paths(root, "train", "-a 'b'", 2)[0] == root / "train/single/-a 'b'_2.flac"


def test_our_layout(root):
    for split, index in (("train", 0), ("train", 7), ("val", 3), ("test", 0)):
        triplet(root, split, index)
    single(root, "test", "-dog \"barks\" 'twice'", 1, -180.0)
    manifest = data.prepare("stclotho", data_root=root)
    members = check_threes(manifest)
    assert [row["group"] for row in members[::3]] == ["train-000000", "train-000007", "val-000003", "test-000000"]
    assert manifest.splits == {"train": 6, "val": 3, "test": 4} and manifest.info["health"]["kept"] == 13
    positive, temporal, spatial = members[:3]
    assert positive["clip_id"] == "train-000000-positive" and positive["path"] == "train/triplets/temporal_000000.flac"
    assert (positive["azimuth"], temporal["azimuth"], spatial["azimuth"]) == ([90.0, -90.0], [-90.0, 90.0], [-90.0, 90.0])
    assert (positive["labels"], temporal["labels"], spatial["labels"]) == (["A", "B"], ["B", "A"], ["A", "B"])
    assert positive["elevation"] == [5.0, 5.0] and positive["onset"] == [0.0, 0.25] and positive["duration"] == 0.5
    assert positive["captions"][1] == "A sounds 1 from the east, then B sounds 1 from the west."
    assert temporal["semantic_captions"] == [f"B sounds {i}, then A sounds {i}." for i in range(5)]
    alone = manifest.row(12)
    assert alone["role"] == "single" and alone["clip_id"] == alone["group"] == "test--dog \"barks\" 'twice'_1"
    assert (alone["azimuth"], alone["elevation"], alone["onset"]) == ([-180.0], [5.0], [0.0])
    assert "from the north" in alone["captions"][0]
    assert "from" not in alone["semantic_captions"][0] and len(alone["captions"]) == 5
    assert manifest.info["triplets"] == {"train": 2, "val": 1, "test": 1} and manifest.info["singles"] == {"test": 1}
    assert manifest.info["left_out"] == {}
    assert manifest.info["direction_words"] == {"south": 13} and manifest.info["channels"] == 4
    part = stclotho.read(root, splits=["val"], name="triplets")
    assert part.splits == {"val": 3} and part.name == "triplets"


def test_published_layout_is_the_same_triplet(root, tmp_path):
    published(root, "valid", 5)
    triplet(tmp_path / "ours", "val", 5)
    (root / "stClotho/metadata/valid/temporal_000005.json.bak").write_text("{")
    first, second = (stclotho.read(folder).table.drop(columns="path") for folder in (root, tmp_path / "ours"))
    assert first.to_dict("records") == second.to_dict("records") and len(first) == 3
    assert stclotho.read(root).row(1)["path"] == "stClotho_negative/audio/valid/temporal/temporal_negative_000005.flac"
    with pytest.raises(ValueError, match=r"no triplet.*1 triplets: a file is missing.*has no audio file.*the folder above"):
        stclotho.read(root / "stClotho")


def test_one_of_several_descriptions(root):
    published(root, "train", 0)
    published(root, "train", 0, folder="rewritten")
    for file in root.glob("*/metadata/train/**/*.json"):
        edit(file, lambda facts: facts.pop("temporal_spatial_caption"))
    with pytest.raises(ValueError, match="temporal_spatial_caption must be a list of 5 texts, got none.*name it by metadata"):
        stclotho.read(root)
    assert len(stclotho.read(root, metadata="other,rewritten")) == 3
    (root / "stClotho/metadata").rename(root / "stClotho/first")
    with pytest.raises(ValueError, match="expected one JSON, found .*name the right folder by metadata"):
        stclotho.read(root)


def test_singles_only_and_published_angles(root):
    for azimuth, place in (("[30.0]", 0), ("-120", 1), ([45.9], 2)):
        sound(root / f"audio/development/rain_{place}.wav", format="WAV")
        word = direction_word(float(str(azimuth).strip("[]")))
        write_json(root / f"metadata/development/rain_{place}.json", single_facts("rain", azimuth, word=word))
    manifest = stclotho.read(root)
    assert [row["azimuth"] for row in map(manifest.row, range(3))] == [[30.0], [-120.0], [45.9]]
    assert manifest.info["triplets"] == {} and manifest.info["singles"] == {"train": 3}


def _drop(key):
    return lambda facts: facts.pop(key)


def _in_second(**values):
    return lambda facts: facts["audio_segments"][1]["metadata"].update(values)


BAD_DESCRIPTIONS = [
    (_in_second(azi=180.5), "azi missing or out of range", "azi must be a number of degrees from -180 to 180, got 180.5"),
    (_in_second(azi=None), "azi missing or out of range", "got None"),
    (_in_second(azi=[10, 20]), "azi missing or out of range", "one direction for each event"),
    (_in_second(azi=""), "azi missing or out of range", "got ''"),
    (_in_second(azi=True), "azi missing or out of range", "got True"),
    (_in_second(azi="nan"), "azi missing or out of range", "got 'nan'"),
    (_in_second(ele=-91), "ele missing or out of range", "from -90 to 90, got -91"),
    (_in_second(azi=45.0), "directions in captions and labels differ", "azimuths [-90.0, 45.0] are west and southeast"),
    (_in_second(caption=["one"]), "not five captions", "caption must be a list of 5 texts, got 1 entries"),
    (_in_second(ori_audiofile="C.wav"), "its members do not belong together", "events in reverse"),
    (_drop("temporal_spatial_caption"), "not five captions", "got none"),
    (lambda facts: facts["temporal_spatial_caption"].append("one more"), "not five captions", "got 6 entries"),
    (lambda facts: facts["temporal_spatial_caption"].__setitem__(0, " "), "not five captions", "a list of 5 texts"),
    (lambda facts: facts.update(semantic_caption=[]), "not five captions", "semantic_caption must be a list"),
    (lambda facts: facts["audio_segments"].pop(), "not two events", "two entries and num_segments 2, got 1 and 2"),
    (lambda facts: facts.update(num_segments=3), "not two events", "got 2 and 3"),
    (lambda facts: facts["audio_segments"][0].pop("metadata"), "not two events", "metadata (azi, ele"),
    (_drop("audio_segments"), "not two events", "got none and 2"),
    (lambda facts: [s.update(onset=1 - i) for i, s in enumerate(facts["audio_segments"])],
     "events not in temporal order", "swap them"),
]


def test_bad_description_costs_the_triplet(root):
    for index in range(len(BAD_DESCRIPTIONS) + 1):
        triplet(root, "train", index, seconds=0.15)
    for index, (change, _, _) in enumerate(BAD_DESCRIPTIONS):
        edit(stclotho.member_paths(root, "train", "temporal", index)[1], change)
    with pytest.warns(UserWarning, match="6 triplets: azi missing or out of range"):
        manifest = stclotho.read(root)
    assert {row["group"] for row in check_threes(manifest)} == {f"train-{len(BAD_DESCRIPTIONS):06d}"} and len(manifest) == 3
    assert manifest.info["left_out"] == Counter(f"triplets: {kind}" for _, kind, _ in BAD_DESCRIPTIONS)
    assert [entry["group"] for entry in manifest.info["refused"]] == [f"train-{i:06d}" for i in range(len(BAD_DESCRIPTIONS))]
    for entry, (_, _, words) in zip(manifest.info["refused"], BAD_DESCRIPTIONS):
        assert words in entry["reason"] and entry["clip_id"].startswith(entry["group"])


def test_unreadable_description(root):
    contents = (b"", b"{", b"[]", b"\xff\xfe{}", b"[" * 100_000)
    for index in range(len(contents) + 1):
        triplet(root, "train", index, seconds=0.15)
    for index, content in enumerate(contents):
        stclotho.member_paths(root, "train", "spatial", index)[1].write_bytes(content)
    with pytest.warns(UserWarning, match="5 triplets: unreadable JSON"):
        manifest = stclotho.read(root)
    assert len(check_threes(manifest)) == 3
    assert [entry["clip_id"] for entry in manifest.info["refused"]] == [f"train-{i:06d}-spatial" for i in range(5)]


BAD_AUDIO = [
    (dict(channels=1), "wrong number of channels", "expected 4 channels (W, Y, Z, X) at 24000 Hz, got 1 at 24000 Hz"),
    (dict(channels=2), "wrong number of channels", "got 2 at"),
    (dict(rate=48000), "wrong sample rate", "got 4 at 48000 Hz"),
    (dict(silent=True), "silent", "it never moves by more than"),
    (dict(seconds=0.05), "too short", "shorter than min_seconds"),
]


def test_bad_audio_costs_the_triplet(root):
    for index in range(len(BAD_AUDIO) + 1):
        triplet(root, "val", index)
        single(root, "val", "rain", index)
    for index, (damage, _, _) in enumerate(BAD_AUDIO):
        sound(stclotho.member_paths(root, "val", "spatial", index)[0], **damage)
        sound(stclotho.single_paths(root, "val", "rain", index)[0], **damage)
    with pytest.warns(UserWarning, match="2 triplets: wrong number of channels"):
        manifest = stclotho.read(root)
    assert {row["group"] for row in check_threes(manifest)} == {"val-000005"}
    assert list(manifest.table["clip_id"])[3:] == ["val-rain_5"]
    assert manifest.info["left_out"] == Counter(f"{what}: {kind}" for what in ("triplets", "single clips")
                                                for _, kind, _ in BAD_AUDIO)
    reasons = {entry["clip_id"]: entry["reason"] for entry in manifest.info["refused"]}
    assert len(reasons) == 10
    for index, (_, _, words) in enumerate(BAD_AUDIO):
        assert words in reasons[f"val-{index:06d}-spatial"] and words in reasons[f"val-rain_{index}"]


def test_undecodable_audio_shows_in_the_health_report(root):
    triplet(root, "val", 0)
    triplet(root, "val", 1)
    stclotho.member_paths(root, "val", "positive", 0)[0].write_bytes(b"no sound")
    with pytest.warns(UserWarning, match="1 triplets: unreadable"):
        manifest = stclotho.read(root)
    health = manifest.info["health"]
    assert len(manifest) == 3 and health["reasons"] == {"unreadable": 1} and health["checked"] == 6


def test_missing_members_are_counted(root):
    for index in range(5):
        triplet(root, "test", index)
    stclotho.member_paths(root, "test", "temporal", 1)[0].unlink()
    for path in stclotho.member_paths(root, "test", "spatial", 2):
        path.unlink()
    for role in stclotho.ROLES:
        stclotho.member_paths(root, "test", role, 4)[1].unlink()
    single(root, "test", "lost", 0)
    stclotho.single_paths(root, "test", "lost", 0)[1].unlink()
    with pytest.warns(UserWarning, match="3 triplets: a file is missing, 1 single clips: a file is missing"):
        manifest = stclotho.read(root)
    assert manifest.info["triplets"] == {"test": 2} and len(check_threes(manifest)) == len(manifest) == 6
    assert Counter(entry["group"] for entry in manifest.info["refused"]) == {
        "test-000001": 1, "test-000002": 1, "test-000004": 3, "test-lost_0": 1}
    assert "has no audio file (found: test/triplets/temporal_negative_000001.json)" in manifest.info["refused"][0]["reason"]


def test_members_of_two_data_sets_are_not_mixed(root):
    triplet(root / "one", "train", 0)
    triplet(root / "two", "train", 0)
    triplet(root / "two", "train", 1)
    with pytest.warns(UserWarning, match="1 triplets: several files of one name"):
        assert len(stclotho.read(root)) == 3
    file, description = stclotho.member_paths(root / "one", "train", "positive", 0)
    assert len(stclotho.read(root / "one")) == 3
    sound(file.with_name("temporal_0.flac"))  # the same number
    with pytest.raises(ValueError, match="expected one audio file, found"):
        stclotho.read(root / "one")


def test_spatial_negative_at_the_same_places(root):
    triplet(root, "train", 0)
    write_json(stclotho.member_paths(root, "train", "spatial", 0)[1], pair_facts("positive"))
    with pytest.raises(ValueError, match="the spatial negative must be the positive's events.* at other places"):
        stclotho.read(root)


def test_pair_that_is_no_member_and_files_outside_splits(root):
    single(root, "train", "rain", 0)
    sound(root / "train/single/both.flac")
    write_json(root / "train/single/both.json", pair_facts("positive"))
    sound(root / "elsewhere/rain_1.flac")
    (root / "train/single/notes.txt").write_text("no audio")
    (root / "train/single/.hidden.json").write_text("{")
    with open(os.fsencode(root / "train/single") + b"/\xff_0.json", "w") as file:
        file.write("{}")
    with pytest.warns(UserWarning, match="below no folder called train"):
        manifest = stclotho.read(root)
    assert list(manifest.table["clip_id"]) == ["train-rain_0"]
    assert manifest.info["left_out"] == {"audio files: below no folder called train, valid or test": 1,
                                         "files: names not in UTF-8": 1,
                                         "single clips: several events in a single clip": 1}


def test_links_are_followed_and_may_lead_in_a_circle(root, tmp_path):
    triplet(tmp_path / "disk", "train", 0)
    root.mkdir()
    (root / "data").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/train/again").symlink_to(tmp_path / "disk")
    (root / "twice").symlink_to(tmp_path / "disk/train")
    assert len(stclotho.read(root)) == 3


def test_nothing_usable_is_one_error_with_first_reasons(root):
    for index in range(3):
        triplet(root, "train", index)
        edit(stclotho.member_paths(root, "train", "positive", index)[1], _in_second(azi=999))
    with pytest.raises(ValueError, match=r"3 triplets: azi missing or out of range\). First reasons.*0.json: azi must.*_000001"):
        stclotho.read(root)
    (root / "empty").mkdir()
    with pytest.raises(ValueError, match="no triplet and no single clip.*folders called train, valid and test"):
        stclotho.read(root / "empty")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        stclotho.read(root / "nowhere")
    with pytest.raises(ValueError, match="data_root.*holds both stClotho and stClotho_negative"):
        data.prepare("stclotho")
    with pytest.raises(ValueError, match="vocabulary must be one of south, east"):
        stclotho.read(root, vocabulary="north")
    with pytest.raises(ValueError, match="unknown split 'valid'"):
        stclotho.read(root, splits=["valid"])


def test_other_vocabulary_is_refused_or_exchanged(root):
    triplet(root, "train", 0)
    triplet(root, "train", 1)
    for role in stclotho.ROLES:
        write_json(stclotho.member_paths(root, "train", role, 1)[1], pair_facts(role, turn=90.0))
    with pytest.warns(UserWarning, match="captions call azimuth 0 east"):
        manifest = stclotho.read(root)
    assert manifest.info["direction_words"] == {"south": 3, "east": 3}
    assert {row["group"] for row in check_threes(manifest)} == {"train-000000"}
    assert "set vocabulary to 'east'" in manifest.info["refused"][0]["reason"]
    expected = manifest.table[["captions", "azimuth"]].to_dict("records")
    with pytest.warns(UserWarning, match="captions call azimuth 0 south"):
        other = stclotho.read(root, vocabulary="east")
    assert {r["group"] for r in check_threes(other)} == {"train-000001"}
    assert other.table[["captions", "azimuth"]].to_dict("records") == expected  # in our words, that is


def test_vocabularies_against_a_table():
    theirs = {0: "east", 45: "northeast", 90: "north", 135: "northwest", 180: "west", -135: "southwest", -90: "south",
              -45: "southeast"}
    for azimuth, word in theirs.items():
        words = Counter()
        texts = [f"It {word}ern; {word.capitalize()}, {word}ward."] * 5
        texts = stclotho_json._in_our_words(texts, [azimuth], "east", words, "x.json")
        ours = direction_word(azimuth)
        assert texts[0] == f"It {ours}ern; {ours.capitalize()}, {ours}ward." and words == {"east": 1}
        assert DIRECTIONS[DIRECTIONS.index(word) - 2] == ours
        with pytest.raises(stclotho_json.Refused, match="call azimuth 0 east"):
            stclotho_json._in_our_words([word] * 5, [azimuth], "south", words, "x.json")


def test_direction_words_as_people_write_them():
    found = {text: [stclotho_json._word(m) for m in stclotho_json._WORD.finditer(text)] for text in (
        "from the North-East", "north east", "to the north, east of it", "in the southwestern corner", "a feast in Easter",
        "northerly wind")}
    assert list(found.values()) == [["northeast"], ["northeast"], ["north", "east"], ["southwest"], [], ["north"]]
    words = Counter()
    same = ["no place is told"] * 5
    assert stclotho_json._in_our_words(same, [10.0], "south", words, "x.json") is same and words == {"no direction word": 1}
    # 22.9 degrees cut to 22: the word of the sector beyond the edge
    assert len(stclotho_json._in_our_words(["southeast"] * 3 + ["a sound"] * 2, [22.0], "south", words, "x.json")) == 5
    with pytest.raises(stclotho_json.Refused, match="most captions say otherwise"):
        stclotho_json._in_our_words(["southeast"] * 2 + ["a sound"] * 3, [45.0], "south", words, "x.json")


@pytest.mark.parametrize("stated, lengths, duration, expected", [
    ([math.nan, math.nan], [2.0, 3.0], 5.0, [0.0, 2.0]),
    ([math.nan, math.nan], [2.0, 3.0], 5.6, [0.0, 2.3]),      # two tails of 0.3 s
    ([math.nan, math.nan], [2.0, 3.0], 7.0, [0.0, math.nan]),
    ([math.nan, math.nan], [2.0, 3.0], 4.0, [0.0, math.nan]),
    ([math.nan, math.nan], [math.nan, 3.0], 5.0, [0.0, math.nan]),
    ([0.5, 1.5], [2.0, 3.0], 5.0, [0.5, 1.5]),
    ([0.5], [2.0], 5.0, [0.5]),
    ([math.nan], [math.nan], 5.0, [0.0]),
])
def test_onsets(stated, lengths, duration, expected):
    np.testing.assert_allclose(stclotho._onsets(stated, lengths, duration), expected, rtol=0, atol=1e-9)


def test_boundary_beyond_the_window_is_counted(root):
    for index, (first, seconds) in enumerate(((10.2, 10.5), (0.2, 0.5), (0.2, 3.0))):
        triplet(root, "train", index, seconds=seconds)
        for role in stclotho.ROLES:
            edit(stclotho.member_paths(root, "train", role, index)[1],
                 lambda facts: [segment["metadata"].update(ori_audio_duration=length)
                                for segment, length in zip(facts["audio_segments"], (first, 0.3))])
    manifest = stclotho.read(root)
    assert manifest.info["boundary_beyond_window"] == 3 and manifest.info["boundary_unknown"] == 3 and len(manifest) == 9
    assert math.isnan(manifest.table["onset"].iat[6][1]) and manifest.row(6)["onset"] == [0.0, None]


def test_stored_semantic_captions_and_onsets_win(root):
    triplet(root, "train", 0)
    for role in stclotho.ROLES:
        edit(stclotho.member_paths(root, "train", role, 0)[1], lambda facts: (
            facts.update(semantic_caption=[f"stored {i}" for i in range(5)]),
            [s.update(onset=o, duration=0.1) for s, o in zip(facts["audio_segments"], (0.05, 0.3))],
            facts["audio_segments"][0]["metadata"].pop("labels")))
    row = stclotho.read(root).row(0)
    assert row["semantic_captions"] == [f"stored {i}" for i in range(5)] and row["onset"] == [0.05, 0.3] and row["labels"] == []


def test_byte_order_mark_and_carriage_returns(root):
    triplet(root, "train", 0)
    before = stclotho.read(root)
    for role in stclotho.ROLES:
        file = stclotho.member_paths(root, "train", role, 0)[1]
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert stclotho.read(root).fingerprint == before.fingerprint


def test_fingerprint_and_saved_manifest(root, tmp_path):
    triplet(root, "train", 0)
    before = stclotho.read(root)
    loaded = Manifest.load(before.save(tmp_path / "m.parquet"))
    assert loaded.fingerprint == before.fingerprint and loaded.info == before.info and loaded.row(1) == before.row(1)
    root.rename(tmp_path / "-moved")
    root = tmp_path / "-moved"
    assert stclotho.read(root).fingerprint == before.fingerprint
    sound(stclotho.member_paths(root, "train", "positive", 0)[0], seconds=0.6)
    changed = stclotho.read(root).fingerprint
    edit(stclotho.member_paths(root, "train", "positive", 0)[1], lambda facts: facts["temporal_spatial_caption"].reverse())
    assert len({before.fingerprint, changed, stclotho.read(root).fingerprint}) == 3


def test_num_samples_keeps_whole_groups(root):
    for split, count in (("train", 6), ("val", 3), ("test", 3)):
        for index in range(count):
            triplet(root, split, index, seconds=0.15)
            single(root, split, "rain", index)
    few, more = (stclotho.read(root, num_samples=count, seed=1) for count in (4, 8))
    assert few.info["triplets"] == {"train": 2, "val": 1, "test": 1} and few.info["singles"] == {"train": 2, "val": 1, "test": 1}
    assert len(check_threes(few)) == 12 and len(check_threes(more)) == 24
    assert set(few.table["clip_id"]) < set(more.table["clip_id"])
    assert list(few.table["clip_id"]) != list(stclotho.read(root, num_samples=4, seed=2).table["clip_id"])
    assert len(stclotho.read(root, num_samples=100)) == 48
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        stclotho.read(root, num_samples=0)


def test_order_of_the_listing_does_not_matter(root, monkeypatch):
    triplet(root, "train", 10)
    triplet(root, "train", 9)
    single(root, "val", "b", 0)
    single(root, "train", "c", 0)
    expected = list(stclotho.read(root).table["clip_id"])
    walk = os.walk

    def backwards(*args, **kwargs):
        for folder, folders, files in walk(*args, **kwargs):
            yield folder, folders, files[::-1]
    monkeypatch.setattr(stclotho.os, "walk", backwards)
    assert list(stclotho.read(root).table["clip_id"]) == expected
    assert expected[0] == "train-000009-positive" and expected[-2:] == ["train-c_0", "val-b_0"]
