"""Figures of notebook 91: ratios beside what was asked, and growth on logarithmic axes beside its expected order."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import FuncFormatter, NullFormatter

from lib.display import style
from lib.display.style import Picture, shortened, themed


@themed
def ratios(names: Sequence[str], times: Sequence[float], asked: Sequence[float | None], *, title: str = "Times as fast as the peer") -> Picture:
    """A bar for each ratio on a logarithmic axis, a mark where it should reach at least, and a line at 1, the peer.

    Args: times: above 0.  asked: None where nothing was.
    Raises: ValueError: nothing to draw, lengths that differ, or a ratio that is not above 0.
    """
    if not len(names) or not len(names) == len(times) == len(asked) or min(times) <= 0:
        raise ValueError(f"{len(names)} names, {len(times)} ratios and {len(asked)} that were asked: expected one of each, and ratios above 0")
    picture = Picture(height=1.2 + 0.3 * len(names))
    axes, rows = picture.subplots(), np.arange(len(names))
    colours = [style.MODEL if wanted is None or value >= wanted else style.BASELINE for value, wanted in zip(times, asked)]
    axes.barh(rows, np.asarray(times) - 1, left=1, color=colours, height=0.65)          # from the peer's 1 on
    for row, wanted in zip(rows, asked):
        if wanted is not None:
            axes.plot([wanted], [row], marker="|", color="black", markersize=14, markeredgewidth=2)
    for row, value in zip(rows, times):
        axes.annotate(f"{value:.2f}" if value < 100 else f"{value:.0f}", (max(value, 1), row), xytext=(9, 0), textcoords="offset points", va="center",
                      fontsize=8)
    axes.axvline(1, color=style.CHANCE, linewidth=1.2)
    axes.set_xscale("log")
    axes.set_xlim(min(0.8, 0.8 * min(times)), 3 * max(1.5, *times, *(wanted or 1 for wanted in asked)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(rows, [shortened(name, 44) for name in names], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="Times as fast (mark: asked; line at 1: the peer)")
    picture.set_title(title)
    return picture


@themed
def growth(curves: Sequence[dict], *, quantity: str, title: str) -> Picture:
    """A small log-log panel for each curve: what was measured, the fitted slope, and dashed the expected order through the middle of the points.

    Args: curves: dicts of name, unit, sizes, values (above 0), slope, order.  quantity: label of the y axes.
    Raises: ValueError: nothing to draw.
    """
    if not len(curves):
        raise ValueError("curves is empty, expected at least one measured growth")
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    picture = Picture(height=0.6 + 2.5 * rows)
    grid = picture.subplots(rows, columns, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= len(curves):
            axes.set_axis_off()
            continue
        curve = curves[place]
        sizes, values = np.asarray(curve["sizes"], float), np.asarray(curve["values"], float)
        middle = np.exp(np.log(values).mean() - curve["order"] * np.log(sizes).mean())
        axes.plot(sizes, middle * sizes ** curve["order"], linestyle="--", color=style.CHANCE, linewidth=1.4, label=f"order {curve['order']:g}")
        axes.plot(sizes, values, marker="o", markersize=5, color=style.MODEL, linewidth=1.6, label=f"slope {curve['slope']:.2f}")
        axes.set_xscale("log")
        axes.set_yscale("log")
        spread = max(values.max() / values.min(), 4.0) ** 0.5 * 1.6                      # a constant should look like one
        centre = (values.max() * values.min()) ** 0.5
        axes.set_ylim(centre / spread, centre * spread)
        axes.set_xticks(sizes, [_short(size) for size in sizes], fontsize=7)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_title(shortened(curve["name"], 34), fontsize=9)
        axes.set_xlabel(curve["unit"].capitalize())
        axes.set_ylabel(quantity if place % columns == 0 else "")
        axes.legend(fontsize=8, loc="upper left")
    picture.set_title(title)
    return picture


def _short(size: float) -> str:
    return f"{size / 1000:g}k" if size >= 10_000 else f"{size:g}"
