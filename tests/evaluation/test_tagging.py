"""Tagging metrics against scikit-learn, torchmetrics, written-out loops, closed forms and hand-worked examples."""
import time

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as reference
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

from lib.evaluation.tagging import (KS, DegenerateScores, best_classes, ceiling_metrics, chance_metrics, check_answers,
                                    clip_metrics, constant_scores, d_prime, frequency_scores, seed_metrics, tagging_metrics,
                                    weighted_map_macro)


def example(seed=0, clips=120, classes=15, decimals=1):
    """Scores with many ties, targets with 1 to 6 classes a clip, the last class true of no clip."""
    rng = np.random.default_rng(seed)
    targets = rng.random((clips, classes)) < 0.15 * np.arange(classes)[::-1] / classes
    targets[np.arange(clips), rng.integers(classes - 1, size=clips)] = True
    scores = np.round(rng.normal(size=targets.shape) + 0.7 * targets, decimals)
    return scores, targets


def by_rank(row):
    return sorted(range(len(row)), key=lambda k: (-row[k], k))


@pytest.mark.parametrize("decimals, dtype", [(0, np.float32), (1, np.float64), (6, np.float32)])
def test_areas_equal_sklearn_and_torchmetrics(decimals, dtype):
    scores, targets = example(decimals=decimals)
    scores = scores.astype(dtype)
    got = tagging_metrics(scores, targets)
    for average in ("samples", "macro", "micro"):
        some = slice(None) if average != "macro" else slice(0, -1)          # scikit-learn counts an absent class as 0
        assert got[f"mAP {average}"] == pytest.approx(average_precision_score(targets[:, some], scores[:, some], average=average))
    assert got["AUC macro"] == pytest.approx(roc_auc_score(targets[:, :-1], scores[:, :-1], average="macro"))
    assert got["classes with a positive"] == 14
    probabilities, labels = torch.from_numpy(scores[:, :-1]).double().sigmoid(), torch.from_numpy(targets[:, :-1]).long()
    for name, function in (("mAP macro", reference.multilabel_average_precision), ("AUC macro", reference.multilabel_auroc)):
        assert got[name] == pytest.approx(float(function(probabilities, labels, num_labels=14, average="macro")), abs=1e-6)


def test_answers_equal_loops_and_sklearn():
    scores, targets = example()
    got = tagging_metrics(torch.from_numpy(scores), torch.from_numpy(targets), ks=(1, 4, 15))
    per_clip = clip_metrics(scores, targets, (1, 4, 15))
    for k in (1, 4, 15):
        answers = np.zeros_like(targets)
        for n, row in enumerate(scores):
            order = by_rank(row)[:k]
            answers[n, order] = True
            hits = sum(targets[n, c] for c in order)
            assert best_classes(scores, k)[n].tolist() == order
            assert per_clip[f"acc@{k}"][n] == (hits > 0)
            assert per_clip[f"recall@{k}"][n] == pytest.approx(hits / min(k, targets[n].sum()))
        for kind, some in (("micro", slice(None)), ("macro", slice(0, -1))):
            expected = precision_recall_fscore_support(targets[:, some], answers[:, some], average=kind, zero_division=0)
            assert [got[f"{name}@{k} {kind}"] for name in ("precision", "recall", "F1")] == pytest.approx(list(expected[:3]))
    for name, mean in (("acc@4", "acc@4"), ("recall@4", "recall@4"), ("AP", "mAP samples")):
        assert got[mean] == pytest.approx(per_clip[name].mean())


def test_a_hand_worked_example():
    """Two clips, four classes; the second clip cannot tell its first three classes apart."""
    scores = np.array([[0.9, 0.8, 0.1, 0.2], [0.5, 0.5, 0.5, 0.1]])
    targets = np.array([[True, False, False, True], [False, False, True, False]])
    got = tagging_metrics(scores, targets, ks=(1, 2))
    assert (got["acc@1"], got["acc@2"], got["recall@1"], got["recall@2"]) == (0.5, 0.5, 0.5, 0.25)
    assert got["mAP samples"] == pytest.approx(((1 + 2 / 3) / 2 + 1 / 3) / 2)           # the tied step holds one of three
    assert got["mAP macro"] == pytest.approx(1.0) and got["AUC macro"] == pytest.approx(1.0)
    assert got["mAP micro"] == pytest.approx((1 + 2 / 5 + 3 / 6) / 3)
    # answers: classes 0, 1 for either clip; class 0 right once of twice, classes 2 and 3 never answered
    assert (got["precision@2 micro"], got["recall@2 micro"], got["F1@2 micro"]) == pytest.approx((1 / 4, 1 / 3, 2 / 7))
    assert (got["precision@2 macro"], got["recall@2 macro"], got["F1@2 macro"]) == pytest.approx((1 / 6, 1 / 3, 2 / 9))


def test_k_beyond_the_classes_takes_all_of_them():
    scores, targets = example(classes=4)
    got = tagging_metrics(scores, targets, ks=(3, 4, 10))
    for name in ("acc@{}", "recall@{}", "precision@{} micro", "F1@{} macro"):
        assert got[name.format(10)] == got[name.format(4)]
    assert got["acc@10"] == 1 and got["precision@10 micro"] == pytest.approx(targets.mean())
    assert chance_metrics(targets, (10,))["acc@10"] == ceiling_metrics(targets, (10,))["acc@10"] == 1
    assert ceiling_metrics(targets, (10,))["precision@10 micro"] == pytest.approx(targets.mean())


def test_what_is_refused():
    scores, targets = example(clips=5)
    with pytest.raises(ValueError, match=r"2 of 5 clips have no true class, the first is clip 1; leave"):
        tagging_metrics(scores, targets & (np.arange(5) % 3 != 1)[:, None])
    for value in (np.nan, np.inf):
        broken = scores.copy()
        broken[3, 2] = value
        with pytest.raises(ValueError, match="1 of 5 clips are NaN or infinite, the first is clip 3"):
            clip_metrics(broken, targets)
    with pytest.raises(ValueError, match="must be bool and have the shape"):
        tagging_metrics(scores, targets.astype(int))
    with pytest.raises(ValueError, match="must be bool and have the shape"):
        tagging_metrics(scores[:4], targets)
    with pytest.raises(ValueError, match="whole numbers from 1"):
        tagging_metrics(scores, targets, ks=(0, 1))
    assert np.isnan(tagging_metrics(np.ones((1, 2)), np.ones((1, 2), bool))["AUC macro"])


def original(scores, targets):
    """The original scripts' definitions, written out."""
    clips, classes = targets.shape
    ranked = [by_rank(row) for row in scores]
    result = {f"acc@{k}": np.mean([any(targets[n, c] for c in ranked[n][:k]) for n in range(clips)]) for k in KS}
    precisions, recalls, right = [], [], 0
    for c in range(classes):
        answered = [n for n in range(clips) if c in ranked[n][:5]]
        hits = sum(targets[n, c] for n in answered)
        precisions.append(hits / len(answered) if answered else 0)
        recalls.append(hits / targets[:, c].sum() if targets[:, c].any() else 0)
        right += hits
    for kind, p, r in (("micro", right / (5 * clips), right / targets.sum()), ("macro", np.mean(precisions), np.mean(recalls))):
        result |= {f"precision_{kind}": p, f"recall_{kind}": r, f"f1_{kind}": 2 * p * r / (p + r)}
    precision = []
    for n in range(clips):
        places = [place for place, c in enumerate(ranked[n], 1) if targets[n, c]]
        if places:
            precision.append(np.mean([found / place for found, place in enumerate(places, 1)]))
    return result | {"map": np.mean(precision), "valid_samples": clips, "total_samples": clips + 7}


def test_seed_metrics_are_the_original_ones():
    scores, targets = example(classes=20)
    targets[[5, 17]] = False                                 # labels that match no class
    got = seed_metrics(scores, targets, total=127)
    assert got == pytest.approx(original(scores, targets)) and got.keys() == original(scores, targets).keys()
    plain = tagging_metrics(scores, example(classes=20)[1])
    same = seed_metrics(scores, example(classes=20)[1])
    assert same["acc@10"] == plain["acc@10"] and same["f1_micro"] == pytest.approx(plain["F1@5 micro"])
    assert same["precision_macro"] == pytest.approx(plain["precision@5 macro"] * 19 / 20), "the absent class counts 0 there"
    assert same["f1_macro"] != pytest.approx(plain["F1@5 macro"], rel=1e-3), "names alike, definitions not"
    assert seed_metrics(scores[:3], np.zeros((3, 20), bool))["map"] == 0


def test_chance_is_the_mean_over_random_scores():
    _, targets = example(seed=3, clips=12, classes=6)
    expected, rng, ks = chance_metrics(targets, (1, 3)), np.random.default_rng(0), (1, 3)
    drawn = [tagging_metrics(rng.random(targets.shape), targets, ks) for _ in range(1500)]
    for name in expected:
        values = np.array([one[name] for one in drawn])
        assert abs(values.mean() - expected[name]) <= 4 * values.std() / np.sqrt(len(values)) + 1e-12, name
    assert expected.keys() == drawn[0].keys() == ceiling_metrics(targets, ks).keys()
    single = np.eye(10, dtype=bool)
    chance = chance_metrics(single)
    assert chance["acc@1"] == pytest.approx(0.1) and chance["acc@3"] == pytest.approx(0.3)
    assert chance["mAP samples"] == pytest.approx((1 / np.arange(1, 11)).sum() / 10)


def test_ceilings_are_reached_and_not_passed():
    scores, targets = example(classes=30)
    ceiling = ceiling_metrics(targets)
    sizes = targets.sum(axis=1)
    assert (sizes > 3).any() and ceiling["precision@5 micro"] == pytest.approx(np.minimum(sizes, 5).mean() / 5)
    perfect = tagging_metrics(targets.astype(float), targets)
    names = [f"{name}@{k} micro" for name in ("precision", "recall", "F1") for k in KS]
    for name in names + ["mAP samples", "mAP macro", "mAP micro", "AUC macro"]:
        assert perfect[name] == pytest.approx(ceiling[name]), name
    rarest_first = tagging_metrics(targets / np.maximum(1, targets.sum(axis=0)), targets)
    for k in KS:
        assert rarest_first[f"recall@{k} macro"] == pytest.approx(ceiling[f"recall@{k} macro"])
        assert perfect[f"recall@{k} macro"] <= ceiling[f"recall@{k} macro"] + 1e-12
    for name, value in tagging_metrics(scores, targets).items():
        assert value <= ceiling[name] + 1e-12, name


def test_rankers_without_ears():
    rng = np.random.default_rng(0)
    train, test = (rng.random((n, 6)) < [0.1, 0.6, 0.3, 0.05, 0.2, 0.3] for n in (4000, 300))
    test[:, 1] |= ~test.any(axis=1)
    constant, frequency = constant_scores(train, 300), frequency_scores(torch.from_numpy(train), 300)
    assert constant.shape == frequency.shape == (300, 6)
    assert best_classes(constant, 6)[0].tolist() == [1, 0, 2, 3, 4, 5], "beyond the first it knows nothing"
    assert best_classes(frequency, 6)[7].tolist() == np.argsort(-train.sum(axis=0), kind="stable").tolist()
    for scores in (constant, frequency):
        got = tagging_metrics(scores, test)
        assert got["acc@1"] == pytest.approx(test[:, 1].mean())
        assert got["AUC macro"] == 0.5 and got["mAP macro"] == pytest.approx(test.mean()), "alike for all clips"
    assert tagging_metrics(frequency, test)["mAP samples"] > tagging_metrics(constant, test)["mAP samples"]


def test_d_prime():
    rng = np.random.default_rng(0)
    noise, signal = rng.normal(size=(2, 200_000)) + [[0], [1.5]]
    auc = roc_auc_score(np.repeat([0, 1], 200_000), np.concatenate([noise, signal]))
    assert d_prime(auc) == pytest.approx(1.5, abs=0.01) and d_prime(0.5) == pytest.approx(0)


def test_weighted_map_equals_sklearn_and_copies_of_clips():
    scores, targets = example(seed=2)
    weights = np.random.default_rng(1).integers(0, 3, size=(4, len(scores)))
    weights[3] = 1
    weights[2, targets[:, 0]] = 0                               # class 0 leaves the mean of this weighting
    got = weighted_map_macro(scores, targets, weights)
    for value, weight in zip(got, weights):
        some, copies = targets[weight > 0].any(axis=0), np.repeat(np.arange(len(scores)), weight)
        true, given = targets[:, some], scores[:, some]
        assert value == pytest.approx(average_precision_score(true, given, average="macro", sample_weight=weight))
        assert value == pytest.approx(average_precision_score(true[copies], given[copies], average="macro"))
    assert got[3] == pytest.approx(tagging_metrics(scores, targets)["mAP macro"])


def test_degenerate_answers_are_an_error():
    scores, targets = example(clips=100)
    check_answers(scores, targets)
    names = [f"class {k}" for k in range(15)]
    with pytest.raises(DegenerateScores, match=r"class 'class 4' is the best answer for 95% of 100 clips.*front end.*projection"):
        check_answers(np.where((np.arange(15) == 4) & (np.arange(100) < 95)[:, None], 9, scores), targets, names)
    check_answers(np.where((np.arange(15) == 4) & (np.arange(100) < 90)[:, None], 9, scores - 5 * (np.arange(15) == 4)))
    common = targets | (np.arange(15) == 4)
    check_answers(scores + 9 * (np.arange(15) == 4), common)                       # it is true of all clips
    with pytest.raises(DegenerateScores, match="rows of all 100 clips are equal.*embeddings are all the same"):
        check_answers(scores[:1] + 1e-5 * np.random.default_rng(0).normal(size=scores.shape))
    with pytest.raises(DegenerateScores, match="rows of all 100 clips are equal"):
        check_answers(np.zeros((100, 15)))
    with pytest.raises(DegenerateScores):
        check_answers(constant_scores(targets, 100))
    check_answers(scores[:8] + 9 * (np.arange(15) == 4))                            # eight clips may agree
    check_answers(scores[:1])
    assert issubclass(DegenerateScores, ValueError)


def test_faster_than_sklearn_at_audioset_width():
    rng = np.random.default_rng(0)
    targets = rng.random((500, 527)) < 0.005
    targets[np.arange(500), rng.integers(527, size=500)] = True
    scores = rng.normal(size=targets.shape).astype(np.float32)
    begin = time.process_time()
    got = tagging_metrics(scores, targets)
    ours = time.process_time() - begin
    some = targets.any(axis=0)
    begin = time.process_time()
    expected = {"mAP samples": average_precision_score(targets, scores, average="samples"),
                "mAP macro": average_precision_score(targets[:, some], scores[:, some], average="macro"),
                "AUC macro": roc_auc_score(targets[:, some], scores[:, some], average="macro")}
    theirs = time.process_time() - begin
    assert {name: got[name] for name in expected} == pytest.approx(expected)
    assert theirs > 5 * ours, f"{theirs:.2f} s against {ours:.2f} s"
