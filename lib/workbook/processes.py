"""One `make report` at a time in a report folder, and nothing left behind by one that was killed.

Every process started for a report inherits an environment variable with a random mark. Whatever is killed, and however,
the processes that are left can be found by it: orphans of orphans, loader workers and kernels in sessions of their own.
Jobs that run on other machines, handed there by Slurm, carry the mark in their names.
"""
from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
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


def slurm_name(mark: str) -> str:
    """What the names of a session's Slurm jobs begin with."""
    return f"workbook-{mark}"


def cancel_marked(mark: str, patience: float = 120.0) -> int:
    """Cancel every Slurm job of a session, waiting or running on whatever node, and wait until it has ended. Returns how many.

    Raises:
        Busy: Slurm does not answer, or a job does not end within `patience` seconds (its node does not answer).
    """
    began, cancelled, quiet = time.monotonic(), set(), 0
    while quiet < 2:                        # twice, because a submission that was being made may come late
        found = [line.partition("|")[0] for line in _slurm("squeue", "--me", "--noheader", "--format=%i|%j").splitlines()
                 if line.partition("|")[2].startswith(slurm_name(mark))]
        if found and time.monotonic() - began > patience:
            raise Busy(f"Slurm job {found[0]} of an earlier run does not end although it was cancelled; see `scontrol show job {found[0]}`")
        if fresh := [job for job in found if job not in cancelled]:
            _slurm("scancel", *fresh)
        cancelled.update(found)
        quiet = 0 if found else quiet + 1
        time.sleep(0.5 if found or quiet < 2 else 0)
    return len(cancelled)


def _slurm(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except subprocess.CalledProcessError as error:
        problem = error.stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    raise Busy(f"Slurm jobs of this report may still run, and `{command[0]}` does not work here: {problem}; start again where it does")


def end_session(mark: str, slurm: bool) -> tuple[int, int]:
    """End the processes of a session and then, which they might have submitted, its Slurm jobs. Returns how many of both."""
    return end_marked("WORKBOOK_SESSION", mark), cancel_marked(mark) if slurm else 0


@contextmanager
def hold(report: Path, mark: str, slurm: bool = False):
    """Hold the lock of a report folder; on entry, end what a killed session has left, before anything is read or written.

    The lock is the kernel's (`flock`): it vanishes with its holder, however that dies, so it is never stale. What the file
    holds (pid, host, start time, mark) tells who has it, and outlives a holder that was killed: then its processes and its Slurm
    jobs are ended.

    Args:
        mark: of the session.  slurm: whether it may submit Slurm jobs.

    Yields:
        whether an earlier session was killed.

    Raises:
        Busy: naming the process that holds the lock, or what a killed session left and that cannot be ended.
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
        if earlier := _session_in(content):
            if earlier["host"] != platform.node():
                raise Busy(f"{report.name}: an earlier run was killed on {earlier['host']}, where it may have left processes; start this one "
                           f"there, or delete {report / '.lock'} once you know that none is left")
            ended, cancelled = end_session(earlier["mark"], earlier["slurm"])
            print(f"an earlier run of this report was killed; ended {ended} process(es) it had left"
                  + (f" and cancelled {cancelled} Slurm job(s)" if cancelled else ""), flush=True)
        _replace(file, json.dumps({"pid": os.getpid(), "host": platform.node(), "started": psutil.Process().create_time(), "mark": mark,
                                   "slurm": slurm}))
        try:
            yield earlier is not None
        finally:
            end_session(mark, slurm)
            _replace(file, "")


def _session_in(content: str) -> dict | None:
    try:
        return {"host": platform.node(), "slurm": False} | json.loads(content)
    except ValueError:
        return None  # nothing, or a line cut off by a full disk: it is written before any process is started, so there is none


def _replace(file, text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()
