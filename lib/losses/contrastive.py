"""Contrastive losses between two sets of unit vectors: several positives a row, or estimated correspondences as targets.

Logits are cosine similarities divided by a temperature, rows are audio clips (A), columns are texts (T). Computed in float32
(float64 input stays float64).
"""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softmax


def contrastive_loss(logits: Tensor, positives: Tensor | None = None, reduction: str = "pairs") -> Tensor:
    """Symmetric cross-entropy over audios and over texts with a mask of positive pairs.

    -1/2 [mean over positive pairs of log_softmax over audios (axis 0) + the same over texts (axis 1)].

    Args:
        logits: Tensor (A, T), similarities divided by the temperature.
        positives: Tensor (A, T) bool; None: the diagonal (A = T).
        reduction: "pairs": every positive pair counts once (the public DCASE 2025 Task 6 baseline);
            "rows": the mean over a row's positives first, then over rows (supervised contrastive, arXiv 2004.11362, L_out);
            "mass": -ln(sum over a row's positives of exp / sum over all of exp), then the mean over rows. Its floor is 0, also
            where rows have several positives, because finding one of them is enough; the other two ask for all alike, and a
            row with k positives has ln k as its least loss.
    Returns:
        scalar Tensor. A uniform model gives (ln A + ln T) / 2, and by ln k a row less with "mass".
    Raises:
        ValueError: shapes differ, no positive pair at all, or an unknown reduction.
    """
    if positives is None:
        if logits.shape[0] != logits.shape[1]:
            raise ValueError(f"without positives logits must be square, got {tuple(logits.shape)}; pass positives (A, T) bool")
        positives = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    if positives.shape != logits.shape:
        raise ValueError(f"positives {tuple(positives.shape)} and logits {tuple(logits.shape)} must have one shape")
    if not positives.any():
        raise ValueError("no positive pair in the batch: every audio needs at least one caption of its own")
    if reduction not in ("pairs", "rows", "mass"):
        raise ValueError(f"reduction must be 'pairs', 'rows' or 'mass', got {reduction!r}")
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return (_one_way(logits, positives, 1, reduction) + _one_way(logits, positives, 0, reduction)) / 2


def _one_way(logits: Tensor, positives: Tensor, axis: int, reduction: str) -> Tensor:
    scores = -log_softmax(logits, dim=axis)
    if reduction == "pairs":
        return scores[positives].mean()
    counts = positives.sum(dim=axis)
    if reduction == "mass":
        # the lowest number instead of -inf: rows without a positive, left out below, then have no gradient rather than NaN
        per_row = -torch.where(positives, -scores, torch.finfo(scores.dtype).min).logsumexp(dim=axis)
    else:
        # where(): rows without a positive have 0/1 = 0 and are left out of the mean below
        per_row = torch.where(positives, scores, 0).sum(dim=axis) / counts.clamp(min=1)
    return per_row[counts > 0].mean()


def estimated_loss(logits: Tensor, estimates: Tensor) -> Tensor:
    """Symmetric cross-entropy towards correspondences that other models estimate, instead of one clip - one caption.

    With p = softmax of `logits` and q = softmax of `estimates`, over audios (axis 0) and over texts (axis 1):
    -1/2 [mean over texts of sum_audios q log p + mean over audios of sum_texts q log p]
    (Primus, Schmid, Widmer: Estimated audio-caption correspondences improve language-based audio retrieval, arXiv 2408.11641).

    Args:
        logits: Tensor (A, T), the model's similarities over its temperature.
        estimates: Tensor (A, T), those of the other models (the mean of several); no gradient flows to them.
    Returns:
        scalar Tensor, at least the mean entropy of q, which it reaches where p = q.
    Raises:
        ValueError: shapes differ.
    """
    if estimates.shape != logits.shape:
        raise ValueError(f"estimates {tuple(estimates.shape)} and logits {tuple(logits.shape)} must have one shape")
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits if logits.dtype == torch.float64 else logits.float()
        estimates = estimates.detach().to(logits)
        return -sum((softmax(estimates, axis) * log_softmax(logits, axis)).sum(axis).mean() for axis in (0, 1)) / 2
