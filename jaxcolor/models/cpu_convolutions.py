"""CPU kernels of convolutions.

On GPUs, libraries pick a fast algorithm for each convolution. XLA's CPU backend does not, so it is done here:

- strided and transposed convolutions by phases (the pixels of even and of odd places apart), which leaves out products with
  zeros; upsampled ones by the differences of pixels, which leaves out repeated products, too;
- large 3x3 convolutions by Winograd's transform, which multiplies fewer times;
- convolutions to few channels as sums of shifted planes: the library computes at least eight channels;
- dilated convolutions as undilated ones of the grids that their taps see, so that they are what was said of those;
- the gradients of convolutions in the one arrangement of axes that XLA's CPU backend gives to its fast library: it
  rearranges others itself, but not inside a loop, where gradients are accumulated over parts of a batch; of 1x1
  convolutions, both as matrix products.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcolor.models.cpu_kernels import CPUKernel, is_used, vjp

_AXES = ('NHWC', 'HWIO', 'NHWC')


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv2d(x, kernel, strides=1, padding=((0, 0), (0, 0))):
    return lax.conv_general_dilated(x, kernel, (strides,) * 2, padding, dimension_numbers=_AXES)


def _conv2d_backward(gradient, x, kernel, *, strides, padding):
    """Both gradients as convolutions of NHWC with HWIO, or as matrix products where a pixel sees itself alone."""
    if kernel.shape[:2] == (1, 1) and strides == 1 and gradient.shape[:3] == x.shape[:3]:
        # The first of the two is rearranged in memory: the one of fewer channels.
        C, features = kernel.shape[2:]
        pixels = ((0, 1, 2),) * 2
        to_kernel = jnp.tensordot(x, gradient, pixels) if features >= C else jnp.tensordot(gradient, x, pixels).T
        return gradient @ kernel[0, 0].T, to_kernel[None, None]
    taps, sides, dilation = kernel.shape[:2], x.shape[1:3], (strides,) * 2
    # What the windows reach of a padded side: the rest of it takes no part where the stride leaves it out.
    reached = [(n - 1) * strides + t for n, t in zip(gradient.shape[1:3], taps, strict=True)]
    below = [r - side - before for r, side, (before, _) in zip(reached, sides, padding, strict=True)]
    mirrored = kernel[::-1, ::-1].swapaxes(2, 3)  # (h, w, features, C)
    if is_used(NARROW, gradient, mirrored, strides=strides, padding=padding):
        to_x = _narrow_conv2d(gradient, mirrored, strides=strides, padding=padding)
    else:
        to_x = lax.conv_general_dilated(
            gradient,
            mirrored,
            (1, 1),
            [(t - 1 - before, t - 1 - after) for t, (before, _), after in zip(taps, padding, below, strict=True)],
            lhs_dilation=dilation,
            dimension_numbers=_AXES,
        )
    to_kernel = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),  # (C, H, W, B)
        gradient.transpose(1, 2, 0, 3),  # (H', W', B, features)
        (1, 1),
        [(before, after) for (before, _), after in zip(padding, below, strict=True)],
        rhs_dilation=dilation,
        dimension_numbers=_AXES,
    )
    return to_x, to_kernel.transpose(1, 2, 0, 3)  # (C, h, w, features) -> (h, w, C, features)


_conv2d.defvjp(
    lambda x, kernel, strides, padding: (_conv2d(x, kernel, strides, padding), (x, kernel)),
    lambda strides, padding, arrays, gradient: _conv2d_backward(gradient, *arrays, strides=strides, padding=padding),
)
GRADIENTS = CPUKernel('gradients', backward=_conv2d_backward)

_PHASES = [(0, 0), (0, 1), (1, 0), (1, 1)]  # row and column, modulo 2


def interleave(phases: Sequence[jax.Array]) -> jax.Array:
    """The four phases of an image, (0, 0), (0, 1), (1, 0), (1, 1), each (B, H, W, C) -> (B, 2H, 2W, C)."""
    B, H, W, C = phases[0].shape
    x = jnp.concatenate([phase[:, :, :, None] for phase in phases], axis=3).reshape(B, H, W, 2, 2, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, 2 * H, 2 * W, C)


def _strided_backward(gradient, x, kernel, *, strides, padding):
    """A convolution of stride 2: the gradient to the image by phases; that to the kernel would be slower so."""
    (to_x,) = jax.vjp(lambda x: _strided_by_phases(x, kernel, padding), x)[1](gradient)
    (to_kernel,) = jax.vjp(lambda kernel: _conv2d(x, kernel, strides, padding), kernel)[1](gradient)
    return to_x, to_kernel


def _strided_by_phases(x, kernel, padding):
    """A convolution of stride 2 as the sum of four of stride 1, on every other row and column."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    h, w = ((side - taps) // 2 + 1 for side, taps in zip(x.shape[1:3], kernel.shape[:2], strict=True))
    y = 0
    for p, q in _PHASES:
        part = kernel[p::2, q::2]
        if 0 in part.shape:  # a kernel of one pixel sees the even places alone
            continue
        of_phase = x[:, p::2, q::2][:, : h + part.shape[0] - 1, : w + part.shape[1] - 1]
        y += _conv2d(of_phase, part)
    return y


STRIDED = CPUKernel('strided', backward=_strided_backward, suits=lambda x, kernel, *, strides, padding: strides == 2)


def _winograd_conv2d(x, kernel, *, strides, padding):
    """A 3x3 convolution that keeps the size, by 16 multiplications for every 2x2 pixels instead of 36.

    F(2x2, 3x3) of Lavin, Gray 2016, section 4.1.
    """
    B, H, W, C = x.shape
    h, w = -(-H // 2), -(-W // 2)  # tiles
    x = jnp.pad(x, ((0, 0), (1, 1 + H % 2), (1, 1 + W % 2), (0, 0)))

    def transform_kernel(g0, g1, g2):
        return g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2

    def transform(x, axis, tiles):
        d0, d1, d2, d3 = (lax.slice_in_dim(x, i, i + 2 * tiles - 1, 2, axis) for i in range(4))
        return d0 - d2, d1 + d2, d2 - d1, d1 - d3

    def back(m0, m1, m2, m3):
        return m0 + m1 + m2, m1 - m2 - m3

    # By sums: by products of matrices, the transform of a wide kernel takes as long as all else.
    kernels = [transform_kernel(*row) for row in transform_kernel(*kernel)]
    products = [
        [(tile.reshape(-1, C) @ part).reshape(B, h, w, -1) for tile, part in zip(transform(rows, 2, w), parts, strict=True)]
        for rows, parts in zip(transform(x, 1, h), kernels, strict=True)
    ]
    even, odd = (back(*column) for column in zip(*(back(*row) for row in products), strict=True))  # columns, each by rows
    return interleave([even[0], odd[0], even[1], odd[1]])[:, :H, :W]


def _winograd_backward(gradient, x, kernel, *, strides, padding):
    """With few channels, the gradients' own transforms cost more than they save."""
    C, features = kernel.shape[2:]
    if C * features < 2**15:
        return _conv2d_backward(gradient, x, kernel, strides=strides, padding=padding)
    return vjp(_winograd_conv2d)(gradient, x, kernel, strides=strides, padding=padding)


def _suits_winograd(x, kernel, *, strides, padding):
    """Whether the multiplications saved outweigh the transforms: many channels, many tiles (measured on 2 CPU cores).

    The kernel's transform takes 16 / 9 of its memory, which is new in each call: with few tiles it costs more than it saves.
    """
    h, w, C, features = kernel.shape
    tiles = x.shape[0] * -(-x.shape[1] // 2) * -(-x.shape[2] // 2)
    is_same_size = (h, w, strides, padding) == (3, 3, 1, ((1, 1), (1, 1)))
    return is_same_size and x.dtype == jnp.float32 and C * features >= 2**14 and tiles >= 2**9


WINOGRAD = CPUKernel('winograd', _winograd_conv2d, _winograd_backward, _suits_winograd)


def _narrow_conv2d(x, kernel, *, strides, padding):
    """One product for all taps; each tap's planes are then shifted and added."""
    (B, H, W, C), (h, w, _, features) = x.shape, kernel.shape
    taps = jnp.moveaxis(kernel, 2, -1).reshape(-1, C)  # (h * w * features, C)
    planes = (taps @ x.reshape(-1, C).T).reshape(h, w, features, B, H, W)
    planes = jnp.pad(planes, [(0, 0)] * 4 + [(h // 2, h // 2), (w // 2, w // 2)])
    y = sum(planes[i, j, :, :, i : i + H, j : j + W] for i, j in np.ndindex(h, w))  # (features, B, H, W)
    return jnp.moveaxis(y, 0, -1)


def _narrow_backward(gradient, x, kernel, *, strides, padding):
    """The planes of the gradient that each tap's product went to; then one product for either gradient."""
    (B, H, W, C), (h, w, _, features) = x.shape, kernel.shape
    around = jnp.pad(jnp.moveaxis(gradient, -1, 0), [(0, 0)] * 2 + [(h // 2, h // 2), (w // 2, w // 2)])
    planes = [around[:, :, h - 1 - i : h - 1 - i + H, w - 1 - j : w - 1 - j + W] for i, j in np.ndindex(h, w)]
    planes = jnp.stack(planes).reshape(-1, B * H * W)  # (h * w * features, B * H * W)
    taps = kernel.swapaxes(2, 3).reshape(-1, C)  # (h * w * features, C)
    to_kernel = (planes @ x.reshape(-1, C)).reshape(h, w, features, C)
    return jnp.tensordot(planes, taps, (0, 0)).reshape(x.shape), to_kernel.swapaxes(2, 3)


def _suits_narrow(x, kernel, *, strides, padding):
    """Whether the size stays, the channels are few, and the planes fit into the caches (measured on 2 CPU cores)."""
    h, w, C, features = kernel.shape
    fits = h * w * features * math.prod(x.shape[:3]) <= 9 * 2**18
    is_same_size = h * w > 1 and h % 2 == w % 2 == 1 and (strides, padding) == (1, ((h // 2,) * 2, (w // 2,) * 2))
    return is_same_size and x.dtype == jnp.float32 and features < 4 <= C and fits


NARROW = CPUKernel('narrow', _narrow_conv2d, _narrow_backward, _suits_narrow)


def split_into_grids(x: jax.Array, dilation: int) -> jax.Array:
    """Photos of the pixels that lie `dilation` apart, zeros where the last have none: (B, H, W, C) -> (B', h, w, C).

    B' is B * dilation**2, h and w are H / dilation and W / dilation, rounded up.
    """
    B, H, W, C = x.shape
    h, w = -(-H // dilation), -(-W // dilation)
    x = jnp.pad(x, ((0, 0), (0, h * dilation - H), (0, w * dilation - W), (0, 0)))
    return x.reshape(B, h, dilation, w, dilation, C).transpose(0, 2, 4, 1, 3, 5).reshape(-1, h, w, C)


def _dilated_conv2d(x, kernel, *, dilation):
    """Pixels that are multiples of `dilation` apart meet each other alone, so each such grid is a photo of its own."""
    B, H, W, _ = x.shape
    x = split_into_grids(x, dilation)
    h, w = x.shape[1:3]
    options = {'strides': 1, 'padding': ((1, 1), (1, 1))}
    if is_used(WINOGRAD, x, kernel, **options):
        x = _winograd_conv2d(x, kernel, **options)
    else:
        x = _conv2d(x, kernel, *options.values())
    x = x.reshape(B, dilation, dilation, h, w, -1).transpose(0, 3, 1, 4, 2, 5)  # (B, h, dilation, w, dilation, features)
    return x.reshape(B, h * dilation, w * dilation, -1)[:, :H, :W]


DILATED = CPUKernel('dilated', _dilated_conv2d, vjp(_dilated_conv2d))


def _upsampled_conv2d(x, kernel):
    """`upsample`, then a 3x3 convolution, by 9 multiplications for every 2x2 pixels instead of 36.

    Along an axis, places 2i and 2i + 1 see g0 x[i-1] + (g1 + g2) x[i] and (g0 + g1) x[i] + g2 x[i+1]. With differences
    d[i] = x[i] - x[i-1] that is s x[i] - g0 d[i] and s x[i] + g2 d[i+1], s = g0 + g1 + g2: three products for both.
    """

    def differences(x, axis):
        return jnp.diff(jnp.pad(x, [(1, 1) if n == axis else (0, 0) for n in range(4)]), axis=axis)

    def products(x, *kernels):
        y = x.reshape(-1, x.shape[-1]) @ jnp.concatenate(kernels, axis=-1)
        return jnp.split(y.reshape(*x.shape[:3], -1), len(kernels), axis=-1)

    def transform_kernel(g0, g1, g2):
        return -g0, g0 + g1 + g2, g2

    top, middle, bottom = (transform_kernel(*row) for row in transform_kernel(*kernel))
    vertical = differences(x, 1)  # (B, H + 1, W, C)
    (center,) = products(x, middle[1])
    above, below = products(vertical, top[1], bottom[1])
    left, right = products(differences(x, 2), middle[0], middle[2])
    corners = products(differences(vertical, 2), top[0], top[2], bottom[0], bottom[2])
    columns = left[:, :, :-1], right[:, :, 1:]
    rows = above[:, :-1], below[:, 1:]
    corners = corners[0][:, :-1, :-1], corners[1][:, :-1, 1:], corners[2][:, 1:, :-1], corners[3][:, 1:, 1:]
    return interleave([center + rows[p] + columns[q] + corner for (p, q), corner in zip(_PHASES, corners, strict=True)])


UPSAMPLED = CPUKernel('upsampled', _upsampled_conv2d, vjp(_upsampled_conv2d))


def _transposed_conv2d(x, kernel, *, strides):
    """Stride 2: along each axis, even places see taps 0 and 2 (on the pixel before and the pixel itself), odd ones tap 1."""
    return interleave([_conv2d(x, kernel[p::2, q::2], 1, ((1 - p, 0), (1 - q, 0))) for p, q in _PHASES])


TRANSPOSED = CPUKernel('transposed', _transposed_conv2d, vjp(_transposed_conv2d), lambda x, kernel, *, strides: strides == 2)
