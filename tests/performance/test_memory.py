"""The reading of memory (quick; the timings beside it are slow tests)."""
import os
import platform
import resource
import subprocess
import sys

import pytest
import torch

from lib.performance.memory import largest, peak
from lib.settings import ROOT


@pytest.mark.skipif(peak(lambda: None) is None, reason="this system does not tell the largest resident memory")
def test_peak_counts_what_is_held_at_once():
    x = torch.ones(5_000_000)                                       # 20 MB
    for expected, work in ((20, lambda: x + 1), (40, lambda: (x + 1) * 2), (0, lambda: None)):
        work()                                                      # what libraries load at first is resident, too
        assert peak(work) / 1e6 == pytest.approx(expected, abs=1.5)
    before = largest()
    peak(lambda: torch.ones(50_000_000))
    assert largest() >= before and largest() >= 200e6, "the highest mark of the process is not lost"


HOLES = """
import resource
import torch
from lib.performance.memory import fresh, kept

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(14_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def hole():     # 60 MB of the heap, and what keeps them from its end
    with kept():
        blocks = [torch.ones(15_000_000), *(torch.ones(1_000_000) for _ in range(20))]
    return blocks[1:]

blocks = hole()
outside = pages()
blocks += hole()
with fresh():
    print(outside, pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what is done is done to glibc's heap")
def test_fresh_finds_no_holes_that_others_left():
    done = subprocess.run([sys.executable, "-c", HOLES], stdout=subprocess.PIPE, text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    outside, inside = map(int, done.stdout.split())
    assert inside >= 56e6 / resource.getpagesize() > 10 * outside, "56 MB are mapped anew only while the hole is taken"
