"""Embeddings that are encoded once: the right rows, read again, gone on with after a stop, bad clips counted."""
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from torch import nn

from lib.data.manifest import Manifest
from lib.encoders import store as stores
from lib.encoders.store import encode_clips, encode_texts, store

RATE = 8000


class Counting(nn.Module):
    """A model whose vectors say which samples and letters it got, and which counts its calls."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.audio = self
        self.sample_rate, self.clips, self.texts = RATE, 0, 0

    def embed_audio(self, waveform, durations):
        self.clips += len(waveform)
        return torch.stack([waveform.mean(dim=1), durations.to(waveform), waveform[:, 0]], dim=1) * self.scale

    def embed_text(self, texts):
        self.texts += len(texts)
        return torch.tensor([[len(t), ord(t[0]), 1] for t in texts], dtype=torch.float32)


@pytest.fixture
def manifest(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "data"))
    rows = []
    for i in range(11):
        soundfile.write(tmp_path / f"{i}.wav", np.full(RATE * (1 + i % 2), i / 20, np.float32), RATE, subtype="FLOAT")
        rows.append({"clip_id": f"c{i}", "path": f"{i}.wav", "start": 0.0, "duration": 1.0 + i % 2, "split": "train",
                     "captions": [f"{'abc'[i % 3]} sound {i}"], "labels": []})
    return Manifest(pd.DataFrame(rows), "steps", tmp_path, {})


def kept(model, manifest, texts=("one", "two", "one"), **changes):
    return store(lambda: model, manifest, texts, "digest", **{"seconds": 2.0, "batch_size": 4} | changes)


def test_rows_are_the_clips_and_texts_and_are_read_the_second_time(manifest):
    model = Counting()
    one = kept(model, manifest)
    assert (model.clips, model.texts) == (11, 2)
    expected = torch.cat([rows for rows, _ in encode_clips(Counting(), manifest, seconds=2.0, batch_size=11)])
    np.testing.assert_array_equal(one.audio, expected.numpy())
    np.testing.assert_allclose(one.audio[:, 2], np.arange(11) / 20, atol=1e-6)
    assert one.text[one.texts["two"]].tolist() == [3, ord("t"), 1] and one.unreadable == {}
    two = kept(model, manifest, ["two", "one"])
    assert (model.clips, model.texts) == (11, 2) and two.folder == one.folder
    assert isinstance(two.audio, np.memmap)


@pytest.mark.parametrize("change", ["weights", "seconds", "texts", "clips"])
def test_what_the_numbers_depend_on_makes_another_store(manifest, change):
    first = kept(Counting(), manifest).folder
    other = {"weights": lambda: store(Counting, manifest, ["one", "two"], "another", seconds=2.0, batch_size=4),
             "seconds": lambda: kept(Counting(), manifest, seconds=1.0), "texts": lambda: kept(Counting(), manifest, ["one"]),
             "clips": lambda: kept(Counting(), manifest.select(rows=np.arange(10)))}[change]()
    assert other.folder != first


def test_a_stopped_store_goes_on_where_it_was(manifest, monkeypatch):
    monkeypatch.setattr(stores, "SAVED_EVERY", 0)
    whole = Counting()
    expected = np.array(kept(whole, manifest, seconds=1.5).audio)

    class Stopped(Counting):
        def embed_audio(self, waveform, durations):
            if self.clips == 8:
                raise KeyboardInterrupt
            return super().embed_audio(waveform, durations)
    with pytest.raises(KeyboardInterrupt):
        kept(Stopped(), manifest)
    rest = Counting()
    found = kept(rest, manifest)
    assert rest.clips == 3, "eight clips were done"
    np.testing.assert_array_equal(found.audio, kept(Counting(), manifest).audio)
    assert found.audio.shape == expected.shape


def test_unreadable_clips_are_counted_and_the_others_stay_in_place(manifest):
    (manifest.root / "6.wav").write_bytes(b"no sound")
    found = kept(Counting(), manifest)
    assert list(found.unreadable) == ["c6"] and "6.wav" in found.unreadable["c6"]
    np.testing.assert_allclose(np.delete(found.audio[:, 2], 6), np.delete(np.arange(11) / 20, 6), atol=1e-6)


def test_a_text_is_encoded_once():
    model = Counting()
    rows = encode_texts(model, ["bb", "a", "bb", "ccc"])
    assert model.texts == 3 and rows[:, 0].tolist() == [2, 1, 2, 3]
