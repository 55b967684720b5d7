"""Pairs of classes that a classifier takes for each other, to watch and hear."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lib.data.manifest import Manifest
from lib.display import clips
from lib.evaluation.classification import most_confused


def confused_pairs(counts, manifest: Manifest, rows: Sequence[int], target, predicted, *, pairs: int = 3, **where) -> clips.Html:
    """For each of the most confused pairs a clip of either class that was taken for the other, with its picture and sound.

    Args:
        counts: (C, C), rows true, columns predicted.  manifest: of the scored clips.
        rows: (n,) the manifest's rows of the scored clips.  target, predicted: (n,) their true and predicted classes.
        pairs: how many.  where: budget and folder, see `clips.gallery`.
    Raises:
        ValueError: rows, target and predicted of different lengths.
    """
    rows, target, predicted = (np.asarray(x) for x in (rows, target, predicted))
    if not len(rows) == len(target) == len(predicted):
        raise ValueError(f"{len(rows)} rows, {len(target)} true and {len(predicted)} predicted classes: one each a clip is needed")
    items, names = [], manifest.classes
    for pair in most_confused(counts, pairs):
        for true, said in ((pair["first"], pair["second"]), (pair["second"], pair["first"])):
            chosen = np.flatnonzero((target == true) & (predicted == said))
            if len(chosen):
                item = clips.clip(manifest, int(rows[chosen[0]]))
                items.append(item | {"title": f"{names[true]} taken for {names[said]}", "hit": False,
                                     "caption": f"{len(chosen)} of {int((target == true).sum())} clips of {names[true]}"})
    return clips.gallery(items, columns=2, **where)
