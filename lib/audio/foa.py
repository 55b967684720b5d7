"""The front end of the spatial family (log-mel and intensity vectors of first-order ambisonics), and turns of what it sees.

Waveforms are (..., 4, samples) in the convention of lib.audio.ambisonics: ACN W, Y, Z, X, SN3D; azimuth counter-clockwise from
the front, elevation upward, degrees. Features are (..., 7, frames, mels) in the order log-mel of W, Y, Z, X, then the intensity
vector's Y, Z, X: mind that directions are written (x, y, z) everywhere else.

A turn always comes in pairs, one function for sound and one for labels: `rotate` with `rotate_azimuth` for any angle;
`turn_features` or `turn_waveform` with `turn_angles` for the 16 turns and reflections that only permute and negate channels, so
that features need not be computed again.
"""
from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from lib.audio.ambisonics import intensity_vector

CHANNELS = 4  # W, Y, Z, X
CLIPS_TOGETHER = 1  # on a CPU: its spectra stay in the cache, see lib.audio.logmel
SMALLEST_POWER = 1e-10  # protects the log of silence: log-mel is at least -100 dB


@dataclass(frozen=True)
class FoaMelConfig:
    """Settings of `FoaMel`; stored in every checkpoint's config.json (rule: the same front end in training and evaluation).

    Args:
        sample_rate: Hz.  n_fft, hop: samples.  mels: number of bands.  fmin, fmax: band edges in Hz.

    Raises:
        ValueError: a value out of its range.
    """

    sample_rate: int = 24000
    n_fft: int = 1024
    hop: int = 240
    mels: int = 64
    fmin: float = 20.0
    fmax: float = 12000.0

    def __post_init__(self):
        for name in ("sample_rate", "n_fft", "hop", "mels"):
            if getattr(self, name) < 1:
                raise ValueError(f"FOA front end: {name} must be at least 1, got {getattr(self, name)!r}")
        if not 0 <= self.fmin < self.fmax <= self.sample_rate / 2:
            raise ValueError(f"FOA front end: 0 <= fmin < fmax <= sample_rate / 2 = {self.sample_rate / 2:g} Hz is needed, "
                             f"got fmin={self.fmin:g}, fmax={self.fmax:g}")

    def frames(self, samples: int) -> int:
        """Number of frames of `samples` samples; frame t is centred at sample t * hop."""
        return 1 + samples // self.hop

    def to_dict(self) -> dict:
        """JSON-able form."""
        return asdict(self)


@lru_cache(maxsize=16)
def _window_and_bank(config: FoaMelConfig, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Periodic Hann window (n_fft,) and mel bank (n_fft // 2 + 1, mels): triangles on the HTK scale of Slaney's unit area.

    No buffers of the module: casting a model to half precision must not touch its front end.
    """
    bank = mel_filter_bank(config.n_fft // 2 + 1, config.mels, config.fmin, config.fmax, config.sample_rate,
                           norm="slaney", mel_scale="htk")
    with torch.inference_mode(False):  # what is cached serves training too, whoever comes first
        window = torch.hann_window(config.n_fft, periodic=True, dtype=torch.float64)
        return window.to(device, dtype), torch.from_numpy(bank).to(device, dtype)


class FoaMel(nn.Module):
    """Log-mel spectra and intensity vectors: (N, 4, samples) W, Y, Z, X -> (N, 7, frames, mels), frames = 1 + samples // hop.

    Channels 0 to 3: 10 log10 of the mel power of W, Y, Z, X, in dB, at least -100. Channels 4 to 6: the intensity vector Y, Z, X
    of every STFT bin, normalised there (lib.audio.ambisonics.intensity_vector), then pooled by the same mel bank, whose bands
    sum to about n_fft / sample_rate: at most 0.0441 long. As in SALM (arXiv 2507.16724) and the localisation models it builds
    on. Runs in float32 (float64 for float64) outside autocast; values and gradients are finite at digital silence.
    """

    def __init__(self, config: FoaMelConfig = FoaMelConfig()):
        super().__init__()
        self.config = config

    def forward(self, waveform: Tensor) -> Tensor:
        """Args: waveform: Tensor (N, 4, samples), samples > n_fft // 2.  Returns: Tensor (N, 7, frames, mels).
        Raises: ValueError: another shape (mono, stereo), too few samples, or a value that is not finite."""
        c = self.config
        _check(waveform, 3)
        if waveform.shape[-1] <= c.n_fft // 2:
            raise ValueError(f"{waveform.shape[-1]} samples are too few for frames of {c.n_fft}: at least {c.n_fft // 2 + 1} "
                             "are needed (pad with lib.audio.foa.fit)")
        with torch.autocast(waveform.device.type, enabled=False):
            x = waveform if waveform.dtype == torch.float64 else waveform.float()
            if not torch.isfinite(x.sum()):
                broken = [n for n, clip in enumerate(x) if not clip.isfinite().all()]
                raise ValueError(f"waveform holds values that are not finite in clips {broken} of the batch; "
                                 "the health check of the data set finds such files")
            constants = _window_and_bank(c, x.dtype, x.device)
            together = CLIPS_TOGETHER if x.device.type == "cpu" else max(1, len(x))
            return torch.cat([self._features(part, *constants) for part in x.split(together)])

    def _features(self, x: Tensor, window: Tensor, bank: Tensor) -> Tensor:
        c = self.config
        spectrum = torch.stft(x.flatten(0, 1), c.n_fft, c.hop, window=window, center=True, pad_mode="reflect",
                              return_complex=True)
        # stft lays its result out as (frames, bins): seen that way nothing is copied, and the product ends as (frames, mels)
        spectrum = spectrum.mT.unflatten(0, x.shape[:2])
        power = spectrum.real.square() + spectrum.imag.square()
        vector = intensity_vector(spectrum.transpose(0, 1)).transpose(0, 1)
        pooled = torch.cat([power, vector], dim=1) @ bank
        return torch.cat([10.0 * pooled[:, :CHANNELS].clamp(min=SMALLEST_POWER).log10(), pooled[:, CHANNELS:]], dim=1)


def fit(waveform: Tensor, samples: int, *, start: int = 0, padding: str = "zero") -> Tensor:
    """Exactly `samples` samples from `start` on: a crop of what is longer, padding behind what is shorter.

    Args:
        waveform: Tensor (..., samples).  samples: wanted, >= 1.  start: first sample taken, within the waveform.
        padding: "zero", the only one for sounds whose order matters: A, B repeated is A, B, A, B, where B also comes before A;
            "repeat": as many whole repetitions as fit, then zeros (the published choice for one event).

    Returns:
        Tensor (..., samples) of the same precision.

    Raises:
        ValueError: another word for `padding`, `samples` < 1, or `start` not within the waveform.
    """
    if padding not in ("zero", "repeat"):
        raise ValueError(f'padding must be "zero" or "repeat", got {padding!r}')
    if samples < 1 or not 0 <= start < waveform.shape[-1]:
        raise ValueError(f"samples must be at least 1 and start within the waveform of {waveform.shape[-1]} samples, "
                         f"got samples={samples!r}, start={start!r}")
    piece = waveform[..., start:start + samples]
    if padding == "repeat":
        piece = piece.repeat(*[1] * (piece.ndim - 1), samples // piece.shape[-1])
    return nn.functional.pad(piece, (0, samples - piece.shape[-1]))


def rotate(waveform: Tensor, degrees: float | Tensor) -> Tensor:
    """Turn a scene about the vertical axis, counter-clockwise seen from above: a source at azimuth a is then at a + degrees.

    Args:
        waveform: Tensor (..., 4, samples).  degrees: a number, or one for each clip, Tensor (...).

    Returns:
        Tensor (..., 4, samples). Labels follow with `rotate_azimuth`, captions with their own direction words.
    """
    _check(waveform)
    angle = torch.as_tensor(degrees, dtype=torch.float64, device=waveform.device).deg2rad()[..., None]
    cos, sin = angle.cos().to(waveform.dtype), angle.sin().to(waveform.dtype)
    w, y, z, x = waveform.unbind(-2)
    return torch.stack([w, sin * x + cos * y, z, cos * x - sin * y], dim=-2)


def rotate_azimuth(azimuth, degrees):
    """Azimuth + degrees in (-180, 180]. Numbers, numpy arrays or tensors give their kind; lists give an array."""
    total = (np.asarray(azimuth, dtype=np.float64) if isinstance(azimuth, (list, tuple)) else azimuth) + degrees
    return 180.0 - (180.0 - total) % 360.0 % 360.0  # twice: one rounding step below 0 the first gives 360 itself


def turn_features(features: Tensor, quarter_turns: int, mirror: bool, flip: bool) -> Tensor:
    """Features of the scene that is reflected and then turned; equal to those of `turn_waveform`, without computing them again.

    Args:
        features: Tensor (..., 7, frames, mels).  mirror: left becomes right (azimuth a -> -a).  flip: up becomes down.
        quarter_turns: 0 to 3 turns of 90 degrees counter-clockwise, after the reflections.

    Returns:
        Tensor of the same shape: log-mels change places (power is blind to signs), intensities change places and signs.
    """
    if features.ndim < 3 or features.shape[-3] != 7:
        raise ValueError(f"expected features (..., 7, frames, mels) of FoaMel, got shape {tuple(features.shape)}")
    order, signs = _symmetry(quarter_turns, mirror, flip)
    channels = [0, *(1 + k for k in order), *(4 + k for k in order)]
    return features[..., channels, :, :] * features.new_tensor([1, 1, 1, 1, *signs])[:, None, None]


def turn_waveform(waveform: Tensor, quarter_turns: int, mirror: bool, flip: bool) -> Tensor:
    """The same reflections, then turns, as `turn_features` for sound: (..., 4, samples) -> (..., 4, samples)."""
    _check(waveform)
    order, signs = _symmetry(quarter_turns, mirror, flip)
    return waveform[..., [0, *(1 + k for k in order)], :] * waveform.new_tensor([1, *signs])[:, None]


def turn_angles(azimuth, elevation, quarter_turns: int, mirror: bool, flip: bool) -> tuple:
    """The same for labels: (azimuth in (-180, 180], elevation) in degrees, of the kinds that `rotate_azimuth` takes."""
    _symmetry(quarter_turns, mirror, flip)
    azimuth, elevation = (np.asarray(a, dtype=np.float64) if isinstance(a, (list, tuple)) else a for a in (azimuth, elevation))
    return rotate_azimuth(-azimuth if mirror else azimuth, 90.0 * quarter_turns), -elevation if flip else elevation


def _symmetry(quarter_turns: int, mirror: bool, flip: bool) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Where each of the new Y, Z, X is taken from (place in Y, Z, X), and its sign."""
    if quarter_turns not in (0, 1, 2, 3):
        raise ValueError(f"quarter_turns must be 0, 1, 2 or 3, got {quarter_turns!r}")
    cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarter_turns]
    left, up = -1 if mirror else 1, -1 if flip else 1
    return ((2, 1, 0), (sin, up, -sin * left)) if sin else ((0, 1, 2), (cos * left, up, cos))


def _check(waveform: Tensor, axes: int | None = None) -> None:
    """Refuse what is no (..., 4, samples)."""
    right = waveform.ndim == (axes or max(2, waveform.ndim)) and waveform.shape[-2] == CHANNELS
    if not (right and waveform.is_floating_point()):
        raise ValueError(f"expected ({'N' if axes else '...'}, 4, samples) floating point, channels W, Y, Z, X, got shape "
                         f"{tuple(waveform.shape)} of {waveform.dtype}; a mono clip has no direction: "
                         "lib.audio.ambisonics.encode gives it one")
