"""Pairwise distances of the Poincaré ball against geoopt by broadcasting: time, error and memory on a set with near pairs."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lib.geometry.poincare import expmap0
from lib.performance import distances

MOST_MATRICES = 10, 30   # of N x M float32 at once: distances alone, and with gradients

MEASURE = """
import json, re, statistics, sys, time
import torch
from lib.geometry.poincare import expmap0, pairwise_distance, pairwise_distance_from_tangents

def peak():      # of this program: ru_maxrss would begin with what the process that started it has used
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

n, m, d, which, gradients = map(int, sys.argv[1:])
torch.set_num_threads(2)
generator = torch.Generator().manual_seed(0)
v, w = (torch.randn(count, d, generator=generator) * d ** -0.5 for count in (n, m))
function = (pairwise_distance, pairwise_distance_from_tangents)[which]
if not which:
    v, w = expmap0(v, 1.0), expmap0(w, 1.0)
v, w = (x.requires_grad_(bool(gradients)) for x in (v, w))

def work(v, w):
    distances = function(v, w, 1.0)
    if gradients:
        distances.sum().backward()

work(v[:8], w[:8])              # what the libraries themselves take
before = peak()
work(v, w)
json.dump(peak() - before, sys.stdout)
"""


@pytest.mark.slow
def test_pairwise_distance_is_faster_than_broadcasting_and_exact():
    v, w = distances.clips_and_texts()
    x, y = expmap0(v, distances.C), expmap0(w, distances.C)
    for truth in (distances.exact(x, y), distances.exact_from_tangents(v, w)):
        assert (truth == 0).sum() >= 110 and ((truth > 0) & (truth < 0.1)).sum() >= 60
    found = distances.compared(repetitions=3)
    print("", *found, sep="\n")
    assert [one.threads for one in found] == [2, 2, 1, 1] and {one.asked for one in found} == {100}
    for name in distances.NAMES:
        # one thread too: when something else takes a core, two threads wait for it in each of our 20 steps of 0.2 ms
        assert max(one.times for one in found if name in one.name) >= 100, [str(one) for one in found if name in one.name]


@pytest.mark.slow
@pytest.mark.parametrize("gradients", (0, 1), ids=("distances", "with gradients"))
@pytest.mark.parametrize("which", (0, 1), ids=distances.NAMES)
def test_memory_is_that_of_the_matrix(which, gradients):
    """4,000 x 2,108: the differences of all pairs would be as large as 512 of the matrices of which some are in use at once."""
    n, m = 4 * distances.N, 4 * distances.M
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", MEASURE, *map(str, (n, m, distances.D, which, gradients))], cwd=root,
                          stdout=subprocess.PIPE, text=True, check=True,
                          env=os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(root)})
    used, matrix = json.loads(done.stdout.splitlines()[-1]), 4 * n * m
    print(f"\n{n} x {m} x {distances.D} from {distances.NAMES[which]}, {'with gradients' if gradients else 'distances'}: {used / 1e6:.0f} MB, "
          f"as much as {used / matrix:.1f} matrices (at most {MOST_MATRICES[gradients]}; all differences: {distances.D})")
    assert used <= MOST_MATRICES[gradients] * matrix
