"""Folders of the stClotho kind: four-channel clips of one or two events from known directions, each with a JSON.

A triplet is three clips of the same two events: the positive; the temporal negative, with the order reversed; the spatial
negative, with other places. What this workbook renders is laid out as `member_paths` and `single_paths` say. The published
folders (public code Cell778/T-SALM_v4, scripts/combine_clotho_random.py: stClotho/{audio,metadata}/train/temporal_000000,
stClotho_negative/{audio,metadata}/train/{temporal,spatial}/...) are read alike: a file is known by its name and by the
nearest folder above it that is called after a split. Audio is 24 kHz in ACN order W, Y, Z, X, SN3D; azimuths follow
lib.audio.directions.
"""
from __future__ import annotations

import math
import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from lib.data import health
from lib.data.folder import SPLIT_NAMES
from lib.data.manifest import SPLITS, Manifest, sample
from lib.data.stclotho_json import VOCABULARIES, Refused, describe
from lib.media import audio
from lib.progress import track

STEMS = {"positive": "temporal", "temporal": "temporal_negative", "spatial": "spatial_negative"}
ROLES = tuple(STEMS)  # the order of a triplet's rows
FOLDERS = {"train": "train", "val": "valid", "test": "test"}
SAMPLE_RATE, CHANNELS = 24_000, 4
WINDOW = 10.0  # seconds that a model hears
TAILS = 1.0  # seconds that two rooms may add to the length of two clips: measured responses of 0.3 s each are published
LISTED = 100  # refused clips that are named in info["refused"]; the counts hold all of them
_MEMBER = re.compile(rf"({'|'.join(STEMS.values())})_(\d+)")


def member_paths(root: str | Path, split: str, role: str, index: int) -> tuple[Path, Path]:
    """Where our layout keeps a member of triplet `index` of a split: (audio, JSON); neither need be there.

    split: train, val or test (the folder of val is called valid, as in the published set).  role: one of `ROLES`.
    """
    stem = f"{STEMS[role]}_{index:06d}"
    folder = Path(root) / FOLDERS[split] / "triplets"
    return folder / f"{stem}.flac", folder / f"{stem}.json"


def single_paths(root: str | Path, split: str, name: str, place: int) -> tuple[Path, Path]:
    """Where our layout keeps clip `name` by itself, rendered at its place 0, 1 or 2: (audio, JSON)."""
    folder = Path(root) / FOLDERS[split] / "single"
    return folder / f"{name}_{place}.flac", folder / f"{name}_{place}.json"


def prepare(data_root: Path | None, *, seed: int = 0, num_samples: int | None = None, workers: int = 0,
            metadata: str = "metadata", vocabulary: str = "south") -> Manifest:
    """The manifest of a folder of triplets, of single clips, or of both; arguments and result as for `read`."""
    if data_root is None:
        raise ValueError('data_root: dataset "stclotho" needs the folder that holds the clips (of the published set: the one '
                         "that holds both stClotho and stClotho_negative); set data_root")
    return read(data_root, seed=seed, num_samples=num_samples, workers=workers, metadata=metadata, vocabulary=vocabulary)


def read(folder: str | Path, *, splits: Iterable[str] | None = None, seed: int = 0, num_samples: int | None = None,
         workers: int = 0, metadata: str = "metadata", vocabulary: str = "south", name: str = "stclotho") -> Manifest:
    """Read every triplet and single clip below `folder`. Groups with any fault are left out whole, and reported.

    Args:
        splits: of train, val, test; None: all that are there.
        seed: chooses the groups when `num_samples` is given.
        num_samples: at most this many triplets, shared over the splits, and the same share of the single clips (of a folder
            without triplets: at most this many single clips); None: all.
        workers: processes that decode; 0: one.
        metadata: names of folders, separated by commas: of several JSON files of one clip the one beside its audio counts,
            otherwise the one in the first of these folders that holds any.
        vocabulary: what the captions call azimuth 0. "south": the rule of lib.audio.directions. "east": the other rule in
            use, whose words are exchanged for ours. Clips whose captions speak the one that was not asked for are refused.
        name: of the manifest.

    Returns:
        Manifest, a triplet in three consecutive rows (positive, temporal, spatial), single clips at the end. captions are
        the five spatial(-temporal) ones. Beyond the common columns: role ("positive", "temporal", "spatial", "single"); group
        (of a triplet "train-000012", of a single clip its own id); semantic_captions (five plain texts); azimuth, elevation
        (degrees) and onset (seconds; nan where it is not known, which `Manifest.row` and a saved manifest give as None):
        lists of one or two, in temporal order. info has "left_out" {reason: groups}, "refused" [{"clip_id", "group",
        "reason"}] (the first 100), "triplets" and "singles" {split: count}, "direction_words" {what the captions call azimuth
        0: clips}, "boundary_beyond_window" and "boundary_unknown" (clips of two events whose second one starts beyond 10 s,
        or at a time that is not known).

    Raises:
        FileNotFoundError: no such folder.  ValueError: an argument, or nothing that can be used (with the first reasons).
    """
    if vocabulary not in VOCABULARIES:
        raise ValueError(f"vocabulary must be one of {', '.join(VOCABULARIES)}, got {vocabulary!r}")
    splits = list(SPLITS if splits is None else splits)
    if unknown := [s for s in splits if s not in SPLITS]:
        raise ValueError(f"unknown split {unknown[0]!r}; the splits are {', '.join(SPLITS)}")
    root = Path(folder).expanduser().absolute()
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; give the one that holds the clips of {name!r}")
    report = _Report()
    found = {group: clips for group, clips in _groups(root, metadata, report).items() if clips[0].split in splits}
    whole = {group: clips for group, clips in found.items() if not report.refuse_first(clips, lambda clip: clip.check())}
    chosen = _choose(whole, num_samples, seed)
    rows = []
    for group in track(chosen, len(chosen), "reading descriptions"):
        described: list[dict] = []
        if not report.refuse_first(whole[group], lambda clip: described.append(_row(clip, root, vocabulary, report.words))) \
                and not report.refuse_first(whole[group][:1], lambda clip: _check_triplet(clip, described)):
            rows += described
    report.stop_if_empty(rows, root)
    table = pd.DataFrame(rows).assign(start=0.0, duration=0.0)
    candidates = Manifest(table.drop(columns=["sources", "lengths"]), name, root, {"title": root.name})
    checked = health.check(health.measure(candidates, workers), workers)
    bad = _bad_audio(candidates, checked, report)
    kept = checked.select(rows=[group not in bad for group in checked.table["group"]])
    report.stop_if_empty(kept.table, root)
    lengths = dict(zip(table["clip_id"], table["lengths"]))
    onsets = [_onsets(onset, lengths[clip], duration)
              for onset, clip, duration in zip(kept.table["onset"], kept.table["clip_id"], kept.table["duration"])]
    second = [onset[1] for onset in onsets if len(onset) == 2]
    report.warn(root)
    roles = kept.table[["split", "role"]].value_counts()
    info = kept.info | {
        "classes": sorted({label for labels in kept.table["labels"] for label in labels}), "sample_rate": SAMPLE_RATE,
        "channels": CHANNELS, "channel_order": "ACN W, Y, Z, X, SN3D", "left_out": dict(report.left_out),
        "refused": report.refused, "direction_words": dict(report.words),
        "boundary_beyond_window": sum(o > WINDOW for o in second),
        "boundary_unknown": sum(map(math.isnan, second)),
        **{key: {s: int(roles[s, role]) for s in SPLITS if (s, role) in roles}
           for key, role in (("triplets", "positive"), ("singles", "single"))}}
    return replace(kept, table=kept.table.assign(onset=pd.Series(onsets, dtype=object)), info=info)


@dataclass
class _Report:
    """What was left out, and what the captions called azimuth 0."""

    left_out: Counter = field(default_factory=Counter)
    refused: list[dict] = field(default_factory=list)
    words: Counter = field(default_factory=Counter)
    groups: set[str] = field(default_factory=set)

    def refuse(self, clip_id: str, group: str, kind: str, reason: str) -> None:
        """Count a group once, however many of its clips are bad, and name all of them."""
        if group not in self.groups:
            self.left_out[f"{'single clips' if clip_id == group else 'triplets'}: {kind}"] += 1
        self.groups.add(group)
        if len(self.refused) < LISTED:
            self.refused.append({"clip_id": clip_id, "group": group, "reason": reason})

    def refuse_first(self, clips: list["_Clip"], look) -> bool:
        """Whether `look` refused one of the clips of a group (all are looked at, so that all faults are named)."""
        before = len(self.groups)
        for clip in clips:
            try:
                look(clip)
            except Refused as error:
                self.refuse(clip.clip_id, clip.group, error.kind, str(error))
        return len(self.groups) > before

    def stop_if_empty(self, rows, root: Path) -> None:
        if not len(rows):
            first = "; ".join(entry["reason"] for entry in self.refused[:3])
            counts = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())
            why = f" ({counts}). First reasons: {first}" if first else (
                "; its files should be called temporal_000000.flac and so on, below folders called train, valid and test")
            raise ValueError(f"{root}: no triplet and no single clip can be used{why}")

    def warn(self, root: Path) -> None:
        if self.left_out:
            warnings.warn(f"{root}: left out " + ", ".join(f"{count} {reason}" for reason, count in self.left_out.items()) +
                          (f". The first: {self.refused[0]['reason']}" if self.refused else ""), stacklevel=3)


@dataclass(frozen=True)
class _Clip:
    """A clip as the listing knows it: candidates for its audio and for its JSON, relative to the root."""

    clip_id: str
    group: str
    split: str
    role: str
    audio: list[str]
    description: list[str]

    def check(self) -> None:
        """There must be one file of each kind."""
        for files, what in ((self.audio, "audio file"), (self.description, "JSON")):
            if not files:
                other = (self.audio + self.description + ["nothing"])[0]
                raise Refused("a file is missing", f"{self.clip_id}: has no {what} (found: {other}); render or copy it again. "
                              "Negatives in a folder of their own: give the folder above as data_root")
            if len(files) > 1:
                raise Refused("several files of one name", f"{self.clip_id}: expected one {what}, found {', '.join(files[:3])}; "
                              "give the folder of one data set as data_root" +
                              (", or name the right folder by metadata" if what == "JSON" else ""))


def _groups(root: Path, metadata: str, report: _Report) -> dict[str, list[_Clip]]:
    """Every triplet (three clips, whatever of their files is there) and single clip below `root`, in the order of the rows."""
    files: dict[tuple[str, str], tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # links may lead to one place twice, or in a circle
            folders.clear()
            continue
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        seen.add(real)
        parts = Path(folder).relative_to(root).parts
        split = next((SPLIT_NAMES[part.lower()] for part in reversed(parts) if part.lower() in SPLIT_NAMES), None)
        for file in sorted(names):
            stem, suffix = os.path.splitext(file)
            kind = 1 if suffix.lower() == ".json" else 0 if suffix.lower() in audio.SUFFIXES else None
            if kind is None or file.startswith("."):
                continue
            path = "/".join((*parts, file))
            if any("\ud800" <= letter <= "\udfff" for letter in path):  # how Python spells bytes that are no UTF-8
                report.left_out["files: names not in UTF-8"] += 1
            elif split:
                files[split, stem][kind].append(path)
            elif kind == 0:
                report.left_out["audio files: below no folder called train, valid or test"] += 1
    triplets: dict[tuple[int, int], dict[str, _Clip]] = defaultdict(dict)
    singles = {}
    for (split, stem), (sounds, descriptions) in sorted(files.items()):
        beside = _one_of(sounds, descriptions, metadata.split(","))
        if member := _MEMBER.fullmatch(stem):
            key, role = (SPLITS.index(split), int(member[2])), ROLES[list(STEMS.values()).index(member[1])]
            before = triplets[key].get(role)  # temporal_12 and temporal_000012 are the same member
            group = _group_id(*key)
            triplets[key][role] = _Clip(f"{group}-{role}", group, split, role, (before.audio if before else []) + sounds,
                                        (before.description if before else []) + beside)
        else:
            singles[f"{split}-{stem}"] = _Clip(f"{split}-{stem}", f"{split}-{stem}", split, "single", sounds, beside)
    groups = {}
    for key, members in sorted(triplets.items()):
        group = _group_id(*key)
        groups[group] = [members.get(role) or _Clip(f"{group}-{role}", group, SPLITS[key[0]], role, [], []) for role in ROLES]
    return groups | {clip_id: [clip] for clip_id, clip in sorted(singles.items(), key=lambda item: SPLITS.index(item[1].split))}


def _group_id(split: int, number: int) -> str:
    return f"{SPLITS[split]}-{number:06d}"


def _one_of(sounds: list[str], descriptions: list[str], preferred: list[str]) -> list[str]:
    """Of several JSON files of one name the one beside the audio, otherwise the one in the first preferred folder; or all."""
    folders = {os.path.dirname(sound) for sound in sounds}
    choices = [[d for d in descriptions if os.path.dirname(d) in folders]]
    choices += [[d for d in descriptions if folder.strip() in d.split("/")[:-1]] for folder in preferred]
    return next(filter(None, choices), descriptions)


def _choose(groups: dict[str, list[_Clip]], num_samples: int | None, seed: int) -> list[str]:
    """Ids of the groups that are kept, in their order: see num_samples of `read`."""
    def drawn(size: int, count: int | None) -> list[str]:
        ids = [group for group, clips in groups.items() if len(clips) == size]
        table = pd.DataFrame({"clip_id": ids, "path": "any", "start": 0.0, "duration": 0.0, "captions": [[] for _ in ids],
                              "labels": [[] for _ in ids], "split": [groups[group][0].split for group in ids]})
        return sample(Manifest(table, "groups", "."), count, seed).table["clip_id"].tolist()
    if num_samples is None:
        return list(groups)
    triplets = sum(len(clips) == 3 for clips in groups.values())
    singles = len(groups) - triplets
    share = min(1.0, num_samples / triplets) if triplets else None
    return drawn(3, num_samples) + drawn(1, num_samples if share is None else max(1, round(singles * share)))


def _row(clip: _Clip, root: Path, vocabulary: str, words: Counter) -> dict:
    own = {"clip_id": clip.clip_id, "path": clip.audio[0], "split": clip.split, "role": clip.role, "group": clip.group}
    return own | describe(root / clip.description[0], clip.role == "single", vocabulary, words)


def _check_triplet(clip: _Clip, rows: list[dict]) -> None:
    """Files of one number can stem from two renderings: the members must be the same events, at places that suit their roles."""
    if clip.role == "single":
        return
    events = [list(zip(row["sources"], row["azimuth"], row["elevation"])) for row in rows]
    if events[1] != events[0][::-1]:
        problem = f"the temporal negative must be the positive's events in reverse, {events[0][::-1]}, got {events[1]}"
    elif rows[2]["sources"] != rows[0]["sources"] or events[2] == events[0]:
        problem = f"the spatial negative must be the positive's events, {events[0]}, at other places, got {events[2]}"
    else:
        return
    raise Refused("its members do not belong together", f"{clip.group} ({rows[0]['path']}): {problem}; do not mix two renderings")


def _bad_audio(candidates: Manifest, checked: Manifest, report: _Report) -> set[str]:
    """Groups with a clip that the health check left out, or with another number of channels or another rate."""
    passed = set(checked.table["clip_id"])
    files = {clip: str(candidates.file(i)) for i, clip in enumerate(candidates.table["clip_id"])}
    verdicts = health.inspect(file for clip, file in files.items() if clip not in passed)
    bad = set()
    for clip, group in track(zip(files, candidates.table["group"]), len(files), "reading channels and rates"):
        file, kind = files[clip], None
        if clip not in passed:
            kind = verdicts[file].reason or "too short"
            reason = f"{health.REASONS[kind]}; render or copy it again"
        elif (facts := audio.probe(file)).channels != CHANNELS or facts.sample_rate != SAMPLE_RATE:
            kind = "wrong sample rate" if facts.channels == CHANNELS else "wrong number of channels"
            reason = (f"expected {CHANNELS} channels (W, Y, Z, X) at {SAMPLE_RATE} Hz, got {facts.channels} at "
                      f"{facts.sample_rate} Hz; render it as first-order ambisonics, or resample it")
        if kind:
            bad.add(group)
            report.refuse(clip, group, kind, f"{file}: {kind}: {reason}")
    return bad


def _onsets(stated: list[float], lengths: list[float], duration: float) -> list[float]:
    """Seconds at which the events start: as stated; otherwise 0 and, for two clips one after the other, where the first one ends.

    What the file is longer than both, up to a second, is the rooms' decay and is taken as half from each.
    """
    if len(stated) == 1 or not math.isnan(stated[1]):
        return [0.0 if math.isnan(stated[0]) else stated[0], *stated[1:]]
    rest = duration - sum(lengths)
    return [0.0 if math.isnan(stated[0]) else stated[0], lengths[0] + max(rest, 0.0) / 2 if -0.05 <= rest <= TAILS else math.nan]
