"""What goes with the directions of the spatial-temporal family: the parts of its loss, and how far apart sound and text lie.

Every reference line is the value that a model which has learned nothing gives, except the modality loss's: there it is the aim.
"""
from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator

from lib.display import style
from lib.display.style import Picture, shortened, themed, to_array

LOSS_PARTS = {  # column of the training log: the seed's name and what it is
    "loss_spatial_semantic": "sound and full caption",
    "loss_semantic": "sound and plain caption",
    "loss_doa": "direction of arrival",
    "loss_logit_ts": "which of the triplet",
    "loss_modality": "sound or caption",
    "loss": "weighted sum",
}


@themed
def loss_parts(history, *, rows: int, events: int = 2, ordered: bool = False, weights: Mapping[str, float | tuple] | None = None,
               title: str = "Parts of the loss") -> Picture:
    """A panel for each part of the loss over the epochs, with the line of a model that knows nothing.

    Args:
        history: DataFrame, or list of dict, with a column "epoch" and, for each part to draw, "train/<part>", "<part>" or
            "val/<part>" (keys of `LOSS_PARTS`; several of one part share a panel); other columns and rows are left out.
        rows: clips of a batch over all processes, 3 a triplet: sets the lines of the two losses over the batch. ln(rows); with
            triplets less (2/3) ln 2 for `loss_semantic`, as positive and spatial negative have one plain caption.
        events: of a clip, 1, or 2 for triplets, and `ordered`, as in the direction loss: set its line.
        weights: part -> its weight in the sum, a number, or (first, last) of a schedule; written above the panel.

    Raises:
        ValueError: no column "epoch", no part to draw, an unknown part among the weights, or counts out of range.
    """
    if rows < 2 or events not in (1, 2):
        raise ValueError(f"need rows >= 2 and events 1 or 2, got rows={rows}, events={events}")
    unknown = set(weights or ()) - set(LOSS_PARTS)
    if unknown:
        raise ValueError(f"weights names {sorted(unknown)[0]!r}, expected some of {list(LOSS_PARTS)}")
    table = pd.DataFrame(history)
    known = [column for column in table if table[column].notna().any()]
    drawn = {part: [c for c in (f"train/{part}", part, f"val/{part}") if c in known] for part in LOSS_PARTS}
    drawn = {part: columns for part, columns in drawn.items() if columns}
    if "epoch" not in table or not drawn:
        raise ValueError(f"history needs a column 'epoch' and at least one of {list(LOSS_PARTS)}, has {list(table.columns)}")
    lines = _references(rows, events, ordered)
    columns = min(3, len(drawn))
    height = math.ceil(len(drawn) / columns)
    picture = Picture(height=0.9 + 2.7 * height)
    grid = picture.subplots(height, columns, squeeze=False)
    handles = {}
    for axes, (part, names) in zip(grid.flat, drawn.items()):
        for name in names:
            split = "val" if name.startswith("val/") else "train"
            points = table[["epoch", name]].dropna()
            handles[split], = axes.plot(points["epoch"], points[name], color=style.SPLIT[split], linewidth=1.7,
                                        marker="o" if len(points) < 30 else None, markersize=4)
        text, value = lines.get(part, ("", 0.0))
        if text:
            handles["reference"] = axes.axhline(value, color=style.CHANCE, linestyle="--", linewidth=1.3)
            axes.text(0, 1.02, f"dashed: {text}", color=style.CHANCE, fontsize=8.5, transform=axes.transAxes, in_layout=False)
        largest = table[names].replace([np.inf, -np.inf], np.nan).max().max()
        axes.set_ylim(0, 1.1 * max(largest if largest > 0 else 1.0, value))
        weight = (weights or {}).get(part)
        name = "total_loss" if part == "loss" else part
        axes.set_title(name if weight is None else f"{name} × {_weight(weight)}", fontsize=10, pad=20 if text else 6)
        axes.set(xlabel="Epoch", ylabel=LOSS_PARTS[part])
        if table.loc[table[names].notna().any(axis=1), "epoch"].nunique() == 1:
            axes.set_xlim(axes.lines[0].get_xdata()[0] - 1, axes.lines[0].get_xdata()[0] + 1)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axes in grid.flat[len(drawn):]:
        axes.set_axis_off()
    names = {"train": "training", "val": "validation", "reference": "nothing learned (of loss_modality: the aim)"}
    handles = {name: handles[name] for name in names if name in handles}
    picture.legend(handles.values(), [names[name] for name in handles], loc="outside lower center", ncols=3)
    picture.set_title(title)
    return picture


def _references(rows: int, events: int, ordered: bool) -> dict[str, tuple[str, float]]:
    """Part of the loss -> (words, value) of its reference line."""
    whole = math.log(rows)
    # Of the better of two assignments of random directions the mean cosine is 2/9.
    doa = 7 / 9 if events == 2 and not ordered else 1.0
    known = {"loss_spatial_semantic": (f"ln {rows}", whole), "loss_semantic": (f"ln {rows}", whole), "loss_doa": ("chance", doa)}
    if events == 2:
        known |= {"loss_semantic": (f"ln {rows} - 2/3 ln 2", whole - 2 / 3 * math.log(2)), "loss_logit_ts": ("ln 3", math.log(3))}
    known["loss_modality"] = ("ln 2", math.log(2))
    return {part: (f"{words} = {value:.3f}", value) for part, (words, value) in known.items()}


def _weight(weight) -> str:
    return f"{weight:g}" if np.isscalar(weight) else f"{weight[0]:g} to {weight[-1]:g}"


@themed
def modality_map(before, after, *, names: tuple[str, str] = ("Without the adversary", "With the adversary"),
                 figures: tuple[Mapping, Mapping] = ({}, {}), most: int = 200,
                 title: str = "Two modalities in one space") -> Picture:
    """Embeddings of sounds and captions in two dimensions, each sound joined to its caption, without and with the adversary.

    A panel's axes are the two directions in which its own sounds and captions together vary most (principal components of all of
    them); both axes have one unit, and the share of the variance that they hold is written there.

    Args:
        before, after: (audio (N, D), text (N, D)) of one model each, rows in pairs; normalise them first if the model does.
        figures: for each panel name -> value, or (value, chance), written above it: what the classifier of the modality reaches
            on held-out pairs (chance 0.5), a retrieval figure.
        most: pairs drawn at the most, evenly spaced.

    Raises:
        ValueError: audio and text of other shapes, fewer than two pairs, or embeddings that are not finite.
    """
    lines = [[_said(name, value) for name, value in numbers.items()] for numbers in figures]
    picture = Picture(height=5.2 + 0.2 * max(map(len, lines)))
    for axes, (audio, text), name, said in zip(picture.subplots(1, 2), (before, after), names, lines):
        flat, share = _principal(audio, text, name)
        shown = np.unique(np.linspace(0, len(flat[0]) - 1, min(most, len(flat[0]))).astype(int))
        audio, text = flat[0][shown], flat[1][shown]
        axes.add_collection(LineCollection(np.stack([audio, text], 1), color="#9a9a9a", linewidth=0.6, alpha=0.45, zorder=1))
        for points, colour, mark, label in ((audio, style.PALETTE[0], "o", "sound"), (text, style.PALETTE[1], "^", "caption")):
            axes.scatter(*points.T, s=20, color=colour, marker=mark, alpha=0.8, linewidth=0, label=label, zorder=2)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set(xlabel=f"First component ({share[0]:.0%} of the variance)", ylabel=f"Second component ({share[1]:.0%})")
        axes.set_title("\n".join([shortened(name, 44), *said]), fontsize=10, linespacing=1.4)
    picture.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    picture.set_title(title)
    return picture


def _said(name: str, value) -> str:
    value, chance = (value, None) if np.isscalar(value) else value
    return f"{shortened(name, 30)} {value:.3f}" + ("" if chance is None else f" (chance {chance:.3g})")


def _principal(audio, text, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(2, N, 2) audio and text along their common principal axes, and the shares (2,) of the variance of those."""
    audio, text = (to_array(x, f"{kind} of {name!r}", 2).astype(np.float64) for x, kind in ((audio, "audio"), (text, "text")))
    if audio.shape != text.shape or len(audio) < 2 or audio.shape[1] < 2:
        raise ValueError(f"{name!r} has audio {audio.shape} and text {text.shape}, expected one shape (N, D) with N, D >= 2")
    points = np.concatenate([audio, text])
    if not np.isfinite(points).all():
        raise ValueError(f"{name!r} has {int((~np.isfinite(points)).sum())} embedding values that are NaN or infinite")
    points -= points.mean(0)
    _, scale, axes = np.linalg.svd(points, full_matrices=False)
    # An axis has no sign of its own; the largest coordinate is made positive so that equal data give equal pictures.
    axes = axes[:2] * np.sign(axes[:2][np.arange(2), np.abs(axes[:2]).argmax(1)])[:, None]
    return (points @ axes.T).reshape(2, -1, 2), scale[:2] ** 2 / max((scale ** 2).sum(), 1e-30)
