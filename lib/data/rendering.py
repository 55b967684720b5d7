"""Work on many files in several processes that end with the one that started them, however it dies."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from threading import Thread

from lib.progress import track


def run(task: Callable, batches: Sequence, workers: int, label: str) -> Iterator:
    """The results of task(batch) for all batches, as they come (in order with workers=0, which uses this process), with progress.

    Args:
        task: a function at the top level of a module. label: what a step is.
    """
    results = _in_parallel(task, batches, workers) if workers else map(task, batches)
    return track(results, len(batches), label)


def _in_parallel(task: Callable, batches: Sequence, workers: int) -> Iterator:
    # spawn: a fork would copy the threads and locks of a notebook kernel
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool:
        try:
            for future in as_completed([pool.submit(task, batch) for batch in batches]):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # a failure or an interrupt should not wait for all the rest
            raise


def _end_with_parent() -> None:
    """End this process when the one that started it is gone: after a kill -9 it would wait for work for ever."""
    Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()
