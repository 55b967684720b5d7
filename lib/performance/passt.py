"""PaSST's features and the training step of retrieval against stock hear21passt (and RoBERTa with eager attention)."""
from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lib.encoders.dual import DualEncoder
from lib.encoders.passt import PasstConfig, PasstEncoder
from lib.performance.measure import Comparison, Growth, compare, growth, runs
from lib.performance.memory import peak
from lib.performance.stock import StockPasst, captions, clips, dual_encoders, loss_of

WINDOW = 30.0
ASKED = {1: {30.0: 1.1}, 4: {30.0: 1.2, 8.0: 3.0}}              # clips: {seconds of sound in each: times}
BATCH, SECONDS, STEP_ASKED = 8, 10.0, 1.0
PEER = "stock hear21passt"


def features(asked: Mapping[int, Mapping[float, float]] = ASKED, repetitions: int = 5, size: str = "published") -> list[Comparison]:
    """Features in evaluation mode with random weights. The stock path always encodes the window: one measurement of it serves clips of all
    lengths. AssertionError where the two differ by more than 1e-5.

    Args: asked: clips -> {seconds of sound in each: times faster}.
    """
    torch.manual_seed(0)
    ours = PasstEncoder(PasstConfig(size)).eval()
    stock, found = StockPasst(ours).eval(), []
    with torch.inference_mode():
        for batch, lengths in asked.items():
            inputs = {seconds: clips(batch, seconds, WINDOW) for seconds in lengths}
            results, memory = {}, {}
            for way, function in ({seconds: lambda given=given: ours(*given) for seconds, given in inputs.items()}
                                  | {"stock": lambda: [stock(*given) for given in inputs.values()]}).items():
                def keep(way=way, function=function):
                    results[way] = function()
                memory[way] = peak(keep)                        # the first run of each: it also warms up
            difference = max((results[seconds] - other).abs().max().item() for seconds, other in zip(inputs, results["stock"]))
            assert difference <= 1e-5, f"PaSST features differ from hear21passt's by {difference:.1e}"
            times = runs({seconds: lambda given=given: ours(*given) for seconds, given in inputs.items()}
                         | {"stock": lambda: stock(*inputs[max(inputs)])}, repetitions)
            found += [Comparison(f"PaSST features, {batch} clip{'s' * (batch > 1)} of {seconds:g} s", PEER, times[seconds], times["stock"],
                                 torch.get_num_threads(), lengths[seconds], cores=torch.get_num_threads(),
                                 memory=(memory[seconds], memory["stock"]), note=f"largest difference of a feature {difference:.1e}")
                      for seconds in inputs]
    return found


def training_step(batch: int = BATCH, repetitions: int = 3, size: str = "published", text_size: str = "roberta-base",
                  checked: int | None = None, memory: bool = True) -> list[Comparison]:
    """A whole step (forward, backward, AdamW) of PaSST and RoBERTa. Every clip fills its one segment: nothing is gained by what is skipped.
    AssertionError where loss or gradients differ (dropout off).

    Args:
        checked: clips of the batch on which loss and gradients are compared; None: all.
        memory: measure it, in another step of each.
    """
    torch.manual_seed(0)
    models = dual_encoders(PasstEncoder(PasstConfig(size)), text_size)
    given = (*clips(batch, SECONDS, SECONDS), captions(batch))
    optimizers = [torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0) for model in models]
    difference, loss, distance = differences(*models, tuple(part[:checked] for part in given))
    assert difference <= 1e-4 * loss and distance <= 1e-3, f"loss differs by {difference:.1e} of {loss:.3f}, gradients by {distance:.1e}"

    def end_step(optimizer):
        optimizer.step()
        optimizer.zero_grad()

    def step(model, optimizer):
        loss_of(model, *given).backward()
        end_step(optimizer)

    for optimizer in optimizers:                # with the gradients that were compared: the first step, which makes the moments
        end_step(optimizer)
    ways = [lambda model=model, optimizer=optimizer: step(model, optimizer) for model, optimizer in zip(models, optimizers)]
    return [compare(f"training step, {batch} clips of {SECONDS:g} s", f"{PEER} and eager attention", *ways, repetitions, asked=STEP_ASKED,
                    cores=torch.get_num_threads(), memory=memory,
                    note=f"difference of the loss {difference:.1e} of {loss:.3f}, of the gradient {distance:.1e} of its norm (dropout off)")]


def differences(ours: DualEncoder, stock: DualEncoder, batch: tuple[Tensor, Tensor, list[str]]) -> tuple[float, float, float]:
    """|difference| of the losses, the loss, and the largest distance of a parameter's gradients relative to the whole gradient's norm,
    of a batch of waveforms (B, samples), seconds (B,) and B captions: patchout as drawn, dropout off, because each attention draws its own.
    The gradients stay."""
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


def features_growth(sizes=(32, 64, 128, 256), repetitions: int = 3, seconds: float = 2.0) -> list[Growth]:
    """Time of features over clips (PaSST of width 64; four clips are computed at a time, so their memory is no power law), and time and
    memory of forward and backward, whose activations all are kept."""
    torch.manual_seed(0)
    encoder = PasstEncoder(PasstConfig("tiny", segment_seconds=seconds))

    def evaluate(count):
        given = clips(count, seconds, seconds)

        @torch.inference_mode()
        def work():
            encoder.eval()(*given)
        return work

    def train(count):
        given = clips(count, seconds, seconds)
        return lambda: encoder.train()(*given).sum().backward()

    return [growth("PaSST features", "clips", evaluate, sizes, repetitions, memory_order=None),
            growth("PaSST forward and backward", "clips", train, sizes, repetitions)]
