"""How much each part of the spatial-temporal loss counts, and how that changes over the epochs.

total = (1 - w_semantic) joint + w_semantic semantic + w_doa doa + w_temporal_spatial temporal_spatial + w_modality modality
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

ORDER = ("doa", "semantic", "temporal_spatial", "modality")     # of the four numbers of a `loss_weights` list


@dataclass(frozen=True)
class LossWeights:
    """Weights at full strength and their schedules; epochs are counted from 0.

    Attributes:
        doa: of the direction loss.
        semantic: share of the semantic contrastive loss, in [0, 1]; the joint one has the rest.
        temporal_spatial: of the three-way loss within triplets.
        modality: of the modality classifier behind the reversed gradient.
        semantic_start_epoch: the semantic share is 0 before this epoch.
        semantic_schedule: "step": full from semantic_start_epoch on; "ramp": linear from there, over ts_ramp_epochs epochs.
        ts_ramp_epochs: temporal_spatial grows linearly, (epoch + 1) / ts_ramp_epochs, to its full weight; 0: full at once.
    Raises:
        ValueError: a value out of its range, naming it.
    """

    doa: float = 1.0
    semantic: float = 0.5
    temporal_spatial: float = 0.2
    modality: float = 0.2
    semantic_start_epoch: int = 3
    semantic_schedule: str = "step"
    ts_ramp_epochs: int = 4

    def __post_init__(self):
        for name in ORDER:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"the weight {name} must be a finite number of at least 0, got {getattr(self, name)}")
        if self.semantic > 1:
            raise ValueError(f"the weight semantic must be at most 1 (the joint loss has the rest), got {self.semantic}")
        if self.semantic_schedule not in ("step", "ramp"):
            raise ValueError(f"semantic_schedule must be 'step' or 'ramp', got {self.semantic_schedule!r}")
        for name in ("semantic_start_epoch", "ts_ramp_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")

    @classmethod
    def from_list(cls, loss_weights: Sequence[float], **schedule) -> LossWeights:
        """From the list [doa, semantic, temporal_spatial, modality], and the schedule's fields by name.

        Raises:
            ValueError: not four numbers, or one of them out of its range; the message names the order.
        """
        order = f"loss_weights must be [{', '.join(ORDER)}]"
        if len(loss_weights) != len(ORDER):
            raise ValueError(f"{order}, got {len(loss_weights)} values: {list(loss_weights)}")
        try:
            return cls(*map(float, loss_weights), **schedule)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{order}: {error}") from error

    def at(self, epoch: int) -> dict[str, float]:
        """The factor of each part in an epoch: joint, semantic, doa, temporal_spatial, modality."""
        after = epoch - self.semantic_start_epoch
        if self.semantic_schedule == "ramp":
            semantic = self.semantic * _ramp(after, self.ts_ramp_epochs)
        else:
            semantic = self.semantic if after >= 0 else 0.0
        return {"joint": 1 - semantic, "semantic": semantic, "doa": self.doa,
                "temporal_spatial": self.temporal_spatial * _ramp(epoch, self.ts_ramp_epochs), "modality": self.modality}


def total(parts: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted sum of the parts of a loss.

    A part of weight 0 is multiplied, not skipped: its layers then have gradients (of 0), which distributed training waits for.

    Args:
        parts: name -> scalar.  weights: name -> factor, as of `LossWeights.at`; one that is not 0 needs its part.
    Raises:
        ValueError: a part without a weight, or a weight that is not 0 without its part.
    """
    unknown, missing = parts.keys() - weights.keys(), {name for name, w in weights.items() if w} - parts.keys()
    if unknown or missing or not parts:
        raise ValueError(f"parts {sorted(parts)} and weights {sorted(weights)} do not match: "
                         f"{', '.join(sorted(unknown | missing)) or 'no part at all'}")
    return sum(weights[name] * value for name, value in parts.items())


def _ramp(epoch: int, epochs: int) -> float:
    """1/epochs in epoch 0, growing to 1; 0 before."""
    return min(1.0, max(0, epoch + 1) / epochs) if epochs else float(epoch >= 0)
