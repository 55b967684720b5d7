"""The audio side of the spatial-temporal model: what sounds, from where, and in which order (SALM, arXiv 2507.16724, with a
temporal encoder).

joint = semantic + s * spatial with a learned vector s; triplet = projection of (joint, temporal). Nothing is normalised here:
unit vectors are made once, right before similarities.
"""
from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from lib.encoders.htsat import DualHtsat, HtsatConfig
from lib.encoders.temporal import TemporalEncoder, chunk_pool


def head(width: int, dim: int, out: int | None = None) -> nn.Sequential:
    """Linear width -> dim, ReLU, linear dim -> out (None: dim), which is also the shape of CLAP's projections."""
    return nn.Sequential(nn.Linear(width, dim), nn.ReLU(), nn.Linear(dim, out or dim))


class SpatialAudio(nn.Module):
    """Features of first-order ambisonics clips to named embeddings.

    Args:
        config: of the two towers.  dim: size D of every embedding.  events: directions that are predicted for a clip.
        chunks: parts of the time axis that the temporal encoder sees.
        temporal_encoder: False (ablation): the triplet embedding is the joint one.
        temporal_dropout, position_std: of the temporal encoder.
        intensity_vectors: False (ablation): the towers see the four log-mels only.
        direction_from: embedding that directions are predicted from: "spatial" (SALM), or "triplet", which the original's code came to
            use by a position in a list; the only one of the two that easily knows which direction comes first.
        order_blind: True (control): every frame is replaced by the clip's mean frame before anything else, so no order is left.
    Raises:
        ValueError: more chunks than the towers have time steps, a dim that is no multiple of 8, less than one event, or
            another direction_from.
    """

    def __init__(self, config: HtsatConfig = HtsatConfig(), dim: int = 512, events: int = 2, chunks: int = 4,
                 temporal_encoder: bool = True, temporal_dropout: float = 0.1, intensity_vectors: bool = True,
                 order_blind: bool = False, direction_from: str = "spatial", position_std: float = 0.02):
        super().__init__()
        if direction_from not in ("spatial", "triplet"):
            raise ValueError(f"direction_from is {direction_from!r}, expected 'spatial' or 'triplet'")
        if events < 1:
            raise ValueError(f"events is {events}, expected at least 1")
        if not 1 <= chunks <= config.steps:
            raise ValueError(f"chunks is {chunks}, HTS-AT of size {config.size!r} has {config.steps} time steps; choose 1 to "
                             f"{config.steps}")
        self.dim, self.events, self.chunks, self.order_blind, self.direction_from = dim, events, chunks, order_blind, direction_from
        self.towers = DualHtsat(config, intensity_vectors)
        self.semantic_head, self.spatial_head = head(config.channels, dim), head(config.channels, dim)
        self.spatial_scale = nn.Parameter(torch.ones(dim))
        self.direction_head = head(dim, dim, 3 * events)
        self.temporal = None
        if temporal_encoder:
            self.temporal_head = head(config.channels, dim)
            self.temporal = TemporalEncoder(dim, chunks, feedforward=4 * dim, dropout=temporal_dropout, position_std=position_std)
            self.triplet_head = head(2 * dim, dim)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Args:
            features: Tensor (N, 7, frames, 64), see `DualHtsat`.
        Returns:
            "semantic", "spatial", "joint", "triplet" and, with a temporal encoder, "temporal": Tensor (N, D), not normalised;
            "direction": Tensor (N, events, 3) of x (front), y (left), z (up) in (-1, 1), whose length says nothing.
        Raises:
            ValueError: features of another shape, or too many frames.
        """
        if self.order_blind:      # in float64, so that the order does not come back as rounding
            features = features.mean(dim=2, keepdim=True, dtype=torch.float64).to(features.dtype).expand_as(features)
        maps = self.towers(features)
        semantic = self.semantic_head(maps["semantic"].mean(dim=(2, 3)))
        spatial = self.spatial_head(maps["spatial"].mean(dim=(2, 3)))
        joint = semantic + self.spatial_scale * spatial
        out = {"semantic": semantic, "spatial": spatial, "joint": joint, "triplet": joint}
        if self.temporal is not None:
            parts = {name: self.temporal_head(chunk_pool(part, self.chunks)) for name, part in maps.items()}
            out["temporal"] = self.temporal(parts["semantic"] + self.spatial_scale * parts["spatial"])
            out["triplet"] = self.triplet_head(torch.cat([joint, out["temporal"]], dim=1))
        out["direction"] = self.direction_head(out[self.direction_from]).tanh().unflatten(1, (self.events, 3))
        return out

    def load_clap(self, source: str | Path) -> tuple[bool, float | None]:
        """Start from a published CLAP: semantic tower and norm of W, and its projection in the semantic and the spatial head.

        Args:
            source: as for `DualHtsat.load_clap`.
        Returns:
            whether the heads took the projection (they keep their random weights where D is not CLAP's, 512), and the logarithm
            of the factor on similarities that CLAP learned (None: not in the file), where a temperature may start.
        Raises:
            FileNotFoundError, ValueError: naming the file and the entry.
        """
        stored = self.towers.load_clap(source)
        names = {"linear1.weight": "0.weight", "linear1.bias": "0.bias", "linear2.weight": "2.weight", "linear2.bias": "2.bias"}
        projection = {names.get(name, name): entry for name, entry in stored.projection.items()}
        own = {name: entry.shape for name, entry in self.semantic_head.state_dict().items()}
        fits = own == {name: entry.shape for name, entry in projection.items()}
        if fits:
            self.semantic_head.load_state_dict(projection)
            self.spatial_head.load_state_dict(projection)
        return fits, stored.log_scale
