"""Quantizers: vectors to bits and back. `quantizer(name, bits)` makes any of them by its name."""
from __future__ import annotations

NAMES = ("bsq", "vq", "lfq")


def quantizer(name: str, bits: int, **options):
    """A quantizer by name, so that a model can swap them.

    All of them take tokens (B, N, `.dim`) and a mask (B, N), return `lib.quantize.bsq.Quantized`, and have `.bits`, `.dim` (the width of
    tokens and codes), `.unit_input` (whether the model has to bring tokens to unit length first), and the ways back from numbers:
    `bits_to_codes`, `indices_to_codes` and `group_indices_to_codes`.

    Args:
        name: "bsq", binary spherical quantization; "vq", learned codebooks; "lfq", lookup-free quantization.
        bits: a token's.
        options: of BinarySphericalQuantizer, VectorQuantizer or LookupFreeQuantizer.
    Raises:
        ValueError: an unknown name, or a setting out of its range.
    """
    if name not in NAMES:
        raise ValueError(f"quantizer must be one of {', '.join(NAMES)}, got {name!r}")
    if name == "bsq":
        from lib.quantize.bsq import BinarySphericalQuantizer
        return BinarySphericalQuantizer(bits, **options)
    from lib.quantize.baselines import LookupFreeQuantizer, VectorQuantizer
    return (VectorQuantizer if name == "vq" else LookupFreeQuantizer)(bits, **options)
