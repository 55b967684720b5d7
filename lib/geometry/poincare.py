"""The Poincaré ball.

One convention: c > 0, the ball is {x : c |x|^2 < 1} (radius 1/sqrt(c)), its sectional curvature is -c: a larger c is more
curved, and for c -> 0 distances become 2 |x - y|. The metric at 0 is 4 times the Euclidean one, hence d(0, expmap0(v)) = 2 |v|
for every c. Formulas: Ungar's gyrovector spaces as in Ganea et al., Hyperbolic neural networks (arXiv 1805.09112), rewritten so
that nothing cancels: arsinh instead of arcosh or artanh, and 1 - c |x|^2 beyond the precision of the coordinates.

Points (..., D) are float32 or float64; half precision is computed in float32, also within autocast. c is a number or a 0-dim
tensor, into which gradients flow (a learned curvature is best the exponential of a parameter); ValueError unless it is finite
and above 0. Coordinates hold geodesic radii sqrt(c) d(0, x) up to 15.2 in float32 and 35.4 in float64: expmap0 and whatever
else returns points stops there, and points beyond (from elsewhere) count as if they lay at the edge of float, 15.9 or 36.0.
What lies farther out is compared by `pairwise_distance_from_tangents`.
Gradients are finite everywhere: 0 where a distance is 0, and 0 along the radius of a point that was held back at the edge.
"""
from __future__ import annotations

import torch
from torch import Tensor

from lib.geometry.numerics import arsinh, chord, direction, edge_gap, norm, over, polar_distance, prepare, scaled


def expmap0(v: Tensor, c: float | Tensor) -> Tensor:
    """Tangent vectors at 0 to points: tanh(sqrt(c)|v|) v / (sqrt(c)|v|).

    Args:
        v: Tensor (..., D) of any length.
    Returns:
        Tensor (..., D) strictly within the ball, at distance 2 |v| from 0.
    """
    c, v = prepare(c, v)
    inside = _inside(v)
    return scaled(v, over(lambda u: u.tanh().clamp(max=inside), c.sqrt() * norm(v), -1 / 3))


def logmap0(y: Tensor, c: float | Tensor) -> Tensor:
    """Points to tangent vectors at 0, the inverse of expmap0: artanh(sqrt(c)|y|) y / (sqrt(c)|y|).

    Args:
        y: Tensor (..., D), points of the ball.
    Returns:
        Tensor (..., D), half as long as the point is away from 0.
    """
    c, y = prepare(c, y)
    gap = edge_gap(y, c)
    return scaled(y, over(lambda r: arsinh(r / gap.sqrt()), c.sqrt() * norm(y), 1 / 3))  # artanh r = arsinh(r / sqrt(1 - r^2))


def project(x: Tensor, c: float | Tensor) -> Tensor:
    """Rows (..., D) outside the ball, or on its edge, pulled back along their radius to just within; the others as they are."""
    c, x = prepare(c, x)
    edge = _inside(x) / c.sqrt()
    return scaled(x, edge / norm(x).clamp(min=edge))


def mobius_add(x: Tensor, y: Tensor, c: float | Tensor) -> Tensor:
    """The Möbius sum x (+) y; y -> x (+) y is an isometry that takes 0 to x.

    Args:
        x, y: Tensors (..., D), points of the ball; they broadcast.
    Returns:
        Tensor (..., D), points of the ball.
    """
    c, x, y = prepare(c, x, y)
    gap_x, gap_y, s = edge_gap(x, c), edge_gap(y, c), x + y
    square = c * norm(s).square()
    below = gap_x * gap_y + square  # = 1 + 2c<x,y> + c^2|x|^2|y|^2, of two terms that are not negative
    return project(scaled(s, gap_x / below) + scaled(x, square / below), c)


def distance(x: Tensor, y: Tensor, c: float | Tensor) -> Tensor:
    """Geodesic distance of pairs of points: 2/sqrt(c) arsinh(sqrt(c)|x-y| / sqrt((1-c|x|^2)(1-c|y|^2))).

    Args:
        x, y: Tensors (..., D), points of the ball; they broadcast, and x - y is held in memory.
    Returns:
        Tensor (...), >= 0.
    """
    c, x, y = prepare(c, x, y)
    gaps = edge_gap(x, c) * edge_gap(y, c)
    return (2 / c.sqrt() * arsinh(c.sqrt() * norm(x - y) / gaps.sqrt())).to(x.dtype)


def midpoint(x: Tensor, y: Tensor, c: float | Tensor) -> Tensor:
    """The middle of the geodesic from x to y: x (+) 1/2 (.) ((-x) (+) y), through the sum of both points on the hyperboloid.

    Args:
        x, y: Tensors (..., D), points of the ball; they broadcast.
    Returns:
        Tensor (..., D), points of the ball.
    """
    c, x, y = prepare(c, x, y)
    gap_x, gap_y = edge_gap(x, c), edge_gap(y, c)
    gaps = gap_x * gap_y
    below = gap_x + gap_y * (1 - gap_x) + (gaps * (gaps + c * norm(x - y).square())).sqrt()
    return project(scaled(x, gap_y / below) + scaled(y, gap_x / below), c)


def einstein_midpoint(points: Tensor, c: float | Tensor, weights: Tensor | None = None) -> Tensor:
    """Weighted mean of several points: their sum on the hyperboloid, pulled back onto it (the Einstein midpoint of the Klein
    model, with weights 1/sqrt(1-c|k|^2)).

    Args:
        points: Tensor (..., K, D), points of the ball.
        weights: Tensor (..., K), >= 0 and not all 0; None: all 1.
    Returns:
        Tensor (..., D), points of the ball; for two points of equal weight their `midpoint`.
    Raises:
        ValueError: weights that are negative, or all 0 for some mean.
    """
    c, points = prepare(c, points)
    gap = edge_gap(points, c)
    weights = torch.ones_like(gap) if weights is None else weights.double()
    if (weights < 0).any() or not (weights.sum(-1) > 0).all():
        raise ValueError("weights must be >= 0, and at least one of each mean above 0")
    space = (points.double() * (2 * weights / gap)[..., None]).sum(-2)  # float64: the difference below cancels
    time, least = (weights * (2 - gap) / gap).sum(-1), weights.sum(-1).square()
    length = torch.maximum(time.square() - c * space.square().sum(-1), least).sqrt()  # a sum of such vectors is no shorter
    return project((space / (time + length)[..., None]).to(points.dtype), c)


def pairwise_distance(x: Tensor, y: Tensor, c: float | Tensor) -> Tensor:
    """Geodesic distances between all points of two sets, by one matrix product and in memory O(N M).

    Relative error about 1e-5 in float32, also for pairs that nearly coincide; against the exact distance of the given
    coordinates, which near the edge are themselves coarse.

    Args:
        x: Tensor (N, D), points of the ball.
        y: Tensor (M, D), points of the ball.
    Returns:
        Tensor (N, M), >= 0, and 0 for equal points.
    """
    c, x, y = prepare(c, x, y)
    row, column = (c / edge_gap(x, c)).sqrt().to(x.dtype), edge_gap(y, c).rsqrt().to(x.dtype)
    return (2 / c.sqrt()).to(x.dtype) * arsinh(chord(x, y, x.dtype) * row[:, None] * column)


def pairwise_distance_from_tangents(v: Tensor, w: Tensor, c: float | Tensor) -> Tensor:
    """Distances between expmap0(v) and expmap0(w), for tangent vectors of any length: no edge, finite and exact far out.

    Relative error about 1e-5 in float32, also for tangents that nearly coincide. The gradient is that of the exact distance also
    at v = 0, where that of a distance by polar coordinates usually is not.

    Args:
        v: Tensor (N, D), tangent vectors at 0.
        w: Tensor (M, D), tangent vectors at 0.
    Returns:
        Tensor (N, M), >= 0; below 1e-18/sqrt(c) for equal tangents.
    """
    c, v, w = prepare(c, v, w)
    (a, u), (b, t) = direction(v), direction(w)
    return polar_distance(2 * c.sqrt() * a, u, 2 * c.sqrt() * b, t, v.dtype) / c.sqrt().to(v.dtype)


def _inside(x: Tensor) -> float:
    """The largest sqrt(c)|x| of a returned point: c|x|^2 < 1 also after the rounding of its coordinates and of that sum."""
    return 1 - 4 * torch.finfo(x.dtype).eps
