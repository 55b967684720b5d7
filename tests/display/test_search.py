"""Search: ranks as the evaluation counts them, a panel that answers in words, and nothing from outside that becomes markup."""
from __future__ import annotations

import datetime
import struct
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from lib.data.manifest import Manifest
from lib.display import search
from lib.encoders.dual import DualEncoder
from lib.evaluation.retrieval import query_metrics
from lib.families import retrieval
from lib.families.retrieval import Retrieval, RetrievalConfig, embed

RATE, KINDS = 32000, ["a low hum", "a <script>alert('middle')</script> \"tone\"", "a high whistle"]
TINY = dict(audio_size="tiny", text_size="tiny", clip_seconds=1.0, segment_seconds=1.0, embedding_dim=16, batch_size=8, epochs=2,
            warmup_epochs=0.5, decay_epochs=1.5, threads=1, device="cpu", every_caption=False)
PLAY = ("audio", "video")


class Page(HTMLParser):
    """Tags with their attributes, and the text, as a browser would see them."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.text, self.style = [], "", False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.style = tag == "style"

    def handle_data(self, data):
        self.text += "" if self.style else data

    def sources(self) -> list[str]:
        return [attributes["src"] for tag, attributes in self.tags if tag in PLAY]


def tone(i: int, seconds: float = 1.0) -> np.ndarray:
    rng, time = np.random.default_rng(i), np.arange(int(RATE * seconds)) / RATE
    wave = 0.2 * np.sin(2 * np.pi * [150, 900, 4000][i % 3] * rng.uniform(0.9, 1.1) * time) + 0.01 * rng.normal(size=len(time))
    return wave.astype(np.float32)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """Twelve tones of three kinds; every clip has a caption of its kind and one of its own."""
    folder, rows = tmp_path_factory.mktemp("tones"), []
    for i in range(12):
        name = "-it's \"loud\" <b>.wav" if i == 0 else f"{i}.wav"
        soundfile.write(folder / name, tone(i), RATE)
        rows.append({"clip_id": f"c{i:02d}", "path": name, "start": 0.0, "duration": 1.0, "split": "test",
                     "captions": [KINDS[i % 3], f"Sound number {i}."], "labels": [KINDS[i % 3]]})
    return Manifest(pd.DataFrame(rows), "tones", folder, {"classes": KINDS})


@pytest.fixture(scope="module")
def folders(gallery, tmp_path_factory):
    """Two checkpoints with random weights."""
    made = []
    for seed in (1, 2):
        made.append(tmp_path_factory.mktemp("model"))
        Retrieval(RetrievalConfig(**TINY, seed=seed), Manifest(gallery.table.assign(split="train"), "tones", gallery.root, gallery.info)).save(made[-1])
    return made


@pytest.fixture(scope="module")
def searcher(folders, gallery):
    return search.Searcher(folders[0], gallery, name="first")


def test_scores_and_ranks_are_those_of_the_evaluation(searcher, folders, gallery):
    model, config = retrieval.load(folders[0])
    whole = embed(model, gallery, config)
    for q, query in enumerate(whole.queries):
        answer = searcher.find(query)
        scores = whole.similarity[q]
        np.testing.assert_allclose(answer.scores, scores.numpy(), atol=1e-6)
        assert list(answer.order) == sorted(range(len(gallery)), key=lambda i: (-answer.scores[i], i in answer.right))
        same = torch.tensor([query in captions for captions in gallery.table["captions"]])
        assert answer.right == tuple(same.nonzero().flatten().tolist()) and len(answer.right) == (4 if query in KINDS else 1)
        assert answer.rank == query_metrics(torch.from_numpy(answer.scores)[None], same[None])["rank"][0]
        assert f"rank {answer.rank} of 12" in answer.verdict()


def test_case_and_punctuation_do_not_make_another_caption(searcher):
    assert searcher.find("  sound NUMBER 7 ").right == (7,)
    unknown = searcher.find("a dog barks")
    assert unknown.right == () and unknown.rank is None and "None of these 12 clips" in unknown.verdict()


def test_ties_count_against_the_model(gallery):
    answer = search.Answer("q", "m", gallery, np.array([0.5] * 3 + [0.1] * 9, dtype=np.float32), right=(0, 5))
    assert answer.rank == 3 and set(answer.order[:2]) == {1, 2}


def test_a_random_clip_stands_beside_the_best(gallery):
    scores = np.linspace(-0.5, 0.6, 12).astype(np.float32)
    text = search.Answer("q", "m", gallery, scores).chance()
    assert f"scores 0.600; a random clip {scores.mean():.3f} ± {scores.std():.3f}" in text and f"{(0.6 - scores.mean()) / scores.std():.1f} spreads" in text
    assert "spreads lower" not in search.Answer("q", "m", gallery, np.ones(12, dtype=np.float32)).chance()


def test_a_clip_of_the_gallery_finds_itself(searcher, gallery):
    entry = gallery.row(0)
    answer = searcher.find_like(gallery.file(0), captions=entry["captions"])
    assert answer.order[0] == 0 and answer.scores[0] == pytest.approx(1, abs=1e-5) and answer.right == (0, 3, 6, 9) and answer.rank == 1
    assert answer.note == ""
    nearest = (searcher.text @ searcher.audio[0]).max().item()
    caption, score = answer.captions[0]
    assert len(answer.captions) == search.NEAREST and score == pytest.approx(nearest, abs=1e-5)
    assert (searcher.text[searcher.texts[caption]] @ searcher.audio[0]).item() == pytest.approx(nearest, abs=1e-5)


def test_short_and_long_recordings(searcher, tmp_path):
    soundfile.write(tmp_path / "long.wav", tone(0, 2.5), RATE)
    soundfile.write(tmp_path / "short.wav", tone(0, 0.4), RATE)
    long, short = searcher.find_like(tmp_path / "long.wav"), searcher.find_like(tmp_path / "short.wav")
    assert "first 1.0 of 2.5 s" in long.note and short.note == "" and "No caption of this recording" in short.verdict()
    with torch.inference_mode():
        wave = torch.nn.functional.pad(torch.from_numpy(soundfile.read(tmp_path / "short.wav", dtype="float32")[0]), (0, RATE - int(0.4 * RATE)))
        vector = searcher.model.embed_audio(wave[None], torch.tensor([0.4]))[0]
    np.testing.assert_allclose(short.scores, (searcher.audio @ vector).numpy(), atol=1e-5)


def test_the_gallery_is_encoded_once(searcher, folders, gallery, monkeypatch):
    def refuse(*_):
        raise AssertionError("encoded again")
    monkeypatch.setattr(DualEncoder, "embed_audio", refuse)
    again = search.Searcher(folders[0], gallery)
    assert torch.equal(again.audio, searcher.audio) and again.find("a low hum").rank == searcher.find("a low hum").rank


def test_clips_that_cannot_be_decoded_are_left_out_and_named(folders, gallery, tmp_path):
    for i in range(12):
        (tmp_path / gallery.row(i)["path"]).write_bytes(b"broken" if i == 3 else gallery.file(i).read_bytes())
    found = search.Searcher(folders[0], Manifest(gallery.table, "damaged tones", tmp_path, gallery.info))
    assert list(found.unreadable) == ["c03"] and len(found.gallery) == 11 and "c03" not in set(found.gallery.table["clip_id"])
    assert found.find("sound number 4").right == (3,)
    with pytest.raises(ValueError, match="0 clips of 'tones' and no caption"):
        search.Searcher(folders[0], gallery.select("val"))


def test_page_shows_players_and_the_right_clip(searcher):
    answer = searcher.find("Sound number 5.")
    for shown in (1, 5):
        page = search.page([answer], shown=shown)
        html = Page(page.html)
        expected = shown + (answer.rank > shown)
        assert page.players == len(html.sources()) == expected and all(source.startswith("data:audio/ogg") for source in html.sources())
        assert "ground truth" in html.text and answer.verdict() in html.text and answer.chance() in html.text
        pictures = [a for tag, a in html.tags if tag == "img"]
        assert len(pictures) == expected and [f"#{r}" in html.text for r in range(1, shown + 1)] == [True] * shown
    assert "Sound number 5." in Page(search.page([answer], shown=12).html).text


def test_files_are_written_once_however_often_a_clip_is_found(searcher, tmp_path):
    pages = [search.page([searcher.find(query)], shown=12, byte_budget=0, folder=tmp_path / "clips") for query in ("a low hum", "wind")]
    assert len(list((tmp_path / "clips").iterdir())) == 12 and {f for page in pages for f in page.linked} == set((tmp_path / "clips").iterdir())
    for page in pages:
        assert "data:audio" not in page.html and all((tmp_path / source).is_file() for source in Page(page.html).sources())


def test_nothing_from_outside_becomes_markup(searcher, folders, gallery, tmp_path):
    hostile = "\"><script>alert(1)</script><img src=x onerror=alert(2)> 'q'"
    file = tmp_path / "it's \"<script>alert(3)<.wav"
    soundfile.write(file, tone(1), RATE)
    second = search.Searcher(folders[1], gallery, name="<script>alert(4)</script>")
    both = [searcher, second]
    text = search.page([each.find(hostile) for each in both], shown=12)
    sound = search.page([each.find_like(file, captions=[hostile]) for each in both], shown=12)
    for page in (text, sound):
        html = Page(page.html)
        assert not [tag for tag, attributes in html.tags if tag == "script" or any(name.startswith("on") for name in attributes)]
        assert all(attributes["src"].startswith("data:image/png;base64,") for tag, attributes in html.tags if tag == "img")
        assert hostile in html.text and KINDS[1] in html.text and "<script>alert(4)</script>" in html.text
    assert text.players == 24 and sound.players == 25 and file.name in Page(sound.html).text


def upload(panel: search.SearchPanel, name: str, content: bytes) -> str:
    """What the panel shows after a file was chosen, as the browser hands it over."""
    panel.upload.value = ({"name": name, "type": "audio/wav", "size": len(content), "content": memoryview(content),
                           "last_modified": datetime.datetime.now(datetime.timezone.utc)},)
    assert panel.upload.value == () and not panel.button.disabled
    return panel.answer.value


def test_panel_searches_by_button_enter_and_upload(searcher, folders, gallery):
    panel = search.SearchPanel(searcher, search.Searcher(folders[1], gallery, name="second"), shown=3)
    panel.text.value = "a dog barks"
    assert panel.answer.value == ""                      # typing alone does nothing
    panel.button.click()
    first = Page(panel.answer.value)
    assert len(first.sources()) == 6 and "first " in first.text and "second " in first.text and "a dog barks" in first.text
    panel.text.value, panel.shown.value = "wind", 4
    panel.text._handle_msg({"content": {"data": {"method": "custom", "content": {"event": "submit"}}}, "buffers": []})
    second = Page(panel.answer.value)
    assert len(second.sources()) == 8 and "wind" in second.text and "a dog barks" not in second.text
    third = Page(upload(panel, "-my \"voice\" <b>.wav", gallery.file(0).read_bytes()))
    assert len(third.sources()) == 9 and "-my \"voice\" <b>.wav" in third.text and "1.000" in third.text
    panel.shown.value = 500
    assert panel.shown.value == search.MOST


def test_a_recorder_that_streams_does_not_know_the_length(searcher, gallery):
    """Browsers and pipes write the wav header first, with the sizes left open."""
    content = bytearray(gallery.file(0).read_bytes())
    at = content.index(b"data") + 4
    for place, value in ((4, 0xFFFFFFFF), (at, 0xFFFFFFFF)):
        content[place:place + 4] = struct.pack("<I", value)
    panel = search.SearchPanel(searcher)
    assert "1.000" in Page(upload(panel, "microphone.wav", bytes(content))).text and "problem\" role" not in panel.answer.value


def wav(samples: np.ndarray, folder) -> bytes:
    soundfile.write(folder / "x.wav", samples, RATE, subtype="FLOAT")
    return (folder / "x.wav").read_bytes()


@pytest.mark.parametrize("name, samples, words", [
    ("noise <i>.wav", None, "noise <i>.wav"), ("quiet.wav", np.zeros(RATE), "quiet.wav is silent; check the microphone"),
    ("nothing.wav", np.zeros(0), "nothing.wav"), ("nan.wav", np.full(RATE, np.nan), "nan.wav holds samples that are no numbers")])
def test_panel_says_in_words_what_is_wrong_with_a_recording(searcher, tmp_path, name, samples, words):
    panel = search.SearchPanel(searcher)
    html = Page(upload(panel, name, b"no audio at all" if samples is None else wav(samples.astype(np.float32), tmp_path)))
    assert words in html.text and "Traceback" not in html.text and "/recording" not in html.text and not html.sources()
    assert [a for _, a in html.tags if a.get("role") == "alert"] and not [tag for tag, _ in html.tags if tag == "i"]


@pytest.mark.parametrize("query", ["", "   ", "?!."])
def test_panel_says_what_to_type(searcher, query):
    panel = search.SearchPanel(searcher)
    panel.text.value = query
    panel.button.click()
    assert "Type what you want to hear" in Page(panel.answer.value).text


def test_panel_says_when_a_clip_has_gone(folders, gallery, tmp_path):
    for i in range(12):
        (tmp_path / gallery.row(i)["path"]).write_bytes(gallery.file(i).read_bytes())
    panel = search.SearchPanel(search.Searcher(folders[0], Manifest(gallery.table, "moved tones", tmp_path, gallery.info)), shown=12)
    (tmp_path / "4.wav").unlink()
    panel.text.value = "wind"
    panel.button.click()
    assert "4.wav" in Page(panel.answer.value).text and not panel.button.disabled
