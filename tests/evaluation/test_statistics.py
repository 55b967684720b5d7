"""Intervals against published values, coverage and scipy."""
import numpy as np
import pytest
from scipy import stats

from lib.evaluation.statistics import bootstrap_interval, mean_interval, wilson_interval


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
