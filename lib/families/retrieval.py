"""Language-based audio retrieval: a PaSST + RoBERTa dual encoder (DCASE 2025 Task 6 baseline).

Configuration, model and training step. Defaults are the published ones; notebooks and profiles change sizes. The audio branch
averages 10 s segments of a clip of at most 30 s, the text branch takes RoBERTa's first token; both are projected to unit vectors
of one space and trained with a symmetric contrastive loss in which all captions of one clip are positives.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lib import data, randomness
from lib.audio.logmel import LogMelConfig
from lib.config import RunConfig
from lib.data.loading import ClipDataset, batches, count_batches
from lib.data.manifest import Manifest
from lib.encoders.dual import DualEncoder
from lib.encoders.passt import PasstConfig, PasstEncoder
from lib.encoders.text import RobertaText, TextConfig
from lib.evaluation.retrieval import retrieval_metrics
from lib.losses.contrastive import contrastive_loss

CACHE_BYTES = 2 << 30       # decoded clips kept in memory (clips no longer than the window)


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(RunConfig):
    """Parameters of the family; meaning and range of each: `lib.glossary.PARAMETERS`."""

    scene_seconds: float = 10.0
    audio_size: str = "published"
    audio_weights: str | None = None
    clip_seconds: float = 30.0
    segment_seconds: float = 10.0
    patch_frequency: int = 16
    patch_time: int = 16
    patchout_frequency: float = 0.25
    patchout_time: float = 0.24
    drop_path: float = 0.0
    time_masks: int = 0
    time_mask: float = 0.1
    frequency_masks: int = 0
    frequency_mask: float = 0.1
    text_size: str = "roberta-large"
    text_weights: str | None = None
    max_tokens: int = 32
    text_dropout: float = 0.2
    embedding_dim: int = 1024
    tau: float = 0.05
    train_tau: bool = False
    positives: str = "clip"
    loss_reduction: str = "pairs"
    every_caption: bool = True
    gain_db: float = 0.0
    shift: bool = False
    mix: float = 0.0

    def audio(self) -> PasstConfig:
        """Settings of the audio encoder."""
        front_end = LogMelConfig(time_masks=self.time_masks, time_mask=self.time_mask, frequency_masks=self.frequency_masks,
                                 frequency_mask=self.frequency_mask)
        return PasstConfig(size=self.audio_size, segment_seconds=self.segment_seconds, patch_frequency=self.patch_frequency,
                           patch_time=self.patch_time, patchout_frequency=self.patchout_frequency, patchout_time=self.patchout_time,
                           drop_path=self.drop_path, front_end=front_end)

    def prepare(self) -> Manifest:
        """The data set's manifest, prepared or read."""
        options = {"clip_seconds": self.scene_seconds} if self.dataset == "soundscapes" else {}
        return data.prepare(self.dataset, data_root=self.data_root, num_samples=self.num_samples, workers=self.threads, **options)


def build(config: RetrievalConfig, captions: list[str]) -> DualEncoder:
    """A dual encoder with random or published weights.

    Args:
        config: sizes and weights.  captions: training captions, for the tokenizer of a scratch text encoder.
    """
    randomness.seed_all(config.seed, "model")
    audio = PasstEncoder(config.audio())
    if config.audio_weights:
        audio.load_published(config.audio_weights)
    text_config = TextConfig(size=config.text_size, max_tokens=config.max_tokens, dropout=config.text_dropout)
    text = (RobertaText.from_published(text_config, config.text_weights) if config.text_weights
            else RobertaText.from_scratch(text_config, captions))
    return DualEncoder(audio, text, config.embedding_dim, config.tau, config.train_tau)


class Retrieval:
    """The family as the training loop sees it (`lib.training.loop.Family`).

    Args:
        config: a `RetrievalConfig`.
        manifest: clips to use; None: prepared from the configuration.
    """

    name = "retrieval"
    monitor = "val/mAP@10"
    Config = RetrievalConfig

    def __init__(self, config: RetrievalConfig, manifest: Manifest | None = None):
        self.config = config
        self.manifest = config.prepare() if manifest is None else manifest
        self.train_manifest = self.manifest.select(list(config.fit_splits))
        self.model = build(config, [c for captions in self.train_manifest.table["captions"] for c in captions])
        self.train_set = ClipDataset(
            self.train_manifest, sample_rate=self.model.audio.sample_rate, seconds=config.clip_seconds, every_caption=config.every_caption,
            train=True, gain_db=config.gain_db, shift=config.shift, seed=config.seed, cache_bytes=CACHE_BYTES // max(1, config.workers))

    def batches(self, epoch: int, first_batch: int):
        """Training batches of an epoch from `first_batch` on; the last one may be smaller."""
        c = self.config
        return batches(self.train_set, c.batch_size, epoch=epoch, seed=c.seed, shuffle=True, first_batch=first_batch, workers=c.workers)

    def batches_per_epoch(self) -> int:
        """Number of training batches."""
        return count_batches(self.train_set, self.config.batch_size)

    def losses(self, model: nn.Module, batch: dict) -> dict[str, Tensor]:
        """Contrastive loss of a batch of (clip, caption) rows: {"loss": scalar}."""
        waveform = batch["waveform"]
        durations = torch.tensor(batch["duration"], device=waveform.device)
        positives = same(batch["clip_id"] if self.config.positives == "clip" else ["\x1f".join(sorted(x)) for x in batch["labels"]])
        if self.config.mix:
            waveform, durations, positives = mix_clips(waveform, durations, positives, self.config.mix)
        audio, text = model(waveform, durations, batch["caption"])
        return {"loss": contrastive_loss(self.model.logits(audio, text), positives.to(waveform.device), self.config.loss_reduction)}

    def validate(self) -> dict[str, float]:
        """Text-to-audio metrics of the validation split under "val/...", empty where it has no clip or was trained on."""
        if "val" in self.config.fit_splits or "val" not in self.manifest.splits:
            return {}
        gallery = embed(self.model, self.manifest.select("val"), self.config)
        metrics = retrieval_metrics(gallery.text @ gallery.audio.T, gallery.relevant)
        return {f"val/{name}": value for name, value in metrics.items()}

    def save(self, folder: Path):
        """Write the model into `folder` in the published layout."""
        return self.model.save_pretrained(folder)


def same(names: list[str]) -> Tensor:
    """Tensor (B, B) bool: which rows carry the same name."""
    _, member = np.unique(np.asarray(names, dtype=object).astype(str), return_inverse=True)
    member = torch.from_numpy(member)
    return member[:, None] == member[None, :]


def mix_clips(waveform: Tensor, durations: Tensor, positives: Tensor, probability: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mix clips with others of their batch; a mixture contains both sounds, so that the captions of both are positives.

    Args:
        waveform: Tensor (B, samples).  durations: Tensor (B,) seconds.  positives: Tensor (B, B) bool.
        probability: of each clip to receive another one, 0 to 10 dB weaker. Drawn from torch's global generator.
    Returns: the three, mixed.
    """
    batch = len(waveform)
    partner = torch.randperm(batch)
    chosen = torch.rand(batch) < probability
    level = torch.where(chosen, 10 ** (-torch.rand(batch) / 2), 0.0).to(waveform)
    mixed = waveform + level[:, None] * waveform[partner]
    longest = torch.where(chosen.to(durations.device), torch.maximum(durations, durations[partner]), durations)
    return mixed, longest, positives | (positives[partner] & chosen[:, None])


@dataclass(frozen=True)
class Gallery:
    """Embeddings of a split: audio (N, D), text (Q, D) of all captions, relevant (Q, N) bool, queries (Q texts), clip (Q,) row of each."""

    audio: Tensor
    text: Tensor
    relevant: Tensor
    queries: list[str]
    clip: np.ndarray


@torch.inference_mode()
def embed(model: DualEncoder, manifest: Manifest, config: RetrievalConfig, show=lambda items, total, label: items) -> Gallery:
    """Embed every clip and every caption of a manifest once, in evaluation mode.

    Args:
        model: on any device.  manifest: N clips.  config: window, batch size and workers.
        show: wraps the batches to show progress, called as show(items, total, label).
    Returns: a `Gallery` on the CPU in float32.
    """
    training, device = model.training, model.tau.device
    model.eval()
    dataset = ClipDataset(manifest, sample_rate=model.audio.sample_rate, seconds=config.clip_seconds)
    audio = [model.embed_audio(batch["waveform"].to(device), torch.tensor(batch["duration"], device=device)).cpu()
             for batch in show(batches(dataset, config.batch_size, workers=config.workers), count_batches(dataset, config.batch_size), "clips")]
    queries = [c for captions in manifest.table["captions"] for c in captions]
    clip = np.repeat(np.arange(len(manifest)), [len(c) for c in manifest.table["captions"]])
    text = embed_texts(model, queries)
    model.train(training)
    relevant = torch.from_numpy(clip)[:, None] == torch.arange(len(manifest))[None, :]
    return Gallery(torch.cat(audio), text, relevant, queries, clip)


@torch.inference_mode()
def embed_texts(model: DualEncoder, texts: list[str], chunk: int = 256) -> Tensor:
    """Texts to unit vectors (B, D) on the CPU; a text that occurs several times is encoded once."""
    distinct = sorted(set(texts))
    rows = torch.cat([model.embed_text(distinct[i:i + chunk]).cpu() for i in range(0, len(distinct), chunk)])
    place = {text: i for i, text in enumerate(distinct)}
    return rows[[place[text] for text in texts]]
