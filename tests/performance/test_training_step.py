"""A whole training step of PaSST-S and RoBERTa-base against the same step on stock hear21passt and eager attention (2 threads)."""
import pytest
import torch

from lib.encoders.passt import PasstEncoder
from tests.performance.stock import captions, clips, compare, dual_encoders, loss_of, threads

BATCH, SECONDS = 8, 10.0


@pytest.fixture(scope="module")
def models():
    """Both ways at full size. Every clip fills its one segment: nothing is gained by what is skipped."""
    torch.manual_seed(0)
    return dual_encoders(PasstEncoder(), "roberta-base")


@pytest.mark.slow
def test_step_is_the_same_and_faster(models):
    batch = (*clips(BATCH, SECONDS, SECONDS), captions(BATCH))
    optimizers = [torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0) for model in models]

    def end_step(optimizer):
        optimizer.step()
        optimizer.zero_grad()

    def step(model, optimizer):
        loss_of(model, *batch).backward()
        end_step(optimizer)

    with threads(2):
        difference, loss, distance = differences(*models, batch)
        assert difference <= 1e-4 * loss and distance <= 1e-3
        for optimizer in optimizers:                # with the gradients that were compared: the first step, which makes the moments
            end_step(optimizer)
        found = compare(f"training step, {BATCH} clips of {SECONDS:g} s",
                        *(lambda model=model, optimizer=optimizer: step(model, optimizer) for model, optimizer in zip(models, optimizers)), repetitions=3)
    print(f"\n{found}\n  difference of the loss {difference:.1e} of {loss:.3f}, of the gradient {distance:.1e} of its norm (dropout off)")
    found.require(1.0)


def differences(ours, stock, batch):
    """|difference| of the losses, the loss, and the largest distance of a parameter's gradients relative to the whole gradient's norm:
    patchout as drawn, dropout off, because each attention draws its own. The gradients stay."""
    losses = []
    for model in (ours, stock):
        model.text.eval()
        torch.manual_seed(3)
        losses.append(loss_of(model, *batch))
        losses[-1].backward()
        model.text.train()
    pairs = [(own.grad, other.grad) for (_, own), (_, other) in zip(ours.named_parameters(), stock.named_parameters()) if own.grad is not None]
    norm = torch.stack([other.norm() for _, other in pairs]).norm()
    distance = max((own - other).norm() / norm for own, other in pairs)
    return (losses[0] - losses[1]).abs().item(), losses[1].item(), distance.item()
