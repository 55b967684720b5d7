"""The table's rules, its fingerprint, the parquet round trip and the shared-out sample."""
import numpy as np
import pandas as pd
import pytest

from lib.data.manifest import Manifest, class_prompts, fill, sample


def _manifest(count=12, splits=("train", "train", "val", "test"), root="/somewhere", **extra):
    table = pd.DataFrame({
        "clip_id": [f"c{i}" for i in range(count)],
        "path": [f"audio/-c {i}.wav" for i in range(count)],
        "start": 0.0,
        "duration": [1.0 + i for i in range(count)],
        "split": [splits[i % len(splits)] for i in range(count)],
        "captions": [["a dog", "<script>"] if i % 2 else [] for i in range(count)],
        "labels": [["dog"] if i % 3 == 0 else ["cat", "dog"] if i % 3 == 1 else [] for i in range(count)],
        **extra,
    })
    return Manifest(table, "toy", root, {"title": "Toy"})


def test_round_trip_keeps_everything(tmp_path):
    manifest = _manifest(4, azimuth=[1, None, 3, 4], take=[1, 2, 3, 4], track=[[[1, 2.5]], [], [[3.0, 4]], []], note=["a", None, "c", "d"])
    manifest.save(tmp_path / "new" / "m.parquet")
    loaded = Manifest.load(tmp_path / "new" / "m.parquet")
    assert [loaded.row(i) for i in range(4)] == [manifest.row(i) for i in range(4)]
    assert (loaded.name, loaded.root, loaded.info) == (manifest.name, manifest.root, manifest.info)
    assert loaded.fingerprint == manifest.fingerprint
    assert type(loaded.row(0)["captions"]) is list and loaded.row(1)["azimuth"] is None and type(loaded.row(0)["take"]) is int
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "m.parquet"]
    assert Manifest.load(tmp_path / "new" / "m.parquet", root=tmp_path).file(0) == tmp_path / "audio/-c 0.wav"


def test_fingerprint_is_of_content_not_place():
    manifest = _manifest()
    assert manifest.fingerprint == _manifest(root="/elsewhere").fingerprint
    assert len(manifest.fingerprint) == 16 and int(manifest.fingerprint, 16) >= 0
    changed = manifest.table.copy()
    changed.at[3, "captions"] = ["another"]
    others = [Manifest(changed, "toy", "/x"), Manifest(manifest.table, "other", "/x"), manifest.select("train"),
              Manifest(manifest.table, "toy", "/x", {"classes": ["dog", "cat"]})]
    assert len({m.fingerprint for m in [manifest, *others]}) == 5


@pytest.mark.parametrize("column, value, words", [
    ("clip_id", "c1", "unique"), ("clip_id", "", "a text"), ("path", "/etc/passwd", "relative"), ("path", "../x.wav", "relative"),
    ("split", "dev", "train, val, test"), ("start", -1.0, "not negative"), ("duration", float("nan"), "finite"),
    ("captions", "a dog", "list of texts"), ("labels", [1], "list of texts")])
def test_broken_rows_are_named(column, value, words):
    table = _manifest().table.copy()
    table[column] = table[column].astype(object)
    table.at[5, column] = value
    with pytest.raises(ValueError, match=words) as error:
        Manifest(table, "toy", "/x")
    assert column in str(error.value) and (column == "clip_id" or "c5" in str(error.value))


def test_missing_column_and_unknown_label():
    with pytest.raises(ValueError, match="'split' is missing"):
        Manifest(_manifest().table.drop(columns="split"), "toy", "/x")
    with pytest.raises(ValueError, match="'labels' of clip 'c0'.*classes"):
        Manifest(_manifest().table, "toy", "/x", {"classes": ["cat"]})


def test_select_and_targets():
    manifest = _manifest()
    assert manifest.splits == {"train": 6, "val": 3, "test": 3}
    assert list(manifest.select(["val", "test"]).table["clip_id"]) == ["c2", "c3", "c6", "c7", "c10", "c11"]
    assert list(manifest.select("test", rows=[2, 0]).table["clip_id"]) == ["c11", "c3"]
    assert list(manifest.select(rows=manifest.table["duration"] > 11).table["clip_id"]) == ["c11"] and len(manifest.select(rows=[])) == 0
    with pytest.raises(ValueError, match="dev"):
        manifest.select("dev")
    naive = [[name in labels for name in ("cat", "dog")] for labels in manifest.table["labels"]]
    assert manifest.targets().dtype == bool and manifest.targets().tolist() == naive
    assert manifest.select(rows=[0]).targets().tolist() == [[False, True]]  # a part keeps the whole's classes


@pytest.mark.parametrize("wanted, expected", [
    (6, {"train": 3, "val": 2, "test": 1}), (3, {"train": 1, "val": 1, "test": 1}), (1, {"train": 1}), (11, None), (99, None)])
def test_sample_shares_over_splits(wanted, expected):
    manifest = _manifest()
    part = sample(manifest, wanted, seed=3)
    assert len(part) == min(wanted, 12)
    if expected:
        assert sum(part.splits.values()) == wanted and set(part.splits) == set(expected)
        assert all(abs(part.splits[s] - wanted * manifest.splits[s] / 12) <= 1 for s in part.splits)
    assert list(part.table["duration"]) == sorted(part.table["duration"])
    assert part.fingerprint == sample(manifest, wanted, seed=3).fingerprint
    assert sample(manifest, None, 0) is manifest


def test_sample_depends_on_seed_only():
    manifest = _manifest(200, splits=("train",))
    first, second = (set(sample(manifest, 50, seed).table["clip_id"]) for seed in (0, 1))
    assert first != second and first < set(sample(manifest, 60, 0).table["clip_id"])
    without = manifest.select(rows=np.arange(200) != int(min(first)[1:]))
    assert first - set(sample(without, 50, 0).table["clip_id"]) == {min(first)}
    rare = _manifest(300, splits=("train",) * 149 + ("val",))
    assert sample(rare, 10, 0).splits == {"train": 9, "val": 1}
    with pytest.raises(ValueError, match="num_samples"):
        sample(manifest, 0, 0)


def test_class_prompts():
    manifest = _manifest()
    assert class_prompts(manifest) == {"cat": ["cat"], "dog": ["dog"]}
    manifest.info.update(templates=["{}", "hear {}!"], phrases={"dog": "a dog {barking}"})
    assert class_prompts(manifest) == {"cat": ["cat", "hear cat!"], "dog": fill(["{}", "hear {}!"], "a dog {barking}")}
    assert class_prompts(manifest)["dog"][1] == "hear a dog {barking}!"
