"""Parts of the loss and the two modalities: what is drawn is what was given, and reference lines are what a naive model gets."""
from __future__ import annotations

import io
import math

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread

from lib.display.spatial_figures import LOSS_PARTS, _references, loss_parts, modality_map
from lib.losses.contrastive import contrastive_loss
from lib.losses.direction import direction_loss
from lib.losses.triplet import three_way_loss


def history(epochs: int = 5) -> list[dict]:
    rows = []
    for epoch in range(1, epochs + 1):
        rows += [{"step": 10 * epoch - 5, "epoch": epoch - 1, "learning_rate": 1e-3, "step/loss_doa": 9.0},
                 {"step": 10 * epoch, "epoch": epoch} | {f"train/{part}": (i + 1) / epoch for i, part in enumerate(LOSS_PARTS)}]
    rows[-1]["val/loss_doa"] = 0.7
    return rows


def titled(picture) -> dict:
    return {axes.get_title(loc="left"): axes for axes in picture.axes if axes.axison}


def test_every_part_has_its_panel_its_line_and_its_weight():
    picture = loss_parts(history(), rows=192, weights={"loss_doa": 1.0, "loss_logit_ts": (0.05, 0.2)})
    panels = titled(picture)
    assert list(panels) == ["loss_spatial_semantic", "loss_semantic", "loss_doa × 1", "loss_logit_ts × 0.05 to 0.2",
                            "loss_modality", "total_loss"]
    for i, (name, axes) in enumerate(panels.items()):
        x, y = axes.lines[0].get_data()
        assert list(x) == [1, 2, 3, 4, 5] and list(y) == [(i + 1) / epoch for epoch in x]
    drawn = {name.split(" ")[0]: axes.lines[-1].get_ydata()[0] for name, axes in panels.items() if name != "total_loss"}
    assert drawn == pytest.approx({"loss_spatial_semantic": math.log(192), "loss_semantic": math.log(192) - 2 / 3 * math.log(2),
                                   "loss_doa": 7 / 9, "loss_logit_ts": math.log(3), "loss_modality": math.log(2)})
    assert list(panels["loss_doa × 1"].lines[1].get_ydata()) == [0.7], "validation is drawn beside training"
    assert len(panels["total_loss"].lines) == 1 and [t.get_text() for t in picture.legends[0].get_texts()] == [
        "training", "validation", "nothing learned (of loss_modality: the aim)"]
    assert all(axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > axes.lines[-1].get_ydata()[0] for axes in panels.values())
    renderer = picture.canvas.get_renderer()
    picture.draw(renderer)
    texts = [axes.texts[0].get_window_extent(renderer) for axes in list(panels.values())[:5]]
    assert texts[0].x1 < texts[1].x0 < texts[1].x1 < texts[2].x0 and texts[2].x1 <= picture.bbox.x1 and texts[3].x1 < texts[4].x0


def test_reference_lines_are_what_a_model_that_knows_nothing_gets():
    random = torch.Generator().manual_seed(0)
    rows, triplets = 12, 4
    values = {part: value for part, (_, value) in _references(rows, 2, False).items()}
    flat = torch.zeros(rows, rows, dtype=torch.float64)
    plain = torch.tensor([3 * b + (i == 1) for b in range(triplets) for i in range(3)])  # positive, spatial negative: one caption
    assert values["loss_spatial_semantic"] == pytest.approx(float(contrastive_loss(flat)))
    assert values["loss_semantic"] == pytest.approx(float(contrastive_loss(flat, plain[:, None] == plain[None], "mass")))
    same = torch.ones(rows, 8, dtype=torch.float64)
    assert values["loss_logit_ts"] == pytest.approx(float(three_way_loss(same, same, torch.tensor(5.0))))
    for events, ordered in ((1, False), (2, False), (2, True)):
        predicted, target = torch.randn(2, 40_000, events, 3, generator=random, dtype=torch.float64)
        target /= target.norm(dim=-1, keepdim=True)
        known = _references(rows, events, ordered)
        assert known["loss_doa"][1] == pytest.approx(float(direction_loss(predicted, target, ordered=ordered)), abs=0.01)
        assert ("loss_logit_ts" in known) == (events == 2)


def test_histories_without_something_are_drawn_or_refused():
    one = loss_parts(pd.DataFrame([{"epoch": 3, "loss_modality": 0.7, "note": "x"}]), rows=2, events=1)
    axes = titled(one)["loss_modality"]
    assert axes.get_xlim() == (2, 4) and axes.lines[0].get_marker() == "o"
    flat = loss_parts([{"epoch": e, "train/loss_logit_ts": 0.0, "train/loss": math.nan if e else 1.0} for e in range(3)], rows=2,
                      events=1)
    assert titled(flat)["loss_logit_ts"].get_ylim()[1] > 0
    for bad, options, message in (([{"step": 1, "loss": 1.0}], {}, "'epoch'"),
                                  ([{"epoch": 1, "accuracy": 1.0}], {}, "at least one of"),
                                  (history(), {"weights": {"loss_joint": 1}}, "'loss_joint'"),
                                  (history(), {"rows": 1}, "rows=1"),
                                  (history(), {"events": 3}, "events=3")):
        with pytest.raises(ValueError, match=message):
            loss_parts(bad, **({"rows": 6} | options))


def pairs(gap: float, count: int = 60, dim: int = 16) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    common, side = random.normal(size=(count, dim)), random.normal(size=dim)
    return common + gap * side, common - gap * side + 0.1 * random.normal(size=(count, dim))


def test_modality_map_is_the_principal_plane_of_sounds_and_captions_together():
    before, after = pairs(3.0), pairs(0.05)
    picture = modality_map(tuple(map(torch.tensor, before)), after,
                           figures=({"modality classifier": (0.98, 0.5)}, {"R@10 $x": 0.3}))
    imread(io.BytesIO(picture._repr_png_()))
    for axes, (audio, text) in zip(picture.axes, (before, after)):
        lines, *points = axes.collections
        drawn = np.concatenate([group.get_offsets() for group in points])
        both = np.concatenate([audio, text])
        values, directions = np.linalg.eigh(np.cov(both.T))
        naive = (both - both.mean(0)) @ directions[:, ::-1][:, :2]
        np.testing.assert_allclose(np.abs(drawn), np.abs(naive), atol=1e-5)  # tensors come in single precision
        assert f"{values[-1] / values.sum():.0%}" in axes.get_xlabel() and f"{values[-2] / values.sum():.0%}" in axes.get_ylabel()
        np.testing.assert_allclose(lines.get_segments(), np.stack([drawn[:60], drawn[60:]], 1), err_msg="pairs are joined")
        assert axes.get_aspect() == 1
    apart = [abs(np.subtract(*(group.get_offsets()[:, 0].mean() for group in axes.collections[1:]))) for axes in picture.axes]
    assert apart[0] > 10 * apart[1]
    assert picture.axes[0].get_title(loc="left") == "Without the adversary\nmodality classifier 0.980 (chance 0.5)"
    assert picture.axes[1].get_title(loc="left").endswith("R@10 $x 0.300")
    assert [t.get_text() for t in picture.legends[0].get_texts()] == ["sound", "caption"]
    few = modality_map(before, after, most=7)
    assert len(few.axes[0].collections[1].get_offsets()) == 7
    np.testing.assert_allclose(few.axes[0].collections[1].get_offsets()[0], picture.axes[0].collections[1].get_offsets()[0])


def test_modality_map_refuses_what_is_no_pair():
    audio, text = pairs(1.0)
    broken = text.copy()
    broken[3, 4] = np.inf
    for bad, message in (((audio, text[:-1]), r"\(60, 16\) and text \(59, 16\)"), ((audio, broken), "1 embedding values"),
                         ((audio[0], text[0]), "2 dimension"), ((audio[:1], text[:1]), ">= 2")):
        with pytest.raises(ValueError, match=message):
            modality_map((audio, text), bad)
