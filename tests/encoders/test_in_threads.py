"""Inputs shared over threads: the same results in the same order, and nothing is left changed."""
import threading

import pytest
import torch
from torch import nn

from lib.encoders.in_threads import may_share, share


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_results_and_order(two_threads, count):
    parts = list(torch.randn(count, 3, 4, generator=torch.Generator().manual_seed(count)))
    with torch.no_grad():
        found = share(lambda part: part @ part.T, parts)
    assert len(found) == count and all(torch.equal(one, part @ part.T) for one, part in zip(found, parts))
    assert torch.get_num_threads() == 2


def test_whole_inputs_run_on_one_thread_each_and_at_the_same_time(two_threads):
    meeting, seen = threading.Barrier(2, timeout=30), []

    def look(part):
        seen.append((torch.get_num_threads(), torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
        if part < 2:
            meeting.wait()          # both must be here, otherwise it breaks
        return part

    with torch.inference_mode():
        share(look, list(torch.arange(3)))
    assert seen == [(1, True, False), (1, True, False), (2, True, False)]


def test_an_error_arrives_and_the_threads_come_back(two_threads):
    def fail(part):
        raise ValueError("of a part")

    with torch.no_grad(), pytest.raises(ValueError, match="of a part"):
        share(fail, list(torch.zeros(2, 1)))
    seen = []
    worker = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    worker.start()
    worker.join()
    assert seen == [2]


def test_when_threads_may_share(two_threads):
    network, x = nn.Linear(2, 2).eval(), torch.zeros(1, 2)
    assert not may_share(network, x)                                    # gradients
    with torch.no_grad():
        assert may_share(network, x)
        assert not may_share(network, x.to("meta"))
        assert not may_share(nn.Linear(2, 2).train(), x)
        with torch.autocast("cpu", torch.bfloat16):
            assert not may_share(network, x)
        compiled = nn.Linear(2, 2).eval()
        compiled.compile(backend="eager")
        assert not may_share(compiled, x)
        torch.set_num_threads(1)
        assert not may_share(network, x)
