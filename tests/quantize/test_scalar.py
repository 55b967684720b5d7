"""Scalar quantization against loops over patches, its budget of bits, and the choice of the split."""
import itertools

import pytest
import torch

from lib.quantize import scalar
from lib.quantize.scalar import ScalarSplit, choose_split, scalar_quantize, splits


def ramps(batch=2, frames=32, mels=32, seed=0):
    """Levels between -80 and 0 dB that change slowly."""
    coarse = torch.rand(batch, 1, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 80 - 80
    return torch.nn.functional.interpolate(coarse, (frames, mels), mode="bilinear", align_corners=True)[:, 0]


@pytest.mark.parametrize("split", [ScalarSplit(1, 1, 512), ScalarSplit(2, 4, 2), ScalarSplit(8, 1, 2), ScalarSplit(1, 2, 22)])
def test_cells_by_hand(split):
    levels = ramps(2, 16, 24)
    found = scalar_quantize(levels, 9, (8, 8), split=split)
    expected = torch.zeros_like(levels)
    token = 0
    for time, frequency in itertools.product(range(0, 16, 8), range(0, 24, 8)):       # time-major, frequency fastest
        height, width = 8 // split.rows, 8 // split.columns
        for number, (row, column) in enumerate(itertools.product(range(split.rows), range(split.columns))):
            top, left = time + row * height, frequency + column * width
            place = (slice(None), slice(top, top + height), slice(left, left + width))
            for clip in range(2):
                mean = levels[place][clip].mean()
                step = min(int((mean + 80) / 80 * split.steps), split.steps - 1)
                assert int(found.cells[clip, token, number]) == step
                expected[place][clip] = -80 + (step + 0.5) * 80 / split.steps
        token += 1
    torch.testing.assert_close(found.reconstruction, expected, rtol=0, atol=1e-12)
    assert found.cells.shape == (2, 6, split.rows * split.columns) and found.split == split
    assert found.error == pytest.approx(float((expected - levels).abs().mean()), abs=1e-12)


@pytest.mark.parametrize("bits", [1, 9, 18, 36, 60])
@pytest.mark.parametrize("patch", [(16, 16), (4, 6)])
def test_every_split_uses_the_bits_and_no_more(bits, patch):
    found = splits(bits, patch)
    assert len(found) == len(set(found)) and ScalarSplit(1, 1, 2**bits) in found
    for split in found:
        assert split.values <= 2**bits < (split.steps + 1) ** (split.rows * split.columns) and split.steps >= 2
        assert patch[0] % split.rows == 0 == patch[1] % split.columns


def test_the_best_split_is_chosen():
    levels = ramps()
    errors = {split: scalar_quantize(levels, 18, (16, 16), split=split).error for split in splits(18, (16, 16))}
    found = scalar_quantize(levels, 18, (16, 16))
    assert found.error == min(errors.values()) == errors[found.split] < 0.5 * max(errors.values())
    flat = torch.rand(4, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).mul(-80).expand(4, 32, 32)
    assert choose_split(flat, 9, (16, 16)).values == choose_split(flat, 9, (16, 16)).steps == 512, "levels that do not change need one cell"


def test_more_bits_never_hurt_on_the_data_they_are_chosen_on():
    levels = ramps(seed=3)
    errors = [scalar_quantize(levels, bits, (16, 16)).error for bits in (9, 18, 36, 60)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 2 * errors[-1]


def test_range_ends_and_padding():
    levels = torch.full((1, 16, 16), -200.0)
    levels[:, 8:] = 30.0
    found = scalar_quantize(levels, 10, (16, 16), (-80, 0), ScalarSplit(2, 1, 32))
    assert found.cells.tolist() == [[[0, 31]]] and found.reconstruction.unique().tolist() == [-78.75, -1.25]
    assert found.reconstruction.dtype == torch.float32
    valid = torch.zeros(1, 16, dtype=torch.bool)
    valid[:, 8:] = True
    only = scalar_quantize(levels, 10, (16, 16), (-80, 0), ScalarSplit(2, 1, 32), valid)
    assert only.error == pytest.approx(31.25)
    assert scalar_quantize(levels / 10, 4, (16, 16), (-20.0, 3.0), ScalarSplit(2, 1, 2)).reconstruction.unique().tolist() == [-14.25, -2.75]


def test_smooth_interpolates_between_centres():
    levels = torch.linspace(-80, 0, 64, dtype=torch.float64)[None, :, None].expand(1, 64, 16)
    held, smooth = (scalar_quantize(levels, 18, (16, 16), split=ScalarSplit(1, 1, 2**18, smooth=way)) for way in (False, True))
    assert torch.equal(held.cells, smooth.cells) and smooth.error < 0.4 * held.error
    torch.testing.assert_close(smooth.reconstruction[:, 8:56], levels[:, 8:56], rtol=0, atol=1e-3)


@pytest.mark.parametrize("change, words", [
    ({"levels": torch.zeros(16, 16)}, r"levels must be \(clips, frames, mels\)"),
    ({"levels": torch.zeros(1, 20, 16)}, r"16 x 16 divide, got \(1, 20, 16\)"),
    ({"levels": torch.zeros(0, 16, 16)}, r"got \(0, 16, 16\)"), ({"bits_per_token": 0}, "bits_per_token must be 1 to 60, got 0"),
    ({"bits_per_token": 61}, "got 61"), ({"clamp_range": (0.0, -80.0)}, "clamp_range must rise"),
    ({"valid": torch.zeros(1, 16, dtype=torch.bool)}, "at least one frame that counts"), ({"valid": torch.ones(1, 16)}, "of dtype bool"),
    ({"split": ScalarSplit(3, 1, 2)}, "does not cut a patch of 16 x 16"), ({"split": ScalarSplit(1, 1, 1)}, "at least 2 steps"),
    ({"split": ScalarSplit(1, 1, 513)}, "needs more than 9 bits a patch")])
def test_refusals(change, words):
    with pytest.raises(ValueError, match=words):
        scalar_quantize(**{"levels": torch.zeros(1, 16, 16), "bits_per_token": 9, "patch": (16, 16)} | change)
    assert scalar.choose_split(torch.zeros(1, 16, 16), 9, (16, 16))
