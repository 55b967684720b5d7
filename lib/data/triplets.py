"""Triplets of two-event clips in space, and clips of one event, rendered from a data set of single sounds.

A triplet is a positive, its temporal negative (same places, the other order) and its spatial negative (same order, places
swapped). Which of the four variants of two events at two places is the positive is drawn, so no clip tells its role by itself.
The files lie in <data folder>/triplets/<digest of code, settings and source>, in the layout that lib.data.stclotho reads; a
rendering that was killed goes on where it stopped, and a file that was damaged since is rendered again.
"""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from lib import files
from lib.audio import ambisonics, signals, synthesis
from lib.data import event_sources, health, rendering, scene_space, scenes, spatial_captions, stclotho, triplet_rendering
from lib.data.event_sources import SAMPLE_RATE, Recorded, Synthesised
from lib.data.manifest import SPLITS, Manifest
from lib.data.scene_space import Room
from lib.data.triplet_rendering import RESPONSE, Place, Take
from lib.settings import data_dir

TOTAL = 2_000  # triplets when num_samples is None
SHARES = {"train": 0.6, "val": 0.08, "test": 0.32}
LEAD, GAP, TAIL = 0.02, 0.03, {"anechoic": 0.02, "shoebox": RESPONSE}  # seconds of silence at least, before, between and after
LONGEST_GAP = 0.3
LONGEST = 30.0  # seconds of a clip
JITTER = 22.49  # degrees around the middle of a sector, a hair inside its borders
DISTANCE = (1.0, 4.0)  # metres
SIZE = np.array([(4.0, 20.0), (4.0, 20.0), (3.0, 10.0)])  # metres, of a room
MARGIN = 0.5  # metres at least from listener and events to a wall
REVERBERATION = (0.15, 0.5)  # seconds in which a room's sound falls by 60 dB
PLACES = 3  # at which a single event is rendered
BATCH = 16  # takes a worker renders before it reports
_TRIPLET, _EVENT, _SINGLE = 21, 22, 23  # streams of random numbers


def prepare(data_root: str | Path | None = None, *, seed: int = 0, num_samples: int | None = None, workers: int = 0,
            source: str = "soundscapes", space: str = "anechoic", event_seconds: float = 1.2, clip_seconds: float = 2.5,
            single_clips: int | None = None, source_options: dict | None = None) -> Manifest:
    """Render the triplets that are not there yet and return their manifest.

    Args:
        data_root: folder of the data set of single sounds; None as `lib.data.prepare` takes it. Of no use to soundscapes.
        seed: of the triplets. Triplet i of a split is the same whatever num_samples, single_clips and workers are.
        num_samples: triplets over all splits (at least one a split); None: `TOTAL`. `SHARES` gives each split's part.
        workers: processes that render; 0: this one.
        source: "soundscapes" (events are synthesised; no files are needed) or any data set that lib.data.prepare knows.
        space: "anechoic", or "shoebox": a room of its own for every triplet.
        event_seconds: longest event, at least 0.1. A room's events are shortened where its answer would not fit in the clip.
        clip_seconds: of all clips, at most `LONGEST`; two events with `LEAD`, `GAP` and `TAIL` must fit.
        single_clips: clips of one event over all splits (0: none); None: as many as triplets. Each event is rendered at up to
            three places in different sectors.
        source_options: what the source's own `prepare` takes, such as {"test_fold": 3} of esc50.

    Returns:
        Manifest of 24 kHz four-channel clips, as lib.data.stclotho reads it: the members of a triplet are three consecutive rows
        (role "positive", "temporal", "spatial"); single clips follow (role "single"). info["left_out"] counts the source's clips
        that were not used, by reason.

    Raises:
        ValueError: an argument out of range; a split of the source in which no two clips differ in class.
    """
    if space not in TAIL:
        raise ValueError(f"space must be one of {', '.join(TAIL)}, got {space!r}")
    longest = _longest(event_seconds, clip_seconds, space)
    total = TOTAL if num_samples is None else num_samples
    singles = total if single_clips is None else single_clips
    if total < 1 or singles < 0:
        raise ValueError(f"num_samples must be at least 1 and single_clips at least 0, got {total} and {singles}")
    if source == "soundscapes" and source_options:
        raise ValueError(f"source_options: soundscapes have none here, their events are synthesised; got {source_options}")
    sounds = None if source == "soundscapes" else _sounds(source, data_root, seed, workers, source_options or {})
    folder = data_dir() / "triplets" / digest(seed, total, singles, source, space, event_seconds, clip_seconds, sounds)
    bank = Synthesised(longest) if sounds is None else Recorded(sounds, longest, files.read_json(folder / "events.json") or {})
    wanted = [(draw, split, count) for draw, number in ((sample_triplet, total), (sample_single, singles))
              for split, count in split_counts(number, bank.splits).items()]
    takes = _takes(bank, folder, workers, wanted, dict(seed=seed, space=space, clip_seconds=clip_seconds))
    clips = [(take, _targets(take, folder, source, space)) for take in takes]
    _render_missing(clips, folder, workers)
    verdicts = health.inspect([str(file) for _, targets in clips for file, _, _ in targets], workers)
    for file, description in ((file, description) for _, targets in clips for file, description, _ in targets):
        if verdicts[str(file)].reason or verdicts[str(file)].duration < health.TRUNCATED * clip_seconds:
            file.unlink(missing_ok=True)
            description.unlink(missing_ok=True)
    _render_missing(clips, folder, workers)
    manifest = stclotho.read(folder, workers=workers, name="triplets")
    of = sounds.info.get("title", source) if sounds else "synthesised sounds"
    info = manifest.info | {"title": f"Triplets of {of}, {space}",
                            "source": source, "space": space, "seed": seed, "clip_seconds": clip_seconds, "digest": folder.name}
    if sounds is None:
        info |= {"taxonomy": scenes.taxonomy(), "phrases": {c: scenes.config()["classes"][c]["phrase"] for c in scenes.classes()}}
    else:
        info |= {key: sounds.info[key] for key in ("taxonomy", "phrases", "templates") if key in sounds.info}
        unused = {"silent": len(bank.silent), "without a caption or a label": bank.wordless}
        info["left_out"] = manifest.info["left_out"] | {reason: count for reason, count in unused.items() if count}
    return replace(manifest, info=info)


def split_counts(total: int, splits: tuple[str, ...] = SPLITS) -> dict[str, int]:
    """How many of `total` go to each of these splits: `SHARES`, at least one each (the train split first)."""
    whole = sum(SHARES[split] for split in splits)
    counts = {split: max(1, round(total * SHARES[split] / whole)) for split in splits[1:]}
    while sum(counts.values()) > max(0, total - 1):
        largest = max(counts, key=counts.get)
        counts[largest] -= 1
    return {splits[0]: total - sum(counts.values()), **counts}


def digest(seed: int, total: int, singles: int, source: str, space: str, event_seconds: float, clip_seconds: float,
           sounds: Manifest | None) -> str:
    """16 hex digits that change with anything the files depend on: code, ranges, arguments, and the table of the source."""
    code = [__file__, scenes.CONFIG, *(module.__file__ for module in (
        ambisonics, event_sources, scene_space, scenes, signals, spatial_captions, synthesis, triplet_rendering))]
    values = [seed, total, singles, source, space, float(event_seconds), float(clip_seconds), sounds and sounds.fingerprint]
    return files.digest(json.dumps(values), *(Path(file).read_bytes() for file in code))


def sample_triplet(bank: Synthesised | Recorded, split: str, index: int, *, seed: int, space: str, clip_seconds: float) -> Take:
    """Draw triplet `index` of a split of a source of events; it depends on nothing else."""
    rng = _rng(seed, split, index, _TRIPLET)
    events = bank.draw(rng, split, 2)
    return _take(rng, seed, split, index, space, clip_seconds, events, _places(rng, 2), positive=int(rng.integers(4)))


def sample_single(bank: Synthesised | Recorded, split: str, index: int, *, seed: int, space: str, clip_seconds: float) -> Take:
    """Draw single clip `index` of a split: `PLACES` in a row are one event at places in different sectors."""
    number, place = divmod(index, PLACES)
    rng = _rng(seed, split, number, _EVENT)
    events = bank.draw(rng, split, 1)
    where = _places(rng, PLACES)[place]
    rng = _rng(seed, split, number, _SINGLE, place)
    return _take(rng, seed, split, number, space, clip_seconds, events, (where,), place=place)


def _rng(seed: int, split: str, index: int, *stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, SPLITS.index(split), index, *stream])


def _places(rng: np.random.Generator, count: int) -> tuple[Place, ...]:
    """Places in different sectors, uniform within."""
    azimuths = rng.choice(8, count, replace=False) * 45 + rng.uniform(-JITTER, JITTER, count)
    elevations, distances = rng.uniform(*scenes.config()["scene"]["elevation"], count), rng.uniform(*DISTANCE, count)
    return tuple(Place(*(round(float(value), 4) for value in place))
                 for place in zip((azimuths + 180) % 360 - 180, elevations, distances))


def _take(rng: np.random.Generator, seed: int, split: str, index: int, space: str, clip_seconds: float, events: tuple,
          places: tuple, **role) -> Take:
    samples = round(clip_seconds * SAMPLE_RATE)
    spare = clip_seconds - LEAD - GAP * (len(events) - 1) - TAIL[space] - sum(event.samples for event in events) / SAMPLE_RATE
    more = min(LONGEST_GAP, spare) * rng.random() if len(events) == 2 else 0.0
    lead = LEAD + (spare - more) * rng.random()
    rules = scenes.config()["scene"]
    return Take(seed, split, index, events, places, int(lead * SAMPLE_RATE), int((GAP + more) * SAMPLE_RATE), samples,
                str(rng.choice(list(rules["background"]))), round(float(rng.uniform(*rules["snr_db"])), 3),
                _room(rng, places) if space == "shoebox" else None, **role)


def _room(rng: np.random.Generator, places: tuple[Place, ...]) -> Room:
    """A room around the listener and the places, which stay `MARGIN` from its walls."""
    points = np.stack([np.zeros(3)] + [p.distance * ambisonics.unit_vector(p.azimuth, p.elevation) for p in places])
    smallest = np.ptp(points, axis=0) + 2 * MARGIN
    size = rng.uniform(np.maximum(SIZE[:, 0], smallest), SIZE[:, 1])
    listener = MARGIN - points.min(0) + rng.random(3) * (size - smallest)
    reverberation = float(rng.uniform(*REVERBERATION))
    return Room(size, listener, reverberation, scene_space.absorption(size, reverberation))


def _longest(event_seconds: float, clip_seconds: float, space: str) -> float:
    """Seconds that the longest event may last."""
    if not 0 < clip_seconds <= LONGEST:
        raise ValueError(f"clip_seconds must be at most {LONGEST:g} s, got {clip_seconds!r}")
    fits = (clip_seconds - LEAD - GAP - TAIL["anechoic"]) / 2
    if not 0.1 <= event_seconds <= fits:
        raise ValueError(f"event_seconds must be from 0.1 to {fits:.4g} s, so that two events and the silence around them fit "
                         f"into clip_seconds = {clip_seconds:g}, got {event_seconds!r}; shorten the events or lengthen the clip")
    longest = min(event_seconds, (clip_seconds - LEAD - GAP - TAIL[space]) / 2)
    if longest < 0.1:
        raise ValueError(f"clip_seconds = {clip_seconds:g} leaves two events and a room's answer of {TAIL[space]} s no time; "
                         "lengthen the clip")
    return longest


def _sounds(source: str, data_root: str | Path | None, seed: int, workers: int, options: dict) -> Manifest:
    from lib import data  # not above: a process that renders need not know the data sets
    known = [name for name in data.DATASETS if name not in ("triplets", "stclotho")]
    if not set(source.split("+")) <= set(known):
        raise ValueError(f"source: {source!r} is no data set of single sounds; known: {', '.join(known)}")
    return data.prepare(source, data_root=data_root, seed=seed, workers=workers, **options)


def _takes(bank: Synthesised | Recorded, folder: Path, workers: int, wanted: list, settings: dict) -> list[Take]:
    """Draw them all; where clips were drawn that nobody looked into yet, do so and draw again, now knowing which are silent."""
    while True:
        takes = [draw(bank, split, index, **settings) for draw, split, count in wanted for index in range(count)]
        unknown = bank.unknown()
        if not unknown:
            return takes
        batches = [unknown[i:i + 4 * BATCH] for i in range(0, len(unknown), 4 * BATCH)]
        for found in rendering.run(event_sources.windows, batches, workers, f"looking for events ({4 * BATCH} clips a step)"):
            bank.learn(found)
            files.write_json(folder / "events.json", bank.windows)


def _targets(take: Take, folder: Path, source: str, space: str) -> list[tuple[Path, Path, str]]:
    """(audio file, JSON file, text of the JSON) of each clip of a take."""
    worded = spatial_captions.wordings(take.seed, take.split, take.index, [event.phrases for event in take.events])
    room = take.room and {"size": take.room.size.tolist(), "listener": take.room.listener.tolist(),
                          "absorption": take.room.absorption}
    facts = {"seed": take.seed, "index": take.index, "source": source, "space": space, "background": take.background,
             "snr": take.snr, "room": room}

    def event(number: int, at: Place) -> dict:
        alone = [replace(w, phrases=(w.phrases[number],), connector="") for w in worded]
        one = take.events[number]
        return {"ori_audiofile": one.name, "caption": spatial_captions.semantic_captions(alone),
                "azi": at.azimuth, "ele": at.elevation, "r": at.distance,
                "room": room, "rt60": take.room and take.room.reverberation,
                "spatialized_caption": spatial_captions.spatial_captions(alone, [at.azimuth]),
                "direction": spatial_captions.direction_sentence(at.azimuth),
                "ori_audio_duration": one.original, "labels": list(one.labels)}

    targets = []
    for role, variant in zip(stclotho.ROLES if len(take.events) == 2 else ("single",), take.variants()):
        timeline = [(number, take.places[place], {"onset": round(first / SAMPLE_RATE, 6),
                                                  "duration": round(take.events[number].samples / SAMPLE_RATE, 6)})
                    for number, place, first in take.order(variant)]
        info = {"generation_info": facts | {"role": role, "variant": variant}}
        if role == "single":
            (number, at, when), = timeline
            paths = stclotho.single_paths(folder, take.split, f"{take.index:06d}", take.place)
            document = event(number, at) | when | info
        else:
            azimuths = {number: at.azimuth for number, at, _ in timeline}
            order = [number for number, _, _ in timeline]
            document = {"audio_segments": [{"filename": take.events[number].name, **when, "metadata": event(number, at)}
                                           for number, at, when in timeline],
                        "num_segments": 2,
                        "temporal_spatial_caption": spatial_captions.spatial_captions(worded, [azimuths[0], azimuths[1]], order),
                        "semantic_caption": spatial_captions.semantic_captions(worded, order), **info}
            paths = stclotho.member_paths(folder, take.split, role, take.index)
        targets.append((*paths, json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"))
    return targets


def _render_missing(clips: list, folder: Path, workers: int) -> None:
    """Render the takes of which a clip or its description is missing; files appear whole, see triplet_rendering.write."""
    def whole(file: Path, description: Path, text: str) -> bool:
        return file.is_file() and description.is_file() and description.read_bytes() == text.encode()

    def missing() -> list:
        return [(take, targets) for take, targets in clips if not all(whole(*target) for target in targets)]

    if not missing():  # nothing is written, so the folder may be read-only
        return
    with files.alone(folder / ".lock", f"the rendering to {folder}"):
        for part in folder.rglob("*.part"):  # of a rendering that was killed, as nobody else holds the lock
            part.unlink(missing_ok=True)
        for parent in {file.parent for _, targets in clips for file, _, _ in targets}:
            parent.mkdir(parents=True, exist_ok=True)
        left = missing()
        batches = [left[i:i + BATCH] for i in range(0, len(left), BATCH)]
        label = f"rendering triplets and single clips ({BATCH} a step)"
        for _ in rendering.run(triplet_rendering.write, batches, workers, label):
            pass
