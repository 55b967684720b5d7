"""The convolution module of the Conformer (Gulati et al., arXiv 2005.08100) over tokens that lie on a grid of time and frequency.

Convention: tokens (B, N, C) in the order of `lib.encoders.spectrogram_config`: column by column, several scales one after another. Inside
the depthwise convolution they are pictures (B, C, time, frequency), which is the same memory read with channels last.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import glu, pad, silu

from lib import distributed
from lib.encoders.batch_norm import SynchronizedBatchNorm
from lib.encoders.spectrogram_config import Grid

AXES = ("flat", "time", "2d")


class TokenBatchNorm(SynchronizedBatchNorm):
    """Batch normalisation of tokens (B, N, C) whose training statistics leave out those of padding.

    Padded tokens are normalised too, with the statistics of the others, as in evaluation. Parameters, buffers, processes and
    precision: as `SynchronizedBatchNorm`.
    """

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Args: x: Tensor (B, N, C).  valid: Tensor (B, N) bool, False where a token is padding; None: none is.
        Returns: Tensor (B, N, C), float32 or float64.  ValueError: training with fewer than two valid tokens in all processes together."""
        if valid is None or not self.training:
            return super().forward(x.flatten(0, 1)).view(x.shape)
        with torch.autocast(x.device.type, enabled=False):
            x = x if x.dtype == torch.float64 else x.float()
            weight = valid[..., None].to(x.dtype)
            # float64 for the few numbers that are sent: a count above 2^24 is not exact in float32
            total = _over_processes(torch.cat([(x * weight).sum((0, 1)).double(), valid.sum()[None].double()]))
            count = int(total[-1])
            if count < 2:
                raise ValueError(f"{count} token(s) in the batch that are no padding: statistics need at least 2, raise batch_size")
            mean = (total[:-1] / count).to(x.dtype)
            centred = x - mean                                  # E[x^2] - E[x]^2 would cancel
            variance = (_over_processes((centred.square() * weight).sum((0, 1)).double()) / count).to(x.dtype)
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
            return centred * (self.weight * torch.rsqrt(variance + self.eps)) + self.bias


def _over_processes(values: Tensor) -> Tensor:
    """Sum over processes, with the gradients of `lib.distributed.gather`."""
    return distributed.gather(values[None]).sum(0)


@contextmanager
def running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Within it, training passes leave the running statistics of the module's batch norms as they are, to the bit.

    For gradient checkpointing: the backward pass computes a layer a second time, and the same batch must not count twice.
    """
    norms = [norm for norm in module.modules() if isinstance(norm, SynchronizedBatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0                                     # not a copy put back: the statistics belong to the graph by then
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


@dataclass
class Past:
    """What the convolution still needs of earlier tokens: (B, steps, rows, C), or None before the first; steps along its axis of time."""

    tokens: Tensor | None = None


class ConvolutionModule(nn.Module):
    """LayerNorm, pointwise C -> 2C, GLU, depthwise, norm, SiLU, pointwise C -> C, dropout; all convolutions with bias.

    The depthwise convolution never reaches over the border between two scales.

    Args:
        channels: C.  kernel_size: odd number of taps.
        axis: "flat": along the sequence of tokens; "time": along each row of the grid; "2d": over the grid, `kernel_2d` taps
            (columns, rows).
        causal: only the token itself and earlier ones (with "2d": its own and earlier columns), and a LayerNorm over channels instead
            of batch normalisation, whose statistics hold the future. With "flat" the lower rows of its own column count as earlier.
        dropout: probability in [0, 1).
    Raises:
        ValueError: an unknown axis, or an even number of taps.
    """

    def __init__(self, channels: int, kernel_size: int = 31, axis: str = "flat", kernel_2d: tuple[int, int] = (7, 3), causal: bool = False,
                 dropout: float = 0.0):
        super().__init__()
        if axis not in AXES:
            raise ValueError(f"convolution module: axis must be one of {', '.join(AXES)}, got {axis!r}")
        kernel = tuple(kernel_2d) if axis == "2d" else (kernel_size, 1)
        if any(taps < 1 or taps % 2 == 0 for taps in kernel):
            raise ValueError(f"convolution module: {kernel} taps, expected odd numbers, so that there is a middle one")
        self.axis, self.kernel, self.causal = axis, kernel, causal
        self.layer_norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, 2 * channels)
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=tuple(taps // 2 for taps in kernel), groups=channels)
        if causal:
            self.depthwise.padding = (0, kernel[1] // 2)        # time is padded by hand, on the left only
        self.norm = nn.LayerNorm(channels) if causal else TokenBatchNorm(channels)
        self.project = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, grids: Sequence[Grid], valid: Tensor | None = None, past: Past | None = None) -> Tensor:
        """The branch's output, to be added to x.

        Args:
            x: Tensor (B, N, C).  grids: of the scales, whose tokens sum to N.
            valid: Tensor (B, N) bool, False for padding, which the training statistics leave out; None: no padding.
            past: causal only: x goes on where `past` ended; it is brought up to date.
        Returns:
            Tensor (B, N, C).
        Raises:
            ValueError: a `past` without `causal`.
        """
        if past is not None and not self.causal:
            raise ValueError("convolution module: only a causal one can go on where earlier tokens ended; train with causal=True")
        x = glu(self.expand(self.layer_norm(x)), dim=-1)
        scales = x.split([grid.tokens for grid in grids], dim=1)
        parts = [self._convolve(part, grid, past) for part, grid in zip(scales, grids, strict=True)]
        x = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        x = self.norm(x) if self.causal else self.norm(x, valid)
        return self.dropout(self.project(silu(x)))

    def _convolve(self, x: Tensor, grid: Grid, past: Past | None) -> Tensor:
        rows = 1 if self.axis == "flat" else grid.rows
        grid_tokens = x.unflatten(1, (-1, rows))                # (B, steps of time, rows, C)
        if self.causal:
            before = self.kernel[0] - 1
            if past is None or past.tokens is None:
                grid_tokens = pad(grid_tokens, (0, 0, 0, 0, before, 0))
            else:
                grid_tokens = torch.cat([past.tokens, grid_tokens], dim=1)
            if past is not None:
                past.tokens = grid_tokens[:, grid_tokens.shape[1] - before:]
        return self.depthwise(grid_tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1, 2)
