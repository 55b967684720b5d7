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


def confusion(predicted: np.ndarray, target: np.ndarray, classes: int) -> np.ndarray:
    """Confusion counts (C, C): rows are true classes, columns predicted ones.

    Args: predicted, target: (N,) int class indices below `classes`.
    """
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (np.asarray(target), np.asarray(predicted)), 1)
    return counts
