"""Imports that are spared what a library imports only in case it is wanted."""
from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(name: str) -> Iterator[None]:
    """Within it, importing the package `name` fails as if it were not installed, unless it has been imported already.

    For a library that tries and goes on without: `with without("wandb"): import timm`. Whoever wants the package afterwards may have it.
    """
    absent = sys.modules.setdefault(name, None) is None
    try:
        yield
    finally:
        if absent:
            del sys.modules[name]
