"""The masked loss against loops and closed forms, and the contrastive loss as stage 2 of the audio-visual family uses it."""
import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from lib.losses.contrastive import contrastive_loss
from lib.losses.masked import masked_patch_loss, patch_statistics


def case(clips=3, patches=5, values=8, dtype=torch.float64):
    make = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(clips, patches, values, generator=make, dtype=dtype) for _ in range(2))
    hidden = torch.rand(clips, patches, generator=make) < 0.6
    hidden[0, 0], hidden[1, 1] = True, False
    return prediction, target, hidden


@pytest.mark.parametrize("normalised", [False, True])
def test_against_a_loop(normalised):
    prediction, target, hidden = case()
    errors = []
    for b in range(3):
        for n in range(5):
            if hidden[b, n]:
                values = target[b, n].tolist()
                if normalised:
                    mean = sum(values) / 8
                    variance = sum((v - mean) ** 2 for v in values) / 7
                    values = [(v - mean) / math.sqrt(variance + 1e-6) for v in values]
                errors.append(sum((p - v) ** 2 for p, v in zip(prediction[b, n].tolist(), values)) / 8)
    assert masked_patch_loss(prediction, target, hidden, normalised).item() == pytest.approx(sum(errors) / len(errors), abs=1e-8)


def test_closed_forms():
    prediction, target, hidden = case()
    assert masked_patch_loss(target, target, hidden).item() == 0
    assert masked_patch_loss(target + 0.5, target, hidden).item() == pytest.approx(0.25, abs=1e-12)
    # predicting 0 for normalised patches of P values leaves (P - 1) / P, to epsilon; patches of one colour leave 0
    zero = torch.zeros_like(target)
    assert masked_patch_loss(zero, 1000 * target, hidden, True).item() == pytest.approx(7 / 8, abs=1e-8)
    assert masked_patch_loss(zero, torch.full_like(target, 0.3), hidden, True).item() == pytest.approx(0, abs=1e-12)
    mean, scale = patch_statistics(target)
    assert masked_patch_loss((target - mean) / scale, target, hidden, True).item() == pytest.approx(0, abs=1e-12)


def test_visible_patches_do_not_count():
    prediction, target, hidden = case()
    loss = masked_patch_loss(prediction, target, hidden)
    prediction[~hidden], target[~hidden] = math.nan, math.inf
    prediction.requires_grad_()
    same = masked_patch_loss(prediction, target, hidden)
    same.backward()
    assert same.item() == loss.item() and not prediction.grad[~hidden].any() and (prediction.grad[hidden] != 0).all()


def test_gradient_and_autocast():
    prediction, target, hidden = case()
    assert torch.autograd.gradcheck(lambda p: masked_patch_loss(p, target, hidden, True), prediction.requires_grad_())
    flat = torch.full((1, 2, 4), 0.3, requires_grad=True)
    masked_patch_loss(torch.zeros(1, 2, 4), flat, torch.ones(1, 2, dtype=torch.bool), True).backward()
    assert torch.isfinite(flat.grad).all()
    low = [x.detach().bfloat16() for x in (prediction, target)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = masked_patch_loss(*low, hidden)
    expected = masked_patch_loss(*(x.float() for x in low), hidden)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), abs=1e-7)


def test_processes_that_hide_unequally_many_give_the_loss_of_one():
    prediction, target, hidden = case()
    hidden[2] = False                                       # the clip of the second process has nothing to predict
    count = hidden.sum() / 2
    parts = [masked_patch_loss(prediction[rows], target[rows], hidden[rows], count=count) for rows in (slice(0, 2), slice(2, 3))]
    one = masked_patch_loss(prediction, target, hidden).item()
    assert parts[1].item() == 0 and (sum(parts) / 2).item() == pytest.approx(one, abs=1e-12)


@pytest.mark.parametrize("change, words", [
    (dict(hidden=torch.zeros(3, 5, dtype=torch.bool)), "no patch is hidden.*mask_ratio"),
                                           (dict(hidden=torch.ones(3, 5)), "bool; it is .* torch.float32"),
    (dict(hidden=torch.ones(3, 4, dtype=torch.bool)), r"\(3, 4\)"), (dict(target=torch.zeros(3, 5, 1)), r"target \(3, 5, 1\)")])
def test_refusals(change, words):
    prediction, target, hidden = case()
    with pytest.raises(ValueError, match=words):
        masked_patch_loss(**dict(prediction=prediction, target=target, hidden=hidden) | change)


def test_contrastive_loss_on_its_diagonal_is_info_nce():
    """Mean of both cross-entropies of unit vectors over 0.07; ln B where nothing is known, also where all embeddings are
    equal."""
    audio, video = (normalize(torch.randn(6, 4, dtype=torch.float64), dim=1) for _ in range(2))
    logits, labels = audio @ video.T / 0.07, torch.arange(6)
    expected = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    assert contrastive_loss(logits).item() == pytest.approx(expected.item(), abs=1e-8)
    assert contrastive_loss(torch.ones(16, 16, dtype=torch.float64) / 0.07).item() == pytest.approx(math.log(16), abs=1e-8)
