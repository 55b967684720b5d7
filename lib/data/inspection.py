"""One file decoded, from end to end or its beginning, and what that showed; run as a program, a worker that does so and may be lost.

`inspect_all` gives every file to a worker process. A file that hangs its decoder, crashes it or eats its memory costs that worker,
a few seconds and a verdict of its own. The worker ends itself (SIGALRM, which the kernel delivers whatever the decoder is doing)
when a block of sound takes longer than `STUCK`, so that none is left behind even when the process that asked is killed.
"""
from __future__ import annotations

import json
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np

from lib.media import audio
from lib.settings import ROOT

STUCK = 3  # seconds without a decoded block
MEMORY = 4 * 2**30  # bytes of address space a worker may take
SILENCE = 1e-4  # half the distance from the lowest to the highest sample, so that a constant offset is silence, too
TRUNCATED = 0.9  # share of the stated length that must decode; encoders' padding makes stated lengths a little too long
TOGETHER = 512  # files handed to the threads at a time


@dataclass(frozen=True)
class Verdict:
    """What decoding one file showed: reason (a key of REASONS, or "" for a good file) and the decoded seconds."""

    reason: str
    duration: float = 0.0


def inspect_all(files: Iterable[str], workers: int = 0, seconds: float | None = None) -> Iterator[Verdict]:
    """Verdicts in the order of `files` (absolute paths, surrogate escapes included), decoded by max(1, `workers`) processes.

    seconds: decode no more than these of each file, see `inspect_file`.
    """
    files = list(files)
    free: SimpleQueue[_Worker] = SimpleQueue()
    with ExitStack() as ending:
        threads = ending.enter_context(ThreadPoolExecutor(max(1, workers)))
        for _ in range(min(max(1, workers), len(files))):
            worker = _Worker()
            ending.callback(worker.end)  # before the threads are waited for: one that waits for its worker gets an end of file
            free.put(worker)

        def ask(file: str) -> Verdict:
            worker = free.get()
            try:
                return worker.inspect(file, seconds)
            finally:
                free.put(worker)
        ending.callback(lambda: threads.shutdown(wait=False, cancel_futures=True))
        for start in range(0, len(files), TOGETHER):
            yield from threads.map(ask, files[start:start + TOGETHER])


class _Worker:
    """A process that inspects one file after the other, replaced when a file has cost it its life."""

    def __init__(self):
        self.process, self.ended = None, False

    def inspect(self, file: str, seconds: float | None = None) -> Verdict:
        code = 0
        for _ in range(2):
            if self.ended:
                break
            if self.process is None:
                self._start()
            try:
                self.process.stdin.write(json.dumps([file, seconds]) + "\n")
                self.process.stdin.flush()
                answer = self.process.stdout.readline()
            except BrokenPipeError:
                answer = ""
            if answer:
                return Verdict(*json.loads(answer))
            code, self.process = self.process.wait(), None
            if code != -signal.SIGKILL:  # killed by someone else, perhaps for want of memory: the file gets a second chance
                break
        return Verdict("hanging" if code == -signal.SIGALRM else "crashing")

    def _start(self) -> None:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen([sys.executable, "-m", "lib.data.inspection"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL, text=True, cwd=ROOT, start_new_session=True,
                                   env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"a process that decodes could not be started (exit code {process.wait()}); try: "
                               f"{sys.executable} -c 'import lib.data.inspection' in {ROOT}")
        self.process = process

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self.ended, process = True, self.process
        if process is not None:
            process.kill()
            process.wait()


def inspect_file(file: str, seconds: float | None = None, progress: Callable[[], object] = lambda: None) -> Verdict:
    """Decode one file in pieces, in this process; `progress` is called after each of them.

    seconds: None: from end to end. Otherwise only the first `seconds` are decoded, and the duration is the header's: a file that breaks
    off or falls silent later on is not found out.
    """
    if os.path.isfile(file) and os.path.getsize(file) == 0:
        return Verdict("empty")
    try:
        info = audio.probe(file)
    except audio.AudioError:
        return Verdict("unreadable")
    samples, low, high, finite = 0, np.inf, -np.inf, True
    try:
        for block in audio.blocks(file, seconds and max(1, round(seconds * info.sample_rate))):
            progress()
            samples += len(block)
            low, high = np.minimum(low, block.min(0)), np.maximum(high, block.max(0))
            finite = finite and bool(np.isfinite(block).all())
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


def _serve() -> None:
    """Read [path, seconds to decode] as JSON, one a line, until the end of the input; answer with [reason, duration]."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # decoders that print do not talk into the answers
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        signal.alarm(STUCK)
        verdict = inspect_file(*json.loads(line), lambda: signal.alarm(STUCK))
        signal.alarm(0)
        print(json.dumps([verdict.reason, verdict.duration]), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
