"""A cluster that `make report CLUSTER=name` runs on: a folder with two files, of `notebooks/profiles/` or of one's own.

`config.yaml` is a profile of Snakemake: the executor, how many jobs at a time, how long to wait for the shared file system.
`resources.yaml` says what the jobs ask the cluster for, in the sections `all` and, above it, the names of notebooks:

    offline: true                    # the nodes have no network: see `make prefetch`
    all: {partition: gpu, memory: 16G, time: 4h}
    10_retrieval_train: {memory: 64G, time: 2d}
"""
from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lib.files import user_path
from lib.glossary import ParameterError, load_yaml, unknown
from lib.workbook.parameters import unknown_choice, unknown_notebook
from lib.workbook.plan import Job

# what may be asked for: name -> (what Snakemake calls it, what it must be)
ASKED = {"partition": ("slurm_partition", "a text"), "account": ("slurm_account", "a text"), "qos": ("qos", "a text"),
         "constraint": ("constraint", "a text"), "gpu_model": ("gpu_model", "a text"), "extra": ("slurm_extra", "a text"),
         "memory": ("mem_mb", "a size such as 800M or 16G, for the whole job"), "time": ("runtime", "a time such as 30min, 12h or 2d"),
         "cpus": ("cpus_per_task", "a whole number from 1"), "gpus": ("gpu", "a whole number from 0; 0: on the CPU")}
# what libraries read to keep off the network
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "WANDB_MODE": "offline", "SWANLAB_MODE": "offline"}


@dataclass(frozen=True)
class Cluster:
    """A cluster's folder, its executor (of Snakemake), whether its nodes have no network, and what its jobs ask for, by section."""

    folder: Path
    executor: str
    offline: bool
    sections: dict[str, dict[str, object]]

    def resources(self, job: Job) -> dict[str, object]:
        """What a job asks for, in the names of Snakemake.

        Unless said otherwise: a CPU for every thread and every loader process, and as many GPUs as its `device` and `devices` need.

        Raises:
            ParameterError: fewer GPUs are given than `devices` needs.
        """
        asked = self.sections.get("all", {}) | self.sections.get(job.notebook, {})
        processes = int(job.parameters.get("devices") or 1)
        found = {"mem_mb": 0, "gpu": job.gpu, "cpus_per_task": processes * (job.threads + int(job.parameters.get("workers") or 0))}
        found |= {ASKED[name][0]: value for name, value in asked.items()}
        if self.executor == "slurm":    # a job that is queued again goes on in the log that it has begun
            found["slurm_extra"] = f"--open-mode=append {found.get('slurm_extra', '')}".strip()
        if not found["gpu"]:
            found.pop("gpu_model", None)
        elif found["gpu"] < job.gpu:
            raise ParameterError(f"{job.id}: devices={job.gpu}, and {self.folder.name}/resources.yaml gives it gpus: {found['gpu']}; "
                                 "lower devices, give more, or gpus: 0 to stay on the CPU")
        return found


def read_cluster(name: str, profiles: Path, notebooks: Iterable[str]) -> Cluster:
    """The cluster called `name`: a folder of `profiles`, or the path of a folder.

    ParameterError: no such folder, a file that is missing in it, a section, a name or a value that does not fit.
    """
    known = sorted(p.parent.name for p in profiles.glob("*/config.yaml"))
    folder = profiles / name if name in known else user_path(name).absolute()
    if not (folder / "config.yaml").is_file():
        if folder.is_dir():
            raise ParameterError(f"CLUSTER: {folder} holds no config.yaml, the profile of Snakemake; copy {profiles / 'slurm'} and edit it")
        raise unknown_choice("cluster", name, known)
    config, asked = (_read(folder, file) for file in ("config.yaml", "resources.yaml"))
    executor = config.get("executor")
    if not isinstance(executor, str) or executor == "local":
        raise ParameterError(f"CLUSTER: {folder.name}/config.yaml must name the executor, for example `executor: slurm`, got {executor!r}")
    offline = asked.pop("offline", False)
    if not isinstance(offline, bool):
        raise ParameterError(f"CLUSTER: {folder.name}/resources.yaml: offline must be true or false, got {offline!r}")
    where = f"CLUSTER: {folder.name}/resources.yaml"
    return Cluster(folder, executor, offline, {section: _section(section, values, where, list(notebooks)) for section, values in asked.items()})


def _read(folder: Path, name: str) -> dict:
    path = folder / name
    content = (load_yaml(path.read_text(encoding="utf-8"), f"{folder.name}/{name}") or {}) if path.is_file() else {}
    if not isinstance(content, dict):
        raise ParameterError(f"CLUSTER: {folder.name}/{name} must map names to values")
    return content


def _section(section: str, values: object, where: str, notebooks: list[str]) -> dict[str, object]:
    if section not in ("all", *notebooks):
        raise unknown_notebook(section, ["offline", "all", *notebooks], where)
    if not isinstance(values, dict):
        raise ParameterError(f"{where}: section {section} must map names to values, got {values!r}")
    for name, value in values.items():
        if name not in ASKED:
            raise unknown(name, ASKED, f"{where}, section {section}")
        if _value(name, value) is None and value is not None:
            raise ParameterError(f"{where}, section {section}: {name} must be {ASKED[name][1]}, got {value!r}")
    return {name: _value(name, value) for name, value in values.items() if value is not None}  # null: as if it were not there


def _value(name: str, value: object) -> object:
    """A value as Snakemake takes it (MB, minutes), or None where it does not fit."""
    if name == "memory":
        return _scaled(value, {"M": 1, "G": 1024, "T": 1024**2})
    if name == "time":
        return _scaled(value, {"min": 1, "h": 60, "d": 24 * 60})
    if name in ("cpus", "gpus"):
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= (name == "cpus") else None
    return value if isinstance(value, str) and value and value.isprintable() else None


def _scaled(value: object, units: dict[str, int]) -> int | None:
    match = re.fullmatch(rf"(\d+(?:\.\d+)?) ?({'|'.join(units)})", str(value))
    return max(1, round(float(match[1]) * units[match[2]])) if match else None
