"""Single sounds for spatial clips: synthesised as in the soundscapes, or cut out of the recordings of any data set.

A source draws `Event`s, each of one split; the events of one draw share no class (or, without labels, no caption). `signal` makes
the samples of an event: one channel at 24 kHz, all at one loudness.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.signal import resample_poly

from lib.audio import signals
from lib.audio.synthesis import synthesize
from lib.data import scenes
from lib.data.manifest import SPLITS, Manifest
from lib.data.spatial_captions import clean

SAMPLE_RATE = 24_000
SHORTEST = 0.7  # part of the longest event that a synthesised one lasts at least
FADE = 0.01  # seconds at both ends of what is cut out of a recording
HOP = round(0.01 * SAMPLE_RATE)  # steps in which the most energetic window is sought
LEVEL_WINDOW = 5  # hops over which the level of an event is taken: the ear judges a stroke over about 50 ms
SILENT = 1e-4  # level below which nothing is heard, -80 dB; also channels that cancel each other


class TooFewEvents(ValueError):
    """A data set has no clips, or not enough different ones, to make triplets of; the message says what is missing."""


@dataclass(frozen=True)
class Event:
    """What sounds, for how many samples (at 24 kHz).

    name: of the recording, or "label:pitch-rate-timbre" cell of a synthesised event, what the splits hold apart; phrases: for
    captions; original: seconds of the whole recording; path, start: where it is cut out ("": synthesised of pitch, rate, timbre).
    """

    name: str
    labels: tuple[str, ...]
    phrases: tuple[str, ...]
    samples: int
    original: float
    path: str = ""
    start: float = 0.0
    pitch: float = 0.0
    rate: float = 0.0
    timbre: float = 0.0


class Synthesised:
    """Events of the soundscapes' classes, with pitch, rate and timbre from the cells of the split.

    Args:
        longest: seconds of an event at most.
    """

    splits, silent = SPLITS, ()

    def __init__(self, longest: float):
        self.longest = longest
        self.classes = scenes.classes()

    def draw(self, rng: np.random.Generator, split: str, count: int) -> tuple[Event, ...]:
        """`count` events of different classes."""
        return tuple(self._event(rng, self.classes[i], split) for i in rng.choice(len(self.classes), count, replace=False))

    def _event(self, rng: np.random.Generator, label: str, split: str) -> Event:
        entry, bins = scenes.config()["classes"][label], scenes.config()["cells"]["bins"]
        allowed = scenes.cells()[label][split]
        cell = allowed[rng.integers(len(allowed))]
        pitch, rate, timbre = (np.array(cell) + rng.random(3)) / bins
        (p0, p1), (r0, r1) = entry["pitch"], entry["rate"]
        samples = round(self.longest * rng.uniform(SHORTEST, 1.0) * SAMPLE_RATE)
        name, seconds = f"{label}:{'-'.join(map(str, cell))}", round(samples / SAMPLE_RATE, 6)
        return Event(name, (label,), tuple(entry["nouns"]), samples, seconds,
                     pitch=float(p0 * (p1 / p0) ** pitch), rate=float(r0 * (r1 / r0) ** rate), timbre=float(timbre))

    def unknown(self) -> list:
        return []


class Recorded:
    """Events cut out of the clips of a manifest: each clip is one, its most energetic window.

    Args:
        longest: seconds of an event at most.
        windows: clip_id -> [start in the file in seconds, level], as `window` finds them, of clips looked into before.

    Raises:
        ValueError: a split in which no two clips differ in their classes.
    """

    def __init__(self, manifest: Manifest, longest: float, windows: dict[str, list[float]]):
        self.manifest, self.longest, self.windows = manifest, longest, windows
        self.asked: dict[str, int] = {}
        self.phrases = [_phrases(manifest, i) for i in range(len(manifest))]
        self.wordless = sum(not phrases for phrases in self.phrases)
        table = manifest.table
        self.rows = {split: [i for i in np.flatnonzero(table["split"] == split).tolist() if self.phrases[i]] for split in SPLITS}
        self.splits = tuple(split for split in SPLITS if self.rows[split])
        self.kinds = [frozenset(labels or map(str.lower, texts)) for labels, texts in zip(table["labels"], table["captions"])]
        self._check()

    @property
    def silent(self) -> tuple[str, ...]:
        return tuple(clip for clip, (_, level) in self.windows.items() if level < SILENT)

    def draw(self, rng: np.random.Generator, split: str, count: int) -> tuple[Event, ...]:
        """`count` (1 or 2) events of clips that share no class; clips not looked into yet count as heard, see `unknown`."""
        rows = self.rows[split]
        while True:  # ends, see _check
            chosen = [rows[i] for i in rng.integers(len(rows), size=count)]
            if all(self._heard(i) for i in chosen) and (count == 1 or self.kinds[chosen[0]].isdisjoint(self.kinds[chosen[1]])):
                return tuple(map(self._event, chosen))

    def unknown(self) -> list[tuple[str, str, float, float, float]]:
        """Clips that were drawn before anyone looked into them, as `window` takes them: look, `learn` and draw again."""
        table = self.manifest.table
        return [(clip, str(self.manifest.file(i)), float(table["start"][i]), float(table["duration"][i]), self.longest)
                for clip, i in self.asked.items()]

    def learn(self, windows: Iterable[tuple[str, list[float]]]) -> None:
        self.windows.update(windows)
        self.asked.clear()
        self._check()

    def _heard(self, i: int) -> bool:
        clip = self.manifest.table["clip_id"].iat[i]
        if clip not in self.windows:
            self.asked[clip] = i
            return True
        return self.windows[clip][1] >= SILENT

    def _event(self, i: int) -> Event:
        table = self.manifest.table
        start = self.windows.get(table["clip_id"].iat[i], (0.0,))[0]
        samples = round(min(self.longest, float(table["duration"].iat[i])) * SAMPLE_RATE)
        return Event(table["path"].iat[i], tuple(table["labels"].iat[i]), tuple(self.phrases[i]), samples,
                     round(float(table["duration"].iat[i]), 6), str(self.manifest.file(i)), start)

    def _check(self) -> None:
        if not self.splits:
            raise TooFewEvents(f"no clip of {self.manifest.name!r} in {self.manifest.root} has a caption or a label")
        silent = set(self.silent)
        for split in self.splits:
            kinds = {self.kinds[i] for i in self.rows[split] if self.manifest.table["clip_id"].iat[i] not in silent}
            if not any(one.isdisjoint(other) for one, other in combinations(kinds, 2)):
                raise TooFewEvents(f"split {split!r} of {self.manifest.name!r} in {self.manifest.root} has {len(self.rows[split])} "
                                 "clips, but no two that can be heard and share no class (without labels: no caption); a triplet "
                                 "needs two, so give more data")


def windows(batch: list[tuple[str, str, float, float, float]]) -> list[tuple[str, list[float]]]:
    """`window` of each."""
    return [window(clip) for clip in batch]


def window(clip: tuple[str, str, float, float, float]) -> tuple[str, list[float]]:
    """Look into a clip for its event.

    Args:
        clip: (clip_id, path, start, duration, longest): where the clip lies in its file, and the longest event, in seconds.

    Returns:
        (clip_id, [start of the most energetic window in the file in seconds, its level as `loudest` takes it]).
    """
    name, path, start, duration, longest = clip
    sound = _read(path, start, duration)
    energy = np.add.reduceat(sound.astype(np.float64)**2, np.arange(0, max(1, len(sound)), HOP)) if len(sound) else np.zeros(1)
    hops = max(1, round(longest * SAMPLE_RATE / HOP))
    total = np.concatenate([[0.0], np.cumsum(energy)])
    at = int(np.argmax(total[hops:] - total[:-hops])) if len(energy) > hops else 0
    at = min(at * HOP, max(0, len(sound) - round(longest * SAMPLE_RATE)))
    level = loudest(sound[at:at + hops * HOP]) if len(sound) else 0.0
    return name, [round(start + at / SAMPLE_RATE, 6), float(f"{level:.6g}")]


def signal(event: Event, rng: np.random.Generator) -> np.ndarray:
    """Samples (event.samples,) float32 at 24 kHz: the loudest 50 ms at soundscapes.yaml's level_dbfs, peak at most its `peak`.

    rng: the irregularities of a synthesised event.
    """
    rules = scenes.config()["scene"]
    if event.path:
        sound = np.zeros(event.samples, dtype=np.float32)
        heard = _read(event.path, event.start, event.samples / SAMPLE_RATE)[:event.samples]
        fade = min(round(FADE * SAMPLE_RATE), len(heard) // 2)
        ramp = np.linspace(0.0, 1.0, fade, endpoint=False, dtype=np.float32)
        heard[:fade] *= ramp
        heard[len(heard) - fade:] *= ramp[::-1]
        sound[:len(heard)] = heard
    else:
        dry = synthesize(event.labels[0], rng, event.samples / SAMPLE_RATE, event.pitch, event.rate, event.timbre)
        sound = resample_poly(dry, 1, signals.SAMPLE_RATE // SAMPLE_RATE)[:event.samples]
    gain = min(10 ** (rules["level_dbfs"] / 20) / max(loudest(sound), SILENT), rules["peak"] / max(np.abs(sound).max(), SILENT))
    return sound * np.float32(gain)


def loudest(sound: np.ndarray) -> float:
    """Root mean square of the loudest 50 ms of (samples,) at 24 kHz."""
    power = np.add.reduceat(np.square(sound, dtype=np.float64), np.arange(0, len(sound), HOP))
    return float(np.sqrt(np.convolve(power, np.ones(min(LEVEL_WINDOW, len(power)))).max() / (LEVEL_WINDOW * HOP)))


def _read(path: str, start: float, duration: float) -> np.ndarray:
    from lib.media import audio  # here, because reading loads torch, which synthesis does without

    sound = audio.read(path, sample_rate=SAMPLE_RATE, start=start, duration=duration)[0].numpy()
    return sound - sound.mean() if len(sound) else sound


def _phrases(manifest: Manifest, i: int) -> list[str]:
    """What may stand for a clip in a caption: its class's phrase, otherwise its own captions, otherwise its labels in words."""
    labels, captions = manifest.table["labels"].iat[i], manifest.table["captions"].iat[i]
    known = manifest.info.get("phrases", {})
    if len(labels) == 1 and labels[0] in known:
        return [known[labels[0]], f"the sound of {known[labels[0]]}"]
    return clean(captions) or clean([" and ".join(label.replace("_", " ") for label in labels)])
