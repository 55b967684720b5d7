"""Spatial-temporal audio-language model (tSALM): which sound came first, and from where?

Configuration, model and training step. Clips are first-order ambisonics with one or two events. Triplets hold the same two events
three times: as the caption says (positive), in the other order (temporal negative) and with their places swapped (spatial
negative). Defaults are those of the original project; definitions and the corrections of its code are in the functions used here.
"""
from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lib import data, distributed, randomness
from lib.audio.ambisonics import unit_vector
from lib.audio.directions import direction_word
from lib.audio.foa import FoaMel, FoaMelConfig, fit, rotate, rotate_azimuth, turn_angles, turn_features
from lib.config import RunConfig
from lib.data.loading import bounds, one_thread
from lib.data.manifest import Manifest
from lib.data.spatial_captions import turned
from lib.distributed import gather, gather_list, share
from lib.encoders.features import FeatureStore, feature_store
from lib.encoders.spatial_dual import SpatialDual, published_text, scratch_text
from lib.encoders.weights import model_digest
from lib.evaluation.localization import angular_error
from lib.evaluation.triplets import gallery_metrics, triplet_metrics
from lib.files import read_json, user_path, write_json
from lib.glossary import ParameterError
from lib.losses.adversarial import modality_accuracy, modality_loss, reverse_gradient, warm_up
from lib.losses.contrastive import contrastive_loss
from lib.losses.direction import direction_loss
from lib.losses.triplet import three_way_loss
from lib.losses.weights import LossWeights, total
from lib.media import audio

ROLES = ("positive", "temporal", "spatial")
# without the adversary the classifier still learns, so that its accuracy can be compared; the encoders do not feel it
ARMS = {"full": {}, "no_temporal_encoder": {"temporal_encoder": False}, "no_ts_loss": {"weight_ts": 0.0},
        "no_temporal": {"temporal_encoder": False, "weight_ts": 0.0}, "no_adversary": {"reversal_strength": 0.0},
        "no_intensity": {"intensity_vectors": False}, "order_blind": {"order_blind": True}}
NAMES = {"joint": "loss_spatial_semantic", "semantic": "loss_semantic", "doa": "loss_doa", "temporal_spatial": "loss_logit_ts",
         "modality": "loss_modality", "triplet": "loss_triplet"}          # parts of the loss as the original logs them; "loss" is its total_loss
CAPTIONS = 5            # of each kind that a clip has
REPLACEMENTS = 20       # groups tried in the place of one that cannot be read


@dataclass(frozen=True, kw_only=True)
class SpatialConfig(RunConfig):
    """Parameters of the family; meaning and range of each: `lib.glossary.PARAMETERS`. Defaults are the original project's."""

    dataset: str = "stclotho"
    source: str = "soundscapes"
    val_fold: int | None = None
    space: str = "anechoic"
    event_seconds: float = 4.9
    single_clips: int | None = None
    clip_seconds: float = 10.0
    padding: str = "zero"
    events: int = 2
    initial_checkpoint: str | None = None
    audio_size: str = "published"
    audio_weights: str | None = None
    text_size: str = "roberta-base"
    text_weights: str | None = None
    max_tokens: int = 77
    text_dropout: float = 0.1
    drop_path: float = 0.1
    embedding_dim: int = 512
    chunks: int = 4
    temporal_encoder: bool = True
    temporal_dropout: float = 0.1
    position_std: float = 0.02
    intensity_vectors: bool = True
    order_blind: bool = False
    loss_weights: tuple[float, ...] = ()
    weight_doa: float = 1.0
    weight_semantic: float = 0.5
    weight_ts: float = 0.2
    weight_modality: float = 0.2
    weight_triplet: float = 0.0
    semantic_start_epoch: int = 3
    semantic_schedule: str = "step"
    ts_ramp_epochs: int = 4
    reversal_strength: float = 1.0
    reversal_warmup_epochs: int = 0
    classifier_hidden: tuple[int, ...] = ()
    classifier_unit: bool = False
    ordered_directions: bool = False
    direction_from: str = "spatial"
    raw_temperature: bool = False
    rotation: str = "none"
    store_features: bool = False
    seed: int = 2025
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 1e-4
    start_learning_rate: float = 0.0
    floor_learning_rate: float = 0.0
    warmup_epochs: float = 3.0
    decay_epochs: float | None = 7.0
    gradient_clip: float | None = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.dataset not in ("triplets", "stclotho"):            # its clips are the events of triplets
            object.__setattr__(self, "source", self.dataset)
            object.__setattr__(self, "dataset", "triplets")
        self.weights()
        if self.store_features and self.rotation == "free":
            raise ParameterError("SpatialConfig: rotation 'free' turns waveforms, which store_features does not keep; use rotation 'symmetries', "
                                 "or store_features=False")

    def prepare(self) -> Manifest:
        """The data set's manifest, prepared or read."""
        known = data.data_set_options(self.dataset)
        asked = {name: getattr(self, name) for name in ("source", "space", "event_seconds", "clip_seconds", "single_clips") if name in known}
        if self.val_fold is not None and "source_options" in known:
            asked["source_options"] = {"val_fold": self.val_fold}
        return data.prepare(self.dataset, data_root=self.data_root, num_samples=self.num_samples, workers=self.threads, **asked)

    def inputs(self) -> tuple[str, ...]:
        """Digest of the checkpoint that training starts from."""
        return (model_digest(user_path(self.initial_checkpoint)),) if self.initial_checkpoint else ()

    def weights(self) -> LossWeights:
        """Weights of the loss and their schedule; `loss_weights`, where it is given, is [doa, semantic, ts, modality]."""
        named = dict(semantic_start_epoch=self.semantic_start_epoch, semantic_schedule=self.semantic_schedule, ts_ramp_epochs=self.ts_ramp_epochs)
        if self.loss_weights:
            return replace(LossWeights.from_list(list(self.loss_weights)), **named)
        return LossWeights(doa=self.weight_doa, semantic=self.weight_semantic, temporal_spatial=self.weight_ts, modality=self.weight_modality, **named)


def arm(config: SpatialConfig, name: str) -> SpatialConfig:
    """The configuration of one of the models that are compared, `ARMS`: the full one, ablations, and a control that cannot know the order."""
    return replace(config, **ARMS[name])


def build(config: SpatialConfig, captions: list[str]) -> SpatialDual:
    """A model with random or published weights, or those of a checkpoint.

    Args: config: sizes and weights.  captions: training captions, for the tokenizer of a text encoder from scratch.
    Raises: ParameterError, FileNotFoundError, ValueError: naming what does not fit.
    """
    randomness.seed_all(config.seed, "model")
    dim, start = config.embedding_dim, SpatialDual.from_pretrained(config.initial_checkpoint) if config.initial_checkpoint else None
    tower = {"config": {"size": config.audio_size, "drop_path": config.drop_path}, "dim": dim} | {name: getattr(config, name) for name in (
        "events", "chunks", "temporal_encoder", "temporal_dropout", "intensity_vectors", "order_blind", "direction_from", "position_std")}
    if start:
        text = start.text
    elif config.text_weights:
        text = published_text(config.text_weights, dim, config.max_tokens, config.text_dropout)
    else:
        text = scratch_text(config.text_size, captions, dim, config.max_tokens, config.text_dropout)
    model = SpatialDual(tower, text, FoaMelConfig(), config.clip_seconds, config.classifier_hidden, config.raw_temperature,
                       config.classifier_unit)
    if config.audio_weights and not start:
        _, scale = model.audio.load_clap(config.audio_weights)
        if scale is not None:
            model.log_scale.data.fill_(scale)
    if start:
        _take_over(model, start, config.initial_checkpoint)
    return model


def _take_over(model: SpatialDual, start: SpatialDual, folder: str) -> None:
    """Weights of another checkpoint; a direction head for another number of events, and what an ablation lacks, stay as they are."""
    own, stored = model.state_dict(), start.state_dict()
    fresh = [name for name in own if name not in stored or own[name].shape != stored[name].shape]
    wrong = [name for name in fresh if not name.startswith(("audio.direction_head", "classifier", "audio.temporal", "audio.triplet_head"))]
    if wrong:
        raise ParameterError(f"initial_checkpoint {folder} does not fit in {len(wrong)} entries, first {wrong[0]}: {tuple(stored.get(wrong[0], torch.empty(0)).shape)} "
                             f"in the file, {tuple(own[wrong[0]].shape)} in the model; use its audio_size, text_size, embedding_dim and clip_seconds")
    model.load_state_dict({name: own[name] if name in fresh else stored[name] for name in own})


def load(folder: str | Path, device: torch.device | str = "cpu", **changes) -> tuple[SpatialDual, SpatialConfig]:
    """A trained model in evaluation mode, and what it was trained with: the same front end and window.

    Args: folder: a checkpoint.  device: where the model goes.  changes: fields of the configuration, such as data_root.
    Raises: FileNotFoundError, ValueError: naming the folder and what is wrong with it.
    """
    model = SpatialDual.from_pretrained(folder).to(device)
    entry = read_json(user_path(folder) / "training.json")
    if entry is None:
        raise FileNotFoundError(f"{user_path(folder).absolute()} holds no training.json: it is no checkpoint of this family; train one with notebook 31")
    return model, SpatialConfig.from_dict(entry["config"] | {"data_root": None, "initial_checkpoint": None} | changes)


class Clips:
    """The clips of a manifest that one kind of training or evaluation uses, in groups: triplets of three rows, or single clips.

    Args:
        manifest: with the columns of lib.data.triplets.  splits: which of its splits.
        events: 2: triplets; 1: single clips with one event.
    Attributes:
        manifest: the rows used.  groups: (G, M) int64, their rows; M = 3 or 1.
        directions: (N, E, 3) float32, unit vectors x, y, z in the order of events.
    Raises:
        ParameterError: nothing of this kind is there, or the clips have another number of events.
    """

    def __init__(self, manifest: Manifest, splits: Iterable[str], events: int):
        table = manifest.table
        if "role" not in table:
            raise ParameterError(f"dataset {manifest.name!r} has no events with directions; use triplets or stclotho")
        kept = table["split"].isin(list(splits)) & (table["role"].isin(ROLES) if events > 1 else table["role"] == "single")
        self.manifest = manifest.select(rows=kept.to_numpy())
        self.table = self.manifest.table
        counts = sorted({len(azimuths) for azimuths in self.table["azimuth"]})
        if counts and counts != [events]:
            raise ParameterError(f"dataset {manifest.name!r} has clips of {counts} events, the model {events}: set events={counts[-1]}, or use other clips")
        members = 3 if events > 1 else 1
        self.groups = np.arange(len(self.table)).reshape(-1, members)
        self.events = events
        angles = [np.array([list(row) for row in self.table[name]], dtype=np.float64).reshape(-1, events) for name in ("azimuth", "elevation")]
        self.azimuth, self.elevation = angles
        self.directions = np.moveaxis(unit_vector(*angles), 0, -1).astype(np.float32)

    def __len__(self) -> int:
        return len(self.groups)

    def names(self) -> list[str]:
        """Of the groups."""
        return [self.table["group"].iat[int(rows[0])] for rows in self.groups]


def read(manifest: Manifest, config: SpatialConfig, sample_rate: int, row: int) -> Tensor:
    """The window of a clip: Tensor (4, samples). A longer clip gives one crop whose start is a fixed function of its group: the same in
    every epoch, common to a triplet. AudioError: naming the file, also when it has not four channels."""
    clip, samples = manifest.row(row), round(config.clip_seconds * sample_rate)
    spare = max(0.0, clip["duration"] - config.clip_seconds)
    offset = spare * float(randomness.generator(0, "crop", clip["group"]).random())
    file = manifest.file(row)
    wave = audio.read(file, sample_rate=sample_rate, start=clip["start"] + offset, duration=min(config.clip_seconds, clip["duration"]), mono=False)
    if wave.shape[0] != 4:
        raise audio.AudioError(f"{file} has {wave.shape[0]} channel{'s' * (wave.shape[0] > 1)}, expected 4 (first-order ambisonics, ACN W, Y, Z, X, SN3D)")
    if not torch.isfinite(wave).all():
        raise audio.AudioError(f"{file} holds values that are no finite numbers; check the data set again with python -m lib.data check")
    return fit(wave, samples, padding=config.padding)


class Groups(Dataset):
    """Groups of clips, addressed by (epoch, group): dicts with clip_id, rows, sound (M, 4, samples) or (M, 7, frames, mels), captions, semantic
    captions, azimuth and elevation (M, E) and failed. A group with a clip that cannot be read is replaced as a whole, in training."""

    def __init__(self, clips: Clips, config: SpatialConfig, sample_rate: int, store: FeatureStore | None):
        self.clips, self.config, self.sample_rate, self.store = clips, config, sample_rate, store
        self.skipped: frozenset[str] = frozenset()
        self.ids = clips.names()

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        failed = None
        spare = randomness.generator(self.config.seed, "replacement", epoch, index).integers(len(self), size=REPLACEMENTS)
        for chosen in (index, *spare.tolist()):
            name = self.ids[chosen]
            try:
                if name in self.skipped:
                    raise audio.AudioError("on the list")
                return self._group(chosen, epoch) | {"failed": failed}
            except (audio.AudioError, OSError) as error:
                failed = failed or {"clip_id": name, "reason": str(error)}
        raise audio.AudioError(f"{failed['reason']}; nor could {REPLACEMENTS} other clips be read in its place: is the disk still there?")

    def _group(self, index: int, epoch: int) -> dict:
        c, clips, rows = self.config, self.clips, self.clips.groups[index]
        rng = randomness.generator(c.seed, "group", epoch, index)
        which = int(rng.integers(CAPTIONS))                       # the same caption of all members
        azimuth, elevation = clips.azimuth[rows], clips.elevation[rows]
        semantic = [_pick(clips.table["semantic_captions"].iat[int(row)], which) for row in rows]
        captions = [_pick(clips.table["captions"].iat[int(row)], which) for row in rows]
        sound, heard = self.sound(rows), azimuth
        if c.rotation == "free":
            degrees = float(rng.uniform(-180, 180))
            sound, heard = rotate(sound, degrees), rotate_azimuth(azimuth, degrees)
        elif c.rotation == "symmetries":
            turn = int(rng.integers(4)), bool(rng.integers(2)), bool(rng.integers(2))
            sound, (heard, elevation) = turn_features(sound, *turn), turn_angles(azimuth, elevation, *turn)
        if c.rotation != "none":
            captions = [turned(caption, list(before), list(after)) for caption, before, after in zip(captions, azimuth, heard)]
        return {"clip_id": self.ids[index], "rows": rows.tolist(), "sound": sound, "caption": captions, "semantic": semantic,
                "direction": torch.from_numpy(np.moveaxis(unit_vector(heard, elevation), 0, -1).astype(np.float32))}

    def sound(self, rows: np.ndarray) -> Tensor:
        """Waveforms (M, 4, samples) or, from a store, features (M, 7, frames, mels). AudioError: a clip that cannot be read."""
        return torch.stack([self._sound(int(row)) for row in rows])

    def _sound(self, row: int) -> Tensor:
        if self.store is None:
            return read(self.clips.manifest, self.config, self.sample_rate, row)
        clip = self.clips.table["clip_id"].iat[row]
        if clip in self.store.unreadable:
            raise audio.AudioError(self.store.unreadable[clip])
        return torch.from_numpy(np.array(self.store.of(clip)))


def _pick(captions: list[str], which: int) -> str:
    return captions[which % len(captions)]


def _together(items: list[dict]) -> dict:
    """Groups to a batch of rows 3b, 3b + 1, 3b + 2."""
    batch = {name: [value for item in items for value in item[name]] for name in ("rows", "caption", "semantic")}
    return batch | {"clip_id": [item["clip_id"] for item in items], "failed": [item["failed"] for item in items],
                    "sound": torch.cat([item["sound"] for item in items]), "direction": torch.cat([item["direction"] for item in items])}


class Spatial:
    """The family as the training loop sees it (`lib.training.loop.Family`).

    Args:
        config: a `SpatialConfig`.  manifest: clips to use; None: prepared from the configuration.
    """

    name = "spatial"
    memory_levers = "lower batch_size, shorten clip_seconds, or set precision='bf16-mixed'"
    Config = SpatialConfig

    def __init__(self, config: SpatialConfig, manifest: Manifest | None = None):
        self.config = config
        self.monitor = "val/both" if config.events > 1 else "val/mAP@10"
        self.told = ("val/temporal", "val/spatial", "val/both", "val/mAP@10", "val/error in degrees")
        self.manifest = config.prepare() if manifest is None else manifest
        self.train_clips = Clips(self.manifest, config.fit_splits, config.events)
        table = self.train_clips.table
        self.model = build(config, [c for column in ("captions", "semantic_captions") for captions in table[column] for c in captions])
        self.train_set = Groups(self.train_clips, config, self.model.sample_rate, self.store)
        self.epoch = 0

    @cached_property
    def store(self) -> FeatureStore | None:
        """See `stored`."""
        return stored(self.config, self.manifest)

    def batches(self, epoch: int, first_batch: int, skipped: Iterable[str] = ()):
        """This process's share of the batches of an epoch; triplets stay whole."""
        c, self.epoch = self.config, epoch
        self.train_set.skipped = frozenset(skipped)
        order = randomness.epoch_order(len(self.train_set), c.seed, epoch)
        chosen = [[(epoch, int(i)) for i in order[begin:end][share(end - begin)]]
                  for begin, end in bounds(len(order), c.batch_size)[first_batch:]]
        return iter(DataLoader(self.train_set, batch_sampler=chosen, num_workers=c.workers, collate_fn=_together,
                               worker_init_fn=one_thread if c.workers else None, generator=torch.Generator().manual_seed(0)))

    def batches_per_epoch(self) -> int:
        """Number of training batches."""
        return len(bounds(len(self.train_set), self.config.batch_size))

    def clips(self) -> int:
        """Number of training groups: a triplet counts once."""
        return len(self.train_set)

    def losses(self, model: nn.Module, batch: dict) -> dict[str, Tensor]:
        """Loss of a batch, that of all processes together, and its parts under the original's names.

        total = (1 - w_sem) spatial_semantic + w_sem semantic + w_doa doa + w_ts logit_ts + w_mod modality, with the weights of the epoch.
        Outside triplets loss_logit_ts is 0.
        """
        c, weights = self.config, self.config.weights().at(self.epoch)
        randomness.part(distributed.rank())
        audio, text = model(batch["sound"], batch["caption"], batch["semantic"])
        audio, text = {name: gather(rows) for name, rows in audio.items()}, {name: gather(rows) for name, rows in text.items()}
        direction, device = gather(batch["direction"]), text["spatial"].device
        same = {name: _equal(gather_list(batch[name])).to(device) for name in ("caption", "semantic")}
        strength = warm_up(c.reversal_strength, self.epoch, c.reversal_warmup_epochs)
        told = [self.model.classifier(reverse_gradient(rows, strength)) for rows in (audio["triplet"], text["spatial"])]
        parts = {"joint": contrastive_loss(self.model.logits(audio["joint"], text["spatial"]), same["caption"], "mass"),
                 "semantic": contrastive_loss(self.model.logits(audio["semantic"], text["semantic"]), same["semantic"], "mass"),
                 "doa": direction_loss(audio["direction"], direction, ordered=c.ordered_directions),
                 "temporal_spatial": three_way_loss(audio["triplet"], text["spatial"], self.model.scale()) if c.events > 1 else torch.zeros((), device=device),
                 "modality": modality_loss(*told)}
        loss = total(parts, weights)
        if c.weight_triplet:            # beyond the original: within triplets alone, nothing tells this embedding what sounds
            parts["triplet"] = contrastive_loss(self.model.logits(audio["triplet"], text["spatial"]), same["caption"], "mass")
            loss = loss + c.weight_triplet * parts["triplet"]
        return {"loss": loss} | {NAMES[name]: part for name, part in parts.items()} | {
            "modality_accuracy": torch.as_tensor(modality_accuracy(*told)), "scale": self.model.scale().detach()}

    def compile(self) -> None:
        """torch.compile the towers in place (their parameters keep their names)."""
        self.model.audio.towers.compile()
        self.model.text.network.compile()

    def validate(self) -> dict[str, float]:
        """Metrics of the validation split under "val/...", empty where it has no clip or was trained on."""
        clips = Clips(self.manifest, ["val"], self.config.events)
        if "val" in self.config.fit_splits or not len(clips):
            return {}
        found = embed(self.model, clips, self.config, self.store)
        gallery = gallery_metrics(found.audio["joint"], found.text, found.keys())
        metrics = {"mAP@10": gallery["text_to_audio"]["mAP@10"], "error in degrees": float(found.errors().mean())}
        if self.config.events > 1:
            within = triplet_metrics(found.audio["triplet"], found.text)
            metrics |= {name: within[f"text {name}"] for name in ("temporal", "spatial", "both")}
        return {f"val/{name}": float(value) for name, value in metrics.items()}

    def save(self, folder: Path) -> Path:
        """Write the model into `folder`, and beside it training.json, the configuration it was trained with."""
        write_json(folder / "training.json", {"family": self.name, "config": self.config.to_dict()})
        return self.model.save_pretrained(folder)


def _equal(texts: list[str]) -> Tensor:
    """Which texts are the same: Tensor (N, N) bool. A clip whose caption is also another's is no negative of it."""
    number = {text: i for i, text in enumerate(texts)}
    numbers = torch.tensor([number[text] for text in texts])
    return numbers[:, None] == numbers


def stored(config: SpatialConfig, manifest: Manifest) -> FeatureStore | None:
    """With `store_features`, features of every clip of a data set, computed once for all trainings and evaluations that hear it alike."""
    if not config.store_features:
        return None
    front_end, window = FoaMel(), {"seconds": config.clip_seconds, "padding": config.padding}
    return feature_store(manifest, front_end, partial(read, manifest, config, front_end.config.sample_rate), window, workers=config.threads)


@dataclass(frozen=True)
class Embedded:
    """Clips and captions as vectors, not normalised.

    Attributes:
        clips: the N clips.  audio: of `SpatialAudio`: "semantic", "spatial", "joint", "temporal", "triplet" Tensors (N, D); "direction" (N, E, 3).
        text, semantic: Tensors (N, K, D), all spatial-temporal and all plain captions.
    """

    clips: Clips
    audio: dict[str, Tensor]
    text: Tensor
    semantic: Tensor

    def keys(self) -> list[list[str]]:
        """What each of the K captions of each clip says: the labels and the words of their places, in order (without labels: the caption)."""
        table = self.clips.table
        return [[json.dumps([list(labels), direction_word(np.array(list(azimuth))).tolist()])] * CAPTIONS if len(labels)
                else [_pick(list(captions), k) for k in range(CAPTIONS)]
                for labels, azimuth, captions in zip(table["labels"], table["azimuth"], table["captions"])]

    def errors(self) -> np.ndarray:
        """Angles (N, E) in degrees between predicted and true directions, best assignment."""
        return np.asarray(angular_error(self.audio["direction"], torch.from_numpy(self.clips.directions)))


@torch.inference_mode()
def embed(model: SpatialDual, clips: Clips, config: SpatialConfig, store: FeatureStore | None = None) -> Embedded:
    """Encode clips and all their captions in evaluation mode. A group with an unreadable clip raises AudioError naming it."""
    device, training = next(model.parameters()).device, model.training
    model.eval()
    groups = Groups(clips, config, model.sample_rate, store)
    parts: dict[str, list[Tensor]] = {}
    for i in range(0, len(groups), 16):
        for name, rows in model.audio(model.features(groups.sound(clips.groups[i:i + 16].ravel()).to(device))).items():
            parts.setdefault(name, []).append(rows.float().cpu())
    texts = {column: [_pick(list(row), k) for row in clips.table[column] for k in range(CAPTIONS)] for column in ("captions", "semantic_captions")}
    distinct = sorted({text for some in texts.values() for text in some}, key=lambda text: (len(text), text))
    vectors = torch.cat([model.text(distinct[i:i + 256]).float().cpu() for i in range(0, len(distinct), 256)])
    place = {text: i for i, text in enumerate(distinct)}
    rows = {column: vectors[[place[text] for text in some]].unflatten(0, (-1, CAPTIONS)) for column, some in texts.items()}
    model.train(training)
    return Embedded(clips, {name: torch.cat(some) for name, some in parts.items()}, rows["captions"], rows["semantic_captions"])


def shown(clips: Clips, config: SpatialConfig, row: int) -> dict:
    """A clip as `lib.display.triplets.triplet_page` shows it: waveform (4, samples), role, caption, labels, places and onsets."""
    facts, front_end = clips.manifest.row(row), FoaMelConfig()
    onset = [math.nan if value is None else value for value in facts["onset"]]
    return {name: facts[name] for name in ("role", "labels", "azimuth", "elevation")} | {
        "onset": onset, "caption": facts["captions"][0], "sample_rate": front_end.sample_rate,
        "waveform": read(clips.manifest, config, front_end.sample_rate, row).numpy()}
