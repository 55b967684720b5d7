"""Patches, settings, positions, masks and layers of the spectrogram transformer against written-out references; no look ahead."""
import json
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, layer_norm, softmax

from lib.encoders.patches import patchify
from lib.encoders.spectrogram_config import Grid, cut, join
from lib.encoders.spectrogram_transformer import (Attention, AudioTransformerDecoder, AudioTransformerEncoder, Branch, Layout,
                                                  SpectrogramConfig, rotate, valid_tokens)

SMALL = {"input_size": 8, "input_length": 24, "patch_size": 4, "width": 16, "layers": 2, "heads": 2, "head_width": 12,
         "conv_kernel_size": 5}
CAUSAL = SMALL | {"causal": True, "positions": "rotary"}


def pair(dtype=torch.float64, **changes):
    """Encoder and decoder in evaluation mode with weights that make every branch count."""
    torch.manual_seed(0)
    made = [half(SMALL | changes).to(dtype).eval() for half in (AudioTransformerEncoder, AudioTransformerDecoder)]
    with torch.no_grad():
        for parameter in (p for half in made for p in half.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made


@pytest.mark.parametrize("grid", [Grid(4, 4, 6, 2), Grid(2, 8, 3, 1), Grid(1, 3, 5, 4), Grid(16, 16, 4, 2)])
def test_patches_against_loops_and_back(grid):
    x = torch.randn(2, grid.time * grid.columns, grid.frequency * grid.rows)
    patches = cut(x, grid)
    assert patches.shape == (2, grid.tokens, grid.values)
    for column in range(grid.columns):
        for row in range(grid.rows):
            square = x[:, column * grid.time:(column + 1) * grid.time, row * grid.frequency:(row + 1) * grid.frequency]
            assert torch.equal(patches[:, column * grid.rows + row], square.flatten(1)), "time-major tokens, frames before bands"
    assert torch.equal(join(patches, grid), x)
    if grid.time == grid.frequency:
        assert torch.equal(patches, patchify(x[:, None], grid.time))


@pytest.mark.parametrize("call, words", [
    (lambda: cut(torch.zeros(1, 23, 8), Grid(4, 4, 6, 2)), r"\(clips, 24 frames, 8 bands\)"),
    (lambda: cut(torch.zeros(24, 8), Grid(4, 4, 6, 2)), "cannot be cut"),
    (lambda: join(torch.zeros(1, 11, 16), Grid(4, 4, 6, 2)), r"expected \(clips, 12, 16\)"),
    (lambda: valid_tokens(torch.ones(2, 20, dtype=torch.bool), [Grid(4, 4, 6, 2)]), "24 frames"),
    (lambda: valid_tokens(torch.ones(2, 24), [Grid(4, 4, 6, 2)]), "torch.bool"),
    (lambda: pair()[0](torch.zeros(1, 24, 9, dtype=torch.float64)), "input_size = 8"),
    (lambda: pair()[0](torch.zeros(1, 24, 8, dtype=torch.float64), torch.ones(1, 12, dtype=torch.bool)), "masked_pretraining=True"),
    (lambda: AudioTransformerEncoder(SMALL, True)(torch.zeros(1, 24, 8), torch.ones(1, 11, dtype=torch.bool)), r"of shape \(1, 11\)"),
    (lambda: pair()[0].stack.start(), "causal=True, positions='rotary' and an attention_window"),
    (lambda: pair(**CAUSAL)[0].stack.start(), "attention_window=None")])
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("changes, words", [
    ({"witdh": 3}, "'witdh' is unknown; did you mean 'width'"), ({"xyz": 3}, "'xyz' is unknown; known are input_size"),
    ({"heads": 3}, "heads = 3 does not divide width = 16"), ({"patch_size": 5}, "patch_size = 5 does not divide input_length = 24"),
    ({"freq_patch_size": 3}, "freq_patch_size = 3 does not divide input_size = 8"),
    ({"time_patch_size": 7}, "time_patch_size = 7 does not divide input_length"),
    ({"patch_sizes": [4, 16]}, "patch_sizes = 16 does not divide input_length"), ({"patch_sizes": []}, "patch_sizes is"),
    ({"patch_sizes": [4, 4]}, "different"), ({"patch_sizes": [4, 8], "time_patch_size": 4}, "square"),
    ({"patch_sizes": [4, 8], "causal": True}, "future"), ({"layers": 0}, "layers is 0"), ({"width": 16.0}, "width is 16.0"),
    ({"drop_rate": 1.0}, "drop_rate is 1.0"), ({"drop_path_rate": -0.1}, "drop_path_rate"), ({"mlp_ratio": 0.01}, "mlp_ratio"),
    ({"conv_kernel_size": 4}, "conv_kernel_size is 4"), ({"conv_kernel_2d": [3, 2]}, "conv_kernel_2d"),
    ({"conv_kernel_2d": [3]}, "conv_kernel_2d"), ({"conv_axis": "row"}, "conv_axis must be one of flat, time, 2d"),
    ({"positions": "sincos"}, "positions must be one of"), ({"mask_type": "window"}, "mask_type must be one of"),
    ({"mask_type": "block-causal"}, "needs mask_block_size"), ({"mask_block_size": 4}, "needs mask_block_size"),
    ({"mask_type": "causal", "causal": True}, "leave mask_type"), ({"attention_window": 0}, "attention_window is 0"),
    ({"positions": "rotary", "width": 6, "heads": 2}, "must be even")])
def test_settings_are_refused_by_name(changes, words):
    with pytest.raises(ValueError, match=words):
        SpectrogramConfig.of(SMALL | changes)


def test_settings():
    config = SpectrogramConfig.of(SMALL | {"patch_sizes": [4, 8], "conv_kernel_2d": [5, 3], "grad_checkpointing": True,
                                           "mask_type": None, "mask_block_size": -1})
    assert SpectrogramConfig.of(json.loads(json.dumps(config.to_dict()))) == config and SpectrogramConfig.of(config) is config
    assert config.gradient_checkpointing and config.patches == ((4, 4), (8, 8)) and config.step == 8 and config.tokens == 12 + 3
    assert SpectrogramConfig().tokens == 512 and SpectrogramConfig(patch_sizes=(16, 32, 64)).tokens == 512 + 128 + 32
    for changes in ({}, {"time_patch_size": 2}, {"patch_sizes": (4, 8)}, {"patch_sizes": (4, 2, 1)}):
        config = SpectrogramConfig.of(SMALL | {"positions": "rotary"} | changes)
        for frames in (config.step, 3 * config.step):
            tokens = sum(grid.tokens for grid in config.grids(frames))
            assert config.frames(tokens) == frames
        with pytest.raises(ValueError, match="do not fill"):
            config.frames(tokens + 1)
        if config.step > 1:
            with pytest.raises(ValueError, match=f"multiple of {config.step}"):
                config.grids(config.step + 1)


def test_lengths_that_positions_can_have():
    lengths = {"flat": [24], "factorised": [4, 12, 24], "rotary": [4, 24, 96]}
    for kind, good in lengths.items():
        encoder, decoder = pair(positions=kind)
        for frames in good:
            assert decoder(encoder(torch.randn(1, frames, 8, dtype=torch.float64))).shape == (1, frames, 8)
        for frames in set(lengths["rotary"] + [12]) - set(good) - (set(range(99)) if kind == "rotary" else set()):
            with pytest.raises(ValueError, match=f"positions '{kind}'"):
                encoder(torch.randn(1, frames, 8, dtype=torch.float64))


def written_out(encoder, x, allowed=None):
    """The encoder without batch normalisation's statistics: running ones, evaluation mode, one scale, full precision."""
    tokens = cut(x, encoder.config.grids()[0]) @ encoder.patches[0].weight.mT
    stack, heads = encoder.stack, encoder.config.heads
    x = tokens + stack.positions[0].flat
    norm = lambda x, n: layer_norm(x, x.shape[-1:], n.weight, n.bias)
    x = norm(x, stack.norm_pre)
    for layer in stack.layers:
        attention = layer.attention.inner
        q, k, v = (norm(x, layer.attention.norm) @ attention.query_key_value.weight.mT + attention.query_key_value.bias).chunk(3, dim=-1)
        mixed = torch.zeros_like(x)
        for head in range(heads):
            part = slice(head * 8, head * 8 + 8)
            scores = q[..., part] @ k[..., part].mT / math.sqrt(8)
            scores = scores if allowed is None else scores.masked_fill(~allowed, -math.inf)
            mixed[..., part] = softmax(scores, dim=-1) @ v[..., part]
        x = x + mixed @ attention.project.weight.mT + attention.project.bias
        if layer.convolution is not None:
            x = x + layer.convolution.inner(norm(x, layer.convolution.norm), encoder.config.grids())
        first, second = layer.mlp.inner[0], layer.mlp.inner[2]
        x = x + gelu(norm(x, layer.mlp.norm) @ first.weight.mT + first.bias) @ second.weight.mT + second.bias
    return norm(x, stack.norm_post)


@pytest.mark.parametrize("conv", [True, False])
@pytest.mark.parametrize("mask", [{}, {"mask_type": "causal"}, {"mask_type": "block-causal", "mask_block_size": 4},
                                  {"attention_window": 2}])
def test_encoder_against_a_written_out_reference(mask, conv):
    encoder, _ = pair(use_conv_module=conv, **mask)
    x, token = torch.randn(2, 24, 8, dtype=torch.float64), torch.arange(12)
    allowed = {"causal": token <= token[:, None], "block-causal": token // 4 <= token[:, None] // 4}.get(mask.get("mask_type"))
    if "attention_window" in mask:
        allowed = (token // 2 - token[:, None] // 2).abs() < 2
    assert (encoder(x) - written_out(encoder, x, allowed)).abs().max() < 1e-10


def test_decoder_is_the_head_over_the_same_stack():
    _, decoder = pair()
    x, grid = torch.randn(2, 12, 16, dtype=torch.float64), Grid(4, 4, 6, 2)
    states = decoder.stack(x, [grid])
    hidden = torch.tanh(states @ decoder.head[0].weight.mT + decoder.head[0].bias)
    assert (decoder(x) - join(hidden @ decoder.patches[0].weight.mT + decoder.patches[0].bias, grid)).abs().max() < 1e-12


def test_scales_are_added_and_see_each_other():
    encoder, decoder = pair(patch_sizes=[4, 8])
    x = torch.randn(2, 24, 8, dtype=torch.float64)
    tokens = encoder(x)
    assert tokens.shape == (2, 15, 16)
    hidden = decoder.head(decoder.stack(tokens, decoder.config.grids()))
    grids = decoder.config.grids()
    expected = join(decoder.patches[0](hidden[:, :12]), grids[0]) + join(decoder.patches[1](hidden[:, 12:]), grids[1])
    assert torch.equal(decoder(tokens), expected)
    with torch.no_grad():
        encoder.patches[1].weight.mul_(2)
    assert not torch.equal(encoder(x)[:, :12], tokens[:, :12])


def test_start_of_the_weights():
    """Deviation 0.02 within 2 deviations at published widths, biases 0, gains 1 also in the convolution module."""
    torch.manual_seed(0)
    encoder = AudioTransformerEncoder({"width": 512, "heads": 8, "layers": 1, "input_length": 64, "ls_init_value": 0.1})
    for name, parameter in encoder.stack.layers.named_parameters():
        if "norm" in name:
            assert parameter.eq(1 if name.endswith("weight") else 0).all(), name
        elif name.endswith("gain"):
            assert parameter.eq(0.1).all()
        elif name.endswith("bias"):
            assert parameter.eq(0).all(), name
        else:
            assert parameter.abs().max() <= 0.04 and parameter.std().item() == pytest.approx(0.02 * 0.8796, rel=0.02), name   # cut at 2
    assert encoder.stack.positions[0].flat.std().item() == pytest.approx(0.02, rel=0.05)
    assert encoder.patches[0].bias is None and AudioTransformerEncoder(SMALL | {"ln_pre": False}).patches[0].bias is not None
    assert isinstance(AudioTransformerEncoder(SMALL | {"ln_post": False}).stack.norm_post, nn.Identity)


def test_rotation_sees_differences_of_time_only():
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    speeds = 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    at = lambda x, time: rotate(x, ((time * speeds).cos()[None], (time * speeds).sin()[None]))
    products = [(at(query, 3 + shift) * at(key, 1 + shift)).sum().item() for shift in (0, 7, 100000)]
    assert max(products) - min(products) < 1e-9 and abs((at(query, 3) * at(key, 2)).sum().item() - products[0]) > 1e-3
    assert (at(query, 5).norm() - query.norm()).abs() < 1e-12 and torch.equal(at(query, 0), query)


def test_rotary_pattern_may_stand_anywhere_in_time():
    """With rotary positions, what a column becomes depends on the columns in reach, not on its number; with tables it does."""
    x = torch.randn(1, 24, 8, dtype=torch.float64)
    later = torch.cat([torch.randn(1, 12, 8, dtype=torch.float64), x[:, :12]], dim=1)
    for kind in ("rotary", "factorised"):
        encoder, _ = pair(positions=kind, use_conv_module=False, attention_window=2, layers=1)
        # column 0 and 2 of x have other neighbours in `later`; column 1 has the same on both sides
        difference = (encoder(x)[:, :6] - encoder(later)[:, 6:]).abs().view(3, 2 * 16).amax(1)
        assert difference[0] > 1e-3 and difference[2] > 1e-3 and (difference[1] < 1e-10) == (kind == "rotary")


def test_stochastic_depth_and_gains():
    torch.manual_seed(0)
    branch, x = Branch(nn.Linear(4, 4), 4, 0.5, 0.4).double(), torch.randn(2000, 3, 4).double()
    full = branch.eval()(x) - x
    assert torch.allclose(full, branch.inner(branch.norm(x)) * 0.5)
    moved = branch.train()(x) - x
    left_out = moved.flatten(1).eq(0).all(1)
    assert left_out.double().mean().item() == pytest.approx(0.4, abs=0.05)
    assert torch.allclose(moved[~left_out], full[~left_out] / 0.6), "whole clips, scaled so that the mean stays"
    config = SpectrogramConfig.of(SMALL | {"layers": 3, "drop_path_rate": 0.2})
    assert [layer.mlp.drop_path for layer in AudioTransformerEncoder(config).stack.layers] == pytest.approx([0, 0.1, 0.2])


def test_dropouts():
    x, torch_seed = torch.randn(2, 24, 8), torch.manual_seed
    for name in ("drop_rate", "attn_drop_rate"):
        encoder = AudioTransformerEncoder(SMALL | {name: 0.5, "use_conv_module": False})
        torch_seed(1)
        first = encoder(x)
        assert not torch.equal(first, encoder(x)) and torch.equal(encoder.eval()(x), encoder(x)), name


def test_hidden_patches_are_never_read():
    torch.manual_seed(0)
    encoder = AudioTransformerEncoder(SMALL, masked_pretraining=True).double().eval()
    x, mask = torch.randn(2, 24, 8, dtype=torch.float64), torch.rand(2, 12) > 0.5
    grid = encoder.config.grids()[0]
    other = join(torch.where(mask[..., None], math.nan, cut(x, grid)), grid).requires_grad_()
    out = encoder(x, mask)
    assert not torch.equal(out, encoder(x))
    found = encoder(other, mask)
    assert torch.equal(found, out)
    found.sum().backward()
    gradient = cut(other.grad, grid)
    assert not gradient[mask].any() and gradient[~mask].any(-1).all() and encoder.mask_token.grad.any()
    plain = AudioTransformerEncoder(SMALL)
    assert sum(p.numel() for p in encoder.parameters()) - sum(p.numel() for p in plain.parameters()) == 16


def test_padding_counts_in_no_statistics():
    """Training: a clip beside padding gives the same running statistics whatever the padding holds, in tokens of padding only."""
    found = []
    for level in (-1.0, 50.0):
        torch.manual_seed(0)
        encoder = AudioTransformerEncoder(SMALL | {"conv_kernel_size": 1, "attention_window": 1, "layers": 1}).train()
        x, valid = torch.randn(2, 24, 8), torch.ones(2, 24, dtype=torch.bool)
        valid[1, 9:] = False                                # the third column holds one frame of sound
        x[1, 12:] = level
        encoder(x, valid=valid)
        found.append(encoder.stack.layers[0].convolution.inner.norm.running_var)
    assert torch.equal(*found)
    assert valid_tokens(valid, encoder.config.grids())[1].tolist() == [True] * 6 + [False] * 6


@pytest.mark.parametrize("options", [{}, {"use_conv_module": False}, {"drop_path_rate": 0.3, "drop_rate": 0.2},
                                     {"causal": True, "positions": "rotary"}], ids=["convolution", "none", "random", "causal"])
def test_checkpointing_changes_nothing(options):
    """Loss, gradients and running statistics to the bit, random numbers included."""
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        encoder = AudioTransformerEncoder(SMALL | {"gradient_checkpointing": checkpointing} | options).train()
        x = torch.randn(2, 24, 8)
        for step in range(2):
            torch.manual_seed(step)
            encoder(x).cos().sum().backward()
        results.append([*(p.grad for p in encoder.parameters()), *encoder.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("window", [None, 2, 40])
@pytest.mark.parametrize("axis", ["flat", "time", "2d"])
def test_the_future_never_leaks(axis, window):
    """Another future leaves earlier tokens and the reconstruction from them the same bits."""
    encoder, decoder = pair(torch.float32, **CAUSAL | {"conv_axis": axis, "attention_window": window, "conv_kernel_2d": (3, 3)})
    x = torch.randn(2, 96, 8)
    for now in (4, 36, 92):
        other = x.clone()
        other[:, now:] = torch.randn_like(other[:, now:]) * 30
        tokens, others = encoder(x), encoder(other)
        known = now // 4 * 2
        assert torch.equal(tokens[:, :known], others[:, :known]) and not torch.equal(tokens[:, known:], others[:, known:])
        drawn, other = decoder(tokens), decoder(others)
        assert torch.equal(drawn[:, :now], other[:, :now]) and not torch.equal(drawn[:, now:], other[:, now:])
    assert not torch.equal(encoder(x.flip(2))[:, 0], encoder(x)[:, 0]), "a column sees all its frequencies"
    torch.manual_seed(1)
    low = x.clone()
    low[:, :4, 4:] += 1                                     # the upper patch of the first column
    assert not torch.equal(encoder(low)[:, 0], encoder(x)[:, 0]) and not torch.equal(encoder(low)[:, 2], encoder(x)[:, 2])


def test_the_future_never_leaks_from_a_long_clip():
    """More keys than torch's attention takes at a time, with columns of which a whole block is out of reach."""
    encoder, _ = pair(torch.float32, **CAUSAL | {"attention_window": 3, "layers": 1, "use_conv_module": False})
    x = torch.randn(1, 4800, 8)
    other = x.clone()
    other[:, 2400:] = torch.randn(1, 2400, 8)
    tokens, others = encoder(x), encoder(other)
    assert tokens.isfinite().all() and torch.equal(tokens[:, :1200], others[:, :1200])
    assert not torch.equal(tokens[:, 1200:], others[:, 1200:])
    recent = other.clone()
    recent[:, :2388] = 0.0                                  # 3 columns back is 2 columns of 4 frames before its own
    assert torch.equal(encoder(recent)[:, 1200:], others[:, 1200:]), "the window reaches as far as it says"


def test_a_window_limits_what_symmetric_attention_sees():
    encoder, _ = pair(attention_window=2, layers=1, use_conv_module=False)
    x = torch.randn(1, 24, 8, dtype=torch.float64)
    other = x.clone()
    other[:, 12:16] += 1                                    # column 3
    changed = (encoder(x) != encoder(other)).any(2)[0].view(6, 2).any(1)
    assert changed.tolist() == [False, False, True, True, True, False]


@pytest.mark.parametrize("axis, window", [("flat", 3), ("time", 1), ("2d", 3)])
def test_streams_are_the_whole(axis, window):
    """Pieces of one and several columns; keys and values stop growing at the window."""
    encoder, decoder = pair(**CAUSAL | {"conv_axis": axis, "attention_window": window, "ls_init_value": 0.5})
    x = torch.randn(2, 96, 8, dtype=torch.float64)
    tokens = encoder(x)
    whole = decoder(tokens)
    states, at, found, drawn = [half.stack.start() for half in (encoder, decoder)], 0, [], []
    for columns in (1, 1, 5, 2, 8, 1, 6):
        found.append(encoder(x[:, at:at + 4 * columns], state=states[0]))
        drawn.append(decoder(found[-1], state=states[1]))
        at += 4 * columns
        assert states[0].layers[0].keys.shape[2] == min(2 * (window - 1), at // 4 * 2)
    assert at == 96 and (torch.cat(found, 1) - tokens).abs().max() < 1e-11 and (torch.cat(drawn, 1) - whole).abs().max() < 1e-11
    assert states[0].column == 24


def test_gradients_reach_every_parameter():
    for changes in ({}, {"positions": "factorised", "ls_init_value": 0.1}, {"patch_sizes": [4, 8], "conv_axis": "2d"},
                    CAUSAL | {"attention_window": 2}):
        encoder, decoder = pair(**changes)
        encoder.train(), decoder.train()
        decoder(encoder(torch.randn(2, 24, 8, dtype=torch.float64))).cos().sum().backward()
        for half in (encoder, decoder):
            assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in half.parameters()), changes


def test_attention_gradients():
    torch.manual_seed(0)
    attention, angles = Attention(8, 2).double(), torch.randn(5, 2, dtype=torch.float64)
    layout = Layout((), mask=torch.ones(5, 5, dtype=torch.bool).tril(), rotation=(angles.cos(), angles.sin()))
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: attention(x, layout), x, fast_mode=True)


def test_autocast_keeps_shapes_and_finite_numbers():
    encoder, decoder = pair(torch.float32, positions="rotary")
    x = torch.randn(2, 24, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = decoder(encoder(x))
    assert (out.float() - decoder(encoder(x))).abs().max() < 0.3
