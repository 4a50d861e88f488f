"""Depthwise convolutions: a kernel for each channel. As sums of shifted products, for want of fast ones in XLA."""

import contextlib
import contextvars
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcolor.models import cpu_kernels
from jaxcolor.models.cpu_convolutions import interleave
from jaxcolor.models.cpu_kernels import on_cpus, setting

_is_grouped = contextvars.ContextVar('depthwise_convolutions_are_grouped', default=False)


def grouped_depthwise() -> contextlib.AbstractContextManager[None]:
    """Depthwise convolutions traced inside are one operation each: fastest to trace, and to run outside of XLA."""
    return setting(_is_grouped, True)


def depthwise_conv2d(x: jax.Array, kernel: jax.Array, *, strides: int, padding: tuple[tuple[int, int], ...]) -> jax.Array:
    """A kernel for each channel: (B, H, W, C), (h, w, 1, C) -> (B, H', W', C).

    padding: as for `layers.conv2d`. strides: 1 or 2.

    A multiplication for each pixel of the kernel, which XLA fuses into one loop. Its grouped convolutions are slow on CPUs,
    and on an H100 those of an EfficientNet were not compiled after 80 s. Compiled for TPUs, they move far fewer bytes.
    """

    def grouped(x, kernel):
        dimensions = ('NHWC', 'HWIO', 'NHWC')
        return lax.conv_general_dilated(x, kernel, (strides,) * 2, padding, None, None, dimensions, x.shape[-1])

    def seen(x):
        """What each pixel of the kernel sees, [(B, H', W', C)] in float32."""
        x = jnp.pad(x, ((0, 0), *padding, (0, 0))).astype(jnp.float32)
        h, w = (side - taps + 1 for side, taps in zip(x.shape[1:3], kernel.shape[:2], strict=True))
        return [x[:, i : i + h : strides, j : j + w : strides] for i, j in np.ndindex(kernel.shape[:2])]

    def convolve(x, kernel):
        weights = kernel.astype(jnp.float32).reshape(-1, kernel.shape[-1])
        return sum(pixels * weight for pixels, weight in zip(seen(x), weights, strict=True)).astype(kernel.dtype)

    # JAX would derive a sum for each pixel of the kernel; a GPU's compiler takes long to try hundreds of them.
    def backward(join, x, kernel, gradient):
        to_x = _to_image(gradient, kernel.astype(jnp.float32)[:, :, 0], x, strides, padding, join)
        to_kernel = sums_of_products(gradient.astype(jnp.float32), *seen(x)).reshape(kernel.shape)
        return to_x, to_kernel.astype(kernel.dtype)

    def rounded(x, kernel):
        """XLA may drop a rounding to bfloat16 and back: the barrier keeps the map in bfloat16 in a GPU's memory."""
        return lax.optimization_barrier(convolve(x, kernel))

    forward = functools.partial(lax.platform_dependent, tpu=grouped, cpu=convolve, default=rounded)

    def pullback(arrays, gradient):
        return lax.platform_dependent(
            *arrays,
            gradient,
            tpu=lambda x, kernel, gradient: jax.vjp(grouped, x, kernel)[1](gradient),
            cpu=functools.partial(backward, interleave),
            default=functools.partial(backward, _spread),
        )

    if _is_grouped.get():
        return grouped(x, kernel)
    convolution = jax.custom_vjp(forward)
    convolution.defvjp(lambda x, kernel: (forward(x, kernel), (x, kernel)), pullback)
    return convolution(x, kernel)


def _spread(phases):
    """`interleave` as a sum, each phase with zeros between: on GPUs, part of the loop that computes them."""
    zero = jnp.zeros((), phases[0].dtype)
    places = np.ndindex(2, 2)
    padded = (
        lax.pad(x, zero, ((0, 0, 0), (i, 1 - i, 1), (j, 1 - j, 1), (0, 0, 0)))
        for x, (i, j) in zip(phases, places, strict=True)
    )
    return sum(padded)


def _to_image(gradient, kernel, x, strides, padding, join):
    """The gradient to the image x, (B, H', W', C), (h, w, C) -> (B, H, W, C): of each pixel, a sum over what saw it.

    JAX's own adds up as many images, each padded with zeros. At a stride of 2, pixels of even and of odd places were seen by
    different parts of the kernel: `join` makes one image of these four.
    """
    h, w = (-(-(side + sum(both)) // strides) for side, both in zip(x.shape[1:3], padding, strict=True))
    phases = []
    for row, column in np.ndindex(strides, strides):
        part = kernel[row::strides, column::strides][::-1, ::-1]
        m, n = part.shape[:2]
        around = jnp.pad(gradient, ((0, 0), (m - 1, h - gradient.shape[1]), (n - 1, w - gradient.shape[2]), (0, 0)))
        around = around.astype(jnp.float32)
        seen = sum(around[:, i : i + h, j : j + w] * part[i, j] for i, j in np.ndindex(m, n))
        phases.append(seen.astype(x.dtype))
    to_padded = join(phases) if strides == 2 else phases[0]
    (top, _), (left, _) = padding
    return to_padded[:, top : top + x.shape[1], left : left + x.shape[2]]


@on_cpus(cpu_kernels.SUMS_OF_PRODUCTS)
def sums_of_products(x: jax.Array, *others: jax.Array) -> jax.Array:
    """(B, H, W, C) and n of the same shape -> (n, C), of each the sum of its products with x over photos and pixels."""
    return jnp.sum(jnp.stack(others) * x, axis=(1, 2, 3))
