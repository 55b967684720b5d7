"""Where the workbook keeps what it makes: data sets, runs and reports.

`WORKBOOK_DATA`, `WORKBOOK_RUNS` and `WORKBOOK_REPORTS` move the three folders, which otherwise lie in the repository.
"""
from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _folder(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or ROOT / default).expanduser().absolute()


def data_dir() -> Path:
    """Folder of prepared data sets and manifests (`WORKBOOK_DATA`, otherwise `data/`). It may not exist yet."""
    return _folder("WORKBOOK_DATA", "data")


def runs_dir() -> Path:
    """Folder of training runs with their checkpoints (`WORKBOOK_RUNS`, otherwise `runs/`). It may not exist yet."""
    return _folder("WORKBOOK_RUNS", "runs")


def reports_dir() -> Path:
    """Folder of rendered reports (`WORKBOOK_REPORTS`, otherwise `reports/`). It may not exist yet."""
    return _folder("WORKBOOK_REPORTS", "reports")


def report_folder(name: str) -> Path:
    """Folder of the report `name`: below `reports_dir()`, or, when `name` is a whole path, that folder."""
    return reports_dir() / Path(name).expanduser()
