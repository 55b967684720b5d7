"""Language-based audio retrieval: a PaSST + RoBERTa dual encoder (DCASE 2025 Task 6 baseline).

Configuration, model and training step. Defaults are the published ones; notebooks and profiles change sizes. The audio branch
averages 10 s segments of a clip of at most 30 s, the text branch takes RoBERTa's first token; both are projected to unit vectors
of one space and trained with a symmetric contrastive loss in which all captions of one clip are positives.
"""
from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
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
from lib.distributed import gather, gather_list
from lib.encoders.dual import DualEncoder
from lib.encoders.passt import PasstConfig, PasstEncoder
from lib.encoders.text import RobertaText, TextConfig
from lib.evaluation.retrieval import retrieval_metrics
from lib.files import user_path
from lib.losses.contrastive import contrastive_loss
from lib.media.audio import AudioError
from lib.progress import track

CACHE_BYTES = 2 << 30       # decoded clips kept in memory (clips no longer than the window)


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(RunConfig):
    """Parameters of the family; meaning and range of each: `lib.glossary.PARAMETERS`."""

    scene_seconds: float = 10.0
    audio_size: str = "published"
    audio_weights: str | None = None
    clip_seconds: float = 30.0
    segment_seconds: float = 10.0
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
        return PasstConfig(size=self.audio_size, segment_seconds=self.segment_seconds,
                           patchout_frequency=self.patchout_frequency, patchout_time=self.patchout_time,
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


def load(folder: str | Path, device: torch.device | str = "cpu") -> tuple[DualEncoder, RetrievalConfig]:
    """A trained model in evaluation mode and the configuration it was trained with: the same front end and windows.

    Args:
        folder: a checkpoint.  device: where the model goes.
    Raises:
        FileNotFoundError, ValueError: naming the folder and what is wrong with it.
    """
    folder = user_path(folder)
    if not (folder / "training.json").is_file():
        raise FileNotFoundError(f"{folder} holds no training.json: it is no checkpoint of this family; train one with notebook 10")
    config = RetrievalConfig.from_dict(json.loads((folder / "training.json").read_text())["config"] | {"data_root": None})
    return DualEncoder.from_pretrained(folder).to(device), config


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

    def batches(self, epoch: int, first_batch: int, skipped: Iterable[str] = ()):
        """Training batches of an epoch from `first_batch` on; the last one may be of another size."""
        c = self.config
        return batches(self.train_set, c.batch_size, epoch=epoch, seed=c.seed, shuffle=True, first_batch=first_batch, workers=c.workers,
                       skipped=skipped)

    def batches_per_epoch(self) -> int:
        """Number of training batches."""
        return count_batches(self.train_set, self.config.batch_size)

    def clips(self) -> int:
        """Number of training clips."""
        return len(self.train_manifest)

    def losses(self, model: nn.Module, batch: dict) -> dict[str, Tensor]:
        """Contrastive loss of a batch of (clip, caption) rows, those of all processes together: {"loss": scalar}."""
        waveform = batch["waveform"]
        durations = torch.tensor(batch["duration"], device=waveform.device)
        heard = torch.arange(len(waveform))[:, None]
        if self.config.mix:
            waveform, durations, heard = mix_clips(waveform, durations, self.config.mix)
        audio, text = model(waveform, durations, batch["caption"])
        names = self.names(batch)
        positives = shared(gather_list([[names[i] for i in row] for row in heard.tolist()]), gather_list(names))
        logits = self.model.logits(gather(audio), gather(text))
        return {"loss": contrastive_loss(logits, positives.to(waveform.device), self.config.loss_reduction)}

    def names(self, batch: dict) -> list[str]:
        """What makes rows of a batch belong together: the clip, or its set of labels."""
        return list(batch["clip_id"]) if self.config.positives == "clip" else [_label_key(labels) for labels in batch["labels"]]

    def validate(self) -> dict[str, float]:
        """Text-to-audio metrics of the validation split under "val/...", empty where it has no clip or was trained on."""
        if "val" in self.config.fit_splits or "val" not in self.manifest.splits:
            return {}
        gallery = embed(self.model, self.manifest.select("val"), self.config, leave_out_unreadable=True)
        metrics = retrieval_metrics(gallery.similarity, gallery.relevant)
        return {f"val/{name}": value for name, value in metrics.items()}

    def save(self, folder: Path):
        """Write the model into `folder` in the published layout, and beside it training.json, the configuration it was trained with."""
        (folder / "training.json").write_text(json.dumps({"family": self.name, "config": self.config.to_dict()}, indent=1, sort_keys=True))
        return self.model.save_pretrained(folder)


def shared(heard: list[list[str]], names: list[str]) -> Tensor:
    """Tensor (A, T) bool: whether what clip a holds (one name or more each) is among it what text t is about."""
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    clips, texts = torch.tensor([[number[name] for name in row] for row in heard]), torch.tensor([number[name] for name in names])
    return (clips[:, :, None] == texts).any(dim=1)


def mix_clips(waveform: Tensor, durations: Tensor, probability: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mix clips with others of their batch; a mixture contains both sounds, so that the captions of both are positives.

    Args:
        waveform: Tensor (B, samples).  durations: Tensor (B,) seconds.
        probability: of each clip to receive another one, 0 to 10 dB weaker. Drawn from torch's global generator.
    Returns:
        waveform and durations, mixed, and Tensor (B, 2) int64: the rows that are heard in each (twice itself where none was added).
    """
    batch = len(waveform)
    partner = torch.randperm(batch)
    chosen = torch.rand(batch) < probability
    level = torch.where(chosen, 10 ** (-torch.rand(batch) / 2), 0.0).to(waveform)
    mixed = waveform + level[:, None] * waveform[partner]
    longest = torch.where(chosen.to(durations.device), torch.maximum(durations, durations[partner]), durations)
    return mixed, longest, torch.stack([torch.arange(batch), torch.where(chosen, partner, torch.arange(batch))], dim=1)


@dataclass(frozen=True)
class Gallery:
    """A split in embeddings.

    Attributes:
        audio: Tensor (N, D), one row a clip.  text: Tensor (Q, D), one row a query.  queries: Q captions.
        relevant: Tensor (Q, N) bool.  group: (Q,) int; queries of one group are no independent draws (captions of one clip).
    """

    audio: Tensor
    text: Tensor
    queries: list[str]
    relevant: Tensor
    group: np.ndarray

    @property
    def similarity(self) -> Tensor:
        """Cosine similarities (Q, N)."""
        return self.text @ self.audio.T


@torch.inference_mode()
def embed(model: DualEncoder, manifest: Manifest, config: RetrievalConfig, leave_out_unreadable: bool = False) -> Gallery:
    """Embed every clip and every query of a manifest once, in evaluation mode, with progress; several processes share the clips.

    Args:
        model: on any device.  manifest: N clips.
        config: window, batch size, workers; with positives "clip" every caption is a query for its own clip, with "labels"
            every different caption is one for all clips of its labels.
        leave_out_unreadable: go on without clips that cannot be decoded any more, with a warning (a validation during training).
    Returns: a `Gallery` on the CPU in float32.
    Raises:
        AudioError: naming the clips that passed the health check and cannot be decoded now.
    """
    training, device = model.training, model.tau.device
    model.eval()
    dataset = ClipDataset(manifest, sample_rate=model.audio.sample_rate, seconds=config.clip_seconds)
    source = batches(dataset, config.batch_size, workers=config.workers)
    rows, failed = [], []
    for batch in track(source, count_batches(dataset, config.batch_size), "encoding clips"):
        durations = torch.tensor(batch["duration"], device=device)
        rows.append(gather(model.embed_audio(batch["waveform"].to(device), durations)).cpu())
        failed += gather_list(batch["failed"])
    bad = [entry for entry in failed if entry]
    if bad:
        message = (f"{len(bad)} of {len(manifest)} clips cannot be decoded any more, such as {bad[0]['clip_id']}: {bad[0]['reason']}")
        if not leave_out_unreadable or len(bad) == len(manifest):
            raise AudioError(f"{message}. Prepare the data set again, so that they are counted and left out")
        warnings.warn(f"{message}. They are left out", stacklevel=2)
    kept = [i for i, entry in enumerate(failed) if entry is None]
    queries, relevant, group = relevance(manifest.select(rows=kept), config.positives)
    text = embed_texts(model, queries)
    model.train(training)
    return Gallery(torch.cat(rows)[kept], text, queries, relevant, group)


def relevance(manifest: Manifest, positives: str) -> tuple[list[str], Tensor, np.ndarray]:
    """Queries of a manifest, which clips are relevant to them, and which queries belong together.

    Args: manifest: N clips.  positives: "clip" or "labels", see `embed`.
    Returns: Q captions, Tensor (Q, N) bool, (Q,) int groups.
    """
    identity = [clip if positives == "clip" else _label_key(labels) for clip, labels in zip(manifest.table["clip_id"], manifest.table["labels"])]
    number = {name: i for i, name in enumerate(dict.fromkeys(identity))}
    member = np.array([number[name] for name in identity])
    rows = [(caption, group) for captions, group in zip(manifest.table["captions"], member) for caption in captions]
    if positives == "labels":
        rows = list(dict.fromkeys(rows))
    group = np.array([g for _, g in rows])
    return [caption for caption, _ in rows], torch.from_numpy(group[:, None] == member[None, :]), group


def _label_key(labels: list[str]) -> str:
    return "\x1f".join(sorted(labels))


@torch.inference_mode()
def embed_texts(model: DualEncoder, texts: list[str], chunk: int = 256) -> Tensor:
    """Texts to unit vectors (B, D) on the CPU; a text that occurs several times is encoded once."""
    distinct = sorted(set(texts))
    rows = torch.cat([model.embed_text(distinct[i:i + chunk]).cpu() for i in range(0, len(distinct), chunk)])
    place = {text: i for i, text in enumerate(distinct)}
    return rows[[place[text] for text in texts]]
