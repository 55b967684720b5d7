"""Projections: a picture that can be exact is exact, radii are kept where that is said, figures equal written-out ones."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.manifold import trustworthiness

from lib.evaluation.projections import distortion, radial, stress

RNG = np.random.default_rng(5)


def rotation(dim: int) -> np.ndarray:
    return np.linalg.qr(RNG.normal(size=(dim, dim)))[0]


def tree(dim: int = 16, branching=(5, 4, 4)) -> np.ndarray:
    """Tangents of a tree whose children lie further out, around their parent's direction."""
    rng, nodes, level = np.random.default_rng(0), [np.zeros(dim)], [np.zeros(dim)]
    for count in branching:
        level = [parent + 0.6 * rng.normal(size=dim) / np.sqrt(dim) for parent in level for _ in range(count)]
        nodes += level
    return np.array(nodes)


def disk_distance(x: np.ndarray, y: np.ndarray, c: float) -> np.ndarray:
    """arcosh form for points of the unit disk, in the units of curvature -c."""
    gap = ((x[:, None] - y[None]) ** 2).sum(-1)
    return np.arccosh(1 + 2 * gap / ((1 - (x**2).sum(1))[:, None] * (1 - (y**2).sum(1))[None])) / np.sqrt(c)


@pytest.mark.parametrize("project", [radial, stress])
@pytest.mark.parametrize("dim, c", [(2, 1.0), (3, 0.1), (64, 2.0), (512, 0.01)])
def test_points_of_a_plane_are_recovered_whatever_its_rotation(project, dim, c):
    flat = RNG.normal(size=(60, 2)) / np.sqrt(c)
    v = np.pad(flat, ((0, 0), (0, dim - 2))) @ rotation(dim).T
    found = project(torch.from_numpy(v), torch.tensor(c))
    assert found.distortion["worst relative error"] < 1e-6 and found.distortion["trustworthiness@10"] == 1
    assert found.distortion["Spearman of distances"] > 1 - 1e-9
    pairs = np.triu_indices(60, 1)
    assert np.allclose(disk_distance(found.points, found.points, c)[pairs], found.true[pairs], rtol=1e-5)


@pytest.mark.parametrize("c", [0.1, 1.0])
def test_radial_keeps_every_radius_and_what_is_measured_is_what_is_drawn(c):
    v = tree()
    for project in (radial, stress):
        found = project(v, c)
        assert found.points.shape == (len(v), 2) and (np.linalg.norm(found.points, axis=1) < 1).all()
        assert np.allclose(disk_distance(found.points, found.points, c), found.drawn, atol=1e-6)
        assert found.distortion == distortion(found.true, found.drawn)
    radius = 2 * np.arctanh(np.linalg.norm(radial(v, c).points, axis=1)) / np.sqrt(c)
    assert np.allclose(radius, 2 * np.linalg.norm(v, axis=1), rtol=1e-12)


def test_curvature_is_a_unit_of_length_and_nothing_else():
    v = tree()
    for project in (radial, stress):
        one, other = project(v, 1.0), project(8 * v, 1 / 64)
        assert np.array_equal(one.points, other.points) and np.array_equal(8 * one.true, other.true)
        assert one.distortion == pytest.approx(other.distortion)


def test_stress_finds_a_minimum_below_radial_and_far_from_chance():
    v = tree()
    found, start = stress(v, 1.0, steps=400), radial(v, 1.0)

    def error(drawn, points):
        to_centre = 2 * np.arctanh(np.linalg.norm(points, axis=1)) - 2 * np.linalg.norm(v, axis=1)
        return ((drawn - found.true)[np.triu_indices(len(v), 1)] ** 2).sum() + (to_centre**2).sum()

    best = error(found.drawn, found.points)
    assert best < 0.8 * error(start.drawn, start.points)
    for scale in (1e-3, 1e-2):
        for _ in range(5):
            moved = found.points + scale * RNG.normal(size=found.points.shape) * (1 - (found.points**2).sum(1, keepdims=True))
            assert error(disk_distance(moved, moved, 1.0), moved) > best
    assert found.distortion["mean relative error"] < start.distortion["mean relative error"] < start.chance["mean relative error"]
    assert found.distortion["trustworthiness@10"] > 0.7 and found.chance["trustworthiness@10"] == pytest.approx(0.5, abs=0.1)
    assert abs(found.chance["Spearman of distances"]) < 0.1
    assert np.array_equal(found.points, stress(v, 1.0, steps=400).points)


@pytest.mark.parametrize("n, neighbours", [(80, 10), (80, 5), (9, 10)])
def test_figures_equal_written_out_ones(n, neighbours):
    x, y = RNG.normal(size=(n, 5)), RNG.normal(size=(n, 2))
    y += x[:, :2]
    true, drawn = (np.linalg.norm(p[:, None] - p[None], axis=-1) for p in (x, y))
    figures, k = distortion(true, drawn, neighbours), min(neighbours, (n - 1) // 2)
    errors = [abs(drawn[i, j] - true[i, j]) / true[i, j] for i in range(n) for j in range(i)]
    pairs = [(true[i, j], drawn[i, j]) for i in range(n) for j in range(i)]
    assert figures == pytest.approx({"mean relative error": np.mean(errors), "worst relative error": max(errors),
                                     "Spearman of distances": spearmanr(*zip(*pairs)).statistic,
                                     f"trustworthiness@{k}": trustworthiness(x, y, n_neighbors=k)})


def test_points_that_coincide_or_lie_in_the_centre_or_far_out_give_finite_pictures():
    v = tree()
    v[3] = v[2]
    v[4:6] = 0
    v[6] *= 40 / np.linalg.norm(v[6])
    for project in (radial, stress):
        found = project(v.astype(np.float32), 1.0)
        assert np.isfinite(found.points).all() and (np.linalg.norm(found.points, axis=1) < 1).all()
        assert np.isfinite(list(found.distortion.values())).all() and np.isfinite(found.drawn).all()
        assert np.allclose(found.points[2], found.points[3], atol=1e-3 if project is stress else 1e-12)
    centre = stress(np.zeros((5, 3)), 1.0)
    assert np.allclose(centre.points, 0) and np.isnan(centre.distortion["Spearman of distances"])


@pytest.mark.parametrize("v, c, message", [
    (np.ones((3, 5)), 1.0, r"\(3, 5\)"), (np.ones((9, 1)), 1.0, r"\(9, 1\)"), (np.ones(9), 1.0, r"\(9,\)"),
    (np.ones((9, 3)), 0.0, "positive"), (np.ones((9, 3)), np.nan, "positive"), (np.diag([1, 1, np.nan, 1]), 1.0, "row 2")])
def test_what_cannot_be_drawn_is_refused(v, c, message):
    for project in (radial, stress):
        with pytest.raises(ValueError, match=message):
            project(v, c)
    with pytest.raises(ValueError, match="N >= 4"):
        distortion(np.zeros((3, 3)), np.zeros((3, 3)))
