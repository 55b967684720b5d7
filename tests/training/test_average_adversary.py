"""Averages of weights against the formula, to the bit in and out; an adversary's own optimiser."""
import pytest
import torch
from torch import nn

from lib.config import RunConfig
from lib.glossary import ParameterError
from lib.training.adversary import Adversary
from lib.training.average import Average


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def test_averages_follow_the_formula():
    model = network()
    average, expected = Average(model, 0.8), model.state_dict()["0.weight"].double().clone()
    for step in range(1, 60):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model[1].num_batches_tracked += 1
        average.update(model, step)
        decay = min(0.8, step / (step + 9))
        expected = decay * expected + (1 - decay) * model.state_dict()["0.weight"].double()
    torch.testing.assert_close(average.values["0.weight"].double(), expected, rtol=0, atol=1e-5)
    assert average.values["1.num_batches_tracked"] == 59 and average.values["0.weight"].dtype == torch.float32
    assert (59 / 68 > 0.8) and 1 / 10 < 0.8, "both branches of the decay were used"


def test_the_model_gets_its_own_weights_back_to_the_bit():
    model, averaged = network(), Average(network(1), 0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(KeyError, match="inside"), averaged.inside(model):
        assert all(torch.equal(value, averaged.values[name]) for name, value in model.state_dict().items())
        raise KeyError("inside")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    averaged.load_state_dict(before)
    assert all(torch.equal(value, before[name]) for name, value in averaged.values.items())


def settings(**changes):
    return RunConfig(dataset="folder", learning_rate=0.1, betas=(0.5, 0.9), weight_decay=0.01, device="cpu", **changes)


def test_an_adversary_is_adamw_on_its_own_parameters():
    mine, theirs = network(), network()
    adversary = Adversary(mine, settings(gradient_clip=0.3), torch.device("cpu"))
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.1, betas=(0.5, 0.9), weight_decay=0.01)
    outside = torch.ones(1, requires_grad=True)
    for step in range(3):
        x = torch.randn(5, 3)
        adversary.zero_grad()
        for _ in range(2):
            adversary.backward((mine(x) * outside).square().mean() / 2)
        adversary.step(0.05)
        optimizer.zero_grad()
        for _ in range(2):
            (theirs(x).square().mean() / 2).backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.3)
        optimizer.param_groups[0]["lr"] = 0.05
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters())) and outside.grad is None
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    adversary.zero_grad()
    adversary.step(0.05)
    assert all(torch.equal(value, before[name]) for name, value in mine.state_dict().items()), "no loss, no step"
    again = Adversary(network(5), settings(), torch.device("cpu"))
    again.load_state_dict(adversary.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in again.network.state_dict().items())
    assert again.optimizer.state_dict()["state"][0]["step"] == 3


@pytest.mark.parametrize("changes, words", [
    ({"betas": (0.9, 1.0)}, "betas"), ({"betas": (0.9, 0.9, 0.9)}, "two numbers"), ({"ema_decay": 1.0}, "ema_decay")])
def test_settings_out_of_range(changes, words):
    with pytest.raises(ParameterError, match=words):
        RunConfig(dataset="folder", **changes)
