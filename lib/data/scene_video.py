"""A scene in sight: MP4 video with sound, in which every event is an object at the place where it is heard.

Each class has a shape and a colour of its own (`LOOKS`). The object appears at the onset of its event and leaves at its end,
moves on a small path around its direction, is larger the nearer its event, and swells and shrinks slower or faster as the
event's rate lies low or high in the range of its class. The annotation is that of lib.data.scenes, unchanged.

The picture is a panorama: front is the middle, azimuths are counter-clockwise from the front (lib.audio.ambisonics), so what
sounds from the left is on the left, and up is up. The two sides stop short of the picture's edges so that no object is ever
cut, and nothing wraps around: just left of straight behind lies at one side and just right of it at the other.

In close-up the camera has turned to the one event of a scene and gone near, as in clips that show what they are named after:
the object is larger and somewhere in the picture, wherever its sound comes from.
"""
from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from lib.audio.signals import SAMPLE_RATE, to_samples
from lib.data.scenes import Event, Scene, config

FRAME_RATE = 12  # a second; frame k shows the scene at k / FRAME_RATE seconds and stays until the next
WIDTH, HEIGHT = 256, 192
LARGEST = 28.0  # radius in pixels of an object 1 m away
FALL = 0.33  # radius = LARGEST / distance ** FALL, so 12 pixels at the farthest; 1 / distance would leave nothing to see there
SWELL = 0.07  # the radius changes by this share of itself
SWELLS = (0.8, 3.0)  # a second, at the lowest and the highest rate of a class
PATH = 7.0  # radius in pixels of the path
TURNS = 0.5  # turns a second on the path, about: a whole number in an event
OUTLINE = 1.6  # pixels of dark edge, which sets overlapping objects apart
SPAN = 0.66, 0.55  # of width and height: range of the places of all directions; the rest is for half an object on either side
CLOSE = 2.2  # how much larger everything is in close-up; 28 pixels of radius become 62 of the 96 that are half the height
HIGHEST = 45.0  # degrees of elevation at the top of that range; steeper directions are drawn there, too
_TICKS = 1000  # a frame, in the units of the video's time stamps: the last frame may have to be shorter
_TEXTURE, _CAMERA = 21, 22  # streams of random numbers, see Scene.rng

COLOURS = {"red": (232, 48, 48), "orange": (250, 138, 20), "yellow": (252, 228, 50), "green": (52, 190, 72),
           "cyan": (50, 214, 226), "blue": (66, 104, 250), "magenta": (226, 62, 214), "white": (244, 244, 244)}

# No class shares its shape with one of a similar colour.
LOOKS = {
    "bird_chirp": ("triangle", "yellow"), "owl_hoot": ("crescent", "orange"), "dog_bark": ("square", "red"),
    "cat_meow": ("heart", "orange"), "cricket": ("diamond", "green"),
    "speech": ("star", "magenta"), "baby_cry": ("heart", "cyan"), "cough": ("square", "cyan"),
    "footsteps": ("hourglass", "orange"), "clapping": ("star", "yellow"),
    "engine": ("frame", "red"), "helicopter": ("cross", "white"), "drill": ("hourglass", "magenta"),
    "saw": ("triangle", "blue"), "clock": ("ring", "magenta"),
    "wind": ("crescent", "cyan"), "rain": ("drop", "blue"), "thunder": ("diamond", "magenta"),
    "waves": ("circle", "blue"), "water_drip": ("drop", "white"),
    "siren": ("cross", "red"), "beep": ("frame", "white"), "church_bell": ("circle", "yellow"), "telephone": ("ring", "green"),
}


@dataclass(frozen=True)
class Look:
    """shape: a key of `SHAPES`; colour: (red, green, blue), 0 to 255."""

    shape: str
    colour: tuple[int, int, int]


def look(label: str) -> Look:
    """How the events of a class look. Raises ValueError for a label that is no class."""
    if label not in LOOKS:
        raise ValueError(f"label {label!r} has no look; expected one of {', '.join(LOOKS)} (LOOKS in {Path(__file__).name})")
    shape, colour = LOOKS[label]
    return Look(shape, COLOURS[colour])


def place(event: Event, time: float) -> tuple[float, float]:
    """Where the centre of gravity of an event's object is, as (x, y) in 0 to 1 of the picture's width and height.

    x runs to the right: azimuth 0 (front) is 0.5 and 90 (left) less; y runs downward: elevation 0 is 0.5 and 45 less. The mean
    over the event is exactly the place of its direction. Outside the event the path goes on, but nothing is drawn.

    Args:
        time: seconds since the start of the scene.
    """
    azimuth = (event.azimuth + 180) % 360 - 180
    turns = max(1, round(TURNS * event.duration))  # a whole number: the mean is the middle
    angle = 2 * math.pi * (turns * (time - event.onset) / event.duration + event.timbre)  # timbre: a start for each event
    return (0.5 - SPAN[0] * azimuth / 360 + PATH / WIDTH * math.cos(angle),
            _height(event) + PATH / HEIGHT * math.sin(angle))


def _height(event: Event) -> float:
    return 0.5 - SPAN[1] * min(max(event.elevation, -HIGHEST), HIGHEST) / (2 * HIGHEST)


def radius(event: Event, time: float) -> float:
    """About how far an event's object reaches from its centre of gravity, in pixels; `time` as in `place`."""
    low, high = config()["classes"][event.label]["rate"]
    rate = min(max(math.log(event.rate / low) / math.log(high / low), 0.0), 1.0)
    swells = SWELLS[0] * (SWELLS[1] / SWELLS[0]) ** rate
    swell = 1 + SWELL * math.sin(2 * math.pi * swells * (time - event.onset))
    return LARGEST / max(event.distance, 1.0) ** FALL * swell


@dataclass(frozen=True)
class Camera:
    """Point (x, y) of the panorama, in 0 to 1 of its sides, that is seen in the middle, and how much larger than there."""

    x: float = 0.5
    y: float = 0.5
    zoom: float = 1.0

    def see(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the panorama is in the picture, in 0 to 1 of its sides."""
        return 0.5 + self.zoom * (x - self.x), 0.5 + self.zoom * (y - self.y)


def close_up(scene: Scene) -> Camera:
    """A camera near the one event of a scene: its object is at a place drawn by the scene, as far out as shows all of it.

    Raises ValueError for a scene of another number of events."""
    if len(scene.events) != 1:
        raise ValueError(f"{scene.clip_id}: a close-up shows the one event of a scene, this one has {len(scene.events)}; use events=1")
    event, rng = scene.events[0], scene.rng(_CAMERA)
    reach = CLOSE * (1.2 * LARGEST * (1 + SWELL) / max(event.distance, 1.0) ** FALL + PATH) + OUTLINE
    middle = 0.5 - SPAN[0] * ((event.azimuth + 180) % 360 - 180) / 360, _height(event)
    room = [max(0.0, 0.5 - reach / side) for side in (WIDTH, HEIGHT)]
    return Camera(*(at - rng.uniform(-free, free) / CLOSE for at, free in zip(middle, room)), CLOSE)


def frame_count(scene: Scene) -> int:
    """Frames of the video of a scene; the last is shorter where the duration is no whole number of frames."""
    return math.ceil(round(scene.duration * FRAME_RATE * _TICKS) / _TICKS)


def frames(scene: Scene, close: bool = False) -> Iterator[np.ndarray]:
    """The pictures of a scene, before encoding: `frame_count(scene)` uint8 arrays (HEIGHT, WIDTH, 3), red, green, blue; with
    `close` as `close_up` sees it, before the same background."""
    texture, camera = _texture(scene), close_up(scene) if close else Camera()
    for number in range(frame_count(scene)):
        time = number / FRAME_RATE
        picture = texture.copy()
        # The nearer is drawn first, against nature: the smaller object stays in sight in front of the larger one.
        for event in sorted(scene.events, key=lambda e: e.distance):
            if event.onset <= time < event.onset + event.duration:
                _draw(picture, event, time, camera)
        yield np.rint(picture).astype(np.uint8)


def write(scene: Scene, samples: np.ndarray, file: str | Path, close: bool = False) -> None:
    """Encode a scene as MP4 (H.264 and AAC): the same bytes for the same scene, samples, release of PyAV and kind of processor.

    Picture and sound start together at 0 s and last as long as the scene by the file's tables; the encoder's last block of
    sound is full, so a decoder that does not cut it there returns up to 1023 more samples of near silence.
    The file is written in one go once all is encoded; whoever must not find half a file writes to another name and renames.

    Args:
        samples: float32 (round(scene.duration * 48000),), -1 to 1, such as `lib.data.scenes.render(scene)`.
        file: any name: the format is MP4 whatever its ending.
        close: a close-up, see `close_up`.

    Raises:
        ValueError: samples of another shape or kind, not finite or beyond full scale. OSError: the file cannot be written.
    """
    expected = to_samples(scene.duration)
    if samples.shape != (expected,) or samples.dtype != np.float32:
        raise ValueError(f"{file}: samples must be float32 ({expected},), {scene.duration:g} s of mono sound at {SAMPLE_RATE} Hz,"
                         f" got {samples.dtype} {samples.shape}")
    if not (np.isfinite(samples).all() and np.abs(samples).max() <= 1):
        raise ValueError(f"{file}: samples must be finite and lie within -1 to 1; find what made them so loud or NaN")
    memory = io.BytesIO()
    # The ticks of the container are samples: in its usual milliseconds it could not say where the sound ends.
    with av.open(memory, "w", format="mp4", options={"fflags": "+bitexact", "movie_timescale": str(SAMPLE_RATE)}) as container:
        packets = [*_video_packets(container, scene, close), *_audio_packets(container, samples)]
        # Side by side in the file by time, so that a reader gets both in one pass.
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            container.mux(packet)
    Path(file).write_bytes(memory.getvalue())


def _video_packets(container: av.container.OutputContainer, scene: Scene, close: bool) -> list[av.Packet]:
    # bf 0: no frames out of order, so decoding a frame needs none that follow. g: a key frame every 5 s.
    stream = container.add_stream("libx264", rate=FRAME_RATE, options={"preset": "veryfast", "crf": "26", "bf": "0",
                                                                       "g": str(5 * FRAME_RATE), "flags": "+bitexact"})
    context = stream.codec_context
    context.width, context.height, context.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    context.time_base = Fraction(1, FRAME_RATE * _TICKS)
    context.thread_count = 1  # the default goes by the cores of the machine, and another count gives other bytes
    # Stated, because players guess differently.
    context.colorspace, context.color_range = av.video.reformatter.Colorspace.SMPTE170M, av.video.reformatter.ColorRange.MPEG
    packets, convert = [], VideoReformatter()  # one for all frames: preparing it takes longer than a frame
    for number, picture in enumerate(frames(scene, close)):
        frame = convert.reformat(av.VideoFrame.from_ndarray(picture, format="rgb24"), format="yuv420p")
        frame.pts, frame.time_base = number * _TICKS, context.time_base
        packets += stream.encode(frame)
    packets += stream.encode(None)
    end = round(scene.duration * FRAME_RATE * _TICKS)
    for packet in packets:
        packet.duration = min(_TICKS, end - packet.pts)
    return packets


def _audio_packets(container: av.container.OutputContainer, samples: np.ndarray) -> list[av.Packet]:
    # aac_pns 0: a decoder would otherwise fill bands of noise with its own, different after every seek. fast: the usual coder takes
    # three times as long, a third of the whole rendering.
    stream = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono", options={"aac_pns": "0", "aac_coder": "fast", "flags": "+bitexact"})
    stream.bit_rate, stream.codec_context.thread_count = 64_000, 1
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="fltp", layout="mono")
    frame.sample_rate, frame.pts = SAMPLE_RATE, 0  # with time stamps the file says how much of its start is the encoder's padding
    return [*stream.encode(frame), *stream.encode(None)]


def _texture(scene: Scene) -> np.ndarray:
    """The background of a scene: float32 (HEIGHT, WIDTH, 3), dim clouds whose grain, contrast and two tints are the scene's own,
    drawn without regard to its events, so that neither the background nor the size of the file tells what sounds."""
    rng = scene.rng(_TEXTURE)
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None])
    frequency[0, 0] = np.inf
    white = rng.standard_normal((HEIGHT, WIDTH))
    noise = np.fft.irfft2(np.fft.rfft2(white) * frequency ** -rng.uniform(1.2, 2.2), white.shape)
    mixture = 1 / (1 + np.exp(-rng.uniform(0.8, 2.0) * noise / noise.std()))[..., None]
    dark, light = rng.uniform(8, 30, 3), rng.uniform(36, 70, 3)
    return (dark + (light - dark) * mixture).astype(np.float32)


def _draw(picture: np.ndarray, event: Event, time: float, camera: Camera) -> None:
    """Draw an event's object into a float picture, edges smooth and placed to a fraction of a pixel."""
    style, size = look(event.label), camera.zoom * radius(event, time)
    x, y = camera.see(*place(event, time))
    x, y = x * WIDTH - 0.5, y * HEIGHT - 0.5  # the centre of the first pixel lies half a pixel inside the picture
    reach = size * 1.2 + OUTLINE + 1
    top, bottom = max(0, math.ceil(y - reach)), min(HEIGHT, math.floor(y + reach) + 1)
    left, right = max(0, math.ceil(x - reach)), min(WIDTH, math.floor(x + reach) + 1)
    across = (np.arange(left, right, dtype=np.float32)[None] - x) / size
    up = (y - np.arange(top, bottom, dtype=np.float32)[:, None]) / size
    dx, dy = _centre(style.shape)
    distance = SHAPES[style.shape](across + dx, up + dy) * size
    part = picture[top:bottom, left:right]
    for colour, edge in (((6, 6, 10), OUTLINE), (style.colour, 0.0)):
        cover = np.clip(0.5 + edge - distance, 0, 1)[..., None]
        part += cover * (np.asarray(colour, np.float32) - part)


@lru_cache(maxsize=None)
def _centre(shape: str) -> tuple[float, float]:
    """Centre of gravity of a shape in its own coordinates: `place` is to be what one measures in the picture."""
    grid = np.linspace(-1.3, 1.3, 521)
    rows, columns = np.nonzero(SHAPES[shape](grid[None], grid[:, None]) < 0)
    return float(grid[columns].mean()), float(grid[rows].mean())


def _star(x: np.ndarray, y: np.ndarray, points: int = 5, outer: float = 1.08, inner: float = 0.46) -> np.ndarray:
    half = math.pi / points
    angle = np.abs((np.arctan2(x, y) + half) % (2 * half) - half)  # every point of the star folded onto one half of one
    length = np.hypot(x, y)
    corner = inner * math.cos(half) - outer, inner * math.sin(half)
    return (corner[1] * (length * np.cos(angle) - outer) - corner[0] * length * np.sin(angle)) / math.hypot(*corner)


def _drop(x: np.ndarray, y: np.ndarray, tip: float = 1.0, middle: float = -0.32, round_: float = 0.6) -> np.ndarray:
    sine = round_ / (tip - middle)  # of half the angle of the cone that touches the circle
    cone = np.abs(x) * math.sqrt(1 - sine**2) - (tip - y) * sine
    return np.minimum(np.hypot(x, y - middle) - round_, np.maximum(cone, middle + round_ * sine - y))


def _box(x: np.ndarray, y: np.ndarray, width: float, height: float) -> np.ndarray:
    return np.maximum(np.abs(x) - width, np.abs(y) - height)


# Distance to the edge (about; negative inside) of shapes that reach about 1 from their centre (at most 1.15: SPAN leaves room
# for that). x runs to the right, y upward.
SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda x, y: np.hypot(x, y) - 0.9,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.72) - 0.22,
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 1, 0.8 - np.hypot(x - 0.5, y)),
    "drop": _drop,
    "heart": lambda x, y: np.minimum((np.abs(x) + np.abs(y + 0.2) - 0.78) / math.sqrt(2),
                                     np.hypot(np.abs(x) - 0.39, y - 0.19) - 0.5515),
    "triangle": lambda x, y: np.maximum(-y, 0.866 * np.abs(x) + 0.5 * y) - 0.55,
    "square": lambda x, y: _box(x, y, 0.8, 0.8),
    "frame": lambda x, y: np.abs(_box(x, y, 0.62, 0.62)) - 0.2,
    "diamond": lambda x, y: (np.abs(x) / 0.68 + np.abs(y) - 1.05) / math.hypot(1 / 0.68, 1),
    "star": _star,
    "cross": lambda x, y: np.minimum(_box(x, y, 0.32, 0.95), _box(x, y, 0.95, 0.32)),
    "hourglass": lambda x, y: np.maximum(np.abs(y) - 0.88, (np.abs(x) - 0.1 - 0.72 * np.abs(y)) / math.hypot(1, 0.72)),
}
