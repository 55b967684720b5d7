"""Entailment cones: what is general should lie nearer the origin and hold what is specific in a cone that opens away from it.

Embeddings are tangent vectors v at the origin of the Poincaré ball (geodesic radius 2|v|, curvature -c), which are 2v on the
Lorentz sheet, where MERU (Desai et al., arXiv 2304.09172) defines the cone. Computed outside autocast in at least float32.
"""
from __future__ import annotations

import math

import torch
from torch import Tensor

from lib.geometry import lorentz


def cone_excess(general: Tensor, specific: Tensor, c: float | Tensor, *, min_radius: float = 0.1,
                aperture_scale: float = 1.0) -> Tensor:
    """By how much each specific point lies outside the cone of its general point.

    Args:
        general, specific: Tensor (N, D), tangent vectors, row by row.
        c: the curvature is -c; a number or a 0-dim Tensor, learnable, > 0.
        min_radius: K of MERU, > 0: the cone is a half-space where sinh(2 sqrt(c)|v|) <= 2K. Measured in units of 1/sqrt(c).
        aperture_scale: > 0, multiplies the half-aperture (HyCoCLIP, arXiv 2410.06912: 0.7 across modalities, 1.2 within one).
    Returns:
        Tensor (N,), radians: exterior angle minus scaled half-aperture, at most pi and <= 0 inside the cone. The origin has
        everything in its cone, and a point itself. Gradients are finite everywhere.
    Raises:
        ValueError: shapes differ, or c, min_radius or aperture_scale is not above 0.
    """
    if general.shape != specific.shape or general.ndim != 2:
        raise ValueError(f"general {tuple(general.shape)} and specific {tuple(specific.shape)} must have one shape (pairs, size)")
    if not 0 < aperture_scale < math.inf:
        raise ValueError(f"aperture_scale must be positive and finite, got {aperture_scale}")
    with torch.autocast(general.device.type, enabled=False):
        x, y = lorentz.expmap0(2 * general, c), lorentz.expmap0(2 * specific, c)
        return lorentz.exterior_angle(x, y, c) - aperture_scale * lorentz.half_aperture(x, c, min_radius)


def entailment_loss(general: Tensor, specific: Tensor, c: float | Tensor, *, min_radius: float = 0.1, aperture_scale: float = 1.0,
                    weights: Tensor | None = None) -> Tensor:
    """Mean over pairs of max(0, exterior angle - aperture_scale * half-aperture), MERU's entailment loss (its weight there: 0.2).

    Args:
        general, specific, c, min_radius, aperture_scale: as for `cone_excess`.
        weights: Tensor (N,) >= 0 for a weighted mean, or bool to leave pairs out; None: all alike.
    Returns:
        scalar Tensor in [0, pi]; 0 without pairs. Points at random on one sphere far from the origin begin above pi/2.
    """
    outside = cone_excess(general, specific, c, min_radius=min_radius, aperture_scale=aperture_scale).clamp(min=0)
    weights = torch.ones_like(outside) if weights is None else weights.to(outside)
    if weights.shape != outside.shape:
        raise ValueError(f"weights {tuple(weights.shape)} must have one number for each of {len(outside)} pairs")
    return (weights * outside).sum() / weights.sum().clamp(min=torch.finfo(outside.dtype).tiny)
