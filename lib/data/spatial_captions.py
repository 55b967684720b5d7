"""Captions that say what sounds, from where and in which order: one grammar for every clip, whatever its role in a triplet.

What a caption is worded like (`wordings`) is drawn once for a set of events; in which order and from where they come is filled in
afterwards, so that the members of a triplet differ in nothing but order and direction words. Words are those of
lib.audio.directions.
"""
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np

from lib import files
from lib.audio.directions import DIRECTIONS, direction_word

COUNT = 5  # captions of each kind
LONGEST = 40  # words
FORMS = ("from the {}", "coming from the {}", "heard from the {}", "arriving from the {}", "in the {}")
# what stands between two events; the one that is named first is always heard first
CONNECTORS = (
    ", followed by", " followed by", ", then", " and then", ", and then", ", next", ", and next", ", and after that",
    ", after that", ", and afterwards", ", afterwards", ", and later",
    ", later on", ", and subsequently", ", subsequently", ", succeeded by",
    " giving way to", ", before", " before", ", and a moment later", ", a moment later", ", and shortly after that",
    ", soon after that", ", and finally", ", ending with",
)
_ANY = "|".join(sorted(DIRECTIONS, key=len, reverse=True))  # "northeast" before "north"
_DIRECTION = re.compile(rf"\b({_ANY})\b", re.IGNORECASE)
_PLACE = re.compile(rf"(\b(in|from|to|at|on|of|toward|towards) )?(\bthe )?\b({_ANY})\b", re.IGNORECASE)  # "in the north"


@dataclass(frozen=True)
class Wording:
    """One caption but for order and directions: a phrase for each event, `form` ("from the {}") and `connector`."""

    phrases: tuple[str, ...]
    form: str
    connector: str


def clean(texts: Sequence[str]) -> list[str]:
    """Captions as they stand within a sentence: no final stop, a small first letter, no direction words, none twice.

    Texts that name directions of their own are left out, or lose these words where no other text is left.
    """
    phrases = {}
    for text in texts:
        text = " ".join(text.split()).rstrip(" .!?;,:")
        first = text.split(" ", 1)[0]
        if first[1:].islower() or first == "A":
            text = text[0].lower() + text[1:]
        phrases[text] = bool(_DIRECTION.search(text))
    kept = [text for text, names in phrases.items() if text and not names]
    without = (" ".join(_PLACE.sub("", text).split()) for text in phrases)
    return kept or list(dict.fromkeys(text for text in without if text))


def wordings(seed: int, split: str, index: int, events: Sequence[Sequence[str]]) -> list[Wording]:
    """`COUNT` wordings, a function of the arguments alone.

    Args:
        events: for each of one or two events its phrases (see `clean`), at least one.

    Returns:
        Wordings with different connectors (two events) or forms (one); phrases repeat only where an event has fewer. Where the
        caption would have more than `LONGEST` words, the longer phrases are cut at a word.
    """
    if not 1 <= len(events) <= 2 or not all(events):
        raise ValueError(f"captions need one or two events with at least one phrase each, got {events!r}")
    key = files.digest(str(seed), split, str(index), *(phrase for phrases in events for phrase in phrases))
    rng = np.random.default_rng(int(key, 16))
    order = [np.concatenate([rng.permutation(len(phrases)) for _ in range(COUNT)]) for phrases in events]
    forms, connectors = rng.permutation(len(FORMS)), rng.permutation(len(CONNECTORS))
    result = []
    for k in range(COUNT):
        form, connector = FORMS[forms[k % len(FORMS)]], CONNECTORS[connectors[k]] if len(events) == 2 else ""
        phrases = [phrases[draw[k]].split() for phrases, draw in zip(events, order)]
        spare = LONGEST - len(events) * len(form.split()) - len(connector.replace(",", "").split())
        while sum(map(len, phrases)) > spare:
            max(phrases, key=len).pop()
        result.append(Wording(tuple(" ".join(words).rstrip(" ,;:") for words in phrases), form, connector))
    return result


def spatial_captions(worded: Sequence[Wording], azimuths: Sequence[float], order: Sequence[int] | None = None) -> list[str]:
    """The captions with directions, such as "A dog barking from the north, followed by rain from the southeast."

    Args:
        azimuths: degrees, one for each event in the order of the wordings.
        order: the events in order of time, such as (1, 0); None: as they are worded.
    """
    words = [direction_word(azimuth) for azimuth in azimuths]
    order = range(len(words)) if order is None else order
    return [_sentence(w.connector.join(f" {w.phrases[i]} {w.form.format(words[i])}" for i in order)) for w in worded]


def semantic_captions(worded: Sequence[Wording], order: Sequence[int] | None = None) -> list[str]:
    """The plain captions: "A dog barking, then rain." (always "then"), of one event "A dog barking."; see `spatial_captions`."""
    return [_sentence(", then ".join(w.phrases[i] for i in (range(len(w.phrases)) if order is None else order))) for w in worded]


def direction_sentence(azimuth: float) -> str:
    """ "The sound is coming from the <word>." """
    return f"The sound is coming from the {direction_word(azimuth)}."


def turned(caption: str, azimuths: Sequence[float], turn: float | Sequence[float]) -> str:
    """The caption after its events have moved, as they do when a clip is rotated or mirrored.

    Args:
        caption: any text; its direction words are replaced, whole words only, and the rest is kept.
        azimuths: degrees of the events before, in order of mention.
        turn: degrees that are added to all (counter-clockwise), or the list of new azimuths.

    Raises:
        ValueError: a word in the caption that no event has, or one that two events shared and that is named another number of
            times; numbers of azimuths that differ.
    """
    moved = [azimuth + turn for azimuth in azimuths] if isinstance(turn, Real) else list(turn)
    if len(moved) != len(azimuths):
        raise ValueError(f"turn: expected {len(azimuths)} new azimuths, one for each event, got {len(moved)}")
    targets: dict[str, list[str]] = {}
    for before, after in zip(azimuths, moved):
        targets.setdefault(direction_word(before), []).append(direction_word(after))
    named = [word.lower() for word in _DIRECTION.findall(caption)]
    for word in named:
        if word not in targets:
            raise ValueError(f"caption {caption!r} names {word!r}, but its events are in the {', '.join(targets) or '(none)'}")
        if len(set(targets[word])) > 1 and named.count(word) != len(targets[word]):
            raise ValueError(f"caption {caption!r} names {word!r} {named.count(word)} times for {len(targets[word])} events that "
                             "part, so it cannot be told which is which")
    seen = dict.fromkeys(targets, 0)

    def replace(match: re.Match) -> str:
        word = match[0].lower()
        after = targets[word][seen[word] % len(targets[word])]
        seen[word] += 1
        return after.capitalize() if match[0][0].isupper() else after

    return _DIRECTION.sub(replace, caption)


def _sentence(text: str) -> str:
    text = text.strip()
    return text[0].upper() + text[1:] + "."
