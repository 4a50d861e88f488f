"""Color spaces: sRGB, CIE L*a*b*, YUV, 8-bit storage, and the scaling of a network's inputs and outputs.

Every function takes a NumPy array or a JAX array (traced ones too) and returns the same kind, float32 unless it says
otherwise. The last axis holds the channels. sRGB is IEC 61966-2-1, the white point is D65 (2 degrees), as in
scikit-image. L* lies in [0, 100]; a* and b* of sRGB colors lie in [-86.2, 98.3] and [-107.9, 94.5].
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

# A function returns the kind of array that it takes.
Array = TypeVar('Array', np.ndarray, jax.Array)

# IEC 61966-2-1: linear sRGB -> CIE XYZ, and the D65 white that maps to L* = 100, a* = b* = 0.
_XYZ_FROM_RGB = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_WHITE = np.array([0.95047, 1.0, 1.08883])
# The white is folded into the matrices, so that XYZ here always means XYZ relative to white.
_TO_XYZ = (_XYZ_FROM_RGB / _WHITE[:, None]).T.astype(np.float32)
# What red, green and blue give to Y.
LUMINANCE = _TO_XYZ[:, 1]
_FROM_XYZ = np.linalg.inv(_XYZ_FROM_RGB / _WHITE[:, None]).T.astype(np.float32)
# f(X), f(Y), f(Z) -> L*, a*, b* (plus -16 on L*), CIE 15.
_TO_LAB = np.array([[0, 500, 0], [116, -500, 200], [0, 0, -200]], np.float32)
# CIE's two-part f: the cube root above this, a line below it.
_F_KNEE = np.float32((6 / 29) ** 3)
_F_SLOPE = np.float32((29 / 6) ** 2 / 3)
_F_OFFSET = np.float32(16 / 116)

# BT.601 analog YUV on gamma-encoded RGB: |U| <= 0.436, |V| <= 0.615.
_TO_YUV = np.array([[0.299, -0.14713, 0.615], [0.587, -0.28886, -0.51499], [0.114, 0.436, -0.10001]], np.float32)
_FROM_YUV = np.linalg.inv(_TO_YUV.astype(np.float64)).astype(np.float32)
_UV_MAX = np.array([0.436, 0.615], np.float32)


def _numpy_like(x: np.ndarray | jax.Array) -> Any:
    """The array module of x: `jax.numpy` or `numpy`."""
    return jnp if isinstance(x, jax.Array) else np


def _as_unit_float(rgb, xp):
    """uint8 in [0, 255] or float in [0, 1] -> float32 in [0, 1]."""
    return rgb.astype(xp.float32) / np.float32(255) if rgb.dtype == np.uint8 else rgb.astype(xp.float32)


def _mix(x, matrix):
    """Multiplies the channels (..., 3) by a 3x3 matrix."""
    if isinstance(x, jax.Array):
        # As a matrix product XLA takes four times as long on CPUs, and computes in TF32 on GPUs.
        return sum(x[..., i, None] * matrix[i] for i in range(3))
    return np.matmul(x, matrix)


def _pow(x, exponent, xp):
    """x ** exponent for x > 0; an eighth of the time of `**` and of `cbrt` on XLA's CPU backend."""
    return xp.exp2(np.float32(exponent) * xp.log2(x))


def srgb_to_linear(rgb: Array) -> Array:
    """Gamma-encoded sRGB in [0, 1] (or uint8) -> linear light in [0, 1]."""
    xp = _numpy_like(rgb)
    if xp is np and rgb.dtype == np.uint8:
        return _LINEAR_OF_BYTE[rgb]
    rgb = _as_unit_float(rgb, xp)
    curve = _pow((xp.maximum(rgb, np.float32(0.04)) + np.float32(0.055)) / np.float32(1.055), 2.4, xp)
    return xp.where(rgb > np.float32(0.04045), curve, rgb / np.float32(12.92))


def linear_to_srgb(linear: Array) -> Array:
    """Linear light -> gamma-encoded sRGB, both in [0, 1]; values outside are clipped."""
    xp = _numpy_like(linear)
    linear = xp.clip(linear, np.float32(0), np.float32(1))
    curve = np.float32(1.055) * _pow(xp.maximum(linear, np.float32(0.003)), 1 / 2.4, xp) - np.float32(0.055)
    return xp.where(linear > np.float32(0.0031308), curve, linear * np.float32(12.92))


_LINEAR_OF_BYTE = srgb_to_linear(np.arange(256, dtype=np.float32) / np.float32(255))


def rgb_to_lab(rgb: Array) -> Array:
    """sRGB (..., 3), uint8 or float in [0, 1] -> float32 L*a*b* (..., 3)."""
    xp = _numpy_like(rgb)
    xyz = _mix(srgb_to_linear(rgb), _TO_XYZ)
    root = _pow(xp.maximum(xyz, np.float32(1e-4)), 1 / 3, xp)
    f = xp.where(xyz > _F_KNEE, root, xyz * _F_SLOPE + _F_OFFSET)
    return _mix(f, _TO_LAB) - np.array([16, 0, 0], np.float32)


def linear_planes_to_y(planes: Sequence[Array]) -> Array:
    """Linear light of RGB in three planes, in [0, 1] -> float32 Y in [0, 1], of the planes' shape."""
    return planes[0] * LUMINANCE[0] + planes[1] * LUMINANCE[1] + planes[2] * LUMINANCE[2]


def y_to_lightness(y: Array) -> Array:
    """Y relative to white, in [0, 1]; of gray the linear light itself -> float32 L*."""
    xp = _numpy_like(y)
    root = _pow(xp.maximum(y, np.float32(1e-4)), 1 / 3, xp)
    return np.float32(116) * xp.where(y > _F_KNEE, root, y * _F_SLOPE + _F_OFFSET) - np.float32(16)


def lab_to_rgb(lab: Array) -> Array:
    """float L*a*b* (..., 3) -> float32 sRGB (..., 3) in [0, 1]; colors outside sRGB are clipped channel by channel."""
    return linear_to_srgb(lab_to_linear(lab))


def lab_to_linear(lab: Array) -> Array:
    """float L*a*b* (..., 3) -> float32 linear light (..., 3), outside [0, 1] where the color is outside sRGB."""
    xp = _numpy_like(lab)
    lab = lab.astype(xp.float32)
    fy = (lab[..., 0] + np.float32(16)) / np.float32(116)
    f = xp.stack([fy + lab[..., 1] / np.float32(500), fy, fy - lab[..., 2] / np.float32(200)], axis=-1)
    return _mix(_f_inverse(f), _FROM_XYZ)


def lab_planes_to_linear(lightness: Array, a: Array, b: Array) -> list[Array]:
    """`lab_to_linear` for planes of any one shape -> three of them; XLA takes half the time."""
    fy = (lightness + np.float32(16)) / np.float32(116)
    xyz = [_f_inverse(f) for f in (fy + a / np.float32(500), fy, fy - b / np.float32(200))]
    return [xyz[0] * _FROM_XYZ[0, i] + xyz[1] * _FROM_XYZ[1, i] + xyz[2] * _FROM_XYZ[2, i] for i in range(3)]


def _f_inverse(f):
    """CIE's f of X, Y or Z, relative to white -> X, Y or Z."""
    return _numpy_like(f).where(f > np.float32(6 / 29), f * f * f, (f - _F_OFFSET) / _F_SLOPE)


def fit_chroma(lab: Array, tolerance: float = 1e-4) -> Array:
    """Colors outside sRGB -> the most colorful ones inside, of the same L* and hue angle; others stay as they are.

    Where channels are clipped instead, lightness and hue change.

    Args:
        lab: float L*a*b* (..., 3), L* in [0, 100].
        tolerance: linear light that a color may lie outside; the default is a third of an 8-bit step in black, less
            elsewhere.

    Returns:
        float32 (..., 3), whose chroma is that of the border to 1/256 of the given one.
    """
    xp = _numpy_like(lab)
    lightness, a, b = (lab[..., i].astype(xp.float32) for i in range(3))
    factor = chroma_factor(lightness, a, b, tolerance)
    return xp.stack([lightness, a * factor, b * factor], axis=-1)


def chroma_factor(lightness: Array, a: Array, b: Array, tolerance: float = 1e-4) -> Array:
    """What `fit_chroma` multiplies a* and b* by: planes of any one shape, float32 -> one more, in [0, 1]."""
    xp, margin = _numpy_like(lightness), np.float32(tolerance)

    def is_inside(factor):
        red, green, blue = lab_planes_to_linear(lightness, a * factor, b * factor)
        darkest = xp.minimum(xp.minimum(red, green), blue)
        brightest = xp.maximum(xp.maximum(red, green), blue)
        return (darkest >= -margin) & (brightest <= 1 + margin)

    factor, one = xp.zeros_like(lightness), np.float32(1)
    for step in range(1, 9):  # halves the interval of the largest factor
        larger = factor + np.float32(2.0**-step)
        factor = xp.where(is_inside(larger), larger, factor)
    return xp.where(is_inside(one), one, factor)


def join_lab(lightness: Array, ab: Array) -> Array:
    """L* (..., 1) and a*b* (..., 2) -> L*a*b* (..., 3)."""
    return _numpy_like(ab).concatenate([lightness, ab], axis=-1)


def gray_lab(lightness: Array) -> Array:
    """L* (..., 1) -> the L*a*b* (..., 3) of that gray."""
    xp = _numpy_like(lightness)
    return xp.concatenate([lightness, xp.zeros_like(lightness), xp.zeros_like(lightness)], axis=-1)


def to_integer(rgb: Array, dtype: np.dtype) -> Array:
    """float in [0, 1] -> an unsigned integer type's whole range, rounded."""
    xp = _numpy_like(rgb)
    return xp.round(xp.clip(rgb, np.float32(0), np.float32(1)) * np.float32(np.iinfo(dtype).max)).astype(dtype)


def to_uint8(rgb: Array) -> Array:
    """float in [0, 1] -> uint8 in [0, 255], rounded."""
    return to_integer(rgb, np.dtype(np.uint8))


def encode_lab(lab: Array) -> Array:
    """float L*a*b* (..., 3) -> uint8 (..., 3): L* 255/100, a* + 128, b* + 128, rounded. The form that shards store."""
    xp = _numpy_like(lab)
    scaled = lab * np.array([2.55, 1, 1], np.float32) + np.array([0, 128, 128], np.float32)
    return xp.clip(xp.round(scaled), np.float32(0), np.float32(255)).astype(xp.uint8)


def decode_lab(encoded: Array) -> Array:
    """uint8 (..., 3) of `encode_lab` -> float32 L*a*b* (..., 3); off by at most 0.2 in L* and 0.5 in a*, b*."""
    xp = _numpy_like(encoded)
    return (encoded.astype(xp.float32) - np.array([0, 128, 128], np.float32)) / np.array([2.55, 1, 1], np.float32)


def rgb_to_yuv(rgb: Array) -> Array:
    """sRGB (..., 3), uint8 or float in [0, 1] -> float32 YUV (..., 3), BT.601, every channel scaled to [0, 1]."""
    xp = _numpy_like(rgb)
    yuv = _mix(_as_unit_float(rgb, xp), _TO_YUV)
    return xp.concatenate([yuv[..., :1], yuv[..., 1:] / (2 * _UV_MAX) + np.float32(0.5)], axis=-1)


def yuv_to_rgb(yuv: Array) -> Array:
    """float YUV (..., 3) with every channel in [0, 1] -> float32 sRGB (..., 3), clipped to [0, 1]."""
    return _numpy_like(yuv).clip(_yuv_to_rgb(yuv), np.float32(0), np.float32(1))


def _yuv_to_rgb(yuv):
    chroma = (yuv[..., 1:] - np.float32(0.5)) * (2 * _UV_MAX)
    return _mix(_numpy_like(yuv).concatenate([yuv[..., :1], chroma], axis=-1), _FROM_YUV)


def normalize_l(lightness: Array) -> Array:
    """L* in [0, 100] -> network input in [0, 1]."""
    return lightness / np.float32(100)


# What a network predicts in an output space: the name of its output, and its channels.
OUTPUT_SPACES = {'lab': ('ab', 2), 'yuv': ('uv', 2), 'rgb': ('rgb', 3)}
# Scale and offset by output activation, of channels that lie in [0, 1]: channel = output * scale + offset.
# tanh: (-1, 1) <-> (0, 1); linear: as tanh, but unbounded; relu, which has no negative values: as sigmoid, but unbounded.
UNIT_RANGE = {'sigmoid': (1.0, 0.0), 'relu': (1.0, 0.0), 'tanh': (0.5, 0.5), 'linear': (0.5, 0.5)}
# The same of a*b*, for which (0, 1) is (-128, 128): ab = output * scale + offset.
# sigmoid: (0, 1) <-> (-128, 128); relu: the same, unbounded above; tanh: (-1, 1) <-> (-128, 128); linear: in units of 128.
AB_RANGE = {activation: (256 * scale, 256 * offset - 128) for activation, (scale, offset) in UNIT_RANGE.items()}


def normalize(channels: Array, space: str, activation: str) -> Array:
    """Channels of an output space -> the output range of a network.

    Args:
        channels: float, any shape: a*b*, or in [0, 1] the U and V of `rgb_to_yuv`, or RGB.
        space: a key of OUTPUT_SPACES.
        activation: the network's output activation, a key of UNIT_RANGE.
    """
    scale, offset = (AB_RANGE if space == 'lab' else UNIT_RANGE)[activation]
    return (channels - np.float32(offset)) / np.float32(scale)


def denormalize(output: Array, space: str, activation: str) -> Array:
    """A network's output -> channels of its output space; the inverse of `normalize`."""
    scale, offset = (AB_RANGE if space == 'lab' else UNIT_RANGE)[activation]
    return output * np.float32(scale) + np.float32(offset)


# Newton steps from the Y of a gray to that of a color of the same lightness; three leave 0.003 units of a*b* in sRGB.
_LUMA_STEPS = 4


def encode_output(lab: Array, space: str, activation: str) -> Array:
    """Colors -> what a network ought to predict.

    Args:
        lab: float L*a*b* (..., 3).
        space: a key of OUTPUT_SPACES: 'lab' is a*b*, 'yuv' the U and V of `rgb_to_yuv`, 'rgb' sRGB in [0, 1].
        activation: the network's output activation, a key of UNIT_RANGE; it decides the range.

    Returns:
        float32 (..., channels of the space).
    """
    if space == 'lab':
        return normalize(lab[..., 1:], space, activation)
    rgb = lab_to_rgb(lab)
    return normalize(rgb if space == 'rgb' else rgb_to_yuv(rgb)[..., 1:], space, activation)


def decode_output(output: Array, lightness: Array, space: str, activation: str) -> Array:
    """The colors that a network predicts, at a lightness; the inverse of `encode_output`.

    Args:
        output: float (..., channels of the space).
        lightness: L* (..., 1) of the photo. U and V mean the color of that lightness; RGB has a lightness of its own, which
            is ignored.
        space, activation: as for `encode_output`.

    Returns:
        a*b*, float32 (..., 2).
    """
    xp, channels = _numpy_like(output), denormalize(output, space, activation)
    if space == 'lab':
        return channels
    if space == 'rgb':
        return rgb_to_lab(xp.clip(channels, np.float32(0), np.float32(1)))[..., 1:]
    luma = gray_luma(lightness)
    goal, chroma_rgb = srgb_to_linear(luma), _yuv_to_rgb(xp.concatenate([np.float32(0) * luma, channels], axis=-1))
    for _ in range(_LUMA_STEPS):
        rgb = luma + chroma_rgb
        excess = _mix(srgb_to_linear(rgb), _TO_XYZ)[..., 1:2] - goal
        luma = luma - excess / _mix(_srgb_slope(rgb), _TO_XYZ)[..., 1:2]
    return rgb_to_lab(xp.clip(luma + chroma_rgb, np.float32(0), np.float32(1)))[..., 1:]


def _srgb_slope(rgb):
    """The derivative of `srgb_to_linear`."""
    xp = _numpy_like(rgb)
    curve = _pow((xp.maximum(rgb, np.float32(0.04)) + np.float32(0.055)) / np.float32(1.055), 1.4, xp)
    return xp.where(rgb > np.float32(0.04045), np.float32(2.4 / 1.055) * curve, np.float32(1 / 12.92))


def gray_luma(lightness: Array) -> Array:
    """L* (..., 1) -> the sRGB level, and so the Y of YUV, in [0, 1] of that gray: float32 (..., 1)."""
    return linear_to_srgb(_f_inverse((lightness.astype(np.float32) + np.float32(16)) / np.float32(116)))


# The a*b* grid of Zhang, Isola, Efros 2016, section 2.1: squares centered on multiples of 10 from -110 to 110.
_BIN_SIDE, _BINS_PER_AXIS = 10, 23
AB_BINS = _BINS_PER_AXIS**2


def ab_bin(ab: Array) -> Array:
    """The bin of each color on the 10 x 10 grid of the a*b* plane: float (..., 2) -> int32 (...) in [0, AB_BINS)."""
    xp = _numpy_like(ab)
    index = xp.floor(ab / _BIN_SIDE + 0.5).astype(xp.int32) + _BINS_PER_AXIS // 2
    index = xp.clip(index, 0, _BINS_PER_AXIS - 1)
    return index[..., 0] * _BINS_PER_AXIS + index[..., 1]


def ab_bin_centers() -> np.ndarray:
    """The a*b* at the center of each bin of `ab_bin`, float32 (AB_BINS, 2)."""
    centers = _BIN_SIDE * (np.arange(_BINS_PER_AXIS, dtype=np.float32) - _BINS_PER_AXIS // 2)
    return np.stack(np.meshgrid(centers, centers, indexing='ij'), axis=-1).reshape(-1, 2)


# The 313 squares of that grid that Zhang et al. tell apart, as their code lists them (pts_in_hull): the first and last b* of
# a* = -90, -80, ... 100. The paper calls them in gamut; they are those that sRGB reaches, and more around them.
_ZHANG_ROWS = (
    *((50, 90), (20, 90), (0, 90), (-20, 90), (-30, 100), (-40, 100), (-50, 100), (-50, 100), (-60, 100), (-70, 100)),
    *((-80, 90), (-80, 90), (-90, 90), (-100, 90), (-100, 80), (-110, 80), (-110, 80), (-110, 70), (-110, 70), (-90, 0)),
)


def zhang_class_centers() -> np.ndarray:
    """The a*b* of the 313 classes of Zhang, Isola, Efros 2016 (section 2.1), in their order: float32 (313, 2)."""
    rows = enumerate(_ZHANG_ROWS, start=-9)
    centers = [(_BIN_SIDE * i, b) for i, (first, last) in rows for b in range(first, last + 1, _BIN_SIDE)]
    return np.array(centers, np.float32)
