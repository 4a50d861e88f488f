"""The layers that the networks are made of. All take and give NHWC arrays.

Some layers have two forms, of the same parameters and values: the plain one, and one that suits CPUs. There,
convolutions that change the resolution are computed by phases (the pixels of even and of odd places apart), which
leaves out multiplications by zeros and repeated sums; large 3x3 convolutions multiply fewer times, by Winograd's
transform; and batch norm sums up by matrix products, which XLA does several times as fast as it reduces.
`takes_second_form` says which is taken.
"""

import contextlib
import contextvars
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

ACTIVATIONS = {'relu': nn.relu, 'sigmoid': nn.sigmoid, 'tanh': nn.tanh, 'linear': lambda x: x}


def scaled(features: int, width: float) -> int:
    """A layer's number of filters under a network's width multiplier, at least 1."""
    return max(1, round(features * width))


def upsample(x):
    """Nearest-neighbor x2: (B, H, W, C) -> (B, 2H, 2W, C). Broadcasting has a cheap backward pass, a resize has not."""
    B, H, W, C = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (B, H, 2, W, 2, C))
    return x.reshape(B, 2 * H, 2 * W, C)


def pad_to_multiple(x, multiple: int):
    """Repeats the bottom and right edges until H and W are multiples of `multiple`."""
    H, W = x.shape[1:3]
    if H % multiple == 0 and W % multiple == 0:
        return x
    return jnp.pad(x, ((0, 0), (0, -H % multiple), (0, -W % multiple), (0, 0)), mode='edge')


class BatchNorm(nn.Module):
    """Batch normalization (Ioffe, Szegedy 2015) over all axes but the last: of the device's batch, or of all devices'
    where `axis_name` is given. Statistics are float32, named as `nn.BatchNorm` names them.
    """

    train: bool
    axis_name: str | None = None
    dtype: Any = jnp.float32
    # Torch's defaults, which the paper's code ran with.
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x):
        C = x.shape[-1:]
        scale = self.param('scale', nn.initializers.ones, C, jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, C, jnp.float32)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, C, jnp.float32)
        running_var = self.variable('batch_stats', 'var', jnp.ones, C, jnp.float32)
        x = x.astype(jnp.float32)
        mean, var = running_mean.value, running_var.value
        if self.train:
            moments = channel_moments(x)
            if self.axis_name is not None and not self.is_initializing():
                moments = lax.pmean(moments, self.axis_name)
            mean, var = moments[0], jnp.maximum(0.0, moments[1] - moments[0] ** 2)
            if not self.is_initializing():
                running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
                running_var.value = self.momentum * running_var.value + (1 - self.momentum) * var
        scale = scale * lax.rsqrt(var + self.epsilon)
        return scale_and_shift(x, scale, bias - mean * scale).astype(self.dtype)


FORMS = ('strided', 'winograd', 'upsampled', 'transposed', 'normalized')  # what has a second form
_chosen = contextvars.ContextVar('forms', default=None)


def takes_second_form(layer: str) -> bool:
    """Whether one of FORMS is computed in its second form: all are on CPUs."""
    chosen = _chosen.get()
    return jax.default_backend() == 'cpu' if chosen is None else layer in chosen


@contextlib.contextmanager
def second_form_of(layers):
    """What is traced inside has these of FORMS in their second form, and no others; for comparisons."""
    token = _chosen.set(frozenset(layers))
    try:
        yield
    finally:
        _chosen.reset(token)


def conv2d(x, kernel, strides: int = 1, padding=((0, 0), (0, 0))):
    """(B, H, W, C), (h, w, C, features) -> (B, H', W', features). padding: zeros ((above, below), (left, right))."""
    if strides == 2 and takes_second_form('strided'):
        return _strided_conv2d(x, kernel, padding)
    if strides == 1 and padding == ((1, 1), (1, 1)) and _suits_winograd(x, kernel) and takes_second_form('winograd'):
        return _conv2d_by_winograd(x, kernel)
    return _conv2d(x, kernel, strides, padding)


def _conv2d(x, kernel, strides=1, padding=((0, 0), (0, 0))):
    return lax.conv_general_dilated(x, kernel, (strides,) * 2, padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _strided_conv2d(x, kernel, padding):
    """A convolution at a stride of 2 as it is, whose gradient to the image is that of its form by phases."""
    return _conv2d(x, kernel, 2, padding)


def _strided_forward(x, kernel, padding):
    return _conv2d(x, kernel, 2, padding), (x, kernel)


def _strided_backward(padding, saved, gradient):
    x, kernel = saved
    (to_x,) = jax.vjp(lambda x: _strided_by_phases(x, kernel, padding), x)[1](gradient)
    (to_kernel,) = jax.vjp(lambda kernel: _conv2d(x, kernel, 2, padding), kernel)[1](gradient)
    return to_x, to_kernel


_strided_conv2d.defvjp(_strided_forward, _strided_backward)


def _strided_by_phases(x, kernel, padding):
    """A convolution at a stride of 2 as the sum of four at a stride of 1, on every other row and column."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    h, w = ((side - taps) // 2 + 1 for side, taps in zip(x.shape[1:3], kernel.shape[:2], strict=True))
    y = 0
    for p, q in PHASES:
        part = kernel[p::2, q::2]
        of_phase = x[:, p::2, q::2][:, : h + part.shape[0] - 1, : w + part.shape[1] - 1]
        y += _conv2d(of_phase, part)
    return y


def _suits_winograd(x, kernel):
    """Whether the multiplications saved outweigh the transforms: many channels, many tiles (measured on 2 CPU cores)."""
    h, w, C, features = kernel.shape
    tiles = x.shape[0] * x.shape[1] * x.shape[2] // 4
    return (h, w) == (3, 3) and x.dtype == jnp.float32 and C * features >= 2**15 and tiles >= 2**9


# Winograd's F(2x2, 3x3): Lavin, Gray 2016, section 4.1; what a kernel is transformed with.
_WINOGRAD_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


def _conv2d_by_winograd(x, kernel):
    """A 3x3 convolution that keeps the size: 16 multiplications for every 2x2 pixels in place of 36."""
    B, H, W, C = x.shape
    h, w = -(-H // 2), -(-W // 2)  # tiles
    x = jnp.pad(x, ((0, 0), (1, 1 + H % 2), (1, 1 + W % 2), (0, 0)))
    kernel = jnp.einsum('ai,bj,ijcd->abcd', _WINOGRAD_KERNEL, _WINOGRAD_KERNEL, kernel, precision='highest')

    def transform(x, axis, tiles):
        d0, d1, d2, d3 = (lax.slice_in_dim(x, i, i + 2 * tiles - 1, 2, axis) for i in range(4))
        return d0 - d2, d1 + d2, d2 - d1, d1 - d3

    def back(m0, m1, m2, m3):
        return m0 + m1 + m2, m1 - m2 - m3

    products = [
        [(tile.reshape(-1, C) @ kernel[a, b]).reshape(B, h, w, -1) for b, tile in enumerate(transform(rows, 2, w))]
        for a, rows in enumerate(transform(x, 1, h))
    ]
    even, odd = (back(*column) for column in zip(*(back(*row) for row in products), strict=True))  # columns, each by rows
    return _interleave([even[0], odd[0], even[1], odd[1]])[:, :H, :W]


def upsample_conv2d(x, kernel):
    """`upsample`, then a 3x3 convolution that keeps the size: (B, H, W, C) -> (B, 2H, 2W, features)."""
    if not takes_second_form('upsampled'):
        return _conv2d(upsample(x), kernel, 1, ((1, 1), (1, 1)))
    # Of three taps on repeated pixels two meet the same pixel: their sum meets it once.
    rows = [jnp.stack([kernel[0], kernel[1] + kernel[2]]), jnp.stack([kernel[0] + kernel[1], kernel[2]])]
    quarters = [
        (jnp.stack([half[:, 0], half[:, 1] + half[:, 2]], axis=1), jnp.stack([half[:, 0] + half[:, 1], half[:, 2]], axis=1))
        for half in rows
    ]
    return _interleave([_conv2d(x, quarters[p][q], 1, ((1 - p, p), (1 - q, q))) for p, q in PHASES])


def conv_transpose2d(x, kernel, strides: int = 1):
    """Transposed 3x3 convolution, 'SAME' as in Keras and Flax: (B, H, W, C) -> (B, H*strides, W*strides, features)."""
    if strides == 1 or not takes_second_form('transposed'):
        return lax.conv_transpose(x, kernel, (strides,) * 2, 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    # Along each axis, even places see taps 0 and 2 (on the pixel before and the pixel itself), odd ones tap 1.
    return _interleave([_conv2d(x, kernel[p::2, q::2], 1, ((1 - p, 0), (1 - q, 0))) for p, q in PHASES])


PHASES = [(0, 0), (0, 1), (1, 0), (1, 1)]  # row and column, modulo 2


def _interleave(phases):
    """The four phases of an image, each (B, H, W, C), -> (B, 2H, 2W, C)."""
    B, H, W, C = phases[0].shape
    x = jnp.stack(phases, axis=3).reshape(B, H, W, 2, 2, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, 2 * H, 2 * W, C)


def channel_moments(x):
    """(..., C) -> the means of x and of its squares, each (C,)."""
    if takes_second_form('normalized'):
        return _moments_by_products(x)
    axes = tuple(range(x.ndim - 1))
    return jnp.mean(x, axes), jnp.mean(x * x, axes)


@jax.custom_vjp
def _moments_by_products(x):
    count = x.size // x.shape[-1]
    return _sum_of_rows(x) / count, _sum_of_rows(x * x) / count


_moments_by_products.defvjp(
    lambda x: (_moments_by_products(x), x),
    lambda x, gradients: ((gradients[0] + 2 * x * gradients[1]) * (x.shape[-1] / x.size),),
)


def scale_and_shift(x, scale, shift):
    """(..., C), (C,), (C,) -> x * scale + shift."""
    return _affine_by_products(x, scale, shift) if takes_second_form('normalized') else x * scale + shift


@jax.custom_vjp
def _affine_by_products(x, scale, shift):
    return x * scale + shift


_affine_by_products.defvjp(
    lambda x, scale, shift: (x * scale + shift, (x, scale)),
    lambda saved, gradient: (gradient * saved[1], _sum_of_rows(gradient * saved[0]), _sum_of_rows(gradient)),
)


def _sum_of_rows(x):
    """(..., C) -> (C,), by a matrix product with ones."""
    C = x.shape[-1]
    count = x.size // C
    # In two steps: a product adds its terms one after the other, and the rounding grows with their number.
    parts = math.gcd(count, 2**5)
    rows = x.reshape(count // parts, parts * C)
    sums = jnp.matmul(jnp.ones((1, count // parts), x.dtype), rows, precision='highest')
    return jnp.sum(sums.reshape(parts, C), axis=0)


class Conv(nn.Module):
    """Convolution with a bias: (B, H, W, C) -> (B, H/strides, W/strides, features), rounded up.

    padding: 'SAME' pads as TensorFlow does, at a stride of 2 and even sizes only below and to the right;
    'symmetric' pads kernel // 2 on every side, as the Torch networks do. At a stride of 1 they are the same.
    upsampled: the input is first made twice as large, (B, 2H, 2W, features) comes out; for 3x3 at a stride of 1.
    """

    features: int
    strides: int = 1
    kernel: int = 3
    padding: str = 'symmetric'
    upsampled: bool = False
    kernel_init: Any = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        size = (self.kernel, self.kernel)
        kernel, bias = _kernel_and_bias(self, (*size, x.shape[-1], self.features))
        x = x.astype(self.dtype)
        if self.upsampled:
            return upsample_conv2d(x, kernel) + bias
        padding = ((self.kernel // 2, self.kernel // 2),) * 2
        if self.padding == 'SAME':
            padding = tuple(lax.padtype_to_pads(x.shape[1:3], size, (self.strides, self.strides), 'SAME'))
        return conv2d(x, kernel, self.strides, padding) + bias


class ConvTranspose(nn.Module):
    """Transposed 3x3 convolution with a bias: (B, H, W, C) -> (B, H*strides, W*strides, features)."""

    features: int
    strides: int = 1
    kernel_init: Any = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        kernel, bias = _kernel_and_bias(self, (3, 3, x.shape[-1], self.features))
        return conv_transpose2d(x.astype(self.dtype), kernel, self.strides) + bias


def _kernel_and_bias(module, shape):
    kernel = module.param('kernel', module.kernel_init, shape, jnp.float32)
    bias = module.param('bias', nn.initializers.zeros, shape[-1:], jnp.float32)
    return kernel.astype(module.dtype), bias.astype(module.dtype)


class ConvBlock(nn.Module):
    """`Conv`, optional batch norm, activation."""

    features: int
    strides: int = 1
    kernel: int = 3
    batch_norm: bool = False
    activation: str = 'relu'
    padding: str = 'symmetric'
    upsampled: bool = False
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        init = _kernel_init(self.activation)
        x = Conv(self.features, self.strides, self.kernel, self.padding, self.upsampled, init, self.dtype, name='conv')(x)
        if self.batch_norm:
            x = BatchNorm(train, self.axis_name, self.dtype, name='norm')(x)
        return ACTIVATIONS[self.activation](x)


class DeconvBlock(nn.Module):
    """`ConvTranspose`, optional batch norm, activation."""

    features: int
    strides: int = 1
    batch_norm: bool = False
    activation: str = 'relu'
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        x = ConvTranspose(self.features, self.strides, _kernel_init(self.activation), self.dtype, name='deconv')(x)
        if self.batch_norm:
            x = BatchNorm(train, self.axis_name, self.dtype, name='norm')(x)
        return ACTIVATIONS[self.activation](x)


class DenseBlock(nn.Module):
    """Dense layer, optional batch norm, activation: (B, C) -> (B, features)."""

    features: int
    batch_norm: bool = False
    activation: str = 'relu'
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dense(self.features, kernel_init=_kernel_init(self.activation), dtype=self.dtype, name='dense')(x)
        if self.batch_norm:
            x = BatchNorm(train, self.axis_name, self.dtype, name='norm')(x)
        return ACTIVATIONS[self.activation](x)


class Fusion(nn.Module):
    """Joins a vector to every pixel and mixes both by a 1x1 convolution (Iizuka et al. 2016, eq. 3), before its activation.

    (B, H, W, C), (B, G) -> (B, H, W, features). The kernel (1, 1, C + G, features) is that of the convolution over the
    joined channels; the vector's part of it is multiplied once a photo, not once a pixel.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, local, vector):
        C, G = local.shape[-1], vector.shape[-1]
        kernel = self.param('kernel', _kernel_init('relu'), (1, 1, C + G, self.features), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32)
        kernel, bias = kernel[0, 0].astype(self.dtype), bias.astype(self.dtype)
        of_vector = vector.astype(self.dtype) @ kernel[C:] + bias  # (B, features)
        return local.astype(self.dtype) @ kernel[:C] + of_vector[:, None, None]


def _kernel_init(activation: str):
    """He et al. 2015 ahead of a ReLU, else Glorot's variance over the inputs (LeCun)."""
    return nn.initializers.he_normal() if activation == 'relu' else nn.initializers.lecun_normal()
