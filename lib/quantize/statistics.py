"""How a quantizer uses its codes over a whole set of tokens, counted batch by batch in bounded memory.

Counted exactly: how often each bit is 1, and how often each code of each group of bits occurs. How many whole codes occur is exact
while they are few, and beyond that estimated from the smallest of their hashes. All entropies here are those of the counts, in bits
(not nats), without any correction: with few tokens for many codes they are too low, at most log2(tokens).
"""
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lib import distributed
from lib.quantize.bsq import LARGEST_INDEX, pack

LARGEST_TABLE = 18      # bits whose codes are counted one by one: 2^18 counts are 2 MB
KEPT = 2**17            # hashes of whole codes; the count of more codes than that has a standard error of 1 / sqrt(KEPT) = 0.3 %


class CodebookStatistics:
    """Streaming statistics of bits (tokens, L); parts that processes or workers counted add up.

    Args:
        bits: L of a token, any number.
        group_size: neighbouring bits whose codes are counted together, at most 18; the last group is smaller if it does not divide L.

    Raises:
        ValueError: a setting out of its range.
    """

    def __init__(self, bits: int, group_size: int = 9):
        if bits < 1:
            raise ValueError(f"bits must be at least 1, got {bits!r}")
        if not 1 <= group_size <= LARGEST_TABLE:
            raise ValueError(f"group_size must be 1 to {LARGEST_TABLE}, got {group_size!r}")
        self.bits, self.group_size = bits, group_size
        self.sizes = [min(group_size, bits - begin) for begin in range(0, bits, group_size)]
        self.tokens = 0
        self.ones = torch.zeros(bits, dtype=torch.int64)
        self.counts = [torch.zeros(1 << size, dtype=torch.int64) for size in self.sizes]
        # whole codes: a table of counts, or where that would be too large the smallest hashes
        self.table = torch.zeros(1 << bits if bits <= LARGEST_TABLE else 0, dtype=torch.int64)
        self.hashes = np.zeros(0, dtype=np.uint64)
        self._waiting: list[np.ndarray] = []

    @torch.no_grad()
    def update(self, codes: Tensor, valid: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            codes: Tensor (..., L), codes (a bit is 1 where greater than 0) or bits (bool).
            valid: Tensor (...) bool, False for tokens that do not count (padding).
        Raises:
            ValueError: shapes that do not fit, or integers (bits or indices?).
        """
        if codes.shape[-1:] != (self.bits,):
            raise ValueError(f"codes must be (..., {self.bits}), got {tuple(codes.shape)}")
        if valid is not None and (valid.shape != codes.shape[:-1] or valid.dtype != torch.bool):
            raise ValueError(f"valid must be {tuple(codes.shape[:-1])} of dtype bool, got {tuple(valid.shape)} of {valid.dtype}")
        if codes.dtype != torch.bool and not codes.is_floating_point():
            raise ValueError(f"codes must be bool or of a floating-point dtype, got {codes.dtype}: unpack indices first, or compare with 0")
        ones = codes if codes.dtype == torch.bool else codes > 0
        ones = ones.reshape(-1, self.bits) if valid is None else ones[valid]
        self.tokens += len(ones)
        self.ones += ones.sum(0).cpu()
        for count, group in zip(self.counts, ones.split(self.sizes, -1)):
            count += torch.bincount(pack(group), minlength=len(count)).cpu()
        if len(self.table):
            self.table += torch.bincount(pack(ones), minlength=len(self.table)).cpu()
        else:
            self._waiting.append(_smallest(_hash(ones.cpu())))
            if sum(map(len, self._waiting)) >= KEPT:
                self._settle()

    def merge(self, other: "CodebookStatistics") -> None:
        """Add what another one counted. Raises ValueError unless it has the same bits and group_size."""
        if (self.bits, self.group_size) != (other.bits, other.group_size):
            raise ValueError(f"statistics of {other.bits} bits in groups of {other.group_size} cannot be added to those of "
                             f"{self.bits} bits in groups of {self.group_size}")
        self.tokens += other.tokens
        self.ones += other.ones
        self.counts = [ours + theirs for ours, theirs in zip(self.counts, other.counts)]
        self.table = self.table + other.table
        self._waiting += [other.hashes, *other._waiting]
        self._settle()

    def reduce(self) -> "CodebookStatistics":
        """A new one that holds what all processes counted, the same in each; all of them must call it."""
        total = CodebookStatistics(self.bits, self.group_size)
        for state in distributed.gather_list([self.state()]):
            total.merge(CodebookStatistics.from_state(state))
        return total

    def state(self) -> dict[str, Tensor | int]:
        """Numbers and tensors only, for a checkpoint; `from_state` reads them."""
        self._settle()
        return {"bits": self.bits, "group_size": self.group_size, "tokens": self.tokens, "ones": self.ones.clone(),
                "counts": torch.cat(self.counts), "table": self.table.clone(),
                "hashes": torch.from_numpy(self.hashes.view(np.int64).copy())}

    @classmethod
    def from_state(cls, state: dict) -> "CodebookStatistics":
        """The statistics whose `state()` this is."""
        made = cls(state["bits"], state["group_size"])
        made.tokens, made.ones, made.table = state["tokens"], state["ones"].clone(), state["table"].clone()
        made.counts = [part.clone() for part in state["counts"].split([len(count) for count in made.counts])]
        made.hashes = state["hashes"].numpy().copy().view(np.uint64)
        return made

    def results(self) -> dict:
        """Figures that JSON can hold.

        tokens: how many were counted.  used_codes: different whole codes among them, with used_codes_exact False where estimated.
        usage: used_codes / 2^L, and code_entropy (bits) and code_perplexity of whole codes: None above 18 bits, where no set of tokens
        is large enough for them to mean anything.
        per_bit_balance: share of ones of each bit; 0.5 is best.
        per_group: for each group bits, used_codes, usage, entropy (bits, at most its size) and perplexity (2^entropy).
        group_entropy: bits a token, summed over groups: what an entropy coder that knows each group's frequencies needs.
        bit_entropy: bits a token, summed over bits: the same for one that knows each bit's. bit_entropy >= group_entropy.
        Raises ValueError before any token was counted.
        """
        if not self.tokens:
            raise ValueError("no token was counted: call update with at least one valid token")
        share = self.ones.double() / self.tokens
        groups = []
        for size, count in zip(self.sizes, self.counts):
            entropy, used = _entropy(count), int((count > 0).sum())
            groups.append({"bits": size, "used_codes": used, "usage": used / len(count), "entropy": entropy, "perplexity": 2**entropy})
        found = {"tokens": self.tokens, "used_codes": self.used_codes(), "used_codes_exact": self._exact(), "usage": None,
                 "code_entropy": None, "code_perplexity": None, "per_bit_balance": share.tolist(), "per_group": groups,
                 "group_entropy": sum(group["entropy"] for group in groups),
                 "bit_entropy": sum(_entropy(torch.stack([self.tokens - ones, ones])) for ones in self.ones)}
        if len(self.table):
            entropy = _entropy(self.table)
            found |= {"usage": found["used_codes"] / len(self.table), "code_entropy": entropy, "code_perplexity": 2**entropy}
        return found

    def used_codes(self) -> int:
        """Different whole codes seen, rounded where it is an estimate."""
        if len(self.table):
            return int((self.table > 0).sum())
        self._settle()
        if self._exact():
            return len(self.hashes)
        # n hashes spread evenly over [0, 2^64) have their k-th smallest at about k / n of it
        return min(self.tokens, round((KEPT - 1) / ((float(self.hashes[-1]) + 1) / 2.0**64)))

    def _exact(self) -> bool:
        self._settle()
        return len(self.hashes) < KEPT and self.bits <= LARGEST_INDEX

    def _settle(self) -> None:
        if self._waiting:
            self.hashes = _smallest(np.concatenate([self.hashes, *self._waiting]))
            self._waiting = []


def _entropy(counts: Tensor) -> float:
    """Bits, of the distribution that counts (codes,) are proportional to."""
    share = counts[counts > 0].double()
    share /= share.sum()
    return abs(float((share * share.log2()).sum()))      # never -0.0


def _smallest(hashes: np.ndarray) -> np.ndarray:
    return np.unique(hashes)[:KEPT]


def _hash(ones: Tensor) -> np.ndarray:
    """64-bit hashes of whole codes (tokens, L) bool: the finaliser of splitmix64 on 63 bits at a time.

    It is one-to-one, so up to 63 bits no two codes share a hash; with more, two do by chance with probability 2^-64.
    """
    found = np.zeros(len(ones), dtype=np.uint64)
    for word in ones.split(LARGEST_INDEX, -1):
        found ^= pack(word).numpy().astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            found = (found ^ (found >> np.uint64(shift))) * np.uint64(factor)
        found ^= found >> np.uint64(31)
    return found
