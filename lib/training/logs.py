"""Training logs: metrics.csv and TensorBoard events. A failing log never stops training."""
from __future__ import annotations

import csv
import warnings
from pathlib import Path


class Log:
    """Rows of a run: one a logged step, one an epoch; kept in the checkpoint, so that a resumed run has no gap or repeat.

    Args:
        folder: of the run.  history: rows so far (appended to in place).  step: optimiser steps so far.
        every: steps between logged steps.
    """

    def __init__(self, folder: Path, history: list[dict], step: int, every: int = 10):
        self.folder, self.history, self.every = folder, history, every
        self.board = None
        folder.mkdir(parents=True, exist_ok=True)
        try:
            from torch.utils.tensorboard import SummaryWriter
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step or None)
        except Exception as error:            # a logger must not stop a week of training
            warnings.warn(f"TensorBoard log is off: {type(error).__name__}: {error}", stacklevel=2)

    def step(self, state: dict, parts: dict[str, float], rate: float) -> None:
        """Log the loss terms of a batch, every `every` optimiser steps."""
        if state["step"] % self.every == 1 or self.every == 1:
            self._add({"step": state["step"], "epoch": state["epoch"], "learning_rate": rate, **{f"step/{k}": v for k, v in parts.items()}})

    def epoch(self, state: dict, metrics: dict[str, float]) -> None:
        """Log an epoch's mean losses ("train/...") and validation metrics ("val/..."), print a line and rewrite metrics.csv."""
        self._add({"step": state["step"], "epoch": state["epoch"], **metrics})
        print(f"epoch {state['epoch']}: " + "  ".join(f"{name} {value:.3f}" for name, value in metrics.items()), flush=True)
        self._write()

    def close(self) -> None:
        """Write what is left and close the files."""
        self._write()
        if self.board is not None:
            self.board.close()

    def _add(self, row: dict) -> None:
        self.history.append(row)
        if self.board is None:
            return
        try:
            for name, value in row.items():
                if name not in ("step", "epoch"):
                    self.board.add_scalar(name, value, row["step"])
        except OSError as error:
            warnings.warn(f"TensorBoard log stopped: {error}", stacklevel=2)
            self.board = None

    def _write(self) -> None:
        columns = list(dict.fromkeys(name for row in self.history for name in row))
        try:
            with open(self.folder / "metrics.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(self.history)
        except OSError as error:
            warnings.warn(f"metrics.csv could not be written: {error}", stacklevel=2)
