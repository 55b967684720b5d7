"""Common Voice: sentences read aloud by volunteers, a corpus for each language (Ardila et al., LREC 2020; CC0).

Published layout: {corpus}/{language}/ with the folder clips/ (mp3) and tables train.tsv, dev.tsv and test.tsv, which alone decide what
is train, val and test: clips/ holds far more (other.tsv, invalidated.tsv, all takes of a sentence), and whoever reads it whole trains
on the test clips. The corpus is handed out to a person who agrees to its terms, so there is no download here.
"""
from __future__ import annotations

import csv
import os
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd

from lib.data import captioned
from lib.data.manifest import Manifest
from lib.media.audio import SUFFIXES
from lib.settings import data_dir

TABLES = {"train": "train.tsv", "val": "dev.tsv", "test": "test.tsv"}
COLUMNS = ("client_id", "path", "sentence")
SPEAKER_DIGITS = 16         # of the 128 of an id: enough to tell people apart


def prepare(data_root: Path | None, *, seed: int = 0, num_samples: int | None = None, workers: int = 0,
            language: str | None = None, probe_seconds: float | None = 1.0) -> Manifest:
    """The manifest of one language of Common Voice, or of the splits whose tables are there.

    Args:
        data_root: folder of a language, or of a corpus of several; None: `commonvoice` in the data folder.
        seed: chooses the clips when `num_samples` is given.
        language: name of the language's folder, such as "en"; None: the only one there.
        probe_seconds: how much of every file the health check decodes; None: all of it.

    Returns:
        Manifest whose clip ids are the names of the files, with the sentence as caption and the column speaker. info["language"],
        and info["left_out"] with the counts of missing files, of rows without a sentence, and of clips of speakers who are also in
        a later one of train, val, test (none in the published tables).

    Raises:
        FileNotFoundError: no tables, or no clips. ValueError: a table that is not as published, or a clip in two of them.
    """
    root = _find(data_root, language)
    tables = {split: _read(root / name) for split, name in TABLES.items() if (root / name).is_file()}
    _refuse_twice({TABLES[split]: table for split, table in tables.items()}, root)
    with os.scandir(root / "clips") as entries:         # a million names: no more than the names is asked for
        files = {os.path.splitext(e.name)[0]: e.name for e in entries if os.path.splitext(e.name)[1].lower() in SUFFIXES}
    left_out, rows, speakers, later = Counter(), [], {}, set()
    for split in reversed([s for s in TABLES if s in tables]):
        table = tables[split]
        shared = table["client_id"].isin(later)
        left_out["spoken by someone in a later split"] += int(shared.sum())
        later |= set(table["client_id"])
        part = []
        for client, path, sentence in table.loc[~shared, list(COLUMNS)].itertuples(index=False):
            file = files.get(_stem(path))
            speakers[path] = client[:SPEAKER_DIGITS]
            part.append({"clip_id": path, "path": file and f"clips/{file}", "split": split,
                         "captions": [sentence] if sentence else []})
        rows = part + rows
    if not any(row["path"] for row in rows):
        raise FileNotFoundError(f"{root / 'clips'} holds none of the {len(rows):,} clips of the tables beside it; unpack the archive of "
                                "the language again")
    if left_out["spoken by someone in a later split"]:
        warnings.warn(f"commonvoice: {left_out['spoken by someone in a later split']:,} clips were left out, as their speakers are in "
                      "a later one of train, val and test, too", stacklevel=2)
    info = {"title": f"Common Voice {root.name}", "source": "Ardila et al., Common Voice, 2020 (CC0)", "language": root.name,
            "expected": {}}
    manifest = captioned.manifest("commonvoice", root, rows, left_out, info, seed=seed, num_samples=num_samples, workers=workers,
                                  listed={}, probe_seconds=probe_seconds)
    return replace(manifest, table=manifest.table.assign(speaker=[speakers[clip] for clip in manifest.table["clip_id"]]))


def _find(data_root: Path | None, language: str | None) -> Path:
    """The folder of a language: one with clips/ and a table of a split, at most two folders below the root."""
    start = (data_dir() / "commonvoice" if data_root is None else Path(data_root)).absolute()
    found = [folder for depth in ("", "*/", "*/*/") for folder in sorted(start.glob(depth) if depth else [start])
             if (folder / "clips").is_dir() and any((folder / name).is_file() for name in TABLES.values())]
    chosen = found if language is None else [folder for folder in found if folder.name == language]
    if len(chosen) > 1:
        which = ", ".join(folder.relative_to(start).as_posix() for folder in chosen)
        raise ValueError(f"language: {start} holds several ({which}); set language to the name of one"
                         + ("" if language is None else " and data_root to one corpus"))
    if found and not chosen:
        raise FileNotFoundError(f"language: {language!r} is not in {start}; there is {', '.join(folder.name for folder in found)}")
    if not chosen:
        raise FileNotFoundError(f"{start} holds no folder with clips/ and {', '.join(TABLES.values())} (validated.tsv does not tell "
                                "train from test); get a language of Common Voice from commonvoice.mozilla.org, unpack it, and set "
                                "data_root to its folder")
    return chosen[0]


def _read(file: Path) -> pd.DataFrame:
    """A table as text. Sentences hold single quotation marks of all kinds, so none of them quotes anything."""
    try:
        table = pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig", quoting=csv.QUOTE_NONE)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not readable as a table with tabs ({error}); unpack the archive again") from error
    missing = [c for c in COLUMNS if c not in table]
    if missing:
        raise ValueError(f"{file}: column {missing[0]!r} is missing, it has {', '.join(table.columns)}; the published table has "
                         f"{', '.join(COLUMNS)} and more")
    outside = [name for name in table["path"] if not name or "/" in name or "\\" in name or name == ".."]
    if outside:
        raise ValueError(f"{file}: path {outside[0]!r} must be the name of a file in clips/")
    return table.assign(sentence=table["sentence"].str.strip())


def _refuse_twice(tables: dict[str, pd.DataFrame], root: Path) -> None:
    where: dict[str, str] = {}
    for name, table in tables.items():
        for path in table["path"]:
            if _stem(path) in where:
                raise ValueError(f"{root}: clip {path!r} is in {where[_stem(path)]} and in {name}; a clip belongs to one row of one split, "
                                 "correct the tables")
            where[_stem(path)] = name


def _stem(path: str) -> str:
    """A clip's name without its ending, which tables of old releases do not give."""
    stem, suffix = os.path.splitext(path)
    return stem if suffix.lower() in SUFFIXES else path
