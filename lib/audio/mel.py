"""Mel levels: what the tokenizer reads, draws again and turns back into sound.

Convention: levels are (B, T, F), time first, in dB within `MelConfig.clamp_range`; 0 dB is the reference: the loudest place of the
clip, or a fixed level where a stream must not wait for its end. The reference is returned beside the levels, so that level + peak
is the mel power of the waveform in dB again. `valid` (B, T) is True where a frame holds sound; all other frames are padding, at
the floor, which is the quietest value (0 would be the loudest one).

Mel power is that of torchaudio's MelSpectrogram: Hann window of n_fft samples, power 2, triangles of height 1 on the HTK scale
from 0 Hz to half the sample rate. Everything runs in float32 (float64 for float64) outside autocast.
"""
from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib.randomness import generator

QUIETEST = -140.0   # dB of mel power that digital silence counts as; a sine of full scale has about +48 dB at n_fft 1024
CLIPS_TOGETHER = 4  # on a CPU: their spectra stay in memory that is reused, see lib.audio.logmel


@dataclass(frozen=True)
class MelConfig:
    """Settings of `MelFrontEnd`; stored in every checkpoint and token file (rule: the same front end in training and evaluation).

    Args:
        sample_rate: Hz.  n_fft: samples of the window and of the transform.  hop: samples from frame to frame.
        mels: number of bands.  frames: that a clip has, T; sound beyond them is cut, what is missing is padding.
        clamp_range: lowest and highest level in dB relative to the reference; the lowest is the floor.
        reference: "peak": 0 dB is the clip's loudest place; a number: 0 dB is this mel power in dB (10 log10), for streams.
        centred: frame t is centred at sample t * hop and the ends of the clip are mirrored; otherwise frame t starts there,
            nothing is mirrored and no frame needs samples beyond its own, as streams must have it.

    Raises:
        ValueError: a value out of its range.
    """

    sample_rate: int = 16000
    n_fft: int = 1024
    hop: int = 160
    mels: int = 128
    frames: int = 1024
    clamp_range: tuple[float, float] = (-80.0, 0.0)
    reference: str | float = "peak"
    centred: bool = True

    def __post_init__(self):
        for name in ("sample_rate", "n_fft", "hop", "mels", "frames"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"mel front end: {name} must be a whole number, at least 1, got {value!r}")
        if self.n_fft % 2 or self.hop > self.n_fft:
            raise ValueError(f"mel front end: n_fft must be even and at least the hop, got n_fft={self.n_fft}, hop={self.hop}")
        try:
            low, high = (float(edge) for edge in self.clamp_range)
        except (TypeError, ValueError):
            low = high = math.nan
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"mel front end: clamp_range must be two finite levels in dB, the lower one first, got {self.clamp_range!r}")
        object.__setattr__(self, "clamp_range", (low, high))        # a list where it was read from JSON
        if self.reference != "peak":
            if isinstance(self.reference, (str, bool)) or not math.isfinite(self.reference):
                raise ValueError(f'mel front end: reference must be "peak" or a level in dB, got {self.reference!r}')
            object.__setattr__(self, "reference", float(self.reference))

    @property
    def samples(self) -> int:
        """Samples of a clip of `frames` frames: (frames - 1) * hop, and one window more where frames are not centred."""
        return (self.frames - 1) * self.hop + (0 if self.centred else self.n_fft)

    @property
    def seconds(self) -> float:
        """Length of a clip of `frames` frames."""
        return self.samples / self.sample_rate

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sample_rate / self.hop

    @property
    def floor(self) -> float:
        """The lowest level in dB, which padding and silence have."""
        return self.clamp_range[0]

    def frames_of(self, samples: int | Tensor) -> int | Tensor:
        """Frames that `samples` samples of sound fill, not limited to `frames`: 1 + samples // hop where frames are centred, otherwise
        as many as cover every sample. None for no sample."""
        count = samples // self.hop + 1 if self.centred else 1 - (self.n_fft - samples) // self.hop
        if isinstance(samples, Tensor):
            return count.clamp(min=1) * (samples > 0)
        return max(1, count) if samples > 0 else 0

    def to_dict(self) -> dict:
        """JSON-able form."""
        return asdict(self) | {"clamp_range": list(self.clamp_range)}


PRESETS = {
    "default": MelConfig(),
    "speech": MelConfig(mels=80),
    "music": MelConfig(sample_rate=22050, n_fft=2048, frames=2048),
    "environmental": MelConfig(frames=512),
}


def preset(name: str, **changes) -> MelConfig:
    """One of PRESETS with changes, e.g. preset("speech", frames=256). All else that depends on these numbers is derived from the result.

    Raises:
        ValueError: an unknown preset or setting, or a value out of its range.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: {name!r} is unknown; known: {', '.join(PRESETS)}")
    unknown = sorted(set(changes) - set(asdict(PRESETS[name])))
    if unknown:
        raise ValueError(f"mel front end: {unknown[0]!r} is no setting; the settings are {', '.join(asdict(PRESETS[name]))}")
    return replace(PRESETS[name], **changes)


@lru_cache(maxsize=32)
def mel_filters(config: MelConfig, dtype: torch.dtype = torch.float32, device: torch.device = torch.device("cpu")) -> Tensor:
    """The mel bank of a front end: (mels, n_fft // 2 + 1), triangles of height 1 on the HTK scale. Cached: never change it in place."""
    c = config
    with torch.inference_mode(False):       # what is cached serves training too, whoever comes first
        highest = 2595 * math.log10(1 + c.sample_rate / 2 / 700)
        edges = 700 * (10 ** (torch.linspace(0, highest, c.mels + 2, dtype=torch.float64) / 2595) - 1)
        hertz = torch.linspace(0, c.sample_rate / 2, c.n_fft // 2 + 1, dtype=torch.float64)
        rising = (hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
        falling = (edges[2:, None] - hertz) / (edges[2:] - edges[1:-1])[:, None]
        bank = torch.minimum(rising, falling).clamp(min=0)
        empty = int((bank.amax(1) == 0).sum())
        if empty:
            warnings.warn(f"mel front end: {empty} of {c.mels} bands lie between two bins of the transform and stay at the floor; take "
                          f"fewer than {c.mels} mels or more than {c.n_fft} samples for n_fft", stacklevel=2)
        return bank.to(device, dtype)


@lru_cache(maxsize=32)
def _window(n_fft: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.hann_window(n_fft, periodic=True, dtype=torch.float64).to(device, dtype)


@lru_cache(maxsize=32)
def _sparse_bank(config: MelConfig, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The bank's entries that are not zero, in the order of bins: (band, bin, weight). No bin is in more than two bands."""
    bin_, band = mel_filters(config, torch.float64, device).T.nonzero().T
    with torch.inference_mode(False):
        return band.clone(), bin_.clone(), mel_filters(config, torch.float64, device)[band, bin_].to(dtype)


def mel_power(padded: Tensor, config: MelConfig) -> Tensor:
    """Mel power of waveforms that are padded already: (B, n) -> (B, T, F), T = 1 + (n - n_fft) // hop, frame t from sample t * hop on.

    Differentiable. On a CPU a frame's result is the same to the last bit in whatever call it is computed (the bands are summed up
    bin by bin, while a matrix product rounds according to its shape), so that streams equal whole files.
    """
    with torch.autocast(padded.device.type, enabled=False):
        x = padded if padded.dtype == torch.float64 else padded.float()
        window = _window(config.n_fft, x.dtype, x.device)
        spectrum = torch.stft(x, config.n_fft, config.hop, window=window, center=False, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()
        if x.device.type != "cpu":
            return (mel_filters(config, x.dtype, x.device) @ power).transpose(1, 2)
        band, bin_, weight = _sparse_bank(config, x.dtype, x.device)
        parts = power.permute(1, 0, 2)[bin_] * weight[:, None, None]
        return power.new_zeros(config.mels, *power[:, 0].shape).index_add(0, band, parts).permute(1, 2, 0)


def decibels(power: Tensor) -> Tensor:
    """Power in dB, at least QUIETEST: the floor protects the logarithm of silence (and stops gradients there)."""
    return 10.0 * power.clamp(min=10 ** (QUIETEST / 10)).log10()


class Mels(NamedTuple):
    """levels: (B, T, F) dB in clamp_range.  peak: (B,) mel power in dB that a level of 0 stands for.  valid: (B, T) bool."""

    levels: Tensor
    peak: Tensor
    valid: Tensor


class MelFrontEnd(nn.Module):
    """Waveforms (B, samples) at `config.sample_rate` -> Mels.

    A clip's frames do not depend on its neighbours in the batch nor on what lies beyond its length: they are those of the clip
    alone. With reference "peak" the loudest valid place of every clip has level 0, unless it is so soft that the floor would lie
    below QUIETEST: digital silence is at the floor everywhere. No gradient flows through it (`mel_power` has one).
    """

    def __init__(self, config: MelConfig = MelConfig()):
        super().__init__()
        self.config = config

    @torch.no_grad()
    def forward(self, waveform: Tensor, lengths: Tensor | Sequence[int] | None = None, frames: int | None = None) -> Mels:
        """Args:
            waveform: Tensor (B, n), any n.
            lengths: samples of sound in each clip (B,), at most n are used; None: n. A clip of length 0 is padding only.
            frames: T of the result, for whole files; None: `config.frames`.

        Returns: Mels with levels (B, T, F), float32 (float64 for float64).
        Raises: ValueError: another shape, or lengths that are negative or not one a clip.
        """
        c = self.config if frames is None else replace(self.config, frames=frames)
        if waveform.ndim != 2:
            raise ValueError(f"mel front end: expected waveforms (B, samples), got shape {tuple(waveform.shape)}")
        batch, given = waveform.shape
        lengths = torch.full((batch,), given) if lengths is None else torch.as_tensor(lengths)
        if lengths.shape != (batch,) or lengths.is_floating_point() or (lengths < 0).any():
            raise ValueError(f"mel front end: lengths must be {batch} whole numbers of samples, one a clip, not negative, "
                             f"got {lengths.tolist()}")
        x = waveform if waveform.dtype == torch.float64 else waveform.float()
        x = nn.functional.pad(x, (0, c.samples - given)) if given < c.samples else x[:, :c.samples]
        lengths = lengths.to(x.device, torch.int64).clamp(max=min(given, c.samples))
        valid = torch.arange(c.frames, device=x.device) < c.frames_of(lengths)[:, None]
        together = CLIPS_TOGETHER if x.device.type == "cpu" else max(1, batch)
        pieces = zip(x.split(together), lengths.split(together))
        parts = [decibels(mel_power(_padded(part, length, c), c)) for part, length in pieces if batch]
        levels = torch.cat(parts) if parts else x.new_zeros(0, c.frames, c.mels)
        peak = _peak(levels.masked_fill(~valid[..., None], QUIETEST), c)
        levels = _relative(levels, peak[:, None, None], c).masked_fill(~valid[..., None], c.floor)
        return Mels(levels.contiguous(), peak, valid)


def _padded(x: Tensor, lengths: Tensor, config: MelConfig) -> Tensor:
    """Clips (B, samples) with silence beyond their lengths and, where frames are centred, n_fft / 2 mirrored samples at both ends."""
    x = x.masked_fill(torch.arange(x.shape[1], device=x.device) >= lengths[:, None], 0)
    if not config.centred:
        return x
    half, lengths = config.n_fft // 2, lengths[:, None]
    offset = torch.arange(half, device=x.device)
    padded = nn.functional.pad(x, (half, half))
    if not x.shape[1]:                      # a single frame of a clip of no samples
        return padded
    padded[:, :half] = x.gather(1, _mirror(offset - half, lengths))
    return padded.scatter(1, half + lengths + offset, x.gather(1, _mirror(lengths + offset, lengths)))


def _mirror(place: Tensor, lengths: Tensor) -> Tensor:
    """Samples 0 .. length - 1 that places outside stand for, mirrored at the first and the last one as often as it takes."""
    period = (2 * lengths - 2).clamp(min=1)             # a clip of one sample has nothing else; one of none is silent anyway
    place = place.remainder(period)
    return torch.minimum(place, period - place).minimum((lengths - 1).clamp(min=0))


def _peak(levels: Tensor, config: MelConfig) -> Tensor:
    """What 0 dB stands for in each clip: (B, T, F) -> (B,)."""
    if config.reference != "peak":
        return levels.new_full(levels.shape[:1], config.reference)
    return levels.amax((1, 2)).clamp(min=QUIETEST - config.floor)     # or the noise of a silent clip would become its loudest place


def _relative(levels: Tensor, peak: Tensor | float, config: MelConfig) -> Tensor:
    return (levels - peak).clamp(*config.clamp_range)


class MelStream:
    """Levels of a waveform that comes in chunks of any size, in constant memory: the frames of the whole, to the last bit on a CPU.

    Args:
        config: with a fixed reference and frames that are not centred: the loudest place and a mirrored end would need the future.

    Raises:
        ValueError: another config.
    """

    def __init__(self, config: MelConfig):
        if config.centred or config.reference == "peak":
            raise ValueError("mel front end: a stream cannot look ahead: it needs centred=False and a fixed reference in dB, "
                             f"got centred={config.centred}, reference={config.reference!r}")
        self.config = config
        self.samples = 0                    # that came so far
        self._kept: Tensor | None = None    # from where the next frame starts
        self._done = 0                      # frames given so far

    def push(self, chunk: Tensor) -> Tensor:
        """Take samples (n,) or (B, n), n >= 0, and return the levels (T, F) or (B, T, F) of the frames that they complete, T >= 0."""
        if chunk.ndim not in (1, 2) or self._kept is not None and chunk.shape[:-1] != self._kept.shape[:-1]:
            raise ValueError(f"mel front end: a stream takes chunks (samples,) or (B, samples), all alike, got shape {tuple(chunk.shape)}")
        self.samples += chunk.shape[-1]
        chunk = chunk if chunk.dtype == torch.float64 else chunk.float()
        self._kept = chunk if self._kept is None else torch.cat([self._kept, chunk], dim=-1)
        return self._take((self._kept.shape[-1] - self.config.n_fft) // self.config.hop + 1)

    def finish(self) -> Tensor:
        """The frames that the end of the sound has begun, filled up with silence; the stream then starts anew."""
        if self._kept is None:
            raise ValueError("mel front end: a stream was finished before its first chunk")
        c, left = self.config, self.config.frames_of(self.samples) - self._done
        missing = max(0, (left - 1) * c.hop + c.n_fft - self._kept.shape[-1]) if left else 0
        self._kept = nn.functional.pad(self._kept, (0, missing))
        rest = self._take(left)
        self.samples, self._kept, self._done = 0, None, 0
        return rest

    @torch.no_grad()
    def _take(self, frames: int) -> Tensor:
        """Levels of the next frames, whose samples are there."""
        c, kept = self.config, self._kept
        if frames <= 0:
            return kept.new_zeros(*kept.shape[:-1], 0, c.mels)
        parts = []      # long chunks piece by piece: their spectra take many times the memory of their samples
        for first in range(0, frames, 1024):
            last = min(frames, first + 1024) - 1
            piece = kept[..., first * c.hop:last * c.hop + c.n_fft].reshape(-1, (last - first) * c.hop + c.n_fft)
            levels = _relative(decibels(mel_power(piece, c)), c.reference, c)
            parts.append(levels.reshape(*kept.shape[:-1], -1, c.mels))
        self._done += frames
        self._kept = kept[..., frames * c.hop:].clone()     # not a view that would keep all of a long chunk
        return torch.cat(parts, dim=-2)


def stream(config: MelConfig) -> MelStream:
    """A `MelStream` of this front end."""
    return MelStream(config)


def mask_spectrogram(levels: Tensor, seeds: Sequence[int], time: float = 0.1, frequency: float = 0.1, probability: float = 0.5,
                     fill: float = -80.0, valid: Tensor | None = None) -> Tensor:
    """SpecAugment (Park et al., 2019) for the input of a model in training: its target keeps what is masked here.

    In each clip, with `probability` each: one mask over frames, 1 .. int(time * T) wide, and one over bands, 1 .. int(frequency * F)
    wide; widths and places are uniform and depend on the clip's seed only.

    Args:
        levels: Tensor (B, T, F); it is not changed.
        seeds: one a clip, for example of `lib.randomness.derive(seed, epoch, row)`.
        time, frequency: widest share of the axis, 0 to 1.
        fill: dB that masked places get: the floor, as 0 would be the loudest value.
        valid: Tensor (B, T) bool; masks over frames then lie within the first valid.sum() frames. None: all frames.

    Returns:
        Tensor (B, T, F).
    Raises:
        ValueError: a number out of range, or not one seed a clip.
    """
    for name, value in (("time", time), ("frequency", frequency), ("probability", probability)):
        if not 0 <= value <= 1:
            raise ValueError(f"mask_spectrogram: {name} must be from 0 to 1, got {value!r}")
    if levels.ndim != 3 or len(seeds) != len(levels):
        raise ValueError(f"mask_spectrogram: expected levels (B, T, F) and one seed a clip, got shape {tuple(levels.shape)} and "
                         f"{len(seeds)} seeds")
    masked = levels.clone()
    for clip, seed in enumerate(seeds):
        rng = generator(int(seed), "mask spectrogram")
        frames = levels.shape[1] if valid is None else int(valid[clip].sum())
        for axis, share, length in ((0, time, frames), (1, frequency, levels.shape[2])):
            happens, width, place = rng.random(3)           # always drawn, so that one mask does not move the other
            width = 1 + int(width * int(share * length)) if int(share * length) else 0
            if happens < probability and width:
                masked[clip].narrow(axis, int(place * (length - width + 1)), width).fill_(fill)
    return masked
