"""Audio files to tensors: one seek and one read of only the window needed, in process.

Convention: sample k of a window is sample `round(start * sample_rate) + k` of the fully decoded and resampled file, so a
window does not depend on where the decoder started. Waveforms are float32, full scale is -1 to 1, time runs along the
last axis. What decides is the content of a file, never its name: libsndfile reads wav, flac, ogg, mp3, aiff, ...;
FFmpeg (PyAV) reads the rest (m4a, mp4, webm, wma, ...).
"""
from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import soundfile
import torch

SUFFIXES = frozenset(".wav .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .caf .w64 "
                     ".m4a .mp4 .aac .webm .mka .mkv .mov .wma".split())
LOWPASS_WIDTH, ROLLOFF = 6, 0.99  # sinc zero crossings on either side; share of the lower Nyquist frequency that is kept
SEEK_FROM = 30.0  # FFmpeg decodes windows up to here from the start: bit-exact also where AAC codes a band as random noise
PREROLL = 0.5  # seconds decoded before a window that was sought: frames of AAC, MP3 and Opus need their predecessors
VORBIS_TAIL = 4.0  # seconds at the end of Ogg Vorbis that are not sought into; longer than any usual page
BLOCK = 2**18  # samples that `blocks` decodes at a time


class AudioError(ValueError):
    """A file cannot be read as audio; the message names it and says what to do."""


@dataclass(frozen=True)
class AudioInfo:
    """What the header of a file says: duration in seconds, sample rate in Hz, channels, codec as "container/coding"."""

    duration: float
    sample_rate: int
    channels: int
    codec: str


def read(path: str | Path, *, sample_rate: int | None, start: float = 0.0, duration: float | None = None,
         mono: bool = True) -> torch.Tensor:
    """Decode one window of a file.

    Args:
        path: any audio file, or a video file with sound.
        sample_rate: Hz of the result; None keeps the file's own.
        start: seconds from the start of the file, >= 0.
        duration: seconds; None reads to the end.
        mono: fold the channels into their mean, (l + r) / 2 for stereo.

    Returns:
        (channels, samples) float32, channels = 1 when mono. A window that passes the end has fewer samples, possibly 0.

    Raises:
        AudioError: the file is missing, empty or not decodable. ValueError: an argument out of range.
    """
    if not (start >= 0 and (duration is None or duration >= 0) and math.isfinite(start + (duration or 0))):
        raise ValueError(f"start and duration must be finite seconds >= 0, got start={start!r}, duration={duration!r}")
    if sample_rate is not None and sample_rate < 1:
        raise ValueError(f"sample_rate must be at least 1 Hz or None, got {sample_rate!r}")
    with _open(path) as source:
        window = _Window(source.sample_rate, sample_rate or source.sample_rate, start, duration)
        try:
            signal = source.read(window.begin, window.end)  # (samples, channels)
        except source.errors as error:
            raise _undecodable(path, error) from error
    if mono and signal.shape[1] > 1:
        signal = signal @ np.full((signal.shape[1], 1), 1 / signal.shape[1], dtype=np.float32)
    return torch.from_numpy(window.resample(np.ascontiguousarray(signal.T)))


def probe(path: str | Path) -> AudioInfo:
    """Read the header only. Raises AudioError like `read`."""
    with _open(path) as source:
        return AudioInfo(source.frames / source.sample_rate, source.sample_rate, source.channels, source.codec)


def blocks(path: str | Path) -> Iterator[np.ndarray]:
    """Decode a whole file in pieces, at its own rate: yields (samples, channels) float32, for files of any length.

    Raises AudioError like `read`, where the damage is met.
    """
    with _open(path) as source:
        try:
            yield from source.blocks()
        except source.errors as error:
            raise _undecodable(path, error) from error


class _Window:
    """Which input samples [begin, end) a window needs, and the filter that makes its output samples from them."""

    def __init__(self, rate: int, target: int, start: float, duration: float | None):
        divisor = math.gcd(rate, target)
        self.up, self.down = target // divisor, rate // divisor
        self.first = round(start * target)
        self.count = None if duration is None else round(duration * target)
        margin = 0 if rate == target else _kernel(self.up, self.down)[2]
        # Output samples come from `up` filter phases that repeat every `down` inputs: starting on a multiple of `down`
        # gives every output the phase that it has in the full decode.
        self.begin = max(0, (self.first * self.down // self.up - margin) // self.down * self.down)
        self.end = None if self.count is None else (self.first + self.count) * self.down // self.up + margin + 1

    def resample(self, signal: np.ndarray) -> np.ndarray:
        """(channels, samples from `begin` on) -> (channels, samples of the window), float32."""
        offset = self.first - self.begin * self.up // self.down
        stop = -(-signal.shape[1] * self.up // self.down)  # ceil: the output samples that lie before the input's end
        stop = stop if self.count is None else min(stop, offset + self.count)
        if self.up != self.down and signal.shape[1]:
            from scipy.signal import upfirdn  # 0.5 s to import, and data at its final rate never needs it

            taps, skip, _ = _kernel(self.up, self.down)
            signal = upfirdn(taps, signal, self.up, self.down, axis=1)[:, skip:]
        return np.ascontiguousarray(signal[:, offset:max(stop, offset)])


@lru_cache(maxsize=32)
def _kernel(up: int, down: int) -> tuple[np.ndarray, int, int]:
    """Hann-windowed sinc of the polyphase resampler (the filter of torchaudio's default), for rates in lowest terms.

    Returns:
        taps (2 * half + 1,) float32 after zeros that make the delay a whole number of outputs; that number of outputs;
        the input samples that an output needs on either side. Size grows with up + down, so odd rates stay cheap.
    """
    cutoff = ROLLOFF * min(up, down)
    half = math.ceil(LOWPASS_WIDTH * up * down / cutoff)
    t = np.clip(np.arange(-half, half + 1) * (cutoff / (up * down)), -LOWPASS_WIDTH, LOWPASS_WIDTH)
    taps = np.sinc(t) * np.cos(t * (np.pi / 2 / LOWPASS_WIDTH)) ** 2 * (cutoff / down)
    padding = -half % down
    return np.concatenate([np.zeros(padding), taps]).astype(np.float32), (half + padding) // down, -(-half // up)


def _open(path: str | Path):
    """The file as a context manager with sample_rate, channels, frames, codec and read(begin, end) -> (samples, channels)."""
    name = os.path.abspath(path)  # a bare "-" would be the standard input for libsndfile
    if not os.path.isfile(name):
        found = "is a folder, not a file" if os.path.isdir(name) else "does not exist"
        raise AudioError(f"{path}: {found}; correct the path or prepare the data set again")
    if os.path.getsize(name) == 0:
        raise AudioError(f"{path}: the file is empty (0 bytes); fetch it again or remove it")
    try:
        return _Libsndfile(name)
    except (soundfile.LibsndfileError, TypeError):  # TypeError: a name ending in .raw, for which soundfile wants a format
        try:
            return _FFmpeg(name)
        except _FFmpeg.errors as error:
            raise _undecodable(path, error) from error


def _undecodable(path: str | Path, error: Exception) -> AudioError:
    reason = getattr(error, "strerror", None) or str(error).replace(os.path.abspath(path), "the file")
    return AudioError(f"{path}: cannot be decoded as audio ({reason}); convert it to wav or flac, or remove it")


class _Libsndfile:
    errors = soundfile.LibsndfileError

    def __init__(self, name: str):
        self.file = soundfile.SoundFile(name)
        self.sample_rate, self.channels, self.frames = self.file.samplerate, self.file.channels, self.file.frames
        self.codec = f"{self.file.format}/{self.file.subtype}".lower()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def read(self, begin: int, end: int | None) -> np.ndarray:
        end = self.frames if end is None else min(end, self.frames)
        if begin >= end:
            return np.zeros((0, self.channels), dtype=np.float32)
        # libsndfile 1.2.2 lands on the wrong sample when it seeks into the last page of Ogg Vorbis (seen in 7 of 40 clips of
        # ESC-10; libsndfile issue 885), so near the end it seeks to before that page and reads on.
        safe = max(0, self.frames - round(VORBIS_TAIL * self.sample_rate)) if self.codec == "ogg/vorbis" else begin
        skip = max(0, begin - safe)
        if begin - skip:
            self.file.seek(begin - skip)
        return self.file.read(end - begin + skip, dtype="float32", always_2d=True)[skip:]

    def blocks(self) -> Iterator[np.ndarray]:
        while len(block := self.file.read(BLOCK, dtype="float32", always_2d=True)):
            yield block


class _FFmpeg:
    errors = (av.FFmpegError, ValueError)  # ValueError: PyAV's own, such as a sample rate that changes within the stream

    def __init__(self, name: str):
        self.url, self.container = f"file:{name}", None  # "file:" keeps a name with a colon from being taken for a protocol
        self._restart()
        try:
            context = self.stream.codec_context
            self.sample_rate, self.channels = context.sample_rate, context.channels
            if not self.sample_rate or not self.channels:
                raise ValueError("its audio stream states no sample rate or channels")
            stated = self.stream.duration
            duration = stated * self.stream.time_base if stated else (self.container.duration or 0) / av.time_base
            self.frames = round(duration * self.sample_rate)
            self.codec = f"{self.container.format.name.split(',')[0]}/{context.name}"
            self.to_float = av.AudioResampler(format="fltp", layout=context.layout, rate=self.sample_rate)
        except BaseException:
            self.container.close()
            raise

    def _restart(self):
        """Open the file anew: seeking back to the start would decode the encoder's padding that the first pass drops."""
        if self.container is not None:
            self.container.close()
        self.container = av.open(self.url, metadata_errors="replace")
        if not self.container.streams.audio:
            self.container.close()
            raise ValueError("it has no audio stream")
        self.stream = self.container.streams.audio[0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.container.close()

    def read(self, begin: int, end: int | None) -> np.ndarray:
        blocks, position = [], 0
        for at, block in self._blocks(begin):
            position = at + block.shape[1]
            if position > begin:
                blocks.append(block[:, max(0, begin - at): None if end is None else max(0, end - at)])
            if end is not None and position >= end:
                break
        return np.concatenate(blocks, axis=1).T if blocks else np.zeros((0, self.channels), dtype=np.float32)

    def blocks(self) -> Iterator[np.ndarray]:
        return (block.T for _, block in self._blocks(0))

    def _blocks(self, begin: int):
        """Decoded blocks as (position in samples of the file, (channels, samples)), from at or before `begin` on."""
        frames = self.container.decode(self.stream)
        frame = next(frames, None)
        if frame is None:
            return
        position, target = 0, begin - round(PREROLL * self.sample_rate)
        if target > SEEK_FROM * self.sample_rate and frame.pts is not None:
            frames, frame, position = self._seek(target, frame.pts, frame.samples)
            if position is None or position > begin:  # cannot be placed exactly, or the index led astray: count from the start
                self._restart()
                frames, position = self.container.decode(self.stream), 0
                frame = next(frames, None)
        while frame is not None:
            for block in self.to_float.resample(frame):
                yield position, block.to_ndarray()
                position += block.samples
            frame = next(frames, None)

    def _seek(self, target: int, origin: int, first: int):
        """Go to near sample `target`; `origin` and `first` are the time stamp and the length of the file's first frame.

        Returns:
            the remaining frames, the frame arrived at, and its position in samples counted from the start (None: unknown).
        """
        try:
            self.container.seek(origin + int(target / self.sample_rate / self.stream.time_base), stream=self.stream)
        except av.FFmpegError:  # some containers refuse a time past the end
            return iter(()), None, None
        frames = self.container.decode(self.stream)
        frame = next(frames, None)
        if frame is None or frame.pts is None:
            return frames, frame, None
        samples = (frame.pts - origin) * self.stream.time_base * self.sample_rate
        size = self.stream.codec_context.frame_size
        if size and size == frame.samples:  # time stamps are rounded (1 ms in webm) and off by one in real mp4 files
            return frames, frame, first + round((samples - first) / size) * size
        return frames, frame, round(samples) if self.stream.time_base * self.sample_rate <= 1 else None
