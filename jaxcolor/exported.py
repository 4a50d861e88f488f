"""Exported models: a folder of config.json and weights.safetensors, without what only a training needs.

    python -m jaxcolor.exported RUN OUT

Some come with the package, in `jaxcolor/pretrained`, and go by their names.
"""

import argparse
import json
import os
from importlib import resources
from pathlib import Path

import flax
import jax
import numpy as np
import safetensors
import safetensors.numpy

from jaxcolor import tasks
from jaxcolor.errors import UserError, one_line_errors

WEIGHTS = 'weights.safetensors'
# The value of `format` in the metadata of the files.
_FORMAT = 'jaxcolor model'
_SHIPPED = resources.files('jaxcolor') / 'pretrained'


def names() -> list[str]:
    """The models that come with the package."""
    return sorted(folder.name for folder in _SHIPPED.iterdir() if folder.is_dir()) if _SHIPPED.is_dir() else []


def folder_of(model) -> Path:
    """The folder that a name or a path stands for; a name of the package's goes before a folder of that name here."""
    return Path(str(_SHIPPED / str(model))) if str(model) in names() else Path(model)


def is_exported(folder) -> bool:
    """Whether a folder is an exported model and no run directory."""
    return (Path(folder) / WEIGHTS).exists() or Path(folder).parent == Path(str(_SHIPPED))


def about(model) -> dict[str, str]:
    """What an exported model's file says of itself: 'format', 'name', 'parameters', 'step', 'summary'. Raises UserError."""
    path = folder_of(model) / WEIGHTS
    try:
        with safetensors.safe_open(path, 'numpy') as file:
            found = file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f'{path} cannot be read ({error}); install jaxcolor again, or export the model again.') from None
    if found.get('format') != _FORMAT:
        raise UserError(f'{path} is no model exported by jaxcolor; export one with `python -m jaxcolor.exported`.')
    return found


def read(folder, state):
    """The weights of an exported model in place of those of a state.

    Args:
        folder: of the model.
        state: a `TrainState` of shapes, as `jax.eval_shape(task.init, ...)` gives it.

    Returns:
        The state with float32 NumPy arrays for `params` and `model_state`, and nothing else.

    Raises:
        UserError: a file that is missing, damaged, or of another network.
    """
    about(folder)
    path = Path(folder) / WEIGHTS
    try:
        arrays = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f'{path} cannot be read ({error}); install jaxcolor again, or export the model again.') from None
    expected = _flat(state)
    for name in expected.keys() | arrays.keys():
        shapes = [getattr(tree.get(name), 'shape', 'missing') for tree in (arrays, expected)]
        if shapes[0] != shapes[1]:
            raise UserError(f'{path} does not fit its config.json: {name} is {shapes[0]} in the file, {shapes[1]} by it.')
    found = flax.traverse_util.unflatten_dict({name: array.astype(np.float32) for name, array in arrays.items()}, '/')
    return state.replace(
        params=found['params'], model_state=found.get('model_state', {}), opt_state=(), ema=(),
        step=np.zeros((), np.int32), rng=np.zeros(2, np.uint32),
    )  # fmt: skip


def export(run, out, step: int | None = None, summary: str = '', fields: dict | None = None) -> Path:
    """Writes a trained run's network, with averaged parameters where the run keeps them, as an exported model.

    Kernels are stored in half precision, all else in float32; whatever the network draws on to colour is kept.

    Args:
        run: the run directory.
        out: the folder of the model; its last part is the model's name.
        step: of the checkpoint; the best by validation loss by default.
        summary: a line that `jaxcolor models` shows.
        fields: of the config's section `task`, to answer by: {'temperature': 0.3}.

    Raises:
        UserError: no run, no checkpoint; a network with a frozen extractor; a field that its task refuses or lacks; a
            folder that cannot be written.
    """
    from jaxcolor import runs  # which imports this module

    config, _, state = runs.load(run, step)
    if config.extractor.name:
        raise UserError(f'{run} needs the {config.extractor.name} of its run directory; copy that instead of exporting it.')
    trained_step, state = int(state.step), jax.device_get(state.averaged())
    arrays = {name: array.astype(np.float16 if array.ndim > 1 else np.float32) for name, array in _flat(state).items()}
    if damaged := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise UserError(f'{run}: {damaged[0]} does not fit half precision; it cannot be exported.')
    out = Path(out)
    said = {
        'format': _FORMAT, 'name': out.name, 'step': str(trained_step), 'summary': summary,
        'parameters': str(sum(array.size for name, array in arrays.items() if name.startswith('params/'))),
    }  # fmt: skip
    fields = fields or {}
    if unknown := sorted(set(fields) - set(config.task)):
        raise UserError(f'{run} has no field task.{unknown[0]}: its task is {config.task.name}.')
    with config.unlocked():
        config.name, config.train.ema = out.name, 0.0  # the average stands for the parameters now
        config.data.shards = ''  # a place on the machine that trained it
        config.task.update(fields)
    tasks.build(config)  # refuses what it cannot answer by
    try:
        out.mkdir(parents=True, exist_ok=True)
        partial = out / f'{WEIGHTS}.{os.getpid()}.partial'
        safetensors.numpy.save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, partial, said)
        (out / 'config.json').write_text(json.dumps(json.loads(config.to_json_best_effort()), indent=1) + '\n')
        os.replace(partial, out / WEIGHTS)
    except OSError as error:
        raise UserError(f'{out} cannot be written ({error.strerror}).') from None
    return out


def _flat(state):
    """{'params/low_0/conv/kernel': array, ..., 'model_state/...': ...}"""
    trees = {'params': state.params, 'model_state': state.model_state}
    return flax.traverse_util.flatten_dict(trees, sep='/')


@one_line_errors
def main(argv=None):
    """Parses the command line and exports."""
    parser = argparse.ArgumentParser(
        prog='python -m jaxcolor.exported', description='A trained run -> a small folder to hand on, for --model=FOLDER.'
    )
    parser.add_argument('run', metavar='RUN', help='the run directory')
    parser.add_argument('out', metavar='OUT', help='folder of the exported model')
    parser.add_argument('--step', type=int, help='of the checkpoint (default: the best by validation loss)')
    parser.add_argument('--temperature', type=float, help='task.temperature of the model (python -m jaxcolor.tune)')
    parser.add_argument('--chroma-gain', type=float, help='task.chroma_gain of the model, likewise')
    parser.add_argument('--summary', default='', help='a line about it')
    args = parser.parse_args(argv)
    fields = {name: getattr(args, name) for name in ('temperature', 'chroma_gain') if getattr(args, name) is not None}
    out = export(args.run, args.out, args.step, args.summary, fields)
    size = (out / WEIGHTS).stat().st_size / 2**20
    print(f'{args.run} is exported to {out} ({size:.1f} MiB). Colour a photo with it:')
    print(f'  python -m jaxcolor.colorize --model={out} PHOTO')


if __name__ == '__main__':
    main()
