"""The Poincaré ball against mpmath, geoopt and the rules of the geometry; gradients; the hunt for values that are not finite."""
import math

import mpmath
import pytest
import torch
from geoopt.manifolds.stereographic import math as stereographic
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.geometry import poincare
from lib.geometry.poincare import (distance, einstein_midpoint, expmap0, logmap0, midpoint, mobius_add, pairwise_distance,
                                   pairwise_distance_from_tangents, project)

CURVATURES = (0.01, 0.1, 1.0, 2.0)


class Exact:
    """The definitions, word for word, with 80 digits."""

    def __init__(self, c):
        mpmath.mp.dps = 80
        self.c = mpmath.mpf(c)
        self.root = mpmath.sqrt(self.c)

    def dot(self, x, y):
        return mpmath.fsum(p * q for p, q in zip(x, y))

    def stretch(self, x, function):
        length = self.root * mpmath.sqrt(self.dot(x, x))
        return [p * function(length) / length if length else p for p in x]

    def expmap0(self, v):
        return self.stretch(v, mpmath.tanh)

    def logmap0(self, y):
        return self.stretch(y, mpmath.atanh)

    def mobius_add(self, x, y):
        xy, xx, yy = self.c * self.dot(x, y), self.c * self.dot(x, x), self.c * self.dot(y, y)
        return [((1 + 2 * xy + yy) * p + (1 - xx) * q) / (1 + 2 * xy + xx * yy) for p, q in zip(x, y)]

    def distance(self, x, y):
        z = self.mobius_add([-p for p in x], y)
        return 2 / self.root * mpmath.atanh(self.root * mpmath.sqrt(self.dot(z, z)))

    def midpoint(self, x, y):
        z = self.mobius_add([-p for p in x], y)
        return self.mobius_add(x, self.stretch(z, lambda length: mpmath.tanh(mpmath.atanh(length) / 2)))


def numbers(row):
    return [mpmath.mpf(value) for value in row.tolist()]


def tangents(count, c, scale, dimension=3, dtype=torch.float64, seed=0):
    """Rows of sqrt(c)|v| up to `scale`; the second set holds a near neighbour and a near opposite of the first."""
    generator = torch.Generator().manual_seed(seed)
    v, w = (torch.randn(count, dimension, generator=generator, dtype=torch.float64) for _ in range(2))
    v = scale / c ** 0.5 * torch.nn.functional.normalize(v)
    w = scale / c ** 0.5 * torch.nn.functional.normalize(w) * torch.rand(count, 1, generator=generator, dtype=torch.float64)
    w[0], w[1] = v[0] + 1e-4 * w[0], -v[1] * (1 + 1e-6)
    return v.to(dtype), w.to(dtype)


@pytest.mark.parametrize("scale", (0.01, 1, 3, 6, 12))
@pytest.mark.parametrize("c", CURVATURES)
def test_against_mpmath(c, scale):
    """1e-10, in distances of the relative error too: also far out, where 1 - c|x|^2 is lost to plain float64."""
    exact = Exact(c)
    v, w = tangents(4, c, scale)
    x, y = expmap0(v, c), expmap0(w, c)
    found = {"expmap0": expmap0(v, c), "logmap0": logmap0(x, c), "mobius_add": mobius_add(x, y, c), "midpoint": midpoint(x, y, c),
             "distance": distance(x, y, c), "pairwise": pairwise_distance(x, y, c).diagonal(),
             "tangents": pairwise_distance_from_tangents(v, w, c).diagonal()}
    for i in range(4):
        a, b = numbers(x[i]), numbers(y[i])
        apart = exact.distance(a, b)
        wanted = {"expmap0": exact.expmap0(numbers(v[i])), "logmap0": exact.logmap0(a), "mobius_add": exact.mobius_add(a, b),
                  "midpoint": exact.midpoint(a, b), "distance": apart, "pairwise": apart,
                  "tangents": exact.distance(exact.expmap0(numbers(v[i])), exact.expmap0(numbers(w[i])))}
        for name, value in wanted.items():
            if isinstance(value, list):
                error = max(abs(mpmath.mpf(one) - other) for one, other in zip(found[name][i].tolist(), value))
            else:
                error = abs(mpmath.mpf(found[name][i].item()) - value) / min(1, value)
            assert error <= 1e-10, f"{name}, row {i}: {float(error):.1e}"


@pytest.mark.parametrize("scale", (0.1, 1, 3))
@pytest.mark.parametrize("c", CURVATURES)
def test_against_geoopt(c, scale):
    k = torch.tensor(-c, dtype=torch.float64)
    v, w = tangents(20, c, scale, dimension=7)
    x, y = stereographic.expmap0(v, k=k), stereographic.expmap0(w, k=k)
    same = dict(rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(expmap0(v, c), x, **same)
    torch.testing.assert_close(logmap0(x, c), stereographic.logmap0(x, k=k), **same)
    torch.testing.assert_close(mobius_add(x, y, c), stereographic.mobius_add(x, y, k=k), **same)
    if scale == 3:  # points up to 12 apart, where geoopt's artanh near 1 loses digits: mpmath, above, says which one is right
        same = dict(rtol=2e-9, atol=1e-9 / c ** 0.5)
    torch.testing.assert_close(distance(x, y, c), stereographic.dist(x, y, k=k), **same)
    for pairs in (pairwise_distance(x, y, c), pairwise_distance_from_tangents(v, w, c)):
        torch.testing.assert_close(pairs, stereographic.dist(x[:, None], y, k=k), **same)
    half = stereographic.mobius_scalar_mul(torch.tensor(0.5).double(), stereographic.mobius_add(-x, y, k=k), k=k)
    torch.testing.assert_close(midpoint(x, y, c), stereographic.mobius_add(x, half, k=k), **same)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("c", CURVATURES)
def test_round_trips_and_radii(c, dtype):
    tolerance = {torch.float32: 3e-5, torch.float64: 1e-13}[dtype]  # a rounding of y at radius 3 moves v by 200 of them
    v, _ = tangents(50, c, 3.0, dimension=16, dtype=dtype)
    v = v * torch.linspace(0, 1, 50, dtype=dtype)[:, None]
    y = expmap0(v, c)
    torch.testing.assert_close(logmap0(y, c), v, rtol=tolerance, atol=1e-12)
    torch.testing.assert_close(expmap0(logmap0(y, c), c), y, rtol=4e-7, atol=1e-12)
    torch.testing.assert_close(distance(torch.zeros_like(y), y, c), 2 * v.norm(dim=1), rtol=tolerance, atol=1e-12)
    flat = distance(v, v.flip(0), 1e-12)
    torch.testing.assert_close(flat, 2 * (v - v.flip(0)).norm(dim=1), rtol=1e-5, atol=1e-6)


vectors = st.lists(st.floats(-1, 1), min_size=3, max_size=3)


@settings(max_examples=60, deadline=None)
@given(vectors, vectors, vectors, st.sampled_from(CURVATURES))
def test_a_metric_and_its_isometries(first, second, third, c):
    x, y, z = (expmap0(torch.tensor(row, dtype=torch.float64) / c ** 0.5, c) for row in (first, second, third))
    d = lambda p, q: distance(p, q, c).item()
    slack = 1e-9 / c ** 0.5
    assert d(x, z) <= d(x, y) + d(y, z) + slack
    assert d(x, y) == d(y, x) >= 0 and d(x, x) == 0
    assert d(mobius_add(z, x, c), mobius_add(z, y, c)) == pytest.approx(d(x, y), abs=slack)
    torch.testing.assert_close(mobius_add(-z, mobius_add(z, x, c), c), x, rtol=1e-9, atol=slack)  # left cancellation
    middle = midpoint(x, y, c)
    assert d(x, middle) == pytest.approx(d(x, y) / 2, abs=slack) and d(middle, y) == pytest.approx(d(x, y) / 2, abs=slack)


def test_scaling_by_the_curvature():
    v, w = tangents(6, 1.0, 2.0)
    for c in CURVATURES:
        torch.testing.assert_close(c ** 0.5 * expmap0(v, c), expmap0(c ** 0.5 * v, 1.0), rtol=1e-13, atol=0)
        torch.testing.assert_close(pairwise_distance_from_tangents(v, w, c),
                                   pairwise_distance_from_tangents(c ** 0.5 * v, c ** 0.5 * w, 1) / c ** 0.5, rtol=1e-10, atol=0)


@pytest.mark.parametrize("c", CURVATURES)
def test_einstein_midpoint(c):
    """Against the Klein model written out; of two points it is the midpoint, and isometries take it along."""
    v, _ = tangents(8, c, 2.5)
    points = expmap0(v, c).view(2, 4, 3)
    weights = torch.rand(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    klein = 2 * points / (1 + c * points.square().sum(-1, keepdim=True))
    gamma = weights[..., None] / (1 - c * klein.square().sum(-1, keepdim=True)).sqrt()
    mean = (gamma * klein).sum(-2) / gamma.sum(-2)
    wanted = mean / (1 + (1 - c * mean.square().sum(-1, keepdim=True)).sqrt())
    torch.testing.assert_close(einstein_midpoint(points, c, weights), wanted, rtol=1e-11, atol=1e-11)
    of_two = midpoint(points[0, 0], points[0, 1], c)
    torch.testing.assert_close(einstein_midpoint(points[0, :2], c), of_two, rtol=1e-11, atol=1e-11)
    moved = mobius_add(points[1, :1].expand(4, 3), points[0], c)
    along = mobius_add(points[1, 0], einstein_midpoint(points[0], c), c)
    torch.testing.assert_close(einstein_midpoint(moved, c), along, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(einstein_midpoint(points[:, :1], c), points[:, 0], rtol=1e-12, atol=0)


def test_float32_at_every_distance():
    """Notes, section 7: arcosh loses small distances, artanh large ones, the matrix product those of near pairs."""
    for c in (0.01, 1.0, 2.0):
        v, _ = tangents(40, c, 1.0, dimension=64, dtype=torch.float32)
        for length in (0.1, 1.0, 3.0, 4.95):                           # tanh(4.95) = 0.9999
            for step in (1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.14, 0.2, 1.0):  # about 0.1 the recomputed pairs end
                a = length * v
                b = length * (v + step * v.roll(1, 0) + step * 0.1 * v)
                x, y = expmap0(a, c), expmap0(b, c)
                wanted = distance(x.double()[:, None], y.double(), c)
                for found in (pairwise_distance(x, y, c), distance(x[:, None], y, c)):
                    assert found.dtype == torch.float32
                    assert ((found - wanted).abs() / wanted).max() <= (2e-5 if length < 4 else 1e-4), (c, length, step)
                wanted = pairwise_distance_from_tangents(a.double(), b.double(), c)
                found = pairwise_distance_from_tangents(a, b, c)
                assert ((found - wanted).abs() / wanted).max() <= 2e-5, (c, length, step)


def test_far_out_from_tangents():
    """Both formulas agree where they meet; beyond, lengths add up and the radius, not the angle, is all that is left."""
    v, w = tangents(30, 1.0, 1.0, dimension=8)
    w[2], w[3] = v[2], v[3] / 2                                        # the same direction to the last bit
    for dtype, meet in ((torch.float64, 176.0), (torch.float32, 21.0)):  # a + b = 4 * scale passes 700, 80
        outside = pairwise_distance_from_tangents((meet * v).to(dtype), (meet * w).to(dtype), 1.0)
        parts = [pairwise_distance_from_tangents((meet * v[i:i + 1]).to(dtype), (meet * w[j:j + 1]).to(dtype), 1.0)
                 for i in range(4) for j in range(4, 30)]                # shorter partners: a + b is below
        tolerance = 1e-5 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(outside[:4, 4:].reshape(-1), torch.cat(parts).reshape(-1), rtol=tolerance, atol=0)
        assert outside[2, 2] == 0
        torch.testing.assert_close(outside[3, 3], torch.tensor(meet, dtype=dtype), rtol=1e-6, atol=0)
    angle = torch.linalg.vector_norm(v[:1] / v[:1].norm() - v[1:2] / v[1:2].norm()) / 2
    far = pairwise_distance_from_tangents(1e4 * v[:1], 2e4 * v[1:2], 1.0)
    assert far.item() == pytest.approx(6e4 + 2 * math.log(angle), rel=1e-12)


def test_points_are_within_the_ball():
    for c in (1e-4, 1.0, 10.0):
        for dtype in (torch.float32, torch.float64):
            v, w = tangents(50, c, 200.0, dimension=64, dtype=dtype)
            x, y = expmap0(v, c), expmap0(w, c)
            outside = torch.randn(50, 64, dtype=dtype) * 10 / c ** 0.5
            for points in (x, mobius_add(x, y, c), midpoint(x, y, c), project(outside, c), einstein_midpoint(x[:, None], c)):
                assert (c * points.square().sum(1) < 1).all()
            kept = expmap0(v / 400, c)
            assert torch.equal(project(kept, c), kept)
            assert (c ** 0.5 * distance(torch.zeros_like(x), x, c)).min() > (15 if dtype == torch.float32 else 35)


def rows_to_hunt_with(c, scale, dtype):
    """Zero rows, equal rows, neighbours and opposites in both sets, tiny ones too."""
    v = torch.randn(9, 6, generator=torch.Generator().manual_seed(3)) * scale
    v[0], v[1], v[2], v[3], v[4] = 0, v[5], -v[5], v[5] * (1 + 1e-6), 1e-25 * v[5]
    return v.to(dtype).requires_grad_(), v.clone()[[0, 0, 5, 5, 6, 3]].to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
def test_nothing_is_ever_not_finite(dtype):
    for c in (1e-4, 1e-2, 1.0, 10.0):
        for scale in (0.0, 1e-30, 1e-8, 1e-3, 1.0, 7.0, 50.0):
            log_c = torch.tensor(math.log(c), requires_grad=True)
            v, w = rows_to_hunt_with(c, scale, dtype)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                k = log_c.exp()
                x, y = expmap0(v, k), expmap0(w, k)
                results = [x, logmap0(x, k), pairwise_distance_from_tangents(v, w, k), pairwise_distance(x, y, k),
                           distance(x[:, None], y, k), mobius_add(x[:, None], y, k), mobius_add(-x, x, k),
                           midpoint(x[:, None], y, k), einstein_midpoint(x, k),
                           project(v, k), pairwise_distance(v, w, k), logmap0(v, k)]  # the last three: points outside the ball
            for number, result in enumerate(results):
                assert result.isfinite().all() and result.dtype == torch.promote_types(dtype, torch.float32), (c, scale, number)
                gradients = torch.autograd.grad(result.sum(), (v, w, log_c), retain_graph=True, allow_unused=True)
                assert all(g is None or g.isfinite().all() for g in gradients), (c, scale, number)


def test_gradients_float64():
    v, w = tangents(5, 1.0, 1.5)
    w[2] = v[2] * (1 + 1e-3)
    v[3], w[4] = 0, 0                                                  # the true gradient at 0, from polar coordinates too
    log_c = torch.tensor(-0.3, dtype=torch.float64)
    inputs = [z.clone().requires_grad_() for z in (v, w, log_c)]
    for function in (lambda v, w, k: expmap0(v, k), lambda v, w, k: logmap0(v / 3, k),
                     lambda v, w, k: mobius_add(v / 3, w / 3, k), lambda v, w, k: midpoint(v / 3, w / 3, k),
                     lambda v, w, k: distance(v / 3, w / 3, k),
                     lambda v, w, k: einstein_midpoint(v / 3, k, w.square().sum(-1) + 1), pairwise_distance_from_tangents,
                     lambda v, w, k: pairwise_distance(expmap0(v, k), expmap0(w, k), k),
                     lambda v, w, k: pairwise_distance_from_tangents(300 * v[:2], 200 * w[2:], k)):
        assert torch.autograd.gradcheck(lambda v, w, log_c: function(v, w, log_c.exp()), inputs)


@pytest.mark.parametrize("scale", (10.0, 1.0, 1e-6))
def test_gradients_at_zero_tangents_float32(scale):
    """d(exp v, exp w) grows by 2 for each unit that v leaves 0 in the direction away from w."""
    w = tangents(6, 1.0, scale, dtype=torch.float32)[0]
    v = torch.zeros(1, 3, requires_grad=True)
    for c in (0.01, 1.0, 10.0):
        for i, row in enumerate(pairwise_distance_from_tangents(v, w, c)[0]):
            gradient, = torch.autograd.grad(row, v, retain_graph=True)
            torch.testing.assert_close(gradient[0], -2 * w[i] / w[i].norm(), rtol=1e-5, atol=1e-5)


def test_gradients_at_coincident_points():
    """No gradient exists there; 0 is given, values are 0, and beside the point the gradient is a unit vector of the metric."""
    v, _ = tangents(4, 1.0, 1.0)
    for dtype in (torch.float32, torch.float64):
        for function in (pairwise_distance_from_tangents, lambda a, b, c: pairwise_distance(expmap0(a, c), expmap0(b, c), c),
                         lambda a, b, c: distance(expmap0(a, c)[:, None], expmap0(b, c), c)):
            a = v.to(dtype).requires_grad_()
            values = function(a, a.detach(), 1.0).diagonal()
            assert values.abs().max() <= 1e-18
            assert torch.autograd.grad(values.sum(), a)[0].abs().max() == 0
            beside = function(a, a.detach() * (1 + 1e-5), 1.0).diagonal()
            assert torch.autograd.grad(beside.sum(), a)[0].norm(dim=1) == pytest.approx(2, rel=1e-2)  # along the ray: 2


@pytest.mark.parametrize("c", (0.0, -1.0, float("nan"), float("inf"), torch.tensor([1.0])))
def test_refused_curvatures(c):
    x = torch.zeros(2, 3)
    for function in (expmap0, logmap0, project, einstein_midpoint):
        with pytest.raises(ValueError, match="c must be one finite number above 0"):
            function(x, c)
    for function in (mobius_add, distance, midpoint, pairwise_distance, pairwise_distance_from_tangents):
        with pytest.raises(ValueError, match="c must be one finite number above 0"):
            function(x, x, c)


def test_refused_weights_and_empty_sets():
    for weights in (torch.zeros(4), torch.tensor([1.0, 1, -1, 1])):
        with pytest.raises(ValueError, match="weights must be >= 0"):
            einstein_midpoint(torch.zeros(4, 3), 1.0, weights)
    for function in (poincare.pairwise_distance, poincare.pairwise_distance_from_tangents):
        assert function(torch.zeros(0, 3), torch.zeros(4, 3), 1.0).shape == (0, 4)
        assert function(torch.zeros(2, 3), torch.zeros(0, 3), 1.0).shape == (2, 0)
