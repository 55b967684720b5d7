"""A second network that learns against the first one, with an optimiser of its own (a discriminator).

It has the first one's AdamW settings and learning rate. In several processes every one holds the same copy: gradients are averaged here
before the step, as distributed data parallel training does, which allows several passes and a gradient penalty in one step.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from lib import distributed
from lib.config import RunConfig


class Adversary:
    """What the loop does with a family's `adversary`.  Args: network; config: of the run; device: where it goes."""

    def __init__(self, network: nn.Module, config: RunConfig, device: torch.device):
        self.network, self.clip, self.updated = network.to(device).train(), config.gradient_clip, False
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, betas=config.betas, eps=1e-8,
                                           weight_decay=config.weight_decay)

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""
        self.optimizer.zero_grad()
        self.updated = False

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, of this network's parameters only."""
        parameters = list(self.network.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters)):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        self.updated = True

    def step(self, rate: float) -> None:
        """An optimiser step at a learning rate, where there was a loss."""
        if not self.updated:
            return
        for parameter in self.network.parameters():
            parameter.grad = distributed.average(parameter.grad)
        if self.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()

    def state_dict(self) -> dict:
        """Tensors and numbers for a checkpoint."""
        return {"network": {name: value.detach().cpu() for name, value in self.network.state_dict().items()},
                "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state_dict` was taken."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
