"""What a tokenizer's drawings sound like, beside the best that their front end allows.

Each clip is made audible in several ways, all of the same length, at the loudness of the original: see `renderings`. Measures of
`lib.evaluation.speech` are taken clip by clip, for intervals; where clips are too short for STOI several are judged as one sound.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lib.audio.inversion import invert
from lib.audio.mel import MelConfig
from lib.encoders.vocoder import Vocoder
from lib.evaluation import speech

CEILING, MODEL, CONTROL = "original levels", "tokens", "tokens of another clip"
LONG_ENOUGH = 2.0       # seconds that STOI needs to say something


def renderings(levels: Tensor, drawn: Tensor, peak: Tensor, mel: MelConfig, vocoder: Vocoder | None = None) -> dict[str, Tensor]:
    """Sounds (n, samples) by name.

    Args: levels, drawn: Tensor (n, T, F) dB, of the originals and what the model made of its tokens.  peak: Tensor (n,) dB.
    Returns: "original levels" (the analysis-synthesis ceiling) and "tokens", by Griffin-Lim from the stored peak; with a vocoder the same
        two with ", vocoder" behind; with several clips the control "tokens of another clip", at the clip's own peak.
    """
    made = {CEILING: invert(levels, peak, mel), MODEL: invert(drawn, peak, mel)}
    if vocoder is not None:
        made |= {f"{name}, vocoder": vocoder.sound(x, peak) for name, x in ((CEILING, levels), (MODEL, drawn))}
    if len(drawn) > 1:      # louder or softer by the difference of the peaks, instead of made a second time
        gain = 10 ** ((peak - peak.roll(1)) / 20)
        made[CONTROL] = made[MODEL].roll(1, dims=0) * gain[:, None]
    return made


def groups_of(lengths: Sequence[int], sample_rate: int, seconds: float = LONG_ENOUGH) -> list[list[int]]:
    """Consecutive clips that are judged together: as few as give `seconds` of sound; the last group takes what is left over.

    Args: lengths: samples of each clip.
    Returns: lists of clips, each clip with samples in one of them.
    """
    found, current = [], []
    for clip, length in enumerate(lengths):
        current += [clip] if length else []
        if sum(lengths[k] for k in current) >= seconds * sample_rate:
            found.append(current)
            current = []
    if current and found:
        found[-1] += current
    return found or [current] * bool(current)


def joined(sounds: Tensor, lengths: Sequence[int], groups: Sequence[Sequence[int]]) -> tuple[Tensor, list[int]]:
    """The clips (n, samples) of each group end to end: (groups, samples), padded with silence, and the samples of each."""
    parts = [torch.cat([sounds[k, :lengths[k]] for k in group]) for group in groups]
    return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True), [len(part) for part in parts]


def quality(original: Tensor, made: Mapping[str, Tensor], lengths: Sequence[int], mel: MelConfig) -> dict[str, dict[str, np.ndarray]]:
    """Measures of each rendering, clip by clip (joined where clips are short).

    Args: original: Tensor (n, samples).  made: of `renderings`.  lengths: samples of each clip that hold sound; clips of 0 are left out.
    Returns: {rendering: {measure: (groups,), NaN where a clip cannot be judged}}; PESQ only where installed and at 16 kHz.
    """
    shortest = min(some.shape[1] for some in made.values())     # whole frames: up to a hop less than the original
    lengths = [min(length, shortest) for length in lengths]
    rate, together = mel.sample_rate, groups_of(lengths, mel.sample_rate)
    target, sizes = joined(original, lengths, together)
    found = {}
    for name, sounds in made.items():
        estimate, _ = joined(sounds, lengths, together)
        values = speech.measures(target, estimate, sizes, rate, mel)
        found[name] = {measure: one.double().numpy() for measure, one in values.items() if one is not None}
    return found


def means(measured: Mapping[str, Mapping[str, np.ndarray]]) -> pd.DataFrame:
    """The mean of each measure over the clips that could be judged, NaN where none could: a row a rendering of `quality`."""
    return pd.DataFrame({name: {measure: pd.Series(values[np.isfinite(values)], dtype=float).mean() for measure, values in some.items()}
                         for name, some in measured.items()}).T
