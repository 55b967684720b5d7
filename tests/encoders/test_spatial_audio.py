"""Embeddings of the spatial-temporal model: sizes, how they are put together, and what knows the order."""
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ClapConfig, ClapModel

from lib.encoders.htsat import SIZES, HtsatConfig
from lib.encoders.spatial_audio import SpatialAudio
from lib.encoders.temporal import chunk_pool

TINY = HtsatConfig("tiny")


def model(**changes):
    torch.manual_seed(0)
    return SpatialAudio(**dict(config=TINY, dim=16) | changes)


def features(clips=3, frames=256, seed=1):
    x = torch.randn(clips, 7, frames, 64, generator=torch.Generator().manual_seed(seed))
    return torch.cat([10 * x[:, :4] - 40, 0.02 * x[:, 4:]], dim=1)


def test_parameter_counts_of_the_published_size():
    with torch.device("meta"):
        published, ablated, one = SpatialAudio(), SpatialAudio(temporal_encoder=False), SpatialAudio(events=1)

    def count(part):
        return sum(p.numel() for p in part.parameters())
    heads = published.semantic_head, published.spatial_head, published.temporal_head
    parts = {"norms": (count(published.towers.norm), 896), "direction, two events": (count(published.direction_head), 265_734),
             "three heads": (sum(map(count, heads)), 1_969_152), "s": (published.spatial_scale.numel(), 512),
             "temporal encoder": (count(published.temporal), 6_833_152),
             "final projection": (count(published.triplet_head), 787_456)}
    assert {name: got for name, (got, _) in parts.items()} == {name: said for name, (_, said) in parts.items()}
    towers = count(published.towers) - 896
    assert count(published) == towers + sum(said for _, said in parts.values())               # and nothing else
    # with text head, modality classifier and temperature these are the published 10,687,880
    assert count(published) - towers + 656_384 + 174_593 + 1 == 10_687_880
    assert count(published) - count(ablated) == 656_384 + 6_833_152 + 787_456
    assert count(published) - count(one) == 512 * 3 + 3


def test_embeddings_are_put_together_as_defined():
    """Everything after the towers, written out again."""
    mine, x = model(dim=24, events=3).eval(), features()
    with torch.no_grad():
        mine.spatial_scale.copy_(torch.rand(24))
        out, maps = mine(x), mine.towers(x)

        def head(layers, v):
            first, last = layers[0], layers[2]
            return (v @ first.weight.T + first.bias).clamp(min=0) @ last.weight.T + last.bias
        semantic, spatial = (head(layers, maps[name].mean(dim=(2, 3)))
                             for layers, name in ((mine.semantic_head, "semantic"), (mine.spatial_head, "spatial")))
        joint = semantic + mine.spatial_scale * spatial
        sounds, places = ([head(mine.temporal_head, maps[name][..., k:k + 2].mean(dim=(2, 3))) for k in range(0, 8, 2)]
                          for name in ("semantic", "spatial"))
        chunks = [sound + mine.spatial_scale * place for sound, place in zip(sounds, places)]
        temporal = mine.temporal(torch.stack(chunks, dim=1))
        expected = {"semantic": semantic, "spatial": spatial, "joint": joint, "temporal": temporal,
                    "triplet": head(mine.triplet_head, torch.cat([joint, temporal], dim=1)),
                    "direction": torch.tanh(head(mine.direction_head, spatial)).reshape(3, 3, 3)}
    assert out.keys() == expected.keys()
    for name, value in expected.items():
        assert (out[name] - value).abs().max() <= 1e-5, name
    assert torch.equal(model().spatial_scale.data, torch.ones(16))


def test_without_temporal_encoder_triplet_is_joint():
    mine = model(temporal_encoder=False).eval()
    out = mine(features())
    assert out.keys() == {"semantic", "spatial", "joint", "triplet", "direction"} and torch.equal(out["triplet"], out["joint"])
    assert out["direction"].shape == (3, 2, 3)


def test_reversing_the_chunks_changes_what_the_temporal_encoder_says():
    """On the maps of one clip: the mean over the clip stays, the temporal embedding does not; without positions it would."""
    mine = model().eval()
    with torch.no_grad():
        chunks = mine.temporal_head(chunk_pool(mine.towers(features())["semantic"], 4))
        assert (mine.temporal(chunks) - mine.temporal(chunks.flip(1))).norm(dim=1).min() > 1e-4
        mine.temporal.positions.zero_()
        assert (mine.temporal(chunks) - mine.temporal(chunks.flip(1))).abs().max() <= 1e-6


@pytest.mark.parametrize("training", [False, True])
def test_order_blind_control_cannot_know_the_order(training):
    """Frames in any order give the same embeddings; without the control they do not."""
    x = features(frames=250)
    shuffled = x[:, :, torch.randperm(250)]
    blind, seeing = (model(order_blind=order, config=HtsatConfig("tiny", 0.0), temporal_dropout=0.0).train(training)
                     for order in (True, False))
    for name, value in blind(x).items():
        assert (blind(x.flip(2))[name] - value).abs().max() <= 1e-6 and (blind(shuffled)[name] - value).abs().max() <= 1e-6, name
    first, second = seeing(x), seeing(x.flip(2))
    assert all((first[name] - second[name]).abs().max() > 1e-4 for name in first)


def test_gradients_reach_every_parameter():
    mine = model().train()
    sum((value * torch.randn_like(value)).sum() for value in mine(features(4)).values()).backward()
    for name, parameter in mine.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        if not name.endswith("key.bias"):       # the same for all keys, it cancels in the softmax
            assert parameter.grad.abs().max() > 0, name


def test_silence_has_finite_embeddings_and_gradients():
    mine = model().train()
    x = torch.zeros(3, 7, 256, 64)
    x[:, :4] = -100.0
    out = mine(x)
    sum(value.sum() for value in out.values()).backward()
    assert all(torch.isfinite(value).all() for value in out.values())
    assert all(torch.isfinite(parameter.grad).all() for parameter in mine.parameters())


def test_evaluation_is_deterministic_and_a_clip_does_not_depend_on_its_batch():
    mine, x = model().eval(), features(4)
    with torch.no_grad():
        out, again, alone = mine(x), mine(x), mine(x[1:2])
    assert all(torch.equal(out[name], again[name]) for name in out)
    assert all((out[name][1] - alone[name][0]).abs().max() <= 1e-5 for name in out)


def test_saved_and_read_again_it_is_the_same(tmp_path):
    mine, again, x = model().train(), SpatialAudio(TINY, dim=16), features()
    mine(x)
    save_file(mine.state_dict(), tmp_path / "model.safetensors")
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        for name, value in mine.eval()(x).items():
            assert torch.equal(again.eval()(x)[name], value)


def test_start_from_clap(tmp_path):
    """Its embedding before normalisation is the semantic one; the spatial head starts there too, and the scale is reported."""
    torch.manual_seed(0)
    size = SIZES["tiny"]
    clap = ClapModel(ClapConfig(
        projection_dim=16,
        text_config=dict(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8),
        audio_config=dict(spec_size=128, patch_size=16, patch_stride=(16, 16), patch_embeds_hidden_size=16, window_size=4,
                          depths=list(size.depths), num_attention_heads=list(size.heads), num_hidden_layers=2, hidden_size=32)))
    clap.eval()
    with torch.no_grad():
        for entry in (*clap.audio_projection.parameters(), *clap.audio_model.parameters()):
            entry.add_(0.1 * torch.randn_like(entry))
        clap.logit_scale_a.fill_(3.0), clap.logit_scale_t.fill_(4.0)
    clap.save_pretrained(tmp_path)
    mine, x = model().eval(), features()
    assert mine.load_clap(tmp_path) == (True, pytest.approx(3.5))
    with torch.no_grad():
        expected = clap.audio_projection(clap.audio_model(input_features=x[:, :1]).pooler_output)
        assert (mine(x)["semantic"] - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())
    assert all(torch.equal(a, b) for a, b in zip(mine.spatial_head.parameters(), clap.audio_projection.parameters()))
    other, untouched = model(dim=32), model(dim=32)
    assert other.load_clap(tmp_path) == (False, pytest.approx(3.5))
    assert torch.equal(other.semantic_head[0].weight, untouched.semantic_head[0].weight)
    assert torch.equal(other.towers.semantic.norm.weight, clap.audio_model.audio_encoder.norm.weight)


@pytest.mark.parametrize("settings,message", [(dict(events=0), "events is 0"), (dict(chunks=9), "chunks is 9.*8 time steps"),
                                              (dict(chunks=0), "chunks is 0"), (dict(dim=20), "8 heads do not divide dim = 20")])
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        model(**settings)


def test_wrong_channel_counts_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 2, 256, 64\), expected \(clips, 7"):
        model()(torch.zeros(2, 2, 256, 64))
    assert model(intensity_vectors=False).eval()(features()[:, :4])["joint"].shape == (3, 16)
