import numpy as np
import pytest
from scipy import stats

from lib.workbook import protocols, results, sweeps

KEY = ("mAP", "test")


def study(values, **protocol):
    """({tau: {seed: value or None}}) -> jobs and results of a sweep over tau and the seed; the first result may have another protocol."""
    jobs = {f"{tau}-{seed}": {"notebook": "10_a", "combination": {"seed": seed, "tau": tau}} for tau, some in values.items() for seed in some}
    documents = {f"{tau}-{seed}": {"notebook": "10_a", "family": "a", "dataset": "d", "protocol": {"seeds": [seed]},
                                   "metrics": [results.metric("mAP", value, n=5, split="test")]}
                 for tau, some in values.items() for seed, value in some.items() if value is not None}
    next(iter(documents.values()))["protocol"] |= protocol
    return jobs, documents


def test_mean_and_interval_are_those_of_scipy():
    numbers = [0.31, 0.5, 0.42, 0.77]
    value, interval = sweeps.mean(numbers)
    assert value == pytest.approx(np.mean(numbers))
    assert interval == pytest.approx(stats.t.interval(0.95, 3, loc=np.mean(numbers), scale=stats.sem(numbers)))
    assert sweeps.mean([0.5]) == (0.5, None)


def test_difference_is_paired_by_seed():
    """What a seed does to both cancels: the paired interval is that of a one-sample t test, far narrower than the unpaired one."""
    seeds = {0: 0.1, 1: 0.5, 2: 0.9}
    gain = {0: 0.05, 1: 0.07, 2: 0.06}
    jobs, documents = study({0.1: seeds, 0.2: {seed: seeds[seed] + gain[seed] for seed in (2, 0, 1)}})
    first, second = sweeps.groups(jobs)
    assert second.first is first and first.first is first and second.variant == {"tau": 0.2}
    value, interval, pairs = sweeps.difference(second, documents, KEY)
    naive = stats.ttest_rel([seeds[s] + gain[s] for s in range(3)], [seeds[s] for s in range(3)]).confidence_interval()
    assert (value, pairs) == (pytest.approx(0.06), 3) and interval == pytest.approx((naive.low, naive.high))
    assert interval[0] > 0.03


def test_runs_without_a_partner_stay_out_and_one_pair_has_no_interval():
    jobs, documents = study({0.1: {0: 0.1, 1: None, 2: 0.3}, 0.2: {0: 0.2, 1: 0.9, 2: None}, 0.3: {0: None, 1: 0.4, 2: None}})
    first, second, third = sweeps.groups(jobs)
    assert sweeps.difference(second, documents, KEY) == (pytest.approx(0.1), None, 1)
    assert sweeps.difference(third, documents, KEY) is None
    assert len(sweeps.values(second, documents, KEY)) == 2 and len(second.runs) == 3


def test_a_sweep_without_seeds_and_jobs_of_no_sweep():
    jobs = {"10_a.tau=1": {"notebook": "10_a", "combination": {"tau": 1}}, "10_a.tau=1.0": {"notebook": "10_a", "combination": {"tau": "1"}},
            "20_b": {"notebook": "20_b", "combination": {}}}
    one, text, other = sweeps.groups(jobs)
    assert (one.runs, text.first, other.first) == ({"null": "10_a.tau=1"}, one, other), "the number 1 and the text 1 are two variants"


def test_differences_of_other_protocols_are_refused():
    jobs, documents = study({0.1: {0: 0.1}, 0.2: {0: 0.2}}, manifest_fingerprint="other")
    with pytest.raises(protocols.ProtocolError, match="0.1-0, 0.2-0.*manifest_fingerprint"):
        sweeps.difference(sweeps.groups(jobs)[1], documents, KEY)
