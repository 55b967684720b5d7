"""The tokenizer family: losses written out, learning, resume with discriminator and averages, files that give the model's drawing back."""
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from lib import encoders, training
from lib.audio.inversion import invert
from lib.audio.mel import PRESETS, MelFrontEnd, mask_spectrogram
from lib.data.manifest import Manifest
from lib.encoders import tokenizer_files
from lib.encoders.spectrogram_transformer import valid_tokens
from lib.encoders.tokenizer_files import Codec
from lib.encoders.vocoder import Vocoder, VocoderConfig
from lib.families import tokenizer
from lib.families.tokenizer import Tokenizer, TokenizerConfig, analyse, hidden_tokens, load, predict_mean, reconstruct, scaled, tokens
from lib.glossary import ParameterError
from lib.media.token_files import read_tokens
from lib.training import checkpoint, loop
from tests.runs import same_in_one_and_two, stop_and_resume, weights

RATE = 4000
SMALL = dict(dataset="folder", sample_rate=RATE, n_fft=256, hop=64, n_mels=16, frames=32, variant="tiny", embed_dim=12, width=32, layers=1,
             heads=2, head_width=32, patch_size=8, conv_kernel_size=3, epochs=2, batch_size=8, learning_rate=3e-3, start_learning_rate=0.0,
             floor_learning_rate=0.0, warmup_epochs=0.5, decay_epochs=1.5, codebook_rampup_steps=4, threads=1, device="cpu")
CAUSAL = SMALL | dict(causal=True, positions="rotary", attention_window=3, centred=False, reference=40.0)
GAME = dict(disc_weight=0.1, disc_ndf=4, disc_num_layers=1, disc_start=1, disc_reg_freq=2, ema_decay=0.9)


def sweep(seconds, seed=0, rate=RATE):
    """A tone that moves, with noise: sound whose mel levels say something."""
    rng, time = np.random.default_rng(seed), np.arange(round(rate * seconds)) / rate
    pitch = rng.uniform(200, 900) * (1 + 0.5 * np.sin(2 * np.pi * rng.uniform(0.5, 3) * time))
    return (0.2 * np.sin(2 * np.pi * np.cumsum(pitch) / rate) + 0.003 * rng.normal(size=len(time))).astype(np.float32)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """40 sounds of 0.2 to 0.6 s; windows have 0.496 s, so that most clips are padded and some are cut."""
    folder, rows = tmp_path_factory.mktemp("sweeps"), []
    for k in range(40):
        seconds = 0.2 + 0.4 * (k % 5) / 4
        soundfile.write(folder / f"{k}.wav", sweep(seconds, k), RATE)
        split = "train" if k < 24 else "val" if k < 32 else "test"
        rows.append({"clip_id": f"{k}", "path": f"{k}.wav", "start": 0.0, "duration": seconds, "split": split, "captions": [], "labels": []})
    return Manifest(pd.DataFrame(rows), "folder", folder, {})


def config(**changes):
    return TokenizerConfig(**SMALL | changes)


@pytest.fixture(scope="module")
def trained(clips, tmp_path_factory):
    """A model that has learnt something, and its run."""
    long = config(epochs=20, batch_size=4, decay_epochs=19.0, inv_temperature=10.0, selection="last")
    return loop.fit(Tokenizer(long, clips), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def causal(clips, tmp_path_factory):
    """Checkpoint of a causal model."""
    return loop.fit(Tokenizer(TokenizerConfig(**CAUSAL), clips), tmp_path_factory.mktemp("causal")).checkpoint


def test_defaults_are_the_published_model():
    """18 bits, 174 million parameters and the convolutions; 500,000 steps at 1e-4 with betas (0.9, 0.99)."""
    c = TokenizerConfig()
    with torch.device("meta"):
        model = tokenizer.build(c)
    assert sum(p.numel() for p in model.parameters()) == 217_498_642 and model.config.tokens == 512 and model.embed_dim == 18
    assert c.betas == (0.9, 0.99) and c.gradient_clip == 1.0 and c.weight_decay == 1e-4
    steps = 28539 / 32
    assert c.epochs * steps == pytest.approx(500_000, rel=1e-2) and c.warmup_epochs * steps == pytest.approx(5000, rel=1e-2)
    assert c.floor_learning_rate == c.learning_rate / 2 and c.start_learning_rate == c.learning_rate / 10
    assert TokenizerConfig(variant="large").audioconfig["layers"] == 24 and TokenizerConfig(variant="large", layers=3).size("layers") == 3


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_decides_front_end_and_input_alike(name):
    c = TokenizerConfig(preset=name)
    assert c.mel == PRESETS[name] and (c.audioconfig["input_size"], c.audioconfig["input_length"]) == (c.mel.mels, c.mel.frames)
    assert TokenizerConfig(preset=name, n_mels=64, frames=128).audioconfig["input_size"] == 64


@pytest.mark.parametrize("changes, words", [
    ({"n_mels": 20}, "patch_size = 8 does not divide input_size = 20.*input_size is n_mels"), ({"heads": 5}, "heads = 5"),
    ({"clamp_range": (0.0, -80.0)}, "clamp_range"), ({"betas": (0.9,)}, "betas are two numbers"), ({"positions": "1d"}, "positions"),
    ({"patch_sizes": (8, 16), "mask_ratio": 0.5}, "another scale would show them"), ({"quantizer": "fsq"}, "quantizer"),
    ({"disc_weight": 0.1, "disc_num_layers": 4}, "disc_num_layers=4 needs 48 frames"), ({"centred": "yes"}, "centred")])
def test_impossible_values_are_refused(changes, words):
    with pytest.raises(ParameterError, match=words):
        config(**changes)


def test_losses_written_out(clips):
    """Every term of a step from its definition: masked input, whole target, valid frames only, ramp of the quantizer's weight."""
    c = config(mel_loss_weight=0.5, reconstruct_weight=2.0, inv_temperature=10.0, beta=0.3)
    learner = Tokenizer(c, clips)
    batch = next(learner.batches(0, 1))
    assert batch["step"] == 1
    found = {name: value.item() for name, value in learner.losses(learner.model.train(), batch).items()}
    mels = analyse(learner.front_end, batch)
    assert 0.2 < float((~mels.valid).float().mean()) < 0.8
    given = mask_spectrogram(mels.levels, batch["seeds"], fill=-80.0, valid=mels.valid)
    assert not torch.equal(given, mels.levels)
    again = Tokenizer(c, clips).model.train()
    with torch.no_grad():
        drawn, quantizer, info = again(given, valid=mels.valid)
    error = ((drawn - mels.levels) / 40).abs()[mels.valid].mean()
    assert found["reconstruction"] == pytest.approx(float(error), rel=1e-5) and found["MAE"] == pytest.approx(40 * float(error), rel=1e-5)
    assert found["quantizer"] == pytest.approx(float(quantizer), rel=1e-5)
    assert found["entropy"] == pytest.approx(float(info["quantized"].persample_entropy))
    ramp = 1 + (3 - 1) * (1 - 1 / 4)
    assert found["loss"] == pytest.approx(2 * float(error) + 0.5 * float(found["mel"]) + 0.1 * ramp * float(quantizer), rel=1e-5)
    assert [learner.ramp(step) for step in (0, 2, 4, 100)] == [3.0, 2.0, 1.0, 1.0]
    assert Tokenizer(config(codebook_rampup_steps=0), clips).ramp(0) == 1.0


def test_padding_counts_in_no_loss(clips):
    """What stands in padded frames changes neither loss nor gradients, discriminator included."""
    found = []
    for noise in (0.0, 1.0):
        learner = Tokenizer(config(conv_kernel_size=1, attention_window=1, use_conv_module=False, augment=False, **GAME), clips)
        batch = next(learner.batches(0, 1))
        mels = analyse(learner.front_end, batch)
        valid = valid_tokens(mels.valid, learner.model.config.grids(32))
        frames = valid[:, ::2].repeat_interleave(8, 1)      # attention mixes the two rows of a column, and no others
        other = torch.where(frames[..., None], mels.levels, mels.levels + noise * 20)
        learner.front_end.forward = lambda *_: mels._replace(levels=other)
        losses = learner.losses(learner.model.train(), batch)
        losses["loss"].backward()
        theirs = learner.adversary_losses()
        found.append([*losses.values(), *theirs.values(), *(p.grad for p in learner.model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_the_original_target_and_l2(clips):
    learner = Tokenizer(config(augment_target=True, rec_loss="l2"), clips)
    batch = next(learner.batches(0, 0))
    found = {name: value.item() for name, value in learner.losses(learner.model.train(), batch).items()}
    mels = analyse(learner.front_end, batch)
    given = mask_spectrogram(mels.levels, batch["seeds"], fill=-80.0, valid=mels.valid)
    with torch.no_grad():
        drawn = Tokenizer(config(), clips).model.train()(given, valid=mels.valid)[0]
    assert found["reconstruction"] == pytest.approx(float(((drawn - given) / 40).square()[mels.valid].mean()), rel=1e-5)
    assert found["MAE"] == pytest.approx(float((drawn - mels.levels).abs()[mels.valid].mean()), rel=1e-5), "of the whole levels"


def test_masked_pretraining_hides_its_share_and_hands_over(clips, tmp_path):
    hidden = hidden_tokens([1, 2, 1], 8, 0.6)
    assert hidden.sum(1).tolist() == [5, 5, 5] and torch.equal(hidden[0], hidden[2]) and not torch.equal(hidden[0], hidden[1])
    learner = Tokenizer(config(mask_ratio=0.5, augment=False), clips)
    seen = []
    learner.model.register_forward_pre_hook(lambda module, given: seen.append(given))
    batch = next(learner.batches(0, 0))
    learner.losses(learner.model.train(), batch)["loss"].backward()
    assert torch.equal(seen[0][1], hidden_tokens(batch["seeds"], 8, 0.5)) and learner.model.encoder.mask_token.grad.any()
    folder = learner.save(tmp_path / "masked")
    plain = Tokenizer(config(initial_checkpoint=str(folder)), clips)
    assert plain.model.encoder.mask_token is None and torch.equal(plain.model.to_code.weight, learner.model.to_code.weight)
    again = Tokenizer(config(initial_checkpoint=str(plain.save(tmp_path / "plain")), mask_ratio=0.5), clips)
    assert again.model.encoder.mask_token is not None and torch.equal(again.model.to_code.weight, learner.model.to_code.weight)
    assert config(initial_checkpoint=str(folder)).inputs() != config().inputs() == ()


def test_it_learns(clips, trained):
    model, c, front_end = load(trained.checkpoint)
    assert isinstance(front_end, MelFrontEnd) and front_end.config == c.mel and not model.training
    found, arrays = reconstruct(model, c, clips.select("test"), keep=3)
    mean, _ = predict_mean(c, clips.select("train"), clips.select("test"))
    assert found["MAE"] < 0.75 * mean["MAE"] and found["MSE"] < mean["MSE"], (found, mean)
    assert arrays["levels"].shape == arrays["drawn"].shape == (3, 32, 16) and arrays["peak"].shape == (3,)
    assert found["codebook"]["tokens"] == int(tokens(model, c, clips.select("test"))["valid"].sum())
    first, last = ([row for row in trained.history if "train/MAE" in row][place]["train/MAE"] for place in (0, -1))
    assert last < 0.8 * first


def test_metrics_written_out(clips, trained):
    """All valid values alike, whatever the batch; the mean is that of the training clips, band by band."""
    model, c, front_end = load(trained.checkpoint)
    part, wave = clips.select("val"), []
    for row in range(8):
        whole = torch.from_numpy(soundfile.read(part.file(row), dtype="float32")[0])
        wave.append(whole[max(0, len(whole) - c.mel.samples) // 2:][:c.mel.samples])       # the middle of a clip that is too long
    mels = [front_end(w[None]) for w in wave]
    with torch.no_grad():
        difference = torch.cat([(model(m.levels)[0] - m.levels)[m.valid] for m in mels]).double()
    for size in (8, 3):
        found, arrays = reconstruct(model, replace(c, batch_size=size), part)
        assert found["MAE"] == pytest.approx(float(difference.abs().mean()), rel=1e-5)
        assert found["MSE"] == pytest.approx(float(difference.square().mean()), rel=1e-5) and found["loss"] == pytest.approx(found["MAE"] / 40)
        assert arrays["row"].tolist() == list(range(8)) and found["clips"] == 8 and found["frames"] == sum(int(m.valid.sum()) for m in mels)
        assert np.average(arrays["MAE"], weights=arrays["frames"]) == pytest.approx(found["MAE"])
    found, arrays = predict_mean(c, part, part)
    levels = torch.cat([m.levels[m.valid] for m in mels]).double()
    np.testing.assert_allclose(arrays["mean"], levels.mean(0), rtol=1e-5)
    assert found["MAE"] == pytest.approx(float((levels - levels.mean(0)).abs().mean()), rel=1e-5)
    unquantized, _ = reconstruct(model, c, part, skip_quantize=True)
    assert "codebook" not in unquantized and unquantized["MAE"] != found["MAE"]


def test_a_clip_that_cannot_be_read_is_left_out(clips, trained, tmp_path):
    model, c, _ = load(trained.checkpoint)
    shutil.copytree(clips.root, tmp_path / "sounds")
    part = replace(clips.select("val"), root=tmp_path / "sounds")
    part.file(2).write_bytes(b"nothing")
    found, arrays = reconstruct(model, c, part)
    assert found["left out"] == 1 and arrays["row"].tolist() == [0, 1, 3, 4, 5, 6, 7] and 2 not in tokens(model, c, part)["row"]
    for row in range(8):
        part.file(row).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no clip of this split"):
        reconstruct(model, c, part)
    with pytest.raises(ValueError, match="no training clip"):
        predict_mean(c, part, part)


@pytest.mark.parametrize("changes", [GAME | {"accumulation": 2}, {"mask_ratio": 0.5, "quantizer": "vq", "embed_dim": 9}],
                         ids=["game", "vq"])
def test_a_stopped_run_ends_with_the_same_bits(clips, tmp_path, changes):
    """Discriminator, its optimiser, averages and both sets of weights included."""
    run = stop_and_resume(Tokenizer, config(checkpoint_steps=1, drop_rate=0.1, **changes), clips, tmp_path, 4)
    assert run.steps == (4 if changes.get("accumulation") else 6)
    one, two = (checkpoint.load_state(tmp_path / half / "checkpoints" / run.checkpoint.name) for half in ("whole", "halves"))
    for name in ("weights", "adversary"):
        assert (name in one) == (name in two) == bool(changes.get({"weights": "ema_decay", "adversary": "disc_weight"}[name]))
        if name in one:
            flat = lambda entry: {f"{k}.{n}": v for k, part in entry.items() for n, v in (part.items() if isinstance(part, dict) else [("", part)])}
            for key, value in flat(one[name]).items():
                assert not isinstance(value, torch.Tensor) or torch.equal(value, flat(two[name])[key]), key


def test_averages_are_what_is_validated_and_loaded(clips, tmp_path):
    """Validation scores the averages, which are the checkpoint's model; the run goes on from the weights themselves."""
    c = config(ema_decay=0.99, selection="last")
    learner = Tokenizer(c, clips)
    run = loop.fit(learner, tmp_path)
    saved, state = weights(run), checkpoint.load_state(run.checkpoint)
    own = learner.model.state_dict()
    assert all(torch.equal(state["weights"][name], own[name]) for name in own), "after validation and saving the model has its own weights again"
    assert not torch.equal(saved["to_code.weight"], own["to_code.weight"])
    model, used, _ = load(run.checkpoint)
    assert torch.equal(model.to_code.weight, saved["to_code.weight"])
    scored = reconstruct(model, used, clips.select("val"))[0]["MAE"]
    assert scored == pytest.approx([row for row in run.history if "val/MAE" in row][-1]["val/MAE"], rel=1e-6)


def test_the_discriminator_waits_and_is_frozen_for_the_model(clips, tmp_path):
    learner = Tokenizer(config(**GAME), clips)
    first, second = (learner.batches(0, step) for step in (0, 1))
    losses = learner.losses(learner.model.train(), next(first))
    assert losses["generator"] == 0 and learner.adversary_losses() == {}
    batch = next(second)
    losses = learner.losses(learner.model.train(), batch)
    losses["loss"].backward()
    assert losses["generator"] != 0 and all(p.grad is None and p.requires_grad for p in learner.adversary.parameters())
    theirs = learner.adversary_losses()
    assert theirs["r1"] == 0 and theirs["loss"] == theirs["real or fake"]
    learner.losses(learner.model, batch | {"step": 2})
    theirs = learner.adversary_losses()
    assert theirs["r1"] > 0 and theirs["loss"] == theirs["real or fake"] + theirs["r1"]
    before = {name: p.grad.clone() for name, p in learner.model.named_parameters()}
    theirs["loss"].backward()
    assert all(torch.equal(before[name], p.grad) for name, p in learner.model.named_parameters()), "the game gives the model its own part only"
    run = loop.fit(Tokenizer(config(**GAME), clips), tmp_path)
    row = [row for row in run.history if "train/loss" in row][-1]
    assert {"train/generator", "train/adversary loss", "train/adversary r1"} <= row.keys()
    assert {"network", "optimizer"} == checkpoint.load_state(run.checkpoint)["adversary"].keys()


@pytest.mark.parametrize("changes, words", [
    ({"embed_dim": 9}, "embed_dim is 9, but the model in .*config.json was made with 12"), ({"n_fft": 512}, "n_fft is 512.*made with 256"),
    ({"layers": 2}, "layers is 2.*made with 1"), ({"decoder_layers": 2}, "decoder's layers is 2"), ({"quantizer": "lfq"}, "quantizer is lfq.*bsq"),
    ({"clamp_range": (-60.0, 0.0)}, "clamp_range is"), ({"conv_axis": "time"}, "conv_axis is time"), ({"frames": 64}, "frames is 64"),
    ({"l2_norm": False}, "l2_norm is False")])
def test_another_structure_is_refused_by_name(clips, trained, changes, words):
    with pytest.raises(ValueError, match=words):
        Tokenizer(config(initial_checkpoint=str(trained.checkpoint), **changes), clips)
    with pytest.raises(ValueError, match=words):
        load(trained.checkpoint, **changes)


def test_a_run_that_does_not_fit_is_not_resumed(clips, trained, tmp_path):
    with pytest.raises(ValueError, match="layers is 2, but the model in .* was made with 1"):
        loop.fit(Tokenizer(config(layers=2), clips), trained.folder)
    with pytest.raises(FileNotFoundError, match="no checkpoint of a tokenizer"):
        tokenizer.check_structure(config(), tmp_path)
    assert load(trained.checkpoint, inv_temperature=5.0, batch_size=3)[1].batch_size == 3, "how it learns may differ"


# ---- files

@pytest.fixture
def sounds(tmp_path):
    """A folder with sounds of several windows, one window, and one that is none."""
    folder = tmp_path / "in"
    (folder / "deeper").mkdir(parents=True)
    soundfile.write(folder / "long.wav", sweep(1.7, 5), RATE, "FLOAT")
    soundfile.write(folder / "deeper" / "short.flac", sweep(0.2, 6, 8000), 8000)
    soundfile.write(folder / "soft.wav", 0.1 * sweep(1.7, 5), RATE, "FLOAT")
    (folder / "broken.wav").write_bytes(b"RIFF nothing")
    return folder


def run_cli(*arguments):
    return tokenizer.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("coding", ["packed", "arithmetic"])
def test_files_give_the_models_own_drawing_back(trained, sounds, tmp_path, capsys, coding):
    """Bit for bit, over all windows; a bad file is told and the others go on; what is finished is not repeated."""
    out = tmp_path / "out"
    arguments = ("encode", "--checkpoint", trained.checkpoint, "--out", out, sounds, "--coding", coding)
    assert run_cli(*arguments) == 1
    said = capsys.readouterr()
    assert "failed:" in said.err and "broken.wav" in said.err
    assert sorted(p.name for p in out.rglob("*.tok")) == ["long.wav.tok", "short.flac.tok", "soft.wav.tok"]
    codec, (model, c, front_end) = Codec.from_pretrained(trained.checkpoint), load(trained.checkpoint)
    for name in ("long.wav", "deeper/short.flac"):
        wave = tokenizer_files.audio.read(sounds / name, sample_rate=RATE)[0]
        own, peaks = [], []
        for piece in wave.split(c.mel.samples):
            mels = front_end(piece[None])
            with torch.inference_mode():
                own.append(model(mels.levels, valid=mels.valid)[0][0])
            peaks.append(float(mels.peak))
        reader = tokenizer_files.TokenReader(out / f"{name}.tok", codec.digest)
        drawn = list(codec.levels(reader))
        assert len(drawn) == len(own) and all(torch.equal(one, other[0]) for one, other in zip(own, drawn))
        assert [float(peak) for _, peak in drawn] == peaks and reader.samples == len(wave)
    long = read_tokens(out / "long.wav.tok")
    assert long.header.coding == coding and len(long.bits) == 4 * 8 and long.bits.shape[1] == 12
    before = (out / "long.wav.tok").stat().st_mtime_ns
    assert run_cli(*arguments) == 1 and (out / "long.wav.tok").stat().st_mtime_ns == before and "is there already" in capsys.readouterr().out
    (out / "long.wav.tok").write_bytes(b"half of it")
    run_cli(*arguments)
    assert read_tokens(out / "long.wav.tok").samples == long.samples, "a damaged one is made again"


@pytest.mark.parametrize("changes", [{"quantizer": "vq", "embed_dim": 9}, {"quantizer": "lfq", "embed_dim": 18}, {"patch_sizes": (8, 16)},
                                     {"centred": False, "reference": 30.0, "positions": "factorised", "conv_axis": "2d"}],
                         ids=["vq", "lfq", "scales", "fixed reference"])
def test_every_kind_of_model_writes_files(clips, sounds, tmp_path, changes):
    torch.manual_seed(0)
    codec = Codec.from_pretrained(Tokenizer(config(**changes), clips).save(tmp_path / "model"))
    reader = codec.encode(sounds / "long.wav", tmp_path / "long.tok")
    mels = MelFrontEnd(codec.mel)(torch.from_numpy(sweep(1.7, 5)[:codec.mel.samples])[None])
    with torch.inference_mode():
        own = codec.model(mels.levels, valid=mels.valid)[0][0]
    drawn = list(codec.levels(reader))
    assert torch.equal(drawn[0][0], own) and len(drawn) == -(-reader.samples // codec.mel.samples)
    assert float(drawn[0][1]) == changes.get("reference", float(mels.peak)) and len(read_tokens(tmp_path / "long.tok").peaks) == (
        0 if "reference" in changes else len(drawn))
    assert codec.decode(tmp_path / "long.tok", tmp_path / "long.wav") == pytest.approx(1.7)
    with pytest.raises(ValueError, match="cannot be streamed" if "quantizer" in changes else "causal"):
        codec.header(streamed=True)
    with pytest.raises(ValueError, match="is a tokenizer, which has no text tower"):
        encoders.load(tmp_path / "model")


def test_sounds_come_back(trained, sounds, tmp_path, capsys):
    out, back = tmp_path / "out", tmp_path / "back"
    run_cli("encode", "--checkpoint", trained.checkpoint, "--out", out, sounds)
    capsys.readouterr()
    assert run_cli("decode", "--checkpoint", trained.checkpoint, "--out", back, out) == 0
    (wave, rate), (soft, _) = (soundfile.read(back / name) for name in ("long.wav", "soft.wav"))
    codec = Codec.from_pretrained(trained.checkpoint)
    drawn = codec.levels(tokenizer_files.TokenReader(out / "long.wav.tok"))
    own = torch.cat([invert(levels[None], peak[None], codec.mel)[0] for levels, peak in drawn])
    assert rate == RATE and len(wave) == len(soft) == len(sweep(1.7, 5)) and (back / "deeper" / "short.flac.wav").is_file()
    np.testing.assert_allclose(wave, own[:len(wave)], atol=2e-4)
    np.testing.assert_allclose(soft, 0.1 * wave, atol=1e-4), "loudness comes back from the stored peak"
    assert np.abs(soft).max() > 2e-4
    before = (back / "long.wav").stat().st_mtime_ns
    assert run_cli("decode", "--checkpoint", trained.checkpoint, "--out", back, out / "long.wav.tok") == 0
    assert (back / "long.wav").stat().st_mtime_ns == before and "is there already" in capsys.readouterr().out
    torch.manual_seed(0)
    vocoder = Vocoder(VocoderConfig(size="tiny", mel=codec.mel)).save_pretrained(tmp_path / "vocoder")
    assert run_cli("decode", "--checkpoint", trained.checkpoint, "--out", back, "--vocoder", vocoder, out / "long.wav.tok") == 0
    other, _ = soundfile.read(back / "long.wav")
    assert len(other) == len(wave) and not np.array_equal(other, wave), "another vocoder is another file"
    Vocoder(VocoderConfig(size="tiny", mel=replace(codec.mel, hop=32))).save_pretrained(tmp_path / "vocoder")
    assert run_cli("decode", "--checkpoint", trained.checkpoint, "--out", back, "--vocoder", vocoder, out / "long.wav.tok") == 1
    assert "trained with hop = 32" in capsys.readouterr().err


def test_files_of_another_model_and_bad_ones_are_refused(trained, causal, sounds, tmp_path, capsys):
    out = tmp_path / "out"
    run_cli("encode", "--checkpoint", causal, "--out", out, sounds / "long.wav")
    (out / "no.tok").write_bytes(b"something else")
    (out / "cut.tok").write_bytes((out / "long.wav.tok").read_bytes()[:-3])
    capsys.readouterr()
    assert run_cli("decode", "--checkpoint", trained.checkpoint, "--out", tmp_path / "back", out) == 1
    said = capsys.readouterr().err
    assert "cannot decode it" in said and "no token file" in said and "cut off" in said
    assert not list((tmp_path / "back").rglob("*.wav")) and not list((tmp_path / "back").rglob("*.tmp"))
    assert run_cli("encode", "--checkpoint", tmp_path, "--out", out, sounds) == 1 and "is no tokenizer" in capsys.readouterr().err
    assert run_cli("encode", "--checkpoint", trained.checkpoint, "--out", out, "--stream", sounds) == 1 and "causal=True" in capsys.readouterr().err
    assert run_cli("encode", "--checkpoint", trained.checkpoint, "--out", out, tmp_path / "nowhere.wav") == 1
    assert "nowhere.wav: there is no such file" in capsys.readouterr().err
    assert run_cli("encode", "--checkpoint", trained.checkpoint, "--out", out, tmp_path / "vocoder") == 1
    (tmp_path / "empty").mkdir()
    assert run_cli("encode", "--checkpoint", trained.checkpoint, "--out", out, tmp_path / "empty") == 1 and "nothing to do" in capsys.readouterr().err
    bare = Path(shutil.copytree(trained.checkpoint, tmp_path / "bare"))
    (bare / "bits.json").unlink()
    assert run_cli("encode", "--checkpoint", bare, "--out", out, "--coding", "arithmetic", sounds) == 1 and "use packed" in capsys.readouterr().err
    twice = tmp_path / "twice"
    twice.mkdir()
    shutil.copy(sounds / "long.wav", twice)
    assert run_cli("encode", "--checkpoint", trained.checkpoint, "--out", tmp_path / "t", sounds / "long.wav", twice / "long.wav") == 1
    assert "use another folder" in capsys.readouterr().err


def test_a_stream_is_the_whole_sound_encoded_at_once(causal, tmp_path, monkeypatch):
    """Cut into blocks of any length; the levels are those of the model's own stream over the whole, and near those of one pass."""
    monkeypatch.setattr(tokenizer_files, "BLOCK_SECONDS", 1)
    wave = sweep(5.3, 9)
    soundfile.write(tmp_path / "long.wav", wave, RATE, "FLOAT")
    assert run_cli("encode", "--checkpoint", causal, "--out", tmp_path, "--stream", tmp_path / "long.wav") == 0
    codec = Codec.from_pretrained(causal)
    reader = tokenizer_files.TokenReader(tmp_path / "long.wav.tok", codec.digest)
    assert reader.samples == len(wave) and reader.header.grids == ((1, 2),) and reader.header.reference == 40.0
    assert tokenizer_files.streamed(reader.header, codec)
    frames = codec.mel.frames_of(len(wave))
    levels = MelFrontEnd(codec.mel)(torch.from_numpy(wave)[None], frames=frames).levels
    levels = torch.nn.functional.pad(levels, (0, 0, 0, -frames % 8), value=-80.0)
    with torch.inference_mode():
        stream, other = codec.model.stream(tokenizer_files.STREAM_COLUMNS), codec.model.stream(tokenizer_files.STREAM_COLUMNS)
        codes = codec.model.encode_chunk(stream, levels, last=True)
        own = codec.model.decode_chunk(other, codes, last=True)[0]
        offline, _, info = codec.model(levels)
    bits = read_tokens(tmp_path / "long.wav.tok").bits
    assert np.array_equal(bits, (codes[0] > 0).numpy()) and np.array_equal(bits, (info["quantized"].codes[0] > 0).numpy())
    drawn = torch.cat([piece for piece, _ in codec.levels(reader)])
    assert torch.equal(drawn, own)
    torch.testing.assert_close(drawn, offline[0], rtol=0, atol=1e-3)
    assert run_cli("decode", "--checkpoint", causal, "--out", tmp_path / "back", tmp_path / "long.wav.tok") == 0
    back, _ = soundfile.read(tmp_path / "back" / "long.wav")
    assert len(back) == len(wave) and np.isfinite(back).all() and np.abs(back).max() > 0


def test_streamed_pieces_are_blended_without_a_gap(causal):
    """Levels of steady noise, inverted in overlapping pieces: as loud at the joints as between them."""
    codec = Codec.from_pretrained(causal)
    noise = 0.1 * torch.randn(round(RATE * 8.1), generator=torch.Generator().manual_seed(0))
    levels = MelFrontEnd(codec.mel)(noise[None], frames=codec.mel.frames_of(len(noise))).levels[0]
    codec.levels = lambda reader: ((part, torch.tensor(40.0)) for part in levels.split(50))
    sound = torch.cat(list(codec._blended(None)))
    assert len(sound) == (len(levels) - 1) * 64 + 256
    loudness = sound[512:len(noise) // 512 * 512].view(-1, 512).square().mean(1).sqrt()
    assert 0.6 < float(loudness.min() / loudness.mean()) and float(loudness.max() / loudness.mean()) < 1.4


def test_encoder_and_decoder_are_compiled_in_place(clips, monkeypatch):
    compiled, learner = [], Tokenizer(config(), clips)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda network: compiled.append(network))
    learner.compile()
    assert compiled == [learner.model.encoder, learner.model.decoder]


STREAMED = """
import resource, sys
from pathlib import Path
from lib.encoders.tokenizer_files import Codec
codec = Codec.from_pretrained(sys.argv[1])
codec.encode(Path(sys.argv[2]), Path(sys.argv[3]), streamed=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_an_hour_is_streamed_in_the_memory_of_two_minutes(causal, tmp_path):
    """MiB that a process needs at most; the hour has the same tokens as two minutes of it where they agree."""
    needed, part = [], sweep(60, 1)
    for minutes in (2, 60):
        with soundfile.SoundFile(tmp_path / f"{minutes}.wav", "w", RATE, 1, "PCM_16") as file:
            for _ in range(minutes):
                file.write(part)
        command = [sys.executable, "-c", STREAMED, str(causal), str(tmp_path / f"{minutes}.wav"), str(tmp_path / f"{minutes}.tok")]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        needed.append(int(done.stdout.splitlines()[-1]))
    print(f"{needed} MiB")
    assert needed[1] < needed[0] + 30, needed
    short, long = (read_tokens(tmp_path / f"{minutes}.tok") for minutes in (2, 60))
    assert long.samples == 3600 * RATE and np.array_equal(long.bits[:len(short.bits) - 16], short.bits[:-16])


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, GAME | {"mask_ratio": 0.25, "mel_loss_weight": 0.2, "grad_checkpointing": True}],
                         ids=["plain", "game"])
def test_two_processes_equal_one(tmp_path, monkeypatch, changes):
    """Batches that do not divide, padding, batch normalisation of model and discriminator, R1, averages."""
    folder = tmp_path / "sounds"
    for k in range(16):
        part = folder / ("train" if k < 13 else "val")
        part.mkdir(parents=True, exist_ok=True)
        soundfile.write(part / f"{k}.wav", sweep(0.2 + 0.1 * (k % 4), k), RATE)
    c = config(data_root=str(folder), batch_size=5, learning_rate=1e-4, inv_temperature=10.0, beta=0.1, **changes)
    c.prepare()
    runs = {}
    for devices in (1, 2):
        monkeypatch.setenv("WORKBOOK_RUNS", str(tmp_path / str(devices)))
        runs[devices] = training.launch("tokenizer", replace(c, devices=devices))
    assert "val/MAE" in runs[1].history[-1] and runs[1].steps == 6
    # a bias before batch normalisation has no true gradient, nor has the bias of keys: AdamW makes steps of their rounding, which the running
    # mean follows
    same_in_one_and_two(runs[1], runs[2], left_out=("depthwise.bias", "running_mean", "query_key_value.bias"))
    one, two = weights(runs[1]), weights(runs[2])
    for name in one:
        if name.endswith("query_key_value.bias"):
            (query, _, value), (other_query, _, other_value) = one[name].chunk(3), two[name].chunk(3)
            torch.testing.assert_close(torch.cat([other_query, other_value]), torch.cat([query, value]), rtol=0, atol=1e-5)
        elif name.endswith("running_mean"):
            torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-4)
