"""First-order ambisonics against its closed forms, and what is read back from it."""
import math

import numpy as np
import pytest
import torch

from lib.audio.ambisonics import DIFFUSE_POWER, direction, encode, harmonics, intensity, intensity_vector, stereo, unit_vector

RNG = np.random.default_rng(0)
ANGLES = [(float(a), float(e)) for a, e in zip(RNG.uniform(-400, 400, 30), RNG.uniform(-90, 90, 30))]
SIGNAL = RNG.standard_normal(480)


def naive_gains(azimuth, elevation):
    a, e = math.radians(azimuth), math.radians(elevation)
    return [1.0, math.sin(a) * math.cos(e), math.sin(e), math.cos(a) * math.cos(e)]  # W, Y, Z, X


@pytest.mark.parametrize("azimuth, elevation", ANGLES)
def test_encode_equals_the_closed_form(azimuth, elevation):
    expected = np.outer(naive_gains(azimuth, elevation), SIGNAL)
    assert np.abs(encode(SIGNAL, azimuth, elevation) - expected).max() < 1e-8
    tensor = encode(torch.from_numpy(SIGNAL), azimuth, elevation)
    assert isinstance(tensor, torch.Tensor) and np.abs(tensor.numpy() - expected).max() < 1e-8


@pytest.mark.parametrize("azimuth, elevation, gains", [
    (0, 0, [1, 0, 0, 1]), (90, 0, [1, 1, 0, 0]), (0, 90, [1, 0, 1, 0]),  # front = +X, left = +Y, up = +Z
    (180, 0, [1, 0, 0, -1]), (-90, 0, [1, -1, 0, 0]), (0, -90, [1, 0, -1, 0])])
def test_axes(azimuth, elevation, gains):
    assert np.allclose(encode(np.ones(1), azimuth, elevation)[:, 0], gains, rtol=0, atol=1e-8)


@pytest.mark.parametrize("azimuth, left, right", [(90, 1.0, 0.0), (-90, 0.0, 1.0), (0, 0.5, 0.5), (180, 0.5, 0.5), (30, 0.75, 0.25)])
def test_stereo_is_two_cardioids(azimuth, left, right):
    for signal in (SIGNAL, torch.from_numpy(SIGNAL)):
        ears = np.asarray(stereo(encode(signal, azimuth, 0.0)))
        assert np.abs(ears - np.outer([left, right], SIGNAL)).max() < 1e-8


def test_kind_and_precision_are_kept():
    for dtype in (np.float32, np.float64):
        assert encode(SIGNAL.astype(dtype), 10, 20).dtype == dtype
    weights = torch.ones(5, dtype=torch.float32, requires_grad=True)
    encoded = encode(weights, 90.0, 0.0)
    encoded.sum().backward()
    assert encoded.dtype == torch.float32 and torch.allclose(weights.grad, torch.full((5,), 2.0))


@pytest.mark.parametrize("signal, azimuth, problem", [
    (np.zeros((2, 5)), 0, r"\(2, 5\)"), (np.zeros(5, np.int16), 0, "int16"), (torch.zeros(5, dtype=torch.int32), 0, "int32"),
    (np.zeros(5), float("nan"), "finite"), (np.zeros(5), float("inf"), "finite")])
def test_what_cannot_be_encoded_is_refused(signal, azimuth, problem):
    with pytest.raises(ValueError, match=problem):
        encode(signal, azimuth, 0)


def test_unit_vectors_and_the_power_of_a_diffuse_field():
    azimuth, elevation = RNG.uniform(-180, 180, (2, 7)), RNG.uniform(-90, 90, (2, 7))
    vectors = unit_vector(azimuth, elevation)
    assert vectors.shape == (3, 2, 7) and np.allclose((vectors**2).sum(0), 1)
    evenly = unit_vector(RNG.uniform(-180, 180, 200_000), np.degrees(np.arcsin(RNG.uniform(-1, 1, 200_000))))
    assert np.allclose((harmonics(evenly) ** 2).mean(1), DIFFUSE_POWER, atol=0.01)


@pytest.mark.parametrize("azimuth, elevation", ANGLES)
def test_direction_reads_back_what_was_encoded(azimuth, elevation):
    for clip in (encode(SIGNAL, azimuth, elevation), encode(torch.from_numpy(SIGNAL), azimuth, elevation)):
        found = direction(intensity(clip))
        assert abs((found[0] - azimuth + 180) % 360 - 180) < 1e-8 and found[1] == pytest.approx(elevation, abs=1e-7)


def naive_intensity_vector(spectrum):
    out = np.zeros((3, *spectrum.shape[1:]))
    for f in range(spectrum.shape[1]):
        for t in range(spectrum.shape[2]):
            w, *others = spectrum[:, f, t]
            vector = [(w.conjugate() * c).real for c in others]
            out[:, f, t] = [v / (math.sqrt(sum(u * u for u in vector)) + 1.1920929e-07) for v in vector]
    return out


def test_intensity_vector_equals_its_definition():
    spectrum = RNG.standard_normal((4, 6, 5)) + 1j * RNG.standard_normal((4, 6, 5))
    spectrum[:, :2] *= 1e-4  # where the guard counts
    spectrum[:, 0, 0] = 0
    expected = naive_intensity_vector(spectrum)
    assert np.abs(intensity_vector(spectrum) - expected).max() < 1e-8
    assert np.abs(intensity_vector(torch.from_numpy(spectrum)).numpy() - expected).max() < 1e-8
    assert np.linalg.norm(expected, axis=0).max() <= 1 and not intensity_vector(spectrum)[:, 0, 0].any()


def test_two_sources_that_share_no_frequency_keep_their_directions():
    t = np.arange(1024) / 1024
    low, high = ((30.0, 10.0), np.sin(2 * np.pi * 40 * t)), ((-140.0, -35.0), 0.3 * np.sin(2 * np.pi * 300 * t))
    mixture = sum(encode(signal, *angles) for angles, signal in (low, high))
    spectrum = np.fft.rfft(mixture)[:, :, None]
    vector = intensity_vector(spectrum)
    for (angles, _), bin in ((low, 40), (high, 300)):
        x, y, z = unit_vector(*angles)
        assert np.allclose(vector[:, bin, 0], [y, z, x], atol=1e-6)
        assert np.allclose(direction(vector[:, bin]), angles, atol=1e-4)
    # over the whole clip they add up by their energies, and a waveform tells the same as its spectrum
    x, y, z = unit_vector(*low[0]) + 0.09 * unit_vector(*high[0])
    expected = math.degrees(math.atan2(y, x)), math.degrees(math.atan2(z, math.hypot(x, y)))
    assert np.allclose(direction(intensity(spectrum)), expected, atol=1e-6)
    assert np.allclose(direction(intensity(mixture)), expected, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-8, 1.0])
def test_values_and_gradients_are_finite_down_to_silence(scale):
    real = torch.from_numpy(np.random.default_rng(1).standard_normal((4, 9, 3, 2)) * scale).float().requires_grad_()
    vector = intensity_vector(torch.view_as_complex(real))
    vector.pow(2).sum().backward()
    assert vector.isfinite().all() and real.grad.isfinite().all() and vector.dtype == torch.float32


def test_no_direction_and_wrong_channels_are_refused():
    with pytest.raises(ValueError, match="no direction"):
        direction(np.zeros((3, 5)))
    with pytest.raises(ValueError, match="no direction"):
        direction(np.full((3, 2), np.nan))
    with pytest.raises(ValueError, match="4 channels"):
        intensity(np.zeros((2, 100)))
