"""Small published networks, and state dicts as the files of DDColor and DeOldify have them, without PyTorch, for tests."""

import functools

import numpy as np

from jaxcolor.models import ddcolor as ddcolor_model
from jaxcolor.models import deoldify as deoldify_model
from jaxcolor.models.ddcolor import DDColor
from jaxcolor.models.deoldify import DeOldify
from jaxcolor.weights.published import ddcolor, deoldify, zhang
from jaxcolor.weights.published.converted import variable_shapes

CONVERTERS = {'ddcolor': ddcolor, 'deoldify': deoldify}
VARIANT = 'shallow'  # with few blocks


def small_network(name, monkeypatch, width=1 / 16):
    """A narrow and shallow network, 'ddcolor' or 'deoldify'; its variant is known while the monkeypatch lasts."""
    if name == 'ddcolor':
        shallow = ddcolor_model.Variant((1, 1, 1, 1), ddcolor_model.VARIANTS['tiny'].dims)
        monkeypatch.setitem(ddcolor_model.VARIANTS, VARIANT, shallow)
        return DDColor(VARIANT, width=width, queries=3, layers=3)
    shallow = deoldify_model.VARIANTS['artistic']._replace(depths=(1, 1, 1, 1))
    monkeypatch.setitem(deoldify_model.VARIANTS, VARIANT, shallow)
    return DeOldify(VARIANT, width=width)


def small_converter(name, monkeypatch, width=1 / 16):
    """What converts the arrays of `small_network`, or of `zhang_files.state_dict`."""
    if name in CONVERTERS:
        return functools.partial(CONVERTERS[name].convert, network=small_network(name, monkeypatch, width))
    return functools.partial(zhang.convert, width=width)


def _is_normed(name):
    """Whether a weight of the file is under spectral norm."""
    parts = name.split('.')
    if parts[0] == 'layers':
        return int(parts[1]) >= 3 and parts[1] != '8' and 'bn' not in parts and parts[-2] not in ('1', '2')
    return parts[0] == 'refine_net' or (name.startswith(('decoder.layers.', 'decoder.last_shuf.')) and parts[-2] == '0')


def state_dict(network, seed=0):
    """{key: array} of a file of a DDColor or DeOldify. Layers of one pixel have kernels of 1x1, as there."""
    converter = CONVERTERS[type(network).__name__.lower()]
    rng, arrays = np.random.default_rng(seed), {}
    shapes = variable_shapes(network, (1, 32, 32, 1))
    for path, name in converter._names(network).items():
        shape = shapes[path]
        if path[-1] == 'kernel':
            shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
        scale = (2 / max(1, np.prod(shape[1:]))) ** 0.5 if len(shape) > 1 else 0.2
        arrays[name] = rng.normal(path[-1] in ('scale', 'var'), scale, shape).astype(np.float32)
        if path[-1] == 'var':
            arrays[name] = np.abs(arrays[name]) + np.float32(0.5)
            arrays[name.replace('running_var', 'num_batches_tracked')] = np.array(7)
    for name in [name for name in arrays if name.endswith('.query')]:
        stacked = [arrays.pop(f'{name.removesuffix("query")}{part}') for part in ('query', 'key', 'value')]
        arrays[name.removesuffix('.query')] = np.concatenate(stacked)
    for name in [name for name in arrays if name.endswith('.weight') and arrays[name].ndim > 1 and _is_normed(name)]:
        weight, layer = arrays.pop(name), name.removesuffix('.weight')
        matrix = weight.reshape(len(weight), -1)
        u, _, v = np.linalg.svd(matrix, full_matrices=False)
        ones = (1, 1) if weight.ndim == 2 else ()
        arrays |= {f'{layer}.weight_orig': weight.reshape(*weight.shape, *ones)}
        arrays |= {f'{layer}.weight_u': u[:, 0].copy(), f'{layer}.weight_v': v[0].copy()}
    if 'layers.8.conv.0.weight' in arrays:  # DeOldify's weight norm
        weight = arrays.pop('layers.8.conv.0.weight')
        arrays['layers.8.conv.0.weight_g'] = np.linalg.norm(weight.reshape(len(weight), -1), axis=1)[:, None, None, None]
        arrays['layers.8.conv.0.weight_v'] = 3 * weight
    return arrays
