"""Audio files to tensors: one seek and one read of only the window needed, in process.

Convention: sample k of a window is sample `round(start * sample_rate) + k` of the fully decoded and resampled file, to
float rounding (1e-6), so a window does not depend on where the decoder started. Waveforms are float32, full scale is -1 to 1,
time runs along the last axis. What decides is the content of a file, never its name: libsndfile reads wav, flac, ogg, mp3,
aiff, ...; FFmpeg (PyAV) reads the rest (m4a, mp4, webm, wma, ..., and mp3 that does not state its length). A path may also
address a row of a parquet file, see `lib.media.shards`; what it holds is decoded in memory, to the same samples.
"""
from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import av
import numpy as np
import soundfile

if TYPE_CHECKING:  # torch takes a second or two to import: those that only look at files (the health check) do without
    import torch

SUFFIXES = frozenset(".wav .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .caf .w64 "
                     ".m4a .mp4 .aac .webm .mka .mkv .mov .wma".split())
LOWPASS_WIDTH, ROLLOFF = 6, 0.99  # sinc zero crossings on either side; share of the lower Nyquist frequency that is kept
SEEK_FROM = 30.0  # FFmpeg decodes windows up to here from the start: bit-exact also where AAC codes a band as random noise
PREROLL, PREROLL_LOW = 0.5, 2.5  # seconds decoded before a window that was sought, see _preroll
VECTOR = 16  # floats that a processor multiplies at once, at most
ROWS = 32  # of each of the resampler's matrix products
VORBIS_TAIL = 4.0  # seconds at the end of Ogg Vorbis that are not sought into; longer than any usual page
BLOCK = 2**18  # samples that `blocks` decodes at a time


class AudioError(ValueError):
    """A file cannot be read as audio; the message names it and says what to do. `reason`: one of those that lib.data.health counts."""

    def __init__(self, message: str, reason: str = "unreadable"):
        super().__init__(message)
        self.reason = reason


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
    signal = fold(signal.T) if mono else np.ascontiguousarray(signal.T)
    import torch

    return torch.from_numpy(window.resample(signal))


def fold(signal: np.ndarray) -> np.ndarray:
    """Mean of the channels: (channels, samples) float32 -> (1, samples)."""
    total = signal[:1].copy()
    for channel in signal[1:]:  # numpy's mean is 20 times slower here, and its products start threads of their own
        total += channel
    return total if len(signal) == 1 else total * np.float32(1 / len(signal))


def probe(path: str | Path) -> AudioInfo:
    """Read the header only (raw MP3 and AAC that state no length: all packets). Raises AudioError like `read`."""
    with _open(path) as source:
        return AudioInfo(source.frames / source.sample_rate, source.sample_rate, source.channels, source.codec)


def blocks(path: str | Path, largest: int | None = None) -> Iterator[np.ndarray]:
    """Decode a whole file in pieces, at its own rate: yields (samples, channels) float32, for files of any length.

    largest: samples to decode at a time, for who stops early; None: what is fast.

    Raises AudioError like `read`, where the damage is met.
    """
    with _open(path) as source:
        try:
            yield from source.blocks(largest or BLOCK)
        except source.errors as error:
            raise _undecodable(path, error) from error


class _Window:
    """Which input samples [begin, end) a window needs, and the filter that makes its output samples from them."""

    def __init__(self, rate: int, target: int, start: float, duration: float | None):
        divisor = math.gcd(rate, target)
        self.up, self.down = target // divisor, rate // divisor
        self.first = round(start * target)
        self.count = None if duration is None else round(duration * target)
        margin, step = (0, 1) if rate == target else _polyphase(self.up, self.down)[3:]
        # Starting on a multiple of `step` gives every output the filter phase that it has in the full decode.
        self.begin = max(0, (self.first * self.down // self.up - margin) // step * step)
        self.end = None if self.count is None else (self.first + self.count) * self.down // self.up + margin + 1

    def resample(self, signal: np.ndarray) -> np.ndarray:
        """(channels, samples from `begin` on) -> (channels, samples of the window), float32."""
        offset = self.first - self.begin * self.up // self.down
        stop = -(-signal.shape[1] * self.up // self.down)  # ceil: the output samples that lie before the input's end
        stop = stop if self.count is None else min(stop, offset + self.count)
        if stop <= offset:
            return signal[:, :0]
        if self.up != self.down:
            signal = _resample(signal, self.up, self.down, stop)
        return np.ascontiguousarray(signal[:, offset:stop])


def _resample(signal: np.ndarray, up: int, down: int, count: int) -> np.ndarray:
    """(channels, n) float32 -> (channels, >= count): the first `count` samples at up / down times the rate.

    Many small matrix products, stretches of the input (a view: they overlap) times filters, all of one shape: so an output is
    rounded alike in a window and in a full decode, and no product is worth the while of the threads of numpy's linear algebra,
    which stall where the cores are busy.
    """
    filters, start, hop, _, step = _polyphase(up, down)
    groups, width, phases = filters.shape
    made = up * step // down  # outputs a row; a last group may go beyond them
    blocks = -(-count // (made * ROWS))
    padded = np.zeros((len(signal), blocks * ROWS * step + groups * hop + width), dtype=np.float32)
    padded[:, -start: signal.shape[1] - start] = signal
    across, along = padded.strides
    stretches = np.lib.stride_tricks.as_strided(padded, (len(signal), blocks, groups, ROWS, width),
                                                (across, along * ROWS * step, along * hop, along * step, along), writeable=False)
    result = np.empty((len(signal), blocks, ROWS, groups, phases), dtype=np.float32)
    np.matmul(stretches, filters, out=result.swapaxes(2, 3))
    return result.reshape(len(signal), blocks * ROWS, groups * phases)[:, :, :made].reshape(len(signal), -1)


@lru_cache(maxsize=32)
def _polyphase(up: int, down: int) -> tuple[np.ndarray, int, int, int, int]:
    """Hann-windowed sinc (the filter of torchaudio's default), for rates in lowest terms, cut up for `_resample`.

    Returns:
        filters (groups, width, phases) float32, start, hop, margin, step: output g * phases + j is the sum over k of
        filters[g, k, j] * input[start + g * hop + k]; `margin` inputs on either side of an output decide it; the filters repeat
        after `step` inputs.
    """
    cutoff = ROLLOFF * min(up, down)
    margin = math.ceil(LOWPASS_WIDTH * down / cutoff)

    def stretch(phases):  # inputs that a group needs; those of the last one have drifted from where whole hops lead
        span = phases * down / up
        return span + 2 * margin + 2 + abs(span - round(span)) * up / phases

    # A product is as costly as its number of whole vectors of outputs. Odd rates (11127 Hz) need a size of their own.
    phases = min(range(VECTOR, 4 * VECTOR), key=lambda size: stretch(size) * math.ceil(size / VECTOR) / size)
    hop = round(phases * down / up)
    step = math.ceil(stretch(phases) / down) * down  # a row's stretches: those of two rows may not overlap in a fast product
    groups = math.ceil(up * step / down / phases)
    outputs = np.arange(groups * phases).reshape(groups, 1, phases)
    hops = np.arange(groups).reshape(groups, 1, 1) * hop
    offsets = outputs * down // up - hops
    start = int(offsets.min()) - margin
    inputs = hops + np.arange(start, offsets.max() + margin + 1).reshape(1, -1, 1)
    t = np.clip((inputs * up - outputs * down) * (cutoff / (up * down)), -LOWPASS_WIDTH, LOWPASS_WIDTH)
    filters = np.sinc(t) * np.cos(t * (np.pi / 2 / LOWPASS_WIDTH)) ** 2 * (cutoff / down)
    return filters.astype(np.float32), start, hop, margin, step


def encoded(path: str | Path) -> BinaryIO | None:
    """The undecoded bytes of a file, or of a row of a parquet file, as a stream; None for a row that holds samples."""
    source = _source(path)
    return None if isinstance(source, tuple) else _stream(source)


def _source(path: str | Path) -> str | bytes | tuple[np.ndarray, int]:
    """The absolute path of a file; or what a row of a parquet file holds."""
    name = os.path.abspath(path)  # a bare "-" would be the standard input for libsndfile
    if not os.path.isfile(name):
        if ".parquet#" in name:
            from lib.media import shards  # imports pyarrow, which few processes need

            if (row := shards.parse(name)) and os.path.isfile(row.file):
                return shards.read_row(row)
        found = "is a folder, not a file" if os.path.isdir(name) else "does not exist"
        raise AudioError(f"{path}: {found}; correct the path or prepare the data set again")
    if os.path.getsize(name) == 0:
        raise AudioError(f"{path}: the file is empty (0 bytes); fetch it again or remove it", "empty")
    return name


def _stream(source: str | bytes) -> BinaryIO:
    return open(source, "rb") if isinstance(source, str) else io.BytesIO(source)


def _open(path: str | Path):
    """The file as a context manager with sample_rate, channels, frames, codec and read(begin, end) -> (samples, channels)."""
    source = _source(path)
    if isinstance(source, tuple):
        return _Samples(*source)
    try:
        return _Libsndfile(source)
    except _Libsndfile.refusals:
        try:
            return _FFmpeg(source)
        except _FFmpeg.errors as error:
            raise _undecodable(path, error) from error


def _undecodable(path: str | Path, error: Exception) -> AudioError:
    reason = getattr(error, "strerror", None) or str(error).replace(os.path.abspath(path), "the file")
    return AudioError(f"{path}: cannot be decoded as audio ({reason}); convert it to wav or flac, or remove it")


def _preroll(rate: int) -> int:
    """Samples that must be decoded before a window for its own to be right: frames of AAC, Opus and MP3 need their predecessors.

    The data of an MP3 frame may begin 511 bytes before it, or 255 bytes at rates up to 24 kHz. At the lowest bit rates a frame
    adds 60 and 3 bytes: that is 9 frames of 1152 and 85 of 576 samples. (libmpg123 goes back 4 frames on its own account.)
    """
    return round((PREROLL if rate > 24000 else PREROLL_LOW) * rate)


def _counts_frames(source: str | bytes) -> bool:
    """Whether an MP3 file begins with a Xing, Info or VBRI header, the only ones that tell how long it is."""
    with _stream(source) as stream:
        head = stream.read(10)
        tag = 10 + sum(byte << 7 * place for place, byte in enumerate(head[:5:-1])) if head[:3] == b"ID3" else 0
        stream.seek(tag)
        start = stream.read(2048)
    return any(mark in start for mark in (b"Xing", b"Info", b"VBRI"))


class _Samples:
    """Samples (n, channels) that are at hand."""

    errors = ()
    codec = "array/float32"

    def __init__(self, signal: np.ndarray, sample_rate: int):
        self.signal, self.sample_rate = signal, sample_rate
        self.frames, self.channels = signal.shape

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def read(self, begin: int, end: int | None) -> np.ndarray:
        return self.signal[begin:end]

    def blocks(self, largest: int) -> Iterator[np.ndarray]:
        return (self.signal[at:at + largest] for at in range(0, self.frames, largest))


class _Libsndfile:
    errors = soundfile.LibsndfileError
    refusals = (soundfile.SoundFileRuntimeError, TypeError)  # TypeError: a name ending in .raw; soundfile wants a format for it

    def __init__(self, source: str | bytes):
        if isinstance(source, bytes):
            source_file = io.BytesIO(source)
        else:  # a name as bytes, because soundfile refuses a str that is not valid Unicode; Windows has no such names
            source_file = source if os.name == "nt" else os.fsencode(source)
        self.file = soundfile.SoundFile(source_file)
        if self.file.format == "MP3" and not _counts_frames(source):
            self.file.close()
            raise soundfile.SoundFileRuntimeError("libsndfile would guess the length, and cut off what goes beyond it")
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
        safe = begin  # where libsndfile can seek to
        if self.codec == "ogg/vorbis":
            # libsndfile 1.2.2 lands on the wrong sample when it seeks into the last page of Ogg Vorbis (seen in 7 of 40 clips of
            # ESC-10; libsndfile issue 885), so near the end it seeks to before that page and reads on.
            safe = min(begin, self.frames - round(VORBIS_TAIL * self.sample_rate))
        elif self.file.format == "MP3":
            safe = begin - _preroll(self.sample_rate)
        skip = begin - max(0, safe)
        if begin - skip:
            self.file.seek(begin - skip)
        return self._next(end - begin + skip)[skip:]

    def _next(self, count: int) -> np.ndarray:
        if self.file.subtype == "PCM_16":  # the same values, at a fraction of the time that libsndfile takes for floats
            return self.file.read(count, dtype="int16", always_2d=True) * np.float32(2**-15)
        return self.file.read(count, dtype="float32", always_2d=True)

    def blocks(self, largest: int) -> Iterator[np.ndarray]:
        while len(block := self._next(largest)):
            yield block


class _FFmpeg:
    errors = (av.FFmpegError, ValueError)  # ValueError: PyAV's own, such as a sample rate that changes within the stream

    def __init__(self, source: str | bytes):
        self.source, self.container = source, None
        self._restart()
        try:
            context = self.stream.codec_context
            if context is None:
                raise ValueError("its audio stream has a coding that no decoder here knows")
            self.sample_rate, self.channels = context.sample_rate, context.channels
            if not self.sample_rate or not self.channels:
                raise ValueError("its audio stream states no sample rate or channels")
            self.codec = f"{self.container.format.name.split(',')[0]}/{context.name}"
            self.to_float = av.AudioResampler(format="fltp", layout=context.layout, rate=self.sample_rate)
        except BaseException:
            self.container.close()
            raise

    @property
    def frames(self) -> int:
        """What the container states; raw MP3 and AAC allow only a guess, so their packets are counted (75 us a second)."""
        if self.container.format.name in ("mp3", "aac"):
            ticks = sum(packet.duration or 0 for packet in self.container.demux(self.stream))
            self._restart()
        else:
            ticks = self.stream.duration
        duration = ticks * self.stream.time_base if ticks else (self.container.duration or 0) / av.time_base
        return round(duration * self.sample_rate)

    def _restart(self):
        """Open the file anew: seeking back to the start would decode the encoder's padding that the first pass drops."""
        if self.container is not None:
            self.container.close()
        # "file:" keeps a name with a colon from being taken for a protocol
        file = f"file:{self.source}" if isinstance(self.source, str) else io.BytesIO(self.source)
        self.container = av.open(file, metadata_errors="replace", options={"protocol_whitelist": "file"})
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

    def blocks(self, largest: int) -> Iterator[np.ndarray]:
        return (block.T for _, block in self._blocks(0))

    def _blocks(self, begin: int):
        """Decoded blocks as (position in samples of the file, (channels, samples)), from at or before `begin` on."""
        frames = self.container.decode(self.stream)
        frame = next(frames, None)
        if frame is None:
            return
        position, target = 0, begin - _preroll(self.sample_rate)
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
