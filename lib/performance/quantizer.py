"""Binary spherical quantizer against vector-quantize-pytorch's spherical LFQ: forward and backward of tokens of 18 bits.

LFQ in training mode with two codebooks of 2^9 codes and its per-sample entropy on all tokens, as it comes. Ours is given what LFQ does
inside: each half of a token at unit length.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lib.performance.measure import Comparison, Growth, compare, growth, need
from lib.quantize.bsq import BinarySphericalQuantizer

BITS, CLIPS, TOKENS, TEMPERATURE = 18, 32, 512, 100.0       # LFQ's default temperature
ASKED = {("analytical", 1): 15.0, ("group", 9): 1.3}
PEER = "LFQ of vector-quantize-pytorch"


def halves(clips: int = CLIPS, seed: int = 0) -> Tensor:
    """Tokens (clips, 512, 18) whose halves are of unit length."""
    random = torch.randn(clips, TOKENS, 2, BITS // 2, generator=torch.Generator().manual_seed(seed))
    return normalize(random, dim=-1).flatten(-2)


def ours(way: str, size: int) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Codes, loss and per-sample entropy of a codebook of half the bits. Log-odds 4 T s z: the scale is 1 / sqrt(18) here, 1 / 3 in LFQ."""
    made = BinarySphericalQuantizer(BITS, size, TEMPERATURE * 2**0.5, way).train()

    def quantize(tokens):
        found = made(tokens)
        return found.codes, found.loss, found.persample_entropy / 2
    return quantize


def library() -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """The same of LFQ."""
    made = need("vector_quantize_pytorch", "vector-quantize-pytorch").LFQ(codebook_size=2**9, num_codebooks=2, dim=BITS, spherical=True).train()

    def quantize(tokens):
        (codes, _, loss), parts = made(tokens, inv_temperature=TEMPERATURE, return_loss_breakdown=True)
        return codes, loss, parts.per_sample_entropy
    return quantize


def run(quantize: Callable, z: Tensor) -> float:
    """Forward and backward of tokens (clips, tokens, bits); the per-sample entropy in nats."""
    weight = torch.linspace(-1, 1, z.shape[-1])
    tokens = z.clone().requires_grad_()
    codes, loss, entropy = quantize(tokens)
    ((codes * weight).mean() + loss).backward()
    return float(entropy.detach())


def compared(clips: int = CLIPS, repetitions: int = 5, seed: int = 0) -> list[Comparison]:
    """Bit by bit and over groups of 9 bits. AssertionError where the entropies differ by more than 1e-4 nats."""
    z, found, theirs = halves(clips, seed), [], library()
    for (way, size), asked in ASKED.items():
        own = ours(way, size)
        difference = abs(run(own, z) - run(theirs, z))
        assert difference <= 1e-4, f"per-sample entropies differ by {difference:.1e} nats"
        found.append(compare(f"BSQ {way}, groups of {size}, {clips} x {TOKENS} tokens", PEER, lambda: run(own, z), lambda: run(theirs, z), repetitions,
                             asked=asked, cores=torch.get_num_threads(), note=f"per-sample entropies differ by {difference:.1e} nats"))
    return found


def grown(sizes=(14_336, 28_672, 57_344, 114_688), group_sizes=(4096, 8192, 16_384, 32_768), repetitions: int = 3) -> list[Growth]:
    """Over tokens, multiples of 512. Codes are enumerated 2^22 at a time: that memory is bounded, for groups of 9 bits from 4,096 tokens on
    (so that it is no power law), bit by bit only beyond 116,508 tokens, more than are measured here."""
    z = halves(max(*sizes, *group_sizes) // TOKENS)

    def make(own):
        return lambda count: lambda: run(own, z[:count // TOKENS])
    return [growth("BSQ analytical, forward and backward", "tokens", make(ours("analytical", 1)), sizes, repetitions),
            growth("BSQ groups of 9, forward and backward", "tokens", make(ours("group", 9)), group_sizes, repetitions, memory_order=None)]
