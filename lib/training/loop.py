"""The training loop of every family, on Lightning Fabric.

Before every step the global generators are seeded with f(seed, step), and the order of the clips is f(seed, epoch): a run that is
killed anywhere and started again ends with the same bits (same devices, versions and thread count). Of several processes each
takes a share of every batch; rank 0 writes.
"""
from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from lightning.fabric import Fabric
from safetensors.torch import load_file
from torch import Tensor, nn

from lib import distributed, randomness
from lib.config import RunConfig
from lib.files import write_json
from lib.training import checkpoint, devices
from lib.training.adversary import Adversary
from lib.training.average import Average
from lib.training.logs import Log
from lib.progress import track
from lib.training.schedule import learning_rate

SHOWN = 20      # bad clips that a message lists


class Family(Protocol):
    """What the loop needs from a family."""

    config: RunConfig
    model: nn.Module
    monitor: str                                                    # name of the validation metric, higher is better
    told: tuple[str, ...]                                           # metrics that an epoch prints; without it: the monitor
    memory_levers: str                                              # what a user can change when CUDA memory does not suffice

    def batches(self, epoch: int, first_batch: int, skipped: Iterable[str]):
        """This process's share of the batches of an epoch, from `first_batch` on, without trying the clips in `skipped`: dicts with
        at least clip_id and failed (of each row None, or {"clip_id", "reason"} of the clip that another one replaces)."""

    def batches_per_epoch(self) -> int:
        """Their number."""

    def clips(self) -> int:
        """Number of training clips."""

    def losses(self, model: nn.Module, batch: dict) -> dict[str, Tensor]:
        """Named scalars of a batch; "loss" is the one that is minimised."""

    def compile(self) -> None:
        """torch.compile the model's networks in place."""

    def validate(self) -> dict[str, float]:
        """Metrics of the validation split, none where it is empty."""

    def save(self, folder: Path):
        """Write the model in its published layout into an empty folder."""

    # What a family may have besides:
    # adversary: nn.Module | None       a second network with an optimiser of its own, see lib.training.adversary, and with it
    # adversary_losses() -> dict        its named scalars for the batch that `losses` saw last, "loss" being minimised; {}: none yet
    # check_checkpoint(folder)          raises ValueError where a checkpoint does not belong to its configuration


class NonFiniteLoss(FloatingPointError):
    """A loss term or gradient is not finite; raised before the optimiser step."""


class BadMedia(RuntimeError):
    """More training clips could not be decoded than the budget allows; the message lists them."""


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes:
        folder: of the run.  checkpoint: folder of the selected model.  history: one dict a logged step or epoch.
        steps: optimiser steps.  cpu_seconds, wall_seconds: of all sessions of the run together.
        skipped: clip id -> why it could not be decoded, of the clips that others replaced.
    """

    folder: Path
    checkpoint: Path
    history: list[dict]
    steps: int
    cpu_seconds: float
    wall_seconds: float
    skipped: dict[str, str] = field(default_factory=dict)


def fit(family: Family, folder: Path, fabric: Fabric | None = None) -> Run:
    """Train `family` to the end, from the newest checkpoint in `folder` where there is one.

    Args:
        family: what is trained.  folder: of the run.  fabric: of `devices.fabric`; None: made from the configuration.
    Raises:
        NonFiniteLoss: naming the term, step and file with the clip ids.
        BadMedia: more clips fail than bad_media_budget allows.
        MemoryError: CUDA ran out of memory; names the parameters that lower it.
    """
    config = family.config
    if family.batches_per_epoch() == 0:
        raise ValueError("no training batch: the training split is smaller than one batch; lower batch_size or raise num_samples")
    if config.learning_rate < max(config.start_learning_rate, config.floor_learning_rate):
        raise ValueError("learning_rate must be at least start_learning_rate and floor_learning_rate")
    session = _Session(family, folder, fabric or devices.fabric(config.device, config.precision, config.threads))
    state = session.state
    try:
        while state["epoch"] < config.epochs and not _out_of_patience(state, config):
            session.epoch()
    finally:
        session.log.close()
    chosen = state["best"]["checkpoint"] if state["best"] else f"step_{state['step']:08d}"
    return Run(folder, folder / "checkpoints" / chosen, state["history"], state["step"], state["cpu"], state["wall"], state["skipped"])


class _Silent:
    """The log of every process but the first."""

    def step(self, *_) -> None: ...

    epoch = close = step


class _Session:
    """One process's stay in a run: model and optimiser under Fabric, and `state`, all that a checkpoint holds besides them."""

    def __init__(self, family: Family, folder: Path, fabric: Fabric):
        self.family, self.folder, self.fabric, config = family, folder, fabric, family.config
        randomness.seed_all(config.seed, "fit")
        optimizer = torch.optim.AdamW([p for p in family.model.parameters() if p.requires_grad], lr=config.learning_rate,
                                      betas=config.betas, eps=1e-8, weight_decay=config.weight_decay)
        if devices.compiles(config.compile, fabric.device):
            family.compile()
        self.model, self.optimizer = fabric.setup(family.model, optimizer)
        self.adversary = Adversary(family.adversary, config, fabric.device) if getattr(family, "adversary", None) is not None else None
        self.average = Average(family.model, config.ema_decay) if config.ema_decay is not None else None
        self.state = {"step": 0, "epoch": 0, "batch": 0, "sums": {}, "history": [], "best": None, "skipped": {}, "cpu": 0.0, "wall": 0.0,
                      "threads": config.threads, "devices": fabric.world_size}
        found = fabric.broadcast(checkpoint.newest(folder / "checkpoints") if fabric.is_global_zero else None)
        if found is not None:
            self._resume(found)
        self.log = Log(folder, self.state["history"], self.state["step"], loggers=config.loggers, name=folder.name, config=config.to_dict(),
                       shown=("train/loss", *(getattr(family, "told", None) or [family.monitor]))) if fabric.is_global_zero else _Silent()
        self.clock = (time.process_time() - self.state["cpu"], time.monotonic() - self.state["wall"])

    def epoch(self) -> None:
        """Train to the end of the epoch that the state is in, validate, write a checkpoint."""
        family, state, config, per_epoch = self.family, self.state, self.family.config, self.family.batches_per_epoch()
        number = state["epoch"]
        self.model.train()
        source = family.batches(number, state["batch"], state["skipped"])
        if self.fabric.is_global_zero:
            source = track(source, per_epoch - state["batch"], f"epoch {number + 1}/{config.epochs}")
        for batch in source:
            first = state["batch"] % config.accumulation == 0
            last = (state["batch"] + 1) % config.accumulation == 0 or state["batch"] + 1 == per_epoch
            randomness.seed_all(config.seed, "step", number, state["batch"])
            rate = learning_rate(state["step"], steps_per_epoch=-(-per_epoch // config.accumulation), peak=config.learning_rate,
                                 start=config.start_learning_rate, floor=config.floor_learning_rate,
                                 warmup_epochs=config.warmup_epochs, decay_epochs=config.decay_epochs)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            if first:
                self.optimizer.zero_grad()
                if self.adversary is not None:
                    self.adversary.zero_grad()
            with self.fabric.no_backward_sync(self.model, enabled=not last):
                parts = self._backward(batch)
            if last:
                if config.gradient_clip:
                    self.fabric.clip_gradients(self.model, self.optimizer, max_norm=config.gradient_clip, error_if_nonfinite=False)
                self.optimizer.step()
                if self.adversary is not None:
                    self.adversary.step(rate)
                state["step"] += 1
                if self.average is not None:
                    self.average.update(family.model, state["step"])
                self.log.step(state, parts, rate)
            for name, value in parts.items():
                state["sums"][name] = state["sums"].get(name, 0.0) + value / per_epoch
            state["batch"] += 1
            if last and config.checkpoint_steps and state["step"] % config.checkpoint_steps == 0 and state["batch"] < per_epoch:
                self._save()
        self.model.eval()
        state["epoch"], state["batch"] = number + 1, 0
        with self._averaged():
            metrics = family.validate() if config.selection == "best" or number + 1 == config.epochs else {}
        metrics = self.fabric.broadcast(metrics)         # one process's rounding decides for all of them
        self.log.epoch(state, {f"train/{name}": value for name, value in state["sums"].items()} | metrics)
        state["sums"] = {}
        value = metrics.get(family.monitor)
        if config.selection == "best" and value is not None and (state["best"] is None or value > state["best"]["value"]):
            state["best"] = {"value": value, "epoch": number + 1, "checkpoint": f"step_{state['step']:08d}"}
        self._save()

    def _backward(self, batch: dict) -> dict[str, float]:
        """Forward and backward of one batch; returns the loss terms as numbers, refusing what is not finite."""
        config = self.family.config
        try:
            losses = self.family.losses(self.model, self.fabric.to_device(batch))
            parts = {name: float(value.detach()) for name, value in losses.items()}
            self._refuse(batch, parts)
            self.fabric.backward(losses["loss"] / config.accumulation)
            if self.adversary is not None:
                losses = self.family.adversary_losses()
                theirs = {f"adversary {name}": float(value.detach()) for name, value in losses.items()}
                self._refuse(batch, theirs)
                if losses:
                    self.adversary.backward(losses["loss"] / config.accumulation)
                parts |= theirs
            return parts
        except torch.cuda.OutOfMemoryError as error:
            raise MemoryError(f"CUDA out of memory with batch_size={config.batch_size}: {self.family.memory_levers}") from error

    def _refuse(self, batch: dict, parts: dict[str, float]) -> None:
        """Count clips that could not be decoded and stop at loss terms that are not finite, in all processes alike."""
        wrong = [name for name, value in parts.items() if not math.isfinite(value)]
        failed = [entry for entry in batch["failed"] if entry is not None and entry["clip_id"] not in self.state["skipped"]]
        any_failed, any_wrong = distributed.anywhere([bool(failed), bool(wrong)], self.fabric.device)
        if any_failed:
            self._skip(distributed.gather_list(failed))
        if any_wrong:
            report, step = self.folder / f"nonfinite_step_{self.state['step']:08d}.json", self.state["step"]
            wrong, clips = distributed.gather_list(wrong), distributed.gather_list(list(batch["clip_id"]))
            if self.fabric.is_global_zero:
                write_json(report, {"terms": {k: repr(v) for k, v in parts.items()}, "clip_id": clips})
            raise NonFiniteLoss(f"loss term {wrong[0]!r} is {parts[wrong[0]]} at step {step}; nothing was updated. The batch's "
                                f"clips are in {report}; listen to them, lower learning_rate or set gradient_clip")

    def _skip(self, failed: list[dict]) -> None:
        """Put clips on the list of those that others replace (the same in every process), and stop above the budget."""
        skipped, clips, budget = self.state["skipped"], self.family.clips(), self.family.config.bad_media_budget
        for entry in failed:
            if entry["clip_id"] not in skipped:
                skipped[entry["clip_id"]] = entry["reason"]
                if self.fabric.is_global_zero:
                    print(f"clip {entry['clip_id']} cannot be used and is replaced from now on ({len(skipped)} of {clips} so far): "
                          f"{entry['reason']}", flush=True)
        if self.fabric.is_global_zero:
            write_json(self.folder / "skipped.json", skipped)
        if len(skipped) > budget * clips:
            shown = "\n".join(f"  {clip}: {reason}" for clip, reason in list(skipped.items())[:SHOWN])
            raise BadMedia(f"{len(skipped)} of {clips} training clips ({len(skipped) / clips:.2%}) cannot be used, more than bad_media_budget="
                           f"{budget:g} allows:\n{shown}\nThe whole list is {self.folder / 'skipped.json'}. Mend or remove the files (python "
                           "-m lib.data check finds every bad one), or raise bad_media_budget: the run then goes on from its last checkpoint")

    def _averaged(self):
        """A context in which the family's model has the averaged weights, where there are any."""
        return self.average.inside(self.family.model) if self.average is not None else nullcontext()

    def _save(self) -> None:
        state = self.state
        state["cpu"], state["wall"] = time.process_time() - self.clock[0], time.monotonic() - self.clock[1]
        if self.fabric.is_global_zero:
            tensors = {"optimizer": self.optimizer.state_dict(), "precision": self.fabric.strategy.precision.state_dict()}
            if self.adversary is not None:
                tensors["adversary"] = self.adversary.state_dict()
            if self.average is not None:        # model.safetensors then holds the averages
                tensors["weights"] = {name: value.detach().cpu().clone() for name, value in self.family.model.state_dict().items()}
            with self._averaged():
                checkpoint.save(self.folder / "checkpoints", state["step"], self.family.save, state | tensors,
                                protect=(state["best"]["checkpoint"],) if state["best"] else ())
        self.fabric.barrier()

    def _resume(self, found: Path) -> None:
        """Bring model, optimiser, precision plug-in and state to where the checkpoint `found` was written."""
        getattr(self.family, "check_checkpoint", lambda folder: None)(found)
        loaded, saved = checkpoint.load_state(found), load_file(found / "model.safetensors")
        self.family.model.load_state_dict(loaded.pop("weights", saved))
        if self.average is not None:
            self.average.load_state_dict(saved)
        if self.adversary is not None:
            self.adversary.load_state_dict(loaded.pop("adversary"))
        self.optimizer.load_state_dict(loaded.pop("optimizer"))
        self.fabric.strategy.precision.load_state_dict(loaded.pop("precision"))
        for name in ("threads", "devices"):
            if loaded[name] != self.state[name]:
                warnings.warn(f"the run was started with {name}={loaded[name]} and continues with {self.state[name]}: "
                              "its result will not be bit-identical to an uninterrupted run", stacklevel=5)
        self.state = loaded


def _out_of_patience(state: dict, config: RunConfig) -> bool:
    """Whether `patience` epochs have passed since the best one; read from the state alone, so that a resumed run stops there too."""
    return config.patience is not None and state["best"] is not None and state["epoch"] - state["best"]["epoch"] >= config.patience
