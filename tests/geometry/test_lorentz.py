"""The Lorentz model against mpmath and written-out triangles, and against the Poincaré ball."""
import math

import mpmath
import pytest
import torch

from lib.geometry import poincare
from lib.geometry.lorentz import expmap0, exterior_angle, from_poincare, half_aperture, pairwise_distance, to_poincare

CURVATURES = (0.01, 0.1, 1.0, 2.0)


def rows(count, c, scale, dimension=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    v, w = (torch.randn(count, dimension, generator=generator, dtype=torch.float64) for _ in range(2))
    v, w = (scale / c ** 0.5 * torch.nn.functional.normalize(z) for z in (v, w))
    w = w * torch.linspace(0.1, 1, count, dtype=torch.float64)[:, None]
    w[0] = v[0] + 1e-4 * w[0]
    return v.to(dtype), w.to(dtype)


class Exact:
    """Time parts, Lorentz product, angle: as in MERU, with 80 digits."""

    def __init__(self, c, x, y):
        mpmath.mp.dps = 80
        self.c, self.x, self.y = mpmath.mpf(c), *([mpmath.mpf(p) for p in row.tolist()] for row in (x, y))
        self.x_time, self.y_time = (mpmath.sqrt(1 / self.c + mpmath.fsum(p * p for p in row)) for row in (self.x, self.y))
        self.product = mpmath.fsum(p * q for p, q in zip(self.x, self.y)) - self.x_time * self.y_time

    def distance(self):
        return mpmath.acosh(-self.c * self.product) / mpmath.sqrt(self.c)

    def angle(self):
        length = mpmath.sqrt(mpmath.fsum(p * p for p in self.x))
        below = length * mpmath.sqrt((self.c * self.product) ** 2 - 1)
        return mpmath.acos((self.y_time + self.c * self.product * self.x_time) / below)


@pytest.mark.parametrize("scale", (0.01, 1, 6, 20))
@pytest.mark.parametrize("c", CURVATURES)
def test_against_mpmath(c, scale):
    v, w = rows(5, c, scale)
    x, y = expmap0(v, c), expmap0(w, c)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-5)):
        x, y = x.to(dtype), y.to(dtype)
        wanted = [Exact(c, p, q) for p, q in zip(x, y)]
        distances, angles = (torch.tensor([float(value) for value in values], dtype=dtype)
                             for values in ([e.distance() for e in wanted], [e.angle() for e in wanted]))
        torch.testing.assert_close(pairwise_distance(x, y, c).diagonal(), distances, rtol=tolerance, atol=0)
        torch.testing.assert_close(exterior_angle(x, y, c), angles, rtol=10 * tolerance, atol=0)


@pytest.mark.parametrize("c", CURVATURES)
def test_the_same_space_as_the_ball(c):
    v, w = rows(8, c, 2.0)
    s, t = expmap0(2 * v, c), expmap0(2 * w, c)
    p, q = poincare.expmap0(v, c), poincare.expmap0(w, c)
    torch.testing.assert_close(to_poincare(s, c), p, rtol=1e-12, atol=0)
    torch.testing.assert_close(from_poincare(p, c), s, rtol=1e-12, atol=0)
    torch.testing.assert_close(pairwise_distance(s, t, c), poincare.pairwise_distance(p, q, c), rtol=1e-11, atol=0)
    torch.testing.assert_close(pairwise_distance(torch.zeros_like(s[:1]), s, c)[0], 2 * v.norm(dim=1), rtol=1e-12, atol=0)
    in_ball = 0.1 * (1 - c * p.square().sum(1)) / (c ** 0.5 * p.norm(dim=1))  # the sine of the aperture in ball coordinates
    torch.testing.assert_close(half_aperture(s, c), in_ball.asin(), rtol=1e-12, atol=0)
    # Möbius addition takes x to 0, and the angle at 0 is that of the vectors
    at_zero = poincare.mobius_add(-p, q, c)
    angle = torch.acos(torch.nn.functional.cosine_similarity(at_zero, p))
    torch.testing.assert_close(exterior_angle(s, t, c), angle, rtol=1e-6, atol=1e-7)


def test_cones():
    """What lies beyond x on its ray is inside, what lies before it, or opposite, is not; tips near the origin hold everything."""
    x = torch.tensor([[0.5, 0, 0]]).double()
    beyond, before, opposite, beside = 2 * x, x / 2, -x, torch.tensor([[3.0, 2.9, 0]]).double()
    angles = exterior_angle(x, torch.cat([beyond, before, opposite, beside]), 1.0)
    torch.testing.assert_close(angles[:3], torch.tensor([0, math.pi, math.pi], dtype=torch.float64), atol=1e-12, rtol=0)
    assert half_aperture(x, 1.0).item() == pytest.approx(math.asin(0.4)) and angles[3] > half_aperture(x, 1.0)
    assert half_aperture(x, 1.0, min_radius=0.3).item() == math.pi / 2
    assert half_aperture(x, 4.0).item() == pytest.approx(math.asin(0.2))
    near = torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [0.2, 0, 0], [0.2 * (1 + 1e-7), 0, 0]]).double()
    torch.testing.assert_close(half_aperture(near, 1.0), torch.full((4,), math.pi / 2, dtype=torch.float64), atol=5e-4, rtol=0)
    assert exterior_angle(x, x, 1.0) == 0 and exterior_angle(0 * x, x, 1.0) == 0 and exterior_angle(x, 0 * x, 1.0) == math.pi


def test_gradients_float64():
    v, w = rows(4, 1.0, 1.5)
    w[0] = -0.7 * w[1]                                                 # not next to v[0]: finite differences are too coarse there
    v[2], w[3] = 0, 0
    inputs = [z.clone().requires_grad_() for z in (v, w, torch.tensor(-0.3, dtype=torch.float64))]
    for function in (lambda v, w, k: expmap0(v, k), pairwise_distance, lambda v, w, k: half_aperture(v[:2], k),
                     lambda v, w, k: exterior_angle(v[1:2], w[1:3], k), lambda v, w, k: to_poincare(v, k),
                     lambda v, w, k: from_poincare(v / 3, k)):
        assert torch.autograd.gradcheck(lambda v, w, log_c: function(v, w, log_c.exp()), inputs)


def test_gradients_near_the_ray_and_near_saturation():
    """acos and asin have infinite slopes there; the angle's gradient is the true one, that of the aperture stays below 5000."""
    x = torch.tensor([[1.0, 0]]).double()
    for turn in (1e-12, 1e-9, 1e-5):
        y = torch.tensor([[2.0, 2 * turn]], dtype=torch.float64, requires_grad=True)
        gradient, = torch.autograd.grad(exterior_angle(x, y, 1.0).sum(), y)
        step = 2e-3
        aside = exterior_angle(x, torch.tensor([[2.0, step]]).double(), 1.0).item() / step
        assert gradient[0, 1].item() == pytest.approx(aside, rel=1e-3)
    for off in (1e-3, 1e-5, 1e-6, 1e-9, 0, -1e-3):
        tip = torch.tensor([[0.2 * (1 + off), 0]], dtype=torch.float64, requires_grad=True)
        gradient, = torch.autograd.grad(half_aperture(tip, 1.0).sum(), tip)
        assert gradient.abs().max() < 5 * 1000 and (gradient[0, 0] < 0) == (off > 2e-6)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
def test_nothing_is_ever_not_finite(dtype):
    for c in (1e-4, 1e-2, 1.0, 10.0):
        for scale in (0.0, 1e-30, 1e-8, 1e-3, 1.0, 7.0, 50.0, 1e4):
            log_c = torch.tensor(math.log(c), requires_grad=True, dtype=torch.promote_types(dtype, torch.float32))
            v = torch.randn(9, 6, generator=torch.Generator().manual_seed(3)) * scale
            v[0], v[1], v[2], v[3], v[4] = 0, v[5], -v[5], v[5] * (1 + 1e-6), 1e-25 * v[5]
            w = v.clone()[[0, 0, 5, 5, 6, 3]].to(dtype).requires_grad_()
            v = v.to(dtype).requires_grad_()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                k = log_c.exp()
                x, y = expmap0(v, k), expmap0(w, k)
                ball = to_poincare(x, k)
                results = [x, pairwise_distance(x, y, k), half_aperture(x, k), exterior_angle(x[:, None], y, k), ball,
                           from_poincare(ball, k)]
            for number, result in enumerate(results):
                assert result.isfinite().all(), (c, scale, number)
                gradients = torch.autograd.grad(result.sum(), (v, w, log_c), retain_graph=True, allow_unused=True)
                assert all(g is None or g.isfinite().all() for g in gradients), (c, scale, number)


def test_refusals():
    x = torch.ones(2, 3)
    for function, arguments in ((expmap0, (x, 0)), (pairwise_distance, (x, x, -1)), (half_aperture, (x, math.nan)),
                                (exterior_angle, (x, x, 0)), (to_poincare, (x, 0)), (from_poincare, (x, 0))):
        with pytest.raises(ValueError, match="c must be one finite number above 0"):
            function(*arguments)
    with pytest.raises(ValueError, match="min_radius must be above 0, got 0"):
        half_aperture(x, 1.0, 0)
