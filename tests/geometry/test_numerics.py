"""Distances of rows by one matrix product: values, gradients, and full precision whatever is allowed elsewhere."""
import pytest
import torch

from lib.geometry import numerics
from lib.geometry.numerics import arsinh, chord, full_float32


def sets(dtype=torch.float32):
    """40 and 30 rows around a common point far from 0: half of the pairs cancel, some coincide."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 12, generator=generator, dtype=torch.float64) for n in (40, 30))
    x[:20], y[:20] = 0.05 * x[:20] + 3, 0.05 * y[:20] + 3
    y[:4], y[4:8] = x[:4], x[4:8] + 1e-4
    return x.to(dtype), y.to(dtype)


@pytest.mark.parametrize("chunk", (numerics.CHUNK, 24))
def test_chord_and_its_gradient(monkeypatch, chunk):
    monkeypatch.setattr(numerics, "CHUNK", chunk)
    x, y = (z.requires_grad_() for z in sets())
    weights = torch.rand(40, 30, generator=torch.Generator().manual_seed(1))
    found = chord(x, y, torch.float32)
    one, two = (z.detach().double().requires_grad_() for z in (x, y))
    wanted = torch.linalg.vector_norm(one[:, None] - two, dim=-1)
    assert ((found - wanted).abs() <= 1e-5 * wanted).all() and (found.diagonal()[:4] == 0).all()
    ours = torch.autograd.grad((found * weights).sum(), (x, y))
    for mine, theirs in zip(ours, torch.autograd.grad((wanted * weights).sum(), (one, two))):
        torch.testing.assert_close(mine, theirs.float(), rtol=1e-5, atol=2e-5)


def test_gradients_of_gradients():
    x, y = (z[:3, :2].clone().requires_grad_() for z in (torch.randn(3, 2).double(), torch.randn(3, 2).double() + 3))
    assert torch.autograd.gradgradcheck(lambda x, y: chord(x, y, torch.float64), (x, y))
    assert torch.autograd.gradgradcheck(arsinh, (x.detach().abs() + 0.1).requires_grad_())


def test_arsinh():
    x = torch.cat([torch.zeros(1), torch.logspace(-18, 18, 400)])
    torch.testing.assert_close(arsinh(x), torch.asinh(x.double()).float(), rtol=5e-7, atol=0)
    x = torch.logspace(-18, 150, 400, dtype=torch.float64).requires_grad_()
    torch.testing.assert_close(arsinh(x), torch.asinh(x), rtol=1e-14, atol=0)
    assert torch.autograd.gradcheck(arsinh, torch.linspace(0.01, 3, 9).double().requires_grad_())


def test_autocast_changes_nothing_forward_or_backward():
    results = []
    for enabled in (False, True):
        x, y = (z.requires_grad_() for z in sets())
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value = chord(x, y, torch.float32)
            results.append((value, *torch.autograd.grad(value.sum(), (x, y))))
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("allow", (lambda matmuls: torch.set_float32_matmul_precision("medium"),
                                   lambda matmuls: [setattr(matmul, "fp32_precision", "tf32") for matmul in matmuls]))
def test_tf32_and_bfloat16_stay_outside(monkeypatch, allow):
    """The flags are recorded during both products, since no kernel here may use them; and they are as before afterwards."""
    matmuls = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    flags = lambda: [m.fp32_precision for m in matmuls]
    seen, product, original = [], torch.addmm, flags()
    monkeypatch.setattr(torch, "addmm", lambda *args, **kwargs: (seen.append(flags()), product(*args, **kwargs))[1])
    multiply = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: (seen.append(flags()), multiply(a, b))[1])
    try:
        allow(matmuls)
        before = flags()
        assert set(before) & {"tf32", "bf16"}
        x, y = (z.requires_grad_() for z in sets())
        chord(x, y, torch.float32).sum().backward()
        assert len(seen) == 3 and seen == [["ieee", "ieee"]] * 3 and flags() == before
        with pytest.raises(RuntimeError, match="inside"), full_float32():
            raise RuntimeError("inside")
        assert flags() == before
    finally:
        for matmul, value in zip(matmuls, original):
            matmul.fp32_precision = value
        torch.set_float32_matmul_precision("highest")
