"""Shortcut baselines: they find marks of the role, and nothing where there is none, whatever the structure of triplets."""
import numpy as np
import pytest
import torch

from lib.audio.directions import DIRECTIONS
from lib.evaluation.shortcuts import (_accuracies, _against_strangers, audio_only_baseline, chunk_statistics, relational_rule,
                                      text_only_baseline, told_directions)

KINDS = ("linear", "boosted")


def triplets(n, seed=0):
    """Members as (first sound, its direction, second sound, its direction); the positive is one of four combinations by lot."""
    rng, members = np.random.default_rng(seed), []
    for _ in range(n):
        sounds, places = rng.choice(20, 2, replace=False), rng.choice(8, 2, replace=False)
        order, swapped = rng.integers(2, size=2)
        for o, s in [(order, swapped), (1 - order, swapped), (order, 1 - swapped)]:
            events = [(sounds[0], places[s]), (sounds[1], places[1 - s])]
            members.append(tuple(events[o] + events[1 - o]))
    return members


def told(members, seed=0):
    rng = np.random.default_rng(seed)
    return [f"Sound{a} from the {DIRECTIONS[p]}, {('then', 'before')[rng.integers(2)]} sound{b} from the {DIRECTIONS[q]}."
            for a, p, b, q in members]


def test_captions_without_a_mark_stay_at_a_third():
    captions = told(triplets(500))
    result = text_only_baseline(captions)
    for kind in KINDS:
        assert result[kind]["accuracy"] == pytest.approx(1 / 3, abs=0.09)      # three deviations: 0.017 at 1500, times sqrt(3)
        low, high = result[kind]["interval"]
        assert 0.04 < high - low < 0.14 and low < result[kind]["accuracy"] < high
        assert result[kind]["own"] == pytest.approx(result[kind]["own_chance"], abs=0.07)
        assert result[kind]["temporal"] == pytest.approx(0.5, abs=0.08)
    assert (result["n"], result["folds"], result["chance"]) == (500, 5, 1 / 3)
    assert text_only_baseline(captions[:90]) == text_only_baseline(captions[:90])


@pytest.mark.parametrize("mark", [lambda c: c.replace("from", "coming from", 1), lambda c: c[:-1] + "!", str.lower,
                                  lambda c: c.replace(", ", " ")])
def test_a_mark_in_the_text_of_positives_is_found(mark):
    captions = told(triplets(200))
    captions[::3] = [mark(caption) for caption in captions[::3]]
    result = text_only_baseline(captions)
    for kind in KINDS:
        assert min(result[kind][name] for name in ("accuracy", "own", "temporal", "spatial")) > 0.9
        assert result[kind]["interval"][0] > 0.85


def test_a_mark_in_one_of_five_captions_is_found():
    captions = [list(five) for five in zip(*(told(triplets(200), seed) for seed in range(5)))]
    for five in captions[::3]:
        five[2] = five[2].replace("from", "out of")
    assert text_only_baseline(captions)["linear"]["accuracy"] > 0.9


def test_a_mark_of_one_negative_only():
    captions = told(triplets(200))
    captions[1::3] = [caption.replace("from", "out of") for caption in captions[1::3]]
    found = text_only_baseline(captions)["linear"]
    assert found["temporal"] > 0.95 and found["spatial"] == pytest.approx(0.5, abs=0.15)
    assert found["accuracy"] == pytest.approx(0.5, abs=0.1)                    # one of the three is out


def test_a_preference_among_sequences_of_places_names_half_of_the_own_positives_and_a_third_of_strangers():
    members = triplets(1500)
    preference = np.random.default_rng(1).normal(size=(8, 8))
    scores = torch.tensor([preference[p, q] for _, p, _, q in members]).view(-1, 3)
    result = _accuracies(scores, np.zeros(1500, int), np.arange(1500), seed=0)
    assert result["own"] == pytest.approx(0.5, abs=0.04) and result["own_chance"] == pytest.approx(0.5)
    assert result["accuracy"] == pytest.approx(1 / 3, abs=0.04) and result["interval"][0] < 1 / 3 < result["interval"][1]
    favourite = np.random.default_rng(1).normal(size=20)           # and one among the sounds that come first: a quarter
    scores = torch.tensor([favourite[a] for a, *_ in members]).view(-1, 3)
    assert _accuracies(scores, np.zeros(1500, int), np.arange(1500), seed=0)["own"] == pytest.approx(0.25, abs=0.03)


def test_strangers_equal_a_loop_over_all_draws_with_ties():
    scores = np.random.default_rng(0).integers(6, size=(9, 3)).astype(float)
    def one(p, t, s):
        best = max(p, t, s)
        return (p == best) / sum(x == best for x in (p, t, s))
    draw = lambda rows: np.mean([one(scores[i, 0], scores[j, 1], scores[k, 2]) for i in rows for j in rows for k in rows])
    got = _against_strangers(scores)
    assert got.mean() == pytest.approx(draw(range(9)))
    of_first = (np.mean([one(scores[0, 0], t, s) for t in scores[:, 1] for s in scores[:, 2]])
                + np.mean([one(p, scores[0, 1], s) for p in scores[:, 0] for s in scores[:, 2]])
                + np.mean([one(p, t, scores[0, 2]) for p in scores[:, 0] for t in scores[:, 1]]))
    assert got[0] == pytest.approx(of_first - 2 * got.mean())
    np.testing.assert_allclose(_against_strangers(np.ones((5, 3))), 1 / 3)
    np.testing.assert_allclose(_against_strangers(np.tile([2.0, 1, 0], (5, 1))), 1)


def test_the_interval_of_strangers_has_the_width_of_repeated_samples():
    rng = np.random.default_rng(0)
    draws = [_against_strangers(rng.normal(size=(200, 3)) + rng.normal(size=(200, 1))).mean() for _ in range(300)]
    parts = _against_strangers(rng.normal(size=(200, 3)) + rng.normal(size=(200, 1)))
    assert parts.std() / np.sqrt(200) == pytest.approx(np.std(draws), rel=0.2)
    assert np.mean(draws) == pytest.approx(1 / 3, abs=0.005)


def test_audio_noise_constants_and_marks():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(900, 60)).astype(np.float32)
    result = audio_only_baseline(features)
    assert all(result[kind]["accuracy"] == pytest.approx(1 / 3, abs=0.08) for kind in KINDS)
    constant = audio_only_baseline(np.ones((300, 4)))
    for kind in KINDS:
        assert [constant[kind][name] for name in ("accuracy", "own", "temporal")] == pytest.approx([1 / 3, 1 / 3, 0.5])
    louder = features.copy()
    louder[::3, 7] += 4
    assert min(audio_only_baseline(louder)[kind]["accuracy"] for kind in KINDS) > 0.9
    beside = features.copy()            # positives from both sides, negatives from the middle: no linear scorer sees it
    beside[::3, 7] += 6 * rng.choice([-1, 1], 300)
    found = audio_only_baseline(beside)
    assert found["boosted"]["accuracy"] > 0.9 > 0.6 > found["linear"]["accuracy"]


def test_groups_are_held_out_together():
    # 20 pairs of clips with 15 triplets each; in each pair positives carry a mark of their own: known pairs would give it away
    rng = np.random.default_rng(0)
    pair = np.repeat(np.arange(20), 45)
    features = 0.1 * rng.normal(size=(900, 40))
    features[np.arange(900), pair] += 3.0
    features[::3, 20:] += (rng.choice([-1, 1], (20, 20)) * 2.0)[pair[::3]]
    features[np.arange(900) % 3 > 0, 20:] += (rng.choice([-1, 1], (20, 20)) * 2.0)[pair[np.arange(900) % 3 > 0]]
    apart = audio_only_baseline(features)["boosted"]["accuracy"]
    together = audio_only_baseline(features, groups=pair)["boosted"]["accuracy"]
    assert apart > 0.8 > 0.6 > together


def test_a_comparison_of_the_members_names_every_positive():
    members = triplets(100)
    for places in ([(DIRECTIONS[p], DIRECTIONS[q]) for _, p, _, q in members], [told_directions(c) for c in told(members)]):
        result = relational_rule(places)
        assert result["accuracy"] == 1 and (result["n"], result["chance"]) == (100, 1 / 3)
    assert relational_rule([("east", "west")] * 6)["accuracy"] == pytest.approx(1 / 3)
    assert told_directions("A dog from the Northeast, then rain from the east; easterly wind.") == ("northeast", "east")


def test_chunk_statistics_equal_loops():
    features = np.random.default_rng(0).normal(size=(3, 7, 22, 32)).astype(np.float32)
    got = chunk_statistics(torch.from_numpy(features), chunks=4, bands=8)
    assert got.shape == (3, 2 * 4 * 7 * 8) and got.dtype == np.float32
    bands = np.stack([features[..., 4 * b:4 * b + 4].mean(-1) for b in range(8)], axis=-1)
    expected = []
    for start, stop in [(0, 5), (5, 10), (10, 15), (15, 22)]:
        expected += [bands[:, :, start:stop].mean(2).reshape(3, -1), bands[:, :, start:stop].std(2).reshape(3, -1)]
    np.testing.assert_allclose(got, np.concatenate(expected, axis=1), atol=1e-6)
    assert chunk_statistics(features[..., :5]).shape == (3, 2 * 4 * 7 * 5)
    for wrong in (features[0], features[:, :, :3], features[..., :20]):
        with pytest.raises(ValueError, match="at least 4 frames and a multiple of 16 mels"):
            chunk_statistics(wrong)


def test_what_is_no_set_of_triplets_is_refused():
    captions = told(triplets(10))
    with pytest.raises(ValueError, match="no whole triplets"):
        text_only_baseline(captions[:-1])
    with pytest.raises(ValueError, match="no whole triplets"):
        relational_rule([("a", "b")] * 4)
    with pytest.raises(ValueError, match="member 4 has no caption"):
        text_only_baseline(captions[:4] + [[]] + captions[5:])
    with pytest.raises(ValueError, match="the same for all three"):
        text_only_baseline(captions, groups=np.arange(30))
    with pytest.raises(ValueError, match="2 groups cannot be held out in 5 folds"):
        text_only_baseline(captions, groups=np.repeat([0, 1], 15))
    with pytest.raises(ValueError, match="finite"):
        audio_only_baseline(np.full((30, 2), np.nan))
