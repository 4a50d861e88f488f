"""Inception-ResNet-v2, the frozen ImageNet network whose 1000 outputs are the global features of `deepcolor`.

Szegedy, Ioffe, Vanhoucke, Alemi: Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning
(AAAI 2017), as published with TF-Slim and adopted by Keras and timm: residuals scaled by 0.17, 0.1 and 0.2, batch norm
with eps 0.001, average pooling that does not count the padding.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

SIZE = 299
# A layer is (channels, kernel[, stride[, padding]]), the arguments of ConvBN, or a pooling: 'avg' (3x3 at stride 1), 'max'
# (3x3 at stride 2).
STEM: dict[str, Any] = {
    'conv2d_1a': (32, 3, 2),
    'conv2d_2a': (32, 3, 1, 'VALID'),
    'conv2d_2b': (64, 3),
    'maxpool_3a': 'max',
    'conv2d_3b': (80, 1),
    'conv2d_4a': (192, 3, 1, 'VALID'),
    'maxpool_5a': 'max',
}
# The branches of each kind of block.
BRANCHES: dict[str, tuple[tuple, ...]] = {
    'mixed_5b': (((96, 1),), ((48, 1), (64, 5)), ((64, 1), (96, 3), (96, 3)), ('avg', (64, 1))),
    'block35': (((32, 1),), ((32, 1), (32, 3)), ((32, 1), (48, 3), (64, 3))),
    'mixed_6a': (((384, 3, 2),), ((256, 1), (256, 3), (384, 3, 2)), ('max',)),
    'block17': (((192, 1),), ((128, 1), (160, (1, 7)), (192, (7, 1)))),
    'mixed_7a': (((256, 1), (384, 3, 2)), ((256, 1), (288, 3, 2)), ((256, 1), (288, 3), (320, 3, 2)), ('max',)),
    'block8': (((192, 1),), ((192, 1), (224, (1, 3)), (256, (3, 1)))),
}
# The number of residual blocks of each kind, and the scale of the residual.
BLOCKS = {'block35': (10, 0.17), 'block17': (20, 0.1), 'block8': (10, 0.2)}
# The blocks after the stem: (name of the module, kind of block).
BODY = tuple(
    (name, kind)
    for mixed, block in (('mixed_5b', 'block35'), ('mixed_6a', 'block17'), ('mixed_7a', 'block8'))
    for name, kind in [(mixed, mixed), *((f'{block}_{i}', block) for i in range(1, BLOCKS[block][0] + 1))]
)


class ConvBN(nn.Module):
    """Convolution without bias, batch norm with its running statistics, ReLU.

    padding: '' is SAME at stride 1, else VALID.
    """

    channels: int
    kernel: int | tuple[int, int]
    stride: int = 1
    padding: str = ''
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H', W', channels)"""
        kernel = (self.kernel, self.kernel) if isinstance(self.kernel, int) else self.kernel
        padding = self.padding or ('SAME' if self.stride == 1 else 'VALID')
        x = nn.Conv(self.channels, kernel, self.stride, padding, use_bias=False, dtype=self.dtype, name='conv')(x)
        # In float32, since nn.BatchNorm mixes its float32 statistics with the input.
        x = nn.BatchNorm(use_running_average=True, epsilon=1e-3, name='bn')(x.astype(jnp.float32))
        return nn.relu(x.astype(self.dtype))


def _apply_layer(layer, x, name, dtype):
    """Applies a layer of STEM or BRANCHES under a name in the current module."""
    if layer == 'avg':
        # In float32, since avg_pool counts the pixels in float32.
        return nn.avg_pool(x.astype(jnp.float32), (3, 3), (1, 1), 'SAME', count_include_pad=False)
    if layer == 'max':
        return nn.max_pool(x, (3, 3), (2, 2))
    return ConvBN(*layer, dtype=dtype, name=name)(x)


class Branches(nn.Module):
    """A block of BRANCHES, whose branches are concatenated; a residual block if `scale` is given."""

    kind: str
    scale: float | None = None
    relu: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H', W', C')"""
        outputs = []
        for b, branch in enumerate(BRANCHES[self.kind]):
            y = x
            for i, layer in enumerate(branch):
                y = _apply_layer(layer, y, f'branch{b}_{i}', self.dtype)
            outputs.append(y)
        y = jnp.concatenate(outputs, axis=-1)
        if self.scale is None:
            return y
        y = nn.Conv(x.shape[-1], (1, 1), dtype=self.dtype, name='conv')(y)
        y = x + y * jnp.asarray(self.scale, y.dtype)
        return nn.relu(y) if self.relu else y


class InceptionResNetV2(nn.Module):
    """55,843,464 parameters and 60,544 statistics. 30,272 parameters are batch norm scales, which Keras fixes at 1.

    dtype: of the computation.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """Preprocessed image (B, 299, 299, 3) -> logits (B, 1000), float32, before the softmax.

        Inner activations: `apply(..., capture_intermediates=True, mutable='intermediates')`; the modules of BODY give the
        outputs of the blocks.
        """
        x = image.astype(self.dtype)
        for name, layer in STEM.items():
            x = _apply_layer(layer, x, name, self.dtype)  # to (B, 35, 35, 192)
        last, _ = BODY[-1]
        for name, kind in BODY:  # (B, 35, 35, 320), (B, 17, 17, 1088), (B, 8, 8, 2080)
            _, scale = BLOCKS.get(kind, (1, None))
            # The last block has neither scale nor ReLU.
            x = Branches(kind, 1.0 if name == last else scale, name != last, self.dtype, name=name)(x)
        x = ConvBN(1536, 1, dtype=self.dtype, name='conv2d_7b')(x)
        x = x.mean(axis=(1, 2))  # (B, 1536)
        return nn.Dense(1000, dtype=self.dtype, name='predictions')(x).astype(jnp.float32)


def preprocess(rgb: jax.Array) -> jax.Array:
    """RGB in [0, 1] -> [-1, 1], as all published weights expect."""
    return rgb * np.float32(2) - np.float32(1)


PREPROCESS = {'keras': preprocess, 'timm': preprocess}
