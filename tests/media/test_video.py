"""Frames and sound against naive full decodes, the closed rules for which frames, and what must be refused."""
import os
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
import soundfile
import torch

from lib.media import audio, video

ROOT = Path(__file__).resolve().parents[2]
MEDIA = Path(os.environ.get("WORKBOOK_SHARED", ROOT / "../shared/data")) / "media"
WIDTH, HEIGHT, SIZE, RATE = 96, 64, 32, 48000
FRAMES, FPS = 75, 25


def picture(number, bits=8):
    """(HEIGHT, WIDTH, 3) uint8: the bits of a number as bars over a moving pattern, so that it can be read again."""
    bars = np.repeat([(number >> bit) & 1 for bit in range(bits)], WIDTH // bits) * 160
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    return (bars[None, :, None] + np.stack([(x + 3 * number) % 64, (y + number) % 64, (x + y) % 64], 2)).astype(np.uint8)


def numbers(frames):
    """The numbers of pictures, (count, 3, size, size)."""
    bars = frames.mean(1).unflatten(2, (8, -1)).mean((1, 3)) > 0.45
    return (bars * 2 ** torch.arange(8)).sum(1).tolist()


def write(path, codec="libx264", numbers=range(FRAMES), times=None, sound=None, rotation=0, fps=FPS, clock=1000, **options):
    """A video of numbered pictures at `times` (in units of 1 / clock s; None: evenly at fps), and a rising tone as long."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={name.replace("_", "-"): str(o) for name, o in options.items()})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, clock)
        if sound:
            tones = container.add_stream(sound, rate=RATE, layout="stereo")
        seconds = len(numbers) / fps if times is None else times[-1] / clock
        for index, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(picture(number))
            frame.pts, frame.time_base = (index, Fraction(1, fps)) if times is None else (times[index], Fraction(1, clock))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound:
            t = np.arange(round(seconds * RATE)) / RATE
            signal = np.stack([0.4 * np.sin(2 * np.pi * (200 + 150 * t) * t), 0.3 * np.sin(2 * np.pi * 500 * t)])
            frame = av.AudioFrame.from_ndarray(signal.astype(np.float32), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = RATE, 0
            container.mux([*tones.encode(frame), *tones.encode(None)])
    return path


def remux(source, target, change=lambda packet: [packet]):
    """Copy the packets of a video, each replaced by those that `change` returns."""
    with av.open(str(source)) as reading, av.open(str(target), "w") as writing:
        stream = writing.add_stream_from_template(reading.streams.video[0])
        for packet in reading.demux(video=0):
            for new in change(packet) if packet.size else ():
                new.stream = stream
                writing.mux(new)
    return target


def ffmpeg(*arguments):
    """Run the independent program; its standard output."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def full_decode(path, size=SIZE):
    """Times in seconds, and all frames scaled, (n, 3, size, size): each frame converted, nothing skipped."""
    with av.open(f"file:{path}") as container:
        frames = [(frame.time, frame.to_ndarray(format="gbrp", width=size, height=size, interpolation="BILINEAR"))
                  for frame in container.decode(video=0)]
    return [time for time, _ in frames], torch.from_numpy(np.stack([f for _, f in frames])).permute(0, 3, 1, 2).float() / 255


def first_sound(path):
    with av.open(f"file:{path}") as container:
        return next(container.decode(audio=0)).time if container.streams.audio else None


VIDEOS = {
    "b.mp4": dict(codec="libx264", sound="aac", bf=3, g=20),
    "long.mp4": dict(codec="libx264", sound="aac", bf=2),
    "open.mkv": dict(codec="libx264", sound="aac", bf=3, g=15, x264_params="open-gop=1:scenecut=0"),
    "refresh.mkv": dict(codec="libx264", g=15, x264_params="intra-refresh=1:scenecut=0"),
    "vp8.webm": dict(codec="libvpx", sound="libopus", g=15, deadline="realtime", cpu_used=8),
    "vp9.webm": dict(codec="libvpx-vp9", sound="libopus", g=30, cpu_used=8, lag_in_frames=16, b="200k"),
    "mpeg4.avi": dict(codec="mpeg4", sound="mp3", bf=2, g=12),
    "b.ts": dict(codec="libx264", sound="aac", bf=3, g=20),
    "mjpeg.mov": dict(codec="mjpeg", sound="aac"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("video")
    for name, options in VIDEOS.items():
        write(folder / name, **options)
    return folder


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_are_those_of_a_full_decode(files, name, monkeypatch):
    if name != "refresh.mkv":  # which has no keyframe to begin at: only there may the second, full pass be needed
        monkeypatch.delattr(video, "_count_decoded")
    _, every = full_decode(files / name)
    assert len(every) == FRAMES and numbers(every) == list(range(FRAMES))
    for count in (1, 2, 7, 16, FRAMES, FRAMES + 9):
        frames = video.read_frames(files / name, count=count, size=SIZE)
        index = [i * (FRAMES - 1) // max(count - 1, 1) for i in range(count)]
        assert frames.dtype == torch.float32 and frames.shape == (count, 3, SIZE, SIZE)
        assert numbers(frames) == index and torch.equal(frames, every[index])


WINDOWS = [(0, None), (0, 0.5), (0.37, 1.0), (1.0, 0.3), (1.21, None), (2.4, 5), (2.979, 0.01), (1.5, 0), (50, 2)]


@pytest.mark.parametrize("far", [False, True], ids=["read on", "sought"])
@pytest.mark.parametrize("name", VIDEOS)
def test_windows_are_parts_of_a_full_decode(files, name, far, monkeypatch):
    if far:
        monkeypatch.setattr(video, "FAR", 0.2)
        monkeypatch.setattr(video, "BACK", 0.3)
    path, (times, every) = files / name, full_decode(files / name)
    begins = [time - (times[0] if first_sound(path) is None else first_sound(path)) for time in times]
    for start, duration in WINDOWS:
        clip = video.read_clip(path, count=5, size=SIZE, sample_rate=16000, start=start, duration=duration)
        on_screen = max([i for i, begin in enumerate(begins) if begin <= start + 1e-3 / 2], default=0)
        end = 100 if duration is None else start + duration
        inside = [i for i in range(FRAMES) if i == on_screen or (i > on_screen and begins[i] < end - 1e-3 / 2)]
        if start > begins[-1] + 0.05:
            assert not clip.has_video and clip.frames.shape == (0, 3, SIZE, SIZE)
            assert clip.times.shape == (0,) and clip.available == clip.decoded == 0
        else:
            index = [inside[i * (len(inside) - 1) // 4] for i in range(5)]
            assert clip.available == len(inside) and torch.equal(clip.frames, every[index]), (start, duration)
            np.testing.assert_allclose(clip.times, [begins[i] for i in index], atol=1e-3)
            if first_sound(path) is None or (start, duration) == (0, None):  # otherwise the clock is that of the sound
                assert torch.equal(video.read_frames(path, count=5, size=SIZE, start=start, duration=duration), clip.frames)
        if first_sound(path) is not None:
            expected = audio.read(path, sample_rate=16000, start=start, duration=duration)
            torch.testing.assert_close(clip.waveform, expected, atol=1e-6, rtol=0)
            assert clip.has_audio == (expected.shape[1] > 0)


@pytest.mark.parametrize("sample_rate, mono", [(None, False), (22050, True), (32000, False)])
def test_sound_is_that_of_the_audio_reader(files, sample_rate, mono):
    for name in ("b.mp4", "vp9.webm"):
        wanted = dict(sample_rate=sample_rate, mono=mono, start=0.4, duration=1.7)
        clip = video.read_clip(files / name, count=2, size=8, **wanted)
        torch.testing.assert_close(clip.waveform, audio.read(files / name, **wanted), atol=1e-6, rtol=0)


def test_both_are_decoded_in_one_pass_and_only_what_is_needed(files, monkeypatch):
    converted, opened, convert, open_file = [], [], video._picture, av.open
    monkeypatch.setattr(video, "_picture", lambda frame, *rest: converted.append(frame.pts) or convert(frame, *rest))
    monkeypatch.setattr(av, "open", lambda *a, **k: opened.append(a) or open_file(*a, **k))
    monkeypatch.delattr(audio, "read")
    clip = video.read_clip(files / "b.mp4", count=3, size=SIZE)
    assert clip.has_audio and len(opened) == 2  # to read packets, and to decode
    assert len(converted) == len(set(converted)) == 3  # frames that are not wanted are not converted
    # Wanted are 0, 37, 74 of keyframes every 20: frame 0, then 20 to 37 and 60 to 74 without the B-frames nobody refers to.
    assert clip.decoded < 1 + 18 + 15
    assert video.read_clip(files / "b.mp4", count=1, size=SIZE, duration=0.01).decoded == 1


def test_spread_is_the_closed_rule():
    for n in (1, 2, 3, 10, 49, 299):
        for count in (1, 2, 3, 16, 49, 50, 500):
            index = video._spread(np.arange(n) * 3003 + 7, count, Fraction(1, 90000)).tolist()
            assert index == [int(Fraction(i * (n - 1), max(count - 1, 1))) for i in range(count)]
            assert index[0] == 0 and (count == 1 or index[-1] == n - 1) and index == sorted(index)
            # Times rounded to milliseconds, and to milliseconds written on a finer clock, are even as well.
            rounded = np.array([round(1000 * k / 29.97) for k in range(n)])
            assert video._spread(rounded, count, Fraction(1, 1000)).tolist() == index
            assert video._spread(rounded * 90, count, Fraction(1, 90000)).tolist() == index


def test_variable_rate_goes_by_time(tmp_path):
    """Ten frames a second that turn to fifty, with a pause; on screen is the last frame that has begun."""
    times = [*range(0, 1000, 100), *range(2500, 3500, 20)]
    write(tmp_path / "v.mp4", numbers=range(len(times)), times=times, sound="aac", bf=2, g=12)
    write(tmp_path / "v.mkv", numbers=range(len(times)), times=times, bf=2)
    for name in ("v.mp4", "v.mkv"):
        assert video.probe(tmp_path / name).variable and video.probe(tmp_path / name).frames == len(times)
        for count in (2, 5, 16):
            shown = [max(k for k, time in enumerate(times) if time * (count - 1) <= i * times[-1]) for i in range(count)]
            assert numbers(video.read_frames(tmp_path / name, count=count, size=SIZE)) == shown
    clip = video.read_clip(tmp_path / "v.mp4", count=4, size=SIZE, start=0.15, duration=2.5)
    assert numbers(clip.frames) == [1, 9, 9, 17]  # at 0.1, 0.95, 1.79 and 2.64 s: from the second frame to the one at 2.64 s
    np.testing.assert_allclose(clip.times, [0.1, 0.9, 0.9, 2.64], atol=1e-3)


def test_pictures_and_sound_have_one_clock(tmp_path):
    """A white picture and a loud tone begin together, at 1.2 s; Opus and AAC begin with samples that are not to be heard."""
    for name, codecs in (("a.mp4", ("libx264", "aac")), ("a.webm", ("libvpx", "libopus"))):
        with av.open(str(tmp_path / name), "w") as container:
            shown, heard = container.add_stream(codecs[0], rate=FPS), container.add_stream(codecs[1], rate=RATE, layout="mono")
            shown.width, shown.height, shown.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for k in range(50):
                frame = av.VideoFrame.from_ndarray(np.full((HEIGHT, WIDTH, 3), 255 * (k >= 30), np.uint8))
                frame.pts = k
                container.mux(shown.encode(frame))
            tone = 0.5 * np.sin(2 * np.pi * 800 * np.arange(2 * RATE) / RATE) * (np.arange(2 * RATE) >= 1.2 * RATE)
            frame = av.AudioFrame.from_ndarray(tone.astype(np.float32)[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = RATE, 0
            container.mux([*shown.encode(None), *heard.encode(frame), *heard.encode(None)])
        clip = video.read_clip(tmp_path / name, count=50, size=8)
        seen = clip.times[(clip.frames.mean((1, 2, 3)) > 0.5).nonzero()[0, 0]]
        assert seen == pytest.approx(1.2, abs=0.01)
        assert (clip.waveform[0].abs() > 0.1).nonzero()[0, 0] / 16000 == pytest.approx(1.2, abs=0.01)
        clip = video.read_clip(tmp_path / name, count=2, size=8, start=1.19, duration=0.1)
        assert clip.frames[0].mean() < 0.1 and clip.frames[1].mean() > 0.9


def test_missing_sound_and_missing_picture(files, tmp_path):
    clip = video.read_clip(files / "refresh.mkv", count=4, size=SIZE)
    assert clip.has_video and not clip.has_audio and clip.waveform.shape == (1, 0)
    assert torch.equal(clip.frames, video.read_frames(files / "refresh.mkv", count=4, size=SIZE))

    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(16000) / 5), 16000)
    with av.open(str(tmp_path / "cover.m4a"), "w", format="mp4") as container:  # sound with an attached picture
        cover, tone = container.add_stream("mjpeg"), container.add_stream("aac", rate=16000, layout="mono")
        cover.width, cover.height, cover.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.sin(np.arange(16000, dtype=np.float32) / 5)[None], format="fltp", layout="mono")
        frame.sample_rate = 16000
        image = av.VideoFrame.from_ndarray(picture(9)).reformat(format="yuvj420p")
        container.mux([*cover.encode(image), *cover.encode(None), *tone.encode(frame), *tone.encode(None)])
    with av.open(str(tmp_path / "cover.m4a")) as container:
        assert len(container.streams.video) == 1
    for name in ("a.wav", "cover.m4a"):
        clip = video.read_clip(tmp_path / name, size=SIZE, start=0.25, duration=0.5)
        assert clip.has_audio and not clip.has_video and clip.frames.shape == (0, 3, SIZE, SIZE) and clip.available == 0
        assert torch.equal(clip.waveform, audio.read(tmp_path / name, sample_rate=16000, start=0.25, duration=0.5))
        for call in (video.read_frames, video.probe):
            with pytest.raises(video.VideoError, match=f"{name}.*no video stream"):
                call(tmp_path / name)


def test_one_frame_and_fewer_than_asked_repeat(tmp_path):
    write(tmp_path / "one.mp4", numbers=[77])
    frames = video.read_frames(tmp_path / "one.mp4", count=6, size=SIZE)
    assert numbers(frames) == [77] * 6 and (frames == frames[0]).all()
    write(tmp_path / "three.mp4", numbers=[5, 6, 7], bf=2)
    assert numbers(video.read_frames(tmp_path / "three.mp4", count=6, size=SIZE)) == [5, 5, 5, 6, 6, 7]
    still = video.read_clip(tmp_path / "one.mp4", count=2, size=SIZE, start=9.0, duration=1)  # a slide with sound, for example
    assert numbers(still.frames) == [77, 77] and still.available == 1


def test_container_counts_are_not_believed(files, tmp_path):
    """An edit list that begins between two keyframes: packets are there that must be decoded and not shown."""
    cut = tmp_path / "cut.mp4"
    ffmpeg("-ss", "1.3", "-i", files / "long.mp4", "-c", "copy", cut)
    _, every = full_decode(cut)
    with av.open(str(cut)) as container:
        assert container.streams.video[0].frames > len(every)
    info = video.probe(cut)
    assert info.frames == len(every) and info.rate == pytest.approx(FPS)
    frames = video.read_frames(cut, count=len(every), size=SIZE)
    assert torch.equal(frames, every) and numbers(frames)[0] >= 32


def test_frames_that_are_never_shown_do_not_count(files, tmp_path):
    """VP8 says by a bit that a frame is only there for others to refer to."""
    shown = [k for k in range(FRAMES) if k % 7 != 3]

    def hide(packet):
        number, data = round(packet.pts * packet.time_base * FPS), bytearray(bytes(packet))
        if number not in shown:
            data[0] &= ~0x10
        new = av.Packet(bytes(data))
        new.pts = new.dts = sum(40 for k in shown if k < number) - (20 if number not in shown else 0)  # those that show are even
        new.time_base, new.is_keyframe = packet.time_base, packet.is_keyframe
        return [new]

    path = remux(files / "vp8.webm", tmp_path / "hidden.webm", hide)
    _, every = full_decode(path)
    assert numbers(every) == shown and video.probe(path).frames == len(shown)
    frames = video.read_frames(path, count=len(shown), size=SIZE)
    assert torch.equal(frames, every)


def test_packets_that_turn_out_to_be_no_frame(files, tmp_path):
    """A recording cut inside a slow refresh (no frame is a full keyframe): the decoder shows nothing before it is complete."""
    path = remux(files / "refresh.mkv", tmp_path / "cut.mkv", lambda packet: [packet] if packet.pts >= 800 else [])
    _, every = full_decode(path)
    assert len(every) < video.probe(path).frames < FRAMES - 20  # neither all that are there nor all from the first key packet on
    for count in (2, 16, len(every)):
        index = [i * (len(every) - 1) // (count - 1) for i in range(count)]
        assert torch.equal(video.read_frames(path, count=count, size=SIZE), every[index])
    clip = video.read_clip(path, count=3, size=SIZE, start=0.5)
    assert clip.has_video and not clip.has_audio and numbers(clip.frames)[-1] == FRAMES - 1


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_display_matrix_turns_pictures_upright(tmp_path, rotation):
    path = write(tmp_path / "r.mp4", numbers=[13] * 3, rotation=rotation)
    raw = ffmpeg("-i", path, "-vf", f"scale={SIZE}:{SIZE}", "-frames:v", 1, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    expected = torch.from_numpy(np.frombuffer(raw, np.uint8).reshape(SIZE, SIZE, 3) / 255)  # ffmpeg turns by itself
    difference = (video.read_frames(path, count=1, size=SIZE)[0].permute(1, 2, 0) - expected).abs()
    assert difference.mean() < 0.04 and picture(13).std() > 60


def test_colours_and_squashing(tmp_path):
    """Left half red, right half blue, top third bright: in [0, 1], channels in order, the whole picture and not a crop."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:, : WIDTH // 2, 0], image[:, WIDTH // 2:, 2], image[: HEIGHT // 4, :, 1] = 250, 250, 250
    with av.open(str(tmp_path / "c.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=5, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv444p"
        container.mux([*stream.encode(av.VideoFrame.from_ndarray(image)), *stream.encode(None)])
    frame = video.read_frames(tmp_path / "c.mp4", count=1, size=48)[0]
    whole = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    expected = torch.nn.functional.interpolate(whole, size=(48, 48), mode="bilinear", antialias=True)[0]
    assert (frame - expected).abs().mean() < 0.015 and 0 <= frame.min() and frame.max() <= 1


def test_names_that_look_like_options_protocols_or_patterns(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = video.read_frames(files / "b.mp4", count=2, size=SIZE)
    for name in ("-", "-i.mp4", "http:x.mp4", "concat:a|b.mp4", "frame%d.mp4", "naïve 'q\"uotes' <script> Ã©.mp4", "noending"):
        shutil.copy(files / "b.mp4", tmp_path / name)
        assert torch.equal(video.read_frames(name, count=2, size=SIZE), expected)
        assert video.read_clip(Path(name), count=2, size=SIZE, duration=0.5).waveform.shape == (1, 8000)
    if os.name != "nt":  # bytes that are no text in any language
        shutil.copy(files / "b.mp4", os.fsencode(tmp_path) + b"/caf\xe9.mp4")
        clip = video.read_clip(os.fsdecode(b"caf\xe9.mp4"), count=2, size=SIZE)
        assert torch.equal(clip.frames, expected) and clip.has_audio


def test_refused_files_are_named(files, tmp_path):
    for name, content, words in (("missing.mp4", None, "does not exist"), ("empty.mp4", b"", "empty"),
                                 ("text.mp4", b"no pictures, only text\n" * 500, "cannot be decoded")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        for call in (video.read_frames, video.read_clip, video.probe):
            with pytest.raises(video.VideoError, match=f"{name}.*{words}.*(remove|prepare)"):
                call(tmp_path / name)
    with pytest.raises(video.VideoError, match="folder"):
        video.read_frames(tmp_path)
    (tmp_path / "words.mp4").write_text("1\n00:00:00,000 --> 00:00:01,000\nonly subtitles\n")
    with pytest.raises(video.VideoError, match="words.mp4.*neither"):
        video.read_clip(tmp_path / "words.mp4")
    write(tmp_path / "raw.h264", numbers=range(5))
    with pytest.raises(video.VideoError, match="raw.h264.*no time stamps.*mp4"):
        video.read_frames(tmp_path / "raw.h264")


def test_cut_and_damaged_files(files, tmp_path):
    ffmpeg("-i", files / "b.mp4", "-c", "copy", "-movflags", "+faststart", tmp_path / "front.mp4")
    whole = (tmp_path / "front.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    for call in (video.read_frames, video.read_clip, video.probe):
        with pytest.raises(video.VideoError, match="cut.mp4.*breaks off"):
            call(tmp_path / "cut.mp4")
    begin = video.read_clip(tmp_path / "cut.mp4", count=3, size=SIZE, duration=0.5)  # what is there can be read
    assert torch.equal(begin.frames, video.read_clip(files / "b.mp4", count=3, size=SIZE, duration=0.5).frames)
    data = write(tmp_path / "noindex.ivf", "libvpx", numbers=range(20)).read_bytes()
    (tmp_path / "noindex.ivf").write_bytes(data[:-20])
    with pytest.raises(video.VideoError, match="noindex.ivf.*breaks off.* 0.76 s"):
        video.read_frames(tmp_path / "noindex.ivf")
    head, body = whole[: whole.index(b"mdat")], whole[whole.index(b"mdat"):]
    for words, kind in (((b"avc1", b"avcC"), "video"), ((b"mp4a", b"esds"), "audio")):
        changed = head
        for word in words:
            changed = changed.replace(word, b"zzzz")
        (tmp_path / "coding.mp4").write_bytes(changed + body)
        with pytest.raises(video.VideoError, match=f"coding.mp4.*{kind} stream has a coding"):
            video.read_clip(tmp_path / "coding.mp4")
    # the sound of an unknown coding is no matter for who wants the pictures
    assert torch.equal(video.read_frames(tmp_path / "coding.mp4", count=3, size=SIZE), video.read_frames(files / "b.mp4", count=3, size=SIZE))
    with pytest.raises(audio.AudioError, match="coding.mp4.*a coding that no decoder here knows"):
        audio.read(tmp_path / "coding.mp4", sample_rate=None)


def test_probe(files):
    info = video.probe(files / "b.mp4")
    assert (info.frames, info.width, info.height, info.has_audio, info.codec) == (75, WIDTH, HEIGHT, True, "mov/h264")
    assert info.rate == pytest.approx(FPS) and info.duration == pytest.approx(3) and info.stated == pytest.approx(3, abs=0.05)
    for name in VIDEOS:
        info = video.probe(files / name)
        assert info.frames == FRAMES and info.rate == pytest.approx(FPS, rel=1e-3) and info.duration == pytest.approx(3, abs=0.05)
        assert info.has_audio == (first_sound(files / name) is not None) and not info.variable


@pytest.mark.parametrize("wrong", [{"count": 0}, {"size": 0}, {"start": -1}, {"duration": -0.1}, {"start": float("nan")},
                                   {"sample_rate": 0}])
def test_arguments_out_of_range(files, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        video.read_clip(files / "b.mp4", **wrong)


@pytest.mark.skipif(not MEDIA.is_dir(), reason="the real media files are not here")
@pytest.mark.parametrize("name, n, decoded", [("00W1lcxW-WU_40.000.mp4", 125, 76), ("KlsG1EnBEjc_000361.mp4", 299, 260)])
def test_real_videos(name, n, decoded):
    times, every = full_decode(MEDIA / name)
    assert len(every) == n == video.probe(MEDIA / name).frames
    clip = video.read_clip(MEDIA / name, size=SIZE)
    index = [i * (n - 1) // 15 for i in range(16)]
    assert torch.equal(clip.frames, every[index]) and clip.decoded <= decoded
    np.testing.assert_allclose(clip.times, np.array(times)[index], atol=1e-4)
    torch.testing.assert_close(clip.waveform, audio.read(MEDIA / name, sample_rate=16000), atol=1e-6, rtol=0)
    clip = video.read_clip(MEDIA / name, size=SIZE, start=7.3, duration=1.1)
    inside = [i for i in range(n) if times[min(i + 1, n - 1)] > 7.3 and times[i] < 8.4]
    assert torch.equal(clip.frames, every[[inside[i * (len(inside) - 1) // 15] for i in range(16)]])
    expected = audio.read(MEDIA / name, sample_rate=16000, start=7.3, duration=1.1)
    torch.testing.assert_close(clip.waveform, expected, atol=1e-6, rtol=0)
