"""Retrieval metrics against loops, simulation, torchmetrics and closed forms."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torchmetrics.functional.retrieval import retrieval_average_precision

from lib.evaluation.retrieval import chance_metrics, query_metrics, ranked_retrieval, retrieval_metrics, tied_metrics


def by_hand(similarity, relevant, ks, map_at):
    """One query at a time with a sort in which irrelevant items win ties."""
    rows = []
    for scores, hits in zip(similarity.tolist(), relevant.tolist()):
        order = sorted(range(len(scores)), key=lambda i: (-scores[i], hits[i]))
        places = [rank for rank, item in enumerate(order, 1) if hits[item]]
        row = {f"R@{k}": float(places[0] <= k) for k in ks}
        row |= {f"mAP@{k}": sum(n / r for n, r in enumerate(places, 1) if r <= k) / len(places) for k in map_at}
        rows.append(row | {"rank": places[0]})
    result = {name: np.mean([r[name] for r in rows]) for name in rows[0] if name != "rank"}
    return result | {"median_rank": np.median([r["rank"] for r in rows])}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(2, 25), st.booleans())
def test_against_sorting(seed, queries, items, coarse):
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.randn(queries, items, generator=generator)
    similarity = (similarity * 2).round() if coarse else similarity       # coarse scores: many ties
    relevant = torch.rand(queries, items, generator=generator) < 0.2
    relevant[torch.arange(queries), torch.randint(items, (queries,), generator=generator)] = True
    got, expected = retrieval_metrics(similarity, relevant), by_hand(similarity, relevant, (1, 5, 10), (10, 16))
    assert got.keys() == expected.keys()
    for name in got:
        assert got[name] == pytest.approx(expected[name], abs=1e-12), name


def test_average_precision_against_torchmetrics():
    generator = torch.Generator().manual_seed(3)
    similarity, relevant = torch.rand(20, 30, generator=generator), torch.rand(20, 30, generator=generator) < 0.2
    relevant[:, 0] = True
    mine = query_metrics(similarity, relevant, map_at=(30,))["mAP@30"]
    theirs = [retrieval_average_precision(s, r).item() for s, r in zip(similarity, relevant)]
    np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_ties_count_against_the_model():
    constant = retrieval_metrics(torch.zeros(4, 50), torch.eye(4, 50, dtype=torch.bool))
    assert constant["R@10"] == 0 and constant["mAP@16"] == 0 and constant["median_rank"] == 50


def test_monotone_transform_and_chunks_change_nothing():
    generator = torch.Generator().manual_seed(0)
    queries, items = torch.randn(37, 8, generator=generator), torch.randn(50, 8, generator=generator)
    relevant = torch.rand(37, 50, generator=generator) < 0.1
    relevant[:, 7] = True
    full = retrieval_metrics(queries @ items.T, relevant)
    assert retrieval_metrics((queries @ items.T).exp(), relevant) == full
    assert ranked_retrieval(queries, items, relevant, chunk=10) == pytest.approx(full, abs=1e-12)


def test_chance_against_simulation_and_closed_form():
    one = torch.eye(10, 200, dtype=torch.bool)
    chance = chance_metrics(one)
    assert chance["R@10"] == pytest.approx(0.05) and chance["mAP@10"] == pytest.approx(sum(1 / r for r in range(1, 11)) / 200)
    several = torch.zeros(3, 12, dtype=torch.bool)
    several[0, :1] = several[1, :4] = several[2, :7] = True
    generator = torch.Generator().manual_seed(0)
    runs = [retrieval_metrics(torch.rand(3, 12, generator=generator), several, (1, 3), (5,)) for _ in range(4000)]
    for name, value in chance_metrics(several, (1, 3), (5,)).items():
        assert np.mean([r[name] for r in runs]) == pytest.approx(value, abs=0.02), name


def test_tied_ceiling_against_simulation():
    generator = torch.Generator().manual_seed(1)
    candidates = torch.tensor([1, 3, 14])
    runs = []
    for _ in range(4000):
        scores = torch.rand(3, 40, generator=generator)
        for row, count in enumerate(candidates):
            scores[row, :count] += 2                      # the fitting items come first, in random order
        runs.append(retrieval_metrics(scores, torch.eye(40, dtype=torch.bool)[[0, 0, 0]]))
    for name, value in tied_metrics(candidates).items():
        assert np.mean([r[name] for r in runs]) == pytest.approx(value, abs=0.02), name


@pytest.mark.parametrize("similarity, relevant, words", [
    (torch.zeros(2, 3), torch.ones(3, 2, dtype=torch.bool), "one shape"),
    (torch.zeros(2, 3), torch.tensor([[True, False, False], [False] * 3]), "query 1 has no relevant"),
    (torch.tensor([[0.0, float("nan")]]), torch.ones(1, 2, dtype=torch.bool), "NaN")])
def test_refusals(similarity, relevant, words):
    with pytest.raises(ValueError, match=words):
        retrieval_metrics(similarity, relevant)
