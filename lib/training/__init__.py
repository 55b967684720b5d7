"""Training: `launch` runs a family's configuration to its end, or reads the run when it is finished.

`python -m lib.training --family retrieval --config config.json [name=value ...]` does the same without a notebook.
"""
from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import sys
from collections import deque
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from lib import distributed, settings
from lib.config import RunConfig
from lib.files import alone, read_json, write_json

if TYPE_CHECKING:
    from lib.data.manifest import Manifest

FINISHED = "finished.json"
FAMILIES = {"retrieval": "Retrieval", "hyperbolic": "Hyperbolic", "spatial": "Spatial", "audiovisual": "Audiovisual",
            "tokenizer": "Tokenizer"}
# sources that decide what a run computes; their digest is part of the run's name
SOURCES = ("randomness.py", "distributed.py", "config.py", "files.py", "data", "media", "audio", "encoders", "geometry", "quantize", "losses",
           "evaluation", "training")


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


def run_folder(family: str, config: RunConfig, manifest: Manifest) -> Path:
    """Where a run lives: named by family, data set and a digest of configuration, what it names, data and code, so that the same call finds it again."""
    identity = json.dumps([config.digest(), manifest.fingerprint, source_digest(family), *config.inputs()])
    return settings.runs_dir() / f"{family}-{config.dataset}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def launch(family: str, config: RunConfig, manifest: Manifest | None = None):
    """Train, resume or read a run.

    The same call continues a killed run from its newest checkpoint and reads a finished one; an edit in the code or another
    parameter is another run. With devices=1 it trains in this process; with more, torchrun starts that many. Called in a process that
    torchrun started (also over several machines: `torchrun --nnodes ... -m lib.training ...`), it trains as one of them.

    Args:
        family: a name of `FAMILIES`.  config: its configuration.  manifest: its data; None: prepared from the configuration.
    Returns:
        lib.training.loop.Run
    Raises:
        RuntimeError: a process of several failed; its last lines are in the message.
    """
    from lib.training import devices, loop
    together = distributed.launched()
    fabric = devices.fabric(config.device, config.precision, config.threads) if together or config.devices == 1 else None
    if manifest is None and together:
        with fabric.rank_zero_first(local=True):        # the others of a machine read what the first one has prepared
            manifest = config.prepare()
    manifest = manifest or config.prepare()
    folder = run_folder(family, config, manifest)
    run = finished(folder)
    if run is not None:
        print(f"finished run {folder.name} is read, not repeated", flush=True)
        return run
    folder.mkdir(parents=True, exist_ok=True)
    settings_file = folder / "config.json"
    if fabric is None:
        write_json(settings_file, {"family": family, "config": config.to_dict()})
        _torchrun(family, settings_file, config.devices)
        return finished(folder)
    with alone(folder / ".lock", f"run {folder.name}") if fabric.is_global_zero else nullcontext():
        run = fabric.broadcast(finished(folder) if fabric.is_global_zero else None)       # by whoever held the lock before
        if run is None:
            if fabric.is_global_zero:
                write_json(settings_file, {"family": family, "config": config.to_dict()})
            run = loop.fit(family_class(family)(config, manifest), folder, fabric)
            if fabric.is_global_zero:
                facts = {name: value for name, value in vars(run).items() if name not in ("folder", "checkpoint")}
                write_json(folder / FINISHED, facts | {"checkpoint": run.checkpoint.relative_to(folder).as_posix()})
            fabric.barrier()
    return run


def finished(folder: Path):
    """The finished run in `folder` (lib.training.loop.Run), or None: not finished, or its checkpoint is damaged."""
    from lib.training import checkpoint, loop
    facts = read_json(folder / FINISHED)
    if facts is None or not checkpoint.valid(folder / facts["checkpoint"]):
        return None
    return loop.Run(**facts | {"folder": folder, "checkpoint": folder / facts["checkpoint"]})


def _torchrun(family: str, settings_file: Path, devices: int) -> None:
    """Train in `devices` processes of this machine, passing on what they say."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}", "-m", "lib.training",
               "--family", family, "--config", str(settings_file)]
    path = os.pathsep.join([str(settings.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    said: deque[str] = deque(maxlen=40)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, errors="replace",
                          env=os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}) as process:
        try:
            theirs = True
            for line in process.stdout:
                theirs = theirs and "torch/distributed/elastic/" not in line        # torchrun's own account of a failure only hides theirs
                if theirs:
                    said.append(line)
                    print(line, end="", flush=True)
        except BaseException:
            process.terminate()                 # torchrun ends its processes
            raise
    if process.returncode:
        raise RuntimeError(f"training in {devices} processes failed with exit code {process.returncode}; the last lines were:\n" + "".join(said))
