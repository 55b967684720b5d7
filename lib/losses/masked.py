"""Loss of masked autoencoders: squared error of hidden patches only (He et al., arXiv 2111.06377).

Computed in float32 (float64 input stays float64), also under autocast.
"""
from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-6      # added to a patch's variance: a patch of one colour has none


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sqrt(unbiased variance + 1e-6) of every patch: (..., P) -> two Tensors (..., 1). P is at least 2.

    A patch is normalised as (patch - mean) / scale, and a prediction of normalised patches becomes pixels as
    scale * prediction + mean.
    """
    return patches.mean(dim=-1, keepdim=True), (patches.var(dim=-1, keepdim=True) + EPSILON).sqrt()


def masked_patch_loss(prediction: Tensor, target: Tensor, hidden: Tensor, normalize_patches: bool = False,
                      count: Tensor | float | None = None) -> Tensor:
    """Mean over hidden patches of the mean squared error of a patch's values.

    Args:
        prediction, target: Tensor (B, N, P).  hidden: Tensor (B, N) bool, True where the patch counts.
        normalize_patches: compare with the target's patches brought to mean 0 and variance 1 each (see `patch_statistics`).
        count: what the sum over hidden patches is divided by; None: their number here. Processes that train together give the
            mean of their numbers, and the mean of their losses is then that of one process also where they hide unequally many.
    Returns:
        scalar Tensor, at least 0.
    Raises:
        ValueError: shapes that do not fit, a mask that is not bool, or nothing hidden where no count is given.
    """
    same = prediction.shape == target.shape and prediction.ndim == 3
    if not same or hidden.shape != prediction.shape[:2] or hidden.dtype != torch.bool:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must both be (clips, patches, "
                         f"values), and hidden (clips, patches) bool; it is {tuple(hidden.shape)} {hidden.dtype}")
    if count is None:
        count = hidden.sum()
        if not count:
            raise ValueError("no patch is hidden, so there is nothing to predict; use a mask_ratio above 0, and a batch in which "
                             "some clip has this modality")
    with torch.autocast(prediction.device.type, enabled=False):
        prediction, target = (x if x.dtype == torch.float64 else x.float() for x in (prediction[hidden], target[hidden]))
        if normalize_patches:
            mean, scale = patch_statistics(target)
            target = (target - mean) / scale
        return (prediction - target).square().mean(dim=-1).sum() / count
