"""The two towers against transformers' CLAP audio model, what their maps' axes mean, and the reading of published weights."""
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ClapAudioConfig, ClapAudioModelWithProjection, ClapConfig, ClapModel

from lib.encoders.htsat import SIZES, CrossStitch, DualHtsat, FusedLayer, HtsatConfig, Size

FUSED = dict(enable_fusion=True, fusion_type="aff_2d", hidden_dropout_prob=0.0)


@pytest.fixture(autouse=True)
def folded(monkeypatch):
    """A size with as many segments and time steps as the published one."""
    monkeypatch.setitem(SIZES, "folded", Size(4, 16, 8, (2, 1), (1, 2), 8))


def model(size="tiny", intensity_vectors=True, drop_path=0.0):
    torch.manual_seed(0)
    return DualHtsat(HtsatConfig(size, drop_path), intensity_vectors)


def features(clips, frames, seed=1):
    """Levels in dB and intensities of the size that real ones have."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(clips, 7, frames, 64, generator=generator)
    return torch.cat([10 * x[:, :4] - 40, 0.02 * x[:, 4:]], dim=1)


def clap_settings(size, **changes):
    """transformers' settings of a CLAP audio tower of one of our sizes."""
    s = SIZES[size]
    return dict(spec_size=64 * s.segments, patch_size=s.patch, patch_stride=(s.patch, s.patch), patch_embeds_hidden_size=s.width,
                depths=list(s.depths), num_attention_heads=list(s.heads), window_size=s.window, num_hidden_layers=len(s.depths),
                hidden_size=HtsatConfig(size).channels, hidden_dropout_prob=0.0) | changes


def randomise(clap):
    """Weights under which every part of a tower matters, and a norm that is not the identity."""
    torch.manual_seed(5)
    encoder = clap.audio_model.audio_encoder
    with torch.no_grad():
        for entry in encoder.parameters():
            entry.add_(0.1 * torch.randn_like(entry))
        encoder.batch_norm.running_mean.copy_(-40 + torch.randn(64))
        encoder.batch_norm.running_var.copy_(100 + 10 * torch.rand(64))
    return clap.eval()


def publish(folder, size="tiny", **changes):
    """A whole CLAP with a tiny text tower, as hubs publish it. Returns the model."""
    torch.manual_seed(0)
    text = dict(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    clap = randomise(ClapModel(ClapConfig(projection_dim=24, text_config=text, audio_config=clap_settings(size, **changes))))
    clap.save_pretrained(folder)
    return clap


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clap")
    return folder, publish(folder)


def semantic_of_clap(clap, x):
    return clap.audio_model(input_features=x[:, :1], is_longer=torch.zeros(len(x), 1, dtype=torch.bool)).last_hidden_state


@pytest.mark.parametrize("size", ["tiny", "small", "folded"])
def test_semantic_tower_equals_clap_s(size, tmp_path):
    """Maps and gradients, with the weights that were loaded and cross-stitch units at their identity."""
    clap, mine = publish(tmp_path, size), model(size).eval()
    mine.load_clap(tmp_path)
    x = features(2, mine.config.frames)
    got, expected = mine(x)["semantic"], semantic_of_clap(clap, x)
    assert got.shape == expected.shape == (2, mine.config.channels, 2, mine.config.steps) and expected.std() > 0.1
    assert (got - expected).abs().max() <= 1e-5
    upstream = torch.randn_like(got)
    (got * upstream).sum().backward()
    (expected * upstream).sum().backward()
    theirs = dict(clap.audio_model.audio_encoder.named_parameters())
    for name, entry in mine.semantic.named_parameters():
        torch.testing.assert_close(entry.grad, theirs[name].grad, atol=2e-4, rtol=1e-3, msg=name)
    torch.testing.assert_close(mine.norm.weight.grad[:64], theirs["batch_norm.weight"].grad, atol=2e-4, rtol=1e-3)


@pytest.mark.slow
def test_published_size_equals_laion_s_fused_layout(tmp_path):
    """96 wide, 2-2-6-2 deep, 32 steps of 32 frames."""
    clap = randomise(ClapAudioModelWithProjection(ClapAudioConfig(**FUSED)))
    torch.save(clap.state_dict(), tmp_path / "pytorch_model.bin")
    mine = model("published").eval()
    read = mine.load_clap(tmp_path)
    assert read.log_scale is None and read.projection["linear1.weight"].shape == (512, 768)
    x = features(1, 1024)
    with torch.no_grad():
        got, expected = mine(x), semantic_of_clap(clap, x)
    assert got["spatial"].shape == got["semantic"].shape == (1, 768, 2, 32)
    assert (got["semantic"] - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_fusion_layers_are_left_out(tmp_path):
    """Of the audio model alone, with its projection, in the older kind of file."""
    clap = randomise(ClapAudioModelWithProjection(ClapAudioConfig(**FUSED | clap_settings("tiny"))))
    torch.save(clap.state_dict(), tmp_path / "pytorch_model.bin")
    mine, x = model().eval(), features(2, 256)
    read = mine.load_clap(tmp_path)
    assert read.log_scale is None and read.projection["linear1.weight"].shape == (512, 32)
    assert (mine(x)["semantic"] - semantic_of_clap(clap, x)).abs().max() <= 1e-5


def test_parameter_counts_of_both_towers():
    """Published: 55,098,336 with the layers that fuse four crops of a long clip, which nothing here would use."""
    with torch.device("meta"):
        towers = model("published")
        fused = ClapAudioModelWithProjection(ClapAudioConfig(**FUSED)).audio_model.audio_encoder.patch_embed

    config = towers.config
    assert (config.frames, config.channels, config.bins, config.steps) == (1024, 768, 2, 32)

    def count(part):
        return sum(p.numel() for p in part.parameters())
    assert count(towers.norm) == 896
    assert count(towers) - 896 == 55_083_696
    assert count(towers) - 896 + count(fused.fusion_model) + count(fused.mel_conv2d) == 55_098_336
    assert count(towers.stitches) == 4 * (96 + 192 + 384 + 768)


@pytest.mark.parametrize("size", ["tiny", "small", "folded"])
def test_map_is_in_true_time_order_with_low_frequencies_first(size):
    """With blocks that pass everything on, a burst changes the one cell of the map where it is, in both towers."""
    mine = model(size).eval()
    for block in mine.modules():
        if isinstance(block, FusedLayer):
            for layer in (block.attention.output.dense, block.output.dense):
                nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    rest = features(1, mine.config.frames)
    steps = mine.config.steps
    bursts = rest.repeat(2 * steps, 1, 1, 1)
    for i in range(2 * steps):
        high, step = divmod(i, steps)
        bursts[i, :, 32 * step + 5:32 * step + 7, 32 * high + 10:32 * high + 12] += 25
    with torch.no_grad():
        before, after = mine(rest), mine(bursts)
    for name in ("semantic", "spatial"):
        changed = (after[name] - before[name]).abs().amax(dim=1)                       # (bursts, bins, steps)
        assert torch.equal((changed > 1e-3).flatten(1), torch.eye(2 * steps, dtype=torch.bool))


def test_cross_stitch_mixes_the_old_values_of_both():
    stitch = CrossStitch(2).double()
    a, b = torch.randn(2, 3, 5, 2, dtype=torch.float64)
    assert torch.equal(stitch(a, b)[0], a) and torch.equal(stitch(a, b)[1], b)              # the identity at the start
    with torch.no_grad():
        stitch.weight.copy_(torch.tensor([[[1.0, 0.5], [2.0, -1.0]], [[3.0, 0.0], [0.25, 4.0]]]))
    first, second = stitch(a, b)
    for channel, (own, other, back, kept) in enumerate([(1.0, 2.0, 3.0, 0.25), (0.5, -1.0, 0.0, 4.0)]):
        x, y = a[..., channel], b[..., channel]
        assert (first[..., channel] - (own * x + other * y)).abs().max() <= 1e-8
        assert (second[..., channel] - (back * x + kept * y)).abs().max() <= 1e-8           # x as it came in, not as it left


def test_every_stage_is_preceded_by_a_cross_stitch():
    """Without what crosses over, the semantic tower does not see the other six channels; with it at any one stage, it does."""
    mine, x = model().eval(), features(2, 256)
    other = torch.cat([x[:, :1], features(2, 256, seed=2)[:, 1:]], dim=1)
    with torch.no_grad():
        assert torch.equal(mine(x)["semantic"], mine(other)["semantic"])
        assert not torch.equal(mine(x)["spatial"], mine(other)["spatial"])
        for stitch in mine.stitches:
            stitch.weight[0, 1] = 0.5
            assert (mine(x)["semantic"] - mine(other)["semantic"]).abs().max() > 1e-3
            stitch.weight[0, 1] = 0.0
    assert len(mine.stitches) == len(SIZES["tiny"].depths)


def test_each_channel_has_a_norm_of_its_own_and_the_semantic_tower_shares_w_s():
    """Training statistics against seven norms of 64 mel bands; then what each of them reaches."""
    mine, x = model().train(), features(3, 200)
    mine(x)
    for channel in range(7):
        naive = nn.BatchNorm1d(64)
        naive(x[:, channel].transpose(1, 2))             # of the 200 frames that are there: padding comes later
        mels = slice(64 * channel, 64 * channel + 64)
        torch.testing.assert_close(mine.norm.running_mean[mels], naive.running_mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mine.norm.running_var[mels], naive.running_var, atol=1e-5, rtol=1e-4)
    mine.eval()
    with torch.no_grad():
        before = mine(x)
        for channel in range(7):
            mine.norm.weight[64 * channel] += 1.0        # the lowest band
            after = mine(x)
            assert not torch.equal(after["spatial"], before["spatial"])
            assert torch.equal(after["semantic"], before["semantic"]) == (channel > 0)
            mine.norm.weight[64 * channel] -= 1.0


def test_short_clips_are_padded_with_zeros_after_the_norm():
    """The same maps as those of a full clip whose last frames the norm turns into zeros."""
    mine = model().eval()
    with torch.no_grad():
        for entry in (mine.norm.running_mean, mine.norm.bias):
            entry.copy_(torch.randn(448))
        mine.norm.running_var.copy_(0.5 + torch.rand(448))
        short = features(2, 200)
        silent = mine.norm.running_mean - mine.norm.bias * (mine.norm.running_var + 1e-5).sqrt() / mine.norm.weight
        full = torch.cat([short, silent.view(1, 7, 1, 64).expand(2, -1, 56, -1)], dim=2)
        for name, expected in mine(full).items():
            assert (mine(short)[name] - expected).abs().max() <= 1e-4


def test_without_intensity_vectors_they_are_not_read():
    mine, x = model(intensity_vectors=False).eval(), features(2, 256)
    assert mine.norm.num_features == 256 and mine.spatial.patch_embed.proj.in_channels == 4
    with torch.no_grad():
        assert torch.equal(mine(x)["spatial"], mine(x[:, :4])["spatial"]) and mine(x)["semantic"].shape == (2, 32, 2, 8)


def test_stochastic_depth_leaves_out_paths_in_training_only():
    """It draws from torch's global generator."""
    mine, x = model(drop_path=0.5), features(4, 256)

    def output(seed):
        torch.manual_seed(seed)
        with torch.no_grad():
            return mine(x)["spatial"]
    assert torch.equal(output(1), output(1)) and not torch.equal(output(1), output(2))
    mine.eval()
    assert torch.equal(output(1), output(2))


@pytest.mark.parametrize("path", ["attention", "MLP"])
def test_stochastic_depth_is_on_both_paths_of_a_block(path):
    """A clip's path is left out, or kept and scaled by 1 / (1 - rate): here 0.25, half of the last block's."""
    layer, tokens = model(drop_path=0.5).spatial.layers[0].blocks[1], torch.randn(64, 64, 16)
    other = layer.output.dense if path == "attention" else layer.attention.output.dense
    nn.init.zeros_(other.weight), nn.init.zeros_(other.bias)
    with torch.no_grad():
        whole, drawn = (layer.train(training)(tokens, (8, 8))[0] - tokens for training in (False, True))
    kept = drawn.flatten(1).norm(dim=1) > 0
    assert 32 <= kept.sum() < 64
    assert (drawn - whole * kept[:, None, None] / 0.75).abs().max() <= 1e-5


def test_under_autocast_it_stays_close():
    mine, x = model().eval(), features(2, 256)
    with torch.no_grad():
        expected = mine(x)["spatial"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (mine(x)["spatial"].float() - expected).abs().max() < 0.15


@pytest.mark.parametrize("shape,message", [
    ((2, 4, 256, 64), r"expected \(clips, 7, frames, 64\)"), ((2, 8, 256, 64), "expected"),
    ((2, 7, 256, 128), "expected"), ((7, 256, 64), "expected"),
    ((2, 7, 257, 64), "257 frames.*takes 1 to 256"), ((2, 7, 0, 64), "0 frames")])
def test_features_of_another_shape_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        model()(torch.zeros(shape))


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="'large' is not known; choose one of published, small, tiny"):
        HtsatConfig("large")
    with pytest.raises(ValueError, match="drop_path is 1"):
        HtsatConfig(drop_path=1)


def test_saved_and_read_again_it_is_the_same(tmp_path):
    mine, again, x = model().train(), DualHtsat(HtsatConfig("tiny")), features(2, 256)
    mine(x)
    save_file(mine.state_dict(), tmp_path / "model.safetensors")
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        for name, expected in mine.eval()(x).items():
            assert torch.equal(again.eval()(x)[name], expected)


def test_clap_in_several_files(published, tmp_path):
    """Sharded weights; the towers take the same numbers, and the spatial tower is left as it was."""
    published[1].save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    mine, whole, untouched = model(), model(), model()
    read = mine.load_clap(tmp_path)
    whole.load_clap(published[0])
    assert all(torch.equal(a, b) for a, b in zip(mine.state_dict().values(), whole.state_dict().values()))
    assert all(torch.equal(a, b) for a, b in zip(mine.spatial.parameters(), untouched.spatial.parameters()))
    assert torch.equal(mine.norm.running_mean[:64], published[1].audio_model.audio_encoder.batch_norm.running_mean)
    assert torch.equal(mine.norm.running_mean[64:], untouched.norm.running_mean[64:])
    assert read.log_scale == pytest.approx(torch.log(torch.tensor(1 / 0.07)).item())


def test_clap_that_does_not_fit_is_refused_by_file_and_entry(published, tmp_path):
    state = load_file(published[0] / "model.safetensors")
    name = "audio_model.audio_encoder.layers.0.blocks.1.attention.self.query.weight"
    stored = tmp_path / "model.safetensors"

    def refused(entries, message):
        save_file(entries, stored)
        before = [entry.clone() for entry in model().state_dict().values()]
        mine = model()
        with pytest.raises(ValueError, match=message) as error:
            mine.load_clap(tmp_path)
        assert str(stored) in str(error.value)
        assert all(torch.equal(a, b) for a, b in zip(mine.state_dict().values(), before))              # nothing, rather than half
    refused({key: entry for key, entry in state.items() if key != name}, f"first {name}: missing in the file")
    refused(state | {name: torch.zeros(8, 8)}, rf"first {name}: \(8, 8\) in the file, \(16, 16\) in the model")
    refused(state | {name.replace("blocks.1", "blocks.2"): torch.zeros(16, 16)}, "missing in the model")
    stored.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="model.safetensors cannot be read"):
        model().load_clap(tmp_path)
    stored.unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}}))
    with pytest.raises(ValueError, match="index.json cannot be read"):
        model().load_clap(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        model().load_clap(tmp_path)
