"""One job, one GPU: jobs of all reports of a user on a machine share out the GPUs that they can see.

A GPU is taken by holding the lock of a file (`flock`). The lock vanishes with the process that holds it, however that dies, so a
GPU is never lost to a job that was killed.
"""
from __future__ import annotations

import fcntl
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from pathlib import Path

from lib.glossary import ParameterError

SECONDS = 1.0       # between two looks for a free GPU


def visible() -> list[str]:
    """Names of the NVIDIA GPUs that a process started now would see, as CUDA_VISIBLE_DEVICES spells them; loads no torch."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return list(takewhile(lambda name: name not in ("", "-1"), map(str.strip, given.split(","))))  # as CUDA reads it
    return [str(number) for number, _ in enumerate(p for p in Path("/dev").glob("nvidia*") if p.name[6:].isdigit())]


def needed(parameters: Mapping[str, object]) -> int:
    """How many GPUs a job with these parameters occupies where there are any: `devices` of them (1 without that parameter)."""
    if not str(parameters.get("device", "cpu")).startswith(("auto", "cuda")):
        return 0
    return int(parameters.get("devices") or 1)


@contextmanager
def take(parameters: Mapping[str, object], listing: Callable[[], list[str]] = visible, folder: Path | None = None,
         say: Callable[[str], None] = print) -> Iterator[list[str]]:
    """Hold as many free GPUs as a job needs, waiting for them when others have them.

    Args:
        parameters: of the job; `device` and `devices` count.
        listing: gives the names of the GPUs there are.  folder: of the lock files; default: one of this user on this machine.
        say: receives a line when the job has to wait.

    Yields:
        The names of the GPUs, for CUDA_VISIBLE_DEVICES; empty when there is nothing to choose: fewer than two GPUs are visible
        (none, or the one that a cluster's scheduler has given to this job), or the job runs on the CPU or names its GPU (cuda:N).

    Raises:
        ParameterError: more GPUs are needed than there are.
    """
    count, names = needed(parameters), listing()
    if not count or len(names) < 2 or ":" in str(parameters["device"]):
        yield []
        return
    if count > len(names):
        raise ParameterError(f"devices={count}: {len(names)} GPUs are visible ({', '.join(names)}); lower devices")
    folder = folder or _folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as held:
        told = False
        while not (taken := _try(count, names, folder, held)):
            if not told:
                say(f"waiting for {count} of {len(names)} GPUs to become free")
                told = True
            time.sleep(SECONDS)
        yield taken


def _try(count: int, names: list[str], folder: Path, held: ExitStack) -> list[str]:
    """Lock `count` of the GPUs, or none: a job that kept some while it waits for more could wait for ever."""
    with ExitStack() as files:
        taken = []
        for name in names:
            file = open(folder / f"gpu-{re.sub(r'[^A-Za-z0-9-]', '-', name)}.lock", "a", encoding="utf-8")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                continue
            files.enter_context(file)
            taken.append(name)
            if len(taken) == count:
                held.push(files.pop_all())
                return taken
    return []


def _folder() -> Path:
    # Slurm numbers the GPUs that it gives to a job from 0: their names mean the same GPU only within that job. Where it gives none,
    # because they are not in its care, jobs on one machine share them out as anywhere else.
    given = any(os.environ.get(name) for name in ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS"))
    scope = [str(os.getuid()), *([os.environ["SLURM_JOB_ID"]] if given and os.environ.get("SLURM_JOB_ID") else [])]
    return Path(tempfile.gettempdir(), "-".join(["workbook-gpus", *scope]))
