"""What binary spherical quantization is compared with at equal bits: learned codebooks, lookup-free quantization, and no network.

A token of 9, 18 or 36 bits is 1, 2 or 4 codebooks of 9 bits over separate slices of it; the first codebook's index holds the most
significant bits of the token's. The quantizers come from vector-quantize-pytorch and return the same `Quantized` as
`lib.quantize.bsq`; what they do not have (a probability that gradients flow through) is a plain count here.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from lib import distributed
from lib.quantize.bsq import LARGEST_INDEX, Quantized, check_tokens, pack, unpack
from lib.quantize.entropy import entropy_of
from lib.randomness import derive

CODEBOOK_BITS = 9


class _Codebooks(nn.Module):
    """Tokens in slices with a codebook of `size` bits each; indices from one form to the other."""

    unit_input = False      # lengths carry information, the model must not normalise

    def __init__(self, bits: int, codebook_bits: int):
        super().__init__()
        if not 1 <= bits <= LARGEST_INDEX:
            raise ValueError(f"bits must be 1 to {LARGEST_INDEX}, got {bits!r}")
        size = min(bits, codebook_bits)
        if not 1 <= codebook_bits <= 16 or bits % size:
            raise ValueError(f"codebook_bits must be 1 to 16 and divide bits = {bits} (or exceed it), got {codebook_bits!r}")
        self.bits, self.group_size, self.groups = bits, size, bits // size

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """Tensor (B, N) of integers -> (B, N, dim), the codes that `forward` gave, bit for bit. Raises ValueError as `unpack`."""
        return self.bits_to_codes(unpack(indices, self.bits))

    def group_indices_to_codes(self, group_indices: Tensor) -> Tensor:
        """Tensor (B, N, groups) of integers -> (B, N, dim). Raises ValueError for another shape or indices that are out of range."""
        if group_indices.ndim != 3 or group_indices.shape[-1] != self.groups:
            raise ValueError(f"group indices must be (clips, tokens, {self.groups}), got {tuple(group_indices.shape)}")
        unpack(group_indices, self.group_size)      # raises for what is out of range
        return self._lookup(group_indices)

    def bits_to_codes(self, bits: Tensor) -> Tensor:
        """Tensor (B, N, bits) bool -> (B, N, dim)."""
        return self.group_indices_to_codes(pack(bits.unflatten(-1, (self.groups, self.group_size))))

    def _used(self, group_indices: Tensor) -> Tensor:
        """How often each code occurs: (tokens, groups) -> (groups, 2^size) float64."""
        return torch.stack([torch.bincount(column, minlength=1 << self.group_size) for column in group_indices.mT]).double()

    def _index(self, group_indices: Tensor) -> Tensor:
        return pack(unpack(group_indices, self.group_size).flatten(-2))

    def extra_repr(self) -> str:
        return f"bits={self.bits}, dim={self.dim}, codebooks={self.groups} of {self.group_size} bits"


class VectorQuantizer(_Codebooks):
    """Learned codebooks (VQ-VAE): the nearest vector of each slice's own codebook, with a straight-through gradient.

    Codebooks are moving averages of the tokens they are nearest to, no parameters: no optimiser and no weight decay touches them. A
    vector that is hardly used is replaced by a random token of the batch, as are nearly all at the first update. All processes'
    tokens enter the averages and may be drawn; the draw depends on the number of updates so far, so that it is the same in every
    process and after a resume.
    loss = commitment_weight * commitment, the mean over tokens and coordinates as in VQ-VAE.

    Args:
        bits: of a token; a multiple of codebook_bits, or less.
        codebook_bits: log2 of the vectors in a codebook.
        code_dim: width of a slice. Small ones (8 to 32) keep more of the vectors in use than wide ones.
        decay: of the moving averages.
        commitment_weight: 0.25 in VQ-VAE and in the published audio variant.
        dead_below: a vector whose moving average of tokens a step falls below this is replaced; 0: never.

    Raises:
        ValueError: a setting out of its range.
    """

    def __init__(self, bits: int, codebook_bits: int = CODEBOOK_BITS, code_dim: int = 8, decay: float = 0.99,
                 commitment_weight: float = 0.25, dead_below: float = 0.1):
        super().__init__(bits, codebook_bits)
        if code_dim < 1:
            raise ValueError(f"code_dim must be at least 1, got {code_dim!r}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay!r}")
        if commitment_weight < 0 or dead_below < 0:
            raise ValueError(f"commitment_weight and dead_below must be at least 0, got {commitment_weight!r} and {dead_below!r}")
        from vector_quantize_pytorch import VectorQuantize
        self.dim, self.commitment_weight = self.groups * code_dim, commitment_weight
        # sync_codebook off: the average is over tokens that are gathered below, so that every process does the same to its copy
        self.network = VectorQuantize(dim=self.dim, codebook_size=1 << self.group_size, codebook_dim=code_dim, heads=self.groups,
                                      separate_codebook_per_head=self.groups > 1, decay=decay, commitment_weight=0.0,
                                      rotation_trick=False, threshold_ema_dead_code=dead_below, sync_codebook=False)
        for name, buffer in self.network.named_buffers():
            if name.endswith(("cluster_size", "embed_avg")) and dead_below:
                buffer.zero_()      # no vector has been used yet, so that the first update draws nearly all of them from its tokens
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, z: Tensor, valid: Tensor | None = None) -> Quantized:
        """As `BinarySphericalQuantizer.forward`, for z (B, N, dim) of any length; in training the codebooks move afterwards.

        Assignment is hard: persample_entropy is 0, codebook_entropy that of the counts, without gradient.
        """
        check_tokens(z, valid, self.dim)
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            with torch.no_grad():
                group_indices = self.network(z, freeze_codebook=True)[1].view(*z.shape[:2], self.groups)
                nearest = self._lookup(group_indices)
            real, assigned = (each.flatten(0, 1) if valid is None else each[valid] for each in (z, group_indices))
            away = real - (nearest.flatten(0, 1) if valid is None else nearest[valid])
            commitment, used = distributed.means(len(real), away.square().mean(-1).sum().double(), self._used(assigned))
            codes = nearest + (z - z.detach())
            if self.training:
                self._learn(distributed.gather(real.detach()), distributed.gather(assigned))
            commitment, used = commitment.to(z), used.to(z)
            return Quantized(codes, self._index(group_indices), group_indices, self.commitment_weight * commitment, z.new_zeros(()),
                             entropy_of(used).sum(), commitment, used)

    @torch.no_grad()
    def _learn(self, tokens: Tensor, assigned: Tensor) -> None:
        if not len(tokens):
            return
        device = tokens.device
        generator = torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator
        state = generator.get_state()
        generator.manual_seed(derive(0, "vector quantizer", int(self.updates)))      # the library draws from the global generator
        try:
            self.network.update_indices(tokens[None], assigned[None] if self.groups > 1 else assigned[None, :, 0])
        finally:
            generator.set_state(state)
        self.updates += 1

    def _lookup(self, group_indices: Tensor) -> Tensor:
        books = self.network.codebook.view(self.groups, 1 << self.group_size, -1)
        return torch.cat([book[column] for book, column in zip(books, group_indices.unbind(-1))], -1)


class LookupFreeQuantizer(_Codebooks):
    """Lookup-free quantization (MAGVIT-v2, arXiv 2310.05737): the sign of each coordinate of vectors of any length, codes +-1.

    The entropy terms enumerate each codebook's 2^9 codes and are the library's: means over codebooks rather than sums, logarithms
    clamped at 1e-5, and 0 outside training. One process only: in several the library averages the codes' probabilities wrongly (it
    drops the result of the reduction).
    loss = entropy_weight * (persample_entropy - gamma * codebook_entropy) + commitment_weight * commitment

    Args:
        bits: of a token; a multiple of codebook_bits, or less.
        codebook_bits: bits whose codes are enumerated together.
        inverse_temperature: of the probabilities.
        entropy_weight, gamma, commitment_weight: as above; commitment is a mean over tokens and coordinates.

    Raises:
        ValueError: a setting out of its range.
    """

    def __init__(self, bits: int, codebook_bits: int = CODEBOOK_BITS, inverse_temperature: float = 100.0, entropy_weight: float = 0.1,
                 gamma: float = 1.0, commitment_weight: float = 0.25):
        super().__init__(bits, codebook_bits)
        if not inverse_temperature > 0:
            raise ValueError(f"inverse_temperature must be above 0, got {inverse_temperature!r}")
        if min(entropy_weight, gamma, commitment_weight) < 0:
            raise ValueError("entropy_weight, gamma and commitment_weight must be at least 0, got "
                             f"{entropy_weight!r}, {gamma!r} and {commitment_weight!r}")
        from vector_quantize_pytorch import LFQ
        self.dim, self.inverse_temperature = bits, inverse_temperature
        self.network = LFQ(dim=bits, codebook_size=1 << self.group_size, num_codebooks=self.groups, keep_num_codebooks_dim=True,
                           entropy_loss_weight=entropy_weight, diversity_gamma=gamma, commitment_loss_weight=commitment_weight)

    def forward(self, z: Tensor, valid: Tensor | None = None) -> Quantized:
        """As `BinarySphericalQuantizer.forward`, for z (B, N, bits) of any length. 
        Raises ValueError when training in several processes, or without any real token."""
        check_tokens(z, valid, self.dim)
        if self.training and distributed.world() > 1:
            raise ValueError("lookup-free quantization trains in one process only; take one device, or quantizer 'bsq' or 'vq'")
        if valid is not None and not valid.any():
            raise ValueError("valid leaves no token of the batch: the library's means over none are not a number")
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            (_, group_indices, loss), parts = self.network(z, self.inverse_temperature, return_loss_breakdown=True, mask=valid)
            group_indices = group_indices.long()
            codes = self._lookup(group_indices) + (z - z.detach())      # exact codes: the library's x + (code - x) is rounded
            assigned = group_indices.flatten(0, 1) if valid is None else group_indices[valid]
            used, = distributed.means(len(assigned), self._used(assigned))
            return Quantized(codes, self._index(group_indices), group_indices, loss, *parts, used.to(z))

    def _lookup(self, group_indices: Tensor) -> Tensor:
        return unpack(group_indices, self.group_size).flatten(-2).float() * 2 - 1
