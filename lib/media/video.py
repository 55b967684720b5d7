"""Video files to tensors: the frames that are wanted, and the sound with them, in one decode pass and in process.

Which frames: `count` positions spread evenly from the first to the last frame, both included. With n frames 0 .. n - 1, numbered
in the order of showing, picture i of 0 .. count - 1 is

    even rate:      frame floor(i (n - 1) / (count - 1))                                        (frame 0 when count is 1)
    variable rate:  the frame on screen at t(0) + i (t(n - 1) - t(0)) / (count - 1): the last one whose time t is not later

which agree where all frames last equally long. A rate is even if every time stamp is within 1 ms (or one tick of the stream's
clock, if that is longer) of an even grid: containers round times. Fewer frames than asked for repeat.

n counts packets, read without decoding. It never comes from a field of the container, which is often absent, and wrong after an
edit: packets that an edit list hides are not counted, though they may be decoded because shown frames refer to them.

A picture is squashed to size x size (bilinear, the sides' proportion is not kept) and turned upright by the file's display
matrix. Nothing stands in for what cannot be decoded, neither a copy nor black: it is an error.
"""
from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from lib.media import audio

EVEN = 1e-3  # seconds that time stamps may be off: containers round them
FAR = audio.SEEK_FROM  # seconds; windows that start later are sought, the others reached by reading on from the start
BACK = 1.0  # seconds that a seek aims too early: containers index keyframes by decoding time, which comes before showing
_REFERENCE, _WANTED = 1, 2  # what a packet is decoded for; 0: it is not decoded


class VideoError(ValueError):
    """A file cannot be read as video; the message names it and says what to do."""


@dataclass(frozen=True)
class VideoInfo:
    """What the packets of a video say.

    frames: that are shown; rate: their mean number a second; variable: whether they last unequally long; width, height: pixels,
    before a display matrix turns them; duration: seconds from the first frame to the end of the last; stated: seconds that the
    container claims (0: nothing), clearly more than `duration` if the file was cut; has_audio; codec: "container/coding".
    """

    frames: int
    rate: float
    variable: bool
    width: int
    height: int
    duration: float
    stated: float
    has_audio: bool
    codec: str


@dataclass(frozen=True)
class Clip:
    """Pictures and sound of one window.

    frames: (count, 3, size, size) float32 in [0, 1], or (0, 3, size, size) without a picture. waveform: (channels, samples)
    float32, or (1, 0) without sound. times: (count,) float64, the seconds at which each picture appears; 0 is the first sample
    of sound (without sound: the first frame). available: frames that the window shows. decoded: frames that the decoder handed
    out for that, those that only lead from a keyframe to a picture included.
    """

    frames: torch.Tensor
    waveform: torch.Tensor
    times: torch.Tensor
    available: int
    decoded: int

    @property
    def has_video(self) -> bool:
        """Whether the file has a video stream, and it shows something in the window."""
        return len(self.frames) > 0

    @property
    def has_audio(self) -> bool:
        """Whether the file has a sound stream, and it has samples in the window."""
        return self.waveform.shape[1] > 0


def read_frames(path: str | Path, *, count: int = 16, size: int = 224, start: float = 0.0,
                duration: float | None = None) -> torch.Tensor:
    """`count` frames of a window (the whole video, if nothing is said), chosen as the module says; sound is not looked at.

    Args:
        count, size: frames, and pixels of their side.  start, duration: seconds from the first frame on, see `read_clip`.

    Returns:
        (count, 3, size, size) float32 in [0, 1]; the channels are red, green and blue.

    Raises:
        VideoError: the file is missing, empty, cut or not decodable, or has no picture. ValueError: an argument out of range.
    """
    _check_window(start, duration)
    clip = _read(path, count, size, start, duration)
    if not clip.has_video:
        raise VideoError(f"{path}: it has no video stream with at least one frame in the window; correct the path, or remove it "
                         "(its sound, if any, is read by lib.media.audio.read or read_clip)")
    return clip.frames


def read_clip(path: str | Path, *, count: int = 16, size: int = 224, sample_rate: int | None = 16000, start: float = 0.0,
              duration: float | None = None, mono: bool = True) -> Clip:
    """Frames and sound of one window, decoded together.

    Args:
        path: a video file, with or without sound, or a file with nothing but sound.
        count, size: as in `read_frames`, but of the frames that the window shows: the one on screen at its start and all that
            appear before its end. start = 0 includes frames from before the first sample of sound.
        sample_rate, start, duration, mono: as in lib.media.audio.read, whose result the waveform equals.

    Returns:
        A Clip. What the file, or its window, does not have is empty: `has_video` and `has_audio` tell.

    Raises:
        VideoError: the file is missing, empty, cut or not decodable, or has neither. ValueError: an argument out of range.
    """
    _check_window(start, duration)
    if sample_rate is not None and sample_rate < 1:
        raise ValueError(f"sample_rate must be at least 1 Hz or None, got {sample_rate!r}")
    return _read(path, count, size, start, duration, dict(sample_rate=sample_rate, mono=mono))


def _check_window(start: float, duration: float | None) -> None:
    if not (start >= 0 and (duration is None or duration >= 0) and math.isfinite(start + (duration or 0))):
        raise ValueError(f"start and duration must be finite seconds >= 0, got start={start!r}, duration={duration!r}")


def probe(path: str | Path) -> VideoInfo:
    """Read all packets of the video, decode none. Raises VideoError like `read_frames`."""
    with _open(path) as file:
        table = _scan(file, 0.0, None, with_sound=False, far=False) if file.video else None
        if table is None or not len(table.shown):
            raise VideoError(f"{path}: it has no video stream with at least one frame; correct the path, or remove it")
        frames, first, last = len(table.shown), int(table.shown[0]), int(table.shown[-1])
        duration = (table.end - first) * table.tick
        rate = (frames - 1) / ((last - first) * table.tick) if frames > 1 else 1 / duration
        context, container = file.video.codec_context, file.container
        return VideoInfo(frames, float(rate), _is_variable(table.shown, table.tick), context.width, context.height,
                         float(duration), (container.duration or 0) / av.time_base, file.sound is not None,
                         f"{container.format.name.split(',')[0]}/{context.name}")


def _read(path, count: int, size: int, start: float, duration: float | None, sound: dict | None = None) -> Clip:
    """sound: the sample_rate and mono that are wanted; None: pictures only."""
    for name, value in (("count", count), ("size", size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}")
    with _open(path, sound is not None) as file:
        if file.video is None and file.sound is None:
            raise VideoError(f"{path}: it has neither a video nor a sound stream; correct the path or remove it")
        window = dict(start=start, duration=duration, **sound) if sound and file.sound else None
        table = _scan(file, start, duration, window is not None, start > FAR) if file.video else None
    frames, times, decoded, waveform = torch.zeros(0, 3, size, size), torch.zeros(0, dtype=torch.float64), 0, None
    if table is not None and len(table.shown):
        picks = table.picks(count)
        pictures, waveform, decoded = _decode(path, table, picks, size, window)
        if not pictures.keys() >= set(picks):  # a packet did not become a frame, which happens in odd streams: count frames
            table = _count_decoded(path, table)
            picks = table.picks(count)
            pictures, waveform, decoded = _decode(path, table, picks, size, window)
        frames = torch.from_numpy(np.stack([pictures[pts] for pts in picks])).float().div_(255)
        times = torch.tensor([float(pts * table.tick - table.origin) for pts in picks], dtype=torch.float64)
    if waveform is None:
        try:
            waveform = audio.read(path, **window) if window else torch.zeros(1, 0)
        except audio.AudioError as error:
            raise VideoError(str(error)) from error
    return Clip(frames, waveform, times, len(table.shown) if table else 0, decoded)


@dataclass(frozen=True)
class _File:
    path: str | Path
    container: av.container.InputContainer
    video: av.VideoStream | None
    sound: av.AudioStream | None


@contextmanager
def _open(path: str | Path, with_sound: bool = False) -> Iterator[_File]:
    """The file with its first video and its first sound stream; with_sound: refuse sound of an unknown coding. Errors of the
    decoders become VideoErrors that name it."""
    name = os.path.abspath(path)
    if not os.path.isfile(name):
        found = "is a folder, not a file" if os.path.isdir(name) else "does not exist"
        raise VideoError(f"{path}: {found}; correct the path or prepare the data set again")
    if os.path.getsize(name) == 0:
        raise VideoError(f"{path}: the file is empty (0 bytes); fetch it again or remove it")
    try:
        # An absolute path is never taken for an option or a protocol, and the whitelist keeps a playlist that is named like a video
        # from fetching what it lists.
        with av.open(name, metadata_errors="replace", options={"protocol_whitelist": "file"}) as container:
            cover = av.stream.Disposition.attached_pic
            video = next((stream for stream in container.streams.video if not stream.disposition & cover), None)
            sound = next(iter(container.streams.audio), None)
            for stream in (video, sound):
                if stream is not None and stream.codec_context is None and (with_sound or stream is video):
                    raise VideoError(f"{path}: its {stream.type} stream has a coding that no decoder here knows; convert it to "
                                     "H.264 and AAC in mp4, or remove it")
            if video is not None:
                video.thread_type = "NONE"  # loaders run one process a core; threads took 10 % more CPU time and saved none
            yield _File(path, container, video, sound)
    except VideoError:
        raise
    except (av.FFmpegError, ValueError) as error:  # ValueError: PyAV's own, such as a sample rate that changes within the stream
        reason = getattr(error, "strerror", None) or error
        raise VideoError(f"{path}: cannot be decoded ({reason}); fetch it again, convert it to H.264 and AAC in mp4, or remove it"
                         ) from error


@dataclass(frozen=True)
class _Table:
    """What the packets of a window say. Times are whole ticks of the video's clock.

    tick: seconds; origin: the time that counts as 0, in seconds; seek: where reading begins (None: at the start of the file);
    low, high: limits of the window (None: none); packets: how many were read; keys: (place among them, time) of the keyframes;
    places: the place of each frame's packet by its time (empty: not known); end: when the last frame leaves the screen; shown:
    sorted times of the frames that the window shows.
    """

    tick: Fraction
    origin: Fraction
    seek: int | None
    low: int | None
    high: int | None
    packets: int
    keys: list[tuple[int, int]]
    places: dict[int, int]
    end: int
    shown: np.ndarray

    def picks(self, count: int) -> list[int]:
        return self.shown[_spread(self.shown, count, self.tick)].tolist()

    def roles(self, picks: list[int]) -> bytearray:
        """What each packet is decoded for. A picture needs all packets from the last keyframe that is not shown after it."""
        if not self.places:
            return bytearray([_WANTED]) * self.packets
        roles = bytearray(max(self.places[pts] for pts in picks) + 1)
        for pts in picks:
            key = next(place for place, shown in reversed(self.keys) if place <= self.places[pts] and shown <= pts)
            roles[key: self.places[pts]] = bytes([_REFERENCE]) * (self.places[pts] - key)
        for pts in picks:
            roles[self.places[pts]] = _WANTED
        return roles


def _scan(file: _File, start: float, duration: float | None, with_sound: bool, far: bool) -> _Table:
    """Read the packets of a window; decode none, but for the first of what sets the clock. far: get to the window by a seek."""
    container, video, sound = file.container, file.video, file.sound if with_sound else None
    tick, origin, seek = video.time_base, None, None

    def ticks(seconds: float) -> int:
        """The first tick of the given second of the window's clock, or of half of EVEN before it."""
        return math.ceil(min((float(origin) + seconds - EVEN / 2) / tick, 2**60))

    def first_time(frames) -> Fraction | None:
        return next((frame.pts * frame.time_base for frame in frames if frame.pts is not None), None)

    def from_the_start() -> _Table:
        with _open(file.path) as fresh:
            return _scan(fresh, start, duration, with_sound, far=False)

    if far:
        origin = first_time(container.decode(sound or video)) or Fraction(0)
        seek = ticks(start - BACK)
        try:
            container.seek(seek, stream=video)
        except av.FFmpegError:  # some containers refuse a time past the end
            return from_the_start()
    packets, keys, places, first_key, end, complete = 0, [], {}, math.inf, 0, True
    for packet in container.demux([video, sound] if sound and not far else [video]):
        if packet.stream.type == "audio":
            origin = first_time(packet.decode()) if origin is None else origin
            continue
        if not packet.size:
            continue
        if packet.pts is None:
            raise VideoError(f"{file.path}: its frames carry no time stamps; put it into a container that has them, such as mp4")
        if None not in (duration, origin, packet.dts) and packet.dts >= ticks(start + duration):
            complete = False  # this packet, and all after it, are shown later than they are decoded
            break
        if packet.is_corrupt:
            raise _cut(file, packet.pts)
        if packet.is_keyframe:
            keys.append((packets, packet.pts))
            first_key = min(first_key, packet.pts)
        if first_key <= packet.pts and not _is_hidden(packet):  # before the first keyframe nothing can be decoded
            places[packet.pts] = packets
            end = max(end, packet.pts + (packet.duration or 1))
            if not sound and not far:
                origin = packet.pts * tick if origin is None else min(origin, packet.pts * tick)
        packets += 1
    index = video.index_entries
    if complete and len(index) and index[-1].pos + index[-1].size > os.path.getsize(file.path):
        raise _cut(file, end)
    origin = min(places, default=0) * tick if origin is None else origin
    # `low` is the last tick that is not half of EVEN later than the start: what begins there is on screen at the start.
    low, high = None if start == 0 else ticks(start + EVEN) - 1, None if duration is None else ticks(start + duration)
    if far and not (len(places) > 1 and min(places) <= low):  # the seek led nowhere, or past the window
        return from_the_start()
    over = complete and start > 0 and low >= end and len(places) > 1  # a single frame is a still: it stays
    times = np.array([] if over else sorted(places), dtype=np.int64)
    return _Table(tick, origin, seek, low, high, packets, keys, places, end, _shown(times, low, high))


def _cut(file: _File, pts: int) -> VideoError:
    seconds = float(pts * file.video.time_base)
    return VideoError(f"{file.path}: it breaks off or is damaged at {seconds:.2f} s; fetch it again or remove it")


def _is_hidden(packet: av.Packet) -> bool:
    """Whether a packet is decoded and never shown: outside an edit list, or by the flag that begins every frame of VP8."""
    return packet.is_discard or (packet.stream.codec_context.name == "vp8" and not bytes(packet)[0] & 0x10)


def _shown(times: np.ndarray, low: int | None, high: int | None) -> np.ndarray:
    """Of sorted times, those of the window: the frame on screen at its start, and all that appear before its end."""
    first = 0 if low is None else max(0, np.searchsorted(times, low, "right") - 1)
    last = len(times) if high is None else np.searchsorted(times, high)
    on_screen = len(times) and (low is None or times[first] <= low)
    return times[first: max(last, first + 1) if on_screen else last]


def _count_decoded(path, table: _Table) -> _Table:
    """The table as the decoder sees it from the start of the file on, for streams whose packets do not tell."""
    times, packets = [], 0
    with _open(path) as file:
        for packet in file.container.demux(file.video):
            if packet.size or packet.dts is None:  # at the end comes an empty packet: the decoder hands out the rest
                packets += bool(packet.size)
                times += [frame.pts for frame in packet.decode()]
            if table.high is not None and times and times[-1] >= table.high:
                break
    shown = np.unique(np.array(times, dtype=np.int64))
    shown = _shown(shown[shown < (math.inf if table.high is None else table.high)], table.low, table.high)
    if not len(shown):
        raise VideoError(f"{path}: none of its frames can be decoded; fetch it again or remove it")
    return replace(table, seek=None, packets=packets, places={}, shown=shown)


def _spread(times: np.ndarray, count: int, tick: Fraction) -> np.ndarray:
    """The rule of the module: sorted times in ticks -> (count,) indices. In whole numbers, so that no rounding moves a frame."""
    step, steps, times = np.arange(count), max(count - 1, 1), times - times[0]
    if _is_variable(times, tick):
        return np.searchsorted(times * steps, step * times[-1], side="right") - 1
    return step * (len(times) - 1) // steps


def _is_variable(times: np.ndarray, tick: Fraction) -> bool:
    steps, times = max(len(times) - 1, 1), times - times[0]
    return bool((np.abs(times * steps - np.arange(len(times)) * times[-1]) > max(1, EVEN / tick) * steps).any())


def _decode(path, table: _Table, picks: list[int], size: int, window: dict | None):
    """The one decode pass: {time: (3, size, size) uint8} of the picks, the waveform, the number of frames decoded.

    window: arguments of lib.media.audio.read; None: no sound. The waveform is None where sound is not part of this pass: a window
    that is sought begins at a place of its own in the sound, which lib.media.audio.read finds.
    """
    wanted, pictures, decoded, place = set(picks), {}, 0, -1
    roles, to_rgb = table.roles(picks), VideoReformatter()
    with _open(path) as file:
        video, container = file.video, file.container
        sound = _Sound(file.sound, **window) if window and window["start"] <= FAR else None
        if table.seek is not None:
            container.seek(table.seek, stream=video)
        for packet in container.demux([video, file.sound] if sound else [video]):
            if packet.stream.type == "audio":
                sound.decode(packet)
            elif packet.size:
                place += 1
                if place < len(roles) and roles[place]:
                    # NONREF: a frame that is neither wanted nor referred to by others is not decoded at all.
                    video.codec_context.skip_frame = "DEFAULT" if roles[place] == _WANTED else "NONREF"
                    frames = video.decode(packet)
                    if place + 1 == len(roles) or not roles[place + 1]:  # a gap follows: get out what the decoder holds back
                        frames += video.decode(None)
                        video.codec_context.flush_buffers()
                    decoded += len(frames)
                    pictures.update((frame.pts, _picture(frame, size, to_rgb)) for frame in frames if frame.pts in wanted)
            if place + 1 >= len(roles) and (sound is None or sound.done):
                break
        return pictures, sound.waveform() if sound else None, decoded


def _picture(frame: av.VideoFrame, size: int, to_rgb: VideoReformatter) -> np.ndarray:
    scaled = to_rgb.reformat(frame, size, size, "gbrp", interpolation="BILINEAR", threads=1)
    green, blue, red = (np.frombuffer(plane, np.uint8).reshape(size, plane.line_size)[:, :size] for plane in scaled.planes)
    return np.rot90(np.stack([red, green, blue]), round(frame.rotation / 90), axes=(1, 2))


class _Sound:
    """The sound of a window, packet by packet from the start of the file: what lib.media.audio.read makes of it."""

    def __init__(self, stream: av.AudioStream, sample_rate: int | None, start: float, duration: float | None, mono: bool):
        context = stream.codec_context
        self.window = audio._Window(context.sample_rate, sample_rate or context.sample_rate, start, duration)
        self.to_float = av.AudioResampler(format="fltp", layout=context.layout, rate=context.sample_rate)
        self.blocks, self.position, self.mono = [np.zeros((context.channels, 0), dtype=np.float32)], 0, mono

    @property
    def done(self) -> bool:
        return self.window.end is not None and self.position >= self.window.end

    def decode(self, packet: av.Packet) -> None:
        begin, end = self.window.begin, self.window.end
        for frame in () if self.done else packet.decode():
            for block in self.to_float.resample(frame):
                at, self.position = self.position, self.position + block.samples
                if self.position > begin:
                    self.blocks.append(block.to_ndarray()[:, max(0, begin - at): None if end is None else max(0, end - at)])

    def waveform(self) -> torch.Tensor:
        signal = np.concatenate(self.blocks, axis=1)
        return torch.from_numpy(self.window.resample(audio.fold(signal) if self.mono else signal))
