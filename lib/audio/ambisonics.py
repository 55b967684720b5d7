"""First-order ambisonics (FOA): a direction written into four channels, and read back from them.

Convention: channels in ACN order W, Y, Z, X with SN3D gains, so a plane wave from the unit vector (x, y, z) has the gains
(1, y, z, x) and no channel is larger than W. Axes: +x front, +y left, +z up. Azimuth is counter-clockwise from the front,
elevation upward from the horizon, both in degrees; the words of azimuths are those of lib.audio.directions.

What takes signals or spectra accepts numpy arrays and torch tensors and returns the kind it was given (tensors with their
gradients); this module loads no torch of its own, so processes that only render do without.
"""
from __future__ import annotations

import math

import numpy as np

DIFFUSE_POWER = np.array([1.0, 1 / 3, 1 / 3, 1 / 3])  # of W, Y, Z, X where sound arrives evenly from everywhere
GUARD = 1.1920929e-07  # float32's epsilon, added to the length of an intensity before it divides
_SMALLEST = 1e-30  # squared lengths below it count as it: the square root has no finite gradient at 0


def unit_vector(azimuth: float | np.ndarray, elevation: float | np.ndarray) -> np.ndarray:
    """(x, y, z) of length 1 for angles in degrees: float64 (3, ...) over the common shape of the two."""
    azimuth, elevation = np.broadcast_arrays(np.radians(azimuth), np.radians(elevation))
    if not (np.isfinite(azimuth).all() and np.isfinite(elevation).all()):
        raise ValueError("azimuth and elevation must be finite, in degrees")
    level = np.cos(elevation)
    return np.stack([level * np.cos(azimuth), level * np.sin(azimuth), np.sin(elevation)])


def harmonics(vector: np.ndarray) -> np.ndarray:
    """Gains (4, ...) of W, Y, Z, X for plane waves from the unit vectors (x, y, z) (3, ...)."""
    x, y, z = vector
    return np.stack([np.ones_like(x), y, z, x])


def encode(signal, azimuth: float, elevation: float):
    """A signal as a plane wave from one direction, without any room.

    Args:
        signal: (samples,) floating point, numpy or torch. azimuth, elevation: degrees.

    Returns:
        (4, samples) W, Y, Z, X of the same kind and precision.

    Raises:
        ValueError: a signal of another shape or of whole numbers, an angle that is not finite.
    """
    if signal.ndim != 1 or "float" not in str(signal.dtype):
        raise ValueError(f"signal must be (samples,) floating point, got shape {tuple(signal.shape)} of {signal.dtype}")
    gains = harmonics(unit_vector(float(azimuth), float(elevation)))
    gains = signal.new_tensor(gains) if hasattr(signal, "new_tensor") else gains.astype(signal.dtype)
    return gains[:, None] * signal


def stereo(channels):
    """Two cardioid microphones back to back, facing left and right: (4, samples) W, Y, Z, X to (2, samples). A source at the left
    is heard on the left alone; front and back, above and below sound alike."""
    sides = channels[[0, 0]] / 2
    sides[0] += channels[1] / 2
    sides[1] -= channels[1] / 2
    return sides


def intensity(channels):
    """Active intensity Re(conj(W) c), c = Y, Z, X: (3, ...) in that order, pointing to where the sound comes from.

    Args:
        channels: (4, ...) W, Y, Z, X: spectra (complex), or waveforms, whose intensity summed over a time span equals that
            of the span's spectrum summed over all frequencies.
    """
    if channels.shape[0] != 4:
        raise ValueError(f"expected 4 channels (W, Y, Z, X) on the first axis, got shape {tuple(channels.shape)}")
    return (channels[:1].conj() * channels[1:]).real


def intensity_vector(spectrum):
    """Direction of every bin: `intensity` divided by (its length + `GUARD`), so at most 1 long and 0 at silence.

    Args:
        spectrum: (4, F, T) complex, W, Y, Z, X.

    Returns:
        (3, F, T) real, in channel order Y, Z, X (mind the order when comparing with `unit_vector`). Values and gradients
        are finite everywhere. The guard is absolute: bins with |W|**2 near or below it come out short.
    """
    vector = intensity(spectrum)
    return vector / ((vector**2).sum(0).clip(min=_SMALLEST) ** 0.5 + GUARD)


def direction(vectors) -> tuple[float, float]:
    """Mean direction of intensities: azimuth in (-180, 180] and elevation in [-90, 90], degrees.

    Args:
        vectors: (3, ...) in the order Y, Z, X. `intensity` of a time span weights every bin by its energy; `intensity_vector`
            gives all bins one weight.

    Raises:
        ValueError: the vectors cancel or are not finite, so that there is no direction.
    """
    y, z, x = (float(component.sum()) for component in vectors)
    length = math.hypot(x, y, z)
    if not 0 < length < math.inf:
        raise ValueError(f"no direction: the summed intensity (y, z, x) is ({y:g}, {z:g}, {x:g})")
    return math.degrees(math.atan2(y, x)), math.degrees(math.atan2(z, math.hypot(x, y)))
