"""Training: `launch` runs a family's configuration to its end, or reads the run when it is finished.

`python -m lib.training --family retrieval --config config.json [name=value ...]` does the same without a notebook.
"""
from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path

from lib import settings
from lib.config import RunConfig
from lib.files import write_json

FAMILIES = {"retrieval": "Retrieval"}
# sources that decide what a run computes; their digest is part of the run's name
SOURCES = ("randomness.py", "config.py", "files.py", "data", "media", "audio", "encoders", "losses", "evaluation", "training")


def family_class(name: str):
    """The family's class, imported on demand. Raises ValueError for an unknown name."""
    if name not in FAMILIES:
        raise ValueError(f"unknown family {name!r}; known: {', '.join(FAMILIES)}")
    return getattr(importlib.import_module(f"lib.families.{name}"), FAMILIES[name])


def source_digest(family: str) -> str:
    """12 hexadecimal digits over the sources that decide what a run of `family` computes."""
    base, total = settings.ROOT / "lib", hashlib.sha256()
    for entry in (*SOURCES, f"families/{family}.py"):
        path = base / entry
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            total.update(file.relative_to(base).as_posix().encode() + b"\0" + file.read_bytes())
    return total.hexdigest()[:12]


def launch(family: str, config: RunConfig):
    """Train, resume or read a run.

    The run's folder is named by family, data set and a digest of configuration, data and code: the same call continues a killed
    run from its newest checkpoint and reads a finished one; an edit in the code or another parameter is another run.

    Args:
        family: a name of `FAMILIES`.  config: its configuration.
    Returns:
        lib.training.loop.Run
    """
    from lib.training import checkpoint, loop
    learner = family_class(family)(config)
    identity = json.dumps([config.digest(), learner.manifest.fingerprint, source_digest(family)])
    folder = settings.runs_dir() / f"{family}-{config.dataset}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    marker = folder / "finished.json"
    if marker.is_file():
        done = json.loads(marker.read_text())
        chosen = folder / done["checkpoint"]
        if checkpoint.valid(chosen):
            print(f"finished run {folder.name} is read, not repeated", flush=True)
            return loop.Run(folder, chosen, done["history"], done["steps"], done["cpu_seconds"], done["wall_seconds"])
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {"family": family, "config": config.to_dict()})
    run = loop.fit(learner, folder)
    write_json(marker, {"checkpoint": str(Path(run.checkpoint).relative_to(folder)), "history": run.history, "steps": run.steps,
                                   "cpu_seconds": run.cpu_seconds, "wall_seconds": run.wall_seconds})
    return run
