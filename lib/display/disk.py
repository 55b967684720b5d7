"""The Poincaré disk as it is: true geodesic arcs and rings of equal distance to the centre.

Points are (n, 2) in the unit disk, the ball of curvature -c scaled by sqrt(c); `c` only sets the unit of the distances that are
written, d(0, x) = (2 / sqrt(c)) artanh |x|. Nothing is bent, pulled apart or normalised. `lib.display.disk_page` is the live
version, `lib.display.disk_figures` has what goes with a picture.
"""
from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_svg import RendererSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, PathPatch

from lib.data.taxonomy import Taxonomy
from lib.display import style
from lib.display.disk_arcs import as_complex, as_pairs, outline, ring_distances, translated
from lib.display.style import Picture, shortened, theme, themed
from lib.files import user_path, write_text

ROOT, OTHER, RINGS = "#333333", "#949494", "#b8b8b8"                            # no branch; branches beyond the palette
_COLOURS = tuple(style.PALETTE[i] for i in (0, 1, 2, 3, 4, 5, 9, 8, 6))         # the pale ones last
_FEW = 60                               # nodes up to which all are named
_MOST = 48                              # names in a picture with more nodes than that
_GAPS = (4, 16, 34)                     # pixels between a dot and its name


@dataclass(frozen=True, eq=False)
class Atlas:
    """Nodes of a taxonomy, and clips, in the disk; checked on construction.

    Args:
        points: (n, 2), |x| < 1.
        labels: n names.
        edges: (E, 2) indices of (parent, child).
        branches: n names of what gives a node its colour, "" for none (a root); (): none has one.
        depths: n numbers from 0, which give sizes and say who is named first; (): all 1.
        clips: (m, 2), |x| < 1; clip_labels, clip_branches: m texts each (branches may be ()).
        highlighted: indices of nodes that stand out.
        c: of the curvature -c, > 0.
    Raises:
        ValueError: naming what does not fit.
    """

    points: np.ndarray
    labels: Sequence[str]
    edges: np.ndarray = ()
    branches: Sequence[str] = ()
    depths: Sequence[int] = ()
    clips: np.ndarray = ()
    clip_labels: Sequence[str] = ()
    clip_branches: Sequence[str] = ()
    highlighted: Sequence[int] = ()
    c: float = 1.0

    def __post_init__(self):
        own, n = object.__setattr__, len(self.points)
        own(self, "edges", np.asarray(self.edges, dtype=np.int64).reshape(-1, 2))
        own(self, "c", float(self.c))
        for name in ("points", "clips"):
            # Single precision would round points onto the boundary.
            x = torch.as_tensor(getattr(self, name)).detach().cpu().double().numpy()
            x = x.reshape(0, 2) if name == "clips" and not x.size else x
            if x.ndim != 2 or x.shape[1] != 2 or not (np.linalg.norm(x, axis=1) < 1).all():     # NaN is not < 1 either
                largest = np.linalg.norm(x, axis=-1).max(initial=0)
                raise ValueError(f"{name} must be (n, 2) inside the unit disk, got shape {x.shape}, norms up to {largest:.6g}; "
                                 "points of the ball are to be scaled by sqrt(c)")
            own(self, name, x)
        for name, default in {"labels": None, "branches": "", "depths": 1, "clip_labels": "", "clip_branches": ""}.items():
            values, count = list(getattr(self, name)), len(self.clips if name.startswith("clip") else self.points)
            values = values if values or default is None else [default] * count
            if len(values) != count:
                raise ValueError(f"{name} has {len(values)} entries, expected {count}")
            own(self, name, values)
        for name, rows in (("edges", self.edges.ravel()), ("highlighted", np.asarray(self.highlighted, dtype=np.int64))):
            wrong = rows[(rows < 0) | (rows >= n)]
            if wrong.size:
                raise ValueError(f"{name} names node {wrong[0]}, there are nodes 0 to {n - 1}")
        if not 0 < self.c < math.inf:
            raise ValueError(f"c must be the positive number in the curvature -c, got {self.c}")

    @classmethod
    def of(cls, taxonomy: Taxonomy, points: np.ndarray, **more) -> "Atlas":
        """Names, edges, depths and branches (the first of the top nodes above a node) of a taxonomy; `more`: other arguments."""
        tops = np.flatnonzero(taxonomy.depth == 1)
        single = len(tops) == 1 and len(taxonomy) > 1 and not taxonomy.rooted       # a root: the branches lie directly under it
        if single:
            tops = np.flatnonzero(taxonomy.depth == 2)
        above = taxonomy.ancestors[:, tops]
        branches = [taxonomy.nodes[tops[row.argmax()]] if row.any() else "" for row in above]
        return cls(points, taxonomy.nodes, taxonomy.edges, branches, (taxonomy.depth - single).tolist(), **more)

    @cached_property
    def colours(self) -> dict[str, str]:
        """Branch -> colour, in the order of first appearance; the largest branches when there are more than colours."""
        counts = Counter(b for b in (*self.branches, *self.clip_branches) if b)
        chosen = {b for b, _ in counts.most_common(len(_COLOURS))}
        free = iter(_COLOURS)
        return {"": ROOT} | {b: next(free) if b in chosen else OTHER for b in counts}

    def radii(self, points: np.ndarray | None = None) -> np.ndarray:
        """d(0, x) of `points`, by default of the nodes."""
        return 2 * np.arctanh(np.linalg.norm(self.points if points is None else points, axis=1)) / math.sqrt(self.c)

    def centred(self, node: int) -> "Atlas":
        """The same seen from a node: an isometry that takes it to the centre, so that all distances stay."""
        return replace(self, **{name: as_pairs(translated(as_complex(getattr(self, name)), complex(*self.points[node])))
                                for name in ("points", "clips")})


def view_limit(atlas: Atlas) -> float:
    """Euclidean radius of what is drawn: all of the disk, or less where everything lies near the centre."""
    reach = 1.25 * float(np.linalg.norm(np.concatenate([atlas.points, atlas.clips]), axis=1).max())
    return 1.02 if reach > 0.7 else max(reach, 1e-6)


@themed
def disk(atlas: Atlas, *, title: str = "Poincaré disk") -> Picture:
    """The atlas with geodesic edges, rings of equal distance to the centre and the names that fit.

    All nodes up to 60 are named where there is room, of more the highest; clips are small diamonds. Where everything lies near
    the centre only that part is drawn, and the title says how much larger.
    """
    everything = np.concatenate([atlas.points, atlas.clips])
    limit = view_limit(atlas)
    picture = Picture(height=7.6)
    axes = picture.subplots()
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    axes.set_axis_off()
    axes.add_patch(Circle((0, 0), 1, facecolor="#fafafa", edgecolor="#8c8c8c", linewidth=1.4, zorder=0))
    rings = {d: math.tanh(math.sqrt(atlas.c) * d / 2) for d in ring_distances(min(limit, 1.0), atlas.c)}
    free = _free_direction(everything, list(rings.values()), limit)
    for d, radius in rings.items():
        axes.add_patch(Circle((0, 0), radius, fill=False, edgecolor=RINGS, linewidth=0.7, linestyle=(0, (4, 3)), zorder=0.5))
        axes.annotate(f"d = {d:g}", radius * free, ha="center", va="center", fontsize=7.5, color="#777777", zorder=2.6,
                      bbox={"boxstyle": "square,pad=0.1", "facecolor": "#fafafa", "edgecolor": "none"})
    colour = np.array([atlas.colours[b] for b in atlas.branches])
    depth, many = np.asarray(atlas.depths), len(atlas.points) > _FEW
    for shade in dict.fromkeys(colour[atlas.edges[:, 1]]):
        rows = atlas.edges[colour[atlas.edges[:, 1]] == shade]
        axes.add_patch(PathPatch(outline(atlas.points[rows[:, 0]], atlas.points[rows[:, 1]]), fill=False, edgecolor=shade,
                                 linewidth=0.7 if many else 1.2, alpha=0.55, zorder=1))
    if len(atlas.clips):
        shades = [atlas.colours[b] for b in atlas.clip_branches]
        axes.scatter(*atlas.clips.T, s=11, marker="D", facecolor="white", edgecolor=shades, linewidth=0.9, zorder=2)
    sizes = (60 if many else 130) / (1 + np.maximum(depth, 0)) ** (1.3 if many else 0.8)
    for level in np.unique(depth)[::-1]:        # the highest on top; one size a call keeps the SVG small
        rows = depth == level
        axes.scatter(*atlas.points[rows].T, s=sizes[rows][0], c=colour[rows], edgecolor="white", linewidth=0.4 if many else 0.8,
                     zorder=3)
    marked = list(atlas.highlighted)
    axes.scatter(*atlas.points[marked].T, s=1.6 * sizes[marked] + 20, c="none", edgecolor="black", linewidth=1.5, zorder=4)
    _legend(picture, atlas)
    zoom = f" (seen {1 / limit:.1f} times larger: the boundary lies outside)" if limit < 0.99 else ""
    picture.set_title(title + zoom)
    picture.draw_without_rendering()        # the layout decides how many pixels there are for names
    _name(picture, axes, atlas, sizes, [radius * free for radius in rings.values()])
    return picture


def _free_direction(points: np.ndarray, radii: list[float], limit: float) -> np.ndarray:
    """The unit vector along which points are furthest from where the rings' distances are written."""
    up = np.linspace(np.pi / 4, 3 * np.pi / 4, 25)         # nearer the horizontal, one text would cover the next
    angles = np.concatenate([up, -up])
    ways = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    places = ways[:, None] * np.array(radii or [limit])[:, None]                            # (50, rings, 2)
    gaps = np.linalg.norm(places[:, :, None] - points, axis=-1).min(2)                      # (50, rings)
    return ways[np.minimum(gaps, 0.12 * limit).sum(1).argmax()]


def _legend(picture: Picture, atlas: Atlas) -> None:
    named = [b for b in atlas.colours if b and atlas.colours[b] != OTHER]
    rest = len(atlas.colours) - 1 - len(named)
    entries = [{"color": atlas.colours[b], "label": shortened(b, 24)} for b in named]
    entries += [{"color": OTHER, "label": f"{rest} other branches"}] * (rest > 0)
    if len(atlas.clips):
        entries += [{"color": ROOT, "label": "clip", "marker": "D", "markersize": 4, "markerfacecolor": "white"}]
    if entries:
        handles = [Line2D([], [], linestyle="none", **{"marker": "o", **entry}) for entry in entries]
        picture.legend(handles=handles, loc="outside right upper", fontsize=8.5)


def _name(picture: Picture, axes, atlas: Atlas, sizes: np.ndarray, rings: list[np.ndarray]) -> None:
    """Write names, the highest first, where there is room (`_place`); a line leads to one that is further off."""
    renderer, to_pixels, window = picture.canvas.get_renderer(), axes.transData.transform, axes.get_window_extent()
    many, marked = len(atlas.points) > _FEW, set(atlas.highlighted)
    below = np.bincount(atlas.edges[:, 0], minlength=len(atlas.points))
    order = sorted(range(len(atlas.points)), key=lambda i: (i not in marked, atlas.depths[i], -below[i]))
    order = order[:len(marked) + 3 * _MOST]         # of those that come later none would fit
    centres, middle = to_pixels(np.concatenate([atlas.points, atlas.clips])), to_pixels((0, 0))
    taken = [np.array([x - 20, y - 7, x + 20, y + 7]) for x, y in to_pixels(np.reshape(rings, (-1, 2)))]
    most = len(rings) + (_MOST if many else len(order))
    for i in order:
        bold = atlas.depths[i] <= 1 or i in marked
        text, font = shortened(atlas.labels[i], 26), {"size": 8.5 if bold else 7.5, "weight": "bold" if bold else "normal"}
        extent = np.array(renderer.get_text_width_height_descent(text, FontProperties("DejaVu Sans", **font), False)[:2])
        radius = math.sqrt(sizes[i]) / 2 * picture.dpi / 72
        found = _place(centres[i], radius, extent, centres[i] - middle, centres, taken, window) if len(taken) < most else None
        if found is None or found[0] > 8 and not bold:
            continue
        _, gap, at = found
        taken.append(np.concatenate([at - extent / 2 - (2, 1), at + extent / 2 + (2, 1)]))
        where = axes.transData.inverted().transform(at)
        if gap > _GAPS[0]:
            axes.plot(*zip(atlas.points[i], where), color="#777777", linewidth=0.6, zorder=2.5)
        axes.annotate(text, where, ha="center", va="center", zorder=6, annotation_clip=False, **font,
                      bbox={"boxstyle": "square,pad=0.05", "facecolor": "#fafafa", "edgecolor": "none", "alpha": 0.6})


def _place(centre, radius: float, extent, outward, points, taken, window) -> tuple[int, float, np.ndarray] | None:
    """(points covered, gap, middle) in pixels of the box of size `extent` beside a dot that covers no box taken, fewest points.

    Of equal ones the nearest to the dot, then the one most `outward`; None when every box is taken or leaves the window.
    """
    best = None
    for gap in _GAPS:
        for turn in (0, 1, -1, 2, -2, 3, -3, 4):
            angle = math.atan2(outward[1], outward[0]) + turn * math.pi / 4
            at = centre + np.array([math.cos(angle), math.sin(angle)]) * (radius + gap + extent / 2)
            (x0, y0), (x1, y1) = at - extent / 2, at + extent / 2
            if x0 < window.x0 or x1 > window.x1 or y0 < window.y0 or y1 > window.y1:
                continue
            if any(x0 < b[2] and b[0] < x1 and y0 < b[3] and b[1] < y1 for b in taken):
                continue
            covered = int((np.abs(points - at) < extent / 2 + 3).all(1).sum())
            if best is None or (covered, gap, abs(turn)) < best[0]:
                best = (covered, gap, abs(turn)), at
    return best and (*best[0][:2], best[1])


def save(picture: Picture, path: str | Path) -> Path:
    """Write a picture as .svg or .png; equal pictures give equal files. Returns the path."""
    path = user_path(path)
    if path.suffix.lower() == ".svg":
        file, dpi = io.StringIO(), picture.dpi
        width, height = 72 * picture.get_size_inches()
        with theme(), matplotlib.rc_context({"svg.hashsalt": "workbook"}):      # Picture.draw would take the salt away again
            picture.dpi = 72
            renderer = RendererSVG(width, height, file, metadata={"Date": None})
            Figure.draw(picture, renderer)
            renderer.finalize()
            picture.dpi = dpi
        return write_text(path, file.getvalue())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path)
    return path
