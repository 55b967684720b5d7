"""Straight lines and circles of the Poincaré disk, in closed form.

Points are (..., 2) in the unit disk (curvature -1), |x| < 1. Complex numbers x + iy carry the algebra.
"""
from __future__ import annotations

import math

import numpy as np
from matplotlib.path import Path


def as_complex(x: np.ndarray) -> np.ndarray:
    """(..., 2) as complex numbers (...)."""
    x = np.asarray(x, dtype=np.float64)
    return x[..., 0] + 1j * x[..., 1]


def as_pairs(z: np.ndarray) -> np.ndarray:
    """Complex numbers (...) as (..., 2)."""
    return np.stack([z.real, z.imag], axis=-1)


def translated(z: np.ndarray, a: complex) -> np.ndarray:
    """The isometry that takes a to 0, of complex numbers (...)."""
    moved = (z - a) / (1 - np.conj(a) * z)
    return moved * np.minimum(1, (1 - 1e-15) / np.maximum(np.abs(moved), 1e-300))     # rounding must not reach the boundary


def geodesic(p: np.ndarray, q: np.ndarray, count: int = 33) -> np.ndarray:
    """Points of the geodesics between points of the unit disk, at equal angles of their circles.

    The chord and the arc meet in the angle -arg(1 - conj(p) q), which is exact without the circle's centre: nothing cancels
    where p, q and 0 are nearly collinear and the centre is far away.

    Args: p, q: (..., 2).  count: points a geodesic.
    Returns: (..., count, 2), from p to q.
    """
    p, q = as_complex(p)[..., None], as_complex(q)[..., None]
    angle, s = -np.angle(1 - np.conj(p) * q), np.linspace(0, 1, count)
    straight = np.abs(angle) < 1e-9
    share = np.where(straight, s, np.sin(s * angle) / np.where(straight, 1, np.sin(angle)))
    return as_pairs(p + (q - p) * share * np.exp(1j * angle * (1 - s)))


def geodesic_circle(p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The circle that carries the geodesic through p and q: 2 p.C = 1 + |p|^2 and 2 q.C = 1 + |q|^2, radius sqrt(|C|^2 - 1).

    Args: p, q: (..., 2) in the unit disk.
    Returns: centre (..., 2) and radius (...); infinite where p, q and 0 are collinear and the geodesic is straight.
    """
    p, q = as_complex(p), as_complex(q)
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = 1j * (p * (1 + np.abs(q) ** 2) - q * (1 + np.abs(p) ** 2)) / (2 * (np.conj(p) * q).imag)
        radius = np.abs(q - p) / (2 * np.abs(np.sin(np.angle(1 - np.conj(p) * q))))
    centre = np.where(np.isfinite(radius), centre, np.inf + 0j)
    return np.where(np.isfinite(radius)[..., None], as_pairs(centre), np.inf), np.where(np.isfinite(radius), radius, np.inf)


def hyperbolic_circle(p: np.ndarray, radius: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Euclidean centre (..., 2) and radius (...) of the points at hyperbolic distance `radius` (curvature -1) from p (..., 2)."""
    p, t = np.asarray(p, dtype=np.float64), np.tanh(np.asarray(radius, dtype=np.float64) / 2)
    square = (p**2).sum(-1)
    scale = 1 - t**2 * square
    return p * ((1 - t**2) / scale)[..., None], t * (1 - square) / scale


def outline(p: np.ndarray, q: np.ndarray) -> Path:
    """All geodesics from p to q (E, 2) as one outline: two cubic curves each, within 3e-4 of the arc's radius."""
    nodes, p, q = geodesic(p, q, 3), as_complex(p), as_complex(q)
    angle = -np.angle(1 - np.conj(p) * q)
    # Handles of length (4/3) tan(quarter of the angle of a piece) * radius; radius = |q - p| / (2 sin angle).
    length = np.where(np.abs(angle) < 1e-9, 1 / 6, 2 / 3 * np.tan(angle / 4) / np.where(np.abs(angle) < 1e-9, 1, np.sin(angle)))
    start, middle, end = (length * (q - p) * np.exp(1j * angle * turn) for turn in (1, 0, -1))
    a, m, b = (as_complex(nodes[:, i]) for i in range(3))
    curve = as_pairs(np.stack([a, a + start, m - middle, m, m + middle, b - end, b], axis=1))
    return Path(curve.reshape(-1, 2), np.tile([Path.MOVETO, *[Path.CURVE4] * 6], len(curve)))


def ring_distances(reach: float, c: float = 1.0) -> list[float]:
    """Round distances of at most five rings within the Euclidean radius `reach` of the unit disk."""
    far = 2 * math.atanh(min(reach, 0.97)) / math.sqrt(c)                   # beyond, rings would lie on the boundary
    power = 10.0 ** math.floor(math.log10(far / 5))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= far / 5.0001)
    return [round(step * i, 12) for i in range(1, 6) if step * i <= far]
