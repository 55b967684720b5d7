"""What the captioned data sets share: tables and audio files found in whatever folder layout they were unpacked to, clips left out by
rule with their counts, and the manifest at the end."""
from __future__ import annotations

import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pandas as pd

from lib.data import health
from lib.data.manifest import Manifest, sample
from lib.media.audio import SUFFIXES
from lib.settings import data_dir


def find(name: str, data_root: Path | None) -> Path:
    """Folder of a data set: `data_root`, or where `python -m lib.data download NAME` puts it. FileNotFoundError: with that command."""
    root = data_dir() / name if data_root is None else Path(data_root).expanduser().absolute()
    if not root.is_dir():
        raise FileNotFoundError(f"{name} is not in {root}; run `python -m lib.data download {name}`, or set data_root to the folder that "
                                "holds its audio and its tables")
    return root


def plain(stem: str) -> str:
    """A file's stem as it is compared: some published names end in a blank, which some programs drop, and some file systems
    store an accent as a character of its own."""
    return unicodedata.normalize("NFC", stem).strip()


class Files:
    """Every audio file and table below a folder, from one walk that follows links (data often lies on another disk).

    Args:
        root: the folder.  part: names the part of the data set (a split, a source) that a folder's name stands for, or None.
        key: what identifies a file within its part, from the stem of its name.
    """

    def __init__(self, root: Path, part: Callable[[str], str | None], key: Callable[[str], str] = str):
        self.root, self.key = root, key
        self.audio: dict[tuple[str, str], str] = {}
        self.tables: dict[str, Path] = {}
        seen: set[str] = set()
        for folder, folders, files in os.walk(root, followlinks=True):
            real = os.path.realpath(folder)
            folders[:] = sorted(f for f in folders if not f.startswith(".") and real not in seen)    # a link may lead in a circle
            seen.add(real)
            inside = next((p for p in map(part, reversed(Path(folder).relative_to(root).parts)) if p), None)
            for file in sorted(files):
                stem, suffix = os.path.splitext(file)
                if suffix.lower() in SUFFIXES and inside and not file.startswith("."):
                    self.audio.setdefault((inside, key(stem)), Path(folder, file).relative_to(root).as_posix())
                elif suffix in (".csv", ".json"):
                    self.tables.setdefault(file, Path(folder, file))

    def path(self, part: str, name: str) -> str | None:
        """Path relative to the root of the file that a table calls `name` (whatever its ending is), or None."""
        return self.audio.get((part, self.key(PurePosixPath(name).stem)))

    def table(self, *names: str) -> Path | None:
        """The first of these tables that is there, or None."""
        return next((self.tables[name] for name in names if name in self.tables), None)


def read_csv(file: Path, columns: Iterable[str]) -> pd.DataFrame:
    """A CSV file in which everything is text (ids keep their zeros, a caption "NA" is a caption).

    Raises:
        ValueError: naming the file and a column that is missing, or what is no CSV in it.
    """
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not readable as CSV ({error}); correct it, or download it again") from error
    missing = [c for c in columns if c not in table]
    if missing:
        raise ValueError(f"{file}: column {missing[0]!r} is missing, it has {', '.join(table.columns)}; the published table has "
                         f"{', '.join(columns)}")
    return table


def manifest(name: str, root: Path, rows: list[dict], left_out: Counter, info: dict, *, seed: int, num_samples: int | None, workers: int,
             listed: dict[str, int], max_seconds: float | None = None, probe_seconds: float | None = None) -> Manifest:
    """The checked manifest of a captioned data set.

    Args:
        rows: dicts with clip_id, path (None: there is no such file), split, captions and, where known, seconds.
        left_out: reason -> clips that were left out so far; goes into info["left_out"] with what is left out here.
        info: see `Manifest`; info["expected"] are the published numbers of clips of each part.
        listed: those that the tables hold; goes into info["found"], with a warning where there are fewer.
        max_seconds: longer clips are left out; None: none.
        probe_seconds: decode only so much of every file in the health check; None: all of it.
    """
    info = info | {"found": {part: listed.get(part, 0) for part in info["expected"]}}
    fewer = [f"{info['found'][part]:,} of {published:,} ({part})" for part, published in info["expected"].items()
             if info["found"][part] < published]
    if fewer:
        warnings.warn(f"{name}: the tables in {root} hold fewer clips than published: {', '.join(fewer)}", stacklevel=3)
    left_out = Counter(left_out)
    left_out["without a caption"] += sum(not row["captions"] for row in rows)
    rows = [row for row in rows if row["captions"]]
    absent = sum(row["path"] is None for row in rows)
    left_out["file not there"] += absent
    rows = [row for row in rows if row["path"] is not None]
    if not rows:
        raise FileNotFoundError(f"{root} holds none of the {absent} audio files of {name}; run `python -m lib.data download {name}`, or set "
                                "data_root to the folder that holds them")
    if max_seconds is not None:         # by the table first: what is too long need not be decoded
        too_long = [row for row in rows if (row.get("seconds") or 0) > max_seconds]
        left_out[f"longer than {max_seconds:g} s"] += len(too_long)
        rows = [row for row in rows if not (row.get("seconds") or 0) > max_seconds]        # NaN is no length: measured below
    table = pd.DataFrame({"clip_id": [row["clip_id"] for row in rows], "path": [row["path"] for row in rows], "start": 0.0, "duration": 0.0,
                          "split": [row["split"] for row in rows], "captions": [row["captions"] for row in rows],
                          "labels": [[] for _ in rows]})
    chosen = sample(Manifest(table, name, root, info), num_samples, seed)
    checked = health.check(health.measure(chosen, workers, probe_seconds), workers, seconds=probe_seconds)
    if max_seconds is not None:
        short = checked.table["duration"].to_numpy() <= max_seconds
        left_out[f"longer than {max_seconds:g} s"] += int((~short).sum())
        checked = checked.select(rows=short)
    left_out = {reason: int(count) for reason, count in left_out.items() if count}
    if absent:
        warnings.warn(f"{name}: {absent} of {absent + len(rows)} audio files are not in {root}", stacklevel=3)
    return replace(checked, info=checked.info | {"left_out": left_out})
