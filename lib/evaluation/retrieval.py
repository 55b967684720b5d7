"""Retrieval metrics: recall, average precision and ranks, with ties counted against the model.

A query is a row, an item of the gallery a column: captions and clips for text-to-audio, clips and captions for audio-to-text. The
rank of a relevant item is one plus the number of relevant items placed before it plus the number of irrelevant items that score
at least as high. AP@k = (1/|R|) sum over relevant items of rank r <= k of (relevant items up to r) / r, normalised by all |R|
(DCASE 2025 Task 6).

Which items are `relevant` is told in one of three ways: a bool Tensor (Q, N); an integer Tensor (Q,), each query's only relevant
item; or a list of Q sequences (or integer tensors) of items.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lib.evaluation.index import ITEMS, QUERIES, score_blocks

Relevance = Tensor | np.ndarray | Sequence
_SORTED_FROM = 9     # thresholds a row from which sorting its scores beats comparing them with each
_AT_A_TIME = 1 << 20  # scores compared at a time: the comparison's result stays in the processor's cache


def retrieval_metrics(similarity: Tensor, relevant: Relevance, ks=(1, 5, 10), map_at=(10, 16)) -> dict[str, float]:
    """Recall and mean average precision of a full similarity matrix.

    Args:
        similarity: Tensor (Q, N), higher is more similar.
        relevant: see the module; at least one item a query.
    Returns:
        {"R@k": share of queries with any relevant item in the top k, "mAP@k": ..., "median_rank": of the best relevant item}.
    Raises:
        ValueError: shapes differ, a query without relevant item, or NaN scores.
    """
    return summarise(query_metrics(similarity, relevant, ks, map_at))


def query_metrics(similarity: Tensor, relevant: Relevance, ks=(1, 5, 10), map_at=(10, 16)) -> dict[str, np.ndarray]:
    """The same numbers for every query, for intervals and for the best and worst queries.

    Args: as `retrieval_metrics`.
    Returns: {"R@k": (Q,) of 0/1, "mAP@k": (Q,) average precision, "rank": (Q,) rank of the best relevant item, from 1}.
    """
    if similarity.ndim != 2:
        raise ValueError(f"similarity {tuple(similarity.shape)} must be (Q, N)")
    items, counts = relevant_items(relevant, *similarity.shape)
    scores = similarity.detach().cpu()
    scores = (scores if scores.dtype in (torch.float32, torch.float64) else scores.double()).numpy()
    if np.isnan(scores.min()):
        raise ValueError(f"similarity has NaN in {int(np.isnan(scores).any(axis=1).sum())} rows; check the embeddings")
    own = np.where(items < 0, -np.inf, np.take_along_axis(scores, items, axis=1)).astype(scores.dtype)
    return _metrics(own, at_least(scores, own), counts, ks, map_at)


def ranked_retrieval(query_embeddings: Tensor, item_embeddings: Tensor | np.ndarray, relevant: Relevance, ks=(1, 5, 10),
                     map_at=(10, 16)) -> dict[str, float]:
    """`retrieval_metrics` of the inner products of embeddings, for galleries whose similarity matrix does not fit into memory.

    Args: as `ranked_query_metrics`.  Returns: as `retrieval_metrics`.
    """
    return summarise(ranked_query_metrics(query_embeddings, item_embeddings, relevant, ks, map_at))


def ranked_query_metrics(query_embeddings: Tensor, item_embeddings: Tensor | np.ndarray, relevant: Relevance, ks=(1, 5, 10),
                         map_at=(10, 16)) -> dict[str, np.ndarray]:
    """`query_metrics` of the inner products of embeddings, which are computed and ranked in blocks and never kept.

    The ranks are those of the full matrix to the last: each relevant item competes with the score that it has in the very product
    that its rivals' scores come from.

    Args:
        query_embeddings: (Q, D).  item_embeddings: (N, D), possibly memory-mapped or of half precision, see `index.score_blocks`.
        relevant: see the module. (Q, N) bool takes as much memory as a quarter of the matrix: for a large gallery tell the items.
    Returns: as `query_metrics`.
    Raises: ValueError: as `query_metrics`.
    """
    items, counts = relevant_items(relevant, len(query_embeddings), len(item_embeddings))
    own = _expected_scores(query_embeddings, item_embeddings, items)
    for _ in range(3):
        rivals, seen = np.zeros(items.shape, np.int64), np.full_like(own, -np.inf)
        for asked, rows, scores in score_blocks(query_embeddings, item_embeddings):
            rivals[asked] += at_least(scores, own[asked])
            query, place = np.nonzero((items[asked] >= rows.start) & (items[asked] < rows.stop))
            seen[asked][query, place] = scores[query, items[asked][query, place] - rows.start]
        if np.array_equal(own, seen):
            return _metrics(own, rivals, counts, ks, map_at)
        own = seen           # this machine's sums depend on an item's place after all: once more, with the scores at those places
    raise RuntimeError("one matrix product gives other numbers each time it is computed; rank on the CPU")


def _expected_scores(queries: Tensor, gallery: Tensor | np.ndarray, items: np.ndarray) -> np.ndarray:
    """What each query's own `items` (Q, R) score in products such as all the others are; -inf where there is none."""
    own = np.full(items.shape, -np.inf, np.float32)
    for start in range(0, len(items), QUERIES):
        mine = items[start:start + QUERIES]
        wanted = np.unique(mine[mine >= 0])
        for first in range(0, len(wanted), ITEMS):
            some = wanted[first:first + ITEMS]
            (_, _, scores), = score_blocks(queries[start:start + QUERIES], gallery[some])             # no more than one block
            query, place = np.nonzero((mine >= some[0]) & (mine <= some[-1]))
            own[start:start + QUERIES][query, place] = scores[query, np.searchsorted(some, mine[query, place])]
    return own


def relevant_items(relevant: Relevance, queries: int, items: int) -> tuple[np.ndarray, np.ndarray]:
    """Each query's relevant items as a table.

    Args: relevant: see the module.  queries: Q.  items: N.
    Returns: (Q, R) int64, ascending, -1 after a query's last item; their counts (Q,) >= 1. R is the largest count.
    Raises: ValueError: no queries or items, another number of queries, an item that is not there, a query without any.
    """
    if not queries or not items:
        raise ValueError(f"{queries} queries and {items} items: expected at least one of each")
    flat = _flat(relevant, queries, items)
    counts = np.bincount(flat // items, minlength=queries)
    if (counts == 0).any():
        raise ValueError(f"query {int(np.argmin(counts))} has no relevant item; leave such queries out and report how many")
    table = np.full((queries, counts.max()), -1)
    table[np.arange(table.shape[1]) < counts[:, None]] = flat % items
    return table, counts


def _flat(relevant: Relevance, queries: int, items: int) -> np.ndarray:
    """Positions query * N + item, ascending and each once."""
    if isinstance(relevant, Tensor | np.ndarray) and relevant.ndim == 2:
        if tuple(relevant.shape) != (queries, items) or relevant.dtype not in (torch.bool, np.bool_):
            raise ValueError(f"relevant {relevant.dtype} {tuple(relevant.shape)} and similarity {(queries, items)} must have one "
                             "shape (Q, N), and relevant must be bool")
        return np.flatnonzero(relevant.cpu().numpy() if isinstance(relevant, Tensor) else relevant)
    if len(relevant) != queries:
        raise ValueError(f"relevant tells of {len(relevant)} queries; there are {queries}")
    if isinstance(relevant, Tensor | np.ndarray):
        query, item = np.arange(queries), np.asarray(relevant.cpu() if isinstance(relevant, Tensor) else relevant, dtype=np.int64)
    else:
        lists = [np.asarray(row.cpu() if isinstance(row, Tensor) else row, dtype=np.int64) for row in relevant]
        query, item = np.repeat(np.arange(queries), [len(row) for row in lists]), np.concatenate(lists)
    if ((item < 0) | (item >= items)).any():
        wrong = int(np.argmax((item < 0) | (item >= items)))
        raise ValueError(f"relevant names item {item[wrong]} for query {query[wrong]}; the items are 0 to {items - 1}")
    return np.unique(query * items + item)


def transposed(relevant: Relevance, queries: int, items: int) -> list[np.ndarray]:
    """Relevance the other way round, for audio-to-text: of each item the queries, ascending, that it is relevant to; maybe none.

    Args: relevant: see the module.  queries: Q.  items: N.
    Returns: N arrays of int64.
    """
    query, item = np.divmod(_flat(relevant, queries, items), items)
    order = np.argsort(item, kind="stable")
    return np.split(query[order], np.cumsum(np.bincount(item, minlength=items))[:-1])


def at_least(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How many scores of a row reach each of the row's thresholds.

    Args: scores (Q, n), without NaN.  thresholds (Q, R).
    Returns: (Q, R) int64.
    """
    counts = np.empty(thresholds.shape, np.int64)
    if thresholds.shape[1] >= _SORTED_FROM:
        for i, (row, limits) in enumerate(zip(scores, thresholds)):
            counts[i] = len(row) - np.searchsorted(np.sort(row), limits)
        return counts
    step = max(1, _AT_A_TIME // max(1, scores.shape[1]))
    for start in range(0, len(scores), step):
        rows, wanted = scores[start:start + step], thresholds[start:start + step]
        for i in range(wanted.shape[1]):
            counts[start:start + step, i] = np.count_nonzero(rows >= wanted[:, i:i + 1], axis=1)
    return counts


def _metrics(own: np.ndarray, reaching: np.ndarray, counts: np.ndarray, ks, map_at) -> dict[str, np.ndarray]:
    """Metrics from the relevant items' scores (Q, R; -inf where a query has fewer) and how many of all scores reach each."""
    relevant = np.minimum(at_least(own, own), counts[:, None])      # -inf, which all scores reach, is also where there is no item
    order = np.arange(1, own.shape[1] + 1)
    ranks = np.where(order <= counts[:, None], np.sort(reaching - relevant, axis=1) + order, np.inf)
    result = {f"R@{k}": (ranks[:, 0] <= k).astype(float) for k in ks}
    result |= {f"mAP@{k}": np.where(ranks <= k, order / ranks, 0.0).sum(axis=1) / counts for k in map_at}
    return result | {"rank": ranks[:, 0]}


def summarise(per_query: dict[str, np.ndarray]) -> dict[str, float]:
    """Means over queries of what `query_metrics` returns (arrays (Q,)), and the median rank."""
    means = {name: float(values.mean()) for name, values in per_query.items() if name != "rank"}
    return means | {"median_rank": float(np.median(per_query["rank"]))}


def chance_metrics(relevant: Relevance, ks=(1, 5, 10), map_at=(10, 16), items: int | None = None) -> dict[str, float]:
    """Expected metrics of a uniformly random ranking, in closed form.

    Args: relevant: see the module.  items: N, where relevant does not tell it.
    Returns: the names of `retrieval_metrics` without median_rank. With one relevant item of N: R@k = k/N, mAP@k = H_k/N.
    """
    total = relevant.shape[1] if items is None else items
    sizes = relevant_items(relevant, len(relevant), total)[1].astype(float)
    result = {}
    for k in ks:
        misses = np.ones_like(sizes)
        for drawn in range(min(k, total)):          # hypergeometric: no relevant item among the first k
            misses *= np.clip(total - sizes - drawn, 0, None) / (total - drawn)
        result[f"R@{k}"] = float((1 - misses).mean())
    for k in map_at:
        # an item sits at rank r with probability 1/N; given that, 1 + (r-1)(R-1)/(N-1) relevant items are expected up to r
        expected = sum((1 + (r - 1) * (sizes - 1) / max(total - 1, 1)) / r for r in range(1, min(k, total) + 1)) / total
        result[f"mAP@{k}"] = float(np.mean(expected))
    return result


def tied_metrics(candidates: Tensor, ks=(1, 5, 10), map_at=(10, 16)) -> dict[str, float]:
    """Expected metrics of a ranker that knows which items fit a query and cannot tell these apart: a ceiling.

    Args: candidates: Tensor (Q,) number of items that tie for the first place, the one relevant item among them (>= 1).
    Returns: the names of `retrieval_metrics` without median_rank: R@k = min(1, k/t), mAP@k = H_min(k,t) / t.
    """
    tied = candidates.double().numpy()
    result = {f"R@{k}": float(np.minimum(1.0, k / tied).mean()) for k in ks}
    for k in map_at:
        harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, k + 1))])
        result[f"mAP@{k}"] = float((harmonic[np.minimum(k, tied).astype(int)] / tied).mean())
    return result
