"""Log-mel front ends: waveform to spectrogram, always in float32 and outside autocast.

The spectrogram of PaSST (Koutini et al., arXiv 2110.05069; hear21passt's AugmentMelSTFT): pre-emphasis, Hann-windowed STFT
power, Kaldi mel filters, log, a fixed shift and scale. In training the band edges are jittered; the draws come from torch's
global generator in the same order as there, so that the two agree in training mode as well.
"""
from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache

import torch
import torchaudio
from torch import Tensor, nn

CLIPS_TOGETHER = 4


@dataclass(frozen=True)
class LogMelConfig:
    """Settings of `LogMel`; stored in every checkpoint's config.json (rule: the same front end in training and evaluation).

    Args:
        sample_rate: Hz.  n_fft, window, hop: samples.  mels: number of bands.
        fmin, fmax: band edges in Hz; fmax None is Nyquist minus half of `fmax_jitter`.
        fmin_jitter, fmax_jitter: width in Hz of the uniform jitter of the band edges in training (1: none).
        time_masks, time_mask, frequency_masks, frequency_mask: SpecAugment in training (count, and widest share of the axis);
            the published retrieval model uses none.
    """

    sample_rate: int = 32000
    n_fft: int = 1024
    window: int = 800
    hop: int = 320
    mels: int = 128
    fmin: float = 0.0
    fmax: float | None = None
    fmin_jitter: int = 10
    fmax_jitter: int = 2000
    time_masks: int = 0
    time_mask: float = 0.1
    frequency_masks: int = 0
    frequency_mask: float = 0.1

    def frames(self, samples: int) -> int:
        """Number of spectrogram frames of `samples` samples (pre-emphasis costs one sample)."""
        return (samples - 1) // self.hop + 1

    def to_dict(self) -> dict:
        """JSON-able form."""
        return asdict(self)


@lru_cache(maxsize=64)
def kaldi_mel_filters(mels: int, n_fft: int, sample_rate: int, fmin: float, fmax: float) -> Tensor:
    """Kaldi mel filter bank.

    Returns:
        Tensor (mels, n_fft // 2 + 1), triangles between `fmin` and `fmax` Hz; the Nyquist bin is zero.
    """
    bank, _ = torchaudio.compliance.kaldi.get_mel_banks(mels, n_fft, sample_rate, fmin, fmax, 100.0, -500.0, 1.0)
    return nn.functional.pad(bank, (0, 1))


class LogMel(nn.Module):
    """PaSST's log-mel spectrogram: (B, samples) in [-1, 1] -> (B, mels, frames) float32, about [-1.4, 1.5].

    Silence gives the constant (log 1e-5 + 4.5) / 5. No gradient flows through it.
    """

    def __init__(self, config: LogMelConfig = LogMelConfig()):
        super().__init__()
        self.config = config
        self.fmax = config.fmax if config.fmax is not None else config.sample_rate // 2 - config.fmax_jitter // 2
        self.register_buffer("hann", torch.hann_window(config.window, periodic=False), persistent=False)

    def draw(self) -> tuple[float, float]:
        """Jittered band edges (lowest, highest) in Hz. Both are drawn even where the range is 1: the stream of draws equals
        AugmentMelSTFT's."""
        c = self.config
        return (c.fmin + torch.randint(c.fmin_jitter, (1,)).item(),
                self.fmax + c.fmax_jitter // 2 - torch.randint(c.fmax_jitter, (1,)).item())

    @torch.no_grad()
    def forward(self, waveform: Tensor, edges: tuple[float, float] | None = None) -> Tensor:
        """Args: waveform: Tensor (B, samples).  edges: band edges in Hz; None: drawn in training, the configured ones otherwise.
        Returns: Tensor (B, mels, frames) float32."""
        c = self.config
        fmin, fmax = edges or (self.draw() if self.training else (c.fmin, self.fmax))
        filters = kaldi_mel_filters(c.mels, c.n_fft, c.sample_rate, fmin, fmax).to(waveform.device)
        # on a CPU few clips at a time stay in its cache and in memory that is reused: more than twice as fast
        together = CLIPS_TOGETHER if waveform.device.type == "cpu" else len(waveform)
        with torch.autocast(waveform.device.type, enabled=False):
            mel = torch.cat([self._mel(part, filters) for part in waveform.float().split(together)])
            return self._mask(mel) if self.training else mel

    def _mel(self, x: Tensor, filters: Tensor) -> Tensor:
        c = self.config
        x = x[:, 1:] - 0.97 * x[:, :-1]
        spectrum = torch.stft(x, c.n_fft, c.hop, c.window, self.hann, center=True, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()
        return ((filters @ power + 1e-5).log() + 4.5) / 5     # 1e-5 protects the log of silence

    def _mask(self, mel: Tensor) -> Tensor:
        """SpecAugment (Park et al. 2019): per clip, bands of uniform width up to the given share, set to the clip's mean."""
        c, (batch, mels, frames) = self.config, mel.shape
        for count, share, axis, length in ((c.time_masks, c.time_mask, 2, frames), (c.frequency_masks, c.frequency_mask, 1, mels)):
            for _ in range(count):
                width = torch.rand(batch) * share * length
                first = torch.rand(batch) * (length - width)
                position = torch.arange(length)
                hidden = (position >= first[:, None]) & (position < (first + width)[:, None])
                hidden = hidden.to(mel.device).unsqueeze(3 - axis)
                mel = torch.where(hidden, mel.mean(dim=(1, 2), keepdim=True), mel)
        return mel
