"""Reports as users make them: `make report` with this environment, and the results that it leaves."""
import os
import subprocess
import sys
from pathlib import Path

from lib.settings import ROOT
from lib.workbook import results


def report(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """`make report` with this environment and generated files below `folder`."""
    environment = os.environ | {f"WORKBOOK_{n}": str(folder / n.lower()) for n in ("DATA", "RUNS", "REPORTS")}
    return subprocess.run(["make", "report", f"VENV={sys.prefix}", "RUN=test", "PROFILE=tiny", *arguments], cwd=ROOT, env=environment,
                          capture_output=True, text=True, timeout=900)


def documents(folder: Path) -> dict[str, dict]:
    return {p.stem: results.read(p) for p in sorted((folder / "reports/test/results").glob("*.json"))}
