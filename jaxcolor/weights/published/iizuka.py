"""Iizuka et al.'s published networks (Let there be Color!, SIGGRAPH 2016), from their Torch7 files.

Nobody has described what a file holds layer by layer. So its modules are listed in forward order and held against the
paper's table 1: which have batch norm, whether there is a classifier, how wide layers are, the file itself says.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxcolor import config as fields
from jaxcolor.errors import UserError
from jaxcolor.models.iizuka import Iizuka
from jaxcolor.models.layers import EPSILON, scaled
from jaxcolor.weights.convert import VariablePath
from jaxcolor.weights.published.converted import Converted, from_state_dict, variable_shapes
from jaxcolor.weights.torch7 import Table

_ERROR = "it does not fit Iizuka's network"
_MAX_DEPTH = 100  # of modules in each other
_MAX_MODULES = 10_000  # modules may hold each other more than once, so that a small file has any number
# Of the network's convolutions by part: filters of input and output at the paper's width, stride. All are 3x3.
_PARTS = {
    'low': [(1, 64, 2), (64, 128, 1), (128, 128, 2), (128, 256, 1), (256, 256, 2), (256, 512, 1)],
    'mid': [(512, 512, 1), (512, 256, 1)],
    'global_conv': [(512, 512, 2), (512, 512, 1), (512, 512, 2), (512, 512, 1)],
    'color': [(256, 128, 1), (128, 64, 1), (64, 64, 1), (64, 32, 1)],
}
_CONVOLUTIONS = {'SpatialConvolution', 'SpatialConvolutionMM'}
_NORMS = {'BatchNormalization', 'SpatialBatchNormalization'}
_ACTIVATIONS = {'ReLU', 'Sigmoid', 'SoftMax', 'LogSoftMax'}
# Modules that compute nothing.
_PASSED_OVER = {'Identity', 'View', 'Reshape', 'Replicate', 'JoinTable', 'Dropout', 'Copy', 'Contiguous', 'SplitTable'}


@dataclasses.dataclass
class _Layer:
    """A convolution or dense layer and what follows it."""

    module: Table
    upsampled: bool  # the pixels of its input are repeated
    norm: Table | None = None
    activation: str = ''

    @property
    def is_dense(self) -> bool:
        return _kind(self.module) == 'Linear'

    @property
    def weight(self) -> np.ndarray:
        """(out, in) or (out, in, kernel, kernel)."""
        weight = self.module.get('weight')
        if not isinstance(weight, np.ndarray) or weight.ndim not in (2, 4) or not weight.size:
            raise UserError(f'{_ERROR}: a module {self.module.class_name} has no weights.')
        if self.is_dense or weight.ndim == 4:
            return weight
        size = self._number('kH'), self._number('kW')
        if not all(isinstance(n, int) and n > 0 for n in size) or weight.shape[1] % math.prod(size):
            raise UserError(
                f'{_ERROR}: a {self.module.class_name} has weights of shape {weight.shape} for a kernel of {size}.'
            )
        return weight.reshape(weight.shape[0], -1, *size)

    @property
    def text(self) -> str:
        """What it is, for sentences."""
        shape = self.weight.shape
        if self.is_dense:
            return f'a dense layer {shape[1]} -> {shape[0]}'
        strides, padding = ({self._number(f'{name}W'), self._number(f'{name}H')} for name in ('d', 'pad'))
        more = f'stride {sorted(strides)}, padding {sorted(padding)}' + ', upsampled' * self.upsampled
        return f'a {shape[2]}x{shape[3]} convolution {shape[1]} -> {shape[0]}, {more}'

    def is_convolution(self, inputs: int, outputs: int, strides: int, kernel: int = 3, upsampled: bool = False) -> bool:
        """Whether it is one of these sizes, with Torch's zeros around the picture."""
        return (
            not self.is_dense
            and self.weight.shape == (outputs, inputs, kernel, kernel)
            and {self._number('dW'), self._number('dH')} == {strides}
            and {self._number('padW'), self._number('padH')} == {kernel // 2}
            and self.upsampled == upsampled
        )

    def _number(self, field):
        return _number(self.module, field, 1 if field in ('dW', 'dH') else 0)


def convert(root: Any) -> Converted:
    """Converts what a file holds, as `torch7.read_torch7` gives it: a table of `mean` and `model`.

    Raises:
        UserError: it is another table, or its network is another; the sentence says what was found.
    """
    model = root.get('model') if isinstance(root, Table) else None
    mean = root.get('mean') if isinstance(root, Table) else None
    if not isinstance(model, Table) or not isinstance(mean, (int, float)) or not math.isfinite(mean):
        raise UserError("it is no file of Iizuka's: it holds no `model` and `mean`.")
    layers, is_repeated, copies_differ = _layers(model)
    dense = [layer for layer in layers if layer.is_dense]
    convolutions = [layer for layer in layers if not layer.is_dense]
    if len(convolutions) != 18 or len(dense) not in (3, 5):
        found = '; '.join(layer.text for layer in layers)
        raise UserError(
            f'{_ERROR}: it has {len(convolutions)} convolutions and {len(dense)} dense layers, not 18 and 3, or 5 with a '
            f'classifier ({found}).'
        )
    width = convolutions[0].weight.shape[0] / 64
    of_dense = _dense_by_path(dense)
    vector = of_dense['global_dense_2'].weight.shape[0]
    by_path = _by_path(convolutions, width, vector) | of_dense
    _check_activations(by_path)
    section = _section(by_path, width, float(mean), is_repeated)
    notes = _notes(by_path, section)
    if copies_differ:
        notes.append('Layers come twice, with other biases or batch-norm statistics the second time: the first are taken.')

    arrays: dict[str, np.ndarray] = {}
    for path, layer in by_path.items():
        arrays |= _arrays(path, layer, _has_norm(path, section))
    if _is_vector_first(model):
        kernel = arrays['fusion/kernel']
        arrays['fusion/kernel'] = np.concatenate([kernel[:, vector:], kernel[:, :vector]], axis=1)
        notes.append('Its fusion has the global vector first.')
    network = Iizuka(**{name: section[name] for name in section if name not in ('name', 'dtype')})
    shapes = variable_shapes(network, (1, section.global_size, section.global_size, 1))
    side = section.global_size // 32
    first: VariablePath = ('params', 'global_dense_0', 'dense', 'kernel')
    names = {path: '/'.join(path[1:]) for path in shapes}
    params, model_state = from_state_dict(names, arrays, shapes, _ERROR, flattened={first: (scaled(512, width), side, side)})
    task = fields.regression()
    task.alpha = task.alpha if section.classes else 0.0
    return Converted(section.to_dict(), task.to_dict(), params, model_state, notes)


# -- The file's modules -----------------------------------------------------------------------------------------------


def _kind(module):
    """'nn.SpatialConvolutionMM', 'cudnn.SpatialConvolution' -> the name without its package."""
    return module.class_name.rpartition('.')[2]


def _number(module, field, default):
    """A number among a module's fields; 0 for anything else."""
    value = module.get(field, default)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0


def _items(table):
    """The values at 1, 2, ... of a table."""
    number = 1
    while isinstance(table, Table) and number in table:
        yield table[number]
        number += 1


def _nodes(model) -> Iterator[Table]:
    """What the nodes of a graph hold, in forward order."""
    for node in _items(model.get('forwardnodes')):
        data = node.get('data') if isinstance(node, Table) else None
        if isinstance(data, Table):
            yield data


def _leaves(module) -> Iterator[Table]:
    """The modules that compute, in forward order."""
    for count, leaf in enumerate(_walk(module, 0)):
        if count >= _MAX_MODULES:
            raise UserError(f'{_ERROR}: it has more than {_MAX_MODULES:,} modules.')
        yield leaf


def _walk(module, depth):
    if depth > _MAX_DEPTH:
        raise UserError(f'{_ERROR}: its modules lie too deep in each other.')
    inner = list(_items(module.get('modules')))
    if _kind(module) == 'gModule' and 'forwardnodes' in module:
        inner = [data.get('module') for data in _nodes(module)]
    inner = [each for each in inner if isinstance(each, Table)]
    if not inner:
        yield module
    for each in inner:
        yield from _walk(each, depth + 1)


def _layers(model) -> tuple[list[_Layer], bool, bool]:
    """The layers in forward order, without those that come again.

    Also whether the output's pixels are repeated, and whether a layer that came again had other arrays but for its weight.
    """
    layers: list[_Layer] = []
    is_upsampled = False
    for module in _leaves(model):
        kind = _kind(module)
        if kind in _CONVOLUTIONS or kind == 'Linear':
            layers.append(_Layer(module, is_upsampled))
            is_upsampled = False
        elif kind == 'SpatialUpSamplingNearest':
            if _number(module, 'scale_factor', 2) != 2 or is_upsampled:
                raise UserError(f'{_ERROR}: it enlarges a map other than twofold.')
            is_upsampled = True
        elif kind in _NORMS | _ACTIVATIONS:
            last = layers[-1] if layers else None
            if last is None or last.activation or (kind in _NORMS and last.norm):
                raise UserError(f'{_ERROR}: a {module.class_name} follows no layer that it could belong to.')
            if kind in _NORMS:
                last.norm = module
            else:
                last.activation = kind
        elif kind not in _PASSED_OVER:
            raise UserError(f'{_ERROR}: it has a module {module.class_name or "without a class"}, which is not known here.')
    # The low-level network serves two branches: as one object, or as copies of the same values.
    unique: list[_Layer] = []
    copies_differ = False
    for layer in layers:
        if same := [other for other in unique if _is_same(layer.module, other.module)]:
            copies_differ |= not _has_same_arrays(layer, same[0])
        else:
            unique.append(layer)
    return unique, is_upsampled, copies_differ


def _is_same(module, other):
    if module is other:
        return True
    one, two = module.get('weight'), other.get('weight')
    return isinstance(one, np.ndarray) and isinstance(two, np.ndarray) and np.array_equal(one, two)


def _has_same_arrays(layer, other):
    pairs = [(layer.module, other.module, 'bias')]
    if layer.norm is not None and other.norm is not None:
        fields = ('weight', 'bias', 'running_mean', 'running_var', 'running_std')
        pairs += [(layer.norm, other.norm, field) for field in fields]
    return all(np.array_equal(one.get(field), two.get(field)) for one, two, field in pairs)


def _is_vector_first(model):
    """Whether the fusion joins the global vector ahead of the local features, where the graph says it."""
    for data in _nodes(model):
        module, sources = data.get('module'), data.get('mapindex')
        if isinstance(module, Table) and _kind(module) == 'JoinTable' and isinstance(sources, Table):
            first = sources.get(1)
            first = first.get('module') if isinstance(first, Table) else None
            return isinstance(first, Table) and any(_kind(leaf) in ('Linear', 'Replicate') for leaf in _leaves(first))
    return False


# -- Which layer is which ---------------------------------------------------------------------------------------------


def _expected(branches, width, vector):
    """[(path in `LTBC`, arguments of `is_convolution`)] in forward order; vector: values of the global one."""

    def of_part(part):
        for i, (inputs, outputs, strides) in enumerate(_PARTS[part]):
            path, inputs = f'{part}_{i}', 1 if inputs == 1 else scaled(inputs, width)
            yield path, (inputs, scaled(outputs, width), strides, 3, path in ('color_1', 'color_3'))

    fusion = ('fusion', (scaled(256, width) + vector, scaled(256, width), 1, 1, False))
    parts = [each for part in ('low', *branches) for each in of_part(part)]
    return [*parts, fusion, *of_part('color'), ('output', (scaled(32, width), 2, 1, 3, False))]


def _by_path(convolutions, width, vector) -> dict[str, _Layer]:
    """{path in `LTBC`: layer}; the branches may come in either order."""
    candidates: list[tuple[int, list]] = []
    for branches in (('mid', 'global_conv'), ('global_conv', 'mid')):
        expected = _expected(branches, width, vector)
        fits = [layer.is_convolution(*sizes) for layer, (_, sizes) in zip(convolutions, expected, strict=True)]
        candidates.append((fits.index(False) if False in fits else len(fits), expected))
    agreeing, expected = max(candidates, key=lambda each: each[0])
    if agreeing < len(expected):
        path, (inputs, outputs, strides, kernel, upsampled) = expected[agreeing]
        wanted = f'{kernel}x{kernel}, {inputs} -> {outputs}, stride {strides}{", upsampled" * upsampled}'
        raise UserError(
            f'{_ERROR}: the first convolution that differs is {convolutions[agreeing].text}, in place of {path} ({wanted}).'
        )
    return {path: layer for (path, _), layer in zip(expected, convolutions, strict=True)}


def _dense_by_path(dense) -> dict[str, _Layer]:
    """{path in `LTBC`: layer}: three dense layers, each on the one before; a classifier of two on the second."""
    orders: list[tuple[int, ...]] = [(0, 1, 2)] if len(dense) == 3 else [(0, 1, 2, 3, 4), (0, 1, 4, 2, 3)]
    names = ('global_dense_0', 'global_dense_1', 'global_dense_2', 'classifier_hidden', 'classifier')
    for order in orders:
        found = {name: dense[i] for name, i in zip(names, order, strict=False)}
        out = {name: layer.weight.shape[0] for name, layer in found.items()}
        on = {'global_dense_1': 'global_dense_0', 'global_dense_2': 'global_dense_1'}
        on |= {'classifier_hidden': 'global_dense_1', 'classifier': 'classifier_hidden'} if len(dense) == 5 else {}
        if all(found[name].weight.shape[1] == out[below] for name, below in on.items()):
            return found
    raise UserError(f'{_ERROR}: its dense layers do not follow each other ({"; ".join(layer.text for layer in dense)}).')


def _check_activations(by_path):
    for path, layer in by_path.items():
        wanted = {'output': ('Sigmoid',), 'classifier': ('', 'SoftMax', 'LogSoftMax')}.get(path, ('ReLU',))
        if layer.activation not in wanted:
            given = layer.activation or 'nothing'
            raise UserError(f'{_ERROR}: {path}, {layer.text}, is followed by {given}, not {wanted[-1]}.')


def _section(by_path, width, mean, is_repeated):
    """The config's section `model` of a network of these layers."""
    section = fields.iizuka()
    inputs = by_path['global_dense_0'].weight.shape[1] / scaled(512, width)
    side = math.isqrt(int(inputs))
    if side**2 != inputs:
        raise UserError(f'{_ERROR}: its first dense layer, {by_path["global_dense_0"].text}, sees no square map.')
    widths = [round(by_path[f'global_dense_{i}'].weight.shape[0] / width) for i in range(3)]
    section.update({'width': width, 'luma_mean': mean, 'repeat_output': is_repeated, 'global_size': 32 * side})
    section.update({'dense_widths': tuple(widths), 'classes': 0})
    if 'classifier' in by_path:
        hidden = by_path['classifier_hidden'].weight.shape[0]
        section.update({'classes': by_path['classifier'].weight.shape[0], 'classifier_width': round(hidden / width)})
    normalized = {path for path, layer in by_path.items() if layer.norm is not None}
    section.batch_norm = bool(normalized)
    section.batch_norm_dense = any('dense' in path or 'classifier' in path for path in normalized)
    section.batch_norm_fusion, section.batch_norm_output = 'fusion' in normalized, 'output' in normalized
    return section


def _has_norm(path, section):
    """Whether `LTBC` has a batch norm there."""
    if not section.batch_norm or path == 'classifier':
        return False
    if path in ('fusion', 'output'):
        return section[f'batch_norm_{path}']
    return section.batch_norm_dense if 'dense' in path or 'classifier' in path else True


def _notes(by_path, section):
    normalized = [path for path, layer in by_path.items() if layer.norm is not None]
    missing = [path for path, layer in by_path.items() if layer.norm is None and _has_norm(path, section)]
    wide = section.width == 1
    notes = [
        f'Found: 18 convolutions{"" if wide else f" of {section.width} times the width"}, dense layers of '
        f'{", ".join(map(str, section.dense_widths))}, a global branch of {section.global_size} pixels, '
        f'{f"a classifier of {section.classes} classes" if section.classes else "no classifier"}, '
        f'{f"batch norm after {len(normalized)} layers" if normalized else "no batch norm"}; '
        f'the mean of its luma is {section.luma_mean:.4f}.'
    ]
    if missing:
        notes.append(f'Batch norms that change nothing were added after {", ".join(missing)}.')
    return notes


# -- Its arrays -------------------------------------------------------------------------------------------------------


def _arrays(path, layer, has_norm) -> dict[str, np.ndarray]:
    """{path of a variable of `LTBC`: array in Torch's layout} of a layer."""
    inner = path if path == 'fusion' else f'{path}/dense' if layer.is_dense else f'{path}/conv'
    features = layer.weight.shape[0]
    arrays = {f'{inner}/kernel': layer.weight, f'{inner}/bias': _vector(layer.module, 'bias', features, 0.0)}
    if not has_norm:
        if layer.norm is not None:
            raise UserError(f'{_ERROR}: {path} is followed by batch norm, for which its place has none.')
        return arrays
    norm = layer.norm if layer.norm is not None else Table()
    deviation = _vector(norm, 'running_std', features, 1.0)  # of 2015: 1 / sqrt(var + eps)
    with np.errstate(divide='ignore', over='ignore'):  # to infinity, which is refused as such
        var = deviation**-2.0 - EPSILON
    if 'running_var' in norm:
        var = _vector(norm, 'running_var', features, 1.0) + _number(norm, 'eps', EPSILON) - EPSILON
    of_norm = {'scale': _vector(norm, 'weight', features, 1.0), 'bias': _vector(norm, 'bias', features, 0.0)}
    of_norm |= {'mean': _vector(norm, 'running_mean', features, 0.0), 'var': var}
    return arrays | {f'{path}/norm/{name}': array for name, array in of_norm.items()}


def _vector(module, field, features, default):
    value = module.get(field)
    return value if isinstance(value, np.ndarray) else np.full(features, default, np.float32)
