"""From mel levels back to sound, without any weights.

Two steps, each the inverse of one of `lib.audio.mel`: the linear spectrum whose mel bands have the given levels, found by
non-negative least squares, then phases that fit the overlapping frames to one another, found by Griffin and Lim's iteration (with
the momentum of Perraudin et al., 2013). Mel levels hold no phase, so the waveform is another one than the original, of nearly the
same mel levels: what is lost between sound and sound here is the ceiling for everything that a tokenizer adds to it.

Conventions: spectra are (B, bins, T), bins = n_fft / 2 + 1, as torch.stft gives them for a periodic Hann window of n_fft samples, every
`hop` samples, centred or not as the config says. T frames make (T - 1) * hop samples, and n_fft more where they are not centred.
"""
from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lib.audio.mel import MelConfig, mel_filters
from lib.randomness import derive

CLIPS_TOGETHER = 4          # on a CPU: see lib.audio.logmel
SOLVER_ITERATIONS = 50      # 30 leave 0.008 dB of a vowel's mel levels unexplained, 100 leave 0.002; phases cost some 0.5 dB


@torch.no_grad()
def invert(levels: Tensor, peak: Tensor, config: MelConfig, iterations: int = 64, seed: int = 0) -> Tensor:
    """Sound that has nearly these mel levels.

    Args:
        levels: Tensor (B, T, F) dB relative to peak, any T; what lies outside config.clamp_range is limited to it.
        peak: Tensor (B,) dB that a level of 0 stands for, as `lib.audio.mel.Mels.peak`: it gives the loudness back.
        config: of the front end that made the levels.
        iterations: of Griffin-Lim.  seed: of the phases that it starts from, the same ones for every clip.

    Returns:
        Tensor (B, samples) float32 (float64 for float64); a clip does not depend on its neighbours.
    Raises:
        ValueError: shapes that do not fit, levels or peaks that are not finite.
    """
    if levels.ndim != 3 or levels.shape[2] != config.mels or not levels.shape[1] or peak.shape != levels.shape[:1]:
        raise ValueError(f"inversion: expected levels (B, T, {config.mels}) and peak (B,), "
                         f"got {tuple(levels.shape)} and {tuple(peak.shape)}")
    if not (torch.isfinite(levels).all() and torch.isfinite(peak).all()):
        raise ValueError("inversion: levels and peak must be finite; a model whose output is not must not be listened to")
    with torch.autocast(levels.device.type, enabled=False):
        levels, peak = (x if x.dtype == torch.float64 else x.float() for x in (levels, peak))
        together = CLIPS_TOGETHER if levels.device.type == "cpu" else max(1, len(levels))
        if not len(levels):
            return levels.new_zeros(0, samples(levels.shape[1], config))
        parts = []
        for part in levels.clamp(*config.clamp_range).split(together):
            # relative to the peak, so that the numbers are near 1 whatever the loudness
            magnitude = linear_power(10 ** (part / 10), mel_filters(config, part.dtype, part.device)).sqrt().transpose(1, 2)
            parts.append(griffin_lim(magnitude, config, iterations, seed=seed))
        return torch.cat(parts) * 10 ** (peak.to(levels) / 20)[:, None]


def linear_power(mel_power: Tensor, bank: Tensor, iterations: int = SOLVER_ITERATIONS, start: Tensor | None = None) -> Tensor:
    """Power of the bins whose mel power is given: argmin over s >= 0 of the sum over bands of (1 - (bank s) / mel_power)^2.

    Each band counts by its relative error, as levels in dB do; absolute errors would leave soft bands beside loud ones to chance.
    The updates are multiplicative (Lee and Seung, 2001): s keeps its sign and the sum never grows. There are more bins than bands,
    so many spectra fit equally well: from a smooth start the updates end at a smooth one, which sounds better than the sparse
    one of an active-set solver.

    Args:
        mel_power: Tensor (..., F), more than 0.  bank: Tensor (F, bins), at least 0.
        iterations: of the solver.  start: Tensor (..., bins), more than 0, a guess whose details are to be kept; None: smooth.
    Returns:
        Tensor (..., bins), at least 0; 0 for bins that are in no band (at 0 Hz and half the sample rate).
    """
    weight = 1 / mel_power
    scale = bank.sum(1, keepdim=True).clamp(min=1e-12)              # protects the division of bands without bins
    power = mel_power @ (bank / scale) if start is None else start
    wanted = weight @ bank
    for _ in range(iterations):
        found = ((power @ bank.T) * weight.square()) @ bank
        power = power * wanted / found.clamp(min=1e-30)             # protects bins that are in no band, whose power is 0
    return power


def griffin_lim(magnitude: Tensor, config: MelConfig, iterations: int = 64, momentum: float = 0.99, seed: int = 0,
                phase: Tensor | None = None) -> Tensor:
    """A waveform whose spectrum has nearly the given magnitudes.

    Args:
        magnitude: Tensor (B, bins, T), at least 0.
        iterations: 0 takes the first phases as they are.  momentum: 0 (Griffin and Lim, 1984) to less than 1.
        phase: Tensor (B, bins, T) radians to start from; None: uniform ones, by `seed`.
    Returns:
        Tensor (B, samples).
    Raises:
        ValueError: a momentum out of range, or magnitudes that do not fit the config.
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"griffin_lim: momentum must be from 0 to less than 1, got {momentum!r}")
    if magnitude.ndim != 3 or magnitude.shape[1] != config.n_fft // 2 + 1:
        raise ValueError(f"griffin_lim: expected magnitudes (B, {config.n_fft // 2 + 1}, T), got {tuple(magnitude.shape)}")
    if phase is None:   # drawn on the CPU and frame by frame: the same on all devices, and for the first frames of a longer clip
        generator = torch.Generator().manual_seed(derive(seed, "phases"))
        phase = torch.rand(magnitude.shape[2], magnitude.shape[1], generator=generator).T.to(magnitude) * (2 * math.pi)
    angles = torch.polar(torch.ones_like(magnitude), phase.to(magnitude).expand_as(magnitude))
    last = 0.0
    for _ in range(iterations):
        rebuilt = spectrum(waveform(magnitude * angles, config), config)
        angles = rebuilt - last * (momentum / (1 + momentum))
        angles = angles / angles.abs().clamp(min=1e-16)             # protects the division where nothing sounds
        last = rebuilt
    return waveform(magnitude * angles, config)


def samples(frames: int, config: MelConfig) -> int:
    """Samples that a number of frames make."""
    return (frames - 1) * config.hop + (0 if config.centred else config.n_fft)


def spectrum(x: Tensor, config: MelConfig) -> Tensor:
    """Complex spectrum of waveforms as `lib.audio.mel` analyses whole clips: (B, samples) -> (B, bins, T)."""
    if config.centred:
        half = config.n_fft // 2
        x = nn.functional.pad(x[:, None], (half, half), mode="reflect" if x.shape[1] > half else "constant")[:, 0]
    return torch.stft(x, config.n_fft, config.hop, window=_window(x, config), center=False, return_complex=True)


def waveform(spectrum: Tensor, config: MelConfig) -> Tensor:
    """The waveform whose spectrum is nearest to the given one (least squares): (B, bins, T) complex -> (B, samples). Differentiable.

    The exact inverse of `spectrum`, but for the first and last milliseconds where frames are not centred: hardly any window covers
    them, and dividing by what little does would make clicks of errors, so they fade in and out.
    """
    frames, n_fft, hop = spectrum.shape[2], config.n_fft, config.hop
    length = (frames - 1) * hop + n_fft
    parts = torch.fft.irfft(spectrum, n_fft, dim=1)
    window = _window(parts, config)[:, None]
    summed = _overlapped(parts * window, length, config)
    cover = _overlapped(window.square().expand(1, n_fft, frames), length, config)
    full = window.square().sum() / hop                              # where all windows that can overlap do
    result = summed / cover.clamp(min=0.01 * float(full))           # protects samples that hardly any window covers
    return result[:, n_fft // 2:length - n_fft // 2] if config.centred else result


def _overlapped(parts: Tensor, length: int, config: MelConfig) -> Tensor:
    return nn.functional.fold(parts, (1, length), kernel_size=(1, config.n_fft), stride=(1, config.hop))[:, 0, 0]


def _window(like: Tensor, config: MelConfig) -> Tensor:
    return torch.hann_window(config.n_fft, periodic=True, dtype=torch.float64).to(like.device, like.dtype)
