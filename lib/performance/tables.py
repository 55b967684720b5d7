"""Comparisons and growths as tables for people and as metrics for results."""
from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from lib.performance.measure import Comparison, Growth, near, shown
from lib.performance.memory import MIB


def ratios(found: Sequence[Comparison]) -> pd.DataFrame:
    """A row for each comparison: medians by wall clock, ratios by both clocks, what was asked, and memory."""
    rows = []
    for one in found:
        ours, theirs = one.seconds
        rows.append({"work": one.name, "peer": one.peer, "ours": shown(ours["wall"]), "peer's": shown(theirs["wall"]), "runs": len(one.theirs),
                     "times (wall)": f"{one.faster['wall']:.2f}", "times (CPU)": f"{one.faster['CPU']:.2f}", "judged by": " and ".join(one.judged),
                     "asked": "" if one.asked is None else f"{one.asked:g}", "met": {None: "", True: "yes", False: "no"}[one.met],
                     "memory": _mib(one.memory[0]), "peer's memory": _mib(one.memory[1])})
    return pd.DataFrame(rows)


def growths(found: Sequence[Growth]) -> pd.DataFrame:
    """A row for each growth: the sizes, the time of the largest, and slopes of time and memory beside the expected order."""
    rows = []
    for one in found:
        memory = "not judged" if one.memory_order is None else "not measured" if one.memory_slope is None else f"{one.memory_slope:.2f}"
        rows.append({"work": one.name, "sizes": ", ".join(f"{size:,}" for size in one.sizes), "counted": one.unit,
                     "CPU of the largest": shown(one.times[-1][1]), "time slope": f"{one.time_slope:.2f}", "expected": f"{one.time_order:g}",
                     "memory of the largest": _mib(one.memory[-1] if one.memory else None), "memory slope": memory,
                     "expected (memory)": "" if one.memory_order is None else f"{one.memory_order:g}", "within 10 %": "yes" if one.met else "no"})
    return pd.DataFrame(rows)


def explained(compared: Sequence[Comparison], grown: Sequence[Growth]) -> list[str]:
    """One sentence for everything that is not met, by what its own runs say."""
    return [f"{one.name}: {one.explanation()}." for one in (*compared, *grown) if one.met is False]


def metric_values(compared: Sequence[Comparison], grown: Sequence[Growth]) -> list[dict]:
    """Arguments of `lib.workbook.results.metric`.

    Ratios: baseline is what was asked for, and 1, the peer itself, where nothing was. Slopes: baseline is the expected order.
    """
    rows = [dict(name=f"{one.name}: times as fast as {one.peer}", value=one.times, n=len(one.theirs), baseline=one.asked or 1.0,
                 headline=one.asked is not None) for one in compared]
    rows += [dict(name=f"{one.name}: times less memory than {one.peer}", value=one.less_memory, n=1, baseline=1.0)
             for one in compared if one.less_memory is not None]
    for one in grown:
        rows.append(dict(name=f"{one.name}: slope of time over {one.unit}", value=one.time_slope, n=len(one.sizes), baseline=one.time_order,
                         higher_is_better=False))
        if one.memory_slope is not None:
            rows.append(dict(name=f"{one.name}: slope of memory over {one.unit}", value=one.memory_slope, n=len(one.sizes),
                             baseline=one.memory_order, higher_is_better=False))
    return rows


def judgement(compared: Sequence[Comparison], grown: Sequence[Growth]) -> str:
    """How much of what was asked for is reached."""
    asked = [one for one in compared if one.asked is not None]
    slopes = [near(found, order) for one in grown for found, order in one.judged()]
    return f"{sum(bool(one.met) for one in asked)} of {len(asked)} ratios reach what was asked; {sum(slopes)} of {len(slopes)} slopes are within 10 %"


def _mib(count: int | None) -> str:
    return "" if count is None else f"{count / MIB:,.1f} MiB"
