"""VGGSound as a manifest: clips of 10 s with picture and sound, one label each (Chen et al., ICASSP 2020).

The table is described in `lib.data.vggsound_table`; the videos lie anywhere below a folder. The official test split stays as it
is. Validation is carved from train: all clips of a YouTube video together, by a hash of its id, so that a video is validation in
every subset of the table, or in none, and no backbone pretrained on a larger subset has seen the validation clips of a smaller
one. Training rows of a video that has test clips are left out.
"""
from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd

from lib.data import health, video_health
from lib.data.manifest import Manifest, sample
from lib.data.vggsound_table import SPLITS, find_videos, read_table, select_preset
from lib.files import user_path
from lib.settings import data_dir

NOT_THERE, REPEATED, SHARED = "file not there", "a repeated id and start", "of a video that is in test, too"
NAMED = 5  # classes that a message lists


def prepare(data_root: Path | None, *, seed: int = 0, num_samples: int | None = None, workers: int = 0,
            csv_path: str | None = None, video_dir: str | None = None, subset: str | None = None, val_share: float = 0.1,
            split_seed: int = 42) -> Manifest:
    """The manifest of VGGSound, or of the part of it that is there.

    Args:
        data_root: folder of the table and the videos; None: `vggsound` in the data folder.
        seed: chooses the clips when `num_samples` is given; splits do not depend on it.
        csv_path: the table, relative to data_root or to the current folder; None: vggsound.csv in data_root, or its only CSV.
        video_dir: folder of the videos, likewise; None: data_root. They may lie in folders below it.
        subset: one of `lib.data.vggsound_table.PRESETS`, drawn as published from the clips that are there; None: the whole table.
        val_share: share of the training videos that become validation, 0 to 0.9.
        split_seed: another number takes others.

    Returns:
        Manifest with the columns video (same as path), group (YouTube id) and start_second (of the clip in the YouTube video;
        `start` is that in the file, 0). The label is also the caption. In info: "classes" (sorted labels of
        the table, whether their files are there or not: the label map), "videos" {"train", "test": {"expected", "found"}}
        (rows of these classes, and those with a file), "left_out" {rule: rows}, "missing" {label: rows without a file}, "health".

    Raises:
        FileNotFoundError, ValueError: naming the table, line or folder, what was expected and how to get it.
    """
    if not 0 <= val_share <= 0.9:
        raise ValueError(f"val_share must be from 0 to 0.9, got {val_share}")
    root = data_dir() / "vggsound" if data_root is None else Path(data_root)
    if data_root is None and not root.is_dir() and None in (csv_path, video_dir):
        raise FileNotFoundError(f"VGGSound is not in {root}; set data_root to the folder that holds vggsound.csv and the videos "
                                "(<id>_<start in six digits>.mp4), or csv_path and video_dir. Table and videos: see "
                                "https://www.robots.ox.ac.uk/~vgg/data/vggsound/")
    table_file = _find_table(root) if csv_path is None else _resolve(root, csv_path)
    folder = root if video_dir is None else _resolve(root, video_dir)
    table, videos = read_table(table_file), find_videos(folder)
    repeated = table["clip_id"].duplicated()
    left_out, rows = Counter({REPEATED: int(repeated.sum())}), table[~repeated]
    if not set(rows["clip_id"]) & videos.keys():
        raise FileNotFoundError(f"{folder} holds none of the {len(rows)} videos of {table_file}, for example no "
                                f"{rows['clip_id'].iat[0]}.mp4; set video_dir to the folder that holds them")
    chosen = rows if subset is None else select_preset(rows, videos, subset)
    classes = sorted(set(chosen["label"]))
    rows = rows[rows["label"].isin(classes)]
    there = rows["clip_id"].isin(videos.keys())
    left_out[NOT_THERE] = int((~there).sum())
    counts = {split: {"expected": int((rows["split"] == split).sum()), "found": int((rows["split"][there] == split).sum())}
              for split in SPLITS}
    missing = Counter(rows["label"][~there])
    if missing:
        most = ", ".join(f"{label!r}: {count}" for label, count in missing.most_common(NAMED))
        warnings.warn(f"vggsound: {left_out[NOT_THERE]:,} of {len(rows):,} videos are not in {folder} ({most}"
                      f"{', ...' if len(missing) > NAMED else ''})", stacklevel=3)
    tested = set(table["video_id"][table["split"] == "test"])
    shared = (chosen["split"] == "train") & chosen["video_id"].isin(tested)
    left_out[SHARED] = int(shared.sum())
    kept = chosen[chosen["clip_id"].isin(videos.keys()) & ~shared]
    if not len(kept):
        raise ValueError(f"{table_file}: no clip is left; of {len(rows)} rows the files of {int(there.sum())} are in {folder}, "
                         f"and {left_out[SHARED]} rows are left out: {SHARED}")
    paths = [videos[clip_id] for clip_id in kept["clip_id"]]
    manifest_table = pd.DataFrame({
        "clip_id": kept["clip_id"].tolist(), "path": paths, "start": 0.0, "duration": 0.0,  # measured below
        "split": _splits(kept["video_id"], kept["split"], val_share, split_seed),
        "captions": [[label] for label in kept["label"]], "labels": [[label] for label in kept["label"]],
        "video": paths, "group": kept["video_id"].tolist(), "start_second": kept["start"].tolist(),
    })
    info = {"title": "VGGSound" if subset is None else f"VGGSound ({subset})", "classes": classes, "subset": subset,
            "source": "Chen et al., VGGSound, ICASSP 2020 (CC BY 4.0)", "table": table_file.name, "split_seed": split_seed,
            "videos": counts, "missing": dict(missing.most_common()),
            "left_out": {rule: count for rule, count in left_out.items() if count}}
    part = sample(Manifest(manifest_table, "vggsound", folder, info), num_samples, seed)
    good = video_health.check(health.check(health.measure(part, workers), workers), workers)
    # once more, as of a handful of videos the ones that were to be validation may all be bad
    published = good.table["split"].replace("val", "train")
    return replace(good, table=good.table.assign(split=_splits(good.table["group"], published, val_share, split_seed)))


def _splits(videos: pd.Series, published: pd.Series, val_share: float, split_seed: int) -> list[str]:
    """Split of each clip, from its YouTube id and its published split. Where no training video falls into validation, the one
    nearest to it is taken."""
    place = {video: int.from_bytes(hashlib.sha256(f"vggsound {split_seed} {video}".encode()).digest()[:8], "big") / 2**64
             for video in videos[published == "train"].unique()}
    held_out = {video for video, at in place.items() if at < val_share}
    if val_share > 0 and not held_out and len(place) > 1:
        held_out = {min(place, key=place.get)}
    return ["val" if split == "train" and video in held_out else split for split, video in zip(published, videos)]


def _resolve(root: Path, text: str) -> Path:
    """A path as a person gives it, relative to the data set's folder or to the current one."""
    path = user_path(text)
    return (root / path if (root / path).exists() else path).absolute()


def _find_table(root: Path) -> Path:
    tables = [root / "vggsound.csv"] if (root / "vggsound.csv").is_file() else sorted(root.glob("*.csv"))
    if len(tables) != 1:
        names = f"several tables ({', '.join(table.name for table in tables)}); name one by" if tables else "no table; get " \
            "https://www.robots.ox.ac.uk/~vgg/data/vggsound/vggsound.csv, or name yours by"
        raise FileNotFoundError(f"data_root: {root} holds {names} csv_path")
    return tables[0]
