"""Audio BSQ-ViT: the seed's call and returns, parameter counts, scaling, streaming, masked pre-training, files."""
import json
import os
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import normalize

from lib.encoders.bsq_vit import VARIANTS, AudioBSQModel
from lib.encoders.spectrogram_transformer import SpectrogramConfig

SMALL = {"input_size": 8, "input_length": 24, "patch_size": 4, "width": 16, "layers": 2, "heads": 2, "head_width": 12,
         "conv_kernel_size": 5}
STREAMED = SMALL | {"causal": True, "positions": "rotary", "attention_window": 3}


def model(bits=6, dtype=torch.float32, audioconfig=SMALL, **options):
    torch.manual_seed(0)
    return AudioBSQModel(audioconfig, bits, **options).to(dtype).eval()


def levels(clips=2, frames=24, dtype=torch.float32, seed=1):
    return torch.rand(clips, frames, 8, dtype=dtype, generator=torch.Generator().manual_seed(seed)) * -80


@pytest.mark.parametrize("name, plain, with_conv", [("small", 40_860_425, 50_549_513), ("standard", 174_275_602, 217_498_642),
                                                   ("large", 609_947_940, 762_958_116)])
def test_parameter_counts(name, plain, with_conv):
    """The published structure, to the parameter; one more vector with masked pre-training."""
    count = lambda **options: sum(p.numel() for p in AudioBSQModel.from_variant(name, **options).parameters())
    with torch.device("meta"):
        assert count(audioconfig={"use_conv_module": False}) == plain
        assert count() == with_conv
        tiny = lambda **options: sum(p.numel() for p in AudioBSQModel.from_variant("tiny", **options).parameters())
        assert tiny(masked_pretraining=True) == tiny() + VARIANTS["tiny"].width
        assert tiny(audioconfig={"causal": True}) == tiny(), "LayerNorm has as many as batch normalisation"


def test_variants():
    for name, sizes in list(VARIANTS.items())[:3]:
        with torch.device("meta"):
            made = AudioBSQModel.from_variant(name, {"input_length": 64}, embed_dim=7 if name == "quick" else sizes.embed_dim)
        assert (made.config.width, made.config.layers, made.config.heads, made.decoder_config.head_width) == sizes[1:]
        assert made.embed_dim == (7 if name == "quick" else sizes.embed_dim) and made.config.tokens == 32
    with pytest.raises(ValueError, match="'huge' is unknown; there are tiny, quick, small"):
        AudioBSQModel.from_variant("huge")


def test_the_seeds_call_and_returns():
    """Shapes of the notes: 16 x 16 patches of 1024 x 128 are 512 tokens; (B, T, F) and (B, 1, T, F)."""
    sizes = VARIANTS["tiny"]
    made = AudioBSQModel({"width": sizes.width, "layers": sizes.layers, "heads": sizes.heads}, embed_dim=18, l2_norm=True).eval()
    x = torch.rand(2, 1024, 128) * -80
    with torch.no_grad():
        reconstruction, loss, info = made(x)
        quantized, same_loss, same = made.encode(x[:, None])
        four = made(x[:, None])[0]
    assert reconstruction.shape == x.shape and four.shape == (2, 1, 1024, 128) and torch.equal(four[:, 0], reconstruction)
    assert quantized.shape == (2, 512, 18) and loss.shape == () and torch.equal(loss, same_loss)
    assert torch.equal(made.decode(quantized), reconstruction)
    assert quantized.abs().sub(18 ** -0.5).abs().max() < 1e-7 and torch.equal(quantized > 0, info["vectors"] > 0)
    assert info["indices"].shape == (2, 512) and info["indices"].dtype == torch.int64 and torch.equal(info["indices"], same["indices"])
    assert info["group_indices"].shape == (2, 512, 18) and info["avg_prob"].shape == (18, 2) and info["H"].shape == ()
    assert torch.equal(info["used_codes"], info["indices"].unique()) and made.train()(x[:, :, :])[2]["used_codes"] is None
    assert torch.equal(made.quantizer.indices_to_codes(info["indices"]), quantized)
    assert info["vectors"].norm(dim=-1).sub(1).abs().max() < 1e-5


def test_parts_are_joined_as_the_notes_say():
    """Scaling, projection, unit length, code, projection, decoder: written out."""
    made, x = model(dtype=torch.float64), levels(dtype=torch.float64)
    states = made.encoder(x / 40 + 1)
    vectors = normalize(states @ made.to_code.weight.mT + made.to_code.bias, dim=-1)
    codes = torch.where(vectors > 0, 1.0, -1.0).double() / 6 ** 0.5
    out = (made.decoder(codes @ made.from_code.weight.mT + made.from_code.bias) - 1) * 40
    reconstruction, loss, info = made(x)
    assert (info["vectors"] - vectors).abs().max() < 1e-12 and (info["quantized"].codes - codes).abs().max() < 1e-12
    assert (reconstruction - out.clamp(-80, 0)).abs().max() < 1e-10
    expected = made.quantizer(vectors)
    assert (loss - expected.loss).abs() < 1e-12 and (info["H"] - expected.codebook_entropy).abs() < 1e-12
    skipped, zero, nothing = made(x, skip_quantize=True)
    assert (skipped - ((made.decoder(made.from_code(vectors)) - 1) * 40).clamp(-80, 0)).abs().max() < 1e-10
    assert zero == 0 and nothing.keys() == info.keys() and nothing["indices"] is None


@pytest.mark.parametrize("clamp_range", [(-80.0, 0.0), (-100.0, 20.0)])
def test_levels_follow_the_range_and_are_limited_in_evaluation_only(clamp_range):
    low, high = clamp_range
    made = model(clamp_range=clamp_range)
    assert torch.equal(made._scale(torch.tensor([low, (low + high) / 2, high])), torch.tensor([-1.0, 0.0, 1.0]))
    with torch.no_grad():
        made.decoder.patches[0].bias.add_(torch.linspace(-3, 3, 16))
    x = (levels() / 80 + 1) * (high - low) + low
    limited, free = made(x)[0], made.train()(x)[0]
    assert limited.min() == low and limited.max() == high and free.min() < low and free.max() > high
    free.sum().backward()
    assert made.decoder.patches[0].bias.grad.ne(0).all(), "no gradient is lost at the borders while training"
    eighty = model()
    with torch.no_grad():
        eighty.decoder.patches[0].bias.add_(torch.linspace(-3, 3, 16))
    scaled = (eighty(levels())[0] + 80) / 80 * (high - low) + low
    torch.testing.assert_close(limited, scaled, rtol=0, atol=1e-3), "the same model whatever the range"


def test_options_reach_the_quantizer():
    made = model(6, post_q_l2_norm=False, embed_group_size=3, persample_entropy_compute="group", beta=0.5, gamma0=2.0, gamma=3.0, zeta=4.0,
                 inv_temperature=10.0)
    q = made.quantizer
    assert (q.scale, q.group_size, q.entropy, q.inverse_temperature) == (1.0, 3, "group", 10.0)
    assert (q.beta, q.gamma0, q.gamma, q.zeta) == (0.5, 2.0, 3.0, 4.0)
    codes, _, info = made.encode(levels())
    assert codes.abs().eq(1).all() and info["group_indices"].shape == (2, 12, 2) and info["avg_prob"].shape == (2, 8)
    free = model(6, l2_norm=False)
    assert free.encode(levels())[2]["vectors"].norm(dim=-1).sub(1).abs().max() > 1e-2
    assert model(64).encode(levels())[2]["indices"] is None and model(64).encode(levels())[2]["used_codes"] is None


def test_decoder_of_another_size():
    made = model(audioconfig=SMALL, daudioconfig=SMALL | {"width": 24, "layers": 1, "heads": 4, "use_conv_module": False})
    assert made(levels())[0].shape == (2, 24, 8) and made.from_code.out_features == 24
    assert made.config.layers == 2 and made.decoder_config.layers == 1


@pytest.mark.parametrize("options, words", [
    ({"daudioconfig": SMALL | {"patch_size": 8}}, "patches is"), ({"daudioconfig": SMALL | {"input_length": 48}}, "input_length is 24"),
    ({"daudioconfig": SMALL | {"causal": True}}, "causal is False"), ({"clamp_range": (0, -80)}, r"\(low, high\) in dB"),
    ({"clamp_range": (-80, float("inf"))}, "clamp_range"), ({"audioconfig": SMALL | {"head": 3}}, "'head' is unknown"),
    ({"quantizer": "fsq"}, "fsq"), ({"embed_group_size": 4}, "group_size")])
def test_impossible_models_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        model(**options)


@pytest.mark.parametrize("call, words", [
    (lambda m: m(torch.zeros(24, 8)), r"expected numbers in dB of shape \(clips, frames, bands\)"),
    (lambda m: m(torch.zeros(1, 2, 24, 8)), "clips, 1, frames, bands"), (lambda m: m(torch.zeros(1, 24, 8, dtype=torch.int64)), "int64"),
    (lambda m: m(torch.zeros(1, 28, 8)), "positions 'flat'"), (lambda m: m.decode(torch.zeros(1, 12, 7)), r"\(clips, tokens, 6\)"),
    (lambda m: m.decode(torch.zeros(1, 11, 6)), "11 tokens"), (lambda m: m.stream(), "causal=True"), (lambda m: m.stream(0), "chunk is 0"),
    (lambda m: m.train().stream(), "eval"), (lambda m: m(levels(), mask=torch.ones(2, 12, dtype=torch.bool)), "masked_pretraining=True"),
    (lambda m: m(levels(), valid=torch.ones(2, 12, dtype=torch.bool)), "24 frames"),
    (lambda m: m.encode_chunk(None, torch.zeros(1, 4, 9)), "input_size = 8")])
def test_wrong_calls_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(model())


def test_bits_do_not_depend_on_autocast_around_projection_and_quantizer():
    """Under bfloat16 the projection and everything behind it sees the encoder's states in float32."""
    made, x = model(18), levels()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = made.encoder(made._scale(x))
        vectors = made._vectors(states)
        codes, loss, info = made.encode(x)
        reconstruction = made.decode(codes)
    expected = normalize(states.float() @ made.to_code.weight.mT + made.to_code.bias, dim=-1)
    assert vectors.dtype == torch.float32 and (vectors - expected).abs().max() < 1e-6 and loss.dtype == torch.float32
    assert torch.equal(made.quantizer.indices_to_codes(info["indices"]), codes) and reconstruction.dtype == torch.float32


def test_padding_counts_in_no_statistics_and_no_loss():
    """Padding may hold what it likes where nothing mixes tokens; with all frames valid nothing changes."""
    apart = SMALL | {"conv_kernel_size": 1, "attention_window": 1}
    valid = torch.ones(2, 24, dtype=torch.bool)
    valid[1, 12:] = False
    found = []
    for seed in (1, 2):
        made, x = model(audioconfig=apart, beta=1.0).train(), levels()
        x[1, 12:] = levels(1, 12, seed=seed + 5)[0]
        _, loss, info = made(x, valid=valid)
        loss.backward()
        found.append([loss, info["avg_prob"], made.to_code.weight.grad, *made.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    made, x = model(), levels()
    assert torch.equal(made(x, valid=torch.ones_like(valid))[1], made(x)[1])
    info = made.encode(x, valid=valid)[2]
    assert torch.equal(info["used_codes"], torch.cat([info["indices"][0], info["indices"][1, :6]]).unique())


@pytest.mark.parametrize("changes", [{}, {"patch_sizes": [4, 8]}, {"conv_axis": "2d", "positions": "factorised"}],
                         ids=["plain", "scales", "2d"])
def test_training_learns(changes):
    """A few steps on one batch: the error falls, and every parameter gets a gradient."""
    torch.manual_seed(0)
    made = AudioBSQModel(SMALL | changes, 12, inv_temperature=10.0).train()
    time, band = torch.arange(24) / 24, torch.arange(8) / 8
    x = torch.stack([-40 + 35 * torch.sin(6 * (time[:, None] * a + band)) for a in (1, 3)])
    optimizer, errors = torch.optim.AdamW(made.parameters(), 3e-3), []
    for step in range(40):
        reconstruction, loss, _ = made(x)
        error = (reconstruction - x).abs().mean()
        (error / 40 + 0.1 * loss).backward()
        if step == 0:
            assert all(p.grad is not None and p.grad.any() for p in made.parameters())
        optimizer.step(), optimizer.zero_grad()
        errors.append(error.item())
    assert errors[-1] < 0.5 * errors[0]


def test_silence_is_finite():
    made = model().train()
    reconstruction, loss, _ = made(torch.full((2, 24, 8), -80.0))
    (reconstruction.mean() + loss).backward()
    assert reconstruction.isfinite().all() and loss.isfinite() and all(p.grad.isfinite().all() for p in made.parameters())
    zero = model()
    with torch.no_grad():
        zero.to_code.weight.zero_(), zero.to_code.bias.zero_()
    zero.train()(levels())[1].backward()
    assert zero.to_code.weight.grad.isfinite().all(), "a vector of length 0 stays 0"


def test_masked_pretraining():
    made, x, mask = model(masked_pretraining=True), levels(), torch.rand(2, 12) > 0.5
    hidden = mask.view(2, 6, 2).repeat_interleave(4, 1).repeat_interleave(4, 2)
    other = torch.where(hidden, levels(seed=9), x)
    assert torch.equal(made(x, mask=mask)[0], made(other, mask=mask)[0]) and not torch.equal(made(x)[0], made(other)[0])


# `step` is the same in every process; what it returns are sums over processes where a batch was shared
STEP = """
import torch
from lib import distributed
from lib.encoders.bsq_vit import AudioBSQModel

def step(case, part, average):
    torch.manual_seed(0)
    made = AudioBSQModel(case["config"], 6, inv_temperature=10.0, beta=0.3).double().train()
    x, valid = case["x"][part], case["valid"][part]
    out = {}
    for number in range(2):
        reconstruction, loss, _ = made(x, valid=valid)
        error = distributed.gather((reconstruction - x).abs())[case["valid"]].mean() / 40
        (error + loss).backward()
        for parameter in made.parameters():
            average(parameter.grad)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
        out |= {f"error{number}": error.detach(), f"loss{number}": loss.detach()}
    return out | made.state_dict()
"""
TWO = STEP + """
import sys, torch.distributed as dist
dist.init_process_group("gloo", init_method="file://" + sys.argv[3], rank=int(sys.argv[4]), world_size=2)
def average(gradient):
    dist.all_reduce(gradient)
    gradient /= 2
result = step(torch.load(sys.argv[1], weights_only=True), slice(0, 1) if distributed.rank() == 0 else slice(1, None), average)
if distributed.rank() == 0:
    torch.save(result, sys.argv[2])
distributed.leave()
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """Uneven shares with padding, convolution and batch normalisation on, checkpointing on: losses, weights after two steps, statistics."""
    valid = torch.arange(24) < torch.tensor([24, 10, 17])[:, None]
    case = {"config": SMALL | {"gradient_checkpointing": True}, "x": levels(3, dtype=torch.float64), "valid": valid}
    torch.save(case, tmp_path / "case.pt")
    (tmp_path / "two.py").write_text(TWO)
    files = [str(tmp_path / name) for name in ("two.py", "case.pt", "out.pt", "meeting")]
    processes = [subprocess.Popen([sys.executable, *files, str(rank)], stderr=subprocess.PIPE, text=True,
                                  env=os.environ | {"OMP_NUM_THREADS": "1"})
                 for rank in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert not any(process.returncode for process in processes), "".join(errors)
    scope = {}
    exec(STEP, scope)
    one, two = scope["step"](case, slice(None), lambda gradient: None), torch.load(tmp_path / "out.pt", weights_only=True)
    assert one.keys() == two.keys() and one["loss0"] != one["loss1"]
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-11, msg=lambda words: f"{name}: {words}")


@pytest.mark.parametrize("checkpointing", ["model", "audioconfig"])
def test_checkpointing_is_understood_in_both_places(checkpointing):
    """The same gradients and batch statistics, in encoder and decoder."""
    with_it = {"audioconfig": SMALL | {"grad_checkpointing": True}} if checkpointing == "audioconfig" else {"grad_checkpointing": True}
    results = []
    for options in ({}, with_it):
        made = model(**options).train()
        if options:
            assert made.config.gradient_checkpointing and made.decoder_config.gradient_checkpointing
        reconstruction, loss, _ = made(levels())
        (reconstruction.square().mean() + loss).backward()
        results.append([loss, *(p.grad for p in made.parameters()), *made.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def feed(made, x, cuts, chunk):
    """Codes and frames of a stream fed with pieces that end at `cuts`; the codes go on in uneven pieces too."""
    stream, borders = made.stream(chunk), [0, *cuts, x.shape[1]]
    codes = [made.encode_chunk(stream, x[:, a:b], last=b == x.shape[1]) for a, b in zip(borders, borders[1:])]
    codes = torch.cat(codes, dim=1)
    parts = codes.split(5, dim=1)
    frames = [made.decode_chunk(stream, part, last=i == len(parts) - 1) for i, part in enumerate(parts)]
    return codes, torch.cat(frames, dim=1), stream


def test_a_stream_is_the_whole():
    """Any pieces: the same bits for one chunk size, and up to rounding those of the whole spectrogram at once."""
    made, x = model(18, audioconfig=STREAMED), levels(2, 152)
    with torch.no_grad():
        offline, _, info = made.encode(x)
        reconstruction = made.decode(offline)
    clear = info["vectors"].abs().amin(-1) > 1e-5
    for chunk in (1, 3, 8, 100):
        found = [feed(made, x, cuts, chunk) for cuts in ([], [1, 2, 3, 50, 51], list(range(7, 152, 7)))]
        for codes, frames, _ in found:
            assert torch.equal(codes, found[0][0]) and torch.equal(frames, found[0][1])
        assert torch.equal(found[0][0][clear], offline[clear]) and clear.double().mean() > 0.95
        if torch.equal(found[0][0], offline):
            assert (found[0][1] - reconstruction).abs().max() < 1e-3
    codes, frames, _ = feed(made, x[:, :149], [60], 8)
    padded = torch.cat([x[:, :149], x.new_full((2, 3, 8), -80.0)], dim=1)
    assert torch.equal(codes, feed(made, padded, [], 8)[0]) and frames.shape == (2, 152, 8), "filled with the lowest level"


def test_a_stream_gives_what_is_complete_and_keeps_no_more():
    made = model(audioconfig=STREAMED)
    stream, sizes = made.stream(2), []
    assert made.encode_chunk(stream, levels(1, 7)).shape == (1, 0, 6)
    assert made.encode_chunk(stream, levels(1, 2)).shape == (1, 4, 6), "2 columns of 2 tokens"
    for _ in range(30):
        codes = made.encode_chunk(stream, levels(1, 11))
        made.decode_chunk(stream, codes)
        sizes.append(sum(t.untyped_storage().nbytes() for state in (stream.encoder, stream.decoder) for layer in state.layers
                         for t in (layer.keys, layer.values, layer.past.tokens) if t is not None)
                     + sum(t.untyped_storage().nbytes() for t in stream.frames + stream.codes))
    assert max(sizes[10:]) <= max(sizes[:10]), "memory is constant"
    # 7 + 2 + 30 * 11 = 339 frames are 85 columns, of which 84 went out in chunks of 2
    assert [made.encode_chunk(stream, levels(1, 0), last=True).shape[1] for _ in range(2)] == [2, 0]
    with pytest.raises(ValueError, match="some are missing"):
        made.decode_chunk(made.stream(), torch.ones(1, 3, 6), last=True)


def test_the_future_never_leaks_through_the_model():
    made, x = model(18, audioconfig=STREAMED | {"conv_axis": "2d"}), levels(1, 96)
    other = x.clone()
    other[:, 48:] = levels(1, 48, seed=7)
    a, b = made(x), made(other)
    assert torch.equal(a[0][:, :48], b[0][:, :48]) and torch.equal(a[2]["indices"][:, :24], b[2]["indices"][:, :24])
    assert not torch.equal(a[2]["indices"][:, 24:], b[2]["indices"][:, 24:])


def test_saved_and_read_back(tmp_path):
    made = model(audioconfig=STREAMED | {"conv_kernel_2d": [5, 3]}, daudioconfig=STREAMED | {"layers": 1}, inv_temperature=10.0,
                 clamp_range=(-70, 5), masked_pretraining=True)
    made.train()(levels())
    again = AudioBSQModel.from_pretrained(made.eval().save_pretrained(tmp_path / "model"))
    assert not again.training and again.to_dict() == made.to_dict() and json.loads(json.dumps(made.to_dict())) == made.to_dict()
    assert torch.equal(again(levels())[0], made(levels())[0])
    assert {name.split(".")[0] for name in made.state_dict()} == {"encoder", "decoder", "to_code", "from_code"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(made.to_dict() | {"embed_dims": 3}))
    with pytest.raises(ValueError, match="config.json: .*embed_dims"):
        AudioBSQModel.from_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "clap"}))
    with pytest.raises(ValueError, match="config.json: model_type is 'clap', expected 'audio-bsq-vit'"):
        AudioBSQModel.from_pretrained(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match="nowhere is no tokenizer"):
        AudioBSQModel.from_pretrained(tmp_path / "nowhere")


def test_config_object_or_dictionary():
    a, b = model(audioconfig=SpectrogramConfig.of(SMALL)), model(audioconfig=SMALL)
    assert a.to_dict() == b.to_dict() and torch.equal(a(levels())[0], b(levels())[0])


@pytest.mark.parametrize("name", ["vq", "lfq"])
def test_baselines_take_the_same_place(name):
    pytest.importorskip("vector_quantize_pytorch")
    pytest.importorskip("lib.quantize.baselines")
    made = model(9, quantizer=name, audioconfig=SMALL).train()
    reconstruction, loss, info = made(levels())
    (reconstruction.square().mean() + loss).backward()
    assert reconstruction.shape == (2, 24, 8) and made.to_code.weight.grad.isfinite().all() and info["indices"].shape == (2, 12)
    again = AudioBSQModel.from_dict(made.to_dict())
    again.load_state_dict(made.state_dict())
