"""The Lorentz model (upper sheet of a hyperboloid), points given by their space part s alone.

One convention, that of MERU (Desai et al., arXiv 2304.09172): c > 0, sectional curvature -c, the time part is sqrt(1/c + |s|^2).
d(0, expmap0(v)) = |v| for every c: a tangent v of the Poincaré ball, whose metric is 4 times larger at 0, is the tangent 2v here.
Distances and angles are computed from radius and direction, sqrt(c) d(0, s) = arsinh(sqrt(c)|s|), never from the Lorentz product,
whose terms cancel for near and for far points alike.

Dtypes, c and its errors are as in `lib.geometry.poincare`. Space parts of expmap0 stop at sqrt(c) d(0, s) = 40 in float32 and
300 in float64, so that their squares are finite; beyond, the gradient along the radius is 0.
"""
from __future__ import annotations

import torch
from torch import Tensor

from lib.geometry import poincare
from lib.geometry.numerics import TINY, arsinh, direction, edge_gap, norm, over, polar_distance, prepare, scaled

STEEP = 1e-6  # the arc sine is this close to 1 where its slope passes 700; there the gradient of an aperture is 0


def expmap0(v: Tensor, c: float | Tensor) -> Tensor:
    """Tangent vectors at the origin to space parts: sinh(sqrt(c)|v|) v / (sqrt(c)|v|).

    Args:
        v: Tensor (..., D) of any length.
    Returns:
        Tensor (..., D), at distance |v| from the origin.
    """
    c, v = prepare(c, v)
    farthest = 40 if v.dtype == torch.float32 else 300
    return scaled(v, over(lambda u: u.clamp(max=farthest).sinh(), c.sqrt() * norm(v), 1 / 6))


def pairwise_distance(x: Tensor, y: Tensor, c: float | Tensor) -> Tensor:
    """Geodesic distances between all points of two sets, by one matrix product and in memory O(N M).

    Args:
        x: Tensor (N, D), space parts.
        y: Tensor (M, D), space parts.
    Returns:
        Tensor (N, M), >= 0, below 1e-18/sqrt(c) for equal points; relative error about 1e-5 in float32.
    """
    c, x, y = prepare(c, x, y)
    (a, u), (b, v) = _polar(x, c), _polar(y, c)
    return polar_distance(a, u, b, v, x.dtype) / c.sqrt().to(x.dtype)


def half_aperture(x: Tensor, c: float | Tensor, min_radius: float = 0.1) -> Tensor:
    """Half the opening angle of the entailment cone with its tip at x: asin(min(1, 2 min_radius / (sqrt(c)|x|))).

    Args:
        x: Tensor (..., D), space parts.
        min_radius: above 0; cones of tips with sqrt(c)|x| up to twice this are half spaces, and have gradient 0.
    Returns:
        Tensor (...), radians in (0, pi/2].
    Raises:
        ValueError: min_radius is not above 0.
    """
    if not min_radius > 0:
        raise ValueError(f"min_radius must be above 0, got {min_radius!r}")
    c, x = prepare(c, x)
    sine = 2 * min_radius / (c.sqrt() * norm(x).clamp(min=TINY))
    steep = sine > 1 - STEEP
    flat = sine.detach().clamp(max=1).asin()
    return torch.where(steep, flat, torch.where(steep, 0, sine).asin()).to(x.dtype)


def exterior_angle(x: Tensor, y: Tensor, c: float | Tensor) -> Tensor:
    """The angle at x between the ray from the origin through x, prolonged, and the geodesic from x to y: y lies in the cone of x
    where this is at most half_aperture(x).

    By the rules of the triangle origin, x, y (radii a and b, angle theta between them)
    atan2(sinh b sin theta, sinh(b - a) - 2 sinh b cosh a sin^2(theta/2)): no arc cosine, whose slope is infinite at +-1.

    Args:
        x, y: Tensors (..., D), space parts of pairs; they broadcast.
    Returns:
        Tensor (...), radians in [0, pi]; 0 where x = y or x = 0, since both lie in the cone. The gradient is 0 there, and finite
        but discontinuous where y crosses the ray.
    """
    c, x, y = prepare(c, x, y)
    (a, u), (b, v) = _polar(x, c), _polar(y, c)
    half_sine, half_cosine = norm(u - v) / 2, norm(u + v) / 2
    across = b.sinh() * 2 * half_sine * half_cosine
    along = (b - a).sinh() - 2 * b.sinh() * a.cosh() * half_sine.square()
    size = torch.maximum(across.abs(), along.abs()).detach()  # the angle does not depend on it; squares of 1e260 would overflow
    apart = (size > 0) & (norm(x) > 0)
    size = torch.where(apart, size, 1)
    return torch.atan2(torch.where(apart, across / size, 0), torch.where(apart, along / size, 1)).to(x.dtype)


def to_poincare(s: Tensor, c: float | Tensor) -> Tensor:
    """Space parts (..., D) to points (..., D) of the Poincaré ball, s / (1 + sqrt(1 + c|s|^2)), held within what it can hold."""
    c, s = prepare(c, s)
    return poincare.project(scaled(s, 1 / (1 + (1 + c * norm(s).square()).sqrt())), c)


def from_poincare(p: Tensor, c: float | Tensor) -> Tensor:
    """Points (..., D) of the Poincaré ball to space parts (..., D), 2p / (1 - c|p|^2)."""
    c, p = prepare(c, p)
    return scaled(p, 2 / edge_gap(p, c))


def _polar(x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(c) d(0, x) and the direction of space parts, float64."""
    length, unit = direction(x)
    return arsinh(c.sqrt() * length), unit
