"""Moving averages of a model's weights (EMA): smoother than the last step's, and often better.

After step n (from 1) an average becomes d * average + (1 - d) * value with d = min(decay, n / (n + 9)): a short run does not keep the
random start. Buffers that are floating-point numbers (running statistics, codebooks) are averaged like weights, all others copied.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

WARM_UP = 9     # the first steps average over about a tenth of what came so far


class Average:
    """Averages of everything in the state dict of a model.  Args: model: as it starts.  decay: from 0 to less than 1."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after an optimiser step.  Args: step: number of it, from 1."""
        share = 1 - min(self.decay, step / (step + WARM_UP))
        for name, value in model.state_dict().items():
            own = self.values[name]
            own.lerp_(value, share) if own.is_floating_point() else own.copy_(value)

    @contextmanager
    def inside(self, model: nn.Module) -> Iterator[None]:
        """Within it the model has the averages; afterwards its own weights again, to the bit."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        _copy(self.values, model)
        try:
            yield
        finally:
            _copy(own, model)

    def load_state_dict(self, values: Mapping[str, Tensor]) -> None:
        """Go on with saved averages.  KeyError: one is missing."""
        for name, own in self.values.items():
            own.copy_(values[name])


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], model: nn.Module) -> None:
    for name, value in model.state_dict().items():      # shares memory with the parameters and buffers
        value.copy_(values[name])
