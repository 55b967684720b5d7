"""Points for the nodes of a graph, so that the nearest ones of a node are its ancestors: the Poincaré embedding of Nickel and
Kiela (Poincaré embeddings for learning hierarchical representations, 2017, arXiv 1705.08039).

For every pair (ancestor v, node u) the loss is -log exp(-d(u, v)) / (exp(-d(u, v)) + sum of exp(-d(u, w)) over negatives w), and
both ends and all negatives move. A negative is any node but u and the ancestors of u (a descendant of u is one): draws that hit
those are left out of the sum, not replaced. d is the geodesic distance of the ball of curvature -1, or in the control the
Euclidean one; loss, draws and optimiser are the same. Everything is float64: near the edge float32 runs out of digits.

The paper's settings are the defaults; points that it holds back at 1 - 1e-5 have no room in two dimensions. On AudioSet's
ontology (633 nodes with a root, closure, mean of 3 seeds) they reach a MAP of 0.72 in 2 dimensions and 0.90 in 5,
`**RECOMMENDED` 0.90 and 0.97.
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from lib.geometry import poincare
from lib.progress import track
from lib.randomness import generator

GEOMETRIES = ("poincare", "euclidean")
RECOMMENDED = {"learning_rate": 0.1, "edge": 1e-8}  # smaller steps find a better order, a later edge leaves room for it
ROWS = 64  # nodes that are ranked at a time: the distances to all others by differences, so that equal points tie exactly


@contextmanager
def _one_thread():
    """torch computes with one thread: arrays of a batch are so small that waiting for a second costs several times the work (the
    bits are the same)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_thread()
def train(pairs, nodes: int, dim: int, *, seed: int, geometry: str = "poincare", epochs: int = 300, burn_in: int = 20,
          learning_rate: float = 0.3, negatives: int = 50, batch_size: int = 50, burn_in_factor: float = 0.01,
          dampening: float = 0.75, edge: float = 1e-5, history: list | None = None) -> Tensor:
    """Train an embedding by stochastic Riemannian gradient descent; the same arguments give the same bits.

    Args:
        pairs: (P, 2) int, (ancestor, descendant): the closure of a taxonomy, or its edges to learn direct parents only.
        nodes: how many there are, also those in no pair.
        dim: of the points, >= 1.
        seed: everything drawn in an epoch depends on it and the epoch only.
        geometry: "poincare", or the control "euclidean".
        epochs, burn_in: passes over the pairs; the first `burn_in` of them find directions near 0, with the learning rate times
            `burn_in_factor` and negatives drawn in proportion to (pairs of the node) ** `dampening` (0: evenly, as later).
        learning_rate: the gradients of a batch are summed, not averaged, so that it does not depend on the batch size.
        negatives: drawn for each pair, with repetition.
        batch_size: pairs a step. A graph of few pairs needs several steps an epoch: 10 for a hundred pairs.
        edge: points stay within radius 1 - edge, at most 2 artanh(1 - edge) from 0: 12.2 for 1e-5, 19.1 for 1e-8.
        history: a list to which {"epoch", "loss"} of every epoch is added, the loss in nats, mean of the pairs (for a curve).
    Returns:
        Tensor (nodes, dim) float64; "poincare": points of the unit ball.
    Raises:
        ValueError: naming the argument that does not fit, or the pair on a circle.
        FloatingPointError: the loss is not finite.
    """
    pairs = _checked(pairs, nodes)
    _require(geometry in GEOMETRIES, "geometry", geometry, "one of " + ", ".join(GEOMETRIES))
    counts = {"dim": dim, "epochs": epochs, "negatives": negatives, "batch_size": batch_size, "number of pairs": len(pairs)}
    for name, value in counts.items():
        _require(value >= 1, name, value, "at least 1")
    _require(learning_rate > 0, "learning_rate", learning_rate, "above 0")
    _require(1e-10 <= edge < 1, "edge", edge, "from 1e-10, where float64 still resolves the distance to the rim, to below 1")
    above = ancestors(pairs, nodes)
    excluded = torch.from_numpy(above | np.eye(nodes, dtype=bool))
    often = np.bincount(pairs.ravel(), minlength=nodes) ** float(dampening)
    positive, node = torch.from_numpy(pairs.T.copy())
    points = torch.from_numpy(generator(seed, "graph embedding", "start").uniform(-1e-3, 1e-3, (nodes, dim)))
    for epoch in track(range(epochs), epochs, f"{geometry} embedding in {dim} dimensions"):
        draw, starting = generator(seed, "graph embedding", epoch), epoch < burn_in
        order = torch.from_numpy(draw.permutation(len(pairs)))
        others = draw.choice(nodes, (len(pairs), negatives), p=often / often.sum() if starting else None)
        others, total = torch.from_numpy(others), 0.0
        rate = learning_rate * (burn_in_factor if starting else 1)
        for rows in order.split(batch_size):
            candidates = torch.cat([positive[rows, None], others[rows]], dim=1)
            ignored = excluded[node[rows, None], candidates]
            ignored[:, 0] = False
            losses, gradient = loss_and_gradient(points, node[rows], candidates, ignored, geometry)
            points = descend(points, gradient, rate, geometry, edge)
            total += float(losses.sum())
        if not np.isfinite(total):
            raise FloatingPointError(f"the loss of epoch {epoch + 1} is {total}: learning_rate {learning_rate} is too high; "
                                     "the published one is 0.3")
        if history is not None:
            history.append({"epoch": epoch + 1, "loss": total / len(pairs)})
    return points


def loss_and_gradient(points: Tensor, node: Tensor, candidates: Tensor, ignored: Tensor, geometry: str) -> tuple[Tensor, Tensor]:
    """The softmax loss over negative distances and the Euclidean gradient of its sum, in closed form.

    Args:
        points: Tensor (n, D), in the unit ball unless Euclidean.
        node: (B,) int, u of each row.
        candidates: (B, 1 + K) int: the ancestor, then negatives.
        ignored: (B, 1 + K) bool, candidates that do not count; never the first.
    Returns:
        losses (B,) and gradient (n, D). Coincident points do not push each other: no direction is better than another.
    """
    own, other = points[node, None], points[candidates]
    difference = own - other
    squared = difference.square().sum(-1)
    if geometry == "poincare":  # d = 2 arsinh(h) with h^2 = |u-w|^2 / (gap_u gap_w)
        gap, other_gap = 1 - own.square().sum(-1), 1 - other.square().sum(-1)
        ratio = squared / (gap * other_gap)
        distance = 2 * torch.asinh(ratio.sqrt())
        slope = 2 * _over_root(ratio * (1 + ratio)) / (gap * other_gap)
    else:
        distance = squared.sqrt()
        slope = _over_root(squared)
    scores = (-distance).masked_fill(ignored, -torch.inf)
    pull = -torch.softmax(scores, dim=1)  # the loss's derivative by each distance
    pull[:, 0] += 1
    slope = pull * slope
    by_own, by_other = slope[..., None] * difference, -slope[..., None] * difference
    if geometry == "poincare":  # h also grows as either end nears the rim
        by_own += (slope * squared / gap)[..., None] * own
        by_other += (slope * squared / other_gap)[..., None] * other
    gradient = torch.zeros_like(points).index_add_(0, node, by_own.sum(1))
    gradient.index_add_(0, candidates.flatten(), by_other.flatten(0, 1))
    return torch.logsumexp(scores, dim=1) - scores[:, 0], gradient


def descend(points: Tensor, gradient: Tensor, rate: float, geometry: str, edge: float) -> Tensor:
    """One step against the gradient: in the ball the Riemannian one, (1 - |x|^2)^2 / 4 times the Euclidean; back within 1 - edge.

    Args:
        points, gradient: Tensors (n, D).  rate: the step for a Riemannian gradient of 1.
    """
    if geometry == "euclidean":
        return points - rate * gradient
    points = points - rate * (1 - points.square().sum(1, keepdim=True)).square() / 4 * gradient
    return points * ((1 - edge) / torch.linalg.vector_norm(points, dim=1, keepdim=True)).clamp(max=1)


def reconstruction(points: Tensor, pairs, geometry: str = "poincare") -> dict[str, float]:
    """How well distances alone tell the ancestors of each node: its ancestors ranked among all nodes that are none.

    Exact. The node itself is left out; an ancestor as far away as a node that is none comes after it. Nodes without ancestors
    are not ranked.

    Args:
        points: Tensor (n, D), in the unit ball unless Euclidean.
        pairs: (P, 2) int, (ancestor, descendant): closure or edges; ancestors are those of the closure either way.
        geometry: "poincare" or "euclidean".
    Returns:
        "MAP": average precision, mean of the nodes, 0 to 1; "mean rank": of an ancestor among the nodes that are none, mean of
        all pairs, 1 the best.
    """
    _require(geometry in GEOMETRIES, "geometry", geometry, "one of " + ", ".join(GEOMETRIES))
    above = torch.from_numpy(ancestors(_checked(pairs, len(points)), len(points)))
    _require(bool(above.any()), "pairs", "none", "at least 1")
    precisions, ranks = zip(*_ranked(points.double(), above, geometry))
    return {"MAP": float(torch.cat(precisions).mean()), "mean rank": float(torch.cat(ranks).double().mean())}


def _ranked(points: Tensor, above: Tensor, geometry: str) -> Iterator[tuple[Tensor, Tensor]]:
    """For pieces of the nodes with ancestors: average precision of each, and the rank of each ancestor among the others."""
    for rows in above.any(1).nonzero()[:, 0].split(ROWS):
        own, mine = points[rows, None], above[rows]
        distance = poincare.distance(own, points, 1.0) if geometry == "poincare" else (own - points).norm(dim=-1)
        none = mine.scatter(1, rows[:, None], True)  # what is no negative: the ancestors and the node itself
        count = mine.sum(1, keepdim=True)
        near = distance.masked_fill(~mine, torch.inf).sort(1).values[:, :int(count.max())].contiguous()
        before = torch.searchsorted(distance.masked_fill(none, torch.inf).sort(1).values, near, right=True)
        place = torch.arange(1, near.shape[1] + 1, dtype=torch.float64)
        there = place <= count
        yield (place / (place + before) * there).sum(1) / count[:, 0], before[there] + 1


def mobius_center(points: Tensor, root: int) -> Tensor:
    """The same embedding seen from `root`: the isometry of the ball that takes it to 0 (all distances stay).

    Args:
        points: Tensor (n, D) of the unit ball.  root: index of the node for the middle; any other shows its neighbourhood.
    """
    _require(0 <= root < len(points), "root", root, f"an index of the {len(points)} points")
    return poincare.mobius_add(-points[root], points, 1.0)


def ancestors(pairs: np.ndarray, nodes: int) -> np.ndarray:
    """(nodes, nodes) bool: [i, j] says that j lies above i, by one pair (j, i) or several in a row.

    Raises:
        ValueError: a node is its own ancestor.
    """
    reach = np.zeros((nodes, nodes), dtype=np.float32)
    reach[pairs[:, 1], pairs[:, 0]] = 1
    while True:  # twice as many pairs in a row each time
        longer = np.minimum(reach + reach @ reach, 1)
        if (longer == reach).all():
            break
        reach = longer
    circle = np.flatnonzero(reach.diagonal())
    if len(circle):
        raise ValueError(f"pairs: node {circle[0]} is its own ancestor; (ancestor, descendant) pairs must not form a circle")
    return reach > 0


def _checked(pairs, nodes: int) -> np.ndarray:
    pairs = np.asarray(pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.issubdtype(pairs.dtype, np.integer):
        raise ValueError(f"pairs must be (P, 2) integers (ancestor, descendant), got {pairs.dtype} {pairs.shape}")
    if len(pairs) and not 0 <= pairs.min() <= pairs.max() < nodes:
        raise ValueError(f"pairs: indices from {pairs.min()} to {pairs.max()}; with {nodes} nodes they must be 0 to {nodes - 1}")
    return pairs.astype(np.int64)


def _require(fine: bool, name: str, value, wanted: str) -> None:
    if not fine:
        raise ValueError(f"{name} must be {wanted}, got {value!r}")


def _over_root(x: Tensor) -> Tensor:
    """1 / sqrt(x); 0 stays finite, because it is multiplied with the difference of coincident points."""
    return x.clamp(min=1e-200).rsqrt()
