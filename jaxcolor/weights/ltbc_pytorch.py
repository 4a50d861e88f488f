"""Checkpoints of the PyTorch reimplementation of Let there be Color! (Jacob, Darcet); see configs/ltbc_pytorch.py."""

import json
import os
import re
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxcolor import tasks
from jaxcolor.data import pipeline
from jaxcolor.errors import UserError
from jaxcolor.models.ltbc import LTBC
from jaxcolor.runtime.checkpoint import Checkpoints
from jaxcolor.runtime.parallel import DataParallel
from jaxcolor.weights import runs
from jaxcolor.weights.convert import VariablePath, torch_to_flax
from jaxcolor.weights.weight_files import read_weights

# The parts of the PyTorch network in order, and the layers of `LTBC` in each.
_PARTS = {
    'low': [f'low_{i}/conv' for i in range(6)],
    'mid': [f'mid_{i}/conv' for i in range(2)],
    'glob': [f'global_conv_{i}/conv' for i in range(4)] + [f'global_dense_{i}/dense' for i in range(3)],
    'color': ['fusion', *(f'color_{i}/conv' for i in range(4)), 'output/conv'],
    'classif': ['classifier_hidden/dense', 'classifier/dense'],
}


def import_ltbc(path: str | os.PathLike, network: LTBC) -> dict[str, Any]:
    """Reads the parameters of a checkpoint. The report does not say how the reimplementation scales L* and a*b*.

    Args:
        path: of a state dict (`.pth`, safetensors) or a Lightning `.ckpt`. Its parts are `low`, `mid`, `glob`, `color`,
            `classif`. The layers of a part are taken in the order of their names (`conv1`, `conv2`, ..., `fc1`, ...), after
            `fusion`. The rest of a name, and prefixes, are ignored.
        network: without batch norm, with decoder 'nearest'. If it has no classifier, the file's is ignored.

    Returns:
        The network's parameters, nested dicts of float32 NumPy arrays.

    Raises:
        UserError: the file cannot be read or does not fit; the sentence names the first layer that differs.
    """
    error = f'Weights file {path} does not fit this ltbc network'
    if network.batch_norm or network.decoder != 'nearest':
        raise UserError(
            f'{error}: the reimplementation has neither batch norm nor transposed convolutions; '
            "set model.batch_norm to False and model.decoder to 'nearest'."
        )
    side = network.global_size
    abstract = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32))
    shapes = {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(abstract).items()}
    arrays = read_weights(path).arrays
    names: dict[VariablePath, str] = {}
    for part, layers in _PARTS.items():
        if part == 'classif' and not network.classes:
            continue
        in_file = sorted(
            {match[1] for name in arrays if (match := re.fullmatch(rf'((?:.*\.)?{part}\..+)\.(?:weight|bias)', name))},
            key=lambda name: ('fusion' not in name, [int(n) if n.isdigit() else n for n in re.split(r'(\d+)', name)]),
        )
        if len(in_file) != len(layers):
            raise UserError(f'{error}: its part {part!r} has {len(in_file)} layers, not {len(layers)}: {in_file}.')
        for layer, name in zip(layers, in_file, strict=True):
            layer_path = ('params', *layer.split('/'))
            names |= {(*layer_path, 'kernel'): f'{name}.weight', (*layer_path, 'bias'): f'{name}.bias'}
    # A checkpoint of a whole training may hold more than the five parts.
    arrays = {name: arrays[name] for name in names.values() if name in arrays}
    flattened = ('params', 'global_dense_0', 'dense', 'kernel')
    channels = shapes[flattened][0] // (side // 32) ** 2
    variables = torch_to_flax(names, arrays, shapes, error, {flattened: (channels, side // 32, side // 32)})
    return flax.traverse_util.unflatten_dict(variables)['params']


def import_run(run: str | os.PathLike, config: ConfigDict, weights: str | os.PathLike) -> None:
    """Makes a run directory, at step 0, from a checkpoint of the PyTorch reimplementation.

    Args:
        run: the run directory to make.
        config: of a single network `ltbc`.
        weights: path of the checkpoint, as for `import_ltbc`.

    Raises:
        UserError: the network is no single `ltbc` or does not fit the file; the directory holds checkpoints already.
    """
    task = tasks.build(config)
    if not isinstance(task.network, LTBC):
        raise UserError(f'only single networks of configs/ltbc_pytorch.py can be imported, not {config.model.name}.')
    params = import_ltbc(weights, task.network)
    runs.create_or_check(run, config)
    with Checkpoints(Path(run) / 'checkpoints', config.train.keep_best) as checkpoints:
        if checkpoints.latest_step is not None:
            raise UserError(f'{run} holds checkpoints already; name another run directory.')
        state = DataParallel().create(task.init, jax.random.PRNGKey(config.seed))
        state = state.replace(params=jax.tree.map(jax.numpy.asarray, params))
        state = state.replace(ema=state.weights() if config.train.ema else ())
        checkpoints.save(0, state, pipeline.INITIAL_STATE, json.loads(config.to_json()))
