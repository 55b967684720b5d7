"""The ViT on visible patches against transformers' own model, and that it never reads a hidden pixel."""
import math

import pytest
import torch
from transformers import ViTConfig, ViTModel

from lib.encoders.patches import patchify, random_mask, tube_mask, unpatchify, visible_index
from lib.encoders.vit import VitConfig, VitEncoder

TINY = VitConfig("tiny", image_size=64, layers=2)
PLACES = 16


def encoder(config=TINY):
    torch.manual_seed(0)
    return VitEncoder.from_scratch(config)


def stock(mine, attention="eager"):
    """transformers' own model with the same weights."""
    config = ViTConfig(**mine.network.config.to_dict(), attn_implementation=attention)
    model = ViTModel(config, add_pooling_layer=False).eval()
    model.load_state_dict(mine.network.state_dict())
    return model


def clips(count=2, frames=4, seed=1):
    return torch.randn(count, frames, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def replace_hidden(images, hidden, value):
    """Other pixels in the hidden patches."""
    patches = patchify(images, 16)
    patches.view(len(images), -1, patches.shape[-1])[hidden] = value
    return unpatchify(patches, 16)


def test_all_patches_are_transformers_own_states():
    mine, x = encoder().eval(), clips()
    with torch.no_grad():
        expected = stock(mine)(x.flatten(0, 1)).last_hidden_state
        patches, classes = mine(x, classes=True)
        assert (patches - expected[:, 1:].reshape(2, 64, 32)).abs().max() < 1e-5 * expected.abs().max()
        assert (classes - expected[:, 0].reshape(2, 4, 32)).abs().max() < 1e-5 * expected.abs().max()
        assert (mine(x[:, 0]) - patches[:, :16]).abs().max() < 1e-5, "single pictures"


@pytest.mark.parametrize("mask", ["random", "tube", "uneven"])
def test_visible_patches_against_every_frame_alone(mask):
    """Positions added at the original places, hidden tokens dropped, then transformers' own layers, picture by picture."""
    mine, x = encoder().eval(), clips()
    hidden = {"random": random_mask([1, 2], 64, 0.6), "tube": tube_mask([1, 2], 4, PLACES, 0.75),
              "uneven": torch.ones(2, 64, dtype=torch.bool)}[mask]
    if mask == "uneven":            # a frame without any visible patch, a frame with all
        hidden[0, 16:32], hidden[1, [3, 40, 41]], hidden[1, 48:61] = False, False, False
    visible, plain = visible_index(hidden), stock(mine)
    with torch.no_grad():
        patches, classes = mine(x, visible, classes=True)
        assert patches.shape == (2, visible.shape[1], 32) and classes.shape == (2, 4, 32)
        for b in range(2):
            rows = []
            for f in range(4):
                embedded = plain.embeddings(x[b, f][None])
                states = embedded[:, [0, *(1 + (~hidden[b, 16 * f:16 * f + 16]).nonzero()[:, 0]).tolist()]]
                for layer in plain.layers:
                    states = layer(states, None)
                states = plain.layernorm(states)[0]
                rows.append(states[1:])
                assert (classes[b, f] - states[0]).abs().max() < 1e-4
            assert (patches[b] - torch.cat(rows)).abs().max() < 1e-4


def test_ratio_zero_is_the_full_encoding():
    mine, x = encoder().eval(), clips()
    assert torch.equal(mine(x, visible_index(random_mask([1, 2], 64, 0.0))), mine(x))


@pytest.mark.parametrize("value", [0.0, 100.0, math.nan])
def test_hidden_pixels_are_never_read(value):
    """Not even NaN reaches the output, and the gradient on hidden pixels is exactly 0; the full encoding does change."""
    mine, x, hidden = encoder().eval(), clips(), random_mask([3, 4], 64, 0.75)
    visible, other = visible_index(hidden), replace_hidden(clips(), hidden, value).requires_grad_()
    out = mine(other, visible)
    assert torch.equal(out, mine(x, visible)) and torch.isfinite(out).all()
    (out * torch.randn_like(out)).sum().backward()
    gradient = patchify(other.grad, 16).flatten(1, 2)
    assert not gradient[hidden].any() and gradient[~hidden].any(dim=-1).all()
    assert not torch.allclose(mine(other)[~hidden], mine(x)[~hidden])


def test_a_patch_keeps_its_place():
    """The same pixels at another place give other states; a table read at 0 .. V - 1 would not tell."""
    mine, x = encoder().eval(), clips(1, 1)
    same = unpatchify(patchify(x, 16)[:, :, :1].expand(-1, -1, PLACES, -1), 16)
    first, second = (mine(same, torch.tensor([index])) for index in ([0, 1, 2], [5, 9, 14]))
    assert (first - second).abs().max() > 1e-2


def test_frames_are_pictures_of_their_own():
    """With tubes, frames in another order give the same states in that order; a clip does not depend on its batch."""
    mine, x, order = encoder().eval(), clips(), torch.tensor([2, 0, 3, 1])
    visible = visible_index(tube_mask([1, 2], 4, PLACES, 0.75))
    out = mine(x, visible).unflatten(1, (4, -1))
    assert (mine(x[:, order], visible).unflatten(1, (4, -1)) - out[:, order]).abs().max() < 1e-5
    uneven = visible_index(random_mask([1, 2], 64, 0.75))
    assert (mine(x, uneven)[1] - mine(x[1:], uneven[1:])[0]).abs().max() < 1e-5


def test_gradients_are_those_of_the_padded_frames_and_reach_every_parameter():
    """The packed row against single pictures whose gradients are summed."""
    mine, x, hidden = encoder().double(), clips().double(), random_mask([1, 2], 64, 0.75)
    visible, weight = visible_index(hidden), torch.randn(2, 16, 32).double()
    (mine(x, visible) * weight).sum().backward()
    packed = {name: p.grad.clone() for name, p in mine.named_parameters()}
    mine.zero_grad()
    for b in range(2):
        for f in range(4):
            inside = (visible[b] // PLACES) == f
            if inside.any():
                (mine(x[b:b + 1, f], visible[b:b + 1, inside] - f * PLACES) * weight[b, inside]).sum().backward()
    for name, p in mine.named_parameters():
        assert (p.grad - packed[name]).abs().max() < 1e-9, name
        assert p.grad.abs().max() > 0 or name.endswith("k_proj.bias"), name       # a bias of all keys cancels in the softmax


@pytest.mark.parametrize("masked", [False, True])
def test_bfloat16_autocast_is_near(masked):
    mine, x = encoder().eval(), clips()
    visible = visible_index(random_mask([1, 2], 64, 0.75)) if masked else None
    with torch.no_grad():
        full = mine(x, visible)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = mine(x, visible)
    assert half.dtype == torch.float32 and (half - full).abs().max() < 0.1 and not torch.equal(half, full)


def test_parameters_of_the_published_size():
    with torch.device("meta"):
        published = VitEncoder(VitConfig())
    assert sum(p.numel() for p in published.parameters()) == 85_798_656 == 86_389_248 - 590_592       # without the pooler
    assert published.config.places == 196 and len(published.layers) == 12


def published_folder(folder, **changes):
    torch.manual_seed(2)
    config = ViTConfig(**dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
                              image_size=64) | changes)
    model = ViTModel(config)           # with its pooler, as it is published
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("name", ["vit", "-a folder's \"name\""])
def test_published_folder(tmp_path, name):
    model, x = published_folder(tmp_path / name), clips()
    mine = VitEncoder.from_published(tmp_path / name).eval()
    assert mine.config == VitConfig("published", 64, 16, 3, 32, 2, 2, 48) == VitConfig.from_published(tmp_path / name)
    with torch.no_grad():
        expected = model(x.flatten(0, 1)).last_hidden_state[:, 1:].reshape(2, 64, 32)
        assert (mine(x) - expected).abs().max() < 1e-4
    again = VitEncoder(VitConfig(**mine.config.to_dict()))
    again.load_state_dict(mine.state_dict())
    assert torch.equal(again.eval()(x), mine(x))


def test_folders_that_do_not_fit_are_refused(tmp_path):
    published_folder(tmp_path / "relu", hidden_act="relu", layer_norm_eps=1e-6)
    with pytest.raises(ValueError, match="relu/config.json: hidden_act = 'relu' instead of 'gelu', layer_norm_eps"):
        VitEncoder.from_published(tmp_path / "relu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no ViT: a config.json"):
        VitEncoder.from_published(tmp_path / "empty")
    model = published_folder(tmp_path / "cut")
    entries = {name: value for name, value in model.state_dict().items() if not name.startswith("layers.1.mlp")}
    model.save_pretrained(tmp_path / "cut", state_dict=entries)
    with pytest.raises(ValueError, match="4 entries are missing in the weights, such as layers.1.mlp"):
        VitEncoder.from_published(tmp_path / "cut")
    with pytest.raises(FileNotFoundError, match="google/none"):
        VitEncoder.from_published("google/none")


@pytest.mark.parametrize("settings, words", [
    (dict(size="huge"), "'huge' is not known; choose one of published"), (dict(image_size=100), "100 is no multiple of patch 16"),
    (dict(width=30, heads=4), "width 30 must be a multiple of 4 and of heads = 4"), (dict(layers=0), "layers is 0"),
                                             (dict(patch=1.5), "patch is 1.5")])
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        VitConfig(**settings)


@pytest.mark.parametrize("images, visible, words", [
    (torch.zeros(1, 3, 32, 32), None, r"\(1, 1, 3, 32, 32\), this ViT expects \(clips, 3, 64, 64\)"),
                                                    (torch.zeros(3, 64, 64), None, "expects"),
    (torch.zeros(1, 3, 64, 64), torch.tensor([[2, 1]]), "ascending"),
                                                    (torch.zeros(1, 3, 64, 64), torch.tensor([[1, 16]]), "0 to 15"),
    (torch.zeros(1, 3, 64, 64), torch.zeros(1, 0, dtype=torch.int64), "one at least"),
                                                    (torch.zeros(1, 3, 64, 64), torch.tensor([1, 2]), "shape"),
    (torch.zeros(2, 3, 64, 64), torch.tensor([[1, 2]]), r"\(2 clips, patches\)")])
def test_wrong_inputs_are_refused(images, visible, words):
    with pytest.raises(ValueError, match=words):
        encoder()(images, visible)


def test_two_threads_always_give_the_same_gradients():
    """Positions are learned and read by every picture: their gradients are sums of many rows."""
    model, images = encoder(), clips(24, 8)
    visible = visible_index(random_mask(list(range(24)), 8 * PLACES, 0.25))
    before, first = torch.get_num_threads(), None
    torch.set_num_threads(2)
    try:
        for _ in range(6):
            model.zero_grad()
            model(images, visible).square().mean().backward()
            found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            first = first or found
            assert all(map(torch.equal, found, first))
    finally:
        torch.set_num_threads(before)
