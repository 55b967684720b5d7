"""Several data sets as one, such as clotho+audiocaps+wavcaps: all of them give training clips, the first one also val and test.

A clip's id begins with the name of its data set, which is also its column `source`.
"""
from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pandas as pd

from lib import data
from lib.data.health import EXAMPLES
from lib.data.manifest import Manifest

ALIASES = {"clotho": "CLOTHO_v2.1", "audiocaps": "AUDIOCAPS", "wavcaps": "WavCaps", "audioset": "AudioSet"}


def prepare(data_root: Path | None, *, names: list[str], seed: int = 0, num_samples: int | None = None, workers: int = 0,
            **options) -> Manifest:
    """The manifest of a mixture.

    Args:
        data_root: folder that holds a folder for each data set, called by its name or as aac-datasets calls it; None: each where it is
            by itself.
        names: data sets.  seed, workers: as for `lib.data.prepare`.
        num_samples: at most this many clips before parts lose their val and test, the same number of each data set; None: all.
        options: each goes to the data sets that understand it.
    Returns:
        Manifest with the columns that all of them have. info["left_out"] counts val and test clips of all but the first, besides what
        each left out; info["parts"] holds the facts of each.
    """
    parts = []
    for name in names:
        own = {key: value for key, value in options.items() if key in data.data_set_options(name)}
        folders = [Path(data_root) / folder for folder in (name, ALIASES.get(name, name))] if data_root else [None]
        part = data.prepare(name, data_root=next((f for f in folders if f and f.is_dir()), folders[0]), seed=seed, workers=workers,
                            num_samples=num_samples and max(1, num_samples // len(names)), **own)
        parts.append(part)
    root = Path(os.path.commonpath([part.root for part in parts]))
    tables, left_out = [], Counter()
    for name, part in zip(names, parts):
        table = part.table
        if tables:
            held_out = table["split"] != "train"
            left_out[f"{name}: val and test, only the first data set has any"] = int(held_out.sum())
            table = table[~held_out]
        left_out.update({f"{name}: {reason}": count for reason, count in part.info.get("left_out", {}).items()})
        tables.append(table.assign(source=name, clip_id=[f"{name}/{clip}" for clip in table["clip_id"]],
                                   path=[(part.root / path).relative_to(root).as_posix() for path in table["path"]]))
    info = {"title": " + ".join(part.info.get("title", name) for name, part in zip(names, parts)), "health": _health(parts),
            "left_out": {reason: count for reason, count in left_out.items() if count},
            "parts": {name: {key: value for key, value in part.info.items() if key != "classes"} for name, part in zip(names, parts)}}
    return Manifest(pd.concat(tables, join="inner", ignore_index=True), "+".join(names), root, info)


def _health(parts: list[Manifest]) -> dict:
    """The counts of several health checks together."""
    every = [part.info["health"] for part in parts]
    reasons = Counter()
    for health in every:
        reasons.update(health["reasons"])
    examples = {reason: [name for health in every for name in health["examples"].get(reason, [])][:EXAMPLES] for reason in reasons}
    return {"checked": sum(h["checked"] for h in every), "kept": sum(h["kept"] for h in every), "reasons": dict(reasons), "examples": examples}
