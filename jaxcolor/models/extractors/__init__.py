"""The frozen ImageNet networks: gray photo in, the 1000 outputs before the softmax out.

`weights/imagenet.py` reads their published weights.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxcolor import color
from jaxcolor.models import efficientnet_lite
from jaxcolor.models.extractors import inception_resnet_v2, vgg16


class Network(NamedTuple):
    """An ImageNet network."""

    module: Callable[..., nn.Module]
    size: int  # pixels, the side of its input
    preprocess: Mapping[str, Callable[[jax.Array], jax.Array]]  # of RGB in [0, 1], by flavor of the weights


NETWORKS = {
    'vgg16': Network(vgg16.VGG16, vgg16.SIZE, vgg16.PREPROCESS),
    'inception_resnet_v2': Network(
        inception_resnet_v2.InceptionResNetV2, inception_resnet_v2.SIZE, inception_resnet_v2.PREPROCESS
    ),
} | {
    f'efficientnet_{variant}': Network(
        functools.partial(efficientnet_lite.EfficientNetLite, variant),
        efficientnet_lite.VARIANTS[variant].size,
        efficientnet_lite.PREPROCESS,
    )
    for variant in ('lite0', 'lite2')  # those with packages of weights
}


@flax.struct.dataclass
class Extractor:
    """A frozen network with its weights. A pytree: it can be an argument of jitted functions.

    name: key of NETWORKS.
    flavor: who published the weights, and so which preprocessing they expect: a key of the network's `preprocess`.
    source: name of the weights file, or 'random'.
    variables: Flax variables, float32 NumPy arrays as imported; use `jax.device_put` before using them often.
    """

    name: str = flax.struct.field(pytree_node=False)
    flavor: str = flax.struct.field(pytree_node=False)
    source: str = flax.struct.field(pytree_node=False)
    variables: dict[str, Any]

    def __call__(self, lightness: jax.Array, dtype: DTypeLike = jnp.float32) -> jax.Array:
        """L* (B, H, W, 1) in [0, 100], any H and W -> float32 logits (B, 1000), computed in `dtype`."""
        network = NETWORKS[self.name]
        image = network.preprocess[self.flavor](gray_to_input(lightness, network.size))
        logits: Any = network.module(dtype=dtype).apply(self.variables, image)
        return logits


def gray_to_input(lightness: jax.Array | np.ndarray, size: int) -> jax.Array:
    """A gray photo as the input of an ImageNet network: repeated to three channels and resized.

    The reports do not say which gray they mean. Here it is the sRGB gray of each L*, so that a black-and-white photo stays
    as it is; resizing is bilinear with antialiasing, without a crop.

    Args:
        lightness: L* (B, H, W, 1) in [0, 100].
        size: pixels, the side of the network's input.

    Returns:
        float32 RGB (B, size, size, 3) in [0, 1], before the network's `preprocess`.
    """
    rgb = color.lab_to_rgb(color.gray_lab(jnp.asarray(lightness, jnp.float32)))
    return jax.image.resize(rgb, (rgb.shape[0], size, size, 3), 'bilinear')


@functools.cache
def variable_shapes(name: str) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    """The shapes of a network's variables by path, such as ('params', 'fc1', 'kernel').

    Args:
        name: a key of NETWORKS.
    """
    network = NETWORKS[name]
    image = jax.ShapeDtypeStruct((1, network.size, network.size, 3), jnp.float32)
    return flax.traverse_util.flatten_dict(jax.eval_shape(network.module().init, jax.random.key(0), image))


def random_extractor(name: str, seed: int = 0) -> Extractor:
    """An untrained extractor, for trials without ImageNet weights, with the preprocessing of the first flavor.

    Kernels are normal with variance 2 / inputs (He et al. 2015), batch norms are the identity, biases are 0.

    Args:
        name: a key of NETWORKS.
        seed: of the kernels.
    """
    rng = np.random.default_rng(seed)
    variables: dict[tuple[str, ...], np.ndarray] = {}
    for path, leaf in variable_shapes(name).items():
        if path[-1] == 'kernel':
            scale = np.float32((2 / math.prod(leaf.shape[:-1])) ** 0.5)
            variables[path] = rng.standard_normal(leaf.shape, np.float32) * scale
        else:
            variables[path] = np.full(leaf.shape, path[-1] in ('scale', 'var'), np.float32)
    flavor = next(iter(NETWORKS[name].preprocess))
    return Extractor(name, flavor, 'random', flax.traverse_util.unflatten_dict(variables))
