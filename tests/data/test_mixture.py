"""Mixtures of any data sets, not only the published ones (those are in test_captioned.py)."""
import numpy as np
import pandas as pd
import pytest
import soundfile

from lib import data
from lib.data.manifest import Manifest


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder that holds a folder of one's own audio and a small Clotho."""
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "data"))
    for split, count in (("train", 3), ("val", 2), ("test", 2)):
        for i in range(count):
            _sound(tmp_path / "all" / "folder" / split / f"-{i} 'x'.wav")
    names = ["-0 'x'.wav", "b.wav"]
    for part in ("development", "evaluation"):
        for name in names:
            _sound(tmp_path / "all" / "clotho" / part / name)
        pd.DataFrame({"file_name": names} | {f"caption_{k}": ["a", "b"] for k in range(1, 6)}).to_csv(
            tmp_path / "all" / "clotho" / f"clotho_captions_{part}.csv", index=False)
    return tmp_path / "all"


def _sound(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(0).uniform(-0.3, 0.3, 4000), 8000)


@pytest.mark.parametrize("names, splits", [("folder+clotho", {"train": 5, "val": 2, "test": 2}), ("clotho+folder", {"train": 5, "test": 2})])
def test_the_first_gives_val_and_test(root, names, splits, tmp_path):
    """Equal file names of two data sets stay apart, the manifest survives a file, and every clip is found again."""
    manifest = data.prepare(names, data_root=root)
    assert manifest.splits == splits and manifest.name == names and manifest.root == root
    assert manifest.table["clip_id"].is_unique and set(manifest.table["source"]) == {"folder", "clotho"}
    assert set(manifest.table["source"][manifest.table["split"] != "train"]) == {names.split("+")[0]}
    again = Manifest.load(manifest.save(tmp_path / "m.parquet"))
    assert again.fingerprint == manifest.fingerprint and all(again.file(i).is_file() for i in range(len(again)))
    health = manifest.info["health"]
    assert health["checked"] == health["kept"] == 11 and health["reasons"] == {}
    lost = 2 if names.startswith("folder") else 4
    assert manifest.info["left_out"] == {f"{names.split('+')[1]}: val and test, only the first data set has any": lost}


def test_health_of_the_parts_is_added_up(root):
    (root / "folder" / "train" / "empty.wav").write_bytes(b"")
    (root / "clotho" / "development" / "b.wav").write_bytes(b"")
    health = data.prepare("clotho+folder", data_root=root).info["health"]
    assert (health["checked"], health["kept"], health["reasons"]) == (12, 10, {"empty": 2}) and len(health["examples"]["empty"]) == 2


def test_options_go_where_they_are_understood(root):
    (root / "folder" / "mine.csv").write_text("file_name,caption\n\"train/-0 'x'.wav\",one\n\"train/-1 'x'.wav\",two\n")
    manifest = data.prepare("clotho+folder", data_root=root, captions="mine.csv")
    own = manifest.table[manifest.table["source"] == "folder"]
    assert own["captions"].tolist() == [["one"], ["two"]]
    assert data.data_set_options("clotho+folder") == {"captions": None, "pictures": False}
    assert set(data.data_set_options("folder+wavcaps")) == {"captions", "pictures", "subsets", "excluded_ids", "max_seconds", "probe_seconds"}
    with pytest.raises(ValueError, match="data set 'clotho\\+folder' has no option 'subsets'; it has: captions, pictures"):
        data.prepare("clotho+folder", data_root=root, subsets=("SoundBible",))
    with pytest.raises(ValueError, match="unknown data set 'sonyc'"):
        data.prepare("clotho+sonyc", data_root=root)


def test_with_synthesised_soundscapes(root):
    manifest = data.prepare("folder+soundscapes", data_root=_with_folder(root, "soundscapes"), num_samples=20)
    counts = manifest.table.groupby("source").size()
    assert counts["folder"] == 7 and 1 <= counts["soundscapes"] <= 10 and manifest.splits["test"] == 2
    assert all(manifest.file(i).is_file() for i in range(len(manifest)))


def _with_folder(root, name):
    (root / name).mkdir()
    return root
