"""Language-based audio retrieval: a PaSST + RoBERTa dual encoder (DCASE 2025 Task 6 baseline).

Configuration, model and training step. Defaults are the published ones; notebooks and profiles change sizes. The audio branch
averages 10 s segments of a clip of at most 30 s, the text branch takes RoBERTa's first token; both are projected to unit vectors
of one space and trained with a symmetric contrastive loss in which all captions of one clip are positives. A second stage can
learn from the correspondences that trained models estimate. `python -m lib.families.retrieval predict` writes a challenge's table.
"""
from __future__ import annotations

import argparse
import csv
import json
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lib import data, distributed, randomness
from lib.audio.logmel import LogMelConfig
from lib.config import RunConfig
from lib.data import folder
from lib.data.loading import ClipDataset, batches, count_batches
from lib.data.manifest import Manifest
from lib.distributed import gather, gather_list
from lib.encoders.clap import ClapAudio, ClapText
from lib.encoders.dual import DualEncoder, initialise
from lib.encoders.passt import PasstConfig, PasstEncoder
from lib.encoders.store import encode_clips, encode_texts, store
from lib.encoders.text import RobertaText, TextConfig
from lib.encoders.weights import model_digest, weights_digest
from lib.evaluation.retrieval import retrieval_metrics
from lib.files import user_path, write_text
from lib.glossary import ParameterError
from lib.losses.contrastive import contrastive_loss, estimated_loss
from lib.media.audio import AudioError

CACHE_BYTES = 2 << 30       # decoded clips kept in memory (clips no longer than the window)


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(RunConfig):
    """Parameters of the family; meaning and range of each: `lib.glossary.PARAMETERS`."""

    scene_seconds: float = 10.0
    excluded_ids: str | None = None
    mixture_shares: tuple[float, ...] = ()
    initial_checkpoint: str | None = None
    audio_encoder: str = "passt"
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
    text_encoder: str = "roberta"
    text_size: str = "roberta-large"
    text_weights: str | None = None
    max_tokens: int = 32
    text_dropout: float = 0.2
    embedding_dim: int | None = 1024
    tau: float = 0.05
    train_tau: bool = False
    positives: str = "clip"
    loss_reduction: str = "pairs"
    chunk_size: int | None = None
    teachers: tuple[str, ...] = ()
    teacher_weight: float = 1.0
    permute_captions: bool = False
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
        understood = data.data_set_options(self.dataset)
        options = {"clip_seconds": self.scene_seconds} if "soundscapes" in self.dataset.split("+") else {}
        if "excluded_ids" in understood:
            options["excluded_ids"] = self.excluded_ids
        return data.prepare(self.dataset, data_root=self.data_root, num_samples=self.num_samples, workers=self.threads, **options)

    def inputs(self) -> tuple[str, ...]:
        """Digests of the checkpoint that training starts from and of the teachers."""
        return tuple(f"{role} {model_digest(user_path(folder))}" for role, folders in (
            ("start", [self.initial_checkpoint] if self.initial_checkpoint else []), ("teacher", self.teachers)) for folder in folders)

    def shares(self) -> dict[str, float] | None:
        """What `ClipDataset` takes: the share of each data set of a mixture; None: every row comes once."""
        names = self.dataset.split("+")
        if self.mixture_shares and len(self.mixture_shares) != len(names):
            raise ParameterError(f"mixture_shares: {len(self.mixture_shares)} numbers for the {len(names)} data sets of {self.dataset!r}; "
                                 "give one each, or none")
        return dict(zip(names, self.mixture_shares)) or None


def build(config: RetrievalConfig, captions: list[str]) -> DualEncoder:
    """A dual encoder with random or published weights, or those of a checkpoint.

    Args:
        config: sizes and weights.  captions: training captions, for the tokenizer of a scratch text encoder.
    """
    randomness.seed_all(config.seed, "model")
    start = DualEncoder.from_pretrained(config.initial_checkpoint) if config.initial_checkpoint else None
    if start:
        _check_sizes(config, start)
    model = DualEncoder(_audio_tower(config, start), _text_tower(config, captions, start), config.embedding_dim, config.tau, config.train_tau)
    if start:
        initialise(model, config.initial_checkpoint)
    return model


def _check_sizes(config: RetrievalConfig, start: DualEncoder) -> None:
    """ParameterError where the checkpoint that training starts from holds another architecture than the parameters ask for."""
    stored = start.config()
    audio, text = stored["audio"], stored["text"]
    found = {"audio_encoder": audio["kind"], "audio_size": audio.get("size"), "segment_seconds": audio.get("segment_seconds"),
             "text_encoder": text["kind"], "text_size": text.get("size"), "embedding_dim": stored["dim"]}
    for name, value in found.items():
        if (value is not None or name == "embedding_dim") and value != getattr(config, name):
            raise ParameterError(f"{name}={getattr(config, name)!r}, but initial_checkpoint holds a model with {value!r}; set {name}={value!r} "
                                 f"or start from another checkpoint than {config.initial_checkpoint}")


def _needed(config: RetrievalConfig, name: str) -> str:
    if getattr(config, name) is None:
        raise ParameterError(f"{name}: CLAP's towers are not trained from scratch; give the hub id or folder of a CLAP, such as "
                             "'laion/larger_clap_general'")
    return getattr(config, name)


def _audio_tower(config: RetrievalConfig, start: DualEncoder | None):
    if config.audio_encoder == "clap":
        return start.audio if start else ClapAudio.from_published(_needed(config, "audio_weights"), drop_path=config.drop_path)
    audio = PasstEncoder(config.audio())
    if config.audio_weights and not config.initial_checkpoint:
        audio.load_published(config.audio_weights)
    return audio


def _text_tower(config: RetrievalConfig, captions: list[str], start: DualEncoder | None):
    if config.text_encoder == "clap":
        return start.text if start else ClapText.from_published(_needed(config, "text_weights"), config.text_dropout, config.max_tokens)
    text_config = TextConfig(size=config.text_size, max_tokens=config.max_tokens, dropout=config.text_dropout)
    if start:           # its tokenizer and vocabulary, this run's dropout
        return RobertaText.like(start.text, text_config)
    return RobertaText.from_published(text_config, config.text_weights) if config.text_weights else RobertaText.from_scratch(text_config, captions)


def load(folder: str | Path, device: torch.device | str = "cpu") -> tuple[DualEncoder, RetrievalConfig]:
    """A trained model in evaluation mode and the configuration it was trained with: the same front end and windows.

    Args:
        folder: a checkpoint.  device: where the model goes.
    Raises:
        FileNotFoundError, ValueError: naming the folder and what is wrong with it.
    """
    config = configuration(folder)
    return DualEncoder.from_pretrained(folder).to(device), config


def configuration(folder: str | Path) -> RetrievalConfig:
    """What the model in a checkpoint folder was trained with, without reading its weights. FileNotFoundError: naming the folder."""
    folder = user_path(folder)
    if not (folder / "training.json").is_file():
        raise FileNotFoundError(f"{folder} holds no training.json: it is no checkpoint of this family; train one with notebook 10")
    return RetrievalConfig.from_dict(json.loads((folder / "training.json").read_text())["config"] | {"data_root": None})


class Retrieval:
    """The family as the training loop sees it (`lib.training.loop.Family`).

    Args:
        config: a `RetrievalConfig`.
        manifest: clips to use; None: prepared from the configuration.
    """

    name = "retrieval"
    monitor = "val/mAP@10"
    memory_levers = ("set or lower chunk_size (the same gradients), lower batch_size (raise accumulation to keep the step), shorten "
                     "clip_seconds, raise patchout_time or set precision='bf16-mixed'")
    Config = RetrievalConfig

    def __init__(self, config: RetrievalConfig, manifest: Manifest | None = None):
        self.config = config
        if config.teachers and config.mix:
            raise ParameterError("teachers: what they estimate for a clip does not hold for a mixture of clips; set mix=0")
        self.manifest = config.prepare() if manifest is None else manifest
        self.train_manifest = self.manifest.select(list(config.fit_splits))
        if config.permute_captions:
            self.train_manifest = permuted(self.train_manifest, config.seed)
        self.model = build(config, [c for captions in self.train_manifest.table["captions"] for c in captions])
        self.train_set = ClipDataset(
            self.train_manifest, sample_rate=self.model.audio.sample_rate, seconds=config.clip_seconds, every_caption=config.every_caption,
            train=True, gain_db=config.gain_db, shift=config.shift, seed=config.seed, cache_bytes=CACHE_BYTES // max(1, config.workers),
            shares=config.shares())
        self.teachers: Teachers | None = None

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
        """Loss of a batch of (clip, caption) rows, those of all processes together.

        With teachers, "loss" is (1 - teacher_weight) "contrastive" + teacher_weight "estimated".

        Args: model: the dual encoder, wrapped or not.  batch: of `batches`.
        Returns: {"loss": scalar, ...}.
        """
        config, waveform = self.config, batch["waveform"]
        durations = torch.tensor(batch["duration"], device=waveform.device)
        draws = self.model.audio.draw()                 # before anything else is drawn: the same in all processes, and for all chunks
        randomness.part(distributed.rank())
        heard = torch.arange(len(waveform))[:, None]
        if config.mix:
            waveform, durations, heard = mix_clips(waveform, durations, config.mix)
        audio, text = model(waveform, durations, batch["caption"], draws, config.chunk_size)
        names = self.names(batch)
        positives = shared(gather_list([[names[i] for i in row] for row in heard.tolist()]), gather_list(names))
        logits = self.model.logits(gather(audio), gather(text))
        contrastive = contrastive_loss(logits, positives.to(waveform.device), config.loss_reduction)
        if not config.teachers:
            return {"loss": contrastive}
        self.teachers = self.teachers or Teachers(config, self.train_manifest, waveform.device)
        estimates = self.teachers.logits(gather_list(batch["row"]), gather_list(batch["caption"])).to(waveform.device)
        estimated = estimated_loss(logits, estimates)
        return {"loss": torch.lerp(contrastive, estimated, config.teacher_weight), "contrastive": contrastive, "estimated": estimated}

    def compile(self) -> None:
        """torch.compile both encoders in place (their parameters keep their names)."""
        self.model.audio.network.compile()
        self.model.text.network.compile()

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


def permuted(manifest: Manifest, seed: int) -> Manifest:
    """The same clips with captions and labels of others: a control, which can learn nothing about which sound a text describes.

    Every clip gets those of one other clip (along one random cycle through all of them).
    """
    order = randomness.generator(seed, "permuted captions").permutation(len(manifest))
    donor = np.empty_like(order)
    donor[order] = np.roll(order, 1)
    table = manifest.table.copy()
    for column in ("captions", "labels"):
        table[column] = [manifest.table[column].iat[i] for i in donor]
    return replace(manifest, table=table)


class Teachers:
    """Correspondences between training clips and captions as trained models estimate them, each encoded once and kept.

    Args:
        config: of the run that learns from them (`teachers`: checkpoint folders).  manifest: its training clips.
        device: where the teachers encode.
    Raises:
        ParameterError: a teacher was trained on a split that this run is validated or scored on.
        AudioError: clips that cannot be decoded.
    """

    def __init__(self, config: RetrievalConfig, manifest: Manifest, device: torch.device):
        captions = [c for captions in manifest.table["captions"] for c in captions]
        self.parts = []
        for folder in config.teachers:
            model, trained = load(folder, device)
            leaked = set(trained.fit_splits) - set(config.fit_splits)
            if leaked and trained.dataset == config.dataset:
                raise ParameterError(f"teachers: {folder} was trained on {sorted(leaked)} of {trained.dataset}, which this run keeps apart")
            kept = store(lambda: model, manifest, captions, weights_digest(user_path(folder)), seconds=trained.clip_seconds,
                         batch_size=config.batch_size, workers=config.workers)
            if kept.unreadable:
                clip, reason = next(iter(kept.unreadable.items()))
                raise AudioError(f"{len(kept.unreadable)} training clips cannot be decoded any more, such as {clip}: {reason}. Prepare the "
                                 f"data set again and remove {kept.folder}")
            self.parts.append((kept, float(model.tau.detach().abs())))

    def logits(self, rows: list[int], captions: list[str]) -> Tensor:
        """Mean over the teachers of similarity over temperature, for clips in `rows` of the manifest and captions: (A, T) float32."""
        estimates = [torch.from_numpy(kept.audio[rows] @ kept.text[[kept.texts[c] for c in captions]].T) / tau for kept, tau in self.parts]
        return torch.stack(estimates).mean(dim=0)


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
    training = model.training
    model.eval()
    rows, failed = zip(*encode_clips(model, manifest, seconds=config.clip_seconds, batch_size=config.batch_size, workers=config.workers))
    failed = [entry for part in failed for entry in part]
    bad = [entry for entry in failed if entry]
    if bad:
        message = (f"{len(bad)} of {len(manifest)} clips cannot be decoded any more, such as {bad[0]['clip_id']}: {bad[0]['reason']}")
        if not leave_out_unreadable or len(bad) == len(manifest):
            raise AudioError(f"{message}. Prepare the data set again, so that they are counted and left out")
        warnings.warn(f"{message}. They are left out", stacklevel=2)
    kept = [i for i, entry in enumerate(failed) if entry is None]
    queries, relevant, group = relevance(manifest.select(rows=kept), config.positives)
    text = encode_texts(model, queries)
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


def predict(checkpoint: str | Path, audio: str | Path, queries: str | Path, out: str | Path, device: torch.device | str = "cpu",
            workers: int = 0) -> Path:
    """Similarities of queries and audio files as the challenge's table (DCASE 2025 Task 6).

    The table's first column, `index`, is the query; every other column is a file (its name below the folder, sorted), cells are
    cosine similarities. A file that cannot be decoded keeps its column, with the lowest similarity -1, and is named in a warning.

    Args:
        checkpoint: folder of a trained model.  audio: folder of files.  queries: CSV file with a column `caption`.
        out: CSV file to write, in one step.  device, workers: where clips are encoded, processes that decode them.
    Returns: `out`.
    Raises:
        FileNotFoundError, ValueError: naming the file and what was expected.
    """
    texts = read_queries(user_path(queries))
    model, config = load(checkpoint, device)
    manifest = data.prepare("folder", data_root=audio, workers=workers, captions="none")
    vectors, failed = zip(*encode_clips(model, manifest, seconds=config.clip_seconds, batch_size=config.batch_size, workers=workers))
    gallery, failed = torch.cat(vectors), [entry for part in failed for entry in part]
    place = {clip: i for i, clip in enumerate(manifest.table["clip_id"]) if failed[i] is None}
    columns = folder.listing(manifest.root)[0]
    lost = [name for name in columns if name not in place]
    if lost:
        warnings.warn(f"{len(lost)} of {len(columns)} files cannot be used and get the similarity -1, such as {lost[0]}", stacklevel=2)
    text = StringIO()
    table = csv.writer(text)
    table.writerow(["index", *columns])
    for query, vector in zip(texts, encode_texts(model, texts)):
        scores = (gallery @ vector).tolist()
        table.writerow([query, *(f"{scores[place[name]]:.7g}" if name in place else "-1" for name in columns)])
    return write_text(user_path(out), text.getvalue())


def read_queries(path: Path) -> list[str]:
    """The column `caption` of a CSV file. ValueError: naming the file, its columns and an empty row."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        if "caption" not in (table.fieldnames or []):
            raise ValueError(f"{path}: column 'caption' is missing, its columns are {', '.join(table.fieldnames or []) or 'none'}; name the "
                             "column of the queries 'caption'")
        texts = [(row["caption"] or "").strip() for row in table]
    empty = [i for i, text in enumerate(texts, 2) if not text]
    if empty or not texts:
        raise ValueError(f"{path}: " + (f"line {empty[0]} holds no caption" if texts else "no query in it"))
    return texts


def main(arguments: list[str] | None = None) -> int:
    """`python -m lib.families.retrieval predict`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lib.families.retrieval")
    tool = parser.add_subparsers(dest="verb", required=True).add_parser("predict", help="similarities of queries and files as a table")
    tool.add_argument("--checkpoint", required=True, help="folder of a trained model")
    tool.add_argument("--audio", required=True, help="folder of audio files")
    tool.add_argument("--queries", required=True, help="CSV file with a column `caption`")
    tool.add_argument("--out", required=True, help="CSV file to write")
    tool.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    tool.add_argument("--workers", type=int, default=0, help="processes that decode (default 0: this one)")
    options = parser.parse_args(arguments)
    try:
        written = predict(options.checkpoint, options.audio, options.queries, options.out, options.device, options.workers)
    except (ValueError, OSError, RuntimeError) as error:    # messages of ours say what to do; a traceback would hide them
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"written: {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
