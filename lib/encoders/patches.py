"""Pictures as patches, where they lie, and which of them are hidden.

Conventions: patch k of a picture is the `patch` x `patch` square in row k // columns, column k % columns; its values run
(channel, row, column). Frames follow one another: token f * places + k is patch k of frame f. A mask is True where a token
is hidden. Masks depend on one seed a clip and on nothing else, so neither the number of processes nor what was drawn
before changes them.
"""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lib.randomness import generator


def patchify(images: Tensor, patch: int) -> Tensor:
    """Cut pictures into squares.

    Args:
        images: Tensor (..., C, H, W).  patch: side of a square in pixels; it divides H and W.
    Returns:
        Tensor (..., N, C * patch * patch), N = H / patch * W / patch.
    Raises:
        ValueError: sides that `patch` does not divide.
    """
    *_, height, width = images.shape
    if images.ndim < 3 or height % patch or width % patch or not height or not width:
        raise ValueError(f"pictures of shape {tuple(images.shape)} cannot be cut into patches of {patch} x {patch} pixels; "
                         "expected (..., channels, height, width) with sides that are multiples of it")
    squares = images.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))           # (..., C, rows, patch, columns, patch)
    return squares.movedim((-4, -2), (-5, -4)).flatten(-3).flatten(-3, -2)


def unpatchify(patches: Tensor, patch: int, grid: tuple[int, int] | None = None) -> Tensor:
    """The exact inverse of `patchify`.

    Args:
        patches: Tensor (..., N, P), P a multiple of patch².  grid: rows and columns of patches; None: a square.
    Returns:
        Tensor (..., P / patch², rows * patch, columns * patch).
    Raises:
        ValueError: N patches do not fill the grid, or P is not a whole number of channels.
    """
    count, values = patches.shape[-2:]
    rows, columns = grid or (math.isqrt(count),) * 2
    if rows * columns != count or values % patch ** 2:
        raise ValueError(f"{count} patches of {values} values do not make a picture of {rows} x {columns} patches of {patch} x "
                         f"{patch} pixels; give the grid and the patch size that they were cut with")
    squares = patches.unflatten(-1, (-1, patch, patch)).unflatten(-4, (rows, columns))   # (..., rows, columns, C, patch, patch)
    return squares.movedim((-5, -4), (-4, -2)).flatten(-2).flatten(-3, -2)


def sincos_1d(length: int, dim: int) -> Tensor:
    """Fixed positions of a sequence (Vaswani et al., arXiv 1706.03762).

    Row p holds sin(p w_i) at 2i and cos(p w_i) at 2i + 1, w_i = 10000^(-2i / dim).

    Returns: Tensor (length, dim) float64. ValueError: an odd dim.
    """
    if dim % 2:
        raise ValueError(f"a table of positions needs an even width, got {dim}")
    angles = torch.arange(length, dtype=torch.float64)[:, None] * _frequencies(dim)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def sincos_2d(rows: int, columns: int, dim: int) -> Tensor:
    """Fixed positions of a grid as in MAE (He et al., arXiv 2111.06377).

    The first half of a row encodes the column of the patch, the second half its row; in each half all sines come before
    all cosines.

    Returns:
        Tensor (1 + rows * columns, dim) float64; row 0, of the class token, is zero.
    Raises:
        ValueError: dim is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"a table of positions in two directions needs a width that is a multiple of 4, got {dim}")
    row, column = torch.meshgrid(torch.arange(rows, dtype=torch.float64), torch.arange(columns, dtype=torch.float64),
                                 indexing="ij")
    angles = [place.flatten()[:, None] * _frequencies(dim // 2) for place in (column, row)]
    table = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    return torch.cat([table.new_zeros(1, dim), table])


def _frequencies(dim: int) -> Tensor:
    return 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def position_table(kind: str, grid: tuple[int, int], frames: int, dim: int) -> Tensor:
    """Positions of the class token (row 0) and of all tokens of a clip (token l: row l + 1).

    Args:
        kind: "1d": one sequence over all frames; "2d": the place within a frame and, where there are several frames, plus
            `sincos_1d` of the frame's number, without which the frames could not be told apart.
        grid: rows and columns of a frame.  frames: number of frames.  dim: width.
    Returns:
        Tensor (1 + frames * rows * columns, dim) float64.
    Raises:
        ValueError: an unknown kind, or a width that does not fit.
    """
    places = grid[0] * grid[1]
    if kind == "1d":
        return sincos_1d(1 + frames * places, dim)
    if kind != "2d":
        raise ValueError(f"positions must be '1d' or '2d', got {kind!r}")
    table = sincos_2d(*grid, dim)
    time = sincos_1d(frames, dim).repeat_interleave(places, dim=0) if frames > 1 else 0
    return torch.cat([table[:1], table[1:].repeat(frames, 1) + time])


def random_mask(seeds: Sequence[int], tokens: int, ratio: float) -> Tensor:
    """Hide tokens anywhere, by MAE's rule: of uniform noise the int(tokens * (1 - ratio)) smallest stay visible, at least one.

    Args:
        seeds: one a clip (B), for example of `lib.randomness.derive(seed, epoch, row)`.  tokens: N.
        ratio: share of hidden ones, in [0, 1).
    Returns:
        Tensor (B, N) bool on the CPU, True where hidden; every clip has the same number of visible tokens.
    Raises:
        ValueError: a ratio out of range.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"mask_ratio is {ratio}, expected at least 0 and below 1")
    visible = max(1, int(tokens * (1 - ratio)))
    noise = torch.stack([torch.from_numpy(generator(int(seed), "mask").random(tokens)) for seed in seeds])
    return torch.ones(noise.shape, dtype=torch.bool).scatter_(1, noise.argsort(dim=1)[:, :visible], False)


def tube_mask(seeds: Sequence[int], frames: int, places: int, ratio: float) -> Tensor:
    """Hide the same places in all frames (VideoMAE, arXiv 2203.12602): a hidden patch is then visible in no other frame.

    Args: as `random_mask`, with places = tokens of a frame.
    Returns: Tensor (B, frames * places) bool.
    """
    return random_mask(seeds, places, ratio).repeat(1, frames)


def visible_index(hidden: Tensor) -> Tensor:
    """Mask (B, N) bool to the numbers of the visible tokens, ascending: Tensor (B, V) int64.

    ValueError: rows of different V, or V = 0.
    """
    counts = (~hidden).sum(dim=1)
    if not len(counts) or counts.min() != counts.max() or not counts.min():
        raise ValueError(f"every clip needs the same number of visible tokens, and one at least; "
                         f"the mask leaves {counts.tolist()}")
    return (~hidden).nonzero()[:, 1].view(len(hidden), -1)


def take(rows: Tensor, index: Tensor) -> Tensor:
    """Rows (B, N, D) at index (B, V): Tensor (B, V, D)."""
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[-1]))
