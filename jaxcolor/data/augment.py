"""What happens to a photo between its record and a training batch. Everything works on the uint8 Lab array as a whole,
so lightness and color stay aligned."""

import enum
import math

import numpy as np
from PIL import Image

from jaxcolor.data.order import below

# A crop of random size has a random aspect too (Szegedy et al., Going Deeper with Convolutions, 2015, section 6).
ASPECT = (3 / 4, 4 / 3)


class Draw(enum.IntEnum):
    """The columns of random bits that a photo has. Each choice has its own: switching one on changes no other."""

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


def enlarge_to(lab, crop):
    """uint8 (H, W, 3) with a side shorter than `crop` -> enlarged until that side is `crop`; others as they are."""
    height, width = lab.shape[:2]
    scale = crop / min(height, width)
    if scale <= 1:
        return lab
    size = (max(crop, round(width * scale)), max(crop, round(height * scale)))
    return np.asarray(Image.fromarray(lab).resize(size, Image.Resampling.BILINEAR))


def center_crop(lab, crop):
    """uint8 (H, W, 3) -> the (crop, crop, 3) in its middle; photos smaller than that are enlarged first."""
    lab = enlarge_to(lab, crop)
    top, left = (lab.shape[0] - crop) // 2, (lab.shape[1] - crop) // 2
    return lab[top : top + crop, left : left + crop]


def copy_mirrored(source, target):
    """target = source flipped left to right. Plane by plane takes NumPy a sixth of the time of `source[:, ::-1]`."""
    for channel in range(3):
        target[..., channel] = source[:, ::-1, channel]


def augment(lab, bits, data, out):
    """Writes a random view of a photo.

    Args:
        lab: uint8 Lab (H, W, 3).
        bits: uint32 (len(Draw),), the photo's random numbers.
        data: the config's `data` section.
        out: uint8 (crop, crop, 3), written to.
    """
    crop = data.crop
    lab = enlarge_to(lab, crop)
    if data.rotate or data.shift:
        lab = _move(lab, bits, data)
    if data.resized_crop:
        lab = _resized_crop(lab, bits, data)
    else:
        height, width = lab.shape[:2]
        top = int(below(bits[Draw.TOP], np.uint32(height - crop + 1)))
        left = int(below(bits[Draw.LEFT], np.uint32(width - crop + 1)))
        lab = lab[top : top + crop, left : left + crop]
    if data.brightness:
        lab = _brighten(lab, bits, data)
    if data.flip_vertical and _unit(bits[Draw.FLIP_VERTICAL]) < 0.5:
        lab = lab[::-1]
    if data.flip and _unit(bits[Draw.FLIP]) < 0.5:
        copy_mirrored(lab, out)
    else:
        out[:] = lab


def _unit(bits):
    """-> [0, 1)"""
    return float(bits) / 2**32


def _around_zero(bits, most):
    """-> [-most, most)"""
    return (2 * _unit(bits) - 1) * most


def _move(lab, bits, data):
    """Turns and shifts the photo; what comes in from outside is its mirror image."""
    height, width = lab.shape[:2]
    angle = math.radians(_around_zero(bits[Draw.ROTATE], data.rotate))
    down = _around_zero(bits[Draw.SHIFT_DOWN], data.shift) * height
    right = _around_zero(bits[Draw.SHIFT_RIGHT], data.shift) * width
    cos, sin = math.cos(angle), math.sin(angle)
    # Where the turned and shifted frame reaches to, from the photo's center: that much has to be mirrored in.
    reach_y = (abs(sin) * width + abs(cos) * height) / 2 + abs(down) + abs(right)
    reach_x = (abs(cos) * width + abs(sin) * height) / 2 + abs(down) + abs(right)
    pad_y, pad_x = max(0, math.ceil(reach_y - height / 2) + 1), max(0, math.ceil(reach_x - width / 2) + 1)
    padded = np.pad(lab, ((pad_y, pad_y), (pad_x, pad_x), (0, 0)), 'symmetric')
    # Pillow asks where each output pixel comes from: center, turn back, shift back.
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
    """A box of random area and aspect, brought to the crop's size. It is never smaller than the crop and filtered by
    Lanczos: networks find blurred photos another kind of photos, and having learnt from them leave sharp ones gray.
    """
    height, width = lab.shape[:2]
    area = height * width * (data.resized_crop + _unit(bits[Draw.AREA]) * (1 - data.resized_crop))
    low, high = (math.log(aspect) for aspect in ASPECT)
    aspect = math.exp(low + _unit(bits[Draw.ASPECT]) * (high - low))
    box_width = min(width, max(data.crop, round(math.sqrt(area * aspect))))
    box_height = min(height, max(data.crop, round(math.sqrt(area / aspect))))
    left = round(_unit(bits[Draw.LEFT]) * (width - box_width))
    top = round(_unit(bits[Draw.TOP]) * (height - box_height))
    box = (left, top, left + box_width, top + box_height)
    return np.asarray(Image.fromarray(lab).resize((data.crop, data.crop), Image.Resampling.LANCZOS, box))


def _brighten(lab, bits, data):
    """Linear light times a factor k in [1 / (1 + brightness), 1 + brightness].

    In CIE Lab all of X, Y, Z times k is f times c = k^(1/3) (but for the blackest pixels, where f is a line), so a* and
    b* are multiplied by c and L* + 16 too. Where that leaves sRGB, values are cut off at what uint8 Lab can hold.
    """
    c = (1 + data.brightness) ** (_around_zero(bits[Draw.BRIGHTNESS], 1) / 3)
    level = np.arange(256)
    lightness = ((level / 2.55 + 16) * c - 16) * 2.55
    chroma = (level - 128) * c + 128
    tables = np.round(np.clip(np.stack([lightness, chroma, chroma]), 0, 255)).astype(np.uint8)
    return np.asarray(Image.fromarray(lab).point(tables.ravel().tolist()))
