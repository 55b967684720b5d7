"""The reading of memory (quick; the timings beside it are slow tests)."""
import pytest
import torch

from lib.performance.memory import largest, peak


@pytest.mark.skipif(peak(lambda: None) is None, reason="this system does not tell the largest resident memory")
def test_peak_counts_what_is_held_at_once():
    x = torch.ones(5_000_000)                                       # 20 MB
    for expected, work in ((20, lambda: x + 1), (40, lambda: (x + 1) * 2), (0, lambda: None)):
        work()                                                      # what libraries load at first is resident, too
        assert peak(work) / 1e6 == pytest.approx(expected, abs=1.5)
    before = largest()
    peak(lambda: torch.ones(50_000_000))
    assert largest() >= before and largest() >= 200e6, "the highest mark of the process is not lost"
