"""The layers of the networks, and the operations that they are made of. All take and return NHWC arrays.

Parameters are float32; a layer computes in its `dtype`. `on_cpus` names the kernels that replace an operation on CPUs.
"""

import contextlib
import contextvars
import functools
from collections.abc import Collection, Iterator
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcolor.errors import UserError
from jaxcolor.models import cpu_convolutions, cpu_kernels
from jaxcolor.models.cpu_kernels import on_cpus, setting
from jaxcolor.models.depthwise import grouped_depthwise

Padding = tuple[tuple[int, int], ...]  # ((above, below), (left, right))
_AXES = ('NHWC', 'HWIO', 'NHWC')
# Of batch norm: Torch's defaults, which the code of Iizuka et al. ran with.
MOMENTUM, EPSILON = 0.9, 1e-5
# Of ImageNet's RGB in [0, 1] (torchvision): what networks that have seen it expect is (RGB - mean) / deviation.
IMAGENET_MEAN, IMAGENET_DEVIATION = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
ACTIVATIONS = {'relu': nn.relu, 'sigmoid': nn.sigmoid, 'tanh': nn.tanh, 'linear': lambda x: x}


def check_variant(network: str, variant: str, variants: Collection[str]) -> None:
    """Raises UserError if a network has no such variant."""
    if variant not in variants:
        raise UserError(f'model.variant: there is no {network} {variant!r}; there are {", ".join(variants)}.')


def scaled(features: int, width: float) -> int:
    """A layer's number of filters under a network's width multiplier, at least 1."""
    return max(1, round(features * width))


def upsample(x: jax.Array) -> jax.Array:
    """Nearest-neighbor x2: (B, H, W, C) -> (B, 2H, 2W, C). Broadcasting has a cheap backward pass, a resize has not."""
    B, H, W, C = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (B, H, 2, W, 2, C))
    return x.reshape(B, 2 * H, 2 * W, C)


def pad_to_multiple(x: jax.Array, multiple: int) -> jax.Array:
    """Repeats the bottom and right edges until H and W are multiples of `multiple`."""
    H, W = x.shape[1:3]
    if H % multiple == 0 and W % multiple == 0:
        return x
    return jnp.pad(x, ((0, 0), (0, -H % multiple), (0, -W % multiple), (0, 0)), mode='edge')


_is_drawn = contextvars.ContextVar('parameters_are_drawn', default=True)


@contextlib.contextmanager
def only_shapes() -> Iterator[None]:
    """Parameters that are initialized inside are zeros: tracing how they are drawn takes longer than all else."""
    with setting(_is_drawn, False), grouped_depthwise():
        yield


def parameter(module: nn.Module, name: str, init: nn.initializers.Initializer, shape: tuple[int, ...]) -> jax.Array:
    """`module.param` in float32. Where it has a value already, Flax would trace how it is drawn, to compare shapes."""
    if module.has_variable('params', name):
        return module.get_variable('params', name)
    return module.param(name, init if _is_drawn.get() else nn.initializers.zeros, shape, jnp.float32)


@on_cpus(cpu_convolutions.STRIDED, cpu_convolutions.WINOGRAD, cpu_convolutions.NARROW, cpu_convolutions.GRADIENTS)
def conv2d(x: jax.Array, kernel: jax.Array, *, strides: int, padding: Padding) -> jax.Array:
    """(B, H, W, C), (h, w, C, features) -> (B, H', W', features). padding: zeros ((above, below), (left, right))."""
    return lax.conv_general_dilated(x, kernel, (strides,) * 2, padding, dimension_numbers=_AXES)


@on_cpus(cpu_convolutions.DILATED)
def dilated_conv2d(x: jax.Array, kernel: jax.Array, *, dilation: int) -> jax.Array:
    """3x3 convolution whose taps lie `dilation` pixels apart; keeps the size: (B, H, W, C) -> (B, H, W, features)."""
    return _dilated_conv2d(x, kernel, dilation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dilated_conv2d(x, kernel, dilation):
    padding = ((dilation, dilation),) * 2
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, None, (dilation, dilation), _AXES)


def _dilated_conv2d_backward(dilation, arrays, gradient):
    """The gradient to the kernel is that of the undilated convolution of the grids that its taps see.

    JAX's own is a strided convolution by a window of the image's size, which GPU libraries have no algorithm for.
    """
    x, kernel = arrays
    of_grids, to_grids = (cpu_convolutions.split_into_grids(array, dilation) for array in (x, gradient))
    (to_kernel,) = jax.vjp(lambda kernel: conv2d(of_grids, kernel, strides=1, padding=((1, 1), (1, 1))), kernel)[1](to_grids)
    to_x = _dilated_conv2d(gradient, kernel[::-1, ::-1].swapaxes(2, 3), dilation)
    return to_x, to_kernel


_dilated_conv2d.defvjp(
    lambda x, kernel, dilation: (_dilated_conv2d(x, kernel, dilation), (x, kernel)), _dilated_conv2d_backward
)


@on_cpus(cpu_convolutions.UPSAMPLED)
def upsample_conv2d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`upsample`, then a 3x3 convolution that keeps the size: (B, H, W, C) -> (B, 2H, 2W, features)."""
    return conv2d(upsample(x), kernel, strides=1, padding=((1, 1), (1, 1)))


@on_cpus(cpu_convolutions.TRANSPOSED)
def conv_transpose2d(x: jax.Array, kernel: jax.Array, *, strides: int) -> jax.Array:
    """Transposed 3x3 convolution, 'SAME' as in Keras and Flax: (B, H, W, C) -> (B, H*strides, W*strides, features)."""
    return _conv_transpose2d(x, kernel, strides)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv_transpose2d(x, kernel, strides):
    return lax.conv_transpose(x, kernel, (strides,) * 2, 'SAME', dimension_numbers=_AXES)


def _conv_transpose2d_backward(strides, arrays, gradient):
    """The gradients through the strided convolution that this one transposes.

    JAX's own gradient to the kernel is a convolution of a dilated image by a window of the image's size, which GPU libraries
    have no algorithm for.
    """
    x, kernel = arrays
    padding = tuple(lax.padtype_to_pads(gradient.shape[1:3], (3, 3), (strides,) * 2, 'SAME'))
    to_x, pullback = jax.vjp(
        lambda kernel: conv2d(gradient, kernel, strides=strides, padding=padding), kernel[::-1, ::-1].swapaxes(2, 3)
    )
    (to_kernel,) = pullback(x)
    return to_x, to_kernel.swapaxes(2, 3)[::-1, ::-1]


_conv_transpose2d.defvjp(
    lambda x, kernel, strides: (_conv_transpose2d(x, kernel, strides), (x, kernel)), _conv_transpose2d_backward
)


@on_cpus(cpu_kernels.ATTENTION)
def attention(queries: jax.Array, keys: jax.Array, values: jax.Array, *, heads: int) -> jax.Array:
    """Multi-head attention (Vaswani et al., 2017, section 3.2.2) without its dense layers, C / heads channels a head.

    (B, Q, C), (B, N, C), (B, N, C) -> (B, Q, C)
    """
    of_heads = (x.reshape(*x.shape[:2], heads, x.shape[-1] // heads) for x in (queries, keys, values))
    return jax.nn.dot_product_attention(*of_heads).reshape(queries.shape)


@on_cpus(cpu_kernels.MOMENTS)
def channel_moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(..., C) -> the means of x and of its squares, each (C,)."""
    axes = tuple(range(x.ndim - 1))
    return jnp.mean(x, axes), jnp.mean(jnp.square(x), axes)


@on_cpus(cpu_kernels.ADD_BIAS)
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """(..., C), (C,) -> (..., C)."""
    return x + bias


@on_cpus(cpu_kernels.SCALE_AND_SHIFT)
def scale_and_shift(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """(..., C), (C,), (C,) -> x * scale + shift."""
    return x * scale + shift


class BatchNorm(nn.Module):
    """Batch normalization (Ioffe, Szegedy 2015) over all axes but the last: of the device's batch, or of all devices'
    where `axis_name` is given. Statistics are float32, named as `nn.BatchNorm` names them.

    Without statistics, it was folded into the layer ahead of it (`folding`): it adds its bias, if there is one.
    """

    train: bool
    axis_name: str | None = None
    dtype: Any = jnp.float32
    momentum: float = MOMENTUM
    epsilon: float = EPSILON

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        C = x.shape[-1:]
        if not self.is_initializing() and not self.has_variable('batch_stats', 'mean'):
            return x + self.get_variable('params', 'bias', np.float32(0)).astype(self.dtype)
        scale = parameter(self, 'scale', nn.initializers.ones, C)
        bias = parameter(self, 'bias', nn.initializers.zeros, C)
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


class Conv(nn.Module):
    """Convolution: (B, H, W, C) -> (B, H/strides, W/strides, features), rounded up.

    padding: 'SAME' pads as TensorFlow does, at a stride of 2 and even sizes only below and to the right;
    'symmetric' pads kernel // 2 on every side, as the Torch networks do. At a stride of 1 they are the same. 'VALID' pads
    nothing.
    upsampled: the input is first made twice as large, (B, 2H, 2W, features) comes out; for 3x3 at a stride of 1.
    use_bias: whether a bias is added.
    dilation: pixels from tap to tap; other than 1 for 3x3 at a stride of 1.
    """

    features: int
    strides: int = 1
    kernel: int = 3
    padding: str = 'symmetric'
    upsampled: bool = False
    kernel_init: Any = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32
    use_bias: bool = True
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = (self.kernel, self.kernel)
        kernel, bias = _kernel_and_bias(self, (*size, x.shape[-1], self.features), self.use_bias)
        x = x.astype(self.dtype)
        if self.upsampled:
            x = upsample_conv2d(x, kernel)
        elif self.dilation != 1:
            x = dilated_conv2d(x, kernel, dilation=self.dilation)
        else:
            padding: Padding = ((self.kernel // 2, self.kernel // 2),) * 2
            if self.padding != 'symmetric':
                padding = tuple(lax.padtype_to_pads(x.shape[1:3], size, (self.strides, self.strides), self.padding))
            x = conv2d(x, kernel, strides=self.strides, padding=padding)
        return x if bias is None else add_bias(x, bias)


class ConvTranspose(nn.Module):
    """Transposed 3x3 convolution with a bias: (B, H, W, C) -> (B, H*strides, W*strides, features)."""

    features: int
    strides: int = 1
    kernel_init: Any = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = _kernel_and_bias(self, (3, 3, x.shape[-1], self.features))
        return add_bias(conv_transpose2d(x.astype(self.dtype), kernel, strides=self.strides), bias)


def _kernel_and_bias(module, shape, use_bias=True):
    kernel = parameter(module, 'kernel', module.kernel_init, shape).astype(module.dtype)
    return kernel, parameter(module, 'bias', nn.initializers.zeros, shape[-1:]).astype(module.dtype) if use_bias else None


class ConvBlock(nn.Module):
    """`Conv`, optional batch norm, activation.

    residual: the input is added ahead of the activation where it has the output's shape (He et al. 2016, figure 2).
    """

    features: int
    strides: int = 1
    kernel: int = 3
    batch_norm: bool = False
    activation: str = 'relu'
    padding: str = 'symmetric'
    upsampled: bool = False
    axis_name: str | None = None
    dtype: Any = jnp.float32
    momentum: float = MOMENTUM
    epsilon: float = EPSILON
    residual: bool = False
    normalized: ClassVar[tuple[str, ...]] = ('conv',)  # the layer that batch norm directly follows

    @property
    def reach(self) -> int:
        """How many rows of the input a pixel sees beyond its own, at most, above and below."""
        return self.kernel // 2 if self.padding == 'symmetric' else self.kernel - 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        init, before = _kernel_init(self.activation), x
        x = Conv(self.features, self.strides, self.kernel, self.padding, self.upsampled, init, self.dtype, name='conv')(x)
        if self.batch_norm:
            x = BatchNorm(train, self.axis_name, self.dtype, self.momentum, self.epsilon, name='norm')(x)
        return ACTIVATIONS[self.activation](_add_same_shape(x, before) if self.residual else x)


class DeconvBlock(nn.Module):
    """`ConvTranspose`, optional batch norm, activation. residual: as in `ConvBlock`."""

    features: int
    strides: int = 1
    batch_norm: bool = False
    activation: str = 'relu'
    axis_name: str | None = None
    dtype: Any = jnp.float32
    residual: bool = False
    normalized: ClassVar[tuple[str, ...]] = ('deconv',)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        before = x
        x = ConvTranspose(self.features, self.strides, _kernel_init(self.activation), self.dtype, name='deconv')(x)
        if self.batch_norm:
            x = BatchNorm(train, self.axis_name, self.dtype, name='norm')(x)
        return ACTIVATIONS[self.activation](_add_same_shape(x, before) if self.residual else x)


def _add_same_shape(x, before):
    return x + before.astype(x.dtype) if x.shape == before.shape else x


class DenseBlock(nn.Module):
    """Dense layer, optional batch norm, activation: (B, C) -> (B, features)."""

    features: int
    batch_norm: bool = False
    activation: str = 'relu'
    axis_name: str | None = None
    dtype: Any = jnp.float32
    normalized: ClassVar[tuple[str, ...]] = ('dense',)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Dense(self.features, kernel_init=_kernel_init(self.activation), dtype=self.dtype, name='dense')(x)
        if self.batch_norm:
            x = BatchNorm(train, self.axis_name, self.dtype, name='norm')(x)
        return ACTIVATIONS[self.activation](x)


class Fusion(nn.Module):
    """Joins a vector to every pixel and mixes both by a 1x1 convolution (Iizuka et al. 2016, eq. 3), optional batch norm.

    Its activation is the caller's.

    (B, H, W, C), (B, G) -> (B, H, W, features). The kernel (1, 1, C + G, features) is that of the convolution over the
    joined channels; the vector's part of it is multiplied once a photo, not once a pixel.
    """

    features: int
    dtype: Any = jnp.float32
    batch_norm: bool = False
    axis_name: str | None = None
    normalized: ClassVar[tuple[str, ...]] = ()

    @nn.compact
    def __call__(self, local: jax.Array, vector: jax.Array, train: bool = False) -> jax.Array:
        C, G = local.shape[-1], vector.shape[-1]
        kernel = parameter(self, 'kernel', _kernel_init('relu'), (1, 1, C + G, self.features))
        bias = parameter(self, 'bias', nn.initializers.zeros, (self.features,))
        kernel, bias = kernel[0, 0].astype(self.dtype), bias.astype(self.dtype)
        of_vector = vector.astype(self.dtype) @ kernel[C:] + bias  # (B, features)
        x = local.astype(self.dtype) @ kernel[:C] + of_vector[:, None, None]
        return BatchNorm(train, self.axis_name, self.dtype, name='norm')(x) if self.batch_norm else x


def _kernel_init(activation: str):
    """He et al. 2015 ahead of a ReLU, else Glorot's variance over the inputs (LeCun)."""
    return nn.initializers.he_normal() if activation == 'relu' else nn.initializers.lecun_normal()
