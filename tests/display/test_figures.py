"""Figures: what is drawn equals what was given, axes say what they show, and pyplot never hears of them."""
from __future__ import annotations

import gc
import io
import weakref
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot
from matplotlib.image import imread

from lib.audio.logmel import kaldi_mel_filters
from lib.display import figures, style


def history():
    rows = [{"step": s, "epoch": s / 10, "train/loss": 3.0 - s / 20, "train/term": 0.5, "learning_rate": 1e-3}
            for s in range(1, 41)]
    rows += [{"step": s, "val/loss": 3.1 - s / 20, "val/mAP@10": s / 80, "val/R@10": s / 50, "val/median_rank": 50.0 - s}
             for s in (10, 20, 30, 40)]
    return rows


def manifest(classes=("dog", "rain", "siren"), clips=30):
    """The part of lib.data.manifest.Manifest that the figure reads."""
    table = pd.DataFrame({"duration": np.linspace(2, 10, clips), "split": (["train"] * 4 + ["val"] + ["test"]) * (clips // 6),
                          "labels": [sorted({classes[i % len(classes)], classes[0]}) for i in range(clips)]})
    return SimpleNamespace(table=table, classes=list(classes), name="small", info={"title": "Small set"})


def every_figure(label="$5 \\frac{ & $6 <b>"):
    rng = np.random.default_rng(0)
    names = [f"{label} {i}" for i in range(50)]
    return {
        "log_mel": figures.log_mel(rng.normal(size=(64, 100)), hop_seconds=0.01, fmax=15000, title=label),
        "log_mel_grid": figures.log_mel_grid([rng.normal(size=(64, 100))] * 4, hop_seconds=0.01, titles=[label] * 4),
        "training_curves": figures.training_curves(history(), references={label: 0.1}, title=label),
        "similarity_heatmap": figures.similarity_heatmap(rng.normal(size=(24, 50)), names[:24], names, relevant=np.eye(24, 50),
                                                         title=label),
        "confusion_matrix": figures.confusion_matrix(rng.integers(0, 9, (50, 50)), names, title=label),
        "metric_bars": figures.metric_bars([{"name": label, "value": 0.5, "interval": (0.4, 0.6), "chance": 0.1}], title=label),
        "dataset_overview": figures.dataset_overview(manifest(names[:24], 60), title=label),
        "score_histogram": figures.score_histogram(rng.normal(size=50), rng.normal(size=500), title=label),
        "recall_curve": figures.recall_curve({label: rng.integers(1, 20, 30)}, gallery=20, title=label),
    }


@pytest.fixture(scope="module")
def pictures():
    return every_figure()


def test_every_figure_is_covered(pictures):
    assert set(pictures) == set(figures.__all__)


@pytest.mark.parametrize("name", figures.__all__)
def test_every_figure_shows_itself_and_labels_its_axes(pictures, name):
    picture = pictures[name]
    png = picture._repr_png_()  # hostile labels (formulas, markup) must be drawn as they are
    height, width = imread(io.BytesIO(png)).shape[:2]
    assert abs(width - picture.get_figwidth() * 100) <= 1 and abs(height - picture.get_figheight() * 100) <= 1 and width <= 1200
    axes = [a for a in picture.axes if a.axison and a.get_label() != "<colorbar>"]
    assert axes and any(a.get_xlabel() for a in axes) and any(a.get_ylabel() or a.get_yticklabels() for a in axes)


@pytest.mark.parametrize("name", figures.__all__)
def test_no_label_lies_on_another(pictures, name):
    picture = pictures[name]
    renderer = picture.canvas.get_renderer()
    picture.draw(renderer)
    for axes in picture.axes:
        if not axes.axison:
            continue
        for side, labels in ((0, axes.get_xticklabels()), (1, axes.get_yticklabels())):
            boxes = [t.get_window_extent(renderer) for t in labels if t.get_text() and t.get_visible()]
            boxes.sort(key=lambda box: (box.x0, box.y0)[side])
            for one, other in zip(boxes, boxes[1:]):
                assert (one.x1, one.y1)[side] <= (other.x0, other.y0)[side] + 1.5, (name, axes.get_title())
    title = picture.get_suptitle() and picture._suptitle.get_window_extent(renderer)
    assert not title or title.x1 <= picture.bbox.x1


def test_pyplot_knows_of_no_figure_and_memory_is_given_back():
    pyplot.close("all")
    expected = figures.score_histogram(np.arange(9.0), np.arange(-5.0, 5.0))._repr_png_()
    foreign = {"axes.titlesize": 33, "font.family": ["serif"], "xtick.labelsize": 20, "grid.linewidth": 4,
               "axes.unicode_minus": False}
    with matplotlib.rc_context(foreign):
        before = dict(matplotlib.rcParams)
        picture = figures.score_histogram(np.arange(9.0), np.arange(-5.0, 5.0))
        assert picture._repr_png_() == expected, "settings around a figure must not change it"
        assert dict(matplotlib.rcParams) == before, "a figure must not change the settings of other plots"
    assert pyplot.get_fignums() == []
    reference = weakref.ref(picture)
    del picture
    gc.collect()
    assert reference() is None


def test_use_sets_the_theme_and_its_font_comes_with_matplotlib():
    with matplotlib.rc_context():
        style.use()
        assert matplotlib.rcParams["axes.prop_cycle"].by_key()["color"] == list(style.PALETTE)
        found = matplotlib.font_manager.findfont(matplotlib.rcParams["font.family"][0], fallback_to_default=False)
        assert found.startswith(matplotlib.get_data_path())


def test_log_mel_draws_the_spectrogram_in_seconds_and_hertz():
    spectrogram = torch.randn(128, 300, generator=torch.Generator().manual_seed(0))
    spectrogram[3, 4] = float("nan")
    axes = figures.log_mel(spectrogram, hop_seconds=0.01, fmax=15000).axes[0]
    drawn = axes.images[0]
    assert np.array_equal(drawn.get_array().filled(np.nan), spectrogram.numpy(), equal_nan=True)
    assert drawn.get_extent()[:2] == [0, 3.0] and axes.get_xlabel() == "Time (s)" and axes.get_ylabel() == "Frequency (Hz)"
    # The tick of 2 kHz lies on the band whose filter answers most to 2 kHz.
    ticks = dict(zip((t.get_text() for t in axes.get_yticklabels()), axes.get_yticks()))
    bank = kaldi_mel_filters(128, 32000, 32000, 0.0, 15000.0)
    for label, hertz in (("2k", 2000), ("8k", 8000)):
        assert abs(ticks[label] - int(bank[:, hertz].argmax())) <= 0.5


def test_log_mel_grid_shares_one_scale():
    arrays = [np.zeros((8, 20)), np.full((8, 30), 5.0), np.full((8, 10), -2.0), np.full((8, 10), np.inf)]
    picture = figures.log_mel_grid(arrays, hop_seconds=0.5, titles=["a", "b"])
    drawn = [a.images[0] for a in picture.axes if a.images]
    assert len(drawn) == 4 and {d.get_clim() for d in drawn} == {(-2.0, 5.0)} and picture.axes[0].get_ylabel() == "Mel band"
    for bad in ([], [np.zeros(8)], [np.zeros((8, 0))]):
        with pytest.raises(ValueError, match="spectrogram"):
            figures.log_mel_grid(bad, hop_seconds=0.5)


def test_training_curves_put_every_series_into_its_panel():
    picture = figures.training_curves(pd.DataFrame(history()), references={"chance": 0.05})
    panels = {a.get_title(loc="left"): a for a in picture.axes if a.axison}
    assert list(panels) == ["Loss", "Metrics", "Learning rate", "val/median_rank"]
    assert [line.get_label() for line in panels["Loss"].lines] == ["train/loss", "train/term", "val/loss"]
    assert [line.get_label() for line in panels["Metrics"].lines] == ["val/mAP@10", "val/R@10", "chance"]
    x, y = panels["Metrics"].lines[0].get_data()
    assert list(x) == [10, 20, 30, 40] and list(y) == [s / 80 for s in x], "gaps are skipped, not drawn"
    assert list(panels["Metrics"].lines[2].get_ydata()) == [0.05, 0.05] and panels["Loss"].get_xlabel() == "Step"
    one = figures.training_curves([{"epoch": 1, "loss": 3.0}]).axes[0]
    assert one.lines[0].get_marker() == "o" and one.get_xlabel() == "Epoch", "a single point must be visible"


@pytest.mark.parametrize("data, options, message", [
    ([{"loss": 1.0}], {}, "'step' or 'epoch'"),
    ([{"step": 1, "note": "x"}], {}, "no numbers"),
    ([{"step": 1, "loss": 1.0}], {"metrics": ["mAP"]}, "'mAP'"),
])
def test_training_curves_refuse_what_they_cannot_draw(data, options, message):
    with pytest.raises(ValueError, match=message):
        figures.training_curves(data, **options)


def test_similarity_heatmap_shows_scores_and_outlines_the_relevant():
    matrix = np.arange(12.0).reshape(3, 4)
    relevant = np.eye(3, 4, k=1, dtype=bool)
    axes = figures.similarity_heatmap(torch.tensor(matrix), ["a", "b", "c" * 80], list("wxyz"), relevant=relevant).axes[0]
    assert np.array_equal(axes.collections[0].get_array().reshape(3, 4), matrix)
    corners = [path.get_extents().min for path in axes.collections[1].get_paths()]
    assert np.array_equal(corners, [[1, 0], [2, 1], [3, 2]])  # (column, row) of each outlined cell
    assert [t.get_text() for t in axes.get_xticklabels()] == list("wxyz") and len(axes.get_yticklabels()[2].get_text()) == 30
    with pytest.raises(ValueError, match="row_labels has 2"):
        figures.similarity_heatmap(matrix, ["a", "b"])
    with pytest.raises(ValueError, match="relevant has shape"):
        figures.similarity_heatmap(matrix, relevant=relevant.T)


@pytest.mark.parametrize("normalised", [True, False])
def test_confusion_matrix_shows_counts_or_shares_and_row_sums(normalised):
    counts = np.array([[8, 2, 0], [0, 0, 0], [1, 1, 2]])
    picture = figures.confusion_matrix(counts, ["dog", "cat", "cow"], normalised=normalised, title="Accuracy 0.71 (0.45 to 0.88)")
    axes = picture.axes[0]
    expected = [[0.8, 0.2, 0], [0, 0, 0], [0.25, 0.25, 0.5]] if normalised else counts
    assert np.allclose(axes.collections[0].get_array().reshape(3, 3), expected)
    assert [t.get_text() for t in axes.get_yticklabels()] == ["dog (10)", "cat (0)", "cow (4)"]
    written = [".80", ".20", ".25", ".25", ".50"] if normalised else ["8", "2", "1", "1", "2"]
    assert [t.get_text() for t in axes.texts if t.get_text()] == written
    assert picture.get_suptitle().startswith("Accuracy 0.71") and axes.get_xlabel() == "Predicted class"
    with pytest.raises(ValueError, match=r"expected \(2, 2\)"):
        figures.confusion_matrix(counts, ["dog", "cat"])


def test_metric_bars_show_value_interval_chance_baseline_control_and_ceiling():
    rows = [{"name": "mAP@10", "value": 0.53, "interval": (0.48, 0.58), "chance": 0.015, "ceiling": 0.93, "baseline": 0.31,
             "control": 0.1}, {"name": "R@10", "value": 0.79, "interval": None, "chance": None}]
    picture = figures.metric_bars(rows)
    axes = picture.axes[0]
    points = sorted(float(line.get_xdata()[0]) for line in axes.lines if len(line.get_xdata()) == 1)
    assert points == [0.015, 0.1, 0.31, 0.53, 0.79, 0.93]
    assert [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2] == [[0.48, 0.58]]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["mAP@10", "R@10"]
    assert [t.get_text() for t in axes.texts] == ["0.530", "0.790"]
    legend = [t.get_text() for t in picture.legends[0].get_texts()]
    assert legend == ["model", "interval", "chance", "baseline", "control", "ceiling"]
    with pytest.raises(ValueError, match="rows"):
        figures.metric_bars([])


def test_dataset_overview_counts_what_the_manifest_holds():
    small = manifest()
    durations, clips, labels = figures.dataset_overview(small).axes
    assert sum(p.get_height() for p in durations.patches) == 30 and durations.get_xlabel() == "Duration (s)"
    assert [int(p.get_width()) for p in clips.patches] == [20, 5, 5]
    widths = np.array([p.get_width() for p in labels.patches]).reshape(3, 3).sum(0)
    naive = [sum(c in row for row in small.table["labels"]) for c in small.classes]
    assert list(widths) == naive and [t.get_text() for t in labels.get_yticklabels()] == small.classes
    small.table["duration"] = 5.0
    assert sum(p.get_height() for p in figures.dataset_overview(small).axes[0].patches) == 30, "equal durations"
    small.table = small.table[:0]
    with pytest.raises(ValueError, match="no clips"):
        figures.dataset_overview(small)


def test_score_histogram_shares_sum_to_one():
    axes = figures.score_histogram(torch.linspace(0.2, 1, 30), np.linspace(-0.5, 0.5, 200)).axes[0]
    assert [sum(p.get_height() for p in bars) for bars in axes.containers] == pytest.approx([1, 1])
    assert [line.get_xdata()[0] for line in axes.lines] == pytest.approx([0.6, 0.0])
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["matching pairs (30)", "other pairs (200)"]


def test_recall_curve_equals_a_count_and_chance_equals_a_simulation():
    ranks = np.array([1, 1, 3, 10, 7])
    curve, chance = figures.recall_curve(ranks, gallery=10, relevant=[1, 2, 2, 3, 3]).axes[0].lines
    assert list(curve.get_ydata()) == [sum(r <= k for r in ranks) / 5 for k in range(1, 11)]
    rng = np.random.default_rng(0)
    best = np.concatenate([np.argsort(rng.random((8000, 10)), axis=1)[:, :r].min(1) for r in (1, 2, 2, 3, 3)])
    assert np.allclose(chance.get_ydata(), [(best < k).mean() for k in range(1, 11)], atol=0.01)
    for bad in ([0, 1], [1, 11]):
        with pytest.raises(ValueError, match="expected 1 to gallery=10"):
            figures.recall_curve(np.array(bad), gallery=10)
