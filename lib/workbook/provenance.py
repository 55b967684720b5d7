"""What a run can be traced by: commit, versions, host, time and memory."""
from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from lib.settings import ROOT, reports_dir

PACKAGES = ("torch", "torchaudio", "transformers", "numpy")
_started = time.time()


def start(notebook: str) -> None:
    """Start the clock of a notebook and print what it runs on: versions, devices, threads, commit, report folder."""
    global _started
    _started = time.time()
    import torch

    commit, dirty = git_state()
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or [f"cpu ({os.cpu_count()} cores)"]
    report = Path(os.environ.get("WORKBOOK_REPORT") or reports_dir() / "interactive")
    rows = {"notebook": notebook, **versions(), "devices": ", ".join(devices), "threads": torch.get_num_threads(),
            "commit": commit[:12] + (" with local changes" if dirty else ""),
            "report": report.relative_to(ROOT) if report.is_relative_to(ROOT) else report.name}
    for name, value in rows.items():
        print(f"{name:<13}{value}")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_state(root: Path = ROOT) -> tuple[str, bool | None]:
    """(commit, whether tracked files differ from it); ("unknown", None) without git or outside a repository."""
    commit, changes = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--untracked-files=no")
    return (commit.strip(), bool(changes)) if commit and changes is not None else ("unknown", None)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        run = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout if run.returncode == 0 else None


def measure() -> dict:
    """Everything about a run that differs from one execution to the next, for the result's entry "provenance".

    wall_seconds counts from `start`, cpu_seconds over the whole process and its finished children (user and system),
    peak_memory_mb is the larger of this process and any one child; peak_cuda_memory_mb is there when CUDA was used.
    """
    commit, dirty = git_state()
    times = os.times()
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB elsewhere
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * unit
    document = {"commit": commit, "dirty": dirty, "host": platform.node(), "platform": platform.platform(), "cores": os.cpu_count(),
                "started": _iso(_started), "finished": _iso(time.time()), "wall_seconds": round(time.time() - _started, 3),
                "cpu_seconds": round(times.user + times.system + times.children_user + times.children_system, 3),
                "peak_memory_mb": round(peak / 2**20, 1), "execution": os.environ.get("WORKBOOK_EXECUTION")}
    torch = sys.modules.get("torch")  # only when the notebook loaded it
    if torch is not None and torch.cuda.is_available():
        document["peak_cuda_memory_mb"] = round(max(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())) / 2**20, 1)
    return document


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
