"""Bad media is counted, not hidden: which files of a manifest decode to usable sound, and why the others do not.

Each file (or row of a parquet file) is decoded once, from end to end unless a data set asks for less, in a process that it may hang
or crash; the verdict is cached by (path, size, modification time) as it comes, so that checking again, also after a kill, or checking
another manifest over the same files, costs a look at the folder.
"""
from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from lib.data.inspection import TRUNCATED, Verdict, inspect_all
from lib.data.manifest import Manifest
from lib.files import alone
from lib.media import shards
from lib.progress import track
from lib.settings import data_dir

REASONS = {
    "missing": "there is no such file, or no such row in it",
    "empty": "0 bytes, or no sample of sound",
    "unreadable": "no decoder recognises it as audio (or it is a folder)",
    "no sample rate": "an array, and nothing says its sample rate (set array_sample_rate)",
    "truncated": "it breaks off, or is damaged, before the length that its header or the table states",
    "hanging": "its decoder got stuck and was ended after some seconds",
    "crashing": "its decoder crashed, or took more memory than a clip can need",
    "nan": "it holds values that are no finite numbers",
    "silent": "it never moves by more than 1e-4 of full scale (-80 dB)",
    "too short": "shorter than min_seconds",
}
PASSING = ("hanging", "crashing")  # may have been the disk or the memory of a bad moment: looked at again the next time
EXAMPLES = 5
_SAVE = 15.0  # seconds between two savings of the cache
_CACHE = "health-1{}.parquet"  # the number changes with the rules above, so that old verdicts are not used


def check(manifest: Manifest, workers: int = 0, min_seconds: float = 0.1, seconds: float | None = None) -> Manifest:
    """The manifest without the clips that cannot be used, with the counts in info["health"].

    Args:
        workers: processes that decode (at least one is started: a file may hang or crash its decoder).
        min_seconds: shorter clips are left out.
        seconds: decode only the first ones of each file (a probe, for hundreds of thousands of long files); None: from end to end.

    Returns:
        A manifest whose info["health"] is {"checked": clips, "kept": clips, "reasons": {reason: clips},
        "examples": {reason: [up to 5 paths]}}.

    Raises:
        ValueError: not a single clip can be used.
    """
    table = manifest.table
    files = {path: str(manifest.root / path) for path in table["path"].unique()}
    verdicts = inspect(files.values(), workers, seconds)
    reasons = []
    for path, start, duration in zip(table["path"], table["start"], table["duration"]):
        verdict = verdicts[files[path]]
        reason = verdict.reason
        if not reason and min(duration, verdict.duration - start) < min_seconds - 1e-6:
            reason = "too short"
        if not reason and verdict.duration < TRUNCATED * (start + duration):
            reason = "truncated"
        reasons.append(reason)
    reasons = np.array(reasons, dtype=object)
    bad = [r for r in REASONS if (reasons == r).any()]
    health = {
        "checked": len(table),
        "kept": int((reasons == "").sum()),
        "reasons": {r: int((reasons == r).sum()) for r in bad},
        "examples": {r: table["path"][reasons == r].unique()[:EXAMPLES].tolist() for r in bad},
    }
    if health["checked"] and not health["kept"]:
        worst = max(bad, key=health["reasons"].get)
        raise ValueError(f"data set {manifest.name!r} in {manifest.root}: none of its {len(table)} clips can be used; most are "
                         f"{worst} ({REASONS[worst]}), for example {health['examples'][worst][0]}")
    kept = manifest.select(rows=reasons == "")
    return replace(kept, info={**kept.info, "health": health})


def measure(manifest: Manifest, workers: int = 0, seconds: float | None = None) -> Manifest:
    """The manifest with `duration` set to what decodes after `start` (with `seconds`, see `check`, to what headers state), for data
    sets whose table does not state it."""
    verdicts = inspect([str(manifest.file(i)) for i in range(len(manifest))], workers, seconds)
    durations = [max(0.0, verdicts[str(manifest.file(i))].duration - start) for i, start in enumerate(manifest.table["start"])]
    return replace(manifest, table=manifest.table.assign(duration=durations))


def inspect(files: Iterable[str], workers: int = 0, seconds: float | None = None) -> dict[str, Verdict]:
    """The verdict on each file (absolute paths), from the cache where size and modification time are unchanged."""
    suffix = "" if seconds is None else f"-first-{seconds:g}-s"
    return cached(files, suffix, lambda new: inspect_all(new, workers, seconds), "health check")


def cached(files: Iterable[str], suffix: str, look: Callable[[list[str]], Iterator[tuple[str, Verdict]]],
           title: str) -> dict[str, Verdict]:
    """The verdict on each file (absolute paths), "missing" without a look; looked at are those that are new or have changed.

    Args:
        suffix: of the cache's name; one for each kind of look.
        look: a generator of pairs of a file and its verdict, as they come, for the files that it is given.
        title: of the progress bar.
    """
    stamps = {file: _stamp(file) for file in files}  # each file once
    cache_file = data_dir() / "manifests" / _CACHE.format(suffix)
    cache = _load(cache_file)
    verdicts, new = {}, []
    for file in stamps:
        size, changed, verdict = cache.get(file, (None, None, None))
        if stamps[file] is None:
            verdicts[file] = Verdict("missing")
        elif (size, changed) == stamps[file]:
            verdicts[file] = verdict
        else:
            new.append(file)
    unsaved, saved = {}, time.monotonic()
    with closing(look(new)) as found:
        try:
            for file, verdict in track(found, len(new), title):
                verdicts[file] = verdict
                if verdict.reason not in PASSING and _can_be_kept(file):
                    unsaved[file] = (*stamps[file], verdict)
                if time.monotonic() - saved > _SAVE:
                    _save(cache_file, unsaved)
                    unsaved, saved = {}, time.monotonic()
        finally:  # what was found is not lost to an interrupt
            _save(cache_file, unsaved)
    return verdicts


def _can_be_kept(file: str) -> bool:
    """Whether a verdict may go into the cache: permission changes without a trace, and bytes that are no UTF-8 cannot be written down."""
    return os.access(_on_disk(file), os.R_OK) and not any("\ud800" <= letter <= "\udfff" for letter in file)


def _stamp(file: str) -> tuple[int, int] | None:
    try:
        status = os.stat(_on_disk(file))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_size, status.st_mtime_ns


def _on_disk(file: str) -> str:
    """The file that holds a clip: itself, or the parquet file that an address of a row names."""
    row = shards.parse(file)
    return row.file if row else file


def _load(cache_file: Path) -> dict[str, tuple[int, int, Verdict]]:
    if not cache_file.is_file():
        return {}
    table = pd.read_parquet(cache_file)
    return {file: (size, changed, Verdict(reason, duration))
            for file, size, changed, reason, duration in table.itertuples(index=False)}


def _save(cache_file: Path, new: dict[str, tuple[int, int, Verdict]]) -> None:
    """Add to the cache; several processes may do so at the same time."""
    if not new:
        return
    with alone(cache_file.with_suffix(".lock"), "the cache of the health check"):
        rows = [(file, size, changed, verdict.reason, verdict.duration) for file, (size, changed, verdict) in (_load(cache_file) | new).items()]
        part = cache_file.with_name(f"{cache_file.name}.{os.getpid()}.part")
        pd.DataFrame(rows, columns=["file", "size", "changed", "reason", "duration"]).to_parquet(part, index=False)
        os.replace(part, cache_file)
