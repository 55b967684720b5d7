"""Tests in a real browser run by `make test-browser` only: they need a system package."""
import os
from pathlib import Path

import pytest


def pytest_collection_modifyitems(config, items):
    if os.environ.get("WORKBOOK_BROWSER") == "1":
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs a browser: make test-browser"))
