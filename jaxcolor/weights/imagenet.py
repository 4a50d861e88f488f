"""Published ImageNet weights -> extractors: Keras', torchvision's and timm's files; and the extractor of a run directory."""

import os
import re
from pathlib import Path

import flax.traverse_util
import numpy as np
import pooch
import safetensors.numpy

from jaxcolor import files
from jaxcolor.errors import UserError
from jaxcolor.models import extractors
from jaxcolor.models.extractors import NETWORKS, Extractor, inception_resnet_v2, vgg16
from jaxcolor.runtime import cache
from jaxcolor.weights.fit import fit, fit_torch
from jaxcolor.weights.weight_files import read_weights

# The value of `format` in the metadata of files that `save_extractor` writes.
_FORMAT = 'jaxcolor extractor'


def find_extractor(name: str, path: str = '') -> Extractor:
    """An extractor by what a config says of its weights.

    Args:
        name: 'vgg16' or 'inception_resnet_v2'.
        path: of a weights file; 'random' for `random_extractor`; '' for the one file NAME* in the cache folder
            ($JAXCOLOR_CACHE, else the user's cache folder), to which Keras' file is downloaded, checked against its
            MD5, if there is none.

    Raises:
        UserError: the file does not fit; there is none and it cannot be downloaded.
    """
    if path == 'random':
        return extractors.random_extractor(name)
    if path:
        return import_extractor(name, path)
    network = NETWORKS[name]
    place = cache.folder()
    found = sorted(place.glob(f'{name}*'))
    if len(found) > 1:
        raise UserError(
            f'There are several weights files of {name} in {place} ({found[0].name}, {found[1].name}); '
            'leave one there, or give the path of the one to use.'
        )
    if not found:
        file = network.url.rpartition('/')[2]
        try:
            found = [pooch.retrieve(network.url, f'md5:{network.md5}', file, place, progressbar=True)]
        except (OSError, ValueError) as error:  # Also what requests raises; ValueError is a wrong checksum.
            reason = str(error).splitlines()[0]
            raise UserError(
                f'The ImageNet weights of {name} could not be downloaded ({reason}): put {network.url} '
                f'into {place}, or any other published file under a name that begins with {name!r}, or give its path.'
            ) from error
    return import_extractor(name, found[0])


def import_extractor(name: str, path: str | os.PathLike) -> Extractor:
    """Reads a network's published ImageNet weights, or a file of `save_extractor`.

    Args:
        name: 'vgg16' or 'inception_resnet_v2'.
        path: a Keras `.h5`, `.weights.h5` or `.keras`, torchvision's VGG16 or timm's inception_resnet_v2 as `.pth` or
            safetensors, all with their 1000-class heads. The file's kind decides the flavour.

    Raises:
        UserError: the file cannot be read, or does not fit; the sentence names the first layer that differs.
    """
    file = read_weights(path)
    shapes = {path: leaf.shape for path, leaf in extractors.variable_shapes(name).items()}
    what = f'Weights file {path} does not fit {name}'
    flavour, source = file.metadata.get('flavour'), Path(path).name
    arrays = file.arrays
    if file.metadata.get('format') == _FORMAT:
        if file.metadata['name'] != name:
            raise UserError(f'{what}: it holds {file.metadata["name"]}.')
        source = file.metadata['source']
        variables = fit({path: '/'.join(path) for path in shapes}, arrays, shapes, what)
    elif file.kind.startswith('keras'):
        flavour = 'keras'
        make_plan = _vgg16_keras if name == 'vgg16' else _inception_keras
        plan = make_plan(arrays, file.kind == 'keras_counted')
        variables = fit(plan, arrays, shapes, what)
        # Keras' batch norm has no scale here.
        variables |= {path: np.ones(shapes[path], np.float32) for path in shapes if path not in plan}
    else:
        flavour = 'torchvision' if name == 'vgg16' else 'timm'
        plan = _vgg16_torchvision() if name == 'vgg16' else _inception_timm()
        # torchvision flattens 512 maps of 7x7, channels first.
        variables = fit_torch(plan, arrays, shapes, what, {('params', 'fc1', 'kernel'): (512, 7, 7)})
    return Extractor(name, flavour, source, flax.traverse_util.unflatten_dict(variables))


def save_extractor(extractor: Extractor, path: str | os.PathLike) -> None:
    """Writes an extractor to a safetensors file, atomically; `import_extractor` reads it back with its flavour."""
    arrays = flax.traverse_util.flatten_dict(extractor.variables, sep='/')
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    about = {'format': _FORMAT, 'name': extractor.name, 'flavour': extractor.flavour, 'source': extractor.source}
    with files.atomic(path) as temporary:
        safetensors.numpy.save_file(arrays, temporary, about)


# -- Plans: {path of a Flax variable: name of an array in the file} ----------------------------------------------------


def _numbered(layer):
    """Keras' names for the layers of one class: 'conv2d', 'conv2d_1', ..."""
    number = 0
    while True:
        yield f'{layer}_{number}' if number else layer
        number += 1


def _numbered_from_first(layer, arrays):
    """The same from the first number in the file on; Keras counts on through all networks that a process builds."""
    found = [re.fullmatch(rf'{layer}(?:_(\d+))?/0', name) for name in arrays]
    first = min((int(match[1] or 0) for match in found if match), default=0)
    names = _numbered(layer)
    for _ in range(first):
        next(names)
    return names


def _vgg16_keras(arrays, counted):
    convs, dense = _numbered('conv2d'), _numbered('dense')
    plan = {}
    for layer in vgg16.layers():
        name = next(convs if 'conv' in layer else dense) if counted else layer
        plan |= {('params', layer, 'kernel'): f'{name}/0', ('params', layer, 'bias'): f'{name}/1'}
    return plan


def _vgg16_torchvision():
    # torchvision numbers convolutions, ReLUs and poolings alike.
    numbers, number = [], 0
    for _, count in vgg16.BLOCKS:
        numbers += [f'features.{number + 2 * i}' for i in range(count)]
        number += 2 * count + 1
    numbers += ['classifier.0', 'classifier.3', 'classifier.6']
    plan = {}
    for layer, name in zip(vgg16.layers(), numbers, strict=True):
        plan |= {('params', layer, 'kernel'): f'{name}.weight', ('params', layer, 'bias'): f'{name}.bias'}
    return plan


def _inception_convs(by_depth=False):
    """Paths of Inception-ResNet-v2's convolutions in the order of its definition.

    by_depth: of a block's branches, those furthest from its end first, as Keras sorts a functional model's layers.
    """
    paths = [(name,) for name, layer in inception_resnet_v2.STEM.items() if layer != 'max']
    for name, kind in inception_resnet_v2.BODY:
        convs = [
            (i - len(branch), b, i)
            for b, branch in enumerate(inception_resnet_v2.BRANCHES[kind])
            for i, layer in enumerate(branch)
            if layer not in ('avg', 'max')
        ]
        paths += [(name, f'branch{b}_{i}') for _, b, i in (sorted(convs) if by_depth else convs)]
        if kind in inception_resnet_v2.BLOCKS:
            paths.append((name, 'conv'))
    return [*paths, ('conv2d_7b',)]


def _inception_keras(arrays, counted):
    numbered = _numbered if counted else lambda layer: _numbered_from_first(layer, arrays)
    convs, norms = numbered('conv2d'), numbered('batch_normalization')
    plan = {}
    for path in _inception_convs(by_depth=counted):
        if path[-1] == 'conv':
            name = next(convs) if counted else f'{path[0]}_conv'
            plan |= {('params', *path, 'kernel'): f'{name}/0', ('params', *path, 'bias'): f'{name}/1'}
            continue
        own_name = path == ('conv2d_7b',) and not counted
        conv, norm = ('conv_7b', 'conv_7b_bn') if own_name else (next(convs), next(norms))
        plan[('params', *path, 'conv', 'kernel')] = f'{conv}/0'
        plan[('params', *path, 'bn', 'bias')] = f'{norm}/0'
        plan[('batch_stats', *path, 'bn', 'mean')] = f'{norm}/1'
        plan[('batch_stats', *path, 'bn', 'var')] = f'{norm}/2'
    name = 'dense' if counted else 'predictions'
    return plan | {('params', 'predictions', 'kernel'): f'{name}/0', ('params', 'predictions', 'bias'): f'{name}/1'}


def _inception_timm():
    repeats = {'block35': 'repeat', 'block17': 'repeat_1', 'block8': 'repeat_2'}
    kinds = dict(inception_resnet_v2.BODY)
    plan = {}
    for path in _inception_convs():
        block = path[0]
        kind, _, number = block.partition('_')
        name = f'{repeats[kind]}.{int(number) - 1}' if kind in repeats else block
        if block == inception_resnet_v2.BODY[-1][0]:
            name = 'block8'
        if path[-1] == 'conv':
            plan[('params', *path, 'kernel')] = f'{name}.conv2d.weight'
            plan[('params', *path, 'bias')] = f'{name}.conv2d.bias'
            continue
        if len(path) == 2:
            branch, i = path[1].removeprefix('branch').split('_')
            alone = len(inception_resnet_v2.BRANCHES[kinds[block]][int(branch)]) == 1
            name += f'.branch{branch}' if alone else f'.branch{branch}.{i}'
        plan[('params', *path, 'conv', 'kernel')] = f'{name}.conv.weight'
        plan[('params', *path, 'bn', 'scale')] = f'{name}.bn.weight'
        plan[('params', *path, 'bn', 'bias')] = f'{name}.bn.bias'
        plan[('batch_stats', *path, 'bn', 'mean')] = f'{name}.bn.running_mean'
        plan[('batch_stats', *path, 'bn', 'var')] = f'{name}.bn.running_var'
    head = ('params', 'predictions')
    return plan | {(*head, 'kernel'): 'classif.weight', (*head, 'bias'): 'classif.bias'}
