"""Which member of a triplet does a caption belong to? A classification within each group of three, not against other groups.

Rows 3b, 3b+1, 3b+2 of a batch are the positive (two events in an order, each at a place), its temporal negative (the order
reversed) and its spatial negative (the places exchanged). Every member has its own audio and its own caption.
"""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


def three_way_loss(audio: Tensor, text: Tensor, scale: float | Tensor) -> Tensor:
    """Cross-entropy of naming the positive among the three members, by its caption and by its audio.

    With a, x the rows of audio and text at unit length and p the positives' rows, the mean over triplets and both directions of
    CE(scale [x_p.a_p, x_p.a_p+1, x_p.a_p+2], 0) and CE(scale [a_p.x_p, a_p.x_p+1, a_p.x_p+2], 0). Only positives are anchors.

    Args:
        audio, text: Tensor (3B, D) of any length: they are normalised here, once.
        scale: what multiplies the similarities (1/temperature), a number or 0-dim Tensor, learnable.
    Returns:
        scalar Tensor >= 0, float32 (float64 input stays float64). A model that cannot tell the members apart is at ln 3.
    Raises:
        ValueError: shapes differ, or the rows are not whole triplets.
    """
    if audio.shape != text.shape or audio.ndim != 2:
        raise ValueError(f"audio {tuple(audio.shape)} and text {tuple(text.shape)} must have one shape (3 x triplets, size)")
    if len(audio) == 0 or len(audio) % 3:
        raise ValueError(f"{len(audio)} rows are no whole triplets: the rows of each must be positive, temporal negative, "
                         "spatial negative")
    with torch.autocast(audio.device.type, enabled=False):
        a, x = (_members(rows) for rows in (audio, text))
        target = torch.zeros(len(a), dtype=torch.long, device=a.device)
        to_audio, to_text = (x[:, :1] * a).sum(-1), (a[:, :1] * x).sum(-1)      # (B, 3); no product that TF32 could round
        return (cross_entropy(scale * to_audio, target) + cross_entropy(scale * to_text, target)) / 2


def _members(rows: Tensor) -> Tensor:
    """(3B, D) to unit vectors (B, 3, D)."""
    rows = rows if rows.dtype == torch.float64 else rows.float()
    # eps: a zero row stays zero (similarity 0 to all) with a gradient of at most 1e6 instead of none that is finite
    return normalize(rows, dim=-1, eps=1e-6).unflatten(0, (-1, 3))
