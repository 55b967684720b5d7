"""What a number was measured on, and how: two numbers may stand in one column only if all of that is the same.

The protocol of a metric is its notebook, data set, manifest fingerprint, split, n, what it is called, and every entry of the result's
`protocol` but those of MODEL, which tell of the model and its training. An entry that nobody thought of here therefore keeps
numbers apart: refusing a fair comparison is mended in a line, an unfair one is not seen.
"""
from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from lib.files import digest

MODEL = frozenset({
    "arm", "backbone", "backbone_digest", "compared_weights_digest", "embedding", "fit_splits", "front_end", "main", "monitor", "seeds",
    "selection", "stage", "temperature", "tokens_per_second", "weights_digest",                            # what was trained, and how
    "ceilings", "clips_replaced", "counts", "hierarchy", "parts", "ridge_penalty", "scalar", "splits", "unreadable",  # what came out
    "dims", "epochs", "skipped"})
# What stands before ": " in a metric's name is the model that was scored ("cosine: acc@1"), but for these.
_NO_MODEL = ("audio", "video", "control")


class ProtocolError(ValueError):
    """Numbers of different protocols were to be put in one column."""


def scored(name: str) -> tuple[str, str]:
    """A metric's name as (which of the result's models, metric): "cosine: acc@1" is acc@1 of cosine.

    A difference of two models is no value of the metric: "a - b: acc@1" gives ("a - b", "acc@1, difference").
    """
    model, colon, metric = name.partition(": ")
    if not colon or model in _NO_MODEL:
        return "", name
    return model, f"{metric}, difference" if is_difference(model) else metric


def is_difference(name: str) -> bool:
    """Whether a metric is a difference of two models or to a ceiling, to be judged by 0: "a - b: acc@1", "gain of a"."""
    return " - " in name or "gain of " in name


def identity(document: Mapping, row: Mapping) -> dict:
    """The protocol of one metric of a result: name of an entry -> its value, as JSON types.

    Args:
        document: a result. row: one of its metrics.
    """
    metric, protocol = scored(row["name"])[1], document["protocol"]
    # Errors in dB and losses are measured on the front end's own pictures, so there it is part of the yardstick.
    drawn = document["family"] == "tokenizer" or "loss" in metric
    kept = {name: value for name, value in protocol.items() if name not in MODEL or (drawn and name == "front_end")}
    clips = {"clips": kept.pop("n")} if kept.get("n") is not None else {}
    kept.pop("n", None)
    return {"notebook": document["notebook"], "metric": metric, "dataset": document["dataset"], **kept, **clips,
            "split": row["split"], "n": row["n"]}


def short(protocol: Mapping) -> str:
    """Six hexadecimal digits that stand for a protocol."""
    return digest(json.dumps(protocol, sort_keys=True))[:6]


def differing(protocols: Iterable[Mapping]) -> dict[str, list]:
    """Entry -> its different values, for the entries in which protocols are not all the same (None: not there)."""
    protocols = list(protocols)
    names = dict.fromkeys(name for one in protocols for name in one)
    found = {name: list({json.dumps(one.get(name), sort_keys=True): one.get(name) for one in protocols}.values()) for name in names}
    return {name: values for name, values in found.items() if len(values) > 1}


def refuse_different(protocols: Mapping[str, Mapping]) -> None:
    """ProtocolError naming every entry in which the protocols (name of a run -> protocol) differ, with the values; else nothing."""
    if found := differing(protocols.values()):
        told = "; ".join(f"{name}: {' | '.join(_brief(value) for value in values)}" for name, values in found.items())
        raise ProtocolError(f"{', '.join(protocols)} were not measured under one protocol and cannot share a column. They differ in {told}. "
                            "Score them on the same clips in the same way, or show a column for each")


def _brief(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
