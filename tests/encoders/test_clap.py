"""CLAP's towers against transformers' ClapModel, ClapFeatureExtractor and ClapProcessor on a tiny checkpoint in the published layout."""
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor, RobertaTokenizer

from lib import encoders
from lib.encoders.clap import ClapAudio, ClapMel, ClapMelConfig, ClapText, load_clap
from lib.media import audio
from tests.tiny_clap import CAPTIONS, publish

SHARED = Path(os.environ.get("WORKBOOK_SHARED", Path(__file__).resolve().parents[2] / "../shared/data"))
RATE = 48000


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clap")
    return folder, publish(folder)


@pytest.fixture
def model(published):
    return load_clap(published[0])


def clips(*seconds):
    """Rising tones of the given lengths, padded on the right with what must not be heard, and the lengths."""
    rows = torch.full((len(seconds), max(RATE, round(max(seconds) * RATE))), 9.0)
    for i, (row, length) in enumerate(zip(rows, seconds)):
        time = torch.arange(round(length * RATE)) / RATE
        row[:len(time)] = 0.5 * torch.sin(2 * torch.pi * (300 * (i + 1) + 2000 * time) * time) + 0.01 * torch.randn(len(time))
    return rows, torch.tensor(seconds)


def audio_features(published, waveforms):
    """Unit vectors as transformers makes them from lists of samples."""
    folder, model = published
    inputs = ClapProcessor.from_pretrained(folder)(audio=[w.numpy() for w in waveforms], sampling_rate=RATE, return_tensors="pt")
    longer = torch.zeros(len(waveforms), 1)
    return model.get_audio_features(input_features=inputs["input_features"].float(), is_longer=longer).pooler_output


SIGNALS = {"noise": lambda t: np.random.default_rng(0).normal(size=t.size) * 0.1, "loud tone": lambda t: np.sin(2 * np.pi * 1000 * t),
           "faint beside loud": lambda t: np.sin(2 * np.pi * 440 * t) + 1e-3 * np.sin(2 * np.pi * 9000 * t), "silence": lambda t: 0 * t,
           "last bits": lambda t: 1e-5 * np.cos(2 * np.pi * 300 * t)}


@pytest.mark.parametrize("truncation", ["rand_trunc", "fusion"])
@pytest.mark.parametrize("signal", SIGNALS)
def test_front_end_equals_the_published_extractor(signal, truncation):
    """Published sizes (10 s, 64 bands), both filter banks; under autocast as well."""
    extractor = ClapFeatureExtractor(frequency_min=50, truncation=truncation, padding="repeatpad")
    wave = SIGNALS[signal](np.arange(480000) / RATE).astype(np.float32)
    expected = torch.tensor(np.asarray(extractor(wave, sampling_rate=RATE)["input_features"][0][0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mel = ClapMel(ClapMelConfig(filters="htk" if truncation == "fusion" else "slaney"))(torch.from_numpy(wave)[None])
    assert mel.shape == (1, 1001, 64) and mel.dtype == torch.float32
    assert (mel[0] - expected).abs().max() <= 1e-4


@pytest.mark.skipif(not (SHARED / "esc10").is_dir(), reason="real recordings (shared data) are not there")
def test_front_end_on_real_recordings():
    extractor, mel = ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc", padding="pad"), ClapMel()
    files = sorted(p for p in (SHARED / "esc10").rglob("*") if p.suffix in (".ogg", ".wav"))[:3]
    assert files
    for path in files:
        wave = audio.read(path, sample_rate=RATE)[0]
        expected = torch.tensor(np.asarray(extractor(wave.numpy(), sampling_rate=RATE)["input_features"][0][0]))
        assert (mel(torch.nn.functional.pad(wave, (0, 480000 - len(wave)))[None])[0] - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
def test_short_clips_are_filled_as_published(tmp_path, padding):
    """True durations of a padded batch, against ClapModel on the clips themselves; whole repetitions, one sample, one too few."""
    published = tmp_path, publish(tmp_path, padding=padding)
    wave, durations = clips(1.0, 0.7, 0.3, 0.1, 1 / RATE, 1 - 1 / RATE, 0.25)
    expected = audio_features(published, [row[:round(float(length) * RATE)] for row, length in zip(wave, durations)])
    got = load_clap(tmp_path).embed_audio(wave, durations)
    assert (got - expected).abs().max() <= 1e-5 and torch.cdist(got, got).max() > 0.1


def test_text_equals_the_published_processor(published, model):
    """Case and punctuation are kept, and alone or in a batch a caption has one embedding."""
    folder, clap = published
    tokens = ClapProcessor.from_pretrained(folder)(text=CAPTIONS, padding=True, return_tensors="pt")
    expected = clap.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
    got = model.embed_text(CAPTIONS)
    assert (got - expected).abs().max() <= 1e-5 and torch.cdist(got, got)[0, 1] > 0.1
    torch.testing.assert_close(model.embed_text(CAPTIONS[1:2]), got[1:2], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(model.embed_text(["a dog"]), model.embed_text(["A dog!"]))
    assert torch.isfinite(model.embed_text(["", "dog " * 200])).all()       # nothing, and more than there are positions for


def test_saved_as_a_checkpoint_it_is_the_same_model(model, tmp_path):
    """The workbook's folder needs nothing of the published one: tokenizer and front end are in it."""
    again = encoders.load(model.save_pretrained(tmp_path))
    wave, durations = clips(1.3, 0.4)
    assert torch.equal(again.embed_audio(wave, durations), model.embed_audio(wave, durations))
    assert torch.equal(again.embed_text([*CAPTIONS, ""]), model.embed_text([*CAPTIONS, ""]))
    assert again.dim is None and again.tau == model.tau and again.audio.config.front_end == model.audio.config.front_end
    assert again.text.config.max_tokens == 38


@pytest.mark.parametrize("layout", ["models/laion--tiny.clap/snapshots/master", "hub/models/laion/tiny___clap"])
def test_modelscope_s_cache_and_a_tokenizer_in_two_files(tmp_path, monkeypatch, model, layout):
    """Through ModelScope's client without a network, and by the folder that it returns; vocab.json and merges.txt as older files."""
    folder = tmp_path / layout
    publish(folder)
    core = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(core["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in core["merges"]))
    (folder / "tokenizer.json").unlink()
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path))
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")        # nothing may be asked for; if it were, nobody would answer
    monkeypatch.setattr("modelscope_hub.config._default_config", None)     # which remembers where the cache was
    for source in ("modelscope:laion/tiny.clap", folder):
        torch.testing.assert_close(encoders.load(source).embed_text(CAPTIONS), model.embed_text(CAPTIONS))


def test_temperature_is_claps(tmp_path):
    clap = publish(tmp_path)
    clap.logit_scale_a.data.fill_(3.0)
    clap.logit_scale_t.data.fill_(2.0)
    clap.save_pretrained(tmp_path)
    assert load_clap(tmp_path).tau.item() == pytest.approx(np.exp(-2.5))


def test_long_clips_are_the_weighted_mean_of_their_segments(published, model):
    """2.5 s: the half segment counts half; what lies behind the audio, and behind the waveform, does not count at all."""
    wave, durations = clips(2.5, 1.2, 0.5)
    got = model.audio(wave, durations)

    def alone(row, first, last):
        return model.audio(wave[row:row + 1, round(first * RATE):round(last * RATE)], torch.tensor([last - first]))[0]
    expected = torch.stack([(alone(0, 0, 1) + alone(0, 1, 2) + alone(0, 2, 2.5) / 2) / 2.5,
                            (alone(1, 0, 1) + alone(1, 1, 1.2) * 0.2) / 1.2, alone(2, 0, 0.5)])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    barely = model.audio(wave[:1, :RATE + 48], torch.tensor([1.001]))[0]
    assert (barely - alone(0, 0, 1)).norm() < 0.01 * (alone(0, 1, 2) - alone(0, 0, 1)).norm()
    torch.testing.assert_close(model.audio(wave[:1, :RATE], torch.tensor([9.0]))[0], alone(0, 0, 1))


def test_only_segments_with_audio_are_encoded(model):
    seen = []
    model.audio.network.register_forward_pre_hook(lambda module, args, inputs: seen.append(len(inputs["input_features"])),
                                                  with_kwargs=True)
    model.audio(clips(3.0, 0.5, 1.5)[0], torch.tensor([3.0, 0.5, 1.5]))
    assert seen == [3 + 1 + 2]


def test_silence_and_nothing_give_finite_embeddings_and_gradients(model):
    model.train()
    wave = torch.zeros(4, RATE)
    wave[3, :4800] = 1.0                                             # 0.1 s; the second clip is of no length at all
    audio_side, text_side = model(wave, torch.tensor([1.0, 0.0, 0.1, 0.1]), ["", "!", "a", "dog"])
    (audio_side @ text_side.T).square().sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert torch.isfinite(audio_side).all() and gradients and all(torch.isfinite(g).all() for g in gradients)
    assert model.audio(torch.zeros(1, 0), torch.zeros(1)).isfinite().all()
    assert not model.audio.fill(torch.full((1, RATE), 9.0), torch.tensor([0])).any()


def test_embeddings_never_depend_on_the_batch(published):
    """Training or not, a clip's features are its own and the published batch statistics stay."""
    model = ClapAudio.from_published(published[0], dropout=0.0).train()
    before = model.network.audio_model.audio_encoder.batch_norm.running_mean.clone()
    wave, durations = clips(1.0, 0.4, 0.8)
    together = model(wave, durations, model.draw())
    torch.testing.assert_close(together[1:2], model(wave[1:2], durations[1:2]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together, model.eval()(wave, durations), atol=1e-5, rtol=1e-4)
    assert torch.equal(model.network.audio_model.audio_encoder.batch_norm.running_mean, before)


def test_dropout_and_length_can_be_set(published):
    folder, _ = published
    text = ClapText.from_published(folder, dropout=0.3, max_tokens=5)
    assert {m.p for m in text.modules() if isinstance(m, torch.nn.Dropout)} == {0.3}
    text.eval()
    assert torch.equal(text(["dog " * 9]), text(["dog " * 30]))
    with pytest.raises(ValueError, match="max_tokens is 99.*takes 3 to 38"):
        ClapText.from_published(folder, max_tokens=99)
    dropped = ClapAudio.from_published(folder, dropout=0.25, drop_path=0.1)
    assert {m.p for m in dropped.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}
    assert dropped.config.network["drop_path_rate"] == 0.1


def test_feature_fusion_takes_the_path_of_short_clips(tmp_path):
    """Its own filters; what is used for longer clips only is frozen, so that every other parameter gets a gradient."""
    published = tmp_path, publish(tmp_path, fusion=True)
    model = load_clap(tmp_path)
    assert model.audio.config.front_end.filters == "htk"
    wave, durations = clips(1.0, 0.4)
    expected = audio_features(published, [wave[0], wave[1, :19200]])
    assert (model.embed_audio(wave, durations) - expected).abs().max() <= 1e-5
    model.audio(wave, durations).square().sum().backward()
    lacking = [name for name, p in model.audio.named_parameters() if p.requires_grad and p.grad is None]
    assert not lacking and not model.audio.network.audio_model.audio_encoder.patch_embed.mel_conv2d.weight.requires_grad


def test_pickled_weights_and_half_precision_are_read(tmp_path):
    """laion/larger_clap_general holds pytorch_model.bin only; without a constant that older files lack, and in float16."""
    clap = publish(tmp_path)
    state = {k: v.half() if v.is_floating_point() else v for k, v in clap.state_dict().items() if not k.endswith("token_type_ids")}
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    model = encoders.load(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.text.network.text_projection.linear1.weight, clap.text_projection.linear1.weight.half().float())


def test_errors_name_the_folder_and_what_is_missing(tmp_path):
    clap = publish(tmp_path)
    extractor = (tmp_path / "preprocessor_config.json").read_text()

    def front_end(**changes):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(json.loads(extractor) | changes))

    front_end(padding="mirror")
    with pytest.raises(ValueError, match=f"{tmp_path}.*padding is 'mirror', known are repeatpad"):
        load_clap(tmp_path)
    front_end(feature_size=64)
    with pytest.raises(ValueError, match="101 frames of 64 mel bands, its network takes at most 128 frames of 8"):
        load_clap(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no preprocessor_config.json"):
        load_clap(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(extractor)
    tokenizer = tmp_path / "tokenizer.json"
    RobertaTokenizer().save_pretrained(tmp_path)
    tokenizer.write_text(tokenizer.read_text().replace('"<pad>"', '"<other>"'))
    with pytest.raises(ValueError, match=f"{tmp_path}: the tokenizer has .* entries and pads with"):
        load_clap(tmp_path)
    tokenizer.unlink()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no tokenizer: tokenizer.json, or vocab.json"):
        load_clap(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{tmp_path}: the weights cannot be read.*copy or download them again"):
        ClapAudio.from_published(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no weights: model.safetensors or pytorch_model.bin"):
        ClapAudio.from_published(tmp_path)
    torch.save({k: v for k, v in clap.state_dict().items() if "audio_projection" not in k}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="4 entries are missing in the weights, such as audio_projection.linear1.bias"):
        ClapAudio.from_published(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    with pytest.raises(ValueError, match=f"{tmp_path} is no CLAP: a config.json with model_type 'clap'"):
        ClapText.from_published(tmp_path)
