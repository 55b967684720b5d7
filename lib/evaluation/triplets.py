"""What a spatial-temporal model knows of order and place: within triplets, in a gallery, by words of direction, by modality.

Rows of a batch of B triplets: 3b, 3b + 1, 3b + 2 = positive, temporal negative (order reversed), spatial negative (places
swapped), each with its own audio and its own captions. A text (N, K, D) holds K captions a clip; caption k of a member is
compared with caption k of the others (they share their wording), and a triplet counts the mean over its captions. Similarity is
the cosine.

What a high accuracy means: both negatives tell the places in the opposite sequence, so that a model that hears only the sequence
of directions, and nothing of which sound comes from where, is right about every positive; `PARTIAL` has what models with one such
ability reach. Only the accuracy with every member as anchor asks for two of them, and it alone is 1/3 for every model that
ignores its anchor: a preference for some audio, whatever was asked, names from 1/4 to 1/2 of the positives.

The gallery counts ties against the model, as `lib.evaluation.retrieval` does everywhere; a choice among few shares a tie among
the tied, so that a model that cannot tell them apart is exactly at chance.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from lib.audio.directions import DIRECTIONS, direction_index
from lib.evaluation.retrieval import Relevance, chance_metrics, ranked_query_metrics, summarise, transposed
from lib.evaluation.statistics import bootstrap_interval, paired_bootstrap, wilson_interval
from lib.progress import track

TIE = 1e-6          # cosines of float32 embeddings carry no more; what differs by less is equal
CHANCE = {"temporal": 1 / 2, "spatial": 1 / 2, "both": 1 / 3, "every": 1 / 3}
PARTIAL = {     # accuracies of models that know one thing and nothing else, in closed form, from either anchor
    "order of the sounds": {"temporal": 1.0, "spatial": 1 / 2, "both": 1 / 2, "every": 2 / 3},
    "place of each sound": {"temporal": 1 / 2, "spatial": 1.0, "both": 1 / 2, "every": 2 / 3},
    "sequence of directions": {"temporal": 1.0, "spatial": 1.0, "both": 1.0, "every": 2 / 3}}
POSITIVE, TEMPORAL, SPATIAL = range(3)


def share_of_best(scores: Tensor) -> Tensor:
    """Each candidate's share of being chosen: 1 for the best one, 1/m for m that tie within `TIE`, 0 for the others.

    Args: scores: (..., C).  Returns: (..., C) float64, sums to 1.
    """
    best = (scores >= scores.amax(dim=-1, keepdim=True) - TIE).double()
    return best / best.sum(dim=-1, keepdim=True)


def triplet_scores(audio: Tensor, text: Tensor) -> dict[str, np.ndarray]:
    """Every triplet's accuracies, for intervals and for the best and worst triplets.

    Args: audio: (3B, D).  text: (3B, D) or (3B, K, D).
    Returns:
        "<anchor> <what>" -> (B,) in [0, 1]. Anchor "text": the positive's caption chooses among the audios; "audio": the
        positive's audio chooses among the captions. What: "temporal" (against the temporal negative), "spatial", "both" (best of
        the three) and "every": each member in turn is the anchor, so that nothing that marks the positive's role helps.
    Raises: ValueError: no whole triplets, shapes that do not fit, NaN.
    """
    similarity = _similarity(audio, text)                                                       # (B, 3 audio, 3 text, K)
    result = {}
    for anchor, scores in (("text", similarity.permute(0, 3, 2, 1)), ("audio", similarity.permute(0, 3, 1, 2))):
        own = scores[:, :, POSITIVE]                              # (B, K, 3 candidates)
        result[f"{anchor} temporal"] = share_of_best(own[..., [POSITIVE, TEMPORAL]])[..., 0]
        result[f"{anchor} spatial"] = share_of_best(own[..., [POSITIVE, SPATIAL]])[..., 0]
        result[f"{anchor} both"] = share_of_best(own)[..., 0]
        result[f"{anchor} every"] = share_of_best(scores).diagonal(dim1=2, dim2=3).mean(dim=-1)
    return {name: share.mean(dim=1).numpy() for name, share in result.items()}


def triplet_metrics(audio: Tensor, text: Tensor) -> dict:
    """Within-triplet accuracies with their intervals, beside chance.

    Args: as `triplet_scores`.
    Returns:
        The names of `triplet_scores` -> accuracy; "temporal sensitivity": "text temporal" under the seed's name; "interval":
        name -> (low, high), Wilson over B triplets (wider than needed where captions are averaged); "chance": name -> level;
        "n": B; "per_triplet": `triplet_scores`.
    """
    per_triplet = triplet_scores(audio, text)
    means = {name: float(share.mean()) for name, share in per_triplet.items()}
    n = len(per_triplet["text both"])
    return means | {
        "temporal sensitivity": means["text temporal"],
        "interval": {name: _wilson(share.sum(), n) for name, share in per_triplet.items()},
        "chance": {name: CHANCE[name.split()[1]] for name in means}, "n": n, "per_triplet": per_triplet}


def member_confusion(audio: Tensor, text: Tensor, members: Sequence[int] = (0, 1, 2), anchor: str = "audio") -> np.ndarray:
    """Which member of its triplet is chosen for each, to plot: (POSITIVE, TEMPORAL) for orders, (POSITIVE, SPATIAL) for places.

    Args:
        audio, text: as `triplet_scores`.  members: the C rows of a triplet that are compared, each of them as anchor in turn.
        anchor: "audio" chooses among captions, "text" among audios.
    Returns: (C, C) float64 counts, true member against chosen, summing to B * C; ties and captions count in parts.
    """
    members = list(members)
    similarity = _similarity(audio, text)[:, members][:, :, members]
    if anchor not in ("audio", "text"):
        raise ValueError(f"anchor {anchor!r} must be 'audio' or 'text'")
    scores = similarity.permute((0, 3, 1, 2) if anchor == "audio" else (0, 3, 2, 1))
    return share_of_best(scores).mean(dim=1).sum(dim=0).numpy()


def gallery_metrics(audio: Tensor, text: Tensor, keys: Sequence[Sequence[str]] | None = None, groups: np.ndarray | None = None,
                    ks=(1, 5, 10)) -> dict:
    """Retrieval over the whole gallery, both ways, beside chance.

    Text to audio asks with every caption. Audio to text ranks all N * K captions: R@k counts the best of the relevant ones,
    mAP@10 sums m / rank_m over their sorted ranks up to 10, divided by how many they are (K without keys).

    Args:
        audio: (N, D).  text: (N, D) or (N, K, D).
        keys: N lists of K texts, what each caption says (the captions themselves): a clip is relevant to every caption that says
            the same as one of its own. None: only to its own.
        groups: (N,) clips that are resampled together, such as the members of a triplet; None: each clip alone.
        ks: of R@k.
    Returns:
        "text_to_audio", "audio_to_text": {"R@k", "mAP@10", "median_rank", "interval": {name: (low, high)}, "chance": {name: ...},
        "n"}; "mAP@1": text-to-audio R@1, under the seed's name.
    Raises: ValueError: shapes that do not fit, NaN.
    """
    audio, text = _paired(audio, text)
    clips, captions = text.shape[:2]
    own = np.repeat(np.arange(clips), captions)
    relevant: Relevance = torch.from_numpy(own)
    if keys is not None:
        if len(keys) != clips or any(isinstance(k, str) or len(k) != captions for k in keys):
            raise ValueError(f"keys must hold {clips} lists of {captions} texts, one for each caption of each clip")
        says: dict[str, list[int]] = {}
        for clip, row in enumerate(keys):
            for key in row:
                says.setdefault(key, []).append(clip)
        relevant = [says[key] for row in keys for key in row]
    groups = np.arange(clips) if groups is None else np.asarray(groups)
    text = text.flatten(0, 1)
    result = {"text_to_audio": _ranked(text, audio, relevant, groups[own], ks),
              "audio_to_text": _ranked(audio, text, transposed(relevant, clips * captions, clips), groups, ks)}
    return result | {"mAP@1": result["text_to_audio"]["R@1"]} if 1 in ks else result


def zero_shot_direction(audio: Tensor, direction_text: Tensor, azimuth: np.ndarray) -> dict:
    """Direction by the most similar of eight direction sentences.

    Args:
        audio: (N, D) spatial, semantic or joint embeddings of one event each.  azimuth: (N,) degrees.
        direction_text: (8, D) embeddings of a sentence for each word of `lib.audio.directions.DIRECTIONS`, in that order.
    Returns:
        "accuracy" and "adjacent" (the true sector or a neighbour), each with "... interval" and "... chance" (1/8, 3/8);
        "majority": accuracy of always saying the most frequent direction; "confusion": (8, 8) true against chosen, ties in
        parts; "n".
    Raises: ValueError: shapes that do not fit, NaN.
    """
    sectors = len(DIRECTIONS)
    if audio.ndim != 2 or not len(audio) or direction_text.shape != (sectors, audio.shape[1]) or len(azimuth) != len(audio):
        raise ValueError(f"audio {tuple(audio.shape)}, direction_text {tuple(direction_text.shape)} and azimuth "
                         f"{np.shape(azimuth)} must be (N, D), ({sectors}, D) in the order of DIRECTIONS and (N,)")
    true = direction_index(azimuth)
    chosen = share_of_best(_unit(audio, "audio") @ _unit(direction_text, "direction_text").T).numpy()
    confusion = np.eye(sectors)[true].T @ chosen
    steps = np.abs(np.subtract.outer(np.arange(sectors), np.arange(sectors)))
    n, hits, near = len(true), np.trace(confusion), confusion[np.minimum(steps, sectors - steps) <= 1].sum()
    return {"accuracy": float(hits / n), "accuracy interval": _wilson(hits, n), "accuracy chance": 1 / sectors,
            "adjacent": float(near / n), "adjacent interval": _wilson(near, n), "adjacent chance": 3 / sectors,
            "majority": float(np.bincount(true).max() / n), "confusion": confusion, "n": n}


def edit_embedding(semantic: Tensor, spatial: Tensor, s: Tensor, direction_text: Tensor) -> Tensor:
    """The joint embedding with its place replaced: semantic + s * |spatial| * unit(text of the new direction).

    Args:
        semantic, spatial: (N, D) of the audio, not normalised.  s: (D,) weights of the joint embedding.
        direction_text: (D,) or (N, D) text embedding of the new direction, of any length.
    Returns: (N, D), not normalised.
    """
    return semantic + s * spatial.norm(dim=-1, keepdim=True) * torch.nn.functional.normalize(direction_text, dim=-1)


def edited_retrieval(edited: Tensor, unedited: Tensor, captions: Tensor, relevant: Relevance, groups: np.ndarray | None = None,
                     ks=(1, 10)) -> dict:
    """Whether an edited embedding finds captions of the new direction, beside the same search without the edit.

    Args:
        edited, unedited: (N, D) joint embeddings after and before `edit_embedding`.  captions: (M, D) the gallery.
        relevant: of each clip the captions that tell of the new direction (see `lib.evaluation.retrieval`); at least one each.
        groups: (N,) clips that are resampled together; None: each alone.
    Returns: "edited", "unedited": {"R@k", ..., "interval", "chance", "n"}; "gain": {"R@k": (difference, low, high)}.
    """
    if edited.shape != unedited.shape:
        raise ValueError(f"edited {tuple(edited.shape)} and unedited {tuple(unedited.shape)} must be the same clips, (N, D)")
    groups = np.arange(len(edited)) if groups is None else np.asarray(groups)
    gallery = _unit(captions, "captions").float()
    found = {name: ranked_query_metrics(_unit(x, name).float(), gallery, relevant, ks, (10,))
             for name, x in (("edited", edited), ("unedited", unedited))}
    gain = {f"R@{k}": paired_bootstrap(found["edited"][f"R@{k}"], found["unedited"][f"R@{k}"], groups) for k in ks}
    return {name: _with_context(per, relevant, len(gallery), groups, ks) for name, per in found.items()} | {"gain": gain}


def probe_modality(audio: Tensor, text: Tensor, groups: np.ndarray, seed: int = 0, folds: int = 5) -> dict:
    """How well fresh classifiers tell audio from text embeddings: a claim that does not rest on the adversary trained with them.

    Embeddings are scaled to unit length, as they are compared; a linear and a two-layer classifier are cross-validated, no group
    on both sides. Audio and text rows are as many, so that chance is 1/2.

    Args: audio, text: (N, D), row i of both the same clip.  groups: (N,) rows held out together.  seed: of folds and weights.
    Returns: "linear", "two_layer": {"accuracy", "interval" (resampling groups)}; "chance", "n": 2N, "folds".
    Raises: ValueError: shapes that do not fit, fewer groups than folds, NaN.
    """
    groups = np.asarray(groups)
    if audio.shape != text.shape or audio.ndim != 2 or groups.shape != (len(audio),) or len(set(groups)) < folds:
        raise ValueError(f"audio {tuple(audio.shape)}, text {tuple(text.shape)} and groups {groups.shape} must be (N, D), (N, D) "
                         f"and (N,) with at least {folds} groups")
    rows = torch.cat([_unit(audio, "audio"), _unit(text, "text")]).numpy()
    label, group = np.repeat([0, 1], len(audio)), np.tile(groups, 2)
    kinds = {"linear": lambda: LogisticRegression(C=0.1, max_iter=300),
             "two_layer": lambda: MLPClassifier((64,), alpha=1e-3, early_stopping=True, random_state=seed)}
    correct = {name: np.empty(len(rows)) for name in kinds}
    parts = list(GroupKFold(folds, shuffle=True, random_state=seed).split(rows, groups=group))
    for train, held_out in track(parts, len(parts), "modality probe, folds"):
        for name, make in kinds.items():
            fitted = make_pipeline(StandardScaler(), make()).fit(rows[train], label[train])
            correct[name][held_out] = fitted.predict(rows[held_out]) == label[held_out]
    return {name: {"accuracy": float(hits.mean()), "interval": bootstrap_interval(hits, group, seed=seed)}
            for name, hits in correct.items()} | {"chance": 0.5, "n": len(rows), "folds": folds}


def _unit(x: Tensor, name: str) -> Tensor:
    """Rows of unit length, float64 on the CPU; zero rows stay zero."""
    x = x.detach().cpu().double()
    if not x.isfinite().all():
        raise ValueError(f"{name} has {int((~x.isfinite()).any(dim=-1).sum())} embeddings with NaN or infinity")
    return torch.nn.functional.normalize(x, dim=-1)


def _paired(audio: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Unit embeddings (N, D) and (N, K, D)."""
    text = text[:, None] if text.ndim == 2 else text
    if audio.ndim != 2 or text.ndim != 3 or (text.shape[0], text.shape[2]) != tuple(audio.shape) or not text.numel():
        raise ValueError(f"audio {tuple(audio.shape)} and text {tuple(text.shape)} must be (N, D) and (N, D) or (N, captions, D)")
    return _unit(audio, "audio"), _unit(text, "text")


def _similarity(audio: Tensor, text: Tensor) -> Tensor:
    """Cosine of each member's audio with each member's captions: (B, 3 audio, 3 text, K)."""
    audio, text = _paired(audio, text)
    if len(audio) % 3:
        raise ValueError(f"{len(audio)} rows are no whole triplets (positive, temporal negative, spatial negative)")
    return torch.einsum("bid,bjkd->bijk", audio.unflatten(0, (-1, 3)), text.unflatten(0, (-1, 3)))


def _wilson(successes: float, n: int) -> tuple[float, float]:
    return wilson_interval(min(float(successes), n), n)         # shares of ties may sum to n and a rounding error


def _ranked(queries: Tensor, items: Tensor, relevant: Relevance, groups: np.ndarray, ks) -> dict:
    found = ranked_query_metrics(queries.float(), items.float(), relevant, ks, (10,))
    return _with_context(found, relevant, len(items), groups, ks)


def _with_context(per_query: dict[str, np.ndarray], relevant: Relevance, items: int, groups: np.ndarray, ks) -> dict:
    return summarise(per_query) | {
        "interval": {name: bootstrap_interval(values, groups) for name, values in per_query.items() if name != "rank"},
        "chance": chance_metrics(relevant, ks, (10,), items=items), "n": len(groups)}
