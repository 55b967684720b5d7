"""Prompt ensembles, confusion counts and the ridge baseline."""
import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix

from lib.evaluation.baselines import RidgeBagOfWords, log_mel_statistics
from lib.evaluation.tagging import class_embeddings, class_scores, confusion


def test_class_embeddings_ignore_prompt_length_and_count():
    table = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([0.0, 0.1]), "c": torch.tensor([0.0, -2.0])}
    embed = lambda texts: torch.stack([table[t] for t in texts])
    classes = class_embeddings({"ab": ["a", "b"], "c": ["c", "c"]}, embed)
    half = 2 ** -0.5
    torch.testing.assert_close(classes, torch.tensor([[half, half], [0.0, -1.0]]))
    with pytest.raises(ValueError, match="'empty' has no prompt"):
        class_embeddings({"empty": []}, embed)


def test_class_scores_average_the_prompts():
    scores = np.arange(12.0).reshape(4, 3)
    got = class_scores(scores, ["p", "q", "r", "s"], {"one": ["q", "s"], "two": ["p"]})
    np.testing.assert_allclose(got, [(scores[1] + scores[3]) / 2, scores[0]])
    assert class_scores(scores, ["p", "q", "r", "s"], {"one": ["unasked"]}) is None


def test_confusion_equals_sklearn():
    rng = np.random.default_rng(0)
    target, predicted = rng.integers(4, size=50), rng.integers(4, size=50)
    np.testing.assert_array_equal(confusion(predicted, target, 4), confusion_matrix(target, predicted, labels=range(4)))


def test_ridge_finds_the_clip_whose_words_its_sound_predicts():
    rng = np.random.default_rng(0)
    kinds = np.arange(300) % 3
    words = ["a dog barks", "rain falls", "a siren wails"]
    sound = rng.normal(size=(300, 8, 20)) + 3 * (np.arange(8)[None, :, None] == kinds[:, None, None])
    features = log_mel_statistics(sound)
    np.testing.assert_allclose(features[5], np.r_[sound[5].mean(1), sound[5].std(1)])
    ridge = RidgeBagOfWords(alpha=10).fit(features[:200], [[words[k]] for k in kinds[:200]])
    scores = ridge.similarity(words, features[200:])
    assert scores.shape == (3, 100)
    assert (scores.argmax(axis=0) == kinds[200:]).mean() > 0.95
    assert np.isfinite(ridge.similarity(["unheard words only"], features[200:])).all()
