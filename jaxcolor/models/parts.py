"""Operations that CPUs do part by part of a batch, so that what lies between the layers stays in the caches.

Elsewhere, and where a batch is small, they are done at once. Part by part they also need far less memory. Limits were
measured on 2 CPU cores with 32 MB of cache; the benchmark's README has the timings.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcolor.models.cpu_kernels import CPUKernel, is_used, on_cpus

_BAND = 1024  # pixels, at least
_PHOTO = 2**17  # pixels, from 362x362 on; smaller photos are faster together
_VALUES = 2**21  # of the largest map inside a part, at most: 8 MiB


def _by_bands(x, *weights, function):
    B, H, W, C = x.shape
    count = max(n for n in range(1, H + 1) if H % n == 0 and (n == 1 or B * W * H // n >= _BAND))
    bands = x.reshape(B, count, H // count, W, C).swapaxes(0, 1)
    y = lax.map(lambda band: function(band, *weights), bands).swapaxes(0, 1)
    return y.reshape(B, H, W, -1)


BANDS = CPUKernel('bands', forward=_by_bands)


@on_cpus(BANDS)
def by_pixel(x: jax.Array, *weights: jax.Array, function: Callable[..., jax.Array]) -> jax.Array:
    """function(x, *weights), which sees each pixel of a photo for itself: (B, H, W, C) -> (B, H, W, features)."""
    return function(x, *weights)


def _by_photo(weights, *inputs, function):
    """What a batch of one gives, for one photo after the other."""
    return lax.map(lambda each: jax.tree.map(lambda y: y[0], function(weights, *(x[None] for x in each))), inputs)


def _suits_by_photo(weights, *inputs, function):
    B, H, W, _ = inputs[0].shape
    return _is_static(inputs[0]) and B > 1 and H * W >= _PHOTO


PHOTOS = CPUKernel('photos', _by_photo, suits=_suits_by_photo)


@on_cpus(PHOTOS)
def by_photo(weights: Any, *inputs: jax.Array, function: Callable[..., Any]) -> Any:
    """function(weights, *inputs), which sees each photo of a batch for itself: (B, H, W, C) first -> arrays (B, ...)."""
    return function(weights, *inputs)


def _part_of(x, values):
    """Photos and rows of a part: one photo or more, or, of large photos, a band."""
    B, H, W, _ = x.shape
    pixels = _VALUES // values
    bands = -(-H * W // pixels)
    return min(B, max(1, pixels // (H * W))), H if bands == 1 else -(-H // bands)


def _by_parts(weights, x, *, function, strides, reach, values):
    B, H, W, C = x.shape
    photos, rows = _part_of(x, values)
    rows = -(-rows // strides) * strides
    # Whole strides, so that the function's rows are the same as the photo's.
    above, below = (-(-max(0, each) // strides) * strides for each in (reach, reach - strides + 1))
    seen = min(above + rows + below, H)

    def one(y, place):
        photo, row = place
        first = jnp.clip(row - above, 0, H - seen)
        part = function(weights, lax.dynamic_slice(x, (photo, first, 0, 0), (photos, seen, W, C)))
        part = lax.dynamic_slice_in_dim(part, (row - first) // strides, rows // strides, axis=1)
        return lax.dynamic_update_slice(y, part, (photo, row // strides, 0, 0)), None

    # The last photos and the last rows are done again where the parts do not divide the batch evenly.
    places = [(min(b, B - photos), min(row, H - rows)) for b in range(0, B, photos) for row in range(0, H, rows)]
    shape = jax.eval_shape(function, weights, x)
    return lax.scan(one, jnp.zeros(shape.shape, shape.dtype), np.array(places, np.int32))[0]


def _suits_by_parts(weights, x, *, function, strides, reach, values):
    """Whether there are several parts, whose own rows are most of what they see."""
    if not _is_static(x) or x.shape[1] % strides:
        return False
    photos, rows = _part_of(x, values)
    return photos < x.shape[0] if rows == x.shape[1] else rows >= 4 * max(reach, strides)


PARTS = CPUKernel('parts', _by_parts, suits=_suits_by_parts)


@on_cpus(PARTS)
def by_parts(
    weights: Any, x: jax.Array, *, function: Callable[..., jax.Array], strides: int, reach: int, values: int
) -> jax.Array:
    """function(weights, x), a row of which sees `reach` rows above and below: (B, H, W, C) -> (B, H/strides, W', features).

    values: of the function's largest map for each pixel of x.
    """
    return function(weights, x)


def run_by_parts(blocks: Sequence[Any], x: jax.Array) -> jax.Array:
    """One `ConvBlock` after the other, in inference: (B, H, W, C) -> (B, H/strides, W/strides, features).

    In training, a gradient would compute the blocks again.
    """
    strides, reach, values = 1, 0, 1
    for block in blocks:
        reach += strides * block.reach
        strides *= block.strides
        values = max(values, block.features // strides**2)
    options = {'strides': strides, 'reach': reach, 'values': values}
    if blocks[0].is_initializing() or not is_used(PARTS, None, x, function=None, **options):
        for block in blocks:
            x = block(x, False)
        return x
    # JAX's loops take functions, not modules that belong to another one.
    modules, weights = zip(*(block.unbind() for block in blocks), strict=True)

    def function(weights, x):
        for block, module, variables in zip(blocks, modules, weights, strict=True):
            with jax.named_scope(block.name):
                x = module.apply(variables, x, False)
        return x

    return by_parts(weights, x, function=function, **options)


def _is_static(x):
    """Whether the shape is known: in an exported program, the number and the size of photos may not be."""
    return all(isinstance(side, int) for side in x.shape)
