"""Localisation error: the angle between predicted and true directions, in degrees.

A direction is a vector (x front, y left, z up) whose length does not count. Of several events in one clip each prediction belongs
to the event that the assignment with the smallest mean angle gives it: slots of the model have no order.
"""
from __future__ import annotations

from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from lib.evaluation.statistics import bootstrap_interval
from lib.randomness import generator

CLOSE = 20.0            # degrees, the threshold that localisation and detection tasks count a hit by (DCASE task 3)
_MOST_EVENTS = 4        # 24 assignments are compared one by one
_CHANCE_DRAWS = 100_000  # random predictions behind the chance level: its standard error is below 0.15 degrees
_SHUFFLES = 20          # random pairings behind the control


def angular_error(predicted: Tensor | np.ndarray, target: Tensor | np.ndarray) -> Tensor:
    """Angle between predicted and true directions under the best assignment.

    Args:
        predicted: (N, E, 3) of any length; a zero vector points nowhere and counts 90 degrees.
        target: (N, E, 3) of any length above 0; E from 1 to 4.
    Returns:
        (N, E) float64 degrees in [0, 180], one for each true event in the order of `target`.
    Raises:
        ValueError: shapes differ (one-event targets for two predicted events), E > 4, no direction (zero) as target, NaN.
    """
    predicted, target = _directions(predicted, target)
    # Kahan's half angle: exact for nearly equal and nearly opposite vectors, where the arc cosine loses half of the digits and
    # leaves [-1, 1] by rounding; and 90 degrees for the zero vector without a special case.
    towards, own = predicted[:, :, None], target[:, None]
    angles = 2 * torch.atan2((towards - own).norm(dim=-1), (towards + own).norm(dim=-1))        # (N, E predicted, E true)
    orders = torch.tensor(list(permutations(range(target.shape[1]))), device=angles.device)     # (P, E): prediction of each event
    options = angles[:, orders, torch.arange(target.shape[1], device=angles.device)]            # (N, P, E)
    best = options.mean(dim=2).argmin(dim=1)
    return torch.rad2deg(options[torch.arange(len(options), device=best.device), best])


def localization_metrics(predicted: Tensor | np.ndarray, target: Tensor | np.ndarray, groups: np.ndarray | None = None,
                         seed: int = 0) -> dict:
    """Localisation error of a set of clips, beside chance and a control.

    Chance is the expected error of predictions drawn uniformly from the sphere against these very targets (Monte Carlo, seeded):
    90 degrees for one event, 74.9 for two events whose directions are uniform, too. The control gives each clip the predictions
    of a clip of another group: a model that only knows how directions are distributed in the data does no better than this.

    Args:
        predicted, target: (N, E, 3) as `angular_error`.
        groups: (N,) which clips belong together (the members of a triplet share their places); None: each alone.
        seed: of the draws.
    Returns:
        "mean", "median" of all N * E errors in degrees, "interval" of the mean (low, high; resampling groups), "below_20": share
        of errors under 20 degrees with "below_20_interval", "chance" and "control": each {"mean", "median", "below_20"}, "n",
        "events".
    Raises:
        ValueError: as `angular_error`; no clip; groups of another length, or one group with more than half of the clips.
    """
    predicted, target = _directions(predicted, target)
    n, events = target.shape[:2]
    groups = np.arange(n) if groups is None else np.asarray(groups)
    if n == 0 or groups.shape != (n,):
        raise ValueError(f"groups {groups.shape} must tell the group of each of {n} clips, at least one")
    errors = angular_error(predicted, target)
    random = generator(seed, "localisation chance")      # a stream of its own: targets may come from default_rng(seed)
    drawn = torch.from_numpy(random.normal(size=(max(1, _CHANCE_DRAWS // n) * n, events, 3))).to(target.device)
    others = [angular_error(predicted[torch.from_numpy(_elsewhere(groups, random))], target) for _ in range(_SHUFFLES)]
    per_clip = errors.cpu().numpy()
    return _summary(errors) | {
        "interval": bootstrap_interval(per_clip.mean(axis=1), groups, seed=seed),
        "below_20_interval": bootstrap_interval((per_clip < CLOSE).mean(axis=1), groups, seed=seed),
        "chance": _summary(angular_error(drawn, target.repeat(len(drawn) // n, 1, 1))),
        "control": _summary(torch.cat(others)), "n": n, "events": events}


def _directions(predicted, target) -> tuple[Tensor, Tensor]:
    """Both as float64 unit vectors; predictions of zero length stay zero."""
    predicted, target = (torch.as_tensor(x).detach().double() for x in (predicted, target))
    if predicted.shape != target.shape or target.ndim != 3 or target.shape[2] != 3 or not 1 <= target.shape[1] <= _MOST_EVENTS:
        raise ValueError(f"predicted {tuple(predicted.shape)} and target {tuple(target.shape)} must both be (N, events, 3) with "
                         f"1 to {_MOST_EVENTS} events; a model of two events cannot be scored on clips of one: set its number of "
                         "events")
    for name, vectors in (("predicted", predicted), ("target", target)):
        wrong = ~vectors.isfinite().all(dim=2)
        if name == "target":
            wrong |= vectors.norm(dim=2) == 0
        if wrong.any():
            clip, event = wrong.nonzero()[0].tolist()
            raise ValueError(f"{name} of clip {clip}, event {event} is no direction: {vectors[clip, event].tolist()}")
    lengths = [x.norm(dim=2, keepdim=True) for x in (predicted, target)]
    return predicted / lengths[0].masked_fill(lengths[0] == 0, 1.0), target / lengths[1]


def _summary(errors: Tensor) -> dict[str, float]:
    errors = errors.cpu().numpy()
    return {"mean": float(errors.mean()), "median": float(np.median(errors)), "below_20": float((errors < CLOSE).mean())}


def _elsewhere(groups: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """For each clip a clip of another group, each taken once: groups in random order, shifted by the largest group."""
    member, sizes = np.unique(groups, return_inverse=True, return_counts=True)[1:]
    if 2 * sizes.max() > len(groups):
        raise ValueError(f"one group holds {sizes.max()} of {len(groups)} clips: the control needs clips of other groups for "
                         "each; score more clips")
    rows = np.lexsort((random.random(len(groups)), random.permutation(len(sizes))[member]))
    chosen = np.empty(len(groups), np.int64)
    chosen[rows] = np.roll(rows, sizes.max())
    return chosen
