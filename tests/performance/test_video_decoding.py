"""Frames and sound in one decode pass against the usual way: a seek for every frame and an ffmpeg process for the sound."""
import os
import resource
import statistics
import subprocess
import time
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from av.video.reformatter import VideoReformatter

from lib.media import video

ROOT = Path(__file__).resolve().parents[2]
MEDIA = Path(os.environ.get("WORKBOOK_SHARED", ROOT / "../shared/data")) / "media"
FILES = ["00W1lcxW-WU_40.000.mp4", "KlsG1EnBEjc_000361.mp4"]
COUNT, SIZE, RATE, REPETITIONS, FASTER = 16, 224, 16000, 9, 3.0


def a_seek_a_frame(path, times):
    """The usual way, spared what could be spared: the file is opened once, frames are not counted, one scaler serves all."""
    frames, to_rgb = [], VideoReformatter()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        half = 0.5 / float(stream.average_rate)
        for moment in times:
            container.seek(int(moment / stream.time_base), stream=stream)
            frame = next(frame for frame in container.decode(stream) if frame.time > moment - half)
            scaled = to_rgb.reformat(frame, SIZE, SIZE, "gbrp", interpolation="BILINEAR", threads=1)
            frames.append(scaled.to_ndarray().transpose(2, 0, 1))
    fold = "pan=mono|c0=0.5*c0+0.5*c1"  # -ac 1 would scale by sqrt(2)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-i", str(path), "-vn", "-af", fold, "-ar", str(RATE),
               "-f", "f32le", "-"]
    sound = np.frombuffer(subprocess.run(command, check=True, capture_output=True).stdout, np.float32)
    return torch.from_numpy(np.stack(frames)).float().div_(255), sound


def seconds_used():
    """(wall, CPU of this process and of those it has waited for)."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return np.array([time.perf_counter(), own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime])


@pytest.mark.slow
@pytest.mark.skipif(not MEDIA.is_dir(), reason="the real media files are not here")
@pytest.mark.parametrize("name", FILES)
def test_one_pass_is_three_times_faster(name):
    path = MEDIA / name
    times = video.read_clip(path, count=COUNT, size=SIZE, sample_rate=RATE).times.tolist()
    a_seek_a_frame(path, times)  # both have run once before the clock
    used = {"one pass": [], "a seek a frame": []}
    for _ in range(REPETITIONS):
        begin = seconds_used()
        clip = video.read_clip(path, count=COUNT, size=SIZE, sample_rate=RATE)
        between = seconds_used()
        frames, sound = a_seek_a_frame(path, times)
        used["one pass"].append(between - begin)
        used["a seek a frame"].append(seconds_used() - between)
        assert torch.equal(clip.frames, frames)
        both = min(len(sound), clip.waveform.shape[1])
        assert both > 9.9 * RATE and np.corrcoef(sound[:both], clip.waveform[0, :both])[0, 1] > 0.98  # another resampler
    medians = {way: [statistics.median(column) for column in zip(*rows)] for way, rows in used.items()}
    wall, cpu = (b / a for a, b in zip(medians["one pass"], medians["a seek a frame"]))
    print(f"\n{name}: {COUNT} frames and sound, medians of {REPETITIONS} interleaved repetitions")
    for way, (wall_median, cpu_median) in medians.items():
        print(f"  {way:<16}wall {1e3 * wall_median:7.1f} ms   CPU {1e3 * cpu_median:7.1f} ms")
    print(f"  faster by       wall {wall:7.2f}      CPU {cpu:7.2f}")
    assert wall >= FASTER and cpu >= FASTER
