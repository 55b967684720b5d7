"""Log-mel pictures, and where their sound comes from. Arrays are numpy or torch, times seconds, frequencies Hz; the figures are
`Picture`s."""
from __future__ import annotations

import io
import math
from collections.abc import Sequence

import matplotlib
import numpy as np
import seaborn
import torch
from matplotlib import image
from matplotlib.ticker import MaxNLocator

from lib.audio.directions import DIRECTIONS
from lib.audio.logmel import kaldi_mel_filters
from lib.display.style import SPECTRUM, Picture, shortened, themed, to_array

_HERTZ = (125, 250, 500, 1000, 2000, 4000, 8000, 16000)


def _mel_axes(axes, spectrogram: np.ndarray, hop_seconds: float, fmin: float, fmax: float | None, limits=None):
    """Draw one spectrogram; returns the image. Cells that are NaN or infinite are drawn cyan."""
    colours = matplotlib.colormaps[SPECTRUM].with_extremes(bad="cyan")
    low, high = limits or (None, None)
    return _time_frequency(axes, np.where(np.isfinite(spectrogram), spectrogram, np.nan), hop_seconds, fmin, fmax, cmap=colours,
                           vmin=low, vmax=high)


def _time_frequency(axes, cells: np.ndarray, hop_seconds: float, fmin: float, fmax: float | None, **options):
    """Draw (bands, frames) numbers or (bands, frames, 3) colours; returns the image."""
    bands, frames = cells.shape[:2]
    drawn = axes.imshow(cells, origin="lower", aspect="auto", interpolation="nearest",
                        extent=(0, frames * hop_seconds, -0.5, bands - 0.5), **options)
    axes.grid(False)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if fmax is None:
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        return drawn
    mel = lambda hertz: 1127 * np.log1p(np.asarray(hertz, float) / 700)  # noqa: E731  HTK's scale, also Kaldi's
    # Band b (from 0) is a triangle centred b + 1 of bands + 1 equal steps of mel above fmin.
    places = {f: (mel(f) - mel(fmin)) / (mel(fmax) - mel(fmin)) * (bands + 1) - 1 for f in _HERTZ if fmin < f < fmax}
    kept: list[int] = []
    for hertz in reversed(places):  # low frequencies lie close together: a label needs 8 % of the height
        if not kept or places[kept[-1]] - places[hertz] > 0.08 * bands:
            kept.append(hertz)
    axes.set_yticks([places[f] for f in kept], [f"{f / 1000:g}k" if f >= 1000 else f"{f}" for f in kept])
    axes.set_ylim(-0.5, bands - 0.5)
    return drawn


@themed
def log_mel(spectrogram, *, hop_seconds: float, fmin: float = 0.0, fmax: float | None = None, title: str = "Log-mel spectrogram",
            unit: str = "log-mel value", limits: tuple[float, float] | None = None) -> Picture:
    """One log-mel spectrogram.

    Args:
        spectrogram: (mels, frames); NaN and infinite cells are drawn cyan.
        hop_seconds: time from frame to frame.
        fmin, fmax: edges of the mel bands in Hz (HTK mel scale, as in the PaSST front end); without fmax the axis counts bands.
        unit: label of the colour bar.
        limits: values of the darkest and brightest colour; by default the extremes of this spectrogram.
    """
    return log_mel_grid([spectrogram], hop_seconds=hop_seconds, fmin=fmin, fmax=fmax, titles=[title], unit=unit, limits=limits,
                        columns=1)


@themed
def log_mel_grid(spectrograms: Sequence, *, hop_seconds: float, fmin: float = 0.0, fmax: float | None = None,
                 titles: Sequence[str] = (), unit: str = "log-mel value", limits: tuple[float, float] | None = None,
                 columns: int = 3) -> Picture:
    """Several log-mel spectrograms, each (mels, frames), on one colour scale. Arguments as in `log_mel`."""
    arrays = [to_array(s, f"spectrogram {i}", 2) for i, s in enumerate(spectrograms)]
    if not arrays:
        raise ValueError("spectrograms is empty, expected at least one (mels, frames) array")
    columns = min(columns, len(arrays))
    rows = math.ceil(len(arrays) / columns)
    finite = np.concatenate([a[np.isfinite(a)] for a in arrays])
    limits = limits or ((float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0))
    picture = Picture(height=3.2 if rows == columns == 1 else 0.5 + 2.1 * rows)
    grid = picture.subplots(rows, columns, squeeze=False)
    for i, axes in enumerate(grid.flat):
        if i >= len(arrays):
            axes.set_axis_off()
            continue
        drawn = _mel_axes(axes, arrays[i], hop_seconds, fmin, fmax, limits)
        axes.set_title(shortened(titles[i], 90 // columns) if i < len(titles) else "", fontsize=11 if columns == 1 else 9)
        axes.set_xlabel("Time (s)" if i + columns >= len(arrays) else "")
        axes.set_ylabel(("Frequency (Hz)" if fmax else "Mel band") if i % columns == 0 else "")
    picture.colorbar(drawn, ax=grid, label=unit, fraction=0.05, pad=0.01)
    return picture


@themed
def intensity_map(intensity, level, *, hop_seconds: float, fmin: float = 0.0, fmax: float | None = None,
                  limits: tuple[float, float] | None = None, unit: str = "W log-mel value",
                  title: str = "Where the sound comes from") -> Picture:
    """Direction of the sound over time and frequency, beside the log-mel spectrogram of the same clip.

    The colour of a cell is the azimuth of its intensity vector, as on the wheel; its brightness is the level, so that what is too
    weak to have a direction stays black. Elevation is not shown. Cells that are not finite are white (cyan in the log-mel).

    Args:
        intensity: (3, frames, mels) in channel order Y, Z, X; of `FoaMel` features (7, frames, mels): `features[4:]`.
        level: (frames, mels) log-mel of W: `features[0]`.
        limits: levels that are black and of full brightness; by default 50 dB below, and at, the level that 0.5 % of the cells
            exceed (of a level in dB).
        hop_seconds, fmin, fmax, unit: as in `log_mel`.

    Raises:
        ValueError: shapes that do not fit, or a level without one finite number.
    """
    intensity, level = to_array(intensity, "intensity", 3), to_array(level, "level", 2)
    if intensity.shape != (3, *level.shape):
        raise ValueError(f"intensity has shape {intensity.shape}, expected (3, frames, mels) = {(3, *level.shape)} as level has; "
                         "of 7-channel features pass features[4:] and features[0]")
    if not np.isfinite(level).any():
        raise ValueError("level holds no finite number")
    top = float(np.percentile(level[np.isfinite(level)], 99.5))        # the loudest cells alone would leave the rest dark
    low, high = limits or (top - 50.0, top)
    azimuth = np.arctan2(intensity[0], intensity[2])
    bright = np.clip((level - low) / max(high - low, 1e-12), 0, 1)
    known = np.isfinite(azimuth) & np.isfinite(bright)
    cells = np.where(known[..., None], _azimuth_colours(np.where(known, azimuth, 0)) * np.where(known, bright, 0)[..., None], 1.0)

    picture = Picture(height=3.6)
    grid = picture.add_gridspec(1, 3, width_ratios=(1, 0.5, 1.12))
    where, loud = picture.add_subplot(grid[0]), picture.add_subplot(grid[2])
    _time_frequency(where, cells.transpose(1, 0, 2), hop_seconds, fmin, fmax)
    drawn = _mel_axes(loud, level.T, hop_seconds, fmin, fmax, (low, high))
    for axes, name in ((where, "Azimuth (colour) and level"), (loud, "Level")):
        axes.set_title(name, fontsize=9)
        axes.set(xlabel="Time (s)", ylabel="Frequency (Hz)" if fmax else "Mel band")
    picture.colorbar(drawn, ax=loud, label=unit, fraction=0.05, pad=0.02)

    wheel = picture.add_subplot(grid[1], projection="polar", theta_offset=-math.pi / 2)      # azimuth 0, south, at the bottom
    around = np.radians(np.arange(0, 361, 3))
    wheel.pcolormesh(around, (0.6, 1.0), _azimuth_colours(around[None, :-1] + np.radians(1.5)), antialiased=False)
    wheel.bar(0, 0.6, width=2 * math.pi, color="white", linewidth=0)                        # smooths the inner edge
    wheel.set(ylim=(0, 1), yticks=[])
    wheel.set_xticks(np.radians(45 * np.arange(8)), DIRECTIONS, fontsize=8)
    wheel.grid(False)
    wheel.spines["polar"].set_visible(False)
    picture.set_title(title)
    return picture


def _azimuth_colours(azimuth: np.ndarray) -> np.ndarray:
    """(..., 3) colours of azimuths in radians: a closed circle of hues that look equally bright, so that brightness is free."""
    palette = np.array(seaborn.husl_palette(360, h=0.03, s=0.95, l=0.72))
    return palette[np.round(np.degrees(azimuth)).astype(int) % 360]


def thumbnail_png(signal: np.ndarray, sample_rate: int, *, width: int = 240, height: int = 48) -> bytes:
    """Small log-mel picture of `signal` (samples,) as PNG, on a fixed scale of -100 to -20 dB of full scale a band."""
    size = 2048 if sample_rate > 16000 else 1024
    window = torch.hann_window(size)
    signal = torch.as_tensor(signal, dtype=torch.float32)
    hop = max(size // 4, len(signal) // 4096)
    power = torch.stft(signal, size, hop, window=window, pad_mode="constant", return_complex=True).abs().square()
    bands = kaldi_mel_filters(height, size, sample_rate, 20.0, sample_rate / 2) @ power * (2 / window.sum()) ** 2
    bands = torch.nn.functional.adaptive_avg_pool1d(bands, width)
    buffer = io.BytesIO()
    image.imsave(buffer, (10 * bands.clamp(min=1e-12).log10()).numpy(), vmin=-100, vmax=-20, cmap=SPECTRUM, origin="lower",
                 format="png")
    return buffer.getvalue()
