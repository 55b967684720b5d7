"""Windows of long files, read in process against an ffmpeg process a window, in turns: stereo 44.1 kHz to 32 kHz mono."""
from __future__ import annotations

import itertools
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile

from lib.media import audio
from lib.performance.measure import Comparison, Growth, compare, growth, need

SOURCE, TARGET, SECONDS = 44100, 32000, 180
ASKED = {(30, "mp3"): 1.5, (30, "flac"): 1.2, (30, "wav"): 3.0, (10, "mp3"): 2.0, (10, "flac"): 2.0, (10, "wav"): 6.0}


def files(folder: Path, seconds: int = SECONDS, suffixes: Sequence[str] = ("mp3", "flac", "wav")) -> dict[str, Path]:
    """Vibrato chords over low-passed noise that swells, the channels alike but not the same: suffix -> path."""
    t = np.arange(seconds * SOURCE, dtype=np.float32) / SOURCE
    noise = np.random.default_rng(0).standard_normal((len(t), 3), dtype=np.float32)
    noise = noise + np.roll(noise, 1, axis=0)
    swell = 0.03 + 0.05 * np.sin(2 * np.pi * 0.3 * t) ** 2
    chord = sum(0.06 * np.sin(2 * np.pi * pitch * t + 3 * np.sin(2 * np.pi * 5 * t)) for pitch in (220, 554, 1320, 3520))
    signal = (noise[:, :2] + noise[:, 2:]) * swell[:, None] + chord[:, None]
    made = {suffix: Path(folder) / f"a.{suffix}" for suffix in suffixes}
    for path in made.values():
        soundfile.write(path, signal, SOURCE)
    return made


def ffmpeg_window(path: Path, start: float, duration: float) -> np.ndarray:
    """The quickest way to have it from ffmpeg: it seeks before it decodes, probes little, starts few threads."""
    ffmpeg = need("imageio_ffmpeg", "imageio-ffmpeg").get_ffmpeg_exe()
    quick = ["-v", "error", "-nostdin", "-threads", "1", "-vn", "-probesize", "32k"]
    command = [ffmpeg, *quick, "-ss", str(start), "-i", str(path), "-t", str(duration), "-ac", "1", "-ar", str(TARGET), "-f", "f32le", "-"]
    return np.frombuffer(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout, np.float32)


def compared(folder: Path, asked: Mapping[tuple[int, str], float] = ASKED, repetitions: int = 24, seconds: int = SECONDS,
             seed: int = 1) -> list[Comparison]:
    """Every window is another one. AssertionError where a window is not the same part of the full decode, or ffmpeg's has another length."""
    generator, made, found = np.random.default_rng(seed), files(folder, seconds), []
    for (duration, suffix), required in asked.items():
        path, equal = made[suffix], 0
        full = audio.read(path, sample_rate=TARGET).numpy()  # numpy: torch would leave threads that spin while the clock runs
        starts = generator.uniform(0, seconds - duration - 1, repetitions + 1).tolist()
        own, other = iter(starts), iter(starts)
        windows, lengths = [], []
        # what is read is kept, and looked at when the clock has stopped
        found.append(compare(
            f"window of {duration} s, {suffix}", "an ffmpeg process",
            lambda: windows.append(audio.read(path, sample_rate=TARGET, start=next(own), duration=duration).numpy()),
            lambda: lengths.append(len(ffmpeg_window(path, next(other), duration))), repetitions, asked=required, clocks=("wall",)))
        for start, window, length in zip(starts, windows, lengths, strict=True):
            expected = full[:, round(start * TARGET):][:, :duration * TARGET]
            np.testing.assert_allclose(window, expected, atol=1e-6, rtol=0)  # float rounding
            equal += np.array_equal(window, expected)
            assert abs(length - window.shape[1]) <= 0.01 * length, f"{length} samples from ffmpeg, {window.shape[1]} from read"
        found[-1] = Comparison(**vars(found[-1]) | {"note": f"{equal} of {len(starts)} windows equal to the bit to the same part of the full decode",
                                                    "memory": (found[-1].memory[0], None)})      # ffmpeg's is in another process
    return found


def grown(folder: Path, sizes=(20, 40, 80, 160), repetitions: int = 3) -> list[Growth]:
    """Reading over seconds of a window of the flac file."""
    path, starts = files(folder, max(sizes) + 20, ["flac"])["flac"], itertools.cycle((5.0, 10.0, 15.0))
    return [growth("window decode (flac)", "seconds", lambda seconds: lambda: audio.read(path, sample_rate=TARGET, start=next(starts), duration=seconds),
                   sizes, repetitions)]
