"""What the decoders of DDColor and DeOldify share: U-net blocks that enlarge by pixel shuffle.

Both come from fastai's `DynamicUnet` (Howard, Gugger, 2018): Ronneberger, Fischer, Brox: U-Net (MICCAI 2015), with pixel
shuffle (Shi et al., CVPR 2016) and a blur behind it against checkerboards (Sugawara, Shiota, Kiya, 2018, arXiv:1806.02658).
The published convolutions have spectral norm; here it is folded into the kernels, so training does without.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcolor.models.layers import BatchNorm, Conv, parameter


def shuffle(x: jax.Array, ratio: int) -> jax.Array:
    """Pixel shuffle: (B, H, W, ratio * ratio * C) -> (B, ratio * H, ratio * W, C).

    Channels come ordered by (row, column, C), so that pixels are moved whole; PyTorch orders them by (C, row, column).
    """
    B, H, W, channels = x.shape
    C = channels // ratio**2
    x = x.reshape(B, H, W, ratio, ratio, C).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, ratio * H, ratio * W, C)


def blur(x: jax.Array) -> jax.Array:
    """Each pixel's mean with those above, to the left, and above to the left; edges repeat: (B, H, W, C), same size."""
    x = x + jnp.concatenate([x[:, :1], x[:, :-1]], axis=1)
    return (x + jnp.concatenate([x[:, :, :1], x[:, :, :-1]], axis=2)) / 4


class Gain(nn.Module):
    """Multiplies the channels (size C), or all of them alike (size 1), by what is learned: (..., C) -> (..., C)."""

    size: int
    start: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gain = parameter(self, 'gain', nn.initializers.constant(self.start), (self.size,))
        return x * gain.astype(self.dtype)


class ConvNorm(nn.Module):
    """Convolution without a bias, and batch norm: (B, H, W, C) -> (B, H/strides, W/strides, features), rounded up.

    relu: 'after' batch norm, 'before' it, or 'none'.
    """

    features: int
    kernel: int = 3
    strides: int = 1
    relu: str = 'after'
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @property
    def normalized(self) -> tuple[str, ...] | None:
        """The layer that batch norm directly follows; None where ReLU is between them."""
        return None if self.relu == 'before' else ('conv',)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        shared: dict[str, Any] = {'kernel_init': nn.initializers.he_normal(), 'dtype': self.dtype}
        x = Conv(self.features, self.strides, self.kernel, use_bias=False, **shared, name='conv')(x)
        if self.relu == 'before':
            x = nn.relu(x)
        x = BatchNorm(train, self.axis_name, self.dtype, name='norm')(x)
        return nn.relu(x) if self.relu == 'after' else x


class UNetBlock(nn.Module):
    """Enlarges a coarse map twofold, joins the normalized skip to it, and mixes both.

    (B, h, w, C), (B, H, W, S) -> (B, H, W, widths[-1]), where h and w are half of H and W, rounded up.

    shuffled: channels of the enlarged map.
    widths: channels of each 3x3 convolution; ReLU comes before its batch norm.
    """

    shuffled: int
    widths: tuple[int, ...]
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, coarse: jax.Array, skip: jax.Array, train: bool) -> jax.Array:
        shared: dict[str, Any] = {'axis_name': self.axis_name, 'dtype': self.dtype}
        x = ConvNorm(4 * self.shuffled, 1, **shared, name='enlarge')(coarse, train)  # (B, h, w, 4 * shuffled)
        x = blur(shuffle(x, 2))  # (B, 2h, 2w, shuffled)
        # PyTorch resizes to the nearest pixel, which from 2h = H + 1 to H takes the first H.
        x = x[:, : skip.shape[1], : skip.shape[2]]
        skip = BatchNorm(train, self.axis_name, self.dtype, name='skip')(skip)
        x = nn.relu(jnp.concatenate([x, skip], axis=-1))  # (B, H, W, shuffled + S)
        for i, width in enumerate(self.widths):
            x = ConvNorm(width, relu='before', **shared, name=f'mix_{i}')(x, train)  # (B, H, W, width)
        return x
