"""Checkpoints that survive a kill at any moment.

A checkpoint is a folder `step_00000120/`: the model in its published layout, `state.pt` (optimiser and loop; tensors, numbers and
texts only) and, written last, `manifest.json` with the sha256 of every file. It is filled under a temporary name, flushed to disk
and renamed; a folder whose manifest is missing or wrong is never used.
"""
from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from lib.files import sha256, write_json

MANIFEST, STATE = "manifest.json", "state.pt"


def save(parent: Path, step: int, write_model: Callable[[Path], object], state: dict, keep: int = 2,
         protect: tuple[str, ...] = ()) -> Path:
    """Write the checkpoint of `step` and remove older ones.

    Args:
        parent: folder of the run's checkpoints.  step: optimiser steps done.
        write_model: called with an empty folder, fills it with the model's files.
        state: what `torch.load(weights_only=True)` can read back.
        keep: newest checkpoints to keep.  protect: names of checkpoints that are kept besides.
    Returns: the checkpoint's folder.
    """
    parent.mkdir(parents=True, exist_ok=True)
    final, temporary = parent / f"step_{step:08d}", parent / f".step_{step:08d}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    write_model(temporary)
    torch.save(state, temporary / STATE)
    files = sorted(p for p in temporary.rglob("*") if p.is_file())
    for path in files:
        _flush(path)
    write_json(temporary / MANIFEST, {p.relative_to(temporary).as_posix(): sha256(p) for p in files})
    if final.exists():                      # an invalid or repeated one; a valid one of the same step is the same
        shutil.rmtree(final)
    os.replace(temporary, final)
    _flush(parent)
    for old in sorted(parent.glob("step_*"))[:-keep]:
        if old.name not in protect:
            shutil.rmtree(old)
    return final


def valid(folder: Path) -> bool:
    """Whether every file of the checkpoint is there and unchanged."""
    try:
        listed = json.loads((folder / MANIFEST).read_text())
        return bool(listed) and all(sha256(folder / name) == digest for name, digest in listed.items())
    except (OSError, ValueError):
        return False


def newest(parent: Path) -> Path | None:
    """The newest valid checkpoint below `parent`, or None; leftovers of killed writes are removed."""
    for stale in parent.glob(".step_*"):
        shutil.rmtree(stale, ignore_errors=True)
    return next((folder for folder in sorted(parent.glob("step_*"), reverse=True) if valid(folder)), None)


def load_state(folder: Path) -> dict:
    """The training state of a checkpoint, on the CPU."""
    return torch.load(folder / STATE, map_location="cpu", weights_only=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
