"""Can the positive of a triplet be named without matching audio and text? Baselines that must stay at 1/3.

A dual encoder scores each candidate by itself: the three captions never meet. So the test is a scorer of single members, from the
captions alone or from the audio alone, trained to tell positives from negatives and cross-validated by triplet; the member with
the highest score is named. What it finds is a mark of the role (one writer for positives and another for negatives, a place that
only positives have), and then accuracies within triplets overstate what a model knows.

Against whom the positive is named matters. Both negatives of a triplet tell the places in the same sequence, the positive alone
in the other (see `relational_rule`): any preference among sequences, even one drawn by lot, names the positive of its own
triplet in 1/2 of all cases, preferences among events in 1/4. So 1/3 is no null value there. The positive is therefore named
against a temporal and a spatial negative of any other held-out triplet: where no member shows its role the three are alike in
distribution and the accuracy is 1/3 for every scorer. Within its own triplet a scorer and its negative name the positive equally
often, and each negative is beaten in 1/2 of all cases; these are reported beside it.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import torch
from scipy.sparse import csr_matrix, hstack, issparse
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.feature_selection import SelectFromModel
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MaxAbsScaler, StandardScaler
from torch import Tensor

from lib.audio.directions import DIRECTIONS
from lib.evaluation.statistics import bootstrap_interval, wilson_interval
from lib.evaluation.triplets import TIE, share_of_best
from lib.progress import track

CHANCE = 1 / 3
_PENALTY = 0.03             # inverse strength of the linear scorer's: thousands of features, most of them beside the point
_BOOSTED_FEATURES = 1024    # what trees are grown on, at most; of more the linear scorer's largest: time is proportional


def text_only_baseline(captions: Sequence[str | Sequence[str]], groups: np.ndarray | None = None, folds: int = 5,
                       seed: int = 0) -> dict:
    """Name the positive from captions alone.

    A member's features are its words and marks, with case; pairs of neighbours; words with their place from the start and from
    the end; the numbers of words and of characters; averaged over its captions.

    Args:
        captions: 3B texts, or 3B lists of texts; rows 3b, 3b + 1, 3b + 2 = positive, temporal negative, spatial negative.
        groups: (3B,) triplets that are held out together, such as those of the same two clips; None: each triplet alone.
        folds: of the cross-validation.  seed: of folds.
    Returns:
        "linear", "boosted": {"accuracy": share of draws (a positive, two negatives from other triplets) whose positive is named,
        chance 1/3, with "interval" (low, high; resampling groups); "own": share of triplets whose positive is named among its
        own members, "own_chance": what this scorer reaches there without any mark; "temporal", "spatial": share of triplets where
        the positive beats that negative, chance 1/2}; "chance": 1/3, "n": B, "folds". Ties count in parts.
    Raises: ValueError: no whole triplets, a member without caption, groups that split a triplet or are fewer than folds.
    """
    texts = [[row] if isinstance(row, str) else list(row) for row in captions]
    if not all(texts):
        raise ValueError(f"member {[bool(row) for row in texts].index(False)} has no caption")
    member = np.repeat(np.arange(len(texts)), [len(row) for row in texts])
    flat = [text for row in texts for text in row]
    # Words that occur once cannot help on other triplets. The vocabulary holds no labels: it may come from all folds.
    words = CountVectorizer(analyzer=_written, binary=True, min_df=min(2, len(flat)), dtype=np.float32).fit_transform(flat)
    lengths = csr_matrix([[len(_TOKEN.findall(text)), len(text)] for text in flat], dtype=np.float32)
    mean = csr_matrix((1 / np.bincount(member)[member], (member, np.arange(len(flat)))), dtype=np.float32)
    return _name_positive(mean @ hstack([words, lengths], format="csr"), MaxAbsScaler, groups, folds, seed)


def audio_only_baseline(features: np.ndarray, groups: np.ndarray | None = None, folds: int = 5, seed: int = 0) -> dict:
    """Name the positive from audio alone.

    Args: features: (3B, F), such as `chunk_statistics`; the rest as `text_only_baseline`.
    Returns: as `text_only_baseline`.
    Raises: ValueError: as `text_only_baseline`; NaN.
    """
    features = np.asarray(features, dtype=np.float32)
    if features.ndim != 2 or not np.isfinite(features).all():
        raise ValueError(f"features {features.shape} must be (3B, F) and finite")
    return _name_positive(features, StandardScaler, groups, folds, seed)


def chunk_statistics(features: Tensor | np.ndarray, chunks: int = 4, bands: int = 16) -> np.ndarray:
    """What is heard when: mean and standard deviation of every channel and band in equal chunks of time.

    Args:
        features: (N, 7, T, F) log-mel and intensity vectors, time before mels.  chunks: of time, the rest goes to the last.
        bands: neighbouring mels are averaged to this many; F is a multiple of it, or below it and kept.
    Returns: (N, 2 * chunks * 7 * min(bands, F)) float32.
    """
    features = torch.as_tensor(features).detach().cpu().float()
    if features.ndim != 4 or features.shape[2] < chunks or (features.shape[3] > bands and features.shape[3] % bands):
        raise ValueError(f"features {tuple(features.shape)} must be (N, channels, frames, mels) with at least {chunks} frames "
                         f"and a multiple of {bands} mels")
    if features.shape[3] > bands:
        features = features.unflatten(3, (bands, -1)).mean(dim=4)
    step = features.shape[2] // chunks
    parts = [features[:, :, i * step:(i + 1) * step if i < chunks - 1 else None] for i in range(chunks)]
    return torch.stack([statistic for part in parts for statistic in (part.mean(dim=2), part.std(dim=2, correction=0))],
                       dim=1).flatten(1).numpy()


def relational_rule(places: Sequence[Sequence[Hashable]]) -> dict:
    """Name the positive by comparing the members with each other: 1 by construction, whatever the sounds.

    With A at p before B at q the positive's places are told as (p, q); the temporal negative (B at q, A at p) and the spatial one
    (A at q, B at p) both have (q, p). The member whose sequence of places is unlike the other two's is the positive.

    No dual encoder can follow this rule: it scores each member by itself, and no score of one member alone says whether the
    other two agree.

    Args: places: 3B sequences of places in temporal order, such as ("east", "north"); rows as `text_only_baseline`.
    Returns: {"accuracy", "interval", "chance", "n"}. Members that are all alike, or all unlike, share the choice.
    """
    places = [tuple(row) for row in places]
    groups = [places[row:row + 3] for row in range(0, len(places), 3)]
    if len(places) % 3 or not places:
        raise ValueError(f"{len(places)} members are no whole triplets (positive, temporal negative, spatial negative)")
    unlike = torch.tensor([[float(sum(other != mine for other in trio)) for mine in trio] for trio in groups])
    hits, n = float(share_of_best(unlike)[:, 0].sum()), len(groups)
    return {"accuracy": hits / n, "interval": wilson_interval(min(hits, n), n), "chance": CHANCE, "n": n}


def told_directions(caption: str) -> tuple[str, ...]:
    """Direction words of a caption in the order in which it tells them, for `relational_rule`: ("east", "northwest")."""
    return tuple(re.findall(rf"\b({'|'.join(DIRECTIONS)})\b", caption.lower()))


_TOKEN = re.compile(r"\w+|[^\w\s]")


def _written(text: str) -> list[str]:
    """Everything about a caption that may give its role away, as tokens; separators keep the four kinds apart."""
    words = _TOKEN.findall(text)
    return (words + [f"{a} {b}" for a, b in zip(words, words[1:])]
            + [f"{place}@{word}" for place, word in enumerate(words)]
            + [f"{place}~{word}" for place, word in enumerate(words[::-1])])


def _dense(x) -> np.ndarray:
    return x.toarray() if issparse(x) else x


def _name_positive(features, scaler: Callable, groups: np.ndarray | None, folds: int, seed: int) -> dict:
    """Accuracies of both scorers on held-out triplets; features (3B, F) may be sparse."""
    members = features.shape[0]
    if members % 3 or not members:
        raise ValueError(f"{members} members are no whole triplets (positive, temporal negative, spatial negative)")
    groups = np.arange(members) // 3 if groups is None else np.asarray(groups)
    if groups.shape != (members,) or (groups.reshape(-1, 3) != groups[::3, None]).any():
        raise ValueError(f"groups {groups.shape} must name a group for each of {members} members, "
                         "the same for all three of a triplet")
    if len(np.unique(groups)) < folds:
        raise ValueError(f"{len(np.unique(groups))} groups cannot be held out in {folds} folds; score more triplets or "
                         "use fewer folds")
    linear = lambda: LogisticRegression(C=_PENALTY, max_iter=200)
    chosen = lambda: SelectFromModel(linear(), threshold=-np.inf, max_features=min(_BOOSTED_FEATURES, features.shape[1]))
    trees = lambda: HistGradientBoostingClassifier(max_iter=40, max_leaf_nodes=15, max_features=0.2, early_stopping=False,
                                                   random_state=seed)
    kinds = {"linear": lambda: make_pipeline(scaler(), linear()),
             "boosted": lambda: make_pipeline(scaler(), chosen(), FunctionTransformer(_dense), trees())}
    positive = np.arange(members) % 3 == 0
    scores = {name: np.empty(members) for name in kinds}
    parts = list(GroupKFold(folds, shuffle=True, random_state=seed).split(positive, groups=groups))
    for train, held_out in track(parts, len(parts), "shortcut baseline, folds"):
        for name, make in kinds.items():
            scores[name][held_out] = make().fit(features[train], positive[train]).decision_function(features[held_out])
    fold = np.empty(members // 3, np.int64)
    for i, (_, held_out) in enumerate(parts):
        fold[held_out[::3] // 3] = i
    return {name: _accuracies(torch.from_numpy(score).view(-1, 3), fold, groups[::3], seed) for name, score in scores.items()} | {
        "chance": CHANCE, "n": members // 3, "folds": folds}


def _accuracies(scores: Tensor, fold: np.ndarray, groups: np.ndarray, seed: int) -> dict:
    """What `text_only_baseline` returns for scores (B, 3). Members that tie share the choice: their order in the file, which is
    their role, never decides."""
    strangers = np.empty(len(scores))
    for part in np.unique(fold):            # scores of two folds come from two scorers and have no common scale
        strangers[fold == part] = _against_strangers(scores[torch.from_numpy(fold == part)].numpy())
    best, worst = (share_of_best(sign * scores)[:, 0].mean().item() for sign in (1, -1))
    return {"accuracy": float(strangers.mean()), "interval": bootstrap_interval(strangers, groups, seed=seed),
            "own": best, "own_chance": (best + worst) / 2,
            **{name: share_of_best(scores[:, [0, i]])[:, 0].mean().item() for name, i in (("temporal", 1), ("spatial", 2))}}


def _against_strangers(scores: np.ndarray) -> np.ndarray:
    """Share of all B^3 draws of a positive, a temporal and a spatial negative whose positive scores highest, as the mean of what
    each triplet adds to it.

    A triplet adds by all three members; the sum of their parts less twice the mean is the linear part of this U-statistic, whose
    resampling gives its interval.
    """
    positive, temporal, spatial = scores.T
    above, level = {}, {}
    for name, negative in (("temporal", temporal), ("spatial", spatial)):
        above[name] = (positive[:, None] > negative + TIE).astype(float)                        # (B positives, B negatives)
        level[name] = (np.abs(positive[:, None] - negative) <= TIE).astype(float)
    mean = {name: (above[name].mean(axis=1, keepdims=True), level[name].mean(axis=1, keepdims=True)) for name in above}
    share = lambda a, tie_a, b, tie_b: a * b + (tie_a * b + a * tie_b) / 2 + tie_a * tie_b / 3
    of_positive = share(*mean["temporal"], *mean["spatial"])[:, 0]
    of_temporal = share(above["temporal"], level["temporal"], *mean["spatial"]).mean(axis=0)
    of_spatial = share(above["spatial"], level["spatial"], *mean["temporal"]).mean(axis=0)
    return of_positive + of_temporal + of_spatial - 2 * of_positive.mean()
