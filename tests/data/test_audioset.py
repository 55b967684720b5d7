"""AudioSet: both layouts, labels as other programs write them, splits, leakage, bad rows, and the way from a shard to a batch."""
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lib import data
from lib.data import audioset, download, health
from lib.data.__main__ import main
from lib.data.loading import ClipDataset, batches
from lib.data.manifest import Manifest, class_prompts
from lib.data.taxonomy import Taxonomy, class_table
from lib.display import clips
from lib.encoders.store import encode_clips
from lib.media import audio
from lib.settings import ROOT
from tests import tiny_audioset as tiny

SHARED = Path(os.environ.get("WORKBOOK_SHARED", ROOT / "../shared/data"))
MID = {name: mid for name, (mid, _) in tiny.ONTOLOGY.items()}
RATE = 8000
pytestmark = pytest.mark.filterwarnings("ignore:AudioSet. of the folders")


@pytest.fixture(autouse=True)
def own_data(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "own"))


@pytest.fixture(scope="module")
def seed_layout(tmp_path_factory):
    """A published tiny AudioSet and what was written: 20 + 10 clips of 0.2 s in two shards each, three row groups a shard."""
    root = tmp_path_factory.mktemp("audioset") / "AudioSet"
    return root, tiny.publish(root, train=20, eval=10, duration=0.2, sample_rate=RATE, row_group=4)


def noise(k=0, seconds=0.2):
    return {"bytes": tiny.encode(np.random.default_rng(k).uniform(-0.3, 0.3, round(seconds * RATE)), RATE), "path": ""}


def make(root, videos=None, audio=None, labels=None, names=None, file="train_balanced/00.parquet", **options):
    """One shard with as many rows as it has names or MIDs, and the tables."""
    tiny.tables(root)
    count = len(names if names is not None else labels)
    columns = {"video_id": videos, "audio": pa.array([noise(k) for k in range(count)], type=tiny.BYTES) if audio is None else audio,
               "labels": labels, "human_labels": names}
    return tiny.shard(root / file, **{name: cells for name, cells in columns.items() if cells is not None}, **options)


def prepare(root, **options):
    return data.prepare("audioset", data_root=root, **options)


def test_what_is_published_comes_back(seed_layout):
    root, written = seed_layout
    manifest = prepare(root)
    assert list(manifest.table["clip_id"]) == list(manifest.table["video_id"]) == [clip["video_id"] for clip in written]
    assert list(manifest.table["labels"]) == [clip["labels"] for clip in written]
    assert list(manifest.table["path"]) == [f"{clip['shard']}#{clip['row']}" for clip in written]
    assert [(r["shard"], r["row"]) for r in map(manifest.row, range(30))] == [(clip["shard"], clip["row"]) for clip in written]
    assert [s == "test" for s in manifest.table["split"]] == [clip["part"] == "eval" for clip in written]
    assert np.allclose(manifest.table["duration"], 0.2) and manifest.classes == tiny.CLASSES
    assert manifest.table["captions"][0] == [f"This is a sound of {label}." for label in written[0]["labels"]]
    assert class_prompts(manifest)["Male speech, man speaking"] == ["This is a sound of Male speech, man speaking."]
    assert manifest.info["found"] == {"train": 20, "eval": 10} and manifest.info["health"]["kept"] == 30
    assert manifest.info["left_out"] == manifest.info["unmatched"] == manifest.info["repeated"] == {}
    taxonomy = Taxonomy.of(manifest)
    node = {name: i for i, name in enumerate(taxonomy.nodes)}
    assert [taxonomy.nodes[i] for i in taxonomy.classes] == tiny.CLASSES and len(taxonomy) == len(tiny.ONTOLOGY)
    assert {taxonomy.nodes[i] for i in taxonomy.parents[node["Police car (siren)"]]} == {"Emergency vehicle", "Siren"}


def test_layouts_say_the_same(seed_layout, tmp_path):
    """Hugging Face's folders, the folder above the shards, and each folder of shards by itself, with the tables above it."""
    root, written = seed_layout
    whole = prepare(root).table
    tiny.publish(tmp_path / "hub", layout="hub", train=20, eval=10, duration=0.2, sample_rate=RATE, row_group=4)
    for place in (tmp_path / "hub", tmp_path / "hub" / "data"):
        same = prepare(place).table
        for column in ("clip_id", "split", "labels", "captions", "duration", "row"):
            assert list(same[column]) == list(whole[column]), (place, column)
    assert prepare(tmp_path / "hub").table["path"][0] == "data/bal_train/00.parquet#0"
    for folder, splits in ((root / "train_balanced", ["train", "val"]), (root / "eval", ["test"]), (tmp_path / "hub/data/eval", ["test"])):
        part, expected = prepare(folder).table, whole[whole["split"].isin(splits)]
        assert list(part["clip_id"]) == list(expected["clip_id"]) and list(part["split"]) == list(expected["split"])
        assert part["path"][0] == "00.parquet#0"
    assert "test" in prepare(folder).splits
    with pytest.warns(UserWarning, match="has bal_train/ only, so there is no test split"):
        shutil.rmtree(tmp_path / "hub/data/eval")
        prepare(tmp_path / "hub")


def test_splits_depend_on_the_video_alone(seed_layout, tmp_path):
    """Neither on files, their order or the sample: only on split_seed and the ratio; and 80 % of many are trained on."""
    root, written = seed_layout
    whole = prepare(root).table.set_index("clip_id")["split"]
    shuffled = tmp_path / "shuffled"
    train = [clip for clip in written if clip["part"] == "train"][::-1]
    make(shuffled, [clip["video_id"] for clip in train], pa.array([{"bytes": clip["content"], "path": ""} for clip in train], type=tiny.BYTES),
         names=[clip["labels"] for clip in train], file="train_balanced/x.parquet")
    with pytest.warns(UserWarning, match="no test split"):
        other = prepare(shuffled).table.set_index("clip_id")["split"]
    assert list(other) == list(whole[other.index]) and {"train", "val"} == set(other)
    for seed in (0, 1):
        some = prepare(root, num_samples=12, seed=seed).table.set_index("clip_id")["split"]
        assert len(some) == 12 and list(some) == list(whole[some.index]) and set(some) == {"train", "val", "test"}
    assert list(prepare(root, split_seed=1).table["split"]) != list(whole)
    assert set(prepare(root, train_ratio=0.0001).splits) == {"val", "test"} and set(prepare(root, train_ratio=0.9999).splits) == {"train", "test"}
    places = np.array([audioset._place(f"video {k}", 42) for k in range(20_000)])
    assert abs(np.mean(places < 0.8) - 0.8) < 0.01 and 0 <= places.min() and places.max() < 1
    grown = {v for v in range(1000) if places[v] < 0.5}
    assert grown < {v for v in range(1000) if places[v] < 0.8}, "a larger ratio only adds"


def test_only_the_sample_is_decoded(seed_layout, monkeypatch):
    looked, real = [], health.inspect_all
    monkeypatch.setattr(health, "inspect_all", lambda files, *rest: looked.extend(files) or real(files, *rest))
    assert len(prepare(seed_layout[0], num_samples=6)) == len(looked) == 6
    assert len(prepare(seed_layout[0], num_samples=8)) == len(looked) == 8, "a verdict is kept"


@pytest.mark.parametrize("cell, labels", [
    (["Speech", "Music"], ["Speech", "Music"]), (np.array(["Speech", "Music"]), ["Speech", "Music"]), (("Speech",), ["Speech"]),
    ("Male speech, man speaking", ["Male speech, man speaking"]), ('["Bird, (bird)", "Music"]', ["Bird, (bird)", "Music"]),
    ("['Bird, \"x\"', 'Music']", ['Bird, "x"', "Music"]), ("[]", []), ([], []), ("", []), ("  ", []), (None, []), (float("nan"), []),
    (["Speech", None, "", " Speech ", float("nan")], ["Speech"]), ("[live] Music", ["[live] Music"]), ("[live]", ["[live]"]),
    ('{"a": 1}', ['{"a": 1}']), ("['a'", ["['a'"]), ("[" * 500 + "]" * 500, None), ("[__import__('os')]", ["[__import__('os')]"]),
    (b"Speech", ["Speech"]), ([b"caf\xc3\xa9"], ["café"]), (7, ["7"]), ("<b>'x\"</b>", ["<b>'x\"</b>"])])
def test_labels_of_a_cell(cell, labels):
    assert audioset.parse_labels(cell) == labels if labels is not None else len(audioset.parse_labels(cell)) == 1


def test_matching_by_mid_then_by_name(tmp_path):
    """What is no class is counted and listed; a clip that has nothing else is in no split."""
    rows = [
        ([MID["Dog"], MID["Bark"]], ["hund", "bellen"], ["Dog", "Bark"]),                     # the MID decides
        (["/m/unknown", MID["Rain"]], ["  PIANO ", "Music"], ["Piano", "Rain"]),               # the name where there is no such MID
        ([MID["Dog"]], ["Music", "Guitar"], ["Dog", "Music", "Guitar"]),                       # not parallel: both count
        ([], "male speech, man speaking", None),
        (["/m/unknown", MID["Cat"]], ["<script>alert(\"x\")</script>", "Cat"], ["Cat"]),
        (["/m/none"], ["Klang, 'sehr' laut"], None), (None, None, None), ([], [], None),
        (None, ["Speech", "speech", "SPEECH"], ["Speech"]),
    ]
    lists = [(mids, [names] if isinstance(names, str) else names) for mids, names, _ in rows]
    rows[3] = ([], None, ["Male speech, man speaking"])
    make(tmp_path, [f"v{k}" for k in range(9)], labels=pa.array([m for m, _ in lists], type=pa.list_(pa.string())),
         names=pa.array([n for _, n in lists], type=pa.list_(pa.string())), file="eval/0.parquet")
    with pytest.warns(UserWarning, match="no train and no val split"):
        manifest = prepare(tmp_path)
    assert dict(zip(manifest.table["clip_id"], manifest.table["labels"])) == {f"v{k}": labels for k, (*_, labels) in enumerate(rows) if labels}
    assert manifest.info["unmatched"] == {"<script>alert(\"x\")</script>": 1, "Klang, 'sehr' laut": 1}
    assert manifest.info["left_out"] == {audioset.NO_LABEL: 3} and manifest.info["left_out_clips"] == {audioset.NO_LABEL: ["v5", "v6", "v7"]}
    assert manifest.info["health"]["checked"] == 6 and manifest.targets().sum() == 10


@pytest.mark.parametrize("names", [
    ["Male speech, man speaking", "['Dog', 'Bird vocalization, bird call, bird song']", '["Music"]', "dog"],
    [["Male speech, man speaking"], ["Dog", "Bird vocalization, bird call, bird song"], ["Music"], ["DOG"]]])
def test_names_alone_and_a_table_without_mids(tmp_path, names):
    """The seed's class table: JSON, names only; labels as texts or lists; no video_id: shard and row stand in."""
    root = tmp_path / "a#b"
    make(root, names=names, file="eval/00.parquet")
    (root / "class_labels_indices.csv").unlink()
    (root / "ontology.json").unlink()
    (tmp_path / "mine.json").write_text(json.dumps({name: i for i, name in enumerate(tiny.CLASSES)}))
    manifest = prepare(root / "eval", class_labels=str(tmp_path / "mine.json"))
    assert list(manifest.table["labels"]) == [["Male speech, man speaking"], ["Dog", "Bird vocalization, bird call, bird song"], ["Music"], ["Dog"]]
    assert list(manifest.table["clip_id"]) == [f"eval/00.parquet#{k}" for k in range(4)] and manifest.info["ontology"] is None
    assert Taxonomy.of(manifest) is None and audio.probe(manifest.file(2)).duration == 0.2
    named = prepare(root / "eval", class_labels=str(tmp_path / "mine.json"), ontology=str(_ontology(tmp_path)))
    assert len(Taxonomy.of(named)) == len(tiny.ONTOLOGY), "the ontology by name, where the table has no MIDs"


def _ontology(folder):
    tiny.tables(folder)
    return (folder / "ontology.json").rename(folder / "other.json")


def test_what_is_in_eval_never_trains(tmp_path):
    """Also when the training folder is prepared by itself; and the same video several times is one side of the split."""
    make(tmp_path, ["a", "b", "c", "b", "d", "d", None, ""], names=[["Dog"]] * 8)
    make(tmp_path, ["x", "b", "b", "a"], names=[["Cat"]] * 3 + [["no class"]], file="eval/00.parquet")
    manifest = prepare(tmp_path)
    assert manifest.info["left_out"] == {audioset.IN_EVAL: 3, audioset.NO_LABEL: 1}
    assert manifest.info["left_out_clips"] == {audioset.IN_EVAL: ["a", "b", "b"], audioset.NO_LABEL: ["a"]}
    assert manifest.info["repeated"] == {"d": 2, "b": 2}
    ids = dict(zip(manifest.table["clip_id"], manifest.table["split"]))
    assert [name for name, split in ids.items() if split == "test"] == ["x", "b (eval/00.parquet#1)", "b (eval/00.parquet#2)"]
    assert {name for name, split in ids.items() if split != "test"} == {"c", "d (train_balanced/00.parquet#4)", "d (train_balanced/00.parquet#5)",
                                                                       "train_balanced/00.parquet#6", "train_balanced/00.parquet#7"}
    assert ids["d (train_balanced/00.parquet#4)"] == ids["d (train_balanced/00.parquet#5)"]
    alone = prepare(tmp_path / "train_balanced")
    assert not {"a", "b"} & set(alone.table["video_id"]) and alone.info["left_out"] == {audioset.IN_EVAL: 3} and len(alone) == 5


def test_bad_rows_are_counted(tmp_path):
    broken = noise(0)["bytes"]
    cells = [noise(1), {"bytes": None, "path": "lost.flac"}, None, {"bytes": b"no sound", "path": ""}, {"bytes": broken[:len(broken) // 2], "path": ""},
             {"bytes": tiny.encode(np.zeros(RATE), RATE), "path": ""}, noise(2, 0.01), noise(3)]
    make(tmp_path, [f"v{k}" for k in range(8)], pa.array(cells, type=tiny.BYTES), names=[["Dog"]] * 8, file="eval/00.parquet")
    manifest = prepare(tmp_path / "eval")
    assert list(manifest.table["clip_id"]) == ["v0", "v7"]
    assert manifest.info["health"] == {"checked": 8, "kept": 2, "reasons": {"empty": 2, "unreadable": 1, "truncated": 1, "silent": 1, "too short": 1},
                                       "examples": {"empty": ["00.parquet#1", "00.parquet#2"], "unreadable": ["00.parquet#3"], "truncated": ["00.parquet#4"],
                                                    "silent": ["00.parquet#5"], "too short": ["00.parquet#6"]}}


def test_arrays_need_a_rate(tmp_path):
    """Bare ones that of the option; those that state one keep it; without any, they are counted by that reason."""
    wave = (np.sin(np.arange(4000) * 0.1) * 20_000).astype(np.int16)
    bare = pa.array([wave, np.stack([wave, -wave]).ravel()], type=pa.list_(pa.int16()))
    stated = pa.array([{"array": (wave / 2**15).tolist(), "sampling_rate": RATE}], type=pa.struct([("array", pa.list_(pa.float64())), ("sampling_rate", pa.int64())]))
    make(tmp_path, ["a", "b"], bare, names=["Dog", "Dog"], file="eval/0.parquet")
    make(tmp_path, ["c"], stated, names=["Cat"], file="eval/1.parquet")
    without = prepare(tmp_path / "eval")
    assert list(without.table["clip_id"]) == ["c"] and without.info["health"]["reasons"] == {"no sample rate": 2}
    given = prepare(tmp_path / "eval", array_sample_rate=4000)
    assert list(given.table["duration"]) == [1.0, 2.0, 0.5] and given.table["path"][0] == "0.parquet#0@4000"
    waves = [audio.read(given.file(i), sample_rate=None)[0].numpy() for i in (0, 2)]
    assert np.array_equal(waves[0], wave / np.float32(2**15)) and np.array_equal(waves[0], waves[1])
    with pytest.raises(ValueError, match="array_sample_rate must be at least 1 Hz, got 0"):
        prepare(tmp_path / "eval", array_sample_rate=0)


def test_what_is_refused_names_file_and_fix(tmp_path, monkeypatch):
    root = tmp_path / "AudioSet"
    root.mkdir()
    with pytest.raises(FileNotFoundError, match=r"no .parquet shards in .*AudioSet; expected train_balanced/ and eval/.*python -m lib.data download audioset"):
        prepare(root)
    (root / "eval").mkdir()
    with pytest.raises(FileNotFoundError, match="no .parquet shards in .*AudioSet, nor in eval/"):
        prepare(root)
    with pytest.raises(FileNotFoundError, match=r"own/audioset; .*download audioset` \(50 GB\)"):
        data.prepare("audioset")
    file = make(root, names=[["Dog"]] * 3, file="eval/00.parquet")
    (root / "class_labels_indices.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"class_labels_indices.csv, .*AudioSet, .*Get it from https://storage.*or name yours by class_labels"):
        prepare(root / "eval")
    with pytest.raises(FileNotFoundError, match="class table .*absent.csv is not there"):
        prepare(root / "eval", class_labels=str(root / "absent.csv"))
    tiny.tables(root)
    with pytest.raises(FileNotFoundError, match="ontology .*absent.json is not there"):
        prepare(root / "eval", ontology=str(root / "absent.json"))
    for ratio in (0, 1, float("nan")):
        with pytest.raises(ValueError, match="train_ratio must lie between 0 and 1"):
            prepare(root, train_ratio=ratio)
    monkeypatch.setattr(audioset, "LARGEST", 1000)
    with pytest.raises(ValueError, match=r"00.parquet: row group 0 holds [\d,]+ bytes of audio in 3 rows.*row_group_size=100"):
        prepare(root / "eval")
    monkeypatch.undo()
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "own"))
    content = file.read_bytes()
    for part in (content[:-100], b"", b"words" * 100):
        file.write_bytes(part)
        with pytest.raises(ValueError, match="eval/00.parquet: not a whole parquet file .*fetch it again"):
            prepare(root / "eval")
    tiny.shard(file, video_id=["a"], audio=["x"], label=["Dog"])
    with pytest.raises(ValueError, match="00.parquet: column 'human_labels' is missing, it has video_id, audio, label; a shard of AudioSet has"):
        prepare(root / "eval")
    tiny.shard(file, sound=["a"], human_labels=["Dog"])
    with pytest.raises(ValueError, match="column 'audio' is missing, it has sound, human_labels"):
        prepare(root / "eval")
    make(root, names=["Hund", "Katze"], file="eval/00.parquet")
    with pytest.raises(ValueError, match="no label of its 2 clips is in the class table, for example 'Hund', 'Katze'; give the table"):
        prepare(root / "eval")
    make(root, names=pa.array([], type=pa.string()), audio=pa.array([], type=tiny.BYTES), file="eval/00.parquet")
    with pytest.raises(ValueError, match="no label of its 0 clips .* none at all"):
        prepare(root / "eval")
    make(root, names=["Dog"], audio=pa.array([{"bytes": b"", "path": ""}], type=tiny.BYTES), file="eval/00.parquet")
    with pytest.raises(ValueError, match="none of its 1 clips can be used; most are empty"):
        prepare(root / "eval")


class Ear:
    """A model whose vector of a clip is its first samples."""

    audio = SimpleNamespace(sample_rate=RATE)

    def parameters(self):
        yield torch.zeros(1)

    def embed_audio(self, waveform, durations):
        return waveform[:, :64]


def test_from_shards_to_batches(seed_layout, monkeypatch, tmp_path):
    """Encoding all clips in order reads each row group once, and no column but the audio; every window is that of the same file."""
    root, written = seed_layout
    manifest = prepare(root)
    reads, real = [], pq.ParquetFile.iter_batches

    def counted(self, *args, **options):
        reads.append((options["row_groups"], options["columns"]))
        return real(self, *args, **options)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *_, **__: pytest.fail("a shard was loaded"))
    encoded = [pair for pair in encode_clips(Ear(), manifest, seconds=0.2, batch_size=7)]
    vectors, failed = torch.cat([rows for rows, _ in encoded]), [f for _, some in encoded for f in some]
    assert reads == [([g], ["audio"]) for shard in range(4) for g in range([3, 3, 2, 2][shard])] and not any(failed)
    for i, clip in enumerate(written):
        plain = tmp_path / "clip.flac"
        plain.write_bytes(clip["content"])
        window = audio.read(plain, sample_rate=RATE, duration=0.2)
        assert torch.equal(vectors[i], window[0, :64]), i
        part = dict(sample_rate=6000, start=0.05, duration=0.1)
        assert torch.equal(audio.read(manifest.file(i), **part), audio.read(plain, **part))
    for workers in (0, 1):
        other = ClipDataset(manifest.select("train"), sample_rate=RATE, seconds=0.1, train=True, seed=3)
        items = [row for batch in batches(other, 5, shuffle=True, workers=workers) for row in batch["waveform"]]
        assert workers == 0 or all(map(torch.equal, items, first))
        first = items
    shown = clips.gallery([clips.clip(manifest, i, sample_rate=RATE, seconds=1.0) for i in (0, 29)])
    assert shown.players == 2 and "role=\"alert\"" not in shown.html


def test_manifest_tools(seed_layout, tmp_path, capsys):
    """The command line, the saved manifest, and a shard that is damaged or shortened afterwards."""
    root = tmp_path / "-Audio 'Set'"
    shutil.copytree(seed_layout[0], root)
    out = tmp_path / "m.parquet"
    assert main(["prepare", "audioset", "--data-root", str(root), "--option", "train_ratio=0.5", "--out", str(out)]) == 0
    assert "20 clips in the tables, 18,685 published" in capsys.readouterr().out
    manifest = Manifest.load(out)
    assert manifest.fingerprint == prepare(root, train_ratio=0.5).fingerprint and main(["check", str(out)]) == 0
    pq.write_table(pq.ParquetFile(root / "eval/01.parquet").read().slice(0, 3), root / "eval/01.parquet")
    assert main(["check", str(out)]) == 1 and "2 missing (there is no such file, or no such row in it), e.g. 'eval/01.parquet#3'" in capsys.readouterr().out
    (root / "eval/01.parquet").unlink()
    assert health.check(manifest).info["health"]["reasons"] == {"missing": 5}


@pytest.mark.skipif(not (SHARED / "metadata" / "audioset_ontology.json").is_file(), reason="the real class table and ontology are not here")
def test_the_real_class_table_and_ontology(tmp_path):
    """All 527 names, 75 with commas, match as they are, in lists as text, in capitals and by MID; 632 nodes lie in the ontology."""
    meta = SHARED / "metadata"
    classes = class_table(meta / "audioset_class_labels_indices.csv")
    names, mids = [name for _, name in classes], [mid for mid, _ in classes]
    assert len(names) == audioset.CLASSES == 527 and sum("," in name for name in names) == 75
    match = audioset._matcher(classes)
    assert all(audioset.parse_labels(name) == [name] for name in names)
    for way in (audioset.parse_labels(names), audioset.parse_labels(json.dumps(names)), audioset.parse_labels(repr(names)), [n.upper() for n in names]):
        assert match([], way) == (names, [])
    assert match(mids, []) == match(mids, ["?"] * 527) == (names, [])
    silent = pa.array([noise(k) for k in range(3)], type=tiny.BYTES)
    tiny.shard(tmp_path / "eval/00.parquet", video_id=list("abc"), audio=silent, human_labels=[names[:9], names[9:], ["Speech"]])
    manifest = prepare(tmp_path / "eval", class_labels=str(meta / "audioset_class_labels_indices.csv"), ontology=str(meta / "audioset_ontology.json"))
    taxonomy = Taxonomy.of(manifest)
    assert manifest.classes == names and manifest.targets().sum(axis=1).tolist() == [9, 518, 1] and not manifest.info["unmatched"]
    assert len(taxonomy) == 632 and len(taxonomy.edges) == 670 and [taxonomy.nodes[i] for i in taxonomy.classes] == names
    for name in tiny.ONTOLOGY:  # the tiny one is part of the real one
        node = taxonomy.nodes.index(name)
        assert {taxonomy.nodes[p] for p in taxonomy.parents[node]} >= set(tiny.ONTOLOGY[name][1]), name
    assert {name: mid for mid, name in classes}.items() >= {name: MID[name] for name in tiny.CLASSES}.items()


def test_download(tmp_path, monkeypatch):
    """With a hub that is not there, one that sends half, and one that sends all; nothing is asked for over a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read from the environment when it is imported
    asked, numbers = [], {}

    def fetch(url, path):
        asked.append(url)
        tiny.tables(tmp_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / path.name, path)
    monkeypatch.setattr(download, "fetch", fetch)
    with pytest.raises(download.DownloadError, match="25 classes, the published one has 527; remove it"):
        audioset.download(tmp_path / "a")
    monkeypatch.setattr(audioset, "CLASSES", 25)
    with pytest.raises(download.DownloadError, match="bal_train: 0 of 18,685 clips came; .*HF_HUB_OFFLINE is not set.*same command again"):
        audioset.download(tmp_path / "b")  # what the library says without a network

    def refuse(*_, **__):
        raise ConnectionError("no route")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(download.DownloadError, match=r"agkphysics/AudioSet cannot be fetched from Hugging Face \(no route\); check the connection"):
        audioset.download(tmp_path / "b")

    def snapshot(repository, *, repo_type, revision, local_dir, allow_patterns):
        assert (repository, repo_type, len(revision)) == ("agkphysics/AudioSet", "dataset", 40)
        assert allow_patterns == ["data/bal_train/*.parquet", "data/eval/*.parquet"]
        for name, count in numbers.items():
            make(local_dir, names=["Dog"] * count, file=f"data/{name}/00.parquet")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(audioset, "EXPECTED", {"train": 4, "eval": 2})
    numbers |= {"bal_train": 4, "eval": 1}
    with pytest.raises(download.DownloadError, match="data/eval: 1 of 2 clips came; check the connection"):
        audioset.download()
    numbers |= {"eval": 2}
    folder = audioset.download()
    assert folder == tmp_path / "own" / "audioset" and asked[-2:] == [audioset.CLASSES_URL, audioset.ONTOLOGY_URL]
    assert len(data.prepare("audioset")) == 6


def test_only_the_splits_that_are_wanted(tmp_path):
    """A test of 100 clips samples the test split, and a training never opens it."""
    tiny.publish(tmp_path)
    whole = data.prepare("audioset", data_root=tmp_path)
    part = data.prepare("audioset", data_root=tmp_path, splits=("test",), num_samples=5)
    assert part.splits == {"test": 5} and part.classes == whole.classes
    assert data.prepare("audioset", data_root=tmp_path, splits=("train", "val")).splits == {s: n for s, n in whole.splits.items() if s != "test"}
    with pytest.raises(ValueError, match="none of its clips is in train, val"):
        data.prepare("audioset", data_root=tmp_path / "eval", splits=("train", "val"))
