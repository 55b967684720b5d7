"""The log-mel front end of a batch against librosa, clip by clip."""
from __future__ import annotations

import numpy as np
import torch

from lib.audio.logmel import LogMel, kaldi_mel_filters
from lib.performance.measure import Comparison, Growth, compare, growth, need
from lib.performance.stock import clips


@torch.no_grad()
def compared(count: int = 16, seconds: float = 5.0, repetitions: int = 5) -> list[Comparison]:
    """Log-mel levels of clips. Pre-emphasis, window and power are librosa's own functions; its mel filters (triangles in Hz) are not Kaldi's
    (triangles in mel), so that librosa is given ours. AssertionError where a level differs by more than 1e-3 (of about 3 in all)."""
    librosa = need("librosa", "librosa")
    front_end = LogMel().eval()
    c = front_end.config
    filters = kaldi_mel_filters(c.mels, c.n_fft, c.sample_rate, c.fmin, front_end.fmax).numpy()
    waveform = clips(count, seconds, seconds)[0]
    hann = np.hanning(c.window).astype(np.float32)              # symmetric, as PaSST's

    def theirs():
        levels = []
        for clip in waveform.numpy():
            power = np.abs(librosa.stft(clip[1:] - 0.97 * clip[:-1], n_fft=c.n_fft, hop_length=c.hop, win_length=c.window, window=hann,
                                        pad_mode="reflect")) ** 2
            levels.append((np.log(filters @ power + 1e-5) + 4.5) / 5)
        return np.stack(levels)

    off = np.abs(front_end(waveform).numpy() - theirs()).max()
    assert off <= 1e-3, f"log-mel levels differ from librosa's by {off:.1e}"
    return [compare(f"log-mel of {count} clips of {seconds:g} s", "librosa", lambda: front_end(waveform), theirs, repetitions,
                    note=f"levels differ by at most {off:.1e} of about 3")]


def grown(sizes=(512, 1024, 2048, 4096), repetitions: int = 3, seconds: float = 0.25) -> list[Growth]:
    """Over clips. Four are computed at a time; short ones, so that results outweigh what those four take."""
    front_end, waveform = LogMel().eval(), torch.rand(max(sizes), round(32000 * seconds), generator=torch.Generator().manual_seed(0)) - 0.5
    return [growth(f"log-mel of {seconds:g} s", "clips", lambda count: lambda: front_end(waveform[:count]), sizes, repetitions)]
