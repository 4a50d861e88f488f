"""Combines the full-resolution lightness of a photo with a network's a*b*."""

import itertools
import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image

from jaxcolor import color
from jaxcolor.inference import pixels
from jaxcolor.prepare.deep import DeepImage

Photo = TypeVar('Photo', bound=Image.Image | DeepImage)

# Pixels of a photo of 16 bits that are shrunk together; bounds the memory that this takes.
_SHRUNK_PIXELS = 2**17
# Multiplications of a matrix product that OpenBLAS leaves to one thread; its threads get in the way of photos' own.
_PRODUCT = 2**17
# Of the edge-aware enlargement, chosen on 13 photos (README): what is added to the variance of L*, in its units squared.
_EDGE_NOISE = 40.0


def join(image: Photo, ab: np.ndarray, in_place: bool = False, lightness: np.ndarray | None = None) -> Photo:
    """Joins the L* of a photo and a*b*, enlarged to its size.

    a*b* change where the photo's own lightness does (`edge_model`). Colors outside sRGB lose chroma until they fit, so that
    the photo's lightness stays.

    Args:
        image: L, RGB or RGBA in sRGB; or of 16 bits.
        ab: float32 (h, w, 2).
        in_place: colors the image itself, if it has three channels or more.
        lightness: as for `edge_model`.

    Returns:
        The photo in RGB, or RGBA with the same transparency; of as many bits.
    """
    W, H = image.size
    h = len(ab)
    model = np.concatenate(edge_model(image, ab, lightness), axis=-1)  # (h, w, 4)
    planes = [Image.fromarray(np.ascontiguousarray(model[..., i])) for i in range(4)]
    across = np.stack([np.asarray(plane.resize((W, h), Image.Resampling.BICUBIC)) for plane in planes])  # (4, h, W)
    # The weights by which Pillow mixes rows: as a product of matrices, which takes a fifth of its time.
    down = np.asarray(Image.fromarray(np.eye(h, dtype=np.float32)).resize((h, H), Image.Resampling.BICUBIC))  # (H, h)
    out = image if in_place and image.mode in ('RGB', 'RGBA') else _empty_result(image)
    enlarged = pixels.aligned((4, pixels.CHUNK), np.float32)
    for left, top, right, bottom in _boxes(W, H):
        _mix_rows(down[top:bottom], across[..., left:right], enlarged)
        _recolor_box(image, out, (left, top, right, bottom), enlarged)
    return out


def _boxes(W, H):
    """Parts of a photo, (left, top, right, bottom), of at most CHUNK pixels each: rows, or parts of one."""
    columns = min(W, pixels.CHUNK)
    rows = pixels.CHUNK // columns
    for top, left in itertools.product(range(0, H, rows), range(0, W, columns)):
        yield left, top, min(W, left + columns), min(H, top + rows)


def _mix_rows(weights, planes, out):
    """Mixes rows: (rows, h) and float32 (4, h, columns) -> the first rows * columns of out, (4, N)."""
    rows, columns = len(weights), planes.shape[2]
    mixed = out[:, : rows * columns].reshape(len(planes), rows, columns)
    # The first weight of a row and those after it, and the end of the last of it and those before it.
    starts, ends = (weights != 0).argmax(axis=1), weights.shape[1] - (weights[:, ::-1] != 0).argmax(axis=1)
    starts, ends = np.minimum.accumulate(starts[::-1])[::-1], np.maximum.accumulate(ends)
    top = 0
    while top < rows:
        # As many rows as one thread of OpenBLAS takes.
        products = np.arange(1, rows - top + 1) * (ends[top:] - starts[top]) * columns
        bottom = top + max(1, int(np.searchsorted(products, _PRODUCT)))
        used = slice(starts[top], ends[bottom - 1])
        np.matmul(weights[top:bottom, used], planes[:, used], out=mixed[:, top:bottom])
        top = bottom


def _recolor_box(image, out, box, model):
    """Colors the pixels in a box by the model of a*b* that `_mix_rows` made, and keeps their transparency."""
    left, top, right, bottom = box
    if isinstance(image, DeepImage):
        levels, colored = (x.pixels[top:bottom, left:right] for x in (image, out))
        channels = levels.shape[2]
        is_gray = channels < 3 or (levels[..., 1:3] == levels[..., :1]).all()
        light = levels[..., 0].reshape(-1) if is_gray else levels.reshape(-1, channels)
        colored[..., :3] = pixels.recolor(light, model)[:, :3].reshape(*colored.shape[:2], 3)
        if colored.shape[2] == 4:
            colored[..., 3] = levels[..., -1]
        return
    part = image.crop(box)
    if part.mode == 'LA':
        part = part.convert('RGBA')
    if part.mode == 'L':
        light = np.asarray(part).reshape(-1)
    else:
        light = np.frombuffer(part.tobytes('raw', 'RGBX' if part.mode == 'RGB' else 'RGBA'), np.uint32)
    colored = pixels.recolor(light, model)  # (N, 4)
    if part.mode == 'RGBA':
        colored = np.concatenate([colored[:, :3], light.view(np.uint8).reshape(-1, 4)[:, 3:]], axis=1)
    out.paste(Image.frombuffer(out.mode, part.size, colored, 'raw', 'RGBX' if out.mode == 'RGB' else 'RGBA', 0, 1), box)


def edge_model(
    image: Image.Image | DeepImage, ab: np.ndarray, lightness: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """How a*b* follow the photo's L*, from pixel to pixel of the network: a*b* = slope L* + offset.

    Args:
        image: the photo.
        ab: float32 (h, w, 2).
        lightness: L* of the photo as the network saw it, float32 (h', w', 1); used if it has the size of a*b*.

    Returns:
        (slope, offset), float32 (h, w, 2). The slopes are 0 where the photo has no more pixels than a*b*.
    """
    h, w = ab.shape[:2]
    if image.width <= w or image.height <= h:
        return np.zeros_like(ab, np.float32), ab.astype(np.float32)
    if lightness is None or lightness.shape[:2] != (h, w):
        lightness = color.rgb_to_lab(np.asarray(resized(image, (w, h), Image.Resampling.BOX)))[..., :1]  # (h, w, 1)
    return slopes_and_offsets(lightness, ab, _mean3)


def slopes_and_offsets(
    lightness: np.ndarray, planes: np.ndarray, mean: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """How planes of color follow L*, from pixel to pixel: plane = slope L* + offset.

    The slopes are those of the guided filter (He, Sun, Tang, *Guided Image Filtering*, ECCV 2010, equations 5, 6 and 8) over
    3 x 3 pixels. Its offsets are not smoothed here, so that at the network's own pixels the planes stay as they are.

    Args:
        lightness: L*, float32 (h, w, 1).
        planes: float32 (h, w, C).
        mean: over 3 x 3 pixels, edges repeated, float32 (h, w, C) -> the same.

    Returns:
        (slope, offset), float32 (h, w, C).
    """
    mean_l, mean_planes = mean(lightness), mean(planes)
    variance = mean(lightness * lightness) - mean_l * mean_l
    slope = mean((mean(lightness * planes) - mean_l * mean_planes) / (variance + np.float32(_EDGE_NOISE)))
    return slope, (planes - slope * lightness).astype(np.float32)


def _mean3(x):
    """The mean over 3 x 3 pixels, edges repeated: float (h, w, C) -> float32."""
    for axis in (0, 1):
        before, after = (np.take(x, at, axis=axis) for at in ([0], [-1]))
        padded = np.concatenate([before, x, after], axis=axis)
        length = x.shape[axis]
        x = sum(np.take(padded, np.arange(i, i + length), axis=axis) for i in range(3)) / np.float32(3)
    return x


def resized(image: Image.Image | DeepImage, size: tuple[int, int], resampling: Image.Resampling) -> Image.Image:
    """A photo of another size (w, h), in RGB of 8 bits."""
    if isinstance(image, DeepImage):
        if resampling == Image.Resampling.BOX:
            return _shrunk(image, size).convert('RGB')
        image = image.in_8_bits()
    if image.mode not in ('L', 'RGB'):
        image = image.convert('RGB')
    return image.resize(size, resampling).convert('RGB')


def _shrunk(image, size):
    """Shrinks a photo of 16 bits by an area filter, by strips, so that no whole copy of it is made."""
    (W, H), (w, h) = image.size, size
    out = Image.new(image.mode, size)
    step = max(1, _SHRUNK_PIXELS * h // (W * H))
    for top in range(0, h, step):
        bottom = min(h, top + step)
        first, last = top * H / h, bottom * H / h  # rows of the photo
        whole = slice(math.floor(first), math.ceil(last))
        strip = DeepImage(image.pixels[whole]).in_8_bits()
        box = (0, first - whole.start, W, min(last - whole.start, strip.height))
        out.paste(strip.resize((w, bottom - top), Image.Resampling.BOX, box), (0, top))
    return out


def _empty_result(image):
    """A photo of the same size, depth and transparency, in color."""
    channels = 3 + (image.mode[-1] == 'A')
    if isinstance(image, DeepImage):
        return DeepImage(np.empty((image.height, image.width, channels), np.uint16))
    return Image.new('RGBA' if channels == 4 else 'RGB', image.size)
