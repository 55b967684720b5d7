"""Batch normalisation whose training statistics are those of the whole batch, whatever the number of processes.

torch's own SyncBatchNorm runs on CUDA only; this one also trains in several processes on CPU. Convention (see lib.distributed):
every process computes the same loss from gathered rows, so the gradient that arrives at a process's rows is that of the sum of
all copies of the loss. A sum over processes passes it on by summing what every process sends back, as `gather` does.
"""
from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lib import distributed


class SynchronizedBatchNorm(nn.BatchNorm1d):
    """nn.BatchNorm1d for (N, channels, ...) with any further axes or none, over the rows of all processes.

    Same parameters, buffers and names in the state dict, and in one process the same result. Processes may hold different
    numbers of rows, also none, but in training all of them must call it equally often. Computed in float32 outside autocast
    (float64 input stays float64).

    Args:
        channels: size of axis 1; each channel is normalised over all other axes.
        momentum: share of the new batch in the running statistics.
        eps: added to the variance.
    """

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__(channels, eps=eps, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised, scaled and shifted.

        Args:
            x: Tensor (N, channels, ...).
        Returns:
            Tensor of the shape of x, float32 or float64.
        Raises:
            ValueError: axis 1 is not the channels, or training with fewer than two values a channel in all processes together.
        """
        if x.ndim < 2 or x.shape[1] != self.num_features:
            raise ValueError(f"the input must be (rows, {self.num_features}, ...), got {tuple(x.shape)}")
        with torch.autocast(x.device.type, enabled=False):
            x = x if x.dtype == torch.float64 else x.float()
            if self.training and distributed.world() > 1:
                return self._over_processes(x)
            if self.training:
                _need_two_values(x.numel() // self.num_features)
            return super().forward(x)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes will do: forward() has looked at the shape."""

    def _over_processes(self, x: Tensor) -> Tensor:
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        # float64 for the few numbers that are sent: a count above 2^24 is not exact in float32
        local = torch.cat([x.sum(axes).double(), x.new_full((1,), x.numel() // self.num_features, dtype=torch.float64)])
        total = _Sum.apply(local)
        count = int(total[-1])
        _need_two_values(count)
        mean = (total[:-1] / count).to(x.dtype)
        centred = x - mean.view(shape)          # squares of centred values: E[x^2] - E[x]^2 would cancel
        variance = (_Sum.apply(centred.square().sum(axes).double()) / count).to(x.dtype)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return centred * scale.view(shape) + self.bias.view(shape)


def _need_two_values(count: int) -> None:
    if count < 2:
        raise ValueError(f"{count} value(s) a channel in the batch: training statistics need at least 2, raise batch_size")


class _Sum(torch.autograd.Function):
    """Sum over processes; the gradient is summed over them too, because every process's rows depend on it. So it is its own derivative,
    also of the second order, which a gradient penalty needs."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        values = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)
