"""Networks of others, from the files that they published: which there are, and their weights as jaxcolor's."""

import os
from collections.abc import Callable, Mapping

import numpy as np

from jaxcolor.errors import UserError
from jaxcolor.weights.published import ddcolor, deoldify, iizuka, zhang
from jaxcolor.weights.published.converted import Converted
from jaxcolor.weights.published.table import PUBLISHED, Published
from jaxcolor.weights.weight_files import brief, read_weights

__all__ = ['CONVERTERS', 'PUBLISHED', 'Converted', 'Published', 'convert', 'recognize']

# By kind of file, as `recognize` tells it.
CONVERTERS: dict[str, Callable[..., Converted]] = {
    'eccv16': zhang.convert,
    'siggraph17': zhang.convert,
    'ddcolor': ddcolor.convert,
    'deoldify': deoldify.convert,
}


def recognize(arrays: Mapping[str, np.ndarray]) -> str:
    """The kind of a state dict, by its keys and shapes: 'eccv16', 'siggraph17', 'ddcolor' or 'deoldify'.

    Args:
        arrays: {name: array} of the file. Wrappers' prefixes do not matter.

    Raises:
        UserError: it is none of them.
    """
    names = {f'.{name}': array for name, array in arrays.items()}
    zhangs = [array for name, array in names.items() if name.endswith('.model1.0.weight')]
    if zhangs:
        return 'siggraph17' if zhangs[0].shape[1:2] == (4,) else 'eccv16'
    if any('.decoder.color_decoder.' in name for name in names):
        return 'ddcolor'
    if any(name.endswith('.layers.11.0.weight_orig') for name in names):
        return 'deoldify'
    name, array = next(iter(arrays.items()), ('none', np.zeros(0)))
    raise UserError(
        f'it is of no published network that is known here ({", ".join(CONVERTERS)}, iizuka): '
        f'it holds {len(arrays)} arrays, the first of which is {name} of shape {array.shape}.'
    )


def convert(path: str | os.PathLike) -> Converted:
    """Reads a published file, told by its content, as a network of jaxcolor's.

    Args:
        path: of the file as it was published, or of a safetensors file of the same names.

    Raises:
        UserError: the file cannot be read; it is of no network that is known here, or does not fit it.
    """
    file = read_weights(path)
    try:
        return iizuka.convert(file.root) if file.kind == 'torch7' else CONVERTERS[recognize(file.arrays)](file.arrays)
    except UserError as error:
        raise UserError(f'Weights file {path}: {brief(error)}') from None
