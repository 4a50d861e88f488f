"""uint8 sRGB -> uint8 Lab by a table of all 2^24 colors: a tenth of the time of computing it, with the same result."""

import functools

import numpy as np

from jaxcolor import color


def compute(rgb):
    """uint8 sRGB (..., 3) -> uint8 Lab (..., 3)."""
    return color.encode_lab(color.rgb_to_lab(rgb))


@functools.cache
def _table():
    """uint32 (2^24,): the bytes L, a, b, 0 at the index whose bytes are R, G, B, 0. 64 MB, made in about a second."""
    table = np.zeros((256, 256, 256, 4), np.uint8)  # blue, green, red, channel
    rgb = np.zeros((256, 256, 3), np.uint8)
    rgb[..., 0] = np.arange(256)
    rgb[..., 1] = np.arange(256)[:, None]
    for blue in range(256):
        rgb[..., 2] = blue
        table[blue, ..., :3] = compute(rgb)
    return table.view('<u4').ravel()


_TABLE_PAYS = 2**22  # pixels: whoever converts some sixty photos is likely to convert many


class LabEncoder:
    """Turns RGB images into uint8 Lab: by computing at first, by table once there are many."""

    def __init__(self):
        self._pixels = 0

    def __call__(self, image):
        """RGB `PIL.Image` -> uint8 Lab (H, W, 3)."""
        self._pixels += image.width * image.height
        if self._pixels < _TABLE_PAYS:
            return compute(np.asarray(image))
        rgba = np.asarray(image.convert('RGBA')).view('<u4')[..., 0]  # (H, W)
        found = _table().take(rgba & np.uint32(0xFFFFFF)).view(np.uint8).reshape(*rgba.shape, 4)
        lab = np.empty((*rgba.shape, 3), np.uint8)
        for channel in range(3):  # faster than copying `found[..., :3]`
            lab[..., channel] = found[..., channel]
        return lab
