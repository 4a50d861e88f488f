"""Combines the full-resolution lightness of a photo with a network's a*b*."""

import functools
from typing import TypeVar

import jax
import numpy as np
from PIL import Image

from jaxcolor import color
from jaxcolor.prepare.deep import DeepImage

Photo = TypeVar('Photo', Image.Image, DeepImage)

# Pixels per call of the compiled conversions; always as many, so that each is compiled once.
_CHUNK, _OUTSIDE_CHUNK = 2**17, 2**13
# Pixels of a strip of rows; bounds the memory that a large scan takes.
_STRIP_PIXELS = 2**20
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
    h, w = ab.shape[:2]
    slope, offset = edge_model(image, ab)
    planes = [
        Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(np.concatenate([slope, offset], -1), -1, 0)
    ]
    out = _empty_result(image) if not in_place or image.mode in ('L', 'LA') else image
    rows = max(1, _STRIP_PIXELS // W)
    for top in range(0, H, rows):
        bottom = min(H, top + rows)
        box = (0, top * h / H, w, bottom * h / H)
        enlarged = [np.asarray(plane.resize((W, bottom - top), Image.Resampling.BICUBIC, box=box)) for plane in planes]
        strip = _strip(image, top, bottom)
        colors = 3 if strip.shape[2] > 2 else 1
        colored = _recolor(strip[..., :colors], [plane.reshape(-1) for plane in enlarged])
        _put_strip(out, np.concatenate([colored, strip[..., colors:]], axis=2), top)
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
    image = image.in_8_bits() if isinstance(image, DeepImage) else image
    if image.mode not in ('L', 'RGB'):
        image = image.convert('RGB')
    return image.resize(size, resampling).convert('RGB')


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
    """Gray or RGB (rows, W, C) and the slopes and offsets of a*b*, float32 (4, rows * W) -> RGB (rows, W, 3)."""
    shape, pixels = pixels.shape, pixels.reshape(-1, pixels.shape[2])
    out = np.empty((len(pixels), 3), pixels.dtype)
    tolerance = _TOLERANCE[pixels.dtype]
    for start in range(0, len(out), _CHUNK):
        part = slice(start, min(start + _CHUNK, len(out)))
        inputs = _padded(pixels[part], _CHUNK), *(_padded(plane[part], _CHUNK) for plane in planes)
        colored, is_outside = (np.asarray(x) for x in _recolor_chunk(tolerance, *inputs))
        out[part] = colored[: part.stop - start]
        (outside,) = np.nonzero(is_outside[: part.stop - start])
        for first in range(0, len(outside), _OUTSIDE_CHUNK):
            some = outside[first : first + _OUTSIDE_CHUNK]
            fitted = _fit_chunk(tolerance, *(_padded(x[some], _OUTSIDE_CHUNK) for x in inputs))
            out[start + some] = np.asarray(fitted)[: len(some)]
    return out.reshape(*shape[:2], 3)


def _padded(x, length):
    """x with zeros behind it, of a length that is compiled."""
    if len(x) == length:
        return x
    padded = np.zeros((length, *x.shape[1:]), x.dtype)
    padded[: len(x)] = x
    return padded


def _lab(pixels, slope_a, slope_b, offset_a, offset_b):
    """-> L*a*b* (N, 3)."""
    scale = np.float32(1 / np.iinfo(pixels.dtype).max)
    linear = color.srgb_to_linear(pixels.astype(np.float32) * scale)
    lightness = color.linear_to_lightness(linear)
    return color.join_lab(
        lightness[:, None],
        jax.numpy.stack([slope_a * lightness + offset_a, slope_b * lightness + offset_b], axis=-1),
    )


@functools.partial(jax.jit, static_argnums=0)
def _recolor_chunk(tolerance, pixels, *model):
    """(the colors, clipped, of the type of the pixels; whether they lie outside sRGB)."""
    lab = _lab(pixels, *model)
    linear = color.lab_to_linear(lab)
    outside = jax.numpy.any((linear < -tolerance) | (linear > 1 + tolerance), axis=-1)
    return color.to_integer(color.linear_to_srgb(linear), pixels.dtype), outside


@functools.partial(jax.jit, static_argnums=0)
def _fit_chunk(tolerance, pixels, *model):
    """The colors, of less chroma where they lie outside sRGB."""
    lab = color.fit_chroma(_lab(pixels, *model), tolerance)
    return color.to_integer(color.lab_to_rgb(lab), pixels.dtype)
