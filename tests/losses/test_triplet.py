"""The three-way loss against a loop over triplets, closed forms, invariances and gradients."""
import math

import pytest
import torch

from lib.losses.triplet import three_way_loss


def random(*size, seed=0):
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def written_out(audio, text, scale):
    """Both directions of every triplet, in plain Python."""
    cosine = lambda u, v: sum(a * b for a, b in zip(u, v)) / math.sqrt(sum(a * a for a in u) * sum(b * b for b in v))
    audio, text, losses = audio.tolist(), text.tolist(), []
    for p in range(0, len(audio), 3):
        for anchor, members in ((text[p], audio[p:p + 3]), (audio[p], text[p:p + 3])):
            scores = [math.exp(scale * cosine(anchor, member)) for member in members]
            losses.append(-math.log(scores[0] / sum(scores)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("triplets, scale", [(1, 1.0), (4, 14.3), (7, 0.2)])
def test_against_written_out(triplets, scale):
    audio, text = random(3 * triplets, 6), random(3 * triplets, 6, seed=1) * 5
    assert three_way_loss(audio, text, scale).item() == pytest.approx(written_out(audio, text, scale), abs=1e-10)


def test_closed_forms():
    same = torch.ones(6, 4, dtype=torch.float64)
    assert three_way_loss(same, same * 7, 14.3).item() == pytest.approx(math.log(3), abs=1e-10), "chance"
    members = torch.eye(3, dtype=torch.float64).repeat(2, 1)    # each member knows itself: 1 against 0 and 0, both ways
    assert three_way_loss(members, members, 10.0).item() == pytest.approx(math.log1p(2 * math.exp(-10)), abs=1e-10)
    order_blind = members[[0, 0, 2, 3, 3, 5]]                   # the positive and its temporal negative are one
    assert three_way_loss(order_blind, order_blind, 100.0).item() == pytest.approx(math.log(2), abs=1e-10)
    random_rows = three_way_loss(random(30000, 64), random(30000, 64, seed=1), 1.0).item()
    assert random_rows == pytest.approx(math.log(3), abs=0.01), "small similarities at random: chance"


def test_only_within_groups_and_only_positives_are_anchors():
    audio, text = random(12, 5), random(12, 5, seed=1)
    loss = three_way_loss(audio, text, 5.0)
    order = torch.tensor([2, 0, 3, 1])                          # groups in another order
    groups = lambda rows: rows.view(4, 3, 5)[order].reshape(12, 5)
    assert three_way_loss(groups(audio), groups(text), 5.0).item() == pytest.approx(loss.item(), abs=1e-12)
    negatives = lambda rows: rows.view(4, 3, 5)[:, [0, 2, 1]].reshape(12, 5)       # both negatives count alike, if exchanged together or not
    assert three_way_loss(negatives(audio), text, 5.0).item() == pytest.approx(loss.item(), abs=1e-12)
    assert three_way_loss(text, audio, 5.0).item() == pytest.approx(loss.item(), abs=1e-12), "both directions"
    each = torch.stack([three_way_loss(audio[i:i + 3], text[i:i + 3], 5.0) for i in range(0, 12, 3)])
    assert each.mean().item() == pytest.approx(loss.item(), abs=1e-12)
    rotated = audio.view(4, 3, 5)[:, [1, 2, 0]].reshape(12, 5)
    assert abs(three_way_loss(rotated, text, 5.0).item() - loss.item()) > 0.01, "the positive is the first row"


def test_gradients():
    audio, text = random(6, 4).requires_grad_(), random(6, 4, seed=1).requires_grad_()
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(three_way_loss, (audio, text, scale))
    rows = torch.zeros(3, 4, requires_grad=True)                # silence that became a zero vector
    loss = three_way_loss(rows, random(3, 4).float(), 100.0)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3), abs=1e-6) and rows.grad.isfinite().all()


def test_float32_under_autocast():
    audio, text = random(6, 64).float(), random(6, 64, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert three_way_loss(audio.bfloat16(), text.bfloat16(), 50.0).dtype == torch.float32
        assert three_way_loss(audio, text, 50.0).item() == pytest.approx(written_out(audio, text, 50.0), abs=1e-4)


@pytest.mark.parametrize("audio, text, words", [((4, 2), (4, 2), "4 rows are no whole triplets"), ((0, 2), (0, 2), "0 rows"),
                                                ((3, 2), (6, 2), "one shape"), ((3, 2), (3, 4), "one shape"), ((2, 3, 4), (2, 3, 4), "one shape")])
def test_refusals(audio, text, words):
    with pytest.raises(ValueError, match=words):
        three_way_loss(torch.ones(audio), torch.ones(text), 1.0)
