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
from matplotlib.backends.backend_svg import RendererSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, PathPatch
from matplotlib.path import Path as Outline

from lib.data.taxonomy import Taxonomy
from lib.display import style
from lib.display.style import Picture, shortened, theme, themed, to_array
from lib.files import user_path, write_text

ROOT, OTHER, RINGS = "#333333", "#949494", "#b8b8b8"                            # no branch; branches beyond the palette
_COLOURS = tuple(style.PALETTE[i] for i in (0, 1, 2, 3, 4, 5, 9, 8, 6))         # the pale ones last
_FEW = 60                               # nodes up to which all are named
_MOST = 48                              # names in a picture with more nodes than that


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
        own(self, "clips", np.asarray(self.clips, dtype=np.float64).reshape(len(self.clips), -1) if len(self.clips) else np.zeros((0, 2)))
        own(self, "points", to_array(self.points, "points", 2).astype(np.float64))
        own(self, "edges", np.asarray(self.edges, dtype=np.int64).reshape(-1, 2))
        own(self, "c", float(self.c))
        for name in ("points", "clips"):
            x = getattr(self, name)
            if x.shape[1] != 2 or not (np.linalg.norm(x, axis=1) < 1).all():        # NaN is not < 1 either
                raise ValueError(f"{name} must be (n, 2) inside the unit disk, got shape {x.shape}, largest norm "
                                 f"{np.linalg.norm(x, axis=1).max():.6g}; scale points of the ball by sqrt(c)")
        for name, count, default in (("labels", n, None), ("branches", n, ""), ("depths", n, 1), ("clip_labels", len(self.clips), ""),
                                     ("clip_branches", len(self.clips), "")):
            values = list(getattr(self, name))
            own(self, name, values if values or default is None else [default] * count)
            if len(getattr(self, name)) != count:
                raise ValueError(f"{name} has {len(values)} entries, expected {count}")
        for name, rows in (("edges", self.edges.ravel()), ("highlighted", np.asarray(self.highlighted, dtype=np.int64))):
            if rows.size and not 0 <= rows.min() <= rows.max() < n:
                raise ValueError(f"{name} names node {rows.max() if rows.max() >= n else rows.min()}, there are nodes 0 to {n - 1}")
        if not 0 < self.c < math.inf:
            raise ValueError(f"c must be the positive number in the curvature -c, got {self.c}")

    @classmethod
    def of(cls, taxonomy: Taxonomy, points: np.ndarray, **more) -> "Atlas":
        """Names, edges, depths and branches (the first of the top nodes above a node) of a taxonomy; `more`: other arguments."""
        tops = np.flatnonzero(taxonomy.depth == 1)
        single = len(tops) == 1 and len(taxonomy) > 1       # a root: what lies directly under it are the branches
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
        return replace(self, **{name: _real(_translated(_complex(getattr(self, name)), complex(*self.points[node])))
                                for name in ("points", "clips")})


def _complex(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, dtype=np.float64)[..., 0] + 1j * np.asarray(x, dtype=np.float64)[..., 1]


def _real(z: np.ndarray) -> np.ndarray:
    return np.stack([z.real, z.imag], axis=-1)


def _translated(z: np.ndarray, a: complex) -> np.ndarray:
    moved = (z - a) / (1 - np.conj(a) * z)
    return moved * np.minimum(1, (1 - 1e-15) / np.maximum(np.abs(moved), 1e-300))     # rounding must not reach the boundary


def geodesic(p: np.ndarray, q: np.ndarray, count: int = 33) -> np.ndarray:
    """Points of the geodesics between points of the unit disk, at equal angles of their circles.

    The chord and the arc meet in the angle -arg(1 - conj(p) q), which is exact without the circle's centre: nothing cancels
    where p, q and 0 are nearly collinear and the centre is far away.

    Args: p, q: (..., 2).  count: points a geodesic.
    Returns: (..., count, 2), from p to q.
    """
    p, q = _complex(p)[..., None], _complex(q)[..., None]
    angle, s = -np.angle(1 - np.conj(p) * q), np.linspace(0, 1, count)
    straight = np.abs(angle) < 1e-9
    share = np.where(straight, s, np.sin(s * angle) / np.where(straight, 1, np.sin(angle)))
    return _real(p + (q - p) * share * np.exp(1j * angle * (1 - s)))


def geodesic_circle(p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The circle that carries the geodesic through p and q: 2 p.C = 1 + |p|^2 and 2 q.C = 1 + |q|^2, radius sqrt(|C|^2 - 1).

    Args: p, q: (..., 2) in the unit disk.
    Returns: centre (..., 2) and radius (...); infinite where p, q and 0 are collinear and the geodesic is straight.
    """
    p, q = _complex(p), _complex(q)
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = 1j * (p * (1 + np.abs(q) ** 2) - q * (1 + np.abs(p) ** 2)) / (2 * (np.conj(p) * q).imag)
        radius = np.abs(q - p) / (2 * np.abs(np.sin(np.angle(1 - np.conj(p) * q))))
    centre = np.where(np.isfinite(radius), centre, np.inf + 0j)
    return np.where(np.isfinite(radius)[..., None], _real(centre), np.inf), np.where(np.isfinite(radius), radius, np.inf)


def hyperbolic_circle(p: np.ndarray, radius: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Euclidean centre (..., 2) and radius (...) of the points at hyperbolic distance `radius` (curvature -1) from p (..., 2)."""
    p, t = np.asarray(p, dtype=np.float64), np.tanh(np.asarray(radius, dtype=np.float64) / 2)
    square = (p**2).sum(-1)
    scale = 1 - t**2 * square
    return p * ((1 - t**2) / scale)[..., None], t * (1 - square) / scale


def _outline(p: np.ndarray, q: np.ndarray) -> Outline:
    """All geodesics from p to q (E, 2) as one outline: two cubic curves each, within 3e-4 of the arc's radius."""
    nodes, p, q = geodesic(p, q, 3), _complex(p), _complex(q)
    angle = -np.angle(1 - np.conj(p) * q)
    # Handles of length (4/3) tan(quarter of the angle of a piece) * radius; radius = |q - p| / (2 sin angle).
    length = np.where(np.abs(angle) < 1e-9, 1 / 6, 2 / 3 * np.tan(angle / 4) / np.where(np.abs(angle) < 1e-9, 1, np.sin(angle)))
    start, middle, end = (length * (q - p) * np.exp(1j * angle * turn) for turn in (1, 0, -1))
    a, m, b = (_complex(nodes[:, i]) for i in range(3))
    curve = _real(np.stack([a, a + start, m - middle, m, m + middle, b - end, b], axis=1))
    return Outline(curve.reshape(-1, 2), np.tile([Outline.MOVETO, *[Outline.CURVE4] * 6], len(curve)))


def ring_distances(reach: float, c: float = 1.0) -> list[float]:
    """Round distances of at most five rings within the Euclidean radius `reach` of the unit disk."""
    far = 2 * math.atanh(min(reach, 0.97)) / math.sqrt(c)                   # beyond, rings would lie on the boundary
    power = 10.0 ** math.floor(math.log10(far / 5))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= far / 5.0001)
    return [round(step * i, 12) for i in range(1, 6) if step * i <= far]


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
        axes.add_patch(PathPatch(_outline(atlas.points[rows[:, 0]], atlas.points[rows[:, 1]]), fill=False, edgecolor=shade,
                                 linewidth=0.7 if many else 1.2, alpha=0.55, zorder=1))
    if len(atlas.clips):
        axes.scatter(*atlas.clips.T, s=11, marker="D", facecolor="white", edgecolor=[atlas.colours[b] for b in atlas.clip_branches],
                     linewidth=0.9, zorder=2)
    sizes = (60 if many else 130) / (1 + np.maximum(depth, 0)) ** (1.3 if many else 0.8)
    for level in np.unique(depth)[::-1]:        # the highest on top; one size a call keeps the SVG small
        rows = depth == level
        axes.scatter(*atlas.points[rows].T, s=sizes[rows][0], c=colour[rows], edgecolor="white", linewidth=0.4 if many else 0.8, zorder=3)
    marked = list(atlas.highlighted)
    axes.scatter(*atlas.points[marked].T, s=1.6 * sizes[marked] + 20, facecolor="none", edgecolor="black", linewidth=1.5, zorder=4)
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
    handles = [Line2D([], [], linestyle="none", marker="o", color=atlas.colours[b], label=shortened(b, 24)) for b in named]
    if rest:
        handles.append(Line2D([], [], linestyle="none", marker="o", color=OTHER, label=f"{rest} other branches"))
    if len(atlas.clips):
        handles.append(Line2D([], [], linestyle="none", marker="D", markersize=4, markerfacecolor="white", color=ROOT, label="clip"))
    if handles:
        picture.legend(handles=handles, loc="outside right upper", fontsize=8.5)


def _name(picture: Picture, axes, atlas: Atlas, sizes: np.ndarray, rings: list[np.ndarray]) -> None:
    """Write names where they cover no other name, no ring's distance and as few points as can be; a line leads to one further off."""
    renderer, scale = picture.canvas.get_renderer(), picture.dpi / 72
    to_pixels, window = axes.transData.transform, axes.get_window_extent()
    many, marked = len(atlas.points) > _FEW, set(atlas.highlighted)
    below = np.bincount(atlas.edges[:, 0], minlength=len(atlas.points))
    order = sorted(range(len(atlas.points)), key=lambda i: (i not in marked, atlas.depths[i], -below[i]))
    centres = to_pixels(np.concatenate([atlas.points, atlas.clips]))
    taken = [np.array([x - 20, y - 7, x + 20, y + 7]) for x, y in to_pixels(rings)] if rings else []
    middle, written = to_pixels((0, 0)), 0
    for i in order:
        if written >= _MOST and many and i not in marked:
            break
        text, size = shortened(atlas.labels[i], 26), 8.5 if atlas.depths[i] <= 1 or i in marked else 7.5
        weight = "bold" if atlas.depths[i] <= 1 or i in marked else "normal"
        width, height, _ = renderer.get_text_width_height_descent(text, FontProperties("DejaVu Sans", size=size, weight=weight), False)
        outward = math.atan2(*(centres[i] - middle)[::-1])
        best = None
        for gap in (3, 12, 24):
            for turn in (0, 1, -1, 2, -2, 3, -3, 4):
                way = np.array([math.cos(outward + turn * math.pi / 4), math.sin(outward + turn * math.pi / 4)])
                reach = math.sqrt(sizes[i]) / 2 * scale + gap * scale
                at = centres[i] + way * (reach + np.array([width, height]) / 2)
                box = np.array([*(at - [width / 2, height / 2]), *(at + [width / 2, height / 2])])
                outside = box[0] < window.x0 or box[2] > window.x1 or box[1] < window.y0 or box[3] > window.y1
                if outside or any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                    continue
                covered = ((centres > box[:2] - 3) & (centres < box[2:] + 3)).all(1).sum()
                cost = (covered, gap, abs(turn))
                best = min(best or (cost, at, box, way * reach), (cost, at, box, way * reach), key=lambda found: found[0])
        if best is None or many and best[0][0] > 8 and i not in marked:
            continue
        (_, gap, _), at, box, lead = best
        taken.append(box + [-2, -1, 2, 1])
        written += 1
        where, foot = axes.transData.inverted().transform([at, centres[i] + lead])
        if gap > 3:
            axes.plot(*zip(atlas.points[i], foot), color="#777777", linewidth=0.6, zorder=2.5)
        axes.annotate(text, where, ha="center", va="center", fontsize=size, weight=weight, zorder=6, annotation_clip=False,
                      bbox={"boxstyle": "square,pad=0.05", "facecolor": "#fafafa", "edgecolor": "none", "alpha": 0.6})


def save(picture: Picture, path: str | Path) -> Path:
    """Write a picture as .svg or .png; equal pictures give equal files. Returns the path."""
    path = user_path(path)
    if path.suffix.lower() == ".svg":
        file, dpi = io.StringIO(), picture.dpi
        width, height = 72 * picture.get_size_inches()
        with theme(), matplotlib.rc_context({"svg.hashsalt": "workbook"}):      # Picture.draw would set the theme anew, without it
            picture.dpi = 72
            renderer = RendererSVG(width, height, file, metadata={"Date": None})
            Figure.draw(picture, renderer)
            renderer.finalize()
            picture.dpi = dpi
        return write_text(path, file.getvalue())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path)
    return path
