"""The contrastive loss against a loop over pairs, closed forms and symmetry."""
import math

import pytest
import torch

from lib.losses.contrastive import contrastive_loss, estimated_loss


def written_out(logits, positives, reduction):
    """Both directions as sums over pairs, in plain Python."""
    a, t = logits.shape
    terms = {}
    for i in range(a):
        for j in range(t):
            if positives[i, j]:
                row = logits[i, j] - math.log(sum(math.exp(x) for x in logits[i].tolist()))
                column = logits[i, j] - math.log(sum(math.exp(x) for x in logits[:, j].tolist()))
                terms[i, j] = (float(row), float(column))
    if reduction == "pairs":
        return -0.5 * (sum(r for r, _ in terms.values()) + sum(c for _, c in terms.values())) / len(terms)
    rows = [[r for (i, _), (r, _) in terms.items() if i == k] for k in range(a)]
    columns = [[c for (_, j), (_, c) in terms.items() if j == k] for k in range(t)]
    if reduction == "mass":
        one = lambda group: math.log(sum(math.exp(x) for x in group))
    else:
        one = lambda group: sum(group) / len(group)
    mean = lambda groups: sum(one(g) for g in groups if g) / sum(1 for g in groups if g)
    return -0.5 * (mean(rows) + mean(columns))


@pytest.mark.parametrize("reduction", ["pairs", "rows", "mass"])
@pytest.mark.parametrize("shape", [(4, 4), (5, 7)])
def test_against_written_out(reduction, shape):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * 4
    positives = torch.rand(shape, generator=generator) < 0.3
    positives[0, 0] = True
    positives[2] = False        # an audio without caption must not break "rows"
    assert contrastive_loss(logits, positives, reduction).item() == pytest.approx(written_out(logits, positives, reduction), abs=1e-9)


def test_closed_forms_and_symmetry():
    logits = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert contrastive_loss(torch.zeros(8, 8)).item() == pytest.approx(math.log(8), abs=1e-6)
    assert contrastive_loss(logits).item() == pytest.approx(contrastive_loss(logits.T).item(), abs=1e-12)
    assert contrastive_loss(logits).item() == contrastive_loss(logits, torch.eye(6, dtype=torch.bool)).item()
    order = torch.randperm(6)
    assert contrastive_loss(logits[order][:, order]).item() == pytest.approx(contrastive_loss(logits).item(), abs=1e-12)
    assert contrastive_loss(torch.eye(6) * 200).item() < 1e-6


def test_gradient_and_autocast():
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    positives = torch.rand(4, 5) < 0.5
    positives[0, 0] = True
    assert torch.autograd.gradcheck(lambda x: contrastive_loss(x, positives), logits)
    for reduction in ("rows", "mass"):
        positives[2] = False        # also with a row that has none
        assert torch.autograd.gradcheck(lambda x: contrastive_loss(x, positives, reduction), logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert contrastive_loss(torch.randn(3, 3, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("reduction, floor", [("mass", 0), ("rows", math.log(2) * 2 / 3), ("pairs", math.log(2) * 4 / 5)])
def test_floor_when_two_of_three_rows_share_a_caption(reduction, floor):
    """The positive and the spatial negative of a triplet have one semantic caption; only "mass" lets their loss become 0."""
    same = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]], dtype=torch.bool)
    assert contrastive_loss(same.double() * 60, same, reduction).item() == pytest.approx(floor, abs=1e-8)
    assert contrastive_loss(same.double() * 60).item() == pytest.approx(math.log(2) * 2 / 3, abs=1e-8), "one-hot targets: false negatives"
    uneven = torch.tensor([[60.0, 0, 30], [0, 60, 0], [30, 0, 60]], dtype=torch.float64)
    if reduction == "mass":
        assert contrastive_loss(uneven, same, reduction).item() == pytest.approx(0, abs=1e-8), "one of the two is enough"
        uniform = contrastive_loss(torch.zeros_like(uneven), same, reduction).item()
        assert uniform == pytest.approx(math.log(3) - math.log(2) * 2 / 3, abs=1e-8)
    else:
        assert contrastive_loss(uneven, same, reduction).item() > floor + 1


@pytest.mark.parametrize("arguments, words", [
    ((torch.zeros(2, 3),), "square"), ((torch.zeros(2, 3), torch.ones(3, 2, dtype=torch.bool)), "one shape"),
    ((torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool)), "no positive pair"), ((torch.zeros(2, 2), None, "mean"), "reduction")])
def test_refusals(arguments, words):
    with pytest.raises(ValueError, match=words):
        contrastive_loss(*arguments)


def test_estimated_loss_against_written_out():
    generator = torch.Generator().manual_seed(2)
    logits, estimates = (torch.randn(4, 6, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    total = 0.0
    for rows, targets in ((logits, estimates), (logits.T, estimates.T)):
        for row, target in zip(rows.tolist(), targets.tolist()):
            p, q = ([math.exp(x) / sum(math.exp(y) for y in values) for x in values] for values in (row, target))
            total -= sum(b * math.log(a) for a, b in zip(p, q)) / len(rows) / 2
    assert estimated_loss(logits, estimates).item() == pytest.approx(total, abs=1e-9)


def test_estimated_loss_becomes_the_contrastive_loss_and_is_least_at_the_estimates():
    """Certain estimates of one clip a caption are the contrastive loss; the gradient vanishes where the model agrees."""
    logits = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    certain = torch.eye(5, dtype=torch.float64) * 200
    assert estimated_loss(logits, certain).item() == pytest.approx(contrastive_loss(logits).item(), abs=1e-9)
    estimates = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: estimated_loss(x, estimates.detach()), logits)
    agreed = estimates.detach().clone().requires_grad_()
    estimated_loss(agreed, estimates).backward()
    assert agreed.grad.abs().max() < 1e-12 and estimates.grad is None
    with pytest.raises(ValueError, match="one shape"):
        estimated_loss(logits, estimates[:4])
