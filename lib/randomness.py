"""Stateless randomness: every draw is a function of the run's seed and of what is drawn, never of what was drawn before.

So a run that is killed and resumed, or decoded by another number of workers, draws the same numbers.
"""
from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def derive(seed: int, *what: object) -> int:
    """A 63-bit seed from `seed` and any description, e.g. derive(seed, "crop", epoch, index). Stable across processes."""
    text = "\x1f".join(str(part) for part in (seed, *what))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *what: object) -> np.random.Generator:
    """A NumPy generator seeded with `derive(seed, *what)`."""
    return np.random.default_rng(derive(seed, *what))


def seed_all(seed: int, *what: object) -> None:
    """Seed the global generators of Python, NumPy and torch (all devices) with `derive(seed, *what)`."""
    value = derive(seed, *what)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


def part(rank: int) -> None:
    """From here on another stream of torch draws in every process (0 goes on with its own): dropout must not repeat from one to the next."""
    if rank:
        torch.manual_seed(derive(torch.initial_seed(), "rank", rank))


def epoch_order(n: int, seed: int, epoch: int, shuffle: bool = True) -> np.ndarray:
    """Order of n items in an epoch: (n,) int64, a permutation that depends on (seed, epoch) only."""
    return generator(seed, "order", epoch).permutation(n) if shuffle else np.arange(n)
