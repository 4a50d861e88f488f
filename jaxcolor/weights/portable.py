"""Trained networks for other programs: StableHLO, ONNX, and one safetensors file in full precision.

The first two hold the function L* (B, H, W, 1) in [0, 100] -> a*b* (B, H, W, 2), weights and inference settings included,
batch norms folded into the convolutions before them.
"""

import importlib.util
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from ml_collections import ConfigDict

from jaxcolor import files
from jaxcolor.errors import UserError
from jaxcolor.models.cpu_kernels import only_cpu_kernels
from jaxcolor.models.depthwise import grouped_depthwise
from jaxcolor.tasks.state import TrainState
from jaxcolor.tasks.task import Task

# Sides of the input of a StableHLO program are multiples of this many pixels.
MULTIPLE = 32
_PLATFORMS = ('cpu', 'cuda', 'tpu')
_MAX_DIFFERENCE = 0.01  # units of a*b*, between onnxruntime and JAX
_MAX_REASON = 200  # letters of the converter's message


class Portable(NamedTuple):
    """A kind of file.

    suffix: of its name. what: a description. write: of (path, config, task, state, size), raises UserError and OSError.
    """

    suffix: str
    what: str
    write: Callable[[Path, ConfigDict, Task, TrainState, tuple[int, int]], None]


def write(
    kind: str, out: str | Path, config: ConfigDict, task: Task, state: TrainState, size: tuple[int, int] = (0, 0)
) -> Path:
    """Writes a network as a file, atomically.

    Args:
        kind: a key of FORMATS.
        out: of the file; the kind's suffix is added where it is missing.
        config, task, state: of `export.gather`.
        size: (H, W), pixels of the input, for kinds that have one size only; (0, 0): that of the training.

    Returns:
        The path of the file.

    Raises:
        UserError: a library is missing; the network cannot be written in this way; the file cannot be written.
    """
    portable, out = FORMATS[kind], Path(out)
    if out.suffix != portable.suffix:
        out = out.with_name(out.name + portable.suffix)
    if out.is_dir():
        raise UserError(f'{out} is a folder; name a file.')
    height, width = size
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic(out) as temporary:
            portable.write(temporary, config, task, state, (height or config.data.crop, width or config.data.crop))
    except OSError as error:
        raise UserError(f'{out} cannot be written ({error.strerror or error}).') from None
    return out


def _function(task, state):
    """L* -> a*b*, as plain operations: other programs know no kernels of ours, and those need to know the size."""
    state = jax.device_get(task.folded(state))
    seed = {'rng': np.zeros(2, np.uint32)} if task.takes_noise else {}

    def predict(lightness):
        with only_cpu_kernels(()):
            return task.predict(state, lightness, **seed)

    return predict


def _write_stablehlo(path, config, task, state, size):
    _need('flatbuffers', 'stablehlo')
    shape = jax.export.symbolic_shape(f'b, {MULTIPLE}*h, {MULTIPLE}*w, 1')
    export = jax.export.export(jax.jit(_function(task, state)), platforms=_PLATFORMS)
    path.write_bytes(export(jax.ShapeDtypeStruct(shape, jnp.float32)).serialize())


def _write_onnx(path, config, task, state, size):
    _need('jax2onnx', 'onnx')
    for name in ('jax2onnx', 'onnx_ir'):  # they warn of plugins and shapes that are not needed
        logging.getLogger(name).setLevel(logging.ERROR)
    import jax2onnx
    import onnxruntime

    # Of operations of lax alone: the converter has its own, lesser ones for jax.image.resize and the like.
    lightness = np.random.default_rng(0).uniform(0, 100, (1, *size, 1)).astype(np.float32)
    with grouped_depthwise():
        operations = jax.make_jaxpr(_function(task, state))(lightness)
    function = jax.extend.core.jaxpr_as_fun(operations)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    shape = jax.ShapeDtypeStruct((1, *size, 1), jnp.float32)
    try:
        model: Any = jax2onnx.to_onnx(lambda lightness: function(lightness)[0], [shape], model_name=config.name)
        _rename(model.graph, {model.graph.input[0].name: 'lightness', model.graph.output[0].name: 'ab'})
        _pool_two_axes(model.graph)
        path.write_bytes(model.SerializeToString())
        (ab,) = onnxruntime.InferenceSession(path, options).run(['ab'], {'lightness': lightness})
    except Exception as error:  # of any kind, where one of them does not know an operation
        reason = ' '.join(str(error).split())[:_MAX_REASON]
        raise UserError(f'{config.name} cannot be written as ONNX: jax2onnx or onnxruntime says: {reason}') from error
    if not np.abs(ab - jax.jit(function)(lightness)[0]).max() <= _MAX_DIFFERENCE:
        raise UserError(f'{config.name} cannot be written as ONNX: onnxruntime computes something else with the file.')


def _rename(graph, names):
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def _pool_two_axes(graph):
    """Max pooling of height and width: the converter writes it for four axes of (1, 1, B, H, W, C), too many to be run."""
    from onnx import helper

    for node in [node for node in graph.node if node.op_type == 'MaxPool']:
        fields = {field.name: list(field.ints) for field in node.attribute if field.name != 'auto_pad'}
        if len(fields['kernel_shape']) != 4 or fields['kernel_shape'][0] != 1 or fields['kernel_shape'][3] != 1:
            continue
        pads = fields.pop('pads', [0] * 8)
        fields = {name: values[1:3] for name, values in fields.items()} | {'pads': [*pads[1:3], *pads[5:7]]}
        names = [f'{node.name}_{step}' for step in ('axes', 'photos', 'planes', 'pooled', 'pixels')]
        axes, photos, planes, pooled, pixels = names
        at = list(graph.node).index(node)
        new = [
            helper.make_node('Squeeze', [node.input[0], axes], [photos]),
            helper.make_node('Transpose', [photos], [planes], perm=[0, 3, 1, 2]),
            helper.make_node('MaxPool', [planes], [pooled], **fields),
            helper.make_node('Transpose', [pooled], [pixels], perm=[0, 2, 3, 1]),
            helper.make_node('Unsqueeze', [pixels, axes], [node.output[0]]),
        ]
        graph.initializer.append(helper.make_tensor(axes, 7, [2], [0, 1]))  # 7: int64
        del graph.node[at]
        for place, each in enumerate(new):
            graph.node.insert(at + place, each)


def _write_safetensors(path, config, task, state, size):
    arrays = flax.traverse_util.flatten_dict(jax.device_get(state.weights()), sep='/')
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}
    path.write_bytes(safetensors.numpy.save(arrays, {'format': 'jaxcolor weights', 'config': json.dumps(config.to_dict())}))


def _need(library, extra):
    if importlib.util.find_spec(library) is None:
        raise UserError(f"--format={extra} needs a library that is not installed: pip install 'jaxcolor[{extra}]'.")


FORMATS = {
    'stablehlo': Portable('.stablehlo', f'a program for any batch and any multiples of {MULTIPLE} pixels', _write_stablehlo),
    'onnx': Portable('.onnx', 'a program for one photo of one size', _write_onnx),
    'safetensors': Portable('.safetensors', 'the weights in full precision, and the config', _write_safetensors),
}
