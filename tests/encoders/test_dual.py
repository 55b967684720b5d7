"""The dual encoder over towers of any kinds: its checkpoint folder, its text side and its numerics."""
import json

import pytest
import torch
from transformers import RobertaConfig, RobertaModel

from lib import encoders
from lib.encoders.clap import ClapAudio, ClapAudioSettings, ClapMelConfig, ClapText, ClapTextSettings
from lib.encoders.dual import DualEncoder, initialise, unit
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


def tower(kind, side):
    """A tiny tower of a kind."""
    if (kind, side) == ("passt", "audio"):
        return PasstEncoder(PasstConfig(size="tiny", segment_seconds=1.0))
    if (kind, side) == ("roberta", "text"):
        return RobertaText.from_scratch(TextConfig(size="tiny", dropout=0.0), CAPTIONS)
    if side == "audio":
        return ClapAudio(ClapAudioSettings(ClapMelConfig(seconds=1.0, mels=8), dict(
            spec_size=32, num_mel_bins=8, depths=[1, 1], num_attention_heads=[1, 2], window_size=2, patch_embeds_hidden_size=8,
            hidden_size=16, num_hidden_layers=2, projection_dim=12, initializer_factor=5.0, hidden_dropout_prob=0.0)))
    tokenizer = train_tokenizer(CAPTIONS)
    return ClapText(ClapTextSettings(20, dict(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                              intermediate_size=32, max_position_embeddings=24, projection_dim=12, initializer_factor=5.0,
                                              hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)), tokenizer)


@pytest.mark.parametrize("audio, text, dim", [("passt", "roberta", 8), ("clap", "clap", 8), ("clap", "clap", None), ("passt", "clap", 8),
                                              ("clap", "roberta", 8)])
def test_any_towers_train_and_come_back(audio, text, dim, tmp_path):
    """Gradients reach both towers, in chunks the same ones; after a step, saved and loaded: the very same numbers."""
    torch.manual_seed(0)
    model = DualEncoder(tower(audio, "audio"), tower(text, "text"), dim=dim, tau=0.5, train_tau=True).train()
    wave, durations = torch.randn(4, 2 * model.audio.sample_rate), torch.tensor([2.0, 0.4, 1.3, 1.0])
    draws, gradients = model.audio.draw(), []
    for chunk in (None, 3):
        model.zero_grad()
        torch.nn.functional.cross_entropy(model.logits(*model(wave, durations, CAPTIONS[:4], draws, chunk)), torch.arange(4)).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-3, msg=name)
    for side in ("audio.", "text.", "tau"):
        assert any(g.abs().max() > 0 for name, g in gradients[0].items() if name.startswith(side)), side
    torch.optim.AdamW(model.parameters(), 1e-2).step()
    model.eval()
    again = encoders.load(model.save_pretrained(tmp_path))
    assert (again.audio.kind, again.text.kind, again.dim, again.tau.requires_grad) == (audio, text, dim, True)
    assert torch.equal(again.embed_audio(wave, durations), model.embed_audio(wave, durations))
    assert torch.equal(again.embed_text(CAPTIONS), model.embed_text(CAPTIONS)) and again.tau == model.tau != 0.5
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(json.dumps(again.config()))


def test_a_checkpoint_of_the_first_version_loads(tmp_path):
    """config.json as it was written when PaSST and RoBERTa were the only towers."""
    captions = ["a dog barks", "a bird sings"]
    model = DualEncoder(PasstEncoder(PasstConfig(size="tiny", segment_seconds=2.0)),
                        RobertaText.from_scratch(TextConfig(size="tiny"), captions), dim=16).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('''{"audio": {"drop_path": 0.0, "front_end": {"fmax": null, "fmax_jitter": 2000, "fmin": 0.0,
        "fmin_jitter": 10, "frequency_mask": 0.1, "frequency_masks": 0, "hop": 320, "mels": 128, "n_fft": 1024, "sample_rate": 32000,
        "time_mask": 0.1, "time_masks": 0, "window": 800}, "kind": "passt", "patchout_frequency": 0.25, "patchout_time": 0.24,
        "segment_seconds": 2.0, "size": "tiny"}, "dim": 16, "model_type": "workbook-dual-encoder", "tau": 0.05000000074505806,
        "text": {"dropout": 0.2, "kind": "roberta", "max_tokens": 32, "network": {"_name_or_path": "", "architectures": null,
        "attention_probs_dropout_prob": 0.2, "bos_token_id": 0, "chunk_size_feed_forward": 0, "dtype": null, "eos_token_id": 2,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.2, "hidden_size": 32, "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
        "initializer_range": 0.1767766952966369, "intermediate_size": 64, "layer_norm_eps": 1e-12, "max_position_embeddings": 34,
        "model_type": "roberta", "num_attention_heads": 2, "num_hidden_layers": 1, "pad_token_id": 1, "transformers_version": "5.23.0",
        "type_vocab_size": 1, "use_cache": true, "vocab_size": 262}, "size": "tiny", "vocabulary": 1000}, "train_tau": false}''')
    again, wave, durations = encoders.load(tmp_path), torch.randn(2, 64000), torch.tensor([1.0, 2.0])
    assert torch.equal(again.embed_audio(wave, durations), model.embed_audio(wave, durations))
    assert torch.equal(again.embed_text(captions), model.embed_text(captions))


def test_without_a_projection_the_widths_must_agree():
    with pytest.raises(ValueError, match=r"audio tower \(passt\) has 64 and the text tower \(clap\) 12"):
        DualEncoder(tower("passt", "audio"), tower("clap", "text"), dim=None)


@pytest.mark.parametrize("take", [False, True])
def test_initialise_takes_the_weights_of_a_checkpoint(model, tmp_path, take):
    """Weights, and the temperature on demand; what is no weight stays the new model's."""
    folder = model.save_pretrained(tmp_path)
    new = DualEncoder(PasstEncoder(PasstConfig(size="tiny", segment_seconds=2.0, patchout_time=0.0)),
                      RobertaText.like(model.text, TextConfig(size="tiny", dropout=0.0)), dim=16, tau=0.2, train_tau=True)
    initialise(new.eval(), folder, tau=take)
    assert torch.equal(new.embed_text(CAPTIONS), model.embed_text(CAPTIONS))
    assert new.tau.item() == pytest.approx(0.05 if take else 0.2) and new.tau.requires_grad and new.audio.config.patchout_time == 0.0


def test_initialise_names_what_differs(model, tmp_path):
    folder = model.save_pretrained(tmp_path)
    before = model.audio_projection.weight.clone()

    def wider(**passt):
        return DualEncoder(PasstEncoder(PasstConfig(size="tiny", **passt)), model.text, dim=16)
    with pytest.raises(ValueError, match=r"model.safetensors does not fit the model in 1 entries, first audio.network.time_new_pos_embed: "
                                         r"\(1, 64, 1, 12\) in the file, \(1, 64, 1, 25\) in the model"):
        initialise(wider(segment_seconds=4.0), folder)
    with pytest.raises(ValueError, match=f"{folder}/model.safetensors.*missing in the"):
        initialise(DualEncoder(tower("clap", "audio"), model.text, dim=16), folder)
    swapped = str.maketrans("dg", "gd")
    other = RobertaText.from_scratch(TextConfig(size="tiny"), [normalise(c).translate(swapped) for c in CAPTIONS])
    assert other.network.config.vocab_size == model.text.network.config.vocab_size
    with pytest.raises(ValueError, match=f"{folder} holds another vocabulary"):
        initialise(DualEncoder(PasstEncoder(model.audio.config), other, dim=16), folder)
    assert torch.equal(model.audio_projection.weight, before)


def test_loading_names_what_is_wrong(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="is no checkpoint"):
        encoders.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="'runs/no/such/run' do not exist"):
        encoders.load("runs/no/such/run")
    model.save_pretrained(tmp_path)
    config, path = json.loads((tmp_path / "config.json").read_text()), tmp_path / "config.json"
    path.write_text(json.dumps(config | {"audio": config["audio"] | {"kind": "panns"}}))
    with pytest.raises(ValueError, match=f"{path} names the audio encoder 'panns', known are passt, clap"):
        encoders.load(tmp_path)
    path.write_text(json.dumps(config | {"dim": 17}))
    with pytest.raises(ValueError, match=r"audio_projection.bias: \(16,\) in the file, \(17,\) in the model"):
        encoders.load(tmp_path)
    path.write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=f"{tmp_path}/model.safetensors cannot be read"):
        encoders.load(tmp_path)
    path.write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="'bert'"):
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
