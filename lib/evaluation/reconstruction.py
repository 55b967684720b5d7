"""Masked reconstruction beside what needs no model: predicting a mean.

A loss of masked patches says little alone: blurred guesses lower it, too. Baselines, from weak to strong:
- "mean": the mean training patch (P values), the same everywhere;
- "position": the mean training patch at each position (N, P);
- "clip": the mean of the clip's own visible patches, the strongest that takes no notice of places;
- "place": video only, the mean of what is visible at the same place in the clip's other frames (the clip's mean where nothing
  is): what copying reaches. With frames masked independently it nearly always finds something to copy.
All numbers are the mean over P of squared errors, averaged over hidden patches, as `lib.losses.masked.masked_patch_loss`. Targets
are raw or normalised per patch (mean 0, unbiased variance 1, as the loss does it); the means are then those of normalised ones.
Arrays: B clips, N patches a clip, P values a patch, one modality at a time.
"""
from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from lib.evaluation.statistics import bootstrap_interval
from lib.losses.masked import patch_statistics


class PatchMeans:
    """Mean patch at each position of the training clips, raw and normalised, from batches that need not fit into memory."""

    def __init__(self) -> None:
        self.count, self._sums = 0, {}

    def update(self, target: Tensor) -> "PatchMeans":
        """Args: target: (B, N, P) raw patches of B clips that have the modality (leave out the others). Returns: itself."""
        for normalised in (False, True):
            total = _target(target, normalised).double().sum(dim=0)
            known = self._sums.get(normalised)
            if known is not None and known.shape != total.shape:
                raise ValueError(f"patches {tuple(total.shape)} of a clip, {tuple(known.shape)} before: one modality, one size")
            self._sums[normalised] = total if known is None else known + total
        self.count += len(target)
        return self

    def position(self, normalize_patches: bool = False) -> Tensor:
        """The mean patch at each position, (N, P) float32."""
        if not self.count:
            raise ValueError("no training clip was seen; call update with patches of training clips first")
        return (self._sums[normalize_patches] / self.count).float()


def reconstruction_metrics(prediction: Tensor, target: Tensor, hidden: Tensor, means: PatchMeans | None = None, *,
                           normalize_patches: bool = False, places: int | None = None, peak: float | None = None,
                           groups: np.ndarray | None = None) -> dict:
    """Loss on hidden patches of one modality, relative to each baseline.

    Args: prediction, target, hidden, means, normalize_patches, places: as `patch_errors`.  peak, groups: as `summarise`.
    Returns, Raises: as `summarise` and `patch_errors`.
    """
    if peak is not None and normalize_patches:
        raise ValueError("peak is given for targets normalised per patch: they have lost level and contrast, and so have no PSNR")
    return summarise([patch_errors(prediction, target, hidden, means, normalize_patches, places)], peak, groups)


@torch.no_grad()
def patch_errors(prediction: Tensor, target: Tensor, hidden: Tensor, means: PatchMeans | None = None,
                 normalize_patches: bool = False, places: int | None = None) -> dict[str, np.ndarray]:
    """What each clip of a batch adds to the losses; `summarise` takes the list of these of all batches.

    Args:
        prediction: (B, N, P), of raw or of normalised patches as `normalize_patches` says.
        target: (B, N, P) raw patches.
        hidden: (B, N) bool, True where the patch was masked; a row without any (a clip without this modality) does not count.
        means: of the training clips; None: without the baselines "mean" and "position".
        places: patches of one frame where N holds several frames, frame after frame; None: without the baseline "place".
    Returns: {"hidden": (B,) number of hidden patches, "model" and each baseline: (B,) sum of their errors}, float64.
    Raises: ValueError: shapes that do not fit, NaN at a hidden patch of a prediction, a clip that has no visible patch.
    """
    if prediction.shape != target.shape or target.ndim != 3 or hidden.shape != target.shape[:2] or hidden.dtype != torch.bool:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must be (B, N, P), hidden "
                         f"{tuple(hidden.shape)} {hidden.dtype} must be (B, N) bool")
    if places is not None and (places < 1 or target.shape[1] % places):
        raise ValueError(f"places {places}: {target.shape[1]} patches of a clip are no whole number of frames")
    if hidden.all(dim=1).any():
        raise ValueError(f"clip {int(hidden.all(dim=1).int().argmax())} has no visible patch: the mask must leave one")
    target, seen = _target(target, normalize_patches), (~hidden)[..., None].float()
    guesses = {"model": prediction.float()}
    if means is not None:
        position = means.position(normalize_patches).to(target.device)
        if position.shape != target.shape[1:]:
            raise ValueError(f"means are of {tuple(position.shape)} patches and values, the clips have {tuple(target.shape[1:])}")
        guesses |= {"mean": position.mean(dim=0), "position": position}
    guesses["clip"] = (target * seen).sum(dim=1, keepdim=True) / seen.sum(dim=1, keepdim=True)
    if places is not None:
        by_frame = lambda x: x.unflatten(1, (-1, places))                                              # (B, F, places, ...)
        count = by_frame(seen).sum(dim=1, keepdim=True)
        mean = by_frame(target * seen).sum(dim=1, keepdim=True) / count.clamp(min=1)                   # (B, 1, places, P)
        mean = torch.where(count > 0, mean, guesses["clip"][:, None])
        guesses["place"] = mean.expand(-1, target.shape[1] // places, -1, -1).flatten(1, 2)
    errors = {"hidden": hidden.sum(dim=1).double().cpu().numpy()}
    for name, guess in guesses.items():
        error = (guess - target).square().mean(dim=2).double()
        errors[name] = error.masked_fill(~hidden, 0).sum(dim=1).cpu().numpy()    # a product would keep NaN of visible patches
    bad = ~np.isfinite(errors["model"])
    if bad.any():
        raise ValueError(f"the prediction of clip {int(bad.argmax())} is not finite at a hidden patch ({int(bad.sum())} clips)")
    return errors


def summarise(errors: Iterable[dict[str, np.ndarray]], peak: float | None = None, groups: np.ndarray | None = None) -> dict:
    """Losses of a whole set from what `patch_errors` returned for its batches.

    Args:
        peak: largest minus smallest value that raw targets can take (1 for pictures in 0..1, 2 for frames in -1..1); gives PSNR.
        groups: (clips,) which clips belong together, for the intervals; None: each alone.
    Returns:
        "loss"; "baselines": name -> {"loss", "reduction": 1 - loss / baseline's loss, "interval": (low, high) of the reduction,
        95 %, resampling clips}; "strongest": the baseline of the lowest loss; "clips", "left out" (nothing hidden), "patches"
        (hidden); with `peak` "PSNR": dB of the mean squared error over all hidden patches, None for an exact prediction.
    Raises: ValueError: nothing hidden at all; batches with different baselines; targets that do not vary; wrong groups.
    """
    errors = list(errors)
    names = [key for key in errors[0] if key != "hidden"] if errors else []
    if any(list(batch) != list(errors[0]) for batch in errors):
        raise ValueError("batches with different baselines; give patch_errors the same means and places for all")
    sums = {name: np.concatenate([batch[name] for batch in errors]) for name in ("hidden", *names)} if errors else {}
    if not errors or not sums["hidden"].any():
        raise ValueError("no hidden patch in any clip: there is nothing to score")
    counted = sums["hidden"] > 0
    if groups is not None and len(groups) != len(counted):
        raise ValueError(f"groups tells of {len(groups)} clips; there are {len(counted)}")
    groups = None if groups is None else np.asarray(groups)[counted]
    patches = sums["hidden"].sum()
    loss = {name: float(sums[name].sum() / patches) for name in names}
    result = {"loss": loss["model"], "baselines": {}, "clips": int(counted.sum()), "left out": int((~counted).sum()),
              "patches": int(patches)}
    for name in names[1:]:
        if not loss[name]:
            raise ValueError(f"the baseline {name!r} is exact: the targets do not vary (silent or black clips?)")
        own, base, ratio = sums["model"][counted], sums[name][counted], loss["model"] / loss[name]
        # a ratio of two means varies over clips as the mean of these does, to first order (delta method)
        low, high = bootstrap_interval(1 - ratio - (own - ratio * base) / base.mean(), groups)
        result["baselines"][name] = {"loss": loss[name], "reduction": 1 - ratio, "interval": (low, high)}
    result["strongest"] = min(result["baselines"], key=lambda name: loss[name])
    if peak is not None:
        result["PSNR"] = float(10 * np.log10(peak ** 2 / loss["model"])) if loss["model"] else None
    return result


def _target(patches: Tensor, normalised: bool) -> Tensor:
    patches = patches.detach().float()
    if not normalised:
        return patches
    mean, scale = patch_statistics(patches)
    return (patches - mean) / scale
