"""One training epoch of hyperbolic CLAP from the embedding store against one that runs the frozen model again."""
from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch

from lib import encoders
from lib.data.loading import ClipDataset, batches
from lib.data.manifest import Manifest
from lib.encoders.text import train_tokenizer
from lib.families.hyperbolic import Hyperbolic, HyperbolicConfig, features
from lib.performance.measure import Comparison, Growth, growth, spent

RATE, CLIPS, SECONDS, ASKED = 48000, 64, 10, 50.0
CLASSES = ["hum", "tone", "whistle", "hiss"]
PUBLISHED = dict(projection=512, text=(768, 12, 12, 3072), patch=128, depths=(2, 2, 12, 2), heads=(4, 8, 16, 32), vocabulary=50265)
TINY = dict(projection=32, text=(32, 1, 2, 64), patch=16, depths=(1, 1, 1, 1), heads=(1, 2, 4, 8), vocabulary=1000)


def publish(folder: Path, projection: int, text: tuple[int, ...], patch: int, depths: tuple[int, ...], heads: tuple[int, ...],
            vocabulary: int) -> int:
    """Write a CLAP with random weights in the published layout; PUBLISHED are the sizes of laion/larger_clap_general. Returns parameters.

    Args: projection: of both towers.  text: width, layers, heads and feed-forward width.  patch, depths, heads: of HTSAT.
    """
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, RobertaTokenizer

    torch.manual_seed(0)
    core = json.loads(train_tokenizer([f"This is a sound of {name}." for name in CLASSES]).backend_tokenizer.to_str())["model"]
    tokenizer = RobertaTokenizer(vocab=core["vocab"], merges=[tuple(pair) for pair in core["merges"]], model_max_length=512)
    width, layers, text_heads, wide = text
    config = ClapConfig(projection_dim=projection, text_config=dict(vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers,
                                                                    num_attention_heads=text_heads, intermediate_size=wide, max_position_embeddings=514),
                        audio_config=dict(patch_embeds_hidden_size=patch, depths=list(depths), num_attention_heads=list(heads),
                                          hidden_size=8 * patch, enable_fusion=False))
    model = ClapModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc", padding="repeatpad").save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def noise(folder: Path, clips: int, seconds: float) -> Manifest:
    """Files of noise with a class each."""
    rng, rows = np.random.default_rng(0), []
    for i in range(clips):
        soundfile.write(folder / f"{i}.flac", 0.1 * rng.normal(size=round(RATE * seconds)), RATE)
        rows.append({"clip_id": f"c{i}", "path": f"{i}.flac", "start": 0.0, "duration": float(seconds), "split": "train", "captions": [],
                     "labels": [CLASSES[i % 4]]})
    return Manifest(pd.DataFrame(rows), f"noise of {clips}", folder, {"classes": CLASSES, "templates": ["This is a sound of {}."]})


@contextmanager
def _data_in(folder: Path) -> Iterator[None]:
    """Stores lie in `folder` meanwhile."""
    before = os.environ.get("WORKBOOK_DATA")
    os.environ["WORKBOOK_DATA"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("WORKBOOK_DATA") if before is None else os.environ.update(WORKBOOK_DATA=before)


def prepared(folder: Path, clips: int = CLIPS, seconds: float = SECONDS, size: dict | None = None) -> tuple[HyperbolicConfig, Manifest, int]:
    """A CLAP, clips, and their embeddings in a store below `folder` (WORKBOOK_DATA must point there): configuration, manifest, parameters."""
    parameters = publish(folder / "clap", **(size or PUBLISHED))
    manifest = noise(folder, clips, seconds)
    config = HyperbolicConfig(checkpoint=str(folder / "clap"), epochs=1, selection="last", threads=torch.get_num_threads(), device="cpu")
    features(config, manifest)
    return config, manifest, parameters


def epoch(config: HyperbolicConfig, manifest: Manifest, parameters: int, backbone: torch.nn.Module) -> Comparison:
    """An epoch in which each batch is stepped from the store, and encoded again before such a step."""
    learner = Hyperbolic(config, manifest)
    optimizer = torch.optim.Adam([p for p in learner.model.parameters() if p.requires_grad], lr=1e-4)
    source = batches(ClipDataset(manifest, sample_rate=RATE, seconds=float(manifest.table["duration"].max())), config.batch_size)
    stored, again = [], []
    for batch, waveforms in zip(learner.batches(0, 0), source, strict=True):
        begin = spent()
        with torch.inference_mode():
            backbone.embed_audio(waveforms["waveform"], torch.tensor(waveforms["duration"]))
            backbone.embed_text([f"This is a sound of {CLASSES[i]}." for i in batch["label"]])
        middle = spent()
        optimizer.zero_grad()
        learner.losses(learner.model, batch)["loss"].backward()
        optimizer.step()
        end = spent()
        stored.append(tuple((end - middle).tolist()))
        again.append(tuple((end - begin).tolist()))
    return Comparison(f"epoch from the store, {len(manifest)} clips, batches of {config.batch_size}", "encoding again", stored, again,
                      torch.get_num_threads(), ASKED, note=f"CLAP of {parameters / 1e6:.1f} M parameters, decoding not counted")


def compared(folder: Path, clips: int = 16, seconds: float = SECONDS, size: dict | None = None) -> list[Comparison]:
    """The whole, in a folder of its own. The first batch of each way warms up and is left out, where there is another."""
    with _data_in(folder / "data"):
        given = prepared(folder, clips, seconds, size)
        found = epoch(*given, encoders.load(given[0].checkpoint))
    skip = int(len(found.ours) > 1)
    return [Comparison(**vars(found) | {"ours": found.ours[skip:], "theirs": found.theirs[skip:]})]


def grown(folder: Path, sizes=(256, 512, 1024, 2048), repetitions: int = 3) -> list[Growth]:
    """An epoch from the store over clips (the same few again and again: what they hold does not matter); memory is that of a batch."""
    with _data_in(folder / "data"):
        config, manifest, _ = prepared(folder, 16, 0.5, TINY)
        learner = Hyperbolic(config, manifest)
    again = np.arange(max(sizes)) % len(learner.rows)
    learner.rows, learner.audio, learner.targets = learner.rows[again], learner.audio[again], learner.targets[again]
    optimizer = torch.optim.Adam([p for p in learner.model.parameters() if p.requires_grad], lr=1e-4)
    given = list(learner.batches(0, 0))

    def make(clips):
        def work():
            for batch in given[:clips // config.batch_size]:
                optimizer.zero_grad()
                learner.losses(learner.model, batch)["loss"].backward()
                optimizer.step()
        return work
    return [growth("epoch from the store", "clips", make, sizes, repetitions, memory_order=None)]
