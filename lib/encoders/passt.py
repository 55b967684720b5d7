"""PaSST audio encoder (Koutini et al., "Efficient training of audio transformers with patchout", arXiv 2110.05069).

The network is hear21passt's `PaSST` class, constructed directly: nothing is downloaded or printed, its attention runs through
scaled_dot_product_attention (same parameters, same numbers), patches that patchout drops are never embedded, and the
classification heads, which retrieval does not use, are left out. Clips are cut into segments of the model's one input length,
only segments that hold audio are encoded, and their features are averaged.
"""
from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from lib.audio.logmel import CLIPS_TOGETHER, LogMel, LogMelConfig
from lib.data.download import fetch
from lib.encoders.in_threads import may_share, share
from lib.imports import without
from lib.settings import data_dir

with without("wandb"):                      # most of a second, for what hear21passt never uses of timm
    from hear21passt.models import passt as hear21

HIDDEN_TOGETHER = 8 << 20                    # bytes: of published segments (6 MB) one at a time is 5 % faster than four
hear21.first_RUN = False                     # otherwise the first forward prints every tensor's shape

# name: (width, depth, heads, patch = stride in mel bands, in frames). "published" is passt_s_p16_s16_128_ap468; a patch of "frames"
# spans all bands, which learns from far fewer clips than square patches do
SIZES = {"published": (768, 12, 12, 16, 16), "small": (256, 6, 4, 16, 16), "tiny": (64, 2, 2, 16, 16), "frames": (128, 4, 4, 128, 8)}


class FusedAttention(hear21.Attention):
    """hear21passt's attention with the softmax and both products in one fused call."""

    def forward(self, x: Tensor) -> Tensor:
        """Args: x: Tensor (B, tokens, width). Returns the same shape."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        x = scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(batch, tokens, width)))


class Product(nn.Linear):
    """nn.Linear; without gradients on a CPU in float32 by oneDNN, about a tenth faster than torch's choice (MKL) at these shapes."""

    def forward(self, x: Tensor) -> Tensor:
        """Args: x: Tensor (..., in). Returns: Tensor (..., out)."""
        plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        # a compiler chooses its own products, and does not know this one
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or not plain or not torch.backends.mkldnn.is_available():
            return super().forward(x)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class Draws(NamedTuple):
    """What a training forward draws once for all its clips, as stock PaSST does.

    Attributes:
        edges: lowest and highest frequency of the mel filters in Hz.
        rows, columns: Tensor int64, ascending: the rows (frequency) and columns (time) of patches that are kept.
    """

    edges: tuple[float, float]
    rows: Tensor
    columns: Tensor


class Network(hear21.PaSST):
    """hear21passt's network from log-mel to the mean of class and distillation token; patches do not overlap."""

    def __init__(self, **settings):
        super().__init__(num_classes=0, distilled=True, in_chans=1, **settings)
        self.head, self.head_dist = nn.Identity(), None
        for block in self.blocks:
            block.attn.__class__ = FusedAttention
            for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
                layer.__class__ = Product
        self.blocks[-1].__class__ = LastBlock

    def draw(self) -> tuple[Tensor, Tensor]:
        """Rows and columns that structured patchout keeps, from torch's global generator in stock PaSST's order."""
        rows, columns = self.patch_embed.grid_size
        kept = torch.randperm(columns)[:columns - self.s_patchout_t].sort().values if self.s_patchout_t else torch.arange(columns)
        return torch.randperm(rows)[:rows - self.s_patchout_f].sort().values if self.s_patchout_f else torch.arange(rows), kept

    def forward(self, mel: Tensor, rows: Tensor | None = None, columns: Tensor | None = None) -> Tensor:
        """Args: mel: Tensor (N, mels, frames).  rows, columns: patches that are kept; None: all. Returns: Tensor (N, width)."""
        (grid_rows, grid_columns), (high, wide) = self.patch_embed.grid_size, self.patch_embed.patch_size
        patches = mel[:, :grid_rows * high, :grid_columns * wide].unflatten(1, (grid_rows, high)).unflatten(3, (grid_columns, wide))
        frequency, time = self.freq_new_pos_embed[0, :, :, 0].T, self.time_new_pos_embed[0, :, 0, :grid_columns].T
        if rows is not None:
            rows, columns = rows.to(mel.device), columns.to(mel.device)
            patches, frequency, time = patches[:, rows][:, :, :, columns], frequency[rows], time[columns]
        # a convolution whose stride is its kernel is one matrix product, and takes only the patches that are kept
        tokens = linear(patches.transpose(2, 3).flatten(3), self.patch_embed.proj.weight.flatten(1), self.patch_embed.proj.bias)
        tokens = (tokens + frequency[:, None] + time).flatten(1, 2)                        # (N, patches, width)
        first = torch.cat([self.cls_token, self.dist_token], dim=1) + self.new_pos_embed
        tokens = torch.cat([first.expand(len(mel), -1, -1), tokens], dim=1)
        tokens = self.blocks[-1].first(self.blocks[:-1](self.pos_drop(tokens)), 2)         # only these two are read
        return self.norm(tokens).mean(dim=1)


class LastBlock(hear21.Block):
    """hear21passt's block where not all that comes out of it is read."""

    def first(self, x: Tensor, count: int) -> Tensor:
        """The block's first `count` tokens, as `forward` computes them from all: x (B, tokens, width) -> (B, count, width)."""
        attention, width, normed = self.attn, x.shape[-1], self.norm1(x)
        weight, bias = attention.qkv.weight, attention.qkv.bias
        query = linear(normed[:, :count], weight[:width], bias[:width])
        key, value = linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1)
        heads = [part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in (query, key, value)]
        mixed = scaled_dot_product_attention(*heads, dropout_p=attention.attn_drop.p if self.training else 0.0)
        x = x[:, :count] + self.drop_path(attention.proj_drop(attention.proj(mixed.transpose(1, 2).flatten(2))))
        return x + self.drop_path(self.mlp(self.norm2(x)))


@dataclass(frozen=True)
class PasstConfig:
    """Settings of `PasstEncoder`.

    Args:
        size: a name of `SIZES`.
        segment_seconds: the model's one input length in seconds.
        patchout_frequency, patchout_time: share of rows and columns of patches dropped in training, in [0, 1).
            The published 2 of 8 rows and 15 of 62 columns are 0.25 and 0.24.
        drop_path: stochastic depth, linear from 0 to this value.
        front_end: the log-mel front end.

    Raises:
        ValueError: unknown size, segment shorter than a patch, or fewer than 4 columns left after patchout.
    """

    size: str = "published"
    segment_seconds: float = 10.0
    patchout_frequency: float = 0.25
    patchout_time: float = 0.24
    drop_path: float = 0.0
    front_end: LogMelConfig = field(default_factory=LogMelConfig)

    def __post_init__(self):
        if isinstance(self.front_end, dict):
            object.__setattr__(self, "front_end", LogMelConfig(**self.front_end))
        if self.size not in SIZES:
            raise ValueError(f"PaSST size {self.size!r} is not known; choose one of {', '.join(SIZES)}")
        rows, columns = self.grid
        if columns - round(self.patchout_time * columns) < 4 or rows - round(self.patchout_frequency * rows) < 1:
            raise ValueError(
                f"patchout leaves too little: {self.segment_seconds} s give {columns} time columns of {SIZES[self.size][4]} frames, "
                f"patchout_time={self.patchout_time} keeps {columns - round(self.patchout_time * columns)} and at least 4 must "
                "remain; use longer segments or a smaller patchout_time")

    @property
    def segment_samples(self) -> int:
        """Samples of one segment."""
        return round(self.segment_seconds * self.front_end.sample_rate)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows (frequency) and columns (time) of patches of one segment."""
        *_, bands, frames = SIZES[self.size]
        return self.front_end.mels // bands, self.front_end.frames(self.segment_samples) // frames

    def to_dict(self) -> dict:
        """JSON-able form, front end included."""
        return asdict(self)


def published_file(name: str) -> Path | None:
    """The release file of a name of hear21passt's, downloaded once into the data folder's `weights/`; None: it is no such name."""
    url = hear21.default_cfgs.get(name, {}).get("url", "")
    path = data_dir() / "weights" / url.rpartition("/")[2]
    return (path if path.exists() else fetch(url, path)) if url else None


def segments_that_count(durations: Tensor, segment_seconds: float, available: int) -> Tensor:
    """How many leading segments of each clip hold audio.

    Args:
        durations: Tensor (B,) true durations in seconds, before padding.
        segment_seconds: seconds a segment.
        available: segments that the padded waveform has.
    Returns:
        Tensor (B,) int64 in [1, available]: <= 10 s -> 1, <= 20 s -> 2, else 3 at the published sizes.
    """
    # 1e-6 s: a duration that is a whole number of segments up to rounding must not open one more
    return torch.ceil(durations.double() / segment_seconds - 1e-6).long().clamp(1, available)


class PasstEncoder(nn.Module):
    """Waveforms to one feature vector a clip.

    Attributes:
        width: feature size (768 published).  sample_rate: Hz.  config: the `PasstConfig`.
    """

    kind = "passt"

    def __init__(self, config: PasstConfig = PasstConfig()):
        super().__init__()
        self.config = config
        self.front_end = LogMel(config.front_end)
        width, depth, heads, *patch = SIZES[config.size]
        rows, columns = config.grid
        frames = config.front_end.frames(config.segment_samples)
        self.network = Network(
            img_size=(config.front_end.mels, frames), patch_size=tuple(patch), stride=tuple(patch),
            embed_dim=width, depth=depth, num_heads=heads, drop_path_rate=config.drop_path,
            s_patchout_t=round(config.patchout_time * columns), s_patchout_f=round(config.patchout_frequency * rows))
        self.width, self.sample_rate = width, config.front_end.sample_rate
        if width < 768:
            self._widen_initialisation()

    def _widen_initialisation(self) -> None:
        """ViT's deviation of 0.02 suits a width of 768; in a narrow network signals start so small that learning idles first."""
        for name, parameter in self.network.named_parameters():
            if name.endswith("weight") and parameter.ndim == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            elif "pos_embed" in name:
                nn.init.normal_(parameter, std=0.1)

    def draw(self) -> Draws | None:
        """What a training forward draws once (front end and patchout, from torch's global generator); None in evaluation.

        Hand it to every forward that must see the same draws: the chunks of one batch, both passes over them.
        """
        return Draws(self.front_end.draw(), *self.network.draw()) if self.training else None

    def forward(self, waveform: Tensor, durations: Tensor, draws: Draws | None = None) -> Tensor:
        """Encode clips.

        Args:
            waveform: Tensor (B, samples), zero-padded on the right; samples a multiple of the segment length, or less than one.
            durations: Tensor (B,) seconds of audio in each row before padding.
            draws: of `draw`; None: drawn here.
        Returns:
            Tensor (B, width): mean over the segments that count.
        """
        size = self.config.segment_samples
        if waveform.shape[1] % size:
            waveform = nn.functional.pad(waveform, (0, size - waveform.shape[1] % size))
        segments = waveform.unflatten(1, (-1, size))                                      # (B, S, size)
        counts = segments_that_count(durations.to(waveform.device), self.config.segment_seconds, segments.shape[1])
        kept = torch.arange(segments.shape[1], device=waveform.device) < counts[:, None]  # (B, S)
        features = self.features(segments[kept], draws)
        placed = features.new_zeros(*kept.shape, self.width)       # placing, then summing, is deterministic on a GPU as well
        placed[kept] = features
        return placed.sum(dim=1) / counts[:, None].to(features.dtype)

    def features(self, segments: Tensor, draws: Draws | None = None) -> Tensor:
        """Segments (N, segment_samples) to the mean of class and distillation token, (N, width); `draws` as in `forward`."""
        draws = draws or self.draw()
        mel = self.front_end(segments, draws and draws.edges)                             # (N, mels, frames)
        kept = (draws.rows, draws.columns) if draws else ()
        # on a CPU without gradients few segments at a time find the memory of the last ones, else it is mapped and cleared anew
        rows, columns = self.config.grid
        hidden = 4 * 4 * self.width * (rows * columns + 2)                                # bytes of one segment's widest tensor
        few = mel.device.type == "cpu" and not torch.is_grad_enabled()
        together = max(1, min(CLIPS_TOGETHER, HIDDEN_TOGETHER // hidden) if few else len(mel))
        encode, parts = lambda part: self.network(part, *kept), mel.split(together)
        return torch.cat(share(encode, parts) if may_share(self.network, mel) else [encode(part) for part in parts])

    def load_published(self, source: str | Path) -> None:
        """Load an official PaSST state dict; heads are left out.

        Args:
            source: a local .pt, .pth, .ckpt or .safetensors file, or a name of hear21passt such as
                "passt_s_p16_s16_128_ap468", whose release file is downloaded once into the data folder's `weights/`.
        Raises:
            FileNotFoundError: neither a file nor a name.
            ValueError: naming the file and the missing or unexpected entries (another size or input length).
        """
        path = published_file(str(source)) or Path(source).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"PaSST weights {str(source)!r} are no file; give an official state dict, or the name "
                                    "'passt_s_p16_s16_128_ap468' to download it")
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
        state = {k.removeprefix("net."): v for k, v in state.get("state_dict", state).items()}
        state = {k: v for k, v in state.items() if not k.startswith(("head", "mel."))}
        own = self.network.state_dict()
        wrong = sorted(k for k in own.keys() | state.keys() if k not in own or k not in state or own[k].shape != state[k].shape)
        if wrong:
            raise ValueError(f"{path} does not fit PaSST size {self.config.size!r} with {self.config.segment_seconds} s segments: "
                             f"{len(wrong)} entries differ, first {wrong[:3]}; choose the size the file was saved from")
        self.network.load_state_dict(state)
