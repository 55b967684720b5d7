"""A vocoder for a tokenizer's mel levels, trained on the same clips and kept beside the runs."""
from __future__ import annotations

import json
from pathlib import Path

import torch

from lib import randomness, settings
from lib.data.loading import ClipDataset
from lib.data.manifest import Manifest
from lib.encoders.vocoder import Vocoder, VocoderConfig, fit
from lib.families.tokenizer import TokenizerConfig, dataset
from lib.files import alone, digest
from lib.progress import track
from lib.training import checkpoint, source_digest

MOST_CLIPS = 1000       # whose sounds are held in memory; more teach a small vocoder nothing new


def launch_vocoder(config: TokenizerConfig, manifest: Manifest, size: str = "quick", steps: int = 600,
                   device: torch.device | str = "cpu") -> Path:
    """Train a vocoder on a tokenizer's training clips, or read the one that the same call has made before.

    Args:
        config: of the tokenizer: front end, splits and seed.  manifest: its data.
        size: a name of `lib.encoders.vocoder.SIZES`.  steps: of AdamW, 8 excerpts of 64 frames each.
        device: where it is trained.
    Returns:
        its folder, for `Vocoder.from_pretrained`. Broken off before its end, it is trained anew, to the same weights.
    Raises:
        ValueError: no clip that could be read has a sound.
    """
    part = manifest.select(list(config.fit_splits))
    identity = digest(json.dumps([config.mel.to_dict(), size, steps, config.seed, config.fit_splits, manifest.fingerprint]),
                      source_digest("tokenizer"))
    folder = settings.runs_dir() / f"vocoder-{config.dataset}-{identity[:12]}"
    with alone(folder / ".lock", f"vocoder {folder.name}"):
        found = checkpoint.newest(folder)
        if found is not None:
            print(f"finished vocoder {folder.name} is read, not repeated", flush=True)
            return found
        sounds = _sounds(dataset(config, part), config.seed)
        randomness.seed_all(config.seed, "vocoder")
        vocoder, shown = Vocoder(VocoderConfig(size=size, mel=config.mel)).to(device), track(range(steps), steps, "steps of the vocoder")
        losses = fit(vocoder, sounds, steps, seed=config.seed, report=lambda step, losses: next(shown))
        return checkpoint.save(folder, steps, vocoder.save_pretrained, losses)


def _sounds(clips: ClipDataset, seed: int) -> list[torch.Tensor]:
    """Waveforms of at most MOST_CLIPS clips, without those that cannot be read, and without padding."""
    chosen = randomness.generator(seed, "vocoder clips").permutation(len(clips))[:MOST_CLIPS]
    items = (clips[0, int(index)] for index in chosen)
    return [item["waveform"][:round(item["duration"] * clips.sample_rate)] for item in track(items, len(chosen), "sounds")
            if item["failed"] is None and item["duration"] > 0]
