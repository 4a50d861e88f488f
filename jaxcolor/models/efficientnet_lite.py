"""EfficientNet-Lite0 to Lite4: an ImageNet network small enough for CPUs, as a classifier and as an encoder.

Tan, Le: EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks (ICML 2019), table 1, in the version for
mobile devices that its authors published in TensorFlow's repository `tpu` (models/official/efficientnet/lite, 2020): ReLU6
in place of swish, no squeeze-and-excitation; the stem, the head, and the repeats of the first and last stage do not grow
with the variant. The drop-connect of its training is left out.
"""

import math
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcolor.models.depthwise import depthwise_conv2d
from jaxcolor.models.layers import BatchNorm, check_variant, conv2d, parameter


class Variant(NamedTuple):
    """One of the published sizes."""

    width: float  # multiplies the channels of the blocks
    depth: float  # multiplies the number of blocks of a stage
    size: int  # pixels, the side of the photos that it was trained with
    dropout: float  # before the 1000 outputs, in training


VARIANTS = {
    'lite0': Variant(1.0, 1.0, 224, 0.2),
    'lite1': Variant(1.0, 1.1, 240, 0.2),
    'lite2': Variant(1.1, 1.2, 260, 0.3),
    'lite3': Variant(1.2, 1.4, 280, 0.3),
    'lite4': Variant(1.4, 1.8, 300, 0.3),
}
# Of each stage: (number of blocks, kernel, stride of the first, expansion of the channels inside, channels).
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, HEAD = 32, 1280  # channels


class Block(NamedTuple):
    """An inverted bottleneck: 1x1 convolution to `expansion` times the channels, depthwise, 1x1 to `features`."""

    features: int
    kernel: int
    strides: int
    expansion: int  # 1 for none: the first convolution is left out


def blocks(variant: str) -> list[Block]:
    """The blocks of a variant, a key of VARIANTS, in network order: 16 of Lite0, 21 of Lite2."""
    width, depth, *_ = VARIANTS[variant]
    made = []
    for s, (count, kernel, strides, expansion, features) in enumerate(STAGES):
        is_inner = 0 < s < len(STAGES) - 1
        for i in range(math.ceil(depth * count) if is_inner else count):
            made.append(Block(_rounded(width * features), kernel, strides if i == 0 else 1, expansion))
    return made


def _rounded(channels):
    """To a multiple of 8, by at most a tenth downwards."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


class ConvBN(nn.Module):
    """Convolution without a bias, padded as TensorFlow's SAME, then batch norm and ReLU6.

    depthwise: each channel has a kernel of its own; `features` is then the number of channels that come in.
    """

    features: int
    kernel: int = 1
    strides: int = 1
    depthwise: bool = False
    relu6: bool = True
    axis_name: str | None = None
    dtype: Any = jnp.float32
    normalized: ClassVar[tuple[str, ...]] = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(B, H, W, C) -> (B, H/strides, W/strides, features), rounded up"""
        size = (self.kernel, self.kernel)
        channels = 1 if self.depthwise else x.shape[-1]
        kernel = parameter(self, 'kernel', nn.initializers.he_normal(), (*size, channels, self.features))
        padding = tuple(lax.padtype_to_pads(x.shape[1:3], size, (self.strides, self.strides), 'SAME'))
        conv = depthwise_conv2d if self.depthwise else conv2d
        x = conv(x.astype(self.dtype), kernel.astype(self.dtype), strides=self.strides, padding=padding)
        x = BatchNorm(train, self.axis_name, self.dtype, momentum=0.99, epsilon=1e-3, name='norm')(x)
        return nn.relu6(x) if self.relu6 else x


class Bottleneck(nn.Module):
    """A `Block`, with the identity beside it where the shape stays."""

    block: Block
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(B, H, W, C) -> (B, H/strides, W/strides, features), rounded up"""
        features, kernel, strides, expansion = self.block
        shared: dict[str, Any] = {'axis_name': self.axis_name, 'dtype': self.dtype}
        C, y = x.shape[-1], x
        if expansion != 1:
            y = ConvBN(expansion * C, **shared, name='expand')(y, train)
        y = ConvBN(expansion * C, kernel, strides, depthwise=True, **shared, name='depthwise')(y, train)
        y = ConvBN(features, relu6=False, **shared, name='project')(y, train)
        return x + y if strides == 1 and features == C else y


class EfficientNetLite(nn.Module):
    """4,652,008 parameters for Lite0, 6,092,072 for Lite2; as an encoder (`features`) 2,958,848 and 4,357,952.

    variant: key of VARIANTS.
    axis_name: the mapped axis over which batch norm averages in training; None for statistics per device.
    dtype: of the computation.
    """

    variant: str = 'lite0'
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_variant('EfficientNet', self.variant, VARIANTS)
        super().__post_init__()

    def setup(self) -> None:
        shared: dict[str, Any] = {'axis_name': self.axis_name, 'dtype': self.dtype}
        self.stem = ConvBN(STEM, 3, 2, **shared)
        self.blocks = [Bottleneck(block, **shared) for block in blocks(self.variant)]
        self.head = ConvBN(HEAD, **shared)
        self.dropout = nn.Dropout(VARIANTS[self.variant].dropout)
        self.predictions = nn.Dense(1000, dtype=self.dtype)

    def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
        """Preprocessed image (B, H, W, 3) -> logits (B, 1000), float32, before the softmax.

        train: batch norm by the batch, and dropout, which takes the random numbers 'dropout'.
        """
        x = self.head(self.features(image, train)[32], train)  # (B, H/32, W/32, 1280)
        x = x.astype(jnp.float32).mean(axis=(1, 2))
        return self.predictions(self.dropout(x, deterministic=not train)).astype(jnp.float32)

    def features(self, image: jax.Array, train: bool = False) -> dict[int, jax.Array]:
        """The last output at each scale, for an encoder: `network.apply(variables, image, method='features')`.

        Where only this method is called, the variables of the head and of the 1000 outputs are not made.

        Args:
            image: preprocessed, float (B, H, W, 3), any H and W.
            train: batch norm by the batch.

        Returns:
            {stride: (B, H/stride, W/stride, C) in `dtype`}, rounded up, for the strides 2, 4, 8, 16 and 32, linear outputs
            without an activation; Lite0's have 16, 24, 40, 112 and 320 channels.
        """
        x = self.stem(image, train)  # (B, H/2, W/2, 32)
        scales, stride = {}, 2
        for block in self.blocks:
            stride *= block.block.strides
            x = scales[stride] = block(x, train)
        return scales


def preprocess(rgb: jax.Array) -> jax.Array:
    """RGB in [0, 1] (..., 3) -> about [-1, 1], as the published weights expect: 127 and 128 of 255 as mean and scale.

    The pages of the PyTorch packages show ImageNet's mean and deviation instead, which is not what the stem's batch norm
    was trained with.
    """
    return (rgb * np.float32(255) - np.float32(127)) / np.float32(128)


PREPROCESS = {'tensorflow': preprocess}
