"""DeOldify (Antic, 2018, github.com/jantic/DeOldify), as its published weights have it: artistic, stable, video.

There is no paper. It is fastai's `DynamicUnet` (see `unet.py`) on a ResNet (He et al., CVPR 2016) that has seen ImageNet,
with one self-attention (Zhang, Goodfellow, Metaxas, Odena: *SAGAN*, ICML 2019). `weights/published/deoldify.py` reads the
published files.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcolor import color
from jaxcolor.models.layers import IMAGENET_DEVIATION, IMAGENET_MEAN, BatchNorm, Conv, check_variant, pad_to_multiple, scaled
from jaxcolor.models.unet import ConvNorm, Gain, UNetBlock, blur, shuffle

MULTIPLE = 16  # pixels: the published program gives the network squares of such sides
ATTENTIVE = 1  # the U-net block that ends with self-attention


class Variant(NamedTuple):
    """One of the published networks."""

    depths: tuple[int, ...]  # blocks of each stage of the ResNet
    is_bottleneck: bool  # whether they are of three convolutions, the last four times as wide
    shuffled: tuple[int, ...]  # channels of the enlarged map, of each U-net block
    widths: tuple[tuple[int, ...], ...]  # channels of its convolutions


# What is published as video is of the network 'stable'.
VARIANTS = {
    'artistic': Variant((3, 4, 6, 3), False, (256, 384, 384, 336), ((768, 768), (768, 768), (672, 672), (300, 300))),
    'stable': Variant((3, 4, 23, 3), True, (512, 512, 512, 256), ((512,), (512,), (512,), (256,))),
}


class ResNetBlock(nn.Module):
    """Two 3x3 convolutions, or a bottleneck of 1x1, 3x3, 1x1, beside the identity or a 1x1 convolution.

    (B, H, W, C) -> (B, H/strides, W/strides, features), rounded up; of a bottleneck 4 * features.
    """

    features: int
    strides: int
    is_bottleneck: bool
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        features, strides = self.features, self.strides
        layers = [(features, 3, strides), (features, 3, 1)]
        if self.is_bottleneck:
            layers = [(features, 1, 1), (features, 3, strides), (4 * features, 1, 1)]
        shared: dict[str, Any] = {'axis_name': self.axis_name, 'dtype': self.dtype}
        y = x
        for i, layer in enumerate(layers, 1):
            y = ConvNorm(*layer, 'after' if i < len(layers) else 'none', **shared, name=f'conv_{i}')(y, train)
        if x.shape != y.shape:
            x = ConvNorm(y.shape[-1], 1, strides, 'none', **shared, name='down')(x, train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """The encoder: RGB as ImageNet's networks expect it (B, H, W, 3) -> the maps of strides 2, 4, 8, 16, 32."""

    depths: tuple[int, ...]
    is_bottleneck: bool
    width: float = 1.0
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool) -> list[jax.Array]:
        shared: dict[str, Any] = {'axis_name': self.axis_name, 'dtype': self.dtype}
        x = ConvNorm(scaled(64, self.width), 7, 2, **shared, name='stem')(image.astype(self.dtype), train)
        maps = [x]  # (B, H/2, W/2, 64)
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for i, depth in enumerate(self.depths):
            features = scaled(64 * 2**i, self.width)
            for j in range(depth):
                strides = 2 if i and not j else 1
                x = ResNetBlock(features, strides, self.is_bottleneck, **shared, name=f'stage_{i}_{j}')(x, train)
            maps.append(x)  # (B, H/4, W/4, 64 or 256), and so on to (B, H/32, W/32, 512 or 2048)
        return maps


class Middle(nn.Module):
    """Normalizes the encoder's coarsest map and mixes it by two 3x3 convolutions: (B, h, w, C) -> (B, h, w, C)."""

    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        C, shared = x.shape[-1], {'axis_name': self.axis_name, 'dtype': self.dtype}
        x = nn.relu(BatchNorm(train, **shared, name='norm')(x))
        x = ConvNorm(2 * C, relu='before', **shared, name='mix_0')(x, train)  # (B, h, w, 2C)
        return ConvNorm(C, relu='before', **shared, name='mix_1')(x, train)


class SelfAttention(nn.Module):
    """Each pixel adds what it sees of all others, times a learned gain: (B, H, W, C) -> (B, H, W, C)."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        B, H, W, C = x.shape
        pixels = x.reshape(B, H * W, C)
        sizes = {'query': max(1, C // 8), 'key': max(1, C // 8), 'value': C}
        query, key, value = (
            nn.Dense(size, use_bias=False, dtype=self.dtype, name=name)(pixels) for name, size in sizes.items()
        )
        # The published softmax goes over the queries: a pixel's key asks, and the others' queries answer.
        seen = nn.softmax(jnp.einsum('bkc,bqc->bkq', key, query).astype(jnp.float32)).astype(self.dtype) @ value
        return x + Gain(1, 0.0, self.dtype, name='gain')(seen.reshape(B, H, W, C))


class DeOldify(nn.Module):
    """63,645,681 parameters ('artistic') or 218,221,173 ('stable') at the defaults.

    The fields are explained in `jaxcolor/config.py`, section model. `axis_name` is the mapped axis over which batch norm
    averages; None for statistics per device.
    """

    variant: str = 'artistic'
    width: float = 1.0
    encoder_norm: str = 'trained'
    axis_name: str | None = None
    dtype: Any = jnp.float32

    output_activation = 'linear'  # what the tasks ask of a network of this kind
    output_space = 'lab'

    def __post_init__(self) -> None:
        check_variant('deoldify', self.variant, VARIANTS)
        super().__post_init__()

    def setup(self) -> None:
        variant, width = VARIANTS[self.variant], self.width
        shared: dict[str, Any] = {'axis_name': self.axis_name, 'dtype': self.dtype}
        self.encoder = ResNet(variant.depths, variant.is_bottleneck, width, **shared)
        self.middle = Middle(**shared)
        self.decoder = [
            UNetBlock(scaled(features, width), tuple(scaled(each, width) for each in widths), **shared)
            for features, widths in zip(variant.shuffled, variant.widths, strict=True)
        ]
        self.attention = SelfAttention(self.dtype)
        last = scaled(variant.widths[-1][-1], width)
        relu_conv = functools.partial(Conv, kernel_init=nn.initializers.he_normal(), dtype=self.dtype)
        self.enlarge = relu_conv(4 * last, kernel=1)
        self.refine = [relu_conv(last + 3) for _ in range(2)]
        self.output = Conv(3, kernel=1, dtype=self.dtype)

    def __call__(self, lightness: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """Colorizes a batch.

        Args:
            lightness: L*/100, float (B, H, W, 1); any H and W.
            train: training mode: batch norm uses and updates the batch's statistics.

        Returns:
            {'ab': float32 (B, H, W, 2), a*b* / 128}, of the RGB that the network predicts; its lightness is not used.
        """
        H, W = lightness.shape[1:3]
        gray = color.gray_luma(100 * pad_to_multiple(lightness.astype(jnp.float32), MULTIPLE))
        image = (jnp.repeat(gray, 3, axis=-1) - IMAGENET_MEAN) / IMAGENET_DEVIATION
        rgb = self.published(image, train=train) * IMAGENET_DEVIATION + IMAGENET_MEAN
        ab = color.rgb_to_lab(jnp.clip(rgb, 0, 1))[..., 1:]
        return {'ab': color.normalize(ab, self.output_space, self.output_activation)[:, :H, :W]}  # cuts the padding off

    def published(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        """The published network.

        Args:
            image: gray RGB minus ImageNet's mean, divided by its deviation, float (B, H, W, 3); H and W even.
            train: as for `__call__`.

        Returns:
            RGB of the same kind, float32 (B, H, W, 3) in (-3, 3).
        """
        image = image.astype(self.dtype)
        *skips, x = self.encoder(image, train and self.encoder_norm == 'trained')  # (B, H/32, W/32, 512)
        x = self.middle(x, train)
        for i, (block, skip) in enumerate(zip(self.decoder, reversed(skips), strict=True)):
            x = block(x, skip, train)  # (B, H/16, W/16, 768), and so on to (B, H/2, W/2, 300)
            if i == ATTENTIVE:
                x = self.attention(x)
        x = blur(shuffle(nn.relu(self.enlarge(x)), 2))  # (B, H, W, 300)
        x = jnp.concatenate([x, image], axis=-1)  # (B, H, W, 303)
        y = x
        for layer in self.refine:
            y = nn.relu(layer(y))
        return 6 * nn.sigmoid(self.output(x + y).astype(jnp.float32)) - 3
