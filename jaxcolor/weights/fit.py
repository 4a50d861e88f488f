"""Arrays of a weights file -> Flax variables, by a plan: {path of a variable: name of an array}, in network order.

A file is refused at the first array that is missing, has another shape, or is left over.
"""

import math
from collections.abc import Mapping

import numpy as np

from jaxcolor.errors import UserError

Path = tuple[str, ...]  # ('params', 'low_0', 'conv', 'kernel')


def fit(
    plan: Mapping[Path, str], arrays: Mapping[str, np.ndarray], shapes: Mapping[Path, tuple[int, ...]], what: str
) -> dict[Path, np.ndarray]:
    """Checks the file's arrays against a plan.

    Args:
        plan: {path: name in the file}, in network order.
        arrays: {name: array} of the file, all of which the plan must use.
        shapes: {path: shape that the array should have}.
        what: beginning of the sentence that refuses the file.

    Returns:
        {path: float32 array}.
    """
    fitted = {}
    for path, name in plan.items():
        layer = f'{name} ({"/".join(path[1:])})'
        if name not in arrays or arrays[name].shape != shapes[path]:
            found = f'of shape {arrays[name].shape}' if name in arrays else 'missing'
            raise UserError(f'{what}: the first layer that differs is {layer}: {found}, not of shape {shapes[path]}.')
        try:
            fitted[path] = np.asarray(arrays[name], np.float32)
        except (TypeError, ValueError) as error:
            raise UserError(f'{what}: {layer} does not hold numbers.') from error
        if not np.isfinite(fitted[path]).all():
            raise UserError(f'{what}: {layer} holds values that are not finite.')
    left_over = arrays.keys() - set(plan.values())
    if left_over:
        first = next(name for name in arrays if name in left_over)
        raise UserError(f'{what}: it has {first} of shape {arrays[first].shape}, which is no layer of this network.')
    return fitted


def fit_torch(
    plan: Mapping[Path, str],
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[Path, tuple[int, ...]],
    what: str,
    flattened: Mapping[Path, tuple[int, int, int]],
) -> dict[Path, np.ndarray]:
    """`fit` for a state dict, whose convolutions are OIHW and whose dense layers are (out, in).

    Prefixes that wrappers put before every name ('module.', 'model.') are taken off.

    flattened: {path of a dense kernel: (C, H, W) of the maps that it sees flattened}; Flax flattens them as H, W, C.
    """
    first = next(iter(plan.values()))
    prefix = next((name.removesuffix(first) for name in arrays if f'.{name}'.endswith(f'.{first}')), '')
    arrays = {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix) and not name.endswith('num_batches_tracked')
    }
    torch_shapes = {
        path: shape if len(shape) == 1 else shape[::-1] if len(shape) == 2 else (shape[3], shape[2], *shape[:2])
        for path, shape in shapes.items()
    }
    fitted = fit(plan, arrays, torch_shapes, what)
    for path, array in fitted.items():
        if path in flattened:
            C, H, W = flattened[path]
            array = array.reshape(-1, C, H, W).transpose(0, 2, 3, 1).reshape(-1, math.prod(flattened[path]))
        fitted[path] = np.ascontiguousarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T)
    return fitted
