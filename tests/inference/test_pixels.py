"""The compiled arithmetic of joining, against scikit-image's in float64."""

import numpy as np
import pytest
from skimage.color import lab2rgb, rgb2lab

from jaxcolor.inference import pixels


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(pixels, 'CHUNK', 70_000)


def recolored(light, slope, offset):
    """What becomes of pixels: int (N, 3)."""
    model = pixels.aligned((4, pixels.CHUNK), np.float32)
    for rows, values in ((model[:2], slope), (model[2:], offset)):
        rows[:, : len(light)] = np.broadcast_to(values, (len(light), 2)).T
    return pixels.recolor(light, model)[:, :3].astype(int)


@pytest.mark.parametrize('bits', [8, 16])
def test_pixels_with_their_own_colors_stay(bits):
    top = 2**bits - 1
    rgb = np.round(top * np.random.default_rng(0).uniform(size=(20_000, 3)) ** 2).astype(int)  # many are dark
    ab = rgb2lab(rgb / top)[:, 1:]
    if bits == 8:
        light = (rgb << (0, 8, 16)).sum(axis=1).astype(np.uint32) + np.uint32(77 << 24)
    else:
        light = np.concatenate([rgb, rgb[:, :1]], axis=1).astype(np.uint16)
    # L* is known to a quarter of a step of 16 bits.
    assert np.abs(recolored(light, (0, 0), ab) - rgb).max() <= (0 if bits == 8 else 1)


@pytest.mark.parametrize('bits', [8, 16])
def test_colors_follow_the_lightness_of_grays(bits):
    top = 2**bits - 1
    light = np.arange(top + 1).astype(np.uint8 if bits == 8 else np.uint16)
    lightness = rgb2lab(np.repeat(light[:, None], 3, axis=1) / top)[:, :1]
    slope, offset = np.float32([0.2, -0.1]), np.float32([-3, 8])
    expected = top * lab2rgb(np.concatenate([lightness, slope * lightness + offset], axis=1))
    inside = (expected > 0).all(axis=1) & (expected < top).all(axis=1)
    assert inside.mean() > 0.75
    difference = np.abs(recolored(light, slope, offset) - expected)[inside]
    assert difference.max() <= (0.51 if bits == 8 else 0.75)  # half is rounding
