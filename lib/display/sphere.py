"""Predicted against true directions: on a map of the sphere, by azimuth, and as errors.

Directions are (N, E, 3) vectors x, y, z for N clips with E events each (+x front, +y left, +z up); only their direction counts.
The predictions of a clip are matched to its events so that the sum of its angles is smallest, as in
`lib.evaluation.localization.angular_error`: outputs without an order are drawn as they are scored. Azimuth and elevation are
degrees, words those of lib.audio.directions.

Chance is what directions drawn evenly over the sphere give for the same events with the same matching: for one event a mean error
of 90 degrees and the right word in 1 of 8, for two events in unrelated places about 75 degrees.
"""
from __future__ import annotations

import itertools

import numpy as np
import seaborn
from matplotlib.collections import LineCollection
from matplotlib.ticker import FuncFormatter, PercentFormatter

from lib.audio.directions import DIRECTIONS, direction_index
from lib.display import style
from lib.display.style import Picture, themed, to_array
from lib.evaluation.statistics import bootstrap_interval

_MARKS = "o^sD"              # of the first, second, ... event
_SECTOR = 45 * np.arange(8)  # middle of each word's sector


@themed
def directions_on_sphere(predicted, target, *, most: int = 100, limit: float = 90.0,
                         title: str = "True and predicted directions") -> Picture:
    """Map of the sphere as the listener sees it, facing azimuth 0: each true direction and the great circle to its prediction.

    Args:
        predicted, target: (N, E, 3), as the module says.
        most: events drawn at the most, evenly spaced through the clips; the mean error in the title is that of all.
        limit: error in degrees with the darkest colour; larger errors share it.

    Raises:
        ValueError: shapes that differ, more than four events, vectors that are zero or not finite.
    """
    predicted, target, error = _matched(predicted, target)
    clips, events = error.shape
    shown = np.unique(np.linspace(0, clips - 1, min(clips, max(1, most // events))).astype(int))
    picture = Picture(height=4.7)
    axes = picture.subplots()
    colours = seaborn.color_palette("flare", as_cmap=True)
    starts, ends, values = (array[shown].reshape(-1, *array.shape[2:]) for array in (target, predicted, error))
    lines = LineCollection([], cmap=colours, linewidth=1.4, alpha=0.8, zorder=2)
    pieces = [(piece, value) for start, end, value in zip(starts, ends, values) for piece in _great_circle(start, end)]
    lines.set_segments([piece for piece, _ in pieces])
    lines.set_array(np.array([value for _, value in pieces]))
    lines.set_clim(0, limit)
    axes.add_collection(lines)
    for event in range(events):
        true = _angles(target[shown, event])
        axes.scatter(*true, s=30, marker=_MARKS[event], facecolor="white", edgecolor="#222222", linewidth=1.2, zorder=4,
                     label="true direction" if events == 1 else f"true direction of event {event + 1}")
    axes.scatter(*_angles(ends), s=13, c=values, cmap=colours, vmin=0, vmax=limit, linewidth=0, zorder=3)
    axes.scatter([], [], s=13, color=colours(0.5), label="prediction")
    axes.set(xlim=(180, -180), ylim=(-90, 90), aspect="equal", ylabel="Elevation (degrees)",
             xlabel="Azimuth (degrees), as seen by a listener who faces south")
    axes.set_xticks(range(-180, 181, 45), [f"{DIRECTIONS[a // 45 % 8]}\n{a}" for a in range(-180, 181, 45)], fontsize=9)
    axes.set_yticks(range(-90, 91, 30))
    axes.grid(axis="x", visible=False)
    for edge in _SECTOR - 157.5:
        axes.axvline(edge, color="#e3e3e3", linewidth=1, zorder=0)
    picture.colorbar(lines, ax=axes, label="Error (degrees)", extend="max", fraction=0.03, pad=0.015, aspect=28)
    picture.legend(loc="outside lower center", ncols=events + 1)
    part = "" if len(shown) == clips else f", {len(shown)} of {clips} clips shown"
    picture.set_title(f"{title}: mean error {error.mean():.1f}° (chance {_chance(target)[1].mean():.0f}°){part}")
    return picture


@themed
def azimuth_scatter(predicted, target, *, title: str = "Predicted against true azimuth") -> Picture:
    """Predicted over true azimuth on axes that are circles: the right edge goes on at the left, the upper one at the lower.

    Thin lines are the borders of the eight words, so the boxes on the diagonal hold the right words; the title has their share.
    The band is +-22.5 degrees around the truth. Arguments as in `directions_on_sphere`.
    """
    predicted, target, error = _matched(predicted, target)
    picture = Picture(width=6.6, height=6.4)
    axes = picture.subplots()
    low = -202.5                                 # a border of two sectors: no word is cut in two
    ends = np.array([low, low + 360])
    for turn in (-360, 0, 360):
        axes.fill_between(ends, ends + turn - 22.5, ends + turn + 22.5, color=style.MODEL, alpha=0.09, linewidth=0)
        axes.plot(ends, ends + turn, color=style.CHANCE, linestyle="--", linewidth=1.2)
    for border in low + 45 * np.arange(9):
        axes.axhline(border, color="#d9d9d9", linewidth=0.8, zorder=0)
        axes.axvline(border, color="#d9d9d9", linewidth=0.8, zorder=0)
    for event in range(error.shape[1]):
        true, heard = (np.mod(_angles(v[:, event])[0] - low, 360) + low for v in (target, predicted))
        axes.scatter(true, heard, s=16, marker=_MARKS[event], color=style.PALETTE[event], alpha=0.55, linewidth=0,
                     label=f"event {event + 1}")
    axes.set(xlim=ends, ylim=ends, aspect="equal", xlabel="True azimuth (degrees)", ylabel="Predicted azimuth (degrees)")
    ticks = _SECTOR - 180
    names = [f"{DIRECTIONS[a // 45 % 8]}\n{a}" for a in ticks]
    axes.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor", fontsize=9, linespacing=0.95)
    axes.set_yticks(ticks, names, fontsize=9)
    axes.grid(False)
    if error.shape[1] > 1:
        picture.legend(loc="outside lower center", ncols=error.shape[1])
    picture.set_title(f"{title}: right word {_right_words(predicted, target):.1%} "
                      f"(chance {_right_words(*_chance(target)[::2]):.1%})")
    return picture


@themed
def error_histogram(predicted, target, *, title: str = "Localisation error") -> Picture:
    """How large the angles between prediction and truth are, with their mean, over those of chance.

    Arguments as in `directions_on_sphere`; every event counts alike.
    """
    predicted, target, error = _matched(predicted, target)
    chance = _chance(target)[1]
    picture = Picture(height=3.4)
    axes = picture.subplots()
    edges = np.arange(0, 181, 5)
    share = lambda angles: np.histogram(angles, edges)[0] / angles.size  # noqa: E731
    axes.stairs(share(error), edges, fill=True, color=style.MODEL, alpha=0.55, label=f"model ({error.size} events)")
    axes.stairs(share(chance), edges, color=style.CHANCE, linewidth=1.4, label="chance: any direction")
    axes.axvline(error.mean(), color=style.MODEL, linewidth=2, label=f"mean of the model {error.mean():.1f}°")
    axes.axvline(chance.mean(), color=style.CHANCE, linestyle="--", linewidth=1.6, label=f"mean of chance {chance.mean():.0f}°")
    axes.set(xlim=(0, 180), xlabel="Angle between prediction and truth (degrees)", ylabel="Share of the events")
    axes.set_xticks(range(0, 181, 30))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(loc="upper right")
    picture.set_title(title)
    return picture


@themed
def error_by_sector(predicted, target, *, title: str = "Localisation error of each direction") -> Picture:
    """Mean error of the events that truly lie in each of the eight sectors, with 95 % bootstrap intervals over clips.

    Arguments as in `directions_on_sphere`. A sector without events stays empty and says 0.
    """
    predicted, target, error = _matched(predicted, target)
    sector = direction_index(_angles(target)[0])
    picture = Picture(height=3.9)
    axes = picture.subplots()
    for y in range(len(DIRECTIONS)):
        clip, _ = np.nonzero(sector == y)
        angles = error[sector == y]
        if angles.size:
            axes.barh(y, angles.mean(), height=0.5, color=style.MODEL, alpha=0.22)
            axes.plot(bootstrap_interval(angles, clip), (y, y), color=style.MODEL, linewidth=2.2, solid_capstyle="butt",
                      label="95 % interval of the mean")
            axes.plot(angles.mean(), y, "o", color=style.MODEL, markersize=7, label="mean of the direction")
    axes.axvline(error.mean(), color=style.BASELINE, linewidth=1.6, label=f"mean of all {error.mean():.1f}°")
    chance = _chance(target)[1].mean()
    axes.axvline(chance, color=style.CHANCE, linestyle="--", linewidth=1.6, label=f"chance {chance:.0f}°")
    axes.set_yticks(range(8), [f"{word} ({n})" for word, n in zip(DIRECTIONS, np.bincount(sector.ravel(), minlength=8))])
    axes.set_ylim(7.6, -0.6)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="Mean angle between prediction and truth (degrees)", ylabel="True direction (events)")
    handles = dict(zip(*axes.get_legend_handles_labels()[::-1]))
    picture.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    picture.set_title(title)
    return picture


def _matched(predicted, target) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors, the predictions in the order of the events that they are matched to, and their angles (N, E) in degrees."""
    predicted, target = (_unit(vectors, name) for vectors, name in ((predicted, "predicted"), (target, "target")))
    if predicted.shape != target.shape:
        raise ValueError(f"predicted has shape {predicted.shape}, target {target.shape}: they must be the same")
    events = target.shape[1]
    if events > len(_MARKS):
        raise ValueError(f"target has {events} events a clip, expected at most {len(_MARKS)}")
    orders = np.array(list(itertools.permutations(range(events))))
    angles = np.stack([_angle(predicted[:, order], target) for order in orders])       # (orders, N, E)
    best = angles.sum(-1).argmin(0)
    rows = np.arange(len(target))
    return predicted[rows[:, None], orders[best]], target, angles[best, rows]


def _unit(vectors, name: str) -> np.ndarray:
    vectors = to_array(vectors, name, 3).astype(np.float64)
    if vectors.shape[-1] != 3:
        raise ValueError(f"{name} has shape {vectors.shape}, expected (clips, events, 3): x, y, z")
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    bad = ~(np.isfinite(length) & (length > 0))
    if bad.any():
        raise ValueError(f"{name} has {int(bad.sum())} vectors that are zero or not finite, the first in clip number "
                         f"{int(np.argwhere(bad)[0][0])}: they have no direction")
    return vectors / length


def _angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angles in degrees between unit vectors; the arc tangent is exact where the arc cosine of a rounded 1 is not."""
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(-1)))


def _angles(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Azimuth and elevation of unit vectors (..., 3)."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    return np.degrees(np.arctan2(y, x)), np.degrees(np.arctan2(z, np.hypot(x, y)))


def _great_circle(start: np.ndarray, end: np.ndarray) -> list[np.ndarray]:
    """Azimuths and elevations along the shortest way between two unit vectors, cut in two where it crosses azimuth 180."""
    angle = np.radians(_angle(start, end))
    # Opposite points have no shortest way: any perpendicular direction will do, and tiny lengths are guarded alike.
    aside = end - (start @ end) * start
    if np.linalg.norm(aside) < 1e-9:
        aside = np.cross(start, np.eye(3)[np.abs(start).argmin()])
    aside = aside / np.linalg.norm(aside)
    step = np.linspace(0, angle, max(2, int(np.degrees(angle) / 2)))[:, None]
    azimuth, elevation = _angles(np.cos(step) * start + np.sin(step) * aside)
    points = np.stack([azimuth, elevation], -1)
    jumps = np.flatnonzero(np.abs(np.diff(azimuth)) > 180)
    if not len(jumps):
        return [points]
    first, second = np.split(points, jumps[:1] + 1)
    # Both pieces are drawn up to the seam, at the elevation between the two points beside it.
    edge, height = np.copysign(180, first[-1, 0]), (first[-1, 1] + second[0, 1]) / 2
    return [np.vstack([first, (edge, height)]), np.vstack([(-edge, height), second])]


def _chance(target: np.ndarray, draws: int = 20_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `_matched` gives for evenly drawn directions: predictions, angles and targets, of the same draws on every call.

    Each draw comes turned by all multiples of 45 degrees and mirrored at the horizon, which makes the chance of a single event
    exact: 90 degrees and 1 of 8.
    """
    random = np.random.default_rng(0)
    clips, events, _ = target.shape
    base = random.normal(size=(max(1, draws // 16), events, 3))
    turn = np.radians(_SECTOR)
    x, y, z = np.moveaxis(base, -1, 0)[:, None]                                        # (1, draws, E) each
    x, y = (np.cos(turn)[:, None, None] * x - np.sin(turn)[:, None, None] * y,
            np.sin(turn)[:, None, None] * x + np.cos(turn)[:, None, None] * y)
    drawn = np.stack([np.stack(np.broadcast_arrays(x, y, sign * z), -1) for sign in (1, -1)])
    truth = np.broadcast_to(target[random.integers(clips, size=len(base))], drawn.shape)
    predicted, truth, error = _matched(drawn.reshape(-1, events, 3), truth.reshape(-1, events, 3))
    return predicted, error, truth


def _right_words(predicted: np.ndarray, target: np.ndarray) -> float:
    return float((direction_index(_angles(predicted)[0]) == direction_index(_angles(target)[0])).mean())
