"""What `eccv16` and `siggraph17` share: runs of convolutions that end in batch norm, and the doubling of a map."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcolor.models.cpu_convolutions import interleave
from jaxcolor.models.layers import BatchNorm, Conv, conv2d, parameter, scaled

AB_SCALE = 110.0  # units of a*b*: what both networks divide a*b* by
ENCODER = tuple(f'block_{i}' for i in range(7))  # what `encoder` makes, by the names of the parameters
_HE = nn.initializers.he_normal()


class Convs(nn.Module):
    """`count` 3x3 convolutions, each with its activation; the last has the stride; then batch norm.

    (B, H, W, C) -> (B, H/strides, W/strides, features), rounded up
    """

    features: int
    count: int
    strides: int = 1
    dilation: int = 1
    batch_norm: bool = True
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i in range(self.count):
            strides = self.strides if i == self.count - 1 else 1
            name = f'conv_{i}'
            x = Conv(self.features, strides, kernel_init=_HE, dtype=self.dtype, dilation=self.dilation, name=name)(x)
            x = self.activation(x)
        return BatchNorm(train, self.axis_name, self.dtype, name='norm')(x) if self.batch_norm else x


class Doubling(nn.Module):
    """Transposed 4x4 convolution of stride 2 with a bias: (B, H, W, C) -> (B, 2H, 2W, features).

    Along each axis, even places see taps 0 and 2 (on the pixel before and the pixel itself), odd ones 1 and 3 (on the pixel
    itself and the one behind). As four convolutions it has no products with zeros, nor has its gradient.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # A pixel sees a quarter of the taps.
        init = nn.initializers.variance_scaling(8.0, 'fan_in', 'truncated_normal')
        kernel = parameter(self, 'kernel', init, (4, 4, x.shape[-1], self.features)).astype(self.dtype)
        bias = parameter(self, 'bias', nn.initializers.zeros, (self.features,)).astype(self.dtype)
        x = x.astype(self.dtype)
        phases = [conv2d(x, kernel[p::2, q::2], strides=1, padding=((1 - p, p), (1 - q, q))) for p in (0, 1) for q in (0, 1)]
        return interleave(phases) + bias


def encoder(width: float, strides: int, **shared: Any) -> list[Convs]:
    """The seven blocks that both networks begin with: 64, 128, 256 and 512 filters, the fifth and sixth dilated.

    strides: of the last convolutions of the first three. shared: fields of all blocks.
    """
    sizes = [(64, 2, strides, 1), (128, 2, strides, 1), (256, 3, strides, 1), *((512, 3, 1, d) for d in (1, 2, 2, 1))]
    return [Convs(scaled(features, width), count, stride, dilation, **shared) for features, count, stride, dilation in sizes]
