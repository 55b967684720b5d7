"""Directions as words.

One closed rule for the whole workbook: azimuth 0 degrees is south, 90 east, 180 north, -90 west, in eight sectors of 45
degrees. A sector holds its lower edge and not its upper one, so -22.5 is south and 22.5 is southeast.
"""
from __future__ import annotations

import numpy as np

DIRECTIONS = ("south", "southeast", "east", "northeast", "north", "northwest", "west", "southwest")


def direction_index(azimuth: float | np.ndarray) -> np.ndarray:
    """Sector 0..7 of `DIRECTIONS` for azimuths in degrees (any finite value, any shape; 360 degrees are one turn)."""
    azimuth = np.asarray(azimuth, dtype=np.float64)
    if not np.isfinite(azimuth).all():
        raise ValueError("azimuth must be finite, in degrees")
    # The last modulo keeps an azimuth one rounding step below -22.5, which the first one takes to 360, in the table.
    return (np.mod(azimuth + 22.5, 360.0) // 45.0).astype(np.int64) % len(DIRECTIONS)


def direction_word(azimuth: float | np.ndarray) -> str | np.ndarray:
    """Word of an azimuth in degrees: a text for a number, an array of texts of the same shape for an array."""
    words = np.asarray(DIRECTIONS)[direction_index(azimuth)]
    return str(words) if np.ndim(azimuth) == 0 else words
