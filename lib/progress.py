"""Progress that suits who is watching: a bar where a person is, one line every N seconds in a batch log."""
from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator

from tqdm.auto import tqdm


def interactive() -> bool:
    """True in a terminal and in a notebook that a person opened; false under the workbook's runner and in pipes."""
    if "WORKBOOK_JOB" in os.environ:
        return False
    return "ipykernel" in sys.modules or sys.stderr.isatty()


def track(items: Iterable, total: int, label: str, every: float = 15.0) -> Iterator:
    """Yield `items` and show how far they are.

    Args: total: expected number of items.  label: what is counted.  every: seconds between lines in a batch log.
    """
    if interactive():
        yield from tqdm(items, total=total, desc=label, leave=False)
        return
    begin = said = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - said >= every:
            print(f"{label}: {done}/{total}, {now - begin:.0f} s", flush=True)
            said = now
