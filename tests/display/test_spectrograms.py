"""The map of intensities: hue is azimuth, brightness is level, and the wheel says which hue is which."""
from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from lib.audio.ambisonics import encode
from lib.audio.directions import DIRECTIONS
from lib.audio.foa import FoaMel, FoaMelConfig
from lib.display.spectrograms import _azimuth_colours, intensity_map


def features(*azimuths: float, elevation: float = 20.0) -> torch.Tensor:
    """(7, frames, mels) of noise from one place after another, half a second each."""
    signal = 0.1 * torch.randn(12000, generator=torch.Generator().manual_seed(0))
    return FoaMel(FoaMelConfig())(torch.cat([encode(signal, azimuth, elevation) for azimuth in azimuths], -1)[None])[0]


def colours(picture) -> np.ndarray:
    """(mels, frames, 3) of the map."""
    return picture.axes[0].images[0].get_array()


def test_hue_is_the_azimuth_and_the_wheel_agrees():
    seen = features(95.0, -140.0)
    picture = intensity_map(seen[4:], seen[0], hop_seconds=0.01, fmin=20, fmax=12000, limits=(-200.0, -100.0), title="$ <b>")
    image = colours(picture)
    for frames, azimuth in ((slice(5, 45), 95.0), (slice(56, 95), -140.0)):
        np.testing.assert_allclose(image[:, frames].reshape(-1, 3).mean(0), _azimuth_colours(np.radians(azimuth)), atol=0.03)
    assert imread(io.BytesIO(picture._repr_png_())).shape[1] == 900
    loud, wheel = (axes for axes in picture.axes if axes.get_title(loc="left") == "Level" or axes.name == "polar")
    assert wheel.name == "polar" and [t.get_text() for t in wheel.get_xticklabels()] == list(DIRECTIONS)
    assert wheel.get_theta_offset() == -np.pi / 2 and wheel.get_theta_direction() == 1, "south at the bottom, east at the right"
    ring = wheel.collections[0].get_facecolor() if wheel.collections[0].get_array() is None else wheel.collections[0].get_array()
    ring = np.asarray(ring).reshape(-1, np.asarray(ring).shape[-1])[:, :3]
    np.testing.assert_allclose(ring[len(ring) // 4], _azimuth_colours(np.radians(91.5)), atol=1e-6)
    assert np.array_equal(loud.images[0].get_array(), seen[0].T) and picture.axes[0].get_xlabel() == "Time (s)"
    assert [t.get_text() for t in picture.axes[0].get_yticklabels()] == [t.get_text() for t in loud.get_yticklabels()]


def test_the_circle_of_hues_is_closed_and_of_one_lightness():
    ring = _azimuth_colours(np.radians(np.arange(-180, 181)))
    assert np.array_equal(ring[0], ring[-1]) and np.abs(np.diff(ring, axis=0)).max() < 0.06
    linear = np.where(ring <= 0.04045, ring / 12.92, ((ring + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)
    assert linear.min() > 0.35 and np.ptp(linear) < 0.1, "brightness is left to the level"


def test_brightness_is_the_level_and_what_is_not_finite_is_white():
    intensity, level = np.zeros((3, 3, 4)), np.array([[-50.0, -40, -30, -20]] * 3)
    intensity[0], level[1, 1], intensity[2, 2, 2] = 1.0, np.nan, np.inf
    intensity[0, 2, 2] = np.nan
    image = colours(intensity_map(intensity, level, hop_seconds=0.1, limits=(-40.0, -20.0)))
    np.testing.assert_allclose(image[:, 0], np.outer((0, 0, 0.5, 1), _azimuth_colours(np.array(np.pi / 2))))
    assert (image[1, 1] == 1).all() and (image[2, 2] == 1).all()
    default = intensity_map(np.ones((3, 20, 50)), np.linspace(-100, 0, 1000).reshape(20, 50), hop_seconds=0.1)
    assert default.axes[1].images[0].get_clim() == pytest.approx((-50.5, -0.5), abs=0.01)


def test_shapes_that_do_not_fit_are_refused():
    for intensity, level, message in ((np.zeros((7, 5, 4)), np.zeros((5, 4)), r"features\[4:\]"),
                                      (np.zeros((3, 4, 5)), np.zeros((5, 4)), "intensity has shape"),
                                      (np.zeros((3, 5, 4)), np.zeros(5), "level has shape"),
                                      (np.zeros((3, 5, 4)), np.full((5, 4), np.nan), "no finite number")):
        with pytest.raises(ValueError, match=message):
            intensity_map(intensity, level, hop_seconds=0.01)
