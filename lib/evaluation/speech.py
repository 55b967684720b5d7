"""How near a sound is to the one it should be: waveform, intelligibility, and mel spectrum.

Conventions: waveforms are (B, samples); `lengths` (B,) says how many samples of each clip hold sound, all behind them is left out. Every
measure returns one number a clip, NaN where a clip cannot be judged (silent, or too short for the measure); `speech_quality`
averages over the others and says how many they were.

What to expect: SI-SNR compares samples, so a sound with new phases, as every mel decoder makes it, is near or below 0 dB however
good it is. STOI (0 to 1) and mel distance judge what is heard; read them beside those of the analysis-synthesis ceiling.
"""
from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from lib.audio.mel import MelConfig, MelFrontEnd, decibels, mel_power

# window in samples and bands of each resolution, as in the Descript audio codec (Kumar et al., arXiv 2306.06546); hop: a quarter.
# Its shortest windows hold no more than their bands resolve at 16 kHz.
RESOLUTIONS = ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))
PESQ_RATE = 16000


def si_snr(estimate: Tensor, target: Tensor, lengths: Tensor | Sequence[int] | None = None) -> Tensor:
    """Scale-invariant signal-to-noise ratio (Le Roux et al., arXiv 1811.02508, means taken out).

    10 log10(||s||^2 / ||estimate - s||^2) with s the projection of the estimate on the target.

    Args: estimate, target: Tensor (B, samples).  lengths: (B,) samples; None: all.
    Returns: Tensor (B,) dB; inf for an exact copy, NaN for a silent (constant) target, -inf for an estimate that has none of it.
        Differentiable, in float32 (float64 for float64).
    Raises: ValueError: shapes that do not fit.
    """
    inside = _inside(estimate, target, lengths)
    estimate, target = (_centred(x if x.dtype == torch.float64 else x.float(), inside) for x in (estimate, target))
    energy = target.square().sum(1, keepdim=True)
    aligned = (estimate * target).sum(1, keepdim=True) / energy * target            # a silent target: 0 / 0, NaN
    return 10 * (aligned.square().sum(1) / (estimate - aligned).square().sum(1)).log10()


def stoi(estimate: Tensor, target: Tensor, sample_rate: int, lengths: Tensor | Sequence[int] | None = None,
         extended: bool = False) -> Tensor:
    """Short-time objective intelligibility (Taal et al., 2011) through the package pystoi.

    Args:
        estimate, target: Tensor (B, samples), any loudness.  sample_rate: Hz.  lengths: (B,) samples; None: all.
        extended: ESTOI (Jensen and Taal, 2016), which also punishes noise that comes and goes.
    Returns:
        Tensor (B,) float64, about 0 to 1; NaN for clips with less than 0.4 s of sound that is not silent.
    Raises:
        ValueError: shapes that do not fit.  ModuleNotFoundError: pystoi is not installed.
    """
    try:
        from pystoi import stoi as measure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("STOI needs the package pystoi: pip install pystoi") from error
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Not enough STFT frames", RuntimeWarning)    # it would return 1e-5
        return _each(lambda one, other: measure(other, one, sample_rate, extended=extended), estimate, target, lengths,
                     (RuntimeWarning, ValueError))


def pesq_wb(estimate: Tensor, target: Tensor, sample_rate: int, lengths: Tensor | Sequence[int] | None = None) -> Tensor | None:
    """Wide-band PESQ (ITU-T P.862.2) through the optional package pesq, which compiles C where it is installed.

    Args: estimate, target: Tensor (B, samples).  sample_rate: 16000.  lengths: (B,) samples; None: all.
    Returns: Tensor (B,) float64, about 1 to 4.64, NaN for clips in which it finds no utterance; None where pesq is not installed.
    Raises: ValueError: another sample rate, or shapes that do not fit.
    """
    if sample_rate != PESQ_RATE:
        raise ValueError(f"wide-band PESQ is defined at {PESQ_RATE} Hz, got {sample_rate}; resample both sounds")
    _inside(estimate, target, lengths)
    try:
        import pesq
    except ModuleNotFoundError:
        return None
    return _each(lambda one, other: pesq.pesq(sample_rate, other, one, "wb"), estimate, target, lengths, (pesq.PesqError, ValueError))


@torch.no_grad()
def mel_distance(estimate: Tensor, target: Tensor, config: MelConfig, lengths: Tensor | Sequence[int] | None = None) -> Tensor:
    """Mean absolute difference of mel levels after analysis of both sounds, over frames that hold sound.

    Both are relative to the target's peak and within config.clamp_range, so a wrong loudness counts.

    Args: estimate, target: Tensor (B, samples).  config: of the front end, of any number of frames.  lengths: (B,) samples; None: all.
    Returns: Tensor (B,) dB; NaN for a clip of length 0.
    Raises: ValueError: shapes that do not fit.
    """
    _inside(estimate, target, lengths)
    # a frame more where the last one begins before the end: all samples are analysed
    frames = max(1, int(config.frames_of(target.shape[1])) + config.centred)
    front_end = MelFrontEnd(replace(config, frames=frames))
    wanted = front_end(target, lengths)
    # at the floor of its own peak a level is no longer known: give the estimate the range that the target's peak needs
    wide = MelFrontEnd(replace(config, frames=frames, reference=0.0, clamp_range=(-1000.0, 1000.0)))(estimate, lengths)
    levels = (wide.levels - wanted.peak[:, None, None]).clamp(*config.clamp_range)
    difference = (levels - wanted.levels).abs().mean(2).masked_fill(~wanted.valid, 0)
    return difference.sum(1) / wanted.valid.sum(1)                                   # no frame: 0 / 0, NaN


def multi_resolution_mel_loss(estimate: Tensor, target: Tensor, sample_rate: int,
                              resolutions: Sequence[tuple[int, int]] = RESOLUTIONS, floor: float = 1e-5) -> Tensor:
    """Mean absolute difference of log10 mel magnitudes at several resolutions, summed over them. Differentiable.

    Args:
        estimate, target: Tensor (B, samples).  sample_rate: Hz.
        resolutions: (window in samples, bands), each with a quarter of the window as hop; bands that fall between two bins of a
            window count as equal.
        floor: magnitude below which nothing is heard; it protects the logarithm.
    Returns: scalar.
    Raises: ValueError: shapes that do not fit.
    """
    _inside(estimate, target, None)
    total = estimate.new_zeros(())
    for size, mels in resolutions:
        config = MelConfig(sample_rate, n_fft=size, hop=size // 4, mels=mels)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "mel front end")
            power = [mel_power(nn.functional.pad(x, (size // 2, size // 2)), config) for x in (estimate, target)]
        one, other = (0.5 * x.clamp(min=floor ** 2).log10() for x in power)
        total = total + (one - other).abs().mean()
    return total


def measures(reference: Tensor, estimate: Tensor, lengths: Tensor | Sequence[int] | None, sample_rate: int,
             config: MelConfig | None = None) -> dict[str, Tensor | None]:
    """All measures, clip by clip.

    Args:
        reference, estimate: Tensor (B, samples).  lengths: (B,) samples; None: all.  sample_rate: Hz.
        config: front end for the mel distance; None: the default one at this sample rate.
    Returns:
        "SI-SNR" dB, "STOI", "ESTOI", "PESQ" (None where not installed or another rate than 16 kHz), "mel distance" dB: Tensor (B,) each, NaN
        where a clip cannot be judged.
    Raises:
        ValueError: shapes that do not fit.
    """
    return {
        "SI-SNR": si_snr(estimate, reference, lengths),
        "STOI": stoi(estimate, reference, sample_rate, lengths),
        "ESTOI": stoi(estimate, reference, sample_rate, lengths, extended=True),
        "PESQ": pesq_wb(estimate, reference, sample_rate, lengths) if sample_rate == PESQ_RATE else None,
        "mel distance": mel_distance(estimate, reference, config or MelConfig(sample_rate=sample_rate), lengths),
    }


def speech_quality(reference: Tensor, estimate: Tensor, lengths: Tensor | Sequence[int] | None, sample_rate: int,
                   config: MelConfig | None = None) -> dict[str, float | int | None]:
    """All measures of a set of clips. Arguments and errors as `measures`.

    Returns: of each measure the mean over the clips that could be judged (None: none could); "<name> clips": how many these were;
        "clips": how many there are.
    """
    result: dict[str, float | int | None] = {"clips": len(reference)}
    for name, values in measures(reference, estimate, lengths, sample_rate, config).items():
        known = values[torch.isfinite(values)] if values is not None else torch.zeros(0)
        result |= {name: float(known.double().mean()) if len(known) else None, f"{name} clips": len(known)}
    return result


def _inside(estimate: Tensor, target: Tensor, lengths: Tensor | Sequence[int] | None) -> Tensor:
    """(B, samples) bool: what lies within the clips."""
    if estimate.ndim != 2 or estimate.shape != target.shape:
        raise ValueError(f"expected two sets of waveforms (B, samples) of one shape, got {tuple(estimate.shape)} and {tuple(target.shape)}")
    batch, count = target.shape
    lengths = torch.full((batch,), count) if lengths is None else torch.as_tensor(lengths)
    if lengths.shape != (batch,) or lengths.is_floating_point() or (lengths < 0).any() or (lengths > count).any():
        raise ValueError(f"lengths must be {batch} whole numbers of samples, 0 to {count}, got {lengths.tolist()}")
    return torch.arange(count, device=target.device) < lengths.to(target.device)[:, None]


def _centred(x: Tensor, inside: Tensor) -> Tensor:
    x = x.masked_fill(~inside, 0)
    return (x - x.sum(1, keepdim=True) / inside.sum(1, keepdim=True).clamp(min=1)).masked_fill(~inside, 0)


def _each(measure, estimate: Tensor, target: Tensor, lengths, refusals: tuple) -> Tensor:
    """A measure of NumPy signals, clip by clip; NaN where it refuses, or where one of the two is silent or not finite."""
    count = _inside(estimate, target, lengths).sum(1).tolist()
    values = []
    for one, other, length in zip(estimate.detach().cpu().double().numpy(), target.detach().cpu().double().numpy(), count):
        one, other = one[:length], other[:length]
        try:
            usable = length and np.isfinite(one).all() and one.any() and other.any()
            values.append(float(measure(one, other)) if usable else math.nan)
        except refusals:
            values.append(math.nan)
    return torch.tensor(values, dtype=torch.float64)
