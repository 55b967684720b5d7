"""Weights and schedules of the spatial-temporal loss: the seed's numbers epoch by epoch, its list, sums, and refusals."""
import math

import pytest
import torch

from lib.losses.weights import LossWeights, total

NAMES = {"joint", "semantic", "doa", "temporal_spatial", "modality"}


def by_epoch(weights, name, epochs=7):
    return [weights.at(epoch)[name] for epoch in range(epochs)]


def test_the_seeds_schedule():
    weights = LossWeights()
    assert weights.at(0).keys() == NAMES
    assert by_epoch(weights, "semantic") == [0, 0, 0, 0.5, 0.5, 0.5, 0.5]
    assert by_epoch(weights, "joint") == [1, 1, 1, 0.5, 0.5, 0.5, 0.5]
    assert by_epoch(weights, "temporal_spatial") == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.2, 0.2, 0.2], abs=1e-12)
    assert by_epoch(weights, "doa") == [1] * 7 and by_epoch(weights, "modality") == [0.2] * 7


def test_other_schedules():
    ramp = LossWeights(semantic=0.4, semantic_schedule="ramp", semantic_start_epoch=2, ts_ramp_epochs=4)
    assert by_epoch(ramp, "semantic") == pytest.approx([0, 0, 0.1, 0.2, 0.3, 0.4, 0.4], abs=1e-12)
    assert by_epoch(ramp, "joint") == pytest.approx([1, 1, 0.9, 0.8, 0.7, 0.6, 0.6], abs=1e-12)
    at_once = LossWeights(semantic_schedule="ramp", semantic_start_epoch=1, ts_ramp_epochs=0)
    assert by_epoch(at_once, "semantic", 3) == [0, 0.5, 0.5] and by_epoch(at_once, "temporal_spatial", 3) == [0.2] * 3


def test_from_the_seeds_list():
    weights = LossWeights.from_list([0.9, 0.6, 0.3, 0.1], semantic_start_epoch=0)
    assert weights == LossWeights(doa=0.9, semantic=0.6, temporal_spatial=0.3, modality=0.1, semantic_start_epoch=0)
    assert LossWeights.from_list([1, 0.5, 0.2, 0.2]) == LossWeights()
    for values in ([1.0, 0.5, 0.2], [1.0, 0.5, 0.2, 0.2, 0.1], [1.0, -0.5, 0.2, 0.2], [1.0, 1.5, 0.2, 0.2], [1.0, 0.5, math.nan, 0.2],
                   [1.0, 0.5, "much", 0.2], [1.0, 0.5, None, 0.2]):
        with pytest.raises(ValueError, match=r"loss_weights must be \[doa, semantic, temporal_spatial, modality\]"):
            LossWeights.from_list(values)


@pytest.mark.parametrize("changes, words", [({"semantic": 1.1}, "semantic must be at most 1"), ({"doa": -1}, "doa"),
                                            ({"modality": math.inf}, "modality"),
                                            ({"semantic_schedule": "linear"}, "'step' or 'ramp'"), ({"ts_ramp_epochs": -1}, "ts_ramp_epochs"),
                                            ({"semantic_start_epoch": -1}, "semantic_start_epoch")])
def test_refusals(changes, words):
    with pytest.raises(ValueError, match=words):
        LossWeights(**changes)


def test_total():
    values = {"joint": 3.0, "semantic": 2.0, "doa": 0.5, "temporal_spatial": 1.1, "modality": 0.7}
    parts = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in values.items()}
    loss = total(parts, LossWeights().at(4))
    assert loss.item() == pytest.approx(0.5 * 3.0 + 0.5 * 2.0 + 0.5 + 0.2 * 1.1 + 0.2 * 0.7, abs=1e-12)
    early = total(parts, LossWeights().at(0))
    early.backward()
    assert {name: part.grad.item() for name, part in parts.items()} == pytest.approx(LossWeights().at(0))
    assert parts["semantic"].grad is not None, "a part of weight 0 stays in the graph"
    without = {name: part for name, part in parts.items() if name != "semantic"}
    assert total(without, LossWeights().at(0)).item() == pytest.approx(early.item(), abs=1e-12)
    for wrong, weights, words in ((without, LossWeights().at(4), "do not match: semantic"), ({}, {}, "no part at all"),
                                  (parts | {"masked": loss}, LossWeights().at(4), "do not match: masked")):
        with pytest.raises(ValueError, match=words):
            total(wrong, weights)
