"""The training loop of every family, on Lightning Fabric.

Before every step the global generators are seeded with f(seed, step), and the order of the clips is f(seed, epoch): a run that is
killed anywhere and started again ends with the same bits (same device, versions and thread count).
"""
from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from lib import randomness
from lib.config import RunConfig
from lib.files import write_json
from lib.training import checkpoint, devices
from lib.training.logs import Log
from lib.progress import track
from lib.training.schedule import learning_rate


class Family(Protocol):
    """What the loop needs from a family."""

    config: RunConfig
    model: nn.Module
    monitor: str                                                    # name of the validation metric, higher is better

    def batches(self, epoch: int, first_batch: int):
        """Training batches of an epoch, from `first_batch` on (dict with at least clip_id)."""

    def batches_per_epoch(self) -> int:
        """Their number."""

    def losses(self, model: nn.Module, batch: dict) -> dict[str, Tensor]:
        """Named scalars of a batch; "loss" is the one that is minimised."""

    def validate(self) -> dict[str, float]:
        """Metrics of the validation split, none where it is empty."""

    def save(self, folder: Path):
        """Write the model in its published layout into an empty folder."""


class NonFiniteLoss(FloatingPointError):
    """A loss term or gradient is not finite; raised before the optimiser step."""


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes:
        folder: of the run.  checkpoint: folder of the selected model.  history: one dict a logged step or epoch.
        steps: optimiser steps.  cpu_seconds, wall_seconds: of all sessions of the run together.
    """

    folder: Path
    checkpoint: Path
    history: list[dict]
    steps: int
    cpu_seconds: float
    wall_seconds: float


def fit(family: Family, folder: Path) -> Run:
    """Train `family` to the end, from the newest checkpoint in `folder` where there is one.

    Raises:
        NonFiniteLoss: naming the term, step and file with the clip ids.
        MemoryError: CUDA ran out of memory; names the parameters that lower it.
    """
    config = family.config
    fabric = devices.fabric(config.device, config.precision, config.threads)
    randomness.seed_all(config.seed, "fit")
    optimizer = torch.optim.AdamW([p for p in family.model.parameters() if p.requires_grad], lr=config.learning_rate,
                                  betas=(0.9, 0.999), eps=1e-8, weight_decay=config.weight_decay)
    model, optimizer = fabric.setup(family.model, optimizer)
    state = {"step": 0, "epoch": 0, "batch": 0, "sums": {}, "history": [], "best": None, "cpu": 0.0, "wall": 0.0, "threads": config.threads}
    found = checkpoint.newest(folder / "checkpoints")
    if found is not None:
        state = _resume(found, state, family, optimizer, fabric)
    log = Log(folder, state["history"], state["step"])
    clock = (time.process_time() - state["cpu"], time.monotonic() - state["wall"])
    per_epoch = family.batches_per_epoch()
    steps_per_epoch = -(-per_epoch // config.accumulation)
    if per_epoch == 0:
        raise ValueError("no training batch: the training split is smaller than one batch; lower batch_size or raise num_samples")
    if config.learning_rate < max(config.start_learning_rate, config.floor_learning_rate):
        raise ValueError("learning_rate must be at least start_learning_rate and floor_learning_rate")

    def save() -> None:
        state["cpu"], state["wall"] = time.process_time() - clock[0], time.monotonic() - clock[1]
        tensors = {"optimizer": optimizer.state_dict(), "precision": fabric.strategy.precision.state_dict()}
        checkpoint.save(folder / "checkpoints", state["step"], family.save, state | tensors,
                        protect=(state["best"]["checkpoint"],) if state["best"] else ())

    while state["epoch"] < config.epochs:
        epoch = state["epoch"]
        model.train()
        source = track(family.batches(epoch, state["batch"]), per_epoch - state["batch"], f"epoch {epoch + 1}/{config.epochs}")
        for batch in source:
            first = state["batch"] % config.accumulation == 0
            last = (state["batch"] + 1) % config.accumulation == 0 or state["batch"] + 1 == per_epoch
            randomness.seed_all(config.seed, "step", epoch, state["batch"])
            rate = learning_rate(state["step"], steps_per_epoch=steps_per_epoch, peak=config.learning_rate,
                                 start=config.start_learning_rate, floor=config.floor_learning_rate,
                                 warmup_epochs=config.warmup_epochs, decay_epochs=config.decay_epochs)
            for group in optimizer.param_groups:
                group["lr"] = rate
            if first:
                optimizer.zero_grad()
            parts = _backward(family, model, batch, fabric, config.accumulation, folder, state)
            if last:
                if config.gradient_clip:
                    fabric.clip_gradients(model, optimizer, max_norm=config.gradient_clip, error_if_nonfinite=False)
                optimizer.step()
                state["step"] += 1
                log.step(state, parts, rate)
            for name, value in parts.items():
                state["sums"][name] = state["sums"].get(name, 0.0) + value / per_epoch
            state["batch"] += 1
            if last and config.checkpoint_steps and state["step"] % config.checkpoint_steps == 0 and state["batch"] < per_epoch:
                save()
        model.eval()
        state["epoch"], state["batch"] = epoch + 1, 0
        metrics = family.validate() if config.selection == "best" or epoch + 1 == config.epochs else {}
        log.epoch(state, {f"train/{name}": value for name, value in state["sums"].items()} | metrics)
        state["sums"] = {}
        value = metrics.get(family.monitor)
        if config.selection == "best" and value is not None and (state["best"] is None or value > state["best"]["value"]):
            state["best"] = {"value": value, "epoch": epoch + 1, "checkpoint": f"step_{state['step']:08d}"}
        save()
    log.close()
    chosen = state["best"]["checkpoint"] if state["best"] else f"step_{state['step']:08d}"
    return Run(folder, folder / "checkpoints" / chosen, state["history"], state["step"], state["cpu"], state["wall"])


def _backward(family: Family, model: nn.Module, batch: dict, fabric, accumulation: int, folder: Path, state: dict) -> dict[str, float]:
    """Forward and backward of one batch; returns the loss terms as numbers, refusing what is not finite."""
    try:
        losses = family.losses(model, fabric.to_device(batch))
        parts = {name: float(value.detach()) for name, value in losses.items()}
        wrong = [name for name, value in losses.items() if not torch.isfinite(value.detach()).all()]
        if wrong:
            report = folder / f"nonfinite_step_{state['step']:08d}.json"
            write_json(report, {"terms": {k: repr(v) for k, v in parts.items()}, "clip_id": list(batch["clip_id"])})
            raise NonFiniteLoss(f"loss term {wrong[0]!r} is {parts[wrong[0]]} at step {state['step']}; nothing was updated. The batch's "
                                f"clips are in {report}; listen to them, lower learning_rate or set gradient_clip")
        fabric.backward(losses["loss"] / accumulation)
        return parts
    except torch.cuda.OutOfMemoryError as error:
        raise MemoryError(f"CUDA out of memory with batch_size={family.config.batch_size}: lower batch_size (raise accumulation to "
                          "keep the step), shorten clip_seconds, raise patchout_time or set precision='bf16-mixed'") from error


def _resume(found: Path, state: dict, family: Family, optimizer, fabric) -> dict:
    """Bring model, optimiser, precision plug-in and loop to where the checkpoint `found` was written."""
    from safetensors.torch import load_file
    loaded = checkpoint.load_state(found)
    family.model.load_state_dict(load_file(found / "model.safetensors"))
    optimizer.load_state_dict(loaded.pop("optimizer"))
    fabric.strategy.precision.load_state_dict(loaded.pop("precision"))
    if loaded["threads"] != state["threads"]:
        warnings.warn(f"the run was started with threads={loaded['threads']} and continues with {state['threads']}: "
                      "its result will not be bit-identical to an uninterrupted run", stacklevel=3)
    return loaded
