"""Starter folders from the checkpoints of a report: weights in half precision, nothing of the training state, no path of a machine."""
from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from lib import settings
from lib.encoders.weights import model_digest
from lib.files import STARTER, STARTERS, read_json, write_json
from lib.starters import NAMES
from lib.workbook import results

LIMIT = 3_000_000           # bytes of a file of weights
SMALLEST = 1024             # numbers; smaller tensors (temperatures, norms, biases) keep float32
LEFT_OUT = ("state.pt", "manifest.json", "model.safetensors", "README.md", "scores.json")
# name: the notebook that trains it, and where its result says that the checkpoint lies
MADE_BY = {"retrieval": ("10_retrieval_train", lambda made: made["checkpoint"]),
           "hyperbolic": ("20_hyperbolic_train", lambda made: made["checkpoints"]["cones"][0]),
           "spatial": ("31_spatial_train", lambda made: made["checkpoints"]["triplets"]),
           "audiovisual": ("43_audiovisual_finetune", lambda made: made["checkpoint"]),
           "audiovisual/contrastive": ("42_audiovisual_contrastive", lambda made: made["checkpoints"]["stages 1 + 2"]),
           "audiovisual/mae": ("41_audiovisual_mae", lambda made: made["checkpoint"]),
           "tokenizer": ("50_tokenizer_train", lambda made: made["checkpoints"][made["main"]][0]),
           "tokenizer/vocoder": ("50_tokenizer_train", lambda made: made["vocoder"])}
# entries of training.json that name files of the machine it was trained on
PLACES = ("data_root", "initial_checkpoint", "stage1_checkpoint", "pretrained_checkpoint", "csv_path", "video_dir", "output_dir")


def small(state: dict[str, Tensor], limit: int = LIMIT) -> dict[str, Tensor]:
    """The same weights in at most `limit` bytes: matrices in float16 and, where that is not enough, the largest of them in float8 (E4M3).

    Loaders copy them into float32 parameters and compute in float32.  ValueError: not even that is small enough.
    """
    kept = {name: value.half() if value.is_floating_point() and value.ndim > 1 and value.numel() >= SMALLEST else value
            for name, value in state.items()}
    largest = sorted((name for name, value in kept.items() if value.dtype == torch.float16), key=lambda name: (-kept[name].numel(), name))
    for name in largest:
        if len(save(kept)) <= limit:
            break
        kept[name] = state[name].to(torch.float8_e4m3fn)
    if len(save(kept)) > limit:
        count = sum(value.numel() for value in state.values())
        raise ValueError(f"{count:,} weights do not fit into {limit:,} bytes; train a smaller model")
    return kept


def collect(report: Path, names: tuple[str, ...] = NAMES, target: Path = STARTERS) -> list[Path]:
    """Make starter folders from the models that a report trained, in place of those that are there.

    Args:
        report: folder of a report of profile `starter`; checkpoints are looked for in the runs folder.
        names: which; "hyperbolic" names "retrieval" as its frozen model, so that one comes first.  target: where they go.
    Returns: their folders.
    Raises: FileNotFoundError: a training notebook has no result.  ValueError: a file would hold a path of this machine.
    """
    made = []
    for name in names:
        notebook, where = MADE_BY[name]
        document = results.of(report, notebook)
        made.append(_folder(settings.runs_dir() / where(document["artifacts"]), target / name, target))
        told, origin = document["provenance"], {"notebook": notebook}
        origin |= {"commit": told["commit"], "seconds": round(told["wall_seconds"])}
        origin["protocol"] = {key: document["protocol"].get(key) for key in ("fit_splits", "selection", "seeds", "manifest_fingerprint")}
        write_json(target / name / "origin.json", origin)
    return made


def _folder(source: Path, folder: Path, target: Path) -> Path:
    """One starter: every file of a checkpoint that its loader reads."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.name not in LEFT_OUT:
            shutil.copyfile(file, folder / file.name)
    config, training = read_json(folder / "config.json"), read_json(folder / "training.json")
    if training:
        training["config"] |= {key: None for key in PLACES if key in training["config"]}
    if "backbone" in config:        # a projection: of the starter in half precision, which is what it will meet
        config |= {"backbone": f"{STARTER}retrieval", "backbone_digest": model_digest(target / "retrieval")}
        training["config"]["checkpoint"] = config["backbone"]
    for file, document in (("config.json", config), ("training.json", training)):
        if document:
            write_json(folder / file, document)
            if found := [text for text in _texts(document) if text.startswith(("/", "~"))]:
                raise ValueError(f"{folder / file} would hold a path of this machine: {found[0]!r}")
    weights = load_file(source / "model.safetensors")
    (folder / "model.safetensors").write_bytes(save(small(weights)))
    return folder


def _texts(document: object) -> list[str]:
    if isinstance(document, (dict, list)):
        return [text for value in (document.values() if isinstance(document, dict) else document) for text in _texts(value)]
    return [document] if isinstance(document, str) else []
