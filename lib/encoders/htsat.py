"""Two HTS-AT encoders side by side, one for what sounds and one for where (HTS-AT: Chen et al., arXiv 2202.00874; the pair: SALM,
arXiv 2507.16724).

The towers are made of transformers' CLAP audio modules, so that published names and weights fit; the way through a block is
written here, because transformers' own has no fused attention and drops no MLP path. A spectrogram becomes an image: its frames
are cut into segments, which are stacked along frequency (published: 1024 frames x 64 mels -> 4 segments -> 256 x 256). Swin
stages halve the image from one to the next, and before each stage a cross-stitch unit lets the towers mix.
Shapes: N clips, C = `HtsatConfig.channels`, S = `HtsatConfig.steps`.
"""
from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import linear, pad, scaled_dot_product_attention
from transformers import ClapAudioConfig
from transformers.models.clap.modeling_clap import ClapAudioEncoder, ClapAudioLayer, ClapAudioPatchMerging

from lib.encoders import weights
from lib.encoders.batch_norm import SynchronizedBatchNorm
from lib.encoders.clap import CONSTANTS, WEIGHTS
from lib.files import read_json

MELS = 64
TOWER = "audio_model.audio_encoder."                                 # the prefix of published names
FUSION = ("patch_embed.fusion_model", "patch_embed.mel_conv2d")      # for four crops of a long clip, which are not made here


class Size(NamedTuple):
    """segments: parts of the time axis.  patch: mel bands and frames of a square patch.  width: of the first stage, doubled by
    each further one.  depths, heads: of each stage.  window: patches along each side of an attention window."""

    segments: int
    patch: int
    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int


# larger patches and three stages make "small" affordable on two cores: 256 patches a clip instead of 4096
SIZES = {"published": Size(4, 4, 96, (2, 2, 6, 2), (4, 8, 16, 32), 8), "small": Size(2, 8, 32, (2, 2, 2), (2, 4, 8), 4),
         "tiny": Size(2, 16, 16, (2, 1), (2, 4), 4)}


@dataclass(frozen=True)
class HtsatConfig:
    """Settings of `DualHtsat`.

    Args:
        size: a name of `SIZES`.  drop_path: stochastic depth in [0, 1), linear from 0 to this value.
    Raises:
        ValueError: unknown size or a drop_path out of range.
    """

    size: str = "published"
    drop_path: float = 0.1

    def __post_init__(self):
        if self.size not in SIZES:
            raise ValueError(f"HTS-AT size {self.size!r} is not known; choose one of {', '.join(SIZES)}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"HTS-AT: drop_path is {self.drop_path}, expected at least 0 and below 1")

    def to_dict(self) -> dict:
        """JSON-able form."""
        return asdict(self)

    @property
    def frames(self) -> int:
        """The longest input in frames (published: 1024)."""
        return MELS * SIZES[self.size].segments ** 2

    @property
    def channels(self) -> int:
        """Width C of the last stage (published: 768)."""
        return SIZES[self.size].width << self._halvings

    @property
    def steps(self) -> int:
        """Time steps S of the map (published: 32 of 0.32 s)."""
        return self.frames // (SIZES[self.size].patch << self._halvings)

    @property
    def bins(self) -> int:
        """Frequency bins of the map (2 in every size)."""
        return MELS // (SIZES[self.size].patch << self._halvings)

    @property
    def _halvings(self) -> int:
        return len(SIZES[self.size].depths) - 1


class FusedLayer(ClapAudioLayer):
    """transformers' Swin block: same parameters, same numbers, attention in one call, stochastic depth on both of its paths."""

    def forward(self, tokens: Tensor, input_dimensions: tuple[int, int], *unused) -> tuple[Tensor]:
        """tokens: Tensor (N, height * width, C). Returns: the same shape, in a tuple as transformers' stages want it."""
        tokens = tokens + self.drop_path(self._attention(self.layernorm_before(tokens), *input_dimensions))
        return (tokens + self.drop_path(self.output(self.intermediate(self.layernorm_after(tokens)))),)

    def _attention(self, tokens: Tensor, height: int, width: int) -> Tensor:
        part, side = self.attention.self, self.window_size
        shift = self.shift_size if min(height, width) > side else 0                # one window holds everything already
        grid = tokens.view(len(tokens), height, width, -1)
        grid = grid.roll((-shift, -shift), dims=(1, 2)) if shift else grid
        windows = grid.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3)     # (N, rows, columns, side, side, C)
        shape = windows.shape
        layers = part.query, part.key, part.value
        heads = linear(windows.reshape(len(tokens), -1, side * side, shape[-1]), torch.cat([layer.weight for layer in layers]),
                       torch.cat([layer.bias for layer in layers]))
        # (3, N, windows * heads, L, C / heads): windows beside heads, so that what is added below is not copied for every clip
        heads = heads.unflatten(-1, (3, part.num_attention_heads, -1)).permute(3, 0, 1, 4, 2, 5).flatten(2, 3)
        position = part.relative_position_bias_table[part.relative_position_index].permute(2, 0, 1)     # (heads, L, L)
        if shift:      # patches that only the roll made neighbours
            position = position + self.get_attn_mask(height, width, tokens.dtype, tokens.device)[:, None]
        position = position.expand(heads.shape[2] // part.num_attention_heads, -1, -1, -1).flatten(0, 1)[None]
        mixed = scaled_dot_product_attention(*heads, attn_mask=position.to(heads.dtype).expand(len(tokens), -1, -1, -1))
        mixed = mixed.unflatten(1, (-1, part.num_attention_heads)).transpose(2, 3).flatten(3)           # (N, windows, L, C)
        mixed = self.attention.output.dense(mixed).view(shape).transpose(2, 3).reshape(grid.shape)
        return (mixed.roll((shift, shift), dims=(1, 2)) if shift else mixed).flatten(1, 2)


class FusedMerging(ClapAudioPatchMerging):
    """transformers' patch merging with one copy in place of five."""

    def forward(self, tokens: Tensor, input_dimensions: tuple[int, int]) -> Tensor:
        """tokens: Tensor (N, height * width, C). Returns: Tensor (N, height * width / 4, 2 C)."""
        height, width = input_dimensions
        fours = tokens.view(len(tokens), height // 2, 2, width // 2, 2, -1).permute(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(fours.reshape(len(tokens), height * width // 4, -1)))


class Tower(nn.Module):
    """Patch embedding, stages and last norm of one HTS-AT, under the published names."""

    def __init__(self, config: HtsatConfig, channels: int):
        super().__init__()
        size = SIZES[config.size]
        # the published HTS-AT has no dropout; transformers' default of 0.1 is its own
        encoder = ClapAudioEncoder(ClapAudioConfig(
            spec_size=MELS * size.segments, num_mel_bins=MELS, patch_size=size.patch, patch_stride=(size.patch, size.patch),
            patch_embeds_hidden_size=size.width, depths=size.depths, num_attention_heads=size.heads, window_size=size.window,
            patch_embed_input_channels=channels, hidden_size=config.channels, num_hidden_layers=len(size.depths),
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, drop_path_rate=config.drop_path))
        self.patch_embed, self.layers, self.norm = encoder.patch_embed, encoder.layers, encoder.norm
        for module in self.modules():
            if isinstance(module, ClapAudioLayer):
                module.__class__ = FusedLayer
            elif isinstance(module, ClapAudioPatchMerging):
                module.__class__ = FusedMerging

    def embed(self, patches: Tensor) -> Tensor:
        """patches: Tensor (N, L, channels * patch * patch). Returns: Tensor (N, L, width)."""
        # a convolution whose stride is its kernel is one matrix product
        return self.patch_embed.norm(linear(patches, self.patch_embed.proj.weight.flatten(1), self.patch_embed.proj.bias))


class CrossStitch(nn.Module):
    """Mixes two maps by a learned 2 x 2 matrix per channel, at the start the identity (Misra et al., arXiv 1604.03539)."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(2)[..., None].repeat(1, 1, channels))

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Both (N, L, channels); both results are made of what came in."""
        (a, b), (c, d) = self.weight
        return a * first + b * second, c * first + d * second


class ClapEntries(NamedTuple):
    """What a published CLAP holds for an audio tower.

    Attributes:
        file: where it was read.  tower: entries of the encoder, without "audio_model.audio_encoder.".
        projection: "linear1.weight" and so on; empty where there is none.
        log_scale: logarithm of the factor on similarities, the mean of CLAP's two; None where there is none.
    """

    file: Path
    tower: dict[str, Tensor]
    projection: dict[str, Tensor]
    log_scale: float | None


def read_clap(source: str | Path) -> ClapEntries:
    """The audio entries of a published CLAP; see `DualHtsat.load_clap`. The text tower in the same file is not read."""
    folder = weights.resolve(source)
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{folder} holds no weights: {WEIGHTS[0]} or {WEIGHTS[2]} is expected there; copy or download it "
                                "again")
    try:
        parts = [file] if file.suffix != ".json" else [folder / Path(name).name
                                                       for name in sorted(set(read_json(file)["weight_map"].values()))]
        entries = {name: entry for part in parts for name, entry in _audio_entries(part)}
    except Exception as error:     # broken files come as errors of several libraries; the cause stays attached
        raise ValueError(f"{file} cannot be read ({type(error).__name__}: {error}); copy or download it again") from error
    tower, projection, scales = (
        {name.removeprefix(prefix): entry for name, entry in entries.items() if name.startswith(prefix)}
        for prefix in (TOWER, "audio_projection.", "logit_scale_"))
    return ClapEntries(file, tower, projection, sum(map(float, scales.values())) / len(scales) if scales else None)


def _audio_entries(file: Path):
    """Name and tensor of every entry of one file that is not the text tower's."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as stored:
            yield from ((name, stored.get_tensor(name)) for name in stored.keys() if not name.startswith("text_"))
    else:
        yield from torch.load(file, map_location="cpu", weights_only=True).items()


class DualHtsat(nn.Module):
    """Semantic tower (log-mel of W) and spatial tower (all channels) with cross-stitch units between them.

    Args:
        config: a `HtsatConfig`.  intensity_vectors: False: the spatial tower sees the four log-mels only.
    Attributes:
        config; channels: of the input, 7 or 4.
    """

    def __init__(self, config: HtsatConfig = HtsatConfig(), intensity_vectors: bool = True):
        super().__init__()
        self.config, self.channels = config, 7 if intensity_vectors else 4
        # over channels x mels: a norm of its own for each channel's 64 bands, with one reduction between processes in place of 7
        self.norm = SynchronizedBatchNorm(self.channels * MELS)
        self.semantic, self.spatial = Tower(config, 1), Tower(config, self.channels)
        self.stitches = nn.ModuleList(CrossStitch(SIZES[config.size].width << i) for i in range(len(SIZES[config.size].depths)))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Args:
            features: Tensor (N, 7, frames, 64): log-mel of W, Y, Z, X, then intensity vectors Y, Z, X (not read, and not needed,
                without them). Shorter clips are padded with zeros after the norm, so that padding does not enter its statistics.
        Returns:
            "semantic" and "spatial": Tensor (N, C, bins, S), time last and in its true order.
        Raises:
            ValueError: another number of channels or mels, or more frames than the config has.
        """
        patches = self._patches(features)
        side = SIZES[self.config.size].patch ** 2
        semantic, spatial = self.semantic.embed(patches[..., :side]), self.spatial.embed(patches)
        grid = 2 * (MELS * SIZES[self.config.size].segments // SIZES[self.config.size].patch,)
        for stitch, semantic_stage, spatial_stage in zip(self.stitches, self.semantic.layers, self.spatial.layers):
            semantic, spatial = stitch(semantic, spatial)
            (semantic, _, after), (spatial, _, _) = semantic_stage(semantic, grid), spatial_stage(spatial, grid)
            grid = after[2:]
        return {"semantic": self._map(self.semantic.norm(semantic)), "spatial": self._map(self.spatial.norm(spatial))}

    def load_clap(self, source: str | Path) -> ClapEntries:
        """Weights of a published CLAP's audio tower into the semantic tower and the norm of W.

        Args:
            source: a folder in the layout of laion/clap-htsat-unfused or -fused (whose fusion layers are left out; whole, or the
                audio model alone), or where `lib.encoders.weights.resolve` finds one.
        Returns:
            what was read, for the projection and the temperature in it.
        Raises:
            FileNotFoundError, ValueError: naming the file, and the first entry that is missing, unknown or of another shape.
        """
        stored = read_clap(source)
        own = {name: entry for name, entry in self.semantic.state_dict(keep_vars=True).items() if not name.endswith(CONSTANTS)}
        own |= {f"batch_norm.{name}": entry[:MELS] for name, entry in self.norm.state_dict(keep_vars=True).items() if entry.ndim}
        given = {name: entry for name, entry in stored.tower.items()
                 if not name.startswith(FUSION) and not name.endswith(CONSTANTS)}
        shapes = [{name: tuple(entry.shape) for name, entry in entries.items()} for entries in (given, own)]
        wrong = sorted(name for name in own | given if shapes[0].get(name) != shapes[1].get(name))
        if wrong:
            file, here = (entries.get(wrong[0], "missing") for entries in shapes)
            raise ValueError(f"{stored.file} does not fit HTS-AT of size {self.config.size!r} in {len(wrong)} entries, first "
                             f"{TOWER}{wrong[0]}: {file} in the file, {here} in the model; size 'published' takes "
                             "laion/clap-htsat-unfused, other sizes start from scratch")
        with torch.no_grad():
            for name, entry in own.items():
                entry.copy_(given[name])
        return stored

    def _patches(self, features: Tensor) -> Tensor:
        """Features to (N, patches in the image's row order, channels * patch * patch), W first."""
        if features.ndim != 4 or features.shape[1] not in (self.channels, 7) or features.shape[3] != MELS:
            raise ValueError(f"features are {tuple(features.shape)}, expected (clips, {self.channels}, frames, {MELS}); make "
                             "them with the front end of this model")
        if not 0 < features.shape[2] <= self.config.frames:
            raise ValueError(f"features have {features.shape[2]} frames, HTS-AT of size {self.config.size!r} takes 1 to "
                             f"{self.config.frames}; use shorter clips, a longer hop or a larger size")
        size = SIZES[self.config.size]
        x = self.norm(features[:, :self.channels].transpose(2, 3).flatten(1, 2))                 # (N, channels * mels, frames)
        x = pad(x, (0, self.config.frames - x.shape[2])).unflatten(1, (self.channels, -1, size.patch))
        x = x.unflatten(4, (size.segments, -1, size.patch))            # (N, channel, row, mel, segment, column, frame)
        return x.permute(0, 4, 2, 5, 1, 3, 6).flatten(4).flatten(1, 3)

    def _map(self, tokens: Tensor) -> Tensor:
        """Patches (N, segments * bins * columns, C), the image's rows one after the other, to (N, C, bins, time)."""
        x = tokens.unflatten(1, (SIZES[self.config.size].segments, self.config.bins, -1))
        return x.permute(0, 4, 2, 1, 3).flatten(3)
