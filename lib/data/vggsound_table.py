"""The table of VGGSound and subsets of it: about 200,000 clips of 10 s from YouTube in 309 classes (Chen et al., ICASSP 2020).

`vggsound.csv` has no header; its columns are the YouTube id, the second at which the clip starts, the label (23 of them hold
commas) and `train` or `test`. Ids are text: some begin with "-", some could pass for numbers or for "NA". The key of a clip is
(id, start), and its file is called <id>_<start in six digits>.mp4.

The subsets are drawn exactly as the published ones were, so that those of a seed of 42 come out row for row.
"""
from __future__ import annotations

import csv
import os
import random
import re
import warnings
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from lib.files import write_text

COLUMNS = ("video_id", "start", "label", "split")
SPLITS = ("train", "test")
SEED = 42  # of the published subsets
# Clips of a class are in the names: 8 + 2 and 36 + 4. There are 309 classes: 310 takes all of them in the order of the table.
PRESETS = {
    "subset_10": {"num_classes": 310, "num_train": 8, "num_test": 2},
    "subset_40": {"num_classes": 310, "num_train": 36, "num_test": 4},
    "10_classes": {"num_classes": 10},
}


def read_table(file: Path, *, drop_bad_starts: bool = False) -> pd.DataFrame:
    """The rows of a table in VGGSound's format, in its order.

    Args:
        drop_bad_starts: leave out rows whose start is no whole number of seconds, with a warning; otherwise they are an error.

    Returns:
        Columns video_id (str), start (int, seconds), label (str), split ("train" or "test") and clip_id ("<id>_<start>").

    Raises:
        FileNotFoundError: no such file. ValueError: naming the file and the line that is not as published.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; give the path of vggsound.csv, which is at "
                                "https://www.robots.ox.ac.uk/~vgg/data/vggsound/vggsound.csv")
    rows, bad = [], []
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True)
            for row in filter(None, reader):
                place = f"{file}, line {reader.line_num}"
                if len(row) != len(COLUMNS):
                    raise ValueError(f"{place}: has {len(row)} columns, expected {len(COLUMNS)} (id, start, label, split); "
                                     "labels with commas must be quoted")
                video_id, start, label, split = row
                if not re.fullmatch(r"\d+(\.0*)?", start):
                    if not drop_bad_starts:
                        raise ValueError(f"{place}: start {start!r} must be a whole number of seconds; the table has no header "
                                         "(remove it), and `python -m lib.data vggsound clean` drops bad rows")
                    bad.append(reader.line_num)
                    continue
                if not re.fullmatch(r"[\w-]+", video_id, re.ASCII):
                    raise ValueError(f"{place}: YouTube id {video_id!r} must consist of letters, digits, - and _")
                if split not in SPLITS or not label:
                    raise ValueError(f"{place}: must have a label, and train or test as its split, got {label!r} and {split!r}")
                rows.append((video_id, int(float(start)), label, split))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not readable as CSV ({error}); correct it, or download it again") from error
    if bad:
        warnings.warn(f"{file}: dropped {len(bad)} rows whose start is no whole number of seconds, the first in line {bad[0]}",
                      stacklevel=2)
    if not rows:
        raise ValueError(f"{file}: holds no rows; expected id, start, label and split in each")
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.assign(clip_id=[f"{video_id}_{start:06d}" for video_id, start in zip(table["video_id"], table["start"])])


def write_table(file: Path, table: pd.DataFrame) -> Path:
    """Write a table as `read_table` reads it: no header, in one step. Returns the path."""
    text = _Lines()
    csv.writer(text, lineterminator="\n").writerows(table[list(COLUMNS)].itertuples(index=False))
    return write_text(file, "".join(text))


class _Lines(list):
    write = list.append


def find_videos(folder: Path, file_extension: str = ".mp4") -> dict[str, str]:
    """Clip id -> path relative to `folder` (/ between folders) of every video in it or below, links followed.

    Raises: FileNotFoundError: no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give the one that holds the videos of VGGSound (<id>_<start in six "
                                f"digits>{file_extension})")
    found: dict[str, str] = {}
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and real not in seen)  # links may make a circle
        seen.add(real)
        for name in names:
            if name.endswith(file_extension):
                found.setdefault(name.removesuffix(file_extension), Path(place, name).relative_to(folder).as_posix())
    return found


def draw_classes(table: pd.DataFrame, num_classes: int, seed: int = SEED) -> list[str]:
    """`num_classes` labels drawn by Python's `random` from those of the table in order of first appearance; of too few, all of
    them in that order, with a warning."""
    labels = list(dict.fromkeys(table["label"]))
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if num_classes > len(labels):
        warnings.warn(f"num_classes: {num_classes} classes were asked for, the table has {len(labels)}; all of them are taken",
                      stacklevel=3)
        return labels
    return random.Random(seed).sample(labels, num_classes)


def select_subset(table: pd.DataFrame, present: Collection[str], classes: list[str], *, num_train: int = 5, num_test: int = 2,
                  seed: int = SEED) -> pd.DataFrame:
    """A few clips of each class: class by class in the order of `classes`, the training clips before the test clips.

    Args:
        present: ids of the clips that there are files of; only these are drawn.
        num_train, num_test: clips of a class; 0: none of that split. Where there are no more than asked for, all are taken, in
            the order of the table; otherwise pandas draws them by `seed`, the same positions in classes of equal size. So a
            smaller number is a part of a larger one.
    """
    wanted = {"train": num_train, "test": num_test}
    for split, count in wanted.items():
        if count < 0:
            raise ValueError(f"num_{split} must not be negative, got {count}")
    there = table[table["clip_id"].isin(set(present))]
    blocks = dict(iter(there.groupby(["label", "split"], sort=False)))
    drawn = []
    for label in classes:
        for split, count in wanted.items():
            block = blocks.get((label, split), there[:0])
            drawn.append(block if len(block) <= count else block.sample(n=count, random_state=seed))
    return pd.concat(drawn).reset_index(drop=True)


def select_classes(table: pd.DataFrame, present: Collection[str], classes: list[str]) -> pd.DataFrame:
    """All clips of these classes that there are files of (`present`: their ids), in the order of the table."""
    return table[table["label"].isin(classes) & table["clip_id"].isin(set(present))].reset_index(drop=True)


def select_preset(table: pd.DataFrame, present: Collection[str], name: str) -> pd.DataFrame:
    """One of `PRESETS`, as published. ValueError for an unknown name."""
    if name not in PRESETS:
        raise ValueError(f"subset must be one of {', '.join(PRESETS)}, or None for the whole table, got {name!r}")
    sizes = dict(PRESETS[name])
    classes = draw_classes(table, sizes.pop("num_classes"))
    return select_subset(table, present, classes, **sizes) if sizes else select_classes(table, present, classes)
