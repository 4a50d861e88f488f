"""The conditional GAN in YUV (Kraev, Safarani, Meyer; after Cao, Zhou, Zhang, Yu, arXiv:1702.06674)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcolor.models.layers import BatchNorm, Conv, ConvBlock, scaled


class CGAN(nn.Module):
    """Generator and discriminator; their parameters are under `generator` and `discriminator`.

    The fields are explained in `jaxcolor/config.py`, section model.
    """

    width: float = 1.0
    noise_size: int = 100
    hidden_width: int = 64
    size: int = 64
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def setup(self) -> None:
        shared = {'width': self.width, 'axis_name': self.axis_name, 'dtype': self.dtype}
        self.generator = Generator(size=self.size, **shared)
        self.discriminator = Discriminator(hidden_width=self.hidden_width, **shared)

    def __call__(self, luma: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Runs both, to initialize all parameters -> the results of `generate` and `discriminate`."""
        chroma = self.generate(luma, noise)
        return chroma, self.discriminate(jnp.concatenate([luma, chroma], axis=-1))

    def generate(self, luma: jax.Array, noise: jax.Array, *, train: bool = False) -> jax.Array:
        """Y (B, H, W, 1) in [0, 1] and z (B, noise_size) in [-1, 1] -> U and V, float32 (B, H, W, 2) in [0, 1]."""
        return self.generator(luma, noise, train)

    def discriminate(self, yuv: jax.Array, *, train: bool = False) -> jax.Array:
        """YUV (B, size, size, 3) in [0, 1] -> float32 (B,), the logit of its being a real photo."""
        return self.discriminator(yuv, train)


class Generator(nn.Module):
    """Convolutions at stride 1. Y is concatenated to the input of each, the noise to the first three (report, figure 2)."""

    width: float
    size: int
    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(self, luma: jax.Array, noise: jax.Array, train: bool) -> jax.Array:
        """Y (B, H, W, 1) in [0, 1] and z (B, noise_size) -> U and V, float32 (B, H, W, 2) in [0, 1]."""
        B, H, W, _ = luma.shape
        luma = luma.astype(self.dtype)
        plane = nn.Dense(self.size * self.size, dtype=self.dtype, name='noise')(noise)
        plane = plane.reshape(B, self.size, self.size, 1)  # (B, size, size, 1)
        plane = jax.image.resize(plane, (B, H, W, 1), 'nearest')  # at inference, photos have other sizes
        x = jnp.concatenate([luma, plane], axis=-1)
        layers = [(128, 7), (64, 5), (64, 5), (64, 5), (64, 5), (32, 5)]
        for i, (features, kernel) in enumerate(layers):
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
                name=f'conv_{i}',
            )(x, train)
        # The report lists six layers, the last with 32 filters, but two output channels: we add a seventh layer.
        x = jnp.concatenate([x, luma], axis=-1)
        x = ConvBlock(2, 1, 5, activation='sigmoid', padding='SAME', dtype=self.dtype, name='output')(x, train)
        return x.astype(jnp.float32)


class Discriminator(nn.Module):
    """Four convolutions at stride 2 with batch norm and leaky ReLU, then two dense layers without activation."""

    width: float
    hidden_width: int
    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(self, yuv: jax.Array, train: bool) -> jax.Array:
        """YUV (B, size, size, 3) in [0, 1] -> logits, float32 (B,)."""
        x = yuv.astype(self.dtype)
        for i, features in enumerate([64, 128, 256, 512]):
            x = Conv(scaled(features, self.width), 2, 5, 'SAME', dtype=self.dtype, name=f'conv_{i}')(x)
            x = BatchNorm(train, self.axis_name, self.dtype, name=f'norm_{i}')(x)
            x = nn.leaky_relu(x, 0.2)
        x = x.reshape(x.shape[0], -1)  # (B, size/16 * size/16 * 512)
        x = nn.Dense(scaled(self.hidden_width, self.width), dtype=self.dtype, name='hidden')(x)
        return nn.Dense(1, dtype=self.dtype, name='logit')(x)[:, 0].astype(jnp.float32)
