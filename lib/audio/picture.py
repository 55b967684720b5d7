"""Sound as a picture: what the audio half of the audio-visual family sees, hides and draws again.

A clip's waveform becomes a mel spectrogram in dB, its levels are brought to 0 (quiet) .. 1 (loud), and one resize makes it a
square grey picture. That picture is the network's input and, unchanged, its target, so the two share filter and range. Row 0, at
the top, is the lowest frequency; columns run with time. The way back, which frequency and second a pixel shows, is in
`PictureConfig`.
"""
from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from transformers.audio_utils import hertz_to_mel, mel_filter_bank, mel_to_hertz

QUIETEST = -100.0   # dB; the level of digital silence
CLIPS_TOGETHER = 4  # on a CPU: their spectra stay in memory that is reused, see lib.audio.logmel
SCALES = ("top_db", "statistics", "minmax")


@dataclass(frozen=True)
class PictureConfig:
    """Settings of `SoundPicture`; stored in every checkpoint (rule: the same front end in training and evaluation).

    Args:
        sample_rate: Hz.  n_fft, hop: samples.  mels: number of bands.  fmin, fmax: band edges in Hz.
        size: rows and columns of the picture.  seconds: that it shows; shorter sounds are padded with silence, longer ones cut.
        scale: how levels in dB become 0 .. 1.
            "top_db": 1 is the loudest place of the clip, 0 is `top_db` below it and all that is quieter, so that silence and
            padding are 0. A clip with nothing above QUIETEST + top_db is not raised to 1: digital silence is 0 everywhere.
            "statistics": mean - 2 std .. mean + 2 std of the data set, which keeps how loud a clip is; after `normalise` this is
            (level - mean) / (2 std), limited to +-1, as in CAV-MAE and AudioMAE.
            "minmax": 0 and 1 are the lowest and highest level of the clip, as in the published code: padding at -100 dB leaves
            little of the range to the sound.
        top_db: dB.  mean, std: dB, of `SoundPicture.levels` over the training clips; needed for "statistics".

    Raises:
        ValueError: a value out of its range.
    """

    sample_rate: int = 16000
    n_fft: int = 1024
    hop: int = 512
    mels: int = 128
    fmin: float = 0.0
    fmax: float = 8000.0
    size: int = 224
    seconds: float = 10.0
    scale: str = "top_db"
    top_db: float = 80.0
    mean: float | None = None
    std: float | None = None

    def __post_init__(self):
        for name in ("sample_rate", "n_fft", "hop", "mels", "size"):
            if getattr(self, name) < 1:
                raise ValueError(f"sound picture: {name} must be at least 1, got {getattr(self, name)!r}")
        if not 0 <= self.fmin < self.fmax <= self.sample_rate / 2:
            raise ValueError(f"sound picture: 0 <= fmin < fmax <= sample_rate / 2 = {self.sample_rate / 2:g} Hz is needed, "
                             f"got fmin={self.fmin:g}, fmax={self.fmax:g}")
        if not (math.isfinite(self.seconds) and self.samples > self.n_fft // 2):
            raise ValueError(f"sound picture: seconds must be more than half a frame of n_fft = {self.n_fft} samples, "
                             f"got {self.seconds!r}")
        if self.scale not in SCALES:
            raise ValueError(f"sound picture: scale must be one of {', '.join(SCALES)}, got {self.scale!r}")
        if not 0 < self.top_db < math.inf:
            raise ValueError(f"sound picture: top_db must be more than 0 dB, got {self.top_db!r}")
        if self.scale == "statistics" and (self.mean is None or self.std is None or not self.std > 0):
            raise ValueError('sound picture: scale "statistics" needs mean and std > 0 of SoundPicture.levels over the training '
                             f"clips, got mean={self.mean!r}, std={self.std!r}")

    @property
    def samples(self) -> int:
        """Samples that a picture shows."""
        return round(self.seconds * self.sample_rate)

    @property
    def frames(self) -> int:
        """Frames of the spectrogram; frame t is centred at sample t * hop."""
        return 1 + self.samples // self.hop

    def frequency(self, row):
        """Hz at the centre of a row of the picture (a number or an array; beyond the first and last band the scale goes on)."""
        band = (np.asarray(row, dtype=np.float64) + 0.5) * self.mels / self.size - 0.5
        low, step = self._mel_scale()
        return mel_to_hertz(low + (band + 1) * step, mel_scale="htk")

    def row(self, frequency):
        """The row (not rounded) that shows a frequency in Hz; inverse of `frequency`."""
        low, step = self._mel_scale()
        band = (hertz_to_mel(np.asarray(frequency, dtype=np.float64), mel_scale="htk") - low) / step - 1
        return (band + 0.5) * self.size / self.mels - 0.5

    def second(self, column):
        """Seconds from the start of the clip at the centre of a column of the picture (a number or an array)."""
        frame = (np.asarray(column, dtype=np.float64) + 0.5) * self.frames / self.size - 0.5
        return frame * self.hop / self.sample_rate

    def column(self, second):
        """The column (not rounded) that shows a second of the clip; inverse of `second`."""
        frame = np.asarray(second, dtype=np.float64) * self.sample_rate / self.hop
        return (frame + 0.5) * self.size / self.frames - 0.5

    def _mel_scale(self) -> tuple[float, float]:
        """The mel of fmin and the distance of neighbouring bands in mel: band m is centred at low + (m + 1) * step."""
        low, high = (hertz_to_mel(edge, mel_scale="htk") for edge in (self.fmin, self.fmax))
        return low, (high - low) / (self.mels + 1)

    def to_dict(self) -> dict:
        """JSON-able form."""
        return asdict(self)


@lru_cache(maxsize=16)
def _window_and_bank(config: PictureConfig, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Periodic Hann window (n_fft,) and mel bank (mels, n_fft // 2 + 1): triangles of height 1 on the HTK scale.

    No buffers of the module: casting a model to half precision must not touch its front end.
    """
    c = config
    bank = mel_filter_bank(c.n_fft // 2 + 1, c.mels, c.fmin, c.fmax, c.sample_rate, norm=None, mel_scale="htk")
    with torch.inference_mode(False):  # what is cached serves training too, whoever comes first
        window = torch.hann_window(c.n_fft, periodic=True, dtype=torch.float64)
        return window.to(device, dtype), torch.from_numpy(bank.T.copy()).to(device, dtype)


class SoundPicture(nn.Module):
    """Waveform (B, samples) at `config.sample_rate` -> picture (B, 1, size, size) float32 in [0, 1].

    Mel power of a centred Hann STFT, in dB, scaled as `PictureConfig.scale` says, then squashed to a square (bilinear; where the
    picture has fewer pixels than the spectrogram, each is a weighted mean of all that it covers, none is left out). Runs in
    float32 (float64 for float64) outside autocast; no gradient flows through it; silence gives finite numbers.
    """

    def __init__(self, config: PictureConfig = PictureConfig()):
        super().__init__()
        self.config = config

    @torch.no_grad()
    def forward(self, waveform: Tensor) -> Tensor:
        """Args: waveform: Tensor (B, samples), any number of samples.  Returns: Tensor (B, 1, size, size).
        Raises: ValueError: another shape."""
        c = self.config
        levels = self.levels(waveform)
        if c.scale == "statistics":
            low, spread = c.mean - 2 * c.std, 4 * c.std
        elif c.scale == "top_db":
            low, spread = levels.amax((1, 2), keepdim=True).clamp(min=QUIETEST + c.top_db) - c.top_db, c.top_db
        else:
            low = levels.amin((1, 2), keepdim=True)
            spread = (levels.amax((1, 2), keepdim=True) - low).clamp(min=1e-6)      # protects the division: silence has no range
        grey = ((levels - low) / spread).clamp(0, 1)[:, None]
        with torch.autocast(waveform.device.type, enabled=False):
            picture = nn.functional.interpolate(grey, size=(c.size, c.size), mode="bilinear", antialias=True)
        return picture.clamp(0, 1)      # its weights sum to 1 but for rounding

    @torch.no_grad()
    def levels(self, waveform: Tensor) -> Tensor:
        """Mel levels in dB, at least QUIETEST: (B, samples) -> (B, mels, frames), of silence-padded or cut waveforms."""
        c = self.config
        if waveform.ndim != 2:
            raise ValueError(f"sound picture: expected waveforms (B, samples), got shape {tuple(waveform.shape)}")
        with torch.autocast(waveform.device.type, enabled=False):
            x = waveform if waveform.dtype == torch.float64 else waveform.float()
            x = nn.functional.pad(x, (0, c.samples - x.shape[1]))       # a negative number cuts
            window, bank = _window_and_bank(c, x.dtype, x.device)
            together = CLIPS_TOGETHER if x.device.type == "cpu" else max(1, len(x))
            return torch.cat([self._levels(part, window, bank) for part in x.split(together)])

    def _levels(self, x: Tensor, window: Tensor, bank: Tensor) -> Tensor:
        c = self.config
        spectrum = torch.stft(x, c.n_fft, c.hop, window=window, center=True, pad_mode="reflect", return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()
        return 10.0 * (bank @ power).clamp(min=10 ** (QUIETEST / 10)).log10()       # the clamp protects the log of silence


def normalise(images: Tensor, channels: int | None = None) -> Tensor:
    """Pictures or frames as the input of a network: mean 0.5 and standard deviation 0.5 taken out, so [0, 1] becomes [-1, 1].

    Args:
        images: Tensor (..., C, H, W): float in [0, 1], or uint8 in 0 .. 255.
        channels: copies of the one channel of grey pictures (3 for published networks); None: leave the channels as they are.

    Returns:
        Tensor (..., channels or C, H, W) float32 (float64 for float64) in [-1, 1]; equal channels share their memory.
    """
    images = images.float() / 255 if images.dtype == torch.uint8 else images
    images = images * 2 - 1
    return images if channels is None else images.expand(*images.shape[:-3], channels, *images.shape[-2:])
