"""What the JSON of a spatial clip says (see lib.data.stclotho), checked field by field.

A single clip: caption [5], azi, ele (degrees), spatialized_caption [5], and optionally ori_audiofile, ori_audio_duration (s),
labels. A clip of two events: audio_segments [{"metadata": a single clip's} x 2] in temporal order, temporal_spatial_caption
[5], and optionally num_segments 2, semantic_caption [5], and onset and duration (s) of each segment. Other keys are ignored.
"""
from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path

from lib.audio.directions import DIRECTIONS, direction_word

CAPTIONS = 5
VOCABULARIES = {"south": 0.0, "east": 90.0}  # what captions call azimuth 0, and the turn after which our rule gives that word
_WORD = re.compile(r"\b(?:(north|south)[\s-]?(east|west)|(north|south|east|west))(?=(?:ern|erly|wards?)?\b)", re.IGNORECASE)


class Refused(ValueError):
    """A clip that cannot be used: `kind` is what is counted; the message names the file, what was expected and what to do."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def describe(file: Path, single: bool, vocabulary: str, words: Counter) -> dict:
    """What belongs into the row of a clip.

    Args:
        file: the JSON.  single: whether it is of one event.  vocabulary: one of `VOCABULARIES`.
        words: counts what the captions call azimuth 0; added to.

    Returns:
        captions, semantic_captions: five texts each, in the words of lib.audio.directions; labels (empty if not known of all
        events); and lists with an entry an event: azimuth, elevation (degrees), onset, lengths (seconds, nan where not stated),
        sources (names).

    Raises:
        Refused: the file cannot be read, or breaks a rule.
    """
    facts = _load(file)
    if single:
        events = segments = [facts]
        if "audio_segments" in facts:
            raise Refused("several events in a single clip", f"{file}: describes several events, so it should be a member of a "
                          "triplet, called temporal, temporal_negative or spatial_negative and a number; rename or remove it")
    else:
        segments = facts.get("audio_segments")
        if not isinstance(segments, list) or len(segments) != 2 or facts.get("num_segments", 2) != 2:
            got = len(segments) if isinstance(segments, list) else "none"
            raise Refused("not two events", f"{file}: expected audio_segments with two entries and num_segments 2, got {got} and "
                          f"{facts.get('num_segments')}; write it again")
        events = [segment.get("metadata") if isinstance(segment, dict) else None for segment in segments]
        if not all(isinstance(event, dict) for event in events):
            raise Refused("not two events", f"{file}: expected metadata (azi, ele, caption ...) in both of audio_segments; write "
                          "it again")
    azimuth = [_angle(event, "azi", 180.0, file) for event in events]
    elevation = [_angle(event, "ele", 90.0, file) for event in events]
    spatial = _texts(facts, "spatialized_caption" if single else "temporal_spatial_caption", file)
    if single or "semantic_caption" in facts:
        semantic = _texts(facts, "caption" if single else "semantic_caption", file)
    else:
        semantic = [f"{first.strip().rstrip('.!?')}, then {second.strip().rstrip('.!?')}."
                    for first, second in zip(*(_texts(event, "caption", file) for event in events))]
    onset = [_seconds(segment.get("onset")) for segment in segments]
    if onset[-1] < onset[0]:
        raise Refused("events not in temporal order", f"{file}: expected audio_segments in the order of their onset, got {onset}"
                      "; swap them")
    labels = [[event["labels"]] if isinstance(event.get("labels"), str) else event.get("labels") or [] for event in events]
    return {"captions": _in_our_words(spatial, azimuth, vocabulary, words, file), "semantic_captions": semantic,
            "labels": [str(label) for own in labels for label in own] if all(labels) else [],
            "azimuth": azimuth, "elevation": elevation, "onset": onset,
            "lengths": [_seconds(segment.get("duration", event.get("ori_audio_duration")))
                        for event, segment in zip(events, segments)],
            # of the published names, A_0 and A_2 are one recording at two places
            "sources": [str(event.get("ori_audiofile") or re.sub(r"_\d$", "", str(segment.get("filename"))))
                        for event, segment in zip(events, segments)]}


def _load(file: Path) -> dict:
    try:
        facts = json.loads(file.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise Refused("unreadable JSON", f"{file}: not readable as JSON ({error}); write or copy it again") from error
    if not isinstance(facts, dict):
        raise Refused("unreadable JSON", f"{file}: expected one JSON object, got {type(facts).__name__}; write or copy it again")
    return facts


def _angle(event: dict, key: str, most: float, file: Path) -> float:
    """Degrees; published numbers are texts or lists of one, too. Anything else is refused, not taken for 0."""
    value = event.get(key)
    try:
        degrees = math.nan if isinstance(value, bool) else float(str(value).strip().removeprefix("[").removesuffix("]"))
    except ValueError:
        degrees = math.nan
    if not -most <= degrees <= most:
        raise Refused(f"{key} missing or out of range", f"{file}: {key} must be a number of degrees from {-most:g} to {most:g}, "
                      f"got {value!r}; correct it (one direction for each event, whole turns taken off)")
    return degrees


def _texts(facts: dict, key: str, file: Path) -> list[str]:
    texts = facts.get(key)
    good = isinstance(texts, list) and all(isinstance(text, str) and text.strip() for text in texts)
    if not good or len(texts) != CAPTIONS:
        got = f"{len(texts)} entries" if isinstance(texts, list) else "none"
        raise Refused("not five captions", f"{file}: {key} must be a list of {CAPTIONS} texts, got {got}; write the captions, "
                      "or, if another folder holds the JSON files that have them, name it by metadata")
    return texts


def _seconds(value: object) -> float:
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf
    return float(value) if known else math.nan


def _in_our_words(captions: list[str], azimuths: list[float], vocabulary: str, words: Counter, file: Path) -> list[str]:
    """The captions in the words of lib.audio.directions; most of them must speak the vocabulary that was asked for."""
    stated = [{_word(match) for match in _WORD.finditer(text)} for text in captions]

    def fits(turn: float) -> bool:  # azimuths are published cut to whole degrees, too, which can move one over an edge
        allowed = [{direction_word(azimuth + turn + step) for step in (-1, 0, 1)} for azimuth in azimuths]
        return sum(all(said & each for each in allowed) for said in stated) > len(captions) / 2
    spoken = next((name for name, turn in VOCABULARIES.items() if fits(turn)), "neither" if any(stated) else "no direction word")
    words[spoken] += 1
    if spoken in VOCABULARIES and spoken != vocabulary:
        raise Refused(f"captions call azimuth 0 {spoken}", f"{file}: its captions call azimuth 0 {spoken}, expected {vocabulary}"
                      f"; if all of the folder does, set vocabulary to {spoken!r}")
    if spoken == "neither":
        raise Refused("directions in captions and labels differ", f"{file}: azimuths {azimuths} are "
                      f"{' and '.join(map(direction_word, azimuths))}, most captions say otherwise ({captions[0]!r}); "
                      "correct either")
    return [_WORD.sub(_exchange, text) for text in captions] if spoken == "east" else captions


def _word(match: re.Match) -> str:
    return "".join(filter(None, match.groups())).lower()


def _exchange(match: re.Match) -> str:
    word = DIRECTIONS[DIRECTIONS.index(_word(match)) - 2]  # sectors of 45 degrees: what they call east is south here
    return word.capitalize() if match[0][0].isupper() else word
