"""The direction loss against all permutations written out, closed forms, expected values of random directions, and refusals."""
import math
from itertools import permutations

import pytest
import torch
from torch.nn.functional import normalize

from lib.losses.direction import direction_loss


def directions(*size, seed=0):
    return normalize(torch.randn(*size, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=-1)


def written_out(predicted, target, ordered):
    losses = []
    for p, t in zip(predicted.tolist(), target.tolist()):
        cosine = lambda e, f: sum(a * b for a, b in zip(p[e], t[f])) / math.sqrt(sum(a * a for a in p[e]))
        orders = [tuple(range(len(p)))] if ordered else permutations(range(len(p)))
        losses.append(1 - max(sum(cosine(e, f) for e, f in enumerate(order)) / len(p) for order in orders))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("events", [1, 2, 3, 4, 5])
def test_against_written_out(events, ordered):
    predicted, target = directions(20, events) * 0.3, directions(20, events, seed=1)
    assert direction_loss(predicted, target, ordered).item() == pytest.approx(written_out(predicted, target, ordered), abs=1e-10)


@pytest.mark.parametrize("angle", [0, 30, 90, 180])
def test_closed_forms(angle):
    """Two events on the horizon, both turned by one angle: 1 - cos(angle), or with order the other way round."""
    direction = lambda degrees: torch.stack([torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees)), 0 * degrees], -1)
    azimuth = torch.tensor([[10.0, 10.0]], dtype=torch.float64)
    off = 1 - math.cos(math.radians(angle))
    assert direction_loss(direction(azimuth + angle), direction(azimuth)).item() == pytest.approx(off, abs=1e-10)
    swapped = torch.tensor([[0.0, 180.0]], dtype=torch.float64)
    assert direction_loss(direction(swapped + angle), direction(swapped)).item() == pytest.approx(min(off, 2 - off), abs=1e-10)
    assert direction_loss(direction(swapped + angle), direction(swapped), ordered=True).item() == pytest.approx(off, abs=1e-10)


def test_length_and_the_order_of_clips_and_events_do_not_count():
    predicted, target = directions(8, 3), directions(8, 3, seed=1)
    loss = direction_loss(predicted, target).item()
    assert direction_loss(predicted * torch.rand(8, 3, 1, dtype=torch.float64).add(0.01), target).item() == pytest.approx(loss, abs=1e-12)
    clips, events = torch.randperm(8), [2, 0, 1]
    assert direction_loss(predicted[clips], target[clips]).item() == pytest.approx(loss, abs=1e-12)
    assert direction_loss(predicted[:, events], target).item() == pytest.approx(loss, abs=1e-12)
    assert direction_loss(predicted, target[:, events]).item() == pytest.approx(loss, abs=1e-12)
    in_order = direction_loss(predicted, target, ordered=True).item()
    assert direction_loss(predicted[:, events], target[:, events], ordered=True).item() == pytest.approx(in_order, abs=1e-12)
    assert abs(direction_loss(predicted[:, events], target, ordered=True).item() - in_order) > 0.01


def test_random_directions():
    """One event: 1. Two: max(S, S') = (S + S')/2 + |S - S'|/2 with S - S' = (p0 - p1).(t0 - t1)/2, whose lengths are 4/3 and whose
    |cosine| is 1/2 in the mean: 1 - (4/3)^2 / 8 = 7/9."""
    draws = 200_000
    assert direction_loss(directions(draws, 1), directions(draws, 1, seed=1)).item() == pytest.approx(1, abs=0.006)
    two = directions(draws, 2), directions(draws, 2, seed=1)
    assert direction_loss(*two).item() == pytest.approx(7 / 9, abs=0.004)
    assert direction_loss(*two, ordered=True).item() == pytest.approx(1, abs=0.005)


def test_gradients():
    for events in (1, 2, 5):
        predicted, target = (directions(4, events) * 0.5).requires_grad_(), directions(4, events, seed=1)
        for ordered in (False, True):
            assert torch.autograd.gradcheck(lambda p: direction_loss(p, target, ordered), predicted)
    zero = torch.zeros(2, 2, 3, requires_grad=True)
    loss = direction_loss(zero, directions(2, 2).float())
    loss.backward()
    assert loss.item() == 1 and zero.grad.isfinite().all(), "a zero vector is at right angles to everything"


@pytest.mark.parametrize("events", [2, 5])
def test_a_prediction_that_is_nan_shows(events):
    """The training loop stops at a loss that is not finite; the assignment must not fail before it."""
    predicted = directions(3, events)
    predicted[1, 0, 0] = torch.nan
    assert direction_loss(predicted, directions(3, events, seed=1)).isnan()


def test_float32_under_autocast():
    predicted, target = directions(50, 2), directions(50, 2, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert direction_loss(predicted.bfloat16(), target.float()).dtype == torch.float32
        assert direction_loss(predicted.float(), target).item() == pytest.approx(written_out(predicted, target, False), abs=1e-6)


@pytest.mark.parametrize("predicted, target, words", [
    (torch.ones(4, 2, 3), directions(4, 1), r"predicts 2 event\(s\) a clip and the targets hold 1"),
    (torch.ones(4, 1, 3), directions(4, 2), r"predicts 1 event\(s\) a clip and the targets hold 2"),
    (torch.ones(4, 3), directions(4, 1), r"\(clips, events, 3\)"), (torch.ones(3, 1, 3), directions(4, 1), r"\(clips, events, 3\)"),
    (torch.ones(4, 1, 2), torch.ones(4, 1, 2), r"\(clips, events, 3\)"), (torch.ones(0, 1, 3), torch.ones(0, 1, 3), "no clip"),
    (torch.ones(2, 1, 3), torch.tensor([[[1.0, 0, 0]], [[0, 1.0, 1.0]]]), r"target \(0, 1, 1\) of clip 1 of the batch, event 0"),
    (torch.ones(1, 1, 3), torch.zeros(1, 1, 3), "no unit vector"), (torch.ones(1, 1, 3), torch.full((1, 1, 3), torch.nan), "no unit vector"),
    (torch.ones(1, 1, 3), torch.full((1, 1, 3), torch.inf), "no unit vector")])
def test_refusals(predicted, target, words):
    with pytest.raises(ValueError, match=words):
        direction_loss(predicted, target)
