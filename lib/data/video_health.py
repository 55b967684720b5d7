"""The health check of pictures: which videos of a manifest can be seen. `lib.data.health`, which listens only, comes before it.

A file that hangs or crashes its decoder costs a process, not the check. Verdicts are cached by (path, size, modification time).
"""
from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace

import numpy as np

from lib.data import health
from lib.data.inspection import Verdict
from lib.data.manifest import Manifest
from lib.data.workers import Lost, ask_all
from lib.progress import track
from lib.settings import data_dir

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
    stamps = {file: health._stamp(file) for file in files}
    cache_file = data_dir() / "manifests" / health._CACHE.format("-pictures")
    cache = health._load(cache_file)
    verdicts = {file: "missing" for file, stamp in stamps.items() if stamp is None}
    verdicts |= {file: cache[file][2].reason for file, stamp in stamps.items() if stamp and cache.get(file, ())[:2] == stamp}
    new, unsaved, saved = [file for file in stamps if file not in verdicts], {}, time.monotonic()
    with closing(ask_all("lib.data.video_inspection", ([file] for file in new), max(1, workers))) as answers:
        try:
            for (file,), answer in track(answers, len(new), "looking at videos"):
                verdicts[file] = ("hanging" if answer.hanging else "crashing") if isinstance(answer, Lost) else answer
                if verdicts[file] not in health.PASSING and health._can_be_kept(file):
                    unsaved[file] = (*stamps[file], Verdict(verdicts[file]))
                if time.monotonic() - saved > health._SAVE:
                    health._save(cache_file, unsaved)
                    unsaved, saved = {}, time.monotonic()
        finally:  # what was found is not lost to an interrupt
            health._save(cache_file, unsaved)
    return verdicts
