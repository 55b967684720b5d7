"""A step of masked pretraining with visible tokens only against encoding all tokens and masking afterwards (2 threads).

The published depths (12 layers in each ViT, 6 in the backbone, 2 in each decoder) and random masks of ratio 0.75; width
512 and four frames (784 video and 196 sound tokens) instead of 768 and 16, and two clips instead of 32, so that it fits on two
cores. Both ways are one model with one set of weights, and encoders, backbone and decoders train in both.
"""
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib.encoders.patches import take, visible_index
from lib.encoders.t3av import MODALITIES, T3AV, T3AVSettings
from lib.encoders.vit import VitConfig
from lib.losses.masked import masked_patch_loss
from tests.performance.stock import compare, threads

FASTER, LESS, REPETITIONS = 1.8, 1.3, 3
WIDTH, FRAMES = 512, 4
CLIPS = 2               # of one clip alone a fifth of the step is the optimiser's, the same in both ways; memory is measured with one
WAYS = ("before", "after")          # where the mask is applied: before the encoders, and after them

MEMORY = """
import json, re, sys
import torch
sys.path[:0] = sys.argv[2:]
from tests.performance.test_masked_step import build, pretraining_step

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


def build(clips=1):
    """The model and a batch."""
    torch.manual_seed(0)
    vit = VitConfig("published", width=WIDTH, heads=WIDTH // 64, feedforward=4 * WIDTH)
    model = T3AV(T3AVSettings(audio=vit, video=vit, num_frames=FRAMES, bb_heads=WIDTH // 64), "mae")
    return model, {"audio": torch.rand(clips, 1, 224, 224),
                   "video": torch.randint(0, 256, (clips, FRAMES, 3, 224, 224), dtype=torch.uint8), "seeds": [*range(clips)]}


def loss_of(model, batch, way):
    model.settings = replace(model.settings, masking=way)
    out = model(batch)
    return sum(masked_patch_loss(one["prediction"], one["target"], one["hidden"]) for one in out.values())


def pretraining_step(model, batch, optimizer, way):
    loss_of(model, batch, way).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)


def parts(model, batch, way):
    """Forward and backward of each part alone, as functions: encoders, backbone, decoders."""
    images = {name: model._images(name, batch).expand(-1, -1, 3, -1, -1) for name in MODALITIES}
    visible = {name: visible_index(model.draw_mask(name, batch["seeds"])) for name in MODALITIES}
    states = {name: torch.randn(*visible[name].shape, WIDTH, requires_grad=True) for name in MODALITIES}

    def run(part):
        for name in MODALITIES:
            table = getattr(model, f"positions_{name}")
            if part == "encoders" and way == "after":
                out = take(model.encoders[name](images[name]), visible[name])
            elif part == "encoders":
                out = model.encoders[name](images[name], visible[name])
            elif part == "backbone":
                out = model.backbone(states[name], table, visible[name])
            else:
                out = model.decoders[name](states[name], table, visible[name])
            out.square().mean().backward()
        model.zero_grad(set_to_none=False)
    return {part: lambda part=part: run(part) for part in ("encoders", "backbone", "decoders")}


@pytest.mark.slow
def test_a_step_on_visible_tokens_is_faster():
    model, batch = build(CLIPS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    shown = {name: int((~model.draw_mask(name, batch["seeds"])).sum()) for name in MODALITIES}
    assert shown == {"audio": CLIPS * 49, "video": CLIPS * FRAMES * 49}
    ways = {way: parts(model, batch, way) for way in WAYS}
    with threads(2):
        for way in WAYS:                            # before the clock
            pretraining_step(model, batch, optimizer, way)
        found = compare("masked pretraining step",
                        *(lambda way=way: pretraining_step(model, batch, optimizer, way) for way in WAYS), REPETITIONS)
        single = [compare(f"  {part}", *(ways[way][part] for way in WAYS), repetitions=1) for part in ways["before"]]
    print(f"\n{found}", *single, sep="\n")
    found.require(FASTER)


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
