"""Clips of one or two events in space: first-order ambisonics at 24 kHz, in the open or in a shoebox room, written as FLAC.

A `Take` is everything that the clips of one triplet (or one single clip) share: events, places, times, room and background. Its
variants are numbered 2 * order + places: order 0 plays event 0 first, 1 the other way round; with places 0 event 0 is at place 0,
with places 1 at place 1. An event at a place sounds the same, sample for sample, in all variants.
"""
from __future__ import annotations

import io
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq

from lib.audio.ambisonics import DIFFUSE_POWER, encode
from lib.data import scene_space, scenes
from lib.data.event_sources import SAMPLE_RATE, Event, signal
from lib.data.manifest import SPLITS
from lib.data.scene_space import Room

DISTANCE_LAW = 0.5  # levels fall as 1 / distance ** 0.5: an event 4 m away is 6 dB below one at 1 m
RESPONSE = 0.25  # seconds that are kept of a room's response
FADE = 0.05  # its last part, faded out
HEADROOM = 0.98
_SOUND, _NOISE = 31, 32  # streams of random numbers, see Take.rng


@dataclass(frozen=True)
class Place:
    """Where an event is, seen from the listener: degrees (azimuths as in lib.audio.directions) and metres."""

    azimuth: float
    elevation: float
    distance: float


@dataclass(frozen=True)
class Take:
    """index: of the triplet, or of the single event whose clip this is; events and places: two each, or one; lead, gap: samples
    before the first event and between the two; samples: of the clip; background, snr: colour, dB; room: None in the open."""

    seed: int
    split: str
    index: int
    events: tuple[Event, ...]
    places: tuple[Place, ...]
    lead: int
    gap: int
    samples: int
    background: str
    snr: float
    room: Room | None
    positive: int = 0  # variant
    place: int = 0  # of a single clip: which of its event's

    def rng(self, *stream: int) -> np.random.Generator:
        """Generator of one stream of random numbers of this take."""
        return np.random.default_rng([self.seed, SPLITS.index(self.split), self.index, len(self.events), *stream])

    def variants(self) -> tuple[int, ...]:
        """Variants of the positive, the temporal negative and the spatial negative; of a single event: 0 alone."""
        return (self.positive, self.positive ^ 2, self.positive ^ 1) if len(self.events) == 2 else (0,)

    def order(self, variant: int) -> list[tuple[int, int, int]]:
        """The events of a variant in order of time: (event, place, first sample)."""
        at, timeline = self.lead, []
        for number in range(len(self.events))[::-1 if variant & 2 else 1]:
            timeline.append((number, number ^ (variant & 1), at))
            at += self.events[number].samples + self.gap
        return timeline


def render(take: Take) -> list[np.ndarray]:
    """The clips of `take.variants()`: float32 (4, samples) each, ACN order W, Y, Z, X, SN3D, within -1 to 1."""
    dry = [signal(event, take.rng(_SOUND, number)) for number, event in enumerate(take.events)]
    gains = [np.float32(place.distance ** -DISTANCE_LAW) for place in take.places]
    responses = _responses(take)
    heard = {(e, p): gains[p] * sound for e, one in enumerate(dry) for p, sound in enumerate(_at_places(take, one, responses))}
    # One level for all variants: that of the direct sounds, each taken at all places.
    power = sum(np.sum(one**2) for one in dry) * np.mean(np.square(gains)) / sum(map(len, dry)) / 10 ** (take.snr / 10)
    level = np.sqrt(DIFFUSE_POWER * power, dtype=np.float32)[:, None]
    highest = sum(max(np.abs(heard[e, p]).max() for p in range(len(gains))) for e in range(len(dry))) + 6 * level.max()
    scale = np.float32(min(1.0, HEADROOM / highest))  # also the same for all variants; in the open always 1
    clips = []
    for variant in take.variants():
        clip = level * _noise(take.rng(_NOISE, variant), take.samples, scenes.config()["scene"]["background"][take.background])
        for event, place, at in take.order(variant):
            sound = heard[event, place]
            clip[:, at:at + sound.shape[1]] += sound
        clips.append(np.clip(clip * scale, -1.0, 1.0))
    return clips


def write(batch: list[tuple[Take, list[tuple[Path, Path, str]]]]) -> None:
    """Render takes and write the (audio file, JSON file, text of the JSON) of each clip, every file whole or not at all."""
    for take, targets in batch:
        for clip, (path, description, text) in zip(render(take), targets):
            memory = io.BytesIO()  # to a file, the library would wait for the disk each time
            # Rounded to 16 bits here, so that the file does not depend on how the library rounds. Noise can hardly be compressed:
            # level 0 takes half the time.
            soundfile.write(memory, np.round(clip.T * 32767).astype(np.int16), SAMPLE_RATE, format="FLAC", subtype="PCM_16",
                            compression_level=0.0)
            for file, content in ((path, memory.getvalue()), (description, text.encode())):  # the last one tells
                part = file.with_name(f"{file.name}.{os.getpid()}.part")
                part.write_bytes(content)
                os.replace(part, file)


def _at_places(take: Take, dry: np.ndarray, responses: list[np.ndarray]) -> list[np.ndarray]:
    """The event at each place of the take: (4, samples and the room's answer), the direct sound at the level of `dry`."""
    if take.room is None:
        return [encode(dry, place.azimuth, place.elevation) for place in take.places]
    size = next_fast_len(len(dry) + max(response.shape[1] for response in responses), real=True)
    spectrum = rfft(dry, size)
    return [irfft(spectrum * rfft(response, size), size)[:, :len(dry) + response.shape[1]] for response in responses]


def _responses(take: Take) -> list[np.ndarray]:
    """Responses (4, samples) float32 of the take's places, faded out where they are cut off; none in the open."""
    responses = []
    fade = np.linspace(1.0, 0.0, round(FADE * SAMPLE_RATE))
    for place in take.places if take.room else ():
        response = scene_space.response(take.room, place, SAMPLE_RATE, RESPONSE)
        begin = round(RESPONSE * SAMPLE_RATE) - len(fade)
        if response.shape[1] > begin:
            response[:, begin:] *= fade[:response.shape[1] - begin]
        responses.append(response.astype(np.float32))
    return responses


def _noise(rng: np.random.Generator, samples: int, exponent: float) -> np.ndarray:
    """Independent noise (4, samples) of unit power, which falls as 1 / frequency ** exponent."""
    shape = _shape(samples, exponent)
    size = 2 * (len(shape) - 1)
    return irfft(rng.standard_normal((4, 2 * len(shape)), dtype=np.float32).view(np.complex64) * shape, size)[:, :samples]


@lru_cache(maxsize=8)
def _shape(samples: int, exponent: float) -> np.ndarray:
    size = next_fast_len(samples, real=True)
    size += size % 2
    f = rfftfreq(size, 1 / SAMPLE_RATE)
    shape = np.where(f < 30, 0.0, np.maximum(f, 30) ** (-exponent / 2))
    return (shape * size / np.sqrt(4 * np.sum(shape**2))).astype(np.float32)  # each half of the spectrum, two parts of power 1
