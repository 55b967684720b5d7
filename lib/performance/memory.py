"""Memory of one piece of work: what the resident set of this process grows by at most while it runs.

The kernel counts pages, and glibc keeps freed ones for later: without care, a figure would depend on what ran before.
"""
from __future__ import annotations

import ctypes
import gc
import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

MIB = 2**20
_PEAKS = [0]


def peak(function: Callable[[], object]) -> int | None:
    """Bytes by which the resident memory of this process grows at most while `function` runs; None where the system does not tell
    (Linux does). What earlier work has freed is given back first, so that it is not found again for nothing. At least one page."""
    with _malloc(mmap_threshold=1 << 17, trim_threshold=0), _small_pages(), _heap_taken():   # what is freed leaves the resident set at once
        return _peak(function)


def _peak(function: Callable[[], object]) -> int | None:
    try:
        before = _status("VmRSS")
        _PEAKS.append(_status("VmHWM"))
        Path("/proc/self/clear_refs").write_text("5")       # the highest mark begins anew
    except OSError:
        function()
        return None
    result = function()
    most = _status("VmHWM")
    del result
    _PEAKS[:] = [max(*_PEAKS, most)]
    return max(most - before, resource.getpagesize())


def largest() -> int:
    """The most bytes that this process has held, also before `peak` began to count anew (getrusage forgets that)."""
    try:
        return max(*_PEAKS, _status("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _libc(name: str, *arguments: int) -> None:
    """Call a function of the C library, where it has it (glibc)."""
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)


@contextmanager
def fresh() -> Iterator[None]:
    """Blocks are had and given back as in a process that has done nothing before. Otherwise whoever needs most gains most by what others left
    free: geoopt's distances, 1.3 million pages an evaluation, take 0.4 s in a heap with large holes and 2 s without."""
    with ExitStack() as until_the_end:
        with _malloc(mmap_threshold=1 << 17, trim_threshold=0):         # only while the holes are looked for
            until_the_end.enter_context(_heap_taken())
        yield


@contextmanager
def kept() -> Iterator[None]:
    """Memory that is freed stays with the process meanwhile, and is found again; afterwards it goes back to the system."""
    with _malloc(mmap_threshold=-1, trim_threshold=-1):
        yield
    _libc("malloc_trim", 0)


@contextmanager
def _malloc(mmap_threshold: int, trim_threshold: int) -> Iterator[None]:
    """glibc keeps and returns memory as told, and afterwards as it does by itself in a process that has used much (32 and 64 MiB)."""
    def say(mapped: int, trim: int) -> None:
        for parameter, value in ((-4, 65536 if mapped >= 0 else 0), (-3, max(mapped, 0)), (-1, trim)):
            _libc("mallopt", parameter, value)                  # M_MMAP_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    say(mmap_threshold, trim_threshold)
    try:
        yield
    finally:
        say(32 * MIB, 64 * MIB)


@contextmanager
def _heap_taken() -> Iterator[None]:
    """What earlier work has left free in glibc's heap is taken meanwhile, but not touched: large blocks then are mapped one by one, and leave
    when they are freed. From the heap they would stay resident, more or fewer of them by what happened before."""
    gc.collect()
    _libc("malloc_trim", 0)
    library, taken = ctypes.CDLL(None), []
    if hasattr(library, "gnu_get_libc_version") and ctypes.sizeof(ctypes.c_void_p) == 8:
        library.malloc.restype, library.malloc.argtypes, library.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
        for size in (2**power for power in range(30, 16, -1)):
            while block := library.malloc(size):
                taken.append(block)
                if ctypes.c_size_t.from_address(block - 8).value & 2:           # the mark of a mapped block: the heap has none of this size
                    library.free(taken.pop())
                    break
    try:
        yield
    finally:
        for block in taken:
            library.free(block)


@contextmanager
def _small_pages() -> Iterator[None]:
    """No huge pages (Linux): they would count up to 2 MiB for every tensor that begins one."""
    _libc("prctl", 41, 1, 0, 0, 0)                              # PR_SET_THP_DISABLE
    try:
        yield
    finally:
        _libc("prctl", 41, 0, 0, 0, 0)
