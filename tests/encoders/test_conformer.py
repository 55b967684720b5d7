"""Convolution module against loops and torch's own layers; batch statistics without padding and under checkpointing."""
import pytest
import torch
from torch import nn
from torch.nn.functional import conv1d, conv2d, layer_norm
from torch.utils.checkpoint import checkpoint

from lib.encoders.batch_norm import SynchronizedBatchNorm
from lib.encoders.conformer import ConvolutionModule, Past, TokenBatchNorm, running_statistics_kept
from lib.encoders.spectrogram_config import Grid

GRIDS = (Grid(4, 4, 6, 3),)
SCALES = (Grid(2, 2, 8, 4), Grid(4, 4, 4, 2))


def module(axis="flat", grids=GRIDS, causal=False, kernel=5, **options):
    torch.manual_seed(0)
    made = ConvolutionModule(8, kernel, axis, (3, 3), causal, **options).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return made, torch.randn(2, sum(grid.tokens for grid in grids), 8, dtype=torch.float64)


def depthwise(m, x, grid):
    """One scale (B, N, C), written out for every axis."""
    weight, bias, before = m.depthwise.weight, m.depthwise.bias, m.kernel[0] - 1 if m.causal else m.kernel[0] // 2
    after = m.kernel[0] - 1 - before
    if m.axis == "flat":
        return conv1d(nn.functional.pad(x.mT, (before, after)), weight[..., 0], bias, groups=8).mT
    picture = x.view(len(x), grid.columns, grid.rows, 8).permute(0, 3, 1, 2)
    if m.axis == "time":
        rows = [conv1d(nn.functional.pad(picture[..., row], (before, after)), weight[..., 0], bias, groups=8) for row in range(grid.rows)]
        return torch.stack(rows, dim=-1).permute(0, 2, 3, 1).flatten(1, 2)
    padded = nn.functional.pad(picture, (1, 1, before, after))
    return conv2d(padded, weight, bias, groups=8).permute(0, 2, 3, 1).flatten(1, 2)


def written_out(m, x, grids):
    x = layer_norm(x, (8,), m.layer_norm.weight, m.layer_norm.bias)
    value, gate = (x @ m.expand.weight.mT + m.expand.bias).chunk(2, dim=-1)
    x = value * torch.sigmoid(gate)
    x = torch.cat([depthwise(m, part, grid) for part, grid in zip(x.split([grid.tokens for grid in grids], 1), grids)], dim=1)
    if m.causal:
        x = layer_norm(x, (8,), m.norm.weight, m.norm.bias)
    else:
        mean, variance = x.mean((0, 1)), x.var((0, 1), unbiased=False)
        x = (x - mean) / (variance + 1e-5).sqrt() * m.norm.weight + m.norm.bias
    return (x * torch.sigmoid(x)) @ m.project.weight.mT + m.project.bias


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("axis", ["flat", "time", "2d"])
@pytest.mark.parametrize("grids", [GRIDS, SCALES], ids=["one scale", "two scales"])
def test_against_a_written_out_reference(axis, grids, causal):
    m, x = module(axis, grids, causal)
    assert (m(x, grids) - written_out(m, x, grids)).abs().max() < 1e-10


@pytest.mark.parametrize("axis", ["flat", "time", "2d"])
def test_neighbours_of_a_token(axis):
    """Evaluation: a change of token 7 (column 2, row 1) reaches exactly the taps around it."""
    m, x = module(axis, kernel=3)
    m.eval()
    changed = x.clone()
    changed[:, 7] = torch.randn(8)
    found = set((m(x, GRIDS) != m(changed, GRIDS)).any(2).any(0).nonzero()[:, 0].tolist())
    expected = {"flat": {6, 7, 8}, "time": {4, 7, 10}, "2d": set(range(3, 12))}[axis]
    assert found == expected


@pytest.mark.parametrize("axis", ["flat", "time", "2d"])
def test_causal_pieces_are_the_whole(axis):
    """Columns in pieces of 1, 2 and 3, one of them shorter than the kernel; the future never reaches a column."""
    m, x = module(axis, causal=True)
    whole, past, at, parts = m(x, GRIDS), Past(), 0, []
    for columns in (1, 2, 3):
        parts.append(m(x[:, 3 * at:3 * (at + columns)], [GRIDS[0]._replace(columns=columns)], None, past))
        at += columns
    assert (torch.cat(parts, dim=1) - whole).abs().max() < 1e-12
    later = x.clone()
    later[:, 12:] = torch.randn_like(later[:, 12:]) * 9
    assert torch.equal(m(later, GRIDS)[:, :12], whole[:, :12]) and not torch.equal(m(later, GRIDS)[:, 12:], whole[:, 12:])
    assert past.tokens.shape[1] == m.kernel[0] - 1, "what is kept does not grow"


def test_gradients():
    m, x = module("2d", SCALES)
    assert torch.autograd.gradcheck(lambda x: m(x, SCALES), x.requires_grad_(), fast_mode=True)
    valid = torch.rand(x.shape[:2]) > 0.4
    assert torch.autograd.gradcheck(lambda x: m(x, SCALES, valid), x, fast_mode=True)


def test_parameters_and_start():
    m = ConvolutionModule(32)
    assert sum(p.numel() for p in m.parameters()) == 2 * 32 + 32 * 64 + 64 + 32 * 31 + 32 + 2 * 32 + 32 * 32 + 32
    assert m.layer_norm.weight.eq(1).all(), "a gain near 0 would switch the branch off (the original's slip)"
    assert sum(p.numel() for p in ConvolutionModule(32, causal=True).parameters()) == sum(p.numel() for p in m.parameters())


def test_dropout_of_the_branch():
    m, x = module(dropout=0.5)
    torch.manual_seed(1)
    dropped = m(x, GRIDS)
    assert 0.3 < dropped.eq(0).double().mean() < 0.7 and not m.eval()(x, GRIDS).eq(0).any()


def test_padding_is_left_out_of_the_statistics():
    """Normalisation of the valid rows is that of a batch without the others; padded rows pass with the same statistics."""
    torch.manual_seed(0)
    x, valid = torch.randn(3, 7, 4, dtype=torch.float64) * 3 - 60, torch.rand(3, 7) > 0.5
    x[~valid] = -1000.0
    ours, theirs = TokenBatchNorm(4).double(), SynchronizedBatchNorm(4).double()
    found, expected = ours(x, valid), theirs(x[valid])
    assert (found[valid] - expected).abs().max() < 1e-11
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=0, atol=1e-11)
    assert torch.allclose(found[~valid], (x[~valid] - x[valid].mean(0)) / (x[valid].var(0, unbiased=False) + 1e-5).sqrt(), rtol=1e-10)
    ours.eval(), theirs.eval()
    assert torch.equal(ours(x, valid), ours(x)) and (ours(x)[valid] - theirs(x[valid])).abs().max() < 1e-11


def test_all_valid_is_no_mask():
    x = torch.randn(3, 7, 4, dtype=torch.float64)
    a, b = TokenBatchNorm(4).double(), TokenBatchNorm(4).double()
    assert (a(x, torch.ones(3, 7, dtype=torch.bool)) - b(x)).abs().max() < 1e-12
    torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_checkpointing_counts_a_batch_once(masked):
    """Same output, gradients and statistics; without the context the second pass would be counted too."""
    valid = torch.rand(2, 18) > 0.3 if masked else None
    results = []
    for mode in ("plain", "kept", "naive"):
        m, x = module()
        x.requires_grad_()
        options = {"context_fn": lambda: (torch.autograd.graph.save_on_cpu(), running_statistics_kept(m))} if mode == "kept" else {}
        out = m(x, GRIDS, valid) if mode == "plain" else checkpoint(m, x, GRIDS, valid, use_reentrant=False, **options)
        out.cos().sum().backward()
        results.append([out, x.grad, *(p.grad for p in m.parameters()), *m.buffers()])
        assert m.norm.momentum == 0.1
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert int(results[1][-1]) == 1 and int(results[2][-1]) == 2, "the check can fail"


@pytest.mark.parametrize("call, words", [
    (lambda: ConvolutionModule(4, axis="frequency"), "axis must be one of flat, time, 2d, got 'frequency'"),
    (lambda: ConvolutionModule(4, 4), "odd numbers"),
    (lambda: ConvolutionModule(4, axis="2d", kernel_2d=(3, 2)), "odd numbers"),
    (lambda: ConvolutionModule(4)(torch.zeros(1, 18, 4), GRIDS, None, Past()), "causal=True"),
    (lambda: TokenBatchNorm(4)(torch.zeros(1, 3, 4), torch.tensor([[True, False, False]])), r"1 token\(s\).*raise batch_size")])
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call()
