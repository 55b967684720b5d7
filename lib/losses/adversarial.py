"""Embeddings that do not tell their modality: a classifier of audio against text behind a reversed gradient.

The classifier learns to separate the two, the encoders, which receive its gradient times -strength, to prevent it (Ganin and
Lempitsky, arXiv 1409.7495). At the equilibrium the loss is ln 2 = 0.693 and the accuracy 1/2: for the encoders the loss is not
meant to fall, and well below ln 2 the classifier is winning. Logits are > 0 for text; computed in float32 outside autocast.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, normalize


def reverse_gradient(x: Tensor, strength: float) -> Tensor:
    """x itself; its gradient is multiplied by -strength on the way back.

    Args:
        x: Tensor of any shape.
        strength: >= 0; 0 cuts the gradient off.
    Raises:
        ValueError: a strength that is negative or not finite.
    """
    if not 0 <= strength < math.inf:
        raise ValueError(f"strength must be a finite number of at least 0, got {strength} (the sign is turned in here)")
    return _Reverse.apply(x, float(strength))


def warm_up(strength: float, epoch: int, epochs: int) -> float:
    """The strength in an epoch, counted from 0: strength (epoch + 1) / epochs, at most the full one; epochs = 0: constant."""
    if epoch < 0 or epochs < 0:
        raise ValueError(f"epoch and epochs must be at least 0, got {epoch} and {epochs}")
    return strength * min(1.0, (epoch + 1) / epochs) if epochs else strength


class ModalityClassifier(nn.Module):
    """Linear layers with ReLU between them, from an embedding to one logit: > 0 says text.

    Args:
        dim: size D of the embeddings.
        hidden: widths of the hidden layers, () for none; None: D/2, D/4, D/8, D/16 (174,593 parameters at D = 512).
        unit: embeddings are brought to length 1 first. As they are (the original), the encoders can escape the classifier by
            growing or shrinking a modality, which no similarity shows.
    Raises:
        ValueError: a width below 1, or None with D < 32, which would leave a single unit in the last hidden layer.
    """

    def __init__(self, dim: int, hidden: Sequence[int] | None = None, unit: bool = False):
        super().__init__()
        self.unit = unit
        if hidden is None and dim < 32:
            raise ValueError(f"embeddings of size {dim} leave {dim // 16} unit(s) in the last of the default layers (size/16): "
                             "use size 32 or more, or give the widths in `hidden`")
        widths = [dim, *((dim // 2, dim // 4, dim // 8, dim // 16) if hidden is None else hidden), 1]
        if min(widths) < 1:
            raise ValueError(f"every width must be at least 1, got {widths[:-1]}")
        layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits (N,) of embeddings (N, D)."""
        with torch.autocast(embeddings.device.type, enabled=False):
            x = embeddings.to(self.layers[0].weight.dtype)
            return self.layers(normalize(x, dim=-1) if self.unit else x).squeeze(-1)


def modality_loss(audio_logits: Tensor, text_logits: Tensor) -> Tensor:
    """Mean binary cross-entropy over all rows: audio is 0, text is 1.

    Args:
        audio_logits, text_logits: Tensor (N,) and (M,).
    Returns:
        scalar Tensor, float32 (float64 input stays float64); ln 2 for a classifier that knows nothing.
    Raises:
        ValueError: not one logit a row, or a side without rows.
    """
    _check(audio_logits, text_logits)
    with torch.autocast(audio_logits.device.type, enabled=False):
        logits = torch.cat([audio_logits, text_logits])
        logits = logits if logits.dtype == torch.float64 else logits.float()
        labels = torch.cat([torch.zeros_like(audio_logits), torch.ones_like(text_logits)]).to(logits)
        return binary_cross_entropy_with_logits(logits, labels)


def modality_accuracy(audio_logits: Tensor, text_logits: Tensor) -> float:
    """Share of rows whose modality the sign of the logit names, the mean of both modalities: chance is 1/2 for any N and M.

    Args:
        audio_logits, text_logits: Tensor (N,) and (M,); a logit of exactly 0 counts 1/2.
    Raises:
        ValueError: as for `modality_loss`.
    """
    _check(audio_logits, text_logits)
    right = [((1 + side.detach().double().sign()) / 2).mean() for side in (-audio_logits, text_logits)]
    return float(sum(right) / 2)


def _check(audio_logits: Tensor, text_logits: Tensor) -> None:
    if audio_logits.ndim != 1 or text_logits.ndim != 1 or not len(audio_logits) or not len(text_logits):
        raise ValueError(f"logits must be (rows,), one a row and at least one a modality, got audio {tuple(audio_logits.shape)} "
                         f"and text {tuple(text_logits.shape)}")


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)     # a new node of the graph: returning x itself would hand back the input

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return -ctx.strength * gradient, None
