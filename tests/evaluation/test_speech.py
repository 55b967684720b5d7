"""Measures of sounds against torchmetrics, closed forms and written-out references; what cannot be judged is counted."""
import builtins
import math
import sys
import types

import numpy as np
import pytest
import torch
from torchmetrics.functional.audio import scale_invariant_signal_noise_ratio

from lib.audio.mel import MelConfig, MelFrontEnd, mel_filters
from lib.evaluation import speech
from lib.evaluation.speech import mel_distance, multi_resolution_mel_loss, pesq_wb, si_snr, speech_quality, stoi

RATE = 16000


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def talk(clips, seconds=1.0, seed=0):
    """Noise in syllables: bands whose loudness changes four times a second."""
    n = int(RATE * seconds)
    t = torch.arange(n) / RATE
    return noise(clips, n, seed=seed) * (0.55 + 0.45 * torch.sin(2 * math.pi * 4 * t + torch.arange(clips)[:, None]))


def test_si_snr_is_torchmetrics_and_the_closed_form():
    target = noise(4, 800) + 0.3
    estimate = target + noise(4, 800, seed=1) * torch.tensor([0.01, 0.3, 1.0, 30.0])[:, None] - 2
    expected = scale_invariant_signal_noise_ratio(estimate, target)
    torch.testing.assert_close(si_snr(estimate, target), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(si_snr(7 * estimate + 3, target), expected, rtol=0, atol=1e-9)
    t = torch.arange(1600, dtype=torch.float64)
    one, other = torch.sin(2 * math.pi * t / 16), torch.sin(2 * math.pi * t / 20)                # orthogonal, of one power
    assert si_snr((one + 0.1 * other)[None], one[None]).item() == pytest.approx(20, abs=1e-9)
    assert torch.autograd.gradcheck(si_snr, (noise(2, 9).requires_grad_(), noise(2, 9, seed=1).requires_grad_()))


def test_si_snr_at_the_borders():
    target = noise(3, 500)
    target[1] = 0
    found = si_snr(torch.stack([target[0], target[0], torch.zeros(500)]), target)
    assert found[0] > 250 and torch.isnan(found[1]) and not torch.isfinite(found[2])
    lengths = [500, 120, 0]
    estimate, target = noise(3, 500, seed=2), noise(3, 500, seed=3)
    found = si_snr(estimate, target, lengths)
    torch.testing.assert_close(found[1], si_snr(estimate[1:2, :120], target[1:2, :120])[0], rtol=0, atol=1e-9)
    assert torch.isnan(found[2])
    target[1, 120:] = estimate[1, 120:] = 1e9
    torch.testing.assert_close(si_snr(estimate, target, lengths)[:2], found[:2], rtol=0, atol=1e-9)


def test_stoi_judges_and_refuses():
    clean = talk(3)
    assert stoi(clean, clean, RATE).tolist() == pytest.approx([1.0] * 3, abs=1e-9) and stoi(0.01 * clean, clean, RATE).min() > 0.9999
    scores = [stoi(clean + level * noise(3, RATE, seed=5), clean, RATE).mean() for level in (0.1, 0.5, 2.0)]
    extended = [stoi(clean + level * noise(3, RATE, seed=5), clean, RATE, extended=True).mean() for level in (0.1, 0.5, 2.0)]
    assert 1 > scores[0] > scores[1] > scores[2] > 0 and all(e < s for e, s in zip(extended, scores))
    estimate = clean + 0.5 * noise(3, RATE, seed=6)
    lengths = [RATE, 12000, 3000]
    found = stoi(estimate, clean, RATE, lengths)
    assert found[1].item() == pytest.approx(stoi(estimate[1:2, :12000], clean[1:2, :12000], RATE).item(), abs=1e-12)
    assert torch.isnan(found[2]) and torch.isfinite(found[:2]).all(), "3000 samples are too few"
    broken = torch.stack([clean[0], torch.zeros(RATE).double(), torch.full((RATE,), math.nan).double()])
    assert torch.isnan(stoi(broken, clean, RATE))[1:].all() and torch.isnan(stoi(clean, broken * 0, RATE)).all()
    assert torch.isnan(stoi(clean[:, :50], clean[:, :50], RATE)).all() and torch.isnan(stoi(clean, clean, RATE, [0, 1, 300])).all()


def test_packages_that_are_missing(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name in ("pystoi", "pesq"):
            raise ModuleNotFoundError(name)
        return real(name, *rest)
    monkeypatch.setattr(builtins, "__import__", without)
    clean = talk(2)
    assert pesq_wb(clean, clean, RATE) is None
    with pytest.raises(ModuleNotFoundError, match="pip install pystoi"):
        stoi(clean, clean, RATE)


def test_pesq_through_its_package(monkeypatch):
    """A stand-in of the optional package's face: which sound is the reference, and what it refuses."""
    fake = types.ModuleType("pesq")
    fake.PesqError = type("PesqError", (RuntimeError,), {})

    def measure(rate, reference, degraded, mode):
        if len(reference) < 1000:
            raise fake.PesqError("no utterance")
        return rate + reference[0] - 2 * degraded[0] + (mode == "wb")
    fake.pesq = measure
    monkeypatch.setitem(sys.modules, "pesq", fake)
    target, estimate = talk(2), talk(2, seed=1)
    found = pesq_wb(estimate, target, RATE, [RATE, 900])
    assert found[0].item() == pytest.approx(16001 + float(target[0, 0] - 2 * estimate[0, 0])) and torch.isnan(found[1])
    assert speech_quality(target, estimate, [RATE, 900], RATE)["PESQ clips"] == 1
    with pytest.raises(ValueError, match="16000 Hz, got 8000"):
        pesq_wb(estimate, target, 8000)


@pytest.mark.parametrize("config", [MelConfig(), MelConfig(mels=40, centred=False, reference=60.0)], ids=str)
def test_mel_distance(config):
    target = talk(2).float()
    assert mel_distance(target, target, config).max() < 1e-4
    assert mel_distance(0.5 * target, target, config).tolist() == pytest.approx([20 * math.log10(2)] * 2, abs=0.02), "nothing near the floor"
    silent = mel_distance(torch.zeros_like(target), target, config)
    expected = MelFrontEnd(config)(target, frames=int(config.frames_of(RATE))).levels.add(80).mean((1, 2))
    torch.testing.assert_close(silent, expected, rtol=0, atol=1e-3)
    lengths, estimate = torch.tensor([RATE, 7777]), target + 0.2 * noise(2, RATE, seed=4).float()
    found = mel_distance(estimate, target, config, lengths)
    assert found[1].item() == pytest.approx(mel_distance(estimate[1:, :7777], target[1:, :7777], config).item(), abs=1e-4)
    estimate[1, 7777:] = 50
    torch.testing.assert_close(mel_distance(estimate, target, config, lengths), found, rtol=0, atol=1e-6)
    assert torch.isnan(mel_distance(estimate, target, config, [RATE, 0])[1])


def test_mel_distance_sees_what_is_soft_beside_a_too_loud_estimate():
    """The estimate's range is that of the target, whatever its own peak."""
    config, target = MelConfig(), talk(1).float()
    found = mel_distance(target * 3000, target, config)
    levels = MelFrontEnd(config)(target, frames=config.frames_of(RATE)).levels
    assert found.item() == pytest.approx((-levels).mean().item(), abs=1e-3), "all is at the upper end of the range"


def test_multi_resolution_mel_loss_written_out():
    one, other, total = noise(2, 1500), noise(2, 1500, seed=1), 0.0
    for size, mels in ((64, 10), (512, 40)):
        logs = []
        for x in (one, other):
            padded = np.pad(x.numpy(), ((0, 0), (size // 2, size // 2)))
            starts = range(0, padded.shape[1] - size + 1, size // 4)
            hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
            power = np.abs(np.fft.rfft(np.stack([padded[:, s:s + size] for s in starts], 1) * hann)) ** 2
            bank = mel_filters(MelConfig(RATE, n_fft=size, hop=size // 4, mels=mels), torch.float64).numpy()
            logs.append(np.log10(np.maximum(np.sqrt(power @ bank.T), 1e-5)))
        total += np.abs(logs[0] - logs[1]).mean()
    resolutions = ((64, 10), (512, 40))
    assert multi_resolution_mel_loss(one, other, RATE, resolutions).item() == pytest.approx(total, abs=1e-10)
    assert multi_resolution_mel_loss(one, one, RATE) == 0 and multi_resolution_mel_loss(10 * one, one, RATE).item() == pytest.approx(7, abs=0.2)
    assert torch.autograd.gradcheck(lambda x: multi_resolution_mel_loss(x, other[:1, :60], RATE, ((16, 3),)), noise(1, 60).requires_grad_())
    quiet = torch.zeros(1, 900, requires_grad=True)
    multi_resolution_mel_loss(quiet, torch.zeros(1, 900), RATE).backward()
    assert torch.isfinite(quiet.grad).all()


def test_summary_counts_what_could_be_judged():
    target = talk(4).float()
    estimate = target + 0.3 * noise(4, RATE, seed=2).float()
    lengths = torch.tensor([RATE, 14000, 3000, 0])
    target[1] = 0
    found = speech_quality(target, estimate, lengths, RATE)
    assert [found[f"{name} clips"] for name in ("SI-SNR", "STOI", "ESTOI", "mel distance")] == [2, 1, 1, 3] and found["clips"] == 4
    assert found["STOI"] == pytest.approx(stoi(estimate[:1], target[:1], RATE).item())
    assert found["SI-SNR"] == pytest.approx(si_snr(estimate, target, lengths)[[0, 2]].mean().item(), abs=1e-5)
    nothing = speech_quality(target * 0, estimate, [0] * 4, RATE)
    assert nothing["STOI"] is None and nothing["STOI clips"] == 0 and nothing["mel distance"] is None
    other_rate = speech_quality(target, estimate, None, 22050)
    assert other_rate["PESQ"] is None and other_rate["PESQ clips"] == 0 and other_rate["STOI"] is not None


@pytest.mark.parametrize("estimate, target, lengths, words", [
    (torch.zeros(2, 5), torch.zeros(2, 6), None, r"\(2, 5\) and \(2, 6\)"), (torch.zeros(5), torch.zeros(5), None, "B, samples"),
    (torch.zeros(2, 5), torch.zeros(2, 5), [5], "2 whole numbers"), (torch.zeros(2, 5), torch.zeros(2, 5), [6, 5], "0 to 5"),
    (torch.zeros(2, 5), torch.zeros(2, 5), [-1, 5], "0 to 5"), (torch.zeros(2, 5), torch.zeros(2, 5), torch.ones(2), "whole numbers")])
def test_refusals(estimate, target, lengths, words):
    for measure in (lambda: si_snr(estimate, target, lengths), lambda: stoi(estimate, target, RATE, lengths),
                    lambda: mel_distance(estimate, target, MelConfig(), lengths), lambda: speech._inside(estimate, target, lengths)):
        with pytest.raises(ValueError, match=words):
            measure()
