"""Combines the full-resolution lightness of a photo with a network's a*b*."""

import jax
import numpy as np
from PIL import Image

from jaxcolor import color

# Pixels per call of the compiled conversion; always as many, so that it is compiled once.
_CHUNK = 2**16
# Pixels of a strip of rows; bounds the memory that a large scan takes.
_STRIP_PIXELS = 2**21


def join(image: Image.Image, ab: np.ndarray) -> Image.Image:
    """`recompose` for RGB or RGBA photos, which keep their transparency. ab: float32 (h, w, 2)."""
    colored = recompose(image.convert('RGB'), ab)
    if image.mode == 'RGBA':
        colored.putalpha(image.getchannel('A'))
    return colored


def recompose(rgb: Image.Image, ab: np.ndarray) -> Image.Image:
    """Joins the L* of an RGB photo (W, H) and a*b* (h, w, 2), enlarged to its size -> an RGB photo (W, H).

    Colors outside sRGB lose chroma until they fit, so that the photo's lightness stays.
    """
    W, H = rgb.size
    h, w = ab.shape[:2]
    planes = [Image.fromarray(np.ascontiguousarray(ab[..., i], np.float32)) for i in range(2)]
    out = Image.new('RGB', rgb.size)
    rows = max(1, _STRIP_PIXELS // W)
    for top in range(0, H, rows):
        bottom = min(H, top + rows)
        box = (0, top * h / H, w, bottom * h / H)
        strip = np.asarray(rgb.crop((0, top, W, bottom)))
        enlarged = [np.asarray(plane.resize((W, bottom - top), Image.Resampling.BICUBIC, box=box)) for plane in planes]
        out.paste(Image.fromarray(_recolor(strip, np.stack(enlarged, axis=-1))), (0, top))
    return out


def _recolor(rgb, ab):
    """L* of rgb, uint8 (H, W, 3), and a*b* (H, W, 2) -> uint8 (H, W, 3)."""
    shape, rgb, ab = rgb.shape, rgb.reshape(-1, 3), ab.reshape(-1, 2)
    out = np.empty_like(rgb)
    for start in range(0, len(out), _CHUNK):
        part = slice(start, start + _CHUNK)
        padding = ((0, max(0, start + _CHUNK - len(out))), (0, 0))
        chunk = _recolor_chunk(np.pad(rgb[part], padding), np.pad(ab[part], padding))
        out[part] = np.asarray(chunk)[: len(out) - start]
    return out.reshape(shape)


@jax.jit
def _recolor_chunk(rgb, ab):
    lab = color.fit_chroma(color.join_lab(color.rgb_to_lab(rgb)[..., :1], ab))
    return color.to_uint8(color.lab_to_rgb(lab))
