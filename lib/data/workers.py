"""Work on files that may hang or crash their decoder, given to processes that may be lost.

`ask_all` starts `python -m PROGRAM` a few times; such a program ends in `serve(answer)`, which calls `answer` with each request.
A request that is too much for its process costs that process, which is replaced, and is answered by `Lost`. A process ends itself
(SIGALRM, which the kernel delivers whatever a decoder is doing) when `still_working` is not called for a while, and when nobody
asks any more, so that none is left behind even when the process that asked is killed.
"""
from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread

from lib.settings import ROOT

MEMORY = 4 * 2**30  # bytes of address space a process may take


@dataclass(frozen=True)
class Lost:
    """A request that its process did not survive: because it hung, or because it crashed or wanted too much memory."""

    hanging: bool


def ask_all(program: str, requests: Iterable[list], workers: int = 1) -> Iterator[tuple[list, object]]:
    """Pairs of a request and its answer, in the order in which the answers come.

    Args:
        program: name of a module that ends in `serve`.
        requests: lists of what JSON can hold; taken from the iterable one by one, when a process is free.
        workers: processes, at least 1.

    Raises:
        RuntimeError: a process cannot be started. What the iterable raises.
    """
    requests, taking, answers = iter(requests), Lock(), SimpleQueue()
    crew = [_Worker(program) for _ in range(workers)]

    def work(worker: _Worker) -> None:
        try:
            while not worker.ended:
                with taking:
                    request = next(requests, None)
                if request is None:
                    break
                answers.put((request, worker.ask(request)))
        except BaseException as error:  # raised again by the one who waits for the answers
            answers.put(error)
        answers.put(None)
    threads = [Thread(target=work, args=[worker], daemon=True) for worker in crew]
    try:
        for thread in threads:
            thread.start()
        left = len(threads)
        while left:
            answer = answers.get()
            if isinstance(answer, BaseException):
                raise answer
            if answer is None:
                left -= 1
            else:
                yield answer
    finally:
        for worker in crew:
            worker.end()
        for thread in threads:
            thread.join()


class _Worker:
    """A process that answers one request after the other, replaced when one has cost it its life."""

    def __init__(self, program: str):
        self.program, self.process, self.ended, self._lock = program, None, False, Lock()

    def ask(self, request: list) -> object:
        for attempt in range(2):
            process = self.process or self._start()
            try:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            except BrokenPipeError:
                answer = ""
            if answer:
                return json.loads(answer)
            code, self.process = process.wait(), None
            if code != -signal.SIGKILL or self.ended:  # killed by someone else, perhaps for want of memory: a second chance
                break
        return Lost(code == -signal.SIGALRM)

    def _start(self) -> subprocess.Popen:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with self._lock:
            self.process = subprocess.Popen([sys.executable, "-m", self.program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=subprocess.DEVNULL, text=True, cwd=ROOT, start_new_session=True,
                                            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
            if self.ended:
                self.process.kill()
        if self.process.stdout.readline() != "ready\n" and not self.ended:
            raise RuntimeError(f"a process that works on files could not be started (exit code {self.process.wait()}); try: "
                               f"{sys.executable} -c 'import {self.program}' in {ROOT}")
        return self.process

    def end(self) -> None:
        """End the process, whatever it is doing."""
        with self._lock:
            self.ended = True
            if self.process is not None:
                self.process.kill()


def serve(answer: Callable[..., object], libraries: bool = False) -> None:
    """Answer requests, one a line of the input, until its end; `answer` is called with what is in the list.

    libraries: what the process maps already does not count towards `MEMORY`: torch alone maps gigabytes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # decoders that print do not talk into the answers
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if libraries else 0
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY + mapped, resource.getrlimit(resource.RLIMIT_AS)[1]))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        result = answer(*json.loads(line))
        signal.alarm(0)
        print(json.dumps(result), file=answers, flush=True)


def still_working(seconds: int) -> None:
    """Called by a process that serves: it ends when this is not called again, nor its answer given, within so many seconds."""
    signal.alarm(seconds)
