"""Hyperbolic CLAP: a frozen audio-text model, a trained linear map into the Poincaré ball, tagging by text prompts.

Configuration, model, training step and the files of the original project. The backbone encodes every clip and every prompt once
(`lib.encoders.store`); training sees vectors only. What is trained is one linear map (or two) to tangent vectors at the origin;
the similarity of a clip and a class is minus their geodesic distance over a temperature. The same map with cosine similarity and
with Euclidean distance are the controls that decide whether the geometry matters.

Convention: tangent vectors v are those of the Poincaré ball (`lib.geometry.poincare`), points are expmap0(v), d(0, point) = 2 |v|.
"""
from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from lib import data, encoders, randomness
from lib.config import RunConfig
from lib.data.loading import bounds
from lib.data.manifest import Manifest, class_prompts, fill
from lib.data.taxonomy import Taxonomy
from lib.distributed import gather, share
from lib.encoders.store import store
from lib.encoders.weights import model_digest, resolve
from lib.evaluation import tagging_files
from lib.evaluation.tagging import class_embeddings, tagging_metrics
from lib.files import read_json, user_path, write_json
from lib.geometry import poincare
from lib.glossary import ParameterError
from lib.losses.contrastive import contrastive_loss
from lib.losses.entailment import entailment_loss
from lib.losses.tagging import class_loss

MODEL_TYPE = "workbook-hyperbolic"
BALL = ("poincare", "lorentz")          # geometries in which radius means generality
FLAT_TEMPERATURE = 0.07                 # where the temperature of a control starts, as in CLAP
LARGEST_SCALE = 100.0                   # of a trained temperature, as in CLIP and MERU
PUBLISHED_RADIUS = 0.9                  # where the original code clips points, whatever the curvature
WATCHED = ("acc@1", "acc@5", "mAP samples", "mAP macro", "AUC macro")       # on validation, after each epoch
SEED_KEYS = ("epoch", "projection_state_dict", "optimizer_state_dict", "train_loss", "val_loss", "c", "temperature", "embed_dim")


@dataclass(frozen=True, kw_only=True)
class HyperbolicConfig(RunConfig):
    """Parameters of the family; meaning and range of each: `lib.glossary.PARAMETERS`. Defaults are the original project's."""

    dataset: str = "audioset"
    scene_seconds: float = 10.0
    train_ratio: float = 0.8
    class_labels: str | None = None
    ontology: str | None = None
    array_sample_rate: int | None = None
    checkpoint: str = "modelscope:laion/larger_clap_general"
    clip_seconds: float = 10.0
    encoding_batch: int = 16
    geometry: str = "poincare"
    c: float = 1.0
    train_c: bool = False
    temperature: float = 1.0
    train_temperature: bool = False
    maps: str = "shared"
    train_scales: bool = False
    max_radius: float | None = None
    embedding_dim: int | None = None
    tagging_loss: str = "batch"
    label_choice: str = "random"
    entailment_weight: float = 0.0
    monitor: str = "mAP samples"
    seed: int = 42
    epochs: int = 10
    batch_size: int = 16
    learning_rate: float = 1e-4
    warmup_epochs: float = 0.0
    decay_epochs: float | None = None

    def __post_init__(self):
        super().__post_init__()
        for name in ("checkpoint", "c", "temperature"):             # which may be left out where a model is read, not where it is trained
            if getattr(self, name) is None:
                raise ParameterError(f"HyperbolicConfig: {name} must be given to train, got None")
        for name, wanted in (("entailment_weight", self.entailment_weight > 0), ("train_c", self.train_c)):
            if wanted and self.geometry not in BALL:
                raise ParameterError(f"HyperbolicConfig: {name} needs a curved space: use geometry 'poincare' or 'lorentz', not "
                                     f"{self.geometry!r}, or leave {name} out")

    def prepare(self, splits: Iterable[str] = ("train", "val")) -> Manifest:
        """The data set's manifest, prepared or read; of a data set that is large (AudioSet), only some of its splits."""
        understood = data.data_set_options(self.dataset)
        asked = {"clip_seconds": self.scene_seconds} if "soundscapes" in self.dataset.split("+") else {}
        asked |= {"splits": tuple(splits)} if "splits" in understood else {}
        asked |= {name: getattr(self, name) for name in ("train_ratio", "class_labels", "ontology", "array_sample_rate")
                  if name in understood and getattr(self, name) is not None}
        return data.prepare(self.dataset, data_root=self.data_root, num_samples=self.num_samples, workers=self.threads, **asked)

    @cached_property
    def backbone(self) -> Path:
        """Folder of the frozen model. FileNotFoundError: naming it."""
        return resolve(self.checkpoint)

    def front_end(self) -> dict:
        """How the frozen model hears: its window in seconds, and the front end that its folder describes."""
        own = (read_json(self.backbone / "config.json") or {}).get("audio", {}).get("front_end")
        published = read_json(self.backbone / "preprocessor_config.json") or read_json(self.backbone / "processor_config.json")
        return {"clip_seconds": self.clip_seconds, **(own or published or {})}

    def inputs(self) -> tuple[str, ...]:
        """Digest of the frozen model."""
        return (self._digest,)

    @cached_property
    def _digest(self) -> str:
        return model_digest(self.backbone)

    def space(self) -> "Space":
        """What the trained part is built from."""
        return Space(**{field.name: getattr(self, field.name) for field in fields(Space)})


def arm(config: HyperbolicConfig, name: str) -> HyperbolicConfig:
    """The configuration of one of the models that are compared, on the same data, epochs and batches.

    Args:
        config: of the run.
        name: "hyperbolic": without entailment cones; "cones": with them; "seed": the original project's loss, labels and fixed
            temperature; "cosine", "euclidean": the same linear map in another geometry, always with a trained temperature.
    """
    flat = {"train_c": False, "entailment_weight": 0.0, "train_temperature": True,
            "temperature": config.temperature if config.train_temperature else FLAT_TEMPERATURE}
    changes = {"hyperbolic": {"entailment_weight": 0.0}, "cones": {"entailment_weight": config.entailment_weight or 0.2},
               "seed": {"geometry": "poincare", "train_c": False, "temperature": 1.0, "train_temperature": False, "tagging_loss": "batch",
                        "label_choice": "first", "entailment_weight": 0.0, "max_radius": None, "train_scales": False, "maps": "shared"},
               "cosine": {"geometry": "cosine"} | flat, "euclidean": {"geometry": "euclidean"} | flat}
    return replace(config, **changes[name])


@dataclass(frozen=True)
class Space:
    """Where clips and texts are mapped to.

    Args:
        geometry: "poincare"; "lorentz" (the same space, its tangent vectors twice as long); "euclidean", d = 2 |v - w|, the limit
            c -> 0; "cosine"; "published", the original code's similarity: points clipped at norm 0.9 and a distance without c inside.
        c: curvature is -c.  train_c: learn it (as exp of a parameter), within a factor of 10.
        temperature: distances are divided by it.  train_temperature: learn it; 1 / temperature stays below 100.
        maps: "shared": one linear map for audio and text; "separate": one each.
        train_scales: a factor of at most 1 on the tangent vectors of each side, in log form (MERU, arXiv 2304.09172).
        max_radius: tangent vectors are shortened to this norm, in units of 1 / sqrt(c); None: never.
    """

    geometry: str = "poincare"
    c: float = 1.0
    train_c: bool = False
    temperature: float = 1.0
    train_temperature: bool = False
    maps: str = "shared"
    train_scales: bool = False
    max_radius: float | None = None


class Projection(nn.Module):
    """The trained part: features of the frozen model to tangent vectors at the origin, and their similarity.

    Weights start as the original's: Xavier uniform, zero bias. Everything runs in float32, outside autocast.

    Args:
        features: length of the frozen model's vectors.  dim: of the tangent vectors.  space: what lies between them.
    """

    def __init__(self, features: int, dim: int, space: Space = Space()):
        super().__init__()
        self.space, self.features, self.dim = space, features, dim
        self.backbone_digest: str | None = None             # of the frozen model that it was trained on, and how many training clips
        self.class_counts: list[int] | None = None          # each class had; both unknown until it is read from a checkpoint folder
        self.linear = _linear(features, dim)
        self.text_linear = _linear(features, dim) if space.maps == "separate" else None
        self.log_c = nn.Parameter(torch.tensor(math.log(space.c)), requires_grad=space.train_c)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(space.temperature)), requires_grad=space.train_temperature)
        self.log_scales = nn.Parameter(torch.zeros(2), requires_grad=space.train_scales)

    def forward(self, audio: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Tangent vectors (A, dim), (T, dim) of audio features (A, features) and text features (T, features)."""
        return self.tangents(audio, "audio"), self.tangents(text, "text")

    def tangents(self, x: Tensor, side: str) -> Tensor:
        """Tangent vectors (N, dim) of features (N, features) of one side, "audio" or "text", not longer than max_radius allows."""
        with torch.autocast(x.device.type, enabled=False):
            linear = self.text_linear if side == "text" and self.text_linear is not None else self.linear
            v = linear(x.to(linear.weight.dtype))
            if self.space.train_scales:
                v = v * self.log_scales[int(side == "text")].clamp(max=0).exp()
            if self.space.geometry == "lorentz":
                v = v / 2                                  # the same point, in the ball's convention
            if self.space.max_radius is not None:
                v = _shortened(v, self.limit)
            return v

    @property
    def c(self) -> Tensor | float:
        """Curvature is -c; within a factor of 10 of where it started."""
        return self.log_c.clamp(math.log(self.space.c / 10), math.log(self.space.c * 10)).exp() if self.space.train_c else self.space.c

    @property
    def temperature(self) -> Tensor | float:
        """What distances are divided by."""
        return self.log_temperature.clamp(min=-math.log(LARGEST_SCALE)).exp() if self.space.train_temperature else self.space.temperature

    @property
    def limit(self) -> Tensor | float:
        """Largest norm of a tangent vector."""
        return math.inf if self.space.max_radius is None else self.space.max_radius / self.c ** 0.5

    def numbers(self) -> dict[str, float]:
        """c and temperature as they are now."""
        return {name: float(torch.as_tensor(getattr(self, name)).detach()) for name in ("c", "temperature")}

    def clipped(self, v: Tensor) -> float:
        """Share of tangent vectors that lie at the limit (of "published": of points that the original code pulls back to norm 0.9)."""
        limit, norms = float(torch.as_tensor(self.limit).detach()), v.detach().norm(dim=-1)
        if self.space.geometry == "published":
            norms, limit = poincare.expmap0(v.detach(), self.c).norm(dim=-1), PUBLISHED_RADIUS
        return float((norms >= limit * (1 - 1e-5)).float().mean())

    def similarity(self, v: Tensor, w: Tensor) -> Tensor:
        """Similarities (A, T) of tangent vectors (A, dim) and (T, dim), divided by the temperature; those of "cosine" in [-1, 1] / temperature."""
        with torch.autocast(v.device.type, enabled=False):
            kind = self.space.geometry
            if kind == "cosine":
                return normalize(v, dim=-1) @ normalize(w, dim=-1).T / self.temperature
            if kind == "euclidean":             # differences, not a matrix product: its gradient is finite where two vectors meet
                return -2 * torch.cdist(v, w, compute_mode="donot_use_mm_for_euclid_dist") / self.temperature
            if kind == "published":
                x, y = (_shortened(poincare.expmap0(u, self.c), PUBLISHED_RADIUS) for u in (v, w))
                return -poincare.pairwise_distance(x, y, 1.0) / self.c ** 0.5 / self.temperature
            return -poincare.pairwise_distance_from_tangents(v, w, self.c) / self.temperature

    def config(self) -> dict:
        """What config.json says: enough to build the same model again."""
        return {"model_type": MODEL_TYPE, "features": self.features, "dim": self.dim, "space": asdict(self.space)}

    @classmethod
    def from_pretrained(cls, folder: Path) -> "Projection":
        """Read the model of a checkpoint folder. FileNotFoundError, ValueError: naming the folder and what is wrong with it."""
        entry = read_json(folder / "config.json")
        if entry is None or not (folder / "model.safetensors").is_file():
            raise FileNotFoundError(f"{folder} is no checkpoint: config.json and model.safetensors are expected there; train one with "
                                    "notebook 20, or give another folder")
        if entry.get("model_type") != MODEL_TYPE:
            raise ValueError(f"{folder}/config.json describes a {entry.get('model_type')!r}, expected {MODEL_TYPE!r}: a checkpoint of notebook 20")
        model = cls(entry["features"], entry["dim"], Space(**entry["space"]))
        model.load_state_dict(load_file(folder / "model.safetensors"))
        model.backbone_digest, model.class_counts = entry.get("backbone_digest"), entry.get("class_counts")
        return model.eval()


def _shortened(x: Tensor, limit: Tensor | float) -> Tensor:
    """Rows (N, D), those longer than `limit` cut to that length."""
    return x * (limit / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1)     # clamp: no NaN as the gradient of a zero vector


def _linear(features: int, dim: int) -> nn.Linear:
    layer = nn.Linear(features, dim)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


@dataclass(frozen=True)
class Features:
    """What the frozen model says about a data set, read from the store.

    Attributes:
        manifest: N clips.  audio: (N, F) float32, memory-mapped unit vectors.
        nodes: Tensor (n, F), unit vectors of the taxonomy's nodes (without one: of the classes), each the normalised mean over prompts.
        classes: Tensor (C,) int64, node of each class.  edges: Tensor (E, 2) int64 (parent, child).  taxonomy: or None.
        usable: (N,) bool, clips with a label whose audio could be read.  unreadable: clip id -> reason.
        targets: (N, C) bool.  digest: of the frozen model.
    """

    manifest: Manifest
    audio: np.ndarray
    nodes: Tensor
    classes: Tensor
    edges: Tensor
    taxonomy: Taxonomy | None
    usable: np.ndarray
    unreadable: dict[str, str]
    targets: np.ndarray
    digest: str

    def rows(self, splits: Iterable[str]) -> np.ndarray:
        """Usable rows of some splits, (k,) int64."""
        return np.flatnonzero(self.usable & self.manifest.table["split"].isin(list(splits)).to_numpy())

    def clips(self, rows: np.ndarray) -> Tensor:
        """Their vectors, Tensor (k, F)."""
        return torch.from_numpy(np.array(self.audio[rows]))


def features(config: HyperbolicConfig, manifest: Manifest, device: torch.device | str = "cpu") -> Features:
    """Every clip and every prompt of a data set as vectors of the frozen model: encoded once, then read.

    Args: config: names the model, its window and how to encode.  manifest: with classes.  device: where the model runs, if it has to.
    Raises:
        ParameterError: the data set has no classes.  FileNotFoundError, ValueError: naming the model and what is wrong with it.
    """
    if not manifest.classes:
        raise ParameterError(f"dataset {manifest.name!r} has no labels: tagging needs classes; use soundscapes, esc50 or audioset")
    taxonomy, prompts = Taxonomy.of(manifest), class_prompts(manifest)
    texts = prompts
    if taxonomy:
        templates = manifest.info.get("templates") or ["{}"]
        texts = {name: fill(templates, taxonomy.phrase(i)) for i, name in enumerate(taxonomy.nodes)}
        texts |= {taxonomy.nodes[node]: prompts[name] for node, name in zip(taxonomy.classes, manifest.classes)}
    digest = config.inputs()[0]
    kept = store(lambda: encoders.load(config.backbone).to(device), manifest, [t for group in texts.values() for t in group], digest,
                 seconds=config.clip_seconds, batch_size=config.encoding_batch, workers=config.workers)
    nodes = class_embeddings(texts, lambda group: torch.from_numpy(kept.text[[kept.texts[t] for t in group]]))
    targets = manifest.targets()
    readable = ~manifest.table["clip_id"].isin(list(kept.unreadable)).to_numpy()
    return Features(manifest, kept.audio, nodes, torch.tensor(taxonomy.classes if taxonomy else range(len(prompts))),
                    torch.from_numpy(taxonomy.edges) if taxonomy else torch.zeros(0, 2, dtype=torch.int64), taxonomy,
                    readable & targets.any(axis=1), kept.unreadable, targets, digest)


def backbone_splits(config: HyperbolicConfig) -> dict[str, list[str]]:
    """What the frozen model was trained on, data set -> splits, where it is a checkpoint of this workbook; otherwise nothing is known."""
    trained = (read_json(config.backbone / "training.json") or {}).get("config", {})
    return {name: trained["fit_splits"] for name in trained.get("dataset", "").split("+") if name}


class Hyperbolic:
    """The family as the training loop sees it (`lib.training.loop.Family`).

    Args:
        config: a `HyperbolicConfig`.  manifest: clips to use; None: prepared from the configuration.
    """

    name = "hyperbolic"
    memory_levers = "training holds vectors only: lower batch_size; encoding holds the frozen model: lower encoding_batch, or use device='cpu'"
    Config = HyperbolicConfig

    def __init__(self, config: HyperbolicConfig, manifest: Manifest | None = None):
        self.config = config
        self.manifest = config.prepare() if manifest is None else manifest
        self.features = features(config, self.manifest)
        self.rows = self.features.rows(config.fit_splits)
        self.audio, self.targets = self.features.clips(self.rows), self.features.targets[self.rows]
        randomness.seed_all(config.seed, "model")
        width = self.audio.shape[1]
        self.model = Projection(width, config.embedding_dim or width, config.space())
        self.monitor = "val/minus loss" if config.monitor == "loss" else f"val/{config.monitor}"
        self.told = ("val/loss", f"val/{config.monitor}")

    def batches(self, epoch: int, first_batch: int, skipped: Iterable[str] = ()):
        """This process's share of the batches of an epoch: vectors, all labels, and the label that is drawn for it in this epoch."""
        c, clip_ids = self.config, self.manifest.table["clip_id"].to_numpy()[self.rows]
        order = randomness.epoch_order(len(self.rows), c.seed, epoch)
        drawn = randomness.generator(c.seed, "label", epoch).random(len(self.rows)) if c.label_choice == "random" else np.zeros(len(self.rows))
        for begin, end in bounds(len(self.rows), c.batch_size)[first_batch:]:
            chosen = order[begin:end][share(end - begin)]
            labels = [np.flatnonzero(row) for row in self.targets[chosen]]
            yield {"clip_id": list(clip_ids[chosen]), "failed": [None] * len(chosen), "audio": self.audio[chosen],
                   "targets": torch.from_numpy(self.targets[chosen]).to(torch.uint8),       # which every backend can gather
                   "label": torch.tensor([row[int(u * len(row))] for row, u in zip(labels, drawn[chosen])])}

    def batches_per_epoch(self) -> int:
        """Number of training batches."""
        return len(bounds(len(self.rows), self.config.batch_size))

    def clips(self) -> int:
        """Number of training clips."""
        return len(self.rows)

    def losses(self, model: nn.Module, batch: dict) -> dict[str, Tensor]:
        """Loss of a batch, that of all processes together.

        With tagging_loss "batch", texts are the drawn labels of the batch's clips, and every pair of a clip and a label it has is
        a positive; otherwise each clip is compared with all classes (`lib.losses.tagging.class_loss`). "entailment" asks parent
        above child and class above clip; "loss" is "contrastive" + entailment_weight "entailment".

        Returns: {"loss"; "contrastive", "entailment" where the latter's weight is not 0; "clipped": share of vectors at max_radius}.
        """
        config, f = self.config, self.features
        audio, nodes = model(batch["audio"], f.nodes.to(batch["audio"]))
        audio, targets, label = gather(audio), gather(batch["targets"]).bool(), gather(batch["label"])
        classes = nodes[f.classes.to(nodes.device)]
        if config.tagging_loss == "batch":
            contrastive = contrastive_loss(self.model.similarity(audio, classes[label]), targets[:, label], "rows")
        else:
            contrastive = class_loss(self.model.similarity(audio, classes), targets, config.tagging_loss)
        parts = {"loss": contrastive}
        if config.entailment_weight:
            parts["contrastive"] = contrastive
            clip, owned = targets.nonzero(as_tuple=True)
            parts["entailment"] = entailment_loss(classes[owned], audio[clip], self.model.c)
            if len(f.edges):
                parent, child = f.edges.to(nodes.device).T
                parts["entailment"] = parts["entailment"] + entailment_loss(nodes[parent], nodes[child], self.model.c)
            parts["loss"] = contrastive + config.entailment_weight * parts["entailment"]
        if config.max_radius is not None or config.geometry == "published":
            parts["clipped"] = torch.tensor(self.model.clipped(torch.cat([audio, nodes])))
        return parts

    def compile(self) -> None:
        """A linear map gains nothing from torch.compile; left as it is."""

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Tagging metrics and loss of the validation split under "val/...", empty where it has no clip or was trained on."""
        rows = self.features.rows(["val"])
        if "val" in self.config.fit_splits or not len(rows):
            return {}
        scores = torch.from_numpy(score(self.model, self.features, rows))
        targets = torch.from_numpy(self.features.targets[rows])
        loss = float(class_loss(scores, targets, "sum" if self.config.tagging_loss == "sum" else "softmax"))
        found = tagging_metrics(scores.numpy(), targets.numpy(), ks=(1, 5))
        return {f"val/{name}": found[name] for name in WATCHED} | {"val/loss": loss} | (
            {"val/minus loss": -loss} if self.config.monitor == "loss" else {})

    def save(self, folder: Path) -> Path:
        """Write the model into `folder`: config.json with the frozen model, classes and prompts, model.safetensors, training.json."""
        facts = {"backbone": str(self.config.backbone), "backbone_digest": self.config.inputs()[0], "front_end": self.config.front_end(),
                 "classes": self.manifest.classes, "class_counts": self.targets.sum(axis=0).tolist(), "prompts": class_prompts(self.manifest)}
        write_json(folder / "config.json", self.model.config() | facts)
        write_json(folder / "training.json", {"family": self.name, "config": self.config.to_dict()})
        save_file({name: value.detach().contiguous().cpu() for name, value in self.model.state_dict().items()}, folder / "model.safetensors")
        return folder


@torch.no_grad()
def score(model: Projection | None, found: Features, rows: np.ndarray) -> np.ndarray:
    """Similarities (k, C) float32 of clips and classes.

    Args: model: None: cosine of the frozen model's own vectors.  found: of `features`.  rows: the k clips.
    Raises: ValueError: the projection was trained on another frozen model.
    """
    audio, text = found.clips(rows), found.nodes[found.classes]
    if model is not None and (model.features != audio.shape[1] or model.backbone_digest not in (None, found.digest)):
        raise ValueError(f"the projection was trained on vectors of {model.features} numbers by the frozen model {model.backbone_digest or '(unknown)'}, "
                         f"these are of {audio.shape[1]} by {found.digest}; give the `checkpoint` that it was trained on")
    if model is None:
        return (audio @ text.T).numpy()
    device = model.linear.weight.device
    return model.similarity(*model(audio.to(device), text.to(device))).float().cpu().numpy()


def load(source: str | Path, *, c: float | None = None, temperature: float | None = None, geometry: str | None = None
         ) -> tuple[Projection, HyperbolicConfig | None]:
    """A trained model in evaluation mode, and what it was trained with.

    Args:
        source: a checkpoint folder of this family, or a `.pth` file of the original project (then without a configuration).
        c, temperature: what the caller believes they are; None: whatever the checkpoint says.
        geometry: of a `.pth` file: "published", its own similarity (default), or "poincare", the right distance.
    Raises:
        FileNotFoundError: naming the absolute path.  ValueError: what is wrong with the file, or c or temperature differ from its.
    """
    path = user_path(source).absolute()
    if not path.exists():
        raise FileNotFoundError(f"projection checkpoint {path} does not exist; train one with notebook 20, or give an existing folder or .pth file")
    if path.is_file():
        model, config = import_seed(path, geometry or "published"), None
    else:
        model = Projection.from_pretrained(path)
        config = HyperbolicConfig.from_dict((read_json(path / "training.json") or {"config": {}})["config"] | {"data_root": None})
    for name, stored in model.numbers().items():
        asked = {"c": c, "temperature": temperature}[name]
        if asked is not None and not math.isclose(asked, stored, rel_tol=1e-4):
            raise ValueError(f"{name} is {asked:g}, but {path} was trained with {name} {stored:g}; leave {name} out (None), or use another checkpoint")
    return model, config


def import_seed(path: str | Path, geometry: str = "published") -> Projection:
    """The model in a `projection_epoch_N.pth` of the original project: one linear map, c and temperature.

    Args: path: the file; read with weights_only.  geometry: "published" or "poincare".
    Raises:
        ValueError: naming the file and the key that is missing or does not fit.
    """
    path = user_path(path).absolute()
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:       # torch has several for a broken file; the cause stays attached
        raise ValueError(f"{path} cannot be read as a checkpoint of the original project ({type(error).__name__}: {error}); copy it again") from error
    missing = [key for key in SEED_KEYS if not isinstance(stored, dict) or key not in stored]
    if missing:
        raise ValueError(f"{path}: key {missing[0]!r} is missing; a checkpoint of the original project holds {', '.join(SEED_KEYS)}")
    state = stored["projection_state_dict"]
    if set(state) != {"linear.weight", "linear.bias"} or state["linear.weight"].shape[0] != stored["embed_dim"]:
        raise ValueError(f"{path}: projection_state_dict holds {', '.join(f'{k} {tuple(v.shape)}' for k, v in state.items())}; expected "
                         f"linear.weight and linear.bias for embed_dim {stored['embed_dim']}")
    dim, width = state["linear.weight"].shape
    model = Projection(width, dim, Space(geometry=geometry, c=float(stored["c"]), temperature=float(stored["temperature"])))
    model.linear.load_state_dict({name.removeprefix("linear."): value.float() for name, value in state.items()})
    return model.eval()


def export_seed(folder: Path, output: Path, best: bool = True) -> Path:
    """Write a checkpoint as the original project's file, `best_projection_epoch_N.pth` (or `projection_epoch_N.pth`).

    Args: folder: a checkpoint of this family with one shared map.  output: folder for the file, made if needed.  best: which name.
    Returns: the file.
    Raises:
        ValueError: a model that the original's eight keys cannot hold (two maps, scales).
    """
    model = Projection.from_pretrained(folder)
    if model.text_linear is not None or model.space.train_scales:
        raise ValueError(f"{folder}: the original project's file holds one linear map; this model has separate maps or scales")
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    last = next((row for row in reversed(state["history"]) if "train/loss" in row), {})
    content = {"epoch": state["epoch"], "projection_state_dict": {f"linear.{k}": v for k, v in model.linear.state_dict().items()},
               "optimizer_state_dict": state["optimizer"], "train_loss": last.get("train/loss"), "val_loss": last.get("val/loss"),
               **model.numbers(), "embed_dim": model.dim}
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{'best_' if best else ''}projection_epoch_{state['epoch']}.pth"
    torch.save(content, path)
    return path


def main(arguments: list[str] | None = None) -> int:
    """`python -m lib.families.hyperbolic export | compare`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lib.families.hyperbolic")
    verbs = parser.add_subparsers(dest="verb", required=True)
    export = verbs.add_parser("export", help="write a checkpoint in the original project's form")
    export.add_argument("--checkpoint", type=Path, required=True, help="checkpoint folder of notebook 20")
    export.add_argument("--out", type=Path, required=True, help="folder for best_projection_epoch_N.pth")
    compare = verbs.add_parser("compare", help="two result files in the original project's form, clip by clip")
    compare.add_argument("files", nargs=2, help="results_hyperbolic.json results_original.json")
    options = parser.parse_args(arguments)
    try:
        if options.verb == "export":
            print(f"written: {export_seed(user_path(options.checkpoint), user_path(options.out))}")
        else:
            for row in tagging_files.compare(*options.files):
                numbers = ("-" if row[key] is None else f"{row[key]:.3f}" for key in ("a", "b", "difference", "low", "high"))
                print(f"{row['metric']:<16}" + "".join(f"{number:>9}" for number in numbers), row["note"])
    except (ValueError, OSError) as error:    # messages of ours say what to do; a traceback would hide them
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
