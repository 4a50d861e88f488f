"""The frozen ImageNet networks as a training uses them: gray photo in, 1000 outputs before the softmax out.

`weights/imagenet.py` makes an Extractor of a published file.
"""

import functools
import math
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jaxcolor import color
from jaxcolor.models.extractors import inception_resnet_v2, vgg16


class Network(NamedTuple):
    """What an extractor's name stands for: a Flax class, its image size, its preprocessing by flavour of weights."""

    module: type[nn.Module]
    size: int
    preprocess: dict[str, Any]
    # Keras' published file, and its MD5 as Keras states it.
    url: str
    md5: str


_KERAS = 'https://storage.googleapis.com/tensorflow/keras-applications/'
NETWORKS = {
    'vgg16': Network(
        vgg16.VGG16,
        vgg16.SIZE,
        vgg16.PREPROCESS,
        f'{_KERAS}vgg16/vgg16_weights_tf_dim_ordering_tf_kernels.h5',
        '64373286793e3c8b2b4e3219cbf3544b',
    ),
    'inception_resnet_v2': Network(
        inception_resnet_v2.InceptionResNetV2,
        inception_resnet_v2.SIZE,
        inception_resnet_v2.PREPROCESS,
        f'{_KERAS}inception_resnet_v2/inception_resnet_v2_weights_tf_dim_ordering_tf_kernels.h5',
        'e693bd0210a403b3192acc6073ad2e96',
    ),
}


@flax.struct.dataclass
class Extractor:
    """A frozen network with its weights. A pytree, so it passes into jitted functions as an argument.

    name: key of NETWORKS.
    flavour: key of the network's `preprocess`: who published the weights, hence which preprocessing they expect.
    source: the weights' file name, or 'random'.
    variables: Flax variables, float32 NumPy arrays as imported; `jax.device_put` an Extractor before using it often.
    """

    name: str = flax.struct.field(pytree_node=False)
    flavour: str = flax.struct.field(pytree_node=False)
    source: str = flax.struct.field(pytree_node=False)
    variables: dict

    def __call__(self, lightness, dtype=jnp.float32):
        """L* (B, H, W, 1) in [0, 100], any H and W -> float32 logits (B, 1000), computed in `dtype`."""
        network = NETWORKS[self.name]
        image = network.preprocess[self.flavour](gray_to_input(lightness, network.size))
        return network.module(dtype=dtype).apply(self.variables, image)


def gray_to_input(lightness, size: int):
    """The gray photo as the reports feed it to an ImageNet network: repeated to three channels, resized.

    Choice: a pixel's gray is the sRGB gray of that L* (the reports are silent), so that a black-and-white photo enters
    as itself; resizing is bilinear with antialiasing, without a crop.

    Args:
        lightness: L* (B, H, W, 1) in [0, 100].
        size: side of the network's input, pixels.

    Returns:
        float32 RGB (B, size, size, 3) in [0, 1]; `preprocess` of the network comes next.
    """
    lightness = jnp.asarray(lightness, jnp.float32)
    rgb = color.lab_to_rgb(jnp.concatenate([lightness, jnp.zeros_like(lightness), jnp.zeros_like(lightness)], axis=-1))
    return jax.image.resize(rgb, (rgb.shape[0], size, size, 3), 'bilinear')


@functools.cache
def variable_shapes(name: str):
    """{path: jax.ShapeDtypeStruct} of a network's variables; paths are tuples such as ('params', 'fc1', 'kernel')."""
    network = NETWORKS[name]
    image = jax.ShapeDtypeStruct((1, network.size, network.size, 3), jnp.float32)
    return flax.traverse_util.flatten_dict(jax.eval_shape(network.module().init, jax.random.key(0), image))


def random_extractor(name: str, seed: int = 0) -> Extractor:
    """An extractor that knows nothing, for trials without ImageNet weights; its preprocessing is Keras'.

    Kernels are normal with variance 2 / inputs (He et al. 2015), batch norms pass through, biases are 0.
    """
    rng = np.random.default_rng(seed)
    variables = {}
    for path, leaf in variable_shapes(name).items():
        if path[-1] == 'kernel':
            scale = np.float32((2 / math.prod(leaf.shape[:-1])) ** 0.5)
            variables[path] = rng.standard_normal(leaf.shape, np.float32) * scale
        else:
            variables[path] = np.full(leaf.shape, path[-1] in ('scale', 'var'), np.float32)
    return Extractor(name, 'keras', 'random', flax.traverse_util.unflatten_dict(variables))
