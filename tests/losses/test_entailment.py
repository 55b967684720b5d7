"""Entailment cones from tangents against MERU's formulas on the sheet in 60 digits; closed forms; gradients everywhere."""
import math

import mpmath
import pytest
import torch

from lib.losses.entailment import cone_excess, entailment_loss


def on_the_sheet(general, specific, c, min_radius=0.1, aperture_scale=1.0):
    """MERU's exterior angle minus the scaled half-aperture of one pair, in mpmath."""
    with mpmath.workdps(60):
        c = mpmath.mpf(c)
        dot = lambda u, w: sum(p * q for p, q in zip(u, w))
        x, y = ([2 * mpmath.mpf(p) for p in v.tolist()] for v in (general, specific))
        x, y = ([mpmath.sinh(a) / a * p for p in v] for v in (x, y) for a in [mpmath.sqrt(c * dot(v, v))])
        x_time, y_time = (mpmath.sqrt(1 / c + dot(s, s)) for s in (x, y))
        inner = c * (dot(x, y) - x_time * y_time)
        angle = mpmath.acos((y_time + inner * x_time) / (mpmath.sqrt(dot(x, x)) * mpmath.sqrt(inner ** 2 - 1)))
        aperture = mpmath.asin(min(mpmath.mpf(1), 2 * mpmath.mpf(min_radius) / (mpmath.sqrt(c) * mpmath.sqrt(dot(x, x)))))
        return float(angle - mpmath.mpf(aperture_scale) * aperture)


def pairs(count=40, size=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    general, specific = (torch.randn(count, size, generator=generator, dtype=torch.float64) for _ in range(2))
    radius = torch.logspace(-2, 0.3, count, dtype=torch.float64)[:, None]
    return (general * radius).to(dtype), ((general + 0.5 * specific) * radius * 1.3).to(dtype)


@pytest.mark.parametrize("c", [1e-4, 0.1, 1.0, 10.0])
def test_against_the_formulas_on_the_sheet(c):
    general, specific = pairs()
    general, specific = general / c ** 0.5, specific / c ** 0.5
    for keywords in ({}, {"min_radius": 0.3, "aperture_scale": 0.7}):
        expected = [on_the_sheet(x, y, c, **keywords) for x, y in zip(general, specific)]
        assert cone_excess(general, specific, c, **keywords).tolist() == pytest.approx(expected, abs=1e-9)
        loss = entailment_loss(general, specific, c, **keywords).item()
        assert loss == pytest.approx(sum(max(0, e) for e in expected) / 40, abs=1e-9) and loss > 0
    # float32 of the same numbers; the exact value is that of the rounded tangents
    low = cone_excess(general.float(), specific.float(), c)
    expected = [on_the_sheet(x, y, c) for x, y in zip(general.float().double(), specific.float().double())]
    assert low.tolist() == pytest.approx(expected, abs=2e-5)


def test_closed_forms():
    """Further out on the same ray: inside; nearer, or on the far side: angle pi; in flat space: a right angle."""
    ray = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    aperture = math.asin(0.2 / math.sinh(2))
    assert cone_excess(ray, 2 * ray, 1.0).item() == pytest.approx(-aperture, abs=1e-12)
    assert entailment_loss(ray, 2 * ray, 1.0) == 0
    for other in (0.5 * ray, -ray, 0 * ray):
        assert cone_excess(ray, other, 1.0).item() == pytest.approx(math.pi - aperture, abs=1e-7)
        assert cone_excess(ray, other, 1.0, aperture_scale=1.2).item() == pytest.approx(math.pi - 1.2 * aperture, abs=1e-7)
    flat = cone_excess(torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([[1.0, 1.0]], dtype=torch.float64), 1e-12)
    assert flat.item() == pytest.approx(0, abs=1e-5), "flat space: the right angle of (1, 0), and a cone that is a half-space"


def test_curvature_only_sets_the_unit_of_length():
    general, specific = pairs(seed=2)
    scaled = cone_excess(general / 0.3, specific / 0.3, 0.09)
    torch.testing.assert_close(cone_excess(general, specific, 1.0), scaled, atol=1e-12, rtol=0)


def test_gradients():
    general, specific = (v.requires_grad_() for v in pairs(8, 3))
    c = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    for function in (cone_excess, lambda *vectors: entailment_loss(*vectors, weights=torch.arange(8))):
        assert torch.autograd.gradcheck(function, (general, specific, c), atol=1e-8, rtol=1e-5)


@pytest.mark.parametrize("c", [1e-4, 0.1, 1.0, 10.0])
def test_nothing_is_ever_non_finite(c):
    """Zero vectors, coincident points, one ray, opposite points and far points, with bf16 autocast around."""
    base = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    base = torch.cat([base, torch.eye(6)[:1], torch.zeros(1, 6)])
    for scale in (0, 1e-30, 1e-8, 1e-4, 0.1, 1, 10, 50, 1e4):
        for specific in (base, base * (1 + 1e-7), -base, 2 * base, base / 2, base.roll(1, 0), 0 * base, base + 1e-4):
            x, y = (base * scale).requires_grad_(), (specific * scale).requires_grad_()
            curvature = torch.tensor(c, requires_grad=True)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                excess = cone_excess(x, y, curvature)
            assert excess.dtype == torch.float32 and excess.isfinite().all() and (excess <= math.pi).all()
            for gradient in torch.autograd.grad(excess.sum(), (x, y, curvature)):
                assert gradient.isfinite().all(), (scale, specific)


def test_origin_and_tip():
    point, origin = torch.ones(1, 4), torch.zeros(1, 4)
    assert cone_excess(origin, point, 1.0) < 0 and cone_excess(point, point, 1.0) < 0, "above everything; within its own cone"
    assert entailment_loss(origin, point, 1.0) == entailment_loss(point, point, 1.0) == 0
    assert cone_excess(point, origin, 1.0) > 3, "the origin is below nothing"


def test_descent_makes_a_chain():
    """Three levels of random points: after descent every edge is inside its cone and every parent nearer the origin."""
    generator = torch.Generator().manual_seed(0)
    points = (torch.randn(7, 8, generator=generator) * 0.2).requires_grad_()
    parent, child = torch.tensor([0, 0, 1, 1, 2, 2]), torch.arange(1, 7)
    assert entailment_loss(points[parent], points[child], 1.0) > 0.3
    optimiser = torch.optim.Adam([points], lr=0.02)
    for _ in range(300):
        optimiser.zero_grad()
        entailment_loss(points[parent], points[child], 1.0, aperture_scale=0.9).backward()
        optimiser.step()
    assert (cone_excess(points[parent], points[child], 1.0) <= 1e-3).all()
    assert (points[parent].norm(dim=1) < points[child].norm(dim=1)).all()


def test_weights_and_no_pairs():
    general, specific = pairs(6, seed=3)
    mask = torch.tensor([True, False, True, True, False, False])
    assert entailment_loss(general, specific, 1.0, weights=mask) == entailment_loss(general[mask], specific[mask], 1.0)
    assert entailment_loss(general, specific, 1.0, weights=torch.zeros(6)) == 0 == entailment_loss(general[:0], specific[:0], 1.0)
    with pytest.raises(ValueError, match="weights"):
        entailment_loss(general, specific, 1.0, weights=torch.ones(5))


@pytest.mark.parametrize("keywords", [{"c": 0.0}, {"c": -1.0}, {"c": math.nan}, {"min_radius": 0.0}, {"aperture_scale": -1.0}])
def test_refusals(keywords):
    with pytest.raises(ValueError, match=next(iter(keywords))):
        cone_excess(torch.ones(2, 3), torch.ones(2, 3), **{"c": 1.0, **keywords})
    with pytest.raises(ValueError, match="one shape"):
        cone_excess(torch.ones(2, 3), torch.ones(3, 3), 1.0)
