"""Levels back to sound: the solver against SciPy's, phases against torchaudio's, and what is lost between sound and sound."""
import math

import numpy as np
import pytest
import scipy.optimize
import torch
import torchaudio

from lib.audio.inversion import griffin_lim, invert, linear_power, samples, spectrum, waveform
from lib.audio.mel import MelConfig, MelFrontEnd, decibels, mel_filters, mel_power, preset

CONFIG = MelConfig(frames=128)


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def voice(config, clips=1):
    """Vowels: harmonics of a gliding fundamental under two formants, with pauses and a little noise."""
    t = torch.arange(config.samples, dtype=torch.float64) / config.sample_rate
    out = []
    for clip in range(clips):
        phase = 2 * math.pi * torch.cumsum(110 + 25 * clip + 20 * torch.sin(2 * math.pi * 0.7 * t), 0) / config.sample_rate
        formants = ((600 + 100 * clip, 150, 1.0), (1500, 300, 0.3), (2700, 400, 0.1))
        tones = sum(sum(a * math.exp(-((k * 120 - f) / w) ** 2 / 2) for f, w, a in formants) * torch.sin(k * phase) for k in range(1, 50))
        out.append(0.1 * tones * (0.5 - 0.5 * torch.cos(2 * math.pi * 3 * t)))
    return (torch.stack(out) + 3e-4 * noise(clips, config.samples)).float()


def objective(power, target, bank):
    return (1 - (power @ bank.T) / target).square().sum(-1)


def test_solver_reaches_scipys_minimum():
    """Random equations with no exact solution, and with the mel bank, where there are exact ones."""
    bank = noise(12, 7).abs() * (noise(12, 7, seed=1) > -0.5)
    target = noise(20, 12, seed=2).abs() + 0.05
    found = linear_power(target, bank, iterations=20000)
    for row, ours in zip(target, found):
        best, residual = scipy.optimize.nnls((bank / row[:, None]).numpy(), np.ones(12))
        assert objective(ours, row, bank).item() == pytest.approx(residual ** 2, rel=1e-5)
        np.testing.assert_allclose(ours.numpy(), best, atol=2e-3 * best.max())
    bank = mel_filters(CONFIG, torch.float64)
    true = noise(40, 513, seed=3).square() * 10 ** (2 * noise(40, 1, seed=4))
    target = true @ bank.T
    found = linear_power(target, bank)
    assert (found >= 0).all() and (found[:, [0, -1]] < 1e-12 * found.amax(1, keepdim=True)).all()
    assert objective(found, target, bank).max() < 0.1 and (10 * (found @ bank.T / target).log10()).abs().mean() < 0.05, "white noise, the hardest"
    assert objective(linear_power(target, bank, 2000), target, bank).max() < 5e-4


def test_solver_never_gets_worse_and_ignores_scale():
    bank = mel_filters(MelConfig(n_fft=256, mels=20), torch.float64)
    target = 10 ** (3 * noise(30, 20))
    losses = [objective(linear_power(target, bank, n), target, bank) for n in range(0, 30, 3)]
    assert all((after <= before + 1e-12).all() for before, after in zip(losses, losses[1:])) and (losses[-1] < 0.5 * losses[0]).all()
    assert torch.allclose(linear_power(target * 1e-6, bank), linear_power(target, bank) * 1e-6, rtol=1e-9, atol=0)
    alone = torch.stack([linear_power(row, bank) for row in target])
    assert torch.allclose(linear_power(target, bank), alone, rtol=1e-9, atol=0)


@pytest.mark.parametrize("changes", [{}, {"centred": False}, {"n_fft": 512, "hop": 128, "mels": 64}, {"hop": 441, "n_fft": 1764}], ids=str)
def test_waveform_is_the_inverse_of_spectrum(changes):
    config = MelConfig(**{"frames": 20} | changes)
    x = noise(2, config.samples)
    found = waveform(spectrum(x, config), config)
    assert found.shape == x.shape == (2, samples(20, config))
    edge = 0 if config.centred else config.n_fft // 3
    assert (found - x)[:, edge:x.shape[1] - edge].abs().max() < 1e-10
    assert found.abs().max() < 1.01 * x.abs().max(), "no clicks at the ends"
    power = spectrum(x, config).abs().square().transpose(1, 2) @ mel_filters(config, torch.float64).T
    half = config.n_fft // 2
    padded = torch.nn.functional.pad(x[:, None], (half, half), mode="reflect")[:, 0] if config.centred else x
    torch.testing.assert_close(power, mel_power(padded, config), rtol=1e-9, atol=1e-9)


def test_waveform_gradient():
    config = MelConfig(n_fft=8, hop=2, mels=2, frames=5)
    assert torch.autograd.gradcheck(lambda a, b: waveform(torch.complex(a, b), config), (noise(1, 5, 5).requires_grad_(), noise(1, 5, 5, seed=1).requires_grad_()))


@pytest.mark.parametrize("momentum", [0.0, 0.99])
def test_griffin_lim_is_torchaudios(momentum):
    config = MelConfig(n_fft=256, hop=64, mels=20, frames=60)
    magnitude = spectrum(voice(config).double(), config).abs()
    expected = torchaudio.functional.griffinlim(magnitude, torch.hann_window(256, dtype=torch.float64), 256, 64, 256, 1.0, 12, momentum, config.samples, False)
    found = griffin_lim(magnitude, config, 12, momentum, phase=torch.zeros(()))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    exact = griffin_lim(magnitude, config, 0, phase=spectrum(voice(config).double(), config).angle())
    torch.testing.assert_close(exact, voice(config).double(), rtol=0, atol=1e-10)


def test_ceiling_level_and_better_than_torchaudios_inversion():
    """Sound to levels to sound to levels: mean difference in dB, loudness, against least squares as torchaudio solves them."""
    front_end, x = MelFrontEnd(CONFIG), voice(CONFIG, 2) * torch.tensor([[1.0], [0.003]])
    mels = front_end(x)
    again = front_end(invert(mels.levels, mels.peak, CONFIG))
    distance = ((again.levels + again.peak[:, None, None] - mels.peak[:, None, None]).clamp(-80, 0) - mels.levels).abs().mean((1, 2))
    assert (distance < 1.3).all(), distance
    assert (again.peak - mels.peak).abs().max() < 1 and mels.peak[0] - mels.peak[1] > 45
    inverse = torchaudio.transforms.InverseMelScale(513, 128, 16000)(10 ** (mels.levels / 10).transpose(1, 2)).sqrt()
    theirs = front_end(griffin_lim(inverse, CONFIG))
    assert (1.3 * distance < (theirs.levels - mels.levels).abs().mean((1, 2))).all(), "shapes only: their loudness is not compared"
    more = [front_end(invert(mels.levels, mels.peak, CONFIG, iterations=n)).levels.sub(mels.levels).abs().mean() for n in (0, 8, 64)]
    assert more[0] > 2 * more[1] > 2 * more[2]


@pytest.mark.parametrize("name", ["speech", "music", "environmental"])
def test_presets_and_streams(name):
    for config in (preset(name, frames=40), preset(name, frames=40, centred=False, reference=20.0)):
        x = voice(config)
        mels = MelFrontEnd(config)(x)
        out = invert(mels.levels, mels.peak, config, iterations=24)
        assert out.shape == x.shape and out.dtype == torch.float32
        inner = slice(8, -8)
        assert (MelFrontEnd(config)(out).levels - mels.levels)[:, inner].abs().mean() < 2.5
        assert invert(mels.levels[:, :7], mels.peak, config, 1).shape == (1, samples(7, config)), "any number of frames"


def test_same_seed_same_sound_whoever_is_beside_it():
    mels = MelFrontEnd(MelConfig(frames=24))(voice(MelConfig(frames=24), 5))
    config = MelConfig(frames=24)
    all_ = invert(mels.levels, mels.peak, config, 4)
    torch.manual_seed(5)
    assert torch.equal(invert(mels.levels, mels.peak, config, 4), all_)
    assert (invert(mels.levels[3:4], mels.peak[3:4], config, 4) - all_[3:4]).abs().max() < 1e-3 * all_[3].abs().max()
    assert not torch.allclose(invert(mels.levels, mels.peak, config, 4, seed=1), all_, atol=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(invert(mels.levels, mels.peak, config, 4), all_)


def test_silence_floor_and_nothing():
    config = MelConfig(frames=12)
    silent = MelFrontEnd(config)(torch.zeros(1, config.samples))
    assert invert(silent.levels, silent.peak, config, 2).abs().max() < 1e-5
    levels = torch.full((1, 12, 128), -300.0)
    assert torch.isfinite(invert(levels, torch.zeros(1), config, 2)).all(), "limited to the range"
    assert invert(levels[:0], torch.zeros(0), config).shape == (0, config.samples) and invert(levels[:, :1], torch.zeros(1), config).shape == (1, 0)


def test_refusals():
    levels, peak = torch.zeros(2, 9, 128), torch.zeros(2)
    for wrong in ((levels[0], peak), (levels[..., :80], peak), (levels, peak[:1]), (levels[:, :0], peak)):
        with pytest.raises(ValueError, match=r"levels \(B, T, 128\) and peak \(B,\)"):
            invert(*wrong, CONFIG)
    for wrong in ((levels + math.nan, peak), (levels, peak + math.inf)):
        with pytest.raises(ValueError, match="finite"):
            invert(*wrong, CONFIG)
    with pytest.raises(ValueError, match="momentum"):
        griffin_lim(torch.zeros(1, 513, 9), CONFIG, momentum=1.0)
    with pytest.raises(ValueError, match=r"\(B, 513, T\), got \(1, 512, 9\)"):
        griffin_lim(torch.zeros(1, 512, 9), CONFIG)
