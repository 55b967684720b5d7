"""What a taxonomy makes of wrong answers, and how much of it an embedding holds.

Nodes carry the set of their ancestors, themselves included and the virtual root excluded. Depth is the fewest edges to the
virtual root (top nodes: 1). Embeddings are tangent vectors v at the origin of the Poincaré ball of curvature -c: d(0, x) = 2|v|.
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import shortest_path
from scipy.spatial.distance import pdist, squareform
from scipy.stats import spearmanr

from lib.data.taxonomy import Taxonomy
from lib.evaluation.statistics import wilson_interval
from lib.losses.entailment import cone_excess

MEASURES = ("hP", "hR", "hF", "Jaccard", "tree-induced error", "LCA depth", "LCA distance")
RELATIONS = ("exact", "descendant", "ancestor", "sibling", "unrelated")
SAME_RADIUS = 1e-3     # radii are rounded to this share of their median: clipped points differ by float noise, which is no order
NEARLY_FLAT = 0.5      # below this sqrt(c) d(0, x) a circle is at most 4 % longer than in flat space: sinh(0.5) / 0.5
EXACT, BASE_POINT = 150, 1000   # Gromov delta: up to so many points over all quadruples; over all that hold one base point

Shares = dict[str, float | int | tuple[float, float] | None]


def hops(taxonomy: Taxonomy) -> np.ndarray:
    """Fewest edges between nodes, up or down, through the virtual root, too.

    Returns: (n + 1, n + 1) int64 for n nodes besides the virtual root, which is the last row and column.
    """
    return shortest_path(_upward(taxonomy), directed=False, unweighted=True).astype(np.int64)


def hierarchy_per_clip(predicted: np.ndarray, targets: np.ndarray, taxonomy: Taxonomy) -> dict[str, np.ndarray]:
    """Measures of one answer a clip, for bootstraps.

    With A_p and A_t the ancestor sets of the answer and of a true class: hP = |A_p & A_t| / |A_p|, hR = |A_p & A_t| / |A_t|, hF
    their harmonic mean (Kiritchenko et al. 2006), Jaccard = |A_p & A_t| / |A_p | A_t|; all in [0, 1], more is better.
    Tree-induced error (Dekel et al. 2004): `hops` between the two, a path through a common descendant included. LCA: the deepest
    common ancestor (of equally deep ones the first; the virtual root, depth 0, where there is none); its depth, and the fewest
    edges that lead up to it from the answer. Clips with several true classes have "<measure> best", all of one true class (most
    hF, then least tree-induced error, then the first), and "<measure> mean" over their true classes.

    `RELATIONS` hold 1 for the one that applies, the first of: the answer is a true class; a descendant of one (over-specific); an
    ancestor of one; shares a direct parent with one (the virtual root is none); none of these.

    Args:
        predicted: (N,) int, index of the class that was answered, 0..C-1.
        targets: (N, C) bool, at least one true class a clip.
        taxonomy: of C classes.
    Returns: name -> (N,) float64.
    Raises:
        ValueError: shapes, an index out of range, or a clip without a true class.
    """
    predicted, targets = np.asarray(predicted), np.asarray(targets).astype(bool)
    count = len(taxonomy.classes)
    if targets.ndim != 2 or targets.shape[1] != count or predicted.shape != targets.shape[:1]:
        raise ValueError(f"predicted {predicted.shape} and targets {targets.shape} must be (clips,) and (clips, {count}): the "
                         f"taxonomy has {count} classes")
    if len(predicted) and (predicted.dtype.kind not in "iu" or not 0 <= predicted.min() <= predicted.max() < count):
        raise ValueError(f"predicted must hold integers from 0 to {count - 1}, got {predicted.min()} to {predicted.max()} "
                         f"({predicted.dtype})")
    if not targets.any(axis=1).all():
        raise ValueError(f"clip {int(targets.any(axis=1).argmin())} has no true class; leave such clips out and count them")
    clip, label = np.nonzero(targets)
    return _measured(_class_tables(taxonomy), predicted, clip, label)


def hierarchy_metrics(predicted: np.ndarray, targets: np.ndarray, taxonomy: Taxonomy) -> dict[str, float]:
    """Means over clips of `hierarchy_per_clip`; the five relations sum to 1."""
    return {name: float(values.mean()) for name, values in hierarchy_per_clip(predicted, targets, taxonomy).items()}


def hierarchy_floors(targets: np.ndarray, taxonomy: Taxonomy, constant: int | None = None) -> dict[str, dict[str, float]]:
    """`hierarchy_metrics` of two answers that never listened, to print beside a model's.

    Args:
        targets, taxonomy: as for `hierarchy_per_clip`.
        constant: class that is always answered; None: the most frequent one of `targets`, which is the best informed; a fair one
            takes the most frequent class of the training clips.
    Returns: "chance" (exact mean over a uniformly drawn class) and "constant".
    """
    targets = np.asarray(targets).astype(bool)
    constant = int(targets.sum(axis=0).argmax()) if constant is None else constant
    always = hierarchy_metrics(np.full(len(targets), constant), targets, taxonomy)
    tables, (clip, label), count = _class_tables(taxonomy), np.nonzero(targets), len(taxonomy.classes)
    starts = np.searchsorted(clip, np.arange(len(targets)))
    best, relations = np.zeros((count, count)), np.zeros(len(RELATIONS))    # [answer, its best truth] counts clips
    for answer in range(count):
        rank = np.minimum.reduceat(tables["rank"][answer, label], starts)
        best[answer] = np.bincount(tables["ranked"][answer, rank], minlength=count)
        relations += np.bincount(np.minimum.reduceat(tables["relation"][answer, label], starts), minlength=len(RELATIONS))
    share = np.bincount(label, 1 / targets.sum(axis=1)[clip], minlength=count)
    chance = {f"{name} best": float((best * tables[name]).sum()) / best.sum() for name in MEASURES}
    chance |= {f"{name} mean": float(tables[name].mean(axis=0) @ share) / len(targets) for name in MEASURES}
    chance |= {name: float(value) / best.sum() for name, value in zip(RELATIONS, relations)}
    return {"chance": {name: chance[name] for name in always}, "constant": always}


def generality(tangents: torch.Tensor, taxonomy: Taxonomy, nodes: Sequence[int] | None = None) -> Shares:
    """Do general nodes lie nearer the origin than specific ones?

    Args:
        tangents: (n, D), one row a node; d(0, x) = 2|v| whatever the curvature.
        nodes: which node of the taxonomy each row is, such as taxonomy.classes; None: all of them in order. A virtual root that
            sits at the origin by construction is better left out.
    Returns:
        "spearman": rank correlation of d(0, x) with depth, chance 0; "parent nearer" and "ancestor nearer": share of the direct
        and of all (ancestor, descendant) pairs among the rows whose upper one is nearer the origin, chance 0.5, equal radii count
        half; each with "... interval" (Wilson, 95 %, as if pairs that share a node were independent) and "... pairs", their
        number. Radii are rounded to `SAME_RADIUS`. None where undefined: all points share a radius, no pairs, or one depth only.
    """
    tangents, nodes = _rows(tangents, taxonomy, nodes)
    radius = 2 * tangents.norm(dim=1).numpy()
    depth, step = taxonomy.depth[nodes], np.median(radius) or radius.mean() or 1
    radius = np.round(radius / (SAME_RADIUS * step))
    defined = np.ptp(radius) > 1
    result = {"spearman": float(spearmanr(radius, depth).statistic) if defined and np.ptp(depth) else None}
    for name, pairs in (("parent nearer", taxonomy.edges), ("ancestor nearer", taxonomy.closure)):
        pairs = _among(pairs, nodes, len(taxonomy))
        gain = np.sign(radius[pairs[:, 1]] - radius[pairs[:, 0]])
        result |= _share(name, (1 + gain) / 2 if defined else [], len(pairs))
    return result


def cone_membership(tangents: torch.Tensor, c: float, taxonomy: Taxonomy, nodes: Sequence[int] | None = None, *,
                    min_radius: float = 0.1, aperture_scale: float = 1.0, draws: int = 10, seed: int = 0) -> Shares:
    """Do nodes lie in the entailment cones (`lib.losses.entailment`) of what is above them, and others outside?

    Args:
        tangents, nodes: as for `generality`.  c, min_radius, aperture_scale: as for `cone_excess`, best those of the training.
        draws: nodes drawn for each edge as its control.  seed: of the draw.
    Returns:
        shares inside, each with "... interval" and "... pairs" as for `generality`: "edges", children in their parent's cone;
        "closure", all pairs; "unrelated", the control: nodes neither above nor below, in the cones of the same parents. Cones
        that hold everything score 1 in all three.
    """
    tangents, nodes = _rows(tangents, taxonomy, nodes)
    above = taxonomy.ancestors[np.ix_(nodes, nodes)]
    edges = _among(taxonomy.edges, nodes, len(taxonomy))
    rng = np.random.default_rng(seed)
    free = [(parent, np.flatnonzero(~(above[parent] | above[:, parent]))) for parent in edges[:, 0]]
    unrelated = np.array([(parent, node) for parent, others in free if len(others) for node in rng.choice(others, draws)],
                         dtype=np.int64).reshape(-1, 2)
    cone, result = {"min_radius": min_radius, "aperture_scale": aperture_scale}, {}
    for name, pairs in (("edges", edges), ("closure", _among(taxonomy.closure, nodes, len(taxonomy))), ("unrelated", unrelated)):
        pieces = np.array_split(pairs, 1 + len(pairs) // 2000)      # 2000 pairs of 512 numbers: 8 MB a copy
        inside = [cone_excess(tangents[piece[:, 0]], tangents[piece[:, 1]], c, **cone) <= 0 for piece in pieces]
        result |= _share(name, torch.cat(inside).numpy(), len(pairs))
    return result


def radius_statistics(tangents: torch.Tensor, c: float) -> dict[str, float | str]:
    """Radii in the unit that curvature sets, sqrt(c) d(0, x): whether the geometry is used at all.

    Returns: "median", "low" and "high" (5 % and 95 % of the points), "spread" (high - low) / median, and "reading": "spherical"
        where the spread is below `SAME_RADIUS` (distance is a function of the angle), else "Euclidean" where high is below
        `NEARLY_FLAT`, else "hyperbolic".
    """
    radius = 2 * c ** 0.5 * torch.as_tensor(tangents).detach().cpu().double().norm(dim=1).numpy()
    low, median, high = (float(q) for q in np.quantile(radius, [0.05, 0.5, 0.95]))
    spread = (high - low) / median if median else 0.0
    reading = "spherical" if spread <= SAME_RADIUS else "Euclidean" if high < NEARLY_FLAT else "hyperbolic"
    return {"median": median, "low": low, "high": high, "spread": spread, "reading": reading}


def gromov_delta(distances: np.ndarray, method: str | None = None, *, samples: int = 2_000_000, seed: int = 0) -> dict:
    """Gromov's four-point delta of a metric: 0 for a tree, large where many detours of equal length exist.

    Of four points the three sums of opposite distances are formed; delta is half the gap between the two largest, at its largest.

    Args:
        distances: (n, n), symmetric, not negative, 0 on the diagonal.
        method: "exact", all quadruples, n^4 / 12 steps (1 s for 150 points); "base point", all that hold the first point (Gromov
            products by a max-min product, n^3 steps), at least half the exact delta; "sampled", quadruples drawn at random, a
            lower bound. None: exact up to `EXACT` points, base point up to `BASE_POINT`, else sampled. Points whose distances are
            those of another one plus a constant (the leaves of a tree) change no delta and are dropped before.
        samples, seed: of "sampled".
    Returns:
        "delta" (unit of the distances), "relative" = 2 delta / diameter in [0, 1], "diameter", "method", "n", and "c" =
        (0.144 / relative)^2, the curvature that Khrulkov et al. (CVPR 2020) suggest for a ball, from delta by one base point
        there. None where undefined (a single place; a tree has no c).
    """
    d = np.asarray(distances, dtype=np.float64)
    if d.ndim != 2 or d.shape[0] != d.shape[1] or not len(d):
        raise ValueError(f"distances must be (n, n), got {d.shape}")
    diameter = float(d.max())
    if not np.isfinite(diameter) or d.min() < 0 or max(abs(d - d.T).max(), d.diagonal().max()) > 1e-3 * diameter:
        raise ValueError("distances must be finite, not negative, symmetric and 0 on the diagonal (to 1e-3 of the largest)")
    n, d = len(d), (d + d.T) / 2 * (1 - np.eye(len(d)))
    d = _without_leaves(d, 1e-9 * diameter)
    method = method or ("exact" if len(d) <= EXACT else "base point" if len(d) <= BASE_POINT else "sampled")
    ways = {"exact": _delta_exact, "base point": _delta_from_base, "sampled": lambda d: _delta_sampled(d, samples, seed)}
    if method not in ways:
        raise ValueError(f"method must be one of {', '.join(ways)} or None, got {method!r}")
    delta = float(ways[method](d))
    relative = 2 * delta / diameter if diameter else None
    return {"delta": delta, "relative": relative, "diameter": diameter, "method": method, "n": n,
            "c": (0.144 / relative) ** 2 if relative else None}


def delta_beside_references(distances: np.ndarray, dimension: int, *, samples: int = 2_000_000, seed: int = 0) -> dict[str, dict]:
    """`gromov_delta` of a set of embeddings, beside as many points at random, by one method for all.

    Points in many dimensions are nearly equidistant: delta is small without any tree, and only the difference says something.

    Args:
        distances: (n, n) between the embeddings.  dimension: of their space.
        samples, seed: as for `gromov_delta`; seed draws the points, too.
    Returns: "data", "sphere" (uniform on the unit sphere) and "gaussian" (standard normal), the latter by Euclidean distances.
    """
    n = len(distances)
    method = "exact" if n <= EXACT else "base point" if n <= BASE_POINT else "sampled"
    gaussian = np.random.default_rng(seed).normal(size=(n, dimension))
    sphere = gaussian / np.linalg.norm(gaussian, axis=1, keepdims=True)
    sets = {"data": distances, "sphere": squareform(pdist(sphere)), "gaussian": squareform(pdist(gaussian))}
    return {name: gromov_delta(d, method, samples=samples, seed=seed) for name, d in sets.items()}


def _upward(taxonomy: Taxonomy) -> csr_array:
    """Edges from child to parent, the virtual root as the last node."""
    root = len(taxonomy) - taxonomy.rooted
    tops = [] if taxonomy.rooted else [(root, top) for top in np.flatnonzero(taxonomy.depth == 1)]
    parent, child = np.concatenate([taxonomy.edges, np.array(tops, dtype=np.int64).reshape(-1, 2)]).T
    return csr_array((np.ones(len(child)), (child, parent)), shape=(root + 1, root + 1))


@lru_cache(maxsize=4)
def _class_tables(taxonomy: Taxonomy) -> dict[str, np.ndarray]:
    """name -> (C, C), [answer, truth]: the measures, "relation" (index), "ranked" (truths, best first), "rank" (its inverse)."""
    classes, root = np.array(taxonomy.classes, dtype=np.int64), len(taxonomy) - taxonomy.rooted
    above = taxonomy.ancestors[classes, :root]
    common, size = above.astype(np.float64) @ above.T, above.sum(axis=1, dtype=np.float64)
    depth = np.append(taxonomy.depth[:root], 0)
    deepest = np.argsort(-depth[:root], kind="stable")
    shared = (deepest[(row & above)[:, deepest].argmax(axis=1)] for row in above)
    lca = np.stack([np.where(some, nodes, root) for some, nodes in zip(common > 0, shared)])
    steps_up = shortest_path(_upward(taxonomy), directed=True, unweighted=True, indices=classes)
    tables = {"hP": common / size[:, None], "hR": common / size, "hF": 2 * common / (size[:, None] + size),
              "Jaccard": common / (size[:, None] + size - common),
              "tree-induced error": hops(taxonomy)[np.ix_(classes, classes)].astype(np.float64),
              "LCA depth": depth[lca].astype(np.float64), "LCA distance": np.take_along_axis(steps_up, lca, axis=1)}
    parents = np.zeros((len(classes), len(taxonomy)))
    for row, node in enumerate(classes):
        parents[row, list(taxonomy.parents[node])] = 1
    parents = parents[:, :root]
    under = above[:, classes]
    tables["relation"] = np.select([np.eye(len(classes), dtype=bool), under, under.T, parents @ parents.T > 0], range(4), 4)
    order = np.stack([np.lexsort((error, -f)) for error, f in zip(tables["tree-induced error"], tables["hF"])])
    return tables | {"ranked": order, "rank": np.argsort(order, axis=1)}


def _measured(tables: dict[str, np.ndarray], predicted: np.ndarray, clip: np.ndarray, label: np.ndarray) -> dict[str, np.ndarray]:
    """Tables looked up for pairs (clip, label), sorted by clip, each clip in at least one."""
    if not len(predicted):
        return {name: np.empty(0) for name in (*(f"{m} {way}" for m in MEASURES for way in ("best", "mean")), *RELATIONS)}
    answer, starts = predicted[clip], np.searchsorted(clip, np.arange(len(predicted)))
    best = tables["ranked"][predicted, np.minimum.reduceat(tables["rank"][answer, label], starts)]
    sizes, result = np.diff(np.append(starts, len(label))), {}
    for name in MEASURES:
        result[f"{name} best"] = tables[name][predicted, best]
        result[f"{name} mean"] = np.add.reduceat(tables[name][answer, label], starts) / sizes
    relation = np.minimum.reduceat(tables["relation"][answer, label], starts)
    return result | {name: (relation == i).astype(np.float64) for i, name in enumerate(RELATIONS)}


def _rows(tangents: torch.Tensor, taxonomy: Taxonomy, nodes: Sequence[int] | None) -> tuple[torch.Tensor, np.ndarray]:
    """float64 on the CPU, and the node of each row."""
    tangents = torch.as_tensor(tangents).detach().cpu().double()
    nodes = np.arange(len(taxonomy)) if nodes is None else np.asarray(nodes, dtype=np.int64)
    if tangents.ndim != 2 or tangents.shape[:1] != nodes.shape or len(np.unique(nodes)) < len(nodes):
        raise ValueError(f"tangents {tuple(tangents.shape)} must have one row for each of {len(nodes)} different nodes; `nodes` "
                         "says which the rows are")
    finite = tangents.isfinite().all(dim=1)
    if not finite.all():
        raise ValueError(f"the tangent of node {taxonomy.nodes[nodes[int(finite.int().argmin())]]!r} is not finite")
    return tangents, nodes


def _among(pairs: np.ndarray, nodes: np.ndarray, count: int) -> np.ndarray:
    """Pairs of nodes as pairs of rows, those without a row left out."""
    row = np.full(count, -1)
    row[nodes] = np.arange(len(nodes))
    pairs = row[pairs]
    return pairs[(pairs >= 0).all(axis=1)]


def _share(name: str, hits: np.ndarray, pairs: int) -> Shares:
    share, interval = (float(np.mean(hits)), wilson_interval(np.sum(hits), len(hits))) if len(hits) else (None, None)
    return {name: share, f"{name} interval": interval, f"{name} pairs": pairs}


def _without_leaves(d: np.ndarray, tolerance: float) -> np.ndarray:
    """Drop v where d(v, x) = d(v, u) + d(u, x) for some u and all x: its three sums are those of u plus a constant."""
    alive, dropped = np.ones(len(d), dtype=bool), True
    while dropped:
        dropped = False
        for v in np.flatnonzero(alive):
            others = np.flatnonzero(alive & (np.arange(len(d)) != v))
            if len(others):
                u = others[d[v, others].argmin()]
                if (abs(d[v, others] - d[v, u] - d[u, others]) <= tolerance).all():
                    alive[v], dropped = False, True
    return d[np.ix_(alive, alive)]


def _gap(first: np.ndarray, second: np.ndarray, third: np.ndarray) -> float:
    """Largest difference between the largest and the second of three arrays."""
    upper, lower = np.maximum(second, third), np.minimum(second, third)
    return float((np.maximum(first, upper) - np.maximum(np.minimum(first, upper), lower)).max(initial=0))


def _delta_exact(d: np.ndarray) -> float:
    largest = 0.0
    for j in range(1, len(d) - 2):
        rest = d[j + 1:, j + 1:]
        for i in range(j):
            crossed = d[i, j + 1:, None] + d[j, j + 1:]
            largest = max(largest, _gap(d[i, j] + rest, crossed, crossed.T))
    return largest / 2


def _delta_from_base(d: np.ndarray) -> float:
    product = ((d[0][:, None] + d[0] - d) / 2).astype(np.float32)
    return max(float((np.minimum(row, product).max(axis=1) - row).max()) for row in product)


def _delta_sampled(d: np.ndarray, samples: int, seed: int) -> float:
    rng, largest = np.random.default_rng(seed), 0.0
    for begin in range(0, samples, 200_000):
        i, j, k, m = rng.integers(len(d), size=(4, min(200_000, samples - begin)))
        largest = max(largest, _gap(d[i, j] + d[k, m], d[i, k] + d[j, m], d[i, m] + d[j, k]))
    return largest / 2
