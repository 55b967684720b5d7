"""Pictures in the plane of a hyperbolic embedding in many dimensions, each with what it distorts.

No picture in the disk keeps all distances of 512 dimensions, so every one comes with its figures and with chance beside them.
Points are given as tangents v (N, D) at the origin of the ball of curvature -c (lib.geometry.poincare: the point is
expmap0(v, c), its radius d(0, x) = 2 |v|) and drawn in the unit disk, the ball scaled by sqrt(c), so that distances in the disk
divided by sqrt(c) compare with true ones without any factor fitted to them.

`radial` keeps the radius of every point exactly and only chooses angles; `stress` moves points until their distances fit best
(metric multidimensional scaling in the hyperbolic plane, with the origin as one more point that stays in the centre). HoroPCA
(Chami et al. 2021, arXiv 2106.03306) was tried beside them: with two directions it folds the points onto half a disk, and its
mean relative error was 2.3 to 3.2 times that of `stress` on trees, clusters, cones and Gaussians of 300 points.
"""
from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.stats import rankdata, spearmanr
from torch import Tensor

from lib.geometry.poincare import pairwise_distance_from_tangents

INSIDE = 1 - 1e-12      # where tanh rounds to 1 a point is drawn at this radius: d(0, x) = 28.3 / sqrt(c)


@dataclass(frozen=True, eq=False)
class Projection:
    """N points drawn in the disk.

    Attributes:
        method: what was done, in words.
        points: (N, 2) float64 in the unit disk.
        true, drawn: (N, N) float64 geodesic distances before and after, in the units of curvature -c.
        distortion: figures of `distortion`.  chance: the same figures when the drawn points are dealt out at random.
    """

    method: str
    points: np.ndarray
    true: np.ndarray = field(repr=False)
    drawn: np.ndarray = field(repr=False)
    distortion: dict[str, float]
    chance: dict[str, float]


def distortion(true: np.ndarray, drawn: np.ndarray, neighbours: int = 10) -> dict[str, float]:
    """How far drawn distances are from true ones.

    Args:
        true, drawn: (N, N) symmetric distances, N >= 4.
        neighbours: of the trustworthiness, at most N / 2 - 1 are used and the name says how many.
    Returns:
        "mean relative error" and "worst relative error" of |drawn - true| / true over the pairs with a true distance above 0,
        "Spearman of distances" (-1 to 1, NaN when all are equal), and "trustworthiness@k" (Venna and Kaski 2001; 0 to 1, about
        0.5 by chance): 1 minus a penalty for points among the k nearest in the picture that are not among the k nearest in truth.
        Of equal true distances the better rank counts.
    """
    true, drawn = np.asarray(true, dtype=np.float64), np.asarray(drawn, dtype=np.float64)
    n = len(true)
    if true.shape != (n, n) or drawn.shape != (n, n) or n < 4:
        raise ValueError(f"true {true.shape} and drawn {drawn.shape} must be the distances (N, N) of N >= 4 points")
    pairs = np.triu_indices(n, 1)
    before, after = true[pairs], drawn[pairs]
    apart = before > 1e-9 * before.max()
    error = np.abs(after - before)[apart] / before[apart] if apart.any() else np.array([np.nan])
    constant = np.ptp(before) == 0 or np.ptp(after) == 0
    k = min(neighbours, (n - 1) // 2)
    others = ~np.eye(n, dtype=bool)
    rank = rankdata(true[others].reshape(n, n - 1), method="min", axis=1)       # 1: the nearest
    near = np.argsort(drawn[others].reshape(n, n - 1), axis=1, kind="stable")[:, :k]
    penalty = np.maximum(np.take_along_axis(rank, near, axis=1) - k, 0).sum()
    return {"mean relative error": float(error.mean()), "worst relative error": float(error.max()),
            "Spearman of distances": float("nan") if constant else float(spearmanr(before, after).statistic),
            f"trustworthiness@{k}": float(1 - 2 * penalty / (n * k * (2 * n - 3 * k - 1)))}


def radial(v: Tensor | np.ndarray, c: float | Tensor) -> Projection:
    """The exact radius d(0, x) of every point; its angle from principal components of the directions v / |v|.

    The plane goes through the origin, or through the origin and the spread around the mean direction, whichever gives the smaller
    mean error. Points of a plane through the origin keep all their distances.

    Args: v: Tensor (N, D) of tangents, N >= 4, D >= 2.  c: curvature, > 0.
    Raises: ValueError: shapes, c, or a number that is not finite.
    """
    v, unit = _checked(v, c)
    true = _distances(v)
    return min((_projection("exact radius, angle from principal directions", flat, true, unit) for flat in _radial(v)),
               key=lambda p: p.distortion["mean relative error"])


def stress(v: Tensor | np.ndarray, c: float | Tensor, steps: int = 100) -> Projection:
    """The distances among the points and to the origin fitted in the mean square, starting from the better picture of `radial`.

    Args: v, c: as `radial`.  steps: of L-BFGS at most; 1 to 5 seconds for 300 to 700 points on one core.
    Raises: ValueError: as `radial`.
    """
    v, unit = _checked(v, c)
    true, zero = _distances(v), torch.zeros(1, 2, dtype=torch.float64)
    i, j = np.triu_indices(len(v), 1, len(v) + 1)                       # column N is the origin
    wanted = torch.from_numpy(np.concatenate([true, 2 * v.norm(dim=1, keepdim=True).numpy()], axis=1)[i, j])
    scale = float(wanted.square().mean().clamp_min(1e-300))             # 1: all points in the centre

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = torch.from_numpy(flat.reshape(-1, 2)).requires_grad_()
        value = (pairwise_distance_from_tangents(w, torch.cat([w, zero]), 1.0)[i, j] - wanted).square().mean() / scale
        return value.item(), torch.autograd.grad(value, w)[0].numpy().ravel()

    start = min((flat.numpy().ravel() for flat in _radial(v)), key=lambda flat: loss(flat)[0])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": steps, "maxcor": 20})
    flat = torch.from_numpy(found.x.reshape(-1, 2))
    return _projection("distances fitted (hyperbolic multidimensional scaling)", flat, true, unit)


def _radial(v: Tensor) -> list[Tensor]:
    """Tangents (N, 2) of the two radial pictures: directions projected around the origin, and around their mean."""
    radius = v.norm(dim=1, keepdim=True)
    direction = v / radius.clamp_min(1e-300)
    pictures = []
    for origin in (torch.zeros_like(direction[0]), direction.mean(0)):
        plane = torch.linalg.svd(direction - origin, full_matrices=False).Vh[:2]
        # An axis may point either way; the same one is chosen always.
        plane = plane * torch.sign(plane.gather(1, plane.abs().argmax(1, keepdim=True)))
        flat = (direction - origin) @ plane.T
        angle = torch.atan2(flat[:, 1], flat[:, 0])     # defined also for a direction at a right angle to the plane
        pictures.append(radius * torch.stack([angle.cos(), angle.sin()], dim=1))
    return pictures


def _projection(method: str, flat: Tensor, true: np.ndarray, unit: float) -> Projection:
    """Figures and points of the tangents `flat` (N, 2); `unit`: length of 1 / sqrt(c)."""
    radius, true, drawn = flat.norm(dim=1, keepdim=True), unit * true, unit * _distances(flat)
    points = flat / radius.clamp_min(1e-300) * torch.tanh(radius).clamp_max(INSIDE)
    dealt = np.random.default_rng(0).permutation(len(flat))
    return Projection(method, points.numpy(), true, drawn, distortion(true, drawn), distortion(true, drawn[np.ix_(dealt, dealt)]))


def _distances(v: Tensor) -> np.ndarray:
    return pairwise_distance_from_tangents(v, v, 1.0).fill_diagonal_(0).numpy()


def _checked(v: Tensor | np.ndarray, c: float | Tensor) -> tuple[Tensor, float]:
    """sqrt(c) v, the same points in the ball of curvature -1 (so that c changes no picture), and the length 1 / sqrt(c)."""
    v, c = torch.as_tensor(v).detach().to("cpu", torch.float64), float(c)
    if v.ndim != 2 or len(v) < 4 or v.shape[1] < 2:
        raise ValueError(f"v has shape {tuple(v.shape)}, expected tangents (N, D) with N >= 4 and D >= 2")
    if not torch.isfinite(v).all():
        row = int((~torch.isfinite(v)).any(1).nonzero()[0])
        raise ValueError(f"v has numbers that are not finite, the first in row {row}; check the embedding")
    if not 0 < c < float("inf"):
        raise ValueError(f"c must be the positive number in the curvature -c, got {c}")
    return c ** 0.5 * v, c ** -0.5
