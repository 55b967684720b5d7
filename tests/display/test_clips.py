"""Players: what is heard is what went in, at its own level, and nothing from outside gets into the page as markup."""
from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from lib.data import scene_video, scenes
from lib.data.manifest import Manifest
from lib.display import clips


def tone(sample_rate: int = 16000, seconds: float = 1.0, amplitude: float = 0.5, frequency: float = 440.0, channels: int = 1):
    time = np.arange(int(sample_rate * seconds)) / sample_rate
    return np.stack([amplitude * np.sin(2 * np.pi * frequency * (c + 1) * time) for c in range(channels)]).astype(np.float32)


def decode(source: str) -> tuple[np.ndarray, int]:
    head, data = source.split(",", 1)
    assert head == "data:audio/ogg;base64"
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data)), always_2d=True, dtype="float32")
    return samples.T, rate


def heard(waveform, sample_rate: int) -> tuple[np.ndarray, int]:
    """What the player of a clip plays."""
    return decode(Page(clips.player(waveform, sample_rate).html).sources()[0])


class Page(HTMLParser):
    """Tags with their attributes, and the text, as a browser would see them."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def sources(self) -> list[str]:
        return [attributes["src"] for tag, attributes in self.tags if tag == "audio"]


@pytest.mark.parametrize("sample_rate", [8000, 11025, 16000, 22050, 32000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_player_holds_the_waveform_at_its_own_level(sample_rate, channels):
    waveform = tone(sample_rate, 1.013, channels=channels)
    page = Page(clips.player(waveform, sample_rate)._repr_html_())
    heard, rate = decode(page.sources()[0])
    assert rate == sample_rate and heard.shape == waveform.shape
    for before, after in zip(waveform, heard):
        assert np.corrcoef(before, after)[0, 1] > 0.99
        assert abs(20 * np.log10(after.std() / before.std())) < 0.5


def test_the_gain_is_fixed():
    loud, quiet = (heard(tone(amplitude=a), 16000)[0] for a in (0.8, 0.4))
    assert loud.std() / quiet.std() == pytest.approx(2, rel=0.02)
    assert quiet.std() == pytest.approx(0.4 / np.sqrt(2), rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_torch_and_numpy_sound_alike(dtype):
    waveform = tone()
    mine, _ = heard(torch.tensor(waveform, dtype=dtype, requires_grad=True), 16000)
    reference, _ = heard(waveform[0].astype(np.float64), 16000)
    # The codec amplifies bfloat16's rounding into different code words, so samples agree as sound, not one by one.
    assert np.corrcoef(mine[0], reference[0])[0, 1] > 0.999 and mine.std() == pytest.approx(reference.std(), rel=0.01)


@pytest.mark.parametrize("samples", [1, 100, 70_001, 500_000])
def test_every_length_is_kept_and_written_in_blocks(samples, monkeypatch):
    write, blocks = soundfile.SoundFile.write, []
    monkeypatch.setattr(soundfile.SoundFile, "write", lambda file, data: (blocks.append(len(data)), write(file, data)))
    assert heard(np.full(samples, 0.1, np.float32), 48000)[0].shape == (1, samples)
    assert sum(blocks) == samples and max(blocks) <= 65_536, "libsndfile crashes the process when a long clip comes at once"


def test_clipping_and_silence_are_said_and_level_is_shown():
    loud = clips.player(tone(amplitude=2.0), 16000)
    assert "clipped" in Page(loud.html).text
    assert np.abs(decode(Page(loud.html).sources()[0])[0]).max() < 1.2  # cut, not scaled; Vorbis rings a little
    assert "silent" in Page(clips.player(np.zeros((2, 800)), 16000).html).text
    text = Page(clips.player(tone(amplitude=0.5), 16000).html).text
    assert "clipped" not in text and "silent" not in text and "peak -6.0 dBFS" in text and "1.00 s" in text


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_give_a_box_and_no_player(value, tmp_path):
    waveform = tone(channels=2)
    waveform[1, 7] = value
    page = Page(clips.player(waveform, 16000, caption="model output", thumbnail=True).html)
    assert page.sources() == [] and "1 of 32000 samples are NaN or infinite" in page.text and "model output" in page.text
    entry = clips.listen_entry(dict(waveform=waveform, sample_rate=16000, caption="model output", score=float("nan")), tmp_path)
    assert entry["audio"] == "" and entry["caption"].startswith("Not playable") and entry["score"] is None
    assert "no samples" in Page(clips.player(np.zeros((1, 0)), 16000).html).text


@pytest.mark.parametrize("waveform, message", [
    (np.zeros((16000, 2)), r"\(time, channels\).*waveform\.T"),
    (np.zeros((16000, 1)), r"\(time, channels\).*waveform\.T"),
    (np.zeros((5, 2)), r"\(time, channels\)"),
    (np.zeros((4, 16000)), "ambisonics.*lib.audio.ambisonics.stereo"),
    (np.zeros((3, 16000)), "3 channels"),
    (np.zeros((2, 1, 16000)), r"batch\[0\]"),
])
def test_shapes_that_cannot_be_played_are_refused(waveform, message):
    with pytest.raises(ValueError, match=message):
        clips.player(waveform, 16000)


def test_types_and_rates_that_cannot_be_played_are_refused():
    with pytest.raises(TypeError, match="int16.*32768"):
        clips.player(np.zeros(100, np.int16), 16000)
    for rate in (0, 100, 16000.5, 250_000):
        with pytest.raises(ValueError, match="sample_rate"):
            clips.player(np.zeros(100), rate)
    with pytest.raises(ValueError) as error:
        clips.gallery([dict(waveform=tone(), sample_rate=16000), dict(waveform=tone().T, sample_rate=16000, title="bad one")])
    assert "clip number 1" in error.value.__notes__[0] and "bad one" in error.value.__notes__[0]


def test_text_from_outside_stays_text():
    evil = """</div><script>alert("1")</script><img src=x onerror='alert(2)'> " onload="alert(3)" ' & """
    html = clips.player(tone(), 16000, title=evil, caption=[evil, evil], score=0.5, rank=1, hit=True).html
    page, plain = Page(html), Page(clips.player(tone(), 16000, title="x", caption=["x", "x"], score=0.5, rank=1, hit=True).html)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    assert page.text.count("<script>") == 3 and "script" not in {tag for tag, _ in page.tags}
    assert not re.search(r"https?://", html), "nothing may come from a network"


def test_caption_score_rank_and_ground_truth_are_shown():
    html = clips.player(tone(), 16000, title="dog.wav", caption="a dog", score=0.71349, rank=3, hit=True).html
    text = Page(html).text
    assert all(part in text for part in ("dog.wav", "a dog", "0.713", "#3", "ground truth")) and "clip-card clip-hit" in html
    assert "ground truth" not in Page(clips.player(tone(), 16000, hit=False).html).text


def test_beyond_the_byte_budget_clips_are_files(tmp_path):
    items = [dict(waveform=tone(frequency=200 + 100 * i), sample_rate=16000, title=f"-{i}\"<") for i in range(4)]
    everything = clips.gallery(items)
    size = everything.embedded_bytes // 4
    folder = tmp_path / 'a "folder" & #1?50%25'
    shown = clips.gallery(items, byte_budget=2 * size + 400, folder=folder)
    sources = Page(shown.html).sources()
    assert [s.startswith("data:") for s in sources] == [True, True, False, False]
    assert shown.embedded_bytes <= 2 * size + 400 and len(shown.linked) == 2 == len(list(folder.iterdir()))
    for source, path, item in zip(sources[2:], shown.linked, items[2:]):
        assert (tmp_path / unquote(source)) == path, "the link is relative to the page beside the folder"
        heard, rate = soundfile.read(path, dtype="float32")
        assert rate == 16000 and np.corrcoef(heard, item["waveform"][0])[0, 1] > 0.99
    again = clips.gallery(items, byte_budget=2 * size + 400, folder=folder, link_prefix="../sounds")
    assert again.linked == shown.linked and Page(again.html).sources()[2].startswith("../sounds/")
    assert Page(clips.gallery(items, byte_budget=0).html).text.count("Not embedded") == 4


def test_a_gallery_reads_a_generator_and_makes_columns():
    shown = clips.gallery((dict(waveform=tone(), sample_rate=16000) for _ in range(3)), columns=2)
    assert shown.players == 3 and "repeat(2," in shown.html and "3 clip(s)" in repr(shown)
    with pytest.raises(ValueError, match="columns"):
        clips.gallery([], columns=0)


@pytest.mark.parametrize("samples, sample_rate", [(1, 8000), (300, 16000), (48000, 48000)])
def test_thumbnail_is_a_png_with_a_fixed_scale(samples, sample_rate):
    from matplotlib.image import imread

    def brightness(amplitude):
        html = clips.player(amplitude * np.ones(samples), sample_rate, thumbnail=True).html
        picture = imread(io.BytesIO(base64.b64decode(re.search(r'src="data:image/png;base64,([^"]+)', html)[1])))
        assert picture.shape[:2] == (48, 240)
        return picture[..., :3].mean()

    assert brightness(0.0) < 0.01 <= brightness(0.9) and brightness(0.009) < brightness(0.9)


def test_listen_entry_is_plain_data_and_repeatable(tmp_path):
    item = dict(waveform=tone(), sample_rate=16000, title="<b>", caption="a & b", score=np.float32(0.5))
    entry, again = (clips.listen_entry(item, tmp_path) for _ in range(2))
    assert entry == again, "Ogg files differ from run to run; results must not"
    assert {k: v for k, v in entry.items() if k != "audio"} == {"title": "<b>", "caption": "a & b", "score": 0.5}
    assert type(entry["score"]) is float and soundfile.info(tmp_path / entry["audio"]).samplerate == 16000


def test_a_clip_of_a_manifest_is_an_item(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(32000, 3.0)[0], 32000, subtype="FLOAT")
    manifest = Manifest(pd.DataFrame([{"clip_id": "a", "path": "a.wav", "start": 0.5, "duration": 2.0, "split": "test", "captions": ["one", "two"],
                                       "labels": ["x", "y"]}]), "m", tmp_path, {})
    item = clips.clip(manifest, 0, seconds=1.5, rank=2)
    assert (item["title"], item["caption"], item["rank"], item["waveform"].shape) == ("x, y", ["one", "two"], 2, (1, 48000))
    np.testing.assert_allclose(item["waveform"][0], tone(32000, 3.0)[0][16000:64000], atol=1e-6)
    assert "one<br>two" in clips.gallery([item]).html


def test_ambisonics_are_heard_in_stereo_and_videos_are_seen(tmp_path):
    left = np.stack([tone()[0], tone()[0], np.zeros(16000), np.zeros(16000)])        # W = Y: from the left
    soundfile.write(tmp_path / "foa.wav", left.T, 16000, subtype="FLOAT")
    row = {"clip_id": "a", "path": "foa.wav", "start": 0.0, "duration": 1.0, "split": "test", "captions": ["from the left"], "labels": ["x"]}
    item = clips.clip(Manifest(pd.DataFrame([row]), "toy", tmp_path, {"channels": 4}), 0, sample_rate=16000)
    assert item["waveform"].shape == (2, 16000) and item["waveform"][0].abs().max() > 0.4 and item["waveform"][1].abs().max() < 1e-6

    scene = scenes.sample_scene(0, "test", 0, 3.0)
    scene_video.write(scene, scenes.render(scene), tmp_path / "a.mp4")
    film = pd.DataFrame([row | {"path": "a.mp4", "video": "a.mp4", "duration": 3.0}])
    item = clips.clip(Manifest(film, "toy", tmp_path), 0)
    html = clips.gallery([item, item], byte_budget=len(base64.b64encode((tmp_path / "a.mp4").read_bytes())) + 100, folder=tmp_path / "linked").html
    [embedded] = re.findall(r'<video controls[^>]* src="data:video/mp4;base64,([^"]+)"', html)
    assert base64.b64decode(embedded) == (tmp_path / "a.mp4").read_bytes()
    assert len(re.findall(r'<video controls[^>]* src="linked/[0-9a-f]{16}\.mp4"', html)) == 1 and "<audio" not in html
    assert clips.listen_entry(item, tmp_path)["audio"].endswith(".mp4")
