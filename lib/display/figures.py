"""Figures of the notebooks: each function takes data and returns one `Picture` (a matplotlib Figure unknown to pyplot).

Convention: arrays are numpy or torch; times are seconds, shares 0 to 1. Nothing is normalised behind the reader's back.
Labels are shortened and titles wrapped to fit; a title is the caller's sentence, in sentence case.
"""
from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import seaborn
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from lib.display import style
from lib.display.spectrograms import log_mel, log_mel_grid
from lib.display.style import Picture, shortened, themed, to_array

if TYPE_CHECKING:
    from lib.data.manifest import Manifest

__all__ = ["confusion_matrix", "dataset_overview", "log_mel", "log_mel_grid", "metric_bars", "recall_curve", "score_histogram",
           "similarity_heatmap", "training_curves"]


@themed
def training_curves(history, *, references: Mapping[str, float] | None = None, metrics: Sequence[str] | None = None,
                    title: str = "Training") -> Picture:
    """Losses, metrics and learning rate over the run.

    Args:
        history: DataFrame, or list of dict, of numbers with a column "step" or "epoch" (the x axis, in that order); other columns
            may have gaps. A column is a loss when its name contains "loss" or starts with "train/" (a loss term of the
            training log), a learning rate when a part of it is "lr" or "learning_rate", and a metric otherwise. Metrics
            between 0 and 1 share a panel; each other one has its own.
        references: label -> value between 0 and 1, grey lines in the metric panel (chance, ceiling, baseline).
        metrics: the metric columns to show, when not all.

    Raises:
        ValueError: no "step" or "epoch" column, an unknown metric, or nothing to draw.
    """
    table = pd.DataFrame(history)
    x = next((c for c in ("step", "epoch") if c in table), None)
    if x is None:
        raise ValueError(f"history needs a column 'step' or 'epoch', has {list(table.columns)}")
    missing = [m for m in metrics or () if m not in table]
    if missing:
        raise ValueError(f"history has no column {missing[0]!r}; it has {list(table.columns)}")
    panels = _panels(table, metrics)
    if not panels:
        raise ValueError(f"history has no numbers to draw; its columns are {list(table.columns)}")
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    longest = max(len(series) for _, series, _ in panels) + len(references or {})
    below = longest > 6  # a legend this long would hide the curves: it goes below its panel
    picture = Picture(height=0.4 + 2.9 * rows + (0.1 * longest + 0.3 if below else 0))
    grid = picture.subplots(rows, columns, squeeze=False)
    for axes, (name, series, label) in zip(grid.flat, panels):
        for i, column in enumerate(series):
            points = table[[x, column]].dropna()
            axes.plot(points[x], points[column], label=shortened(column), linewidth=1.6,
                      linestyle="-" if i < len(style.PALETTE) else "--", marker="o" if len(points) < 30 else None, markersize=4)
        lines = (references or {}).items() if name == "Metrics" else ()
        for (reference, value), dash in zip(lines, itertools.cycle(("--", ":", "-."))):
            axes.axhline(value, color=style.CHANCE, linestyle=dash, linewidth=1.3, label=shortened(reference))
        if name in ("Metrics", "Learning rate"):
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
        axes.set(title=name, xlabel=x.capitalize(), ylabel=label)
        if table[x].nunique() == 1:
            axes.set_xlim(table[x].iloc[0] - 1, table[x].iloc[0] + 1)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if below and len(axes.lines) > 6:
            axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.45, -0.24), ncols=2)
        elif len(axes.lines) > 1:
            axes.legend(fontsize=8, loc="best")
    for axes in grid.flat[len(panels):]:
        axes.set_axis_off()
    picture.set_title(title)
    return picture


def _panels(table: pd.DataFrame, metrics: Sequence[str] | None) -> list[tuple[str, list[str], str]]:
    """(title, columns, y label) of each panel of `training_curves`."""
    numbers = [c for c in table.columns if c not in ("step", "epoch") and pd.api.types.is_numeric_dtype(table[c])
               and table[c].notna().any()]
    losses = [c for c in numbers if "loss" in c or c.startswith("train/")]
    rates = [c for c in numbers if re.search(r"(^|[/_-])(lr|learning_rate)($|[/_-])", c)]
    rest = [c for c in numbers if c not in losses + rates and (metrics is None or c in metrics)]
    shares = [c for c in rest if table[c].dropna().between(0, 1).all()]
    panels = [("Loss", losses, "Loss"), ("Metrics", shares, "Share (0 to 1)"), ("Learning rate", rates, "Learning rate"),
              *((shortened(c), [c], shortened(c)) for c in rest if c not in shares)]
    return [panel for panel in panels if panel[1]]


def _heatmap(values: np.ndarray, rows, columns, *, cell: float, size: float, margin: float, unit: str, **options):
    """seaborn's heat map of `values` with cells of `cell` inches and labels of `size` points; returns picture and axes."""
    picture = Picture(width=max(5, margin + cell * values.shape[1]), height=max(3, 1.5 + cell * values.shape[0]))
    axes = picture.subplots()
    seaborn.heatmap(values, ax=axes, xticklabels=columns, yticklabels=rows,
                    cbar_kws={"label": unit, "fraction": 0.03, "pad": 0.02, "aspect": 30}, **options)
    axes.set_xticks(axes.get_xticks(), axes.get_xticklabels(), rotation=90 if values.shape[1] > 3 else 0, fontsize=size)
    axes.set_yticks(axes.get_yticks(), axes.get_yticklabels(), rotation=0, fontsize=size)
    return picture, axes


@themed
def similarity_heatmap(matrix, row_labels: Sequence[str] = (), column_labels: Sequence[str] = (), *, relevant=None,
                       title: str = "Similarity of captions and clips", row_name: str = "Caption", column_name: str = "Clip",
                       unit: str = "Similarity") -> Picture:
    """Scores of queries against a gallery; relevant cells are outlined.

    Args:
        matrix: (Q, N) scores.
        row_labels, column_labels: Q and N texts; without them, or with more than 60, rows and columns are numbered.
        relevant: (Q, N) bool, cells to outline.
    """
    matrix = to_array(matrix, "matrix", 2)
    texts = []
    for labels, count, name in zip((row_labels, column_labels), matrix.shape, ("row_labels", "column_labels")):
        if len(labels) not in (0, count):
            raise ValueError(f"{name} has {len(labels)} texts, expected {count}, as many as matrix {matrix.shape} has there")
        texts.append([shortened(v) for v in labels] if 0 < count == len(labels) <= 60 else "auto")
    longest = max(matrix.shape)
    picture, axes = _heatmap(matrix, *texts, cell=0.36 if longest <= 15 else 0.24 if longest <= 30 else min(0.165, 8 / longest),
                             size=8 if longest <= 30 else 6.5, margin=3.4, unit=unit, cmap=style.HEAT,
                             annot=matrix.size <= 225, fmt=".2f", annot_kws={"size": 7}, linewidths=0.4 if longest <= 60 else 0)
    if relevant is not None:
        relevant = to_array(relevant, "relevant", 2).astype(bool)
        if relevant.shape != matrix.shape:
            raise ValueError(f"relevant has shape {relevant.shape}, matrix {matrix.shape}: they must be the same")
        axes.add_collection(PatchCollection([Rectangle((n, q), 1, 1) for q, n in np.argwhere(relevant)], facecolor="none",
                                            edgecolor=style.BASELINE, linewidth=1.8 if longest <= 60 else 0.8, clip_on=False))
    axes.set(xlabel=column_name, ylabel=row_name)
    picture.set_title(title if relevant is None else f"{title} (outlined: relevant)")
    return picture


@themed
def confusion_matrix(counts, classes: Sequence[str], *, normalised: bool = True, title: str = "Confusion matrix") -> Picture:
    """How often each true class (row) was taken for each class (column). A row's label carries its number of clips.

    Args:
        counts: (C, C) numbers of clips, row = truth, column = prediction.
        classes: C names.
        normalised: colours and numbers are shares of a row (a row without clips is all zero); otherwise clips.
            Numbers are written into the cells for up to 30 classes; a zero stays blank.
    """
    counts = to_array(counts, "counts", 2)
    number = len(classes)
    if counts.shape != (number, number):
        raise ValueError(f"counts has shape {counts.shape}, expected ({number}, {number}) for {number} classes")
    total = counts.sum(1)
    values = counts / np.maximum(total, 1)[:, None] if normalised else counts
    write = (lambda v: f"{v:.2f}".replace("0.", ".", 1)) if normalised else (lambda v: f"{v:g}")
    text = np.array([["" if v == 0 else write(v) for v in row] for row in values], dtype=object) if number <= 30 else None
    names = [shortened(c, 22) for c in classes]
    cell, size = (0.5, 9) if number <= 12 else (0.3, 8) if number <= 30 else (0.165, 6.5)
    picture, axes = _heatmap(values, [f"{c} ({n:g})" for c, n in zip(names, total)], names, cell=cell, size=size, margin=2.8,
                             unit="Share of the row" if normalised else "Clips", cmap="Blues", square=True, annot=text, fmt="",
                             vmin=0, vmax=1 if normalised else max(1, counts.max()),
                             annot_kws={"size": 9 if number <= 12 else 6.5}, linewidths=0.4, linecolor="#e3e3e3")
    axes.set(xlabel="Predicted class", ylabel="True class (clips)")
    picture.set_title(title)
    return picture


_MARKS = {"chance": ("|", style.CHANCE), "baseline": ("D", style.BASELINE), "control": ("s", style.CONTROL),
          "ceiling": ("|", style.CEILING)}


@themed
def metric_bars(rows: Sequence[Mapping], *, title: str = "Results", xlabel: str = "Value (0 to 1)") -> Picture:
    """The honest-number picture: every value with its interval, and beside it chance, baseline, control and ceiling.

    Args:
        rows: from top to bottom, dicts with "name" and "value" and, where known, "interval" (low, high), "chance", "baseline",
            "control", "ceiling"; entries of `lib.workbook.results.metric` fit. All in one unit.
    """
    if not rows:
        raise ValueError("rows is empty, expected at least one {'name': ..., 'value': ...}")
    picture = Picture(height=1.3 + 0.42 * len(rows))
    axes = picture.subplots()
    handles, numbers = {}, [0.0, 1.0]
    for y, row in enumerate(rows):
        value, interval = row["value"], row.get("interval")
        axes.barh(y, value, height=0.5, color=style.MODEL, alpha=0.22, zorder=1)
        handles["model"], = axes.plot(value, y, "o", color=style.MODEL, markersize=7, zorder=5)
        if interval is not None:
            handles["interval"], = axes.plot(interval, (y, y), color=style.MODEL, linewidth=2.2, solid_capstyle="butt", zorder=3)
        known = {mark: row[mark] for mark in _MARKS if row.get(mark) is not None}
        for mark, where in known.items():
            shape, colour = _MARKS[mark]
            handles[mark], = axes.plot(where, y, shape, color=colour, zorder=4, linestyle="none",
                                       markersize=16 if shape == "|" else 6, markeredgewidth=2.4 if shape == "|" else 1)
        axes.text(1.02, y, f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}", transform=axes.get_yaxis_transform(),
                  va="center", fontsize=10)
        numbers += [value, *(interval or ()), *known.values()]
    axes.set_yticks(range(len(rows)), [shortened(r["name"]) for r in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(min(numbers), max(numbers) * 1.01)
    axes.grid(axis="y", visible=False)
    axes.set(xlabel=xlabel)
    order = [name for name in ("model", "interval", *_MARKS) if name in handles]
    picture.legend([handles[name] for name in order], order, loc="outside lower center", ncols=len(order), markerscale=0.7)
    picture.set_title(title)
    return picture


@themed
def dataset_overview(manifest: Manifest, *, title: str | None = None) -> Picture:
    """Durations, clips of each split, and clips of each label (at most 60 labels) of a `lib.data.manifest.Manifest`."""
    table, classes = manifest.table, list(manifest.classes)
    if not len(table):
        raise ValueError(f"manifest {manifest.name!r} has no clips to show")
    shown, seconds = classes[:60], table["duration"].to_numpy(float)
    by_split = {s: table[table["split"] == s] for s in style.SPLIT if (table["split"] == s).any()}
    picture = Picture(height=max(4.6, 0.9 + 0.17 * len(shown)))
    grid = picture.add_gridspec(2, 2, width_ratios=(1, 1.25))
    durations, clips, labels = (picture.add_subplot(place) for place in (grid[0, 0], grid[1, 0], grid[:, 1]))

    centre, spread = (seconds.max() + seconds.min()) / 2, max(np.ptp(seconds), 1.0)  # equal durations make one bar in one second
    durations.hist([t["duration"] for t in by_split.values()], bins=np.linspace(centre - spread / 2, centre + spread / 2, 31),
                   stacked=True, color=[style.SPLIT[s] for s in by_split], linewidth=0)
    durations.set(title="Duration of a clip", xlabel="Duration (s)", ylabel="Clips")

    bars = clips.barh(list(by_split), [len(t) for t in by_split.values()], color=[style.SPLIT[s] for s in by_split], height=0.6)
    clips.bar_label(bars, padding=3, fontsize=9)
    clips.set_xlim(0, 1.18 * max(len(t) for t in by_split.values()))
    clips.set_ylim(len(by_split) - 0.5, -0.5)
    clips.set(title="Clips of each split (also the colours)", xlabel="Clips")

    left = np.zeros(len(shown))
    for split, part in by_split.items():
        counts = part["labels"].explode().value_counts()
        width = np.array([float(counts.get(c, 0)) for c in shown])
        labels.barh(range(len(shown)), width, left=left, color=style.SPLIT[split], height=0.75, linewidth=0)
        left += width
    labels.set_yticks(range(len(shown)), [shortened(c, 24) for c in shown], fontsize=9 if len(shown) <= 25 else 7.5)
    labels.set_ylim(max(len(shown), 10) - 0.4, -0.6)
    some = f" (first {len(shown)} of {len(classes)})" if len(shown) < len(classes) else ""
    labels.set(title=f"Clips of each label{some}", xlabel="Clips")
    for axes, off in ((durations, "x"), (clips, "y"), (labels, "y")):
        axes.grid(axis=off, visible=False)
    picture.set_title(title or f"{manifest.info.get('title', manifest.name)}: {len(table)} clips, {seconds.sum() / 60:.1f} min")
    return picture


@themed
def score_histogram(positive, negative, *, title: str = "Scores of matching and other pairs",
                    xlabel: str = "Similarity") -> Picture:
    """How far apart the scores of matching and of other pairs lie.

    Args:
        positive, negative: (P,) and (M,) scores. Each histogram is in shares of its own pairs, on common bins; dashed: medians.
    """
    positive, negative = to_array(positive, "positive", 1), to_array(negative, "negative", 1)
    edges = np.histogram_bin_edges(np.concatenate([positive, negative]), bins=50)
    picture = Picture(height=3.3)
    axes = picture.subplots()
    for name, values, colour in (("matching pairs", positive, style.MODEL), ("other pairs", negative, style.BASELINE)):
        axes.hist(values, bins=edges, weights=np.full(len(values), 1 / len(values)), color=colour, alpha=0.55, linewidth=0,
                  label=f"{name} ({len(values)})")
        axes.axvline(float(np.median(values)), color=colour, linestyle="--", linewidth=1.6)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set(xlabel=xlabel, ylabel="Share of the pairs")
    axes.legend()
    picture.set_title(title)
    return picture


@themed
def recall_curve(ranks, *, gallery: int, relevant=1, title: str = "Recall over the length of the list") -> Picture:
    """R@k for every k: the share of queries whose best relevant clip is among the first k.

    Args:
        ranks: (Q,) rank of the best relevant clip of each query, 1 to `gallery`; or name -> ranks for several curves.
        gallery: number of clips ranked.
        relevant: relevant clips of a query, a number or (Q,); sets the chance curve.

    Raises:
        ValueError: a rank outside 1 to `gallery`.
    """
    k = np.arange(1, gallery + 1)
    picture = Picture(height=3.4)
    axes = picture.subplots()
    for name, values in (ranks if isinstance(ranks, Mapping) else {"model": ranks}).items():
        values = to_array(values, f"ranks of {name}", 1)
        if values.min() < 1 or values.max() > gallery:
            raise ValueError(f"ranks of {name} run from {values.min():g} to {values.max():g}, expected 1 to gallery={gallery}")
        axes.plot(k, np.searchsorted(np.sort(values), k, side="right") / len(values), linewidth=2, label=shortened(name))
    # Chance that k clips drawn without replacement miss all r relevant ones: the product over i < r of (N - k - i) / (N - i).
    numbers, queries = np.unique(np.asarray(relevant, int), return_counts=True)
    missed = [np.prod([np.maximum(gallery - k - i, 0) / (gallery - i) for i in range(r)], axis=0) for r in numbers]
    chance = 1 - np.average(missed, axis=0, weights=queries)
    axes.plot(k, chance, color=style.CHANCE, linestyle="--", linewidth=1.5, label="chance")
    axes.set_xscale("log")
    axes.set_xlim(1, max(gallery, 2))
    axes.set_ylim(0, 1.02)
    ticks = [t * 10 ** power for power in range(6) for t in (1, 2, 5) if t * 10 ** power <= gallery]
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.set(xlabel=f"k: length of the list (of {gallery} clips)", ylabel="Recall at k (share of queries)")
    axes.legend(loc="lower right")
    picture.set_title(title)
    return picture
