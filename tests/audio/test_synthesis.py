"""What the words say must be measurable in the sound: onset, pitch and rate of every recipe."""
import numpy as np
import pytest

from lib.audio.signals import SAMPLE_RATE, band, colored_noise, convolved, filtered, loudest, shaped_noise, tone
from lib.audio.synthesis import RECIPES, synthesize
from lib.data.scenes import config

CLASSES = config()["classes"]
NAMED = {axis: [label for label in CLASSES if axis in CLASSES[label]["names"]] for axis in ("pitch", "rate")}
VOICED = ("speech", "baby_cry", "cat_meow", "engine", "drill")  # heard by their fundamental, not by their centroid
SECONDS = 3.0


def draw(label, seed, **bins):
    """An event whose named ranges are limited to a third (0 low or slow, 2 high or fast), the others free."""
    rng = np.random.default_rng([seed, *bins.values()])
    pitch, rate, timbre = rng.random(3)
    pitch = (pitch + bins["pitch"]) / 3 if "pitch" in bins else pitch
    rate = (rate + bins["rate"]) / 3 if "rate" in bins else rate
    hertz = [low * (high / low) ** u for (low, high), u in zip((CLASSES[label]["pitch"], CLASSES[label]["rate"]), (pitch, rate))]
    return synthesize(label, rng, SECONDS, *hertz, timbre), *hertz


def envelope(signal, hop=240):
    return np.sqrt((signal[: len(signal) // hop * hop].reshape(-1, hop).astype(float) ** 2).mean(1))


def centroid(signal):
    """Centre of the power spectrum on the octave scale, in Hz."""
    power, f = np.abs(np.fft.rfft(signal)) ** 2, np.fft.rfftfreq(len(signal), 1 / SAMPLE_RATE)
    keep = f > 30
    return np.exp(np.sum(power[keep] * np.log(f[keep])) / power[keep].sum())


def fundamental(signal, low, high):
    """Pitch in Hz between two bounds: largest autocorrelation after its first zero, median over the loud frames."""
    size = 4096 if low > 40 else 8192
    found, levels = [], []
    for frame in signal[: len(signal) // size * size].reshape(-1, size):
        r = np.fft.irfft(np.abs(np.fft.rfft(frame * np.hanning(size), 2 * size)) ** 2)
        lags = np.arange(max(int(SAMPLE_RATE / high), int(np.argmax(r < 0))), int(SAMPLE_RATE / low) + 1)
        found.append(SAMPLE_RATE / lags[np.argmax(r[lags])])
        levels.append(r[0])
    return np.median(np.array(found)[np.array(levels) > np.median(levels)])


def modulation(track, low, high, per_second=200):
    """Strongest repetition of a track, in Hz, between two bounds."""
    track = np.log(track + 1e-3 * track.max())
    power = np.abs(np.fft.rfft((track - track.mean()) * np.hanning(len(track)), 8192))
    f = np.fft.rfftfreq(8192, 1 / per_second)
    return f[np.argmax(np.where((f >= low) & (f <= high), power, 0))]


def test_every_class_has_a_recipe_and_every_recipe_a_class():
    assert set(RECIPES) == set(CLASSES) and len(RECIPES) == 24


@pytest.mark.parametrize("label", CLASSES)
def test_level_length_onset_and_chance(label):
    for third in (0, 2):
        signal, pitch, rate = draw(label, 0, pitch=third, rate=third)
        assert signal.dtype == np.float32 and signal.shape == (round(SECONDS * SAMPLE_RATE),) and np.isfinite(signal).all()
        assert loudest(signal) == pytest.approx(1.0, rel=1e-4)
        assert abs(signal[-1]) < 1e-3  # no click at the end
        level = envelope(signal)
        assert np.argmax(level > 0.05 * level.max()) * 0.005 <= 0.05, "must be heard within 50 ms of its onset"
        again = [synthesize(label, np.random.default_rng(s), 1.0, pitch, rate, 0.5) for s in (1, 1, 2)]
        assert np.array_equal(again[0], again[1])
        assert not np.allclose(again[0], again[2], atol=1e-3) or label in ("clock", "beep"), "two recordings must differ"


@pytest.mark.parametrize("label", NAMED["pitch"])
def test_high_is_higher_than_low(label):
    if label in VOICED:
        low, high = CLASSES[label]["pitch"]
        drawn = {third: [draw(label, k, pitch=third) for k in range(4)] for third in (0, 2)}
        heard = {third: [fundamental(signal, 0.4 * low, 1.8 * high) for signal, _, _ in drawn[third]] for third in drawn}
        ratio = np.median([h / pitch for third in drawn for h, (_, pitch, _) in zip(heard[third], drawn[third])])
        # Every other stroke of the engine is weaker, so its period is two strokes; revving adds some 20 %.
        assert ratio == pytest.approx(0.65 if label == "engine" else 1.0, rel=0.15)
    else:
        heard = {third: [centroid(draw(label, k, pitch=third)[0]) for k in range(5)] for third in (0, 2)}
    assert np.median(heard[2]) > 1.25 * np.median(heard[0]), heard


@pytest.mark.parametrize("label", NAMED["rate"])
def test_fast_is_faster_than_slow(label):
    low, high = CLASSES[label]["rate"]
    found = {0: [], 2: []}
    for third, values in found.items():
        for seed in range(4):
            signal, pitch, rate = draw(label, seed, rate=third)
            if label == "rain":  # drops cannot be counted: the denser they fall, the smaller the share of the loudest moments
                values.append(1 / (envelope(signal, 48).std() / envelope(signal, 48).mean()))
                continue
            track = envelope(signal)
            if label == "siren":  # a siren repeats in pitch, not in strength
                frames = signal[: len(track) * 240].reshape(-1, 960)
                track = np.repeat([1.0 + np.count_nonzero(np.diff(np.signbit(f))) for f in frames], 4)
            values.append(modulation(track, 0.8 * low, 1.4 * high) / rate)
    if label == "rain":
        assert min(found[2]) > max(found[0])
    else:  # the rate that is heard is the rate that is annotated, and the thirds of a range are apart
        assert all(0.85 < np.median(values) < 1.15 for values in found.values()), found
        assert (high / low) ** (1 / 3) > 1.4


def test_refusals():
    with pytest.raises(ValueError, match="dog_bark"):
        synthesize("dog", np.random.default_rng(0), 1.0, 100, 1, 0)
    with pytest.raises(ValueError, match="0.1 s"):
        synthesize("dog_bark", np.random.default_rng(0), 0.05, 100, 1, 0)


def test_tone_is_the_sum_of_its_harmonics_below_20_khz():
    track = np.linspace(900, 1100, 4800)
    phase = 2 * np.pi * np.cumsum(track) / SAMPLE_RATE
    expected = np.sin(phase) + 0.5 * np.sin(3 * phase)
    assert np.allclose(tone(track, [1.0, 0, 0.5]), expected, atol=4e-3)
    assert np.allclose(tone(np.full(480, 9000.0), [1, 1, 1]), tone(np.full(480, 9000.0), [1, 1]))


def test_colored_noise_has_its_slope_and_unit_power():
    for exponent in (-1.0, 0.0, 1.0, 2.0):
        noise = colored_noise(np.random.default_rng(0), 96_000, exponent)
        power, f = np.abs(np.fft.rfft(noise)) ** 2, np.fft.rfftfreq(96_000, 1 / SAMPLE_RATE)
        octaves = [power[(f > c / 1.4) & (f < c * 1.4)].mean() for c in (200, 800, 3200, 12_800)]
        slope = np.polyfit(np.log([200, 800, 3200, 12_800]), np.log(octaves), 1)[0]
        assert slope == pytest.approx(-exponent, abs=0.15)
        assert np.mean(noise**2) == pytest.approx(1.0, rel=1e-3)


def test_filters():
    x = np.random.default_rng(0).standard_normal(3000)
    kernel = np.random.default_rng(1).standard_normal(50)
    assert np.allclose(convolved(x, kernel), np.convolve(x, kernel)[:3000])
    assert np.allclose(filtered(x, lambda f: np.ones_like(f)), x)
    assert centroid(shaped_noise(np.random.default_rng(0), 48_000, band(1000, 0.5))) == pytest.approx(1000, rel=0.03)
