"""The game between a model that draws spectrograms and a discriminator that tells them from real ones.

Logits of any shape (B, ...), > 0 for real. All values are means over clips, or over all logits, of all processes, so that two processes
compute what one does: a value is that of all, its gradient this process's part, which data-parallel training averages.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from lib import distributed

KINDS = ("hinge", "vanilla")


def generator_loss(fake: Tensor, kind: str = "hinge") -> Tensor:
    """What the model minimises: the mean of -logit (hinge) or of ln(1 + exp(-logit)) (vanilla).

    Args: fake: logits of what it drew.  ValueError: an unknown kind.
    """
    _check(kind)
    return distributed.mean(-fake if kind == "hinge" else softplus(-fake))


def discriminator_loss(real: Tensor, fake: Tensor, kind: str = "hinge") -> Tensor:
    """What the discriminator minimises: half the sum of the means over real and fake logits.

    hinge: max(0, 1 - real), max(0, 1 + fake); vanilla: ln(1 + exp(-real)), ln(1 + exp(fake)). Knowing nothing (0): 1 and ln 2.
    """
    _check(kind)
    sides = (torch.relu(1 - real), torch.relu(1 + fake)) if kind == "hinge" else (softplus(-real), softplus(fake))
    return 0.5 * sum(distributed.mean(side) for side in sides)


def gradient_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """R1 (Mescheder et al., arXiv 1801.04406): mean over clips of ||d(sum of logits) / d(real spectrogram)||^2.

    Args: discriminator: differentiable twice.  real: Tensor (B, T, F).  Returns: scalar, differentiable in its parameters.
    """
    real = real.detach().requires_grad_()
    gradient, = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
    return distributed.mean(gradient.square().flatten(1).sum(dim=1))


def lazy_r1(penalty: Tensor, weight: float, every: int) -> Tensor:
    """The penalty's term where it is computed in one of `every` steps only (StyleGAN2): weight / 2 * every * penalty."""
    return weight / 2 * every * penalty


def _check(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"disc_loss must be one of {', '.join(KINDS)}, got {kind!r}")
