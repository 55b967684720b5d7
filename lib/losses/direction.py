"""Directions of arrival: one minus the cosine between predicted and true direction, events matched in the best way.

Directions are (x, y, z) with +x front, +y left, +z up: x = cos(elevation) cos(azimuth), y = cos(elevation) sin(azimuth),
z = sin(elevation). Only the direction of a prediction counts, not its length.
"""
from __future__ import annotations

from itertools import permutations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

UNIT = 1e-3  # by how much the length of a target may differ from 1


def direction_loss(predicted: Tensor, target: Tensor, ordered: bool = False) -> Tensor:
    """Mean over clips of 1 - the mean cosine over events, under the assignment of events with the largest mean cosine.

    Without order a clip and its reversal have the same targets, so this loss cannot teach which event came first; `ordered` can.
    Directions at random are at 1 with one event or in order, and at 7/9 = 0.778 with two events without order.

    Args:
        predicted: Tensor (N, E, 3), vectors of any length; a zero vector has cosine 0 with everything.
        target: Tensor (N, E, 3), unit vectors.
        ordered: event e of the prediction is compared with event e of the target.
    Returns:
        scalar Tensor in [0, 2], float32 (float64 input stays float64).
    Raises:
        ValueError: shapes or numbers of events differ, no clip, or targets that are no finite unit vectors.
    """
    if any(x.ndim != 3 or x.shape[-1] != 3 for x in (predicted, target)) or len(predicted) != len(target):
        raise ValueError(f"predicted {tuple(predicted.shape)} and target {tuple(target.shape)} must both be (clips, events, 3)")
    if predicted.shape[1] != target.shape[1]:
        # broadcasting would teach every slot the same direction
        raise ValueError(f"the model predicts {predicted.shape[1]} event(s) a clip and the targets hold {target.shape[1]}: "
                         "build the model for the number of events of the data, or leave the other clips out")
    if target.numel() == 0:
        raise ValueError("directions of no clip or no event: there is nothing to compare")
    with torch.autocast(predicted.device.type, enabled=False):
        predicted = predicted if predicted.dtype == torch.float64 else predicted.float()
        target = target.to(predicted.dtype)
        wrong = ~((torch.linalg.vector_norm(target, dim=-1) - 1).abs() <= UNIT)     # NaN is wrong too
        if wrong.any():
            clip, event = wrong.nonzero()[0].tolist()
            values = ", ".join(f"{value:g}" for value in target[clip, event].tolist())
            raise ValueError(f"target ({values}) of clip {clip} of the batch, event {event}, is no unit vector: "
                             "it must be (cos el cos az, cos el sin az, sin el), finite")
        # eps: shorter predictions have no direction; 1e-6 keeps the cosine and its gradient finite at zero
        predicted = normalize(predicted, dim=-1, eps=1e-6)
        cosine = (predicted[:, :, None] * target[:, None]).sum(-1)      # (N, predicted, true); no product that TF32 could round
        return 1 - (cosine.diagonal(dim1=1, dim2=2) if ordered else _best(cosine)).mean()


def _best(cosine: Tensor) -> Tensor:
    """Cosines (N, E, E) to those of the pairs (N, E) with the largest sum."""
    clips, events, _ = cosine.shape
    with torch.no_grad():
        if events <= 4:
            orders = torch.tensor(list(permutations(range(events))), device=cosine.device)      # (E!, E)
            sums = cosine[:, torch.arange(events, device=cosine.device), orders].sum(-1)        # (N, E!)
            chosen = orders[sums.argmax(1)]
        else:
            matrices = cosine.double().nan_to_num().cpu().numpy()       # a prediction that is NaN shows in the loss, not here
            chosen = torch.tensor([linear_sum_assignment(m, maximize=True)[1].tolist() for m in matrices], device=cosine.device)
    return cosine.gather(2, chosen.view(clips, events, 1)).squeeze(2)
