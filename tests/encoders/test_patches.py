"""Patches, tables of positions and masks against loops and closed forms."""
import math

import numpy as np
import pytest
import torch

from lib.encoders.patches import (patchify, position_table, random_mask, sincos_1d, sincos_2d, take, tube_mask, unpatchify,
                                  visible_index)
from lib.randomness import generator


@pytest.mark.parametrize("shape, patch", [((2, 3, 8, 8), 4), ((3, 4, 12), 4), ((2, 5, 1, 32, 16), 16), ((1, 2, 6, 6), 1)])
def test_patches_against_loops_and_back(shape, patch):
    images = torch.randn(shape)
    patches, (*_, channels, height, width) = patchify(images, patch), shape
    rows, columns = height // patch, width // patch
    assert patches.shape == (*shape[:-3], rows * columns, channels * patch * patch)
    for row in range(rows):
        for column in range(columns):
            square = images[..., row * patch:(row + 1) * patch, column * patch:(column + 1) * patch]
            assert torch.equal(patches[..., row * columns + column, :], square.flatten(-3)), "(channel, row, column)"
    assert torch.equal(unpatchify(patches, patch, (rows, columns)), images)
    if rows == columns:
        assert torch.equal(unpatchify(patches, patch), images)


def test_a_patch_is_the_square_under_its_token():
    """Views of a permuted unfold give runs of a 16-row band instead: each would mix all patches of its row."""
    number = torch.arange(196.0).view(14, 14).repeat_interleave(16, 0).repeat_interleave(16, 1)
    patches = patchify(torch.stack([number, number + 1000, number + 2000]), 16)
    expected = (torch.arange(196.0)[:, None] + torch.tensor([0.0, 1000, 2000])).repeat_interleave(256, dim=1)
    assert torch.equal(patches, expected)


def test_the_order_of_a_patch_is_that_of_a_convolution():
    conv, images = torch.nn.Conv2d(3, 5, 4, 4).double(), torch.randn(2, 3, 12, 8).double()
    mine = torch.nn.functional.linear(patchify(images, 4), conv.weight.flatten(1), conv.bias)
    assert (mine - conv(images).flatten(2).mT).abs().max() < 1e-12


@pytest.mark.parametrize("call", [lambda: patchify(torch.zeros(1, 3, 10, 8), 4), lambda: patchify(torch.zeros(8, 8), 4),
                                  lambda: unpatchify(torch.zeros(6, 16), 4), lambda: unpatchify(torch.zeros(4, 17), 4),
                                  lambda: unpatchify(torch.zeros(4, 16), 4, (4, 2))])
def test_pictures_that_cannot_be_cut_are_refused(call):
    with pytest.raises(ValueError, match="patches of (4 x 4|1[67] values)"):
        call()


def test_table_of_a_sequence():
    table = sincos_1d(3137, 12)
    for position in (0, 1, 195, 3136):
        for i in range(6):
            angle = position / 10000 ** (2 * i / 12)
            assert table[position, 2 * i] == pytest.approx(math.sin(angle), abs=1e-8)
            assert table[position, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-8)
    assert table.dtype == torch.float64


def test_table_of_a_grid():
    rows, columns, dim = 3, 5, 16
    table = sincos_2d(rows, columns, dim)
    assert table.shape == (16, dim) and not table[0].any()
    for row in range(rows):
        for column in range(columns):
            expected = [f(place / 10000 ** (k / 4)) for place in (column, row) for f in (math.sin, math.cos) for k in range(4)]
            assert np.abs(table[1 + row * columns + column].numpy() - expected).max() < 1e-8


def test_tables_of_a_clip():
    assert torch.equal(position_table("1d", (2, 2), 3, 8), sincos_1d(13, 8))
    assert torch.equal(position_table("2d", (2, 3), 1, 8), sincos_2d(2, 3, 8))
    clip, frame, time = position_table("2d", (2, 3), 4, 8), sincos_2d(2, 3, 8), sincos_1d(4, 8)
    assert not clip[0].any()
    for f in range(4):
        for k in range(6):
            assert (clip[1 + 6 * f + k] - frame[1 + k] - time[f]).abs().max() < 1e-12
    for kind in ("1d", "2d"):
        assert len(position_table(kind, (2, 3), 4, 8).unique(dim=0)) == 25, "no two tokens share a position"


@pytest.mark.parametrize("call, words", [(lambda: sincos_1d(3, 5), "even width, got 5"),
                                         (lambda: sincos_2d(2, 2, 6), "multiple of 4, got 6"),
                                         (lambda: position_table("3d", (2, 2), 1, 8), "'1d' or '2d', got '3d'"),
                                         (lambda: random_mask([1], 4, 1.0), "mask_ratio is 1.0"),
                                         (lambda: tube_mask([1], 2, 4, -0.1), "mask_ratio"),
                                         (lambda: visible_index(torch.tensor([[True, False], [False, False]])), r"\[1, 2\]"),
                                         (lambda: visible_index(torch.ones(2, 3, dtype=torch.bool)), r"\[0, 0\]")])
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("tokens, ratio, count",
                         [(196, 0.75, 49), (3136, 0.75, 784), (100, 0.9, int(100 * (1 - 0.9))), (5, 0.95, 1), (7, 0.0, 7)])
def test_mask_is_the_published_rule(tokens, ratio, count):
    """First int(N (1 - ratio)) of an ascending argsort of uniform noise, index sets sorted."""
    seeds = [3, 2 ** 62, 5]
    hidden = random_mask(seeds, tokens, ratio)
    for row, seed in zip(hidden, seeds):
        noise = generator(seed, "mask").random(tokens)
        assert set((~row).nonzero()[:, 0].tolist()) == set(sorted(range(tokens), key=lambda i: noise[i])[:count])
    index = visible_index(hidden)
    assert index.shape == (3, count) and all((row.diff() > 0).all() for row in index)
    rows = torch.randn(3, tokens, 2)
    assert torch.equal(take(rows, index)[1], rows[1][~hidden[1]])


def test_masks_depend_on_the_clip_only():
    """Any order, any share of a batch, any state of the global generators; and these numbers in every process and on every
    machine."""
    together = random_mask([7, 8, 9], 40, 0.75)
    torch.manual_seed(99)
    assert torch.equal(torch.cat([random_mask([9], 40, 0.75), random_mask([7, 8], 40, 0.75)]), together[[2, 0, 1]])
    assert len(together.unique(dim=0)) == 3
    assert visible_index(together[:1]).tolist() == [[6, 7, 10, 11, 12, 14, 18, 24, 33, 34]]


def test_masks_are_uniform_and_tubes_leave_no_other_frame():
    seeds, frames, places = range(300), 16, 20
    random, tube = (mask.view(-1, frames, places)
                    for mask in (random_mask(seeds, frames * places, 0.75), tube_mask(seeds, frames, places, 0.75)))
    assert torch.equal(tube, tube[:, :1].expand_as(tube))
    assert torch.equal(tube[:, 0], random_mask(seeds, places, 0.75))
    visible = (~random).double().mean(dim=0)
    assert (visible - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / len(seeds))
    seen_elsewhere = (~random).any(dim=1)[:, None].expand_as(random)[random].double().mean().item()
    assert seen_elsewhere == pytest.approx(1 - 0.75 ** 15, abs=0.005), "what tubes are for"
    assert not (~tube).any(dim=1)[:, None].expand_as(tube)[tube].any()
