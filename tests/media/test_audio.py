"""Windows against the same part of a full decode, the resampler against torchaudio, and what must be refused."""
import os
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from lib.media import audio

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("WORKBOOK_SHARED", ROOT / "../shared/data"))
RATE, SECONDS = 44100, 7
WINDOWS = [(0, 1), (0.37, 2), (3.3333, 0.5), (5.1, 1), (6.2, 5), (6.99, 1), (20, 1)]


def _signal(seconds=SECONDS, rate=RATE):
    """Stereo sweep and tone over noise, (samples, 2): an offset of one sample changes it clearly."""
    t = np.arange(seconds * rate + 123) / rate
    noise = np.random.default_rng(0).standard_normal((len(t), 2)) * 0.02
    return (np.stack([0.4 * np.sin(2 * np.pi * (200 + 150 * t) * t), 0.3 * np.sin(2 * np.pi * 500 * t)], 1) + noise).astype(np.float32)


def _encode(path, signal, codec, rate=RATE, bit_rate=None, **options):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="stereo", options=options)
        if bit_rate:
            stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(signal.T), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = rate, 0  # with time stamps the file says how much of its start is the encoder's padding
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, signal = tmp_path_factory.mktemp("audio"), _signal()
    for suffix in ("wav", "flac", "ogg", "mp3"):
        soundfile.write(folder / f"a.{suffix}", signal, RATE)
    soundfile.write(folder / "a24.wav", signal, RATE, subtype="PCM_24")
    soundfile.write(folder / "a8k.wav", signal, 8000)
    soundfile.write(folder / "odd.wav", signal, 22254)  # a rate with no common factor with 32000 to speak of
    _encode(folder / "a.m4a", signal, "aac")
    _encode(folder / "a.webm", signal, "libopus", 48000)
    return folder


@pytest.mark.parametrize("sample_rate", [32000, 44100])
@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a24.wav", "a8k.wav", "odd.wav", "a.m4a", "a.webm"])
def test_window_is_part_of_full_decode(files, name, sample_rate):
    full = audio.read(files / name, sample_rate=sample_rate, mono=False)
    assert full.dtype == torch.float32 and full.shape[0] == 2
    for start, duration in WINDOWS:
        window = audio.read(files / name, sample_rate=sample_rate, start=start, duration=duration, mono=False)
        first = round(start * sample_rate)
        expected = full[:, first: first + round(duration * sample_rate)]
        assert window.shape == expected.shape, (start, duration)
        torch.testing.assert_close(window, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name, codec, rate, options", [
    ("long.m4a", "aac", RATE, {"aac_pns": "0"}), ("long.mkv", "libmp3lame", RATE, {}), ("long.webm", "libopus", 48000, {})])
def test_windows_that_ffmpeg_seeks(tmp_path, name, codec, rate, options, monkeypatch):
    monkeypatch.setattr(audio, "SEEK_FROM", 2.0)
    _encode(tmp_path / name, _signal(12, rate), codec, rate, **options)
    full = audio.read(tmp_path / name, sample_rate=32000)
    for start in (4.5, 8.123, 11.5, 100.0):
        window = audio.read(tmp_path / name, sample_rate=32000, start=start, duration=1)
        torch.testing.assert_close(window, full[:, round(start * 32000):][:, :32000], atol=1e-6, rtol=0)


@pytest.mark.parametrize("rate, bit_rate", [(48000, 32000), (44100, 32000), (24000, 8000), (16000, 16000)])
def test_mp3_windows_that_need_data_of_many_frames_before(tmp_path, rate, bit_rate):
    """A frame's data may begin hundreds of bytes back, at these bit rates many frames; noise after quiet makes use of it."""
    signal = _signal(12, rate) * np.where(np.arange(12 * rate + 123) // (rate // 6) % 5, 0.001, 1)[:, None].astype(np.float32)
    _encode(tmp_path / "x.mp3", signal, "libmp3lame", rate, bit_rate)
    full = audio.read(tmp_path / "x.mp3", sample_rate=None, mono=False)
    for start in np.random.default_rng(0).uniform(0.5, 12, 40):
        window = audio.read(tmp_path / "x.mp3", sample_rate=None, start=start, duration=0.1, mono=False)
        expected = full[:, round(start * rate):][:, :round(0.1 * rate)]
        torch.testing.assert_close(window, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("loud_first", [True, False])
def test_mp3_of_variable_bit_rate_without_a_header(tmp_path, loud_first, monkeypatch):
    """No Xing header: who guesses the length from the first frame's bit rate is far off, and may cut the file."""
    signal = np.concatenate([_signal(8), _signal(8) * 0.001][::1 if loud_first else -1])
    soundfile.write(tmp_path / "whole.mp3", signal, RATE, format="MP3", bitrate_mode="VARIABLE", compression_level=0.3)
    content = (tmp_path / "whole.mp3").read_bytes()
    assert 0 < content.find(b"Xing") < 100
    (tmp_path / "x.mp3").write_bytes(content[content.index(b"\xff\xfb", content.index(b"Xing")):])
    full = audio.read(tmp_path / "x.mp3", sample_rate=None)
    assert len(signal) <= full.shape[1] <= len(signal) + 3 * 1152  # with the encoder's padding, of which only the header tells
    assert audio.probe(tmp_path / "x.mp3").duration == pytest.approx(full.shape[1] / RATE, abs=1e-3)
    assert sum(map(len, audio.blocks(tmp_path / "x.mp3"))) == full.shape[1]
    for seek_from in (audio.SEEK_FROM, 2.0):
        monkeypatch.setattr(audio, "SEEK_FROM", seek_from)
        for start in (1.5, 7.77, 8.1, 14.321, 16, 30):
            window = audio.read(tmp_path / "x.mp3", sample_rate=None, start=start, duration=0.5)
            torch.testing.assert_close(window, full[:, round(start * RATE):][:, :RATE // 2], atol=1e-6, rtol=0)


def test_mp3_header_is_found_behind_a_tag(files, tmp_path):
    tag = b"ID3\x03\x00\x00" + bytes([0, 1, 2, 3]) + b"\x00" * (2**14 + 2 * 2**7 + 3)  # its size in digits of seven bits
    (tmp_path / "x.mp3").write_bytes(tag + (files / "a.mp3").read_bytes())
    assert audio.probe(tmp_path / "x.mp3") == audio.probe(files / "a.mp3")
    expected = audio.read(files / "a.mp3", sample_rate=32000, start=2)
    assert torch.equal(audio.read(tmp_path / "x.mp3", sample_rate=32000, start=2), expected)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a24.wav", "a8k.wav", "a.mp3"])
def test_values_are_those_of_libsndfile(files, name):
    expected, rate = soundfile.read(files / name, dtype="float32")
    np.testing.assert_array_equal(audio.read(files / name, sample_rate=None, mono=False), expected.T)
    np.testing.assert_array_equal(audio.read(files / name, sample_rate=rate)[0], (expected[:, 0] + expected[:, 1]) / 2)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a24.wav"])
def test_lossless_values_and_stereo_fold(files, name):
    window = audio.read(files / name, sample_rate=RATE, start=1.25, duration=0.5)
    expected = _signal()[55125: 55125 + 22050].mean(1)
    assert window.shape == (1, 22050)
    np.testing.assert_allclose(window[0], expected, atol=4e-5)  # 16 bits: half a step is 1.5e-5 a channel


@pytest.mark.parametrize("name", ["a.mp3", "a.ogg", "a.m4a"])
def test_lossy_files_are_in_time(files, name):
    """Cross-correlation with the original: no delay beyond one mp3 frame."""
    decoded, original = audio.read(files / name, sample_rate=RATE)[0].numpy(), _signal().mean(1)
    piece = decoded[60000:80000]
    lags = range(-1200, 1201)
    best = max(lags, key=lambda lag: float(piece @ original[60000 + lag: 80000 + lag]))
    assert abs(best) <= (1152 if name.endswith("mp3") else 1)


@pytest.mark.parametrize("source, target", [(44100, 32000), (48000, 16000), (8000, 32000), (22050, 48000), (96000, 44100),
                                            (192000, 8000), (11025, 32000), (44100, 100)])
def test_resampler_equals_torchaudio(tmp_path, source, target):
    signal = _signal(2, source)[:, :1]
    soundfile.write(tmp_path / "x.wav", signal, source, subtype="FLOAT")
    expected = torchaudio.functional.resample(torch.from_numpy(signal.T.astype(np.float64)), source, target).float()
    torch.testing.assert_close(audio.read(tmp_path / "x.wav", sample_rate=target), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("source, target", [(22254, 32000), (11127, 32000), (44100, 44099), (50, 48000)])
def test_resampler_at_odd_rates(tmp_path, source, target):
    """Against the written-out sum, at single outputs: torchaudio's table for such rates takes gigabytes."""
    signal = np.random.default_rng(0).standard_normal((source * 2 + 5, 2)).astype(np.float32) / 4
    soundfile.write(tmp_path / "x.wav", signal, source, subtype="FLOAT")
    result = audio.read(tmp_path / "x.wav", sample_rate=target, mono=False)
    assert result.shape == (2, -(-len(signal) * target // source))
    inputs, cutoff = np.arange(len(signal)) / source, 0.99 * min(source, target)
    for output in (*range(5), *range(target - 3, target + 40), *range(result.shape[1] - 5, result.shape[1])):
        t = np.clip((inputs - output / target) * cutoff, -6, 6)
        expected = (np.sinc(t) * np.cos(np.pi * t / 12) ** 2 * cutoff / source) @ signal.astype(np.float64)
        np.testing.assert_allclose(result[:, output], expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_channels_fold_to_their_mean(tmp_path, count):
    signal = np.random.default_rng(count).uniform(-1, 1, (1000, count)).astype(np.float32)
    soundfile.write(tmp_path / "x.wav", signal, 8000, subtype="FLOAT")
    np.testing.assert_allclose(audio.read(tmp_path / "x.wav", sample_rate=None), signal.mean(1)[None], atol=2e-7)


@pytest.mark.parametrize("name", ["x.wav", "x.flac", "x.ogg", "x.mp3", "x.m4a"])
def test_a_tenth_of_a_second(tmp_path, name):
    signal = _signal(1)[:RATE // 10]
    _encode(tmp_path / name, signal, "aac") if name == "x.m4a" else soundfile.write(tmp_path / name, signal, RATE)
    full = audio.read(tmp_path / name, sample_rate=32000)
    assert 3200 <= full.shape[1] <= 3200 + 1024 * 32000 // RATE  # AAC has whole frames
    window = audio.read(tmp_path / name, sample_rate=32000, start=0.07, duration=10)
    torch.testing.assert_close(window, full[:, 2240:], atol=1e-6, rtol=0)


def test_content_decides_not_the_name(files, tmp_path):
    for source, name in (("a.wav", "w.mp3"), ("a.flac", "f.wav"), ("a.m4a", "m.wav"), ("a.wav", "w.raw"), ("a.mp3", "noending")):
        shutil.copy(files / source, tmp_path / name)
        assert torch.equal(audio.read(tmp_path / name, sample_rate=16000), audio.read(files / source, sample_rate=16000))


def test_names_that_look_like_options_or_protocols(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("-", "-i.wav", "http:x.wav", "\"double\".wav", "naïve Ã© 'quotes' <script>.wav"):
        shutil.copy(files / "a.wav", tmp_path / name)
        assert audio.read(name, sample_rate=8000, duration=0.5).shape == (1, 4000)
    shutil.copy(files / "a.m4a", "concat:x.m4a")
    assert audio.probe("concat:x.m4a").codec == "mov/aac"


def test_names_that_are_not_unicode(files, tmp_path, monkeypatch):
    """Bytes of another encoding (Latin-1, Shift-JIS), which Python spells with lone surrogates."""
    monkeypatch.setattr(audio, "SEEK_FROM", 2.0)  # FFmpeg opens some files twice
    for source in ("a.wav", "a.m4a"):
        name = tmp_path / os.fsdecode(b"caf\xe9 \x93\xfa\x96{" + source.encode())
        try:
            shutil.copy(files / source, name)
        except (OSError, UnicodeError):
            pytest.skip("this file system takes only Unicode names")
        assert torch.equal(audio.read(name, sample_rate=8000, start=5, duration=1),
                           audio.read(files / source, sample_rate=8000, start=5, duration=1))
        assert audio.probe(name) == audio.probe(files / source)
        name.write_bytes(b"no sound, only text\n" * 500)
        with pytest.raises(audio.AudioError, match="decoded"):
            audio.read(name, sample_rate=8000)


def test_probe(files):
    assert audio.probe(files / "a24.wav") == audio.AudioInfo(len(_signal()) / RATE, RATE, 2, "wav/pcm_24")
    for name, codec in (("a.mp3", "mp3/mpeg_layer_iii"), ("a.ogg", "ogg/vorbis"), ("a.m4a", "mov/aac")):
        info = audio.probe(files / name)
        assert (info.sample_rate, info.channels, info.codec) == (RATE, 2, codec)
        assert info.duration == pytest.approx(SECONDS, abs=0.05)


def test_blocks_are_the_full_decode(files):
    for name in ("a.flac", "a.m4a"):
        full = audio.read(files / name, sample_rate=None, mono=False)
        np.testing.assert_array_equal(np.concatenate(list(audio.blocks(files / name))).T, full)


def test_past_the_end_is_short_not_padded(files):
    assert audio.read(files / "a.wav", sample_rate=RATE, start=SECONDS - 0.5, duration=5).shape == (1, RATE // 2 + 123)
    assert audio.read(files / "a.wav", sample_rate=32000, start=1e6, duration=5).shape == (1, 0)
    assert audio.read(files / "a.wav", sample_rate=32000, duration=0).shape == (1, 0)
    for name in ("a.mp3", "a.m4a", "a.ogg"):
        assert audio.read(files / name, sample_rate=32000, start=1e6, duration=5, mono=False).shape == (2, 0)
        rest = audio.read(files / name, sample_rate=32000, start=SECONDS - 0.5, duration=5)
        assert rest.shape[1] == pytest.approx(16000, abs=2000)


@pytest.mark.parametrize("content, words", [(None, "does not exist"), (b"", "empty"), (b"no sound, only text\n" * 500, "decoded")])
def test_refused_files_are_named(tmp_path, content, words):
    file = tmp_path / "bad.wav"
    if content is not None:
        file.write_bytes(content)
    for call in (lambda: audio.read(file, sample_rate=32000), lambda: audio.probe(file), lambda: list(audio.blocks(file))):
        with pytest.raises(audio.AudioError, match=words) as error:
            call()
        assert "bad.wav" in str(error.value)
    with pytest.raises(audio.AudioError, match="folder"):
        audio.read(tmp_path, sample_rate=32000)


def test_video_without_sound_is_refused(tmp_path):
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    with pytest.raises(audio.AudioError, match="no audio stream"):
        audio.read(tmp_path / "v.mp4", sample_rate=32000)


@pytest.mark.parametrize("wrong", [{"start": -1}, {"duration": -0.1}, {"start": float("nan")}, {"sample_rate": 0}])
def test_arguments_out_of_range(files, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        audio.read(files / "a.wav", **{"sample_rate": 8000, **wrong})


@pytest.mark.skipif(not (SHARED / "esc10").is_dir(), reason="the real ESC-10 clips are not here")
def test_real_ogg_is_sample_exact_to_its_end():
    """libsndfile alone seeks to a wrong sample near the end of these files (its issue 885)."""
    for name in ("1-32318-A-0", "2-116400-A-0", "2-141584-A-38"):
        file = SHARED / f"esc10/audio/{name}.ogg"
        full = audio.read(file, sample_rate=None)
        for first in range(150001, full.shape[1], 7001):
            assert torch.equal(audio.read(file, sample_rate=None, start=first / 44100), full[:, first:])


@pytest.mark.skipif(not (SHARED / "media").is_dir(), reason="the real media files are not here")
def test_real_media():
    for file in sorted((SHARED / "media").iterdir()):
        full = audio.read(file, sample_rate=32000)
        window = audio.read(file, sample_rate=32000, start=3.21, duration=2)
        torch.testing.assert_close(window, full[:, 102720: 102720 + 64000], atol=1e-6, rtol=0)
