"""Differences of two spectrograms over frames that hold sound.

Spectrograms are (B, T, F) scaled to -1 .. 1; padding counts in nothing. Means are over all processes (`lib.distributed.mean`).
"""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from lib import distributed

KINDS = ("l1", "l2")
FACTORS = (1, 2, 4, 8)


def reconstruction_loss(prediction: Tensor, target: Tensor, valid: Tensor, kind: str = "l1") -> Tensor:
    """Mean absolute (l1) or squared (l2) difference over the values of valid frames.

    Args: prediction, target: Tensor (B, T, F).  valid: Tensor (B, T) bool.  Returns: scalar, 0 without a valid frame.
    Raises: ValueError: an unknown kind, or shapes that do not fit.
    """
    if kind not in KINDS:
        raise ValueError(f"rec_loss must be one of {', '.join(KINDS)}, got {kind!r}")
    _check(prediction, target, valid)
    difference = prediction - target
    return distributed.mean((difference.abs() if kind == "l1" else difference.square()).mean(dim=2), valid)


def multi_resolution_loss(prediction: Tensor, target: Tensor, valid: Tensor, factors: tuple[int, ...] = FACTORS) -> Tensor:
    """Mean absolute difference of levels and of their slopes at several resolutions.

    At each resolution both are averaged over squares of factor x factor frames and bands; then levels, their steps along time and their
    steps along frequency are compared, with equal weight. A value by value comparison prefers a smooth picture wherever it is unsure;
    slopes ask for its edges, coarse levels for its loudness. Squares with a frame of padding in them do not count.

    Args: as `reconstruction_loss`.  factors: those that exceed a side of the spectrogram are left out.
    Returns: scalar, the mean over resolutions; the shape of what was lost does not matter to it.
    """
    _check(prediction, target, valid)
    pair, found = torch.stack([prediction, target], dim=1), []
    for factor in factors:
        if factor > min(prediction.shape[1:]):
            continue
        pooled = avg_pool2d(pair, factor) if factor > 1 else pair
        whole = -torch.nn.functional.max_pool1d(-valid.float()[:, None], factor)[:, 0]          # 1 where all of its frames are valid
        difference = pooled[:, 0] - pooled[:, 1]
        steps = whole[:, 1:] * whole[:, :-1]
        parts = [(difference, whole), (difference.diff(dim=1), steps), (difference.diff(dim=2), whole)]
        # a single frame or band has no slope
        found += [distributed.mean(part.abs().mean(dim=2), weight) if part.numel() else part.new_zeros(()) for part, weight in parts]
    return torch.stack(found).mean()


def _check(prediction: Tensor, target: Tensor, valid: Tensor) -> None:
    if prediction.ndim != 3 or prediction.shape != target.shape or valid.shape != prediction.shape[:2] or valid.dtype != torch.bool:
        raise ValueError(f"expected two spectrograms (clips, frames, bands) and valid (clips, frames) bool, got {tuple(prediction.shape)}, "
                         f"{tuple(target.shape)} and {tuple(valid.shape)} of {valid.dtype}")
