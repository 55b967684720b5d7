"""One file decoded, from end to end or its beginning, and what that showed.

`inspect_all` gives every file to a worker process (`lib.data.workers`): one that hangs its decoder, crashes it or eats its memory
costs that worker, a few seconds and a verdict of its own.
"""
from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass

import numpy as np

from lib.data.workers import Lost, ask_all, serve, still_working
from lib.media import audio, shards

STUCK = 3  # seconds without a decoded block
FETCHING = 120  # seconds to get at a row of a parquet file: much of its row group may have to come from a slow disk first
SILENCE = 1e-4  # half the distance from the lowest to the highest sample, so that a constant offset is silence, too
TRUNCATED = 0.9  # share of the stated length that must decode; encoders' padding makes stated lengths a little too long


@dataclass(frozen=True)
class Verdict:
    """What decoding one file showed: reason (a key of REASONS, or "" for a good file) and the decoded seconds."""

    reason: str
    duration: float = 0.0


def inspect_all(files: Iterable[str], workers: int = 0, seconds: float | None = None) -> Iterator[tuple[str, Verdict]]:
    """Pairs of a file and its verdict, as they come, from max(1, `workers`) processes.

    files: absolute paths, surrogate escapes included. seconds: decode no more than these of each file, see `inspect_file`.
    """
    with closing(ask_all("lib.data.inspection", ([file, seconds] for file in files), max(1, workers))) as answers:
        for (file, _), answer in answers:
            lost = isinstance(answer, Lost)
            yield file, Verdict("hanging" if answer.hanging else "crashing") if lost else Verdict(*answer)


def inspect_file(file: str, seconds: float | None = None, progress: Callable[[], object] = lambda: None) -> Verdict:
    """Decode one file in pieces, in this process; `progress` is called after each of them.

    seconds: None: from end to end. Otherwise only the first `seconds` are decoded, and the duration is the header's: a file that breaks
    off or falls silent later on is not found out.
    """
    try:
        info = audio.probe(file)
    except audio.AudioError as error:
        return Verdict(error.reason)
    samples, low, high, finite = 0, np.inf, -np.inf, True
    try:
        for block in audio.blocks(file, seconds and max(1, round(seconds * info.sample_rate))):
            progress()
            samples += len(block)
            # channel by channel: over both axes at once numpy takes ten times as long
            low = np.minimum(low, [channel.min() for channel in block.T])
            high = np.maximum(high, [channel.max() for channel in block.T])
            finite = bool(np.isfinite(low).all() and np.isfinite(high).all())  # NaN is the least and the most of anything
            if seconds is not None and samples >= seconds * info.sample_rate:
                return Verdict("" if finite else "nan", info.duration)
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
    stream = audio.encoded(file)
    if stream is None:
        return False
    with stream:
        head = stream.read(8)
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 2**17))  # two Ogg pages at least
        tail = stream.read()
    if head[:4] == b"OggS":
        page = tail[tail.rfind(b"OggS"):]  # 27 bytes, the last of which counts the segment lengths that follow
        return len(page) < 27 or len(page) < 27 + page[26] + sum(page[27: 27 + page[26]])
    order = {b"RIFF": "<I", b"FORM": ">I"}.get(head[:4])
    stated = struct.unpack(order, head[4:])[0] if order and len(head) == 8 else 0
    return stated != 0xFFFFFFFF and size < TRUNCATED * (stated + 8)  # 0xFFFFFFFF: written to a pipe, length not known


def _answer(file: str, seconds: float | None) -> list:
    if shards.parse(file):
        still_working(FETCHING)
        with suppress(audio.AudioError):  # met again below
            audio.encoded(file)
    still_working(STUCK)
    verdict = inspect_file(file, seconds, lambda: still_working(STUCK))
    return [verdict.reason, verdict.duration]


if __name__ == "__main__":
    serve(_answer)
