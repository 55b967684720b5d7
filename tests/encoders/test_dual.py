"""The dual encoder's checkpoint folder, its text side and its numerics."""
import json

import pytest
import torch
from transformers import RobertaConfig, RobertaModel

from lib import encoders
from lib.encoders import weights
from lib.encoders.dual import DualEncoder, unit
from lib.encoders.passt import PasstConfig, PasstEncoder
from lib.encoders.text import RobertaText, TextConfig, normalise, train_tokenizer

CAPTIONS = [f"A {what} {how}, then rain falls." for what in ("dog", "bird", "café door") for how in ("barks", "sings twice", "creaks")]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return DualEncoder(PasstEncoder(PasstConfig(size="tiny", segment_seconds=2.0)),
                       RobertaText.from_scratch(TextConfig(size="tiny"), CAPTIONS), dim=16).eval()


def test_round_trip(model, tmp_path):
    wave, durations = torch.randn(2, 64000), torch.tensor([1.0, 2.0])
    again = encoders.load(model.save_pretrained(tmp_path / "model"))
    assert torch.equal(again.embed_audio(wave, durations), model.embed_audio(wave, durations))
    assert torch.equal(again.embed_text(CAPTIONS), model.embed_text(CAPTIONS))
    stored = json.loads((tmp_path / "model" / "config.json").read_text())
    assert stored["audio"]["front_end"]["sample_rate"] == 32000 and stored["text"]["max_tokens"] == 32
    assert sorted(p.suffix for p in (tmp_path / "model").iterdir()) == [".json", ".json", ".json", ".safetensors"]


def test_unit_vectors_and_zero_rows(model):
    embedded = model.embed_text(CAPTIONS)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(len(CAPTIONS)))
    zero = torch.zeros(2, 4, requires_grad=True)
    unit(zero).sum().backward()
    assert torch.isfinite(zero.grad).all() and torch.equal(unit(zero), torch.zeros(2, 4))
    torch.testing.assert_close(model.logits(embedded, embedded).diagonal(), torch.full((len(CAPTIONS),), 20.0))


def test_loading_names_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no checkpoint"):
        encoders.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clap"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="'clap'"):
        encoders.load(tmp_path)


def test_text_normalisation_and_padding(model):
    assert normalise("A dog's BARK, twice!") == "a dogs bark twice"
    together, alone = model.embed_text(["a dog", CAPTIONS[1] * 3]), model.embed_text(["A DOG!"])
    torch.testing.assert_close(together[0], alone[0], atol=1e-5, rtol=1e-4)


def test_tokenizer_is_a_function_of_the_set_of_captions():
    one, two = train_tokenizer(CAPTIONS), train_tokenizer(CAPTIONS[::-1] + CAPTIONS)
    assert one.get_vocab() == two.get_vocab()
    assert [one.bos_token_id, one.pad_token_id, one.eos_token_id] == [0, 1, 2]
    ids = one("an unheard zither").input_ids
    assert ids[0] == 0 and ids[-1] == 2 and one.unk_token_id not in ids


def test_published_layout_from_a_local_folder(tmp_path):
    """A tiny RoBERTa saved the way hubs publish it, with a pooling layer that is left out."""
    tokenizer = train_tokenizer(CAPTIONS)
    network = RobertaModel(RobertaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                                         intermediate_size=64, max_position_embeddings=40, type_vocab_size=1))
    network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    text = RobertaText.from_published(TextConfig(size="roberta-base"), tmp_path).eval()
    assert text.width == 32 and text.network.pooler is None and text.network.config.hidden_dropout_prob == 0.2
    tokens = tokenizer([normalise(CAPTIONS[0])], return_tensors="pt")
    expected = network.eval()(input_ids=tokens["input_ids"]).last_hidden_state[:, 0]
    torch.testing.assert_close(text(CAPTIONS[:1]), expected, atol=1e-5, rtol=1e-4)


def test_weights_that_are_not_there(monkeypatch):
    with pytest.raises(FileNotFoundError, match="do not exist"):
        weights.resolve("./no/such/folder")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="nobody/nothing.*without a network"):
        weights.resolve("nobody/nothing")
