"""What a trained model is judged by: a baseline without a network below it, ceilings above it."""
from __future__ import annotations

import numpy as np
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler, normalize
from torch import Tensor

from lib.audio.logmel import LogMel
from lib.data.manifest import Manifest
from lib.data.scene_captions import caption_relevance
from lib.evaluation.retrieval import retrieval_metrics, tied_metrics
from lib.media import audio
from lib.progress import track


class RidgeBagOfWords:
    """Retrieval without a network: ridge regression from log-mel statistics to the caption's bag of words.

    A clip is the mean and deviation over time of its log-mel spectrogram; its target is the mean over its captions of the
    words that occur. A query is scored by the cosine between its words and the words predicted for a clip, both centred by the
    training mean, so that words of every caption do not count.

    Args:
        alpha: ridge penalty on standardised features; chosen on the validation split by the caller.
    """

    def __init__(self, alpha: float = 100.0):
        self.alpha = alpha

    def fit(self, statistics: np.ndarray, captions: list[list[str]]) -> "RidgeBagOfWords":
        """Args: statistics: (N, F) from `log_mel_statistics`.  captions: N lists of texts."""
        self.words = CountVectorizer(binary=True, token_pattern=r"(?u)\b\w+\b").fit([c for texts in captions for c in texts])
        targets = np.stack([self.words.transform(texts).toarray().mean(axis=0) for texts in captions])
        self.mean = targets.mean(axis=0)
        self.scaler = StandardScaler().fit(statistics)
        self.ridge = Ridge(alpha=self.alpha).fit(self.scaler.transform(statistics), targets)
        return self

    def similarity(self, queries: list[str], statistics: np.ndarray) -> np.ndarray:
        """Scores (Q, N) of Q query texts against N clips with statistics (N, F)."""
        predicted = self.ridge.predict(self.scaler.transform(statistics)) - self.mean
        asked = self.words.transform(queries).toarray() - self.mean
        return normalize(asked) @ normalize(predicted).T


def log_mel_statistics(log_mel: np.ndarray) -> np.ndarray:
    """Mean and standard deviation over time: (N, mels, frames) to (N, 2 mels)."""
    return np.concatenate([log_mel.mean(axis=2), log_mel.std(axis=2)], axis=1)


def clip_statistics(manifest: Manifest, seconds: float) -> np.ndarray:
    """`log_mel_statistics` of every clip's first `seconds`, without padding: (N, 256)."""
    front_end = LogMel().eval()
    rows = []
    for i in track(range(len(manifest)), len(manifest), "log-mel statistics"):
        clip = manifest.row(i)
        wave = audio.read(manifest.file(i), sample_rate=front_end.config.sample_rate, start=clip["start"],
                          duration=min(seconds, clip["duration"]))
        rows.append(log_mel_statistics(front_end(wave).numpy())[0])
    return np.stack(rows)


def ridge_similarity(manifest: Manifest, queries: list[str], relevance, *, split: str, fit_splits: list[str], seconds: float,
                     alphas=(1.0, 10.0, 100.0, 1e3, 1e4)) -> tuple[np.ndarray, float]:
    """Scores of the ridge baseline on a split; its penalty is chosen by mAP@10 on the validation split.

    Args:
        manifest: all splits.  queries: Q texts.  split: the one that is scored.  fit_splits: what the model was trained on.
        relevance: a sub-manifest to (queries, relevant (Q, N), ...), used to choose the penalty.
        seconds: window of a clip.
    Returns: (Q, N) scores and the penalty.
    """
    needed = {"train", "val", split, *fit_splits}        # the test clips are not even opened when another split is scored
    parts = {name: manifest.select(name) for name in manifest.splits if name in needed}
    features = {name: clip_statistics(part, seconds) for name, part in parts.items()}
    captions = {name: [list(c) for c in part.table["captions"]] for name, part in parts.items()}
    best = alphas[len(alphas) // 2]
    if "val" in parts and "train" in parts:
        asked, relevant, *_ = relevance(parts["val"])
        trial = {a: RidgeBagOfWords(a).fit(features["train"], captions["train"]).similarity(asked, features["val"]) for a in alphas}
        best = max(alphas, key=lambda a: retrieval_metrics(torch.from_numpy(trial[a]), relevant)["mAP@10"])
    fitted = RidgeBagOfWords(best).fit(np.concatenate([features[s] for s in fit_splits]), [c for s in fit_splits for c in captions[s]])
    return fitted.similarity(queries, features[split]), best


def ceilings(manifest: Manifest, relevant: Tensor, group: np.ndarray) -> dict[str, dict[str, float]]:
    """The best that the data allow.

    Args: manifest: the N clips of the gallery.  relevant: Tensor (Q, N) bool.  group: (Q,) see `lib.families.retrieval.Gallery`.
    Returns:
        name -> metrics. "annotation": a ranker that reads the true annotation; for soundscapes clips of one audible annotation
        tie, for other data the relevant clips come first. "caption", soundscapes only: one that knows for which clips a caption
        is true; these tie.
    """
    if "audible_key" not in manifest.table:
        return {"annotation": retrieval_metrics(relevant.float(), relevant)}
    keys = manifest.table["audible_key"]
    own = torch.from_numpy(keys.map(keys.value_counts()).to_numpy()[group])
    true_of = torch.from_numpy(caption_relevance(list(manifest.table["annotation"])).sum(axis=1))
    return {"annotation": tied_metrics(own), "caption": tied_metrics(true_of)}
