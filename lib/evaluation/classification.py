"""Classification: every clip has one true class and is scored against all C classes.

- top-k: share of clips whose true class is among the k best. Another class with an equal score counts as better, so that a model
  that gives every class the same score has 0 right. k of C or more is always 1.
- mean class accuracy: top-1 of each class, mean over the classes that have a clip.
- mAP, AUC: of each class over the N clips, mean over the classes that have a clip (scikit-learn's definitions: equal scores are
  one step of the precision curve, half an error of the ROC curve). Scores are compared between clips: give probabilities.
- d': sqrt(2) times the normal quantile of that AUC. An AUC of 1 has none: each class's AUC counts as at least half a pair of
  clips away from 0 and 1.
Arrays here are numpy arrays or tensors; a target is the index of the true class.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from lib.evaluation import retrieval, tagging
from lib.evaluation.retrieval import at_least
from lib.evaluation.statistics import bootstrap_difference, bootstrap_interval, paired_seeds, wilson_interval

KS = (1, 5)


def classification_values(scores: Tensor | np.ndarray, target: Tensor | np.ndarray, ks: Sequence[int] = KS) -> dict[str, float]:
    """The module's numbers alone, for the validation after an epoch.

    Args:
        scores: (N, C), finite, C >= 2, higher is more likely.  target: (N,) int in 0..C-1, of two classes or more.
        ks: which top-k.
    Returns: {"top-1", "top-5", "mean class accuracy", "mAP", "AUC"} in [0, 1] and {"d'"}, all finite.
    Raises: ValueError: shapes or classes that do not fit, scores that are not finite, clips of one class only, k < 1.
    """
    scores, target = _checked(scores, target, ks)
    ranks, sizes = clip_ranks(scores, target), np.bincount(target, minlength=scores.shape[1])
    right, areas = np.bincount(target[ranks == 1], minlength=len(sizes)), _areas(scores, target)
    found = {f"top-{k}": float((ranks <= k).mean()) for k in ks}
    found |= {"mean class accuracy": float((right[sizes > 0] / sizes[sizes > 0]).mean())}
    found |= {name: float(values.mean()) for name, values in areas.items()}
    return found | {"d'": _d_prime(found["AUC"], sizes)}


def classification_metrics(scores: Tensor | np.ndarray, target: Tensor | np.ndarray,
                           train_target: Tensor | np.ndarray | None = None, classes: Sequence[str] | None = None,
                           groups: np.ndarray | None = None, ks: Sequence[int] = KS, confidence: float = 0.95, draws: int = 500,
                           seed: int = 0) -> dict:
    """All numbers with their intervals, beside chance and the majority baseline; a table of classes; confusion counts.

    Args:
        scores, target, ks: as `classification_values`.
        train_target: (M,) classes of the training clips, which the majority baseline answers by: always the most frequent class,
            then the next ones (the first of equals). None: it knows how frequent classes are among the scored clips.
        classes: C names, for the table; None: their numbers.
        groups: (N,) which clips belong together (cut from one video); None: each alone.
        confidence, draws, seed: of the intervals. Those of top-k are Wilson's where each clip is alone, all others are bootstrap
            intervals over groups of clips; that of d' is AUC's, transformed.
    Returns:
        "values"; "interval" {name: (low, high)}; "chance", expected of random scores; "baseline", the majority's; "table": for
        each class with a clip {"class", "clips", "top-1", "interval", "AP", "AUC", "mistaken for", "mistakes" (how many for that
        class)}; "confusion": (C, C) int64, rows true, columns predicted, a tie with the true class being a mistake; "n",
        "classes", "classes with a clip".
    Raises: ValueError: as `classification_values`; names or groups of another length.
    """
    scores, target = _checked(scores, target, ks)
    values, ranks, truth = classification_values(scores, target, ks), clip_ranks(scores, target), _one_hot(scores, target)
    n, width = scores.shape
    names = list(range(width)) if classes is None else list(classes)
    if len(names) != width:
        raise ValueError(f"{len(names)} names of classes for {width} columns of scores")
    alone = groups is None or len(np.unique(groups)) == len(groups) == n
    interval = {f"top-{k}": wilson_interval(int((ranks <= k).sum()), n, confidence) if alone
                else bootstrap_interval(ranks <= k, groups, confidence, seed=seed) for k in ks}
    for name, metric in WEIGHTED.items():
        interval[name] = _interval(metric, scores, truth, groups, confidence, draws, seed)
    sizes = truth.sum(axis=0)
    interval["d'"] = tuple(_d_prime(end, sizes) for end in interval["AUC"])
    chance = {f"top-{k}": min(k, width) / width for k in ks} | {"mean class accuracy": 1 / width}
    chance |= {"mAP": tagging.chance_metrics(truth, ks=(1,))["mAP macro"], "AUC": 0.5, "d'": 0.0}
    majority = classification_values(majority_scores(target if train_target is None else train_target, width, n), target, ks)
    counts = tagging.confusion(predicted_classes(scores, target), target, width)
    return {"values": values, "interval": interval, "chance": chance, "baseline": majority,
            "table": _table(names, counts, _areas(scores, target), confidence), "confusion": counts, "n": n, "classes": width,
            "classes with a clip": int((sizes > 0).sum())}


def clip_ranks(scores: Tensor | np.ndarray, target: Tensor | np.ndarray) -> np.ndarray:
    """Rank of each clip's true class, from 1; another class with an equal score is before it.

    Args, Raises: as `classification_values`; clips may be of one class.
    Returns: (N,) int64; `clip_ranks(...) <= k` is what `statistics.paired_bootstrap` compares two models by.
    """
    scores, target = _checked(scores, target, one_class=True)
    return np.count_nonzero(scores >= np.take_along_axis(scores, target[:, None], axis=1), axis=1)


def predicted_classes(scores: Tensor | np.ndarray, target: Tensor | np.ndarray) -> np.ndarray:
    """The best class of each clip (N,); where the true class ties for the first place, the first of the others."""
    scores, target = _checked(scores, target, one_class=True)
    rivals = np.where(_one_hot(scores, target), -np.inf, scores)
    return np.where(clip_ranks(scores, target) == 1, target, rivals.argmax(axis=1))


def majority_scores(train_target: Tensor | np.ndarray, classes: int, n: int) -> np.ndarray:
    """Scores (n, C) of the model without input: the training classes by how frequent they are, equals in their order."""
    counts = np.bincount(np.asarray(train_target), minlength=classes)
    ranks = np.argsort(np.argsort(-counts, kind="stable"))
    return np.tile(-ranks.astype(np.float64), (n, 1))


def most_confused(counts: np.ndarray, n: int = 10) -> list[dict]:
    """The n pairs of classes that are taken for each other most often, whichever of the two is true.

    Args: counts: (C, C), rows true, columns predicted.
    Returns: {"first", "second": class numbers, the first's clips being mistaken at least as often; "there": clips of the first
        taken for the second; "back": the other way round; "share": both, of all clips of the two}, most mistakes first, equals
        in the order of the classes; pairs without a mistake are left out.
    """
    counts = np.asarray(counts)
    sizes, rows = counts.sum(axis=1), []
    for first, second in combinations(range(len(counts)), 2):
        if counts[first, second] < counts[second, first]:
            first, second = second, first
        there, back = int(counts[first, second]), int(counts[second, first])
        if there:
            rows.append({"first": first, "second": second, "there": there, "back": back,
                         "share": float((there + back) / (sizes[first] + sizes[second]))})
    return sorted(rows, key=lambda row: -(row["there"] + row["back"]))[:n]


def fuse(probabilities: Iterable[Tensor | np.ndarray], rule: str = "mean") -> np.ndarray:
    """Late fusion: one set of scores from models that see one modality each, the baseline of a model that sees both.

    Args: probabilities: (N, C) each, rows of sum 1.  rule: "mean", or "product" (normalised; independent evidence).
    Returns: (N, C) float64, rows of sum 1.
    Raises: ValueError: another rule, other shapes, rows that are no probabilities.
    """
    stack = np.stack([np.asarray(part, dtype=np.float64) for part in probabilities])
    if stack.ndim != 3 or not ((stack >= 0).all() and np.allclose(stack.sum(axis=2), 1, atol=1e-3)):
        raise ValueError(f"fuse needs probabilities (N, C) of one shape, rows >= 0 with sum 1 (a softmax); got {stack.shape}")
    if rule == "mean":
        return stack.mean(axis=0)
    if rule != "product":
        raise ValueError(f"rule {rule!r}: expected 'mean' or 'product'")
    logs = np.log(stack.clip(1e-30)).sum(axis=0)         # a class that one model rules out (0 by rounding) keeps its order
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def compare(models: Mapping[str, Tensor | np.ndarray | Sequence], target: Tensor | np.ndarray, groups: np.ndarray | None = None,
            pairs: Iterable[tuple[str, str]] | None = None, ks: Sequence[int] = KS, confidence: float = 0.95, draws: int = 500,
            seed: int = 0) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Differences of models on the same clips, with paired intervals: both against audio only, pretrained against not.

    Args:
        models: name -> (N, C) scores, or those of S training seeds (S, N, C); one that is expected to be better comes first.
        groups, ks, confidence, draws, seed: as `classification_metrics`; several seeds are resampled as well (`paired_seeds`).
        pairs: which names to compare; None: all, each with those after it.
    Returns: {"first - second": {"top-1" | "top-5" | "mean class accuracy" | "mAP" | "AUC": (difference, low, high)}}.
    Raises: ValueError: as `classification_values`; numbers of seeds that do not fit; a name in pairs that is no model.
    """
    sets = {}
    for name, scores in models.items():
        one = [scores] if np.ndim(scores[0]) == 1 else list(scores)
        sets[name] = [_checked(some, target, ks)[0] for some in one]
    pairs = list(combinations(sets, 2)) if pairs is None else list(pairs)
    unknown = {name for pair in pairs for name in pair} - sets.keys()
    if unknown:
        raise ValueError(f"pairs name {sorted(unknown)}, the models are {list(sets)}")
    ranks, result = {name: np.stack([clip_ranks(one, target) for one in some]) for name, some in sets.items()}, {}
    for first, second in pairs:
        truth = _one_hot(sets[first][0], _checked(sets[first][0], target)[1])
        rows = {f"top-{k}": paired_seeds(ranks[first] <= k, ranks[second] <= k, groups, confidence, seed=seed) for k in ks}
        rows |= {name: bootstrap_difference(metric, sets[first], sets[second], truth, groups, confidence, draws, seed)
                 for name, metric in WEIGHTED.items()}
        result[f"{first} - {second}"] = rows
    return result


def class_oracle(labels: Sequence | np.ndarray | Tensor, ks=(1, 5, 10), map_at=(10,)) -> dict:
    """What retrieval between modalities reaches by the class alone: each clip asks for its own other half among all N clips.

    A ranker that knows the classes and nothing more puts the t clips of the right one first in random order. A model above it has
    learnt what clips of one class differ in; one below has not even learnt the classes.

    Args: labels: (N,) class of each clip of the gallery, numbers or texts.  ks, map_at: as `retrieval.retrieval_metrics`.
    Returns: {"oracle": expected {"R@k", "mAP@k"}, "chance": the same of a random order, "clips": N, "classes": how many}.
    Raises: ValueError: no clip.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not len(labels):
        raise ValueError(f"labels {labels.shape} must be (N,), one class for each of at least one clip")
    _, of_clip, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return {"oracle": retrieval.tied_metrics(torch.from_numpy(sizes[of_clip]), ks, map_at),
            "chance": retrieval.chance_metrics(np.arange(len(labels)), ks, map_at, items=len(labels)),
            "clips": len(labels), "classes": len(sizes)}


def pair_retrieval(audio: Tensor, video: Tensor, labels: Sequence | np.ndarray, groups: np.ndarray | None = None, ks=(1, 5, 10),
                   seed: int = 0) -> dict[str, dict]:
    """Sound and picture of the same clips finding each other, both ways, beside what makes R@k easy.

    Args:
        audio, video: Tensor (N, D), unit vectors; row i of both is clip i.
        labels, ks: as `class_oracle`.
        groups: (N,) which clips belong together, for the interval; None: each alone.
        seed: of the control's permutation and of the interval.
    Returns:
        "sound to picture R@k", "picture to sound R@k" and "both ways R@k", the mean of the two -> {"value", "interval" (bootstrap over groups), "chance", "baseline"
        (a ranker that knows the classes and nothing more), "control" (clips with another clip's picture), "ceiling": 1.0}.
    """
    known, own = class_oracle(labels, ks), torch.arange(len(labels))
    mixed = video[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    ways = {"sound to picture": (audio @ video.T, audio @ mixed.T), "picture to sound": (video @ audio.T, mixed @ audio.T)}
    found = {way: [retrieval.query_metrics(similarity, own, ks) for similarity in pair] for way, pair in ways.items()}
    found["both ways"] = [{f"R@{k}": np.mean([found[way][place][f"R@{k}"] for way in ways], axis=0) for k in ks} for place in (0, 1)]
    return {f"{way} {name}": {
        "value": float(hits[name].mean()), "interval": bootstrap_interval(hits[name], groups, seed=seed), "chance": known["chance"][name],
        "baseline": known["oracle"][name], "control": float(control[name].mean()), "ceiling": 1.0}
        for way, (hits, control) in found.items() for name in (f"R@{k}" for k in ks)}


def weighted_class_accuracy(scores: Tensor | np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean class accuracy of many weightings of the clips at once, for `statistics.bootstrap_difference`.

    Classes whose clips all weigh 0 are left out of that weighting's mean.

    Args: scores: (N, C).  targets: (N, C) bool, one true class a clip.  weights: (B, N) >= 0.
    Returns: (B,) float64 in [0, 1].
    """
    right = clip_ranks(scores, targets.argmax(axis=1)) == 1
    of_class, truth = weights @ targets, sparse.csr_array(targets[right].astype(np.float64))
    return _mean_of_present(np.asarray(weights[:, right] @ truth), of_class)


def weighted_auc(scores: Tensor | np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUC macro of many weightings of the clips at once: a clip of weight w counts like w copies of it.

    Args, Returns: as `weighted_class_accuracy`; classes without a positive or a negative in a weighting are left out of it.
    """
    return _mean_of_present(*_ordered_pairs(np.asarray(scores), targets, weights))


def _ordered_pairs(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of the pairs (positive, negative) that are in order, and of all pairs: (B, C) each."""
    weights, ordered, pairs = np.ascontiguousarray(np.asarray(weights, dtype=np.float64).T), [], []
    for values, true in zip(scores.T, truth.T):
        steps = np.unique(values[true])
        # place 2i: below positive step i and above the one before it; 2i + 1: equal to step i
        place = np.searchsorted(steps, values, side="left") + np.searchsorted(steps, values, side="right")
        at = [sparse.csr_array((np.ones(len(some)), (place[some], some)), shape=(2 * len(steps) + 1, len(values))) @ weights
              for some in (np.flatnonzero(true), np.flatnonzero(~true))]
        below = at[1].cumsum(axis=0) - at[1] / 2                                    # an equal score is half an error
        ordered.append((at[0] * below).sum(axis=0))
        pairs.append(at[0].sum(axis=0) * at[1].sum(axis=0))
    return np.stack(ordered, axis=1), np.stack(pairs, axis=1)


WEIGHTED = {"mean class accuracy": weighted_class_accuracy, "mAP": tagging.weighted_map_macro, "AUC": weighted_auc}


def _mean_of_present(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Mean over the classes of part / whole, both (B, C), where there is a whole."""
    shares = np.divide(part, whole, out=np.zeros(whole.shape), where=whole > 0)
    return shares.sum(axis=1) / np.maximum((whole > 0).sum(axis=1), 1)


def _interval(metric, scores, truth, groups, confidence, draws, seed) -> tuple[float, float]:
    """Interval of one model's metric: that of its difference from a model whose metric is 0."""
    nothing = np.zeros((len(truth), 1))
    either = lambda some, truth, weights: np.zeros(len(weights)) if some is nothing else metric(some, truth, weights)
    _, low, high = bootstrap_difference(either, scores, nothing, truth, groups, confidence, draws, seed)
    return max(0.0, low), min(1.0, high)


def _areas(scores: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
    """AP and AUC of each class that has a clip."""
    present = np.unique(target)         # scikit-learn's functions take 13 s for VGGSound's test clips, these half a second
    columns, truth = np.ascontiguousarray(scores.T[present]), target == present[:, None]
    precision = [(at_least(own, own) / at_least(values[None], own)).mean()
                 for values, own in zip(columns, (values[None, true] for values, true in zip(columns, truth)))]
    ordered, pairs = _ordered_pairs(columns.T, truth.T, np.ones((1, len(target))))
    return {"mAP": np.array(precision), "AUC": (ordered / pairs)[0]}


def _d_prime(auc: float, sizes: np.ndarray) -> float:
    """d' of the mean of the classes' AUC, at least half a pair of clips away from 0 and 1 in each class."""
    sizes = sizes[sizes > 0]
    margin = float((0.5 / (sizes * (sizes.sum() - sizes))).mean())
    return tagging.d_prime(min(max(auc, margin), 1 - margin))


def _table(names: Sequence, counts: np.ndarray, areas: dict[str, np.ndarray], confidence: float) -> list[dict]:
    wrong, rows = counts * (1 - np.eye(len(counts), dtype=np.int64)), []
    for place, c in enumerate(np.flatnonzero(counts.sum(axis=1))):
        size, worst = int(counts[c].sum()), int(wrong[c].argmax())
        rows.append({"class": names[c], "clips": size, "top-1": float(counts[c, c] / size),
                     "interval": wilson_interval(int(counts[c, c]), size, confidence),
                     "AP": float(areas["mAP"][place]), "AUC": float(areas["AUC"][place]),
                     "mistaken for": names[worst] if wrong[c, worst] else None, "mistakes": int(wrong[c, worst])})
    return rows


def _one_hot(scores: np.ndarray, target: np.ndarray) -> np.ndarray:
    return target[:, None] == np.arange(scores.shape[1])


def _checked(scores, target, ks: Sequence[int] = KS, one_class: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N, C) and target (N,) as arrays that the metrics are defined for."""
    scores = scores.detach().cpu() if isinstance(scores, Tensor) else np.asarray(scores)
    if isinstance(scores, Tensor):
        scores = (scores if scores.dtype == torch.float32 else scores.double()).numpy()      # numpy has no bfloat16
    target = target.detach().cpu().numpy() if isinstance(target, Tensor) else np.asarray(target)
    if scores.ndim != 2 or scores.shape[1] < 2 or target.shape != scores.shape[:1] or not len(target):
        raise ValueError(f"scores {scores.shape} and target {target.shape} must be (N, C) and (N,), with N >= 1 and C >= 2")
    if not np.issubdtype(target.dtype, np.integer) or target.min() < 0 or target.max() >= scores.shape[1]:
        raise ValueError(f"target must hold class numbers 0 to {scores.shape[1] - 1}, got {target.dtype} from {target.min()} to "
                         f"{target.max()}; use the label map that the classifier was trained with")
    bad = ~np.isfinite(scores).all(axis=1)
    if bad.any():
        raise ValueError(f"scores of {int(bad.sum())} of {len(scores)} clips are NaN or infinite, first clip {int(bad.argmax())}")
    if not one_class and target.min() == target.max():
        raise ValueError(f"all {len(target)} clips are of class {target[0]}: AUC and class accuracy need clips of two classes")
    if not ks or min(ks) < 1:
        raise ValueError(f"ks {tuple(ks)}: expected whole numbers from 1")
    return scores, target
