"""Exported models: folders of config.json and weights.safetensors, which work wherever a run directory does.

Models in the package's folder `pretrained` are called by their names.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import safetensors
import safetensors.numpy
from ml_collections import ConfigDict

from jaxcolor import files
from jaxcolor.errors import UserError
from jaxcolor.tasks.state import TrainState

WEIGHTS = 'weights.safetensors'
# The value of `format` in the metadata of weights.safetensors.
_FORMAT = 'jaxcolor model'
_REMEDY = 'install jaxcolor again, or export the model again'
_PRETRAINED = Path(__file__).parent.parent / 'pretrained'


def model_names() -> list[str]:
    """The names of the models that come with the package."""
    return sorted(path.parent.name for path in _PRETRAINED.glob('*/config.json'))


def model_folder(model: str | os.PathLike) -> Path:
    """The folder of a model, given its name or path. Names of models in the package come first."""
    return _PRETRAINED / model if str(model) in model_names() else Path(model)


def is_exported(folder: str | os.PathLike) -> bool:
    """Whether a folder is an exported model (and not a run directory)."""
    return (Path(folder) / WEIGHTS).exists() or Path(folder).parent == _PRETRAINED


def read_metadata(folder: str | os.PathLike) -> dict[str, str]:
    """The metadata of an exported model: 'name', 'parameters', 'step', 'summary', 'config' (SHA-256 of its config.json) and
    perhaps 'notice', a sentence to say at every use.

    Raises:
        UserError: the file is missing, damaged, or no exported model.
    """
    path = Path(folder) / WEIGHTS
    try:
        with safetensors.safe_open(path, 'numpy') as file:
            metadata = file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise _unreadable(path, error) from None
    if metadata.pop('format', '') != _FORMAT:
        raise UserError(f'{path} is no model exported by jaxcolor; export one with `jaxcolor export`.')
    return metadata


def read_state(folder: str | os.PathLike, shapes: Mapping[str, Any]) -> TrainState:
    """Reads the state of an exported model.

    Args:
        folder: of the model.
        shapes: of its weights, as `Task.weight_shapes` returns them.

    Returns:
        A state with its step, and float32 NumPy arrays for `params` and `model_state`.

    Raises:
        UserError: files are missing, damaged, or do not belong together.
    """
    metadata, path = read_metadata(folder), Path(folder) / WEIGHTS
    if metadata['config'] != hashlib.sha256((path.parent / 'config.json').read_bytes()).hexdigest():
        raise UserError(f'{path} was exported with another config.json than the one beside it; {_REMEDY}.')
    try:
        arrays = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise _unreadable(path, error) from None
    expected = flax.traverse_util.flatten_dict(shapes, sep='/')
    for name in sorted(expected.keys() | arrays.keys()):
        in_file, in_network = (getattr(tree.get(name), 'shape', 'missing') for tree in (arrays, expected))
        if in_file != in_network:
            raise UserError(
                f'{path} does not fit its config.json: {name} is {in_file} in the file and {in_network} in the network.'
            )
    weights = flax.traverse_util.unflatten_dict({name: array.astype(np.float32) for name, array in arrays.items()}, '/')
    step: Any = np.int32(metadata['step'])
    rng: Any = np.zeros(2, np.uint32)
    return TrainState(step, weights['params'], weights.get('model_state', {}), opt_state=(), rng=rng)


def write(
    folder: str | os.PathLike,
    config: ConfigDict,
    state: TrainState,
    summary: str = '',
    precision: str = 'float16',
    notice: str = '',
) -> None:
    """Writes an exported model, with kernels in half precision by default, and all else in float32.

    Args:
        folder: of the model, made if missing; its name is the model's name.
        config: of the model.
        state: of the network, without a moving average.
        summary: a line that `jaxcolor models` shows.
        precision: of kernels, 'float16' or 'float32'.
        notice: a sentence to say at every use, such as a license's condition.

    Raises:
        UserError: a value is too large for half precision, or the folder cannot be written.
    """
    folder = Path(folder)
    step, state = int(state.step), jax.device_get(state)
    with np.errstate(over='ignore'):  # checked below
        arrays = {
            name: np.ascontiguousarray(array.astype(precision if array.ndim > 1 else np.float32))
            for name, array in flax.traverse_util.flatten_dict(state.weights(), sep='/').items()
        }
    if overflowing := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise UserError(f'{overflowing[0]} does not fit half precision; the model cannot be exported.')
    content = (json.dumps(config.to_dict(), indent=1) + '\n').encode()
    metadata = {
        'format': _FORMAT,
        'name': folder.name,
        'step': str(step),
        'parameters': str(sum(array.size for name, array in arrays.items() if name.startswith('params/'))),
        'summary': summary,
        'config': hashlib.sha256(content).hexdigest(),
    }
    if notice:
        metadata['notice'] = notice
    weights = safetensors.numpy.save(arrays, metadata)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with files.atomic(folder / WEIGHTS) as new_weights, files.atomic(folder / 'config.json') as new_config:
            new_weights.write_bytes(weights)
            new_config.write_bytes(content)
    except OSError as error:
        raise UserError(f'{folder} cannot be written ({error.strerror}).') from None


def _unreadable(path, error):
    return UserError(f'{path} cannot be read ({error}); {_REMEDY}.')
