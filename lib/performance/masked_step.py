"""A step of masked pretraining with visible tokens only against encoding all tokens and masking afterwards.

The published depths (12 layers in each ViT, 6 in the backbone, 2 in each decoder) and random masks of ratio 0.75; width
512 and four frames (784 video and 196 sound tokens) instead of 768 and 16, and two clips instead of 32, so that it fits on two
cores. Both ways are one model with one set of weights, and encoders, backbone and decoders train in both.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lib.encoders.patches import take, visible_index
from lib.encoders.t3av import MODALITIES, T3AV, T3AVSettings
from lib.encoders.vit import VitConfig
from lib.losses.masked import masked_patch_loss
from lib.performance.measure import Comparison, Growth, compare, growth

ASKED = 1.8
WIDTH, FRAMES, LAYERS, PIXELS = 512, 4, 12, 224
CLIPS = 2               # of one clip alone a fifth of the step is the optimiser's, the same in both ways
WAYS = ("before", "after")          # where the mask is applied: before the encoders, and after them
PEER = "masking after encoding"


def build(clips: int = 1, width: int = WIDTH, frames: int = FRAMES, layers: int = LAYERS, pixels: int = PIXELS) -> tuple[T3AV, dict]:
    """The model and a batch."""
    torch.manual_seed(0)
    vit = VitConfig("published", width=width, heads=width // 64, feedforward=4 * width, layers=layers, image_size=pixels)
    model = T3AV(T3AVSettings(audio=vit, video=vit, num_frames=frames, bb_heads=width // 64, bb_layers=max(1, layers // 2)), "mae")
    return model, batch_of(clips, frames, pixels)


def batch_of(clips: int, frames: int, pixels: int) -> dict:
    """Random pictures of sound and video, and the seeds of the masks."""
    return {"audio": torch.rand(clips, 1, pixels, pixels),
            "video": torch.randint(0, 256, (clips, frames, 3, pixels, pixels), dtype=torch.uint8), "seeds": [*range(clips)]}


def loss_of(model: T3AV, batch: dict, way: str) -> Tensor:
    """The loss of both modalities, masked before or after the encoders."""
    model.settings = replace(model.settings, masking=way)
    out = model(batch)
    return sum(masked_patch_loss(one["prediction"], one["target"], one["hidden"]) for one in out.values())


def pretraining_step(model: T3AV, batch: dict, optimizer: torch.optim.Optimizer, way: str) -> None:
    """Forward, backward, AdamW."""
    loss_of(model, batch, way).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)


def parts(model: T3AV, batch: dict, way: str) -> dict[str, Callable[[], None]]:
    """Forward and backward of each part alone, as functions: encoders, backbone, decoders."""
    images = {name: model._images(name, batch).expand(-1, -1, 3, -1, -1) for name in MODALITIES}
    visible = {name: visible_index(model.draw_mask(name, batch["seeds"])) for name in MODALITIES}
    states = {name: torch.randn(*visible[name].shape, model.settings.width, requires_grad=True) for name in MODALITIES}

    def run(part):
        for name in MODALITIES:
            table = getattr(model, f"positions_{name}")
            if part == "encoders" and way == "after":
                out = take(model.encoders[name](images[name]), visible[name])
            elif part == "encoders":
                out = model.encoders[name](images[name], visible[name])
            elif part == "backbone":
                out = model.backbone(states[name], table, visible[name])
            else:
                out = model.decoders[name](states[name], table, visible[name])
            out.square().mean().backward()
        model.zero_grad(set_to_none=False)
    return {part: lambda part=part: run(part) for part in ("encoders", "backbone", "decoders")}


def compared(clips: int = CLIPS, repetitions: int = 3, **sizes) -> list[Comparison]:
    """The whole step, then its parts by one run each. sizes: of `build`."""
    model, batch = build(clips, **sizes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    pretraining_step(model, batch, optimizer, WAYS[0])          # makes the moments, which belong to both ways
    shown = {name: int((~model.draw_mask(name, batch["seeds"])).sum()) for name in MODALITIES}
    whole = {name: clips * model.settings.tokens(name) // 4 for name in MODALITIES}
    assert shown == whole, f"visible tokens {shown}, expected a quarter: {whole}"
    told = dict(cores=torch.get_num_threads(), note=f"{shown['video']} of {4 * shown['video']} video and {shown['audio']} of {4 * shown['audio']} sound tokens")
    found = [compare(f"masked pretraining step, {clips} clip{'s' * (clips > 1)}", PEER,
                     *(lambda way=way: pretraining_step(model, batch, optimizer, way) for way in WAYS), repetitions, asked=ASKED, **told)]
    ways = {way: parts(model, batch, way) for way in WAYS}
    return found + [compare(f"its {part}", PEER, *(ways[way][part] for way in WAYS), 1, memory=False) for part in ways[WAYS[0]]]


def grown(sizes=(8, 16, 32, 64), repetitions: int = 3, width: int = 64, layers: int = 4, frames: int = 2, pixels: int = 128) -> list[Growth]:
    """Forward and backward over clips (a small model; AdamW's work does not depend on clips and is left out)."""
    model, _ = build(1, width, frames, layers, pixels)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def make(clips):
        batch = batch_of(clips, frames, pixels)
        return lambda: loss_of(model, batch, "before").backward()
    return [growth("masked step, forward and backward", "clips", make, sizes, repetitions)]
