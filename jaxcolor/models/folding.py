"""Folds batch norms into the layers ahead of them, for inference: conv(x) * scale + shift is one convolution.

As in Jacob et al., *Quantization and Training of Neural Networks*, CVPR 2018, section 3.2. On GPUs a library then adds the
bias and applies ReLU while it convolves, and the map passes through memory once instead of twice.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcolor.models.layers import BatchNorm, only_shapes


class Layout(NamedTuple):
    """What tracing a network tells.

    shapes: of its variables, as `network.init` nests them.
    norms: {path of a batch norm that directly follows a linear layer: (path of that layer, from their parent; epsilon)}.
    """

    shapes: dict[str, Any]
    norms: dict[tuple[str, ...], tuple[tuple[str, ...], float]]


@functools.lru_cache(maxsize=8)
def layout(network: nn.Module, inputs: tuple[jax.ShapeDtypeStruct, ...]) -> Layout:
    """The layout of a network that is called with such inputs; its modules say by `normalized` which layer a `BatchNorm`
    called 'norm' directly follows. Kept, since tracing is a large part of what loading a model takes.
    """
    norms = {}

    def look(method, args, kwargs, context):
        module = context.module
        layer = getattr(module.parent, 'normalized', None)
        if isinstance(module, BatchNorm) and module.name == 'norm' and layer is not None:
            norms[module.path] = layer, module.epsilon
        return method(*args, **kwargs)

    with nn.intercept_methods(look), only_shapes():
        shapes = jax.eval_shape(network.init, jax.ShapeDtypeStruct((2,), np.uint32), *inputs)
    return Layout(shapes, norms)


def fold_batch_norms(network: nn.Module, variables: Mapping[str, Any], *inputs: Any) -> dict[str, Any]:
    """Variables with which a network predicts the same without those batch norms that directly follow a linear layer.

    Args:
        network: as of `layout`.
        variables: of the network, with 'params' and, where it has batch norm, 'batch_stats'.
        inputs: of the network, arrays or `jax.ShapeDtypeStruct`.

    Returns:
        The same collections. A folded layer's kernel and bias, float32, are scaled; its batch norm has no statistics any
        more, and is the identity; where the layer has no bias, the batch norm keeps its own and adds it.
    """
    params, others = flatten_dict(variables['params']), {k: v for k, v in variables.items() if k != 'params'}
    statistics = flatten_dict(others.get('batch_stats', {}))
    norms = layout(network, tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs)).norms
    for (*block, name), (layer, epsilon) in norms.items():
        norm = (*block, name)
        mean, var = (_on_host(statistics.pop((*norm, kind))) for kind in ('mean', 'var'))
        scale = _on_host(params.pop((*norm, 'scale'))) / (var + np.float32(epsilon)) ** np.float32(0.5)
        own_bias = params.pop((*norm, 'bias'))
        shift = _on_host(own_bias) - mean * scale
        kernel, bias = (*block, *layer, 'kernel'), (*block, *layer, 'bias')
        params[kernel] = _placed_like(params[kernel], _on_host(params[kernel]) * scale)
        if bias in params:
            params[bias] = _placed_like(params[bias], _on_host(params[bias]) * scale + shift)
        else:
            params[*norm, 'bias'] = _placed_like(own_bias, shift)
    if 'batch_stats' in others:
        others['batch_stats'] = unflatten_dict(statistics)
    return {'params': unflatten_dict(params), **others}


def _on_host(array):
    """An array in NumPy, which computes at once what JAX would compile, operation by operation; traced, as it is."""
    return array if isinstance(array, jax.core.Tracer) else np.asarray(array)


def _placed_like(array, values):
    """The values on the devices of an array."""
    is_placed = isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer)
    return jax.device_put(values, array.sharding) if is_placed else values
