"""Rate-distortion without a network: a spectrogram's own levels, averaged in cells and rounded to a few steps.

A patch of time x frequency is cut into rows x columns cells; the mean of each is rounded to one of `steps` values, the middles of equal
parts of `clamp_range`. All cells of a patch together are one number below steps^cells <= 2^bits, so that fractions of a bit are used.
What a given number of bits is best spent on, many cells or many steps, is tried out on data.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate


@dataclass(frozen=True)
class ScalarSplit:
    """rows, columns: cells of a patch along time and frequency.  steps: values of a cell.  smooth: interpolate between cells' centres
    (bilinear, also across patches) instead of holding a cell's value."""

    rows: int
    columns: int
    steps: int
    smooth: bool = False

    @property
    def values(self) -> int:
        """Different patches."""
        return self.steps ** (self.rows * self.columns)


class ScalarQuantized(NamedTuple):
    """reconstruction: (B, T, F) dB.  cells: (B, N, rows * columns) int64 steps, row by row, of tokens time-major with frequency fastest.
    split: how the bits were spent.  error: mean absolute error in dB over valid frames."""

    reconstruction: Tensor
    cells: Tensor
    split: ScalarSplit
    error: float


def scalar_quantize(levels: Tensor, bits_per_token: int, patch: tuple[int, int], clamp_range: tuple[float, float] = (-80.0, 0.0),
                    split: ScalarSplit | None = None, valid: Tensor | None = None) -> ScalarQuantized:
    """Uniform scalar quantization at `bits_per_token` bits a patch.

    Args:
        levels: Tensor (B, T, F) in dB; values outside clamp_range are coded as its ends.
        bits_per_token: bits of a patch, at least 1.
        patch: frames and mel bands of a patch; they divide T and F.
        clamp_range: lowest and highest level in dB.
        split: as chosen on other data with `choose_split`; None: chosen on these levels, which makes the figure a lower bound.
        valid: Tensor (B, T) bool, frames that count in the error; None: all.
    Returns:
        ScalarQuantized; float32 (float64 for float64 levels).
    Raises:
        ValueError: shapes that do not fit, or a split that needs more bits.
    """
    levels = _check(levels, bits_per_token, patch, clamp_range, valid)
    if split is None:
        split = choose_split(levels, bits_per_token, patch, clamp_range, valid)
    if split.steps < 2 or split.rows < 1 or split.columns < 1 or patch[0] % split.rows or patch[1] % split.columns:
        raise ValueError(f"{split} does not cut a patch of {patch[0]} x {patch[1]} into equal cells of at least 2 steps")
    if split.values > 1 << bits_per_token:
        raise ValueError(f"{split} needs more than {bits_per_token} bits a patch; choose it with choose_split at this number of bits")
    (low, high), (time, frequency) = clamp_range, patch
    means = avg_pool2d(levels.clamp(low, high)[:, None], (time // split.rows, frequency // split.columns))
    width = (high - low) / split.steps
    steps = ((means - low) / width).long().clamp(max=split.steps - 1)       # the upper end belongs to the last step
    values = low + (steps.to(levels) + 0.5) * width
    shape = levels.shape[-2:]
    reconstruction = interpolate(values, shape, mode="bilinear" if split.smooth else "nearest")[:, 0]
    cells = steps[:, 0].unflatten(2, (-1, split.columns)).unflatten(1, (-1, split.rows))        # (B, time, rows, frequency, columns)
    cells = cells.transpose(2, 3).flatten(1, 2).flatten(2)
    away = (reconstruction - levels).abs()
    away = away if valid is None else away[valid]
    return ScalarQuantized(reconstruction, cells, split, float(away.double().mean()))


def choose_split(levels: Tensor, bits_per_token: int, patch: tuple[int, int], clamp_range: tuple[float, float] = (-80.0, 0.0),
                 valid: Tensor | None = None) -> ScalarSplit:
    """The split of the bits whose mean absolute error on these levels is least. Arguments and errors as `scalar_quantize`."""
    levels = _check(levels, bits_per_token, patch, clamp_range, valid)
    return min(((scalar_quantize(levels, bits_per_token, patch, clamp_range, split, valid).error, number, split)
                for number, split in enumerate(splits(bits_per_token, patch))))[2]


def splits(bits_per_token: int, patch: tuple[int, int]) -> list[ScalarSplit]:
    """All ways to spend the bits: every division of the patch into equal cells that leaves at least 2 steps, with all steps there are."""
    found = []
    for rows in _divisors(patch[0]):
        for columns in _divisors(patch[1]):
            cells = rows * columns
            if cells <= bits_per_token:
                steps = int(2 ** (bits_per_token / cells))
                while (steps + 1) ** cells <= 1 << bits_per_token:      # exact integers: the root is rounded
                    steps += 1
                while steps**cells > 1 << bits_per_token:
                    steps -= 1
                found += [ScalarSplit(rows, columns, steps, smooth) for smooth in (False, True)]
    return found


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def _check(levels: Tensor, bits_per_token: int, patch: tuple[int, int], clamp_range: tuple[float, float], valid: Tensor | None) -> Tensor:
    if levels.ndim != 3 or min(patch) < 1 or levels.shape[1] % patch[0] or levels.shape[2] % patch[1] or not levels.numel():
        raise ValueError(f"levels must be (clips, frames, mels) that patches of {patch[0]} x {patch[1]} divide, got {tuple(levels.shape)}")
    if not 1 <= bits_per_token <= 60:
        raise ValueError(f"bits_per_token must be 1 to 60, got {bits_per_token!r}")
    if not clamp_range[0] < clamp_range[1]:
        raise ValueError(f"clamp_range must rise, got {clamp_range!r}")
    if valid is not None and (valid.shape != levels.shape[:2] or valid.dtype != torch.bool or not valid.any()):
        raise ValueError(f"valid must be {tuple(levels.shape[:2])} of dtype bool with at least one frame that counts, got "
                         f"{tuple(valid.shape)} of {valid.dtype}")
    return levels if levels.dtype == torch.float64 else levels.float()
