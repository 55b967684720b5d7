"""The spatial model's text side from published layouts, its temperature, and the folder it is kept in."""
import math

import pytest
import torch
from transformers import ClapModel, RobertaConfig, RobertaModel

from lib.encoders.spatial_dual import SpatialDual, published_text, scratch_text
from lib.encoders.text import train_tokenizer
from tests.tiny_clap import CAPTIONS, publish

AUDIO = {"config": {"size": "tiny", "drop_path": 0.0}, "dim": 32, "events": 2}


def dual(**changes):
    torch.manual_seed(0)
    return SpatialDual(AUDIO, scratch_text("tiny", CAPTIONS, 32, max_tokens=20, dropout=0.0), seconds=2.5, **changes)


def test_roberta_comes_with_its_pooling_layer_and_a_fresh_projection(tmp_path):
    tokenizer = train_tokenizer(CAPTIONS)
    roberta = RobertaModel(RobertaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                                         max_position_embeddings=40, type_vocab_size=1, pad_token_id=tokenizer.pad_token_id)).eval()
    roberta.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    text = published_text(tmp_path, dim=8, max_tokens=20, dropout=0.0).eval()
    tokens = text.tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    pooled = roberta(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
    linear, out = text.network.text_projection.linear1, text.network.text_projection.linear2
    torch.testing.assert_close(text(CAPTIONS), out(linear(pooled).relu()), atol=1e-6, rtol=1e-5)        # width -> D -> D, ReLU
    assert linear.weight.shape == (8, 16) and out.weight.shape == (8, 8)
    (tmp_path / "model.safetensors").unlink()
    RobertaModel(RobertaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)).save_pretrained(tmp_path)
    config = RobertaConfig.from_pretrained(tmp_path)
    config.num_hidden_layers = 3
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="entries are missing"):
        published_text(tmp_path, dim=8, max_tokens=20)


def test_clap_s_text_tower_brings_its_projection(tmp_path):
    clap: ClapModel = publish(tmp_path)
    text = published_text(tmp_path, dim=12, max_tokens=20, dropout=0.0).eval()
    tokens = text.tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    pooled = clap.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
    torch.testing.assert_close(text(CAPTIONS), clap.text_projection(pooled), atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="embedding_dim=12"):
        published_text(tmp_path, dim=8, max_tokens=20)


def test_similarities_are_scaled_by_the_exponential_or_as_the_reference_does():
    a, t = torch.randn(3, 32), torch.randn(4, 32)
    cosine = torch.nn.functional.cosine_similarity(a[:, None], t[None], dim=-1)
    torch.testing.assert_close(dual().logits(a, t), cosine / 0.07, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(dual(raw_temperature=True).logits(a, t), cosine * math.log(1 / 0.07), atol=1e-5, rtol=1e-5)
    model = dual()
    model.log_scale.data.fill_(9.0)
    assert model.scale().item() == pytest.approx(100.0) and model.log_scale.item() == pytest.approx(math.log(100))


def test_equal_captions_are_encoded_once_and_stand_in_their_rows():
    model, seen = dual().eval(), []
    model.text.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    audio, text = model(torch.randn(3, 4, 12000), ["a dog", "a cat", "a dog"], ["a dog", "rain", "rain"])
    assert seen == [3] and torch.equal(text["spatial"][0], text["spatial"][2]) and torch.equal(text["semantic"][0], text["spatial"][0])
    torch.testing.assert_close(text["semantic"][1:], model.text(["rain", "rain"]), atol=1e-6, rtol=1e-5)
    assert audio["direction"].shape == (3, 2, 3) and audio["triplet"].shape == (3, 32)


def test_a_folder_holds_everything(tmp_path):
    model = dual(classifier_hidden=(16,), raw_temperature=True).eval()
    again = SpatialDual.from_pretrained(model.save_pretrained(tmp_path))
    sound = torch.randn(2, 4, 12000)
    for one, two in zip(model(sound, ["a dog"] * 2, ["rain"] * 2), again(sound, ["a dog"] * 2, ["rain"] * 2)):
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert again.config() == model.config() and not again.training and again.seconds == 2.5
    x = torch.randn(2, 32)
    assert torch.equal(model.classifier(x), again.classifier(x))
