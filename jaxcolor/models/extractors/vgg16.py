"""VGG16, the frozen ImageNet network whose 1000 outputs are the global features of `vgg_fusion`.

Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition (ICLR 2015), configuration D.
Layers have Keras' names.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxcolor.models.layers import IMAGENET_DEVIATION, IMAGENET_MEAN, Conv

SIZE = 224
# (channels, number of convolutions) of each block, which ends with a 2x2 max pooling.
BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
DENSE = (('fc1', 4096), ('fc2', 4096), ('predictions', 1000))


def layers() -> list[str]:
    """The names of the 16 layers with parameters, in network order."""
    convs = [f'block{b}_conv{i}' for b, (_, count) in enumerate(BLOCKS, 1) for i in range(1, count + 1)]
    return convs + [name for name, _ in DENSE]


class VGG16(nn.Module):
    """138,357,544 parameters, float32.

    dtype: of the computation.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """Preprocessed image (B, 224, 224, 3) -> logits (B, 1000), float32, before the softmax.

        Inner activations: `apply(..., capture_intermediates=True, mutable='intermediates')`; they are taken before
        the ReLU.
        """
        x = image.astype(self.dtype)
        for b, (channels, count) in enumerate(BLOCKS, 1):
            for i in range(1, count + 1):
                x = nn.relu(Conv(channels, dtype=self.dtype, name=f'block{b}_conv{i}')(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)  # (B, 25088), channels last
        for name, features in DENSE:
            x = nn.Dense(features, dtype=self.dtype, name=name)(x if name == 'fc1' else nn.relu(x))
        return x.astype(jnp.float32)


def preprocess_keras(rgb: jax.Array) -> jax.Array:
    """RGB in [0, 1] (..., 3) -> BGR in [0, 255] minus ImageNet's mean, as Keras' (and Caffe's) weights expect."""
    return rgb[..., ::-1] * np.float32(255) - np.array([103.939, 116.779, 123.68], np.float32)


def preprocess_torchvision(rgb: jax.Array) -> jax.Array:
    """RGB in [0, 1] (..., 3) -> RGB minus the mean, divided by the standard deviation, as torchvision's weights expect."""
    return (rgb - IMAGENET_MEAN) / IMAGENET_DEVIATION


PREPROCESS = {'keras': preprocess_keras, 'torchvision': preprocess_torchvision}
