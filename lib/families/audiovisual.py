"""Audio-visual model in three stages (T3-AV): masked autoencoding, contrastive alignment, classification.

Configuration, model and training step of every stage. Defaults are the original project's. A stage may start from a checkpoint of
an earlier one, of this workbook or a file of the original; what such a checkpoint was made with counts unless it is asked for
otherwise (`lib.encoders.t3av_files`). Everything runs through one forward of `lib.encoders.t3av.T3AV`.
"""
from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lib import data, distributed, randomness
from lib.audio.picture import PictureConfig, SoundPicture
from lib.config import RunConfig
from lib.data.av_loading import AudioVisualDataset, WindowStore, stored_windows
from lib.data.loading import batches, count_batches
from lib.data.manifest import Manifest
from lib.data.video_health import SUFFIXES as VIDEO_SUFFIXES
from lib.distributed import gather, gather_list
from lib.encoders import t3av_files
from lib.encoders.patches import patchify
from lib.encoders.t3av import MODALITIES, Freezing, T3AV, T3AVSettings
from lib.encoders.vit import PUBLISHED, VitConfig
from lib.encoders.weights import model_digest
from lib.evaluation.classification import classification_values
from lib.evaluation.reconstruction import PatchMeans, patch_errors, summarise
from lib.evaluation.retrieval import retrieval_metrics
from lib.files import read_json, sha256, user_path, write_json
from lib.glossary import ParameterError
from lib.losses.contrastive import contrastive_loss
from lib.losses.masked import masked_patch_loss
from lib.media.crops import random_crops
from lib.progress import track

STAGES = ("mae", "contrastive", "finetune")
MODEL_TYPE = "workbook-audiovisual"
# what a checkpoint decides unless it is asked for otherwise, with the original's defaults
STRUCTURE = {"vit_model_name": PUBLISHED, "vit_size": "published", "image_size": 224, "patch_size": 16, "num_frames": 16,
             "pixel_mean": 0.5, "pixel_std": 0.5, "bb_layers": 6, "bb_heads": 12, "dec_layers": 2, "dec_heads": 8,
             "positions": "1d", "masking": "before", "normalize_patches": False, "contrastive_dim": 128, "proj_hidden_dim": 768,
             "clf_hidden_dim": 512, "pooling": "class", "sample_rate": 16000, "n_mels": 128, "n_fft": 1024, "hop": 512,
             "audio_duration": 10.0}
LEFT = {"contrastive": {"missing": ("heads",), "unused": ("decoders", "heads", "classifier")},
        "finetune": {"missing": ("classifier",), "unused": ("decoders", "heads", "classifier")}}
PICTURES_KEPT = 1 << 30     # bytes of memory
COLLAPSED = 0.01        # a contrastive loss within 1 % of ln(keys) has learnt nothing


@dataclass(frozen=True, kw_only=True)
class AudiovisualConfig(RunConfig):
    """Parameters of the family; meaning and range of each: `lib.glossary.PARAMETERS`. Structure that is None is the checkpoint's."""

    dataset: str = "vggsound"
    csv_path: str | None = None
    video_dir: str | None = None
    subset: str | None = None
    val_share: float = 0.1
    split_seed: int = 42
    scene_seconds: float = 10.0
    label_share: float = 1.0
    stage: str = "mae"
    stage1_checkpoint: str | None = None
    pretrained_checkpoint: str | None = None
    allow_config_change: tuple[str, ...] = ()
    vit_model_name: str | None = None
    vit_size: str | None = None
    image_size: int | None = None
    patch_size: int | None = None
    num_frames: int | None = None
    pixel_mean: float | None = None
    pixel_std: float | None = None
    bb_layers: int | None = None
    bb_heads: int | None = None
    dec_layers: int | None = None
    dec_heads: int | None = None
    positions: str | None = None
    masking: str | None = None
    normalize_patches: bool | None = None
    contrastive_dim: int | None = None
    proj_hidden_dim: int | None = None
    clf_hidden_dim: int | None = None
    pooling: str | None = None
    sample_rate: int | None = None
    n_mels: int | None = None
    n_fft: int | None = None
    hop: int | None = None
    audio_duration: float | None = None
    backbone_dropout: float = 0.1
    crop_area: float = 1.0
    token_share: float = 1.0
    mask: str = "random"
    mask_ratio: float = 0.75
    train_audio_mae: bool = True
    train_video_mae: bool = True
    temperature: float = 0.07
    collapse_check_after: int = 200
    freeze_encoders: bool = False
    freeze_backbone: bool = False
    freeze_all_except_head: bool = False
    unfreeze_backbone_layers: int = 0
    unfreeze_encoder_layers: int = 0
    unfreeze_all: bool = False
    store_windows: bool = False
    output_dir: str | None = None
    checkpoint_interval: int = 10
    seed: int = 42
    epochs: int = 100
    batch_size: int = 32
    learning_rate: float = 1.5e-4
    start_learning_rate: float = 0.0
    floor_learning_rate: float = 0.0
    warmup_epochs: float = 10.0
    decay_epochs: float | None = 90.0
    weight_decay: float = 0.05

    def __post_init__(self):
        super().__post_init__()
        if self.stage == "mae" and not (self.train_audio_mae or self.train_video_mae):
            raise ParameterError("AudiovisualConfig: train_audio_mae and train_video_mae are both False; stage 'mae' trains one at least")
        if self.stage1_checkpoint and self.stage != "contrastive":
            raise ParameterError(f"AudiovisualConfig: stage1_checkpoint is where stage 'contrastive' starts, not {self.stage!r}"
                                 + ("; use pretrained_checkpoint" if self.stage == "finetune" else ""))
        if self.pretrained_checkpoint and self.stage != "finetune":
            raise ParameterError(f"AudiovisualConfig: pretrained_checkpoint is where stage 'finetune' starts, not {self.stage!r}")

    @property
    def source(self) -> str | None:
        """The checkpoint that this stage starts from."""
        return {"mae": None, "contrastive": self.stage1_checkpoint, "finetune": self.pretrained_checkpoint}[self.stage]

    def prepare(self) -> Manifest:
        """The data set's manifest, prepared or read."""
        known = data.data_set_options(self.dataset)
        asked = {name: getattr(self, name) for name in ("csv_path", "video_dir", "subset", "val_share", "split_seed") if name in known}
        if self.dataset == "soundscapes":
            asked |= {"rendering": "closeup", "clip_seconds": self.scene_seconds, "events": 1}
        if "pictures" in known:
            asked["pictures"] = True
        return data.prepare(self.dataset, data_root=self.data_root, num_samples=self.num_samples, workers=self.threads, **asked)

    def inputs(self) -> tuple[str, ...]:
        """Digest of the checkpoint that training starts from."""
        named = self.source or self.vit_model_name
        path = user_path(named) if named else None
        return () if path is None or not path.exists() else (model_digest(path) if path.is_dir() else sha256(path),)

    def start(self) -> dict | None:
        """What this stage starts from: contents as of `t3av_files.read`, None: nothing, or only a plain ViT."""
        if not self.source or (self.stage == "contrastive" and t3av_files.stage1_source(_file_or_folder(self.source))[0] == "vit"):
            return None
        path, stages = user_path(self.source), STAGES[:STAGES.index(self.stage)]
        return read_checkpoint(path, stages) if path.is_dir() else t3av_files.read(path, stages=stages)

    def resolved(self) -> tuple["AudiovisualConfig", list[str]]:
        """Structure filled in: what was asked for, else the checkpoint's, else the default; and what to log. ValueError: they contradict."""
        explicit = {name: getattr(self, name) for name in STRUCTURE if getattr(self, name) is not None}
        contents = self.start()
        unused = LEFT[self.stage]["unused"] if contents else ()
        values, lines = t3av_files.resolve(
            explicit, contents and contents["args"], STRUCTURE, file=contents["file"] if contents else "", same_stage=False, unused=unused,
            allow_config_change=self.allow_config_change)
        return replace(self, **values), lines


def has_videos(dataset: str, data_root: str | Path | None) -> bool:
    """Whether a data set is seen as well as heard: soundscapes, VGGSound, a folder with at least one video."""
    if dataset != "folder":
        return dataset in ("soundscapes", "vggsound")
    return data_root is not None and any(path.suffix.lower() in VIDEO_SUFFIXES for path in user_path(data_root).rglob("*"))


def _file_or_folder(source: str) -> str | None:
    """A checkpoint folder of this workbook is no ViT folder: None for it."""
    path = user_path(source)
    return None if path.is_dir() and (read_json(path / "config.json") or {}).get("model_type") == MODEL_TYPE else source


def settings(config: AudiovisualConfig, classes: int = 0, stored: dict | None = None, vit_source: str | None = None) -> T3AVSettings:
    """Structure of the model of a resolved configuration.

    Args: stored: options of the checkpoint that it starts from, which know the ViT's sizes.  vit_source: a published ViT that it starts from.
    """
    if stored and "vit" in stored:
        vit = VitConfig(**stored["vit"])
    elif vit_source:
        vit = VitConfig.from_published(vit_source)
    else:
        vit = VitConfig(size=config.vit_size, image_size=config.image_size, patch=config.patch_size)
    return T3AVSettings(audio=vit, video=vit, num_frames=config.num_frames,
                        pixel_mean=config.pixel_mean, pixel_std=config.pixel_std, bb_layers=config.bb_layers, bb_heads=config.bb_heads,
                        dec_layers=config.dec_layers, dec_heads=config.dec_heads, dropout=config.backbone_dropout, positions=config.positions,
                        mask_ratio=config.mask_ratio, mask=config.mask, token_share=config.token_share, masking=config.masking, contrastive_dim=config.contrastive_dim,
                        proj_hidden_dim=config.proj_hidden_dim, temperature=config.temperature, classes=classes,
                        clf_hidden_dim=config.clf_hidden_dim, pooling=config.pooling)


def build(config: AudiovisualConfig, classes: int) -> tuple[T3AV, list[str]]:
    """The model of a resolved configuration, with the weights that it starts from, and lines for the log."""
    randomness.seed_all(config.seed, "model")
    modalities = tuple(name for name in MODALITIES if config.stage != "mae" or getattr(config, f"train_{name}_mae"))
    freezing = Freezing(**{field.name: getattr(config, field.name) for field in fields(Freezing)})
    contents = config.start()
    plain = config.source if config.source and contents is None else config.vit_model_name if config.vit_size == "published" else None
    structure = settings(config, classes if config.stage == "finetune" else 0, contents and contents["args"], plain)
    model = T3AV(structure, config.stage, modalities, freezing, None if contents else plain)
    if not contents:
        return model, [f"ViTs start from {plain}" if plain else "all weights are random"]
    return model, [t3av_files.load_into(model, contents, **LEFT[config.stage])]


def read_checkpoint(folder: Path, stages: Iterable[str] = STAGES) -> dict:
    """A checkpoint folder of this family as `t3av_files.read` gives a file. FileNotFoundError, ValueError: naming the folder."""
    entry = read_json(folder / "config.json")
    if entry is None or entry.get("model_type") != MODEL_TYPE or not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"{folder.absolute()} is no checkpoint of this family: config.json with model_type {MODEL_TYPE!r} and "
                                "model.safetensors are expected there; train one with notebook 41, 42 or 43")
    if entry["stage"] not in tuple(stages):
        raise ValueError(f"{folder} is of stage {entry['stage']!r}; expected one of {', '.join(stages)}")
    return {"model_state_dict": load_file(folder / "model.safetensors"), "args": entry["args"], "stage": entry["stage"],
            "label_map": entry.get("label_map"), "file": str(folder), "epoch": entry.get("epoch", 0)}


def load(folder: str | Path, device: torch.device | str = "cpu", **changes) -> tuple[T3AV, AudiovisualConfig, SoundPicture]:
    """A trained model in evaluation mode, its resolved configuration and its sound front end.

    Args: folder: a checkpoint.  device: where it goes.  changes: fields of the configuration, such as data_root.
    """
    contents = read_checkpoint(user_path(folder))
    stored = read_json(user_path(folder) / "training.json")["config"] | {"data_root": None, "stage1_checkpoint": None,
                                                                         "pretrained_checkpoint": None} | changes
    config = AudiovisualConfig.from_dict(stored)
    modalities = tuple(name for name in MODALITIES if config.stage != "mae" or getattr(config, f"train_{name}_mae"))
    classes = len(contents["label_map"] or ()) if config.stage == "finetune" else 0
    model = T3AV(settings(config, classes, contents["args"]), config.stage, modalities)
    model.load_state_dict(contents["model_state_dict"])
    return model.to(device).eval(), config, sound_picture(config).to(device)


def sound_picture(config: AudiovisualConfig) -> SoundPicture:
    """The front end of the sound of a resolved configuration."""
    return SoundPicture(PictureConfig(sample_rate=config.sample_rate, n_fft=config.n_fft, hop=config.hop, mels=config.n_mels,
                                      fmax=config.sample_rate / 2, size=config.image_size, seconds=config.audio_duration))


def windows(config: AudiovisualConfig, manifest: Manifest) -> WindowStore | None:
    """With `store_windows`, every clip decoded once for all stages and notebooks."""
    if not config.store_windows:
        return None
    return stored_windows(manifest, frames=config.num_frames, size=config.image_size, sample_rate=config.sample_rate,
                          seconds=config.audio_duration, workers=config.threads)


def dataset(config: AudiovisualConfig, manifest: Manifest, store: WindowStore | None, train: bool = False, need: str = "both") -> AudioVisualDataset:
    """Clips of a manifest as the model of a resolved configuration takes them."""
    return AudioVisualDataset(manifest, frames=config.num_frames, size=config.image_size, sample_rate=config.sample_rate,
                              seconds=config.audio_duration, train=train, need=need, seed=config.seed, store=store)


class Audiovisual:
    """The family as the training loop sees it (`lib.training.loop.Family`).

    Args:
        config: an `AudiovisualConfig`.  manifest: clips to use; None: prepared from the configuration.
    """

    name = "audiovisual"
    memory_levers = "lower batch_size, num_frames, raise mask_ratio, freeze_encoders, or set precision='bf16-mixed'"
    Config = AudiovisualConfig

    def __init__(self, config: AudiovisualConfig, manifest: Manifest | None = None):
        self.config, self.lines = config.resolved()
        self.monitor = {"mae": "val/minus loss", "contrastive": "val/mAP@10", "finetune": "val/top-1"}[config.stage]
        self.told = {"mae": ("val/loss_audio", "val/loss_video"), "contrastive": ("val/R@1", "val/mAP@10")}.get(config.stage, (self.monitor,))
        self.manifest = self.config.prepare() if manifest is None else manifest
        self.train_manifest = self.manifest.select(list(config.fit_splits))
        if config.stage == "finetune":
            self.train_manifest = labelled_part(self.train_manifest, config.label_share, config.seed)
        self.model, said = build(self.config, len(self.manifest.classes))
        self.lines += said
        self.picture, self._pictures = sound_picture(self.config), {}
        need = "both" if len(self.model.modalities) == 2 else self.model.modalities[0]
        self.train_set = dataset(self.config, self.train_manifest, self.store, train=True, need=need)
        self.steps, self.epoch, self.whole_epochs = 0, 0, 0

    @cached_property
    def store(self) -> WindowStore | None:
        """See `windows`."""
        return windows(self.config, self.manifest)

    def batches(self, epoch: int, first_batch: int, skipped: Iterable[str] = ()):
        """This process's share of the batches of an epoch."""
        c = self.config
        self.epoch, self.steps = epoch, epoch * self.batches_per_epoch() + first_batch
        for batch in batches(self.train_set, c.batch_size, epoch=epoch, seed=c.seed, shuffle=True, first_batch=first_batch, workers=c.workers,
                             skipped=skipped):
            yield batch | {"seeds": [randomness.derive(c.seed, "mask", epoch, clip) for clip in batch["clip_id"]]}
        self.whole_epochs = epoch + 1

    def batches_per_epoch(self) -> int:
        """Number of training batches."""
        return count_batches(self.train_set, self.config.batch_size)

    def clips(self) -> int:
        """Number of training clips."""
        return len(self.train_manifest)

    def losses(self, model: nn.Module, batch: dict) -> dict[str, Tensor]:
        """Loss of a batch, that of all processes together.

        mae: "loss" = "loss_audio" + "loss_video", squared error of hidden patches.  contrastive: symmetric cross-entropy over the clips
        of the batch, beside "keys" = ln(clips) and the batch's own "R@1".  finetune: cross-entropy, beside "top-1".
        Raises: RuntimeError: the contrastive loss still stands at ln(keys) after `collapse_check_after` steps.
        """
        randomness.part(distributed.rank())
        out = model(self.inputs(batch))
        self.steps += 1
        if self.config.stage == "mae":
            return self._masked(out)
        if self.config.stage == "contrastive":
            return self._contrastive(out)
        logits, labels = gather(out["logits"]), torch.tensor(gather_list(batch["label"]), device=out["logits"].device)
        with torch.autocast(logits.device.type, enabled=False):
            loss = nn.functional.cross_entropy(logits.float(), labels)
        return {"loss": loss, "top-1": (logits.argmax(dim=1) == labels).float().mean()}

    def inputs(self, batch: dict) -> dict:
        """What the model takes of a training batch of the loader."""
        found = {"audio": self.picture(batch["waveform"]) if self.store is None else self._kept_pictures(batch), "video": batch["frames"]}
        if self.config.crop_area < 1:
            found["video"] = random_crops(found["video"], batch["seeds"], self.config.crop_area)
        return found | {name: batch[name] for name in ("has_audio", "has_video", "seeds") if name in batch}

    def _kept_pictures(self, batch: dict) -> Tensor:
        """Pictures of the sounds in a store, whose windows never move: each is made once."""
        found = []
        for clip, waveform in zip(batch["clip_id"], batch["waveform"]):
            picture = self._pictures.get(clip)
            if picture is None:     # alone: the same bits whichever clips come together, before and after a resume
                picture = self.picture(waveform[None])[0]
                if (len(self._pictures) + 1) * picture.nbytes <= PICTURES_KEPT:
                    self._pictures[clip] = picture
            found.append(picture)
        return torch.stack(found)

    def _masked(self, out: dict) -> dict[str, Tensor]:
        parts = {}
        for name, one in out.items():
            total = masked_patch_loss(one["prediction"], one["target"], one["hidden"], self.config.normalize_patches, count=1)
            parts[f"loss_{name}"], = distributed.means(one["hidden"].sum(), total)
        return {"loss": sum(parts.values())} | parts

    def _contrastive(self, out: dict) -> dict[str, Tensor]:
        audio, video = gather(out["audio"]), gather(out["video"])
        logits = self.model.logits(audio, video)
        loss, keys = contrastive_loss(logits), math.log(len(logits))
        if self.steps == self.config.collapse_check_after and float(loss.detach()) > (1 - COLLAPSED) * keys:
            raise RuntimeError(f"after {self.steps} steps the contrastive loss is {float(loss.detach()):.4f}, that of a model which tells no clip from "
                               f"another ({keys:.4f} = ln {len(logits)}): it has learnt nothing. Unfreeze encoders or backbone, change learning_rate, "
                               "or raise collapse_check_after")
        hits = (logits.argmax(dim=1) == torch.arange(len(logits), device=logits.device)).float().mean()
        return {"loss": loss, "keys": torch.tensor(keys), "R@1": hits}

    def compile(self) -> None:
        """torch.compile the networks in place (their parameters keep their names)."""
        for encoder in self.model.encoders.values():
            encoder.network.compile()
        self.model.backbone.compile()

    def validate(self) -> dict[str, float]:
        """Metrics of the validation split under "val/...", empty where it has no clip or was trained on.

        Retrieval is the mean of both ways. mAP@10 chooses the model: R@1 of a small gallery goes up and down by chance.
        """
        if "val" in self.config.fit_splits or "val" not in self.manifest.splits:
            return {}
        part = self.manifest.select("val")
        if self.config.stage == "mae":
            sums = masked_losses(self.model, self.config, part, self.store, self.picture)
            return {f"val/loss_{name}": value for name, value in sums.items()} | {"val/minus loss": -sum(sums.values())}
        if self.config.stage == "contrastive":
            audio, video, _ = embed(self.model, self.config, part, self.store, self.picture)
            ways = [retrieval_metrics(one, torch.arange(len(audio))) for one in (audio @ video.T, video @ audio.T)]
            return {f"val/{name}": sum(way[name] for way in ways) / 2 for name in ("R@1", "R@5", "R@10", "mAP@10")}
        scores, labels, _ = score(self.model, self.config, part, self.store, self.picture)
        return {f"val/{name}": value for name, value in classification_values(scores, labels).items()}

    def save(self, folder: Path) -> Path:
        """Write the model into `folder`: config.json with structure, front end and label map, model.safetensors, training.json; and, with
        `output_dir`, after every checkpoint_interval epochs and the last one, the original's file of this stage there."""
        c = self.config
        args = {name: getattr(c, name) for name in (*STRUCTURE, "mask_ratio", "temperature")} | {"vit": self.model.settings.audio.to_dict()}
        write_json(folder / "config.json", {"model_type": MODEL_TYPE, "stage": c.stage, "args": args, "settings": self.model.settings.to_dict(),
                                            "front_end": self.picture.config.to_dict(), "label_map": self.manifest.classes, "epoch": self.epoch + 1})
        write_json(folder / "training.json", {"family": self.name, "config": c.to_dict()})
        state = {name: value.detach().contiguous().cpu() for name, value in self.model.state_dict().items()}
        save_file(state, folder / "model.safetensors")
        if c.output_dir and self.whole_epochs == self.epoch + 1 and (self.whole_epochs % c.checkpoint_interval == 0 or self.whole_epochs == c.epochs):
            export(folder, user_path(c.output_dir))
        return folder


def export(folder: str | Path, output_dir: str | Path, best: bool = False, **extras) -> Path:
    """Write a checkpoint folder as the original's file (`t3_av_stage1_epoch_3.pt`; with `best` `t3_av_finetune_best_model.pt`).

    Args: folder: a checkpoint of this family.  output_dir: made if needed.  extras: further entries, such as val_accuracy.
    Returns: the file.  Raises: FileNotFoundError, ValueError: naming the folder.
    """
    contents = read_checkpoint(user_path(folder))
    output = user_path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    return t3av_files.export(output, contents["stage"], contents["epoch"], contents["model_state_dict"], contents["args"],
                             label_map=contents["label_map"], best=best, **extras)


def labelled_part(manifest: Manifest, share: float, seed: int) -> Manifest:
    """A share of the clips of every class, at least one, drawn by seed: nested, a smaller share is part of a larger one."""
    labels = np.array([labels[0] if len(labels) == 1 else "" for labels in manifest.table["labels"]])
    kept = []
    for label in sorted(set(labels) - {""}):
        rows = np.flatnonzero(labels == label)
        order = randomness.generator(seed, "label share", label).permutation(rows)
        kept += order[:max(1, round(share * len(rows)))].tolist()
    return manifest.select(rows=sorted(kept))


def _evaluation_batches(config: AudiovisualConfig, part: Manifest, store: WindowStore | None, need: str):
    clips = dataset(config, part, store, need=need)
    return batches(clips, config.batch_size, workers=config.workers)


@torch.inference_mode()
def reconstructed(model: T3AV, config: AudiovisualConfig, part: Manifest, store: WindowStore | None,
                  picture: SoundPicture) -> Iterator[tuple[dict[str, dict[str, Tensor]], list[int]]]:
    """What a stage-1 model draws, batch by batch: its output for stage "mae" and the manifest's rows. A clip's mask is always the same."""
    model.eval()
    device = next(model.parameters()).device
    for batch in _evaluation_batches(config, part, store, "any"):
        seeds = [randomness.derive(0, "mask", clip) for clip in batch["clip_id"]]
        yield model({"audio": picture(batch["waveform"].to(device)), "video": batch["frames"].to(device), "seeds": seeds,
                     "has_audio": batch["has_audio"], "has_video": batch["has_video"]}), batch["row"]


def masked_losses(model: T3AV, config: AudiovisualConfig, part: Manifest, store: WindowStore | None, picture: SoundPicture) -> dict[str, float]:
    """Masked loss of each modality over a split; of all its hidden patches alike."""
    sums, counts = dict.fromkeys(model.modalities, 0.0), dict.fromkeys(model.modalities, 0)
    for out, _ in reconstructed(model, config, part, store, picture):
        for name, one in out.items():
            hidden = int(one["hidden"].sum())
            if hidden:
                sums[name] += hidden * float(masked_patch_loss(one["prediction"], one["target"], one["hidden"], config.normalize_patches))
                counts[name] += hidden
    device = next(model.parameters()).device
    whole = {name: distributed.average(torch.tensor([sums[name], counts[name]], dtype=torch.float64, device=device)) for name in sums}
    return {name: float(total / count) if count else 0.0 for name, (total, count) in whole.items()}


def patch_means(model: T3AV, config: AudiovisualConfig, part: Manifest, store: WindowStore | None, picture: SoundPicture) -> dict[str, PatchMeans]:
    """The mean patch at each position over the clips of a split, of each modality: what a model is compared with that predicts the mean."""
    means = {name: PatchMeans() for name in model.modalities}
    for batch in track(_evaluation_batches(config, part, store, "any"), -(-len(part) // config.batch_size), "mean patches"):
        targets = {"audio": picture(batch["waveform"])[:, None], "video": batch["frames"].float() / 127.5 - 1}
        for name in model.modalities:
            has = torch.as_tensor(batch[f"has_{name}"], dtype=torch.bool)
            if has.any():
                means[name].update(patchify(targets[name][has], model.settings.vit(name).patch).flatten(1, 2))
    return means


def reconstruction(model: T3AV, config: AudiovisualConfig, part: Manifest, train: Manifest, store: WindowStore | None,
                   picture: SoundPicture) -> tuple[dict[str, dict], dict[str, dict[str, Tensor]]]:
    """A stage-1 model beside predicting a mean, of each modality.

    Args: part: clips that are scored.  train: clips that the means are of.
    Returns: {modality: as `lib.evaluation.reconstruction.summarise`}, and the model's output for the first batch, to be looked at.
    """
    means = patch_means(model, config, train, store, picture)
    errors, first = {name: [] for name in model.modalities}, {}
    for out, _ in reconstructed(model, config, part, store, picture):
        first = first or out
        for name, one in out.items():
            places = model.settings.vit(name).places if name == "video" else None
            errors[name].append(patch_errors(one["prediction"], one["target"], one["hidden"], means[name], config.normalize_patches, places))
    peak = {"audio": 1.0, "video": 2.0}
    return {name: summarise(some, None if config.normalize_patches else peak[name]) for name, some in errors.items()}, first


@torch.inference_mode()
def embed(model: T3AV, config: AudiovisualConfig, part: Manifest, store: WindowStore | None, picture: SoundPicture) -> tuple[Tensor, Tensor, list[int]]:
    """Unit vectors of sound and of video of the clips that have both: Tensors (n, C), and their rows."""
    model.eval()
    audio, video, rows, device = [], [], [], next(model.parameters()).device
    for batch in _evaluation_batches(config, part, store, "both"):
        out = model({"audio": picture(batch["waveform"].to(device)), "video": batch["frames"].to(device)})
        whole = [failed is None for failed in gather_list(batch["failed"])]
        audio.append(gather(out["audio"]).float().cpu()[whole])
        video.append(gather(out["video"]).float().cpu()[whole])
        rows += [row for row, good in zip(gather_list(batch["row"]), whole) if good]
    return torch.cat(audio), torch.cat(video), rows


@torch.inference_mode()
def mean_states(model: T3AV, config: AudiovisualConfig, part: Manifest, store: WindowStore | None, picture: SoundPicture) -> dict[str, Tensor]:
    """The mean over clips of what heads and classifier read, of each modality: Tensor (D,). It stands for a modality that is absent."""
    model.eval()
    device = next(model.parameters()).device
    sums, counts = dict.fromkeys(model.modalities, 0.0), dict.fromkeys(model.modalities, 0)
    for batch in track(_evaluation_batches(config, part, store, "any"), -(-len(part) // config.batch_size), "mean states"):
        states = model({"audio": picture(batch["waveform"].to(device)), "video": batch["frames"].to(device)}, mode="states")
        for name, rows in states.items():
            has = torch.as_tensor(batch[f"has_{name}"], dtype=torch.bool, device=device)
            sums[name], counts[name] = sums[name] + rows[has].float().sum(dim=0), counts[name] + int(has.sum())
    return {name: sums[name] / max(1, counts[name]) for name in sums}


@torch.inference_mode()
def score(model: T3AV, config: AudiovisualConfig, part: Manifest, store: WindowStore | None, picture: SoundPicture, only: str | None = None,
          absent: dict[str, Tensor] | None = None) -> tuple[Tensor, np.ndarray, list[int]]:
    """Class scores (n, C) of the clips with one label that can be read, their labels (n,) and rows; `only`: a modality."""
    model.eval()
    scores, labels, rows, device = [], [], [], next(model.parameters()).device
    for batch in _evaluation_batches(config, part, store, only or "any"):
        given = {"audio": picture(batch["waveform"].to(device)), "video": batch["frames"].to(device), "has_audio": batch["has_audio"],
                 "has_video": batch["has_video"]}
        out = gather(model(given, only=only, absent=absent)["logits"]).float().cpu()
        failed, target, row = (gather_list(batch[name]) for name in ("failed", "label", "row"))
        kept = [reason is None and label >= 0 for reason, label in zip(failed, target)]
        scores.append(out[kept])
        labels += [label for label, good in zip(target, kept) if good]
        rows += [number for number, good in zip(row, kept) if good]
    return torch.cat(scores), np.array(labels), rows


def main(arguments: list[str] | None = None) -> int:
    """`python -m lib.families.audiovisual export`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lib.families.audiovisual")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("export", help="write a checkpoint as a file of the original project (t3_av_stage1_epoch_N.pt, ...)")
    verb.add_argument("--checkpoint", required=True, help="checkpoint folder of notebook 41, 42 or 43")
    verb.add_argument("--out", required=True, help="folder for the file")
    verb.add_argument("--best", action="store_true", help="name it t3_av_finetune_best_model.pt (stage 3)")
    options = parser.parse_args(arguments)
    try:
        print(f"written: {export(options.checkpoint, options.out, options.best)}")
    except (ValueError, OSError) as error:    # messages of ours say what to do; a traceback would hide them
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
