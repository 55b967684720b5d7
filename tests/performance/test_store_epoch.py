"""One training epoch from the embedding store against one that runs the frozen model again, at CLAP's published size."""
import json
import time

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, RobertaTokenizer

from lib import encoders
from lib.data.loading import ClipDataset, batches
from lib.data.manifest import Manifest
from lib.encoders.text import train_tokenizer
from lib.families.hyperbolic import Hyperbolic, HyperbolicConfig, features
from lib.training import loop

RATE, CLIPS, SECONDS = 48000, 64, 10
CLASSES = ["hum", "tone", "whistle", "hiss"]


def publish(folder):
    """Random weights in the sizes of laion/larger_clap_general: 194 M parameters."""
    torch.manual_seed(0)
    core = json.loads(train_tokenizer([f"This is a sound of {name}." for name in CLASSES]).backend_tokenizer.to_str())["model"]
    tokenizer = RobertaTokenizer(vocab=core["vocab"], merges=[tuple(pair) for pair in core["merges"]], model_max_length=512)
    config = ClapConfig(projection_dim=512, text_config=dict(vocab_size=50265, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
                                                             intermediate_size=3072, max_position_embeddings=514),
                        audio_config=dict(patch_embeds_hidden_size=128, depths=[2, 2, 12, 2], num_attention_heads=[4, 8, 16, 32], hidden_size=1024,
                                          enable_fusion=False))
    model = ClapModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc", padding="repeatpad").save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


@pytest.mark.slow
def test_an_epoch_from_the_store_is_50_times_faster(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "data"))
    size = publish(tmp_path / "clap")
    rng, rows = np.random.default_rng(0), []
    for i in range(CLIPS):
        soundfile.write(tmp_path / f"{i}.flac", 0.1 * rng.normal(size=RATE * SECONDS), RATE)
        rows.append({"clip_id": f"c{i}", "path": f"{i}.flac", "start": 0.0, "duration": float(SECONDS), "split": "train", "captions": [],
                     "labels": [CLASSES[i % 4]]})
    manifest = Manifest(pd.DataFrame(rows), "noise", tmp_path, {"classes": CLASSES, "templates": ["This is a sound of {}."]})
    config = HyperbolicConfig(checkpoint=str(tmp_path / "clap"), epochs=1, selection="last", threads=torch.get_num_threads(), device="cpu")
    features(config, manifest)
    backbone = encoders.load(config.checkpoint)

    def refuse(*_, **__):
        raise AssertionError("the frozen model was called")
    monkeypatch.setattr(encoders, "load", refuse)                    # zero calls from here on, in a whole run
    loop.fit(Hyperbolic(config, manifest), tmp_path / "run")

    learner = Hyperbolic(config, manifest)
    optimizer = torch.optim.Adam([p for p in learner.model.parameters() if p.requires_grad], lr=1e-4)
    source = batches(ClipDataset(manifest, sample_rate=RATE, seconds=SECONDS), config.batch_size)
    stored, again = [], []
    for batch, waveforms in zip(learner.batches(0, 0), source, strict=True):
        begin = time.process_time(), time.perf_counter()
        with torch.inference_mode():
            backbone.embed_audio(waveforms["waveform"], torch.tensor(waveforms["duration"]))
            backbone.embed_text([f"This is a sound of {CLASSES[i]}." for i in batch["label"]])
        middle = time.process_time(), time.perf_counter()
        optimizer.zero_grad()
        learner.losses(learner.model, batch)["loss"].backward()
        optimizer.step()
        end = time.process_time(), time.perf_counter()
        stored.append([e - m for e, m in zip(end, middle)])
        again.append([e - b for e, b in zip(end, begin)])
    cpu, wall = np.sum(again, axis=0) / np.sum(stored, axis=0)
    print(f"\n{size / 1e6:.1f} M parameters, {CLIPS} clips of {SECONDS} s: re-encoding takes {wall:.0f} times as long as the store (CPU {cpu:.0f}), "
          "decoding not counted; 0 calls of the frozen model in training")
    assert cpu >= 50 and wall >= 50
