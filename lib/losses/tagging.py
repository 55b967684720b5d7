"""Losses of clips against all classes at once: no noise from which classes share a batch, several true classes a clip.

Logits are similarities divided by the temperature, rows are clips (B), columns are classes (C). Clips without a true class are
left out of the mean. Computed in float32 (float64 input stays float64). Every loss has the floor 0, so that runs compare; a model
that finds all classes alike is at ln(C / |P|) with "softmax" and "sum" (|P| true classes a clip) and at ln 2 with "sigmoid".
"""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax

KINDS = ("softmax", "sum", "sigmoid")


def class_loss(logits: Tensor, targets: Tensor, kind: str = "softmax", bias: float | Tensor = 0.0) -> Tensor:
    """Mean over clips of one of three losses; P are the true classes of a clip, p the softmax over classes.

    - "softmax": -mean_P ln p - ln |P|, the cross-entropy against a uniform target over P (supervised contrastive, arXiv
      2004.11362, L_out) less its own floor ln |P|: 0 where p is uniform over P, so it asks for all true classes alike.
    - "sum": -ln sum_P p: 0 where all of p is within P, however unevenly; finding one true class is enough.
    - "sigmoid": the mean over classes of the binary cross-entropy (SigLIP's pairwise loss, arXiv 2303.15343, divided by C).

    Args:
        logits: Tensor (B, C).
        targets: Tensor (B, C) bool.
        kind: one of `KINDS`.
        bias: added to the logits of "sigmoid", a number or Tensor () or (C,), learnable: similarities that never pass 0 (negative
            distances) need one. The other kinds do not see a shift and refuse it.
    Returns:
        scalar Tensor, >= 0 up to rounding.
    Raises:
        ValueError: shapes differ, no clip has a true class, an unknown kind, or a bias that has no effect.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind != "sigmoid" and (isinstance(bias, Tensor) or bias):
        raise ValueError(f"a bias has an effect with kind 'sigmoid' only, not with {kind!r}; leave it out")
    if targets.shape != logits.shape or logits.ndim != 2:
        raise ValueError(f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} must have one shape (clips, classes)")
    targets = targets.bool()
    labelled = targets.any(dim=1)
    if not labelled.any():
        raise ValueError("no clip of the batch has a true class; leave clips without labels out of training")
    with torch.autocast(logits.device.type, enabled=False):
        logits = (logits if logits.dtype == torch.float64 else logits.float())[labelled]
        targets = targets[labelled]
        if kind == "sigmoid":
            return binary_cross_entropy_with_logits(logits + bias, targets.to(logits.dtype))
        log_p = log_softmax(logits, dim=1)
        if kind == "sum":
            return -log_p.masked_fill(~targets, float("-inf")).logsumexp(dim=1).mean()
        count = targets.sum(dim=1, dtype=logits.dtype)
        return -(log_p.masked_fill(~targets, 0).sum(dim=1) / count + count.log()).mean()
