"""One look for every figure: seaborn's white grid, a colour-blind safe palette, a font that matplotlib brings along.

`use()` sets it for a notebook's own plots. The figures of `lib.display.figures` are `Picture`s, which carry the theme with
them: they look the same whatever the settings around them.
"""
from __future__ import annotations

import io
import textwrap
from contextlib import contextmanager
from functools import wraps

import matplotlib
import numpy as np
import seaborn
import torch
from cycler import cycler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 100
WIDTH = 9.0  # inches: 900 pixels, the width of a notebook's output area
PALETTE = tuple(seaborn.color_palette("colorblind").as_hex())
# One colour, one meaning, in every figure.
MODEL, BASELINE, CONTROL, CEILING, CHANCE = PALETTE[0], PALETTE[1], PALETTE[4], PALETTE[2], "#6b6b6b"
SPLIT = {"train": PALETTE[0], "val": PALETTE[1], "test": PALETTE[2]}
SPECTRUM = "magma"  # log-mel pictures
HEAT = "mako"       # matrices

_THEME = {
    **seaborn.axes_style("whitegrid"),
    **seaborn.plotting_context("notebook", font_scale=0.85),
    "font.family": ["DejaVu Sans"],  # shipped inside matplotlib: no machine lacks it
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.edgecolor": "#8c8c8c",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "figure.facecolor": "white",
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "grid.color": "#e3e3e3",
    "legend.frameon": False,
    "legend.fontsize": 9,
}
# Class names and captions come from outside: a dollar sign in one is a dollar sign, not the start of a formula.
_FIGURE_THEME = {**_THEME, "text.parse_math": False}


def use() -> None:
    """Make the theme matplotlib's default in this process."""
    matplotlib.rcParams.update(_THEME)


@contextmanager
def theme():
    """The theme of the figures of `lib.display.figures` and nothing else, for as long as the block lasts."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_FIGURE_THEME)
        yield


class Picture(Figure):
    """A matplotlib figure that pyplot does not know of: it is shown once, where a cell returns or displays it, and its memory
    goes when the last reference goes. `picture.savefig(path)` writes it.

    Args:
        width, height: inches.
    """

    def __init__(self, width: float = WIDTH, height: float = 3.2):
        super().__init__(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
        FigureCanvasAgg(self)

    def set_title(self, text: str):
        """Title of the whole figure, at its left edge, wrapped to its width."""
        lines = textwrap.wrap(" ".join(str(text).split()), max(20, int(10 * self.get_figwidth())))
        self.suptitle("\n".join(lines[:3]), x=0.008, ha="left")

    def draw(self, renderer):
        with theme():  # ticks are made while drawing
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        # IPython learns to show figures only when pyplot opens one; this method makes a Picture show itself.
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=DPI)
        return buffer.getvalue()


def themed(function):
    """Decorator: run a figure function under the theme (matplotlib reads its settings when an artist is made)."""
    @wraps(function)
    def under_theme(*arguments, **options) -> Picture:
        with theme():
            return function(*arguments, **options)
    return under_theme


def to_array(data, name: str, ndim: int) -> np.ndarray:
    """`data` (torch or numpy) as a numpy array of `ndim` dimensions; ValueError naming it when it has others or is empty."""
    array = data.detach().cpu().float().numpy() if isinstance(data, torch.Tensor) else np.asarray(data)
    if array.ndim != ndim or not array.size:
        raise ValueError(f"{name} has shape {array.shape}, expected {ndim} dimension(s), none empty")
    return array


def shortened(label, length: int = 30) -> str:
    """One line of at most `length` characters."""
    text = " ".join(str(label).split())
    return text if len(text) <= length else text[:length - 1].rstrip() + "…"
