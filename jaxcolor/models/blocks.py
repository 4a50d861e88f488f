"""The layers that the networks are made of. All take and give NHWC arrays."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

ACTIVATIONS = {'relu': nn.relu, 'sigmoid': nn.sigmoid, 'tanh': nn.tanh, 'linear': lambda x: x}


def scaled(features: int, width: float) -> int:
    """A layer's number of filters under a network's width multiplier, at least 1."""
    return max(1, round(features * width))


def upsample(x):
    """Nearest-neighbour x2: (B, H, W, C) -> (B, 2H, 2W, C). Broadcasting has a cheap backward pass, a resize has not."""
    B, H, W, C = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (B, H, 2, W, 2, C))
    return x.reshape(B, 2 * H, 2 * W, C)


def pad_to_multiple(x, multiple: int):
    """Repeats the bottom and right edges until H and W are multiples of `multiple`."""
    H, W = x.shape[1:3]
    if H % multiple == 0 and W % multiple == 0:
        return x
    return jnp.pad(x, ((0, 0), (0, -H % multiple), (0, -W % multiple), (0, 0)), mode='edge')


def batch_norm(train: bool, axis_name: str | None = None, dtype: Any = jnp.float32, name: str = 'norm'):
    """Batch normalisation over the device's batch, or over all devices where `axis_name` is given."""
    # Momentum 0.9 and epsilon 1e-5 are Torch's defaults, which the paper's code ran with.
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, axis_name=axis_name, dtype=dtype, name=name
    )


class ConvBlock(nn.Module):
    """Convolution, optional batch norm, activation: (B, H, W, C) -> (B, H/strides, W/strides, features).

    padding: 'SAME' pads as TensorFlow does, at a stride of 2 and even sizes only below and to the right;
    'symmetric' pads kernel // 2 on every side, as the Torch networks do. At a stride of 1 they are the same.
    """

    features: int
    strides: int = 1
    kernel: int = 3
    batch_norm: bool = False
    activation: str = 'relu'
    padding: str = 'symmetric'
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            self.strides,
            padding=self.kernel // 2 if self.padding == 'symmetric' else self.padding,
            kernel_init=_kernel_init(self.activation),
            dtype=self.dtype,
            name='conv',
        )(x)
        if self.batch_norm:
            x = batch_norm(train, self.axis_name, self.dtype)(x)
        return ACTIVATIONS[self.activation](x)


class DeconvBlock(nn.Module):
    """Transposed 3x3 convolution, optional batch norm, activation: (B, H, W, C) -> (B, H*strides, W*strides, features)."""

    features: int
    strides: int = 1
    batch_norm: bool = False
    activation: str = 'relu'
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.ConvTranspose(
            self.features,
            (3, 3),
            (self.strides, self.strides),
            kernel_init=_kernel_init(self.activation),
            dtype=self.dtype,
            name='deconv',
        )(x)
        if self.batch_norm:
            x = batch_norm(train, self.axis_name, self.dtype)(x)
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
            x = batch_norm(train, self.axis_name, self.dtype)(x)
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
