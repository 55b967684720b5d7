"""Frames and sound of a video in one decode pass, against a seek for every frame with PyAV or OpenCV (and an ffmpeg process for the sound)."""
from __future__ import annotations

import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from lib.media import video
from lib.performance.measure import Comparison, Growth, compare, growth, need

COUNT, SIZE, RATE, ASKED = 16, 224, 16000, 3.0
WIDE, HIGH, FRAME_RATE = 480, 270, 25


def make(path: Path, seconds: float = 10.0, seed: int = 0) -> Path:
    """A video of coloured waves that drift under a little grain, H.264 with x264's usual distance of key frames, and a chord in AAC."""
    rng, sound_rate = np.random.default_rng(seed), 44100
    y, x = np.mgrid[:HIGH, :WIDE].astype(np.float32)
    grain = rng.normal(0, 3, (8, HIGH, WIDE, 1)).astype(np.float32)
    t = np.arange(round(seconds * sound_rate)) / sound_rate
    chord = sum(0.2 * np.sin(2 * np.pi * pitch * t * (1 + 0.01 * np.sin(t))) for pitch in (220, 331, 554)).astype(np.float32)
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("libx264", rate=FRAME_RATE, options={"preset": "veryfast"})
        pictures.width, pictures.height, pictures.pix_fmt = WIDE, HIGH, "yuv420p"
        sound = container.add_stream("aac", rate=sound_rate, layout="stereo")
        shown = []
        for k in range(2 * FRAME_RATE):                             # two seconds, over and over
            waves = np.stack([128 + 90 * np.sin(x / a + k / 9) * np.cos(y / b - k / 13) for a, b in ((37, 29), (53, 41), (23, 61))], axis=-1)
            shown.append((waves + grain[k % 8]).clip(0, 255).astype(np.uint8))
        for k in range(round(seconds * FRAME_RATE)):
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(shown[k % len(shown)], format="rgb24")))
        container.mux(pictures.encode())
        for start in range(0, len(chord), 1024):
            frame = av.AudioFrame.from_ndarray(np.repeat(chord[None, start:start + 1024], 2, axis=0), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = sound_rate, start, Fraction(1, sound_rate)
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    return Path(path)


def a_seek_a_frame(path: Path, times: Sequence[float]) -> tuple[torch.Tensor, np.ndarray]:
    """The usual way, spared what could be spared: the file is opened once, frames are not counted, one scaler serves all."""
    ffmpeg = need("imageio_ffmpeg", "imageio-ffmpeg").get_ffmpeg_exe()
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
    command = [ffmpeg, "-v", "error", "-nostdin", "-i", str(path), "-vn", "-af", fold, "-ar", str(RATE), "-f", "f32le", "-"]
    sound = np.frombuffer(subprocess.run(command, check=True, capture_output=True).stdout, np.float32)
    return torch.from_numpy(np.stack(frames)).float().div_(255), sound


def opencv_frames(path: Path, numbers: Sequence[int]) -> torch.Tensor:
    """Frames by their numbers, (count, 3, size, size) in [0, 1], each sought by OpenCV."""
    cv2 = need("cv2", "opencv-python-headless")
    source, frames = cv2.VideoCapture(str(path)), []
    for number in numbers:
        source.set(cv2.CAP_PROP_POS_FRAMES, int(number))
        read, picture = source.read()
        if not read:
            raise ValueError(f"{path}: OpenCV cannot read frame {number}")
        frames.append(cv2.cvtColor(cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR), cv2.COLOR_BGR2RGB).transpose(2, 0, 1))
    source.release()
    return torch.from_numpy(np.stack(frames)).float().div_(255)


def one_pass(path: Path, repetitions: int = 9, name: str = "synthesised mp4") -> list[Comparison]:
    """16 frames and the sound. AssertionError where frames differ, or the sound (another resampler) is not nearly the same."""
    def read():
        return video.read_clip(path, count=COUNT, size=SIZE, sample_rate=RATE)

    clip = read()
    times = clip.times.tolist()
    frames, sound = a_seek_a_frame(path, times)
    assert torch.equal(clip.frames, frames), f"{path}: a seek a frame gives other frames"
    both = min(len(sound), clip.waveform.shape[1])
    alike = np.corrcoef(sound[:both], clip.waveform[0, :both])[0, 1]
    assert both >= 0.99 * clip.waveform.shape[1] and alike > 0.98, f"{path}: {both} samples of sound in common, correlation {alike:.3f}"
    return [compare(f"{COUNT} frames and sound, {name}", "a seek a frame and ffmpeg", read, lambda: a_seek_a_frame(path, times), repetitions,
                    asked=ASKED, note="frames are equal")]


def against_opencv(path: Path, repetitions: int = 3) -> list[Comparison]:
    """The same frames without sound. AssertionError where they are not nearly equal (other colour conversion and scaling)."""
    count = video.probe(path).frames
    numbers = [i * (count - 1) // (COUNT - 1) for i in range(COUNT)]
    apart = (video.read_frames(path, count=COUNT, size=SIZE) - opencv_frames(path, numbers)).abs().mean().item()
    assert apart <= 0.02, f"{path}: OpenCV's frames differ by {apart:.3f} on average"
    return [compare(f"{COUNT} frames of {count}", "OpenCV, a seek a frame", lambda: video.read_frames(path, count=COUNT, size=SIZE),
                    lambda: opencv_frames(path, numbers), repetitions, note=f"pictures differ by {apart:.4f} of white on average")]


def grown(path: Path, sizes=(8, 16, 32, 64), repetitions: int = 3, rate: int = 12) -> list[Growth]:
    """Time and memory over the seconds of a window of a video, `rate` frames a second."""
    return [growth(f"video decode, {rate} frames a second", "seconds", lambda seconds: lambda: video.read_frames(
        path, count=rate * seconds, size=SIZE, duration=float(seconds)), sizes, repetitions)]
