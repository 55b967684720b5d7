import numpy as np
import pytest

from lib.audio.directions import DIRECTIONS, direction_index, direction_word


def naive(azimuth):
    """Nearest of the eight centres; at equal distance the counter-clockwise one (the sector holds its lower edge)."""
    centres = {"south": 0, "southeast": 45, "east": 90, "northeast": 135, "north": 180, "northwest": 225, "west": 270, "southwest": 315}
    return min(centres, key=lambda w: (abs((azimuth - centres[w] + 180) % 360 - 180), -((azimuth - centres[w] + 180) % 360 - 180) < 0))


def test_centres():
    assert [direction_word(a) for a in (0, 90, 180, -90)] == ["south", "east", "north", "west"]
    assert [direction_word(45 * k) for k in range(8)] == list(DIRECTIONS)
    assert direction_word(-180) == direction_word(180) == direction_word(540) == "north"


@pytest.mark.parametrize("k", range(-8, 8))
def test_boundaries(k):
    edge = 22.5 + 45 * k
    assert direction_word(edge) == DIRECTIONS[(k + 1) % 8]
    assert direction_word(edge - 1e-9) == DIRECTIONS[k % 8]


def test_minus_22_5_is_south_and_just_below_is_southwest():
    assert direction_word(-22.5) == "south" and direction_word(-22.5 - 1e-9) == "southwest"


def test_arrays_agree_with_naive_and_with_scalars():
    azimuths = np.random.default_rng(0).uniform(-720, 720, (40, 5))
    words = direction_word(azimuths)
    assert words.shape == azimuths.shape
    assert words.ravel().tolist() == [naive(a) for a in azimuths.ravel()] == [direction_word(a) for a in azimuths.ravel()]
    assert set(direction_index(azimuths).ravel()) == set(range(8))


def test_non_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        direction_word(float("nan"))
