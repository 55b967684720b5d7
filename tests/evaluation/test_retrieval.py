"""Retrieval metrics against loops, simulation, torchmetrics, scikit-learn and closed forms."""
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.metrics import average_precision_score, top_k_accuracy_score
from torchmetrics.functional.retrieval import retrieval_average_precision

from lib.evaluation import index
from lib.evaluation.retrieval import (at_least, chance_metrics, query_metrics, ranked_query_metrics, ranked_retrieval,
                                      retrieval_metrics, tied_metrics, transposed)

sizes = st.tuples(st.integers(0, 10_000), st.integers(1, 8), st.integers(2, 25))


def by_hand(similarity, relevant, ks=(1, 5, 10), map_at=(10, 16)):
    """One query at a time with a sort in which irrelevant items win ties."""
    rows = []
    for scores, hits in zip(similarity.tolist(), relevant.tolist()):
        order = sorted(range(len(scores)), key=lambda i: (-scores[i], hits[i]))
        places = [rank for rank, item in enumerate(order, 1) if hits[item]]
        row = {f"R@{k}": float(places[0] <= k) for k in ks}
        row |= {f"mAP@{k}": sum(n / r for n, r in enumerate(places, 1) if r <= k) / len(places) for k in map_at}
        rows.append(row | {"rank": places[0]})
    return {name: np.array([r[name] for r in rows]) for name in rows[0]}


def some_relevant(queries, items, generator, share=0.2):
    relevant = torch.rand(queries, items, generator=generator) < share
    relevant[torch.arange(queries), torch.randint(items, (queries,), generator=generator)] = True
    return relevant


def same(got, expected, atol=0.0):
    assert got.keys() == expected.keys()
    for name in got:
        np.testing.assert_allclose(got[name], expected[name], atol=atol, rtol=0, err_msg=name)


@settings(max_examples=100, deadline=None)
@given(sizes, st.sampled_from(["fine", "coarse", "constant", "-inf"]), st.sampled_from([0.1, 0.3, 0.9]),
       st.sampled_from([torch.float16, torch.float32, torch.float64]))
def test_against_sorting(size, kind, share, dtype):
    seed, queries, items = size
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.randn(queries, items, generator=generator).to(dtype)
    if kind == "coarse":
        similarity = (similarity * 2).round()              # many ties
    elif kind == "constant":
        similarity = torch.zeros_like(similarity)
    elif kind == "-inf":
        similarity[similarity < 0] = -torch.inf
    relevant = some_relevant(queries, items, generator, share)
    expected = by_hand(similarity.double(), relevant)
    same(query_metrics(similarity, relevant), expected, 1e-12)
    same(query_metrics(similarity, [row.nonzero()[:, 0] for row in relevant]), expected, 1e-12)
    means = {name: values.mean() for name, values in expected.items()}
    means["median_rank"] = np.median(expected["rank"])
    del means["rank"]
    assert retrieval_metrics(similarity, relevant) == pytest.approx(means, abs=1e-12)


def test_average_precision_worked_out_by_hand():
    # 30 files, 3 of them relevant, at ranks 2, 5 and 20. Up to rank 16: 1/2 at rank 2 and 2/5 at rank 5; the one at rank 20 adds
    # nothing but counts in |R|. AP@16 = (1/2 + 2/5) / 3 = 0.3; up to 20: (1/2 + 2/5 + 3/20) / 3 = 0.35
    similarity = -torch.arange(1.0, 31.0)[None]
    got = retrieval_metrics(similarity, [[1, 4, 19]], ks=(1, 2), map_at=(1, 16, 20))
    assert got == pytest.approx({"R@1": 0, "R@2": 1, "mAP@1": 0, "mAP@16": 0.3, "mAP@20": 0.35, "median_rank": 2}, abs=1e-15)


def test_audio_to_text_worked_out_by_hand():
    # 2 clips of 2 captions each. Clip 0's are 2nd and 4th of 4: AP@10 = (1/2 + 2/4) / 2; clip 1's 1st and 3rd: (1 + 2/3) / 2
    captions_of = torch.tensor([0, 0, 1, 1])                       # text-to-audio: each caption's clip
    back = transposed(captions_of, queries=4, items=2)
    assert [row.tolist() for row in back] == [[0, 1], [2, 3]]
    similarity = torch.tensor([[0.7, 0.1], [0.2, 0.6], [0.8, 0.9], [0.5, 0.3]])           # caption x clip
    got = query_metrics(similarity.T, back)
    np.testing.assert_allclose(got["mAP@10"], [1 / 2, 5 / 6], atol=1e-15)
    assert got["R@1"].tolist() == [0, 1] and got["R@5"].tolist() == [1, 1] and got["rank"].tolist() == [2, 1]
    dense = captions_of[:, None] == torch.arange(2)
    same(query_metrics(similarity.T, dense.T), got)
    assert [row.tolist() for row in transposed(dense, 4, 2)] == [[0, 1], [2, 3]]
    assert [len(row) for row in transposed([[2], [2]], 2, 4)] == [0, 0, 2, 0]


def test_against_torchmetrics_and_scikit_learn():
    generator = torch.Generator().manual_seed(3)
    similarity, relevant = torch.rand(20, 30, generator=generator), torch.rand(20, 30, generator=generator) < 0.2
    relevant[:, 0] = True
    mine = query_metrics(similarity, relevant, map_at=(30,))["mAP@30"]
    np.testing.assert_allclose(mine, [retrieval_average_precision(s, r).item() for s, r in zip(similarity, relevant)], atol=1e-6)
    np.testing.assert_allclose(mine, [average_precision_score(r, s) for s, r in zip(similarity, relevant)], atol=1e-12)
    one = torch.randint(30, (20,), generator=generator)
    for k in (1, 5, 10):
        theirs = top_k_accuracy_score(one.numpy(), similarity.numpy(), k=k, labels=np.arange(30))
        assert retrieval_metrics(similarity, one, ks=(k,))[f"R@{k}"] == pytest.approx(theirs)


def test_ties_count_against_the_model():
    constant = retrieval_metrics(torch.zeros(4, 50), torch.eye(4, 50, dtype=torch.bool))
    assert constant["R@10"] == 0 and constant["mAP@16"] == 0 and constant["median_rank"] == 50
    zero = ranked_retrieval(torch.zeros(4, 8), torch.randn(50, 8), torch.arange(4))       # silence: a vector of zeros
    assert zero == constant


def full_matrix(queries, items):
    """The scores that the blocks yield, put together."""
    matrix = np.empty((len(queries), len(items)), np.float32)
    for asked, rows, scores in index.score_blocks(queries, items):
        matrix[asked, rows] = scores
    return torch.from_numpy(matrix)


def test_copies_of_the_relevant_item_tie_with_it():
    """Wherever they are in the gallery: the sums of a matrix product must not depend on the place."""
    generator = torch.Generator().manual_seed(0)
    gallery, queries = torch.randn(9001, 100, generator=generator), torch.randn(300, 100, generator=generator)
    copies = torch.randperm(9001, generator=generator)[:3000].reshape(300, 10)
    gallery[copies] = gallery[copies[:, :1]]
    matrix = full_matrix(queries, gallery)
    own = matrix.gather(1, copies)
    assert (own == own[:, :1]).all()
    ranks = ranked_query_metrics(queries, gallery, copies[:, 3])["rank"]
    assert ranks.min() >= 10
    np.testing.assert_array_equal(ranks, (matrix >= own[:, :1]).sum(dim=1))


@settings(max_examples=100, deadline=None)
@given(sizes, st.sampled_from(["fine", "copies", "whole", "zero"]), st.integers(1, 9), st.integers(1, 26), st.integers(1, 70))
def test_blocks_of_any_size_give_the_ranks_of_the_full_matrix(size, kind, height, width, dimension):
    """Also with narrow products, whose sums differ in the last bits with an item's place, so that copies may not tie."""
    seed, count, items = size
    generator = torch.Generator().manual_seed(seed)
    queries, gallery = torch.randn(count, dimension, generator=generator), torch.randn(items, dimension, generator=generator)
    if kind == "copies":
        gallery = gallery[torch.randint(2, (items,), generator=generator)]
    elif kind == "whole":
        queries, gallery = queries.round(), gallery.round()        # whole numbers: every order of summing is exact, many ties
    elif kind == "zero":
        gallery[::2] = 0
    relevant = some_relevant(count, items, generator)
    with patch.multiple(index, QUERIES=height, ITEMS=width, _NARROWEST=(1, 1)), \
         patch.multiple("lib.evaluation.retrieval", QUERIES=height, ITEMS=width):
        in_blocks = ranked_query_metrics(queries, gallery, relevant)
        same(in_blocks, query_metrics(full_matrix(queries, gallery), relevant))
    if kind == "whole":
        same(in_blocks, query_metrics(queries @ gallery.T, relevant))
        same(in_blocks, by_hand(queries.double() @ gallery.double().T, relevant), 1e-12)


@pytest.mark.parametrize("dimension", [8, 100, 1024])
def test_ranks_of_one_product_to_the_bit(dimension):
    generator = torch.Generator().manual_seed(dimension)
    queries, gallery = torch.randn(300, dimension, generator=generator), torch.randn(5001, dimension, generator=generator)
    relevant = torch.randint(5001, (300,), generator=generator)
    full = query_metrics(queries @ gallery.T, relevant)
    same(ranked_query_metrics(queries, gallery, relevant), full)
    for chosen in (slice(0, 1), slice(7, 90)):                     # nor does it matter who else asks
        same(ranked_query_metrics(queries[chosen], gallery, relevant[chosen]), {k: v[chosen] for k, v in full.items()})
    assert ranked_retrieval(queries, gallery, relevant) == retrieval_metrics(queries @ gallery.T, relevant)


def test_sums_that_depend_on_the_place_are_noticed(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    queries, gallery = torch.randn(20, 16, generator=generator), torch.randn(5000, 16, generator=generator)
    gallery[1::2] = gallery[::2].clone()                           # an even row and the odd one after it are copies
    relevant, products, multiply = torch.arange(20) * 34, [], torch.mm

    def crooked(left, right, out):
        products.append(0)
        multiply(left, right, out=out)
        out[:, ::2] *= 1 + 2 ** -20                                # even columns of a product score a little further from 0

    monkeypatch.setattr(index.torch, "mm", crooked)
    expected = query_metrics(full_matrix(queries, gallery), relevant)
    products.clear()
    same(ranked_query_metrics(queries, gallery, relevant), expected)
    assert len(products) == 1 + 2 * 2                              # the expected scores, then two blocks twice
    assert not np.array_equal(expected["rank"], query_metrics(queries @ gallery.T, relevant)["rank"])

    def unsteady(left, right, out):
        products.append(0)
        multiply(left, right, out=out).mul_(1 + len(products) / 1000)

    monkeypatch.setattr(index.torch, "mm", unsteady)
    with pytest.raises(RuntimeError, match="each time"):
        ranked_query_metrics(queries, gallery, relevant)


def test_galleries_on_disk_and_of_half_precision(tmp_path):
    generator = torch.Generator().manual_seed(0)
    queries, gallery = torch.randn(50, 24, generator=generator), torch.randn(6000, 24, generator=generator).half()
    relevant = [[i, 5999 - i] for i in range(50)]
    np.save(tmp_path / "audio.npy", gallery.numpy())
    expected = ranked_query_metrics(queries, gallery.float(), relevant)
    same(ranked_query_metrics(queries, np.load(tmp_path / "audio.npy", mmap_mode="r"), relevant), expected)
    same(ranked_query_metrics(queries, gallery, relevant), expected)
    same(ranked_query_metrics(queries.numpy(), gallery.float().numpy(), relevant), expected)
    with torch.autocast("cpu", torch.bfloat16):
        same(ranked_query_metrics(queries.requires_grad_(), gallery, relevant), expected)


@settings(max_examples=50, deadline=None)
@given(sizes, st.integers(1, 30), st.booleans())
def test_counting_and_sorting_agree(size, thresholds, flipped):
    seed, queries, items = size
    draws = np.random.default_rng(seed)
    scores, limits = draws.integers(-3, 4, (queries, items)).astype(np.float32), draws.integers(-4, 5, (queries, thresholds))
    limits = limits.astype(np.float32)
    scores = np.asfortranarray(scores) if flipped else scores
    np.testing.assert_array_equal(at_least(scores, limits), (scores[:, None] >= limits[:, :, None]).sum(axis=2))


def test_a_monotone_transform_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randn(37, 50, generator=generator, dtype=torch.float64)
    relevant = some_relevant(37, 50, generator)
    assert retrieval_metrics(similarity.exp(), relevant) == retrieval_metrics(similarity, relevant)


def test_chance_against_simulation_and_closed_form():
    one = torch.eye(10, 200, dtype=torch.bool)
    chance = chance_metrics(one)
    assert chance["R@10"] == pytest.approx(0.05) and chance["mAP@10"] == pytest.approx(sum(1 / r for r in range(1, 11)) / 200)
    several = torch.zeros(3, 12, dtype=torch.bool)
    several[0, :1] = several[1, :4] = several[2, :7] = True
    generator = torch.Generator().manual_seed(0)
    runs = [retrieval_metrics(torch.rand(3, 12, generator=generator), several, (1, 3), (5,)) for _ in range(4000)]
    assert chance_metrics([range(1), range(4), range(7)], items=12) == chance_metrics(several)
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
    (torch.zeros(2, 3), torch.ones(2, 3), "must be bool"),
    (torch.zeros(2, 3), torch.tensor([0, 3]), "item 3 for query 1; the items are 0 to 2"),
    (torch.zeros(2, 3), [[0], [1, -1]], "item -1 for query 1"),
    (torch.zeros(2, 3), [[0], []], "query 1 has no relevant"),
    (torch.zeros(2, 3), [[0]], "tells of 1 queries; there are 2"),
    (torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool), "0 queries and 3 items"),
    (torch.zeros(3), torch.ones(3, dtype=torch.bool), r"must be \(Q, N\)"),
    (torch.tensor([[0.0, float("nan")]]), torch.ones(1, 2, dtype=torch.bool), "NaN in 1 rows")])
def test_refusals(similarity, relevant, words):
    with pytest.raises(ValueError, match=words):
        retrieval_metrics(similarity, relevant)


def test_refusals_of_embeddings():
    with pytest.raises(ValueError, match=r"queries \('Q', 3\) and of items \('N', 4\)"):
        ranked_retrieval(torch.zeros(2, 3), torch.zeros(5, 4), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="those of 1 queries, and of 0 of the"):
        ranked_retrieval(torch.tensor([[0.0], [float("nan")]]), torch.zeros(5, 1), torch.tensor([0, 1]))
