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
    # Half is rounding; green makes up for that of red and blue, whose luminance is 0.4 of its own.
    assert (difference <= ([0.51, 0.75, 0.51] if bits == 8 else 0.75)).all()


@pytest.mark.parametrize('seed', range(3))
def test_lightness_stays_within_half_a_step(seed):
    g = np.random.default_rng(seed)
    gray = g.integers(0, (256, 20, 20)[seed], 70_000).astype(np.uint8)  # the darkest are the hardest
    ab = g.uniform(-110, 110, (70_000, 2)) * (1, 0.3, 0.1)[seed]  # most lie outside sRGB
    lightness = rgb2lab(recolored(gray, (0, 0), ab) / 255)[:, 0]
    levels = rgb2lab(np.repeat(np.linspace(0, 1, 25_501)[:, None], 3, axis=1))[:, 0]
    assert np.abs(np.interp(lightness, levels, np.linspace(0, 255, 25_501)) - gray).max() <= 0.5
