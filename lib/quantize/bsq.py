"""Binary spherical quantization (Zhao, Xiong, Kraehenbuehl: arXiv 2406.07548): a unit vector becomes the signs of its coordinates.

Convention: a token is a vector of L = `bits` coordinates of unit length, and its code is +-s in each, s = 1 / sqrt(L), so that codes
are corners of a cube inside the same sphere. A bit is 1 where the coordinate is greater than 0. The first coordinate is the most
significant bit, of an index as of the index of a group of neighbouring bits. Entropies are in nats, with 1e-8 inside the logarithm.
Losses are means over the real tokens of all processes: each process computes the same loss (see lib.distributed).
"""
from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib import distributed
from lib.quantize.entropy import code_entropy, entropy_of, probability_sums

LARGEST_INDEX = 63      # bits of an index that int64 holds without its sign
LARGEST_GROUP = 20      # bits of a group whose codes are enumerated: the average of 2^20 probabilities is 4 MB


class Quantized(NamedTuple):
    """What a quantizer returns for tokens (B, N, width).

    codes: (B, N, width) what the decoder sees; gradients pass straight through.
    indices: (B, N) int64, the bits of a token as one number; None where more than 63 bits do not fit into one.
    group_indices: (B, N, groups) int64, the same bits group by group.
    loss: scalar, what training adds to the reconstruction loss (before its own weight).
    persample_entropy: scalar, nats a token, summed over groups: how undecided tokens are.
    codebook_entropy: scalar, nats, summed over groups: how evenly the codes are used. An upper bound of the entropy of whole codes.
    commitment: scalar, squared distance of a token from its code.
    average_probability: (groups, codes of a group): how likely each code is, averaged over tokens.
    """

    codes: Tensor
    indices: Tensor | None
    group_indices: Tensor
    loss: Tensor
    persample_entropy: Tensor
    codebook_entropy: Tensor
    commitment: Tensor
    average_probability: Tensor


class BinarySphericalQuantizer(nn.Module):
    """Unit vectors to codes +-s, with the entropy regulariser and the commitment of BSQ. It has no parameters.

    loss = beta * commitment + zeta * (gamma0 * persample_entropy - gamma * codebook_entropy) / inverse_temperature

    Args:
        bits: L, coordinates of a token.
        group_size: neighbouring bits whose 2^group_size codes are looked at together; divides `bits`.
        inverse_temperature: T; a bit is 1 with probability sigmoid(4 T s z). On the unit sphere T = 1 leaves every bit nearly
            undecided, so that the per-sample term has next to no gradient; 10 to 100 makes it act.
        entropy: "analytical": bit by bit. "group": over the codes of each group. The per-sample entropies of the two are equal but for
            1e-8 a code, because bits are independent given the token; the codebook entropy of larger groups is lower and closer to
            that of whole codes. With "analytical" group_size changes nothing but group_indices.
        codebook_entropy: "group" is the only way there is.
        post_l2_norm: s = 1 / sqrt(bits); False: s = 1, and codes are not of unit length.
        beta, gamma0, gamma, zeta: weights as above.

    Raises:
        ValueError: a setting out of its range.
    """

    unit_input = True       # the model brings its vectors to unit length first

    def __init__(self, bits: int, group_size: int = 1, inverse_temperature: float = 1.0, entropy: str = "analytical",
                 codebook_entropy: str = "group", post_l2_norm: bool = True, beta: float = 0.0, gamma0: float = 1.0, gamma: float = 1.0,
                 zeta: float = 1.0):
        super().__init__()
        if bits < 1:
            raise ValueError(f"bits must be at least 1, got {bits!r}")
        if group_size < 1 or bits % group_size:
            raise ValueError(f"group_size must divide bits = {bits}, got {group_size!r}")
        if entropy not in ("analytical", "group"):
            raise ValueError(f"entropy must be 'analytical' or 'group', got {entropy!r}")
        largest = LARGEST_GROUP if entropy == "group" else LARGEST_INDEX
        if group_size > largest:
            raise ValueError(f"group_size must be at most {largest} with entropy={entropy!r}, got {group_size}: take a smaller divisor "
                             f"of {bits}")
        if codebook_entropy != "group":
            raise ValueError(f"codebook_entropy must be 'group', the only way there is, got {codebook_entropy!r}")
        if not 0 < inverse_temperature < math.inf:
            raise ValueError(f"inverse_temperature must be a number above 0, got {inverse_temperature!r}")
        for name, weight in {"beta": beta, "gamma0": gamma0, "gamma": gamma, "zeta": zeta}.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name} must be a number of at least 0, got {weight!r}")
        self.bits, self.dim, self.group_size, self.groups = bits, bits, group_size, bits // group_size
        self.inverse_temperature, self.entropy, self.scale = inverse_temperature, entropy, bits**-0.5 if post_l2_norm else 1.0
        self.beta, self.gamma0, self.gamma, self.zeta = beta, gamma0, gamma, zeta

    def forward(self, z: Tensor, valid: Tensor | None = None) -> Quantized:
        """Quantize tokens.

        Args:
            z: Tensor (B, N, bits) of unit vectors. They are taken as they are, never normalised here.
            valid: Tensor (B, N) bool, False for padding: such tokens get codes but count in no loss. None: all are real.
        Returns:
            Quantized, float32 outside autocast (float64 for float64 input). Without any real token all losses are 0.
        Raises:
            ValueError: shapes that do not fit.
        """
        check_tokens(z, valid, self.bits)
        with torch.autocast(z.device.type, enabled=False):
            z = z if z.dtype == torch.float64 else z.float()
            codes = _Sign.apply(z) * self.scale
            ones = z.detach() > 0
            real = z.flatten(0, 1) if valid is None else z[valid]
            size = 1 if self.entropy == "analytical" else self.group_size
            logits = (4 * self.inverse_temperature * self.scale * real).unflatten(-1, (-1, size))
            nearest = codes.detach().flatten(0, 1) if valid is None else codes.detach()[valid]
            sums = code_entropy(logits).sum(), (nearest - real).square().sum(), probability_sums(logits)
            persample, commitment, probability = distributed.means(len(real), *sums)
            codebook = entropy_of(probability).sum()
            loss = self.beta * commitment + self.zeta * (self.gamma0 * persample - self.gamma * codebook) / self.inverse_temperature
        indices = pack(ones) if self.bits <= LARGEST_INDEX else None
        group_indices = pack(ones.unflatten(-1, (self.groups, self.group_size)))
        return Quantized(codes, indices, group_indices, loss, persample, codebook, commitment, probability.detach())

    def indices_to_codes(self, indices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Tensor (...) of integers -> (..., bits), the codes that `forward` gave, bit for bit. Raises ValueError as `unpack`."""
        return self.bits_to_codes(unpack(indices, self.bits), dtype)

    def group_indices_to_codes(self, group_indices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Tensor (..., groups) of integers -> (..., bits); there are such indices for any number of bits. Raises ValueError as `unpack`."""
        if group_indices.shape[-1:] != (self.groups,):
            raise ValueError(f"group indices must be (..., {self.groups}), got {tuple(group_indices.shape)}")
        return self.bits_to_codes(unpack(group_indices, self.group_size).flatten(-2), dtype)

    def bits_to_codes(self, bits: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Tensor (..., bits) bool -> (..., bits) of +-s."""
        return (bits.to(dtype) * 2 - 1) * self.scale

    def extra_repr(self) -> str:
        return f"bits={self.bits}, group_size={self.group_size}, inverse_temperature={self.inverse_temperature:g}, entropy={self.entropy!r}"


def pack(bits: Tensor) -> Tensor:
    """Bits as one integer, the first the most significant: Tensor (..., L) bool -> (...) int64.

    Integers are added, not floats: float32 holds 24 bits, bfloat16 8. Raises ValueError for L over 63.
    """
    if bits.dtype != torch.bool:
        raise ValueError(f"bits must be of dtype bool, got {bits.dtype}")
    _need_one_integer(bits.shape[-1])
    return (bits.long() << torch.arange(bits.shape[-1] - 1, -1, -1, device=bits.device)).sum(-1)


def unpack(indices: Tensor, bits: int) -> Tensor:
    """Inverse of `pack`: Tensor (...) of integers in [0, 2^bits) -> (..., bits) bool.

    Raises:
        ValueError: over 63 bits, or indices that are no integers or out of range.
    """
    _need_one_integer(bits)
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise ValueError(f"indices must be integers, got {indices.dtype}: floating-point numbers do not hold all of them")
    indices = indices.long()
    if indices.numel() and not (0 <= indices.min() and int(indices.max()) < 1 << bits):
        raise ValueError(f"indices of {bits} bits must be in [0, 2^{bits}), got {int(indices.min())} to {int(indices.max())}")
    return (indices[..., None] >> torch.arange(bits - 1, -1, -1, device=indices.device) & 1).bool()


def _need_one_integer(bits: int) -> None:
    if bits > LARGEST_INDEX:
        raise ValueError(f"{bits} bits do not fit into one index, {LARGEST_INDEX} do: use group_indices, with group_size at most "
                         f"{LARGEST_INDEX}")


def check_tokens(z: Tensor, valid: Tensor | None, width: int) -> None:
    """Raise ValueError unless z is (B, N, width) of floating-point numbers and valid None or (B, N) bool."""
    if z.ndim != 3 or z.shape[-1] != width or not z.is_floating_point():
        raise ValueError(f"tokens must be (clips, tokens, {width}) of floating-point numbers, got {tuple(z.shape)} of {z.dtype}")
    if valid is not None and (valid.shape != z.shape[:2] or valid.dtype != torch.bool):
        raise ValueError(f"valid must be {tuple(z.shape[:2])} of dtype bool, got {tuple(valid.shape)} of {valid.dtype}")


class _Sign(torch.autograd.Function):
    """+-1 with the gradient of the identity; zero counts as negative."""

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        return (z > 0).to(z.dtype) * 2 - 1

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient
