"""The published layout in miniature, and the real ESC-10 where it is at hand."""
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lib.data import esc50, prepare
from lib.data.download import DownloadError
from lib.data.manifest import class_prompts, fill

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("WORKBOOK_SHARED", ROOT / "../shared/data"))
CATEGORIES = ["dog", "rain", "crying_baby", "glass_breaking"]


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "data"))


def _write(root, suffix="wav", folds=5, sources=4, takes=2, lines=()):
    """folds x categories x sources x takes clips of 0.2 s; returns the rows of the table."""
    (root / "meta").mkdir(parents=True), (root / "audio").mkdir()
    tone = 0.2 * np.sin(np.arange(1600) * 0.3)
    rows = []
    for fold in range(1, folds + 1):
        for category in CATEGORIES:
            for source in range(sources):
                for take in "AB"[:takes]:
                    target = list(esc50.PHRASES).index(category)
                    source_id = fold * 10000 + target * 100 + source
                    stem = f"{fold}-{source_id}-{take}-{target}"
                    soundfile.write(root / "audio" / f"{stem}.{suffix}", tone, 8000)
                    rows.append(f"{stem}.wav,{fold},{target},{category},{target in (0, 10, 20)},{source_id},{take}")
    (root / "meta" / "esc50.csv").write_text("\n".join(["filename,fold,target,category,esc10,src_file,take", *rows, *lines]) + "\n")
    return rows


def test_published_tables():
    assert len(esc50.PHRASES) == len(set(esc50.PHRASES.values())) == 50 and len(esc50.TEMPLATES) == 5
    assert list(esc50.PHRASES)[:2] + [list(esc50.PHRASES)[i] for i in (20, 38, 49)] == ["dog", "rooster", "crying_baby", "clock_tick", "hand_saw"]
    assert [sum(esc50.TAXONOMY[c] == [s] for c in esc50.PHRASES) for s in esc50.SUPER_CATEGORIES] == [10] * 5


@pytest.mark.parametrize("suffix", ["wav", "ogg", "flac"])
def test_layout_and_splits(tmp_path, suffix):
    rows = _write(tmp_path / "esc", suffix)
    manifest = prepare("esc50", data_root=tmp_path / "esc")
    table = manifest.table
    assert len(manifest) == len(rows) == 160 and manifest.classes == CATEGORIES and manifest.info["title"] == "ESC-50"
    assert set(table["fold"][table["split"] == "test"]) == {4} and set(table["fold"][table["split"] != "test"]) == {1, 2, 3, 5}
    assert (table.groupby("group")["split"].nunique() == 1).all()
    for category in CATEGORIES:  # 16 sources of 2 clips outside the test fold, a fifth of them for validation
        mine = table[[labels == [category] for labels in table["labels"]]]
        assert mine[mine["split"] == "val"]["group"].nunique() == 3 and (mine["split"] == "val").sum() == 6
    assert manifest.row(0)["path"] == f"audio/1-10000-A-0.{suffix}" and manifest.row(0)["duration"] == pytest.approx(0.2)
    assert manifest.info["taxonomy"]["glass_breaking"] == ["interior or domestic sounds"]


def test_captions_are_the_prompts_of_the_class(tmp_path):
    _write(tmp_path / "esc", folds=4, sources=2, takes=1)
    manifest = prepare("esc50", data_root=tmp_path / "esc")
    prompts = class_prompts(manifest)
    assert list(prompts) == manifest.classes and prompts["dog"] == fill(esc50.TEMPLATES, "a dog barking") and prompts["dog"][0] == "a dog barking"
    assert all(captions == prompts[labels[0]] for captions, labels in zip(manifest.table["captions"], manifest.table["labels"]))


def test_splits_depend_on_nothing_but_the_data(tmp_path):
    _write(tmp_path / "esc", takes=1)
    first = prepare("esc50", data_root=tmp_path / "esc", seed=0)
    assert first.fingerprint == prepare("esc50", data_root=tmp_path / "esc", seed=7).fingerprint
    part = prepare("esc50", data_root=tmp_path / "esc", seed=7, num_samples=20)
    whole = first.table.set_index("clip_id")["split"]
    assert len(part) == 20 and all(whole[c] == s for c, s in zip(part.table["clip_id"], part.table["split"]))
    assert prepare("esc50", data_root=tmp_path / "esc", val_share=0.0).splits == {"train": 64, "test": 16}
    whole = prepare("esc50", data_root=tmp_path / "esc", val_fold=3).table
    assert set(whole["fold"][whole["split"] == "val"]) == {3} and set(whole["fold"][whole["split"] == "test"]) == {4}
    groups = whole.groupby("split")["group"].agg(set)
    assert not groups["train"] & groups["val"] and not groups["val"] & groups["test"] and 3 not in set(whole["fold"][whole["split"] == "train"])
    with pytest.raises(ValueError, match="val_fold must be one of the folds"):
        prepare("esc50", data_root=tmp_path / "esc", val_fold=4)
    other = prepare("esc50", data_root=tmp_path / "esc", test_fold=1)
    assert set(other.table["fold"][other.table["split"] == "test"]) == {1}


def test_a_source_of_the_test_fold_is_in_no_other_split(tmp_path):
    _write(tmp_path / "esc", folds=4, takes=1, lines=["copy.wav,1,0,dog,True,40000,Z"])  # the source of a test clip, in fold 1
    soundfile.write(tmp_path / "esc/audio/copy.wav", 0.1 * np.sin(np.arange(1600)), 8000)
    manifest = prepare("esc50", data_root=tmp_path / "esc")
    assert "copy" not in set(manifest.table["clip_id"]) and manifest.info["left_out_shared_source"] == 1


def test_which_clips(tmp_path):
    _write(tmp_path / "esc", folds=4, sources=3, takes=1)
    for file in (tmp_path / "esc" / "audio").glob("*-39.wav"):
        file.unlink()
    assert prepare("esc50", data_root=tmp_path / "esc").info["absent"] == 12
    assert prepare("esc50", data_root=tmp_path / "esc").classes == CATEGORIES[:3]
    assert prepare("esc50", data_root=tmp_path / "esc", esc10_only=False).info["health"]["reasons"] == {"missing": 12}
    ten = prepare("esc50", data_root=tmp_path / "esc", esc10_only=True)
    assert ten.info["title"] == "ESC-10" and len(ten) == 36


def test_errors_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m lib.data download esc50.*data_root"):
        prepare("esc50")
    with pytest.raises(FileNotFoundError, match="meta/esc50.csv"):
        prepare("esc50", data_root=tmp_path)
    _write(tmp_path / "esc", folds=2, sources=1, takes=1)
    with pytest.raises(ValueError, match=r"test_fold must be one of the folds \[1, 2\]"):
        prepare("esc50", data_root=tmp_path / "esc")
    table = tmp_path / "esc" / "meta" / "esc50.csv"
    table.write_text(table.read_text() + "../x.wav,1,0,dog,True,1,A\n")
    with pytest.raises(ValueError, match="filename '../x.wav'"):
        prepare("esc50", data_root=tmp_path / "esc", test_fold=1)


def test_found_under_the_data_folder_as_the_archive_unpacks(tmp_path):
    rows = _write(tmp_path / "data" / "esc50" / "ESC-50-master", folds=4, sources=2, takes=1)
    assert len(prepare("esc50")) == len(rows)
    esc50.verify(tmp_path / "data" / "esc50", expected=len(rows))
    with pytest.raises(DownloadError, match="instead of 2000"):
        esc50.verify(tmp_path / "data" / "esc50")
    next((tmp_path / "data/esc50/ESC-50-master/audio").iterdir()).unlink()
    with pytest.raises(DownloadError, match="1 audio files missing"):
        esc50.verify(tmp_path / "data" / "esc50", expected=len(rows))


@pytest.mark.skipif(not (SHARED / "esc10").is_dir(), reason="the real ESC-10 clips are not here")
def test_real_esc10():
    manifest = prepare("esc50", data_root=SHARED / "esc10")
    assert len(manifest) == 320 and manifest.splits["test"] == 80 and manifest.info["title"] == "ESC-10"
    assert manifest.info["left_out_shared_source"] == 0 and manifest.info["health"]["reasons"] == {}
    assert (manifest.table.groupby("group")["split"].nunique() == 1).all()
    for s in ("train", "val", "test"):
        assert manifest.select(s).targets().sum(0).min() >= 2
    assert manifest.targets().sum(0).tolist() == [32] * 10
