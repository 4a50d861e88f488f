"""Combines the full-resolution lightness of a photo with a network's a*b*."""

import functools
import math
from typing import TypeVar

import jax
import numpy as np
from PIL import Image

from jaxcolor import color
from jaxcolor.prepare.deep import DeepImage

Photo = TypeVar('Photo', bound=Image.Image | DeepImage)

# Pixels per call of the compiled conversions; always as many, so that each is compiled once. Photos are colored by strips of
# rows of about as many pixels, which bounds the memory that a large scan takes.
_CHUNK, _OUTSIDE_CHUNK = 2**17, 2**13
# Multiplications of a matrix product that OpenBLAS leaves to one thread; its threads get in the way of photos' own.
_PRODUCT = 2**17
# Of the edge-aware enlargement, chosen on 13 photos (README): what is added to the variance of L*, in its units squared.
_EDGE_NOISE = 40.0
# Linear light that a color may lie outside sRGB: a third of a step of its depth in black, less elsewhere.
_TOLERANCE = {np.dtype(np.uint8): 1e-4, np.dtype(np.uint16): 4e-7}


def join(image: Photo, ab: np.ndarray, in_place: bool = False) -> Photo:
    """Joins the L* of a photo and a*b*, enlarged to its size.

    a*b* change where the photo's own lightness does (`edge_model`). Colors outside sRGB lose chroma until they fit, so that
    the photo's lightness stays.

    Args:
        image: L, RGB or RGBA in sRGB; or of 16 bits.
        ab: float32 (h, w, 2).
        in_place: colors the image itself, if it has three channels or more.

    Returns:
        The photo in RGB, or RGBA with the same transparency; of as many bits.
    """
    W, H = image.size
    h = len(ab)
    model = np.concatenate(edge_model(image, ab), axis=-1)  # (h, w, 4)
    planes = [Image.fromarray(np.ascontiguousarray(model[..., i])) for i in range(4)]
    across = np.stack([np.asarray(plane.resize((W, h), Image.Resampling.BICUBIC)) for plane in planes])  # (4, h, W)
    # The weights by which Pillow mixes rows: as a product of matrices, which takes a fifth of its time.
    down = np.asarray(Image.fromarray(np.eye(h, dtype=np.float32)).resize((h, H), Image.Resampling.BICUBIC))  # (H, h)
    out = _empty_result(image) if not in_place or image.mode in ('L', 'LA') else image
    rows = max(1, _CHUNK // W)
    for top in range(0, H, rows):
        bottom = min(H, top + rows)
        enlarged = _mixed(down[top:bottom], across)  # (4, N)
        strip = _strip(image, top, bottom)
        colors = 3 if strip.shape[2] > 2 else 1
        colored = _recolor(strip[..., :colors], enlarged)
        if colors < strip.shape[2]:
            colored = np.concatenate([colored, strip[..., colors:]], axis=2)
        _put_strip(out, colored, top)
    return out


def _mixed(weights, planes):
    """Mixes rows: (rows, h) and float32 (4, h, W) -> (4, N), rows * W pixels in whole chunks, the rest undefined."""
    count, W = len(weights), planes.shape[2]
    out = np.empty((len(planes), -(-count * W // _CHUNK) * _CHUNK), np.float32)
    mixed = out[:, : count * W].reshape(len(planes), count, W)
    step = max(1, _PRODUCT // (4 * W))
    for top in range(0, count, step):
        some = weights[top : top + step]
        first, *_, last = np.flatnonzero(some.any(axis=0)).repeat(2)
        np.matmul(some[:, first : last + 1], planes[:, first : last + 1], out=mixed[:, top : top + step])
    return out


def edge_model(image: Image.Image | DeepImage, ab: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How a*b* follow the photo's L*, from pixel to pixel of the network: a*b* = slope L* + offset.

    The slopes are those of the guided filter (He, Sun, Tang, *Guided Image Filtering*, ECCV 2010, equations 5, 6 and 8) over
    3 x 3 pixels. Its offsets are not smoothed here, so that at the network's own pixels a*b* stay as they are.

    Args:
        image: the photo.
        ab: float32 (h, w, 2).

    Returns:
        (slope, offset), float32 (h, w, 2). The slopes are 0 where the photo has no more pixels than a*b*.
    """
    h, w = ab.shape[:2]
    if image.width <= w or image.height <= h:
        return np.zeros_like(ab, np.float32), ab.astype(np.float32)
    lightness = color.rgb_to_lab(np.asarray(resized(image, (w, h), Image.Resampling.BOX)))[..., :1]  # (h, w, 1)
    mean_l, mean_ab = _mean3(lightness), _mean3(ab)
    variance = _mean3(lightness * lightness) - mean_l * mean_l
    slope = _mean3((_mean3(lightness * ab) - mean_l * mean_ab) / (variance + np.float32(_EDGE_NOISE)))
    return slope, (ab - slope * lightness).astype(np.float32)


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
    step = max(1, _CHUNK * h // (W * H))
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


def _strip(image, top, bottom):
    """Rows of a photo, uint8 or uint16 (rows, W, C)."""
    if isinstance(image, DeepImage):
        return image.pixels[top:bottom]
    strip = np.asarray(image.crop((0, top, image.width, bottom)))
    return strip[..., None] if strip.ndim == 2 else strip


def _put_strip(image, strip, top):
    if isinstance(image, DeepImage):
        image.pixels[top : top + len(strip)] = strip
    else:
        image.paste(Image.fromarray(strip), (0, top))


def _recolor(pixels, planes):
    """Gray or RGB (rows, W, C) and the slopes and offsets of a*b* of `_mixed` -> RGB (rows, W, 3)."""
    rows, W, channels = pixels.shape
    if channels == 3 and (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all():
        channels = 1
    dtype, tolerance = pixels.dtype, _TOLERANCE[pixels.dtype]
    out = np.empty((rows * W, 3), dtype)
    pixels = pixels[..., :channels].reshape(-1, channels)
    light = _gray_lightness(dtype)[pixels[:, 0]] if channels == 1 else pixels  # (N,) or (N, 3)
    light = _padded(light, planes.shape[1])
    for start in range(0, len(out), _CHUNK):
        part = slice(start, start + _CHUNK)
        inputs = [light[part], *planes[:, part]]
        *levels, outside = (np.asarray(x)[: len(out) - start] for x in _recolor_chunk(dtype, tolerance, *inputs))
        (outside,) = np.nonzero(outside)
        if len(outside) > _CHUNK // 8:  # all of them take less time than many
            levels, outside = (np.asarray(x)[: len(out) - start] for x in _fit_chunk(dtype, tolerance, *inputs)), ()
        for i, level in enumerate(levels):
            out[part, i] = level
        for first in range(0, len(outside), _OUTSIDE_CHUNK):
            some = outside[first : first + _OUTSIDE_CHUNK]
            levels = _fit_chunk(dtype, tolerance, *(_padded(x[some], _OUTSIDE_CHUNK) for x in inputs))
            for i, level in enumerate(levels):
                out[start + some, i] = np.asarray(level)[: len(some)]
    return out.reshape(rows, W, 3)


@functools.cache
def _gray_lightness(dtype):
    """L* of every gray of a type."""
    levels = np.arange(np.iinfo(dtype).max + 1, dtype=np.float32) / np.float32(np.iinfo(dtype).max)
    return color.linear_planes_to_lightness([color.srgb_to_linear(levels)])


def _padded(x, length):
    """x with zeros behind it, of a length that is compiled."""
    if len(x) == length:
        return x
    padded = np.zeros((length, *x.shape[1:]), x.dtype)
    padded[: len(x)] = x
    return padded


# Planes of one channel each: XLA takes twice as long where the channels are neighbors.


def _lab(light, slope_a, slope_b, offset_a, offset_b):
    """L* (N,) or RGB (N, 3), and the model of a*b*, (N,) each -> L*, a*, b*, (N,) each."""
    if light.ndim == 2:
        scale = np.float32(1 / np.iinfo(light.dtype).max)
        channels = [color.srgb_to_linear(light[:, i].astype(np.float32) * scale) for i in range(3)]
        light = color.linear_planes_to_lightness(channels)
    return light, slope_a * light + offset_a, slope_b * light + offset_b


@functools.partial(jax.jit, static_argnums=(0, 1))
def _recolor_chunk(dtype, tolerance, *inputs):
    """(red, green, blue, clipped; whether the color lies outside sRGB)."""
    linear = color.lab_planes_to_linear(*_lab(*inputs))
    outside = [(plane < -tolerance) | (plane > 1 + tolerance) for plane in linear]
    levels = [color.to_integer(color.linear_to_srgb(plane), dtype) for plane in linear]
    return *levels, outside[0] | outside[1] | outside[2]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fit_chunk(dtype, tolerance, *inputs):
    """(red, green, blue), of less chroma where the colors lie outside sRGB."""
    linear = color.lab_planes_to_linear(*color.fit_chroma_planes(*_lab(*inputs), tolerance))
    return [color.to_integer(color.linear_to_srgb(plane), dtype) for plane in linear]
