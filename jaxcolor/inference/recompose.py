"""A photo's own lightness with a network's a*b*, at full resolution."""

import jax
import numpy as np
from PIL import Image

from jaxcolor import color

# Pixels recolored at a time: always as many, so that it is compiled once.
_CHUNK = 2**16
# Rows recomposed at a time: bounds the memory that a large scan takes.
_STRIP_PIXELS = 2**21


def join(image: Image.Image, ab: np.ndarray) -> Image.Image:
    """An RGB or RGBA photo's own L* and transparency with the a*b* (h, w, 2) of a network."""
    colored = recompose(image.convert('RGB'), ab)
    if image.mode == 'RGBA':
        colored.putalpha(image.getchannel('A'))
    return colored


def recompose(rgb: Image.Image, ab: np.ndarray) -> Image.Image:
    """A photo's own L* with the a*b* (h, w, 2) of a network, enlarged to it -> an RGB photo of the same size."""
    W, H = rgb.size
    h, w = ab.shape[:2]
    planes = [Image.fromarray(np.ascontiguousarray(ab[..., i], np.float32)) for i in range(2)]
    out = Image.new('RGB', rgb.size)
    rows = max(1, _STRIP_PIXELS // W)
    for top in range(0, H, rows):
        bottom = min(H, top + rows)
        box = (0, top * h / H, w, bottom * h / H)
        strip = np.asarray(rgb.crop((0, top, W, bottom)))
        enlarged = [plane.resize((W, bottom - top), Image.Resampling.BICUBIC, box=box) for plane in planes]
        out.paste(Image.fromarray(_recolored(strip, np.stack(enlarged, axis=-1))), (0, top))
    return out


def _recolored(rgb, ab):
    """uint8 (H, W, 3) and a*b* (H, W, 2) -> uint8 (H, W, 3) of that L* and these a*b*."""
    shape, rgb, ab = rgb.shape, rgb.reshape(-1, 3), ab.reshape(-1, 2)
    out = np.empty_like(rgb)
    for start in range(0, len(out), _CHUNK):
        part = slice(start, start + _CHUNK)
        missing = ((0, max(0, start + _CHUNK - len(out))), (0, 0))
        made = _recolor(np.pad(rgb[part], missing), np.pad(ab[part], missing))
        out[part] = np.asarray(made)[: len(out) - start]
    return out.reshape(shape)


@jax.jit
def _recolor(rgb, ab):
    return color.to_uint8(color.lab_to_rgb(color.join_lab(color.rgb_to_lab(rgb)[..., :1], ab)))
