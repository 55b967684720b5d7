"""Binary spherical quantizer against vector-quantize-pytorch's spherical LFQ: forward and backward of 32 x 512 tokens of 18 bits.

One codebook of all 2^18 codes is tried at the largest batch whose memory stays below 4 GB.
"""
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lib.performance import quantizer
from lib.performance.measure import threads

LIMIT = 4 * 2**30

# one forward and backward in a process of its own, whose largest resident memory it prints
WHOLE = """
import sys, time, torch
from torch.nn.functional import normalize
way, count = sys.argv[1], int(sys.argv[2])
if way == "stock":
    from vector_quantize_pytorch import LFQ
    made = LFQ(codebook_size=2**18, dim=18, spherical=True).train()
    loss = lambda z: made(z, inv_temperature=100.0)[2]
else:
    from lib.quantize.bsq import BinarySphericalQuantizer
    made = BinarySphericalQuantizer(18, 18, 100.0, "group")
    loss = lambda z: made(normalize(z, dim=-1)).loss
z = torch.randn(1, count, 18, generator=torch.Generator().manual_seed(0), requires_grad=True)
begin = time.perf_counter()
loss(z).backward()
seconds = time.perf_counter() - begin
# not getrusage: a process starts with the largest memory of the one that started it
print(seconds, next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_faster_with_the_same_entropy():
    with threads(2):
        found = quantizer.compared(clips=32, repetitions=5)
    print("", *found, sep="\n")
    assert [one.asked for one in found] == [15.0, 1.3]
    for one in found:
        one.require()


def whole(way, count):
    """Seconds and largest resident bytes of one forward and backward of `count` tokens."""
    done = subprocess.run([sys.executable, "-c", WHOLE, way, str(count)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return tuple(map(float, done.stdout.split()))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's largest memory from /proc")
def test_one_codebook_of_all_codes():
    """What LFQ with one codebook of 2^18 needs grows with tokens times codes; ours in one group of 18 bits does not."""
    with ThreadPoolExecutor() as pool:              # side by side: their memory is measured, not their time
        few, more = (memory for _, memory in pool.map(whole, ("stock", "stock"), (64, 128)))
    each = (more - few) / 64
    count = int((LIMIT - more) / each * 0.95) + 128             # a margin: an allocator is not linear
    (seconds, memory), (ours_seconds, ours_memory) = whole("stock", count), whole("ours", count)
    print(f"\none codebook of 2^18: {count} tokens fit 4 GiB. LFQ {memory / 2**30:.2f} GiB ({each / 2**20:.1f} MiB a token) and "
          f"{seconds:.2f} s; BSQ in one group of 18 bits {ours_memory / 2**30:.2f} GiB and {ours_seconds:.2f} s")
    assert 0.8 * LIMIT <= memory <= LIMIT and memory > 4 * ours_memory
    assert whole("ours", 4 * count)[1] < 1.2 * ours_memory
