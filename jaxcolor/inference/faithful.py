"""Published networks as their authors' own programs use them: sizes, filters, color spaces and recomposition.

jaxcolor's own path keeps a photo's aspect and lightness; this one is for comparisons with what others published. The sources
are the programs themselves: richzhang/colorization (`colorizers/util.py`), piddnad/DDColor (`ColorizationPipeline`),
jantic/DeOldify (`deoldify/filters.py`), satoshiiizuka/siggraph2016_colorization (`colorize.lua`, and Torch's package image).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxcolor import color
from jaxcolor.errors import UserError
from jaxcolor.inference.hints import Hints
from jaxcolor.models.ddcolor import DDColor
from jaxcolor.models.deoldify import DeOldify
from jaxcolor.models.eccv16 import ECCV16
from jaxcolor.models.iizuka import AB_LIMIT, Iizuka
from jaxcolor.models.layers import IMAGENET_DEVIATION, IMAGENET_MEAN
from jaxcolor.models.siggraph17 import SIGGRAPH17
from jaxcolor.prepare.deep import DeepImage
from jaxcolor.runtime.parallel import compiler_options
from jaxcolor.tasks.state import TrainState
from jaxcolor.tasks.task import Task

_ZHANG_SIDE, _DDCOLOR_SIDE, _IIZUKA_GLOBAL_SIDE = 256, 512, 224
_RENDER_BASE = 16  # pixels of the square's side for each unit of DeOldify's render factor
_MIN_FACTOR, _MAX_FACTOR = 2, 128


class Faithful:
    """Colors photos as a published program does.

    Args:
        task, state: of the network.
        render_factor: of DeOldify: the network sees a square of 16 times so many pixels a side; 0 for the default.
        default_factor: what 0 stands for.

    Raises:
        UserError: the network is none of the published ones, takes no render factor, or not such a one.
    """

    def __init__(self, task: Task, state: TrainState, render_factor: int = 0, default_factor: int = 35) -> None:
        network = type(task.network)
        if network not in _PROGRAMS:
            names = ', '.join(sorted(each.__name__.lower() for each in _PROGRAMS))
            raise UserError(f'--faithful: {network.__name__.lower()} is no published network; those are {names}.')
        if render_factor and network is not DeOldify:
            raise UserError(f'--render-factor is for deoldify; {network.__name__.lower()} has none.')
        self.render_factor = render_factor or default_factor
        if network is DeOldify and not _MIN_FACTOR <= self.render_factor <= _MAX_FACTOR:
            raise UserError(f'--render-factor must lie between {_MIN_FACTOR} and {_MAX_FACTOR}, not {render_factor}.')
        state = task.folded(state)
        self._variables = {'params': state.params, **state.model_state}
        apply = functools.partial(task.network.apply, method='published')
        self._published = jax.jit(apply, compiler_options=compiler_options())
        self._network, self._program = task.network, _PROGRAMS[network]

    def __call__(self, image: Image.Image | DeepImage, hints: Hints | None = None) -> Image.Image:
        """Colors one photo.

        Args:
            image: in sRGB; one of 16 bits is taken in 8. Programs that shrink photos in RGB see its colors, if it has any.
            hints: for siggraph17.

        Returns:
            The colored photo, RGB or RGBA of 8 bits, in the same size.

        Raises:
            UserError: there are hints, and the network takes none.
        """
        if hints is not None and not getattr(self._network, 'takes_hints', False):
            raise UserError('--hints: with --faithful, only siggraph17 takes hints.')
        image = image.in_8_bits() if isinstance(image, DeepImage) else image
        colored = self._program(self, image.convert('RGB'), hints)
        if image.mode[-1] == 'A':
            colored.putalpha(image.getchannel('A'))
        return colored

    def run(self, *inputs: np.ndarray) -> np.ndarray:
        """The published network itself: its inputs without the axis of the batch, (H, W, C) -> its output (h, w, 2 or 3)."""
        return np.asarray(self._published(self._variables, *(x[None].astype(np.float32) for x in inputs))[0])

    @property
    def network(self) -> Any:
        """The Flax module."""
        return self._network


def is_published(network: Any) -> bool:
    """Whether there is a published program for a Flax module, which `Faithful` does the same as."""
    return type(network) in _PROGRAMS


def _zhang(faithful, photo, hints):
    """eccv16 and siggraph17: squeezed by Pillow's bicubic filter, a*b* enlarged linearly, the photo's own L*."""
    side = _ZHANG_SIDE
    small = np.asarray(photo.resize((side, side), Image.Resampling.BICUBIC))
    lightness = color.rgb_to_lab(small)[..., :1]
    if isinstance(faithful.network, SIGGRAPH17):
        ab, mask = (hints or Hints()).on_grid(photo.size, side, side)
        ab = faithful.run(lightness, ab, mask[..., None])
    else:
        ab = faithful.run((lightness - 50) / 100)
    ab = _linear(ab, photo.height, photo.width)
    lightness = color.rgb_to_lab(np.asarray(photo))[..., 0]
    ab[..., 1] = np.minimum(ab[..., 1], 200 * (lightness + 16) / 116)  # scikit-image allows no negative Z
    return _join(photo, ab)


def _ddcolor(faithful, photo, hints):
    """DDColor: squeezed linearly without antialiasing, a*b* enlarged by repetition, the photo's own L*."""
    rgb = np.asarray(photo, np.float32) / np.float32(255)
    small = _linear(rgb, _DDCOLOR_SIDE, _DDCOLOR_SIDE)
    gray = color.lab_to_rgb(color.gray_lab(color.rgb_to_lab(small)[..., :1]))
    ab = faithful.run(gray)
    rows, columns = (
        np.floor(np.arange(there, dtype=np.float32) * (np.float32(here) / np.float32(there))).astype(np.int64)
        for there, here in zip((photo.height, photo.width), ab.shape[:2], strict=True)
    )
    return _join(photo, ab[rows][:, columns])


def _join(photo, ab):
    lab = color.join_lab(color.rgb_to_lab(np.asarray(photo))[..., :1], ab.astype(np.float32))
    return Image.fromarray(color.to_uint8(color.lab_to_rgb(lab)))  # clipped, channel by channel


def _linear(x, height, width):
    """Linear interpolation with half-pixel centers and without antialiasing: (h, w, C) -> float32 (height, width, C)."""
    for axis, size in enumerate((height, width)):
        at = (np.arange(size) + 0.5) * (x.shape[axis] / size) - 0.5
        x = _between(x, np.clip(at, 0, x.shape[axis] - 1), axis)
    return x


def _between(x, at, axis):
    """The values between pixels, at places of an axis."""
    below = np.minimum(np.floor(at).astype(np.int64), x.shape[axis] - 1)
    above = np.minimum(below + 1, x.shape[axis] - 1)
    part = np.expand_dims((at - below).astype(np.float32), tuple(i for i in range(x.ndim) if i != axis))
    return np.take(x, below, axis) * (1 - part) + np.take(x, above, axis) * part


def _deoldify(faithful, photo, hints):
    """DeOldify: squeezed by Pillow's linear filter, Rec. 601 luma; the output's U and V beside the photo's own Y, in 8 bits.

    The program converts RGB by OpenCV's functions for BGR, so red and blue change places in its YUV; so they do here.
    """
    side = _RENDER_BASE * faithful.render_factor
    gray = photo.resize((side, side), Image.Resampling.BILINEAR).convert('LA').convert('RGB')
    mean, deviation = np.float32(IMAGENET_MEAN), np.float32(IMAGENET_DEVIATION)
    output = faithful.run((np.asarray(gray, np.float32) / 255 - mean) / deviation) * deviation + mean
    levels = (np.clip(output, 0, 1) * 255).astype(np.uint8)  # cut off, not rounded
    colors = np.asarray(Image.fromarray(levels).resize(photo.size, Image.Resampling.BILINEAR))
    y, uv = _to_yuv8(np.asarray(photo))[..., :1], _to_yuv8(colors)[..., 1:]
    return Image.fromarray(_from_yuv8(np.concatenate([y, uv], axis=-1)))


# OpenCV's 8-bit YUV: fixed-point numbers of 14 bits behind the point.
_BITS = 14
_HALF = 1 << (_BITS - 1)


def _to_yuv8(bgr):
    """uint8 (H, W, 3), blue first -> int32 YUV (H, W, 3), in [0, 255]."""
    b, g, r = np.moveaxis(bgr.astype(np.int32), -1, 0)
    y = (4899 * r + 9617 * g + 1868 * b + _HALF) >> _BITS
    u = ((b - y) * 8061 + (128 << _BITS) + _HALF) >> _BITS
    v = ((r - y) * 14369 + (128 << _BITS) + _HALF) >> _BITS
    return np.clip(np.stack([y, u, v], axis=-1), 0, 255)


def _from_yuv8(yuv):
    """int32 YUV (H, W, 3) -> uint8 (H, W, 3), blue first."""
    y, u, v = np.moveaxis(yuv - np.int32([0, 128, 128]), -1, 0)
    b = y + ((33292 * u + _HALF) >> _BITS)
    g = y + ((-6472 * u - 9519 * v + _HALF) >> _BITS)
    r = y + ((18678 * v + _HALF) >> _BITS)
    return np.clip(np.stack([b, g, r], axis=-1), 0, 255).astype(np.uint8)


def _iizuka(faithful, photo, hints):
    """Iizuka et al.: the luma at full size, sides rounded to multiples of 8; the output's U and V beside the photo's own Y.

    The program's results have those rounded sizes; here they have the photo's, from its own pixels.
    """
    luma = color.rgb_to_yuv(np.asarray(photo))[..., :1]
    sides = [max(8, 8 * int(side / 8 + 0.5)) for side in luma.shape[:2]]
    full = _torch_scale(luma, *sides) - np.float32(faithful.network.luma_mean)
    small = _torch_scale(full, _IIZUKA_GLOBAL_SIDE, _IIZUKA_GLOBAL_SIDE)
    ab = AB_LIMIT * (2 * faithful.run(full, small) - 1)
    ab = _torch_scale(ab, *luma.shape[:2])
    lightness = color.rgb_to_lab(np.repeat(luma, 3, axis=-1))[..., :1]
    # Colors outside sRGB are clipped at the end only.
    rgb = _unclipped_srgb(color.lab_to_linear(color.join_lab(lightness, ab.astype(np.float32))))
    yuv = color.rgb_to_yuv(rgb)
    return Image.fromarray(color.to_uint8(color.yuv_to_rgb(np.concatenate([luma, yuv[..., 1:]], axis=-1))))


def _unclipped_srgb(linear):
    curve = 1.055 * np.maximum(linear, 0.003) ** (1 / 2.4) - 0.055
    return np.where(linear > 0.0031308, curve, 12.92 * linear).astype(np.float32)


def _torch_scale(x, height, width):
    """Torch's `image.scale`: along an axis, enlarged linearly from end to end, or shrunk by means over parts of pixels."""
    for axis, size in ((1, width), (0, height)):
        length = x.shape[axis]
        if size > length:
            x = _between(x, np.arange(size) * ((length - 1) / max(1, size - 1)), axis)
        elif size < length:
            edges = np.arange(size + 1) * (length / size)
            sums = np.concatenate([np.zeros_like(x.take([0], axis), np.float64), np.cumsum(x, axis, np.float64)], axis)
            x = np.diff(_between(sums, edges, axis), axis=axis) * (size / length)
    return x.astype(np.float32)


_PROGRAMS: dict[type, Callable[[Faithful, Image.Image, Hints | None], Image.Image]] = {
    ECCV16: _zhang,
    SIGGRAPH17: _zhang,
    DDColor: _ddcolor,
    DeOldify: _deoldify,
    Iizuka: _iizuka,
}
