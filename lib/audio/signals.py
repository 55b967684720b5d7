"""Building blocks of synthesised sounds: shaped noise, filters, tones, strikes and repetition, in numpy and scipy.

Signals are (samples,) arrays at 48 kHz, frequencies are in Hz and times in seconds.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq

SAMPLE_RATE = 48_000
LEVEL_WINDOW = 0.05  # seconds; the ear judges the loudness of a stroke over about this time


def to_samples(seconds: float) -> int:
    """Seconds as a whole number of samples."""
    return round(seconds * SAMPLE_RATE)


def shaped_noise(rng: np.random.Generator, samples: int, gain: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Gaussian noise (samples,) of unit power whose amplitude spectrum follows `gain(frequencies in Hz)`."""
    size = next_fast_len(samples + 1, real=True)
    shape = gain(rfftfreq(size, 1 / SAMPLE_RATE)).astype(np.float32)
    draw = rng.standard_normal(2 * len(shape), dtype=np.float32).view(np.complex64)
    noise = irfft(draw * shape, size)[:samples]
    return noise / np.sqrt(np.mean(noise**2) + 1e-20)


def colored_noise(rng: np.random.Generator, samples: int, exponent: float) -> np.ndarray:
    """Noise (samples,) of unit power above 30 Hz with power proportional to 1 / frequency ** exponent."""
    return shaped_noise(rng, samples, lambda f: np.where(f < 30, 0.0, np.maximum(f, 30) ** (-exponent / 2)))


def filtered(signal: np.ndarray, gain: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`signal` (samples,) through a zero-phase filter of amplitude `gain(frequencies in Hz)`."""
    size = next_fast_len(len(signal) + to_samples(0.02), real=True)  # room for the response, against wrap-around
    return irfft(rfft(signal, size) * gain(rfftfreq(size, 1 / SAMPLE_RATE)).astype(signal.dtype), size)[: len(signal)]


def band(center: float, octaves: float) -> Callable[[np.ndarray], np.ndarray]:
    """Amplitude response: a bell on the octave scale, `octaves` wide at 60 % of its height."""
    return lambda f: np.exp(-2.0 * (np.log2(np.maximum(f, 1.0) / center) / octaves) ** 2)


def resonances(centers: Sequence[float], quality: float, tilt: float = 0.0) -> Callable[[np.ndarray], np.ndarray]:
    """Amplitude response: resonances (formants) of one quality factor, each weaker by `tilt` dB than the one below."""
    def gain(f: np.ndarray) -> np.ndarray:
        weights = 10 ** (-tilt * np.arange(len(centers)) / 20)
        return sum(w / np.sqrt(1 + (2 * quality * (f - c) / c) ** 2) for w, c in zip(weights, centers))
    return gain


def tone(frequency: np.ndarray, amplitudes: Sequence[float]) -> np.ndarray:
    """Harmonic tone (samples,) along a frequency track in Hz; harmonics that would pass 20 kHz are left out."""
    last = max(1, int(20_000 / frequency.max()))
    amplitudes = np.asarray(amplitudes, dtype=np.float64)[:last]
    size = 8192  # one period, looked up by phase: as exact as 16 bits need, whatever the number of harmonics
    table = irfft(np.concatenate([[0.0], -0.5j * size * amplitudes, np.zeros(size // 2 - len(amplitudes))]), size)
    phase = np.cumsum(frequency / SAMPLE_RATE)
    return table[(phase * size).astype(np.int64) % size]


def strike(seconds: float, frequencies: Sequence[float], decays: Sequence[float], amplitudes: Sequence[float]) -> np.ndarray:
    """A struck body: decaying sines (samples,), `decays` in seconds to 1/e, with a 1 ms attack."""
    t = np.arange(to_samples(seconds)) / SAMPLE_RATE
    parts = (a * np.exp(-t / d) * np.sin(2 * np.pi * f * t) for f, d, a in zip(frequencies, decays, amplitudes))
    return sum(parts) * np.minimum(1.0, t / 0.001)


def envelope(samples: int, attack: float, decay: float) -> np.ndarray:
    """Linear rise in `attack` seconds, then an exponential fall to 1/e in `decay` seconds (samples,)."""
    t = np.arange(samples) / SAMPLE_RATE
    return np.minimum(1.0, (t + 1e-4) / attack) * np.exp(-np.maximum(0.0, t - attack) / decay)


def hump(samples: int, sharpness: float = 1.0) -> np.ndarray:
    """A rise and fall (samples,) between 0 and 1; a larger `sharpness` is more peaked."""
    return np.sin(np.pi * (np.arange(samples) + 0.5) / samples) ** sharpness


def repeated(rng: np.random.Generator, duration: float, rate: float, make: Callable[[int], np.ndarray],
             jitter: float = 0.12, dynamics: float = 0.3) -> np.ndarray:
    """Sounds `make(0), make(1), ...` laid out `rate` times a second from time 0, with uneven intervals and strengths."""
    out = np.zeros(to_samples(duration))
    start, number = 0.0, 0
    while number == 0 or start < duration - 0.03:  # a stroke in the last 30 ms would only click
        sound = make(number) * (1.0 - dynamics * rng.random())
        at = to_samples(start)
        out[at:at + len(sound)] += sound[: len(out) - at]
        start += (1.0 + jitter * rng.uniform(-1, 1)) / rate
        number += 1
    return out


def wobble(rng: np.random.Generator, samples: int, rate: float) -> np.ndarray:
    """A smooth random track (samples,) of about unit deviation that changes `rate` times a second."""
    knots = rng.standard_normal(int(samples / SAMPLE_RATE * rate) + 4)
    x = np.arange(samples) * (rate / SAMPLE_RATE) + rng.random()
    at = x.astype(np.int64)
    blend = 0.5 - 0.5 * np.cos(np.pi * (x - at))
    return knots[at] * (1 - blend) + knots[at + 1] * blend


def convolved(signal: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """`signal` (samples,) through the impulse response `kernel`, cut to the length of the signal."""
    size = next_fast_len(len(signal) + len(kernel), real=True)
    return irfft(rfft(signal, size) * rfft(kernel, size), size)[: len(signal)]


def loudest(signal: np.ndarray) -> float:
    """Root mean square of the loudest 50 ms of `signal` (samples,), windows half overlapped."""
    hop = to_samples(LEVEL_WINDOW / 2)
    power = np.add.reduceat(np.square(signal, dtype=np.float64), np.arange(0, len(signal), hop))
    return float(np.sqrt((power[:-1] + power[1:]).max() / (2 * hop)))
