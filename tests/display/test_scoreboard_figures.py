import pytest

from lib.display import scoreboard_figures as figures


def row(name="mAP@10", value=0.5, low=0.4, high=0.6, **changes):
    return dict(name=name, value=value, low=low, high=high, chance=0.1, baseline=0.2, control=None, ceiling=0.9, higher_is_better=True, difference=False,
                published=[]) | changes


@pytest.mark.parametrize("value, nothing, best, expected", [(0.1, 0.1, 0.9, 0), (0.9, 0.1, 0.9, 1), (0.5, 0.1, 0.9, 0.5), (45, 90, 0, 0.5), (100, 90, 0, -1 / 9),
                                                            (0.5, None, 0.9, None), (0.5, 0.1, None, None), (1.0, 1.0, 1.0, None), (0.5, float("nan"), 1.0, None)])
def test_position_between_chance_and_ceiling(value, nothing, best, expected):
    assert figures.position(value, nothing, best) == (None if expected is None else pytest.approx(expected))


def test_anchors_are_never_made_up():
    assert figures.anchors(row()) == (0.1, 0.9, "chance")
    assert figures.anchors(row(chance=None)) == (0.2, 0.9, "baseline")
    assert figures.anchors(row("error in degrees", ceiling=None, higher_is_better=False)) == (0.1, 0.0, "chance")
    assert figures.anchors(row("shortcut", ceiling=None, higher_is_better=False))[1] is None


def drawn(axes, marker):
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in axes.lines if line.get_marker() == marker]


def test_levels_differences_and_published_rows_have_axes_of_their_own():
    picture = figures.family([row(published=[0.7]), row("error in degrees", 45.0, None, None, chance=90.0, baseline=None, ceiling=None),
                              row("no ceiling", ceiling=None), row("far below", -5.0, -6.0, -4.0),
                              row("a - b", -0.1, -0.2, 0.1, difference=True), row("a - c", 0.3, 0.2, 0.4, difference=True, higher_is_better=False)],
                             [{"name": "theirs", "value": 0.8}], title="Which?")
    levels, differences, published = picture.axes
    assert drawn(levels, "o") == [(pytest.approx(0.5), 0), (pytest.approx(0.5), 1), (pytest.approx(-5.1 / 0.8), 2)]   # one has no ceiling
    assert drawn(levels, "s")[0] == (pytest.approx(0.125), 0) and drawn(levels, "D") == [(pytest.approx(0.75), 0)]
    assert drawn(levels, "<") == [(figures._EDGES[0], 2)], "what lies outside is pointed at"
    assert drawn(differences, "o") == [(-0.1, 0), (0.3, 1)] and [line.get_markerfacecolor() for line in differences.lines if line.get_marker() == "o"][0] == "white"
    assert [text.get_text() for text in differences.texts] == ["-0.1 [-0.2, 0.1]   no difference shown", "+0.3 [0.2, 0.4]   worse"]
    assert drawn(published, "D") == [(0.8, 0)] and picture._repr_png_().startswith(b"\x89PNG")
    assert [text.get_text() for text in levels.texts][0] == "0.5 [0.4, 0.6]   chance 0.1, best 0.9"


def test_many_rows_are_cut_and_none_is_an_error():
    axes = figures.family([row(f"m{k}") for k in range(40)]).axes[0]
    assert len(axes.get_yticks()) == figures._MOST and f"{figures._MOST} of 40 rows" in axes.get_title(loc="left")
    with pytest.raises(ValueError, match="nothing to draw"):
        figures.family([row(ceiling=None)])
