"""One grammar for all roles: what differs between the captions of a triplet is order and direction words alone."""
import re

import numpy as np
import pytest

from lib.audio.directions import DIRECTIONS, direction_word
from lib.data.spatial_captions import (CONNECTORS, COUNT, FORMS, LONGEST, clean, direction_sentence, semantic_captions, spatial_captions,
                                       turned, wordings)

DOG, RAIN = ["a dog barking", "a barking dog"], ["rain", "rainfall", "pattering rain"]


def style(caption, words, phrases):
    """What is left of a caption once directions and events are hidden."""
    for text in sorted([*words, *phrases], key=len, reverse=True):
        caption = re.sub(rf"\b{text}\b", "*", caption, flags=re.IGNORECASE)
    return caption


def test_grammar_lists():
    assert len(CONNECTORS) == len(set(CONNECTORS)) == 25 and len(set(FORMS)) == 5
    assert not any(re.search(r"\bafter\b(?! that)", c) for c in CONNECTORS), "'a after b' would turn the order round"
    assert all(form.count("{}") == 1 and form.endswith("the {}") for form in FORMS)


def test_captions_of_the_variants_differ_in_order_and_directions_alone():
    for index in range(40):
        worded = wordings(7, "train", index, [DOG, RAIN])
        assert worded == wordings(7, "train", index, [DOG, RAIN]) and len(worded) == COUNT
        assert len({w.connector for w in worded}) == COUNT
        variants = [spatial_captions(worded, azimuths, order) for azimuths in ([10.0, 100.0], [100.0, 10.0]) for order in ((0, 1), (1, 0))]
        assert len(set(sum(variants, []))) == 4 * COUNT
        for k, w in enumerate(worded):
            assert len({style(v[k], DIRECTIONS, w.phrases) for v in variants}) == 1
            assert len({len(v[k].split()) for v in variants}) == 1 and len({len(v[k]) for v in variants}) == 1
            assert variants[0][k].lower() == f"{w.phrases[0]} {w.form.format('south')}{w.connector} {w.phrases[1]} {w.form.format('east')}."
            assert variants[3][k].lower() == f"{w.phrases[1]} {w.form.format('south')}{w.connector} {w.phrases[0]} {w.form.format('east')}."
            assert variants[0][k][0].isupper()
        assert semantic_captions(worded)[0].lower() == f"{worded[0].phrases[0]}, then {worded[0].phrases[1]}."
        assert semantic_captions(worded, (1, 0))[1].lower() == f"{worded[1].phrases[1]}, then {worded[1].phrases[0]}."


def test_wordings_use_everything_evenly():
    seen = [w for index in range(400) for w in wordings(0, "test", index, [DOG, RAIN])]
    for values, options in (([w.connector for w in seen], CONNECTORS), ([w.form for w in seen], FORMS), ([w.phrases[1] for w in seen], RAIN)):
        counts = np.array([values.count(option) for option in options])
        assert counts.sum() == len(seen) and counts.min() > 0.6 * counts.mean() and counts.max() < 1.4 * counts.mean()
    pairs = {w.phrases for w in seen}
    assert len(pairs) == 6, "the phrases of two events are drawn apart"
    assert wordings(0, "test", 1, [DOG, RAIN]) != wordings(0, "test", 2, [DOG, RAIN]) != wordings(0, "val", 2, [DOG, RAIN])


def test_one_event():
    worded = wordings(0, "train", 0, [DOG])
    assert len(set(spatial_captions(worded, [-90.0]))) == COUNT == len({w.form for w in worded})
    assert all(" west." in caption and caption[0] == "A" for caption in spatial_captions(worded, [-90.0]))
    assert set(semantic_captions(worded)) == {"A dog barking.", "A barking dog."}
    assert direction_sentence(180) == "The sound is coming from the north."
    for events in ([], [DOG, []], [DOG, RAIN, DOG]):
        with pytest.raises(ValueError, match="one or two events"):
            wordings(0, "train", 0, events)


def test_long_captions_are_cut_to_forty_words():
    long, longer = " ".join(["word"] * 25), " ".join(["thing"] * 60)
    for index in range(20):
        worded = wordings(0, "train", index, [[long], [longer]])
        for captions in (spatial_captions(worded, [0, 90]), spatial_captions(worded, [0, 90], (1, 0)), semantic_captions(worded)):
            assert max(len(caption.split()) for caption in captions) <= LONGEST
        assert len(spatial_captions(worded, [0, 90])[0].split()) == LONGEST, "no more is cut than must be"
        assert len(worded[0].phrases[0].split()) >= 14
    assert {len(w.phrases[0].split()) for w in wordings(0, "train", 0, [[long], ["rain"]])} == {25}


def test_clean():
    assert clean(["A dog barks.", " Birds  sing ", "A dog barks"]) == ["a dog barks", "birds sing"]
    assert clean(["FM radio plays!", "I talk."]) == ["FM radio plays", "I talk"]
    assert clean(["Wind blows from the north.", "Wind blows."]) == ["wind blows"]
    assert clean(["Wind blows from the North."]) == ["wind blows"] and clean(["", " . "]) == [] == clean(["The west."])
    assert clean(["northern wind"]) == ["northern wind"]


def test_words_follow_the_closed_rule():
    for azimuth in np.arange(-180, 180, 7.5):
        worded = wordings(0, "train", 0, [DOG])
        assert all(re.search(rf"\b{direction_word(azimuth)}\.$", c) for c in spatial_captions(worded, [azimuth]))
    assert [direction_word(a) for a in (-22.5, 22.5, 90, 180, -90)] == ["south", "southeast", "east", "north", "west"]


def test_turned_is_the_caption_of_the_turned_scene():
    rng = np.random.default_rng(0)
    for index in range(200):
        azimuths = rng.uniform(-180, 180, 2)
        turn = float(rng.uniform(-720, 720))
        worded = wordings(0, "train", index, [DOG, RAIN])
        for order in ((0, 1), (1, 0)):
            mention = [azimuths[i] for i in order]
            for before, after in zip(spatial_captions(worded, azimuths, order), spatial_captions(worded, azimuths + turn, order)):
                assert turned(before, mention, turn) == after
            for before, after in zip(spatial_captions(worded, azimuths, order), spatial_captions(worded, -azimuths, order)):
                assert turned(before, mention, [-a for a in mention]) == after, "mirrored"
        assert turned(direction_sentence(azimuths[0]), azimuths[:1], turn) == direction_sentence(azimuths[0] + turn)
        assert turned("A dog barking, then rain.", azimuths, turn) == "A dog barking, then rain."


def test_turned_edges():
    assert turned("North: a dog; then NORTHEAST, a northerner.", [180, 135], 90) == "West: a dog; then Northwest, a northerner."
    assert turned("a from the north, b from the north", [175, -175], [0, 90]) == "a from the south, b from the east", "by order of mention"
    assert turned("north, north, north", [175, -175], 90) == "west, west, west"
    with pytest.raises(ValueError, match="'east'.*south, north"):
        turned("a dog from the east", [0, 180], 90)
    with pytest.raises(ValueError, match="3 times for 2 events"):
        turned("north, north, north", [175, -175], [0, 90])
    with pytest.raises(ValueError, match="expected 2 new azimuths.*got 1"):
        turned("north", [175, -175], [0])
    with pytest.raises(ValueError, match="finite"):
        turned("north", [float("nan")], 90)
