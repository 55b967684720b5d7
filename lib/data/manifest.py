"""One table for every data set: a row is a clip, and everything above the data layer sees only this table.

Convention: times are seconds from the start of the file, paths are relative to `root` with "/" between folders, captions
and labels are lists (possibly empty). A data set adds the columns its family needs (group, azimuth, video, ...).
"""
from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from pandas.api.extensions import ExtensionArray
import pyarrow as pa
import pyarrow.parquet as pq

COLUMNS = ("clip_id", "path", "start", "duration", "split", "captions", "labels")
SPLITS = ("train", "val", "test")
_METADATA = b"workbook_manifest"


@dataclass(frozen=True, eq=False)
class Manifest:
    """A data set as one table, checked on construction.

    Args:
        table: one row a clip with the columns `COLUMNS` (clip_id str, unique; path str; start and duration float seconds,
            finite and >= 0; split one of `SPLITS`; captions and labels list[str]) plus any others. The index is reset.
        name: name of the data set.
        root: folder that `path` is relative to (made absolute).
        info: JSON-able facts: "title", "classes", "taxonomy" {class: [coarse, ...]}, "templates" and "phrases"
            (see `class_prompts`), "health" (see lib.data.health).

    Raises:
        ValueError: naming the column and the clip that breaks a rule.
    """

    table: pd.DataFrame
    name: str
    root: Path
    info: dict = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "root", Path(self.root).expanduser().absolute())
        object.__setattr__(self, "table", self.table.reset_index(drop=True))
        _validate(self.table, self.name, self.info.get("classes"))

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the sha256 over name, classes and every cell; the same wherever the data set lies."""
        columns = sorted(self.table.columns)
        digest = hashlib.sha256(json.dumps([self.name, self.classes, columns]).encode())
        for values in zip(*(self.table[c] for c in columns)):
            # Parquet may read whole numbers back as floats (a gap in the column, mixed lists): 1 and 1.0 count as the same.
            cells = json.loads(json.dumps([_plain(v) for v in values]), parse_int=float)
            digest.update(json.dumps(cells, sort_keys=True).encode())
        return digest.hexdigest()[:16]

    @property
    def splits(self) -> dict[str, int]:
        """Number of clips of each split that has any, in the order train, val, test."""
        counts = self.table["split"].value_counts()
        return {s: int(counts[s]) for s in SPLITS if s in counts}

    @cached_property
    def classes(self) -> list[str]:
        """Class names in the order of the columns of `targets`: info["classes"], otherwise the sorted labels."""
        return list(self.info.get("classes") or sorted({label for labels in self.table["labels"] for label in labels}))

    def row(self, i: int) -> dict:
        """Row `i` as plain Python types (str, int, float, bool, list, dict; a missing value is None)."""
        return {column: _plain(cells[i]) for column, cells in self._columns.items()}

    @cached_property
    def _columns(self) -> dict[str, ExtensionArray | np.ndarray]:
        """The cells of each column: looking a column up in the table takes longer than reading a cell."""
        return {column: self.table[column].array for column in self.table.columns}

    def file(self, i: int) -> Path:
        """Absolute path of the file of row `i`."""
        return self.root / self.table["path"].iat[i]

    def targets(self) -> np.ndarray:
        """Multi-hot labels: (N, C) bool, columns in the order of `classes`."""
        column = {name: c for c, name in enumerate(self.classes)}
        hot = np.zeros((len(self), len(column)), dtype=bool)
        for i, labels in enumerate(self.table["labels"]):
            hot[i, [column[label] for label in labels]] = True
        return hot

    def select(self, split: str | list[str] | None = None, rows=None) -> "Manifest":
        """The clips of one or several splits, or of `rows` (indices or a bool mask), or of both (rows of the split's table).

        Name, root and info (so also the classes) stay. Raises ValueError for an unknown split.
        """
        table = self.table
        if split is not None:
            wanted = [split] if isinstance(split, str) else list(split)
            unknown = [s for s in wanted if s not in SPLITS]
            if unknown:
                raise ValueError(f"unknown split {unknown[0]!r}; the splits are {', '.join(SPLITS)}")
            table = table[table["split"].isin(wanted)]
        if rows is not None:
            rows = np.asarray(rows)
            table = table[rows] if rows.dtype == bool else table.iloc[rows.astype(np.int64)]
        # Classes that were derived from the labels are pinned, so that a part keeps the columns of the whole.
        return replace(self, table=table, info={**self.info, "classes": self.classes})

    def save(self, path: str | Path) -> Path:
        """Write one parquet file (name, root and info in its metadata), replacing an older one in one step."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pandas(self.table, preserve_index=False)
        facts = json.dumps({"name": self.name, "root": str(self.root), "info": self.info})
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), _METADATA: facts.encode()})
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        pq.write_table(table, part)
        os.replace(part, path)
        return path

    @classmethod
    def load(cls, path: str | Path, root: str | Path | None = None) -> "Manifest":
        """Read what `save` wrote; `root` replaces the stored folder when the data set was moved.

        Raises:
            FileNotFoundError: no such file. ValueError: a parquet file that is no manifest.
        """
        table = pq.ParquetFile(path).read()
        facts = (table.schema.metadata or {}).get(_METADATA)
        if facts is None:
            raise ValueError(f"{path}: not a manifest; make one with `python -m lib.data prepare`")
        facts = json.loads(facts)
        frame = table.to_pandas()
        for column in frame.columns:
            if frame[column].dtype == object:
                frame[column] = pd.Series([_plain(v) for v in frame[column]], index=frame.index, dtype=object)
        return cls(frame, facts["name"], Path(root or facts["root"]), facts["info"])


def sample(manifest: Manifest, num_samples: int | None, seed: int) -> Manifest:
    """At most `num_samples` clips, shared over the splits in proportion (at least one each where possible).

    A clip is chosen by a hash of (seed, clip_id): the same clips on every machine, a smaller sample is part of a larger
    one within each split, and a clip that leaves the data set moves no other. Row order is kept. None: all clips.
    """
    if num_samples is None or num_samples >= len(manifest):
        return manifest
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1 or None, got {num_samples}")
    splits = manifest.splits
    shares = {s: count * num_samples / len(manifest) for s, count in splits.items()}
    quota = {s: int(share) for s, share in shares.items()}
    by_remainder = sorted(splits, key=lambda s: quota[s] - shares[s])
    for s in by_remainder[: num_samples - sum(quota.values())]:
        quota[s] += 1
    for s in splits:  # a split that got nothing takes one from the largest, while that still has two
        largest = max(quota, key=quota.get)
        if quota[s] == 0 and quota[largest] > 1:
            quota[s], quota[largest] = 1, quota[largest] - 1
    rank = [hashlib.sha256(f"{seed}:{clip}".encode()).digest() for clip in manifest.table["clip_id"]]
    rows = []
    for s, count in quota.items():
        members = np.flatnonzero(manifest.table["split"] == s)
        rows += sorted(members, key=lambda i: rank[i])[:count]
    return manifest.select(rows=sorted(rows))


def class_prompts(manifest: Manifest) -> dict[str, list[str]]:
    """The texts that stand for each class: every template of info["templates"] filled with the class's phrase.

    Returns:
        {class: [text, ...]} in the order of `manifest.classes`; without templates the phrase alone, and without
        info["phrases"] the class name with spaces for "_". Data sets whose captions come from templates build them with
        `fill`, too, so that training captions and evaluation prompts cannot drift apart.
    """
    phrases = manifest.info.get("phrases", {})
    return {c: fill(manifest.info.get("templates") or ["{}"], phrases.get(c, c.replace("_", " "))) for c in manifest.classes}


def fill(templates: list[str], phrase: str) -> list[str]:
    """Each template with its "{}" replaced by `phrase` (which may itself hold braces)."""
    return [template.replace("{}", phrase) for template in templates]


def _validate(table: pd.DataFrame, name: str, classes: list[str] | None) -> None:
    missing = [c for c in COLUMNS if c not in table.columns]
    if missing:
        raise ValueError(f"manifest {name!r}: column {missing[0]!r} is missing; a manifest needs {', '.join(COLUMNS)}")

    def refuse(column: str, bad, expected: str) -> None:
        rows = np.flatnonzero(np.asarray(bad, dtype=bool))
        if len(rows):
            i = rows[0]
            raise ValueError(f"manifest {name!r}: column {column!r} of clip {table['clip_id'].iat[i]!r} must be {expected}, "
                             f"got {table[column].iat[i]!r}" + (f" ({len(rows)} such rows)" if len(rows) > 1 else ""))

    refuse("clip_id", [not isinstance(v, str) or not v for v in table["clip_id"]], "a text")
    refuse("clip_id", table["clip_id"].duplicated(), "unique")
    refuse("path", [not _is_relative(v) for v in table["path"]], "relative to the root, with / between folders and without ..")
    refuse("split", ~table["split"].isin(SPLITS), "one of " + ", ".join(SPLITS))
    for column in ("start", "duration"):
        values = pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        refuse(column, ~(np.isfinite(values) & (values >= 0)), "a number of seconds, finite and not negative")
    for column in ("captions", "labels"):
        refuse(column, [not isinstance(v, list) or any(not isinstance(t, str) for t in v) for v in table[column]],
               "a list of texts")
    if classes:
        known = set(classes)
        refuse("labels", [not known.issuperset(v) for v in table["labels"]], f"among the {len(known)} classes of info['classes']")


def _is_relative(path: object) -> bool:
    return isinstance(path, str) and bool(path) and not path.startswith("/") and ".." not in PurePosixPath(path).parts


def _plain(value: object) -> object:
    """A table cell as plain Python: arrays as lists, numpy scalars as numbers, missing values as None."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    elif isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return None if value is pd.NA or isinstance(value, float) and math.isnan(value) else value
