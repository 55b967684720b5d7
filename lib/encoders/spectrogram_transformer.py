"""Transformers from a mel spectrogram to tokens and back: the two halves of the audio BSQ-ViT.

Conventions: spectrograms (B, T, F), scaled to about -1 .. 1, time first; tokens (B, N, width) in the order of
`lib.encoders.spectrogram_config`. A layer is pre-norm: x + attention(norm x), x + convolution(norm x), x + MLP(norm x). A causal stack
can go on where it ended (`StackState`): then columns arrive in pieces, and what is kept of the past has a fixed size.
"""
from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from lib.encoders.conformer import ConvolutionModule, Past, running_statistics_kept
from lib.encoders.spectrogram_config import Grid, SpectrogramConfig, cut, join

__all__ = ["AudioTransformerDecoder", "AudioTransformerEncoder", "SpectrogramConfig", "StackState"]

ROTARY_BASE = 10000.0
POSITION_STD = WEIGHT_STD = 0.02      # of the published structure


@dataclass
class LayerState:
    """What one layer keeps of the past: keys and values (B, heads, n, d) of the columns in reach, and the convolution's."""

    keys: Tensor | None = None
    values: Tensor | None = None
    past: Past = field(default_factory=Past)


@dataclass
class StackState:
    """Where a causal stack stands: columns seen so far, and every layer's past."""

    layers: list[LayerState]
    column: int = 0


@dataclass(frozen=True)
class Layout:
    """What all layers of a pass share.

    grids: of the scales.  valid: (B, N) bool or None.  mask: (queries, keys) bool, True where attention may look, or None for everywhere.
    rotation: cosine and sine (N, d / 2) of the tokens' times, or None.  kept: tokens that a streaming layer keeps for later.
    """

    grids: Sequence[Grid]
    valid: Tensor | None = None
    mask: Tensor | None = None
    rotation: tuple[Tensor, Tensor] | None = None
    kept: int = 0


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn pairs of values by an angle that grows with time (RoFormer, arXiv 2104.09864), so that products see time differences only.

    Args:
        x: Tensor (B, heads, N, d); value i is paired with i + d / 2.  rotation: cosine and sine, Tensors (N, d / 2).
    Returns:
        Tensor of the shape and type of x.
    """
    cosine, sine = rotation
    first, second = x.to(cosine.dtype).chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention.  Args: width; heads, that divide it; dropout of the weights in training."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor, layout: Layout, state: LayerState | None = None) -> Tensor:
        """Args: x: Tensor (B, N, width).  state: keys and values of earlier tokens, brought up to date.  Returns: Tensor (B, N, width)."""
        query, key, value = self.query_key_value(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if layout.rotation is not None:
            query, key = rotate(query, layout.rotation), rotate(key, layout.rotation)
        if state is not None:
            if state.keys is not None:
                key, value = torch.cat([state.keys, key], dim=2), torch.cat([state.values, value], dim=2)
            first = max(0, key.shape[2] - layout.kept)
            state.keys, state.values = key[:, :, first:], value[:, :, first:]
        mixed = scaled_dot_product_attention(query, key, value, layout.mask, self.dropout if self.training else 0.0)
        return self.project(mixed.transpose(1, 2).flatten(2))


class Branch(nn.Module):
    """x + gain * f(norm x); in training left out for a clip with probability `drop_path`, and scaled up otherwise (stochastic depth)."""

    def __init__(self, inner: nn.Module, width: int, gain: float | None = None, drop_path: float = 0.0):
        super().__init__()
        self.norm, self.inner, self.drop_path = nn.LayerNorm(width), inner, drop_path
        self.gain = None if gain is None else nn.Parameter(torch.full((width,), float(gain)))

    def forward(self, x: Tensor, *how) -> Tensor:
        """Args: x: Tensor (B, N, width).  how: further arguments of the inner module.  Returns: Tensor of the shape of x."""
        out = self.inner(self.norm(x), *how)
        out = out if self.gain is None else out * self.gain
        if self.training and self.drop_path:
            stays = torch.rand(len(x), 1, 1, device=x.device) >= self.drop_path
            out = out * (stays / (1 - self.drop_path)).to(out.dtype)
        return x + out


class Layer(nn.Module):
    """Attention, convolution module (where the settings have one), MLP; drop_path: of this layer."""

    def __init__(self, config: SpectrogramConfig, drop_path: float = 0.0):
        super().__init__()
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        branch = partial(Branch, width=width, gain=config.ls_init_value, drop_path=drop_path)
        self.attention = branch(Attention(width, config.heads, config.attn_drop_rate))
        self.convolution = branch(ConvolutionModule(width, config.conv_kernel_size, config.conv_axis, config.conv_kernel_2d, config.causal,
                                                    config.drop_rate)) if config.use_conv_module else None
        self.mlp = branch(nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width), nn.Dropout(config.drop_rate)))

    def forward(self, x: Tensor, layout: Layout, state: LayerState | None = None) -> Tensor:
        """Args: x: Tensor (B, N, width).  layout: of this pass.  state: of a stream.  Returns: Tensor (B, N, width)."""
        x = self.attention(x, layout, state)
        if self.convolution is not None:
            x = self.convolution(x, layout.grids, layout.valid, state and state.past)
        return self.mlp(x)


class Positions(nn.Module):
    """Learned positions of one scale's tokens, normal with deviation 0.02 at the start; kinds: see `SpectrogramConfig.positions`."""

    def __init__(self, kind: str, grid: Grid, width: int):
        super().__init__()
        table = lambda places: nn.Parameter(POSITION_STD * torch.randn(places, width))
        self.flat = table(grid.tokens) if kind == "flat" else None
        self.time = table(grid.columns) if kind == "factorised" else None
        self.frequency = table(grid.rows) if kind != "flat" else None

    def forward(self, columns: int) -> Tensor:
        """Returns: Tensor (columns * rows, width), or (1, rows, width) to be repeated where time is left to attention."""
        if self.flat is not None:
            return self.flat
        if self.time is None:
            return self.frequency.repeat(columns, 1)
        return (self.time[:columns, None] + self.frequency).flatten(0, 1)


class Stack(nn.Module):
    """Positions, LayerNorm, layers, LayerNorm: what encoder and decoder have in common.

    Weights of the layers start as a normal distribution of deviation 0.02, cut at 2 deviations, biases at 0, gains of norms at 1, those
    of the convolution module included. At a width of 128 too, 0.02 learned faster on speech than the width^-0.5 of lib.encoders.vit.
    """

    def __init__(self, config: SpectrogramConfig):
        super().__init__()
        self.config = config
        self.positions = nn.ModuleList(Positions(config.positions, grid, config.width) for grid in config.grids())
        self.norm_pre = nn.LayerNorm(config.width) if config.ln_pre else nn.Identity()
        rates = torch.linspace(0, config.drop_path_rate, config.layers, device="cpu").tolist()
        self.layers = nn.ModuleList(Layer(config, rate) for rate in rates)
        self.norm_post = nn.LayerNorm(config.width) if config.ln_post else nn.Identity()
        for module in self.layers.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.trunc_normal_(module.weight, std=WEIGHT_STD, a=-2 * WEIGHT_STD, b=2 * WEIGHT_STD)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, grids: Sequence[Grid], valid: Tensor | None = None, state: StackState | None = None) -> Tensor:
        """Args: x: Tensor (B, N, width).  grids: of x.  valid: Tensor (B, N) bool, False for padding, or None.  state: of a stream, which
        is brought up to date.  Returns: Tensor (B, N, width)."""
        x = x + torch.cat([table(grid.columns) for table, grid in zip(self.positions, grids)])
        x = self.norm_pre(x)
        layout = self._layout(grids, valid, x, state)
        for number, layer in enumerate(self.layers):
            if self.config.gradient_checkpointing and self.training and torch.is_grad_enabled():
                contexts = lambda layer=layer: (nullcontext(), running_statistics_kept(layer))
                x = checkpoint(layer, x, layout, use_reentrant=False, context_fn=contexts)
            else:
                x = layer(x, layout, state and state.layers[number])
        if state is not None:
            state.column += grids[0].columns
        return self.norm_post(x)

    def start(self) -> StackState:
        """The state of a stream before its first column.  ValueError: a stack that looks ahead, or whose past has no fixed size."""
        config = self.config
        if not config.causal or config.positions != "rotary" or config.attention_window is None:
            raise ValueError("streaming needs a model trained with causal=True, positions='rotary' and an attention_window, so that it "
                             f"neither looks ahead nor keeps more and more; this one has causal={config.causal}, "
                             f"positions={config.positions!r}, attention_window={config.attention_window}")
        return StackState([LayerState() for _ in self.layers])

    def _layout(self, grids: Sequence[Grid], valid: Tensor | None, x: Tensor, state: StackState | None) -> Layout:
        config, first = self.config, 0 if state is None else state.column
        rotation = None
        # a token's time: the middle of its patch, in columns of the first scale (whole numbers where there is one scale)
        times = torch.cat([((torch.arange(grid.columns, dtype=torch.float64, device=x.device) + 0.5) * grid.time / grids[0].time - 0.5)
                           .repeat_interleave(grid.rows) for grid in grids]) + first
        if config.positions == "rotary":
            half = config.width // config.heads // 2
            speeds = ROTARY_BASE ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
            angles = times[:, None] * speeds                    # float64: hours of columns leave float32 no digits after the point
            dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
            rotation = angles.cos().to(dtype), angles.sin().to(dtype)
        window, rows = config.attention_window, grids[0].rows
        kept = 0 if window is None else (window - 1) * rows
        keys = times
        if state is not None:
            earlier = min(first, window - 1)
            keys = torch.cat([torch.arange(first - earlier, first, dtype=torch.float64, device=x.device).repeat_interleave(rows), times])
        return Layout(grids, valid, _mask(config, times, keys), rotation, kept)


def _mask(config: SpectrogramConfig, queries: Tensor, keys: Tensor) -> Tensor | None:
    """(queries, keys) bool from the times of both, True where attention may look; None: everywhere."""
    allowed = []
    if config.causal:
        allowed.append(keys <= queries[:, None])
    if config.attention_window is not None:
        allowed.append((keys - queries[:, None]).abs() < config.attention_window)
    if config.mask_type != "none":
        block = torch.arange(len(keys), device=keys.device) // (config.mask_block_size or 1)
        allowed.append(block <= block[:, None])
    return torch.stack(allowed).all(0) if allowed else None


class AudioTransformerEncoder(nn.Module):
    """Spectrogram (B, T, F), scaled to about -1 .. 1, to one state a token.

    Args:
        config: a `SpectrogramConfig` or its dictionary.
        masked_pretraining: adds a learned vector that stands for hidden patches.
    """

    def __init__(self, config: SpectrogramConfig | dict, masked_pretraining: bool = False):
        super().__init__()
        self.config = config = SpectrogramConfig.of(config)
        self.patches = nn.ModuleList(nn.Linear(grid.values, config.width, bias=not config.ln_pre) for grid in config.grids())
        self.mask_token = nn.Parameter(POSITION_STD * torch.randn(config.width)) if masked_pretraining else None
        self.stack = Stack(config)

    def forward(self, x: Tensor, mask: Tensor | None = None, valid: Tensor | None = None, state: StackState | None = None) -> Tensor:
        """Encode.

        Args:
            x: Tensor (B, T, F).
            mask: Tensor (B, N) bool, True where a patch is hidden: nothing of it is read.  None: nothing is hidden.
            valid: Tensor (B, T) bool, False where a frame is padding: batch normalisation leaves tokens out that are padding only.
            state: of `stack.start()`: x goes on where the last call ended.
        Returns:
            Tensor (B, N, width).
        Raises:
            ValueError: a spectrogram, mask or valid of another shape; a mask without masked_pretraining.
        """
        if x.ndim != 3 or x.shape[2] != self.config.input_size:
            raise ValueError(f"a spectrogram of shape {tuple(x.shape)}, expected (clips, frames, input_size = {self.config.input_size} "
                             "bands)")
        grids = self.config.grids(x.shape[1])
        tokens = torch.cat([project(cut(x, grid)) for project, grid in zip(self.patches, grids)], dim=1)
        if mask is not None:
            if self.mask_token is None:
                raise ValueError("a mask hides patches from the encoder: build the model with masked_pretraining=True")
            if mask.shape != tokens.shape[:2] or mask.dtype != torch.bool:
                raise ValueError(f"mask is {mask.dtype} of shape {tuple(mask.shape)}, expected torch.bool of shape "
                                 f"{tuple(tokens.shape[:2])}")
            tokens = torch.where(mask[..., None], self.mask_token.to(tokens.dtype), tokens)
        return self.stack(tokens, grids, None if valid is None else valid_tokens(valid, grids), state)


class AudioTransformerDecoder(nn.Module):
    """Tokens (B, N, width) to a spectrogram (B, T, F); the mirror of the encoder, with a head of its own.

    The head is Linear(width -> head_width), Tanh, Linear(head_width -> values of a patch); spectrograms of several scales are added.
    """

    def __init__(self, config: SpectrogramConfig | dict):
        super().__init__()
        self.config = config = SpectrogramConfig.of(config)
        self.stack = Stack(config)
        self.head = nn.Sequential(nn.Linear(config.width, config.head_width), nn.Tanh())
        self.patches = nn.ModuleList(nn.Linear(config.head_width, grid.values) for grid in config.grids())

    def forward(self, tokens: Tensor, valid: Tensor | None = None, state: StackState | None = None) -> Tensor:
        """Args: tokens: Tensor (B, N, width).  valid: Tensor (B, T) bool as in the encoder.  state: of `stack.start()`.
        Returns: Tensor (B, T, F), not limited to -1 .. 1.  ValueError: a number of tokens that fills no spectrogram."""
        grids = self.config.grids(self.config.frames(tokens.shape[1]))
        states = self.head(self.stack(tokens, grids, None if valid is None else valid_tokens(valid, grids), state))
        parts = states.split([grid.tokens for grid in grids], dim=1)
        return torch.stack([join(project(part), grid) for project, part, grid in zip(self.patches, parts, grids)]).sum(0)


def valid_tokens(valid: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Frames that hold sound (B, T) bool to tokens that do (B, N) bool: those with one such frame or more.

    ValueError: another type, or another number of frames than the grids'.
    """
    frames = grids[0].time * grids[0].columns
    if valid.ndim != 2 or valid.shape[1] != frames or valid.dtype != torch.bool:
        raise ValueError(f"valid is {valid.dtype} of shape {tuple(valid.shape)}, expected torch.bool of shape (clips, {frames} frames)")
    return torch.cat([valid.unflatten(1, (grid.columns, grid.time)).any(2).repeat_interleave(grid.rows, dim=1) for grid in grids], dim=1)
