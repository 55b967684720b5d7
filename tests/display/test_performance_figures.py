"""Figures of notebook 91: what is drawn equals what was given."""
import pytest

from lib.display import performance_figures, style


def test_ratios_begin_at_the_peer():
    picture = performance_figures.ratios(["fast", "slow", "$shown"], [4.0, 0.5, 200.0], [2.0, 1.2, None])
    axes, = picture.axes
    ends = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches]
    assert [end for _, end in ends] == [4.0, 0.5, 200.0] and {begin for begin, _ in ends} == {1.0}
    from matplotlib.colors import to_hex
    assert [to_hex(bar.get_facecolor()) for bar in axes.patches] == [style.MODEL, style.BASELINE, style.MODEL]
    marks = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "|"]
    assert marks == [2.0, 1.2] and axes.get_xscale() == "log" and axes.get_xlabel()
    assert [text.get_text() for text in axes.texts] == ["4.00", "0.50", "200"]
    picture._repr_png_()
    for bad in (([], [], []), (["a"], [0.0], [None]), (["a"], [1.0], [])):
        with pytest.raises(ValueError, match="expected one of each"):
            performance_figures.ratios(*bad)


def test_growth_shows_points_and_the_expected_order():
    sizes = (1, 2, 4, 8)
    curves = [dict(name=f"work {k}", unit="clips", sizes=sizes, values=[3.0 * n**k for n in sizes], slope=float(k), order=1) for k in (0, 1, 2, 1)]
    picture = performance_figures.growth(curves, quantity="CPU time (ms)", title="How time grows")
    panels = [axes for axes in picture.axes if axes.axison]
    assert len(panels) == 4
    for axes, curve in zip(panels, curves):
        expected, measured = axes.lines
        assert measured.get_ydata().tolist() == curve["values"] and axes.get_xscale() == axes.get_yscale() == "log"
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["order 1", f"slope {curve['slope']:.2f}"]
        low, high = axes.get_ylim()
        assert low < min(curve["values"]) and max(curve["values"]) < high
        y = expected.get_ydata()
        assert y[3] / y[0] == pytest.approx(8)
    assert panels[1].lines[0].get_ydata().tolist() == pytest.approx(curves[1]["values"])
    picture._repr_png_()
    with pytest.raises(ValueError, match="curves is empty"):
        performance_figures.growth([], quantity="s", title="t")
