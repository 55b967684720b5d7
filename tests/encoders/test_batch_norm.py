"""Batch normalisation over processes: nn.BatchNorm1d in one, and two gloo processes with uneven shares compute what one computes."""
import pytest
import torch
from torch import nn

from lib.encoders.batch_norm import SynchronizedBatchNorm
from tests.runs import torchrun

# `steps` trains and is the same in every process: a shared layer, the norm, and a loss that compares all rows
STEPS = """
import torch
from torch.nn.functional import linear
from lib import distributed
from lib.encoders.batch_norm import SynchronizedBatchNorm

def steps(case, part, average):
    dtype = case["x"].dtype
    norm = SynchronizedBatchNorm(3).to(dtype)
    norm.load_state_dict(case["norm"])
    layer = case["layer"].clone().requires_grad_()
    out = {}
    for step in range(2):                                       # the second one sees running statistics that the first one left
        x = (case["x"][part] + step).requires_grad_()
        normed = norm(linear(x.mT if x.ndim > 2 else x, layer).mT if x.ndim > 2 else linear(x, layer))
        rows = distributed.gather(normed)
        loss = (rows.flatten(1) @ rows.flatten(1).T).softmax(1).diagonal().log().mean() + (rows * case["pull"]).sum()
        loss.backward()
        out |= {f"rows{step}": rows.detach(), f"loss{step}": loss.detach(), f"x{step}": x.grad}
    for parameter in (layer, norm.weight, norm.bias):           # as distributed data parallel training does
        average(parameter.grad)
    norm.eval()
    out |= {"layer": layer.grad, "weight": norm.weight.grad, "bias": norm.bias.grad, "eval": norm(case["x"][part]).detach()}
    return out | {name: value for name, value in norm.state_dict().items() if "running" in name or "num" in name}
"""
TWO = STEPS + """
import sys, torch.distributed as dist
dist.init_process_group("gloo")
cases, results, rank, world = torch.load(sys.argv[1], weights_only=True), [], distributed.rank(), distributed.world()
def average(gradient):
    dist.all_reduce(gradient)
    gradient /= world
for case in cases:
    part = slice(0, case["split"]) if rank == 0 else slice(case["split"], None)
    result = steps(case, part, average)
    for name in ("x0", "x1"):                                   # to the whole batch's: every process's copy of the loss sent its share
        result[name] = distributed.gather(result[name]) / world
    result["eval"] = distributed.gather(result["eval"])
    results.append(result)
try:                                                            # both processes refuse, so that none waits for the other
    SynchronizedBatchNorm(3)(torch.zeros(1 - rank, 3))
    refused = ""
except ValueError as error:
    refused = str(error)
every = distributed.gather_list([refused])
same = all(torch.equal(*distributed.gather(result[name][None])) for result in results for name in ("running_mean", "running_var"))
if rank == 0:
    torch.save({"results": results, "refused": every, "same": same}, sys.argv[2])
distributed.leave()
"""


def case(shape, split, dtype, offset=0.0):
    generator = torch.Generator().manual_seed(len(shape) + split)
    random = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)
    norm = {"weight": random(3), "bias": random(3), "running_mean": random(3), "running_var": random(3).exp()}
    made = {"x": random(*shape) + offset, "layer": random(3, 3), "pull": random(*shape), **{f"norm.{k}": v for k, v in norm.items()}}
    made = {name: value.to(dtype) for name, value in made.items()}
    norm = {name: made.pop(f"norm.{name}") for name in norm} | {"num_batches_tracked": torch.tensor(4)}
    return made | {"norm": norm, "split": split}


def test_two_processes_equal_one(tmp_path):
    """Uneven shares, a process without rows, features with two and three axes; far from zero in float32, as decibels are."""
    cases = [case((7, 3), 5, torch.float64), case((5, 3, 4), 5, torch.float64), case((4, 3, 6), 1, torch.float64),
             case((6, 3, 50), 4, torch.float32), case((6, 3, 50), 0, torch.float32), case((6, 3, 50), 2, torch.float32, offset=-60.0)]
    torch.save(cases, tmp_path / "cases.pt")
    (tmp_path / "two.py").write_text(TWO)
    torchrun(tmp_path / "two.py", tmp_path / "cases.pt", tmp_path / "out.pt")
    two = torch.load(tmp_path / "out.pt", weights_only=True)
    scope = {}
    exec(STEPS, scope)
    for number, (given, found) in enumerate(zip(cases, two["results"], strict=True)):
        one = scope["steps"](given, slice(None), lambda gradient: None)
        assert one.keys() == found.keys()
        for name in one:
            tolerance = 1e-11 if given["x"].dtype == torch.float64 else 1e-5 * max(1, float(one[name].abs().max()))
            if number == 5 and name == "layer":     # sums of gradients times -60 that cancel: one process is 7e-4 from float64 itself
                tolerance *= 10
            torch.testing.assert_close(found[name], one[name], rtol=0, atol=tolerance, msg=lambda m: f"case {number}, {name}: {m}")
    assert two["same"], "running statistics are the same bits in every process"
    assert all("at least 2" in words for words in two["refused"]) and len(two["refused"]) == 2


@pytest.mark.parametrize("shape", [(8, 5), (8, 5, 7), (4, 5, 3, 2)])
def test_one_process_is_torchs_norm(shape):
    torch.manual_seed(0)
    ours, theirs = SynchronizedBatchNorm(5, momentum=0.3, eps=1e-3).double(), nn.BatchNorm1d(5, momentum=0.3, eps=1e-3).double()
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    weights = theirs.state_dict() | {"weight": torch.randn(5).double(), "bias": torch.randn(5).double()}
    for norm in (ours, theirs):
        norm.load_state_dict(weights)
    for step in range(4):
        if step == 3:
            ours.eval(), theirs.eval()
        x = torch.randn(shape, dtype=torch.float64) * 3 + 1
        rows = [x.clone().requires_grad_() for _ in range(2)]
        flat = rows[1].flatten(2) if len(shape) > 2 else rows[1]
        a, b = ours(rows[0]), theirs(flat).view(shape)
        a.cos().sum().backward(), b.cos().sum().backward()
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        torch.testing.assert_close(rows[0].grad, rows[1].grad, rtol=0, atol=1e-12)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=0, atol=1e-12)


def test_float32_outside_autocast():
    """In bfloat16 the mean of values about -60 would be off by a tenth."""
    x = torch.randn(64, 3, 9) - 60
    norm = SynchronizedBatchNorm(3)
    expected = norm(x)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = norm(x.to(dtype))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected if dtype == torch.float32 else norm(x.bfloat16().float()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("x, words", [(torch.zeros(4), r"\(rows, 3, ...\)"), (torch.zeros(4, 2), r"got \(4, 2\)"), (torch.zeros(1, 3), "at least 2"),
                                      (torch.zeros(0, 3, 5), "at least 2")])
def test_refusals(x, words):
    with pytest.raises(ValueError, match=words):
        SynchronizedBatchNorm(3)(x)
    norm = SynchronizedBatchNorm(3).eval()
    if x.ndim > 1 and x.shape[1] == 3:
        assert norm(x).shape == x.shape, "what is too little to train on can be normalised"
