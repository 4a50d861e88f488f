"""Arrays of a weights file -> Flax variables, by a name map: {path of the variable: name of the array}, in network order.

A file is refused at the first array that is missing, has another shape, or is not used.
"""

import math
from collections.abc import Collection, Mapping

import numpy as np

from jaxcolor.errors import UserError

VariablePath = tuple[str, ...]  # ('params', 'low_0', 'conv', 'kernel')


def to_flax(
    names: Mapping[VariablePath, str],
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[VariablePath, tuple[int, ...]],
    error: str,
) -> dict[VariablePath, np.ndarray]:
    """Converts the arrays of a file that has Flax's layouts (Keras' are the same).

    Args:
        names: {path: name in the file}, in network order.
        arrays: {name: array} of the file, all of which `names` must use.
        shapes: {path: shape of the variable}.
        error: beginning of the error sentence.

    Returns:
        {path: float32 array}.

    Raises:
        UserError: the file does not fit, or an array has values that are not finite numbers.
    """
    variables = {}
    for path, name in names.items():
        layer = f'{name} ({"/".join(path[1:])})'
        if name not in arrays or arrays[name].shape != shapes[path]:
            difference = f'of shape {arrays[name].shape}' if name in arrays else 'missing'
            raise UserError(f'{error}: the first layer that differs is {layer}: {difference}, not of shape {shapes[path]}.')
        try:
            variables[path] = np.asarray(arrays[name], np.float32)
        except (TypeError, ValueError) as reason:
            raise UserError(f'{error}: {layer} does not hold numbers.') from reason
        if not np.isfinite(variables[path]).all():
            raise UserError(f'{error}: {layer} holds values that are not finite.')
    used = set(names.values())
    if unused := next((name for name in arrays if name not in used), None):
        raise UserError(f'{error}: it has {unused} of shape {arrays[unused].shape}, which is no layer of this network.')
    return variables


def torch_to_flax(
    names: Mapping[VariablePath, str],
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[VariablePath, tuple[int, ...]],
    error: str,
    flattened: Mapping[VariablePath, tuple[int, int, int]],
    transposed: Collection[VariablePath] = (),
) -> dict[VariablePath, np.ndarray]:
    """`to_flax` for a state dict, whose convolutions are OIHW and whose dense layers are (out, in).

    Prefixes of all names ('module.', 'model.'), which wrappers add, are removed.

    Args:
        names, arrays, shapes, error: as for `to_flax`.
        flattened: {path of a dense kernel: (C, H, W) of its input before flattening}; Flax flattens it as (H, W, C).
        transposed: paths of kernels of transposed convolutions, which PyTorch stores as IOHW and applies mirrored.

    Returns:
        {path: float32 array}, HWIO and (in, out).

    Raises:
        UserError: as `to_flax`.
    """
    first = next(iter(names.values()))
    prefixes = ['', *(name.removesuffix(first) for name in arrays if f'.{name}'.endswith(f'.{first}'))]
    prefix = max(prefixes, key=lambda prefix: sum(f'{prefix}{name}' in arrays for name in names.values()))
    arrays = {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix) and not name.endswith('num_batches_tracked')
    }
    torch_shapes = {path: _torch_shape(shape, path in transposed) for path, shape in shapes.items()}
    variables = to_flax(names, arrays, torch_shapes, error)
    for path, array in variables.items():
        if path in flattened:
            C, H, W = flattened[path]
            array = array.reshape(-1, C, H, W).transpose(0, 2, 3, 1).reshape(-1, math.prod(flattened[path]))
        if path in transposed:
            array = array.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]
        variables[path] = np.ascontiguousarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T)
    return variables


def _torch_shape(shape, is_transposed):
    if len(shape) < 4:
        return shape[::-1]
    channels = shape[2:] if is_transposed else shape[:1:-1]
    return (*channels, *shape[:2])
