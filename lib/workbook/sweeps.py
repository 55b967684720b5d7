"""Runs of one notebook that a sweep made: grouped by everything but the seed, and each group beside the first one.

A group is a variant; its runs are its seeds. The difference of a variant to the first is taken seed by seed, so that what a seed
does to both cancels; runs without a partner or without a result stay out, and are counted.
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from lib.evaluation import statistics
from lib.workbook import protocols


@dataclass
class Group:
    """One variant of a notebook. runs: seed as JSON ("null" without one) -> job id. first: the variant it is compared with."""

    notebook: str
    variant: dict
    runs: dict[str, str] = field(default_factory=dict)
    first: Group | None = None


def groups(jobs: Mapping[str, Mapping]) -> list[Group]:
    """The variants in the order of the jobs (id -> {"notebook", "combination", ...}); a job of no sweep is a variant of its own."""
    found: dict[tuple[str, str], Group] = {}
    first: dict[str, Group] = {}
    for name, job in jobs.items():
        variant = {key: value for key, value in job["combination"].items() if key != "seed"}
        group = found.setdefault((job["notebook"], json.dumps(variant)), Group(job["notebook"], variant))  # as JSON: "1" is not 1
        group.runs[json.dumps(job["combination"].get("seed"))] = name
        group.first = first.setdefault(job["notebook"], group)
    return list(found.values())


def values(group: Group, documents: Mapping[str, Mapping], key: tuple[str, str]) -> dict[str, Mapping]:
    """Seed -> (result, metric) of the runs that have the metric `key` = (name, split)."""
    found = {}
    for seed, name in group.runs.items():
        for row in documents.get(name, {"metrics": []})["metrics"]:
            if (row["name"], row["split"]) == key:
                found[seed] = (documents[name], row)
    return found


def mean(numbers: list[float]) -> tuple[float, tuple[float, float] | None]:
    """Mean and 95 % t interval over seeds; one number alone has no interval."""
    value, *interval = statistics.mean_interval(numbers)
    return value, tuple(interval) if len(numbers) > 1 else None


def difference(group: Group, documents: Mapping[str, Mapping], key: tuple[str, str]):
    """Variant minus first variant, paired by seed.

    Returns:
        (mean of the differences, 95 % t interval or None with one pair, pairs), or None when no seed has both.
    Raises:
        ProtocolError: the two were not measured under one protocol (a sweep over the data, the split, the number of clips).
    """
    ours, theirs = values(group, documents, key), values(group.first, documents, key)
    pairs = [seed for seed in ours if seed in theirs]
    for seed in pairs:
        protocols.refuse_different({name: protocols.identity(*one) for name, one in
                                    ((group.first.runs[seed], theirs[seed]), (group.runs[seed], ours[seed]))})
    if not pairs:
        return None
    return *mean([ours[seed][1]["value"] - theirs[seed][1]["value"] for seed in pairs]), len(pairs)
