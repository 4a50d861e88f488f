"""Checkpoints of the PyTorch reimplementation of Let there be Color! (Jacob, Darcet): the config `ltbc_pytorch`."""

import json
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
from jaxcolor.weights.fit import fit_torch
from jaxcolor.weights.weight_files import read_weights

# A peer's parts in network order, and the layers of `LTBC` that each one's hold.
_LTBC_PARTS = {
    'low': [f'low_{i}/conv' for i in range(6)],
    'mid': [f'mid_{i}/conv' for i in range(2)],
    'glob': [f'global_conv_{i}/conv' for i in range(4)] + [f'global_dense_{i}/dense' for i in range(3)],
    'color': ['fusion', *(f'color_{i}/conv' for i in range(4)), 'output/conv'],
    'classif': ['classifier_hidden/dense', 'classifier/dense'],
}


def import_ltbc(path: str | Path, network: LTBC) -> dict[str, Any]:
    """Reads a checkpoint of the PyTorch reimplementation of Let there be Color! (the config `ltbc_pytorch`).

    Args:
        path: a state dict (`.pth`, safetensors) or a Lightning `.ckpt`. Its parts are `low`, `mid`, `glob`, `color`,
            `classif`; in each, layers count in the order of their names (`conv1`, `conv2`, ..., `fc1`, ...), `fusion`
            before all. The rest of a name, and what stands before the part's, do not matter.
        network: the `LTBC` to fit: no batch norm, decoder 'nearest'; with classes=0 the file's classifier is left out.

    Returns:
        The network's parameters, nested dicts of float32 NumPy arrays. How the peer scaled L* and a*b* its report does
        not say.

    Raises:
        UserError: the file cannot be read or does not fit; the sentence names the first layer that differs.
    """
    what = f'Weights file {path} does not fit this ltbc network'
    if network.batch_norm or network.decoder != 'nearest':
        raise UserError(
            f"{what}: the peer's has neither batch norm nor transposed convolutions; "
            "set model.batch_norm to False and model.decoder to 'nearest'."
        )
    side = network.global_size
    variables = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32))
    shapes = {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(variables).items()}
    arrays = read_weights(path).arrays
    plan = {}
    for part, layers in _LTBC_PARTS.items():
        if part == 'classif' and not network.classes:
            continue
        found = sorted(
            {match[1] for name in arrays if (match := re.fullmatch(rf'((?:.*\.)?{part}\..+)\.(?:weight|bias)', name))},
            key=lambda name: ('fusion' not in name, [int(n) if n.isdigit() else n for n in re.split(r'(\d+)', name)]),
        )
        if len(found) != len(layers):
            raise UserError(f'{what}: its part {part!r} has {len(found)} layers, not {len(layers)}: {found}.')
        for layer, name in zip(layers, found, strict=True):
            layer = ('params', *layer.split('/'))
            plan |= {(*layer, 'kernel'): f'{name}.weight', (*layer, 'bias'): f'{name}.bias'}
    # Only the five parts are looked at; a checkpoint of the whole training may hold more.
    arrays = {name: arrays[name] for name in plan.values() if name in arrays}
    flattened = ('params', 'global_dense_0', 'dense', 'kernel')
    channels = shapes[flattened][0] // (side // 32) ** 2
    fitted = fit_torch(plan, arrays, shapes, what, {flattened: (channels, side // 32, side // 32)})
    return flax.traverse_util.unflatten_dict(fitted)['params']


def import_run(run, config: ConfigDict, weights) -> None:
    """Makes a run directory, at step 0, of a checkpoint that `import_ltbc` reads.

    Raises:
        UserError: the config's network is no `ltbc` or does not fit the file; the directory holds checkpoints already.
    """
    if config.model.name != 'ltbc' or config.model.members != 1:
        raise UserError(f'only single networks of configs/ltbc_pytorch.py can be imported, not {config.model.name}.')
    task = tasks.build(config)
    params = import_ltbc(weights, task.network)
    runs.create_or_check(run, config)
    with Checkpoints(Path(run) / 'checkpoints', config.train.keep_best) as checkpoints:
        if checkpoints.latest_step is not None:
            raise UserError(f'{run} holds checkpoints already; name another one.')
        state = DataParallel().create(task.init, jax.random.PRNGKey(config.seed))
        state = state.replace(params=jax.tree.map(jax.numpy.asarray, params))
        state = state.replace(ema=state.weights() if config.train.ema else ())
        checkpoints.save(0, state, pipeline.INITIAL_STATE, json.loads(config.to_json()))
