"""The losses against all classes: loops in plain Python, closed forms, gradients."""
import math

import pytest
import torch

from lib.losses.tagging import KINDS, class_loss


def written_out(logits, targets, kind, bias=0.0):
    values = []
    for row, true in zip(logits.tolist(), targets.tolist()):
        if not any(true):
            continue
        p = [math.exp(x) / sum(math.exp(y) for y in row) for x in row]
        chosen = [x for x, t in zip(p, true) if t]
        if kind == "softmax":
            values.append(sum(-math.log(x) for x in chosen) / len(chosen) - math.log(len(chosen)))
        elif kind == "sum":
            values.append(-math.log(sum(chosen)))
        else:
            values.append(sum(math.log(1 + math.exp(-(x + bias) if t else x + bias)) for x, t in zip(row, true)) / len(row))
    return sum(values) / len(values)


def batch(seed=0, clips=6, classes=9):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.rand(clips, classes, generator=generator) < 0.3
    targets[0] = torch.arange(classes) == 2
    targets[1] = False              # an unlabelled clip counts in no kind
    return torch.randn(clips, classes, generator=generator, dtype=torch.float64) * 3, targets


@pytest.mark.parametrize("kind", KINDS)
def test_against_written_out(kind):
    for seed in range(5):
        logits, targets = batch(seed)
        assert class_loss(logits, targets, kind).item() == pytest.approx(written_out(logits, targets, kind), abs=1e-8)
    if kind == "sigmoid":
        assert class_loss(logits, targets, kind, -2.5).item() == pytest.approx(written_out(logits, targets, kind, -2.5), abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_floor_is_zero_and_even_logits_have_a_closed_form(kind):
    _, targets = batch()
    floor = class_loss(torch.where(targets, 60.0, -60.0).double(), targets, kind).item()
    assert abs(floor) < 1e-12
    count = targets.sum(1)[targets.any(1)].double()
    expected = math.log(2) if kind == "sigmoid" else (math.log(9) - count.log()).mean().item()
    even = torch.full((6, 9), 0.0 if kind == "sigmoid" else -7.0)
    assert class_loss(even, targets, kind).item() == pytest.approx(expected, abs=1e-6)


def test_sum_is_content_with_one_true_class_and_softmax_is_not():
    targets = torch.tensor([[True, True, False]])
    logits = torch.tensor([[50.0, 0.0, 0.0]])
    assert class_loss(logits, targets, "sum").item() < 1e-6
    assert class_loss(logits, targets).item() == pytest.approx(25 - math.log(2), abs=1e-4)
    one = torch.tensor([[True, False, False]])
    assert class_loss(logits / 9, one, "sum").item() == pytest.approx(class_loss(logits / 9, one).item(), abs=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind):
    logits, targets = batch(3)
    assert torch.autograd.gradcheck(lambda x: class_loss(x, targets, kind), logits.requires_grad_(), atol=1e-8, rtol=1e-6)
    far = torch.full((2, 4), -1e30, requires_grad=True)
    far.data[0, 0] = 1e30
    class_loss(far, torch.eye(4, dtype=torch.bool)[:2], kind).backward()
    assert far.grad.isfinite().all()


def test_bias_is_learnable_and_autocast_stays_outside():
    logits, targets = batch(4)
    bias = torch.zeros(9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda b: class_loss(logits, targets, "sigmoid", b), bias, atol=1e-8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(class_loss(logits.bfloat16(), targets, kind).dtype == torch.float32 for kind in KINDS)


@pytest.mark.parametrize("arguments, words", [
    ((torch.zeros(2, 3), torch.ones(3, 2, dtype=torch.bool)), "one shape"),
    ((torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool)), "no clip"),
    ((torch.zeros(2, 2), torch.eye(2), "mean"), "kind"), ((torch.zeros(2, 2), torch.eye(2), "sum", 1.0), "bias")])
def test_refusals(arguments, words):
    with pytest.raises(ValueError, match=words):
        class_loss(*arguments)
