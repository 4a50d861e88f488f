"""The conditional GAN in YUV (Kraev, Safarani, Meyer; after Cao, Zhou, Zhang, Yu, arXiv:1702.06674)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcolor.errors import UserError
from jaxcolor.models.layers import EPSILON, MOMENTUM, BatchNorm, Conv, ConvBlock, scaled


class CGAN(nn.Module):
    """Generator and discriminator; their parameters are under `generator` and `discriminator`.

    The fields are explained in `jaxcolor/config.py`, section model.
    """

    width: float = 1.0
    noise_size: int = 100
    hidden_width: int = 64
    size: int = 64
    output_activation: str = 'sigmoid'
    generator_layers: int = 7
    leaky_slope: float = 0.2
    batch_norm_momentum: float = MOMENTUM
    batch_norm_eps: float = EPSILON
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if self.output_activation not in ('sigmoid', 'tanh'):
            raise UserError(f"model.output_activation: the cgan's is sigmoid or tanh, not {self.output_activation}.")
        super().__post_init__()

    def setup(self) -> None:
        shared: dict[str, Any] = {
            'width': self.width,
            'momentum': self.batch_norm_momentum,
            'epsilon': self.batch_norm_eps,
            'axis_name': self.axis_name,
            'dtype': self.dtype,
        }
        self.generator = Generator(self.size, self.generator_layers, self.output_activation, **shared)
        self.discriminator = Discriminator(hidden_width=self.hidden_width, leaky_slope=self.leaky_slope, **shared)

    def __call__(self, luma: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Runs both, to initialize all parameters -> the results of `generate` and `discriminate`."""
        chroma = self.generate(luma, noise)
        return chroma, self.discriminate(jnp.concatenate([luma, chroma], axis=-1))

    def generate(self, luma: jax.Array, noise: jax.Array, *, train: bool = False) -> jax.Array:
        """Y (B, H, W, 1) in [0, 1] and z (B, noise_size) in [-1, 1] -> U and V, float32 (B, H, W, 2), in the range of
        `output_activation`."""
        return self.generator(luma, noise, train)

    def discriminate(self, yuv: jax.Array, *, train: bool = False) -> jax.Array:
        """Y (B, size, size, 1) in [0, 1], joined to U and V as `generate` gives them -> float32 (B,), the logit of its being
        a real photo."""
        return self.discriminator(yuv, train)


class Generator(nn.Module):
    """Convolutions at stride 1. Y is concatenated to the input of each, the noise to the first three."""

    size: int
    layers: int = 7
    output_activation: str = 'sigmoid'
    width: float = 1.0
    momentum: float = MOMENTUM
    epsilon: float = EPSILON
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, luma: jax.Array, noise: jax.Array, train: bool) -> jax.Array:
        """Y (B, H, W, 1) in [0, 1] and z (B, noise_size) -> U and V, float32 (B, H, W, 2), in the activation's range."""
        B, H, W, _ = luma.shape
        luma = luma.astype(self.dtype)
        plane = nn.Dense(self.size * self.size, dtype=self.dtype, name='noise')(noise)
        plane = plane.reshape(B, self.size, self.size, 1)  # (B, size, size, 1)
        plane = jax.image.resize(plane, (B, H, W, 1), 'nearest')  # at inference, photos have other sizes
        x = jnp.concatenate([luma, plane], axis=-1)
        # The report lists six layers, the last with 32 filters, and has two output channels: so the output layer is either
        # a seventh, or the sixth with 2 filters.
        listed = [(128, 7), (64, 5), (64, 5), (64, 5), (64, 5), (32, 5)]
        for i, (features, kernel) in enumerate(listed[: self.layers - 1]):
            if i:
                x = jnp.concatenate([x, luma, plane] if i < 3 else [x, luma], axis=-1)
            x = ConvBlock(
                scaled(features, self.width),
                1,
                kernel,
                batch_norm=True,
                padding='SAME',
                axis_name=self.axis_name,
                dtype=self.dtype,
                momentum=self.momentum,
                epsilon=self.epsilon,
                name=f'conv_{i}',
            )(x, train)
        output = ConvBlock(2, 1, 5, activation=self.output_activation, padding='SAME', dtype=self.dtype, name='output')
        return output(jnp.concatenate([x, luma], axis=-1), train).astype(jnp.float32)


class Discriminator(nn.Module):
    """Four convolutions at stride 2 with batch norm and leaky ReLU, then two dense layers without activation."""

    width: float = 1.0
    hidden_width: int = 64
    leaky_slope: float = 0.2
    momentum: float = MOMENTUM
    epsilon: float = EPSILON
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, photo: jax.Array, train: bool) -> jax.Array:
        """Photos (B, size, size, C) -> logits, float32 (B,)."""
        x = photo.astype(self.dtype)
        for i, features in enumerate([64, 128, 256, 512]):
            x = Conv(scaled(features, self.width), 2, 5, 'SAME', dtype=self.dtype, name=f'conv_{i}')(x)
            x = BatchNorm(train, self.axis_name, self.dtype, self.momentum, self.epsilon, name=f'norm_{i}')(x)
            x = nn.leaky_relu(x, self.leaky_slope)
        x = x.reshape(x.shape[0], -1)  # (B, size/16 * size/16 * 512)
        x = nn.Dense(scaled(self.hidden_width, self.width), dtype=self.dtype, name='hidden')(x)
        return nn.Dense(1, dtype=self.dtype, name='logit')(x)[:, 0].astype(jnp.float32)
