"""Where clips come from: every data set becomes one `Manifest`, through `prepare` (or `python -m lib.data prepare`).

To add a data set, write a module with `prepare(data_root, *, seed, num_samples, workers, **options) -> Manifest` that ends
in the health check, and add a line to DATASETS.
"""
from __future__ import annotations

from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING

from lib.files import user_path

if TYPE_CHECKING:
    from lib.data.manifest import Manifest

DATASETS = {
    "soundscapes": "lib.data.soundscapes",
    "esc50": "lib.data.esc50",
    "folder": "lib.data.folder",
    "clotho": "lib.data.clotho",
    "audiocaps": "lib.data.audiocaps",
    "wavcaps": "lib.data.wavcaps",
    "audioset": "lib.data.audioset",
    "triplets": "lib.data.triplets",
    "stclotho": "lib.data.stclotho",
    "vggsound": "lib.data.vggsound",
    "librispeech": "lib.data.librispeech",
    "commonvoice": "lib.data.commonvoice",
    "digits": "lib.data.digits",
}
_ALWAYS = ("data_root", "seed", "num_samples", "workers")


def prepare(dataset: str, *, data_root: str | Path | None = None, seed: int = 0, num_samples: int | None = None,
            workers: int = 0, **options) -> "Manifest":
    """Build, or read from the cache, the manifest of a data set; every clip in it has passed the health check.

    Args:
        dataset: one of DATASETS, or a mixture of several, joined by "+" (see `lib.data.mixture`).
        data_root: folder of the data set, as `lib.files.user_path` reads it; None where it can be made or is under the data folder.
        seed: seed of what a data set draws (splits of published data sets do not depend on it).
        num_samples: at most this many clips, shared over the splits; None: all.
        workers: processes for making and checking files; 0: in this process.
        options: what the data set itself understands (see `data_set_options`).

    Raises:
        ValueError: unknown data set or option. FileNotFoundError: no such folder, with the command that gets the data.
    """
    known = data_set_options(dataset)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"data set {dataset!r} has no option {unknown[0]!r}; it has: {', '.join(known) or 'none'}")
    if data_root is not None:
        data_root = user_path(data_root).absolute()
        if not data_root.is_dir():
            raise FileNotFoundError(f"data_root: {data_root} is not a folder; give the folder of {dataset!r}, or None")
    module = import_module("lib.data.mixture" if "+" in dataset else DATASETS[dataset])
    if "+" in dataset:
        options["names"] = dataset.split("+")
    return module.prepare(data_root, seed=seed, num_samples=num_samples, workers=workers, **options)


def data_set_options(dataset: str) -> dict[str, object]:
    """Options that a data set takes beyond those of `prepare`, with their defaults: of a mixture, those of any of its parts.

    ValueError for an unknown data set, or one that is named twice.
    """
    names = dataset.split("+")
    if len(names) > 1:
        if len(set(names)) < len(names):
            raise ValueError(f"data set {dataset!r} names a part twice")
        return {option: default for name in names for option, default in data_set_options(name).items()}
    if dataset not in DATASETS:
        raise ValueError(f"unknown data set {dataset!r}; known: {', '.join(DATASETS)}, or several joined by +")
    parameters = signature(import_module(DATASETS[dataset]).prepare).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in _ALWAYS and p.kind != p.VAR_KEYWORD}
