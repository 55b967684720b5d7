"""Retrieval metrics: recall, average precision and ranks, with ties counted against the model.

A query is a row, an item of the gallery a column. The rank of a relevant item is one plus the number of relevant items placed
before it plus the number of irrelevant items that score at least as high. AP@k = (1/|R|) sum over relevant items of rank r <= k
of (relevant items up to r) / r, normalised by all |R| (DCASE 2025 Task 6).
"""
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def retrieval_metrics(similarity: Tensor, relevant: Tensor, ks=(1, 5, 10), map_at=(10, 16)) -> dict[str, float]:
    """Recall and mean average precision of a full similarity matrix.

    Args:
        similarity: Tensor (Q, N), higher is more similar.
        relevant: Tensor (Q, N) bool, at least one per row.
    Returns:
        {"R@k": share of queries with any relevant item in the top k, "mAP@k": ..., "median_rank": rank of the best relevant item}.
    Raises:
        ValueError: shapes differ, a row without relevant item, or NaN scores.
    """
    per_query = query_metrics(similarity, relevant, ks, map_at)
    return summarise(per_query)


def query_metrics(similarity: Tensor, relevant: Tensor, ks=(1, 5, 10), map_at=(10, 16)) -> dict[str, np.ndarray]:
    """The same numbers for every query, for intervals and for the best and worst queries.

    Args: as `retrieval_metrics`.
    Returns: {"R@k": (Q,) of 0/1, "mAP@k": (Q,) average precision, "rank": (Q,) rank of the best relevant item, from 1}.
    """
    if similarity.shape != relevant.shape or similarity.ndim != 2:
        raise ValueError(f"similarity {tuple(similarity.shape)} and relevant {tuple(relevant.shape)} must have one shape (Q, N)")
    if torch.isnan(similarity).any():
        raise ValueError(f"similarity has NaN in {int(torch.isnan(similarity).any(dim=1).sum())} rows; check the embeddings")
    counts = relevant.sum(dim=1)
    if (counts == 0).any():
        raise ValueError(f"query {int((counts == 0).nonzero()[0])} has no relevant item; leave such queries out and report how many")
    ranks = relevant_ranks(similarity, relevant, counts)                     # (Q, most) ascending, inf where a row has fewer
    order = torch.arange(1, ranks.shape[1] + 1, dtype=torch.float64)
    result = {f"R@{k}": (ranks[:, 0] <= k).double().numpy() for k in ks}
    for k in map_at:
        precision = torch.where(ranks <= k, order / ranks, 0.0)
        result[f"mAP@{k}"] = (precision.sum(dim=1) / counts.cpu()).numpy()
    return result | {"rank": ranks[:, 0].numpy()}


def relevant_ranks(similarity: Tensor, relevant: Tensor, counts: Tensor) -> Tensor:
    """Ranks of each query's relevant items, ties against the model.

    Args: similarity (Q, N); relevant (Q, N) bool; counts (Q,) = relevant.sum(1).
    Returns: Tensor (Q, max count) float64 on the CPU, ascending; inf beyond a query's count.
    """
    most = int(counts.max())
    scores = torch.where(relevant, similarity, -torch.inf).topk(most, dim=1).values       # relevant scores, best first
    present = torch.arange(most, device=similarity.device) < counts[:, None]
    irrelevant = torch.where(relevant, -torch.inf, similarity)
    before = torch.stack([(irrelevant >= scores[:, i:i + 1]).sum(dim=1) for i in range(most)], dim=1)
    position = torch.arange(1, most + 1, device=similarity.device)
    return torch.where(present, (before + position).double(), torch.inf).cpu()


def summarise(per_query: dict[str, np.ndarray]) -> dict[str, float]:
    """Means over queries of what `query_metrics` returns (arrays (Q,)), and the median rank."""
    means = {name: float(values.mean()) for name, values in per_query.items() if name != "rank"}
    return means | {"median_rank": float(np.median(per_query["rank"]))}


def ranked_retrieval(query_embeddings: Tensor, item_embeddings: Tensor, relevant: Tensor, ks=(1, 5, 10), map_at=(10, 16),
                     chunk: int = 1024) -> dict[str, float]:
    """`retrieval_metrics` of the inner products, a chunk of queries at a time.

    Args:
        query_embeddings: Tensor (Q, D).  item_embeddings: Tensor (N, D).  relevant: Tensor (Q, N) bool.
        chunk: queries at a time; memory is chunk x N scores.
    Returns: as `retrieval_metrics`.
    """
    parts = [query_metrics(query_embeddings[i:i + chunk].float() @ item_embeddings.float().T, relevant[i:i + chunk], ks, map_at)
             for i in range(0, len(query_embeddings), chunk)]
    return summarise({name: np.concatenate([p[name] for p in parts]) for name in parts[0]})


def chance_metrics(relevant: Tensor, ks=(1, 5, 10), map_at=(10, 16)) -> dict[str, float]:
    """Expected metrics of a uniformly random ranking, in closed form.

    Args: relevant: Tensor (Q, N) bool.
    Returns: the names of `retrieval_metrics` without median_rank. With one relevant item of N: R@k = k/N, mAP@k = H_k/N.
    """
    total = relevant.shape[1]
    sizes = relevant.sum(dim=1).double().numpy()
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
