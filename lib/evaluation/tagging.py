"""Text-prompted tagging: clips with one or more true classes each, scored against every class.

Protocol of all numbers here. A clip is a row of scores (N, C) and of bool targets (N, C); a clip without a true class is refused,
since no answer to it can be right: leave such clips out and report how many. The k best classes of a clip are its answers; equal
scores are put in the order of the classes. Average precision and AUC read the scores themselves, equal ones as one step
(scikit-learn's definitions), so a ranker that cannot tell classes apart gains nothing from their order.

- acc@k: share of clips with at least one true class among the k best.
- recall@k: true classes among the k best / min(k, true classes), mean over clips.
- precision, recall, F1@k micro: every clip gives k answers, all are counted together; recall is over all true classes, so it
  can fall short of 1 even for a perfect ranker, and so can precision (`ceiling_metrics`).
- precision, recall, F1@k macro: means over the classes that have a positive; a class that is never an answer has precision 0.
  F1 macro is the mean of the classes' F1, not the F1 of the mean precision and recall.
- mAP samples: AP of each clip over its C classes, mean over clips (label-ranking AP). Blind to what a clip's scores share.
- mAP macro: AP of each class over the N clips, mean over the classes with a positive (what AudioSet papers call mAP); mAP micro:
  AP over all N x C decisions. Both compare scores between clips: raw similarities and a softmax over classes give other numbers,
  so say which of the two was ranked.
- AUC macro: area under the ROC curve of each class, mean over the classes with a positive and a negative; NaN without any.
k beyond C means all C classes.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import sparse, special, stats
from torch import Tensor
from torch.nn.functional import normalize

from lib.evaluation import retrieval
from lib.evaluation.retrieval import at_least, relevant_items

KS = (1, 3, 5, 10)


def class_embeddings(prompts: dict[str, list[str]], embed_text: Callable[[list[str]], Tensor]) -> Tensor:
    """One vector a class: the normalised mean of its prompts' normalised embeddings (CLIP's prompt ensembling).

    Args:
        prompts: class -> its texts, at least one each.
        embed_text: a list of B texts to Tensor (B, D).
    Returns: Tensor (C, D) of unit vectors in the order of `prompts`.
    """
    empty = [name for name, texts in prompts.items() if not texts]
    if empty:
        raise ValueError(f"class {empty[0]!r} has no prompt; give every class at least one text")
    rows = [normalize(embed_text(list(texts)).float(), dim=-1).mean(dim=0) for texts in prompts.values()]
    return normalize(torch.stack(rows), dim=-1)


def class_scores(scores: np.ndarray, queries: list[str], prompts: dict[str, list[str]]) -> np.ndarray | None:
    """Scores of classes from scores of their prompts, for rankers without embeddings.

    Args: scores: (Q, N) of Q texts against N clips.  queries: the Q texts.  prompts: class -> its texts.
    Returns: (C, N) means over the prompts of a class; None where a prompt is not among the queries.
    """
    place = {query: row for row, query in enumerate(queries)}
    if any(text not in place for texts in prompts.values() for text in texts):
        return None
    return np.stack([scores[[place[text] for text in texts]].mean(axis=0) for texts in prompts.values()])


def confusion(predicted: np.ndarray, target: np.ndarray, classes: int) -> np.ndarray:
    """Confusion counts (C, C): rows are true classes, columns predicted ones.

    Args: predicted, target: (N,) int class indices below `classes`.
    """
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (np.asarray(target), np.asarray(predicted)), 1)
    return counts


def tagging_metrics(scores: Tensor | np.ndarray, targets: Tensor | np.ndarray, ks: Sequence[int] = KS) -> dict[str, float]:
    """All numbers of the module's protocol.

    Args:
        scores: (N, C), finite, higher is more likely.
        targets: (N, C) bool, at least one true class a clip.
        ks: how many of the best classes are answers.
    Returns:
        {"acc@k", "recall@k", "precision@k micro", "recall@k micro", "F1@k micro", the same three with "macro", "mAP samples",
        "mAP macro", "mAP micro", "AUC macro"} in [0, 1], and "classes with a positive", over which macro averages go.
    Raises:
        ValueError: shapes differ, targets that are not bool, a clip without a true class, scores that are not finite, k < 1.
    """
    scores, targets = _checked(scores, targets, ks)
    best, per_clip = best_classes(scores, max(ks)), clip_metrics(scores, targets, ks)
    result = {"mAP samples" if name == "AP" else name: float(values.mean()) for name, values in per_clip.items()}
    some = targets.any(axis=0)
    for k in ks:
        hits, answers, positives = _counts(best[:, :k], targets)
        for kind, true, given, wanted in (("micro", hits.sum(), answers.sum(), positives.sum()),
                                          ("macro", hits[some], answers[some], positives[some])):
            for name, values in (("precision", _ratio(true, given)), ("recall", _ratio(true, wanted)),
                                 ("F1", _ratio(2 * true, given + wanted))):
                result[f"{name}@{k} {kind}"] = float(values.mean())
    by_class, of_class = np.ascontiguousarray(scores.T[some]), np.ascontiguousarray(targets.T[some])
    split = ~of_class.all(axis=1)
    result["mAP macro"] = float(_average_precision(by_class, of_class).mean())
    result["mAP micro"] = float(_average_precision(scores.reshape(1, -1), targets.reshape(1, -1))[0])
    result["AUC macro"] = float(_area_under_curve(by_class[split], of_class[split]).mean()) if split.any() else float("nan")
    return result | {"classes with a positive": int(some.sum())}


def clip_metrics(scores: Tensor | np.ndarray, targets: Tensor | np.ndarray, ks: Sequence[int] = KS) -> dict[str, np.ndarray]:
    """What each clip adds to the means, for paired intervals.

    Args, Raises: as `tagging_metrics`.
    Returns: {"acc@k": (N,) of 0/1, "recall@k": (N,), "AP": (N,)}; their means are acc@k, recall@k and mAP samples.
    """
    scores, targets = _checked(scores, targets, ks)
    hits = np.take_along_axis(targets, best_classes(scores, max(ks)), axis=1)
    positives, found = targets.sum(axis=1), {k: hits[:, :k].sum(axis=1) for k in ks}
    result = {f"acc@{k}": (found[k] > 0).astype(float) for k in ks}
    result |= {f"recall@{k}": found[k] / np.minimum(k, positives) for k in ks}
    return result | {"AP": _average_precision(scores, targets)}


def seed_metrics(scores: Tensor | np.ndarray, targets: Tensor | np.ndarray, total: int | None = None) -> dict[str, float]:
    """The numbers of the original hyperbolic CLAP scripts under their names, to stand beside that project's published table.

    They differ from `tagging_metrics` as follows:
    - precision, recall and F1 always take the 5 best classes of a clip;
    - macro means go over all C classes, those without a positive counting 0;
    - f1_macro is the harmonic mean of precision_macro and recall_macro;
    - map is AP per clip, mean over clips (mAP samples, never AudioSet's mAP), with equal scores ranked in the order of classes;
    - a clip whose labels match no class counts as a miss everywhere but in map, which leaves it out.
    The scripts looked only at the predictions that they kept, so that acc@10 repeated acc@5 when 5 were; here it is acc@10.

    Args:
        scores: (N, C).  targets: (N, C) bool, rows without a true class allowed.
        total: clips before those without any label were left out; None: N.
    Returns: {acc@1, acc@3, acc@5, acc@10, f1_micro, ..., recall_macro, map} in [0, 1], {valid_samples: N, total_samples}.
    """
    scores, targets = _checked(scores, targets, KS, empty=True)
    order = np.argsort(-scores, axis=1, kind="stable")
    true = np.take_along_axis(targets, order, axis=1)
    result = {f"acc@{k}": float(true[:, :k].any(axis=1).mean()) for k in KS}
    hits, answers, positives = _counts(order[:, :5], targets)
    for kind, p, r in (("micro", _ratio(hits.sum(), answers.sum()), _ratio(hits.sum(), positives.sum())),
                       ("macro", _ratio(hits, answers).mean(), _ratio(hits, positives).mean())):
        result |= {f"f1_{kind}": float(_ratio(2 * p * r, p + r)), f"precision_{kind}": float(p), f"recall_{kind}": float(r)}
    true = true[true.any(axis=1)]
    precision = true.cumsum(axis=1) / np.arange(1, true.shape[1] + 1)
    result["map"] = float(((precision * true).sum(axis=1) / true.sum(axis=1)).mean()) if len(true) else 0.0
    return result | {"valid_samples": len(scores), "total_samples": len(scores) if total is None else total}


def d_prime(auc: float) -> float:
    """Separation of two unit Gaussians with this AUC (0..1), as AudioSet papers give it beside mAP; infinite at 0 and 1."""
    return float(np.sqrt(2) * stats.norm.ppf(auc))


def weighted_map_macro(scores: Tensor | np.ndarray, targets: Tensor | np.ndarray, weights: np.ndarray) -> np.ndarray:
    """mAP macro of many weightings of the clips at once: what `statistics.bootstrap_difference` asks for.

    A clip of weight w counts like w copies of it. Classes whose positives all weigh 0 are left out of that weighting's mean.

    Args: scores, targets: as `tagging_metrics`.  weights: (B, N) >= 0.
    Returns: (B,) float64 in [0, 1].
    """
    scores, targets = _checked(scores, targets, (1,))
    weights = np.ascontiguousarray(np.asarray(weights, dtype=np.float64).T)
    total, classes = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
    for values, true in zip(scores.T, targets.T):
        steps = np.unique(values[true])                     # precision matters only where recall rises: at the positives' scores
        if not len(steps):
            continue
        step = len(steps) - np.searchsorted(steps, values, side="right")      # 0: as good as the best positive, ...
        on = np.flatnonzero(step < len(steps))                                # those below every positive never count
        clips = [sparse.csr_array((np.ones(len(some)), (step[some], some)), shape=(len(steps), len(values)))
                 for some in (on, np.flatnonzero(true))]
        reaching, positives = (matrix @ weights for matrix in clips)          # (steps, B)
        precision = _ratio(positives.cumsum(axis=0), reaching.cumsum(axis=0))
        weight = positives.sum(axis=0)
        total += _ratio((precision * positives).sum(axis=0), weight)
        classes += weight > 0
    return _ratio(total, classes)


def best_classes(scores: np.ndarray, k: int) -> np.ndarray:
    """The k best classes of every clip, best first; equal scores in the order of the classes.

    Args: scores: (N, C), finite.  k: >= 1.
    Returns: (N, min(k, C)) int64.
    """
    k = min(k, scores.shape[1])
    last = np.partition(scores, -k, axis=1)[:, [-k]]           # the k-th best score: cheaper than a stable sort of all C
    above, tied = scores > last, scores == last
    room = k - above.sum(axis=1, keepdims=True)
    chosen = above | tied & (tied.cumsum(axis=1, dtype=np.int32) <= room)
    classes = np.nonzero(chosen)[1].reshape(len(scores), k)
    order = np.argsort(-np.take_along_axis(scores, classes, axis=1), axis=1, kind="stable")
    return np.take_along_axis(classes, order, axis=1)


def chance_metrics(targets: Tensor | np.ndarray, ks: Sequence[int] = KS) -> dict[str, float]:
    """Expected metrics of scores drawn at random, each alike and without ties: exact, in closed form.

    With P true of n ranked things E[AP] = (H_n + (P - 1)(n - H_n)/(n - 1)) / n, H_n the harmonic number. A class is an answer to
    each clip with probability k/C, so how often it is one is binomial, and each time it is right with probability P/N.

    Args: targets: (N, C) bool.  ks: see `tagging_metrics`.
    Returns: the names of `tagging_metrics`.
    """
    targets = _checked(np.zeros(tuple(targets.shape), np.float32), targets, ks)[1]
    clips, classes = targets.shape
    sizes, positives = targets.sum(axis=1), targets.sum(axis=0)
    positives, of_class = np.unique(positives[positives > 0], return_counts=True)
    found = retrieval.chance_metrics(targets, ks, map_at=())
    result = {f"acc@{k}": found[f"R@{k}"] for k in ks}
    result |= {f"recall@{k}": float((min(k, classes) * sizes / classes / np.minimum(k, sizes)).mean()) for k in ks}
    for k in ks:
        k_answers, share = min(k, classes), min(k, classes) / classes
        answers = np.arange(clips + 1)[:, None]
        f1 = stats.binom.pmf(answers, clips, share) * 2 * answers * positives / clips / (answers + positives)
        result[f"precision@{k} micro"] = float(sizes.mean() / classes)
        result[f"recall@{k} micro"] = result[f"recall@{k} macro"] = share
        result[f"F1@{k} micro"] = float(2 * share * sizes.mean() / (k_answers + sizes.mean()))
        result[f"precision@{k} macro"] = float(np.average(positives / clips, weights=of_class) * (1 - (1 - share) ** clips))
        result[f"F1@{k} macro"] = float(np.average(f1.sum(axis=0), weights=of_class))
    result["mAP samples"] = float(_random_average_precision(sizes, classes).mean())
    result["mAP macro"] = float(np.average(_random_average_precision(positives, clips), weights=of_class))
    result["mAP micro"] = float(_random_average_precision(sizes.sum(), clips * classes))
    return result | {"AUC macro": 0.5, "classes with a positive": int(of_class.sum())}


def ceiling_metrics(targets: Tensor | np.ndarray, ks: Sequence[int] = KS) -> dict[str, float]:
    """What no ranker can pass, however good: with few true classes a clip, k answers cannot all be right.

    The values can be reached, each by a ranker of its own, except that those of precision and F1 macro are bounds: 1.

    Args: targets: (N, C) bool.  ks: see `tagging_metrics`.
    Returns: the names of `tagging_metrics`.
    """
    targets = _checked(np.zeros(tuple(targets.shape), np.float32), targets, ks)[1]
    sizes, positives = targets.sum(axis=1), targets.sum(axis=0)
    worth = _ratio(targets, positives) / (positives > 0).sum()      # what a hit adds to recall macro: most for rare classes
    best = np.take_along_axis(worth, best_classes(worth, max(ks)), axis=1)
    result = {f"{name}@{k}": 1.0 for name in ("acc", "recall") for k in ks}
    for k in ks:
        hits, answers = np.minimum(k, sizes).mean(), min(k, targets.shape[1])
        result |= {f"precision@{k} micro": float(hits / answers), f"recall@{k} micro": float(hits / sizes.mean()),
                   f"F1@{k} micro": float(2 * hits / (answers + sizes.mean())), f"precision@{k} macro": 1.0,
                   f"recall@{k} macro": float(best[:, :k].sum()), f"F1@{k} macro": 1.0}
    result |= {name: 1.0 for name in ("mAP samples", "mAP macro", "mAP micro", "AUC macro")}
    return result | {"classes with a positive": int((positives > 0).sum())}


def constant_scores(train_targets: Tensor | np.ndarray, n: int) -> np.ndarray:
    """The ranker that always answers the most frequent training class and cannot tell the others apart.

    Args: train_targets: (M, C) bool of the training clips.  n: clips to score.
    Returns: (n, C) float32: 1 for the most frequent class (the first of equals), 0 for the rest.
    """
    counts = np.asarray(train_targets).sum(axis=0)
    return np.tile((np.arange(len(counts)) == counts.argmax()).astype(np.float32), (n, 1))


def frequency_scores(train_targets: Tensor | np.ndarray, n: int) -> np.ndarray:
    """The ranker that gives every clip the classes in the order of how frequent they are in training.

    Args: as `constant_scores`.
    Returns: (n, C) float32: each class's share of the training clips.
    """
    return np.tile(np.asarray(train_targets).mean(axis=0).astype(np.float32), (n, 1))


class DegenerateScores(ValueError):
    """Scores that do not depend on what is heard."""


def check_answers(scores: Tensor | np.ndarray, targets: Tensor | np.ndarray | None = None, classes: Sequence[str] | None = None,
                  share: float = 0.9, tolerance: float = 1e-3) -> None:
    """Stop an evaluation whose answers are (nearly) the same for every clip.

    Args:
        scores: (N, C).  classes: their names, for the message.
        targets: (N, C) bool; given, a class that is true of more than `share` of the clips may be the answer as often.
        share: of clips that may have one best class; asked from 10 clips on, since fewer may well agree by chance.
        tolerance: rows count as equal when no class's scores differ between clips by more than this part of the scores' range.
    Raises:
        DegenerateScores: naming the class or saying that rows are equal, with what to check.
        ValueError: scores that are not finite.
    """
    scores = _finite(scores)
    causes = ("the front end (silent or constant features?), that the audio files are decoded, that the model's weights and the "
              "projection checkpoint were loaded, and the prompts")
    if len(scores) > 1 and np.ptp(scores, axis=0).max() <= tolerance * np.ptp(scores):
        raise DegenerateScores(f"the similarity rows of all {len(scores)} clips are equal (within {tolerance:g} of the range of "
                               f"scores): the clips' embeddings are all the same. Check {causes}")
    answers = np.bincount(scores.argmax(axis=1), minlength=scores.shape[1])
    top, often = int(answers.argmax()), answers.max() / len(scores)
    if len(scores) < 10 or often <= share or targets is not None and np.asarray(targets)[:, top].mean() > share:
        return
    name = repr(classes[top]) if classes is not None else f"number {top}"
    raise DegenerateScores(f"class {name} is the best answer for {often:.0%} of {len(scores)} clips (more than {share:.0%}): the "
                           f"answers hardly depend on the clip. Check {causes} (a zero vector among them is near all clips)")


def _finite(scores: Tensor | np.ndarray) -> np.ndarray:
    """Scores (N, C) as float32 or float64."""
    scores = scores.detach().cpu() if isinstance(scores, Tensor) else np.asarray(scores)
    if scores.ndim != 2 or not all(scores.shape):
        raise ValueError(f"scores {tuple(scores.shape)} must be (clips, classes), at least one of each")
    if isinstance(scores, Tensor):
        scores = (scores if scores.dtype in (torch.float32, torch.float64) else scores.double()).numpy()
    scores = scores if scores.dtype in (np.float32, np.float64) else scores.astype(np.float64)
    bad = ~np.isfinite(scores).all(axis=1)
    if bad.any():
        raise ValueError(f"scores of {int(bad.sum())} of {len(scores)} clips are NaN or infinite, the first is clip "
                         f"{int(bad.argmax())}; check the embeddings")
    return scores


def _checked(scores, targets, ks: Sequence[int], empty: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Scores and targets (N, C) as arrays that the metrics are defined for; `empty`: clips without a true class may stay."""
    scores = _finite(scores)
    targets = targets.cpu().numpy() if isinstance(targets, Tensor) else np.asarray(targets)
    if targets.shape != scores.shape or targets.dtype != np.bool_:
        raise ValueError(f"targets {targets.dtype} {targets.shape} must be bool and have the shape of scores {scores.shape}")
    none = ~targets.any(axis=1)
    if none.any() and not empty:
        raise ValueError(f"{int(none.sum())} of {len(targets)} clips have no true class, the first is clip {int(none.argmax())}; "
                         "leave such clips out and report how many")
    if not ks or min(ks) < 1:
        raise ValueError(f"ks {tuple(ks)}: expected whole numbers from 1")
    return scores, targets


def _counts(best: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each class (C,): right answers, answers, clips that it is true of. `best`: (N, k) class indices."""
    classes = targets.shape[1]
    hits = best[np.take_along_axis(targets, best, axis=1)]
    return np.bincount(hits, minlength=classes), np.bincount(best.ravel(), minlength=classes), targets.sum(axis=0)


def _ratio(part, whole) -> np.ndarray:
    """part / whole, and 0 where there is no whole."""
    return np.divide(part, whole, out=np.zeros(np.broadcast_shapes(np.shape(part), np.shape(whole))), where=np.asarray(whole) > 0)


def _positives(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores of each row's positives (R, P), -inf after the last, and how many there are (R,) >= 1."""
    items, counts = relevant_items(targets, *scores.shape)
    return np.where(items < 0, -np.inf, np.take_along_axis(scores, items, axis=1)).astype(scores.dtype), counts


def _average_precision(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """AP of each row of (R, n): the mean over its positives of the share of positives among all that score at least as high."""
    own, counts = _positives(scores, targets)
    precision = at_least(own, own) / at_least(scores, own)
    return np.where(np.isfinite(own), precision, 0).sum(axis=1) / counts


def _area_under_curve(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """AUC of each row of (R, n), which has both kinds: the share of (positive, negative) pairs in order, equal scores half."""
    own, counts = _positives(scores, targets)
    reaching = at_least(scores, own) - at_least(own, own)                                       # negatives, from the score on
    beyond = scores.shape[1] - at_least(-scores, -own) - own.shape[1] + at_least(-own, -own)    # negatives above the score
    wrong = np.where(np.isfinite(own), (reaching + beyond) / 2, 0).sum(axis=1)
    return 1 - wrong / (counts * (scores.shape[1] - counts))


def _random_average_precision(positives: np.ndarray, n: int) -> np.ndarray:
    """Expected AP of `positives` (any shape, >= 1) among n in random order; see `chance_metrics`."""
    harmonic = np.euler_gamma + special.digamma(n + 1)
    return (harmonic + (positives - 1) * (n - harmonic) / max(n - 1, 1)) / n
