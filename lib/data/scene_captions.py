"""Captions of a scene from one grammar, and what each of them states.

A caption always names every class of its scene; attributes, order and directions it may leave out. Its facts say which it
states, so that `caption_matches` can tell for which scenes it is true: that is the best any retrieval model can do.
Words and sentence patterns stand in soundscapes.yaml, the same for all splits.
"""
from __future__ import annotations

import json

import numpy as np

from lib.audio.directions import direction_word
from lib.data.scenes import Event, Scene, config

_CAPTIONS = 3  # stream of random numbers, see Scene.rng
_ORDER = ("fast", "slow", "high", "low", "near", "far")  # of adverbs: "barks quickly at a high pitch in the distance"


def captions(scene: Scene) -> tuple[list[str], list[dict]]:
    """The captions of a scene and their facts, in one random order.

    Returns:
        texts: config captions.count different sentences; the first drawn tells everything but directions, the second the
            order, the third may tell directions.
        facts: for each text {"classes": [label, ...], "attributes": {label: [word, ...]}, "directions": {label: word},
            "stages": [[label, ...], ...] or None where no order is told}.
    """
    rules, rng = config()["captions"], scene.rng(_CAPTIONS)
    roles = [(1.0, 1.0, 0.0), (rules["attribute"], 1.0, 0.0), (rules["attribute"], rules["order"], rules["direction"])]
    roles += [(rules["attribute"], rules["order"], 0.0)] * (rules["count"] - len(roles))
    pairs: dict[str, dict] = {}
    for attribute, order, direction in roles:
        told = rng.random() < order, rng.random() < direction
        while True:  # a short caption can come out twice
            text, facts = compose(scene, rng, attribute, *told)
            if text not in pairs:
                break
        pairs[text] = facts
    texts = list(pairs)
    order = rng.permutation(len(texts))
    return [texts[i] for i in order], [pairs[texts[i]] for i in order]


def compose(scene: Scene, rng: np.random.Generator, attribute: float, order: bool, direction: bool) -> tuple[str, dict]:
    """One caption and its facts.

    Args:
        attribute: probability that each attribute of each event is told. order: tell then, before, after, while.
        direction: tell where each event comes from.
    """
    grammar = config()["grammar"]
    style = "clauses" if rng.random() < 0.5 else "nouns"
    patterns = grammar[style]
    told = {e.label: [word for word in e.attributes if rng.random() < attribute] for e in scene.events}
    where = {e.label: direction_word(e.azimuth) for e in scene.events} if direction else {}
    parts = [_event(e, style, told[e.label], where.get(e.label), rng) for e in scene.events]
    if order:
        together = [p for p in patterns["together"] if len(scene.stages) == 1 or p.startswith("{0}")]
        stages = [_fill(together if len(stage) > 1 else ["{0}"], [parts[i] for i in rng.permutation(stage)], rng)
                  for stage in scene.stages]
        if len(stages) == 2 and len(parts) == 3:
            patterns = {**patterns, "two": grammar["mixed"]}
        text = _fill({1: ["{0}"], 2: patterns["two"], 3: patterns["three"]}[len(stages)], stages, rng)
    else:
        shuffled = [parts[i] for i in rng.permutation(len(parts))]
        text = _fill(patterns["unordered"], [", ".join(shuffled[:-1]), shuffled[-1]], rng) if len(parts) > 1 else parts[0]
    if not text.startswith("first "):
        text = _pick(patterns["frames"], rng).replace("{}", text)
    facts = {"classes": sorted(told), "attributes": {label: words for label, words in told.items() if words}, "directions": where,
             "stages": [sorted(scene.events[i].label for i in stage) for stage in scene.stages] if order else None}
    return text[0].upper() + text[1:] + ".", facts


def _event(event: Event, style: str, told: list[str], where: str | None, rng: np.random.Generator) -> str:
    """An event as "a distant dog barking quickly" (nouns) or "a distant dog barks quickly" (clauses)."""
    entry, shared = config()["classes"][event.label], config()["attributes"]
    phrase = _pick(entry[style], rng)
    head, _, verb = phrase.partition("|")
    is_verb = style == "clauses" or head.endswith("ing")  # in "a dog barking" it is not the dog that is fast
    before, after = [], []
    for word in sorted(told, key=_ORDER.index):
        own = entry.get("words", {}).get(word)  # always adjectives
        if word in ("near", "far"):
            adjective = rng.random() < 0.5
        else:
            adjective = not is_verb and (word in ("fast", "slow") or rng.random() < 0.5)
        if own or adjective:
            before.append(_pick(own or shared[word]["before"], rng))
        else:
            after.append(_pick(shared[word]["after"], rng))
    article, _, rest = head.partition(" ")
    if article not in ("a", "an", "the"):
        article, rest = "", head
    noun = " ".join([*before[::-1], rest])
    if article in ("a", "an"):
        article = "an" if noun[0] in "aeiou" else "a"
    place = [_pick(config()["directions"], rng).replace("{}", where)] if where else []
    return " ".join(filter(None, [article, noun, verb, *after, *place]))


def _pick(options: list[str], rng: np.random.Generator) -> str:
    return options[rng.integers(len(options))]


def _fill(patterns: list[str], parts: list[str], rng: np.random.Generator) -> str:
    return _pick(patterns, rng).format(*parts)


def caption_matches(facts: dict, annotation: dict, directions: bool = False) -> bool:
    """Whether a caption is true of a scene.

    Args:
        facts: of the caption, see `captions`.
        annotation: of the scene: the parsed `annotation` column of the manifest (or `json.loads(scene.to_json())`).
        directions: also compare directions; leave it off for one channel, where they cannot be heard.

    Returns:
        True when the scene holds exactly the classes the caption names and everything it states is so. What the caption
        leaves out may be anything.
    """
    events = {e["label"]: e for e in annotation["events"]}
    if sorted(events) != facts["classes"]:
        return False
    labels = [e["label"] for e in annotation["events"]]
    if any(not set(words) <= set(events[label]["attributes"]) for label, words in facts["attributes"].items()):
        return False
    if facts["stages"] not in (None, [sorted(labels[i] for i in stage) for stage in annotation["stages"]]):
        return False
    return not directions or all(direction_word(events[label]["azimuth"]) == word for label, word in facts["directions"].items())


def caption_relevance(annotations: list[str], directions: bool = False) -> np.ndarray:
    """For which clips every caption is true.

    Args:
        annotations: the `annotation` column of a manifest (JSON texts), N clips with K captions each.

    Returns:
        (N * K, N) bool, captions in the order of the clips; true at least at [i * K + k, i].
    """
    clips = [json.loads(text) for text in annotations]
    stated = [facts for clip in clips for facts in clip["facts"]]
    return np.array([[caption_matches(facts, clip, directions) for clip in clips] for facts in stated], dtype=bool)
