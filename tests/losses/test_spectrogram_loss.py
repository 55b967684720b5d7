"""Differences of spectrograms against loops over their values; padding counts in nothing."""
import pytest
import torch

from lib.losses.spectrogram import multi_resolution_loss, reconstruction_loss


@pytest.fixture
def pair():
    torch.manual_seed(0)
    valid = torch.arange(12) < torch.tensor([12, 7, 0])[:, None]
    return *torch.randn(2, 3, 12, 10, dtype=torch.float64).unbind(), valid


@pytest.mark.parametrize("kind, power", [("l1", 1), ("l2", 2)])
def test_reconstruction_loss(pair, kind, power):
    prediction, target, valid = pair
    values = [abs(float(prediction[b, t, f] - target[b, t, f])) ** power for b in range(3) for t in range(12) if valid[b, t]
              for f in range(10)]
    assert float(reconstruction_loss(prediction, target, valid, kind)) == pytest.approx(sum(values) / len(values), abs=1e-12)


def test_multi_resolution_loss_written_out(pair):
    prediction, target, valid = pair
    parts = []
    for factor in (1, 4):
        difference, whole = prediction - target, []
        cells = torch.zeros(3, 12 // factor, 10 // factor, dtype=torch.float64)
        for t in range(12 // factor):
            whole.append(valid[:, t * factor:(t + 1) * factor].all(dim=1))
            for f in range(10 // factor):
                cells[:, t, f] = difference[:, t * factor:(t + 1) * factor, f * factor:(f + 1) * factor].mean(dim=(1, 2))
        whole = torch.stack(whole, dim=1)
        both = whole[:, 1:] & whole[:, :-1]
        parts += [cells.abs()[whole].mean(), (cells[:, 1:] - cells[:, :-1]).abs()[both].mean(),
                  (cells[..., 1:] - cells[..., :-1]).abs()[whole].mean()]
    assert float(multi_resolution_loss(prediction, target, valid, (1, 4, 16))) == pytest.approx(float(sum(parts) / 6), abs=1e-12)
    assert multi_resolution_loss(target, target, valid) == 0


@pytest.mark.parametrize("loss", [reconstruction_loss, multi_resolution_loss])
def test_padding_and_gradients(pair, loss):
    prediction, target, valid = pair
    moved = torch.where(valid[..., None], prediction, prediction + 100).requires_grad_()
    value = loss(moved, target, valid)
    assert float(value.detach()) == pytest.approx(float(loss(prediction, target, valid)), abs=1e-12)
    value.backward()
    assert moved.grad[valid].abs().sum(dim=1).gt(0).all() and not moved.grad[~valid].any()
    nothing = loss(prediction, target, torch.zeros_like(valid))
    assert nothing == 0
    small = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: loss(x, target[:2, :4, :3], torch.tensor([[True] * 4, [True] * 3 + [False]])), small)


@pytest.mark.parametrize("loss", [reconstruction_loss, multi_resolution_loss])
def test_shapes_are_refused(pair, loss):
    prediction, target, valid = pair
    for wrong in ((prediction[:2], target, valid), (prediction, target, valid[:, :5]), (prediction, target, valid.float())):
        with pytest.raises(ValueError, match=r"two spectrograms \(clips, frames, bands\)"):
            loss(*wrong)
    with pytest.raises(ValueError, match="rec_loss must be one of l1, l2"):
        reconstruction_loss(prediction, target, valid, "l3")
