"""Directions: predictions go to the events they are scored with, circles have no edge, chance is what a draw gives."""
from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.image import imread

from lib.audio.ambisonics import unit_vector
from lib.audio.directions import DIRECTIONS, direction_word
from lib.display import sphere, style
from lib.evaluation.localization import angular_error

FIGURES = (sphere.directions_on_sphere, sphere.azimuth_scatter, sphere.error_histogram, sphere.error_by_sector)


def vectors(azimuth, elevation=0.0) -> np.ndarray:
    """(..., 3) of angles in degrees."""
    return np.moveaxis(unit_vector(np.asarray(azimuth, float), np.asarray(elevation, float)), 0, -1)


def scenes(clips: int, events: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    target = random.normal(size=(clips, events, 3))
    target /= np.linalg.norm(target, axis=-1, keepdims=True)
    return target + noise * random.normal(size=target.shape), target


def labels(axes) -> list[str]:
    return [line.get_label() for line in axes.lines]


@pytest.mark.parametrize("events", [1, 2, 3])
@pytest.mark.parametrize("figure", FIGURES)
def test_every_figure_draws_and_no_label_lies_on_another(figure, events):
    predicted, target = scenes(30, events, 0.4)
    picture = figure(torch.tensor(predicted, requires_grad=True), torch.tensor(target))
    assert imread(io.BytesIO(picture._repr_png_())).shape[1] == round(100 * picture.get_figwidth())
    renderer = picture.canvas.get_renderer()
    axes = picture.axes[0]
    assert "degrees" in axes.get_xlabel() and axes.get_ylabel()
    for texts, side in ((axes.get_yticklabels(), 1), (axes.get_xticklabels() if figure != sphere.azimuth_scatter else [], 0)):
        boxes = sorted((t.get_window_extent(renderer) for t in texts if t.get_text()), key=lambda box: (box.x0, box.y0)[side])
        assert all((one.x1, one.y1)[side] <= (other.x0, other.y0)[side] + 1.5 for one, other in zip(boxes, boxes[1:]))
    assert picture._suptitle.get_window_extent(renderer).x1 <= picture.bbox.x1


@pytest.mark.parametrize("events", [1, 2, 3])
def test_predictions_are_matched_as_they_are_scored(events):
    predicted, target = scenes(200, events, 0.8)
    shuffled = predicted[:, ::-1] * np.random.default_rng(1).uniform(0.01, 5, (200, events, 1))  # lengths do not count
    matched, truth, error = sphere._matched(shuffled, target)
    np.testing.assert_allclose(error, angular_error(predicted, target), atol=1e-9)
    own = np.degrees(np.arccos(np.clip((matched * truth).sum(-1), -1, 1)))
    np.testing.assert_allclose(error, own, atol=1e-5)
    for clip in range(200):
        assert {*map(tuple, matched[clip].round(9))} == {*map(tuple, sphere._unit(shuffled, "")[clip].round(9))}


def test_chance_is_90_degrees_for_one_event_and_75_for_two():
    _, error, _ = sphere._chance(scenes(500, 1, 0)[1])
    assert error.mean() == pytest.approx(90, abs=1e-9)
    predicted, _, truth = sphere._chance(vectors([[[10.0]], [[100.0]]]).reshape(2, 1, 3))
    assert sphere._right_words(predicted, truth) == pytest.approx(1 / 8, abs=1e-9)
    two = sphere._chance(scenes(2000, 2, 0)[1])[1].mean()
    random = np.random.default_rng(5)
    naive = angular_error(random.normal(size=(20_000, 2, 3)), random.normal(size=(20_000, 2, 3))).mean()
    assert two == pytest.approx(float(naive), abs=0.8) and two == pytest.approx(74.9, abs=0.8)


def test_a_great_circle_is_the_shortest_way_and_stops_at_the_seam():
    random = np.random.default_rng(0)
    for _ in range(50):
        start, end = (v / np.linalg.norm(v) for v in random.normal(size=(2, 3)))
        pieces = sphere._great_circle(start, end)
        points = np.vstack(pieces)
        assert len(pieces) in (1, 2) and all(np.abs(np.diff(piece[:, 0])).max() <= 180 for piece in pieces)
        np.testing.assert_allclose(vectors(*points[[0, -1]].T), [start, end], atol=1e-9)
        if len(pieces) == 1:
            steps = sphere._angle(vectors(*points[:-1].T), vectors(*points[1:].T))
            assert steps.sum() == pytest.approx(sphere._angle(start, end), abs=1e-6)
    one, other = sphere._great_circle(*vectors([170.0, -160.0]))
    assert (one[-1, 0], other[0, 0]) == (180, -180) and (one[0, 0], other[-1, 0]) == pytest.approx((170, -160))
    opposite = np.vstack(sphere._great_circle(*vectors([0.0, 180.0])))
    assert np.isfinite(opposite).all() and len(sphere._great_circle(*vectors([30.0, 30.0]))[0]) == 2


def test_the_map_shows_truth_prediction_and_error():
    heard, truth = vectors([[100.0], [-20.0]], [[10.0], [0.0]]), vectors([[90.0], [-20.0]], [[10.0], [30.0]])
    picture = sphere.directions_on_sphere(heard, truth)
    axes = picture.axes[0]
    lines, true, predicted = axes.collections[:3]
    np.testing.assert_allclose(true.get_offsets(), [[90, 10], [-20, 30]], atol=1e-9)
    np.testing.assert_allclose(predicted.get_offsets(), [[100, 10], [-20, 0]], atol=1e-9)
    expected = angular_error(heard, truth)[:, 0].numpy()
    assert expected[1] == pytest.approx(30)
    np.testing.assert_allclose(lines.get_array(), expected, atol=1e-6)
    assert axes.get_xlim() == (180, -180), "facing south, east is at the left"
    for tick, label in zip(axes.get_xticks(), axes.get_xticklabels()):
        assert label.get_text().split("\n")[0] == direction_word(tick)
    title = " ".join(picture.get_suptitle().split())
    assert f"mean error {np.mean(expected):.1f}° (chance 90°)" in title and "shown" not in title
    many = sphere.directions_on_sphere(*scenes(500, 2, 0.3), most=60)
    assert len(many.axes[0].collections[1].get_offsets()) == 30
    assert "30 of 500 clips shown" in " ".join(many.get_suptitle().split())


def test_azimuth_has_no_edge_and_right_words_lie_in_the_boxes_of_the_diagonal():
    true, heard = np.array([0.0, 179.0, -100.0, 150.0, 22.4]), np.array([10.0, -179.0, -140.0, -170.0, 22.6])
    picture = sphere.azimuth_scatter(vectors(heard[:, None]), vectors(true[:, None]))
    axes = picture.axes[0]
    points = axes.collections[-1].get_offsets()
    np.testing.assert_allclose(np.mod(points, 360), np.mod(np.stack([true, heard], 1), 360), atol=1e-9)
    assert points.min() >= -202.5 and points.max() < 157.5
    np.testing.assert_allclose(points[1], [-181, -179], err_msg="2 degrees across the seam lie beside each other", atol=1e-9)
    boxes = np.floor((points + 202.5) / 45)
    same = direction_word(true) == direction_word(heard)
    assert list(boxes[:, 0] == boxes[:, 1]) == list(same) and list(same) == [True, True, False, False, False]
    assert "right word 40.0% (chance 12.5%)" in " ".join(picture.get_suptitle().split())
    assert [t.get_text().split("\n")[0] for t in axes.get_xticklabels()] == [direction_word(t) for t in axes.get_xticks()]
    bands = [band for band in axes.collections if band.get_facecolor()[0][:3] == pytest.approx(to_rgba(style.MODEL)[:3])]
    assert len(bands) >= 3, "the band goes on beyond both edges"


def test_the_histogram_holds_every_event_and_marks_both_means():
    predicted, target = scenes(300, 2, 0.3)
    axes = sphere.error_histogram(predicted, target).axes[0]
    model, chance = (patch.get_data() for patch in axes.patches)
    error = angular_error(predicted, target).numpy()
    assert list(model.edges) == list(range(0, 181, 5)) and model.values.sum() == pytest.approx(1) == chance.values.sum()
    np.testing.assert_allclose(model.values, np.histogram(error, model.edges)[0] / 600)
    assert axes.lines[0].get_xdata()[0] == pytest.approx(error.mean()) and f"{error.mean():.1f}°" in labels(axes)[0]
    assert axes.lines[1].get_xdata()[0] == pytest.approx(74.9, abs=1.5) and "chance" in labels(axes)[1]
    one = sphere.error_histogram(*scenes(50, 1, 0.3)).axes[0]
    assert one.lines[1].get_xdata()[0] == pytest.approx(90, abs=1e-9)


def test_errors_of_a_sector_are_those_of_its_events():
    true = np.array([[0.0, 90.0], [0.0, 180.0], [10.0, 95.0]])
    off = np.array([[5.0, 20.0], [15.0, 40.0], [10.0, 30.0]])
    axes = sphere.error_by_sector(vectors(true + off), vectors(true)).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == [f"{w} ({n})" for w, n in zip(DIRECTIONS, (3, 0, 2, 0, 1, 0, 0, 0))]
    means = {line.get_ydata()[0]: line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1}
    assert means == pytest.approx({0: 10, 2: 25, 4: 40})
    assert any(text.startswith("mean of all 20.0°") for text in labels(axes)) and any("chance" in text for text in labels(axes))


@pytest.mark.parametrize("figure", FIGURES)
def test_what_has_no_direction_is_refused(figure):
    good = scenes(4, 2, 0.1)[1]
    zero, broken = good.copy(), good.copy()
    zero[2, 1], broken[3, 0, 1] = 0, np.nan
    for predicted, target, message in ((zero, good, "predicted has 1 vectors.*clip number 2"),
                                       (good, broken, "target.*clip number 3"),
                                       (good[:, :1], good, r"\(4, 1, 3\), target \(4, 2, 3\)"), (good[..., :2], good, "x, y, z"),
                                       (good[:, 0], good[:, 0], "3 dimension"), (np.zeros((0, 1, 3)),) * 2 + ("empty",),
                                       (np.ones((2, 5, 3)),) * 2 + ("5 events a clip, expected at most 4",)):
        with pytest.raises(ValueError, match=message):
            figure(predicted, target)
