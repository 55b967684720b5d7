"""Pictures of sound against references written out, closed forms, and their edges."""
import numpy as np
import pytest
import torch
import torchaudio

from lib.audio.picture import QUIETEST, PictureConfig, SoundPicture, normalise

SMALL = dict(n_fft=256, hop=128, mels=20, size=24, seconds=0.5, sample_rate=8000, fmin=50.0, fmax=3500.0)


def noise(clips=3, seconds=0.5, rate=8000, seed=0):
    wave = torch.randn(clips, round(seconds * rate), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return wave * torch.tensor([0.3, 0.01, 1e-4][:clips], dtype=torch.float64)[:, None]


def mel(hertz):
    return 2595 * np.log10(1 + hertz / 700)


def naive_levels(wave, c):
    """One clip (samples,), one frame and one band after the other."""
    wave = np.pad(wave, (0, max(0, c.samples - len(wave))))[:c.samples]
    padded = np.concatenate([wave[c.n_fft // 2:0:-1], wave, wave[-2:-c.n_fft // 2 - 2:-1]])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(c.n_fft) / c.n_fft)
    edges = 700 * (10 ** (np.linspace(mel(c.fmin), mel(c.fmax), c.mels + 2) / 2595) - 1)
    hertz = np.arange(c.n_fft // 2 + 1) * c.sample_rate / c.n_fft
    levels = np.zeros((c.mels, 1 + c.samples // c.hop))
    for t in range(levels.shape[1]):
        power = np.abs(np.fft.rfft(padded[t * c.hop:t * c.hop + c.n_fft] * window)) ** 2
        for m in range(c.mels):
            rising = (hertz - edges[m]) / (edges[m + 1] - edges[m])
            falling = (edges[m + 2] - hertz) / (edges[m + 2] - edges[m + 1])
            levels[m, t] = 10 * np.log10(max(np.sum(np.clip(np.minimum(rising, falling), 0, None) * power), 1e-10))
    return levels


def naive_resize(picture, size):
    """Bilinear to (size, size): weights are a triangle as wide as a pixel of the coarser of the two grids."""
    for axis in (0, 1):
        length = picture.shape[axis]
        ratio = length / size
        width = max(ratio, 1.0)
        rows = []
        for i in range(size):
            weights = np.clip(1 - np.abs((np.arange(length) + 0.5) - (i + 0.5) * ratio) / width, 0, None)
            rows.append(weights / weights.sum())
        picture = np.moveaxis(np.tensordot(np.array(rows), np.moveaxis(picture, axis, 0), 1), 0, axis)
    return picture


def naive_scale(levels, c):
    if c.scale == "statistics":
        return np.clip((levels - c.mean) / (4 * c.std) + 0.5, 0, 1)
    if c.scale == "minmax":
        return (levels - levels.min()) / (levels.max() - levels.min())
    top = max(levels.max(), -100 + c.top_db)
    return np.maximum(levels, top - c.top_db) / c.top_db - (top - c.top_db) / c.top_db


@pytest.mark.parametrize("changes", [{}, {"scale": "minmax"}, {"scale": "statistics", "mean": -30.0, "std": 12.0},
                                     {"top_db": 30.0}, {"seconds": 0.3}, {"seconds": 0.7}, {"size": 7}], ids=str)
def test_equals_the_written_out_reference(changes):
    config, waves = PictureConfig(**SMALL | changes), noise()
    pictures = SoundPicture(config)(waves)
    assert pictures.dtype == torch.float64 and pictures.shape == (3, 1, config.size, config.size)
    for wave, picture in zip(waves.numpy(), pictures):
        expected = naive_resize(naive_scale(naive_levels(wave, config), config), config.size)
        assert np.abs(picture[0].numpy() - expected).max() <= 1e-8
    single = SoundPicture(config)(waves.float())
    assert single.dtype == torch.float32 and (single - pictures).abs().max() < 1e-3


@pytest.mark.filterwarnings("ignore:.*mel filterbank.*")
def test_levels_are_torchaudios():
    """The published settings: 128 HTK bands, 1024 samples a frame, 512 apart, then dB without a top limit."""
    wave = noise(3, 10.0, 16000).float()
    mels = torchaudio.transforms.MelSpectrogram(16000, n_fft=1024, hop_length=512, f_min=0.0, f_max=8000.0, n_mels=128, power=2.0)
    expected = torchaudio.transforms.AmplitudeToDB("power", top_db=None)(mels(wave))
    levels = SoundPicture().levels(wave)
    assert levels.shape == expected.shape == (3, 128, 313) == (3, PictureConfig().mels, PictureConfig().frames)
    assert (levels - expected).abs().max() < 2e-3
    assert SoundPicture()(wave).shape == (3, 1, 224, 224)


def test_scales_keep_or_lose_the_level_as_they_say():
    wave = noise(1)
    fixed = dict(scale="statistics", mean=-20.0, std=25.0)
    for changes, same in (({}, True), ({"scale": "minmax"}, True), (fixed, False)):
        front_end = SoundPicture(PictureConfig(**SMALL | changes))
        loud, soft = front_end(wave), front_end(wave / 10)
        assert torch.allclose(loud, soft, atol=1e-9) == same, changes
    assert (SoundPicture(PictureConfig(**SMALL | fixed))(wave) - SoundPicture(PictureConfig(**SMALL | fixed))(wave / 10)
            ).mean().item() == pytest.approx(20 / 100, abs=1e-9)
    # what a network gets is the normalisation of the models that use fixed statistics
    config = PictureConfig(**SMALL | {"scale": "statistics", "mean": -25.0, "std": 1000.0, "size": 20})
    levels = SoundPicture(config).levels(wave)
    plain = naive_resize(((levels + 25) / 2000)[0].numpy(), 20)
    np.testing.assert_allclose(normalise(SoundPicture(config)(wave))[0, 0], plain, atol=1e-9)


@pytest.mark.parametrize("scale", [{}, {"scale": "minmax"}, {"scale": "statistics", "mean": -20.0, "std": 15.0}], ids=str)
def test_silence_and_padding(scale):
    config = PictureConfig(**SMALL | scale)
    front_end = SoundPicture(config)
    silent = front_end(torch.zeros(2, 100))
    assert torch.isfinite(silent).all() and not silent.any() and (front_end.levels(torch.zeros(1, 9)) == QUIETEST).all()
    faint = front_end(torch.full((1, config.samples), 1e-30))
    assert torch.isfinite(faint).all() and faint.max() == 0
    short = noise(1).float()[:, :2000]
    assert torch.equal(front_end(short), front_end(torch.nn.functional.pad(short, (0, 5000)))), "padded with silence"
    assert not front_end(short)[..., int(config.column(0.33)):].any(), "and silence is 0"
    long = noise(1, 0.9).float()
    assert torch.equal(front_end(long), front_end(long[:, :config.samples])), "long ones are cut"


def test_geometry_finds_tones_and_clicks():
    """Low frequencies at the top, time to the right: a tone and a click are where `row` and `column` say."""
    for size in (64, 224):
        config = PictureConfig(size=size, seconds=4.0)
        t = torch.arange(config.samples) / config.sample_rate
        for hertz in (300.0, 1000.0, 5000.0):
            picture = SoundPicture(config)(torch.sin(2 * np.pi * hertz * t)[None])[0, 0]
            found = picture.mean(1).argmax().item()
            assert abs(found - config.row(hertz)) <= 0.5 + size / config.mels / 2
            assert abs(config.frequency(found) / hertz - 1) < 0.05
        for second in (0.5, 1.7, 3.1):
            click = torch.zeros(1, config.samples)
            click[0, round(second * config.sample_rate)] = 1.0
            found = SoundPicture(config)(click)[0, 0].mean(0)
            middle = (found * torch.arange(size)).sum() / found.sum()
            assert abs(middle - config.column(second)) < 0.6
            assert abs(config.second(middle) - second) < config.hop / config.sample_rate
        rows = np.arange(size)
        np.testing.assert_allclose(config.row(config.frequency(rows)), rows, atol=1e-9)
        np.testing.assert_allclose(config.column(config.second(rows)), rows, atol=1e-9)
        assert (np.diff(config.frequency(rows)) > 0).all() and config.second(size - 0.5) == pytest.approx(4.0, abs=0.04)
    one_to_one = PictureConfig(size=128)
    edges = 700 * (10 ** (np.linspace(0, mel(8000.0), 130) / 2595) - 1)
    np.testing.assert_allclose(one_to_one.frequency(np.arange(128)), edges[1:-1], rtol=1e-9)


def test_outside_autocast_and_without_gradient():
    front_end, wave = SoundPicture(PictureConfig(**SMALL)), noise().float().requires_grad_()
    plain = front_end(wave)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = front_end(wave)
    assert inside.dtype == torch.float32 and torch.equal(inside, plain) and not plain.requires_grad
    assert torch.equal(front_end.half()(wave), plain), "casting the model leaves its front end alone"
    assert torch.equal(torch.cat([front_end(w[None]) for w in wave]), plain), "a picture does not depend on its neighbours"


def test_normalise():
    grey = torch.rand(2, 1, 4, 4)
    out = normalise(grey, 3)
    assert out.shape == (2, 3, 4, 4) and torch.equal(out[:, 0], out[:, 2]) and torch.allclose(out[:, 1], (grey[:, 0] - 0.5) / 0.5)
    frames = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert normalise(frames).flatten().tolist() == pytest.approx([-1.0, -0.6, 1.0])


@pytest.mark.parametrize("wrong, words", [({"mels": 0}, "mels"), ({"fmax": 9000.0}, "fmax"), ({"seconds": 0.01}, "seconds"),
                                          ({"seconds": float("nan")}, "seconds"),
                                          ({"scale": "log"}, "top_db, statistics, minmax"),
                                          ({"top_db": 0.0}, "top_db"), ({"scale": "statistics"}, "mean and std"),
                                          ({"scale": "statistics", "mean": 0.0, "std": 0.0}, "std=0.0")])
def test_settings_out_of_range(wrong, words):
    with pytest.raises(ValueError, match=words):
        PictureConfig(**wrong)
    with pytest.raises(ValueError, match="B, samples"):
        SoundPicture()(torch.zeros(1, 1, 16000))
