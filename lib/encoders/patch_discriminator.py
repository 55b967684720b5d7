"""A network that judges patches of a spectrogram, real or drawn (PatchGAN: Isola et al., arXiv 1611.07004).

Spectrograms are (B, T, F), scaled to about -1 .. 1, and every logit judges what its place sees of it: > 0 says real. Convolutions of
4 x 4 taps; batch normalisation over all processes' clips in the inner layers; LeakyReLU 0.2. With its defaults it has the 1,776,769
parameters of the published audio recipe, and (1024, 128) gives 62 x 6 logits. Computed in float32 outside autocast.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from lib.encoders.batch_norm import SynchronizedBatchNorm

SLOPE = 0.2
MOST = 8            # channels grow to this many times those of the first layer
WEIGHT_STD = 0.02   # normal, as are gains around 1: the start of pix2pix


class PatchDiscriminator(nn.Module):
    """Args: channels: of the first layer.  halvings: layers that halve both sides; two more layers follow that do not."""

    def __init__(self, channels: int = 64, halvings: int = 4):
        super().__init__()
        self.halvings = halvings
        widths = [channels] + [channels * min(2 ** max(0, n - 1), MOST) for n in range(1, halvings)]
        layers: list[nn.Module] = [nn.Conv2d(1, channels, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        for before, after, stride in [*zip(widths, widths[1:], [2] * halvings), (widths[-1], widths[-1], 1)]:
            layers += [nn.Conv2d(before, after, 4, stride=stride, padding=1), SynchronizedBatchNorm(after), nn.LeakyReLU(SLOPE)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=WEIGHT_STD)
                nn.init.zeros_(layer.bias)
            elif isinstance(layer, SynchronizedBatchNorm):
                nn.init.normal_(layer.weight, mean=1.0, std=WEIGHT_STD)

    @property
    def smallest(self) -> int:
        """Frames and bands that a spectrogram must have at least."""
        return 3 * 2 ** self.halvings

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, t, f) of spectrograms (B, T, F).  ValueError: another shape, or one that leaves no logit."""
        if x.ndim != 3 or min(x.shape[1:]) < self.smallest:
            raise ValueError(f"discriminator: expected spectrograms (clips, frames, bands) of at least {self.smallest} frames and bands, "
                             f"got {tuple(x.shape)}; lower disc_num_layers")
        with torch.autocast(x.device.type, enabled=False):
            return self.layers(x.to(self.layers[0].weight.dtype)[:, None])[:, 0]
