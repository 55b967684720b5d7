"""Learning rate per optimiser step: linear warm-up, cosine decay (or none), constant tail."""
from __future__ import annotations

import math


def learning_rate(step: int, *, steps_per_epoch: int, peak: float, start: float = 1e-7, floor: float = 1e-7,
                  warmup_epochs: float = 1.0, decay_epochs: float | None = 15.0) -> float:
    """Learning rate of optimiser step `step` (from 0).

    start -> peak linearly over the warm-up epochs, peak -> floor along half a cosine over the decay epochs, then floor.
    Args: epochs may be fractions; decay_epochs None: the peak is kept; steps_per_epoch >= 1.
    """
    warmup = warmup_epochs * steps_per_epoch
    if step < warmup:
        return start + (peak - start) * step / warmup
    if decay_epochs is None:
        return peak
    decay = decay_epochs * steps_per_epoch
    progress = min(1.0, (step - warmup) / decay) if decay > 0 else 1.0
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
