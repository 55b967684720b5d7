"""First-order ambisonics for headphones: what the two ears of a listener facing +x would hear.

The scene is read as plane waves from everywhere (the least-squares decoding W + 3 (x X + y Y + z Z) for every direction), each of
which goes to both ears past a rigid sphere: head shadow as one pole and one zero, delay by Woodworth's formula, as in Brown and
Duda, "A structural model for binaural sound synthesis", IEEE Trans. Speech and Audio Processing 6 (1998). Such a head is
symmetric about the axis through its ears, so only W and Y reach them: left and right are heard clearly; front and back, above and
below sound alike (telling them apart takes the listener's own outer ears).

First order resolves the delays only where the head is small beside the wave; higher up plane waves would cancel each other (20 dB
of the treble at 12 kHz). There the levels are fitted and the phases left free, after Schörkhuber, Zaunschirm and Höldrich,
"Binaural rendering of Ambisonic signals via magnitude least squares", DAGA 2018: the ears compare levels at high frequencies.
"""
from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.signal import oaconvolve

HEAD_RADIUS = 0.0875  # metres
SOUND_SPEED = 343.0  # metres per second
FAINTEST, FAINTEST_ANGLE = 0.1, np.radians(150.0)  # treble gain in the shadow, and where: behind it a bright spot is left
PHASES_UP_TO = 500.0  # Hz; a head that the first order can follow around. Above it only levels are fitted
TAPS = 1023  # of the filters; odd, so that their middle is time 0


def binaural(foa, sample_rate: int):
    """Decode for headphones.

    Args:
        foa: (4, samples) W, Y, Z, X, SN3D, floating point, numpy or torch (no gradient). sample_rate: Hz.

    Returns:
        (2, samples) left and right ear, of the same kind and precision. Time 0 is that of the middle of the head. A linear
        function of `foa`, of unit gain at low frequencies; close to an ear the treble of a source comes out up to twice
        as large as W, so scale before writing to a format that clips.

    Raises:
        ValueError: another shape, whole numbers, or a sample rate below 1.
    """
    if foa.ndim != 2 or foa.shape[0] != 4 or "float" not in str(foa.dtype):
        raise ValueError(f"foa must be (4, samples) floating point, channels W, Y, Z, X, got {tuple(foa.shape)} of {foa.dtype}")
    if sample_rate < 1:
        raise ValueError(f"sample_rate must be at least 1 Hz, got {sample_rate!r}")
    if hasattr(foa, "new_tensor"):
        return foa.new_tensor(binaural(foa.detach().cpu().double().numpy(), sample_rate))
    middle, side = oaconvolve(foa[:2], _responses(sample_rate).astype(foa.dtype), mode="same", axes=1)
    return np.stack([middle + side, middle - side])


@lru_cache(maxsize=4)
def _responses(sample_rate: int) -> np.ndarray:
    """Impulse responses (2, TAPS) of W and of Y at the left ear, time 0 in the middle; the right ear hears -Y."""
    # The mean over all directions is one over the angle to the ear: Gauss-Legendre quadrature in the two halves of the sphere,
    # in each of which the response of the head is smooth.
    nodes, weights = np.polynomial.legendre.leggauss(24)
    near = (nodes + 1) * np.pi / 4
    angle = np.concatenate([near, np.pi - near])
    share = np.tile(weights, 2) * np.pi / 8 * np.sin(angle)
    patterns = np.stack([np.ones_like(angle), np.cos(angle)])  # of W and of Y towards these directions
    frequency = np.fft.rfftfreq(TAPS, 1 / sample_rate)
    spectrum = np.empty((len(frequency), 2), dtype=complex)
    for k, wanted in enumerate(head(frequency[:, None], angle)):
        if frequency[k] > PHASES_UP_TO:  # the phase that the decoder had one bin below is the one it can best go on with
            phase = spectrum[k - 1] @ patterns
            wanted = np.abs(wanted) * phase / np.abs(phase)
        spectrum[k] = (patterns * [[1], [3]]) @ (share * wanted)
    return np.fft.fftshift(np.fft.irfft(spectrum.T, TAPS), axes=1)


def head(frequency: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """What a point of the sphere hears of a plane wave that would be 1 in the middle without it: complex, of the common shape.

    Args:
        frequency: Hz.  angle: radians between the point and where the wave comes from, 0 to pi.
    """
    crossing = HEAD_RADIUS / SOUND_SPEED  # seconds
    gain = 1 + FAINTEST / 2 + (1 - FAINTEST / 2) * np.cos(angle / FAINTEST_ANGLE * np.pi)  # of the treble: 2 facing the wave
    s = 1j * np.pi * frequency * crossing
    delay = crossing * np.where(angle < np.pi / 2, -np.cos(angle), angle - np.pi / 2)
    return (1 + gain * s) / (1 + s) * np.exp(-2j * np.pi * frequency * delay)
