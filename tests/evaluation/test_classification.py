"""Classification metrics against scikit-learn, torchmetrics, written-out loops and closed forms; comparisons; the class oracle."""
import math
from itertools import combinations

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as reference
from scipy import stats
from sklearn.metrics import confusion_matrix, recall_score, roc_auc_score, top_k_accuracy_score

from lib.evaluation.classification import (class_oracle, classification_metrics, classification_values, clip_ranks, compare, fuse,
                                           majority_scores, most_confused, pair_retrieval, predicted_classes, weighted_auc,
                                           weighted_class_accuracy)
from lib.evaluation.retrieval import retrieval_metrics
from lib.evaluation.statistics import bootstrap_interval, wilson_interval


def example(seed=0, clips=150, classes=8, decimals=None, strength=1.5):
    """Scores that are right more often than not; the last class has no clip, the others unequally many."""
    rng = np.random.default_rng(seed)
    target = np.sort(rng.integers(classes - 1, size=clips) * rng.integers(2, size=clips))
    target[:classes - 1] = np.arange(classes - 1)
    scores = rng.normal(size=(clips, classes)) + strength * (target[:, None] == np.arange(classes))
    return (scores if decimals is None else np.round(scores, decimals)), target


def softmax(x):
    return torch.as_tensor(x).softmax(dim=-1).numpy()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_equal_sklearn_and_torchmetrics(dtype):
    scores, target = example()
    scores = softmax(scores).astype(dtype)
    got = classification_values(scores, target)
    assert got["top-1"] == pytest.approx(top_k_accuracy_score(target, scores, k=1, labels=range(8)))
    assert got["top-5"] == pytest.approx(top_k_accuracy_score(target, scores, k=5, labels=range(8)))
    recalls = recall_score(target, scores.argmax(axis=1), labels=range(7), average="macro")
    assert got["mean class accuracy"] == pytest.approx(recalls)
    tensors = torch.from_numpy(scores[:, :-1]), torch.from_numpy(target)            # torchmetrics has no absent classes
    for name, function in (("mAP", reference.multiclass_average_precision), ("AUC", reference.multiclass_auroc)):
        assert got[name] == pytest.approx(float(function(*tensors, num_classes=7, average="macro")), abs=2e-6), name
    assert got["d'"] == pytest.approx(math.sqrt(2) * stats.norm.ppf(got["AUC"]))
    assert got == classification_values(torch.from_numpy(scores), torch.from_numpy(target))
    half = torch.from_numpy(scores).bfloat16()
    assert classification_values(half, target) == classification_values(half.double(), target)


def test_the_published_separation_belongs_to_the_published_area():
    from lib.evaluation.classification import _d_prime
    assert _d_prime(0.973, np.array([50, 50])) == pytest.approx(2.735, abs=0.02)          # VGGSound's ResNet-50


def test_ties_count_against_the_model():
    target = np.array([0, 1, 2, 2])
    collapsed = classification_values(np.ones((4, 3)), target, ks=(1, 2, 5))
    assert (collapsed["top-1"], collapsed["top-2"], collapsed["top-5"]) == (0, 0, 1)
    assert collapsed["mean class accuracy"] == 0 and collapsed["AUC"] == 0.5 and collapsed["d'"] == 0
    assert collapsed["mAP"] == pytest.approx(np.mean([0.25, 0.25, 0.5]))
    scores, target = example(decimals=0)
    for row, true, rank, predicted in zip(scores, target, clip_ranks(scores, target), predicted_classes(scores, target)):
        rivals = [c for c in range(8) if c != true and row[c] >= row[true]]
        assert rank == 1 + len(rivals)
        assert predicted == (true if not rivals else max(rivals, key=lambda c: (row[c], -c)))
    found = classification_metrics(scores, target, draws=10)
    assert np.trace(found["confusion"]) / 150 == pytest.approx(found["values"]["top-1"])


def test_table_confusion_chance_and_baseline():
    scores, target = example()
    train = np.array([3] * 9 + [5] * 7 + [0] * 7 + [6])
    names = [f"class '{c}'" for c in "abcdefgh"]
    found = classification_metrics(scores, target, train, names, draws=50)
    np.testing.assert_array_equal(found["confusion"], confusion_matrix(target, scores.argmax(axis=1), labels=range(8)))
    assert (found["n"], found["classes"], found["classes with a clip"]) == (150, 8, 7)
    assert [row["class"] for row in found["table"]] == names[:7]
    assert np.mean([row["top-1"] for row in found["table"]]) == pytest.approx(found["values"]["mean class accuracy"])
    assert np.mean([row["AP"] for row in found["table"]]) == pytest.approx(found["values"]["mAP"])
    for c, row in enumerate(found["table"]):
        assert row["AUC"] == pytest.approx(roc_auc_score(target == c, scores[:, c]))
        wrong = np.bincount(scores[target == c].argmax(axis=1), minlength=8)
        hits, wrong[c] = wrong[c], 0
        assert row["clips"] == (target == c).sum() and row["interval"] == wilson_interval(hits, row["clips"])
        assert row["mistakes"] == wrong.max() and row["mistaken for"] == (names[wrong.argmax()] if wrong.max() else None)
    assert found["chance"]["top-1"] == 1 / 8 and found["chance"]["top-5"] == 5 / 8 and found["chance"]["d'"] == 0
    share = np.bincount(target) / 150
    first_five = [3, 0, 5, 6, 1]                                        # by training counts, equals in their order
    assert found["baseline"]["top-1"] == pytest.approx(share[3]) and found["baseline"]["AUC"] == 0.5
    assert found["baseline"]["top-5"] == pytest.approx(share[first_five].sum())
    assert found["baseline"]["mean class accuracy"] == pytest.approx(1 / 7) and found["baseline"]["mAP"] == pytest.approx(1 / 7)
    own = classification_metrics(scores, target, draws=10)["baseline"]["top-1"]
    assert own == pytest.approx(share.max())
    for column in ("interval", "chance", "baseline"):
        assert found[column].keys() == found["values"].keys()


def test_chance_is_what_random_scores_reach():
    target = example()[1]
    rng = np.random.default_rng(3)
    random = [classification_values(rng.random((150, 8)), target) for _ in range(80)]
    chance = classification_metrics(rng.random((150, 8)), target, draws=10)["chance"]
    for name, expected in chance.items():
        values = [one[name] for one in random]
        assert abs(np.mean(values) - expected) < 4 * np.std(values) / math.sqrt(80), name


def test_majority_scores_rank_classes_once():
    scores = majority_scores(torch.tensor([2, 2, 0, 4, 4, 4]), 6, 3)
    assert scores.shape == (3, 6) and np.argsort(-scores[0]).tolist() == [4, 2, 0, 1, 3, 5]


def test_weighted_metrics_equal_repeated_clips():
    scores, target = example(decimals=1, clips=60)
    truth = target[:, None] == np.arange(8)
    weights = np.random.default_rng(1).integers(0, 3, size=(6, 60)).astype(float)
    weights[0], weights[1, target == 2] = 1, 0                                         # once a whole class is missing
    aucs, accuracies = weighted_auc(scores, truth, weights), weighted_class_accuracy(scores, truth, weights)
    for weight, auc, accuracy in zip(weights.astype(int), aucs, accuracies):
        rows = np.repeat(np.arange(60), weight)
        expected = classification_values(scores[rows], target[rows])
        assert (auc, accuracy) == (pytest.approx(expected["AUC"]), pytest.approx(expected["mean class accuracy"]))


def test_intervals_hold_the_values_and_know_groups():
    scores, target = example()
    found = classification_metrics(scores, target, draws=300)
    for name, (low, high) in found["interval"].items():
        assert low < found["values"][name] < high, name
    assert found["interval"]["top-1"] == wilson_interval(round(found["values"]["top-1"] * 150), 150)
    twice = [np.repeat(x, 2, axis=0) for x in (scores, target, np.arange(150))]
    grouped = classification_metrics(*twice[:2], groups=twice[2], draws=300)["interval"]
    alone = classification_metrics(*twice[:2], draws=300)["interval"]
    assert grouped["top-1"] == bootstrap_interval(clip_ranks(*twice[:2]) == 1, twice[2])
    for name in ("top-1", "mean class accuracy", "mAP", "AUC"):
        width = lambda interval: interval[1] - interval[0]
        assert width(grouped[name]) == pytest.approx(width(found["interval"][name]), rel=0.25)
        assert width(alone[name]) < 0.85 * width(grouped[name])                         # copies taken for clips: too narrow


def test_perfect_scores_have_finite_numbers():
    target = np.arange(20) % 4
    found = classification_metrics(10.0 * (target[:, None] == np.arange(4)), target, draws=20)
    assert [found["values"][name] for name in ("top-1", "mAP", "AUC")] == [1, 1, 1]
    assert found["values"]["d'"] == pytest.approx(math.sqrt(2) * stats.norm.ppf(1 - 0.5 / (5 * 15)))
    assert all(np.isfinite(interval).all() for interval in found["interval"].values())
    assert found["interval"]["top-1"][0] < 1 and most_confused(found["confusion"]) == []


def test_most_confused_pairs():
    counts = np.array([[5, 3, 0, 0], [1, 9, 4, 0], [0, 0, 6, 0], [2, 2, 0, 0]])
    pairs = most_confused(counts)
    assert [(p["first"], p["second"], p["there"], p["back"]) for p in pairs] == [(0, 1, 3, 1), (1, 2, 4, 0), (3, 0, 2, 0), (3, 1, 2, 0)]
    assert pairs[0]["share"] == 4 / (8 + 14) and most_confused(counts, 1) == pairs[:1]


def test_fusion():
    a, b = softmax(np.random.default_rng(0).normal(size=(2, 9, 5)))
    np.testing.assert_allclose(fuse([a, b]), (a + b) / 2)
    np.testing.assert_allclose(fuse([a, torch.from_numpy(b)], "product"), a * b / (a * b).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(fuse([np.eye(2), np.eye(2)[::-1]], "product"), 0.5)          # each rules out what the other says
    with pytest.raises(ValueError, match="needs probabilities"):
        fuse([a - 1, b])
    with pytest.raises(ValueError, match="'median'"):
        fuse([a, b], "median")


def test_compare_pairs_models_on_the_same_clips():
    audio, target = example(strength=0.8)
    video = example(seed=0, strength=0.8)[0] + np.random.default_rng(9).normal(size=audio.shape)
    models = {"both": softmax(2 * audio) + softmax(video) * 0.2, "audio": audio, "video": video}
    found = compare(models, target, draws=200)
    assert list(found) == ["both - audio", "both - video", "audio - video"]
    values = {name: classification_values(scores, target) for name, scores in models.items()}
    for first, second in combinations(models, 2):
        for name, (difference, low, high) in found[f"{first} - {second}"].items():
            assert difference == pytest.approx(values[first][name] - values[second][name]), name
            assert low <= difference <= high
    same = compare({"a": audio, "b": audio.copy()}, target, draws=20)["a - b"]
    assert all(row == (0, 0, 0) for row in same.values())
    with pytest.raises(ValueError, match="'sound'"):
        compare(models, target, pairs=[("both", "sound")])


def test_compare_means_over_seeds():
    target = example()[1]
    better, worse = (np.stack([example(clips=150, strength=s)[0] + np.random.default_rng(k).normal(size=(150, 8)) for k in range(3)])
                     for s in (2.5, 0.5))
    found = compare({"pretrained": better, "scratch": torch.from_numpy(worse)}, target, draws=100)["pretrained - scratch"]
    for name, (difference, low, high) in found.items():
        means = [np.mean([classification_values(one, target)[name] for one in some]) for some in (better, worse)]
        assert difference == pytest.approx(means[0] - means[1]) and 0 <= low <= difference <= high
    assert found["top-1"][1] > 0
    with pytest.raises(ValueError, match="one S"):
        compare({"a": better, "b": worse[:2]}, target, draws=10)


def test_pair_retrieval_against_retrieval_metrics_and_closed_forms():
    labels, generator = ["dog"] * 4 + ["cat"] * 4, torch.Generator().manual_seed(0)
    same = torch.eye(8)
    rows = pair_retrieval(same, same, labels, ks=(1, 4), seed=3)
    assert [*rows] == [f"{way} R@{k}" for way in ("sound to picture", "picture to sound", "both ways") for k in (1, 4)]
    moved = torch.randperm(8, generator=torch.Generator().manual_seed(3)) != torch.arange(8)
    first = rows["sound to picture R@1"]
    assert first["value"] == first["ceiling"] == 1.0 and first["interval"] == (1.0, 1.0)
    assert first["chance"] == pytest.approx(1 / 8) and first["baseline"] == pytest.approx(1 / 4)
    assert first["control"] == pytest.approx(1 - moved.double().mean().item())
    audio, video = torch.randn(2, 8, 3, generator=generator)
    rows, own = pair_retrieval(audio, video, labels, np.arange(8) // 2, ks=(1, 4)), torch.arange(8)
    for way, similarity in (("sound to picture", audio @ video.T), ("picture to sound", video @ audio.T)):
        expected = retrieval_metrics(similarity, own, ks=(1, 4))
        for k in (1, 4):
            row, mean = rows[f"{way} R@{k}"], (rows[f"sound to picture R@{k}"]["value"] + rows[f"picture to sound R@{k}"]["value"]) / 2
            assert rows[f"both ways R@{k}"]["value"] == pytest.approx(mean)
            assert row["value"] == pytest.approx(expected[f"R@{k}"]) and row["interval"][0] <= row["value"] <= row["interval"][1]


def test_class_oracle_closed_forms_and_simulation():
    equal = class_oracle(["dog", "cat"] * 20 + ["cow"] * 20)
    assert [equal["oracle"][name] for name in ("R@1", "R@10")] == pytest.approx([1 / 20, 0.5])
    assert equal["chance"]["R@1"] == pytest.approx(1 / 60)
    assert equal["oracle"]["mAP@10"] == pytest.approx(sum(1 / r for r in range(1, 11)) / 20)
    assert (equal["clips"], equal["classes"]) == (60, 3)
    alone = class_oracle(np.arange(7))["oracle"]
    assert list(alone.values()) == pytest.approx([1.0] * 4)
    labels = np.repeat([0, 1, 2], [1, 3, 12])
    rng, ranks = np.random.default_rng(0), []
    for _ in range(400):
        similarity = (labels[:, None] == labels) + rng.random((16, 16)) * 0.5
        ranks.append((similarity >= np.diag(similarity)[:, None]).sum(axis=1))
    ranks, found = np.array(ranks), class_oracle(torch.from_numpy(labels), ks=(1, 3), map_at=(5,))["oracle"]
    assert found["R@1"] == pytest.approx((ranks <= 1).mean(), abs=0.01) and found["R@3"] == pytest.approx((ranks <= 3).mean(), abs=0.01)
    assert found["mAP@5"] == pytest.approx(np.where(ranks <= 5, 1 / ranks, 0).mean(), abs=0.01)
    with pytest.raises(ValueError, match="at least one clip"):
        class_oracle([])


def test_what_cannot_be_scored_is_refused():
    scores, target = example()
    for bad, match in [((scores[:, :6], target), "class numbers 0 to 5"), ((scores, target - 1), "class numbers 0 to 7"),
                       ((scores[:-1], target), "must be"), ((scores[:, :1], target * 0), "C >= 2"), ((scores, target * 1.0), "float64"),
                       ((scores, target * 0), "all 150 clips are of class 0"), ((scores[:0], target[:0]), "N >= 1")]:
        with pytest.raises(ValueError, match=match):
            classification_values(*bad)
    broken = scores.copy()
    broken[3, 2] = np.nan
    with pytest.raises(ValueError, match="1 of 150 clips .* first clip 3"):
        classification_metrics(broken, target)
    with pytest.raises(ValueError, match="whole numbers from 1"):
        classification_values(scores, target, ks=(0,))
    with pytest.raises(ValueError, match="7 names"):
        classification_metrics(scores, target, classes=list("abcdefg"))
    with pytest.raises(ValueError, match="groups tells of 3"):
        classification_metrics(scores, target, groups=np.arange(3))
