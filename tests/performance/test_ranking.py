"""Ranking: metrics of a similarity matrix against a loop over queries; memory and time with a gallery too large for a matrix."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lib.performance import ranking

MOST_BYTES, MOST_SECONDS = 2.6e9, 60

LARGE = """
import json, re, sys, time
import torch
from lib.evaluation.retrieval import ranked_query_metrics

def peak():      # of this program: ru_maxrss would begin with what the process that started it has used
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

count, items, dimension = map(int, sys.argv[1:])
torch.set_num_threads(2)
generator = torch.Generator().manual_seed(0)
gallery = torch.empty(items, dimension)
for start in range(0, items, 8192):
    torch.randn(gallery[start:start + 8192].shape, generator=generator, out=gallery[start:start + 8192])
    gallery[start:start + 8192] /= gallery[start:start + 8192].norm(dim=1, keepdim=True)
relevant = torch.randint(items, (count,), generator=generator)
queries = gallery[relevant] + 8 * dimension ** -0.5 * torch.randn(count, dimension, generator=generator)  # ranks of all sizes
before = peak()
begin, cpu = time.perf_counter(), time.process_time()
ranks = ranked_query_metrics(queries, gallery, relevant)["rank"]
seconds, cpu, most = time.perf_counter() - begin, time.process_time() - cpu, peak()
checked = slice(0, count, count // 100)                            # the plain product of 100 of them, which is small enough
scores = queries[checked] @ gallery.T
full = (scores >= scores.gather(1, relevant[checked, None])).sum(dim=1)
json.dump({"bytes": 1024 * most, "before": 1024 * before, "seconds": seconds, "cpu": cpu,
           "median": float(sorted(ranks)[count // 2]), "ranks": ranks[checked].tolist(), "full": full.tolist()}, sys.stdout)
"""


@pytest.mark.slow
def test_metrics_are_faster_than_a_loop_over_queries():
    """5,225 captions and 1,045 clips, the size of Clotho's evaluation set."""
    found, = ranking.compared(5225, 1045, repetitions=5)
    print(f"\n{found}")
    assert found.asked == 15
    found.require()


@pytest.mark.slow
def test_a_large_gallery_in_little_memory():
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", LARGE, "1000", "400000", "1024"], cwd=root, stdout=subprocess.PIPE, text=True,
                          check=True, env=os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(root)})
    measured = json.loads(done.stdout.splitlines()[-1])
    print(f"\n1,000 queries, 400,000 items of 1,024 dimensions, 2 threads: {measured['seconds']:.1f} s (at most {MOST_SECONDS}; "
          f"CPU {measured['cpu']:.1f} s); peak {measured['bytes'] / 1e9:.2f} GB (at most {MOST_BYTES / 1e9}), "
          f"{measured['before'] / 1e9:.2f} GB of it torch and the embeddings; median rank {measured['median']:.0f}")
    assert measured["ranks"] == measured["full"]
    assert measured["bytes"] <= MOST_BYTES and measured["seconds"] <= MOST_SECONDS
