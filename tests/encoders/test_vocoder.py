"""The vocoder: its start is a sound already, gradients flow, losses are what they say, it learns one clip, and files come back."""
import json
import math

import numpy as np
import pytest
import torch

from lib.audio.inversion import griffin_lim, invert, linear_power, samples, spectrum
from lib.audio.mel import MelConfig, MelFrontEnd, mel_filters
from lib.encoders import vocoder as module
from lib.encoders.vocoder import Vocoder, VocoderConfig, fit, vocoder_losses

MEL = MelConfig(n_fft=512, hop=128, mels=40, frames=64)
TINY = VocoderConfig("tiny", mel=MEL)


def made(config=TINY, seed=0):
    torch.manual_seed(seed)
    return Vocoder(config).eval()


def chirps(clips=1, mel=MEL, seed=0):
    """Gliding harmonics and a little noise."""
    t = torch.arange(mel.samples) / mel.sample_rate
    out = [sum(torch.sin(2 * math.pi * k * ((150 + 60 * c) * t + 40 * t ** 2)) / k for k in range(1, 12)) for c in range(clips)]
    noise = torch.randn(clips, mel.samples, generator=torch.Generator().manual_seed(seed))
    return 0.05 * torch.stack(out) * (1.1 - torch.cos(2 * math.pi * 5 * t)) + 1e-4 * noise


def test_sizes_and_lengths():
    counts = {size: sum(p.numel() for p in Vocoder(VocoderConfig(size)).parameters()) for size in ("tiny", "quick")}
    assert counts["tiny"] < 100_000 and counts["quick"] <= 1_000_000, counts
    published = Vocoder(VocoderConfig("published", mel=MelConfig(sample_rate=24000, hop=256, mels=100)))
    assert sum(p.numel() for p in published.parameters()) == pytest.approx(13.5e6, rel=0.02)
    for config in (TINY, VocoderConfig("tiny", mel=MelConfig(n_fft=512, hop=128, mels=40, centred=False, reference=10.0))):
        for frames in (1, 5, 30):
            out = made(config)(torch.full((2, frames, 40), -30.0))
            assert out.shape == (2, samples(frames, config.mel)) and torch.isfinite(out).all() and out.dtype == torch.float32


def test_it_starts_as_pulses_with_the_right_mel_levels():
    """Before any training: magnitudes have nearly the mel power that was asked for, phases make a pulse in the middle of a frame."""
    config, model = MEL, made().double()
    with torch.no_grad():
        model.head.weight.zero_()
    levels = MelFrontEnd(config)(chirps(2)).levels.double()
    magnitude, phase = model.spectrum(levels)
    smooth = linear_power(10 ** (levels / 10), mel_filters(config, torch.float64), iterations=module.FITTED)
    torch.testing.assert_close(magnitude.square().transpose(1, 2), smooth + 1e-12, rtol=1e-9, atol=0)
    power = magnitude.square().transpose(1, 2) @ mel_filters(config, torch.float64).T
    assert (10 * power.clamp(min=1e-8).log10() - levels).abs().mean() < 1
    assert (phase == math.pi * (torch.arange(257) % 2)[:, None]).all()
    frame = torch.fft.irfft(torch.polar(magnitude, phase)[0, :, 20])
    assert frame.abs().argmax() == config.n_fft // 2


def test_gradients_and_float32_outside_autocast():
    config = VocoderConfig("tiny", mel=MelConfig(n_fft=16, hop=4, mels=3, frames=6))
    model = made(config).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    levels = -40 * torch.rand(1, 6, 3, dtype=torch.float64) - 10
    assert torch.autograd.gradcheck(model, levels.requires_grad_(), atol=1e-4)
    model, levels = made(), MelFrontEnd(MEL)(chirps(2)).levels
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(levels)
    assert out.dtype == torch.float32 and torch.isfinite(out).all()
    silent = model(torch.full((1, 9, 40), -80.0))
    silent.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert torch.allclose(made()(levels - 500), made()(torch.full_like(levels, -80.0))), "limited to the range of the front end"


def test_sound_has_its_loudness_and_refined_phases():
    model, mels = made(), MelFrontEnd(MEL)(chirps(2) * torch.tensor([[1.0], [0.01]]))
    plain = model.sound(mels.levels, mels.peak)
    torch.testing.assert_close(plain, model(mels.levels) * 10 ** (mels.peak / 20)[:, None], rtol=1e-4, atol=1e-6)
    magnitude, phase = model.spectrum(mels.levels)
    refined = model.sound(mels.levels, mels.peak, refine=5)
    torch.testing.assert_close(refined, griffin_lim(magnitude, MEL, 5, phase=phase) * 10 ** (mels.peak / 20)[:, None], rtol=0, atol=1e-6)
    distances = [((spectrum(x, MEL).abs() / 10 ** (mels.peak / 20)[:, None, None]) - magnitude).norm() for x in (plain, refined)]
    assert distances[1] < 0.7 * distances[0], "phases that fit the magnitudes better"
    assert (model.sound(mels.levels[1:], mels.peak[1:]) - plain[1:]).abs().max() < 1e-4 * plain[1].abs().max(), "alone as in company"


def naive_losses(one, other, floor=1e-4):
    convergence, difference = [], []
    for size, hop in module.RESOLUTIONS:
        hann, magnitudes = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size), []
        for x in (one, other):
            padded = np.pad(x, ((0, 0), (size // 2, size // 2)))
            frames = np.stack([padded[:, s:s + size] for s in range(0, padded.shape[1] - size + 1, hop)], 1)
            magnitudes.append(np.maximum(np.abs(np.fft.rfft(frames * hann)), floor))
        a, b = magnitudes
        convergence.append(np.mean(np.sqrt(((a - b) ** 2).sum((1, 2)) / (b ** 2).sum((1, 2)))))
        difference.append(np.abs(np.log(a) - np.log(b)).mean())
    return np.mean(convergence), np.mean(difference)


def test_losses_are_the_written_out_ones():
    one, other = chirps(2).double(), chirps(2, seed=3).flip(0).double()
    losses = vocoder_losses(one, other, MEL)
    expected = naive_losses(one.numpy(), other.numpy())
    assert (losses["convergence"].item(), losses["magnitude"].item()) == pytest.approx(expected, abs=1e-10)
    assert losses["total"].item() == pytest.approx(sum(losses[n].item() for n in ("convergence", "magnitude", "mel")), abs=1e-12)
    louder = vocoder_losses(10 * other, other, MEL, (torch.full((1, 2, 3), 5.0), torch.full((1, 2, 3), 1e-9)))
    assert louder["mel"].item() == pytest.approx(2, abs=0.05) and louder["convergence"].item() == pytest.approx(9, abs=0.01)
    assert louder["spectrum"].item() == pytest.approx(math.log(5 / 1e-4), abs=1e-5)
    assert vocoder_losses(one, one, MEL)["total"] == 0
    quiet = torch.zeros(1, 4000, requires_grad=True)
    vocoder_losses(quiet, torch.zeros(1, 4000), MEL)["total"].backward()
    assert torch.isfinite(quiet.grad).all()
    with pytest.raises(ValueError, match=r"\(2, 8064\) and \(1, 8064\)"):
        vocoder_losses(one, other[:1], MEL)


def test_it_learns_a_clip():
    """Seconds of training on one clip: every loss falls, and its magnitudes with few refinements beat Griffin-Lim's spectrum."""
    clip, model, first = chirps()[0], made(), []
    mels = MelFrontEnd(MEL)(clip[None])
    target = clip[None] / 10 ** (mels.peak / 20)
    before = vocoder_losses(model(mels.levels), target, MEL)
    last = fit(model, [clip], 60, batch=2, frames=64, learning_rate=3e-3, report=lambda step, losses: first.append(losses))
    after = vocoder_losses(model(mels.levels), target, MEL)
    assert len(first) == 60 and last["total"] < 0.8 * first[0]["total"] and not model.training
    for name in ("convergence", "magnitude", "mel"):
        assert after[name] < 0.9 * before[name], name
    ceiling = invert(mels.levels, mels.peak, MEL) / 10 ** (mels.peak / 20)[:, None]
    ours = vocoder_losses(model.sound(mels.levels, mels.peak, refine=32) / 10 ** (mels.peak / 20)[:, None], target, MEL)
    assert ours["convergence"] < vocoder_losses(ceiling, target, MEL)["convergence"], "it knows where the harmonics are"


def test_training_depends_on_the_seed_only():
    clips = [chirps(2)[1], chirps()[0, :3000], torch.zeros(5000)]
    weights = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        model = made()
        torch.manual_seed(noise)
        fit(model, clips, 2, batch=2, frames=16, seed=seed)
        weights.append(model.head.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    for nothing in ([], [torch.zeros(5000)]):
        with pytest.raises(ValueError, match="nothing to learn from"):
            fit(made(), nothing, 1)
    with pytest.raises(ValueError, match="step 0 is not finite; lower learning_rate"):
        broken = made()
        broken.head.weight.data.fill_(math.nan)
        fit(broken, clips, 1, batch=1, frames=8)


def test_files(tmp_path):
    model, levels = made(), MelFrontEnd(MEL)(chirps()).levels
    model.save_pretrained(tmp_path / "vocoder")
    again = Vocoder.from_pretrained(tmp_path / "vocoder")
    assert torch.equal(again(levels), model(levels)) and again.config == model.config and not again.training
    with pytest.raises(FileNotFoundError, match="no vocoder"):
        Vocoder.from_pretrained(tmp_path)
    weights = tmp_path / "vocoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(ValueError, match="model.safetensors does not hold"):
        Vocoder.from_pretrained(tmp_path / "vocoder")
    settings = tmp_path / "vocoder" / "config.json"
    model.save_pretrained(tmp_path / "vocoder")
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"kernel": 9}))
    with pytest.raises(ValueError, match="does not hold the weights"):
        Vocoder.from_pretrained(tmp_path / "vocoder")
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_type": "clap"}))
    with pytest.raises(ValueError, match="another kind of model"):
        Vocoder.from_pretrained(tmp_path / "vocoder")


@pytest.mark.parametrize("wrong, words", [({"size": "big"}, "tiny, quick, published"), ({"kernel": 4}, "odd"),
                                          ({"expansion": 0}, "expansion"), ({"mel": {"mels": 0}}, "mels")])
def test_settings_out_of_range(wrong, words):
    with pytest.raises(ValueError, match=words):
        VocoderConfig(**wrong)
    with pytest.raises(ValueError, match=r"\(B, T, 40\).*\(1, 9, 80\)"):
        made()(torch.zeros(1, 9, 80))
