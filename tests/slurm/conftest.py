"""Tests on a real Slurm run by `make test-slurm` only: they need system packages."""
import os
from pathlib import Path

import pytest


def pytest_collection_modifyitems(config, items):
    if os.environ.get("WORKBOOK_SLURM") == "1":
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs Debian's packages slurm-wlm and munge: make test-slurm"))
