"""Logs of a run: metrics.csv and TensorBoard always, wandb and SwanLab on request. A failing log never stops training.

The rows are kept in the checkpoint. A resumed session begins by writing all of them into every log and takes the place of the
sessions before it: what a killed one logged beyond the checkpoint is not repeated, and what it lost in a buffer comes back.

In a batch, wandb and SwanLab write below the run's folder and touch no network; `wandb sync FOLDER/wandb/offline-run-*` or
`swanlab sync FOLDER/swanlog/run-*` uploads that later. In a terminal or a notebook, WANDB_MODE and SWANLAB_MODE decide.
"""
from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
import os
import re
import select
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import psutil

from lib.files import digest, write_text
from lib.progress import interactive

SAID_EVERY = 5.0           # seconds between printed epochs
CLOSE_SECONDS = 120.0      # how long wandb or SwanLab may go on when the training has ended
FOLDERS = {"wandb": "wandb", "swanlab": "swanlog"}


class Backend(Protocol):
    """One log: takes rows (metric name -> number, and "step") and in the end writes what is left. What it raises turns it off."""

    def add(self, row: dict) -> None: ...

    def close(self) -> None: ...


class Log:
    """Rows of a run: one a logged step, one an epoch; kept in the checkpoint, so that a resumed run has no gap or repeat.

    Args:
        folder: of the run; everything is written below it.  history: rows so far, appended to in place.
        step: optimiser steps so far; rows beyond it are dropped.  every: steps between logged steps.
        loggers: further logs, out of "wandb" and "swanlab".  config: what they show with the run (JSON-able).
        name: of the run there, and the id by which a resumed run goes on; "": the folder's.
        shown: metrics in the line that an epoch prints; (): all.
    """

    def __init__(self, folder: Path, history: list[dict], step: int, *, every: int = 10, loggers: tuple[str, ...] = (),
                 name: str = "", config: dict | None = None, shown: tuple[str, ...] = ()):
        folder.mkdir(parents=True, exist_ok=True)
        history[:] = [row for row in history if row["step"] <= step]
        self.folder, self.history, self.every, self.shown = folder, history, every, shown
        self.starts: dict[str, Callable[[], Backend]] = {"tensorboard": partial(_TensorBoard, folder)} | {
            kind: partial(_Apart, kind, folder, name or folder.name, config or {}) for kind in loggers}
        self.running: dict[str, Backend] = {}
        self.said, self.unsaid = -math.inf, None

    def step(self, state: dict, parts: dict[str, float], rate: float) -> None:
        """Log the loss terms of a batch, every `every` optimiser steps."""
        if state["step"] % self.every == 1 or self.every == 1:
            self._add({"step": state["step"], "epoch": state["epoch"], "learning_rate": rate}
                      | {f"step/{name}": value for name, value in parts.items()})

    def epoch(self, state: dict, metrics: dict[str, float]) -> None:
        """Log an epoch's mean losses ("train/...") and validation metrics ("val/..."), print a line and rewrite metrics.csv.

        Epochs that follow each other within SAID_EVERY seconds are not all printed, but always the first and the last.
        """
        self._add({"step": state["step"], "epoch": state["epoch"], **metrics})
        told = [name for name in self.shown if name in metrics] or metrics
        self.unsaid = f"epoch {state['epoch']}: " + "  ".join(f"{name} {metrics[name]:.3f}" for name in told)
        if time.monotonic() - self.said >= SAID_EVERY:
            self._say()
        self._write()

    def _say(self) -> None:
        if self.unsaid:
            print(self.unsaid, flush=True)
        self.said, self.unsaid = time.monotonic(), None

    def close(self) -> None:
        """Write and print what is left and close the logs."""
        self._say()
        self._write()
        for kind in list(self.running):
            self._guarded(kind, self.running[kind].close)
        self.starts, self.running = {}, {}

    def _add(self, row: dict) -> None:
        self.history.append(row)
        for kind in list(self.starts):
            self._guarded(kind, lambda: self._pass_on(kind, row))

    def _pass_on(self, kind: str, row: dict) -> None:
        """Give one log the row; at first, start it and give it the whole history."""
        rows = [row]
        if kind not in self.running:
            self.running[kind], rows = self.starts[kind](), self.history
        for entry in rows:
            self.running[kind].add(entry)

    def _guarded(self, kind: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:            # a logger must not stop a week of training
            self.starts.pop(kind, None)
            self.running.pop(kind, None)
            warnings.warn(f"the {kind} log is off since step {self.history[-1]['step']} and lacks rows; metrics.csv has all of "
                          f"them. {type(error).__name__}: {error}", stacklevel=4)

    def _write(self) -> None:
        table, columns = io.StringIO(), dict.fromkeys(name for row in self.history for name in row)
        writer = csv.DictWriter(table, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history)
        try:
            write_text(self.folder / "metrics.csv", table.getvalue())
        except OSError as error:              # not turned off: the disk may have room again at the next epoch
            warnings.warn(f"metrics.csv could not be written: {error}", stacklevel=3)


class _TensorBoard:
    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=0)     # readers drop what earlier sessions wrote

    def add(self, row: dict) -> None:
        for name, value in row.items():
            if name not in ("step", "epoch"):
                self.board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self.board.close()


class _Apart:
    """wandb or SwanLab in a process of its own (`log_process.py`).

    There its signal handlers, exit hooks, prompts, threads, output and hangs are no concern of the training, which does not wait
    for it before `close`: rows that its pipe has no room for go with the next ones.
    """

    def __init__(self, kind: str, folder: Path, name: str, config: dict):
        if importlib.util.find_spec(kind) is None:
            raise ModuleNotFoundError(f"it is not installed; run: {sys.executable} -m pip install {kind}")
        place = folder.absolute() / FOLDERS[kind]
        place.mkdir(exist_ok=True)
        identity = re.sub(r"[^A-Za-z0-9_-]", "-", name)[:64]
        identity = identity if identity == name else f"{identity}-{digest(name)[:8]}"
        run = {"folder": str(place), "id": identity, "name": name, "config": config, "pid": os.getpid(), "seconds": CLOSE_SECONDS}
        self.waiting = bytearray(json.dumps(run | {"offline": not interactive()}).encode() + b"\n")
        self.kind, self.said = kind, place / "session.log"
        command = [sys.executable, "-P", "-u", "-X", "utf8", str(Path(__file__).with_name("log_process.py")), kind]
        with open(self.said, "w", encoding="utf-8") as file:   # a session of its own: no terminal to ask for a key, no Ctrl-C
            self.process = subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT,
                                            cwd=place, start_new_session=True)
        os.set_blocking(self.process.stdin.fileno(), False)

    def add(self, row: dict) -> None:
        self.waiting += json.dumps(row).encode() + b"\n"
        try:
            while self.waiting:
                del self.waiting[:os.write(self.process.stdin.fileno(), self.waiting[:1 << 16])]
        except BlockingIOError:
            return                            # it is still starting, or slow
        except BrokenPipeError:
            self._end(5.0)
            raise RuntimeError(self._reason()) from None

    def close(self) -> None:
        deadline = time.monotonic() + CLOSE_SECONDS
        self.add({"success": sys.exc_info()[0] is None})            # the training loop closes its log whatever happens
        while self.waiting and select.select([], [self.process.stdin], [], max(0.0, deadline - time.monotonic()))[1]:
            self.add({})
        if self._end(deadline - time.monotonic()):
            raise RuntimeError(self._reason())

    def _reason(self) -> str:
        said = self.said.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
        return f"{said[-1].strip()} (all it said: {self.said}; {self.kind.upper()}_MODE=offline needs no key)"

    def _end(self, seconds: float) -> int:
        """Wait for the process, then end it and what it has started, wandb's own service included. Returns the exit code."""
        try:
            return self.process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"it did not finish in time and was ended; {self._reason()}") from None
        finally:
            if self.process.poll() is None:   # too slow, or somebody pressed Ctrl-C
                for process in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
                    process.kill()
                self.process.wait()
            self.process.stdin.close()
