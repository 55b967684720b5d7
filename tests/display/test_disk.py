"""The disk: arcs and circles are those of hyperbolic geometry, no name covers another, equal pictures are equal files."""
from __future__ import annotations

import json
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import PathPatch
from scipy.stats import spearmanr

from lib.data import scenes
from lib.data.taxonomy import Taxonomy
from lib.display import disk as module
from lib.display.disk import Atlas, disk, save
from lib.display.disk_arcs import geodesic, geodesic_circle, hyperbolic_circle, outline, ring_distances
from lib.display.disk_figures import distortion_plot, radius_against_depth, radius_histogram
from lib.display.disk_page import page
from lib.evaluation.projections import radial, stress

HOSTILE = '</script><img src=x onerror="alert(1)"> & $\\frac{ \'"'
RNG = np.random.default_rng(3)


def distance(x, y):
    """arcosh form, curvature -1."""
    gap = ((x - y) ** 2).sum(-1)
    return np.arccosh(1 + 2 * gap / ((1 - (x**2).sum(-1)) * (1 - (y**2).sum(-1))))


def inside(count: int, most: float = 0.99) -> np.ndarray:
    """Points (count, 2), some of them near the boundary."""
    angle = 2 * np.pi * RNG.random(count)
    return most * np.sqrt(RNG.random(count))[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def random_tree(nodes: int) -> tuple[Taxonomy, np.ndarray]:
    """A taxonomy with a root, and a place for each node: children around their parent's direction, further out."""
    rng = np.random.default_rng(1)
    parents = [()] * 7 + [(int(rng.integers(i**0.85)),) for i in range(7, nodes - 1)]
    taxonomy = Taxonomy(tuple(f"Class {i}, of noises" for i in range(nodes - 1)), tuple(parents), (0,)).with_root("root")
    angle = np.zeros(nodes)
    for i in np.argsort(taxonomy.depth, kind="stable"):
        above = taxonomy.parents[i]
        top = above == (nodes - 1,) or not above
        angle[i] = i * 2 * np.pi / 7 if top else angle[above[0]] + rng.normal() / taxonomy.depth[i] ** 2
    return taxonomy, np.tanh(0.45 * (taxonomy.depth - 1))[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


@pytest.fixture(scope="module")
def taxonomy():
    return Taxonomy.of(SimpleNamespace(classes=scenes.classes(), info={"taxonomy": scenes.taxonomy()})).with_root("sound")


@pytest.fixture(scope="module")
def atlas(taxonomy):
    """The soundscapes taxonomy somewhere in the disk, with four clips."""
    return Atlas.of(taxonomy, inside(len(taxonomy), 0.95), clips=inside(4), clip_labels=["a", "b", HOSTILE, "d"],
                    clip_branches=["animal", "animal", "human", ""], highlighted=[3], c=0.25)


def test_a_geodesic_is_the_shortest_way():
    p, q = inside(200), inside(200)
    way = geodesic(p, q, 400)
    assert way.shape == (200, 400, 2) and np.allclose(way[:, 0], p) and np.allclose(way[:, -1], q)
    length = distance(way[:, 1:], way[:, :-1]).sum(1)
    assert np.allclose(length, distance(p, q), rtol=2e-3) and (length >= distance(p, q) * (1 - 1e-9)).all()
    through = distance(p[:, None], way[:, 1:-1]) + distance(way[:, 1:-1], q[:, None])
    assert np.allclose(through, distance(p, q)[:, None], rtol=1e-6)


def test_a_geodesic_lies_on_the_circle_of_the_closed_form():
    p, q = inside(200), inside(200)
    centre, radius = geodesic_circle(p, q)
    assert np.allclose(2 * (p * centre).sum(1), 1 + (p**2).sum(1)) and np.allclose(2 * (q * centre).sum(1), 1 + (q**2).sum(1))
    assert np.allclose(radius**2, (centre**2).sum(1) - 1, rtol=1e-6)
    assert np.allclose(np.linalg.norm(geodesic(p, q) - centre[:, None], axis=2), radius[:, None])


@pytest.mark.parametrize("tilt", [0.0, 1e-300, 1e-14, 1e-10, 1e-7, 1e-4])
def test_nearly_straight_geodesics_are_straight_as_far_as_they_should(tilt):
    p, q = np.array([[0.3, 0.0], [-0.7, 0.0], [0.0, 0.0]]), np.array([[0.9, tilt], [0.5, tilt], [0.2, 0.4]])
    way = geodesic(p, q)
    assert np.isfinite(way).all()
    # the sagitta of a flat arc is chord * angle / 4 with the angle of chord and arc
    chord = q - p
    far, off = np.linalg.norm(chord, axis=1), way - p[:, None]
    bend = np.abs(chord[:, None, 0] * off[..., 1] - chord[:, None, 1] * off[..., 0]).max(1) / far
    expected = np.abs(p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]) / (1 - (p * q).sum(1)) * far / 4
    assert np.allclose(bend, expected, rtol=1e-2, atol=1e-10)
    assert np.isinf(geodesic_circle(p, q)[1][2]) and (tilt > 1e-9 or np.isnan(geodesic_circle(p, q)[0]).sum() == 0)


def test_equal_points_give_a_point():
    p = inside(5)
    assert np.allclose(geodesic(p, p), p[:, None]) and np.isfinite(geodesic(np.zeros((1, 2)), np.zeros((1, 2)))).all()


def test_the_drawn_curves_follow_the_arcs():
    p, q = inside(100, 0.999), inside(100, 0.999)
    centre, radius = geodesic_circle(p, q)
    for i, curve in enumerate(np.split(outline(p, q).vertices, 100)):
        drawn = np.concatenate([bezier(curve[start:start + 4]) for start in (0, 3)])
        assert np.abs(np.linalg.norm(drawn - centre[i], axis=1) - radius[i]).max() < 3e-4 * radius[i]
        assert np.allclose(drawn[0], p[i]) and np.allclose(drawn[-1], q[i])
        assert (np.linalg.norm(drawn, axis=1) < 1).all()


def bezier(control: np.ndarray) -> np.ndarray:
    t = np.linspace(0, 1, 20)[:, None]
    return (1 - t) ** 3 * control[0] + 3 * (1 - t) ** 2 * t * control[1] + 3 * (1 - t) * t**2 * control[2] + t**3 * control[3]


@pytest.mark.parametrize("radius", [0.1, 1.0, 4.0])
def test_hyperbolic_circles_hold_the_points_at_that_distance(radius):
    p = inside(50, 0.95)
    centre, size = hyperbolic_circle(p, radius)
    angle = np.linspace(0, 2 * np.pi, 17)
    rim = centre[:, None] + size[:, None, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert np.allclose(distance(p[:, None], rim), radius)


@pytest.mark.parametrize("c", [0.01, 0.1, 1.0, 2.0])
@pytest.mark.parametrize("reach", [1.0, 0.5, 1e-3])
def test_rings_are_round_few_and_within(reach, c):
    rings = ring_distances(reach, c)
    assert 2 <= len(rings) <= 5 and np.tanh(np.sqrt(c) * max(rings) / 2) <= reach
    assert f"{rings[0]:.10e}"[0] in "125" and float(f"{rings[0]:.0e}") == rings[0] and np.allclose(np.diff(rings), rings[0])


def test_seeing_from_a_node_changes_no_distance(atlas):
    seen = atlas.centred(7)
    everything, moved = (np.concatenate([a.points, a.clips]) for a in (atlas, seen))
    assert np.allclose(seen.points[7], 0)
    assert np.allclose(distance(everything[:, None], everything), distance(moved[:, None], moved))
    assert atlas.radii()[5] == pytest.approx(2 * distance(atlas.points[5], np.zeros(2)))       # c = 1/4: a unit of 2


def test_branches_and_depths_come_from_the_taxonomy(atlas, taxonomy):
    assert atlas.branches[atlas.labels.index("dog_bark")] == "animal" and atlas.branches[atlas.labels.index("sound")] == ""
    assert atlas.depths[atlas.labels.index("sound")] == 0 and atlas.depths[atlas.labels.index("animal")] == 1
    parents = tuple(tuple(p for p in above if p < len(taxonomy) - 1) for above in taxonomy.parents[:-1])
    without = Taxonomy(taxonomy.nodes[:-1], parents, taxonomy.classes)
    other = Atlas.of(without, atlas.points[:-1])
    assert other.branches == atlas.branches[:-1] and other.depths == atlas.depths[:-1]
    many = Atlas(inside(40), [str(i) for i in range(40)], branches=[f"b{min(i, 14)}" for i in range(40)])
    assert many.colours["b14"] != module.OTHER and list(many.colours.values()).count(module.OTHER) == 6
    assert len(set(many.colours.values())) == 9 + 2


def texts(picture) -> dict:
    """Name -> box in pixels of what is written into the disk, the rings' distances included."""
    picture.draw_without_rendering()
    renderer = picture.canvas.get_renderer()
    return {text.get_text(): text.get_window_extent(renderer) for text in picture.axes[0].texts}


def test_all_nodes_of_a_small_taxonomy_are_named_and_no_name_covers_another(atlas):
    picture = disk(atlas, title=HOSTILE)
    boxes = texts(picture)
    rings = {f"d = {d:g}" for d in ring_distances(1, 0.25)}
    assert rings <= set(boxes) and len(set(atlas.labels) - set(boxes)) <= 1
    shown = list(boxes.values())
    for i, one in enumerate(shown):
        assert not any(min(one.x1, o.x1) - max(one.x0, o.x0) > 1 and min(one.y1, o.y1) - max(one.y0, o.y0) > 1 for o in shown[:i]
                       if not {one, o} <= {boxes[d] for d in rings}), list(boxes)[i]
    edges = [patch for patch in picture.axes[0].patches if isinstance(patch, PathPatch)]
    assert sum(len(patch.get_path()) // 7 for patch in edges) == len(atlas.edges)
    assert {to_hex(patch.get_edgecolor()) for patch in edges} == {atlas.colours[b] for b in atlas.branches if b}
    assert {text.get_text() for text in picture.legends[0].get_texts()} == {b for b in atlas.branches if b} | {"clip"}


def test_of_a_large_taxonomy_the_highest_are_named(tmp_path):
    taxonomy, points = random_tree(633)
    large = Atlas.of(taxonomy, points)
    boxes = texts(disk(large))
    assert {name for name, depth in zip(large.labels, large.depths) if depth <= 1} <= set(boxes)
    assert 20 <= len(boxes) <= 60
    assert save(disk(large), tmp_path / "large.svg").stat().st_size < 600_000


def test_points_near_the_centre_are_seen_larger_and_that_is_said(atlas):
    near = Atlas(0.05 * atlas.points, atlas.labels)
    picture = disk(near)
    low, high = picture.axes[0].get_xlim()
    assert high < 0.1 and "times larger" in picture.get_suptitle() and "times larger" not in disk(atlas).get_suptitle()
    assert np.isfinite(disk(Atlas(np.zeros((2, 2)), ["a", "b"], [(0, 1)])).axes[0].get_xlim()).all()


def test_equal_pictures_are_equal_files(atlas, tmp_path):
    for suffix in ("svg", "png"):
        first, second = (save(disk(atlas), tmp_path / f"-{i} 'x\".{suffix}").read_bytes() for i in "ab")
        assert first == second and len(first) < 400_000
    hostile = save(disk(Atlas(atlas.points, [HOSTILE] * len(atlas.points)), title=HOSTILE), tmp_path / "hostile.svg")
    assert not {"script", "img", "image"} & {element.tag.rpartition("}")[2] for element in ElementTree.parse(hostile).iter()}


@pytest.mark.parametrize("change, message", [
    ({"points": np.ones((3, 2))}, "points .*sqrt"), ({"points": np.full((3, 2), np.nan)}, "points"),
    ({"labels": []}, "labels has 0"),
    ({"points": np.zeros((3, 3))}, r"\(3, 3\)"), ({"points": []}, "points"),
    ({"labels": ["a"]}, "labels has 1 entries, expected 3"), ({"edges": [(0, 3)]}, "edges names node 3"), ({"c": 0}, "curvature"),
    ({"branches": ["a"]}, "branches"), ({"clips": np.ones((1, 2))}, "clips"), ({"clip_labels": ["x"]}, "clip_labels"),
    ({"highlighted": [-1]}, "highlighted names node -1")])
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        Atlas(**{"points": np.zeros((3, 2)), "labels": ["a", "b", "c"]} | change)


def test_radius_histogram_has_a_row_a_group_with_its_mean():
    radii, groups = np.array([1.0, 3.0, 5.0, 2.0]), ["class", "class", "clip", "clip"]
    picture = radius_histogram(radii, groups, title=HOSTILE)
    assert [axes.lines[0].get_xdata()[0] for axes in picture.axes] == [2.0, 3.5]
    assert [sum(bar.get_height() for bar in axes.patches) for axes in picture.axes] == pytest.approx([1, 1])
    names = [axes.get_ylabel() for axes in radius_histogram(radii, [2, 10, 2, 1]).axes]
    assert names == ["depth 1 (1)", "depth 2 (2)", "depth 10 (1)"]
    assert picture._repr_png_()
    with pytest.raises(ValueError, match="groups has 1"):
        radius_histogram(radii, ["x"])
    with pytest.raises(ValueError, match="finite"):
        radius_histogram([1.0, np.nan], [1, 2])


def test_radius_against_depth_prints_spearman_and_says_when_there_is_none():
    radii, depths = RNG.random(60), RNG.integers(0, 4, 60)
    picture = radius_against_depth(radii, depths)
    assert f"{spearmanr(radii, depths).statistic:.3f}" in picture.get_suptitle()
    assert np.allclose(picture.axes[0].lines[0].get_ydata(), [radii[depths == d].mean() for d in range(4)])
    assert "undefined" in radius_against_depth(np.full(60, 0.3) + 1e-16 * radii, depths).get_suptitle()


def test_distortion_is_drawn_with_its_figures_and_chance():
    v = RNG.normal(size=(40, 8))
    found = [radial(v, 1.0), stress(v, 1.0)]
    picture = distortion_plot(*found)
    for axes, projection in zip(picture.axes, found):
        assert axes.collections[0].get_array().sum() == 40 * 39 / 2
        for name, value in projection.distortion.items():
            assert f"{name} {value:.3g} (chance {projection.chance[name]:.3g})" in axes.get_xlabel()
    assert picture._repr_png_()


class Page(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.tags = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def tone(seconds: float = 0.5) -> dict:
    return {"waveform": 0.1 * np.sin(np.arange(int(8000 * seconds)) / 5), "sample_rate": 8000, "title": HOSTILE}


def test_the_page_holds_everything_and_nothing_from_outside_as_markup(atlas, tmp_path):
    hostile = replace(atlas, labels=[HOSTILE, *atlas.labels[1:]], branches=[HOSTILE, *atlas.branches[1:]])
    shown = page(hostile, [tone()] * 4, title=HOSTILE)
    tags = Page(shown.html).tags
    assert [tag for tag, _ in tags].count("script") == 1 and not any("onerror" in attributes for _, attributes in tags)
    sources = [attributes[name] for _, attributes in tags for name in ("src", "href") if name in attributes]
    assert len(sources) == 5 and all(source.startswith("data:") for source in sources) and shown.players == 4
    data = json.loads(next(attributes["data-atlas"] for _, attributes in tags if "data-atlas" in attributes))
    assert data["labels"] == hostile.labels and data["title"] == HOSTILE and unescape(HOSTILE) in data["clipLabels"]
    assert np.array_equal(data["points"], np.concatenate([atlas.points, atlas.clips]))
    assert np.allclose(data["radii"], np.concatenate([atlas.radii(), atlas.radii(atlas.clips)]))
    assert not any(tag in ("svg", "iframe", "link") for tag, _ in tags)


def test_sounds_beyond_the_budget_become_files_of_the_report(atlas, tmp_path):
    shown = page(atlas, [tone()] * 4, byte_budget=1000, folder=tmp_path / "clips", link_prefix="clips")
    sources = [attributes["src"] for tag, attributes in Page(shown.html).tags if tag == "audio"]
    assert len(shown.linked) == 4 and all((tmp_path / source).is_file() for source in sources)
    with pytest.raises(ValueError, match="sounds has 1 entries, the atlas 4"):
        page(atlas, [tone()])
    assert page(atlas).players == 0
