"""Gradient reversal, the modality classifier, its loss and accuracy against closed forms, and the game that they play."""
import math

import pytest
import torch

from lib.losses.adversarial import ModalityClassifier, modality_accuracy, modality_loss, reverse_gradient, warm_up


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 3.0])
def test_reversal_turns_and_scales_the_gradient_only(strength):
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    reversed_x = reverse_gradient(x, strength)
    assert torch.equal(reversed_x, x) and reversed_x is not x
    weights = torch.randn(4, 3, dtype=torch.float64)
    (reversed_x.sin() * weights).sum().backward()
    torch.testing.assert_close(x.grad, -strength * x.detach().cos() * weights, rtol=0, atol=1e-12)
    half = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    reverse_gradient(half, strength).sum().backward()
    assert half.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("strength", [-1.0, math.nan, math.inf])
def test_reversal_refuses(strength):
    with pytest.raises(ValueError, match="strength must be"):
        reverse_gradient(torch.ones(1), strength)


def test_warm_up():
    assert [warm_up(0.8, epoch, 4) for epoch in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8], abs=1e-12)
    assert [warm_up(0.8, epoch, 0) for epoch in range(3)] == [0.8] * 3
    with pytest.raises(ValueError, match="at least 0"):
        warm_up(1.0, -1, 3)


def test_classifier_layers():
    parameters = lambda classifier: sum(p.numel() for p in classifier.parameters())
    assert parameters(ModalityClassifier(512)) == 174_593
    assert [tuple(p.shape) for p in ModalityClassifier(32).parameters() if p.ndim > 1] == [(16, 32), (8, 16), (4, 8), (2, 4), (1, 2)]
    assert parameters(ModalityClassifier(8, (5, 3))) == 8 * 5 + 5 + 5 * 3 + 3 + 3 + 1
    assert parameters(ModalityClassifier(8, ())) == 9, "a linear classifier"
    for dim, hidden, words in ((31, None, "size 32 or more"), (8, (5, 0), "at least 1")):
        with pytest.raises(ValueError, match=words):
            ModalityClassifier(dim, hidden)


def test_classifier_against_matrix_products_and_in_float32():
    torch.manual_seed(0)
    classifier = ModalityClassifier(12, (7, 4)).double()
    x = torch.randn(5, 12, dtype=torch.float64)
    (w1, b1), (w2, b2), (w3, b3) = zip(*[iter(classifier.parameters())] * 2)
    expected = ((x @ w1.T + b1).clamp(min=0) @ w2.T + b2).clamp(min=0) @ w3.T + b3
    torch.testing.assert_close(classifier(x), expected[:, 0], rtol=0, atol=1e-12)
    classifier.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = classifier(x.float())
        assert logits.dtype == classifier(x.bfloat16()).dtype == torch.float32
        torch.testing.assert_close(logits, expected[:, 0].float(), rtol=0, atol=1e-5)
        assert modality_loss(logits.bfloat16(), logits.bfloat16()).dtype == torch.float32


def test_loss_against_closed_forms():
    audio, text = torch.randn(5, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    written = sum(math.log1p(math.exp(x)) for x in audio.tolist()) + sum(math.log1p(math.exp(-x)) for x in text.tolist())
    assert modality_loss(audio, text).item() == pytest.approx(written / 13, abs=1e-10)
    nothing = torch.zeros(6, dtype=torch.float64)
    assert modality_loss(nothing, nothing).item() == pytest.approx(math.log(2), abs=1e-12), "the equilibrium"
    assert modality_loss(nothing - 300, nothing + 300).item() < 1e-99, "audio 0, text 1"
    assert modality_loss(nothing + 300, nothing - 300).item() == pytest.approx(300, abs=1e-9), "no saturation"
    assert torch.autograd.gradcheck(modality_loss, (audio.requires_grad_(), text.requires_grad_()))
    assert modality_loss(audio, text).item() == pytest.approx(modality_loss(-text, -audio).item(), abs=1e-12)


def test_accuracy():
    down, up = torch.full((3,), -2.0), torch.full((5,), 1.0)
    assert modality_accuracy(down, up) == 1 and modality_accuracy(up, down) == 0
    assert modality_accuracy(up[:2], up) == modality_accuracy(down, down) == 0.5, "chance, whatever the numbers of rows"
    assert modality_accuracy(torch.zeros(3), torch.zeros(7)) == 0.5
    assert modality_accuracy(torch.tensor([-1.0, -1, 1, 0]), torch.tensor([1.0, -1])) == pytest.approx((2.5 / 4 + 1 / 2) / 2)


@pytest.mark.parametrize("function", [modality_loss, modality_accuracy])
@pytest.mark.parametrize("audio, text", [((3, 1), (3,)), ((3,), (3, 1)), ((0,), (3,)), ((3,), (0,))])
def test_refusals(function, audio, text):
    with pytest.raises(ValueError, match=r"logits must be \(rows,\)"):
        function(torch.zeros(audio), torch.zeros(text))


def test_the_game():
    """Without reversal rows that differ by a shift are told apart; with it the encoder takes the shift away and the loss goes to ln 2."""
    accuracy, losses = {}, {}
    for strength in (None, 1.0):
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        audio, text = torch.randn(400, 4, generator=generator), torch.randn(400, 4, generator=generator) + 2
        shift = torch.zeros(4, requires_grad=True)              # the encoder: what it adds to audio
        classifier = ModalityClassifier(4, ())
        optimizer = torch.optim.SGD([{"params": [shift]}, {"params": classifier.parameters(), "weight_decay": 0.1}], lr=0.5)
        for _ in range(100):
            moved = audio + shift
            logits = classifier(torch.cat([moved, text]) if strength is None else reverse_gradient(torch.cat([moved, text]), strength)).split(400)
            loss = modality_loss(*logits)
            optimizer.zero_grad()
            loss.backward()
            if strength is None:
                shift.grad = None                               # no game: only the classifier learns
            optimizer.step()
        accuracy[strength], losses[strength] = modality_accuracy(*logits), loss.item()
    assert accuracy[None] > 0.9 and losses[None] < 0.35
    assert abs(accuracy[1.0] - 0.5) < 0.1 and losses[1.0] == pytest.approx(math.log(2), abs=0.02)


def test_at_one_length_growing_does_not_help():
    """With unit=True the logits and the direction of the gradient do not depend on an embedding's length."""
    torch.manual_seed(0)
    classifier, x = ModalityClassifier(32, unit=True).double(), torch.randn(6, 32, dtype=torch.float64, requires_grad=True)
    logits = classifier(x)
    assert torch.allclose(logits, classifier(7 * x), atol=1e-12)
    logits.sum().backward()
    assert (x.grad * x).sum(dim=1).abs().max() < 1e-12 < x.grad.abs().max()
    raw = ModalityClassifier(32).double()
    assert not torch.allclose(raw(x), raw(7 * x))
