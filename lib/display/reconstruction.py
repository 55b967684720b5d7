"""What a masked autoencoder was shown, what it drew, and what there was: side by side for sound pictures and video frames."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lib.display.style import SPECTRUM, Picture, shortened, themed
from lib.encoders.patches import unpatchify

ROWS = ("visible", "predicted", "true")
HIDDEN = 0.6        # grey of hidden patches


@themed
def reconstructions(prediction, target, hidden, *, frames: int = 1, size: int, patch: int, channels: int, limits: tuple[float, float],
                    titles: Sequence[str] = (), title: str = "Reconstruction", most_frames: int = 4, pasted: bool = True,
                    rows: Sequence[str] = ROWS) -> Picture:
    """Three rows: what was visible (the rest grey), the model's picture, the true one; a column a clip, or a frame of one clip.

    Args:
        prediction, target: Tensor (B, N, P), raw patches; with several frames B must be 1.
        hidden: Tensor (B, N) bool.
        frames, size, patch, channels: of a clip's picture; N = frames (size / patch)^2, P = channels patch^2.
        limits: values of black and white.  titles: of the columns, one a clip.
        most_frames: of a video so many frames are shown, evenly spread.
        pasted: visible patches of the predicted row are the true ones, as the loss never asks for them.
        rows: which of the three.
    Raises:
        ValueError: shapes that do not fit; several clips with several frames.
    """
    grid = (size // patch,) * 2
    if target.ndim != 3 or prediction.shape != target.shape or hidden.shape != target.shape[:2] or target.shape[1:] != (
            frames * grid[0] * grid[1], channels * patch * patch):
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must be (clips, {frames * grid[0] * grid[1]}, "
                         f"{channels * patch * patch}), hidden {tuple(hidden.shape)} (clips, {frames * grid[0] * grid[1]})")
    if frames > 1 and len(target) > 1:
        raise ValueError(f"{len(target)} clips of {frames} frames: give one clip, a picture shows its frames as columns")
    target, prediction, hidden = (x.detach().cpu() for x in (target.float(), prediction.float(), hidden))
    shown = torch.where(hidden[..., None], torch.nan, target), torch.where(hidden[..., None] | (not pasted), prediction, target), target
    drawn = {name: _pictures(x, frames, grid, patch, limits) for name, x in zip(ROWS, shown) if name in rows}
    chosen = np.unique(np.linspace(0, frames - 1, min(frames, most_frames)).round().astype(int)) if frames > 1 else range(len(target))
    picture = Picture(height=0.6 + 1.75 * len(drawn))
    axes = picture.subplots(len(drawn), len(chosen), squeeze=False)
    for row, (name, images) in enumerate(drawn.items()):
        for column, index in enumerate(chosen):
            place = axes[row, column]
            place.set_facecolor(str(HIDDEN))                # seen where a picture has no values
            place.imshow(images[index], cmap=SPECTRUM if channels == 1 else None, vmin=0, vmax=1, origin="lower" if channels == 1 else "upper",
                         aspect="auto" if channels == 1 else "equal", interpolation="nearest")
            place.set(xticks=[], yticks=[])
            if column == 0:
                place.set_ylabel(name)
            if row == 0:
                place.set_title(f"frame {index + 1}" if frames > 1 else shortened(titles[index], 24) if index < len(titles) else "", fontsize=9)
    picture.set_title(title)
    return picture


def _pictures(patches: torch.Tensor, frames: int, grid: tuple[int, int], patch: int, limits: tuple[float, float]) -> np.ndarray:
    """Patches to pictures (B * frames, H, W) or (B * frames, H, W, 3) in 0 .. 1."""
    images = unpatchify(patches.unflatten(1, (frames, -1)), patch, grid).flatten(0, 1)
    images = ((images - limits[0]) / (limits[1] - limits[0])).clamp(0, 1).numpy()
    return images[:, 0] if images.shape[1] == 1 else np.nan_to_num(images, nan=HIDDEN).transpose(0, 2, 3, 1)
