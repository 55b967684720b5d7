"""Reconstructions: every row shows what it says, at the right places."""
import numpy as np
import pytest
import torch

from lib.display.reconstruction import reconstructions
from lib.encoders.patches import patchify

SIZE, PATCH = 16, 8


def drawn(picture):
    """{row: [pictures]}."""
    rows = {}
    for axes in picture.axes:
        name = axes.get_ylabel() or name
        rows.setdefault(name, []).append(np.ma.filled(axes.images[0].get_array(), np.nan))
    return rows


def test_sound_is_grey_where_hidden_predicted_there_and_true_elsewhere():
    images = torch.rand(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    target = patchify(images, PATCH)
    hidden = torch.tensor([[True, False, False, True], [False, True, False, False]])
    picture = reconstructions(torch.full_like(target, 0.25), target, hidden, size=SIZE, patch=PATCH, channels=1, limits=(0, 1), titles=["a", "b"])
    rows = drawn(picture)
    assert list(rows) == ["visible", "predicted", "true"] and all(len(some) == 2 for some in rows.values())
    for k in range(2):
        assert np.allclose(rows["true"][k], images[k, 0])
        mask = hidden[k].reshape(2, 2).repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1).numpy()
        assert np.isnan(rows["visible"][k][mask]).all() and np.allclose(rows["visible"][k][~mask], images[k, 0].numpy()[~mask])
        assert np.allclose(rows["predicted"][k][mask], 0.25) and np.allclose(rows["predicted"][k][~mask], images[k, 0].numpy()[~mask])
    assert picture.axes[0].images[0].origin == "lower", "low frequencies are at the bottom"


def test_frames_are_columns_in_colour_within_the_limits():
    frames = 2 * torch.rand(1, 5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) - 1
    target = patchify(frames, PATCH).flatten(1, 2)
    picture = reconstructions(3 * target, target, torch.ones(1, 20, dtype=torch.bool), frames=5, size=SIZE, patch=PATCH, channels=3,
                              limits=(-1, 1), most_frames=3)
    rows = drawn(picture)
    assert all(len(some) == 3 and some[0].shape == (SIZE, SIZE, 3) for some in rows.values())
    for column, frame in enumerate((0, 2, 4)):
        assert np.allclose(rows["true"][column], (frames[0, frame].permute(1, 2, 0) + 1) / 2, atol=1e-6)
        assert rows["predicted"][column].min() >= 0 and rows["predicted"][column].max() <= 1


def test_refusals():
    target = torch.zeros(2, 4, 64)
    with pytest.raises(ValueError, match=r"\(clips, 4, 192\)"):
        reconstructions(target, target, torch.zeros(2, 4, dtype=torch.bool), size=SIZE, patch=PATCH, channels=3, limits=(0, 1))
    two = torch.zeros(2, 8, 64)
    with pytest.raises(ValueError, match="give one clip"):
        reconstructions(two, two, torch.zeros(2, 8, dtype=torch.bool), frames=2, size=SIZE, patch=PATCH, channels=1, limits=(0, 1))
