"""One clock and one rule of judgement for all comparisons.

Times are pairs (wall seconds, CPU seconds of this process and of the children that it has waited for). Ways are run in turns, and
medians are compared: "times faster" is the peer's median over ours. Memory is `lib.performance.memory.peak` of a way: inputs and
weights, which are there before, do not count, results and libraries' buffers do.
"""
from __future__ import annotations

import importlib
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch

from lib.performance.memory import fresh, kept, peak

Times = Sequence[tuple[float, float]]       # one (wall, CPU) a run, in seconds
CLOCKS = ("wall", "CPU")
ENOUGH = 0.8            # share of its cores that the peer must have had for the wall clock to count
ROUNDS = 3              # of a growth for each repetition of a comparison: its runs are short, and other work is soon in all of one size
NEAR = 0.1              # a slope may be off by this part of the expected order (of 1, where the order is 0)


@dataclass(frozen=True)
class Comparison:
    """One piece of work done our way and a peer's.

    name: the work, with its size.  peer: who else does it.  ours, theirs: times of the interleaved runs.  threads: of torch.
    asked: how many times faster it must be; None: nothing was asked.  clocks: which clocks have to say so.
    cores: how many the peer keeps busy; with less than 80 % of them the machine was busy with other work, which the wall clock
    would measure, and CPU time alone is judged. None: all `clocks` count, whatever else runs.
    memory: bytes that ours and theirs take beyond what was there (None: not measured).  note: how far the results agree.
    """

    name: str
    peer: str
    ours: Times
    theirs: Times
    threads: int
    asked: float | None = None
    clocks: tuple[str, ...] = CLOCKS
    cores: int | None = None
    memory: tuple[int | None, int | None] = (None, None)
    note: str = ""

    @property
    def seconds(self) -> tuple[dict[str, float], dict[str, float]]:
        """Medians of ours and theirs, {"wall": s, "CPU": s}."""
        return tuple(dict(zip(CLOCKS, map(statistics.median, zip(*rows)))) for rows in (self.ours, self.theirs))

    @property
    def faster(self) -> dict[str, float]:
        """Their medians over ours by each clock."""
        ours, theirs = self.seconds
        return {clock: theirs[clock] / max(ours[clock], 1e-9) for clock in CLOCKS}

    @property
    def had(self) -> float:
        """Cores that the peer's runs were given: CPU time over wall time."""
        return statistics.median(cpu / wall for wall, cpu in self.theirs)

    @property
    def busy(self) -> bool:
        """Whether other work kept the peer from its cores."""
        return self.cores is not None and self.seconds[1]["CPU"] < ENOUGH * self.cores * self.seconds[1]["wall"]

    @property
    def judged(self) -> tuple[str, ...]:
        """The clocks that count."""
        return ("CPU",) if self.busy else self.clocks

    @property
    def times(self) -> float:
        """How many times faster, by the judged clock that says least."""
        return min(self.faster[clock] for clock in self.judged)

    @property
    def met(self) -> bool | None:
        """Whether what was asked for is reached; None where nothing was."""
        return None if self.asked is None else self.times >= self.asked

    @property
    def less_memory(self) -> float | None:
        """Their memory over ours; None where one is not known or ours is nothing."""
        return self.memory[1] / self.memory[0] if all(self.memory) else None

    def __str__(self) -> str:
        ours, theirs = self.seconds
        text = (f"{self.name}: {self.faster['wall']:.2f} times as fast as {self.peer} by the wall clock, {self.faster['CPU']:.2f} by CPU time (ours "
                f"{shown(ours['wall'])} wall, {shown(ours['CPU'])} CPU; {self.peer} {shown(theirs['wall'])}, {shown(theirs['CPU'])}; medians of "
                f"{len(self.theirs)} interleaved runs, {self.peer} had {self.had:.1f} cores, torch {self.threads} threads)")
        return f"{text}; {self.note}" if self.note else text

    def require(self) -> None:
        """AssertionError unless what was asked for is reached."""
        assert self.met is not False, f"{self}: at least {self.asked} is required of {' and '.join(self.judged)}"

    def explanation(self) -> str:
        """Why what was asked for is not reached, as far as the runs tell; "" where it is, or nothing was asked."""
        if self.met is not False:
            return ""
        if self.busy:
            return (f"the machine was busy: {self.peer} had {self.had:.1f} of {self.cores} cores, so CPU time alone was judged, and says "
                    f"{self.faster['CPU']:.2f}" + (", which counts threads that wait for each other" if self.threads > 1 else ""))
        missed = [clock for clock in self.judged if self.faster[clock] < self.asked]
        single = [b[CLOCKS.index(missed[0])] / max(a[CLOCKS.index(missed[0])], 1e-9) for a, b in zip(self.ours, self.theirs)]
        reached = [clock for clock in CLOCKS if self.faster[clock] >= self.asked]
        if reached and missed == ["wall"]:
            return (f"CPU time says {self.faster['CPU']:.2f}, only the wall clock misses it: our runs had "
                    f"{self.seconds[0]['CPU'] / self.seconds[0]['wall']:.1f} cores, {self.peer} {self.had:.1f}")
        if max(single) >= self.asked:
            return f"single runs reach from {min(single):.2f} to {max(single):.2f}: what was asked for lies within the spread of this machine"
        return f"no single run reaches it (best {max(single):.2f}): on this machine, with {self.threads} threads, it is not met"


@dataclass(frozen=True)
class Growth:
    """How time and memory of one way grow with the amount of work, on one thread.

    name: the work.  unit: what is counted.  sizes: how many.  times: median (wall, CPU) seconds of each.  memory: bytes of each, or
    None.  time_order, memory_order: the exponent that theory expects; None: not judged.
    """

    name: str
    unit: str
    sizes: Sequence[float]
    times: Times
    memory: Sequence[int] | None
    time_order: float = 1.0
    memory_order: float | None = 1.0

    @property
    def time_slope(self) -> float:
        """Slope of log CPU seconds over log size (on a quiet machine the wall clock's, too: it is one thread)."""
        return slope(self.sizes, [cpu for _, cpu in self.times])

    @property
    def memory_slope(self) -> float | None:
        """Slope of log bytes over log size; None where memory is not known or not judged."""
        return None if self.memory is None or self.memory_order is None else slope(self.sizes, self.memory)

    @property
    def met(self) -> bool:
        """Whether the slopes that are judged are within 10 % of the expected order."""
        return all(near(found, order) for found, order in self.judged())

    def judged(self) -> Iterator[tuple[float, float]]:
        """Slope and expected order, of time and, where it is judged, of memory."""
        yield self.time_slope, self.time_order
        if self.memory_slope is not None:
            yield self.memory_slope, self.memory_order

    def explanation(self) -> str:
        """What makes a slope leave its order, from a line a + b * size through the points; "" where none does."""
        reasons = []
        for what, values, (found, order) in zip(("time", "memory"), ([cpu for _, cpu in self.times], self.memory), self.judged()):
            if near(found, order):
                continue
            each = [value / size**order for size, value in zip(self.sizes, values)]
            constant = np.polyfit(self.sizes, values, 1)[1] / values[0]
            if found < order and constant > 0.05:
                reasons.append(f"{what}: about {min(constant, 1):.0%} of the smallest size is a constant, which larger sizes share")
            else:
                reasons.append(f"{what}: a unit of work at the largest size costs {each[-1] / each[0]:.2f} times what it does at the smallest")
        return "; ".join(reasons)


def near(found: float, order: float) -> bool:
    """Whether a slope is within 10 % of the expected order (within 0.1 of the order 0)."""
    return abs(found - order) <= NEAR * (abs(order) or 1.0)


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Exponent of a power law: slope of log(values) over log(sizes) by least squares; both above 0, at least two sizes.

    Raises: ValueError: naming what is not above 0, or too few sizes.
    """
    x, y = np.asarray(sizes, float), np.asarray(values, float)
    if len(x) < 2 or x.shape != y.shape or (x <= 0).any() or (y <= 0).any():
        raise ValueError(f"a slope needs two sizes or more, and sizes and values above 0: got sizes {x.tolist()} and values {y.tolist()}")
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def spent() -> np.ndarray:
    """Seconds so far: wall clock, and CPU of this process and of the children that it has waited for."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return np.array([time.perf_counter(), own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime])


def runs(ways: Mapping[object, Callable[[], object]], repetitions: int, often: Mapping[object, int] | None = None,
         wait: Callable[[], object] = lambda: None, memory: Callable[[], AbstractContextManager] = fresh) -> dict[object, list]:
    """Times (wall, CPU) of functions that are run in turns; each should have run before, as first runs pay for memory.

    Args:
        repetitions: rounds.  often: runs of a way in each round, where it is not 1.
        wait: called after each run, before the clock is read (on a GPU: until it has done what it was told).
        memory: where they find it: `fresh` or `kept` of `lib.performance.memory`.
    """
    found = {way: [] for way in ways}
    with memory():
        for number in range(repetitions):
            for way in list(ways)[::-1 if number % 2 else 1]:   # what runs second may find the machine warmer
                for _ in range((often or {}).get(way, 1)):
                    begin = spent()
                    ways[way]()
                    wait()
                    found[way].append(tuple((spent() - begin).tolist()))
    return found


def compare(name: str, peer: str, ours: Callable[[], object], theirs: Callable[[], object], repetitions: int = 5, *,
            often: int = 1, memory: bool = True, **told) -> Comparison:
    """Run both ways once for their memory (which also warms them up), then in turns for their times.

    Args: memory: measure it; otherwise both have to have run before.  often: runs of ours in each round.  told: see `Comparison`.
    """
    most = [peak(way) if memory else None for way in (ours, theirs)]
    found = runs({"ours": ours, "theirs": theirs}, repetitions, {"ours": often})
    return Comparison(name, peer, found["ours"], found["theirs"], torch.get_num_threads(), memory=tuple(most), **told)


def growth(name: str, unit: str, make: Callable[[int], Callable[[], object]], sizes: Sequence[int], repetitions: int = 3, *,
           time_order: float = 1.0, memory_order: float | None = 1.0) -> Growth:
    """Median times and peak memory of `make(size)()` at each size, in turns, on one thread.

    Args: make: prepares the work of a size (not measured) and returns the function that does it.
    """
    with threads(1):
        ways = {size: make(size) for size in sizes}
        ways[sizes[0]]()                                        # loads what libraries load at first
        memory = [peak(way) for way in ways.values()]
        with kept():            # as in a training loop, memory is there: none is mapped anew in large sizes only
            ways[sizes[-1]]()
            found = runs(ways, ROUNDS * repetitions, memory=nullcontext)
    times = [tuple(map(statistics.median, zip(*found[size]))) for size in sizes]
    return Growth(name, unit, tuple(sizes), times, None if None in memory else memory, time_order, memory_order)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch computes with `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def need(module: str, package: str) -> ModuleType:
    """A peer's module. ModuleNotFoundError naming the package that is missing, and how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ModuleNotFoundError(f"the comparison needs the package {package}, which cannot be imported ({error}): pip install {package}",
                                  name=module) from error


def shown(seconds: float) -> str:
    """Seconds as text, with a unit that suits."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"
