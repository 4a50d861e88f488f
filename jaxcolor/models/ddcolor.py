"""DDColor: Kang, Yang, Ouyang, Ren, Li, Xie: *DDColor: Towards Photo-Realistic Image Colorization via Dual Decoders*
(ICCV 2023, arXiv:2212.11613), as its published weights have it.

A ConvNeXt (Liu et al.: *A ConvNet for the 2020s*, CVPR 2022) sees the gray photo; one decoder enlarges its maps to features
of every pixel, the other lets 100 color queries look at the maps (section 3.2). `weights/published/ddcolor.py` reads the
published files.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcolor import color
from jaxcolor.errors import UserError
from jaxcolor.models.depthwise import depthwise_conv2d
from jaxcolor.models.layers import (
    IMAGENET_DEVIATION,
    IMAGENET_MEAN,
    Conv,
    attention,
    check_variant,
    pad_to_multiple,
    parameter,
    scaled,
)
from jaxcolor.models.parts import by_pixel
from jaxcolor.models.unet import Gain, UNetBlock, blur, shuffle

MULTIPLE = 32  # pixels, the coarsest stride of the encoder: sides are padded to multiples of it
HEADS = 8  # of the attention


class Variant(NamedTuple):
    """One of the published sizes of the encoder."""

    depths: tuple[int, ...]  # blocks of each stage
    dims: tuple[int, ...]  # channels of each stage


VARIANTS = {
    'tiny': Variant((3, 3, 9, 3), (96, 192, 384, 768)),
    'large': Variant((3, 3, 27, 3), (192, 384, 768, 1536)),
}


class DepthwiseConv(nn.Module):
    """A 7x7 kernel for each channel, and a bias: (B, H, W, C) -> (B, H, W, C)."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        C = x.shape[-1]
        kernel = parameter(self, 'kernel', nn.initializers.he_normal(), (7, 7, 1, C)).astype(self.dtype)
        bias = parameter(self, 'bias', nn.initializers.zeros, (C,)).astype(self.dtype)
        return depthwise_conv2d(x, kernel, strides=1, padding=((3, 3), (3, 3))) + bias


class ConvNeXtBlock(nn.Module):
    """A depthwise 7x7 convolution, then each pixel's channels through a hidden layer of four times as many; residual.

    (B, H, W, C) -> (B, H, W, C)
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        C = x.shape[-1]
        y = DepthwiseConv(self.dtype, name='depthwise')(x)
        y = _layer_norm(1e-6, self.dtype, 'norm')(y)
        y = nn.Dense(4 * C, dtype=self.dtype, name='expand')(y)  # (B, H, W, 4C)
        y = nn.Dense(C, dtype=self.dtype, name='project')(nn.gelu(y, approximate=False))
        return x + Gain(C, 1e-6, self.dtype, name='gain')(y)  # the paper's layer scale


class ConvNeXt(nn.Module):
    """The encoder: RGB as ImageNet's networks expect it (B, H, W, 3) -> the normalized maps of strides 4, 8, 16, 32."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array) -> list[jax.Array]:
        x, maps = image.astype(self.dtype), []
        for i, (depth, C) in enumerate(zip(self.depths, self.dims, strict=True)):
            stride = 2 if i else 4
            if i:
                x = _layer_norm(1e-6, self.dtype, f'down_norm_{i}')(x)
            x = Conv(C, stride, stride, 'VALID', dtype=self.dtype, name=f'down_{i}')(x)  # (B, H/4, ...), then /8, /16, /32
            if not i:
                x = _layer_norm(1e-6, self.dtype, 'down_norm_0')(x)
            for j in range(depth):
                x = ConvNeXtBlock(self.dtype, name=f'stage_{i}_{j}')(x)
            maps.append(_layer_norm(1e-6, self.dtype, f'norm_{i}')(x))
        return maps


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al., 2017, section 3.2.2): queries (B, Q, C); keys, values (B, N, C) -> (B, Q, C).

    Flax has one, which warns where N is C, as it is for photos of 256 pixels.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        C = queries.shape[-1]
        inputs = {'query': queries, 'key': keys, 'value': values}
        seen = attention(*(nn.Dense(C, dtype=self.dtype, name=name)(x) for name, x in inputs.items()), heads=HEADS)
        return nn.Dense(C, dtype=self.dtype, name='out')(seen)


class QueryLayer(nn.Module):
    """The queries look at the photo, then at each other, then each for itself; each time, what they saw is added to them.

    queries (B, Q, C), their places (1, Q, C), memory (B, N, C), its places (N, C) -> (B, Q, C).
    """

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, queries: jax.Array, places: jax.Array, memory: jax.Array, memory_places: jax.Array) -> jax.Array:
        C = queries.shape[-1]
        at = queries + places
        seen = Attention(self.dtype, name='cross')(at, memory + memory_places, memory)
        queries = _layer_norm(1e-5, self.dtype, 'cross_norm')(queries + seen)
        at = queries + places
        seen = Attention(self.dtype, name='self')(at, at, queries)
        queries = _layer_norm(1e-5, self.dtype, 'self_norm')(queries + seen)
        hidden = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name='hidden')(queries))  # (B, Q, 8C)
        return _layer_norm(1e-5, self.dtype, 'norm')(queries + nn.Dense(C, dtype=self.dtype, name='output')(hidden))


class Learned(nn.Module):
    """Vectors that are learned, of no input: (1, count, features)."""

    count: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self) -> jax.Array:
        vectors = parameter(self, 'vectors', nn.initializers.normal(1.0), (self.count, self.features))
        return vectors.astype(self.dtype)[None]


class ColorDecoder(nn.Module):
    """Learned queries that become colors (section 3.2.2).

    The maps of strides 16, 8, 4, each (B, h, w, any) -> (B, queries, features). Layer i looks at map i mod 3.
    """

    features: int
    queries: int
    layers: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: list[jax.Array]) -> jax.Array:
        C, memories = self.features, []
        start, places = (Learned(self.queries, C, self.dtype, name=name)() for name in ('start', 'places'))  # (1, Q, C)
        levels = Learned(len(maps), C, self.dtype, name='levels')()  # (1, L, C)
        for i, x in enumerate(maps):
            B, h, w, _ = x.shape
            x = nn.Dense(C, dtype=self.dtype, name=f'input_{i}')(x) + levels[0, i]  # (B, h, w, C)
            memories.append((x.reshape(B, h * w, C), sine_positions(h, w, C).astype(self.dtype)))
        x = jnp.repeat(start, maps[0].shape[0], axis=0)  # (B, Q, C)
        for i in range(self.layers):
            x = QueryLayer(8 * C, self.dtype, name=f'layer_{i}')(x, places, *memories[i % len(maps)])
        x = _layer_norm(1e-5, self.dtype, 'norm')(x)
        for i in range(2):
            x = nn.relu(nn.Dense(C, dtype=self.dtype, name=f'color_{i}')(x))
        return nn.Dense(C, dtype=self.dtype, name='color_2')(x)


def sine_positions(h: int, w: int, features: int) -> jax.Array:
    """Where the pixels of an (h, w) map are: float32 (h * w, features), row by row.

    Half of the features tell the row, half the column, by sines and cosines of growing wavelengths; the sides count as 2 pi
    (Carion et al.: *End-to-End Object Detection with Transformers*, ECCV 2020, appendix A.4).
    """
    wavelengths = np.float32(10_000) ** (2 * (np.arange(features // 2) // 2) / np.float32(features // 2)).astype(np.float32)

    def encode(length):
        place = jnp.arange(1, length + 1, dtype=jnp.float32)
        angles = (np.float32(2 * np.pi) * place / (place[-1:] + np.float32(1e-6)))[:, None] / wavelengths
        return jnp.where(np.arange(features // 2) % 2 == 0, jnp.sin(angles), jnp.cos(angles))  # (length, features / 2)

    rows, columns = encode(h)[:, None], encode(w)[None]
    shape = (h, w, features // 2)
    both = jnp.concatenate([jnp.broadcast_to(rows, shape), jnp.broadcast_to(columns, shape)], axis=-1)
    return both.reshape(h * w, features)


class Refine(nn.Module):
    """The dense layer behind the product of each pixel's features with each color, ahead of that product.

    Colors (B, Q, C) and the photo (B, H, W, 3) -> what the layer makes of the colors, (B, C, 2), and of the photo,
    (B, H, W, 2).

    The paper enlarges the features fourfold and takes Q products for each pixel (section 3.2.2). All of that is linear, so
    the order does not matter: here the dense layer comes first, and only its two channels are enlarged.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, colors: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        Q = colors.shape[1]
        kernel = parameter(self, 'kernel', nn.initializers.lecun_normal(), (Q + image.shape[-1], 2))
        bias = parameter(self, 'bias', nn.initializers.zeros, (2,)).astype(self.dtype)
        kernel = kernel.astype(self.dtype)
        return jnp.einsum('bqc,qo->bco', colors, kernel[:Q]), image @ kernel[Q:] + bias


class Enlarge(nn.Module):
    """The features of 16 pixels for each pixel (a 1x1 convolution, ReLU), and the products of each with mixed colors.

    (B, h, w, C) and (B, C, 2) -> (B, h, w, 16 * 2), not yet shuffled.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mixed: jax.Array) -> jax.Array:
        C = x.shape[-1]
        kernel = parameter(self, 'kernel', nn.initializers.he_normal(), (1, 1, C, 16 * C))
        bias = parameter(self, 'bias', nn.initializers.zeros, (16 * C,))
        return by_pixel(x, kernel[0, 0].astype(self.dtype), bias.astype(self.dtype), mixed, function=_enlarge)


def _enlarge(x, kernel, bias, mixed):
    """(B, h, w, C), (C, 16 * C), (16 * C,), (B, C, 2) -> (B, h, w, 16 * 2)"""
    B, h, w, C = x.shape
    features = nn.relu(x @ kernel + bias)  # (B, h, w, 16 * C)
    return (features.reshape(B, h * w * 16, C) @ mixed).reshape(B, h, w, 32)


class DDColor(nn.Module):
    """55,005,104 parameters ('tiny') or 227,866,256 ('large') at the defaults.

    The fields are explained in `jaxcolor/config.py`, section model. `axis_name` is the mapped axis over which batch norm
    averages; None for statistics per device.
    """

    variant: str = 'tiny'
    width: float = 1.0
    queries: int = 100
    layers: int = 9
    axis_name: str | None = None
    dtype: Any = jnp.float32

    output_activation = 'linear'  # what the tasks ask of a network of this kind
    output_space = 'lab'

    def __post_init__(self) -> None:
        check_variant('ddcolor', self.variant, VARIANTS)
        if scaled(256, self.width) % HEADS:
            raise UserError(f'model.width: {scaled(256, self.width)} features of ddcolor are no multiple of {HEADS} heads.')
        super().__post_init__()

    def setup(self) -> None:
        depths, dims = VARIANTS[self.variant]
        shared: dict[str, Any] = {'axis_name': self.axis_name, 'dtype': self.dtype}
        wide, narrow = scaled(512, self.width), scaled(256, self.width)
        self.encoder = ConvNeXt(depths, tuple(scaled(C, self.width) for C in dims), self.dtype)
        self.decoder = [UNetBlock(C, (C,), **shared) for C in (wide, wide, narrow)]
        self.enlarge = Enlarge(self.dtype)
        self.color_decoder = ColorDecoder(narrow, self.queries, self.layers, self.dtype)
        self.refine = Refine(self.dtype)

    def __call__(self, lightness: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """Colorizes a batch.

        Args:
            lightness: L*/100, float (B, H, W, 1); any H and W.
            train: training mode: batch norm uses and updates the batch's statistics.

        Returns:
            {'ab': float32 (B, H, W, 2), a*b* / 128}.
        """
        H, W = lightness.shape[1:3]
        gray = color.gray_luma(100 * pad_to_multiple(lightness.astype(jnp.float32), MULTIPLE))
        ab = self.published(jnp.repeat(gray, 3, axis=-1), train=train)
        return {'ab': color.normalize(ab, self.output_space, self.output_activation)[:, :H, :W]}  # cuts the padding off

    def published(self, rgb: jax.Array, *, train: bool = False) -> jax.Array:
        """The published network: gray RGB (B, H, W, 3) in [0, 1], H and W multiples of 32 -> a*b*, float32 (B, H, W, 2)."""
        image = ((rgb - IMAGENET_MEAN) / IMAGENET_DEVIATION).astype(self.dtype)
        *skips, x = self.encoder(image)  # (B, H/32, W/32, 768)
        maps = []
        for block, skip in zip(self.decoder, reversed(skips), strict=True):
            x = block(x, skip, train)  # (B, H/16, W/16, 512), (B, H/8, W/8, 512), (B, H/4, W/4, 256)
            maps.append(x)
        colors = self.color_decoder(maps)  # (B, Q, 256)
        mixed, of_image = self.refine(colors, image)  # (B, 256, 2), (B, H, W, 2)
        ab = blur(shuffle(self.enlarge(x, mixed), 4))  # (B, H, W, 2)
        return (ab + of_image).astype(jnp.float32)


def _layer_norm(epsilon, dtype, name):
    return nn.LayerNorm(epsilon, dtype, use_fast_variance=False, name=name)
