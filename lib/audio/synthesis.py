"""Parametric recipes of everyday sounds, one function a class, in plain numpy and scipy.

Every recipe has the signature `recipe(rng, duration, pitch, rate, timbre) -> (samples,)` and begins to sound at its first
sample: `pitch` is the frequency in Hz that gives the sound its height (a fundamental, a resonance or the centre of a
band), `rate` the repetitions per second that one counts (barks, strokes, drops, gusts), `timbre` in [0, 1] moves the
colour. Everything else, the irregularity of a living source, is drawn from `rng`. Use `synthesize`, which sets the level.
"""
from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lib.audio.signals import (SAMPLE_RATE, band, convolved, envelope, filtered, hump, loudest, repeated, resonances,
                               shaped_noise, strike, to_samples, tone, wobble)

RECIPES: dict[str, Callable[..., np.ndarray]] = {}


def synthesize(label: str, rng: np.random.Generator, duration: float, pitch: float, rate: float, timbre: float) -> np.ndarray:
    """One dry event of class `label`.

    Args:
        label: a key of `RECIPES`.
        rng: source of the irregularities; the same state gives the same samples.
        duration: seconds, at least 0.1.
        pitch, rate: Hz; timbre: 0 to 1.

    Returns:
        (round(duration * 48000),) float32 whose loudest 50 ms have a root mean square of 1; no peak limit.

    Raises:
        ValueError: unknown label, or a duration too short.
    """
    if label not in RECIPES:
        raise ValueError(f"no recipe for {label!r}; known: {', '.join(sorted(RECIPES))}")
    if duration < 0.1:
        raise ValueError(f"an event of {duration} s is too short; give at least 0.1 s")
    signal = RECIPES[label](rng, duration, pitch, rate, timbre)
    fade = to_samples(0.01)
    signal[-fade:] *= np.linspace(1.0, 0.0, fade)
    return (signal / loudest(signal)).astype(np.float32)


def recipe(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Enter a recipe in `RECIPES` under its function's name."""
    RECIPES[function.__name__] = function
    return function


# ------------------------------------------------------------------------------------------------------------ animals

@recipe
def bird_chirp(rng, duration, pitch, rate, timbre):
    """Whistled notes that sweep up (timbre 1) or down (timbre 0) by up to half an octave."""
    def note(_):
        n = to_samples(min(0.13, 0.6 / rate) * rng.uniform(0.8, 1.0))
        sweep = 2 ** (np.linspace(-0.5, 0.5, n) * (1.6 * timbre - 0.8) + rng.uniform(-0.08, 0.08))
        return tone(pitch * sweep, [1.0, 0.12]) * hump(n, 0.7)
    return repeated(rng, duration, rate, note, jitter=0.25)


@recipe
def owl_hoot(rng, duration, pitch, rate, timbre):
    """Soft falling hoots with breath; timbre adds overtones."""
    def hoot(_):
        n = to_samples(0.7 / rate)
        track = pitch * (1.0 + 0.08 * hump(n) - 0.06 * np.linspace(0, 1, n))
        breath = shaped_noise(rng, n, band(2 * pitch, 1.0)) * 0.05
        return (tone(track, [1.0, 0.1 + 0.25 * timbre, 0.05 + 0.1 * timbre]) + breath) * hump(n, 0.6)
    return repeated(rng, duration, rate, hoot, jitter=0.08)


@recipe
def dog_bark(rng, duration, pitch, rate, timbre):
    """Short harsh voice with an open mouth: the pitch leaps up and falls; timbre makes it hoarser."""
    mouth = resonances([2.0 * pitch, 1300 + 400 * timbre, 2600], quality=3, tilt=4)
    def bark(_):
        n = to_samples(min(0.16, 0.75 / rate))
        track = pitch * (0.75 + 0.5 * hump(n)) * rng.uniform(0.95, 1.05)
        voice = tone(track, 1.0 / np.arange(1, 25) ** 0.8) + (0.25 + 0.6 * timbre) * rng.standard_normal(n)
        return filtered(voice, mouth) * envelope(n, 0.015, 0.06)
    return repeated(rng, duration, rate, bark, jitter=0.2)


@recipe
def cat_meow(rng, duration, pitch, rate, timbre):
    """A long voice that rises and sinks while the mouth opens and closes; timbre brightens it."""
    def meow(_):
        n = to_samples(0.8 / rate)
        track = pitch * (0.8 + 0.4 * hump(n, 0.8) - 0.15 * np.linspace(0, 1, n)) * (1 + 0.01 * wobble(rng, n, 12))
        source = tone(track, 1.0 / np.arange(1, 16))
        narrow = filtered(source, resonances([500, 2600 + 600 * timbre], quality=5))
        wide = filtered(source, resonances([1100, 1900 + 400 * timbre, 3600], quality=4))
        opening = hump(n)
        return (narrow * (1 - opening) + wide * opening) * hump(n, 0.5)
    return repeated(rng, duration, rate, meow, jitter=0.1)


@recipe
def cricket(rng, duration, pitch, rate, timbre):
    """A steady, nearly pure carrier cut into groups of a few pulses; timbre sets the pulses a group."""
    pulses, spacing = 3 + round(3 * timbre), min(0.022, 0.14 / rate)
    def group(_):
        n = to_samples(spacing * 0.75)
        one = np.concatenate([hump(n), np.zeros(to_samples(spacing) - n)])
        gate = np.tile(one, pulses) * np.repeat(np.linspace(0.6, 1.0, pulses), len(one))
        return tone(np.full(len(gate), pitch), [1.0, 0.05]) * gate
    return repeated(rng, duration, rate, group, jitter=0.04, dynamics=0.1)


# ------------------------------------------------------------------------------------------------------------- humans

VOWELS = np.array([[730, 1090, 2440], [530, 1840, 2480], [270, 2290, 3010],
                   [570, 840, 2410], [300, 870, 2240], [490, 1350, 1690]])  # first three formants in Hz


@recipe
def speech(rng, duration, pitch, rate, timbre):
    """Syllables: a hissed consonant, then a vowel with intonation; timbre shortens the vocal tract."""
    tract = 0.9 + 0.25 * timbre
    def syllable(i):
        n = to_samples(0.85 / rate)
        track = pitch * (1.12 - 0.25 * np.linspace(0, 1, n) + 0.05 * rng.standard_normal())
        vowel = resonances(VOWELS[rng.integers(len(VOWELS))] * tract, quality=7, tilt=3)
        voice = filtered(tone(track, 1.0 / np.arange(1, 60) ** 0.9), vowel)
        voice *= hump(n, 0.5) / (np.abs(voice).max() + 1e-9)
        m = min(n, to_samples(0.05))
        voice[:m] += 0.25 * shaped_noise(rng, m, band(rng.uniform(3500, 6500) * tract, 0.8)) * hump(m, 0.5) * rng.random()
        return voice
    return repeated(rng, duration, rate, syllable, jitter=0.25, dynamics=0.5)


@recipe
def baby_cry(rng, duration, pitch, rate, timbre):
    """A strained voice with vibrato between gasps; timbre roughens it."""
    mouth = resonances([1050, 1500, 3400, 4800], quality=4, tilt=1)
    def cry(_):
        n, gasp = to_samples(0.78 / rate), to_samples(0.12 / rate)
        t = np.arange(n) / SAMPLE_RATE
        vibrato = 1 + 0.025 * np.sin(2 * np.pi * rng.uniform(6, 9) * t)
        source = tone(pitch * (0.88 + 0.22 * hump(n, 0.4)) * vibrato, np.ones(32) / np.arange(1, 33) ** 0.4)
        rough = 1 + (0.1 + 0.5 * timbre) * np.sin(2 * np.pi * rng.uniform(55, 75) * t)
        voice = filtered(source * rough, mouth) * hump(n, 0.35)
        breath = shaped_noise(rng, gasp, band(2200, 1.2)) * hump(gasp) * 0.15 * voice.std()
        return np.concatenate([voice, breath])
    return repeated(rng, duration, rate, cry, jitter=0.1)


@recipe
def cough(rng, duration, pitch, rate, timbre):
    """An explosive breath through the throat with a short voiced end; timbre adds voice."""
    throat = resonances([pitch, 2.3 * pitch, 3.9 * pitch], quality=2.5, tilt=3)
    def burst(_):
        n = to_samples(min(0.3, 0.85 / rate))
        breath = rng.standard_normal(n) * envelope(n, 0.006, 0.07)
        voice = tone(np.linspace(170, 110, n), np.ones(40)) * (0.1 + 0.25 * timbre) * hump(n, 2)
        return filtered(breath + voice, throat)
    return repeated(rng, duration, rate, burst, jitter=0.2)


@recipe
def footsteps(rng, duration, pitch, rate, timbre):
    """Heel thud on a floor of resonance `pitch`, then the sole's scuff; timbre runs from carpet to gravel."""
    def step(i):
        n = to_samples(0.16)
        heel = strike(0.16, [pitch, 2.4 * pitch], [0.035, 0.02], [1.0, 0.4])
        gap = to_samples(0.04)
        scuff = np.zeros(n)
        scuff[gap:] = shaped_noise(rng, n - gap, band(8 * pitch, 1.6)) * envelope(n - gap, 0.02, 0.025)
        return heel * (1.0 if i % 2 else 0.85) + (0.06 + 0.3 * timbre) * scuff
    return repeated(rng, duration, rate, step, jitter=0.06, dynamics=0.2)


@recipe
def clapping(rng, duration, pitch, rate, timbre):
    """Hands: a few milliseconds of wide noise over the cavity resonance `pitch`; timbre lengthens the ring."""
    def clap(_):
        n = to_samples(0.06)
        wide = rng.standard_normal(n) * 0.5 + 1.5 * shaped_noise(rng, n, band(pitch * rng.uniform(0.95, 1.05), 0.9))
        return wide * envelope(n, 0.001, 0.006 + 0.008 * timbre)
    return repeated(rng, duration, rate, clap, jitter=0.12)


# ----------------------------------------------------------------------------------------------------------- machines

@recipe
def engine(rng, duration, pitch, rate, timbre):
    """Firing pulses `pitch` times a second, revved `rate` times a second; timbre opens the exhaust."""
    n = to_samples(duration)
    t = np.arange(n) / SAMPLE_RATE
    rev = 0.5 - 0.5 * np.cos(2 * np.pi * rate * t + 0.8)
    track = pitch * (1 + 0.35 * rev) * (1 + 0.01 * wobble(rng, n, 15))
    half = tone(track / 2, [0.5, 1.0] * 40)  # every other cylinder a little weaker: half-order harmonics
    exhaust = filtered(half, lambda f: 1 / (1 + (f / (250 + 500 * timbre)) ** 1.5))
    return exhaust * (0.45 + 0.55 * rev) * (1 + 0.15 * shaped_noise(rng, n, band(400, 3)))


@recipe
def helicopter(rng, duration, pitch, rate, timbre):
    """Blade slaps: thumps of noise around `pitch`, `rate` a second, over a turbine hiss that timbre raises."""
    n = to_samples(duration)
    phase = np.cumsum(rate * (1 + 0.02 * wobble(rng, n, 2))) / SAMPLE_RATE
    place = np.mod(phase, 1.0)
    slap = np.exp(-4.0 * place) * np.minimum(1.0, place / 0.06 + 0.1)
    body = shaped_noise(rng, n, band(pitch, 1.3)) * slap
    turbine = shaped_noise(rng, n, band(2600, 1.0)) * (0.05 + 0.1 * timbre) * (0.5 + 0.5 * slap)
    return body + turbine


@recipe
def drill(rng, duration, pitch, rate, timbre):
    """A motor's whine that runs up, with impacts `rate` times a second; timbre adds grinding."""
    n = to_samples(duration)
    run_up = 1 - 0.4 * np.exp(-np.arange(n) / to_samples(0.08))
    track = pitch * run_up * (1 + 0.006 * wobble(rng, n, 20))
    whine = tone(track, 1.0 / np.arange(1, 40) ** 0.5)
    impacts = 0.35 + 0.65 * np.exp(-6.0 * np.mod(np.arange(n) * rate / SAMPLE_RATE, 1.0))
    grinding = shaped_noise(rng, n, band(4500, 1.4)) * (0.4 + 1.2 * timbre)
    return (0.7 * whine + grinding) * impacts


@recipe
def saw(rng, duration, pitch, rate, timbre):
    """Strokes of a hand saw, alternately pushed and pulled; the teeth (timbre: coarse to fine) roughen the noise."""
    teeth = 60 + 120 * timbre
    def stroke(i):
        n = to_samples(0.85 / rate)
        speed = hump(n, 0.8)
        rasp = 0.5 + 0.5 * np.sign(np.sin(2 * np.pi * np.cumsum(teeth * (0.3 + speed)) / SAMPLE_RATE))
        return shaped_noise(rng, n, band(pitch * (1.0 if i % 2 else 1.35), 0.9)) * rasp * speed
    return repeated(rng, duration, rate, stroke, jitter=0.05, dynamics=0.15)


@recipe
def clock(rng, duration, pitch, rate, timbre):
    """Tick and tock: two hard little resonators, one a third above the other; timbre gives the case."""
    def tick(i):
        f = pitch * (1.25 if i % 2 else 1.0)
        return strike(0.05, [f, 1.9 * f, 0.27 * f], [0.008, 0.004, 0.012], [1.0, 0.5, 0.1 + 0.5 * timbre])
    return repeated(rng, duration, rate, tick, jitter=0.01, dynamics=0.05)


# -------------------------------------------------------------------------------------------------- weather and water

@recipe
def wind(rng, duration, pitch, rate, timbre):
    """Gusts of low noise with a howl near `pitch` that rises with the gust; timbre sharpens the howl."""
    n = to_samples(duration)
    gust = 0.6 + 0.4 * np.tanh(wobble(rng, n, 1.5 * rate) + np.cos(2 * np.pi * rate * np.arange(n) / SAMPLE_RATE))
    width = 0.5 - 0.3 * timbre
    calm, strong = (shaped_noise(rng, n, band(pitch * k, width)) for k in (0.8, 1.2))
    roar = shaped_noise(rng, n, band(0.5 * pitch, 1.8))
    return (0.6 * roar + calm * (1 - gust) + strong * gust) * gust


@recipe
def rain(rng, duration, pitch, rate, timbre):
    """`rate` audible drops a second over a hiss, both around `pitch`; timbre adds the body of what the drops fall on."""
    n, m = to_samples(duration), to_samples(0.012)
    drops = np.zeros(n)
    count = max(3, int(rate * duration))
    np.add.at(drops, rng.integers(0, n, count), rng.exponential(1.0, count) * rng.choice([-1, 1], count))
    drops[0] = 1.0
    body = shaped_noise(rng, m, band(pitch / 5, 1.5)) * (0.2 + 0.8 * timbre)
    patter = convolved(drops, (shaped_noise(rng, m, band(pitch, 1.8)) + body) * envelope(m, 0.0003, 0.0015))
    hiss = shaped_noise(rng, n, band(pitch, 1.8))
    return patter / (patter.std() + 1e-9) + 0.6 * np.sqrt(min(1.0, rate / 300)) * hiss


@recipe
def thunder(rng, duration, pitch, rate, timbre):
    """A crack, then rolls of rumble around `pitch`, `rate` a second, dying away; timbre strengthens the crack."""
    n = to_samples(duration)
    roll = envelope(to_samples(min(duration, 2.5 / rate)), 0.03, 0.6 / rate)
    rolls = repeated(rng, duration, rate, lambda _: roll, jitter=0.4, dynamics=0.6)
    fading = np.exp(-1.2 * np.arange(n) / n)
    crack = shaped_noise(rng, n, band(10 * pitch, 2.5)) * envelope(n, 0.004, 0.09) * (0.3 + 0.7 * timbre)
    return shaped_noise(rng, n, band(pitch, 1.5)) * rolls * fading + crack


@recipe
def waves(rng, duration, pitch, rate, timbre):
    """Surf: each wave swells from a low rush and breaks into a bright hiss that drains away; timbre is the foam."""
    def swell(_):
        n = to_samples(1.3 / rate)
        x = np.arange(n) / n
        draining = np.exp(-4 * np.maximum(0, x - 0.3)) * (1 - x)
        rush = shaped_noise(rng, n, band(pitch, 1.6)) * np.minimum(1.0, x / 0.3 + 0.15)
        foam = shaped_noise(rng, n, band(5 * pitch, 1.2)) * np.clip((x - 0.25) / 0.05, 0.0, 1.0)
        return (rush + (0.2 + 0.5 * timbre) * foam) * draining
    return repeated(rng, duration, rate, swell, jitter=0.12)


@recipe
def water_drip(rng, duration, pitch, rate, timbre):
    """Bubbles: a click and a sine that bends upward as it rings; timbre bends it further."""
    def drop(_):
        n = to_samples(0.12)
        track = pitch * rng.uniform(0.9, 1.1) * (1 + (0.4 + 0.8 * timbre) * np.linspace(0, 1, n))
        return tone(track, [1.0]) * envelope(n, 0.002, 0.022)
    return repeated(rng, duration, rate, drop, jitter=0.3, dynamics=0.5)


# ------------------------------------------------------------------------------------------------------------ signals

@recipe
def siren(rng, duration, pitch, rate, timbre):
    """A tone that climbs an octave and falls, `rate` times a second; timbre bends the sweep towards two tones."""
    n = to_samples(duration)
    sweep = -np.cos(2 * np.pi * (rate * np.arange(n) / SAMPLE_RATE + 0.1 * rng.random()))
    shape = np.tanh((0.5 + 4 * timbre) * sweep) / np.tanh(0.5 + 4 * timbre)
    return tone(pitch * 2 ** (0.5 * shape), [1.0, 0.3, 0.4, 0.1, 0.15])


@recipe
def beep(rng, duration, pitch, rate, timbre):
    """An electronic alarm: a steady square-like tone switched on and off; timbre hardens it."""
    def pulse(_):
        n = to_samples(0.5 / rate)
        edge = np.minimum(1.0, np.minimum(np.arange(n), np.arange(n)[::-1]) / 100)
        return tone(np.full(n, pitch), [1.0, 0, (0.1 + 0.3 * timbre), 0, 0.3 * timbre]) * edge
    return repeated(rng, duration, rate, pulse, jitter=0.0, dynamics=0.0)


@recipe
def church_bell(rng, duration, pitch, rate, timbre):
    """Struck bronze with the partials of a bell (hum, prime, tierce, quint, nominal, ...); timbre brightens it."""
    ratios = np.array([0.5, 1.0, 1.19, 1.5, 2.0, 2.5, 3.0, 4.16, 5.43]) * (1 + 0.003 * rng.standard_normal(9))
    bright = np.array([0.5, 0.8, 0.9, 0.4, 1.0, 0.4, 0.5, 0.4, 0.3]) * np.linspace(1, 0.4 + timbre, 9)
    sound = strike(min(duration, 2.5), ratios * pitch, 0.7 / np.sqrt(ratios), bright)
    return repeated(rng, duration, rate, lambda _: sound, jitter=0.05)


@recipe
def telephone(rng, duration, pitch, rate, timbre):
    """Bursts of a hammer trilling between two small bells, `rate` bursts a second; timbre adds metal."""
    trill = rng.uniform(22, 28)
    def ring(_):
        seconds = 0.62 / rate
        out = np.zeros(to_samples(seconds))
        for k in range(max(1, int(seconds * trill))):
            f, at = pitch * (1.22 if k % 2 else 1.0), to_samples(k / trill)
            blow = strike(0.12, [f, 2.76 * f, 5.4 * f], [0.05, 0.03, 0.015], [1.0, 0.3 + 0.5 * timbre, 0.3 * timbre])
            out[at:at + len(blow)] += blow[: len(out) - at]
        return out
    return repeated(rng, duration, rate, ring, jitter=0.03, dynamics=0.1)
