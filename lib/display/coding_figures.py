"""Figures of the tokenizer: what bits buy, how evenly bits are used, and drawings beside their originals."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter, NullFormatter

from lib.display import style
from lib.display.spectrograms import _mel_axes, _time_frequency
from lib.display.style import Picture, shortened, themed, to_array

MARKS = "osD^vP*Xph"
DIFFERENCE = "RdBu_r"


@themed
def rate_distortion(table: pd.DataFrame, *, scalar: Mapping[float, float] | None = None, lines: Mapping[str, float] | None = None,
                    title: str = "Rate and distortion") -> Picture:
    """Error over bits a second, a curve for each arm; low and left is best.

    Args:
        table: rows of `lib.evaluation.coding.summary`: "arm", "bits/s", "entropy bits/s", "MAE" and its interval "low", "high" (NaN: none).
            The dotted mark left of a point is the same model after entropy coding. Arms stand a little apart from one another.
        scalar: bits/s -> MAE of uniform scalar quantization.  lines: label -> MAE, horizontal.
    Raises: ValueError: an empty table.
    """
    if not len(table):
        raise ValueError("table is empty, expected a row for each model")
    picture = Picture(height=4.2)
    axes = picture.subplots()
    arms = list(table.groupby("arm", sort=False))
    for number, (arm, rows) in enumerate(arms):
        rows = rows.sort_values("bits/s")
        apart = 1.03 ** (number - (len(arms) - 1) / 2)
        x, y = apart * rows["bits/s"].to_numpy(float), rows["MAE"].to_numpy(float)
        error = np.nan_to_num(np.stack([y - rows["low"].to_numpy(float), rows["high"].to_numpy(float) - y]))
        colour = style.PALETTE[number % len(style.PALETTE)]
        axes.errorbar(x, y, yerr=error, marker=MARKS[number % len(MARKS)], color=colour, capsize=3, linewidth=1.8, markersize=6,
                      label=shortened(arm), zorder=3)
        axes.plot(apart * rows["entropy bits/s"].to_numpy(float), y, marker="|", linestyle=":", color=colour, linewidth=1, markersize=9,
                  zorder=2)
    if scalar:
        axes.plot(list(scalar), list(scalar.values()), color="black", linestyle=":", marker="x", markersize=5,
                  label="scalar quantization")
    for (label, value), dash, colour in zip((lines or {}).items(), ("--", "-.", ":"), (style.CHANCE, style.CEILING, style.BASELINE)):
        axes.axhline(value, color=colour, linestyle=dash, linewidth=1.4, label=shortened(label))
    ticks = sorted(set(table["bits/s"].astype(float)) | set(scalar or ()))
    axes.set_xscale("log")
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(ticks[0] / 1.6, ticks[-1] * 1.4)
    highest = max(table["MAE"].max(), *(scalar or {0: 0}).values(), *(lines or {0: 0}).values())
    axes.set_ylim(0, 1.25 * highest)                                                        # intervals may be vast
    axes.set(xlabel="Bits a second of sound (dotted: after entropy coding)", ylabel="Mean absolute error (dB)")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    picture.set_title(title)
    return picture


@themed
def bit_balance(balance: Mapping[str, Sequence[Sequence[float]]], *, tolerance: float = 0.1,
                title: str = "Share of ones of each bit") -> Picture:
    """How often each bit is 1, a panel for each model; 0.5 carries most.

    Args: balance: name -> shares (seeds, L), one mark a seed.  tolerance: half the height of the grey band around 0.5.
    Raises: ValueError: nothing to draw.
    """
    if not balance:
        raise ValueError("balance is empty, expected the shares of at least one model")
    columns = min(3, len(balance))
    rows = -(-len(balance) // columns)
    picture = Picture(height=0.6 + 2.0 * rows)
    grid = picture.subplots(rows, columns, squeeze=False, sharey=True)
    for place, axes in enumerate(grid.flat):
        if place >= len(balance):
            axes.set_axis_off()
            continue
        name, shares = list(balance.items())[place]
        shares = to_array(shares, f"balance of {name}", 2)
        bits = np.arange(1, shares.shape[1] + 1)
        axes.axhspan(0.5 - tolerance, 0.5 + tolerance, color=style.CHANCE, alpha=0.15, linewidth=0)
        axes.axhline(0.5, color=style.CHANCE, linewidth=1)
        for seed, values in enumerate(shares):
            axes.plot(bits, values, MARKS[seed % len(MARKS)], markersize=4, color=style.MODEL, alpha=0.7)
        axes.set_title(shortened(name, 26), fontsize=9)
        axes.set_ylim(0, 1)
        axes.set_xticks([t for t in (1, 9, 18, 27, 36, 60) if t <= len(bits)] if len(bits) <= 60 else [1, len(bits)])
        axes.set_xlabel("Bit" if place + columns >= len(balance) else "")
        axes.set_ylabel("Share of ones" if place % columns == 0 else "")
    picture.set_title(title)
    return picture


@themed
def drawings(levels, drawn, valid, *, hop_seconds: float, fmax: float, limits: tuple[float, float], most: float = 20.0,
             titles: Sequence[str] = (), title: str = "Original, drawn from tokens, difference") -> Picture:
    """A row a clip: original, what the model drew of its tokens, and drawn minus original.

    Args:
        levels, drawn: (n, T, F) dB.  valid: (n, T) bool; a clip is shown up to its last frame of sound.
        hop_seconds, fmax: as `lib.display.figures.log_mel`.  limits: dB of the darkest and brightest colour.
        most: dB of the strongest colour of the difference (red: drawn too loud).
    Raises: ValueError: shapes that do not fit.
    """
    levels, drawn, valid = to_array(levels, "levels", 3), to_array(drawn, "drawn", 3), to_array(valid, "valid", 2)
    if levels.shape != drawn.shape or valid.shape != levels.shape[:2]:
        raise ValueError(f"levels {levels.shape}, drawn {drawn.shape} and valid {valid.shape} must be (n, T, F), (n, T, F) and (n, T)")
    picture = Picture(height=1.3 + 1.9 * len(levels))
    grid = picture.subplots(len(levels), 3, squeeze=False)
    for row, (one, other, known) in enumerate(zip(levels, drawn, valid.astype(bool))):
        end = int(np.flatnonzero(known)[-1]) + 1 if known.any() else 1
        for axes, cells in zip(grid[row], (one, other)):
            shown = _mel_axes(axes, cells[:end].T, hop_seconds, 0.0, fmax, limits)
        away = _time_frequency(grid[row, 2], (other - one)[:end].T, hop_seconds, 0.0, fmax, cmap=DIFFERENCE, vmin=-most, vmax=most)
        error = float(np.abs(other - one)[known].mean()) if known.any() else 0.0
        for column, (axes, name) in enumerate(zip(grid[row], (titles[row] if row < len(titles) else "original", "drawn",
                                                              f"difference, {error:.1f} dB on average"))):
            axes.set_title(shortened(name, 34), fontsize=9)
            axes.set_xlabel("Time (s)" if row == len(levels) - 1 else "")
            axes.set_ylabel("Frequency (Hz)" if not column else "")
    for image, columns, label in ((shown, grid[:, :2], "Level (dB)"), (away, grid[:, 2:], "Drawn minus original (dB)")):
        picture.colorbar(image, ax=columns, label=label, location="bottom", fraction=0.1 / len(levels), pad=0.01, aspect=30)
    picture.set_title(title)
    return picture
