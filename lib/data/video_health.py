"""The health check of pictures: which videos of a manifest can be seen. `lib.data.health`, which listens only, comes before it.

A file that hangs or crashes its decoder costs a process, not the check. Verdicts are cached by (path, size, modification time).
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np

from lib.data import health
from lib.data.inspection import Verdict
from lib.data.manifest import Manifest
from lib.data.workers import Lost, ask_all

SUFFIXES = (".mp4", ".mkv", ".webm", ".mov")
REASONS = health.REASONS | {"no pictures": "it has no video stream that decodes from its first to its last frame"}


def check(manifest: Manifest, workers: int = 0) -> Manifest:
    """The manifest without the clips whose `video` shows no pictures, with the counts added to info["health"].

    Args:
        manifest: with the column `video` (paths relative to its root), as `lib.data.health.check` returned it.
        workers: processes that decode (at least one is started).

    Raises:
        ValueError: not a single clip can be used.
    """
    table, before = manifest.table, manifest.info["health"]
    found = inspect((str(manifest.root / path) for path in table["video"].unique()), workers)
    reasons = np.array([found[str(manifest.root / path)] for path in table["video"]], dtype=object)
    counts = Counter(before["reasons"]) + Counter(reasons[reasons != ""])
    bad = [reason for reason in REASONS if counts[reason]]
    examples = {reason: [*before["examples"].get(reason, []), *table["video"][reasons == reason].unique()] for reason in bad}
    if not (reasons == "").any():
        raise ValueError(f"data set {manifest.name!r} in {manifest.root}: none of its {len(table)} clips with sound can be seen, "
                         f"for example {table['video'].iat[0]}: {reasons[0]} ({REASONS[reasons[0]]})")
    kept = manifest.select(rows=reasons == "")
    return replace(kept, info=kept.info | {"health": before | {
        "kept": len(kept), "reasons": {reason: counts[reason] for reason in bad},
        "examples": {reason: paths[:health.EXAMPLES] for reason, paths in examples.items()}}})


def inspect(files: Iterable[str], workers: int = 0) -> dict[str, str]:
    """Absolute path -> "" for a video that can be seen, otherwise a key of `REASONS`."""
    verdicts = health.cached(files, "-pictures", partial(_look, workers=workers), "looking at videos")
    return {file: verdict.reason for file, verdict in verdicts.items()}


def _look(files: list[str], workers: int) -> Iterator[tuple[str, Verdict]]:
    with closing(ask_all("lib.data.video_inspection", ([file] for file in files), max(1, workers))) as answers:
        for (file,), answer in answers:
            yield file, Verdict(("hanging" if answer.hanging else "crashing") if isinstance(answer, Lost) else answer)
