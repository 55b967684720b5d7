"""Rate, distortion, files, probe and sounds of tokenizers: numbers written out, and controls that must fail."""
import numpy as np
import pytest
import torch

from lib.audio.mel import MelConfig, MelFrontEnd, Mels
from lib.encoders.bsq_vit import AudioBSQModel
from lib.encoders.tokenizer_files import Codec, bits_of
from lib.encoders.vocoder import Vocoder, VocoderConfig
from lib.evaluation import coding, hearing
from lib.evaluation.speech import stoi
from lib.media.arithmetic import quantise
from lib.quantize.scalar import ScalarSplit, scalar_quantize

MEL = MelConfig(sample_rate=4000, n_fft=256, hop=64, mels=16, frames=32)
AUDIO = {"input_size": 16, "input_length": 32, "patch_size": 8, "width": 32, "layers": 1, "heads": 2, "conv_kernel_size": 3,
         "head_width": 32}


def rng(seed=0):
    return np.random.default_rng(seed)


def model_scores(mae, frames, ones=0.5, bits=2, tokens=10):
    """What `reconstruct` returns, of given errors of clips."""
    mae, frames = np.asarray(mae, dtype=float), np.asarray(frames)
    whole = float((mae * frames).sum() / frames.sum())
    codebook = {"tokens": tokens, "used_codes": 3, "bit_entropy": 0.5 * bits, "per_bit_balance": [ones] * bits,
                "per_group": [{"perplexity": 2.0}, {"perplexity": 4.0}]}
    return {"MAE": whole, "MSE": whole ** 2, "codebook": codebook}, {"MAE": mae, "frames": frames}


def batches(clips=6, seed=0, silent=()):
    """Two batches of levels that change slowly over time and frequency, the last frames of each second clip padding."""
    found = []
    for start in range(0, clips, 3):
        count = min(3, clips - start)
        coarse = -80 * torch.rand(count, 1, 5, 4, generator=torch.Generator().manual_seed(seed + start))
        levels = torch.nn.functional.interpolate(coarse, (32, 16), mode="bilinear")[:, 0]
        valid = torch.ones(count, 32, dtype=torch.bool)
        valid[1::2, 20:] = False
        for k in silent:
            if start <= k < start + count:
                valid[k - start] = False
        levels = levels.masked_fill(~valid[..., None], -80.0)
        found.append(({"row": list(range(start, start + count))}, Mels(levels, torch.zeros(count), valid)))
    return found


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return AudioBSQModel(AUDIO, 12).eval()


def test_names():
    assert coding.arm_and_bits("temperature_10 18") == ("temperature_10", 18)
    for name in ("bsq", "18", "bsq 18b", " 18"):
        with pytest.raises(ValueError, match="arm and its bits"):
            coding.arm_and_bits(name)


def test_a_mean_over_frames_and_its_spread():
    """Mean as over all frames; the interval covers the ratio's as a bootstrap of clips with their frames finds it."""
    clips, frames = rng().normal(5, 1, 300), rng(1).integers(10, 100, 300)
    values = coding.over_frames({"MAE": clips, "frames": frames})
    assert values.mean() == pytest.approx((clips * frames).sum() / frames.sum(), rel=1e-12)
    draws = rng(2).integers(300, size=(4000, 300))
    resampled = (clips * frames)[draws].sum(1) / frames[draws].sum(1)
    assert values.std() / np.sqrt(300) == pytest.approx(resampled.std(), rel=0.05)
    assert np.allclose(coding.over_frames({"MAE": clips, "frames": np.full(300, 7)}), clips)


def test_a_ratio_with_an_interval():
    base = rng().uniform(8, 12, 400)
    own = np.stack([0.4 * base + rng(s).normal(0, 0.3, 400) for s in (1, 2, 3)])
    value, low, high = coding.ratio(own, base)
    assert value == pytest.approx(own.mean() / base.mean()) and low < value < high and 0.38 < low and high < 0.42
    assert coding.ratio(0.5 * base[None], base) == pytest.approx((0.5, 0.5, 0.5))


def test_tokens_of_another_clip():
    levels, drawn = rng().uniform(-80, 0, (2, 3, 4, 5))
    valid = np.array([[True] * 4, [True, True, False, False], [False] * 4])
    expected = np.concatenate([np.abs(drawn[2] - levels[0])[valid[0]], np.abs(drawn[0] - levels[1])[valid[1]]]).mean()
    assert coding.elsewhere(levels, drawn, valid) == pytest.approx(expected)
    assert coding.elsewhere(levels[:1], drawn[:1], valid[:1]) is None


def test_summary_written_out():
    scored = {"bsq 2": [model_scores([1, 3], [10, 30], 0.45), model_scores([2, 4], [10, 30], 0.7)],
              "vq 4": [model_scores([1, 1], [5, 5], bits=4)]}
    table = coding.summary(scored, 50.0)
    row = table.loc["bsq 2"]
    assert (row["arm"], row["bits"], row["seeds"], row["bits/s"], row["entropy bits/s"]) == ("bsq", 2, 2, 100, 50)
    assert row["MAE"] == pytest.approx((2.5 + 3.5) / 2) and row["worst balance"] == pytest.approx(0.2)
    half = 12.7062047 * np.std([2.5, 3.5], ddof=1) / np.sqrt(2)
    assert row["low"] == pytest.approx(3 - half) and row["high"] == pytest.approx(3 + half)
    assert row["perplexity"] == 3 and row["used / tokens"] == pytest.approx(0.3) and row["MSE"] == pytest.approx((2.5 ** 2 + 3.5 ** 2) / 2)
    assert np.isnan(table.loc["vq 4", "low"]) and table.loc["vq 4", "bits/s"] == 200


def test_whether_error_falls_and_differences_at_equal_bits():
    def seeds(level, clips=40):
        return [model_scores(level + rng(s).normal(0, 0.1, clips), [10] * clips) for s in range(3)]
    scored = {"bsq 36": seeds(2), "bsq 9": seeds(6), "bsq 18": seeds(4), "vq 18": seeds(5), "lfq 7": seeds(1)}
    assert coding.falls(scored, "bsq") == [True] * 3 and coding.falls(scored, "vq") is None and coding.falls(scored, "none") is None
    assert coding.falls(scored | {"bsq 36": scored["bsq 18"]}, "bsq") == [False] * 3, "equal is not less"
    found = coding.differences(scored, "bsq")
    assert list(found) == ["bsq 18 - vq 18"]
    assert found["bsq 18 - vq 18"] == pytest.approx((-1, -1, -1)), "the same noise in both cancels"
    one = coding.differences(scored | {"vq 18": seeds(5)[:1]}, "bsq")["bsq 18 - vq 18"]
    assert one[0] == pytest.approx(-1)


def test_scalar_quantization_is_chosen_on_training_clips_and_scored_per_clip():
    learnt, scored = batches(12, seed=7), batches(6, silent=[4])
    splits = coding.train_splits(learnt, [4, 12], (8, 8), (-80.0, 0.0), most=6)
    levels = torch.cat([mels.levels for _, mels in learnt])[::2]
    valid = torch.cat([mels.valid for _, mels in learnt])[::2]
    assert splits[12] == scalar_quantize(levels, 12, (8, 8), valid=valid).split
    found = coding.scalar_clips(scored, splits, (8, 8), (-80.0, 0.0))
    heard = [0, 1, 2, 3, 5]
    levels, valid = (torch.cat([getattr(mels, name) for _, mels in scored])[heard] for name in ("levels", "valid"))
    for bits, (mae, clips) in found.items():
        whole = scalar_quantize(levels, bits, (8, 8), split=splits[bits], valid=valid)
        assert mae == pytest.approx(whole.error, rel=1e-5) and clips.shape == (5,) and clips.mean() == pytest.approx(mae)
    assert found[12][0] < found[4][0] < 25
    assert isinstance(splits[4], ScalarSplit)


@pytest.mark.parametrize("statistics", [True, False])
def test_files_give_the_models_own_drawing_back(model, tmp_path, statistics):
    probabilities = quantise(np.full((2, 12), 0.5)) if statistics else None
    codec = Codec(model, MEL, "digest", probabilities)
    sound = 0.3 * torch.sin(torch.arange(3 * MEL.samples - 500) / 5)
    found = coding.round_trip(codec, sound, tmp_path)
    assert found["PCM"] == 2 * len(sound) and found["seconds"] == len(sound) / 4000 and found["levels"].shape == (3, 32, 16)
    assert found["packed tokens"] == 3 * 8 * 12 // 8 + 3 * 4 + 12 < found["packed"], "bits, a peak a window, the head of a block"
    if statistics:
        assert abs(found["arithmetic tokens"] - found["packed tokens"]) <= 8, "even odds: nothing to gain"
        assert found["arithmetic"] >= found["packed"] + 2 * probabilities.size - 8, "its table is in the head"
    else:
        assert found["arithmetic"] is None
    with torch.no_grad():
        window = (sound[:MEL.samples] * 32768).round() / 32768
        drawn, _, _ = model(MelFrontEnd(MEL)(window[None]).levels)
    assert (drawn[0] - found["levels"][0]).abs().mean() < 0.1


def test_a_file_that_gives_another_drawing_is_found(model, tmp_path, monkeypatch):
    codec = Codec(model, MEL, "digest")
    monkeypatch.setattr(Codec, "levels", lambda self, reader: [(torch.zeros(32, 16), torch.tensor(0.0))])
    with pytest.raises(AssertionError, match="not what the model draws"):
        coding.round_trip(codec, 0.1 * torch.ones(1000), tmp_path)


def test_what_the_probe_is_given(model):
    found = coding.describe(model, batches(6, silent=[2]))
    assert found["row"].tolist() == [0, 1, 3, 4, 5] and found["tokens"].shape == (5, 2 * 12)
    assert found["mel"].shape == found["drawn"].shape == (5, 32)
    (_, first), _ = batches(6, silent=[2])
    with torch.no_grad():
        codes, _, info = model.encode(first.levels, valid=first.valid)
    bits = bits_of(model, info)[1].float() * 2 - 1                                  # 8 tokens: 4 columns of 2 rows; 20 frames fill 3
    assert np.allclose(found["tokens"][1][:12], bits[[0, 2, 4]].mean(0)) and np.allclose(found["tokens"][1][12:], bits[[1, 3, 5]].mean(0))
    heard = first.levels[1, :20].numpy()
    assert np.allclose(found["mel"][1], np.concatenate([heard.mean(0), heard.std(0)]), atol=1e-3)
    drawn = model.decode(codes, first.valid)[0].detach().numpy()
    assert np.allclose(found["drawn"][0][:16], drawn.mean(0), atol=1e-3)


def test_a_linear_probe_finds_what_is_there_and_nothing_else():
    truth = {name: rng(k).integers(4, size=count) for k, (name, count) in enumerate({"train": 300, "val": 60, "test": 200}.items())}
    targets = {name: np.eye(4, dtype=bool)[labels] for name, labels in truth.items()}
    told = {name: np.eye(4)[labels] @ rng(9).normal(size=(4, 20)) + rng(8).normal(0, 0.3, (len(labels), 20))
            for name, labels in truth.items()}
    noise = {name: rng(20 + k).normal(size=(len(labels), 20)) for k, (name, labels) in enumerate(truth.items())}
    constant = {name: np.concatenate([values, np.ones((len(values), 3))], axis=1) for name, values in told.items()}
    assert coding.linear_probe(told, targets)["right"].mean() > 0.95
    assert coding.linear_probe(constant, targets)["right"].mean() > 0.95
    blind = coding.linear_probe(noise, targets)
    assert abs(blind["right"].mean() - 0.25) < 0.1 and blind["penalty"] in coding.PENALTIES
    two = {name: values | np.roll(values, 1, axis=1) for name, values in targets.items()}
    assert coding.linear_probe(told, two)["right"].mean() > 0.95, "one of several labels is right"


def test_short_clips_are_joined():
    assert hearing.groups_of([1000, 1000, 0, 500, 3000, 100], 1000) == [[0, 1], [3, 4, 5]]
    assert hearing.groups_of([5, 5], 1000) == [[0, 1]] and hearing.groups_of([3000, 2000], 1000) == [[0], [1]]
    assert hearing.groups_of([0], 1000) == []
    sounds = torch.arange(12.0).reshape(3, 4)
    found, sizes = hearing.joined(sounds, [2, 0, 3], [[0, 2], [2]])
    assert found.tolist() == [[0, 1, 8, 9, 10], [8, 9, 10, 0, 0]] and sizes == [5, 3]


def test_sounds_of_tokens_beside_their_ceiling():
    mel = MelConfig(sample_rate=8000, n_fft=256, hop=64, mels=40, frames=300)
    time = torch.arange(mel.samples) / 8000
    beat = torch.stack([0.3 * torch.sin(2 * np.pi * pitch * time) * (0.5 + 0.5 * torch.sin(2 * np.pi * rate * time)) for pitch, rate in
                        ((300, 4), (700, 3), (1200, 5))]) * torch.tensor([[1.0], [0.1], [0.5]])
    beat = beat + 0.02 * beat.abs().amax(1, keepdim=True) * torch.randn(3, mel.samples, generator=torch.Generator().manual_seed(0))
    mels = MelFrontEnd(mel)(beat)
    torch.manual_seed(0)
    made = hearing.renderings(mels.levels, mels.levels.roll(1, 0), mels.peak, mel, Vocoder(VocoderConfig("tiny", mel=mel)).eval())
    assert set(made) == {"original levels", "tokens", "original levels, vocoder", "tokens, vocoder", "tokens of another clip"}
    loudness = made["original levels"].square().mean(1).sqrt() / beat.square().mean(1).sqrt()
    assert (loudness - 1).abs().max() < 0.2, "the stored peak gives the loudness back"
    lengths = [mel.samples + 63, mel.samples, 10000]
    found = hearing.quality(torch.nn.functional.pad(beat, (0, 63)), made, lengths, mel)
    table = hearing.means(found)
    assert table.loc["original levels", "mel distance"] < 0.5 * table.loc["tokens", "mel distance"]
    assert table.loc["original levels", "STOI"] > table.loc["tokens", "STOI"] + 0.2
    assert found["tokens"]["STOI"].shape == (2,), "the last clip is judged with the one before"
    assert found["original levels"]["STOI"][0] == pytest.approx(float(stoi(made["original levels"][:1], beat[:1], 8000)[0]), abs=1e-6)
    # moved by one in `tokens`, moved by two in the control
    assert torch.allclose(made["tokens of another clip"][0], made["tokens"][2] * 10 ** ((mels.peak[0] - mels.peak[2]) / 20))
    assert "tokens of another clip" not in hearing.renderings(mels.levels[:1, :20], mels.levels[:1, :20], mels.peak[:1], mel)
