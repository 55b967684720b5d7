"""Several processes that train one model: who this process is, which rows are its own, and what all of them hold together.

Convention: a batch is one batch whatever the number of processes; each takes a contiguous share of it, in the order of their
ranks, and a loss that compares rows (contrastive, triplet) is computed on all of them after `gather`. With one process every
function here returns what it was given.
"""
from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0; 0 is the one that writes and prints."""
    return dist.get_rank() if world() > 1 else 0


def launched() -> bool:
    """Whether torchrun started this process as one of several (the group itself may not have been joined yet)."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and "LOCAL_RANK" in os.environ


def share(rows: int) -> slice:
    """The contiguous part of `rows` rows that is this process's: sizes differ by one at most, nothing is lost or doubled."""
    each, more = divmod(rows, world())
    begin = rank() * each + min(rank(), more)
    return slice(begin, begin + each + (rank() < more))


def gather(rows: Tensor) -> Tensor:
    """Rows of all processes in the order of their ranks, with exact gradients.

    Args:
        rows: Tensor (n, ...), n may differ between processes, the other axes may not.
    Returns:
        Tensor (sum of n, ...). When every process computes the same loss from it, the mean over processes that distributed data
        parallel training takes of the parameters' gradients is the gradient of that loss in one process.
    """
    return _Gather.apply(rows) if world() > 1 else rows


def gather_list(values: list) -> list:
    """The lists of all processes, joined in the order of their ranks (any values that can be sent)."""
    if world() == 1:
        return values
    parts: list = [None] * world()
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]


def anywhere(flags: list[bool], device: torch.device) -> list[bool]:
    """Which of the flags is set in at least one process (one small reduction)."""
    if world() == 1:
        return flags
    counts = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(counts)
    return [bool(count) for count in counts.tolist()]


def average(value: Tensor) -> Tensor:
    """The mean over processes of a number that no gradient flows through, such as a count of rows."""
    if world() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world()


def mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of numbers of any shape over all processes: a scalar, see `means`.

    weights: of the shape of `values`, bool or numbers, what counts how much; None: all alike.
    """
    if weights is None:
        return means(values.numel(), values.sum())[0]
    return means(weights.sum(dtype=torch.float64), (values * weights).sum())[0]


def means(count: int | Tensor, *sums: Tensor) -> list[Tensor]:
    """Sums over this process's rows -> means over the rows of all processes, for losses that compare no rows.

    Args:
        count: of the rows, or the sum of their weights (a scalar).  sums: Tensors of any shapes.
    Returns:
        the means, 0 where nothing counts; with the gradient of this process's part times the number of processes, as data-parallel
        training takes the mean of gradients.
    """
    flat = torch.cat([part.flatten() for part in sums])
    count = torch.as_tensor(count, dtype=torch.float64, device=flat.device)     # counts above 2^24 are exact
    own = flat / average(count).clamp(min=1e-12).to(flat.dtype)                 # protects a batch in which nothing counts
    whole = own + (average(own.detach()) - own.detach()) if world() > 1 else own
    return [part.view(like.shape) for part, like in zip(whole.split([part.numel() for part in sums]), sums)]


def leave() -> None:
    """Leave the group together at the end of a process: one that just exits can abort in a thread of the group's."""
    if world() > 1:
        dist.barrier()
        dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    """all_gather whose backward sums what every process's copy of the loss sends back to these rows."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world())]
        dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
        counts = [int(count) for count in counts]
        ctx.begin, ctx.count = sum(counts[:rank()]), len(rows)
        padded = rows.new_zeros(max(counts), *rows.shape[1:])          # collectives want one shape
        padded[:len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts)])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient[ctx.begin:ctx.begin + ctx.count]
