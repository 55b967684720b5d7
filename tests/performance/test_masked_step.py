"""A step of masked pretraining with visible tokens only against encoding all tokens and masking afterwards (2 threads)."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lib.performance import masked_step
from lib.performance.masked_step import WAYS
from lib.performance.measure import threads

LESS = 1.3              # times less memory, of one clip

MEMORY = """
import json, re, sys
import torch
sys.path[:0] = sys.argv[2:]
from lib.performance.masked_step import build, pretraining_step

def peak():      # of this program: ru_maxrss would begin with what the process that started it has used
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

torch.set_num_threads(1)                                # memory does not depend on it
model, batch = build()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
for parameter in model.parameters():                    # the optimizer's state belongs to both ways, and is there before the step
    parameter.grad = torch.zeros_like(parameter)
optimizer.step()
before = peak()
pretraining_step(model, batch, optimizer, sys.argv[1])
json.dump([before, peak()], sys.stdout)
"""


@pytest.mark.slow
def test_a_step_on_visible_tokens_is_faster():
    with threads(2):
        found, *parts = masked_step.compared(clips=2, repetitions=3)
    print(f"\n{found}", *parts, sep="\n")
    assert found.asked == 1.8 and found.name.endswith("2 clips")
    found.require()


@pytest.mark.slow
def test_a_step_on_visible_tokens_needs_less_memory():
    root = Path(__file__).parents[2]
    running = {way: subprocess.Popen([sys.executable, "-c", MEMORY, way, str(root)], cwd=root, stdout=subprocess.PIPE, text=True,
                                     env=os.environ | {"OMP_NUM_THREADS": "1"}) for way in WAYS}
    grown = {}
    for way, process in running.items():            # side by side: memory is measured, not time
        said, _ = process.communicate()
        assert process.returncode == 0
        before, most = json.loads(said.splitlines()[-1])
        grown[way] = most - before, most
    times = grown["after"][0] / grown["before"][0]
    step, peak = ({way: f"{values[place] / 1e9:.2f} GB" for way, values in grown.items()} for place in (0, 1))
    print(f"\npeak memory of a process, weights, gradients and optimizer included: {peak['before']}, masking afterwards "
          f"{peak['after']}; the step itself adds {step['before']} and {step['after']}, "
          f"{times:.2f} times less (required {LESS})")
    assert times >= LESS and grown["before"][1] < grown["after"][1]
