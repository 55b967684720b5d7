"""A folder of one's own audio, or of videos with sound, with or without a table of captions.

The table is `captions.csv` (or the only CSV in the folder, or the one that is named) with the columns file_name and caption,
or caption_1 ... caption_N, and optionally split and label (or labels, separated by ";"). A file may have several rows. Without
a table the caption is the file name in words and the label the name of the folder that a file lies in.
"""
from __future__ import annotations

import hashlib
import os
import re
import warnings
from pathlib import Path, PurePosixPath

import pandas as pd

from lib.data import health, video_health
from lib.data.captioned import read_csv
from lib.data.manifest import SPLITS, Manifest, sample
from lib.media.audio import SUFFIXES

SPLIT_NAMES = {name: split for split, names in {
    "train": ("train", "training", "development"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing", "eval", "evaluation"),
}.items() for name in names}


def prepare(data_root: Path | None, *, seed: int = 0, num_samples: int | None = None, workers: int = 0,
            captions: str | None = None, pictures: bool = False) -> Manifest:
    """The manifest of every audio file below `data_root` (or of those that the table names).

    Splits come from the table's column `split`, otherwise from folders named train, val and test directly below
    `data_root`, otherwise 80/10/10 from a hash of each file's path, so that adding files moves no other.

    Args:
        data_root: the folder; it must be given.
        seed: chooses the clips when `num_samples` is given.
        captions: path of the table, relative to `data_root`; None: captions.csv or the only CSV there, if any; "none": no table.
        pictures: True: a folder of videos. Only files with one of the endings mp4, mkv, webm and mov count, and of these the ones
            that can be heard and seen; the column `video` is their path.

    Returns:
        Manifest whose info counts files without a row, rows without a file and names that are no UTF-8 ("left_out"), and
        says where captions and splits came from.
    """
    if data_root is None:
        raise ValueError('data_root: dataset "folder" needs the folder of your audio files; set data_root')
    root = Path(data_root).expanduser().absolute()
    names, bad_names = listing(root)
    suffixes = video_health.SUFFIXES if pictures else SUFFIXES
    others, names = len(names), [name for name in names if os.path.splitext(name)[1].lower() in suffixes]
    if not names:
        raise ValueError(f"data_root: no {'video' if pictures else 'audio'} file in {root} or below; known endings are "
                         f"{' '.join(sorted(suffixes))}")
    table_file = _find_table(root, captions)
    left_out = {"names not in UTF-8": bad_names, "files that are no videos": others - len(names)}
    has_labels = False
    if table_file is None:
        rows = {name: {"captions": [_words(name)], "labels": _folder_label(name), "split": ""} for name in names}
    else:
        rows, lost, has_labels = _read_table(table_file, names)
        left_out |= {"files without a row": len(names) - len(rows), "rows without a file": lost}
        if not rows:
            raise ValueError(f"{table_file}: no file_name in it is an audio file below {root}; they must be relative to it")
    left_out = {reason: count for reason, count in left_out.items() if count}
    if left_out:
        warnings.warn(f"{root}: left out " + ", ".join(f"{count} {reason}" for reason, count in left_out.items()), stacklevel=2)
    split_from = _assign_splits(rows)
    if not has_labels and len({label for row in rows.values() for label in row["labels"]}) < 2:
        for row in rows.values():
            row["labels"] = []  # one folder around everything ("audio") says nothing about a file
    table = pd.DataFrame({
        "clip_id": list(rows),
        "path": list(rows),
        "start": 0.0,
        "duration": 0.0,  # measured below
        **{column: [row[column] for row in rows.values()] for column in ("split", "captions", "labels")},
    })
    info = {"title": root.name, "captions_from": table_file.name if table_file else "captions from file names",
            "splits_from": split_from, "files": len(names), "left_out": left_out}
    if pictures:
        table["video"] = table["path"]
    part = sample(Manifest(table, "folder", root, info), num_samples, seed)
    checked = health.check(health.measure(part, workers), workers)
    return video_health.check(checked, workers) if pictures else checked


def listing(root: Path) -> tuple[list[str], int]:
    """Audio files below `root` as sorted relative paths, without hidden ones; and how many have a name that is no UTF-8."""
    names, bad = [], 0
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if not f.startswith(".")]
        for file in files:
            if not file.startswith(".") and os.path.splitext(file)[1].lower() in SUFFIXES:
                name = Path(folder, file).relative_to(root).as_posix()
                if any("\ud800" <= letter <= "\udfff" for letter in name):  # how Python spells bytes that are no UTF-8
                    bad += 1  # parquet, JSON and HTML hold text only
                else:
                    names.append(name)
    return sorted(names), bad


def _find_table(root: Path, captions: str | None) -> Path | None:
    if captions == "none":
        return None
    if captions is not None:
        file = root / captions
        if not file.is_file():
            raise FileNotFoundError(f"captions: {file} does not exist; give a CSV relative to data_root, or None")
        return file
    tables = sorted(root.glob("*.csv"))
    if root / "captions.csv" in tables:
        return root / "captions.csv"
    if len(tables) > 1:
        raise ValueError(f"captions: {root} holds several CSV files ({', '.join(t.name for t in tables)}); name one by "
                         "`captions`, or call it captions.csv")
    return tables[0] if tables else None


def _read_table(file: Path, names: list[str]) -> tuple[dict[str, dict], int, bool]:
    """Rows by file name in the order of `names`, the number of table rows without a file, and whether it has labels."""
    table = read_csv(file, ())
    caption_columns = [c for c in table.columns if re.fullmatch(r"caption(_\d+)?", c)]
    if "file_name" not in table or not caption_columns:
        raise ValueError(f"{file}: needs the columns file_name and caption (or caption_1, caption_2, ...), "
                         f"has {', '.join(table.columns)}")
    by_base: dict[str, list[str]] = {}
    for name in names:
        by_base.setdefault(PurePosixPath(name).name, []).append(name)
    known, rows, lost = set(names), {}, 0
    for record in table.to_dict("records"):
        given = record["file_name"].removeprefix("./")
        matches = [given] if given in known else by_base.get(given, [])
        if len(matches) > 1:
            raise ValueError(f"{file}: file_name {given!r} fits {matches[0]!r} and {matches[1]!r}; give the relative path")
        if not matches:
            lost += 1
            continue
        row = rows.setdefault(matches[0], {"captions": [], "labels": [], "split": ""})
        row["captions"] += [c for c in (record[column].strip() for column in caption_columns) if c]
        labels = [label.strip() for label in (record.get("labels") or record.get("label") or "").split(";")]
        row["labels"] += [label for label in labels if label and label not in row["labels"]]
        split = record.get("split", "").strip().lower()
        if split not in SPLIT_NAMES and split:
            raise ValueError(f"{file}: split {split!r} of {given!r} must be one of {', '.join(SPLITS)}")
        split = SPLIT_NAMES.get(split, "")
        if row["split"] and split != row["split"]:
            raise ValueError(f"{file}: {given!r} is in the splits {row['split']!r} and {split!r}; one file belongs to one split")
        row["split"] = split
    has_labels = "label" in table or "labels" in table
    rows = {name: rows[name] for name in names if name in rows}
    for name, row in rows.items():
        if not has_labels:
            row["labels"] = _folder_label(name)
    return rows, lost, has_labels


def _assign_splits(rows: dict[str, dict]) -> str:
    """Fill in the empty splits; returns in words where the splits came from."""
    if any(row["split"] for row in rows.values()):
        empty = [name for name, row in rows.items() if not row["split"]]
        if empty:
            raise ValueError(f"the table has a split for some files, none for {empty[0]!r}; fill in the column or remove it")
        return "column split"
    by_folder = {name: SPLIT_NAMES.get(name.partition("/")[0].lower()) if "/" in name else None for name in rows}
    if all(by_folder.values()):
        for name, split in by_folder.items():
            rows[name]["split"] = split
        return "folder names"
    place = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 for name in rows}
    for name, value in place.items():
        rows[name]["split"] = "train" if value < 0.8 else "val" if value < 0.9 else "test"
    order = sorted(rows, key=place.get)
    if len(order) >= 3:  # of a handful of files, the ones nearest to an empty part fill it
        for split, nearest in (("test", order[-1]), ("val", order[-2]), ("train", order[0])):
            if all(row["split"] != split for row in rows.values()):
                rows[nearest]["split"] = split
    return "hash of the file names, 80/10/10"


def _folder_label(name: str) -> list[str]:
    folders = list(PurePosixPath(name).parts[:-1])
    if folders and folders[0].lower() in SPLIT_NAMES:
        folders.pop(0)
    return folders[-1:]


def _words(name: str) -> str:
    stem = PurePosixPath(name).stem
    return re.sub(r"[\W_]+", " ", stem).strip() or stem
