"""Where a run is computed: devices, processes, threads, precision."""
from __future__ import annotations

import logging
import os
import warnings
from datetime import timedelta

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.strategies import DDPStrategy

from lib import distributed

PATIENCE = timedelta(hours=2)       # how long a process waits for the others, for example while the first one renders a data set


def resolve(device: str) -> torch.device:
    """auto | cpu | cuda | cuda:N to a torch device; a CUDA device that is not there warns and gives the CPU."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    index = int(device.partition(":")[2] or 0)
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        warnings.warn(f"device={device!r}: found {torch.cuda.device_count()} CUDA devices; running on the CPU instead", stacklevel=2)
        return torch.device("cpu")
    return torch.device("cuda", index)


def compiles(choice: str, device: torch.device) -> bool:
    """Whether models are compiled: on | off | auto, which is on for CUDA devices of capability 7.0 and more (what Triton supports)."""
    return choice == "on" or choice == "auto" and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0)


def fabric(device: str, precision: str = "auto", threads: int = 2) -> Fabric:
    """A Lightning Fabric for this process: alone, or one of several that torchrun started (gloo on the CPU, NCCL on CUDA).

    Args:
        device: as `resolve`; of several processes each takes the CUDA device of its local rank.
        precision: auto (16-mixed on CUDA as the published model, 32-true on the CPU), 32-true, bf16-mixed or 16-mixed.
        threads: CPU threads of each process.
    Raises:
        ValueError: fewer CUDA devices than processes on this machine.
    """
    torch.set_num_threads(threads)
    where = resolve(device)
    # Threads add up the gradients of indexed rows (tables of positions) in any order otherwise, and no two runs are the same.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(where.type == "cpu", warn_only=True)
    if precision == "auto":
        precision = "16-mixed" if where.type == "cuda" else "32-true"
    if not distributed.launched():
        # said outright: where there is a Slurm, Fabric would ask it, and tell people to start notebooks with srun
        return Fabric(accelerator=where.type, devices=[where.index] if where.type == "cuda" else 1, precision=precision,
                      plugins=[LightningEnvironment()])
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    if where.type == "cuda" and torch.cuda.device_count() < here:
        raise ValueError(f"devices={here}: this machine has {torch.cuda.device_count()} CUDA devices; lower devices")
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")       # of axes of length 1: no matter
    together = Fabric(accelerator=where.type, devices=here, num_nodes=int(os.environ["WORLD_SIZE"]) // here, precision=precision,
                      strategy=DDPStrategy(process_group_backend="nccl" if where.type == "cuda" else "gloo", timeout=PATIENCE))
    together.launch()
    return together
