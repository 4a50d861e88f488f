"""What age and old cameras do to the lightness of photographs, inside the jitted training step.

Only the L* that a network sees changes; the colors that it ought to find stay those of the photo. So it learns what old
photographs differ in, and that it says nothing about color.

A degradation hits a photo with the probability `data.degraded`, with a strength between 0 and the field's. Its random
numbers follow from the step's key and the photo's own pixels, not from its place in a batch: the number of devices changes
nothing.
"""

import enum
import math

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

# The luminance table of ITU-T T.81 (JPEG), table K.1.
_JPEG_TABLE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
)
_GRAIN_SIZE = 0.8  # pixels, the largest standard deviation of a grain
_TEXTURE_SCALES = (2, 8, 32)  # pixels: fibers, mottling, stains


class Degradation(enum.IntEnum):
    """Fields of the section `data`, and the keys of their random numbers, in the order of a photograph's life."""

    BLUR = 0
    EXPOSURE = 1
    VIGNETTE = 2
    GAMMA = 3
    GRAIN = 4
    FADING = 5
    TEXTURE = 6
    SCRATCHES = 7
    JPEG = 8

    @property
    def field(self) -> str:
        """Its name in the config's section `data`."""
        return self.name.lower()


# Strengths that make photographs look old, but still like photographs: for the picture in the room's README.
STRONG = {
    'blur': 1.2,
    'exposure': 1.0,
    'vignette': 0.7,
    'gamma': 0.8,
    'grain': 6.0,
    'fading': 0.5,
    'texture': 5.0,
    'scratches': 3,
    'jpeg': 80,
}


def is_degrading(data: ConfigDict) -> bool:
    """Whether the config's section `data` asks for any degradation."""
    return data.degraded > 0 and any(getattr(data, each.field) for each in Degradation)


def degrade(lightness: jax.Array, rng: jax.Array, data: ConfigDict) -> jax.Array:
    """Ages the lightness of photos.

    Args:
        lightness: L* of photos, float32 (B, H, W, 1) in [0, 100].
        rng: key of the step.
        data: the config's `data` section: degraded, and the fields of `Degradation`; config.py says what they mean.

    Returns:
        L* of the same shape, in [0, 100].
    """
    if not is_degrading(data):
        return lightness
    # A sum of the pixels tells photos apart; uint32 wraps around.
    seeds = jnp.sum(jnp.round(lightness * 2.55).astype(jnp.uint32), axis=(1, 2, 3), dtype=jnp.uint32)
    keys = jax.vmap(lambda seed: jax.random.fold_in(rng, seed))(seeds)
    return jax.vmap(lambda x, key: _degrade(x, key, data))(lightness[..., 0], keys)[..., None]


def _degrade(x, key, data):
    """L* of a photo (H, W), its key -> (H, W)."""
    for each in Degradation:
        if most := getattr(data, each.field):
            whether, how_much, how = jax.random.split(jax.random.fold_in(key, each), 3)
            hit = jax.random.uniform(whether) < data.degraded
            aged = _DEGRADATIONS[each](x, jax.random.uniform(how_much), most, how)
            # One degradation fused into the next repeats the first for each pixel that the next reads: minutes to compile.
            x = jax.lax.optimization_barrier(jnp.where(hit, jnp.clip(aged, 0, 100), x))
    return x


# Each is a function of L* (H, W), a number in [0, 1), the field's value, and a key.


def _blur(x, part, most, key):
    """A lens out of focus."""
    del key
    return _gaussian(x, part * most, math.ceil(2.5 * most))


def _expose(x, part, most, key):
    """Too much or too little light: linear light times 2^stops, where L* + 16 is its cube root."""
    del key
    return (x + 16) * jnp.exp2((2 * part - 1) * most / 3) - 16


def _vignette(x, part, most, key):
    """A lens that is darker towards the corners, around a center in the middle half of the crop."""
    y, x_ = _places(x.shape)
    center = jax.random.uniform(key, (2,), minval=0.25, maxval=0.75)
    distance = ((y / x.shape[0] - center[0]) ** 2 + (x_ / x.shape[1] - center[1]) ** 2) * 2  # 1 from center to corner
    light = 1 - part * most * jnp.minimum(distance, 1)
    return (x + 16) * jnp.cbrt(light) - 16


def _gamma(x, part, most, key):
    """Flat or steep paper: L*/100 to the power of 1 / (1 + most) to 1 + most."""
    del key
    return 100 * jnp.maximum(x / 100, 1e-4) ** ((1 + most) ** (2 * part - 1))


def _grain(x, part, most, key):
    """Clumps of silver of a random size: most of them in mid-gray, a third in black and white."""
    noise_key, size_key = jax.random.split(key)
    size, radius = jax.random.uniform(size_key, maxval=_GRAIN_SIZE), math.ceil(2.5 * _GRAIN_SIZE)
    noise = jax.random.normal(noise_key, x.shape)
    weights = _gaussian_weights(size, radius)
    noise = _gaussian(noise, size, radius) / jnp.sum(weights**2)  # of a standard deviation of 1 again
    tone = x / 100
    return x + part * most * noise * (1 / 3 + 2 / 3 * 4 * tone * (1 - tone))


def _fade(x, part, most, key):
    """Loses contrast: blacks turn gray, by up to all of what is lost, and whites darken by the rest."""
    lost = part * most * 100
    black = lost * jax.random.uniform(key, minval=0.4)
    return black + x * (1 - lost / 100)


def _texture(x, part, most, key):
    """Fibers, mottling and stains of the paper: smooth noise of three sizes, each of a random share."""
    share_key, *keys = jax.random.split(key, 1 + len(_TEXTURE_SCALES))
    shares = jax.random.uniform(share_key, (len(_TEXTURE_SCALES),), minval=0.1)
    shares = shares / jnp.linalg.norm(shares)
    total = jnp.zeros_like(x)
    for share, scale, scale_key in zip(shares, _TEXTURE_SCALES, keys, strict=True):
        coarse = jax.random.normal(scale_key, tuple(-(-side // scale) + 1 for side in x.shape))
        fine = jax.image.resize(coarse, tuple(side * scale for side in coarse.shape), 'linear')
        total += share * 1.5 * fine[: x.shape[0], : x.shape[1]]  # interpolation takes two thirds of the deviation
    return x + part * most * total


def _scratch(x, part, most, key):
    """Up to `most` scratches, mostly upright, and as many specks of dust; white where they are on a negative, else black."""
    y, x_ = _places(x.shape)
    for kind in range(2):
        draws = jax.random.uniform(jax.random.fold_in(key, kind), (most, 7))
        for i, (down, right, turn, length, width, white, opacity) in enumerate(draws):
            if kind == 0:
                angle, half = (2 * turn - 1) ** 3 * math.pi / 2, (0.1 + 0.6 * length) * x.shape[0]
                width = 0.2 + 0.5 * width
            else:
                angle, half, width = turn * math.pi, 2.5 * length**2, 0.3 + 1.2 * width**2
            dy, dx = y - down * x.shape[0], x_ - right * x.shape[1]
            along = jnp.clip(dy * jnp.cos(angle) + dx * jnp.sin(angle), -half, half)
            distance = jnp.hypot(dy - along * jnp.cos(angle), dx - along * jnp.sin(angle))
            cover = jnp.clip(width + 0.5 - distance, 0, 1) * (0.3 + 0.7 * opacity)
            cover = jnp.where(i < part * (most + 1) - kind * 0.5, cover, 0)
            x = x + cover * (jnp.where(white < 0.7, 100, 0) - x)
    return x


def _jpeg(x, part, most, key):
    """A scan kept as JPEG, its blocks at a random place."""
    height, width = x.shape
    blocks = tuple(8 * -(-(side + 7) // 8) for side in x.shape)  # whole blocks at any place
    padding = [(7, whole - side) for side, whole in zip(x.shape, blocks, strict=True)]
    start = jax.random.randint(key, (2,), 0, 8)
    window = jax.lax.dynamic_slice(jnp.pad(x, padding, 'edge'), start, blocks)
    window = jpeg(window * 2.55, 100 - part * most) / 2.55
    return jax.lax.dynamic_slice(window, 7 - start, (height, width))


def jpeg(levels: jax.Array, quality: jax.Array | float) -> jax.Array:
    """What JPEG leaves of a gray photo (ITU-T T.81, with the quality of libjpeg).

    Args:
        levels: float32 (H, W) in [0, 255]; H and W are multiples of 8.
        quality: in (0, 100].

    Returns:
        float32 (H, W) in [0, 255].
    """
    height, width = levels.shape
    scale = jnp.where(quality < 50, 5000 / jnp.maximum(quality, 1), 200 - 2 * quality)
    table = jnp.clip(jnp.floor((_JPEG_TABLE * scale + 50) / 100), 1, 255)[:, None, :]  # (8, 1, 8)
    k = np.arange(8)
    cosines = np.sqrt(np.where(k == 0, 1, 2) / 8)[:, None] * np.cos(np.pi * (2 * k + 1) * k[:, None] / 16)
    dct = jnp.asarray(cosines, jnp.float32)

    def transform(blocks, matrix):
        return jnp.einsum('ij,hjwk,lk->hiwl', matrix, blocks, matrix, precision=jax.lax.Precision.HIGHEST)

    blocks = (levels - 128).reshape(height // 8, 8, width // 8, 8)
    steps = transform(blocks, dct) / table
    blocks = jnp.sign(steps) * jnp.floor(jnp.abs(steps) + 0.5) * table  # halves away from 0, as libjpeg does
    return jnp.clip(transform(blocks, dct.T).reshape(height, width) + 128, 0, 255)


_DEGRADATIONS = {
    Degradation.BLUR: _blur,
    Degradation.EXPOSURE: _expose,
    Degradation.VIGNETTE: _vignette,
    Degradation.GAMMA: _gamma,
    Degradation.GRAIN: _grain,
    Degradation.FADING: _fade,
    Degradation.TEXTURE: _texture,
    Degradation.SCRATCHES: _scratch,
    Degradation.JPEG: _jpeg,
}


def _places(shape):
    """The centers of the pixels: float32 (H, 1) and (1, W)."""
    return jnp.arange(shape[0], dtype=jnp.float32)[:, None] + 0.5, jnp.arange(shape[1], dtype=jnp.float32)[None] + 0.5


def _gaussian_weights(deviation, radius):
    """float32 (2 radius + 1,), of sum 1; a deviation of 0 leaves the center alone."""
    steps = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
    weights = jnp.exp(-0.5 * (steps / jnp.maximum(deviation, 0.05)) ** 2)
    return weights / jnp.sum(weights)


def _gaussian(x, deviation, radius):
    """(H, W) blurred along both axes; a sum of shifted copies, which XLA fuses, and faster than its convolutions on CPUs."""
    weights = _gaussian_weights(deviation, radius)
    height, width = x.shape
    padded = jnp.pad(x, radius, 'symmetric') if radius <= min(x.shape) else jnp.pad(x, radius, 'edge')
    rows = sum(weight * padded[i : i + height] for i, weight in enumerate(weights))
    return sum(weight * rows[:, i : i + width] for i, weight in enumerate(weights))
