"""One `make report` at a time in a report folder, and nothing left behind by one that was killed.

Every process started for a report inherits an environment variable with a random mark. Whatever is killed, and however,
the processes that are left can be found by it: orphans of orphans, loader workers and kernels in sessions of their own.
"""
from __future__ import annotations

import fcntl
import json
import os
import time
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

    They are asked first and killed after `patience` seconds. When this returns, none is left that could write: one that is about
    to end may start another, and one that is just being started cannot be seen, so it is looked until nothing is found twice.

    Raises:
        Busy: a process does not even end when killed.
    """
    assert mark, "without a mark, every process would fit"
    ended: set[psutil.Process] = set()
    began, quiet = time.monotonic(), 0
    while quiet < 2:
        found, waited = _marked(variable, mark), time.monotonic() - began
        if found and waited > 5 * patience:
            raise Busy(f"process {found[0].pid}, left by an earlier run, does not end when killed: it waits for a disk or a "
                       "device; see to that, then start again")
        for process in found:
            if waited > patience:
                _signal(process.kill)
            elif process not in ended:
                _signal(process.terminate)
        ended.update(found)
        quiet = 0 if found else quiet + 1
        if quiet < 2:
            time.sleep(0.05)
    return len(ended)


def _marked(variable: str, mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(variable) == mark:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # another user's process, or one that has ended, also if nobody has asked for its exit code yet
    return found


def _signal(send) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return  # it ended by itself


@contextmanager
def hold(report: Path, mark: str):
    """Hold the lock of a report folder; on entry, end what a killed session has left, before anything is read or written.

    The lock is the kernel's (`flock`): it vanishes with its holder, however that dies, so it is never stale. What the file
    holds (pid, start time, mark) tells who has it, and outlives a holder that was killed: then its processes are ended.

    Raises:
        Busy: naming the process that holds the lock, or one that a killed session left and that cannot be ended.
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
        if earlier := _mark_in(content):
            ended = end_marked("WORKBOOK_SESSION", earlier)
            print(f"an earlier run of this report was killed; ended {ended} process(es) it had left", flush=True)
        _replace(file, json.dumps({"pid": os.getpid(), "started": psutil.Process().create_time(), "mark": mark}))
        try:
            yield
        finally:
            end_marked("WORKBOOK_SESSION", mark)
            _replace(file, "")


def _mark_in(content: str) -> str | None:
    try:
        return json.loads(content)["mark"]
    except ValueError:
        return None  # nothing, or a line cut off by a full disk: it is written before any process is started, so there is none


def _replace(file, text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()
