"""Slopes, ratios and their judgement, and the reading of time (quick; the timings beside it are slow tests)."""
import math
import time

import numpy as np
import pandas as pd
import pytest
import torch

from lib.performance import tables
from lib.performance.measure import Comparison, Growth, compare, growth, near, need, runs, slope, threads
from lib.performance.parts import PARTS
from lib.glossary import PARAMETERS
from lib.workbook import results


def compared(ours=(1.0, 2.0), theirs=(2.0, 4.0), **told):
    """Three equal runs each."""
    return Comparison("work", "peer", [ours] * 3, [theirs] * 3, threads=2, **told)


@pytest.mark.parametrize("order", (0.0, 0.5, 1.0, 2.0))
def test_slope_of_a_power_law_is_its_exponent(order):
    sizes = (10, 20, 40, 80)
    assert slope(sizes, [3.7 * n**order for n in sizes]) == pytest.approx(order, abs=1e-12)
    found = Growth("work", "clips", sizes, [(1.0, 3.7 * n**order) for n in sizes], [int(1e6 * n**order) for n in sizes], order, order)
    assert found.met and found.explanation() == "" and found.memory_slope == pytest.approx(order, abs=1e-3)


def test_slope_is_least_squares_of_logarithms_and_refuses_what_has_none():
    x, y = np.array([1, 2, 4, 8.0]), np.array([1, 2.5, 3.5, 9.0])
    centred = np.log(x) - np.log(x).mean()
    assert slope(x, y) == pytest.approx((centred * np.log(y)).sum() / (centred**2).sum())
    for sizes, values in (((1,), (1,)), ((1, 2), (0, 1)), ((1, 2), (1,)), ((0, 2), (1, 1))):
        with pytest.raises(ValueError, match="a slope needs two sizes"):
            slope(sizes, values)


@pytest.mark.parametrize("found, order, expected", [(0.91, 1, True), (0.89, 1, False), (1.09, 1, True), (1.11, 1, False), (0.09, 0, True),
                                                    (-0.11, 0, False), (1.81, 2, True), (2.3, 2, False)])
def test_near_is_within_ten_percent(found, order, expected):
    assert near(found, order) is expected


def test_a_constant_flattens_a_slope_and_is_named():
    sizes = (1, 2, 4, 8)
    flat = Growth("work", "clips", sizes, [(0, 1.0 + n) for n in sizes], None)
    assert not flat.met and flat.memory_slope is None and "time: about 50% of the smallest size is a constant" in flat.explanation()
    steep = Growth("work", "clips", sizes, [(0, float(n)) for n in sizes], [n**2 for n in sizes])
    assert not steep.met and steep.explanation() == "memory: a unit of work at the largest size costs 8.00 times what it does at the smallest"
    assert Growth("work", "clips", sizes, [(0, float(n)) for n in sizes], [n**2 for n in sizes], memory_order=None).met


def test_ratio_of_medians():
    found = Comparison("work", "peer", [(1, 1), (9, 9), (2, 3)], [(4, 4), (8, 12), (100, 100)], threads=1, asked=4.0)
    assert found.faster == {"wall": 4.0, "CPU": 4.0} and found.times == 4.0 and found.met and found.explanation() == ""
    found.require()
    assert compared().met is None and compared(memory=(10, 40)).less_memory == 4 and compared(memory=(None, 40)).less_memory is None


def test_clocks_that_count():
    """The slower clock decides; the wall clock does not where the peer lacked its cores and needs them."""
    uneven = dict(ours=(1.0, 1.0), theirs=(3.0, 2.0))
    assert compared(**uneven).times == 2 and compared(**uneven, clocks=("wall",)).times == 3
    assert compared(**uneven, clocks=("wall",), cores=1).times == 2 and compared(**uneven, clocks=("wall",), cores=1).judged == ("CPU",)
    assert not compared(theirs=(2.5, 4.0), cores=2).busy and compared(theirs=(2.51, 4.0), cores=2).busy
    with pytest.raises(AssertionError, match="at least 2.5 is required of CPU"):
        compared(**uneven, cores=1, asked=2.5).require()


def test_explanations_say_what_the_runs_say():
    assert "the machine was busy: peer had 0.5 of 2 cores" in compared(theirs=(8.0, 4.0), cores=2, asked=3).explanation()
    assert "only the wall clock misses it" in compared(ours=(2.0, 1.0), theirs=(4.0, 4.0), asked=3).explanation()
    spread = Comparison("work", "peer", [(1, 1)] * 3, [(2, 2), (2, 2), (4, 4)], threads=2, asked=3)
    assert spread.explanation() == "single runs reach from 2.00 to 4.00: what was asked for lies within the spread of this machine"
    assert "no single run reaches it (best 2.00)" in compared(asked=3).explanation()


def test_time_and_memory_are_those_of_the_work():
    def sleep():
        time.sleep(0.05)

    def spin():
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
    found = compare("nothing to do", "busy waiting", sleep, spin, 3)
    ours, theirs = found.seconds
    assert ours["wall"] >= 0.05 and ours["CPU"] < 0.03 and theirs["CPU"] >= 0.045 and len(found.ours) == len(found.theirs) == 3
    order = []
    runs({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, {"a": 2})
    assert order == ["a", "a", "b", "b", "a", "a"]


def test_growth_of_copies_is_linear():
    data = torch.rand(8_000_000)
    with threads(2):
        found = growth("copy", "numbers", lambda n: lambda: data[:n] + 1, (1_000_000, 2_000_000, 4_000_000, 8_000_000), 3)
        assert torch.get_num_threads() == 2
    assert len(found.times) == 4 and all(cpu > 0 for _, cpu in found.times) and 0.3 < found.time_slope < 2
    assert found.memory is None or found.memory_slope == pytest.approx(1, abs=0.05)


def test_a_missing_peer_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "geoopt", None)
    with pytest.raises(ModuleNotFoundError, match="needs the package geoopt.*pip install geoopt"):
        need("geoopt", "geoopt")


def test_tables_and_metrics():
    some = [compared(asked=1.5, memory=(2**20, 2**22), note="equal"), compared(), compared(asked=3.0)]
    sizes = (1, 2, 4, 8)
    slopes = [Growth("good", "clips", sizes, [(1, n) for n in sizes], [n for n in sizes]),
              Growth("bad", "clips", sizes, [(1, n**2) for n in sizes], None)]
    table = tables.ratios(some)
    assert table["met"].tolist() == ["yes", "", "no"] and table["peer's memory"].tolist() == ["4.0 MiB", "", ""] and table["asked"][0] == "1.5"
    assert tables.growths(slopes)["within 10 %"].tolist() == ["yes", "no"] and isinstance(tables.growths(slopes), pd.DataFrame)
    assert [sentence.partition(":")[0] for sentence in tables.explained(some, slopes)] == ["work", "bad"]
    assert tables.judgement(some, slopes) == "1 of 2 ratios reach what was asked; 2 of 3 slopes are within 10 %"
    rows = [results.metric(split="synthetic", **row) for row in tables.metric_values(some, slopes)]
    assert [(round(row["value"], 9), row["baseline"]) for row in rows] == [(2, 1.5), (2, 1), (2, 3), (4, 1), (1, 1), (1, 1), (2, 1)]
    assert [row["headline"] for row in rows[:3]] == [True, False, True] and all(math.isfinite(row["value"]) for row in rows)


def test_glossary_knows_the_parts():
    assert PARAMETERS["parts"].choices == tuple(PARTS)
