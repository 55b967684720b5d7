"""Where a family's numbers stand between knowing nothing and the best possible, and its differences beside no difference."""
from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.lines import Line2D

from lib.display import style
from lib.display.style import Picture, shortened, themed

_ROW_HEIGHT = 0.36            # inches
_MOST = 24                    # rows of a panel; the rest stand in the table
_LONG = 46                    # characters of a line of a row's name
_EDGES = (-0.35, 1.12)        # of the panel of levels
_OTHER = {"baseline": dict(marker="s", color=style.BASELINE, markersize=5), "control": dict(marker="X", color=style.CONTROL, markersize=6)}
_PUBLISHED = dict(marker="D", markerfacecolor="none", markeredgecolor=style.PALETTE[3], markersize=7)


def position(value: float, nothing: float | None, best: float | None) -> float | None:
    """Where `value` lies between what knowing nothing gives (0) and the best possible (1); None where one of them is not known.

    Errors fall as they get better, so there `best` is below `nothing`; the position is 1 at `best` all the same.
    """
    known = [number for number in (nothing, best) if number is not None and math.isfinite(number)]
    return None if len(known) < 2 or nothing == best else (value - nothing) / (best - nothing)


def anchors(row: Mapping) -> tuple[float | None, float | None, str]:
    """(what knowing nothing gives, the best possible, the name of the first) of a metric.

    Chance, or where there is none the baseline; the ceiling, or 0 of an error that has none. Lower is better of other things as well
    (what a shortcut tells, say), whose best is not 0.
    """
    nothing, name = (row["chance"], "chance") if row["chance"] is not None else (row["baseline"], "baseline")
    best = row["ceiling"]
    if best is None and "error" in row["name"]:
        best = 0.0
    return nothing, best, name


@themed
def family(rows: Sequence[Mapping], published: Sequence[Mapping] = (), *, title: str = "") -> Picture:
    """Dots with 95 % intervals: levels between chance and ceiling, differences around 0, published numbers of other protocols apart.

    Every panel has a scale of its own, because a position between one task's chance and ceiling is nothing that another task's number
    or a number of another protocol could be read on. The numbers themselves stand at the right; an arrow points at what lies outside.

    Args:
        rows: metrics of ours: name, value, low, high, chance, baseline, control, ceiling (None: not known), higher_is_better,
            difference (bool), published: values under the very same protocol. One without anchors is left to the table.
        published: shares of other protocols: name, value in 0..1.
    Raises: ValueError: nothing to draw.
    """
    levels = [row for row in rows if not row["difference"] and position(row["value"], *anchors(row)[:2]) is not None]
    differences = [row for row in rows if row["difference"]]
    panels = [(draw, some[:_MOST], len(some)) for draw, some in ((_levels, levels), (_differences, differences), (_published, list(published))) if some]
    if not panels:
        raise ValueError("no metric has both chance (or a baseline) and a ceiling, and there is no difference: nothing to draw")
    heights = [len(some) + 1.6 for _, some, _ in panels]
    picture = Picture(height=_ROW_HEIGHT * sum(heights) + 0.9)
    marks: dict[str, Line2D] = {}
    for axes, (draw, some, there) in zip(picture.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0], panels):
        text = draw(axes, some, marks) + (f", {len(some)} of {there} rows" if len(some) < there else "")
        axes.set_title(text, fontsize=10)
        axes.set_ylim(len(some) - 0.4, -0.6)
        axes.set_yticks(range(len(some)), ["\n".join(textwrap.wrap(shortened(row["name"], 2 * _LONG), _LONG)[:2]) for row in some], fontsize=8)
        axes.grid(axis="y", visible=False)
    picture.legend(marks.values(), marks, loc="outside lower center", ncols=len(marks), fontsize=8)
    if title:
        picture.set_title(title)
    return picture


def _levels(axes, rows: Sequence[Mapping], marks: dict) -> str:
    axes.set_xlim(*_EDGES)
    kinds = set()
    for y, row in enumerate(rows):
        nothing, best, kind = anchors(row)
        kinds.add(kind)
        place = {key: None if row[key] is None else position(row[key], nothing, best) for key in ("value", "low", "high", *_OTHER)}
        _dot(axes, y, place["value"], place["low"], place["high"], marks)
        for name, look in _OTHER.items():
            if place[name] is not None and name != kind:
                marks[name] = axes.plot(place[name], y, linestyle="none", zorder=5, **look)[0]
        for value in row["published"]:
            marks["published, same protocol"] = axes.plot(position(value, nothing, best), y, linestyle="none", zorder=5, **_PUBLISHED)[0]
        if not _EDGES[0] <= place["value"] <= _EDGES[1]:
            far = place["value"] > _EDGES[1]
            axes.plot(_EDGES[far], y, marker=">" if far else "<", color=style.MODEL, markersize=8, clip_on=False, zorder=4)
        _write(axes, y, f"{_number(row)}   {kind} {nothing:.3g}, best {best:.3g}")
    for x, colour in ((0, style.CHANCE), (1, style.CEILING)):
        axes.axvline(x, color=colour, linestyle="--", linewidth=1.2, zorder=1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], [" / ".join(sorted(kinds, reverse=True)), "25 %", "50 %", "75 %", "best"])
    return "From chance to the best possible"


def _differences(axes, rows: Sequence[Mapping], marks: dict) -> str:
    for y, row in enumerate(rows):
        inside = row["low"] is not None and row["low"] <= 0 <= row["high"]
        _dot(axes, y, row["value"], row["low"], row["high"], marks, hollow=inside or row["low"] is None)
        better = (row["value"] > 0) == row["higher_is_better"]
        _write(axes, y, f"{_number(row)}   " + ("no interval" if row["low"] is None else "no difference shown" if inside else "better" if better else "worse"))
    axes.axvline(0, color=style.CHANCE, linestyle="--", linewidth=1.2, zorder=1)
    axes.margins(x=0.1)
    return "Differences, each in its unit"


def _published(axes, rows: Sequence[Mapping], marks: dict) -> str:
    for y, row in enumerate(rows):
        marks["published"] = axes.plot(row["value"], y, linestyle="none", **_PUBLISHED)[0]
        _write(axes, y, f"{row['value']:.3g}")
    axes.set_xlim(0, 1.02)
    return "Published, of other protocols"


def _dot(axes, y: int, value: float, low: float | None, high: float | None, marks: dict, hollow: bool = False) -> None:
    if low is not None:
        axes.plot([low, high], [y, y], color=style.MODEL, linewidth=2, solid_capstyle="butt", zorder=3)
    dot, = axes.plot(value, y, "o", color=style.MODEL, markerfacecolor="white" if hollow else style.MODEL, markersize=8, markeredgewidth=1.6, zorder=4)
    marks["no difference shown" if hollow else "ours, 95 %"] = dot


def _number(row: Mapping) -> str:
    interval = "" if row["low"] is None else f" [{row['low']:.3g}, {row['high']:.3g}]"
    return f"{'+' if row['difference'] and row['value'] > 0 else ''}{row['value']:.3g}{interval}"


def _write(axes, y: int, text: str) -> None:
    axes.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=8, annotation_clip=False)
