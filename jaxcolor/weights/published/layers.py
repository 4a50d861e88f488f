"""Layers of published PyTorch files: norms of weights are folded, arrays reordered, names written down."""

import math
from collections.abc import Iterable, Mapping

import numpy as np

from jaxcolor.errors import UserError
from jaxcolor.weights.convert import VariablePath

Names = dict[VariablePath, str]  # {path of a variable: name in the file}


def fold_norms(arrays: Mapping[str, np.ndarray], error: str) -> dict[str, np.ndarray]:
    """Replaces weights under spectral or weight norm by the weights that they stand for in inference.

    Spectral norm (Miyato et al., ICLR 2018): `weight_orig` / (u . (M v)), with the stored u and v, M = (out, rest).
    Weight norm (Salimans, Kingma, NIPS 2016): `weight_v` * `weight_g` / |`weight_v`|, over all axes but the first.

    Args:
        arrays: {name: array} of a state dict.
        error: beginning of the error sentence.

    Returns:
        The same with `NAME.weight` in place of those; float64 there.

    Raises:
        UserError: a part of a norm is missing, or has another shape than the weight asks for.
    """
    folded = dict(arrays)

    def take(name, shape):
        if name not in folded:
            raise UserError(f'{error}: {name} is missing.')
        if folded[name].shape != shape:
            raise UserError(f'{error}: {name} is of shape {folded[name].shape}, not of shape {shape}.')
        return folded.pop(name).astype(np.float64)

    with np.errstate(all='ignore'):  # values that are not finite are refused later, by name
        for name, weight in arrays.items():
            shape, layer = weight.shape, name.rpartition('.')[0]
            if name == f'{layer}.weight_orig' and weight.ndim > 1 and weight.size:
                matrix = take(name, shape).reshape(shape[0], -1)
                sigma = take(f'{layer}.weight_u', shape[:1]) @ (matrix @ take(f'{layer}.weight_v', matrix.shape[1:]))
                folded[f'{layer}.weight'] = (matrix / sigma).reshape(shape)
            elif name == f'{layer}.weight_v' and weight.ndim > 1 and weight.size:
                direction = take(name, shape)
                axes = tuple(range(1, weight.ndim))
                length = np.sqrt(np.sum(direction**2, axis=axes, keepdims=True))
                folded[f'{layer}.weight'] = direction * (take(f'{layer}.weight_g', length.shape) / length)
    return folded


def without_prefix(arrays: Mapping[str, np.ndarray], known: str) -> dict[str, np.ndarray]:
    """Removes what wrappers put before all names ('module.'), told by a name that every file has."""
    prefix = next((name.removesuffix(known) for name in arrays if f'.{name}'.endswith(f'.{known}')), '')
    return {name.removeprefix(prefix): array for name, array in arrays.items()}


def plain(arrays: Mapping[str, np.ndarray], known: str, error: str) -> dict[str, np.ndarray]:
    """A state dict `without_prefix`, as by `fold_norms`."""
    return fold_norms(without_prefix(arrays, known), error)


def order_by_pixel(arrays: dict[str, np.ndarray], prefix: str, ratio: int) -> None:
    """Reorders the outputs of the layers whose names begin with a prefix, which a pixel shuffle follows, in place.

    PyTorch shuffles channels ordered by (C, row, column), `models.unet.shuffle` by (row, column, C).
    """
    for name, array in arrays.items():
        if name.startswith(prefix) and array.ndim and array.shape[0] % ratio**2 == 0:
            by_pixel = array.reshape(-1, ratio**2, *array.shape[1:]).swapaxes(0, 1)
            arrays[name] = by_pixel.reshape(array.shape)


def drop_pixel_axes(arrays: dict[str, np.ndarray], names: Iterable[str]) -> None:
    """Makes kernels of 1x1 (and 1-D) convolutions those of dense layers, in place: (out, in, 1, 1) -> (out, in)."""
    for name in names:
        if name in arrays and math.prod(arrays[name].shape[2:]) == 1:
            arrays[name] = arrays[name].reshape(arrays[name].shape[:2])


def layer(path: str, name: str, kernel: str = 'kernel', bias: bool = True) -> Names:
    """A layer's weight and bias. path: 'decoder_0/skip' in the network; name: 'decoder.layers.0.bn' in the file."""
    place = ('params', *path.split('/'))
    return {(*place, kernel): f'{name}.weight'} | ({(*place, 'bias'): f'{name}.bias'} if bias else {})


def batch_norm(path: str, name: str) -> Names:
    """A batch norm's parameters and statistics; arguments as for `layer`."""
    place = ('batch_stats', *path.split('/'))
    statistics = {(*place, 'mean'): f'{name}.running_mean', (*place, 'var'): f'{name}.running_var'}
    return layer(path, name, 'scale') | statistics


def conv_norm(path: str, conv: str, norm: str) -> Names:
    """A `models.unet.ConvNorm`. path: in the network; conv, norm: in the file."""
    return layer(f'{path}/conv', conv, bias=False) | batch_norm(f'{path}/norm', norm)


def unet_block(path: str, name: str, mixes: Iterable[str]) -> Names:
    """A `models.unet.UNetBlock`; mixes: the names of its convolutions in the file, behind `name`."""
    names = conv_norm(f'{path}/enlarge', f'{name}.shuf.conv.0', f'{name}.shuf.conv.1')
    names |= batch_norm(f'{path}/skip', f'{name}.bn')
    for i, mix in enumerate(mixes):
        names |= conv_norm(f'{path}/mix_{i}', f'{name}.{mix}.0', f'{name}.{mix}.2')
    return names
