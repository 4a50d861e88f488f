"""Crops and random augmentation of training photos. All of it works on the whole uint8 Lab array, so that lightness and
color stay aligned.
"""

import enum
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from jaxcolor.data.order import below

# The aspect ratios of crops of random size (Szegedy et al., Going Deeper with Convolutions, 2015, section 6).
ASPECT = (3 / 4, 4 / 3)


class Draw(enum.IntEnum):
    """The columns of a photo's random bits, one for each choice, so that switching one on leaves the others as they are."""

    TOP = 0
    LEFT = 1
    FLIP = 2
    FLIP_VERTICAL = 3
    AREA = 4
    ASPECT = 5
    ROTATE = 6
    SHIFT_DOWN = 7
    SHIFT_RIGHT = 8
    BRIGHTNESS = 9


# What a crop of random size and aspect draws.
BOX_DRAWS = (Draw.AREA, Draw.ASPECT, Draw.TOP, Draw.LEFT)


def enlarge_to(lab: np.ndarray, crop: int) -> np.ndarray:
    """Enlarges a photo, uint8 (H, W, 3), whose shorter side is below `crop`, until that side is `crop`."""
    height, width = lab.shape[:2]
    scale = crop / min(height, width)
    if scale <= 1:
        return lab
    size = (max(crop, round(width * scale)), max(crop, round(height * scale)))
    return np.asarray(Image.fromarray(lab).resize(size, Image.Resampling.BILINEAR))


def center_crop(lab: np.ndarray, crop: int) -> np.ndarray:
    """The center of a photo: uint8 (H, W, 3) -> (crop, crop, 3). Smaller photos are enlarged first."""
    lab = enlarge_to(lab, crop)
    top, left = (lab.shape[0] - crop) // 2, (lab.shape[1] - crop) // 2
    return lab[top : top + crop, left : left + crop]


def augment(lab: np.ndarray, bits: np.ndarray, data: ConfigDict, out: np.ndarray) -> None:
    """Writes a random crop of a photo, changed as the config says, but for `data.flip`: `device.flip` does it.

    Args:
        lab: uint8 Lab (H, W, 3).
        bits: uint32 (len(Draw),), the random numbers of the photo.
        data: the config's `data` section.
        out: uint8 (crop, crop, 3), the result.
    """
    crop = data.crop
    lab = enlarge_to(lab, crop)
    if data.rotate or data.shift:
        lab = _move(lab, bits, data)
    if data.resized_crop:
        lab = _resized_crop(lab, bits, data)
    else:
        height, width = lab.shape[:2]
        top = below(int(bits[Draw.TOP]), height - crop + 1)
        left = below(int(bits[Draw.LEFT]), width - crop + 1)
        lab = lab[top : top + crop, left : left + crop]
    if data.brightness:
        lab = _brighten(lab, bits, data)
    if data.flip_vertical and _unit(bits[Draw.FLIP_VERTICAL]) < 0.5:
        lab = lab[::-1]
    out[:] = lab


def is_flipped(bits: Any) -> Any:
    """Whether photos are flipped left to right: uint32 (..., len(Draw)), NumPy or JAX -> bool (...)."""
    return bits[..., Draw.FLIP] < np.uint32(2**31)


def _unit(bits):
    """uint32 -> float in [0, 1)"""
    return float(bits) / 2**32


def _symmetric(bits, limit):
    """uint32 -> float in [-limit, limit)"""
    return (2 * _unit(bits) - 1) * limit


def _move(lab, bits, data):
    """Rotates and shifts the photo, which is mirrored at its edges."""
    height, width = lab.shape[:2]
    angle = math.radians(_symmetric(bits[Draw.ROTATE], data.rotate))
    down = _symmetric(bits[Draw.SHIFT_DOWN], data.shift) * height
    right = _symmetric(bits[Draw.SHIFT_RIGHT], data.shift) * width
    cos, sin = math.cos(angle), math.sin(angle)
    # How far the rotated and shifted frame reaches from the center of the photo: so far the photo has to be padded.
    reach_y = (abs(sin) * width + abs(cos) * height) / 2 + abs(down) + abs(right)
    reach_x = (abs(cos) * width + abs(sin) * height) / 2 + abs(down) + abs(right)
    pad_y, pad_x = max(0, math.ceil(reach_y - height / 2) + 1), max(0, math.ceil(reach_x - width / 2) + 1)
    padded = np.pad(lab, ((pad_y, pad_y), (pad_x, pad_x), (0, 0)), 'symmetric')
    # Pillow wants the inverse, from output to input pixels.
    x0, y0 = width / 2 + right, height / 2 + down
    matrix = (
        cos,
        sin,
        width / 2 + pad_x - cos * x0 - sin * y0,
        -sin,
        cos,
        height / 2 + pad_y + sin * x0 - cos * y0,
    )
    image = Image.fromarray(padded)
    return np.asarray(image.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))


def _resized_crop(lab, bits, data):
    """A box of random area and aspect (`random_box`), resized to the crop by Lanczos: networks trained on blurred photos
    leave sharp ones gray."""
    units = {draw: _unit(bits[draw]) for draw in BOX_DRAWS}
    top, left, height, width = (int(x) for x in random_box(*lab.shape[:2], units, data, np))
    box = (left, top, left + width, top + height)
    return np.asarray(Image.fromarray(lab).resize((data.crop, data.crop), Image.Resampling.LANCZOS, box))


def random_box(height: Any, width: Any, units: Mapping[Draw, Any], data: ConfigDict, xp: Any) -> tuple[Any, Any, Any, Any]:
    """The box of a crop of random size and aspect; never smaller than the crop, so that nothing is enlarged.

    Args:
        height, width: of the photo, at least data.crop; numbers or arrays, float on the device.
        units: the photo's random numbers of BOX_DRAWS, in [0, 1).
        data: the config's `data` section: crop, resized_crop.
        xp: numpy or jax.numpy. In float32, a side or a place is another one where it lies within 1e-5 of a half.

    Returns:
        (top, left, height, width), whole numbers of the same kind.
    """
    area = height * width * (data.resized_crop + units[Draw.AREA] * (1 - data.resized_crop))
    low, high = (math.log(aspect) for aspect in ASPECT)
    aspect = xp.exp(low + units[Draw.ASPECT] * (high - low))
    box_width = xp.minimum(width, xp.maximum(data.crop, xp.round(xp.sqrt(area * aspect))))
    box_height = xp.minimum(height, xp.maximum(data.crop, xp.round(xp.sqrt(area / aspect))))
    left = xp.round(units[Draw.LEFT] * (width - box_width))
    top = xp.round(units[Draw.TOP] * (height - box_height))
    return top, left, box_height, box_width


def _brighten(lab, bits, data):
    """`brighten` by tables of all 256 levels."""
    levels = np.repeat(np.arange(256.0)[:, None], 3, axis=1)
    tables = brighten(levels, _unit(bits[Draw.BRIGHTNESS]), data, np).astype(np.uint8)
    return np.asarray(Image.fromarray(lab).point(tables.T.ravel().tolist()))


def brighten(levels: Any, unit: Any, data: ConfigDict, xp: Any) -> Any:
    """Multiplies linear light by a random factor k in [1 / (1 + brightness), 1 + brightness].

    In CIE Lab, multiplying X, Y, Z by k multiplies a*, b* and L* + 16 by c = k^(1/3), except for the darkest pixels, where
    Lab is linear. Values outside the range of uint8 Lab are clipped.

    Args:
        levels: uint8 Lab as float (..., 3).
        unit: random number in [0, 1), or (..., 1) of them.
        data: the config's `data` section: brightness.
        xp: numpy or jax.numpy.

    Returns:
        Whole numbers in [0, 255], of the shape and type of `levels`.
    """
    c = (1 + data.brightness) ** ((2 * unit - 1) / 3)
    lightness = ((levels[..., :1] / 2.55 + 16) * c - 16) * 2.55
    chroma = (levels[..., 1:] - 128) * c + 128
    return xp.round(xp.clip(xp.concatenate([lightness, chroma], axis=-1), 0, 255))
