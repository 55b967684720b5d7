"""The training step of retrieval on a GPU: bf16 and torch.compile against stock hear21passt in fp16, clips a second and model FLOPs utilisation."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from lib.encoders.passt import PasstConfig, PasstEncoder
from lib.performance.measure import Comparison, runs
from lib.performance.stock import captions, clips, dual_encoders, loss_of

ASKED = 2.0
# dense 16-bit FLOP/s with float32 sums, from the makers' data sheets: part of the device's name -> number
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12, "V100": 125e12, "T4": 65e12, "4090": 165e12,
         "3090": 71e12}


@dataclass(frozen=True)
class Step:
    """One way of stepping. comparison: see `lib.performance.measure`; clips_per_second, utilisation (MFU; None: no peak is known), bytes
    (most memory of the device, or None) are (ours, stock) each; flops: of one step's forward and backward."""

    comparison: Comparison
    clips_per_second: tuple[float, float]
    utilisation: tuple[float | None, float | None]
    bytes: tuple[int | None, int | None]
    flops: float


def peak_flops(name: str) -> float | None:
    """Dense 16-bit FLOP/s of a device by its name; None: not known."""
    return next((flops for part, flops in PEAKS.items() if part in name), None)


def training_step(device: torch.device, batch: int = 32, seconds: float = 30.0, repetitions: int = 5, size: str = "published",
                  text_size: str = "roberta-large", compiled: bool = True) -> Step:
    """A whole step at published size: ours in bf16, compiled, AdamW fused; stock in fp16 with a gradient scaler and eager attention.

    The useful work of a step, for MFU, is what our model computes (patchout, no recomputation), counted by torch; each way is divided by
    the time that it takes for it. Where the stock way runs out of memory, lower `batch`.
    """
    torch.manual_seed(0)
    ours, stock = (model.to(device) for model in dual_encoders(PasstEncoder(PasstConfig(size)), text_size))
    waveform, durations = (part.to(device) for part in clips(batch, seconds, seconds))
    texts, cuda = captions(batch), device.type == "cuda"

    def wait():
        if cuda:
            torch.cuda.synchronize(device)

    def way(model, dtype, fused) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0, fused=fused)
        scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)

        def step():
            with torch.autocast(device.type, dtype):
                loss = loss_of(model, waveform, durations, texts)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        return step

    with FlopCounterMode(display=False) as counter, torch.autocast(device.type, torch.bfloat16):
        loss_of(ours, waveform, durations, texts).backward()
    ours.zero_grad()
    if compiled:
        ours.audio.network.compile()
        ours.text.network.compile()
    ways, most = {"ours": way(ours, torch.bfloat16, cuda), "stock": way(stock, torch.float16, False)}, []
    for step in ways.values():
        for _ in range(3):                                          # compiles, finds its algorithms, makes the moments
            step()
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        step()
        wait()
        most.append(torch.cuda.max_memory_allocated(device) if cuda else None)
    times = runs(ways, repetitions, wait=wait)
    found = Comparison(f"training step on {torch.cuda.get_device_name(device) if cuda else 'the CPU'}, {batch} clips of {seconds:g} s",
                       "stock hear21passt in fp16", times["ours"], times["stock"], torch.get_num_threads(), ASKED, ("wall",), memory=tuple(most))
    flops, limit = counter.get_total_flops(), peak_flops(torch.cuda.get_device_name(device)) if cuda else None
    rates = tuple(1 / spent["wall"] for spent in found.seconds)
    return Step(found, tuple(batch * rate for rate in rates), tuple(limit and flops * rate / limit for rate in rates), tuple(most), flops)
