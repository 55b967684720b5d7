"""Mel levels against torchaudio and a reference written out, padding, peaks, streams, and masks of the input."""
import dataclasses
import json

import numpy as np
import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.audio.mel import (PRESETS, QUIETEST, MelConfig, MelFrontEnd, MelStream, decibels, mask_spectrogram, mel_filters, mel_power, preset,
                           stream)

SMALL = MelConfig(sample_rate=8000, n_fft=256, hop=40, mels=20, frames=60)
STREAM = dataclasses.replace(SMALL, centred=False, reference=20.0)


def noise(clips=3, samples=SMALL.samples, seed=0, dtype=torch.float64):
    return 0.1 * torch.randn(clips, samples, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def mel(hertz):
    return 2595 * np.log10(1 + hertz / 700)


def naive_decibels(wave, c):
    """One clip, one frame and one band after the other: (T, F) of the frames that the sound fills."""
    if c.centred:
        padded = np.pad(wave, c.n_fft // 2, mode="reflect")
        frames = 1 + len(wave) // c.hop
    else:
        frames = 1 + int(np.ceil(max(0, len(wave) - c.n_fft) / c.hop))
        padded = np.pad(wave, (0, (frames - 1) * c.hop + c.n_fft - len(wave)))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(c.n_fft) / c.n_fft)
    edges = 700 * (10 ** (np.linspace(0, mel(c.sample_rate / 2), c.mels + 2) / 2595) - 1)
    hertz = np.arange(c.n_fft // 2 + 1) * c.sample_rate / c.n_fft
    levels = np.zeros((frames, c.mels))
    for t in range(frames):
        power = np.abs(np.fft.rfft(padded[t * c.hop:t * c.hop + c.n_fft] * window)) ** 2
        for m in range(c.mels):
            rising = (hertz - edges[m]) / (edges[m + 1] - edges[m])
            falling = (edges[m + 2] - hertz) / (edges[m + 2] - edges[m + 1])
            levels[t, m] = 10 * np.log10(max(np.sum(np.clip(np.minimum(rising, falling), 0, None) * power), 1e-14))
    return levels


@pytest.mark.parametrize("changes", [{}, {"centred": False}, {"reference": 3.0}, {"centred": False, "reference": 3.0},
                                     {"clamp_range": (-30.0, -5.0)}], ids=str)
def test_equals_the_written_out_reference(changes):
    """Clips of several lengths in one batch: each as if it were alone, and its padding at the floor."""
    config = dataclasses.replace(SMALL, **changes)
    lengths = [0, 1, 2, 39, 40, 41, 129, 256, 700, config.samples - 1, config.samples, config.samples + 50]
    waves = noise(len(lengths), config.samples + 50)      # what lies beyond a clip's length is sound of no one
    levels, peak, valid = MelFrontEnd(config)(waves, torch.tensor(lengths))
    low, high = config.clamp_range
    assert levels.shape == (len(lengths), config.frames, config.mels) and levels.dtype == torch.float64 and levels.is_contiguous()
    for k, length in enumerate(lengths):
        length = min(length, config.samples)
        if length == 0:
            assert not valid[k].any() and (levels[k] == low).all() and peak[k].isfinite()
            continue
        # a sound of some few samples is mirrored as often as it takes, as np.pad does it
        expected = naive_decibels(waves[k, :length].numpy(), config)[:config.frames]
        assert int(valid[k].sum()) == len(expected) == config.frames_of(length) and valid[k, :len(expected)].all()
        # one sample that the window's first, zero weight meets is silence
        top = max(expected.max(), QUIETEST - low) if config.reference == "peak" else 3.0
        assert peak[k].item() == pytest.approx(top, abs=1e-10)
        assert np.abs(levels[k, :len(expected)].numpy() - np.clip(expected - top, low, high)).max() <= 1e-9
        assert (levels[k, len(expected):] == low).all()


@pytest.mark.parametrize("name", PRESETS)
def test_power_is_torchaudios(name):
    """Every preset; in torchaudio's own single precision, whose filters differ in their last digits, and its dB."""
    c = PRESETS[name]
    waves = noise(1, c.samples, dtype=torch.float32)
    reference = torchaudio.transforms.MelSpectrogram(c.sample_rate, n_fft=c.n_fft, hop_length=c.hop, n_mels=c.mels, power=2.0)
    theirs = reference(waves).transpose(1, 2)
    padded = torch.nn.functional.pad(waves, (c.n_fft // 2, c.n_fft // 2), mode="reflect")
    ours = mel_power(padded, c)
    assert ours.shape == theirs.shape == (1, c.frames, c.mels)
    assert ((ours - theirs).abs() / theirs).max() < 5e-4 and ((ours - theirs).abs() / theirs).median() < 2e-6
    levels, peak, valid = MelFrontEnd(c)(waves)
    expected = torchaudio.transforms.AmplitudeToDB("power", top_db=80.0)(theirs) - theirs.max().log10() * 10
    assert (levels - expected).abs().max() < 3e-3 and peak.item() == pytest.approx(theirs.max().log10().item() * 10, abs=1e-3)
    assert valid.all() and levels.max() == 0
    bank = torchaudio.functional.melscale_fbanks(c.n_fft // 2 + 1, 0.0, c.sample_rate / 2, c.mels, c.sample_rate)
    assert (mel_filters(c) - bank.T).abs().max() < 2e-4 and (mel_filters(c) > 0).sum(0).max() == 2


def test_presets_are_the_one_table():
    """The notes' table: tokens of 16 x 16 in a clip and a second, and 163,680 samples for 1,024 frames."""
    rows = {name: (c.sample_rate, c.n_fft, c.hop, c.mels, c.frames, c.frames * c.mels // 256, round(c.frame_rate * c.mels / 256, 2))
            for name, c in PRESETS.items()}
    assert rows == {"default": (16000, 1024, 160, 128, 1024, 512, 50.0), "speech": (16000, 1024, 160, 80, 1024, 320, 31.25),
                    "music": (22050, 2048, 160, 128, 2048, 1024, 68.91), "environmental": (16000, 1024, 160, 128, 512, 256, 50.0)}
    assert MelConfig().samples == 163_680 and MelConfig().seconds == 10.23 and MelConfig().floor == -80.0
    assert preset("speech", frames=64) == MelConfig(mels=80, frames=64) and preset("default") == MelConfig()
    stored = json.loads(json.dumps(PRESETS["music"].to_dict()))
    assert MelConfig(**stored) == PRESETS["music"] and hash(MelConfig(**stored)) == hash(PRESETS["music"])
    with pytest.raises(ValueError, match="preset: 'song' is unknown; known: default, speech, music, environmental"):
        preset("song")
    with pytest.raises(ValueError, match="'n_mels' is no setting; the settings are sample_rate, n_fft, hop, mels"):
        preset("speech", n_mels=64)


@pytest.mark.parametrize("changes, words", [
    ({"mels": 0}, "mels must be a whole number, at least 1, got 0"), ({"hop": 1.5}, "hop must be a whole number"),
    ({"frames": True}, "frames must be"), ({"n_fft": 255}, "n_fft must be even"),
    ({"hop": 300}, "n_fft must be even and at least the hop, got n_fft=256, hop=300"),
    ({"clamp_range": (0.0, -80.0)}, "clamp_range must be two finite levels in dB, the lower one first"),
    ({"clamp_range": -80}, "clamp_range"), ({"clamp_range": (-80.0, float("inf"))}, "clamp_range"),
    ({"reference": "rms"}, 'reference must be "peak" or a level in dB, got \'rms\''),
    ({"reference": float("nan")}, "reference"), ({"reference": True}, "reference")], ids=str)
def test_wrong_settings(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(SMALL, **changes)


def test_the_level_is_in_the_peak_and_nowhere_else():
    """Bug 1 of the public fork: 40 dB more or less gain moved clips out of the range."""
    waves = noise()
    loud, soft = MelFrontEnd(SMALL)(waves), MelFrontEnd(SMALL)(waves * 0.01)
    assert (loud.levels - soft.levels).abs().max() < 1e-9 and (loud.peak - soft.peak - 40).abs().max() < 1e-9
    assert (loud.levels.amax((1, 2)) == 0).all() and loud.levels.min() >= -80
    fixed = MelFrontEnd(dataclasses.replace(SMALL, reference=20.0))
    loud, soft = fixed(waves * 0.1), fixed(waves * 0.01)
    assert (loud.peak == 20).all() and loud.levels.max() < 0 and soft.levels.min() > -80, "nothing here is clamped"
    assert (loud.levels - soft.levels - 20).abs().max() < 1e-9
    assert fixed(waves * 1e3).levels.max() == 0, "above the reference it is clamped"


def test_silence_and_whispers():
    """Digital silence is the floor; a clip 80 dB below full scale still has its loudest place at 0."""
    tone = torch.sin(torch.arange(SMALL.samples) * 0.7)[None]
    for gain, top in ((1e-4, 0.0), (0.0, -80.0)):
        levels, peak, _ = MelFrontEnd(SMALL)(tone * gain)
        assert levels.isfinite().all() and peak.isfinite().all() and levels.max().item() == top
    assert peak.item() == QUIETEST + 80 and decibels(torch.zeros(1)).item() == pytest.approx(QUIETEST, abs=1e-4)
    buried = MelFrontEnd(SMALL)(tone * 1e-8)
    assert buried.levels.max() < 0 and buried.peak.item() == QUIETEST + 80, "noise far below 16 bits is not raised"


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.integers(0, 99))
def test_a_clip_knows_nothing_of_its_batch(first, second, seed):
    """Alone, in a batch, padded by others or cut from a longer one: equal bits, single precision."""
    front_end = MelFrontEnd(dataclasses.replace(SMALL, frames=20))
    waves = noise(5, 900, seed, torch.float32)
    together = front_end(waves, torch.tensor([first, second, 900, 0, first]))
    alone = front_end(waves[1:2, :second])
    for one, many in zip(alone, together):
        assert torch.equal(one[0], many[1])
    assert together.valid.sum(1).tolist() == [0 if n == 0 else min(20, 1 + n // 40) for n in (first, second, 900, 0, first)]


def test_whole_files_and_empty_batches():
    waves = noise(2, 5000)
    levels, _, valid = MelFrontEnd(SMALL)(waves, frames=SMALL.frames_of(5000))
    assert levels.shape == (2, 126, 20) and valid.all()
    short = MelFrontEnd(SMALL)(waves)
    shift = (short.peak - MelFrontEnd(SMALL)(waves, frames=126).peak)[:, None, None]
    inner = slice(0, 60 - 4)            # the last frames of the cut clip see its mirrored end
    assert (short.levels[:, inner] + shift - levels[:, inner]).abs().amax() < 1e-9
    assert MelFrontEnd(SMALL)(torch.zeros(0, 100)).levels.shape == (0, 60, 20)


def test_gradients_of_power_and_no_autocast():
    config = MelConfig(sample_rate=8000, n_fft=32, hop=8, mels=5, frames=4)
    wave = noise(2, 56).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: decibels(mel_power(x, config)), (wave,), eps=1e-7, atol=1e-5)
    assert not MelFrontEnd(config)(wave).levels.requires_grad
    silent = torch.zeros(1, 64, requires_grad=True)
    decibels(mel_power(silent, config)).sum().backward()
    assert (silent.grad == 0).all()
    plain = MelFrontEnd(SMALL)(noise(2, dtype=torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = MelFrontEnd(SMALL)(noise(2, dtype=torch.float32))
        half = MelFrontEnd(SMALL)(noise(2, dtype=torch.bfloat16))
    assert torch.equal(plain.levels, under.levels) and half.levels.dtype == torch.float32


def test_wrong_waveforms_and_empty_bands():
    front_end = MelFrontEnd(SMALL)
    with pytest.raises(ValueError, match=r"expected waveforms \(B, samples\), got shape \(3, 1, 9\)"):
        front_end(torch.zeros(3, 1, 9))
    for lengths in (torch.tensor([1]), torch.tensor([5, -1]), torch.tensor([1.0, 2.0])):
        with pytest.raises(ValueError, match="lengths must be 2 whole numbers of samples"):
            front_end(torch.zeros(2, 9), lengths)
    with pytest.warns(UserWarning, match="1 of 128 bands lie between two bins.*fewer than 128 mels or more than 512 samples"):
        mel_filters(MelConfig(n_fft=512))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 700), min_size=1, max_size=12), st.integers(0, 99))
def test_a_stream_is_the_whole_to_the_last_bit(sizes, seed):
    waves = noise(2, sum(sizes), seed, torch.float32)
    frames = STREAM.frames_of(sum(sizes))
    live = stream(STREAM)
    for round_ in range(2):             # after `finish` it starts anew
        parts, begin = [], 0
        for size in sizes:
            parts.append(live.push(waves[:, begin:begin + size]))
            begin += size
            complete = max(0, (begin - STREAM.n_fft) // STREAM.hop + 1)
            assert sum(p.shape[1] for p in parts) == complete, "as soon as they are complete, and no sooner"
        levels = torch.cat([*parts, live.finish()], dim=1)
        assert levels.shape == (2, frames, 20)
        if frames:
            whole = MelFrontEnd(STREAM)(waves, frames=frames)
            assert torch.equal(levels, whole.levels) and whole.valid.all()


def test_a_stream_of_one_long_chunk_keeps_little():
    wave = noise(1, 200_000, dtype=torch.float32)[0]
    live = MelStream(STREAM)
    levels = live.push(wave)
    assert levels.shape == ((200_000 - 256) // 40 + 1, 20), "more frames than one piece holds"
    assert live._kept.untyped_storage().nbytes() <= 4 * (STREAM.n_fft + STREAM.hop)
    rest = live.finish()
    whole = MelFrontEnd(STREAM)(wave[None], frames=STREAM.frames_of(200_000)).levels[0]
    assert torch.equal(torch.cat([levels, rest]), whole)


def test_streams_that_would_need_the_future():
    for changes in ({"centred": True}, {"reference": "peak"}):
        with pytest.raises(ValueError, match="a stream cannot look ahead: it needs centred=False and a fixed reference"):
            stream(dataclasses.replace(STREAM, **changes))
    live = stream(STREAM)
    with pytest.raises(ValueError, match="finished before its first chunk"):
        live.finish()
    live.push(torch.zeros(2, 5))
    for chunk in (torch.zeros(5), torch.zeros(3, 5), torch.zeros(2, 1, 5)):
        with pytest.raises(ValueError, match="a stream takes chunks"):
            live.push(chunk)


def lines(hidden):
    """First one and number of the hidden lines of each clip (B, N) bool; they follow one another."""
    count, first = hidden.sum(1), hidden.argmax(1)
    place = np.arange(hidden.shape[1])
    assert (hidden == ((place >= first[:, None]) & (place < (first + count)[:, None]))).all()
    return first, count


def test_masks_of_the_input():
    """Widths of up to 102 frames and 12 bands (the notes), half of the clips each, at the floor, by each clip's seed alone."""
    levels = torch.full((150, 1024, 128), -10.0)
    masked = mask_spectrogram(levels, range(150))
    assert (levels == -10).all(), "the target must stay as it is"
    hidden = (masked == -80).numpy()
    time, band = lines(hidden.all(2)), lines(hidden.all(1))
    for (first, width), widest, length in ((time, 102, 1024), (band, 12, 128)):
        there = width > 0
        assert abs(there.mean() - 0.5) < 0.12 and 0.9 * widest < width.max() <= widest
        first, width = first[there], width[there]
        assert width.min() <= 0.1 * widest and abs(width.mean() - (1 + widest) / 2) < 0.1 * widest
        assert 0.95 * length < (first + width).max() <= length and first.min() < 0.05 * length
    assert abs(((time[1] > 0) & (band[1] > 0)).mean() - 0.25) < 0.1, "the two are independent"
    assert (hidden == hidden.all(2)[:, :, None] | hidden.all(1)[:, None]).all() and (masked[~torch.from_numpy(hidden)] == -10).all()
    assert torch.equal(mask_spectrogram(levels[:1], [7])[0], masked[7])


def test_masks_within_the_sound_and_switched_off():
    levels = torch.zeros(50, 200, 40)
    valid = torch.arange(200) < torch.arange(50)[:, None]
    masked = mask_spectrogram(levels, range(50), time=0.5, frequency=0.0, probability=1.0, fill=-9.0, valid=valid)
    hidden = (masked == -9.0).all(2)
    assert not (hidden & ~valid).any() and (hidden.sum(1) <= valid.sum(1) // 2).all() and (hidden.sum(1)[2:] >= 1).all()
    assert torch.equal(mask_spectrogram(levels, range(50), probability=0.0), levels)
    assert torch.equal(mask_spectrogram(levels, range(50), time=0.0, frequency=0.0, probability=1.0), levels)
    single = (mask_spectrogram(torch.zeros(300, 10, 20), range(300), frequency=0.05, probability=1.0) == -80).numpy()
    for hidden in (single.all(2), single.all(1)):       # one line each, and every line at some time
        assert (hidden.sum(1) == 1).all() and hidden.any(0).all()
    whole = mask_spectrogram(levels[:9], range(9), time=1.0, frequency=0.0, probability=1.0)
    assert ((whole == -80.0).all(2).sum(1) >= 1).all()
    for name in ("time", "frequency", "probability"):
        with pytest.raises(ValueError, match=f"{name} must be from 0 to 1, got 1.5"):
            mask_spectrogram(levels, range(50), **{name: 1.5})
    with pytest.raises(ValueError, match="one seed a clip.*49 seeds"):
        mask_spectrogram(levels, range(49))
