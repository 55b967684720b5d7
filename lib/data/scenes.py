"""A scene: what sounds, when, how and from where, and its rendering to sound.

`sample_scene` draws a `Scene` from (seed, split, index) alone; `render_events` makes the dry signal of each event;
`propagate` takes one over a distance; `mix` lays them out in time with the background. A writer of another kind (first
order ambisonics, video) starts from the same `Scene` and the same dry signals. Azimuths follow lib.audio.directions.
"""
from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
import yaml

from lib.audio.signals import SAMPLE_RATE, colored_noise, convolved, filtered, to_samples
from lib.audio.synthesis import synthesize
from lib.data.manifest import SPLITS

CONFIG = Path(__file__).with_name("soundscapes.yaml")
LONGEST = 30.0  # seconds
SHORTEST = 3.0
_RENDER, _BACKGROUND = 1, 2  # streams of random numbers, so that more draws in one never move the others


@dataclass(frozen=True)
class Event:
    """One sound of a scene.

    onset, duration: seconds; pitch, rate: Hz and per second, timbre: 0 to 1 (see lib.audio.synthesis); loudness: dB around
    the common level; attributes: the words a listener may use (high, low, fast, slow, near, far); azimuth, elevation:
    degrees; distance: metres; cell: "label:pitch-rate-timbre" bin, what the splits hold apart.
    """

    label: str
    onset: float
    duration: float
    pitch: float
    rate: float
    timbre: float
    loudness: float
    azimuth: float
    elevation: float
    distance: float
    attributes: tuple[str, ...]
    cell: str


@dataclass(frozen=True)
class Scene:
    """Events in order of onset; `stages` holds their indices: stages follow one another, events of one stage overlap."""

    seed: int
    split: str
    index: int
    duration: float
    events: tuple[Event, ...]
    stages: tuple[tuple[int, ...], ...]
    background: str
    snr: float  # dB, see `mix`
    reverberation: float  # seconds until the diffuse sound has fallen by 60 dB

    @property
    def clip_id(self) -> str:
        return f"{self.split}-{self.index:06d}"

    def rng(self, *stream: int) -> np.random.Generator:
        """Generator of one stream of random numbers of this scene."""
        return np.random.default_rng([self.seed, SPLITS.index(self.split), self.index, *stream])

    def audible_key(self) -> str:
        """Equal for two scenes that no listener to one channel could tell apart by the annotation (directions are left out)."""
        return " > ".join(" + ".join(sorted(" ".join((self.events[i].label, *self.events[i].attributes)) for i in stage))
                          for stage in self.stages)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_dict(cls, values: dict) -> "Scene":
        """The scene of `json.loads(scene.to_json())`; further keys, such as the facts of captions, are ignored."""
        values = {k: values[k] for k in cls.__dataclass_fields__}
        events = tuple(Event(**{**e, "attributes": tuple(e["attributes"])}) for e in values["events"])
        return cls(**{**values, "events": events, "stages": tuple(tuple(s) for s in values["stages"])})


@lru_cache(maxsize=1)
def config() -> dict:
    """The committed `soundscapes.yaml`."""
    return yaml.safe_load(CONFIG.read_text(encoding="utf-8"))


def classes() -> list[str]:
    """Leaf classes in the order of the taxonomy."""
    return list(taxonomy())


def taxonomy() -> dict[str, list[str]]:
    """Leaf class -> [top level, middle level]."""
    tree = config()["taxonomy"]
    return {leaf: [top, middle] for top, groups in tree.items() for middle, leaves in groups.items() for leaf in leaves}


@lru_cache(maxsize=1)
def cells() -> dict[str, dict[str, tuple[tuple[int, int, int], ...]]]:
    """Cells of pitch x rate x timbre of every class and split: {label: {split: ((p, r, t), ...)}}, disjoint within a class."""
    rules = config()["cells"]
    bins = range(rules["bins"])
    table = {}
    for number, label in enumerate(classes()):
        rng = np.random.default_rng([rules["seed"], number])
        free, table[label] = list(product(bins, repeat=3)), {}
        for split, count in rules["held_out"].items():
            while True:  # draw until every third of every range occurs: a split without "high" could not test it
                chosen = sorted(free[i] for i in rng.permutation(len(free))[:count])
                if all({cell[axis] for cell in chosen} == set(bins) for axis in range(3)):
                    break
            table[label][split] = tuple(chosen)
            free = [cell for cell in free if cell not in chosen]
        table[label]["train"] = tuple(free)
        assert sum(len(c) for c in table[label].values()) == len(set().union(*table[label].values())) == len(bins) ** 3
    return table


def sample_scene(seed: int, split: str, index: int, duration: float) -> Scene:
    """Draw scene `index` of `split`; it depends on nothing else.

    Args:
        seed: of the data set, >= 0. split: train, val or test, which decides the cells. index: >= 0 within the split.
        duration: seconds, 3 to 30.
    """
    if not SHORTEST <= duration <= LONGEST:
        raise ValueError(f"clip_seconds must be from {SHORTEST:g} to {LONGEST:g} seconds, got {duration!r}")
    rules = config()["scene"]
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    count = int(rng.choice(list(rules["events"]), p=list(rules["events"].values())))
    labels = [classes()[i] for i in rng.choice(len(classes()), count, replace=False)]
    stages = [(i,) for i in range(count)]
    if count > 1 and rng.random() < rules["overlap"]:
        first = int(rng.integers(count - 1))
        stages[first:first + 2] = [(first, first + 1)]
    times = _times(rng, stages, duration, rules)
    events = tuple(_event(rng, label, split, onset, length) for label, (onset, length) in zip(labels, times))
    return Scene(seed, split, index, duration, events, tuple(stages), str(rng.choice(list(rules["background"]))),
                 float(rng.uniform(*rules["snr_db"])), float(rng.uniform(*rules["room"]["decay_seconds"])))


def _times(rng: np.random.Generator, stages: list[tuple[int, ...]], duration: float, rules: dict) -> list[tuple[float, float]]:
    """(onset, duration) of every event: the clip is shared out to the stages, events lie somewhere within theirs."""
    gaps = rng.uniform(*rules["gap_seconds"], len(stages) - 1)
    weights = 2.0 + rng.random(len(stages))
    shares = (duration - 2 * rules["margin_seconds"] - gaps.sum()) * weights / weights.sum()
    starts = rules["margin_seconds"] + np.concatenate([[0.0], np.cumsum(shares[:-1] + gaps)])
    times = []
    for stage, start, share in zip(stages, starts, shares):
        room = min(share, rules["event_seconds"])
        start += (share - room) * rng.random()  # of a long clip a stage uses only a part
        spans = []
        for _ in stage:
            length = room * rng.uniform(*rules["event_share"])
            spans.append((round(float(start + (room - length) * rng.random()), 4), round(float(length), 4)))
        times += sorted(spans)
    return times


def _event(rng: np.random.Generator, label: str, split: str, onset: float, duration: float) -> Event:
    rules, entry, bins = config()["scene"], config()["classes"][label], config()["cells"]["bins"]
    allowed = cells()[label][split]
    cell = allowed[rng.integers(len(allowed))]
    pitch, rate, timbre = (np.array(cell) + rng.random(3)) / bins
    zone = str(rng.choice(list(rules["distance"])))
    words = {"pitch": {0: "low", bins - 1: "high"}, "rate": {0: "slow", bins - 1: "fast"}}
    named = [words[axis][place] for axis, place in zip(words, cell) if axis in entry["names"] and place in words[axis]]
    (p0, p1), (r0, r1) = entry["pitch"], entry["rate"]
    return Event(label, onset, duration, float(p0 * (p1 / p0) ** pitch), float(r0 * (r1 / r0) ** rate), float(timbre),
                 loudness=float(rng.uniform(*rules["loudness_db"])), azimuth=float(rng.uniform(-180, 180)),
                 elevation=float(rng.uniform(*rules["elevation"])), distance=float(rng.uniform(*rules["distance"][zone])),
                 attributes=tuple(named + [zone] * (zone != "between")), cell=f"{label}:{'-'.join(map(str, cell))}")


def render_events(scene: Scene) -> list[np.ndarray]:
    """Dry signals of the events as heard 1 m away: float32 (round(event.duration * 48000),) each, peak at most 0.2.

    The loudest 50 ms lie at the common level plus the event's loudness, so distance is the only larger difference.
    """
    rules = config()["scene"]
    signals = []
    for number, event in enumerate(scene.events):
        rng = scene.rng(_RENDER, number)
        signal = synthesize(event.label, rng, event.duration, event.pitch, event.rate, event.timbre)
        gain = min(10 ** ((rules["level_dbfs"] + event.loudness) / 20), rules["peak"] / np.abs(signal).max())
        signals.append(signal * np.float32(gain))
    return signals


def propagate(scene: Scene, number: int, dry: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Take the dry signal of event `number` to the listener.

    Returns:
        direct (samples,): falls as 1 / distance and loses its treble to the air; diffuse (samples + tail,): the room's
        answer, whose energy is that of `dry` plus room.reverberant_db at any distance. An ambisonic writer gives a
        direction to the first only.
    """
    rng, room = scene.rng(_RENDER, number, 1), config()["scene"]["room"]
    distance = scene.events[number].distance
    cutoff = 24_000 / distance**0.6  # much stronger than real air, so that a listener hears it over 10 m
    direct = filtered(dry, lambda f: 1 / (1 + (f / cutoff) ** 2)) / distance
    tail = to_samples(scene.reverberation)
    answer = rng.standard_normal(tail, dtype=dry.dtype) * 10 ** (-3.0 * np.arange(tail, dtype=dry.dtype) / tail)
    diffuse = convolved(np.concatenate([dry, np.zeros(tail, dry.dtype)]), answer)
    # Its level is set afterwards: a steady tone may fall on a peak or into a hole of one random room.
    return direct, diffuse * np.sqrt(10 ** (room["reverberant_db"] / 10) * np.sum(dry**2) / np.sum(diffuse**2))


def active(scene: Scene) -> np.ndarray:
    """Mask (samples,) of the times at which at least one event sounds (reverberation is not counted)."""
    mask = np.zeros(to_samples(scene.duration), dtype=bool)
    for event in scene.events:
        mask[to_samples(event.onset):to_samples(event.onset + event.duration)] = True
    return mask


def mix(scene: Scene, dry: list[np.ndarray] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Lay the events out in time and make the background.

    The signal-to-noise ratio `scene.snr` is the mean power of all events together where one sounds (`active`), to the mean
    power of the background over the clip.

    Returns:
        events, background: float32 (samples,) each; their sum is the clip and stays within -1 to 1 by the levels chosen,
        with no normalisation that would undo near and far.
    """
    dry = render_events(scene) if dry is None else dry
    total = np.zeros(to_samples(scene.duration))
    for number, (event, signal) in enumerate(zip(scene.events, dry)):
        at = to_samples(event.onset)
        for part in propagate(scene, number, signal):
            end = min(len(total), at + len(part))
            total[at:end] += part[: end - at]
    noise = colored_noise(scene.rng(_BACKGROUND), len(total), config()["scene"]["background"][scene.background])
    noise *= np.sqrt(np.mean(total[active(scene)] ** 2) / 10 ** (scene.snr / 10) / np.mean(noise**2))
    if np.abs(total + noise).max() >= 1.0:
        raise RuntimeError(f"scene {scene.clip_id} of seed {scene.seed} would clip: lower level_dbfs or peak in {CONFIG.name}")
    return total.astype(np.float32), noise.astype(np.float32)


def render(scene: Scene) -> np.ndarray:
    """The clip at one microphone: float32 (samples,) at `SAMPLE_RATE`."""
    events, background = mix(scene)
    return events + background
