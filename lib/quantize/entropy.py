"""Entropies of codes made of independent bits: exact, without writing down all probabilities of all tokens at once.

Convention: a bit is 1 with log-odds `logit`; a code is g bits, its index has the first of them as the most significant. Entropies are
in nats with 1e-8 inside the logarithm and no renormalisation.
"""
from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

INSIDE_LOG = 1e-8       # protects ln(0) of codes that a token rules out; part of the definition of the entropies
# Probabilities enumerated at a time, 16 MB in float32. Fewer would fit a CPU's cache, which saves a quarter on one thread; but threads
# that meet after every small step lose many times that where the cores are shared with other work.
CODES_TOGETHER = 2**22


def entropy_of(probability: Tensor) -> Tensor:
    """-sum p ln(p + 1e-8) over the last axis: Tensor (..., codes) -> (...)."""
    return -(probability * (probability + INSIDE_LOG).log()).sum(-1)


def code_probabilities(logits: Tensor) -> Tensor:
    """Probabilities of all codes of independent bits.

    With logits 4 T s z this is the softmax of 2 T <z, c> over the codes c, without computing the products: as each factor belongs to
    one bit, so does the normaliser.

    Args:
        logits: Tensor (..., g), log-odds of each bit being 1.
    Returns:
        Tensor (..., 2^g) that sums to 1, in the order of the codes' indices.
    """
    both = torch.stack([torch.sigmoid(-logits), torch.sigmoid(logits)], -1)     # 1 - sigmoid would lose what is close to 0
    probability = logits.new_ones(*logits.shape[:-1], 1)
    for bit in range(logits.shape[-1]):
        probability = (probability[..., :, None] * both[..., bit, None, :]).flatten(-2)
    return probability


def probability_sums(logits: Tensor) -> Tensor:
    """Sum over tokens of `code_probabilities`: Tensor (tokens, groups, g) -> (groups, 2^g).

    Each group is cut in two halves, whose probabilities (2^(g/2) numbers a token) are multiplied in one matrix product over the
    tokens: the 2^g probabilities of a token are never written down.
    """
    half = logits.shape[-1] // 2
    left, right = (code_probabilities(part).movedim(0, -1) for part in (logits[..., :half], logits[..., half:]))
    return (left @ right.mT).flatten(1)


def code_entropy(logits: Tensor) -> Tensor:
    """`entropy_of(code_probabilities(logits))`, some tokens at a time: memory does not grow with tokens times codes.

    Args:
        logits: Tensor (..., g).
    Returns:
        Tensor (...), nats.
    """
    return _CodeEntropy.apply(logits)


class _CodeEntropy(torch.autograd.Function):
    """Entropy over codes; the gradient to the logits is found along the way, while the probabilities are at hand.

    With G_c = -dH/dp_c = ln(p_c + e) + p_c / (p_c + e) and b_ci the bits of code c, dH/dlogit_i = -sum_c p_c G_c (b_ci - mean of b_i).
    """

    @staticmethod
    def forward(ctx, logits: Tensor) -> Tensor:
        size, rows = logits.shape[-1], logits.flatten(0, -2)
        together = max(1, min(len(rows), CODES_TOGETHER >> size))
        codes = torch.arange(1 << size, device=logits.device)[:, None]
        bits = (codes >> torch.arange(size - 1, -1, -1, device=logits.device) & 1).to(logits.dtype)
        bits_and_one = torch.cat([bits, torch.ones_like(bits[:, :1])], -1)
        left, right = (code_probabilities(part) for part in (rows[:, :size // 2], rows[:, size // 2:]))
        # memory for all steps: fresh pages would cost as much time as what is computed in them
        scratch = [rows.new_empty(together, 1 << size) for _ in range(3)]
        found, sums = rows.new_empty(len(rows)), rows.new_empty(len(rows), size + 1)
        for begin in range(0, len(rows), together):
            part = slice(begin, begin + together)
            probability, inside, logarithm = (memory[:len(found[part])] for memory in scratch)
            torch.mul(left[part, :, None], right[part, None, :], out=probability.unflatten(1, (left.shape[1], -1)))
            torch.log(torch.add(probability, INSIDE_LOG, out=inside), out=logarithm)
            torch.linalg.vecdot(probability, logarithm, out=found[part])
            if ctx.needs_input_grad[0]:
                weighted = torch.div(probability, inside, out=inside).add_(logarithm).mul_(probability)        # p G
                torch.mm(weighted, bits_and_one, out=sums[part])
        if ctx.needs_input_grad[0]:
            gradient = torch.sigmoid(rows).mul_(sums[:, -1:]).sub_(sums[:, :-1])
            ctx.save_for_backward(gradient.view(logits.shape))
        return found.neg_().view(logits.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        return ctx.saved_tensors[0] * gradient[..., None]
