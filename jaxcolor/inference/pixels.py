"""The compiled arithmetic that joins L* and a*b*: chunks of a photo's pixels -> RGB inside sRGB.

Powers are square roots and polynomials, since XLA's own take two thirds of the whole time. A pixel of 8 bits comes and goes
as a word of 32 bits, red in its lowest byte, as Pillow holds it: with one array in and one out, XLA fills a CPU's lanes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import Chebyshev, Polynomial

from jaxcolor import color
from jaxcolor.runtime.parallel import compiler_options

# Pixels per call of the compiled functions; always as many, so that each is compiled once.
CHUNK, _OUTSIDE_CHUNK = 2**17, 2**13
# Linear light that a color may lie outside sRGB, by bits: a third of a step in black, less elsewhere.
_TOLERANCE = {8: 1e-4, 16: 4e-7}


def aligned(shape: tuple[int, ...], dtype: np.dtype | type) -> np.ndarray:
    """An empty array that JAX takes without a copy: its address is a multiple of 64 bytes."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def recolor(light: np.ndarray, model: np.ndarray) -> np.ndarray:
    """Colors pixels. Colors outside sRGB lose chroma until they fit, so that the lightness stays.

    Args:
        light: N pixels in sRGB, at most CHUNK: uint8 or uint16 (N,), gray; uint32 (N,), words of three bytes and any fourth;
            or uint16 (N, 3 or 4), RGB and any fourth.
        model: float32 (4, CHUNK): for the first N pixels the slopes of a* and b*, and their offsets: a* = slope L* + offset.

    Returns:
        RGB and a fourth channel that is undefined: uint8 or uint16 (N, 4).
    """
    count, bits = len(light), 16 if light.dtype == np.uint16 else 8
    lightness = _lightness(light)
    words = _words(lightness, model, bits)[:count]
    (outside,) = np.nonzero(words[:, -1] < 2 ** (32 - bits))
    if len(outside) > count // 3:  # all of them take less time than many
        words = _words(lightness, model, bits, fit=True)[:count]
    elif len(outside):
        words = words.copy()
        of_some = aligned((4, _OUTSIDE_CHUNK), np.float32)
        for first in range(0, len(outside), _OUTSIDE_CHUNK):
            some = np.resize(outside[first : first + _OUTSIDE_CHUNK], _OUTSIDE_CHUNK)  # repeated
            np.take(model, some, axis=1, out=of_some, mode='clip')  # a third of the time of model[:, some]
            words[some] = _words(lightness[some], of_some, bits, fit=True)
    return words.view(np.uint8 if bits == 8 else np.uint16)


def _lightness(light):
    """L* of pixels, float32 (CHUNK,), the rest undefined."""
    if light.ndim == 1 and light.dtype != np.uint32:
        lightness = aligned((CHUNK,), np.float32)
        np.take(_gray_lightness(light.dtype), light, out=lightness[: len(light)], mode='clip')
        lightness[len(light) :] = 0
        return lightness
    chunk = aligned((CHUNK, *light.shape[1:]), light.dtype)
    chunk[: len(light)], chunk[len(light) :] = light, 0
    return np.asarray(_compiled(_color_lightness)(chunk))


@functools.cache
def _gray_lightness(dtype):
    """L* of every gray of a type."""
    levels = np.arange(np.iinfo(dtype).max + 1, dtype=np.float32) / np.float32(np.iinfo(dtype).max)
    return color.y_to_lightness(color.srgb_to_linear(levels))


def _words(lightness, model, bits, fit=False):
    """Colors of L* (N,) and the model of a*b* (4, N): words of four channels of 8 bits, (N, 1), or of two of 16, (N, 2)."""
    factor = _compiled(_chroma_factor, 'bits')(lightness, model, bits) if fit else np.float32(1)
    words = [np.asarray(words) for words in _compiled(_recolor, 'bits')(lightness, model, factor, bits)]
    return words[0][:, None] if bits == 8 else np.stack(words, axis=-1)


@functools.cache
def _compiled(function, *static):
    """A function of these arguments that are no arrays, compiled where it is called first."""
    return jax.jit(function, static_argnames=static, compiler_options=compiler_options(wide_vectors=True))


# All below is compiled: few functions of one result each, since XLA computes again what several results share.


def _color_lightness(light):
    """L* of uint32 or uint16 pixels, as `recolor` takes them, float32 (N,)."""
    if light.ndim == 1:
        channels, top = [light >> shift & 255 for shift in (0, 8, 16)], 255
    else:
        channels, top = [light[:, i] for i in range(3)], 65535
    linear = [_to_linear(channel.astype(jnp.int32).astype(jnp.float32) * np.float32(1 / top)) for channel in channels]
    return _y_to_lightness(color.linear_planes_to_y(linear))


def _chroma_factor(lightness, model, bits):
    """What the chroma is multiplied by, float32 (N,)."""
    return color.chroma_factor(*_lab(lightness, model, np.float32(1)), _TOLERANCE[bits])


def _recolor(lightness, model, factor, bits):
    """One word (N,) of 8 bits a channel, or two of 16; the fourth channel is 0 for colors outside sRGB, else all ones."""
    linear = color.lab_planes_to_linear(*_lab(lightness, model, factor))
    fourth = jnp.where(_is_inside(linear, _TOLERANCE[bits]), jnp.uint32(2**bits - 1), jnp.uint32(0))
    channels = [*_levels(linear, bits), fourth]
    if bits == 8:
        return [channels[0] | channels[1] << 8 | channels[2] << 16 | channels[3] << 24]
    return [channels[0] | channels[1] << 16, channels[2] | channels[3] << 16]


def _lab(lightness, model, factor):
    """L*, a*, b*, float32 (N,) each."""
    return lightness, *((model[i] * lightness + model[2 + i]) * factor for i in (0, 1))


def _levels(linear, bits):
    """Linear light, clipped to [0, 1] -> the levels of sRGB, three of uint32 (N,).

    Of 8 bits, green makes up for what rounding red and blue does to the luminance, and red for what green below 0 cannot:
    near black, three roundings could add up to more than half a step of gray.
    """
    top = np.float32(2**bits - 1)
    red, green, blue = (_from_linear(jnp.clip(plane, np.float32(0), np.float32(1))) * top for plane in linear)
    if bits == 8:
        # The luminance of a step.
        of_red, of_green, of_blue = (
            w * _slope(level / top) for w, level in zip(color.LUMINANCE, (red, green, blue), strict=True)
        )
        whole_red, whole_blue = (_rounded(level).astype(jnp.float32) for level in (red, blue))
        green += ((red - whole_red) * of_red + (blue - whole_blue) * of_blue) / of_green
        red = jnp.clip(whole_red + jnp.minimum(green, np.float32(0)) * of_green / of_red, np.float32(0), top)
        green = jnp.clip(green, np.float32(0), top)
    return [_rounded(level).astype(jnp.uint32) for level in (red, green, blue)]


def _rounded(level):
    return (level + np.float32(0.5)).astype(jnp.int32)


def _is_inside(linear, tolerance):
    darkest, brightest = functools.reduce(jnp.minimum, linear), functools.reduce(jnp.maximum, linear)
    return (darkest >= np.float32(-tolerance)) & (brightest <= np.float32(1 + tolerance))


# The curves of `color`, to a thirtieth of a step of 16 bits and, in L*, a quarter of one.


def _polynomial(function, degree, first):
    """The coefficients of a polynomial that is nearly a function of [first, 1], the highest first."""
    fitted = Chebyshev.interpolate(function, degree, domain=[first, 1]).convert(kind=Polynomial)
    return fitted.coef[::-1].astype(np.float32)


_TO_LINEAR = _polynomial(lambda level: ((level + 0.055) / 1.055) ** 2.4, 9, 0.04045)
# Of fourth roots.
_FROM_LINEAR = _polynomial(lambda root: 1.055 * root ** (4 / 2.4) - 0.055, 7, 0.0031308**0.25)
# The slope of the first, to a hundredth.
_SLOPE = _polynomial(lambda level: 2.4 / 1.055 * ((level + 0.055) / 1.055) ** 1.4, 3, 0.04045)
_LIGHTNESS = _polynomial(lambda root: 116 * root ** (4 / 3) - 16, 7, (6 / 29) ** 0.75)


def _value(coefficients, x):
    return functools.reduce(lambda total, coefficient: total * x + coefficient, coefficients[1:], coefficients[0])


def _to_linear(level):
    return jnp.where(level > np.float32(0.04045), _value(_TO_LINEAR, level), level / np.float32(12.92))


def _slope(level):
    return jnp.maximum(_value(_SLOPE, level), np.float32(1 / 12.92))


def _from_linear(linear):
    curve = _value(_FROM_LINEAR, jnp.sqrt(jnp.sqrt(linear)))
    return jnp.where(linear > np.float32(0.0031308), curve, linear * np.float32(12.92))


def _y_to_lightness(y):
    curve = _value(_LIGHTNESS, jnp.sqrt(jnp.sqrt(y)))
    return jnp.where(y > np.float32((6 / 29) ** 3), curve, y * np.float32((29 / 3) ** 3))
