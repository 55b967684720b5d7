"""Windows of long files, read in process against an ffmpeg process a window, in turns: stereo 44.1 kHz to 32 kHz mono."""
import resource
import statistics
import subprocess
import time

import imageio_ffmpeg
import numpy as np
import pytest
import soundfile

from lib.media import audio

SOURCE, TARGET, SECONDS, REPETITIONS = 44100, 32000, 180, 24
FASTER = {(30, "mp3"): 1.5, (30, "flac"): 1.2, (30, "wav"): 3.0, (10, "mp3"): 2.0, (10, "flac"): 2.0, (10, "wav"): 6.0}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three minutes of vibrato chords over low-passed noise that swells, the channels alike but not the same."""
    folder, t = tmp_path_factory.mktemp("long"), np.arange(SECONDS * SOURCE, dtype=np.float32) / SOURCE
    noise = np.random.default_rng(0).standard_normal((len(t), 3), dtype=np.float32)
    noise = noise + np.roll(noise, 1, axis=0)
    swell = 0.03 + 0.05 * np.sin(2 * np.pi * 0.3 * t) ** 2
    chord = sum(0.06 * np.sin(2 * np.pi * pitch * t + 3 * np.sin(2 * np.pi * 5 * t)) for pitch in (220, 554, 1320, 3520))
    signal = (noise[:, :2] + noise[:, 2:]) * swell[:, None] + chord[:, None]
    for suffix in ("mp3", "flac", "wav"):
        soundfile.write(folder / f"a.{suffix}", signal, SOURCE)
    return {suffix: folder / f"a.{suffix}" for suffix in ("mp3", "flac", "wav")}


def ffmpeg_window(path, start, duration):
    """The quickest way to have it from ffmpeg: it seeks before it decodes, probes little, starts few threads."""
    quick = ["-v", "error", "-nostdin", "-threads", "1", "-vn", "-probesize", "32k"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), *quick, "-ss", str(start), "-i", str(path), "-t", str(duration),
               "-ac", "1", "-ar", str(TARGET), "-f", "f32le", "-"]
    return np.frombuffer(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout, np.float32)


def timed(who, function, *arguments, **options):
    """(wall seconds, CPU seconds of `who`: this process or its ended children), and what the function returned."""
    before, begin = resource.getrusage(who), time.perf_counter()
    result = function(*arguments, **options)
    wall, after = time.perf_counter() - begin, resource.getrusage(who)
    return (wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime), result


@pytest.mark.slow
def test_windows_are_faster_than_a_process_each(files):
    generator, lines, slow = np.random.default_rng(1), [], []
    for (duration, suffix), required in FASTER.items():
        path, ours, theirs, equal = files[suffix], [], [], 0
        full = audio.read(path, sample_rate=TARGET).numpy()  # numpy: torch would leave threads that spin while the clock runs
        ffmpeg_window(path, 0, 1)  # both have run before the clock does
        for start in generator.uniform(0, SECONDS - duration - 1, REPETITIONS):
            used, window = timed(resource.RUSAGE_SELF, audio.read, path, sample_rate=TARGET, start=start, duration=duration)
            ours.append(used)
            window = window.numpy()
            used, other = timed(resource.RUSAGE_CHILDREN, ffmpeg_window, path, start, duration)
            theirs.append(used)
            expected = full[:, round(start * TARGET):][:, :duration * TARGET]
            np.testing.assert_allclose(window, expected, atol=1e-6, rtol=0)  # float rounding
            equal += np.array_equal(window, expected)
            assert len(other) == pytest.approx(window.shape[1], rel=0.01)
        own, child = ([1e3 * statistics.median(column) for column in zip(*rows)] for rows in (ours, theirs))
        wall, cpu = (b / a for a, b in zip(own, child))
        lines.append(f"{duration:4} s {suffix:<5}{own[0]:12.1f}{own[1]:7.1f}{child[0]:14.1f}{child[1]:7.1f}{wall:14.2f}{cpu:7.2f}"
                     f"     >= {required:3.1f}   {equal} of {REPETITIONS}")
        slow += [lines[-1]] * (wall < required)
    print(f"\nmedians of {REPETITIONS} windows each, ms; equal: to the bit, to the same part of the full decode")
    print("             read: wall    CPU  ffmpeg: wall    CPU  faster: wall    CPU   required   equal", *lines, sep="\n")
    assert not slow, "\n".join(slow)
