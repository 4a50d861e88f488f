"""How a film stores its picture: luma and chroma planes, their depth, range and matrix, and how the picture is turned.

The luma plane of a film stays as it is, to the last bit; only the chroma planes are made. See README.md for what was
measured.
"""

import functools
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import av
import cv2
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxcolor import color
from jaxcolor.inference.recompose import slopes_and_offsets
from jaxcolor.runtime.parallel import compiler_options

# Kr and Kb of the matrices that streams name (ITU-T H.273, table 4).
_BT709, _BT601, _BT2020 = (0.2126, 0.0722), (0.299, 0.114), (0.2627, 0.0593)
_MATRICES = {1: _BT709, 4: (0.30, 0.11), 5: _BT601, 6: _BT601, 7: (0.212, 0.087), 9: _BT2020, 10: _BT2020}
# Codes of H.273 for what a stream does not say: players take BT.709 from this height on, else BT.601.
_HD_HEIGHT, UNSPECIFIED = 720, 2
MATRIX_709, MATRIX_601 = 1, 6
# FFmpeg's codes of a stream's range.
LIMITED, FULL = 1, 2
# Newton-like steps to the lightness at which a color has the film's luma; two leave 0.03 units of L*a*b*.
_LUMA_STEPS = 2


class Layout(NamedTuple):
    """How planes hold numbers."""

    depth: int  # bits
    is_full: bool  # whether black and white are the first and last number
    matrix: int  # H.273's code

    @property
    def weights(self) -> tuple[float, float]:
        """Kr, Kb."""
        return _MATRICES.get(self.matrix, _BT709)

    @property
    def black_and_white(self) -> tuple[int, int]:
        """The luma of black and of white."""
        if self.is_full:
            return 0, 2**self.depth - 1
        return 16 << (self.depth - 8), 235 << (self.depth - 8)

    @property
    def neutral_and_swing(self) -> tuple[int, int]:
        """The chroma of gray, and how far Cb = 0.5 lies from Cb = -0.5."""
        return 1 << (self.depth - 1), 2**self.depth - 1 if self.is_full else 224 << (self.depth - 8)


def matrix_of(code: int, height: int) -> int:
    """H.273's code of a stream's matrix; where it names none, or none that has weights, what players assume."""
    return code if code in _MATRICES else MATRIX_709 if height >= _HD_HEIGHT else MATRIX_601


class Turn(NamedTuple):
    """How a stored picture is turned to be upright: first transposed, then mirrored."""

    transpose: bool = False
    left_right: bool = False
    up_down: bool = False

    @staticmethod
    def of(matrix: Sequence[int] | None) -> 'Turn':
        """That of a display matrix (9 numbers, as FFmpeg's); of other angles than right ones, none."""
        if matrix is None:
            return Turn()
        a, b, _, c, d = matrix[:5]
        if abs(a) > abs(b) and abs(d) > abs(c):
            return Turn(False, a < 0, d < 0)
        if abs(b) > abs(a) and abs(c) > abs(d):
            return Turn(True, c < 0, b < 0)
        return Turn()

    def upright(self, picture: np.ndarray) -> np.ndarray:
        """As stored (H, W, ...) -> upright."""
        picture = picture.swapaxes(0, 1) if self.transpose else picture
        picture = picture[:, ::-1] if self.left_right else picture
        return np.ascontiguousarray(picture[::-1] if self.up_down else picture)

    def stored(self, picture: np.ndarray) -> np.ndarray:
        """Upright (H, W, ...) -> as stored."""
        picture = picture[::-1] if self.up_down else picture
        picture = picture[:, ::-1] if self.left_right else picture
        return np.ascontiguousarray(picture.swapaxes(0, 1) if self.transpose else picture)


def view(plane: Any, depth: int) -> np.ndarray:
    """The numbers of a plane of a frame (`av.video.plane.VideoPlane`), uint8 or uint16 (H, W), not copied."""
    dtype = np.dtype(np.uint8 if depth == 8 else np.uint16)
    rows = np.frombuffer(plane, dtype).reshape(plane.height, plane.line_size // dtype.itemsize)
    return rows[:, : plane.width]


def has_own_luma(pixel_format: av.VideoFormat) -> bool:
    """Whether a format's first plane holds nothing but luma, in numbers of this machine's byte order."""
    first, *others = pixel_format.components
    is_plain = first.is_luma and 8 <= first.bits <= 16 and not pixel_format.is_big_endian and not pixel_format.has_palette
    return is_plain and all(each.plane != 0 for each in others)


def gray(luma: np.ndarray, layout: Layout, turn: Turn, size: tuple[int, int]) -> Image.Image:
    """The upright gray picture in 8 bits, of another size (w, h): what is shown to the network.

    Args:
        luma: as stored, uint8 or uint16 (H, W).
        layout: of the luma.
        turn: what makes it upright.
        size: of the result; its aspect is that of the picture as it is shown.
    """
    width, height = size[::-1] if turn.transpose else size
    shrinks = luma.shape[0] >= height and luma.shape[1] >= width
    # OpenCV takes a fifth of the time for halves. Of smaller pictures they would blur what the network sees.
    while luma.shape[0] >= 8 * height and luma.shape[1] >= 8 * width and not (luma.shape[0] % 2 or luma.shape[1] % 2):
        luma = _halved(luma)
    small = cv2.resize(luma, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    black, white = layout.black_and_white
    levels = (small.astype(np.float32) - np.float32(black)) * np.float32(255 / (white - black))
    return Image.fromarray(turn.upright(np.clip(np.rint(levels), 0, 255).astype(np.uint8)))


def paint(planes: Sequence[np.ndarray], small: Image.Image, ab: np.ndarray, layout: Layout, turn: Turn) -> None:
    """Writes the chroma planes of a picture; its luma is not touched.

    At the network's pixels, a*b* become Cb and Cr that have the film's luma. These are enlarged along the film's own edges,
    as `recompose.join` does it with a*b*. Where a color lies outside R'G'B', its chroma becomes less, at the same luma.

    Args:
        planes: luma and chroma, uint8 or uint16 (H, W) and (Hc, Wc); these are changed.
        small: of `gray`.
        ab: float32 (h, w, 2), upright.
        layout: of the planes.
        turn: of the planes.
    """
    luma, *chroma = planes
    h, w = ab.shape[:2]
    levels = np.asarray(small if small.size == (w, h) else small.resize((w, h), Image.Resampling.BOX))
    cb_cr = np.stack(_compiled(_chroma_of_ab)(layout.weights, _UNIT[levels], ab[..., 0], ab[..., 1]), axis=-1)  # (h, w, 2)
    is_larger = luma.size > levels.size
    edges = slopes_and_offsets(_LIGHTNESS[levels][..., None], cb_cr, _mean3) if is_larger else (0 * cb_cr, cb_cr)
    model = turn.stored(np.concatenate(edges, axis=-1))  # (h, w, 4)
    height, width = chroma[0].shape
    scratch = _scratch.array((height, width, 4))
    enlarged = cv2.resize(model, (width, height), scratch, interpolation=cv2.INTER_CUBIC)  # (Hc, Wc, 4)
    codes = _at_chroma(luma, (height, width))
    # Without a check of each it takes half the time.
    lightness = np.take(_lightness_of_codes(layout), codes, out=_scratch.array((height, width)), mode='clip')
    made = _compiled(_chroma_planes)(layout, codes, lightness, enlarged)
    for plane, values in zip(chroma, made, strict=True):
        plane[:] = values


class _Scratch(threading.local):
    """Arrays that a thread's next frame overwrites: the system's work for new memory is a fifth of that for the planes."""

    def __init__(self):
        self.arrays = {}

    def array(self, shape):
        """float32, of a shape; those of other films go."""
        if shape not in self.arrays:
            self.arrays = {kept: array for kept, array in self.arrays.items() if kept[:2] == shape[:2]}
            self.arrays[shape] = np.empty(shape, np.float32)
        return self.arrays[shape]


_scratch = _Scratch()


def _at_chroma(luma, shape):
    """The luma where the chroma's pixels lie, (H, W) -> (Hc, Wc)."""
    if luma.shape == shape:
        return luma
    (H, W), (height, width) = luma.shape, shape
    if H % height or W % width:  # odd sizes: the last row and column stand for two
        luma = cv2.copyMakeBorder(luma, 0, H % 2, 0, W % 2, cv2.BORDER_REPLICATE)
    centered = cv2.resize(luma, (width, height), interpolation=cv2.INTER_AREA)
    if luma.shape[1] == width:
        return centered
    # Pixels of chroma lie at even columns of luma (H.273, chroma sample location 0), half a pixel left of the mean of two.
    shifted = cv2.copyMakeBorder(luma, 0, 0, 1, 0, cv2.BORDER_REPLICATE)[:, :-1]
    return cv2.addWeighted(centered, 0.5, cv2.resize(shifted, (width, height), interpolation=cv2.INTER_AREA), 0.5, 0)


def _halved(luma):
    return cv2.resize(luma, (luma.shape[1] // 2, luma.shape[0] // 2), interpolation=cv2.INTER_AREA)


def _mean3(x):
    """The mean over 3 x 3 pixels, float32 (h, w, C)."""
    return cv2.blur(x, (3, 3), borderType=cv2.BORDER_REPLICATE).reshape(x.shape)


@functools.cache
def _compiled(function):
    """A function whose first argument is no array, compiled where it is called first."""
    return jax.jit(function, static_argnums=0, compiler_options=compiler_options(wide_vectors=True))


def _chroma_of_ab(weights, luma, a, b):
    """Luma in [0, 1] and a*b* -> Cb and Cr in [-0.5, 0.5] of the color with these, planes of one shape."""
    kr, kb = weights
    goal = lightness = _lightness(luma)
    for step in range(_LUMA_STEPS + 1):
        red, green, blue = (color.linear_to_srgb(plane) for plane in color.lab_planes_to_linear(lightness, a, b))
        own = kr * red + (1 - kr - kb) * green + kb * blue
        if step < _LUMA_STEPS:
            lightness = lightness + goal - _lightness(own)
    return _fit(weights, luma, (blue - own) / (2 * (1 - kb)), (red - own) / (2 * (1 - kr)))


def _lightness(luma):
    """Gray in [0, 1] -> its L*."""
    return color.y_to_lightness(color.srgb_to_linear(luma))


def _fit(weights, luma, cb, cr):
    """Less of Cb and Cr where R', G' or B' would lie outside [0, 1]."""
    kr, kb = weights
    red, blue = 2 * (1 - kr) * cr, 2 * (1 - kb) * cb  # R' - Y', B' - Y'
    green = -(kr * red + kb * blue) / (1 - kr - kb)
    tiny = np.float32(1e-6)
    above, below = jnp.maximum(jnp.maximum(red, green), blue), -jnp.minimum(jnp.minimum(red, green), blue)
    factor = jnp.minimum((1 - luma) / jnp.maximum(above, tiny), luma / jnp.maximum(below, tiny))
    factor = jnp.minimum(factor, np.float32(1))
    return cb * factor, cr * factor


# Of the levels of a gray picture of 8 bits.
_UNIT = np.arange(256, dtype=np.float32) / np.float32(255)
_LIGHTNESS = _lightness(_UNIT)


@functools.cache
def _lightness_of_codes(layout):
    """L* of every stored luma, float32 (2**depth,)."""
    black, white = layout.black_and_white
    codes = np.arange(2**layout.depth, dtype=np.float32)
    return _lightness(np.clip((codes - black) / np.float32(white - black), 0, 1).astype(np.float32))


def _chroma_planes(layout, codes, lightness, model):
    """The stored luma and its L* (H, W) and slopes and offsets (H, W, 4) of Cb and Cr -> the stored Cb and Cr."""
    black, white = layout.black_and_white
    neutral, swing = layout.neutral_and_swing
    luma = jnp.clip((codes.astype(jnp.float32) - black) / (white - black), 0, 1)
    pair = [model[..., i] * lightness + model[..., 2 + i] for i in range(2)]
    stored = [jnp.round(neutral + swing * plane) for plane in _fit(layout.weights, luma, *pair)]
    return [jnp.clip(plane, 0, 2**layout.depth - 1).astype(codes.dtype) for plane in stored]
