"""The headphone decoder: against plane waves added up one by one, and what a listener must notice."""
import cmath
import math

import numpy as np
import pytest
import torch

from lib.audio.ambisonics import DIFFUSE_POWER, encode
from lib.audio.binaural import PHASES_UP_TO, TAPS, binaural

RATE = 24000
RNG = np.random.default_rng(0)
NOISE = RNG.standard_normal(RATE)
LOW = np.fft.irfft(np.where(np.fft.rfftfreq(RATE, 1 / RATE) < PHASES_UP_TO, np.fft.rfft(NOISE), 0))


def naive_gains(azimuth):
    return [1.0, math.sin(math.radians(azimuth)), 0.0, math.cos(math.radians(azimuth))]


def naive_ear(frequency, angle):
    """Brown and Duda's sphere for one frequency and one angle in degrees."""
    a, c = 0.0875, 343.0
    alpha = (1 + 0.1 / 2) + (1 - 0.1 / 2) * math.cos(math.radians(angle / 150 * 180))
    x = 2 * math.pi * frequency / (2 * c / a)
    delay = -a / c * math.cos(math.radians(angle)) if angle < 90 else a / c * (math.radians(angle) - math.pi / 2)
    return (1 + 1j * alpha * x) / (1 + 1j * x) * cmath.exp(-2j * math.pi * frequency * delay)


def response(foa, bin):
    """Spectrum (2,) of both ears at one of the filters' own frequencies, for an impulse with the gains `foa`."""
    clip = np.zeros((4, 3 * TAPS))
    clip[:, TAPS + TAPS // 2] = foa
    return np.fft.fft(binaural(clip, RATE)[:, TAPS:2 * TAPS])[:, bin] * cmath.exp(2j * math.pi * bin / TAPS * (TAPS // 2))


@pytest.mark.parametrize("bin", [0, 1, 5, 13, 21])
def test_low_frequencies_equal_plane_waves_added_up(bin):
    """A dense grid of directions, each a virtual loudspeaker with the least-squares gain, goes to each ear on its own."""
    frequency, foa, expected = bin * RATE / TAPS, RNG.standard_normal(4), [0j, 0j]
    levels, around = 400, 8  # midpoints of equal steps of height and of azimuth around the axis through the ears
    for i in range(levels):
        y = 1 - (2 * i + 1) / levels
        ears = [naive_ear(frequency, math.degrees(math.acos(side * y))) for side in (1, -1)]
        for k in range(around):
            turn = 2 * math.pi * k / around
            x, z = math.sqrt(1 - y * y) * math.cos(turn), math.sqrt(1 - y * y) * math.sin(turn)
            loudspeaker = foa[0] + 3 * (y * foa[1] + z * foa[2] + x * foa[3])
            for ear in (0, 1):
                expected[ear] += loudspeaker * ears[ear] / (levels * around)
    assert frequency < PHASES_UP_TO and np.abs(response(foa, bin) - expected).max() < 1e-4  # the grid's own error


@pytest.mark.parametrize("hertz", [700, 1500, 3000, 6000, 11500])
@pytest.mark.parametrize("azimuth", [0, 30, 60, 90, 150])
def test_high_frequencies_have_the_levels_of_the_sphere(hertz, azimuth):
    bin = round(hertz * TAPS / RATE)
    near, far = np.abs(response(naive_gains(azimuth), bin))
    to_left = abs(azimuth - 90)
    wanted = [abs(naive_ear(bin * RATE / TAPS, angle)) for angle in (to_left, 180 - to_left)]
    assert abs(20 * math.log10(near / wanted[0])) < 1
    assert abs(20 * math.log10(far / wanted[1])) < 4  # where both are faint


def lag(ears):
    """By how many seconds the left ear is earlier: peak of the cross-correlation, between samples by a parabola."""
    spectra = np.fft.rfft(ears, 2 * ears.shape[1])
    correlation = np.fft.fftshift(np.fft.irfft(spectra[1] * spectra[0].conj()))
    k = int(np.argmax(correlation))
    left, top, right = correlation[k - 1:k + 2]
    return (k - len(correlation) // 2 + (left - right) / (2 * (left - 2 * top + right))) / RATE


@pytest.mark.parametrize("azimuth", [90, 45, 22.5, 0])
def test_the_near_ear_hears_it_earlier_and_louder(azimuth):
    ears, low = binaural(encode(NOISE, azimuth, 0), RATE), binaural(encode(LOW, azimuth, 0), RATE)
    level = 10 * np.log10((ears[0] ** 2).sum() / (ears[1] ** 2).sum())
    diffraction = 3 * 0.0875 / 343 * math.sin(math.radians(azimuth))  # Kuhn 1977: of low frequencies around a sphere
    assert lag(low) == pytest.approx(diffraction, rel=0.15, abs=1e-9)
    assert (level > 6) if azimuth else abs(level) < 1e-9


def test_levels_and_delays_grow_from_the_front_to_the_side():
    azimuths = (-90, -60, -30, 0, 30, 60, 90)
    lags = [lag(binaural(encode(LOW, a, 0), RATE)) for a in azimuths]
    assert np.all(np.diff(lags) > 5e-5)
    near = [np.sum(binaural(encode(NOISE, a, 0), RATE)[0] ** 2) for a in azimuths]
    assert np.all(np.diff(near[2:]) > 0) and min(near[3:]) > max(near[:3])


def test_mirrored_scene_swaps_the_ears_exactly():
    scene = RNG.standard_normal((4, 5000))
    mirrored = scene * np.array([1, -1, 1, 1])[:, None]
    assert np.array_equal(binaural(mirrored, RATE), binaural(scene, RATE)[::-1])


@pytest.mark.parametrize("azimuth, elevation", [(0, 0), (180, 0), (0, 60), (0, -90)])
def test_the_median_plane_sounds_alike_in_both_ears(azimuth, elevation):
    ears = binaural(encode(NOISE, azimuth, elevation), RATE)
    assert np.abs(ears[0] - ears[1]).max() < 1e-8
    assert np.abs(ears - binaural(encode(NOISE, 0, 0), RATE)).max() < 1e-8  # no outer ears: front is back


def test_linear_finite_and_never_louder_than_twice():
    a, b = RNG.standard_normal((2, 4, 3000))
    assert np.abs(binaural(2 * a - 3 * b, RATE) - 2 * binaural(a, RATE) + 3 * binaural(b, RATE)).max() < 1e-8
    assert not binaural(np.zeros((4, 3000)), RATE).any()
    for azimuth in range(0, 360, 15):
        energy = (binaural(encode(NOISE, azimuth, 20), RATE) ** 2).sum(1) / (NOISE**2).sum()
        assert np.all((energy > 1e-3) & (energy < 4))


def test_the_treble_of_a_diffuse_field_is_kept():
    """With the delays left in, 20 dB are lost at 12 kHz; what is fitted keeps its level within half a decibel."""
    field = RNG.standard_normal((4, 10 * RATE)) * np.sqrt(DIFFUSE_POWER)[:, None]
    spectra = np.abs(np.fft.rfft(binaural(field, RATE))) ** 2
    bands = spectra.mean(0)[1:].reshape(12, -1).mean(1) / (10 * RATE)
    assert np.all(np.abs(10 * np.log10(bands)) < 0.5)


@pytest.mark.parametrize("samples", [1, 7, 1022, 1023, 1024, 48000])
def test_kind_precision_and_length_are_kept(samples):
    clip = RNG.standard_normal((4, samples))
    expected = binaural(clip, 48000)
    assert expected.shape == (2, samples) and expected.dtype == np.float64
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        heard = binaural(torch.from_numpy(clip).to(dtype).requires_grad_(), 48000)
        assert heard.dtype == dtype and heard.shape == (2, samples)
        assert np.abs(heard.double().numpy() - expected).max() < {torch.bfloat16: 0.1, torch.float32: 1e-5}.get(dtype, 1e-8)
    assert binaural(clip.astype(np.float32), 48000).dtype == np.float32


@pytest.mark.parametrize("clip, rate, problem", [
    (np.zeros((1, 9)), RATE, r"\(1, 9\)"), (np.zeros((2, 4, 9)), RATE, r"\(2, 4, 9\)"), (np.zeros((9, 4)), RATE, r"\(9, 4\)"),
    (np.zeros((4, 9), np.int16), RATE, "int16"), (np.zeros((4, 9)), 0, "sample_rate")])
def test_what_cannot_be_decoded_is_refused(clip, rate, problem):
    with pytest.raises(ValueError, match=problem):
        binaural(clip, rate)
