"""What goes with a picture of the disk: the radius over the levels of a taxonomy, and what a projection distorts.

A radius is the geodesic distance d(0, x) to the centre, in the units of curvature -c; it is 2 |v| for a tangent v.
"""
from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LogNorm
from scipy.stats import spearmanr

from lib.display import style
from lib.display.style import Picture, shortened, themed, to_array
from lib.evaluation.projections import Projection


@themed
def radius_histogram(radii, groups: Sequence, *, title: str = "Distance to the centre") -> Picture:
    """How far out the points of each group lie, a row a group, with the mean.

    Args:
        radii: (N,) d(0, x), finite.
        groups: N names or numbers (depths, "class", "parent", "clip"); rows follow in the order of first appearance, numbers in
            their own order.
    """
    radii, names = _radii(radii), list(groups)
    if len(names) != len(radii):
        raise ValueError(f"groups has {len(names)} entries, radii {len(radii)}")
    kinds = list(dict.fromkeys(names))
    if all(isinstance(kind, (int, float, np.number)) for kind in kinds):
        kinds.sort()
    picture = Picture(height=1.2 + 0.62 * len(kinds))
    rows = picture.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0]
    edges = np.linspace(0, 1.02 * max(radii.max(), 1e-9), 61)
    for axes, kind in zip(rows, kinds):
        values = radii[[name == kind for name in names]]
        axes.hist(values, bins=edges, weights=np.full(len(values), 1 / len(values)), color=style.MODEL, alpha=0.55, linewidth=0)
        axes.axvline(values.mean(), color=style.BASELINE, linewidth=2)
        label = kind if isinstance(kind, str) else f"depth {kind:g}"
        axes.set_ylabel(f"{shortened(label, 20)} ({len(values)})", rotation=0, ha="right", va="center")
        axes.text(1.01, 0.5, f"mean {values.mean():.3g}", transform=axes.transAxes, va="center", fontsize=9, color=style.BASELINE)
        axes.set_yticks([])
        axes.grid(axis="y", visible=False)
    rows[-1].set_xlabel("d(0, x); bars: share of the row's points, line: mean")
    picture.set_title(title)
    return picture


@themed
def radius_against_depth(radii, depths, *, title: str = "Radius against depth") -> Picture:
    """The radius of every node over its depth with the mean of each depth; the title gives Spearman's rho (0 by chance).

    Args: radii: (N,) d(0, x), finite.  depths: (N,) integers.
    """
    radii, depths = _radii(radii), to_array(depths, "depths", 1)
    if len(depths) != len(radii):
        raise ValueError(f"depths has {len(depths)} entries, radii {len(radii)}")
    defined = np.ptp(radii) > 1e-9 * abs(radii).max() and np.ptp(depths) > 0       # rounding is no order
    said = f"{spearmanr(radii, depths).statistic:.3f} (chance 0)" if defined else "undefined, one of the two is constant"
    picture = Picture(height=3.6)
    axes = picture.subplots()
    aside = 0.44 * (np.arange(len(radii)) * 0.618034 % 1) - 0.22              # points of equal depth beside each other
    axes.scatter(depths + aside, radii, s=14, color=style.MODEL, alpha=0.5, linewidth=0)
    levels = np.unique(depths)
    means = [radii[depths == level].mean() for level in levels]
    axes.plot(levels, means, "o-", color=style.BASELINE, linewidth=2, label="mean")
    axes.set_xticks(levels)
    axes.set_ylim(0, 1.05 * max(radii.max(), 1e-9))
    axes.set(xlabel="Depth: fewest edges from the root", ylabel="d(0, x)")
    axes.legend()
    picture.set_title(f"{title}: Spearman {said}")
    return picture


@themed
def distortion_plot(*projections: Projection, title: str = "What the pictures distort") -> Picture:
    """True distance against drawn distance of all pairs, a panel a projection, with its figures and those of chance."""
    picture = Picture(height=5.2 if len(projections) < 3 else 4.6)
    for axes, projection in zip(picture.subplots(1, len(projections), squeeze=False)[0], projections):
        pairs = np.triu_indices(len(projection.true), 1)
        true, drawn = projection.true[pairs], projection.drawn[pairs]
        far = 1.03 * max(true.max(), drawn.max(), 1e-9)
        axes.hexbin(true, drawn, gridsize=45, extent=(0, far, 0, far), cmap="Blues", norm=LogNorm(vmin=0.5), mincnt=1,
                    linewidth=0.1)
        axes.plot((0, far), (0, far), color=style.CHANCE, linestyle="--", linewidth=1.3)
        lines = [f"{name} {value:.3g} (chance {projection.chance[name]:.3g})" for name, value in projection.distortion.items()]
        axes.set(xlim=(0, far), ylim=(0, far), aspect="equal", ylabel="Drawn distance",
                 xlabel="\n".join(["True distance", "", *lines]))
        axes.set_title("\n".join(textwrap.wrap(projection.method, 44)), fontsize=9.5)
    picture.set_title(title)
    return picture


def _radii(radii) -> np.ndarray:
    radii = to_array(radii, "radii", 1).astype(np.float64)
    if not np.isfinite(radii).all() or radii.min() < 0:
        raise ValueError("radii must be finite distances from 0, "
                         f"got {radii[~np.isfinite(radii)][0] if not np.isfinite(radii).all() else radii.min():g}")
    return radii
