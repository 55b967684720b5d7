"""Lossless coding of bits whose probabilities are known: every bit costs what its probability says, -log2 p, and no more.

The coder is rANS (Duda, arXiv 1311.2540) with whole numbers only, so that every machine writes and reads the same bytes. Convention:
a probability is a whole number of 65536ths, 1 .. 65535, that a bit is 1. Bit i belongs to lane i % lanes; the lanes take turns in one
stream of 16-bit words and are computed side by side, which makes the coder fast in NumPy. The number of lanes follows from the number
of bits. A lane costs about 40 bits on top: 0.25 % of the least that it gets (but for the only lane of a short stream).
"""
from __future__ import annotations

import numpy as np

SCALE = 16                  # bits of a probability, and of a word
ONE = 1 << SCALE
MOST_LANES = 256
BITS_A_LANE = 16384         # at least, where there are several lanes
LOWEST = 1 << 32            # a state between two bits is LOWEST .. 2^48 - 1; were it small, rounding would cost half a percent
STATE = 3                   # words of a state


def quantise(probability: np.ndarray) -> np.ndarray:
    """Probabilities of a 1 as the coder takes them.

    Args:
        probability: any shape, in [0, 1]; what is certain is made nearly so (1 or 65535 of 65536), for a wrong certainty cannot be coded.
    Returns:
        uint16 of the same shape, 1 .. 65535.
    Raises:
        ValueError: a number outside [0, 1].
    """
    probability = np.asarray(probability, dtype=np.float64)
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("a probability lies outside 0 .. 1; give the share of ones, not a count")
    return np.clip(np.rint(probability * ONE), 1, ONE - 1).astype(np.uint16)


def cost(bits: np.ndarray, probability: np.ndarray) -> float:
    """Bits that an ideal coder needs: the sum of -log2 of the probability of what came.

    Args: bits: bool.  probability: as `quantise` returns, of a shape that broadcasts to that of bits.
    """
    one = np.asarray(probability, dtype=np.float64) / ONE
    return float(-np.log2(np.where(bits, one, 1 - one)).sum())


def encode(bits: np.ndarray, probability: np.ndarray) -> bytes:
    """Code bits, the first one first when read back.

    Args:
        bits: bool, any shape (it is flattened).
        probability: as `quantise` returns, of the shape of bits or one that broadcasts to it.
    Returns:
        the coded bytes; nothing for no bits. `decode` needs the same probabilities, and with them the number of bits.
    Raises:
        ValueError: bits that are not bool, a probability outside 1 .. 65535.
    """
    bits = np.asarray(bits)
    if bits.dtype != np.bool_:
        raise ValueError(f"bits must be bool, got {bits.dtype}; say what is a 1, for example codes > 0")
    probability, bits = _checked(np.broadcast_to(probability, bits.shape)), bits.ravel()
    count, lanes = len(bits), _lanes(len(bits))
    if not count:
        return b""
    share = np.where(bits, probability, ONE - probability)          # of the numbers below 65536; a 1 has the lower ones
    start = np.where(bits, np.int64(0), probability)
    limit = share << 32                                             # from there on the next state would have more than 48 bits
    state = np.full(lanes, LOWEST, dtype=np.int64)
    words = []
    for first in reversed(range(0, count, lanes)):                  # backwards: what is coded last is decoded first
        part = slice(first, min(first + lanes, count))
        x, f = state[:part.stop - first], share[part]
        full = x >= limit[part]
        if full.any():
            words.append((x[full] & (ONE - 1)).astype("<u2"))
            x[full] >>= SCALE
        quotient, rest = np.divmod(x, f)
        x[:] = (quotient << SCALE) + rest + start[part]
    head = state >> np.array([0, SCALE, 2 * SCALE])[:, None]
    return b"".join([(head & (ONE - 1)).astype("<u2").tobytes(), *(word.tobytes() for word in reversed(words))])


def decode(data: bytes, probability: np.ndarray) -> np.ndarray:
    """The bits that `encode` was given.

    Args:
        data: what `encode` returned.
        probability: the same probabilities, spread to the full shape of the bits.
    Returns:
        bool of the shape of probability.
    Raises:
        ValueError: bytes that no bits with these probabilities are coded as (cut off, too long, or with other probabilities;
            a change that keeps the length is found nearly always, a checksum is better).
    """
    shape, probability = np.shape(probability), _checked(probability).ravel()
    count, lanes = len(probability), _lanes(len(probability))
    if len(data) % 2 or len(data) < 2 * STATE * lanes or (not count and data):
        raise ValueError(f"{len(data)} bytes cannot be {count} coded bits")
    if not count:
        return np.empty(shape, dtype=np.bool_)
    head, words = np.split(np.frombuffer(data, "<u2").astype(np.int64), [STATE * lanes])
    state = (head.reshape(STATE, lanes) << np.array([0, SCALE, 2 * SCALE])[:, None]).sum(axis=0)
    taken = 0
    bits = np.empty(count, dtype=np.bool_)
    for first in range(0, count, lanes):
        part = slice(first, min(first + lanes, count))
        x, p = state[:part.stop - first], probability[part]
        low = x & (ONE - 1)
        bit = low < p
        bits[part] = bit
        x[:] = np.where(bit, p, ONE - p) * (x >> SCALE) + low - np.where(bit, 0, p)
        empty = x < LOWEST
        needed = int(np.count_nonzero(empty))
        if needed:
            if taken + needed > len(words):
                raise ValueError(f"{len(data)} bytes are too few for {count} bits with these probabilities")
            x[empty] = (x[empty] << SCALE) | words[taken:taken + needed]
            taken += needed
    if taken != len(words) or (state != LOWEST).any():                        # coding started from there
        raise ValueError(f"{len(data)} bytes are not {count} bits coded with these probabilities")
    return bits.reshape(shape)


def _lanes(count: int) -> int:
    return min(MOST_LANES, max(1, count // BITS_A_LANE)) if count else 0


def _checked(probability: np.ndarray) -> np.ndarray:
    probability = np.asarray(probability).astype(np.int64).ravel()
    if len(probability) and not (0 < probability.min() and probability.max() < ONE):
        raise ValueError(f"a probability must be 1 .. {ONE - 1} 65536ths, got {probability.min()} .. {probability.max()}; see quantise")
    return probability
