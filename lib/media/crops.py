"""Random crops and mirror images of whole clips, for training."""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from lib.randomness import generator

ASPECTS = math.log(3 / 4), math.log(4 / 3)      # of a crop, relative to the picture's (Szegedy et al., CVPR 2015)


def random_crops(frames: Tensor, seeds: Sequence[int], smallest: float) -> Tensor:
    """One rectangle of each clip, the same in all its frames, brought back to the full size (bilinear); half of them mirrored.

    Args:
        frames: Tensor (B, F, C, H, W), uint8 or float in [0, 1].
        seeds: B whole numbers, which alone decide on rectangle and mirror.
        smallest: share of the area that is kept at least, in (0, 1]; drawn uniformly above it, sides' ratio 3/4 to 4/3.

    Returns: float32 Tensor (B, F, C, H, W) in [0, 1].
    """
    transforms = torch.zeros(len(frames), 2, 3)
    for transform, seed in zip(transforms, seeds, strict=True):
        draw = generator(seed, "crop")
        area, aspect = draw.uniform(smallest, 1), math.exp(draw.uniform(*ASPECTS))
        width, height = min(1.0, math.sqrt(area * aspect)), min(1.0, math.sqrt(area / aspect))
        x, y = draw.uniform(width - 1, 1 - width), draw.uniform(height - 1, 1 - height)     # of the middle, in -1 .. 1
        transform[0, 0] = -width if draw.random() < 0.5 else width
        transform[0, 2], transform[1, 1], transform[1, 2] = x, height, y
    pictures = (frames.float() / 255 if frames.dtype == torch.uint8 else frames.float()).flatten(1, 2)
    grid = affine_grid(transforms.to(pictures.device), list(pictures.shape), align_corners=False)
    return grid_sample(pictures, grid, padding_mode="border", align_corners=False).unflatten(1, frames.shape[1:3])
