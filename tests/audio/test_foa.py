"""The spatial front end against a written-out reference and closed forms, and turns of audio, features, angles and words."""
import cmath
import math
from itertools import product

import numpy as np
import pytest
import torch
import torchaudio

from lib.audio.ambisonics import encode, unit_vector
from lib.audio.directions import DIRECTIONS, direction_word
from lib.audio.foa import (
    FoaMel, FoaMelConfig, _window_and_bank, fit, rotate, rotate_azimuth, turn_angles, turn_features, turn_waveform)

RNG = np.random.default_rng(0)
SMALL = FoaMelConfig(sample_rate=2400, n_fft=64, hop=15, mels=6, fmin=20, fmax=1200)
SYMMETRIES = list(product(range(4), (False, True), (False, True)))


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def plane_wave(azimuth, elevation, samples=4800, seed=0):
    return encode(noise(samples, seed=seed), azimuth, elevation)


def hertz_to_mel(f):
    return 2595 * math.log10(1 + f / 700)


def naive_bank(c):
    """HTK triangles, each divided by half its width in Hz: bank[bin][band]."""
    low, high = hertz_to_mel(c.fmin), hertz_to_mel(c.fmax)
    edges = [700 * (10 ** ((low + (high - low) * i / (c.mels + 1)) / 2595) - 1) for i in range(c.mels + 2)]
    bank = []
    for k in range(c.n_fft // 2 + 1):
        f, row = k * c.sample_rate / c.n_fft, []
        for left, top, right in zip(edges, edges[1:], edges[2:]):
            row.append(max(0.0, min((f - left) / (top - left), (right - f) / (right - top))) * 2 / (right - left))
        bank.append(row)
    return bank


def naive_features(clip, c):
    """One clip (4, samples) by an explicit DFT and loops: list[7][frames][mels]."""
    half, bank = c.n_fft // 2, naive_bank(c)
    out = [[] for _ in range(7)]
    for t in range(len(clip[0]) // c.hop + 1):
        spectra = []
        for channel in clip:
            frame = []
            for n in range(c.n_fft):
                i = abs(t * c.hop + n - half)  # reflected at the start ...
                i = i if i < len(channel) else 2 * (len(channel) - 1) - i  # ... and at the end
                frame.append(channel[i] * (0.5 - 0.5 * math.cos(2 * math.pi * n / c.n_fft)))
            spectra.append([sum(v * cmath.exp(-2j * math.pi * k * n / c.n_fft) for n, v in enumerate(frame))
                            for k in range(half + 1)])
        rows = [[abs(s) ** 2 for s in spectrum] for spectrum in spectra] + [[], [], []]
        for w, *others in zip(*spectra):
            vector = [(w.conjugate() * s).real for s in others]
            for row, v in zip(rows[4:], vector):
                row.append(v / (math.sqrt(sum(u * u for u in vector)) + 1.1920929e-07))
        for channel, row in enumerate(rows):
            pooled = [sum(v * bank[k][m] for k, v in enumerate(row)) for m in range(c.mels)]
            out[channel].append([10 * math.log10(max(p, 1e-10)) for p in pooled] if channel < 4 else pooled)
    return out


# ---------------------------------------------------------------------------------------------------------- features

def test_features_equal_the_written_out_reference():
    clips = noise(2, 4, 157)
    clips[1] *= 1e-5  # where the floor of the log and the guard of the intensity count
    clips[1, 2] = 0
    expected = torch.tensor([naive_features(clip.tolist(), SMALL) for clip in clips], dtype=torch.float64)
    got = FoaMel(SMALL)(clips)
    assert got.shape == (2, 7, SMALL.frames(157), 6) and SMALL.frames(157) == 1 + 157 // 15
    assert (got - expected).abs().max() < 1e-8
    assert (expected[1, 2] == -100).all()  # an empty channel sits on the floor


def test_mel_bank_equals_its_definition_and_torchaudio():
    c = FoaMelConfig()
    window, bank = _window_and_bank(c, torch.float64, torch.device("cpu"))
    assert (bank - torch.tensor(naive_bank(c), dtype=torch.float64)).abs().max() < 1e-8
    stock = torchaudio.functional.melscale_fbanks(513, 20.0, 12000.0, 64, 24000, norm="slaney", mel_scale="htk")
    assert (bank - stock).abs().max() < 1e-6 and bank.shape == (513, 64)
    assert bank.sum(0) == pytest.approx(1024 / 24000, rel=0.04)  # area 1 over bins of 23.4 Hz
    assert window.tolist() == pytest.approx([0.5 - 0.5 * math.cos(2 * math.pi * n / 1024) for n in range(1024)], abs=1e-8)


def test_published_shape():
    assert FoaMelConfig().frames(240_000) == 1001
    features = FoaMel()(torch.randn(2, 4, 240_000, generator=torch.Generator().manual_seed(0)))
    assert features.shape == (2, 7, 1001, 64) and features.dtype == torch.float32 and features.is_contiguous()
    length = features[:, 4:].norm(dim=1)
    assert length.max() <= 0.0441  # the widest band's sum
    assert FoaMelConfig(**FoaMelConfig().to_dict()) == FoaMelConfig()


@pytest.mark.parametrize("azimuth, elevation", [(0, 0), (90, 0), (-135, 30), (17.3, -62), (0, 90)])
def test_one_plane_wave_has_the_gains_and_the_direction_of_its_source(azimuth, elevation):
    """Levels differ from W by the gains in dB; the intensity of every band is the unit vector times the band's sum."""
    front_end = FoaMel()
    features = front_end(1e4 * plane_wave(azimuth, elevation)[None])[0]  # so loud that the guard of the intensity is nothing
    x, y, z = unit_vector(azimuth, elevation)
    for channel, gain in ((1, y), (2, z), (3, x)):
        if abs(gain) > 1e-9:
            assert (features[channel] - features[0] - 20 * math.log10(abs(gain))).abs().max() < 1e-8
        else:
            assert (features[channel] == -100).all()
    sums = _window_and_bank(front_end.config, torch.float64, torch.device("cpu"))[1].sum(0)
    for channel, component in ((4, y), (5, z), (6, x)):
        assert (features[channel] - sums * component).abs().max() < 1e-8


def test_the_bound_of_the_intensity_is_reached_by_one_source_only():
    one, two = plane_wave(40, 10), plane_wave(40, 10) + plane_wave(-140, -10, seed=1)
    lengths = FoaMel()(torch.stack([one, two]))[:, 4:].norm(dim=1)
    assert lengths[0].min() > 0.0412 and lengths.max() <= 0.0441 and lengths[1].mean() < 0.02


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-6, 1.0])
def test_values_and_gradients_are_finite_down_to_silence(scale):
    x = (noise(2, 4, 2000) * scale).float().requires_grad_()
    features = FoaMel()(x)
    features.square().sum().backward()
    assert features.isfinite().all() and x.grad.isfinite().all()
    if scale == 0.0:
        assert (features[:, :4] == -100).all() and not features[:, 4:].any()


def test_gradients_are_right():
    x = noise(1, 4, 70).requires_grad_()
    assert torch.autograd.gradcheck(FoaMel(SMALL), (x,), atol=1e-6)


def test_precision_does_not_follow_autocast_or_the_module():
    x = noise(3, 4, 2000, dtype=torch.float32)
    expected = FoaMel()(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = FoaMel()(x)
    assert inside.dtype == torch.float32 and torch.equal(inside, expected)
    assert torch.equal(FoaMel().half()(x), expected)
    assert FoaMel()(x.bfloat16()).dtype == torch.float32 and FoaMel()(x.double()).dtype == torch.float64
    assert (FoaMel()(x.double()) - expected).abs().max() < 1e-3
    assert not FoaMel().state_dict()
    assert torch.equal(FoaMel()(x[1:2])[0], expected[1])  # a clip does not depend on its batch


def test_used_in_inference_first_it_trains_afterwards():
    config = FoaMelConfig(mels=31)  # nobody else's: nothing is cached yet
    x = noise(1, 4, 2000, dtype=torch.float32)
    with torch.inference_mode():
        FoaMel(config)(x)
    FoaMel(config)(x.requires_grad_()).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("shape, problem", [
    ((2, 1, 2000), r"\(2, 1, 2000\).*mono"), ((2, 2, 2000), "4, samples"), ((4, 2000), "4, samples"),
    ((2, 2000, 4), "4, samples"), ((4,), "4, samples"), ((2, 4, 512), "at least 513")])
def test_wrong_shapes_are_refused(shape, problem):
    with pytest.raises(ValueError, match=problem):
        FoaMel()(torch.zeros(shape))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_by_clip(value):
    x = torch.zeros(5, 4, 2000)
    x[3, 2, 1234] = x[1, 0, 7] = value
    with pytest.raises(ValueError, match=r"not finite in clips \[1, 3\]"):
        FoaMel()(x)
    with pytest.raises(ValueError, match="int16"):
        FoaMel()(torch.zeros(1, 4, 2000, dtype=torch.int16))


@pytest.mark.parametrize("wrong", [{"fmax": 12001}, {"fmin": -1}, {"fmin": 12000}, {"mels": 0}, {"hop": 0}, {"n_fft": 0}])
def test_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FoaMelConfig(**wrong)


# ------------------------------------------------------------------------------------------------------------ windows

@pytest.mark.parametrize("padding", ["zero", "repeat"])
@pytest.mark.parametrize("length, samples, start", [
    (7, 7, 0), (9, 4, 0), (9, 4, 3), (9, 4, 7), (3, 10, 0), (3, 9, 0), (5, 12, 2), (1, 4, 0)])
def test_windows(padding, length, samples, start):
    clip = torch.arange(1, 1 + 2 * length, dtype=torch.float32).reshape(2, length)
    expected = []
    for channel in clip.tolist():
        piece = channel[start:][:samples]
        times = samples // len(piece) if padding == "repeat" else 1
        expected.append((piece * times + [0.0] * samples)[:samples] if times else piece)
    assert fit(clip, samples, start=start, padding=padding).tolist() == expected
    assert fit(clip[None], samples, start=start, padding=padding).shape == (1, 2, samples)
    assert fit(clip[0], samples, start=start, padding=padding).tolist() == expected[0]


def test_default_padding_keeps_the_order_of_events():
    a, b = torch.ones(4, 10), 2 * torch.ones(4, 10)
    clip = torch.cat([a, b], dim=1)
    assert not fit(clip, 50)[:, 20:].any()
    assert fit(clip, 50, padding="repeat")[0, [0, 10, 20, 30, 40]].tolist() == [1, 2, 1, 2, 0]


@pytest.mark.parametrize("arguments, problem", [
    ({"samples": 0}, "samples"), ({"samples": 5, "start": 8}, "start"), ({"samples": 5, "start": -1}, "start"),
    ({"samples": 5, "padding": "reflect"}, "reflect")])
def test_wrong_windows_are_refused(arguments, problem):
    with pytest.raises(ValueError, match=problem):
        fit(torch.zeros(4, 8), **arguments)
    with pytest.raises(ValueError, match="waveform of 0 samples"):
        fit(torch.zeros(4, 0), 5)


# -------------------------------------------------------------------------------------------------------------- turns

@pytest.mark.parametrize("azimuth, degrees", [(170.0, 20.0), (-170.0, -20.0), (0.0, 180.0), (135.0, 45.0), *zip(
    RNG.uniform(-180, 180, 12).tolist(), RNG.uniform(-400, 400, 12).tolist())])
def test_a_rotated_scene_equals_the_scene_made_there(azimuth, degrees):
    """Audio, intensity, label and word move together."""
    scene, turned = plane_wave(azimuth, 25.0), rotate_azimuth(azimuth, degrees)
    got = rotate(scene, degrees)
    assert -180 < turned <= 180 and (got - plane_wave(turned, 25.0)).abs().max() < 1e-8
    intensity = FoaMel()(got[None])[0, 4:].sum(dim=(1, 2))  # Y, Z, X
    heard = math.degrees(math.atan2(intensity[0], intensity[2]))
    assert abs((heard - turned + 180) % 360 - 180) < 1e-6
    assert direction_word(heard) == direction_word(turned) == direction_word(azimuth + degrees)


def test_a_turn_by_45_degrees_is_the_next_word():
    azimuths = RNG.uniform(-180, 180, 500)
    words = direction_word(azimuths)
    for k in range(-8, 9):
        expected = [DIRECTIONS[(DIRECTIONS.index(w) + k) % 8] for w in words]
        assert direction_word(rotate_azimuth(azimuths, 45.0 * k)).tolist() == expected


def test_rotation_of_features_turns_the_intensity():
    clip, degrees = noise(1, 4, 3000), 73.0
    before, after = FoaMel()(clip)[0], FoaMel()(rotate(clip, degrees))[0]
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    assert (after[4] - (s * before[6] + c * before[4])).abs().max() < 1e-8  # Y
    assert (after[6] - (c * before[6] - s * before[4])).abs().max() < 1e-8  # X
    assert (after[5] - before[5]).abs().max() < 1e-8 and torch.equal(after[[0, 2]], before[[0, 2]])


def test_rotations_add_up_and_may_differ_from_clip_to_clip():
    clips, degrees = noise(3, 2, 4, 50), torch.tensor([[0.0, 90.0], [-30.0, 1.0], [360.0, 77.7]])
    got = rotate(clips, degrees)
    for i, j in product(range(3), range(2)):
        assert (got[i, j] - rotate(clips[i, j], float(degrees[i, j]))).abs().max() < 1e-8
    assert (rotate(rotate(clips, 100.0), 33.0) - rotate(clips, 133.0)).abs().max() < 1e-8
    assert rotate(clips.float(), degrees).dtype == torch.float32
    with pytest.raises(ValueError, match="mono"):
        rotate(clips[:, :, :1], 5)


def test_azimuths_stay_in_their_range_and_keep_their_kind():
    assert rotate_azimuth(180, 0) == 180 and rotate_azimuth(-180.0, 0) == 180 and rotate_azimuth(90, 270) == 0
    for just_below in (-180 - 1e-14, np.nextafter(-180.0, -200), np.nextafter(180.0, 200)):
        assert -180 < rotate_azimuth(just_below, 0.0) <= 180
    angles = RNG.uniform(-900, 900, (4, 5))
    expected = rotate_azimuth(angles, 13.0)
    assert isinstance(rotate_azimuth(1.0, 2), float) and expected.shape == (4, 5)
    assert np.allclose(np.exp(1j * np.radians(expected)), np.exp(1j * np.radians(angles + 13.0)), rtol=0, atol=1e-8)
    assert np.array_equal(rotate_azimuth(angles.tolist(), 13.0), expected)
    tensor = rotate_azimuth(torch.from_numpy(angles), 13.0)
    assert isinstance(tensor, torch.Tensor) and np.array_equal(tensor.numpy(), expected)


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_symmetries_of_features_waveforms_and_angles_agree(symmetry):
    clips = noise(2, 4, 3000)
    features = FoaMel()(clips)
    expected = FoaMel()(turn_waveform(clips, *symmetry))
    assert (turn_features(features, *symmetry) - expected).abs().max() < 1e-8
    assert torch.equal(turn_features(features[0], *symmetry), turn_features(features, *symmetry)[0])
    azimuths, elevations = [35.0, -120.0], [-20.0, 65.0]
    turned = turn_angles(azimuths, elevations, *symmetry)
    for azimuth, elevation, there, height in zip(azimuths, elevations, *turned):
        moved = turn_waveform(plane_wave(azimuth, elevation), *symmetry)
        assert (moved - plane_wave(there, height)).abs().max() < 1e-8
        assert turn_angles(azimuth, elevation, *symmetry) == (there, height)


def test_the_sixteen_symmetries_are_sixteen_and_turns_are_rotations():
    clip = noise(4, 30)
    turned = [turn_waveform(clip, *symmetry) for symmetry in SYMMETRIES]
    assert all((a - b).abs().max() > 0.1 for i, a in enumerate(turned) for b in turned[:i])
    for quarters in range(4):
        assert (turn_waveform(clip, quarters, False, False) - rotate(clip, 90.0 * quarters)).abs().max() < 1e-8
    assert torch.equal(turn_waveform(turn_waveform(clip, 1, True, True), 1, True, True), clip)  # a reflection of order two
    assert torch.equal(turn_waveform(clip, 0, False, False), clip)


def test_wrong_turns_are_refused():
    for call in (lambda: turn_waveform(torch.zeros(4, 9), 4, False, False), lambda: turn_angles(0.0, 0.0, -1, False, False),
                 lambda: turn_features(torch.zeros(7, 3, 5), 1.5, False, False)):
        with pytest.raises(ValueError, match="quarter_turns"):
            call()
    with pytest.raises(ValueError, match=r"\(4, 3, 5\)"):
        turn_features(torch.zeros(4, 3, 5), 1, False, False)
    with pytest.raises(ValueError, match="mono"):
        turn_waveform(torch.zeros(1, 9), 1, False, False)
