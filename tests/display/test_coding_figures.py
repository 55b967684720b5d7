"""Figures of the tokenizer: what is drawn equals what was given."""
import numpy as np
import pandas as pd
import pytest
import torch

from lib.display import coding_figures


def table():
    rows = {"bsq 9": ("bsq", 450.0, 440.0, 5.0, 4.5, 5.5), "bsq 18": ("bsq", 900.0, 880.0, 4.0, 3.5, 4.5),
            "vq 18": ("vq", 900.0, 700.0, 4.2, np.nan, np.nan)}
    return pd.DataFrame(rows, index=["arm", "bits/s", "entropy bits/s", "MAE", "low", "high"]).T


def labels_apart(picture):
    """No tick label of an axis lies on another, and the title fits."""
    renderer = picture.canvas.get_renderer()
    picture.draw(renderer)
    for axes in (a for a in picture.axes if a.axison):
        for side, labels in ((0, axes.get_xticklabels()), (1, axes.get_yticklabels())):
            boxes = [t.get_window_extent(renderer) for t in labels if t.get_text() and t.get_visible()]
            boxes.sort(key=lambda box: (box.x0, box.y0)[side])
            for one, other in zip(boxes, boxes[1:]):
                assert (one.x1, one.y1)[side] <= (other.x0, other.y0)[side] + 1.5, axes.get_title(loc="left")
    assert picture._suptitle.get_window_extent(renderer).x1 <= picture.bbox.x1


def test_rate_and_distortion():
    picture = coding_figures.rate_distortion(table(), scalar={450.0: 6.0, 900.0: 5.0}, lines={"predict the mean": 10.0, "unquantised": 3.0})
    axes, = picture.axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert set(names) == {"bsq", "vq", "scalar quantization", "predict the mean", "unquantised"}
    bars = {bar.get_label(): bar for bar in axes.containers}
    (line, _, (ends,)) = bars["bsq"].lines
    assert line.get_ydata().tolist() == [5, 4] and np.allclose(line.get_xdata(), [450, 900], rtol=0.05)
    assert [segment[:, 1].tolist() for segment in ends.get_segments()] == [[4.5, 5.5], [3.5, 4.5]]
    assert bars["vq"].lines[0].get_xdata()[0] != line.get_xdata()[1], "points at one rate stand beside one another"
    assert axes.get_ylim() == (0, 12.5) and axes.get_xscale() == "log" and axes.get_xlabel() and axes.get_ylabel()
    labels_apart(picture)
    coding_figures.rate_distortion(table().iloc[:1])._repr_png_()
    with pytest.raises(ValueError, match="table is empty"):
        coding_figures.rate_distortion(table().iloc[:0])


def test_balance_of_bits():
    shares = {f"$bsq {bits} {{": np.random.default_rng(bits).random((3, bits)).tolist() for bits in (1, 9, 18, 36, 60, 100)}
    picture = coding_figures.bit_balance(shares)
    assert len(picture.axes) == 6
    for axes, values in zip(picture.axes, shares.values()):
        drawn = [line.get_ydata().tolist() for line in axes.lines[1:]]
        assert drawn == values and axes.get_ylim() == (0, 1)
        assert axes.lines[1].get_xdata().tolist() == list(range(1, len(values[0]) + 1)), "the first bit is 1"
    labels_apart(picture)
    with pytest.raises(ValueError, match="balance is empty"):
        coding_figures.bit_balance({})


def test_drawings_end_with_the_sound_and_show_their_difference():
    levels = -80 * torch.rand(2, 40, 16, generator=torch.Generator().manual_seed(0))
    drawn, valid = (levels + 3).clamp(max=0), torch.ones(2, 40, dtype=torch.bool)
    valid[1, 25:] = False
    picture = coding_figures.drawings(levels, drawn, valid, hop_seconds=0.01, fmax=8000, limits=(-80, 0), titles=["a" * 90, "b"])
    rows = np.array(picture.axes[:6]).reshape(2, 3)
    for row, end, one, other in zip(rows, (40, 25), levels.numpy(), drawn.numpy()):
        for axes, cells in zip(row, (one, other, other - one)):
            assert np.allclose(axes.images[0].get_array(), cells[:end].T) and axes.images[0].origin == "lower"
            assert axes.images[0].get_extent()[1] == pytest.approx(end / 100)
        assert [axes.images[0].get_clim() for axes in row] == [(-80, 0), (-80, 0), (-20, 20)]
    error = float((drawn - levels).abs()[1, :25].mean())
    assert f"{error:.1f} dB" in rows[1, 2].get_title(loc="left")
    labels_apart(picture)
    with pytest.raises(ValueError, match=r"must be \(n, T, F\)"):
        coding_figures.drawings(levels, drawn, valid[:, :-1], hop_seconds=0.01, fmax=8000, limits=(-80, 0))
