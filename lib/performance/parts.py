"""What notebook 91 measures: each part's comparisons and growth, at the sizes that the issues asked for or at tiny ones, for tests."""
from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from lib.performance import distances, front_end, masked_step, passt, quantizer, ranking, store_epoch, video, windows
from lib.performance.measure import Comparison, Growth, threads

WORK = ("asked", "tiny")


@dataclass(frozen=True)
class Part:
    """compared(folder, repetitions, tiny) and grown(folder, repetitions, tiny), each a list; None: nothing of that kind."""

    compared: Callable[[Path, int, bool], list[Comparison]] | None
    grown: Callable[[Path, int, bool], list[Growth]] | None = None


def _sizes(tiny: bool, **small) -> dict:
    return small if tiny else {}


PARTS: dict[str, Part] = {
    "features": Part(
        lambda folder, n, tiny: passt.features(repetitions=n, **_sizes(tiny, size="tiny", asked={2: {30.0: 1.2, 8.0: 3.0}})),
        lambda folder, n, tiny: passt.features_growth(repetitions=n, **_sizes(tiny, sizes=(4, 8, 16, 32), seconds=1.5))),
    "training_step": Part(
        lambda folder, n, tiny: passt.training_step(repetitions=n, checked=2, **_sizes(tiny, batch=2, size="tiny", text_size="tiny"))),
    "distances": Part(
        lambda folder, n, tiny: distances.compared(repetitions=n, **_sizes(tiny, n=100, m=60, d=16, counts=(1,))),
        lambda folder, n, tiny: distances.grown(repetitions=n, **_sizes(tiny, sizes=(125, 250, 500, 1000)))),
    "quantizer": Part(
        lambda folder, n, tiny: quantizer.compared(repetitions=n, **_sizes(tiny, clips=1)),
        lambda folder, n, tiny: quantizer.grown(repetitions=n, **_sizes(tiny, sizes=(512, 1024, 2048, 4096), group_sizes=(512, 1024, 1536, 2048)))),
    "ranking": Part(
        lambda folder, n, tiny: ranking.compared(repetitions=n, **_sizes(tiny, queries=200, items=50)),
        lambda folder, n, tiny: ranking.grown(repetitions=n, **_sizes(tiny, queries=(250, 500, 1000, 2000), items=(1000, 2000, 4000, 8000),
                                                                      clips=(200, 400, 800, 1600)))),
    "torchmetrics": Part(
        lambda folder, n, tiny: ranking.against_torchmetrics(repetitions=n, **_sizes(tiny, queries=50, items=40, clips=100, classes=10))),
    "store_epoch": Part(
        lambda folder, n, tiny: store_epoch.compared(folder, **_sizes(tiny, seconds=1.0, size=store_epoch.TINY)),
        lambda folder, n, tiny: store_epoch.grown(folder, repetitions=n, **_sizes(tiny, sizes=(16, 32, 64, 128)))),
    "masked_step": Part(
        lambda folder, n, tiny: masked_step.compared(repetitions=n, **_sizes(tiny, clips=1, width=64, layers=2, frames=2, pixels=64)),
        lambda folder, n, tiny: masked_step.grown(repetitions=n, **_sizes(tiny, sizes=(1, 2, 4, 8), width=64, layers=1, pixels=64))),
    "windows": Part(
        lambda folder, n, tiny: windows.compared(folder, repetitions=max(n, 3 if tiny else 8),
                                                 **_sizes(tiny, asked={(4, "mp3"): 2.0, (4, "wav"): 6.0}, seconds=10)),
        lambda folder, n, tiny: windows.grown(folder, repetitions=n, **_sizes(tiny, sizes=(5, 10, 20, 40)))),
    "video": Part(
        lambda folder, n, tiny: video.one_pass(video.make(folder / "a.mp4", 2.0 if tiny else 10.0), n) + video.against_opencv(folder / "a.mp4", n),
        lambda folder, n, tiny: video.grown(video.make(folder / "b.mp4", 4.0 if tiny else 64.5), repetitions=n,
                                            **_sizes(tiny, sizes=(1, 2, 3, 4)))),
    "front_end": Part(
        lambda folder, n, tiny: front_end.compared(repetitions=n, **_sizes(tiny, count=2, seconds=1.0)),
        lambda folder, n, tiny: front_end.grown(repetitions=n, **_sizes(tiny, sizes=(16, 32, 64, 128)))),
}


def measure(name: str, work: str = "asked", repetitions: int = 3, count: int = 2) -> tuple[list[Comparison], list[Growth], str]:
    """One part.

    Args:
        name: of `PARTS`.  work: one of WORK; what was asked for was asked at the sizes of the issues: tiny ones are judged by nothing.
        repetitions: interleaved runs behind each median.  count: threads.
    Returns: comparisons; growths; why there are none of the first ("": there are), where a peer is not installed.
    """
    part, tiny = PARTS[name], work == "tiny"
    compared, grown, missing = [], [], ""
    with tempfile.TemporaryDirectory() as folder, threads(count):
        places = [Path(folder) / kind for kind in ("compared", "grown")]
        for place in places:
            place.mkdir()
        try:
            compared = part.compared(places[0], repetitions, tiny)
        except ModuleNotFoundError as error:
            missing = str(error)
        if part.grown:
            grown = part.grown(places[1], repetitions, tiny)
    return [replace(one, asked=None) for one in compared] if tiny else compared, grown, missing
