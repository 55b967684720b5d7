"""Result files of the original hyperbolic CLAP scripts: written with their keys, read, and two of them compared clip by clip.

There are two variants. The general script writes `use_hyperbolic`, `projection_checkpoint`, `c` and `temperature` into
`model_info` (the last three null for plain CLAP); the dedicated hyperbolic script has no `use_hyperbolic` and puts them into
`test_info`. What is ours stands under `workbook`. The metrics are those of `tagging.seed_metrics`, not the usual definitions.
"""
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np

from lib.evaluation.statistics import paired_bootstrap
from lib.evaluation.tagging import KS, best_classes, seed_metrics
from lib.files import user_path, write_json
from lib.schemas import jsonschema

ORIGINAL, HYPERBOLIC = "results_original.json", "results_hyperbolic.json"    # the guide's names for cosine and hyperbolic runs
_TEXTS = {"type": "array", "items": {"type": "string"}}
_TEXT = {"type": ["string", "null"]}
_NUMBER = {"type": ["number", "null"]}
_HYPERBOLIC = {"projection_checkpoint": _TEXT, "c": _NUMBER, "temperature": _NUMBER}


def _object(required: Sequence[str], properties: dict) -> dict:
    return {"type": "object", "required": list(required), "properties": properties}


SCHEMA = _object(("test_info", "model_info", "similarity_stats", "metrics", "predictions"), {
    "test_info": _object(("timestamp", "parquet_dir", "num_samples", "device", "model_path"), _HYPERBOLIC),
    "model_info": _object(("model_type", "model_path"), _HYPERBOLIC | {"use_hyperbolic": {"type": "boolean"}}),
    "similarity_stats": {**_object(("min", "max", "mean", "std"), {}), "additionalProperties": {"type": "number"}},
    "metrics": {"anyOf": [{"type": "null"}, {"type": "object", "additionalProperties": {"type": "number"}}]},
    "predictions": {"type": "array", "minItems": 1, "items": _object(
        ("sample_id", "video_id", "predicted_top1", "top_k_predictions", "ground_truth_labels", "ground_truth_human_labels"), {
            "video_id": _TEXT, "predicted_top1": {"type": "string"},
            "ground_truth_labels": _TEXTS, "ground_truth_human_labels": _TEXTS,
            "top_k_predictions": {"type": "array", "minItems": 1, "items": _object(("rank", "classname", "similarity"), {
                "rank": {"type": "integer"}, "classname": {"type": "string"}, "similarity": {"type": "number"}})}})},
})


@dataclass(frozen=True)
class Projection:
    """The trained map of a hyperbolic run: its checkpoint file, curvature -c and the temperature of the scores."""

    checkpoint: str
    c: float
    temperature: float


def write(path: str | Path, scores: np.ndarray, targets: np.ndarray, classes: Sequence[str], clips: Sequence[dict], *,
          parquet_dir: str, device: str, model_path: str, projection: Projection | None = None, dedicated: bool = False,
          num_samples: int | None = None, top_k: int = 5, workbook: dict | None = None) -> Path:
    """Write one run's result as the original scripts would have.

    Args:
        scores: (N, C) finite similarities.  targets: (N, C) bool; a clip whose labels match no class has none.
        classes: C names.
        clips: of each clip {"video_id", "labels": MIDs, "human_labels": names} and, where it is not its row, "sample_id". A clip
            without human labels is among the predictions and in no metric.
        parquet_dir, device, model_path: for the reader.  num_samples: that were asked for, None: all.
        projection: of a hyperbolic run, None: plain CLAP.
        dedicated: the variant of the dedicated hyperbolic script.
        top_k: predictions kept a clip; accuracy at more than these cannot be computed from the file again.
        workbook: protocol and whatever else is ours, JSON values.
    Returns: the path.
    Raises: ValueError: numbers of clips or classes that differ, top_k < 1, no labelled clip, `dedicated` without projection.
    """
    if (len(clips), len(classes)) != np.shape(scores) or top_k < 1:
        raise ValueError(f"scores {np.shape(scores)} must be (clips, classes) = {len(clips), len(classes)}, top_k {top_k} >= 1")
    if dedicated and projection is None:
        raise ValueError("the dedicated script knows hyperbolic runs only; give the projection or leave `dedicated`")
    scores, targets = np.asarray(scores), np.asarray(targets)
    labelled = np.array([bool(len(clip["human_labels"])) for clip in clips])
    if not labelled.any():
        raise ValueError(f"none of the {len(clips)} clips has a human label; there is nothing to measure")
    space = {"projection_checkpoint": projection and str(projection.checkpoint), "c": projection and float(projection.c),
             "temperature": projection and float(projection.temperature)}
    test_info = {"timestamp": datetime.now().isoformat(), "parquet_dir": str(parquet_dir), "num_samples": num_samples,
                 "device": str(device), "model_path": str(model_path)}
    model_info = {"model_type": "hyperbolic_clap_modelscope" if projection else "modelscope", "model_path": str(model_path)}
    if dedicated:
        test_info |= space
        model_info["projection_checkpoint"] = space["projection_checkpoint"]
    else:
        model_info |= {"use_hyperbolic": projection is not None} | space
    metrics = seed_metrics(scores[labelled], targets[labelled], total=len(clips))
    predictions = []
    for row, (clip, best) in enumerate(zip(clips, best_classes(scores, top_k).tolist())):
        kept = [{"rank": rank, "classname": classes[k], "similarity": float(scores[row, k])} for rank, k in enumerate(best, 1)]
        predictions.append({"sample_id": clip.get("sample_id", row), "video_id": clip["video_id"],
                            "predicted_top1": kept[0]["classname"], "top_k_predictions": kept,
                            "ground_truth_labels": list(clip["labels"]), "ground_truth_human_labels": list(clip["human_labels"])})
    similarity = {name: float(getattr(scores, name)()) for name in ("min", "max", "mean", "std")}
    document = {"test_info": test_info, "model_info": model_info, "similarity_stats": similarity, "metrics": metrics,
                "predictions": predictions, "workbook": workbook or {}}
    return write_json(user_path(path).absolute(), document)


@dataclass(frozen=True)
class TaggingFile:
    """A file that `read` has checked. `document` holds its keys as they are."""

    path: Path
    document: dict

    @cached_property
    def projection(self) -> Projection | None:
        """Of a hyperbolic run, wherever its variant keeps it; None for plain CLAP."""
        info = self.document["model_info"]
        if "use_hyperbolic" not in info:
            info = self.document["test_info"]
        return None if info.get("c") is None else Projection(info["projection_checkpoint"], info["c"], info["temperature"])

    @property
    def predictions(self) -> list[dict]:
        return self.document["predictions"]

    @cached_property
    def kept(self) -> int:
        """Predictions that every clip has."""
        return min(len(prediction["top_k_predictions"]) for prediction in self.predictions)

    def repeats(self, name: str) -> bool:
        """Is the stored metric `name` an acc@k beyond what an original script kept, and so acc@`kept` once more?"""
        return "workbook" not in self.document and name.startswith("acc@") and int(name.removeprefix("acc@")) > self.kept

    def hits(self, k: int) -> dict:
        """Of each labelled clip: row of the predictions -> is a true label (in upper or lower case) among the k best?"""
        if k > self.kept:
            raise ValueError(f"{self.path}: acc@{k} needs {k} predictions a clip and the file keeps {self.kept}; evaluate again "
                             f"with top_k {k} or ask for a smaller k")
        return {row: not _names(p["ground_truth_human_labels"]).isdisjoint(_names(kept["classname"] for kept in _best(p)[:k]))
                for row, p in enumerate(self.predictions) if p["ground_truth_human_labels"]}


def read(path: str | Path) -> TaggingFile:
    """Read and check a result file of either variant.

    Raises:
        FileNotFoundError, ValueError: naming the file, the key and what was expected there.
    """
    path = user_path(path).absolute()
    if not path.is_file():
        raise FileNotFoundError(f"result file {path} is not there; the evaluation writes {ORIGINAL} and {HYPERBOLIC}")
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_refuse)
    except ValueError as error:
        raise ValueError(f"{path}: not strict JSON ({error}); the run broke off or its scores were not finite") from error
    problem = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(SCHEMA).iter_errors(document))
    if problem is not None:
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem.absolute_path).removeprefix(".")
        raise ValueError(f"{path}: {place or 'the whole'}: {problem.message[:300]}; expected a result of the CLAP test scripts")
    model, test = document["model_info"], document["test_info"]
    told = model if "use_hyperbolic" in model else test
    if model.get("use_hyperbolic", "hyperbolic" in model["model_type"]):
        for key in _HYPERBOLIC:
            if told.get(key) is None:
                raise ValueError(f"{path}: {'model_info' if told is model else 'test_info'}.{key} is missing; a hyperbolic run "
                                 "states its checkpoint, c and temperature")
    return TaggingFile(path, document)


def compare(file_a: str | Path, file_b: str | Path, ks: Sequence[int] | None = None, confidence: float = 0.95, draws: int = 2000,
            seed: int = 0) -> list[dict]:
    """Two runs over the same clips, as rows to print.

    Accuracies are computed again from the kept predictions and have a paired bootstrap interval over clips; the stored metrics
    follow with plain differences. Clips are matched by video_id, or by sample_id where video_ids are missing or not unique; clips
    without a label count in neither.

    Args:
        ks: accuracies to compute; None: 1, 3, 5, 10 as far as both files keep enough predictions.
        confidence, draws, seed: as `paired_bootstrap`.
    Returns:
        [{"metric", "a", "b", "difference" (a - b), "low", "high", "clips", "source": "predictions" | "stored", "note"}]; numbers
        that the files do not tell are None, and the note says why.
    Raises:
        FileNotFoundError, ValueError: as `read`; different clips or labels, naming some; a k of `ks` beyond the kept predictions.
    """
    a, b = read(file_a), read(file_b)
    pairs = _matched(a, b)
    fewest, rows = min((a, b), key=lambda file: file.kept), []
    for k in KS if ks is None else ks:
        if ks is None and k > fewest.kept:
            note = f"{fewest.path.name} keeps {fewest.kept} predictions a clip"
            rows.append(_row(f"acc@{k}", None, None, "predictions", note=note))
            continue
        values = [np.array([hits[row] for row in file_rows], dtype=float)
                  for hits, file_rows in zip((a.hits(k), b.hits(k)), zip(*pairs))]
        rows.append(_row(f"acc@{k}", *(float(v.mean()) for v in values), "predictions", len(pairs),
                         paired_bootstrap(*values, confidence=confidence, draws=draws, seed=seed)))
    stored = [file.document["metrics"] or {} for file in (a, b)]
    for name in [name for name in stored[0] if name in stored[1] and not name.endswith("_samples")]:
        lame = [file for file in (a, b) if file.repeats(name)]
        values = [None if file in lame else float(metrics[name]) for file, metrics in zip((a, b), stored)]
        note = "; ".join(f"{file.path.name} keeps {file.kept} predictions a clip: its {name} is acc@{file.kept}" for file in lame)
        rows.append(_row(name, *values, "stored", len(pairs), note=note))
    return rows


def _refuse(constant: str):
    raise ValueError(f"it holds {constant}")


def _names(names) -> set[str]:
    return {name.strip().lower() for name in names}


def _best(prediction: dict) -> list[dict]:
    return sorted(prediction["top_k_predictions"], key=lambda kept: kept["rank"])


def _row(metric: str, a: float | None, b: float | None, source: str, clips: int | None = None, interval=None, note="") -> dict:
    difference, low, high = interval or (None if a is None or b is None else a - b, None, None)
    return {"metric": metric, "a": a, "b": b, "difference": difference, "low": low, "high": high, "clips": clips,
            "source": source, "note": note}


def _matched(a: TaggingFile, b: TaggingFile) -> list[tuple[int, int]]:
    """Rows of the same labelled clips in both files."""
    for key in ("video_id", "sample_id"):
        ids = [[p[key] for p in file.predictions] for file in (a, b)]
        if all(len(set(some)) == len(some) and not {"", None} & set(some) for some in ids):
            break
    else:
        raise ValueError(f"{a.path} and {b.path}: neither video_id nor sample_id tells all clips apart; evaluate again")
    places = [{clip: row for row, clip in enumerate(some)} for some in ids]
    for own, other, file in ((*places, a), (*places[::-1], b)):
        alone = [clip for clip in own if clip not in other]
        if alone:
            raise ValueError(f"{a.path} and {b.path} are about different clips: {len(alone)} of {len(own)} are only in "
                             f"{file.path}, such as {key} {', '.join(map(repr, alone[:3]))}; evaluate both on the same clips")
    pairs = [(row, places[1][clip]) for clip, row in places[0].items()]
    wrong = [a.predictions[i] for i, j in pairs
             if _names(a.predictions[i]["ground_truth_human_labels"]) != _names(b.predictions[j]["ground_truth_human_labels"])]
    if wrong:
        raise ValueError(f"{a.path} and {b.path}: {len(wrong)} of {len(pairs)} clips have other true labels in the other file, "
                         f"such as {key} {wrong[0][key]!r}; these are not the same clips or not the same label set")
    pairs = [pair for pair in pairs if a.predictions[pair[0]]["ground_truth_human_labels"]]
    if not pairs:
        raise ValueError(f"{a.path} and {b.path}: no clip has a label")
    return pairs
