"""Chunk pooling in closed form, and what the order of chunks does to the temporal embedding."""
import pytest
import torch

from lib.encoders.temporal import TemporalEncoder, chunk_pool


@pytest.mark.parametrize("steps,chunks", [(32, 4), (11, 4), (4, 4), (7, 1), (8, 3)])
def test_chunk_pool_is_the_mean_over_frequency_and_each_part_of_the_last_axis(steps, chunks):
    features = torch.randn(3, 5, 2, steps, dtype=torch.float64)
    pooled = chunk_pool(features, chunks)
    assert pooled.shape == (3, chunks, 5)
    each = steps // chunks
    for k in range(chunks):
        end = (k + 1) * each if k < chunks - 1 else steps
        cells = [features[:, :, f, t] for f in range(2) for t in range(k * each, end)]
        assert (pooled[:, k] - sum(cells) / len(cells)).abs().max() <= 1e-8


def test_chunk_pool_in_closed_form():
    """Value = step number: the published 32 steps in 4 chunks have means 3.5, 11.5, 19.5 and 27.5."""
    ramp = torch.arange(32, dtype=torch.float64).expand(1, 3, 2, 32)
    assert torch.equal(chunk_pool(ramp)[0, :, 0], torch.tensor([3.5, 11.5, 19.5, 27.5], dtype=torch.float64))


@pytest.mark.parametrize("shape,chunks", [((2, 5, 32, 2), 4), ((2, 5, 2, 8), 0), ((2, 5, 8), 4)])
def test_a_map_that_cannot_be_cut_is_refused(shape, chunks):
    """The first is a map whose axes were swapped: parts without any step would be means of nothing, NaN."""
    with pytest.raises(ValueError, match=f"cannot be cut into {chunks} chunks"):
        chunk_pool(torch.zeros(shape), chunks)


def encoder(**changes):
    torch.manual_seed(0)
    return TemporalEncoder(**dict(dim=32, heads=4, feedforward=64) | changes)


def test_reversed_chunks_change_the_embedding_and_only_positions_make_them():
    model = encoder().eval()
    chunks = torch.randn(6, 4, 32)
    forth, back = model(chunks), model(chunks.flip(1))
    assert forth.shape == (6, 32) and (forth - back).norm(dim=1).min() > 1e-3
    torch.nn.init.zeros_(model.positions)
    assert (model(chunks) - model(chunks.flip(1))).abs().max() <= 1e-6


def test_layers_are_post_norm_with_relu_and_start_from_weights_of_their_own():
    """The whole encoder against its formula, written out with one head's worth of matrices at a time."""
    model = encoder(dropout=0.0).double()
    chunks = torch.randn(2, 4, 32, dtype=torch.float64)
    x = chunks + model.positions
    for layer in model.layers:
        q, k, v = (x @ layer.self_attn.in_proj_weight.T + layer.self_attn.in_proj_bias).split(32, dim=-1)
        mixed = torch.cat([((q[..., h:h + 8] @ k[..., h:h + 8].transpose(1, 2)) / 8 ** 0.5).softmax(-1) @ v[..., h:h + 8]
                           for h in range(0, 32, 8)], dim=-1)
        x = layer.norm1(x + layer.self_attn.out_proj(mixed))
        x = layer.norm2(x + layer.linear2(layer.linear1(x).clamp(min=0)))
    hidden = model.mlp[0](model.norm(x).mean(1))
    expected = model.mlp[3](hidden * 0.5 * (1 + torch.erf(hidden / 2 ** 0.5)))
    assert (model(chunks) - expected).abs().max() <= 1e-8
    assert not torch.equal(model.layers[0].linear1.weight, model.layers[1].linear1.weight)
    assert 0.015 < encoder(dim=256).positions.std() < 0.025


def test_published_size():
    with torch.device("meta"):
        assert sum(p.numel() for p in TemporalEncoder().parameters()) == 6_833_152


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="8 heads do not divide dim = 36"):
        TemporalEncoder(dim=36)
    with pytest.raises(ValueError, match="dropout is 1.0"):
        TemporalEncoder(dropout=1.0)
