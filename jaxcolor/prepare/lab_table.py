"""uint8 sRGB -> uint8 Lab by a lookup table of all 2^24 colors: ten times as fast as computing it, with the same result."""

import functools

import numpy as np
from PIL import Image

from jaxcolor import color

# Pixels (about sixty photos) after which building the table pays off.
_MIN_PIXELS = 2**22


def rgb_to_uint8_lab(rgb: np.ndarray) -> np.ndarray:
    """uint8 sRGB (..., 3) -> uint8 Lab (..., 3), as `color.encode_lab` defines it."""
    return color.encode_lab(color.rgb_to_lab(rgb))


@functools.cache
def _table():
    """uint32 (2^24,): the bytes L, a, b, 0 at the index of bytes R, G, B, 0. 64 MB, built in about a second."""
    table = np.zeros((256, 256, 256, 4), np.uint8)  # blue, green, red, channel
    rgb = np.zeros((256, 256, 3), np.uint8)
    rgb[..., 0] = np.arange(256)
    rgb[..., 1] = np.arange(256)[:, None]
    for blue in range(256):
        rgb[..., 2] = blue
        table[blue, ..., :3] = rgb_to_uint8_lab(rgb)
    return table.view('<u4').ravel()


class LabEncoder:
    """Converts RGB images to uint8 Lab: computed for the first ones, by table once there are many."""

    def __init__(self) -> None:
        self._pixels = 0

    def __call__(self, image: Image.Image) -> np.ndarray:
        """RGB `PIL.Image` -> uint8 Lab (H, W, 3)."""
        self._pixels += image.width * image.height
        if self._pixels < _MIN_PIXELS:
            return rgb_to_uint8_lab(np.asarray(image))
        index = np.asarray(image.convert('RGBA')).view('<u4')[..., 0] & np.uint32(0xFFFFFF)  # (H, W)
        entries = _table().take(index).view(np.uint8).reshape(*index.shape, 4)
        lab = np.empty((*index.shape, 3), np.uint8)
        for channel in range(3):  # faster than copying `entries[..., :3]`
            lab[..., channel] = entries[..., channel]
        return lab
