"""Bad media is counted, not hidden: which files of a manifest decode to usable sound, and why the others do not.

Each file is decoded once from end to end; the verdict is cached by (path, size, modification time), so that checking
again, or checking another manifest over the same files, costs a look at the folder.
"""
from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lib.data.manifest import Manifest
from lib.media import audio
from lib.progress import track
from lib.settings import data_dir

REASONS = {
    "missing": "there is no such file",
    "empty": "0 bytes, or no sample of sound",
    "unreadable": "no decoder recognises it as audio (or it is a folder)",
    "truncated": "it breaks off, or is damaged, before the length that its header or the table states",
    "nan": "it holds values that are no finite numbers",
    "silent": "it never moves by more than 1e-4 of full scale (-80 dB)",
    "too short": "shorter than min_seconds",
}
SILENCE = 1e-4  # half the distance from the lowest to the highest sample, so that a constant offset is silence, too
TRUNCATED = 0.9  # share of the stated length that must decode; encoders' padding makes stated lengths a little too long
EXAMPLES = 5
_POOL_FROM = 32  # fewer new files than this are done before worker processes have started
_CACHE = "health-1.parquet"  # the number changes with the rules above, so that old verdicts are not used


@dataclass(frozen=True)
class Verdict:
    """What decoding one file showed: reason (a key of REASONS, or "" for a good file) and the decoded seconds."""

    reason: str
    duration: float = 0.0


def check(manifest: Manifest, workers: int = 0, min_seconds: float = 0.1) -> Manifest:
    """The manifest without the clips that cannot be used, with the counts in info["health"].

    Args:
        workers: processes that decode; 0: this one. (They are spawned: a script that calls this with workers > 0 needs
            the usual `if __name__ == "__main__":`.)
        min_seconds: shorter clips are left out.

    Returns:
        A manifest whose info["health"] is {"checked": clips, "kept": clips, "reasons": {reason: clips},
        "examples": {reason: [up to 5 paths]}}.

    Raises:
        ValueError: not a single clip can be used.
    """
    table = manifest.table
    files = {path: str(manifest.root / path) for path in table["path"].unique()}
    verdicts = inspect(files.values(), workers)
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


def measure(manifest: Manifest, workers: int = 0) -> Manifest:
    """The manifest with `duration` set to what decodes after `start`, for data sets whose table does not state it."""
    verdicts = inspect([str(manifest.file(i)) for i in range(len(manifest))], workers)
    durations = [max(0.0, verdicts[str(manifest.file(i))].duration - start) for i, start in enumerate(manifest.table["start"])]
    return replace(manifest, table=manifest.table.assign(duration=durations))


def inspect(files: Iterable[str], workers: int = 0) -> dict[str, Verdict]:
    """The verdict on each file (absolute paths), from the cache where size and modification time are unchanged."""
    stamps = {file: _stamp(file) for file in files}  # each file once
    cache_file = data_dir() / "manifests" / _CACHE
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
    if new:
        for file, verdict in zip(new, track(_run(new, workers), len(new), "health check")):
            verdicts[file] = verdict
        # Read again: another process may have added to it meanwhile. (A lost race costs a second look, nothing else.)
        _save(cache_file, {**_load(cache_file), **{file: (*stamps[file], verdicts[file]) for file in new
                                                   if os.access(file, os.R_OK)}})  # permission can change without a trace
    return verdicts


def inspect_file(file: str) -> Verdict:
    """Decode one file from end to end, in pieces."""
    if os.path.isfile(file) and os.path.getsize(file) == 0:
        return Verdict("empty")
    try:
        info = audio.probe(file)
    except audio.AudioError:
        return Verdict("unreadable")
    samples, low, high, finite = 0, np.inf, -np.inf, True
    try:
        for block in audio.blocks(file):
            samples += len(block)
            low, high = np.minimum(low, block.min(0)), np.maximum(high, block.max(0))
            finite = finite and bool(np.isfinite(block).all())
    except audio.AudioError:
        return Verdict("truncated", samples / info.sample_rate)
    duration = samples / info.sample_rate
    # The length of raw AAC is estimated from its bit rate, so it proves nothing.
    stated = 0 if info.codec.startswith("aac/") else info.duration
    if samples == 0:
        return Verdict("empty")
    if duration < TRUNCATED * stated or _is_cut(file):
        return Verdict("truncated", duration)
    if not finite:
        return Verdict("nan", duration)
    return Verdict("silent" if np.max(high - low) / 2 <= SILENCE else "", duration)


def _is_cut(file: str) -> bool:
    """Whether a wav, aiff or ogg file ends before its own last block does: libsndfile shortens such files without a word."""
    size = os.path.getsize(file)
    with open(file, "rb") as stream:
        head = stream.read(8)
        stream.seek(max(0, size - 2**17))  # two Ogg pages at least
        tail = stream.read()
    if head[:4] == b"OggS":
        page = tail[tail.rfind(b"OggS"):]  # 27 bytes, the last of which counts the segment lengths that follow
        return len(page) < 27 or len(page) < 27 + page[26] + sum(page[27: 27 + page[26]])
    order = {b"RIFF": "<I", b"FORM": ">I"}.get(head[:4])
    stated = struct.unpack(order, head[4:])[0] if order and len(head) == 8 else 0
    return stated != 0xFFFFFFFF and size < TRUNCATED * (stated + 8)  # 0xFFFFFFFF: written to a pipe, length not known


def _run(files: list[str], workers: int):
    """Verdicts in the order of `files`. (The place where a file that hangs its decoder would be given a time limit.)"""
    if workers < 1 or len(files) < _POOL_FROM:
        yield from map(inspect_file, files)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(inspect_file, files, chunksize=8)


def _stamp(file: str) -> tuple[int, int] | None:
    try:
        status = os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_size, status.st_mtime_ns


def _load(cache_file: Path) -> dict[str, tuple[int, int, Verdict]]:
    if not cache_file.is_file():
        return {}
    table = pd.read_parquet(cache_file)
    return {file: (size, changed, Verdict(reason, duration))
            for file, size, changed, reason, duration in table.itertuples(index=False)}


def _save(cache_file: Path, cache: dict[str, tuple[int, int, Verdict]]) -> None:
    cache_file.parent.mkdir(parents=True, exist_ok=True)
    rows = [(file, size, changed, verdict.reason, verdict.duration) for file, (size, changed, verdict) in cache.items()]
    part = cache_file.with_name(f"{cache_file.name}.{os.getpid()}.part")
    pd.DataFrame(rows, columns=["file", "size", "changed", "reason", "duration"]).to_parquet(part, index=False)
    os.replace(part, cache_file)
