"""Predict-the-mean baselines against written-out loops and closed forms, and what reconstructions are reported beside."""
import math

import numpy as np
import pytest
import torch

from lib.evaluation.reconstruction import PatchMeans, patch_errors, reconstruction_metrics, summarise
from lib.losses.masked import masked_patch_loss


def example(clips=6, frames=3, places=4, values=5, ratio=0.5, seed=0):
    """Target (B, frames * places, P), a prediction and a mask that hides as many patches of every clip."""
    rng = torch.Generator().manual_seed(seed)
    target = torch.randn(clips, frames * places, values, generator=rng) + torch.arange(frames * places)[:, None] / 5
    prediction = target + 0.3 * torch.randn(target.shape, generator=rng)
    order = torch.rand(target.shape[:2], generator=rng).argsort(dim=1)
    return prediction, target, order >= round(frames * places * (1 - ratio))


def normalised(patches):
    """Per-patch normalisation, written out."""
    out = torch.empty_like(patches)
    for index in np.ndindex(*patches.shape[:-1]):
        patch = patches[index].double()
        variance = ((patch - patch.mean()) ** 2).sum() / (len(patch) - 1)
        out[index] = ((patch - patch.mean()) / torch.sqrt(variance + 1e-6)).float()
    return out


@pytest.mark.parametrize("normalize_patches", [False, True])
def test_losses_equal_written_out_baselines(normalize_patches):
    prediction, target, hidden = example()
    train = [example(seed=seed)[1] for seed in (1, 2)]
    means = PatchMeans().update(train[0]).update(train[1])
    found = reconstruction_metrics(prediction, target, hidden, means, normalize_patches=normalize_patches, places=4)
    view = normalised if normalize_patches else (lambda x: x)
    seen, goal = view(torch.cat(train)), view(target)
    sums = dict.fromkeys(("model", "mean", "position", "clip", "place"), 0.0)
    for b, n in hidden.nonzero().tolist():
        own = goal[b][~hidden[b]].mean(dim=0)
        same_place = [goal[b, m] for m in range(n % 4, 12, 4) if not hidden[b, m]]
        guesses = {"model": prediction[b, n], "mean": seen.flatten(0, 1).mean(dim=0), "position": seen[:, n].mean(dim=0), "clip": own,
                   "place": torch.stack(same_place).mean(dim=0) if same_place else own}
        for name, guess in guesses.items():
            sums[name] += float(((guess - goal[b, n]) ** 2).mean())
    patches = int(hidden.sum())
    assert found["loss"] == pytest.approx(sums["model"] / patches, rel=1e-5)
    assert found["loss"] == pytest.approx(float(masked_patch_loss(prediction, target, hidden, normalize_patches)), rel=1e-5)
    assert list(found["baselines"]) == ["mean", "position", "clip", "place"]
    for name, row in found["baselines"].items():
        assert row["loss"] == pytest.approx(sums[name] / patches, rel=1e-4), name
        assert row["reduction"] == pytest.approx(1 - sums["model"] / sums[name], rel=1e-4)
        assert row["interval"][0] < row["reduction"] < row["interval"][1]
    assert found["strongest"] == min(found["baselines"], key=lambda name: sums[name])
    assert (found["clips"], found["left out"], found["patches"]) == (6, 0, 36) and "PSNR" not in found


def test_closed_forms():
    # every clip one colour of variance 4 between clips, none within: the clip's own mean is exact but for noise of variance 0.01
    rng = torch.Generator().manual_seed(0)
    clips, tokens, values = 400, 16, 8
    level = 2 * torch.randn(clips, 1, 1, generator=rng)
    target = (level + 0.1 * torch.randn(clips, tokens, values, generator=rng)).double()
    hidden = torch.zeros(clips, tokens, dtype=torch.bool)
    hidden[:, ::4] = True
    means = PatchMeans().update(target)
    found = reconstruction_metrics(torch.zeros_like(target), target, hidden, means, peak=2.0)
    assert found["strongest"] == "clip"
    assert found["baselines"]["clip"]["loss"] == pytest.approx(0.01 * (1 + 1 / 12), rel=0.05)       # 12 visible patches averaged
    assert found["baselines"]["mean"]["loss"] == pytest.approx(4.01, rel=0.15)
    assert found["baselines"]["position"]["loss"] == pytest.approx(found["baselines"]["mean"]["loss"], rel=0.02)
    assert found["PSNR"] == pytest.approx(10 * math.log10(4 / found["loss"]))
    # the constant that was fitted is a reduction of 0 with an interval of no width; the truth is one of 1 and has no PSNR
    fitted = means.position().expand(clips, -1, -1)
    row = reconstruction_metrics(fitted, target, hidden, means)["baselines"]["position"]
    assert (row["reduction"], *row["interval"]) == pytest.approx((0, 0, 0), abs=1e-6)
    exact = reconstruction_metrics(target, target.float(), hidden, means, peak=1.0)
    assert exact["baselines"]["clip"]["reduction"] == pytest.approx(1) and (exact["PSNR"] is None or exact["PSNR"] > 100)
    # normalised patches of pure noise: variance (P - 1)/P within a patch, which no mean explains
    noise = torch.randn(300, tokens, values, generator=rng)
    raw = reconstruction_metrics(torch.zeros_like(noise), noise, hidden[:300], PatchMeans().update(noise), normalize_patches=True)
    assert raw["loss"] == pytest.approx((values - 1) / values, rel=1e-4)
    assert raw["baselines"]["mean"]["loss"] == pytest.approx((values - 1) / values, rel=0.01)


def test_still_frames_are_copied_and_flat_patches_are_finite():
    still = torch.randn(4, 1, 6, 3, generator=torch.Generator().manual_seed(1)).expand(-1, 5, -1, -1).flatten(1, 2)
    hidden = torch.rand(4, 30, generator=torch.Generator().manual_seed(2)) < 0.4
    found = reconstruction_metrics(still + 1, still, hidden, places=6)
    assert found["strongest"] == "place" and found["baselines"]["place"]["loss"] < 0.05 < found["baselines"]["clip"]["loss"]
    assert list(found["baselines"]) == ["clip", "place"] and found["loss"] == pytest.approx(1)
    flat = torch.ones(2, 4, 3)
    errors = patch_errors(flat * 0, flat, torch.tensor([[True, False, False, False]] * 2), normalize_patches=True)
    assert errors["model"].tolist() == [0, 0] and errors["clip"].tolist() == [0, 0]


def test_batches_add_up_and_clips_without_the_modality_do_not_count():
    prediction, target, hidden = example()
    means = PatchMeans().update(target)
    whole = reconstruction_metrics(prediction, target, hidden, means, places=4)
    parts = [patch_errors(prediction[rows], target[rows], hidden[rows], means, places=4) for rows in (slice(0, 2), slice(2, 6))]
    absent = patch_errors(prediction[:2] * float("nan"), target[:2], hidden[:2] & False, means, places=4)
    joined = summarise([parts[0], absent, parts[1]])
    assert (joined["clips"], joined["left out"]) == (6, 2)
    for name, row in joined["baselines"].items():
        expected = whole["baselines"][name]
        assert row["loss"] == pytest.approx(expected["loss"]) and row["interval"] == pytest.approx(expected["interval"])
    np.testing.assert_allclose(PatchMeans().update(target[:1]).update(target[1:]).position(True), means.position(True), atol=1e-6)


def test_intervals_cover_and_know_groups():
    prediction, target, hidden = example(clips=200)
    prediction = target + torch.linspace(0.1, 2, 200)[:, None, None] * (prediction - target)
    row = reconstruction_metrics(prediction, target, hidden)["baselines"]["clip"]
    own, base = (patch_errors(prediction, target, hidden)[name] for name in ("model", "clip"))
    rng = np.random.default_rng(0)
    draws = [1 - own[rows].sum() / base[rows].sum() for rows in rng.integers(200, size=(2000, 200))]
    assert row["interval"] == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.005)
    twice = [x.repeat_interleave(2, dim=0) for x in (prediction, target, hidden)]
    grouped = reconstruction_metrics(*twice, groups=np.repeat(np.arange(200), 2))["baselines"]["clip"]
    assert grouped["interval"] == pytest.approx(row["interval"], abs=0.005)
    single = reconstruction_metrics(*twice)["baselines"]["clip"]["interval"]
    assert single[1] - single[0] < 0.85 * (row["interval"][1] - row["interval"][0])


def test_what_cannot_be_scored_is_refused():
    prediction, target, hidden = example()
    with pytest.raises(ValueError, match="must be"):
        patch_errors(prediction[:, :3], target, hidden)
    with pytest.raises(ValueError, match="bool"):
        patch_errors(prediction, target, hidden.float())
    with pytest.raises(ValueError, match="places 5: 12 patches"):
        patch_errors(prediction, target, hidden, places=5)
    everything = hidden.clone()
    everything[2] = True
    with pytest.raises(ValueError, match="clip 2 has no visible patch"):
        patch_errors(prediction, target, everything)
    broken = prediction.clone()
    broken[4, int(hidden[4].nonzero()[0])] = float("nan")
    with pytest.raises(ValueError, match="prediction of clip 4 is not finite"):
        patch_errors(broken, target, hidden)
    broken = prediction.masked_fill(~hidden[..., None], float("nan"))                  # nobody asks for visible patches
    assert reconstruction_metrics(broken, target, hidden)["loss"] == reconstruction_metrics(prediction, target, hidden)["loss"]
    with pytest.raises(ValueError, match="means are of"):
        patch_errors(prediction, target, hidden, PatchMeans().update(target[:, :4]))
    with pytest.raises(ValueError, match="one modality"):
        PatchMeans().update(target).update(target[:, :4])
    with pytest.raises(ValueError, match="no training clip"):
        patch_errors(prediction, target, hidden, PatchMeans())
    with pytest.raises(ValueError, match="no PSNR"):
        reconstruction_metrics(prediction, target, hidden, normalize_patches=True, peak=1.0)
    for nothing in ([], [patch_errors(prediction, target, hidden & False)]):
        with pytest.raises(ValueError, match="no hidden patch"):
            summarise(nothing)
    with pytest.raises(ValueError, match="different baselines"):
        summarise([patch_errors(prediction, target, hidden), patch_errors(prediction, target, hidden, places=4)])
    with pytest.raises(ValueError, match="do not vary"):
        reconstruction_metrics(prediction, target * 0, hidden)
    with pytest.raises(ValueError, match="groups tells of 3"):
        reconstruction_metrics(prediction, target, hidden, groups=np.arange(3))
