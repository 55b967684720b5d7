"""The game of model and discriminator against closed forms; the gradient penalty against numbers; two processes against one."""
import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from lib.encoders.patch_discriminator import PatchDiscriminator
from lib.losses.adversarial_spectrogram import discriminator_loss, generator_loss, gradient_penalty, lazy_r1


@pytest.mark.parametrize("kind, nothing", [("hinge", 1.0), ("vanilla", math.log(2))])
def test_losses_written_out(kind, nothing):
    torch.manual_seed(0)
    real, fake = torch.randn(2, 3, 4, 5, dtype=torch.float64).unbind()
    zero = torch.zeros(3, 4, 5)
    assert discriminator_loss(zero, zero, kind) == pytest.approx(nothing)
    assert generator_loss(zero, kind) == pytest.approx(0.0 if kind == "hinge" else nothing)
    side = {"hinge": lambda x: max(0.0, 1 - x), "vanilla": lambda x: math.log(1 + math.exp(-x))}[kind]
    mean = lambda values: sum(values) / len(values)
    theirs = 0.5 * (mean([side(x) for x in real.flatten().tolist()]) + mean([side(-x) for x in fake.flatten().tolist()]))
    ours = mean([-x if kind == "hinge" else side(x) for x in fake.flatten().tolist()])
    assert float(discriminator_loss(real, fake, kind)) == pytest.approx(theirs, abs=1e-12)
    assert float(generator_loss(fake, kind)) == pytest.approx(ours, abs=1e-12)
    with pytest.raises(ValueError, match="disc_loss must be one of hinge, vanilla"):
        generator_loss(fake, "wasserstein")


def test_penalty_of_known_functions():
    """A linear function's gradient is its weights, a square's twice the input; the derivative in the parameter follows."""
    x, weight = torch.randn(4, 5, 6, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    penalty = gradient_penalty(lambda real: real * weight, x)
    assert penalty.item() == pytest.approx(weight.square().sum().item(), abs=1e-10)
    gradient, = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close(gradient, 2 * weight.detach(), rtol=0, atol=1e-10)
    assert float(gradient_penalty(lambda real: real.square(), x)) == pytest.approx(float(4 * x.square().sum() / 4), rel=1e-12)
    assert lazy_r1(torch.tensor(3.0), 10.0, 16) == 240 and lazy_r1(torch.tensor(1.0), 10.0, 16) == 80


def test_penalty_of_the_network_against_differences():
    torch.manual_seed(1)
    network = PatchDiscriminator(3, 1).double()
    real = torch.randn(2, 8, 8, dtype=torch.float64)
    expected, step = torch.zeros_like(real), 1e-5
    with torch.no_grad():
        for place in range(real.numel()):
            moved = real.flatten().repeat(2, 1)
            moved[0, place] += step
            moved[1, place] -= step
            up, down = (network(one.view_as(real)).sum() for one in moved)
            expected.view(-1)[place] = (up - down) / (2 * step)
    assert gradient_penalty(network, real).item() == pytest.approx(float(expected.square().sum() / 2), rel=1e-6)
    parameter = network.layers[2].weight
    gradient, = torch.autograd.grad(gradient_penalty(network, real), parameter)
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            parameter[1, 2, 3, 0] += sign * step
            with torch.enable_grad():
                values.append(gradient_penalty(network, real).item())
            parameter[1, 2, 3, 0] -= sign * step
    assert float(gradient[1, 2, 3, 0]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)


def test_discriminator_is_the_published_one():
    network = PatchDiscriminator()
    assert sum(p.numel() for p in network.parameters()) == 1_776_769
    assert [(layer.in_channels, layer.out_channels, layer.stride[0]) for layer in network.layers if isinstance(layer, nn.Conv2d)] == [
        (1, 64, 2), (64, 64, 2), (64, 128, 2), (128, 256, 2), (256, 256, 1), (256, 1, 1)]
    with torch.no_grad():
        assert network.eval()(torch.randn(1, 1024, 128)).shape == (1, 62, 6)
    tiny = PatchDiscriminator(2, 2)
    assert tiny.smallest == 12 and tiny(torch.randn(2, 12, 16)).shape == (2, 1, 2)
    for bad in (torch.zeros(2, 11, 16), torch.zeros(2, 1, 16, 16)):
        with pytest.raises(ValueError, match="at least 12 frames and bands.*lower disc_num_layers"):
            tiny(bad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tiny(torch.randn(2, 16, 16)).dtype == torch.float32


def test_it_learns_to_tell_them_apart():
    torch.manual_seed(0)
    network = PatchDiscriminator(4, 1)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    for step in range(30):
        real, fake = torch.randn(8, 12, 12), torch.randn(8, 12, 12).cumsum(1) / 3
        loss = discriminator_loss(network(real), network(fake))
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    assert loss.item() < 0.6, "chance is 1"


STEP = """
import torch
from lib import distributed
from lib.encoders.patch_discriminator import PatchDiscriminator
from lib.losses.adversarial_spectrogram import discriminator_loss, generator_loss, gradient_penalty, lazy_r1

def step(case, part):
    torch.manual_seed(0)
    network = PatchDiscriminator(3, 1).double()
    real, fake = case["real"][part], case["fake"][part].requires_grad_()
    told = discriminator_loss(network(real), network(fake.detach())) + lazy_r1(gradient_penalty(network, real), 10.0, 4)
    parameters = list(network.parameters())
    gradients = [distributed.average(gradient) for gradient in torch.autograd.grad(told, parameters)]
    game = generator_loss(network(fake), "vanilla")
    passed, = torch.autograd.grad(game, fake)
    return [told.detach(), game.detach(), *gradients, distributed.gather(passed) / distributed.world(), *network.state_dict().values()]
"""
TWO = STEP + """
import sys, torch.distributed as dist
dist.init_process_group("gloo", init_method="file://" + sys.argv[3], rank=int(sys.argv[4]), world_size=2)
result = step(torch.load(sys.argv[1], weights_only=True), slice(0, 1) if distributed.rank() == 0 else slice(1, None))
if distributed.rank() == 0:
    torch.save(result, sys.argv[2])
distributed.leave()
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """Uneven shares, batch normalisation and the second derivative of the penalty."""
    generator = torch.Generator().manual_seed(0)
    case = {name: torch.randn(4, 8, 8, dtype=torch.float64, generator=generator) for name in ("real", "fake")}
    torch.save(case, tmp_path / "case.pt")
    (tmp_path / "two.py").write_text(TWO)
    files = [str(tmp_path / name) for name in ("two.py", "case.pt", "out.pt", "meeting")]
    processes = [subprocess.Popen([sys.executable, *files, str(rank)], stderr=subprocess.PIPE, text=True, 
                                  env=os.environ | {"OMP_NUM_THREADS": "1"}) for rank in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert not any(process.returncode for process in processes), "".join(errors)
    scope = {}
    exec(STEP, scope)
    for one, two in zip(scope["step"](case, slice(None)), torch.load(tmp_path / "out.pt", weights_only=True), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-10)
