"""Localisation error against a written-out loop, closed forms and scipy's assignment; its chance level and control."""
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from lib.evaluation.localization import angular_error, localization_metrics


def unit(*shape, seed=0):
    x = np.random.default_rng(seed).normal(size=(*shape, 3))
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("events", [1, 2, 3, 4])
def test_error_equals_a_loop_with_the_hungarian_assignment(events):
    predicted, target = unit(40, events, seed=1) * np.random.default_rng(2).uniform(0.01, 7, (40, events, 1)), unit(40, events)
    got = angular_error(torch.tensor(predicted), torch.tensor(target))
    assert got.shape == (40, events) and got.dtype == torch.float64
    for n in range(40):
        angles = np.array([[math.degrees(math.acos(np.clip(p @ t / np.linalg.norm(p), -1, 1))) for t in target[n]]
                           for p in predicted[n]])
        rows, columns = linear_sum_assignment(angles)
        np.testing.assert_allclose(got[n, columns], angles[rows, columns], atol=1e-6)


def test_closed_forms_and_edges():
    target = torch.tensor([[[1.0, 0, 0]]])
    for predicted, degrees in [([2.0, 0, 0], 0), ([0, 0.1, 0], 90), ([-3.0, 0, 0], 180), ([1.0, 1, 0], 45), ([0.0, 0, 0], 90)]:
        assert angular_error(torch.tensor([[predicted]]), target).item() == pytest.approx(degrees, abs=1e-12)
    # where the arc cosine of a rounded cosine gives 0 or NaN
    near = torch.tensor([[[1.0, 1e-9, 0]]], dtype=torch.float64)
    assert angular_error(near, target).item() == pytest.approx(math.degrees(1e-9))
    swapped = torch.tensor([[[0, 1.0, 0], [1.0, 0, 0]]])
    torch.testing.assert_close(angular_error(swapped, swapped.flip(1)), torch.zeros(1, 2, dtype=torch.float64))
    # the assignment with the smallest mean angle (20 + 25) / 2, not the one that has the best single angle (0 + 65)
    at = lambda *degrees: np.stack([[math.cos(math.radians(d)), math.sin(math.radians(d)), 0] for d in degrees])[None]
    assert angular_error(at(20, 65), at(0, 40)).numpy() == pytest.approx(np.array([[20.0, 25.0]]))
    assert angular_error(at(20, 80), at(20, 20)).sum().item() == pytest.approx(60)


def test_what_cannot_be_scored_is_refused():
    good = torch.tensor(unit(3, 2))
    for predicted, target in [(good, good[:, :1]), (good[:, 0], good[:, 0]), (good[:2], good), (good.repeat(1, 3, 1),) * 2]:
        with pytest.raises(ValueError, match="1 to 4 events"):
            angular_error(predicted, target)
    bad = good.clone()
    bad[1, 1] = float("nan")
    with pytest.raises(ValueError, match="predicted of clip 1, event 1"):
        angular_error(bad, good)
    bad[1, 1] = 0
    assert angular_error(bad, good).isfinite().all()
    with pytest.raises(ValueError, match="target of clip 1, event 1"):
        angular_error(good, bad)
    with pytest.raises(ValueError, match="one group holds 2 of 3"):
        localization_metrics(good, good, groups=np.array(["a", "a", "b"]))
    with pytest.raises(ValueError, match="each of 3 clips"):
        localization_metrics(good, good, groups=np.arange(2))


@pytest.mark.parametrize("events, chance", [(1, 90.0), (2, 74.9)])
def test_metrics_chance_and_control(events, chance):
    target = unit(1500, events)
    noisy = localization_metrics(target + 0.1 * np.random.default_rng(7).normal(size=target.shape), target)
    random = localization_metrics(unit(1500, events, seed=1), target)
    for result in (noisy, random):
        assert result["chance"]["mean"] == pytest.approx(chance, abs=0.6)
        assert result["control"]["mean"] == pytest.approx(chance, abs=1.0)      # predictions of other clips tell nothing
        assert result["interval"][0] < result["mean"] < result["interval"][1]
        assert (result["n"], result["events"]) == (1500, events)
    assert noisy["mean"] < 10 and noisy["below_20"] > 0.95 and noisy["below_20_interval"][1] <= 1
    assert random["interval"][0] < random["chance"]["mean"] < random["interval"][1]
    if events == 1:                                                             # a cap of 20 degrees on the sphere
        assert random["chance"]["below_20"] == pytest.approx((1 - math.cos(math.radians(20))) / 2, abs=0.003)


def test_the_control_takes_predictions_of_other_groups():
    # three members of a group share their places; a permutation within groups would leave the error at 0
    target = np.repeat(unit(200, 2, seed=3), 3, axis=0)
    result = localization_metrics(target, target, groups=np.repeat(np.arange(200), 3))
    assert result["mean"] == pytest.approx(0, abs=1e-6) and result["control"]["mean"] > 65
    # a model that says the same place for all clips is as good as its control
    constant = localization_metrics(np.tile([1.0, 0, 0], (600, 2, 1)), target)
    assert constant["mean"] == pytest.approx(constant["control"]["mean"])


def test_intervals_know_groups():
    target = unit(100, 1)
    predicted = target + np.random.default_rng(5).normal(size=target.shape)
    three = lambda x: np.repeat(x, 3, axis=0)
    alone = localization_metrics(predicted, target)["interval"]
    grouped = localization_metrics(three(predicted), three(target), groups=three(np.arange(100)))["interval"]
    assert grouped == pytest.approx(alone, abs=0.2)
