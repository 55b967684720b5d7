"""A scene in space: first-order ambisonics (lib.audio.ambisonics) in the open, or in a shoebox room.

Events, dry signals, onsets and annotation are those of lib.data.scenes. The onset of an event is when its direct sound
arrives, so the way through the air only delays reflections. The background is diffuse: independent noise in the four
channels. The direct sound of an event has the level and the treble of the rendering to one channel in both spaces.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.signal import oaconvolve

from lib.audio.ambisonics import DIFFUSE_POWER, encode, harmonics, unit_vector
from lib.audio.signals import SAMPLE_RATE, colored_noise, to_samples
from lib.data.scenes import CONFIG, Event, Scene, active, config, propagate, render_events

ROOMS = ("anechoic", "shoebox")
SPEED = 343.0  # of sound, m/s
MARGIN = np.array([(1.5, 4.0), (1.5, 4.0), (1.2, 2.5)])  # metres from the outermost of listener and events to a wall: x, y, z
LARGEST_ORDER = 40  # of reflections; what more would add is less than 0.1 % of a response's energy
_BACKGROUND, _ROOM = 11, 12  # streams of random numbers, see Scene.rng


@dataclass(frozen=True)
class Room:
    """size: (x, y, z) in metres; listener: position in it, metres from the corner 0, 0, 0; reverberation: seconds until the sound
    has fallen by 60 dB; absorption: the share of the energy that every wall takes, at all frequencies."""

    size: np.ndarray
    listener: np.ndarray
    reverberation: float
    absorption: float


def draw_room(scene: Scene) -> Room:
    """The room of a scene: around the listener and all its events, of the reverberation that the scene states."""
    rng = scene.rng(_ROOM)
    places = np.stack([np.zeros(3)] + [e.distance * unit_vector(e.azimuth, e.elevation) for e in scene.events])
    below, above = rng.uniform(*MARGIN.T, (2, 3))
    listener = below - places.min(0)
    size = listener + places.max(0) + above
    return Room(size, listener, scene.reverberation, absorption(size, scene.reverberation))


def absorption(size: np.ndarray, reverberation: float) -> float:
    """Share of the energy, 0 to 1, that the walls of a box (`size`: metres) take so that it falls by 60 dB in that many seconds.

    Image sources lie evenly in space and have passed as many walls as the straight line to them crosses copies of the room:
    along a long axis few. Averaging over directions gives their decay; Eyring's formula assumes that every path meets all
    walls equally often, and its time would be 1.1 to 2.3 times too short in these rooms.
    """
    grid = (np.arange(32) + 0.5) / 32
    directions = unit_vector(90 * grid[:, None], np.degrees(np.arcsin(grid)))  # evenly over an eighth of the sphere
    walls = np.tensordot(1 / np.asarray(size), directions, 1)  # crossed in a metre

    def excess(loss):  # of energy after the path on which each wall a metre takes `loss` nepers, over one millionth
        return np.mean(np.exp(-loss * walls) / walls) / np.mean(1 / walls) - 1e-6

    return 1 - math.exp(-brentq(excess, 0, 30 / walls.min()) / (SPEED * reverberation))


def response(room: Room, event: Event, sample_rate: int = SAMPLE_RATE, longest: float = math.inf) -> np.ndarray:
    """Impulse response (4, samples) from an event to the listener; sample 0 is the direct sound, with the gains of its direction.

    Every image source is a plane wave from its own direction, exact in level. Its delay is rounded to a sample, as if it lay
    at most 3.6 mm elsewhere (at 48 kHz).

    Args:
        event: anything with an azimuth, elevation (degrees) and distance (metres). sample_rate: Hz.
        longest: seconds after which the response is cut off, where the room's reverberation lasts longer.
    """
    import pyroomacoustics  # here: it takes most of a second, and only rooms need it

    seconds = min(room.reverberation, longest)
    shoebox = pyroomacoustics.ShoeBox(room.size, fs=sample_rate, materials=pyroomacoustics.Material(room.absorption),
                                      max_order=_order(room, seconds))
    shoebox.add_source(room.listener + event.distance * unit_vector(event.azimuth, event.elevation))
    shoebox.add_microphone(room.listener)
    shoebox.image_source_model()
    source = shoebox.sources[0]
    path = source.images - room.listener[:, None]
    distance = np.sqrt((path**2).sum(0))
    delay = np.rint((distance - event.distance) * (sample_rate / SPEED)).astype(np.int64)
    near = delay < round(seconds * sample_rate)  # what comes later lies 60 dB below
    level = source.damping[0, near] * (event.distance / distance[near])
    gains = level * harmonics(path[:, near] / distance[near])
    return np.stack([np.bincount(delay[near], weights=channel) for channel in gains])


def mix_foa(scene: Scene, room: str, dry: list[np.ndarray] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Events and background of `render_foa` apart: float32 (4, samples) each.

    `scene.snr` holds on channel W as it does for the one channel of lib.data.scenes.mix.
    """
    if room not in ROOMS:
        raise ValueError(f"room must be one of {', '.join(ROOMS)}, got {room!r}")
    dry = render_events(scene) if dry is None else dry
    space = draw_room(scene) if room == "shoebox" else None
    total = np.zeros((4, to_samples(scene.duration)))
    for number, (event, signal) in enumerate(zip(scene.events, dry)):
        direct = propagate(scene, number, signal)[0]  # the other part is a room's answer without directions
        if space is None:
            heard = encode(direct, event.azimuth, event.elevation)
        else:
            heard = oaconvolve(direct[None].astype(np.float64), response(space, event), axes=-1)
        at = to_samples(event.onset)
        end = min(total.shape[1], at + heard.shape[1])
        total[:, at:end] += heard[:, : end - at]
    exponent = config()["scene"]["background"][scene.background]
    noise = np.stack([colored_noise(scene.rng(_BACKGROUND, channel), total.shape[1], exponent) for channel in range(4)])
    noise *= np.sqrt(DIFFUSE_POWER * np.mean(total[0, active(scene)] ** 2) / 10 ** (scene.snr / 10))[:, None]
    if np.abs(total + noise).max() >= 1.0:
        raise RuntimeError(f"scene {scene.clip_id} of seed {scene.seed} would clip ({room}): "
                           f"lower level_dbfs or peak in {CONFIG.name}")
    return total.astype(np.float32), noise.astype(np.float32)


def render_foa(scene: Scene, room: str) -> np.ndarray:
    """The clip in four channels: float32 (4, samples) at 48 kHz, ACN order W, Y, Z, X, SN3D, within -1 to 1.

    Args:
        room: "anechoic": direct sound and background only; "shoebox": with the reflections of the room of `draw_room`.

    Raises:
        ValueError: another room. RuntimeError: the scene would clip.
    """
    events, background = mix_foa(scene, room)
    return events + background


def _order(room: Room, seconds: float) -> int:
    """Reflections needed for all image sources within so many seconds: orders fill a diamond, times a sphere."""
    nearest = 1 / np.sqrt(np.sum(1 / room.size**2))  # distance from the centre to a face of the diamond of order 1
    return min(LARGEST_ORDER, math.ceil(seconds * SPEED / nearest))
