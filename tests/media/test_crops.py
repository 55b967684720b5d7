"""Random crops of clips: what is kept, and that only the clip's seed decides."""
import torch

from lib.media.crops import random_crops


def ramp(frames: int = 2, size: int = 32) -> torch.Tensor:
    """A clip whose red rises to the right and whose green rises downward, from 0 to 1."""
    line = (torch.arange(size) + 0.5) / size
    return torch.stack([line.expand(size, size), line[:, None].expand(size, size), torch.full((size, size), 0.25)]).expand(frames, 3, size, size)


def test_a_crop_is_a_rectangle_of_the_asked_area_and_aspect_and_half_of_them_are_mirrored():
    seeds = list(range(400))
    clips = random_crops(ramp()[None].expand(400, -1, -1, -1, -1), seeds, 0.36)
    assert (clips[:, :1] == clips).all(), "all frames of a clip have one crop"
    step_x = (clips[:, 0, 0, :, 20] - clips[:, 0, 0, :, 11])[:, 16] * 32 / 9           # width with its sign: the ramp's slope
    step_y = (clips[:, 0, 1, 20] - clips[:, 0, 1, 11])[:, 16] * 32 / 9
    area, aspect = step_x.abs() * step_y, step_x.abs() / step_y
    assert 0.35 < area.min() and area.max() <= 1.001 and 0.62 < area.mean() < 0.72
    assert 0.74 < aspect.min() and aspect.max() < 1.34
    assert 0.4 < (step_x < 0).float().mean() < 0.6
    assert clips.min() >= 0 and clips.max() <= 1 and torch.allclose(clips[:, :, 2], torch.tensor(0.25))
    # whole rectangles: what lies at their edges is inside the picture, everywhere the same distance from its neighbour
    assert torch.allclose(clips[:, 0, 1, 1:-1].diff(dim=1), step_y[:, None, None].expand(-1, 29, 32) / 32, atol=2e-2)


def test_only_the_seed_decides_and_the_whole_picture_is_kept_exactly():
    clip = torch.randint(0, 256, (1, 3, 3, 16, 16), dtype=torch.uint8)
    both = random_crops(clip.expand(2, -1, -1, -1, -1), [5, 6], 0.5)
    assert torch.equal(both[:1], random_crops(clip, [5], 0.5)) and not torch.equal(both[0], both[1])
    assert torch.allclose(random_crops(clip.float() / 255, [5], 0.5), both[:1])
