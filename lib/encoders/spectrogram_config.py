"""Settings of the spectrogram transformer, and how a spectrogram is cut into tokens.

Convention: a spectrogram is (B, T, F), time first. Patches lie on a grid of columns (time) and rows (frequency); tokens run
column by column, within a column from low to high frequency: token c * rows + r is the patch in column c and row r. The values
of a patch run frame by frame, within a frame from low to high frequency. With several scales, all tokens of the first scale come
before those of the second.
"""
from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

from torch import Tensor

CHOICES = {"conv_axis": ("flat", "time", "2d"), "positions": ("flat", "factorised", "rotary"),
           "mask_type": ("none", "causal", "block-causal")}
SIZES = ("input_size", "input_length", "patch_size", "width", "layers", "heads", "conv_kernel_size", "head_width")
RATES = ("drop_rate", "attn_drop_rate", "drop_path_rate")


class Grid(NamedTuple):
    """Patches of one scale: `time` frames x `frequency` bands each, on `columns` x `rows` places."""

    time: int
    frequency: int
    columns: int
    rows: int

    @property
    def tokens(self) -> int:
        """Number of patches."""
        return self.columns * self.rows

    @property
    def values(self) -> int:
        """Values of a patch."""
        return self.time * self.frequency


def cut(spectrogram: Tensor, grid: Grid) -> Tensor:
    """Spectrogram (B, T, F) to patches (B, tokens, values); ValueError: its sides are not those of the grid."""
    time, frequency, columns, rows = grid
    if spectrogram.ndim != 3 or spectrogram.shape[1:] != (time * columns, frequency * rows):
        raise ValueError(f"a spectrogram of shape {tuple(spectrogram.shape)} cannot be cut into {columns} x {rows} patches of {time} "
                         f"frames x {frequency} bands; expected (clips, {time * columns} frames, {frequency * rows} bands)")
    patches = spectrogram.unflatten(2, (rows, frequency)).unflatten(1, (columns, time))      # (B, columns, time, rows, frequency)
    return patches.transpose(2, 3).flatten(3).flatten(1, 2)


def join(patches: Tensor, grid: Grid) -> Tensor:
    """The exact inverse of `cut`: (B, tokens, values) to (B, T, F); ValueError: other patches than the grid's."""
    if patches.ndim != 3 or patches.shape[1:] != (grid.tokens, grid.values):
        raise ValueError(f"patches of shape {tuple(patches.shape)} do not make a spectrogram; expected (clips, {grid.tokens}, "
                         f"{grid.values})")
    pieces = patches.unflatten(2, (grid.time, grid.frequency)).unflatten(1, (grid.columns, grid.rows))
    return pieces.transpose(2, 3).flatten(3).flatten(1, 2)


@dataclass(frozen=True)
class SpectrogramConfig:
    """Sizes and options of `AudioTransformerEncoder` and `AudioTransformerDecoder`; the first 19 names are the seed's.

    Args:
        input_size: mel bands F.  input_length: frames T.
        patch_size: side of a patch.  time_patch_size (frames), freq_patch_size (bands): None: patch_size.
        width, layers, heads: of the transformer.  mlp_ratio: hidden width of a layer's MLP over the width.
        drop_rate: dropout at the end of the MLP and of the convolution module.  attn_drop_rate: of attention weights.
        drop_path_rate: probability with which the last layer's branches are left out for a clip; it grows linearly from 0 at the first.
        ls_init_value: start of learned gains of every branch (LayerScale); None: no such gains.
        ln_pre, ln_post: LayerNorm before and after the layers. With ln_pre the projection of patches has no bias.
        use_conv_module: a convolution module in every layer.  conv_kernel_size: its taps, odd.
        mask_type: what attention may see, attention only: "none": everything; "causal": tokens up to its own; "block-causal": blocks of
            mask_block_size tokens up to its own. The convolution still looks ahead; for a model that does not, use `causal`.
        head_width: hidden width of the decoder's head.
        conv_axis: along what the convolution runs: "flat", the sequence of tokens, where neighbours are mostly frequencies and the top of
            a column meets the bottom of the next; "time", each row on its own; "2d", the grid, with conv_kernel_2d (columns, rows) taps.
        positions: "flat": a learned table of all places, so a spectrogram has exactly input_length frames; "factorised": learned tables of
            columns and of rows that are added, for up to input_length frames; "rotary": attention sees differences of time, rows have a
            learned table; for any number of frames.
        patch_sizes: several scales, such as (16, 32, 64), all of square patches, instead of patch_size.
        causal: a column of patches never depends on later ones: attention sees earlier columns and its own, the convolution is padded on
            the left, and its batch normalisation becomes a LayerNorm, because a batch's statistics hold the future.
        attention_window: columns that attention reaches: with `causal` its own and the attention_window - 1 before it, otherwise that
            many on both sides; None: all.
        gradient_checkpointing: compute layers again in the backward pass instead of keeping their states ("grad_checkpointing" is
            understood too).
    Raises:
        ValueError: naming the value and what it should be.
    """

    input_size: int = 128
    input_length: int = 1024
    patch_size: int = 16
    time_patch_size: int | None = None
    freq_patch_size: int | None = None
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    ls_init_value: float | None = None
    ln_pre: bool = True
    ln_post: bool = True
    use_conv_module: bool = True
    conv_kernel_size: int = 31
    mask_type: str | None = "none"
    mask_block_size: int | None = None
    head_width: int = 3072
    conv_axis: str = "flat"
    conv_kernel_2d: tuple[int, int] = (7, 3)
    positions: str = "flat"
    patch_sizes: tuple[int, ...] | None = None
    causal: bool = False
    attention_window: int | None = None
    gradient_checkpointing: bool = False

    def __post_init__(self):
        for name in ("conv_kernel_2d", "patch_sizes"):
            if isinstance(getattr(self, name), list):           # JSON and yaml have no tuples
                object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "mask_type", self.mask_type or "none")
        if self.mask_block_size == -1:                          # how the original's settings write that there is none
            object.__setattr__(self, "mask_block_size", None)
        for name in (*SIZES, "time_patch_size", "freq_patch_size", "mask_block_size", "attention_window"):
            value = getattr(self, name)
            if (value is not None or name in SIZES) and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"audioconfig: {name} is {value!r}, expected a whole number of at least 1")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"audioconfig: {name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in RATES:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"audioconfig: {name} is {getattr(self, name)}, expected at least 0 and below 1")
        if self.width % self.heads:
            raise ValueError(f"audioconfig: heads = {self.heads} does not divide width = {self.width}")
        if self.positions == "rotary" and self.width // self.heads % 2:
            raise ValueError("audioconfig: positions 'rotary' turn pairs of values: width / heads must be even, got "
                             f"{self.width // self.heads}")
        if int(self.width * self.mlp_ratio) < 1:
            raise ValueError(f"audioconfig: mlp_ratio is {self.mlp_ratio}, which leaves the MLP no width")
        for name, taps in (("conv_kernel_size", (self.conv_kernel_size,)), ("conv_kernel_2d", self.conv_kernel_2d)):
            if any(not isinstance(tap, int) or tap < 1 or tap % 2 == 0 for tap in taps) or name == "conv_kernel_2d" and len(taps) != 2:
                raise ValueError(f"audioconfig: {name} is {getattr(self, name)}, expected odd numbers of taps, with one in the middle")
        self._check_scales()
        self._check_masks()

    def _check_scales(self) -> None:
        if self.patch_sizes is not None:
            sizes = self.patch_sizes
            if not sizes or any(not isinstance(size, int) or size < 1 for size in sizes) or len(set(sizes)) < len(sizes):
                raise ValueError(f"audioconfig: patch_sizes is {sizes}, expected different whole numbers such as [16, 32, 64], or None")
            if self.time_patch_size or self.freq_patch_size:
                raise ValueError("audioconfig: patch_sizes are square; leave time_patch_size and freq_patch_size out, or patch_sizes")
        for time, frequency in self.patches:
            one = "patch_sizes" if self.patch_sizes else "patch_size"
            for name, side, total in (("time_patch_size", time, "input_length"), ("freq_patch_size", frequency, "input_size")):
                if getattr(self, total) % side:
                    raise ValueError(f"audioconfig: {name if getattr(self, name) else one} = {side} does not divide "
                                     f"{total} = {getattr(self, total)}")

    def _check_masks(self) -> None:
        if (self.mask_type == "block-causal") != (self.mask_block_size is not None):
            raise ValueError("audioconfig: mask_type 'block-causal' needs mask_block_size, the tokens of a block, and no other has it; "
                             f"got mask_type={self.mask_type!r}, mask_block_size={self.mask_block_size}")
        if self.patch_sizes and (self.causal or self.mask_type != "none"):
            raise ValueError("audioconfig: with patch_sizes a token of a large patch would show small ones their future; use one "
                             "patch_size with causal and mask_type")
        if self.causal and self.mask_type != "none":
            raise ValueError(f"audioconfig: causal is a mask of its own (columns); leave mask_type = {self.mask_type!r} out")

    @classmethod
    def of(cls, values: SpectrogramConfig | Mapping) -> SpectrogramConfig:
        """From the seed's dictionary (a config is returned as it is).  ValueError: an unknown name, with the nearest known one."""
        if isinstance(values, cls):
            return values
        values = dict(values)
        if "grad_checkpointing" in values:
            values["gradient_checkpointing"] = values.pop("grad_checkpointing")
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                raise ValueError(f"audioconfig: {name!r} is unknown; {hint}")
        return cls(**values)

    def to_dict(self) -> dict:
        """JSON-able form."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @property
    def patches(self) -> tuple[tuple[int, int], ...]:
        """(frames, bands) of a patch, of every scale."""
        if self.patch_sizes:
            return tuple((size, size) for size in self.patch_sizes)
        return ((self.time_patch_size or self.patch_size, self.freq_patch_size or self.patch_size),)

    @property
    def step(self) -> int:
        """Frames that the length of a spectrogram is a multiple of: every scale's patches fill it."""
        steps = [time for time, _ in self.patches]
        multiple = max(steps)
        while any(multiple % time for time in steps):
            multiple += max(steps)
        return multiple

    @property
    def tokens(self) -> int:
        """Tokens of a spectrogram of input_length frames."""
        return sum(grid.tokens for grid in self.grids())

    def grids(self, frames: int | None = None) -> tuple[Grid, ...]:
        """The grid of every scale for a number of frames (None: input_length).  ValueError: a length that the positions cannot have."""
        frames = self.input_length if frames is None else frames
        if frames < 1 or frames % self.step:
            raise ValueError(f"a spectrogram of {frames} frames cannot be cut into whole patches; pad it to a multiple of {self.step}")
        if self.positions == "flat" and frames != self.input_length:
            raise ValueError(f"a spectrogram of {frames} frames, but positions 'flat' are those of input_length = {self.input_length}; "
                             "cut or pad it, or train with positions 'factorised' or 'rotary'")
        if self.positions == "factorised" and frames > self.input_length:
            raise ValueError(f"a spectrogram of {frames} frames, but positions 'factorised' end at input_length = {self.input_length}; "
                             "encode it in parts, or train with positions 'rotary'")
        return tuple(Grid(time, frequency, frames // time, self.input_size // frequency) for time, frequency in self.patches)

    def frames(self, tokens: int) -> int:
        """Frames that this number of tokens stands for.  ValueError: a number that fills no whole columns."""
        a_step = sum(self.step // time * (self.input_size // frequency) for time, frequency in self.patches)
        if tokens < 1 or tokens % a_step:
            raise ValueError(f"{tokens} tokens do not fill a spectrogram of {self.input_size} bands; expected a multiple of {a_step}")
        return tokens // a_step * self.step
