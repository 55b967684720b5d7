"""Hierarchy measures against networkx and loops on random graphs, closed forms, and the facts of AudioSet's ontology."""
import itertools
import math
import os
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform

from lib.data.taxonomy import Taxonomy, class_table, read_ontology
from lib.evaluation import hierarchy
from lib.evaluation.hierarchy import (MEASURES, RELATIONS, cone_membership, delta_beside_references, generality, gromov_delta,
                                      hierarchy_floors, hierarchy_metrics, hierarchy_per_clip, hops, radius_statistics)
from lib.geometry.poincare import pairwise_distance_from_tangents
from lib.settings import ROOT

METADATA = Path(os.environ.get("WORKBOOK_SHARED", ROOT / "../shared/data")) / "metadata"
#            0        1      2       3        4       5        6
ANIMALS = Taxonomy(("animal", "dog", "bark", "growl", "cat", "music", "song"),
                   ((), (0,), (1,), (1, 4), (0,), (), (5,)), (1, 2, 3, 4, 5, 6))


@pytest.fixture(scope="module")
def ontology():
    if not METADATA.is_dir():
        pytest.skip("the real AudioSet ontology is not here")
    return read_ontology(METADATA / "audioset_ontology.json", class_table(METADATA / "audioset_class_labels_indices.csv"))


def random_taxonomy(seed, count=24):
    """A graph with several parents, the nodes in no order; about half of them are classes."""
    rng = np.random.default_rng(seed)
    place = rng.permutation(count)
    parents = [()] * count
    for i in range(3, count):
        parents[place[i]] = tuple(int(place[p]) for p in rng.choice(i, size=rng.choice([0, 1, 1, 1, 2, 3]), replace=False))
    return Taxonomy(tuple(f"n{i}" for i in range(count)), tuple(parents), tuple(map(int, rng.permutation(count)[:count // 2])))


def written_out(taxonomy, p, t):
    """Measures and relation of two classes, from networkx and sets."""
    graph = nx.DiGraph([(parent, child) for child, above in enumerate(taxonomy.parents) for parent in above or ("root",)])
    p, t = taxonomy.classes[p], taxonomy.classes[t]
    sets = [(nx.ancestors(graph, node) | {node}) - {"root"} for node in (p, t)]
    common = sets[0] & sets[1]
    depth = nx.shortest_path_length(graph, "root")
    lca = min(common, key=lambda node: (-depth[node], node), default="root")
    precision, recall = len(common) / len(sets[0]), len(common) / len(sets[1])
    values = {"hP": precision, "hR": recall, "hF": 2 * precision * recall / (precision + recall) if common else 0.0,
              "Jaccard": len(common) / len(sets[0] | sets[1]),
              "tree-induced error": nx.shortest_path_length(graph.to_undirected(), p, t),
              "LCA depth": depth[lca], "LCA distance": nx.shortest_path_length(graph, lca, p)}
    relation = ("exact" if p == t else "descendant" if t in sets[0] else "ancestor" if p in sets[1]
                else "sibling" if set(taxonomy.parents[p]) & set(taxonomy.parents[t]) else "unrelated")
    return values, relation


@pytest.mark.parametrize("rooted", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_every_pair_and_several_true_classes_against_networkx(seed, rooted):
    taxonomy = random_taxonomy(seed)
    count = len(taxonomy.classes)
    known = {(p, t): written_out(taxonomy, p, t) for p in range(count) for t in range(count)}
    targets = np.random.default_rng(seed).random((60, count)) < 0.25
    targets[np.arange(60), np.arange(60) % count] = True
    predicted = np.random.default_rng(seed + 1).integers(count, size=60)
    found = hierarchy_per_clip(predicted, targets, taxonomy.with_root() if rooted else taxonomy)
    for clip, answer in enumerate(predicted):
        true = np.flatnonzero(targets[clip])
        best = min(true, key=lambda t: (-known[answer, t][0]["hF"], known[answer, t][0]["tree-induced error"], t))
        for name in MEASURES:
            assert found[f"{name} best"][clip] == pytest.approx(known[answer, best][0][name], abs=1e-12), name
            mean = np.mean([known[answer, t][0][name] for t in true])
            assert found[f"{name} mean"][clip] == pytest.approx(mean, abs=1e-12), name
        relation = min((known[answer, t][1] for t in true), key=RELATIONS.index)
        assert [name for name in RELATIONS if found[name][clip]] == [relation]
    assert set(found) == {f"{m} {way}" for m in MEASURES for way in ("best", "mean")} | set(RELATIONS)


def test_by_hand():
    """dog answered: growl is its child, cat its sibling, song unrelated; bark for dog is over-specific."""
    names = [ANIMALS.nodes[i] for i in ANIMALS.classes]
    def single(answer, *true):
        found = hierarchy_per_clip([names.index(answer)], [[name in true for name in names]], ANIMALS)
        return {name: float(values[0]) for name, values in found.items()}
    assert single("dog", "dog")["exact"] == single("dog", "growl")["ancestor"] == single("bark", "dog")["descendant"] == 1
    assert single("dog", "cat")["sibling"] == single("dog", "song")["unrelated"] == single("dog", "music")["unrelated"] == 1
    over = single("bark", "dog")
    assert (over["hP best"], over["hR best"], over["hF best"]) == pytest.approx((2 / 3, 1, 0.8))
    assert [over[f"{name} best"] for name in MEASURES[3:]] == pytest.approx([2 / 3, 1, 2, 1])
    far = single("bark", "song")
    assert [far[f"{name} best"] for name in MEASURES[2:]] == [0, 0, 5, 0, 3]
    both = single("growl", "dog", "song")
    assert both["hF best"] == pytest.approx(2 / 3) and both["hF mean"] == pytest.approx(1 / 3) and both["descendant"] == 1
    assert single("dog", "cat")["tree-induced error best"] == 2, "by their parent, or by their common child"


def test_floors_are_what_brute_force_gives():
    taxonomy = random_taxonomy(5)
    count = len(taxonomy.classes)
    targets = np.random.default_rng(0).random((30, count)) < 0.2
    targets[:, 3] |= ~targets.any(axis=1)
    targets[15:] = targets[:15]
    floors = hierarchy_floors(targets, taxonomy)
    every = [hierarchy_metrics(np.full(30, answer), targets, taxonomy) for answer in range(count)]
    for name, value in floors["chance"].items():
        assert value == pytest.approx(np.mean([one[name] for one in every]), abs=1e-12)
    assert floors["constant"] == every[int(targets.sum(axis=0).argmax())]
    assert hierarchy_floors(targets, taxonomy, 2)["constant"] == every[2]
    for metrics in floors.values():
        assert sum(metrics[name] for name in RELATIONS) == pytest.approx(1)


def test_refusals_of_answers():
    targets = np.eye(6, dtype=bool)
    for predicted, wrong, words in (
            ([0] * 5, targets, "clips"), ([0] * 6, targets[:, :5], "6 classes"), ([6] * 6, targets, "0 to 5"),
            ([0.5] * 6, targets, "integers"), ([0] * 6, targets & (np.arange(6) != 2), "clip 2 has no true")):
        with pytest.raises(ValueError, match=words):
            hierarchy_per_clip(np.array(predicted), wrong, ANIMALS)
    assert all(values.shape == (0,) for values in hierarchy_per_clip(np.empty(0, int), targets[:0], ANIMALS).values())
    assert hierarchy_metrics(torch.arange(6), torch.eye(6, dtype=torch.bool), ANIMALS)["exact"] == 1


def test_hops_against_networkx():
    taxonomy = random_taxonomy(7)
    graph = nx.Graph([(parent, child) for child, above in enumerate(taxonomy.parents) for parent in above or (24,)])
    lengths = dict(nx.all_pairs_shortest_path_length(graph))
    assert hops(taxonomy).tolist() == [[lengths[i][j] for j in range(25)] for i in range(25)]
    assert (hops(taxonomy) == hops(taxonomy.with_root())).all()


def test_audioset_ontology(ontology):
    """The facts of the notes: distances, delta, and that the measures run at its size."""
    distances = hops(ontology)
    assert distances.shape == (633, 633) and distances.max() == 11
    found = gromov_delta(distances)
    assert (found["delta"], found["method"], found["n"], round(found["relative"], 2)) == (2.5, "exact", 633, 0.45)
    tree = Taxonomy(ontology.nodes, tuple(above[:1] for above in ontology.parents), ontology.classes)
    assert gromov_delta(hops(tree))["delta"] == 0 and gromov_delta(hops(tree))["c"] is None
    targets = np.random.default_rng(0).random((50, 527)) < 3 / 527
    targets[:, 0] |= ~targets.any(axis=1)
    floors = hierarchy_floors(targets, ontology)
    assert floors["chance"]["hF best"] < 0.3 and floors["chance"]["exact"] == pytest.approx(targets.sum() / 527 / 50)
    shuffled = generality(torch.randn(527, 8, generator=torch.Generator().manual_seed(0)), ontology, ontology.classes)
    assert shuffled["parent nearer pairs"] == 378 and shuffled["ancestor nearer pairs"] == 835
    low, high = shuffled["parent nearer interval"]
    assert abs(shuffled["spearman"]) < 0.15 and low < 0.5 < high


def test_generality_closed_forms():
    """Radius equal to depth is perfect, one over depth the reverse; points of one radius have none."""
    direction = torch.nn.functional.normalize(torch.randn(7, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    depth = torch.tensor(ANIMALS.depth)[:, None]
    up, down = generality(direction * depth, ANIMALS), generality(direction / depth, ANIMALS)
    assert (up["spearman"], up["parent nearer"], up["ancestor nearer"]) == pytest.approx((1, 1, 1))
    assert (down["spearman"], down["parent nearer"], down["ancestor nearer"]) == pytest.approx((-1, 0, 0))
    assert (up["parent nearer pairs"], up["ancestor nearer pairs"]) == (len(ANIMALS.edges), len(ANIMALS.closure)) == (6, 8)
    assert 0 < up["parent nearer interval"][0] < up["parent nearer interval"][1] == 1
    for same in (direction, direction * 1e-3, torch.zeros(7, 4)):
        none = generality(same, ANIMALS)
        assert none["spearman"] is none["parent nearer"] is none["ancestor nearer"] is none["parent nearer interval"] is None
        assert none["parent nearer pairs"] == 6
    clipped = direction.clone()
    clipped[5] *= 0.5            # music is nearer than song; all others share a radius and count half
    assert generality(clipped, ANIMALS)["parent nearer"] == pytest.approx((1 + 5 / 2) / 6)


def test_generality_of_some_nodes_only():
    radii = torch.tensor([[3.0], [1.0], [2.0]])
    found = generality(radii, ANIMALS, nodes=[3, 1, 6])       # growl, dog, song: one edge, dog above growl
    assert found["parent nearer"] == 1 and found["parent nearer pairs"] == found["ancestor nearer pairs"] == 1
    assert generality(radii[:2], ANIMALS, nodes=[2, 6])["parent nearer"] is None
    flat = Taxonomy(("a", "b", "c"), ((), (), ()), (0, 1, 2))
    assert generality(radii, flat)["spearman"] is None, "one depth only"
    for wrong, words in (((radii, ANIMALS), "7 different"), ((radii, ANIMALS, [1, 1, 2]), "different"),
                         ((radii * math.nan, ANIMALS, [1, 2, 3]), "'dog'")):
        with pytest.raises(ValueError, match=words):
            generality(*wrong)


@pytest.mark.parametrize("c", [0.1, 1.0])
def test_cones_of_a_tree_that_opens_outwards(c):
    """Children straight behind their parents are inside; the same points with the tree turned over are not."""
    tree = Taxonomy(tuple("abcdefg"), ((), (0,), (1,), (1,), (), (4,), (4,)), tuple(range(7)))
    direction = torch.tensor([[1, 0], [1, 0.02], [1, 0.03], [1, 0.01], [-1, 0], [-1, 0.02], [-1, -0.02]], dtype=torch.float64)
    points = torch.nn.functional.normalize(direction, dim=1) * torch.tensor(tree.depth)[:, None] * 0.4 / c ** 0.5
    found = cone_membership(points, c, tree)
    assert found["edges"] == found["closure"] == 1 and found["unrelated"] == 0
    assert (found["edges pairs"], found["closure pairs"], found["unrelated pairs"]) == (5, 7, 50)
    reverse = cone_membership(points.flip(0), c, Taxonomy(tree.nodes, ((), (0,), (1,), (2,), (3,), (4,), (5,)), tree.classes))
    assert reverse["edges"] < 0.5 and reverse["unrelated"] is None, "a chain has no unrelated nodes"
    wide = cone_membership(points * 0.01, c, tree, min_radius=10, aperture_scale=2)
    assert wide["edges"] == wide["unrelated"] == 1, "cones that hold everything"
    assert cone_membership(points, c, tree, seed=3) == cone_membership(points, c, tree, seed=3)


def test_radius_readings():
    direction = torch.nn.functional.normalize(torch.randn(400, 6, generator=torch.Generator().manual_seed(2)), dim=1)
    radius = torch.linspace(0.5, 1.5, 400)[:, None]
    found = radius_statistics(direction * radius, 4.0)
    assert (found["median"], found["low"], found["high"]) == pytest.approx((4, 2.2, 5.8), rel=1e-3)    # 2 sqrt(c) |v|
    assert found["spread"] == pytest.approx(0.9, rel=1e-3) and found["reading"] == "hyperbolic"
    assert radius_statistics(direction * radius, 1e-3)["reading"] == "Euclidean"
    assert radius_statistics(direction * 0.9, 1.0)["reading"] == "spherical"
    assert radius_statistics(torch.zeros(3, 2), 1.0)["reading"] == "spherical"


def four_points(d):
    return max(((s := sorted((d[i, j] + d[k, m], d[i, k] + d[j, m], d[i, m] + d[j, k])))[2] - s[1]) / 2
               for i, j, k, m in itertools.combinations(range(len(d)), 4))


def test_delta_against_all_quadruples():
    for seed in range(3):
        d = squareform(pdist(np.random.default_rng(seed).normal(size=(13, 3))))
        exact = gromov_delta(d)
        assert exact["delta"] == pytest.approx(four_points(d), abs=1e-12) and exact["method"] == "exact"
        assert exact["relative"] == pytest.approx(2 * exact["delta"] / d.max())
        assert exact["c"] == pytest.approx((0.072 * d.max() / exact["delta"]) ** 2)
        base = gromov_delta(d, "base point")["delta"]
        assert exact["delta"] / 2 - 1e-6 <= base <= exact["delta"] + 1e-6
        held = max(four_points(d[np.ix_(q, q)]) for q in ((0, *rest) for rest in itertools.combinations(range(1, 13), 3)))
        assert base == pytest.approx(held, abs=1e-5)
        drawn = gromov_delta(d, "sampled", samples=50_000, seed=seed)
        assert drawn["delta"] == pytest.approx(exact["delta"], abs=1e-12), "each of 715 quadruples is drawn many times"
        assert gromov_delta(d, "sampled", samples=30, seed=seed)["delta"] < exact["delta"]
        tripled = gromov_delta(3 * d)
        assert (tripled["delta"], tripled["relative"]) == pytest.approx((3 * exact["delta"], exact["relative"]))


@pytest.mark.parametrize("n, expected", [(3, 0), (4, 1), (5, 0.5), (7, 1), (8, 2), (9, 1.5), (40, 10)])
def test_delta_of_a_circle_of_nodes(n, expected):
    """floor(n / 4), less 1/2 where n = 4 k + 1; leaves and long branches change nothing."""
    circle = nx.cycle_graph(n)
    nx.add_path(circle, [0, "a", "b", "c"])
    nx.add_path(circle, ["b", "d"])
    d = np.array(nx.floyd_warshall_numpy(circle))
    assert gromov_delta(d)["delta"] == gromov_delta(d[:n, :n])["delta"] == expected
    assert len(hierarchy._without_leaves(d, 1e-9)) == n, "the four leaves are dropped, the circle is not"


def test_delta_of_trees_and_of_the_hyperbolic_plane():
    tree = nx.random_labeled_tree(300, seed=1)
    for u, v in tree.edges:
        tree[u][v]["weight"] = 0.3 + (u * v) % 7
    assert gromov_delta(np.array(nx.floyd_warshall_numpy(tree)))["delta"] == 0
    tangents = torch.randn(60, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4
    for c in (1.0, 0.25):
        plane = gromov_delta(pairwise_distance_from_tangents(tangents, tangents, c).numpy())["delta"]
        assert 0.5 * math.log(2) / c ** 0.5 < plane <= math.log(2) / c ** 0.5, "ln 2 / sqrt(c) bounds the four-point delta"


def test_delta_beside_references():
    """A tree-like set is told from random points, by one method; many dimensions make random points look like a tree."""
    tangents = torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 4
    found = delta_beside_references(pairwise_distance_from_tangents(tangents, tangents, 1.0).numpy(), 2)
    assert found["data"]["relative"] < 0.5 * min(found["sphere"]["relative"], found["gaussian"]["relative"])
    assert {one["method"] for one in found.values()} == {"exact"} and {one["n"] for one in found.values()} == {40}
    many = delta_beside_references(squareform(pdist(np.random.default_rng(0).normal(size=(200, 512)))), 512)
    assert {one["method"] for one in many.values()} == {"base point"}
    assert many["data"]["relative"] == pytest.approx(many["gaussian"]["relative"], rel=0.3) and many["sphere"]["relative"] < 0.2


@pytest.mark.parametrize("wrong", [np.ones((2, 3)), np.ones((2, 2)), np.array([[0, 1.0], [2, 0]]), np.array([[0, -1.0], [-1, 0]]),
                                   np.full((2, 2), np.nan)])
def test_refusals_of_distances(wrong):
    with pytest.raises(ValueError, match="distances must be"):
        gromov_delta(wrong)


def test_degenerate_distances():
    with pytest.raises(ValueError, match="method"):
        gromov_delta(np.zeros((2, 2)), "guess")
    for n in (1, 2, 3):
        assert gromov_delta(np.zeros((n, n)))["relative"] is None
        assert gromov_delta(1 - np.eye(n))["delta"] == 0
        assert all(gromov_delta(1 - np.eye(n), method)["delta"] == 0 for method in ("base point", "sampled"))
