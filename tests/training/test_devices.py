"""The process that trains: the same gradients in every run on a CPU."""
import torch

from lib.training import devices


def test_gradients_of_indexed_rows_do_not_depend_on_which_thread_was_first():
    before = torch.get_num_threads()
    index = torch.randint(16, (64, 96), generator=torch.Generator().manual_seed(0))
    weight = torch.randn(64, 96, 64, generator=torch.Generator().manual_seed(1))
    try:
        devices.fabric("cpu", threads=2)
        table = torch.zeros(16, 64, requires_grad=True)
        found = []
        for _ in range(10):
            table.grad = None
            (table[index] * weight).sum().backward()
            found.append(table.grad)
        assert all(torch.equal(one, found[0]) for one in found)
    finally:
        torch.set_num_threads(before)
