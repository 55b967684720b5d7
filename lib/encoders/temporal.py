"""From a map with a time axis to one vector that knows what came first: mean over chunks, then a small transformer over them.

A mean over chunks alone cannot tell their order; the learned positions are what lets the vector depend on it.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn


def chunk_pool(features: Tensor, chunks: int = 4) -> Tensor:
    """Mean over frequency and over the steps of each of `chunks` equal parts of the time axis.

    Args:
        features: Tensor (N, C, F, S), time last.  chunks: parts of S // chunks steps each, the remainder goes to the last.
    Returns:
        Tensor (N, chunks, C).
    Raises:
        ValueError: fewer time steps than chunks, or no chunk at all.
    """
    if features.ndim != 4 or not 1 <= chunks <= features.shape[3]:
        raise ValueError(f"a map of shape {tuple(features.shape)} cannot be cut into {chunks} chunks; expected (clips, channels, "
                         "frequencies, steps) with a time step or more for each chunk: take fewer chunks or a larger encoder")
    steps = features.shape[3]
    lengths = [steps // chunks] * (chunks - 1)
    parts = features.split([*lengths, steps - sum(lengths)], dim=3)
    return torch.stack([part.mean(dim=(2, 3)) for part in parts], dim=1)


class TemporalEncoder(nn.Module):
    """Chunk embeddings in their order to one vector.

    Learned absolute positions, post-norm transformer layers (ReLU), a last norm, the mean over chunks and an MLP (GELU).

    Args:
        dim: size D of a chunk embedding and of the result.  chunks: number of chunks.  layers: number of transformer layers.
        position_std: of the positions at the start. 0.02 leaves room for chunk embeddings that are small at the start; near 1 the order
            enters from the first step, and is learnt several hundred steps earlier by a small model from scratch.
        heads: must divide D.  feedforward: hidden size of a layer.  dropout: probability in [0, 1), in the layers and the MLP.
    Raises:
        ValueError: heads that do not divide D, or a dropout out of range.
    """

    def __init__(self, dim: int = 512, chunks: int = 4, layers: int = 2, heads: int = 8, feedforward: int = 2048,
                 dropout: float = 0.1, position_std: float = 0.02):
        super().__init__()
        if dim % heads:
            raise ValueError(f"temporal encoder: {heads} heads do not divide dim = {dim}; choose a multiple of {heads}")
        if not 0 <= dropout < 1:
            raise ValueError(f"temporal encoder: dropout is {dropout}, expected at least 0 and below 1")
        self.positions = nn.Parameter(position_std * torch.randn(1, chunks, dim))
        # not nn.TransformerEncoder, which starts all its layers with the same weights
        self.layers = nn.Sequential(*(nn.TransformerEncoderLayer(dim, heads, feedforward, dropout, batch_first=True)
                                      for _ in range(layers)))
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, dim))

    def forward(self, chunks: Tensor) -> Tensor:
        """Args: chunks: Tensor (N, chunks, D), first to last. Returns: Tensor (N, D)."""
        return self.mlp(self.norm(self.layers(chunks + self.positions)).mean(dim=1))
