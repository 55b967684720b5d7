"""What bits buy: rate, distortion and use of codes of several models beside what needs no network, and what tokens still know.

Conventions: distortion is the mean absolute error in dB over valid frames (MAE); a model's clips come in the manifest's order, and
all models are scored on the same ones. `scored` maps "<arm> <bits>" to one (metrics, arrays) a training seed, as
`lib.families.tokenizer.reconstruct` returns them; the same seeds stand in the same places. Rates are bits a second of sound.
Batches are (batch, Mels) as `lib.families.tokenizer.analysed` gives them.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from lib.audio.mel import MelFrontEnd, Mels
from lib.encoders.bsq_vit import AudioBSQModel
from lib.encoders.spectrogram_transformer import valid_tokens
from lib.encoders.tokenizer_files import SUFFIX, Codec, bits_of
from lib.evaluation import tagging
from lib.evaluation.statistics import mean_interval, paired_seeds
from lib.media import audio
from lib.media.token_files import TokenWriter, places
from lib.quantize.scalar import ScalarSplit, choose_split, scalar_quantize

Scored = Mapping[str, Sequence[tuple[dict, dict[str, np.ndarray]]]]
PENALTIES = tuple(10.0 ** k for k in range(-1, 6))     # of the linear probe


def arm_and_bits(name: str) -> tuple[str, int]:
    """"vq 18" -> ("vq", 18). ValueError: another form."""
    arm, _, bits = name.rpartition(" ")
    if not arm or not bits.isdigit():
        raise ValueError(f"model {name!r}: expected an arm and its bits, such as 'bsq 18'")
    return arm, int(bits)


def over_frames(arrays: Mapping[str, np.ndarray], name: str = "MAE") -> np.ndarray:
    """One value a clip whose mean is the mean over all frames, and which varies over resampled clips as that does (delta method).

    Args: arrays: "frames" and `name`, (N,) each.  Returns: (N,).
    """
    weight = arrays["frames"] / arrays["frames"].mean()
    return (arrays[name] - np.mean(weight * arrays[name])) * weight + np.mean(weight * arrays[name])


def clips_of(models: Sequence[tuple[dict, dict[str, np.ndarray]]], name: str = "MAE") -> np.ndarray:
    """`over_frames` of each training seed: (S, N)."""
    return np.stack([over_frames(arrays, name) for _, arrays in models])


def ratio(values: np.ndarray, baseline: np.ndarray, groups: np.ndarray | None = None, seed: int = 0) -> tuple[float, float, float]:
    """Mean of values (S, N) over that of a baseline (N,), with an interval over seeds and clips (delta method). ValueError: shapes."""
    found, scale = float(np.mean(values) / np.mean(baseline)), float(np.mean(baseline))
    _, low, high = paired_seeds(values, found * baseline, groups, seed=seed)
    return found, found + low / scale, found + high / scale


def elsewhere(levels: np.ndarray, drawn: np.ndarray, valid: np.ndarray) -> float | None:
    """The control: MAE in dB where every clip gets what was drawn of the one before it; None for one clip.

    Args: levels, drawn: (N, T, F).  valid: (N, T).
    """
    return float(np.abs(np.roll(drawn, 1, axis=0) - levels)[valid].mean(dtype=float)) if len(levels) > 1 else None


def summary(scored: Scored, tokens_per_second: float) -> pd.DataFrame:
    """One row a model: rates, distortion and how codes are used.

    Args: tokens_per_second: of sound.
    Returns: index: names; "arm", "bits", "seeds", "bits/s"; "entropy bits/s": what a coder needs that knows how often each bit is 1;
        "MAE", "low", "high": mean over seeds and its t interval, NaN for one seed; "MSE"; "used codes" and "used / tokens";
        "perplexity": of a group of bits, the mean over groups; "entropy": bits a token, of its bits; "worst balance": largest
        distance of a bit's share of ones from 0.5, of all seeds. All others are means over seeds.
    """
    rows = {}
    for name, models in scored.items():
        arm, bits = arm_and_bits(name)
        usage = [metrics["codebook"] for metrics, _ in models]
        mean, low, high = mean_interval([metrics["MAE"] for metrics, _ in models])
        entropy = np.mean([one["bit_entropy"] for one in usage])
        rows[name] = {
            "arm": arm, "bits": bits, "seeds": len(models), "bits/s": bits * tokens_per_second,
            "entropy bits/s": entropy * tokens_per_second,
            "MAE": mean, "low": low if len(models) > 1 else np.nan, "high": high if len(models) > 1 else np.nan,
            "MSE": np.mean([metrics["MSE"] for metrics, _ in models]), "used codes": np.mean([one["used_codes"] for one in usage]),
            "used / tokens": np.mean([one["used_codes"] / one["tokens"] for one in usage]),
            "perplexity": np.mean([group["perplexity"] for one in usage for group in one["per_group"]]), "entropy": entropy,
            "worst balance": max(abs(share - 0.5) for one in usage for share in one["per_bit_balance"])}
    return pd.DataFrame(rows).T.infer_objects()


def falls(scored: Scored, arm: str) -> list[bool] | None:
    """Whether the MAE of an arm falls strictly with every further step of bits, for each seed; None: one number of bits only."""
    sizes = sorted((bits, name) for name in scored for its_arm, bits in [arm_and_bits(name)] if its_arm == arm)
    if len(sizes) < 2:
        return None
    values = np.array([[metrics["MAE"] for metrics, _ in scored[name]] for _, name in sizes])
    return (np.diff(values, axis=0) < 0).all(axis=0).tolist()


def differences(scored: Scored, arm: str, groups: np.ndarray | None = None, seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """MAE of an arm minus that of each other one at equal bits: {"bsq 18 - vq 18": (mean, low, high)}, over seeds and clips.

    Negative: the other one draws worse. Where the numbers of seeds differ, the first ones that both have are compared.
    """
    found = {}
    for name in scored:
        other, bits = arm_and_bits(name)
        if other != arm and (ours := f"{arm} {bits}") in scored:
            count = min(len(scored[name]), len(scored[ours]))
            pair = (clips_of(scored[which][:count]) for which in (ours, name))
            found[f"{ours} - {name}"] = paired_seeds(*pair, groups, seed=seed)
    return found


def train_splits(batches: Sequence[tuple[dict, Mels]], bits: Sequence[int], patch: tuple[int, int], clamp_range: tuple[float, float],
                 most: int = 64) -> dict[int, ScalarSplit]:
    """How scalar quantization spends each number of bits best, tried out on at most `most` of the training clips, evenly spread."""
    heard = [(levels, valid) for _, mels in batches for levels, valid in zip(mels.levels, mels.valid) if valid.any()]
    levels, valid = (torch.stack(x) for x in zip(*heard[::-(-len(heard) // most)]))
    return {number: choose_split(levels, number, patch, clamp_range, valid) for number in bits}


def scalar_clips(batches: Iterable[tuple[dict, Mels]], splits: Mapping[int, ScalarSplit], patch: tuple[int, int],
                 clamp_range: tuple[float, float]) -> dict[int, tuple[float, np.ndarray]]:
    """Uniform scalar quantization of each clip that holds sound.

    Args: splits: of `train_splits`.  patch: (frames, bands).  clamp_range: dB.
    Returns: {bits: (MAE over all frames, (N,) as `over_frames`)}.
    """
    errors, frames = {bits: [] for bits in splits}, []
    for _, mels in batches:
        heard = mels.valid.any(1)
        if not heard.any():
            continue
        levels, valid = mels.levels[heard], mels.valid[heard]
        frames.append(valid.sum(1).cpu().numpy())
        for bits, split in splits.items():
            drawn = scalar_quantize(levels, bits, patch, clamp_range, split, valid).reconstruction
            error = (drawn - levels).abs().mean(2).double().masked_fill(~valid, 0).sum(1) / valid.sum(1)
            errors[bits].append(error.cpu().numpy())
    found = {}
    for bits, parts in errors.items():
        clips = over_frames({"MAE": np.concatenate(parts), "frames": np.concatenate(frames)})
        found[bits] = float(clips.mean()), clips
    return found


@torch.inference_mode()
def round_trip(codec: Codec, sound: Tensor, folder: Path) -> dict:
    """A sound through real token files, checked to give the model's own drawing back bit for bit.

    Args: codec: of a checkpoint.  sound: Tensor (samples,) at its sample rate.  folder: for the files.
    Returns: "seconds", "PCM" (bytes at 16 bits a sample), "packed" and "arithmetic" (bytes; None where the checkpoint was trained without
        validation); "packed tokens" and "arithmetic tokens": bytes without the head, which a file has once; "levels" (n, T, F) dB: what
        the files decode to.
    Raises: AssertionError: another drawing came back.
    """
    rate, size = codec.mel.sample_rate, codec.mel.samples
    source = Path(folder) / "sound.wav"
    soundfile.write(source, sound.clamp(-1, 1).numpy(), rate, subtype="PCM_16")
    # the file as encoders read it: rounded to 16 bits, in windows
    windows = audio.read(source, sample_rate=rate)[0].split(size)
    front_end, own = MelFrontEnd(codec.mel), []
    for window in windows:
        mels = front_end(window[None].to(codec.device))
        codes, _, _ = codec.model.encode(mels.levels, valid=mels.valid)
        own.append(codec.model.decode(codes)[0])
    found = {"seconds": len(sound) / rate, "PCM": 2 * len(sound), "levels": torch.stack(own).cpu()}
    empty = source.with_name("empty" + SUFFIX)
    for coding in ("packed", "arithmetic") if codec.probabilities is not None else ("packed",):
        reader = codec.encode(source, source.with_suffix(SUFFIX), coding)
        for window, (levels, _) in zip(own, codec.levels(reader), strict=True):
            assert torch.equal(levels, window), f"{coding} token file: what it decodes to is not what the model draws"
        with TokenWriter(empty, codec.header(coding)) as writer:
            writer.samples = 0
        found |= {coding: reader.size, f"{coding} tokens": reader.size - empty.stat().st_size}
    return {"arithmetic": None, "arithmetic tokens": None} | found


@torch.inference_mode()
def describe(model: AudioBSQModel, batches: Iterable[tuple[dict, Mels]]) -> dict[str, np.ndarray]:
    """What a linear probe is given of each clip that holds sound: statistics over its time.

    Returns: "row" (n,); "tokens" (n, rows * L): mean of each bit as +-1 in each row of patches (its spread follows from it); "drawn"
        and "mel" (n, 2 F): mean and standard deviation of each band, in dB, of what the decoder makes of the tokens and of the
        original.
    """
    model.eval()
    grids = tuple((grid.columns, grid.rows) for grid in model.config.grids())
    device, row = next(model.parameters()).device, torch.from_numpy(places(grids))
    within = torch.nn.functional.one_hot(row).float().to(device)                # (N, rows)
    found = {"row": [], "tokens": [], "drawn": [], "mel": []}
    for batch, mels in batches:
        levels, valid = mels.levels.to(device), mels.valid.to(device)
        codes, _, info = model.encode(levels, valid=valid)
        real, heard = valid_tokens(valid, model.config.grids(levels.shape[1])), valid.any(1)
        weight = within * real[..., None]                                       # (B, N, rows)
        signs = bits_of(model, info).float() * 2 - 1
        means = torch.einsum("bnr,bnl->brl", weight, signs) / weight.sum(1)[..., None].clamp(min=1)    # a silent clip has none
        drawn = model.decode(codes, valid)
        for name, values in (("tokens", means.flatten(1)), ("drawn", _bands(drawn, valid)), ("mel", _bands(levels, valid))):
            found[name].append(values[heard].cpu().numpy())
        found["row"].append(np.array(batch["row"])[heard.cpu().numpy()])
    return {name: np.concatenate(values) for name, values in found.items()}


def _bands(levels: Tensor, valid: Tensor) -> Tensor:
    """Mean and standard deviation of each band over valid frames: (B, T, F) -> (B, 2 F)."""
    count, inside = valid.sum(1).clamp(min=1)[:, None], valid[..., None]
    mean = (levels * inside).sum(1) / count
    spread = (((levels - mean[:, None]) * inside).square().sum(1) / count).sqrt()
    return torch.cat([mean, spread], dim=1)


def linear_probe(features: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray], test: str = "test") -> dict:
    """Ridge regression from features to labels; the answer is the class of the largest score.

    Args: features: of "train", "val" and `test`, (n, D) each.  targets: (n, C) bool, a label or more in each row.
    Returns: "right": (n,) 0 or 1 for each test clip, whether the answer is one of its labels; "penalty": the one of PENALTIES with the
        best mean average precision on "val" (the largest of equals).
    Raises: ValueError: a row without a label, NaN.
    """
    mean, spread = features["train"].mean(axis=0), features["train"].std(axis=0)
    scaled = {name: (values - mean) / np.where(spread > 1e-6, spread, 1) for name, values in features.items()}   # constant ones stay 0
    best = (-1.0, None, None)
    for penalty in PENALTIES:
        fitted = Ridge(penalty).fit(scaled["train"], targets["train"].astype(float))
        value = float(tagging.clip_metrics(fitted.predict(scaled["val"]), targets["val"], ks=(1,))["AP"].mean())
        if value >= best[0]:
            best = value, penalty, fitted
    right = tagging.clip_metrics(best[2].predict(scaled[test]), targets[test], ks=(1,))["acc@1"]
    return {"right": right, "penalty": best[1]}
