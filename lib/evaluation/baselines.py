"""Baselines that a trained model has to beat."""
from __future__ import annotations

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler, normalize


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
