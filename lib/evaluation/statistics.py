"""Intervals: for a proportion, for a mean over queries or seeds, for the difference of two models on the same clips.

Differences are always the first minus the second. Both models answer the same clips, so clips (or groups of them) are resampled
for both at once: what makes a clip hard for both cancels.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from lib.progress import track

_AT_A_TIME = 1 << 22  # resampled values held at a time


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
    return _percentiles(_resampled_means(np.asarray(values, dtype=np.float64)[None], groups, draws, seed), confidence)


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


def paired_bootstrap(a: np.ndarray, b: np.ndarray, groups: np.ndarray | None = None, confidence: float = 0.95, draws: int = 2000,
                     seed: int = 0) -> tuple[float, float, float]:
    """Mean of a - b with its percentile bootstrap interval over clips.

    Args:
        a, b: (N,) one number a clip from either model, in the same order.
        groups, confidence, draws, seed: as `bootstrap_interval`.
    Returns: (mean difference, low, high).
    Raises: ValueError: a and b are not of one shape (N,), or not finite.
    """
    difference = _differences(a, b)
    if difference.shape[0] != 1:
        raise ValueError(f"a {np.shape(a)} and b {np.shape(b)} must be (N,); several seeds go to paired_seeds")
    return float(difference.mean()), *_percentiles(_resampled_means(difference, groups, draws, seed), confidence)


def paired_seeds(a: np.ndarray, b: np.ndarray, groups: np.ndarray | None = None, confidence: float = 0.95, draws: int = 2000,
                 seed: int = 0) -> tuple[float, float, float]:
    """Mean of a - b over S training seeds and N clips, with an interval that asks for both: other seeds and other clips.

    Every draw resamples seeds and, independently, clips, both with replacement (bootstrap of crossed factors, Owen 2007). S - 1
    of S seeds are drawn: S of so few would understate the variance between seeds by the factor (S - 1)/S, S - 1 give it without
    bias (Rao and Wu 1988). Percentiles know nothing of Student's t: below about five seeds the interval is still too narrow.
    One seed alone says nothing about others: the interval is then over clips only.

    Args:
        a, b: (S, N), row s of both from the same seed; (N,) for a model without seeds, which is set beside each row of the other.
        groups: (N,) as `bootstrap_interval`.
    Returns: (mean difference, low, high).
    Raises: ValueError: shapes that do not fit, or values that are not finite.
    """
    difference = _differences(a, b)
    return float(difference.mean()), *_percentiles(_resampled_means(difference, groups, draws, seed), confidence)


def bootstrap_difference(metric: Callable[..., np.ndarray], scores_a, scores_b, targets, groups: np.ndarray | None = None,
                         confidence: float = 0.95, draws: int = 500, seed: int = 0) -> tuple[float, float, float]:
    """Difference of a metric that is no mean over clips (mAP macro), with the interval of `paired_seeds`.

    A resampled set is a weight for each clip, how often it was drawn: the metric sorts its scores once for all draws. These are
    moved so that their mean is the difference found, for they are biased and it is their spread that counts: a class with few
    positives is missing from many draws, and where one of its positives is drawn twice, each copy helps the other's precision.

    Args:
        metric: (scores (N, C), targets (N, C), weights (B, N)) -> (B,), for example `tagging.weighted_map_macro`.
        scores_a, scores_b: (N, C), or one such for each of S seeds (a sequence, or (S, N, C)); S may be 1 for one of the two.
        targets: (N, C) bool.
        groups, confidence, seed: as `paired_seeds`.  draws: bootstrap replicates.
    Returns: (difference of the means over seeds, low, high).
    Raises: ValueError: numbers of seeds that do not fit; what the metric raises.
    """
    models = [[scores] if np.ndim(scores[0]) == 1 else list(scores) for scores in (scores_a, scores_b)]
    seeds = max(map(len, models))
    if not {len(model) for model in models} <= {1, seeds}:
        raise ValueError(f"scores of {len(models[0])} and of {len(models[1])} seeds: expected as many, or one")
    random = np.random.default_rng(seed)
    member, sizes = _members(len(targets), groups)
    chosen = _seed_weights(random, draws, seeds)
    picks = random.integers(len(sizes), size=(draws, len(sizes))) + len(sizes) * np.arange(draws)[:, None]
    counts = np.bincount(picks.ravel(), minlength=draws * len(sizes)).reshape(draws, len(sizes))
    weights = np.concatenate([np.ones((1, len(member))), counts[:, member]])                    # first the clips as they are
    todo = [scores for model in models for scores in model]
    values = np.stack([metric(scores, targets, weights) for scores in track(todo, len(todo), "score sets resampled")])
    per_seed = values[:len(models[0])] - values[len(models[0]):]                                # (S, draws + 1)
    found, drawn = float(per_seed[:, 0].mean()), (chosen * per_seed[:, 1:].T).sum(axis=1)
    return found, *_percentiles(drawn - drawn.mean() + found, confidence)


def _differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a - b as (S, N) float64."""
    a, b = (np.atleast_2d(np.asarray(x, dtype=np.float64)) for x in (a, b))
    if not a.ndim == b.ndim == 2 or a.shape[1] != b.shape[1] or not {len(a), len(b)} <= {1, max(len(a), len(b))} or not a.size:
        raise ValueError(f"a {a.shape} and b {b.shape} must hold the same clips in the same order: (N,), or (S, N) with one S")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a or b holds NaN or infinity; leave out clips that the metric is not defined for, in both")
    return a - b


def _members(n: int, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Group number of each of n clips, and the groups' sizes; None: each clip is its own."""
    if groups is not None and len(groups) != n:
        raise ValueError(f"groups tells of {len(groups)} clips; there are {n}")
    _, member = np.unique(np.arange(n) if groups is None else np.asarray(groups), return_inverse=True)
    return member, np.bincount(member)


def _seed_weights(random: np.random.Generator, draws: int, seeds: int) -> np.ndarray:
    """How much each seed counts in each draw, (draws, seeds), rows summing to 1; see `paired_seeds`."""
    if seeds == 1:
        return np.ones((draws, 1))
    return random.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=draws) / (seeds - 1)


def _resampled_means(values: np.ndarray, groups: np.ndarray | None, draws: int, seed: int) -> np.ndarray:
    """Means (draws,) of values (S, N) over resampled seeds and groups of clips."""
    random = np.random.default_rng(seed)
    member, sizes = _members(values.shape[1], groups)
    sums = np.stack([np.bincount(member, weights=row) for row in values])
    chosen, means = _seed_weights(random, draws, len(values)), np.empty(draws)
    step = max(1, _AT_A_TIME // len(sizes))
    for start in range(0, draws, step):
        of_draw = chosen[start:start + step] @ sums
        picks = random.integers(len(sizes), size=of_draw.shape)
        means[start:start + step] = np.take_along_axis(of_draw, picks, axis=1).sum(axis=1) / sizes[picks].sum(axis=1)
    return means


def _percentiles(draws: np.ndarray, confidence: float) -> tuple[float, float]:
    """The middle `confidence` of the draws: (low, high)."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
