"""Scenes in space: the direction that is measured is the annotated one, and a room does what rooms do."""
from dataclasses import replace

import numpy as np
import pyroomacoustics
import pytest

from lib.audio.ambisonics import direction, encode, harmonics, intensity, unit_vector
from lib.audio.signals import SAMPLE_RATE, to_samples
from lib.data import scene_space
from lib.data.scene_space import SPEED, draw_room, mix_foa, render_foa, response
from lib.data.scenes import active, propagate, render, render_events, sample_scene


def many(count, split="val", seconds=5.0):
    return [sample_scene(0, split, i, seconds) for i in range(count)]


def angle(vectors, event):
    """Degrees between the direction of intensities and the annotated one."""
    found, true = unit_vector(*direction(vectors)), unit_vector(event.azimuth, event.elevation)
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(found, true)), found @ true))


def alone(scene, number):
    """Mask of the samples in which an event sounds and no other does."""
    mask = np.zeros((len(scene.events), to_samples(scene.duration)), bool)
    for row, event in zip(mask, scene.events):
        row[to_samples(event.onset):to_samples(event.onset + event.duration)] = True
    return mask[number] & (mask.sum(0) == 1)


# ----------------------------------------------------------------------------------------------------------- anechoic

def test_direct_sound_is_a_plane_wave_from_the_annotated_place():
    for scene in many(12):
        dry = render_events(scene)
        events, _ = mix_foa(scene, "anechoic", dry)
        expected = np.zeros((4, to_samples(scene.duration)))
        for number, event in enumerate(scene.events):
            span = to_samples(event.onset) + np.arange(len(dry[number]))
            expected[:, span] += encode(propagate(scene, number, dry[number])[0], event.azimuth, event.elevation)
            inside = alone(scene, number)
            if inside.any() and np.abs(events[0, inside]).max() > 1e-3:
                assert angle(intensity(events[:, inside].astype(float)), event) < 0.01
        assert np.abs(events - expected).max() < 1e-7 and not events[:, : to_samples(scene.events[0].onset)].any()


def test_measured_direction_with_the_background():
    """Within 1 degree wherever an event is at least as loud as the background, and else as near as theory lets it be.

    The intensity across the true direction is the product of W with independent noise of a third of the background's power;
    its deviation, from the two spectra, over the event's energy is the angle to expect on each of two axes.
    """
    errors, expected, louder = [], [], []
    for scene in many(40, "test"):
        events, background = (part.astype(float) for part in mix_foa(scene, "anechoic"))
        for number, event in enumerate(scene.events):
            inside = alone(scene, number)
            if inside.sum() < 0.1 * SAMPLE_RATE:
                continue
            sound, noise = (np.abs(np.fft.rfft(part[0, inside])) ** 2 for part in (events, background))
            if sound.sum() < 0.1 * noise.sum():
                continue
            errors.append(angle(intensity((events + background)[:, inside]), event))
            expected.append(np.degrees(np.sqrt(((sound + noise) * noise).sum() / 6) / sound.sum()))
            louder.append(sound.sum() >= noise.sum())
    errors, expected = np.array(errors), np.array(expected)
    assert len(errors) > 60 and errors[louder].max() < 1 and np.median(errors) < 0.05
    assert (errors / expected).max() < 5 and 0.7 < np.mean((errors / expected) ** 2) / 2 < 1.3


@pytest.mark.parametrize("room", scene_space.ROOMS)
def test_background_is_diffuse_and_as_loud_as_stated(room):
    for scene in many(4):
        events, background = (part.astype(float) for part in mix_foa(scene, room))
        power = (background**2).mean(1)
        ratio = np.mean(events[0, active(scene)] ** 2) / power[0]
        assert 10 * np.log10(ratio) == pytest.approx(scene.snr, abs=0.01)
        assert np.allclose(power[1:] / power[0], 1 / 3, rtol=1e-3)
        assert np.abs(np.corrcoef(np.diff(background, axis=1)) - np.eye(4)).max() < 0.05  # diff: brown noise has few freedoms


@pytest.mark.parametrize("room", scene_space.ROOMS)
def test_rendering_depends_on_the_scene_alone(room):
    first, second = many(2)
    clip, mono = render_foa(first, room), render(first)
    assert clip.shape == (4, to_samples(5.0)) and clip.dtype == np.float32 and np.abs(clip).max() < 0.9
    render_foa(second, room)
    assert np.array_equal(render_foa(first, room), clip) and np.array_equal(render(first), mono)
    assert not np.array_equal(render_foa(replace(first, index=1), room), clip)
    assert not np.array_equal(render_foa(first, "anechoic"), render_foa(first, "shoebox"))


def test_unknown_room_is_refused():
    with pytest.raises(ValueError, match="anechoic, shoebox"):
        render_foa(many(1)[0], "cathedral")


# ------------------------------------------------------------------------------------------------------------ shoebox

def test_room_holds_the_listener_and_every_event():
    sizes = set()
    for scene in many(60):
        room = draw_room(scene)
        for event in scene.events:
            place = room.listener + event.distance * unit_vector(event.azimuth, event.elevation)
            for point in (room.listener, place):
                assert (point > 1.19).all() and (point < room.size - 1.19).all()
        assert 0.1 < room.absorption < 0.95 and room.reverberation == scene.reverberation
        sizes.add(tuple(room.size))
    assert len(sizes) == 60


def test_response_begins_with_the_direct_sound_and_each_wall_answers(monkeypatch):
    """Up to first order, written out: six walls, each mirrors the event."""
    monkeypatch.setattr(scene_space, "LARGEST_ORDER", 1)
    for scene in many(10):
        room, event = draw_room(scene), scene.events[0]
        place = room.listener + event.distance * unit_vector(event.azimuth, event.elevation)
        found, expected = response(room, event), np.zeros((4, to_samples(room.reverberation)))
        expected[:, 0] = harmonics(unit_vector(event.azimuth, event.elevation))
        assert np.abs(found[:, 0] - expected[:, 0]).max() < 1e-5, "sample 0 is the direct sound, whatever the distance"
        taps = [0]
        for axis in range(3):
            for wall in (0.0, room.size[axis]):
                image = place.copy()
                image[axis] = 2 * wall - image[axis]
                path = image - room.listener
                length = np.linalg.norm(path)
                taps.append(round((length - event.distance) / SPEED * SAMPLE_RATE))
                expected[:, taps[-1]] += np.sqrt(1 - room.absorption) * event.distance / length * harmonics(path / length)
        where = np.flatnonzero(found[0])
        assert len(where) <= len(taps) and all(np.abs(np.array(taps) - k).min() <= 1 for k in where)
        assert all(np.abs(where - k).min() <= 1 for k in taps)
        for k in taps:  # a rounding error may move a reflection to the next sample, with all that it brings
            around = slice(max(0, k - 1), k + 2)
            assert np.allclose(found[:, around].sum(1), expected[:, around].sum(1), atol=1e-4)


def test_channel_w_equals_the_room_simulator_of_the_library():
    """pyroomacoustics' own response with fractional delays, compared below 2 kHz, where 4 mm are nothing."""
    for scene in many(3):
        room, event = draw_room(scene), scene.events[0]
        ours = response(room, event)[0]
        shoebox = pyroomacoustics.ShoeBox(room.size, fs=SAMPLE_RATE, max_order=40,
                                          materials=pyroomacoustics.Material(room.absorption))
        shoebox.add_source(room.listener + event.distance * unit_vector(event.azimuth, event.elevation))
        shoebox.add_microphone(room.listener)
        shoebox.compute_rir()
        theirs = shoebox.rir[0][0]
        delay = pyroomacoustics.constants.get("frac_delay_length") // 2 / SAMPLE_RATE + event.distance / SPEED
        frequency = np.fft.rfftfreq(2**16, 1 / SAMPLE_RATE)
        low = (frequency > 100) & (frequency < 2000)  # the library also takes out what lies below 10 Hz
        a = np.fft.rfft(ours, 2**16)[low]
        b = (np.fft.rfft(theirs, 2**16) * np.exp(2j * np.pi * frequency * delay))[low]
        likeness = np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
        assert likeness.real > 0.98 and abs(likeness.imag) < 0.05


def test_reverberation_is_the_stated_one_and_plausible_beside_eyring():
    for scene in many(25):
        room = draw_room(scene)
        tail = response(room, scene.events[0])[0].copy()
        tail[0] = 0  # without the direct sound
        decay = 10 * np.log10(np.cumsum((tail**2)[::-1])[::-1] / np.sum(tail**2))
        begin, end = np.argmax(decay < -5), np.argmax(decay < -25)
        measured = -60 / np.polyfit(np.arange(begin, end) / SAMPLE_RATE, decay[begin:end], 1)[0]
        volume, (x, y, z) = np.prod(room.size), room.size
        eyring = 0.161 * volume / (-2 * (x * y + y * z + z * x) * np.log(1 - room.absorption))
        assert measured == pytest.approx(scene.reverberation, rel=0.25)
        assert 0.4 < eyring / measured < 1.1


def test_late_sound_comes_from_everywhere():
    powers = []
    for scene in many(20):
        late = response(draw_room(scene), scene.events[0])[:, to_samples(0.03):]
        powers.append((late**2).sum(1) / (late[0] ** 2).sum())
    assert np.allclose(np.mean(powers, 0), [1, 1 / 3, 1 / 3, 1 / 3], atol=0.12)


def test_direct_sound_falls_with_distance_and_the_room_stays():
    """Relative to the direct sound, twice the distance makes the late energy four times as large.

    Late means 0.1 s after the sound left, wherever the event is: a response begins when the direct sound arrives.
    """
    scene = next(s for s in many(50) if s.events[0].distance > 8)
    room, event = draw_room(scene), scene.events[0]
    late = [np.sum(response(room, replace(event, distance=d))[0, to_samples(0.1 - d / SPEED):] ** 2)
            for d in (event.distance / 2, event.distance)]
    assert late[1] / late[0] == pytest.approx(4, rel=0.4)
    dry = render_events(scene)[0]
    level = [np.sum(propagate(replace(scene, events=(replace(event, distance=d),)), 0, dry)[0] ** 2) for d in (1.0, 2.0)]
    assert 10 * np.log10(level[0] / level[1]) == pytest.approx(6.02, abs=1.5)  # and the air's loss of treble


def test_first_milliseconds_come_from_the_annotated_place_at_the_annotated_time():
    for scene in many(30):
        event = scene.events[0]
        heard = response(draw_room(replace(scene, events=(event,))), event)[0]
        at, first_reflection = to_samples(event.onset), np.flatnonzero(heard)[1]
        events, _ = mix_foa(replace(scene, events=(event,)), "shoebox")  # another may begin in the same milliseconds
        window = events[:, at:at + first_reflection].astype(float)
        assert np.abs(events[:, :at]).max() < 1e-6, "nothing sounds before the onset"
        if np.abs(window).max() > 1e-6:
            assert angle(intensity(window), event) < 2
