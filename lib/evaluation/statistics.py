"""Intervals: for a proportion, for a mean over queries, for a mean over seeds."""
from __future__ import annotations

import numpy as np
from scipy import stats


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927).

    Args: successes: 0..n.  n: trials, >= 1.  confidence: in (0, 1).
    Returns: (low, high) in [0, 1].
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"need 0 <= successes <= n and n >= 1, got {successes} of {n}")
    z = stats.norm.ppf(0.5 + confidence / 2)
    p, share = successes / n, z * z / n
    centre = (p + share / 2) / (1 + share)
    half = z * np.sqrt(p * (1 - p) / n + share / (4 * n)) / (1 + share)
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def bootstrap_interval(values: np.ndarray, groups: np.ndarray | None = None, confidence: float = 0.95, draws: int = 2000,
                       seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, resampling whole groups.

    Args:
        values: (N,) one number a query.
        groups: (N,) which queries belong together (five captions of one clip are no five independent draws); None: each alone.
        draws: bootstrap replicates.  seed: of the resampling.
    Returns: (low, high).
    """
    values = np.asarray(values, dtype=np.float64)
    _, member = np.unique(np.arange(len(values)) if groups is None else np.asarray(groups), return_inverse=True)
    sums, sizes = np.bincount(member, weights=values), np.bincount(member)
    picks = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    means = sums[picks].sum(axis=1) / sizes[picks].sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def mean_interval(values, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean over seeds with its Student t interval.

    Args: values: (S,) one number a seed; one value alone has an infinite interval.
    Returns: (mean, low, high).
    """
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, float("-inf"), float("inf")
    half = float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half
