"""One `make report` at a time in a report folder, and nothing left behind by one that was killed.

Every process started for a report inherits an environment variable with a random mark. Whatever is killed, and however,
the processes that are left can be found by it: orphans of orphans, loader workers and kernels in sessions of their own.
"""
from __future__ import annotations

import fcntl
import json
import os
import uuid
from contextlib import contextmanager
from pathlib import Path

import psutil


class Busy(RuntimeError):
    """Another process is at work on this report."""


def new_mark() -> str:
    """A random mark for the processes of one session or execution."""
    return uuid.uuid4().hex


def end_marked(variable: str, mark: str, patience: float = 3.0) -> int:
    """End every process that was started with `variable`=`mark` in its environment (never the calling one). Returns how many.

    They are asked first and killed after `patience` seconds.
    """
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(variable) == mark:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # another user's process, or one that has just ended
    for process in found:
        _signal(process.terminate)
    _, alive = psutil.wait_procs(found, timeout=patience)
    for process in alive:
        _signal(process.kill)
    psutil.wait_procs(alive, timeout=patience)
    return len(found)


def _signal(send) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return  # it ended by itself


@contextmanager
def hold(report: Path, mark: str):
    """Hold the lock of a report folder; on entry, end what a killed session has left.

    The lock is the kernel's (`flock`): it vanishes with its holder, however that dies, so it is never stale. What the file
    holds (pid, start time, mark) tells who has it, and outlives a holder that was killed: then its processes are ended.

    Raises:
        Busy: naming the process that holds the lock.
    """
    report.mkdir(parents=True, exist_ok=True)
    with open(report / ".lock", "a+", encoding="utf-8") as file:
        file.seek(0)
        content = file.read()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Busy(f"{report.name}: another `make report` is at work on this report ({content.strip() or 'just started'}); "
                       "wait for it, end it, or give this one another name with RUN=name") from error
        if content:
            ended = end_marked("WORKBOOK_SESSION", json.loads(content)["mark"])
            print(f"an earlier run of this report was killed; ended {ended} process(es) it had left")
        _replace(file, json.dumps({"pid": os.getpid(), "started": psutil.Process().create_time(), "mark": mark}))
        try:
            yield
        finally:
            _replace(file, "")


def _replace(file, text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()
