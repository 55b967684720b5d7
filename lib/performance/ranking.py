"""Metrics of rankings: ours against a loop over queries, and against torchmetrics; growth with queries and with the gallery."""
from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lib.evaluation.retrieval import query_metrics, ranked_query_metrics, retrieval_metrics
from lib.evaluation.tagging import tagging_metrics
from lib.performance.measure import Comparison, Growth, compare, growth, need, slope

QUERIES, ITEMS = 5225, 1045     # captions and clips of Clotho's evaluation set
ASKED = 15


def loop(similarity: Tensor, relevant: Tensor, ks: Sequence[int] = (1, 5, 10), map_at: Sequence[int] = (10, 16)) -> dict[str, np.ndarray]:
    """What evaluations of the challenge do: sort the gallery for one query after the other and walk down its list.

    Args: similarity: (Q, N).  relevant: bool (Q, N).  Returns: name -> (Q,), as `lib.evaluation.retrieval.query_metrics`.
    """
    rows = []
    for scores, hits in zip(similarity, relevant):
        hits = hits[torch.argsort(scores, descending=True)].numpy()
        places = np.flatnonzero(hits) + 1
        row = {f"R@{k}": float(hits[:k].any()) for k in ks}
        for k in map_at:
            row[f"mAP@{k}"] = sum(found / rank for found, rank in enumerate(places, 1) if rank <= k) / len(places)
        rows.append(row | {"rank": places[0]})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def ranking(queries: int = QUERIES, items: int = ITEMS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Similarities (Q, N) without ties, which a loop would break by chance, at mAP@10 of a trained model; and what is relevant, five
    queries an item."""
    order = torch.rand(queries, items, generator=torch.Generator().manual_seed(seed))
    clip = torch.arange(queries) // 5 % items
    order[torch.arange(queries), clip] += 0.3
    return order.argsort(dim=1).argsort(dim=1) / items, clip[:, None] == torch.arange(items)


def compared(queries: int = QUERIES, items: int = ITEMS, repetitions: int = 5, seed: int = 0) -> list[Comparison]:
    """Against the loop: AssertionError unless all numbers agree to 1e-12."""
    given = ranking(queries, items, seed)
    found, expected = query_metrics(*given), loop(*given)
    for name in found.keys() | expected.keys():
        np.testing.assert_allclose(found[name], expected[name], atol=1e-12, rtol=0, err_msg=name)
    return [compare(f"metrics of {queries:,} x {items:,}", "a loop over queries", lambda: query_metrics(*given), lambda: loop(*given), repetitions,
                    asked=ASKED, clocks=("wall",), note=f"same numbers to 1e-12, mAP@10 {found['mAP@10'].mean():.3f}")]


def against_torchmetrics(queries: int = 1000, items: int = ITEMS, clips: int = 2000, classes: int = 50, repetitions: int = 3,
                         seed: int = 0) -> list[Comparison]:
    """R@10 and mAP@10 of retrieval, and mAP over classes of tagging. AssertionError where they differ by more than 1e-5.

    torchmetrics' RetrievalMAP@k divides by the relevant items within k, ours by all of them: with one relevant item a query they agree.
    """
    need("torchmetrics", "torchmetrics")
    from torchmetrics.functional.classification import multilabel_average_precision
    from torchmetrics.retrieval import RetrievalMAP, RetrievalRecall

    similarity, relevant = ranking(queries, items, seed)
    places = torch.arange(queries)[:, None].expand(-1, items)

    def theirs():
        numbers = []
        for made in (RetrievalRecall(top_k=10), RetrievalMAP(top_k=10)):
            made.update(similarity.flatten(), relevant.flatten(), indexes=places.flatten())
            numbers.append(float(made.compute()))
        return dict(zip(("R@10", "mAP@10"), numbers))

    own, other = retrieval_metrics(similarity, relevant), theirs()
    off = max(abs(own[name] - other[name]) for name in other)
    assert off <= 1e-5, f"retrieval metrics differ from torchmetrics' by {off:.1e}: {own} and {other}"
    found = [compare(f"R@10 and mAP@10 of {queries:,} x {items:,}", "torchmetrics", lambda: retrieval_metrics(similarity, relevant), theirs,
                     repetitions, note=f"numbers differ by {off:.1e}; ours are all of R@1 to mAP@16")]
    scores, targets = tagged(clips, classes, seed)

    def theirs_of_tags():
        return multilabel_average_precision(scores, targets.long(), num_labels=classes, average="macro", thresholds=None)

    off = abs(tagging_metrics(scores, targets)["mAP macro"] - float(theirs_of_tags()))
    assert off <= 1e-5, f"mAP macro differs from torchmetrics' by {off:.1e}"
    return found + [compare(f"tagging of {clips:,} clips, {classes} classes", "torchmetrics", lambda: tagging_metrics(scores, targets), theirs_of_tags,
                            repetitions, note=f"mAP macro differs by {off:.1e}; ours are all tagging metrics, torchmetrics' this one")]


def tagged(clips: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores (N, C) without ties and true classes (N, C), two a clip."""
    generator = torch.Generator().manual_seed(seed)
    first, step = (torch.randint(low, classes, (clips,), generator=generator) for low in (0, 1))
    targets = torch.zeros(clips, classes, dtype=torch.bool)
    for true in (first, (first + step) % classes):
        targets[torch.arange(clips), true] = True
    order = (torch.rand(clips, classes, generator=generator) + 0.3 * targets).flatten().argsort().argsort()
    return order.view(clips, classes) / order.numel(), targets         # within 0 .. 1: torchmetrics would squash others


def grown(queries=(5000, 10_000, 20_000, 40_000), items=(40_000, 80_000, 160_000, 320_000), clips=(10_000, 20_000, 40_000, 80_000),
          repetitions: int = 3, d: int = 128) -> list[Growth]:
    """Metrics over queries (beside the given matrix they take one block of comparisons and a few numbers a query: memory is no power law),
    ranking over the items of a gallery, whose memory stays what it is, and tagging over clips, which sorts the scores of a class: n log n."""
    generator = torch.Generator().manual_seed(0)

    def of_matrix(count):
        scores, relevant = torch.rand(count, ITEMS, generator=generator), torch.arange(count) % ITEMS
        return lambda: query_metrics(scores, relevant)

    vectors = torch.randn(max(items), d, generator=generator)
    asked, wanted = torch.randn(512, d, generator=generator), torch.arange(512) % min(items)

    def of_tags(count):
        given = tagged(count, 50)
        return lambda: tagging_metrics(*given)

    return [growth(f"retrieval metrics, {ITEMS:,} items", "queries", of_matrix, queries, repetitions, memory_order=None),
            growth("ranking without a matrix, 512 queries", "items", lambda count: lambda: ranked_query_metrics(asked, vectors[:count], wanted),
                   items, repetitions, memory_order=0.0),
            growth("tagging metrics, 50 classes", "clips", of_tags, clips, repetitions,
                   time_order=slope(clips, [count * math.log(count) for count in clips]))]
