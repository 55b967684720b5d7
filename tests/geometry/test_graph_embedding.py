"""The embedding of a graph: gradients, steps, draws and figures against written-out references; small trees are learned."""
import numpy as np
import pandas as pd
import pytest
import torch

from lib.data import scenes
from lib.data.manifest import COLUMNS, Manifest
from lib.data.taxonomy import Taxonomy
from lib.geometry import graph_embedding, poincare
from lib.geometry.graph_embedding import RECOMMENDED, ancestors, descend, loss_and_gradient, mobius_center, reconstruction, train


def binary_tree(depth):
    return Taxonomy(tuple(map(str, range(2**depth - 1))), ((), *(((i - 1) // 2,) for i in range(1, 2**depth - 1))), ())


def random_graph(nodes, seed):
    """(parent, child) pairs of a graph with several parents, nodes without any, and nodes in no pair."""
    rng = np.random.default_rng(seed)
    return np.array([(p, child) for child in range(3, nodes - 2) for p in rng.choice(child, rng.integers(0, 3), replace=False)])


def ball(n, dim, seed, radius=0.95):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dim, generator=g, dtype=torch.float64)
    return x / x.norm(dim=1, keepdim=True) * radius * torch.rand(n, 1, generator=g, dtype=torch.float64)


def textbook_distance(x, y, geometry):
    if geometry == "euclidean":
        return ((x - y) ** 2).sum().sqrt()
    return torch.acosh(1 + 2 * ((x - y) ** 2).sum() / ((1 - (x**2).sum()) * (1 - (y**2).sum())))


@pytest.mark.parametrize("geometry", ["poincare", "euclidean"])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_loss_and_gradient_against_autograd(geometry, dim):
    x = ball(12, dim, seed=dim).requires_grad_()
    g = torch.Generator().manual_seed(9)
    node = torch.tensor([0, 1, 1, 7])
    candidates = torch.randint(2, 12, (4, 6), generator=g)
    candidates[candidates == 7] = 0  # a node is never far from itself by rounding: not what is tested here
    ignored = torch.rand(4, 6, generator=g) < 0.3
    ignored[:, 0] = False
    ignored[2, 1:] = True  # every draw was an ancestor: nothing to learn
    ignored |= candidates == node[:, None]
    wanted = []
    for u, row, skip in zip(node, candidates, ignored):
        parts = [torch.exp(-textbook_distance(x[u], x[v], geometry)) for v, out in zip(row, skip) if not out]
        wanted.append(-torch.log(parts[0] / sum(parts)))
    torch.stack(wanted).sum().backward()
    losses, gradient = loss_and_gradient(x.detach(), node, candidates, ignored, geometry)
    assert ignored.any() and ignored[:, 1:].all(1).any()
    torch.testing.assert_close(losses, torch.stack(wanted).detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, x.grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("geometry", ["poincare", "euclidean"])
def test_gradients_stay_finite_where_points_coincide_and_at_the_rim(geometry):
    rim = 1 - 1e-10
    x = torch.tensor([[0, 0], [0, 0], [0.3, 0.3], [0.3, 0.3], [rim, 0], [rim, 0], [-rim, 0]], dtype=torch.float64)
    node, candidates = torch.tensor([0, 2, 4, 4]), torch.tensor([[1, 1, 2], [3, 0, 4], [5, 6, 5], [6, 0, 5]])
    losses, gradient = loss_and_gradient(x, node, candidates, torch.zeros(4, 3, dtype=torch.bool), geometry)
    assert losses.isfinite().all() and gradient.isfinite().all() and (losses >= 0).all()
    after = descend(x, gradient, 1.0, geometry, 1e-8)
    assert after.isfinite().all() and (geometry == "euclidean" or after.norm(dim=1).max() <= 1 - 0.99e-8)
    alone = loss_and_gradient(x, node[:1], torch.tensor([[1, 1, 1]]), torch.zeros(1, 3, dtype=torch.bool), geometry)
    assert float(alone[0]) == pytest.approx(np.log(3)) and not alone[1].any()


def test_the_step_against_the_closed_form():
    x, gradient = ball(20, 3, seed=1, radius=0.8), ball(20, 3, seed=2)
    rate = 1e-3
    moved = descend(x, gradient, rate, "poincare", 1e-5)
    for p, g, q in zip(x.tolist(), gradient.tolist(), moved.tolist()):
        room = (1 - sum(a * a for a in p)) ** 2 / 4
        assert q == pytest.approx([a - rate * room * b for a, b in zip(p, g)], rel=1e-13)
    # By the metric, lambda = 2 / (1 - |x|^2), a point moves by `rate` times its Riemannian gradient's length, |gradient| / lambda
    length = poincare.distance(x, moved, 1.0)
    torch.testing.assert_close(length, rate * gradient.norm(dim=1) * (1 - x.square().sum(1)) / 2, rtol=2e-3, atol=0)
    assert torch.equal(descend(x, gradient, rate, "euclidean", 1e-5), x - rate * gradient)
    far = descend(x, -1e6 * x, 1.0, "poincare", 1e-5)  # beyond the rim: back along the radius
    torch.testing.assert_close(far, (1 - 1e-5) * x / x.norm(dim=1, keepdim=True), rtol=1e-12, atol=0)


def naive_reconstruction(points, pairs, geometry):
    above = {i: {int(a) for a, d in pairs if d == i} for i in range(len(points))}
    for _ in above:
        above = {i: set.union(a, *(above[j] for j in a)) for i, a in above.items()}
    precisions, ranks = [], []
    for i, wanted in above.items():
        if not wanted:
            continue
        far = [float(textbook_distance(points[i], p, geometry)) for p in points]
        order = [j for *_, j in sorted((round(far[j], 9), j in wanted, j) for j in range(len(points)) if j != i)]  # ties against
        places = [place for place, j in enumerate(order, 1) if j in wanted]
        precisions.append(np.mean([found / place for found, place in enumerate(places, 1)]))
        ranks += [place - found for found, place in enumerate(places)]
    return {"MAP": np.mean(precisions), "mean rank": np.mean(ranks)}


@pytest.mark.parametrize("geometry", ["poincare", "euclidean"])
@pytest.mark.parametrize("places", [90, 20])  # 20: nodes share places, so that many distances tie
def test_reconstruction_against_a_loop(geometry, places):
    pairs = random_graph(90, seed=3)
    points = ball(places, 2, seed=4)[torch.arange(90) * 7 % places]
    wanted = naive_reconstruction(points, pairs, geometry)
    assert reconstruction(points, pairs, geometry) == pytest.approx(wanted, rel=1e-12)
    nodes = ancestors(pairs, 90)
    closure = np.argwhere(nodes)[:, ::-1]
    assert len(closure) > len(pairs) and reconstruction(points, closure, geometry) == pytest.approx(wanted, rel=1e-12)


def test_figures_by_hand():
    chain = [[0, 1], [1, 2]]
    line = torch.tensor([[0.0], [0.2], [0.5], [-0.4]], dtype=torch.float64)
    # Seen from node 1: 0, 2, 3; from node 2: 1, 0, 3. All ancestors come first.
    assert reconstruction(line, chain) == {"MAP": 1.0, "mean rank": 1.0}
    line[3] = 0.25  # from node 1: 3, 0, 2; from node 2: 3, 1, 0
    assert reconstruction(line, chain, "euclidean") == pytest.approx({"MAP": (1 / 2 + (1 / 2 + 2 / 3) / 2) / 2, "mean rank": 2.0})
    # All tie, the others come first, also the descendant 2 of node 1: 1/3, and 1/2 and 2/3.
    tied = reconstruction(torch.zeros(4, 2), chain)
    assert tied == pytest.approx({"MAP": (1 / 3 + (1 / 2 + 2 / 3) / 2) / 2, "mean rank": 7 / 3})


def test_ancestors_against_the_taxonomy():
    tree = binary_tree(5)
    assert (ancestors(tree.edges, len(tree)) == tree.ancestors & ~np.eye(len(tree), dtype=bool)).all()
    assert (ancestors(tree.edges, len(tree)) == ancestors(tree.closure, len(tree))).all()
    long = np.stack([np.arange(299), np.arange(1, 300)], axis=1)
    assert (ancestors(long, 300) == np.tri(300, k=-1, dtype=bool)).all()


def soundscapes():
    info = {"classes": scenes.classes(), "taxonomy": scenes.taxonomy()}
    return Taxonomy.of(Manifest(pd.DataFrame(columns=COLUMNS), "soundscapes", ".", info)).with_root()


@pytest.mark.parametrize("graph, root", [(binary_tree(4), 0), (soundscapes(), -1)], ids=["binary", "soundscapes"])
def test_a_small_taxonomy_is_learned_in_two_dimensions(graph, root):
    """The general end up near the middle without being told to; Euclidean and shuffled points do worse."""
    root %= len(graph)
    history = []
    points = train(graph.closure, len(graph), 2, seed=0, epochs=200, batch_size=10, history=history, **RECOMMENDED)
    assert points.dtype == torch.float64 and points.norm(dim=1).max() < 1
    assert reconstruction(points, graph.closure)["MAP"] > 0.97
    shuffled = points[torch.randperm(len(graph), generator=torch.Generator().manual_seed(0))]
    assert reconstruction(shuffled, graph.closure)["MAP"] < 0.55
    radius = poincare.distance(mobius_center(points, root), torch.zeros(2, dtype=torch.float64), 1.0)
    parent, child = graph.edges.T
    assert radius[root] == 0 and (radius[parent] < radius[child]).double().mean() > 0.9
    assert [entry["epoch"] for entry in history] == list(range(1, 201))
    losses = [entry["loss"] for entry in history]
    assert losses[-1] < 0.3 * losses[0] and np.isfinite(losses).all()


def test_same_arguments_same_bits_whatever_was_drawn_before():
    tree, threads = binary_tree(4), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        first = train(tree.closure, len(tree), 3, seed=5, epochs=25)
        assert torch.get_num_threads() == 2  # as the caller left it
    finally:
        torch.set_num_threads(threads)
    torch.manual_seed(1), np.random.seed(1), torch.rand(3)
    assert torch.equal(first, train(torch.from_numpy(tree.closure), len(tree), 3, seed=5, epochs=25))
    assert not torch.equal(first, train(tree.closure, len(tree), 3, seed=6, epochs=25))


@pytest.mark.parametrize("kind", ["edges", "closure"])
def test_what_is_drawn(kind, monkeypatch):
    """Each pair once an epoch; no negative is the node or above it; how often each is drawn, in the burn-in and later."""
    tree = binary_tree(4)
    pairs, calls, rates, losses, history = getattr(tree, kind), [], [], [], []

    def seen(points, node, candidates, ignored, geometry):
        calls.append((node, candidates, ignored))
        found = loss_and_gradient(points, node, candidates, ignored, geometry)
        losses.append(found[0])
        return found

    monkeypatch.setattr(graph_embedding, "loss_and_gradient", seen)
    monkeypatch.setattr(graph_embedding, "descend", lambda *args: rates.append(args[2]) or descend(*args))
    train(pairs, len(tree), 2, seed=0, epochs=2, burn_in=1, negatives=400, batch_size=5, dampening=0.75, learning_rate=0.3,
          history=history)
    steps = -(-len(pairs) // 5)
    assert rates == pytest.approx([0.003] * steps + [0.3] * steps)
    for epoch in range(2):
        node, candidates, ignored = (torch.cat(part) for part in zip(*calls[epoch * steps:(epoch + 1) * steps]))
        assert sorted(zip(candidates[:, 0].tolist(), node.tolist())) == sorted(map(tuple, pairs.tolist()))
        assert not ignored[:, 0].any()
        for u, row, skip in zip(node.tolist(), candidates[:, 1:].tolist(), ignored[:, 1:].tolist()):
            assert skip == [bool(tree.ancestors[u, w]) for w in row]
        share = np.bincount(candidates[:, 1:].ravel(), minlength=len(tree)) / candidates[:, 1:].numel()
        wanted = np.bincount(pairs.ravel(), minlength=len(tree)) ** 0.75 if epoch == 0 else np.ones(len(tree))
        assert share == pytest.approx(wanted / wanted.sum(), rel=0.2)
        mean = float(torch.cat(losses[epoch * steps:(epoch + 1) * steps]).mean())
        assert history[epoch] == {"epoch": epoch + 1, "loss": pytest.approx(mean)}
    train(pairs, len(tree), 2, seed=0, epochs=2, burn_in=0)  # two epochs of one kind: each in an order and with draws of its own
    (first, drawn, _), (second, others, _) = calls[2 * steps], calls[2 * steps + -(-len(pairs) // 50)]
    assert not torch.equal(first, second) and not torch.equal(drawn, others)


def test_the_view_from_a_node_keeps_all_distances():
    points, pairs = ball(40, 3, seed=6), random_graph(40, seed=7)
    for root in (0, 39):
        moved = mobius_center(points, root)
        assert not moved[root].any()
        torch.testing.assert_close(poincare.pairwise_distance(moved, moved, 1.0), poincare.pairwise_distance(points, points, 1.0),
                                   rtol=1e-9, atol=1e-9)
        assert reconstruction(moved, pairs) == pytest.approx(reconstruction(points, pairs))


@pytest.mark.parametrize("change, says", [
    ({"geometry": "lorentz"}, "geometry.*poincare.*'lorentz'"), ({"dim": 0}, "dim must be at least 1"), ({"epochs": 0}, "epochs"),
    ({"negatives": 0}, "negatives"), ({"batch_size": 0}, "batch_size"), ({"learning_rate": 0.0}, "learning_rate.*above 0"),
    ({"edge": 0.0}, "edge"), ({"nodes": 2}, "0 to 2; with 2 nodes they must be 0 to 1"),
    ({"pairs": [[0, 1], [1, 2], [2, 0]]}, "node 0.*circle"), ({"pairs": [[1, 1]]}, "node 1 is its own ancestor"),
    ({"pairs": [[0.5, 1.0]]}, "integers.*float64"), ({"pairs": [0, 1]}, r"\(2,\)"),
    ({"pairs": np.zeros((0, 2), int)}, "number of pairs must be at least 1")])
def test_errors_name_what_does_not_fit(change, says):
    with pytest.raises(ValueError, match=says):
        train(**{"pairs": [[0, 1], [1, 2]], "nodes": 3, "dim": 2, "seed": 0, "epochs": 1, **change})


def test_errors_of_evaluation_and_divergence():
    points = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="geometry"):
        reconstruction(points, [[0, 1]], "sphere")
    with pytest.raises(ValueError, match="0 to 3; with 3 nodes"):
        reconstruction(points, [[0, 3]])
    with pytest.raises(ValueError, match="root.*3 points"):
        mobius_center(points, -1)
    with pytest.raises(FloatingPointError, match="learning_rate 1e\\+308"):
        train([[0, 1], [1, 2]], 3, 2, seed=0, geometry="euclidean", epochs=9, burn_in=0, learning_rate=1e308)
