"""Where a run is computed: device, threads, precision."""
from __future__ import annotations

import warnings

import torch
from lightning.fabric import Fabric


def resolve(device: str) -> torch.device:
    """auto | cpu | cuda | cuda:N to a torch device; a CUDA device that is not there warns and gives the CPU."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    index = int(device.partition(":")[2] or 0)
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        warnings.warn(f"device={device!r}: found {torch.cuda.device_count()} CUDA devices; running on the CPU instead", stacklevel=2)
        return torch.device("cpu")
    return torch.device("cuda", index)


def fabric(device: str, precision: str = "auto", threads: int = 2) -> Fabric:
    """A Lightning Fabric for one device.

    Args:
        device: as `resolve`.
        precision: auto (16-mixed on CUDA as the published model, 32-true on the CPU), 32-true, bf16-mixed or 16-mixed.
        threads: CPU threads.
    """
    torch.set_num_threads(threads)
    where = resolve(device)
    if precision == "auto":
        precision = "16-mixed" if where.type == "cuda" else "32-true"
    return Fabric(accelerator=where.type, devices=[where.index] if where.type == "cuda" else 1, precision=precision)
