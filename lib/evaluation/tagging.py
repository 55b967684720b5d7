"""Text-prompted classification: the class whose prompts lie nearest to the clip."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize


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
