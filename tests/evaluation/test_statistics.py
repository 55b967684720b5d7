"""Intervals against published values, coverage, closed forms and scipy."""
import time

import numpy as np
import pytest
from scipy import stats

from lib.evaluation.statistics import (_resampled_means, bootstrap_difference, bootstrap_interval, mean_interval,
                                       paired_bootstrap, paired_seeds, wilson_interval)
from lib.evaluation.tagging import tagging_metrics, weighted_map_macro


@pytest.mark.parametrize("hits, n", [(0, 10), (7, 10), (64, 80), (80, 80)])
def test_wilson_equals_scipy(hits, n):
    expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson_interval(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(n + 1, n)


def test_bootstrap_knows_groups():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), 5)
    values = np.repeat(rng.normal(size=100), 5)              # five identical captions a clip carry no more than one
    low, high = bootstrap_interval(values, groups)
    narrow_low, narrow_high = bootstrap_interval(values)
    expected = 2 * 1.96 * values.std() / 10
    assert high - low == pytest.approx(expected, rel=0.1)
    assert (high - low) > 2 * (narrow_high - narrow_low)
    assert bootstrap_interval(values, groups) == (low, high), "deterministic"


def test_mean_interval():
    mean, low, high = mean_interval([0.7, 0.8, 0.75])
    expected = stats.t.interval(0.95, 2, loc=0.75, scale=stats.sem([0.7, 0.8, 0.75]))
    assert (low, high) == pytest.approx(expected) and mean == pytest.approx(0.75)
    assert mean_interval([0.5])[1:] == (float("-inf"), float("inf"))


def test_paired_bootstrap_is_the_normal_interval_of_the_differences():
    rng = np.random.default_rng(0)
    hard = 5 * rng.normal(size=800)                          # what both models share cancels
    a, b = hard + rng.normal(size=800) + 0.2, hard + rng.normal(size=800)
    mean, low, high = paired_bootstrap(a, b)
    half = 1.96 * (a - b).std() / np.sqrt(800)
    assert mean == pytest.approx((a - b).mean()) and (low, high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)
    assert (mean, low, high) == (mean, *bootstrap_interval(a - b)) == paired_bootstrap(a, b)
    groups = np.arange(800) // 4
    _, low, high = paired_bootstrap(a + np.repeat(rng.normal(size=200), 4), b, groups)
    assert high - low > 1.5 * 2 * half, "clips of one group stand and fall together"
    for other, message in ((b[:5], "same clips"), (np.where(hard > 0, np.nan, b), "NaN"), (np.stack([b, b]), "paired_seeds")):
        with pytest.raises(ValueError, match=message):
            paired_bootstrap(a, other)
    with pytest.raises(ValueError, match="groups tells of 3 clips"):
        paired_bootstrap(a, b, groups=[0, 1, 2])


@pytest.mark.parametrize("of_seed, of_clip", [(1.0, 0.0), (0.0, 1.0), (0.3, 3.0)])
def test_seeds_and_clips_both_widen_the_interval(of_seed, of_clip):
    rng = np.random.default_rng(1)
    seeds, clips = 25, 600
    difference = 0.1 + of_seed * rng.normal(size=(seeds, 1)) + of_clip * rng.normal(size=clips)
    control = rng.normal(size=clips)
    mean, low, high = paired_seeds(difference + control, control)
    by_seed, by_clip = difference.mean(axis=1).var(ddof=1) / seeds, difference.mean(axis=0).var() / clips
    assert mean == pytest.approx(difference.mean())
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(by_seed + by_clip), rel=0.08)
    assert paired_seeds(difference[0], control) == paired_bootstrap(difference[0], control), "one seed: clips only"


def test_few_seeds_are_not_understated():
    """The draws' variance is the unbiased one between seeds, over many sets of three seeds."""
    rng = np.random.default_rng(2)
    ratios = []
    for trial in range(150):
        seeds = np.repeat(rng.normal(size=(3, 1)), 4, axis=1)
        drawn = _resampled_means(seeds, None, 400, trial)
        assert seeds.min() - 1e-9 <= drawn.min() < drawn.max() <= seeds.max() + 1e-9
        ratios.append(drawn.var() / (seeds[:, 0].var(ddof=1) / 3))
    assert np.mean(ratios) == pytest.approx(1, abs=0.02), "drawing three of three gives 2/3"


def test_seed_shapes_must_fit():
    a = np.zeros((3, 10))
    for b in (np.zeros((2, 10)), np.zeros((3, 9)), np.zeros((3, 10, 1))):
        with pytest.raises(ValueError, match="same clips in the same order"):
            paired_seeds(a, b)


def weighted_accuracy(scores, targets, weights):
    right = targets[np.arange(len(scores)), scores.argmax(axis=1)]
    return weights @ right / weights.sum(axis=1)


def set_of_clips(clips=300, classes=8, skill=(1.0, 0.5), seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.random((clips, classes)) < 0.2
    targets[np.arange(clips), rng.integers(classes, size=clips)] = True
    shared = rng.normal(size=targets.shape)
    return [shared + s * targets + 0.3 * rng.normal(size=targets.shape) for s in skill], targets


def test_difference_of_a_mean_is_the_paired_one():
    """A metric that is a mean over clips after all has the interval of `paired_seeds`."""
    (a, b), targets = set_of_clips()
    right = [targets[np.arange(300), s.argmax(axis=1)].astype(float) for s in (a, b)]
    got = bootstrap_difference(weighted_accuracy, a, b, targets, draws=3000)
    mean, low, high = paired_bootstrap(*right)
    assert got == pytest.approx((mean, low, high), abs=0.08 * (high - low)) and got[0] == pytest.approx(mean)
    groups = np.arange(300) // 5
    got = bootstrap_difference(weighted_accuracy, a, b, targets, groups, draws=3000)
    mean, low, high = paired_bootstrap(*right, groups)
    assert got == pytest.approx((mean, low, high), abs=0.08 * (high - low))
    three, _ = set_of_clips(skill=(1.0, 0.2, 0.8))
    rows = np.stack([targets[np.arange(300), s.argmax(axis=1)].astype(float) for s in three])
    got = bootstrap_difference(weighted_accuracy, three, b, targets, draws=3000)
    mean, low, high = paired_seeds(rows, right[1])
    assert got == pytest.approx((mean, low, high), abs=0.12 * (high - low)) and got[0] == pytest.approx(mean)
    with pytest.raises(ValueError, match="scores of 3 and of 2 seeds"):
        bootstrap_difference(weighted_accuracy, three, [a, b], targets)


def map_difference(a, b, targets):
    return tagging_metrics(a, targets)["mAP macro"] - tagging_metrics(b, targets)["mAP macro"]


def test_difference_of_map_equals_scoring_every_resample():
    (a, b), targets = set_of_clips(clips=80)
    got = bootstrap_difference(weighted_map_macro, np.stack([a]), b, targets, draws=60)
    random, drawn = np.random.default_rng(0), []
    for picks in random.integers(80, size=(60, 80)):
        drawn.append(map_difference(a[picks], b[picks], targets[picks]))
    whole = map_difference(a, b, targets)
    low, high = np.quantile(drawn, [0.025, 0.975]) - np.mean(drawn) + whole
    assert got == pytest.approx((whole, low, high), abs=1e-12)
    assert got == bootstrap_difference(weighted_map_macro, a, b, targets, draws=60), "deterministic"


def test_500_draws_of_audioset_size_are_a_matter_of_seconds():
    (a, b), targets = set_of_clips(clips=500, classes=527)
    targets &= np.random.default_rng(0).random(targets.shape) < 0.02
    targets[np.arange(500), np.arange(500) % 400] = True
    begin = time.process_time()
    mean, low, high = bootstrap_difference(weighted_map_macro, a, b, targets, draws=500)
    assert time.process_time() - begin < 20, "the target is 60 s"
    assert low < mean < high, "although the draws of rare classes are biased"
