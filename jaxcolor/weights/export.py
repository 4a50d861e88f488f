"""Exported models: a folder of config.json and weights.safetensors, for `colorize` and `evaluate` in place of a run.

    python -m jaxcolor.exported RUN [RUN ...] OUT

Those in the package's own folder `pretrained` go by their names.
"""

import argparse
import hashlib
import os
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
# The model that comes with the package and is taken where none is named.
DEFAULT = 'ltbc-compact'
_AGAIN = 'install jaxcolor again, or export the model again'
_SHIPPED = Path(__file__).parent / 'pretrained'


def names() -> list[str]:
    """The models that come with the package."""
    return sorted(path.parent.name for path in _SHIPPED.glob('*/config.json'))


def folder_of(model) -> Path:
    """The folder that a name or a path stands for; a name of the package's goes before a folder of that name here."""
    return _SHIPPED / model if str(model) in names() else Path(model)


def is_exported(folder) -> bool:
    """Whether a folder is an exported model and no run directory."""
    return (Path(folder) / WEIGHTS).exists() or Path(folder).parent == _SHIPPED


def about(folder) -> dict[str, str]:
    """What an exported model says of itself: 'name', 'parameters', 'step', 'summary', 'config' (SHA-256 of its config.json).

    Raises:
        UserError: a file that is missing, damaged, or of something else.
    """
    path = Path(folder) / WEIGHTS
    try:
        with safetensors.safe_open(path, 'numpy') as file:
            found = file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise _unreadable(path, error) from None
    if found.pop('format', '') != _FORMAT:
        raise UserError(f'{path} is no model exported by jaxcolor; export one with `python -m jaxcolor.exported`.')
    return found


def read(folder, state):
    """An exported model's state.

    Args:
        folder: of the model.
        state: a `TrainState` of shapes, as `jax.eval_shape(task.init, ...)` gives it.

    Returns:
        The state with float32 NumPy arrays for `params` and `model_state`, and its step.

    Raises:
        UserError: files that are missing, damaged, or do not belong together.
    """
    said, path = about(folder), Path(folder) / WEIGHTS
    if said['config'] != hashlib.sha256((path.parent / 'config.json').read_bytes()).hexdigest():
        raise UserError(f'{path} was exported with another config.json than lies beside it; {_AGAIN}.')
    try:
        arrays = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise _unreadable(path, error) from None
    expected = _flat(state)
    for name in sorted(expected.keys() | arrays.keys()):
        in_file, by_config = (getattr(tree.get(name), 'shape', 'missing') for tree in (arrays, expected))
        if in_file != by_config:
            raise UserError(f'{path} does not fit its config.json: {name} is {in_file} in the file, {by_config} by it.')
    found = flax.traverse_util.unflatten_dict({name: array.astype(np.float32) for name, array in arrays.items()}, '/')
    return state.replace(
        params=found['params'], model_state=found.get('model_state', {}), opt_state=(), ema=(),
        step=np.int32(said['step']), rng=np.zeros(2, np.uint32),
    )  # fmt: skip


def _unreadable(path, error):
    return UserError(f'{path} cannot be read ({error}); {_AGAIN}.')


def export(run, out, step: int | None = None, summary: str = '', fields: dict | None = None, others=()) -> Path:
    """Writes a trained run's network, with averaged parameters where a run keeps them, as an exported model.

    Kernels are stored in half precision, all else in float32.

    Args:
        run: the run directory.
        out: the folder of the model; its last part is the model's name.
        step: of the checkpoint; the best by validation loss by default.
        summary: a line that `jaxcolor models` shows.
        fields: of the config's section `task`, to answer by: {'temperature': 0.3}.
        others: run directories of networks `ltbc` of the same kind: the model averages the answers of all.

    Raises:
        UserError: no run, no checkpoint; networks of different kinds; a network with a frozen extractor; a field that its
            task refuses or lacks; a folder that cannot be written or holds something else.
    """
    from jaxcolor.weights import runs  # which imports this module

    out, fields = Path(out).resolve(), fields or {}
    if out.exists() and not is_exported(out) and any(out.iterdir()):
        raise UserError(f'{out} holds something else than an exported model; name a new folder.')
    config, _, state = runs.load(run, step)
    state = state.averaged()
    if others:
        config, state = _joined(run, config, state, others, step)
    if config.extractor.name:
        raise UserError(f'{run} needs the {config.extractor.name} of its run directory; copy that instead of exporting it.')
    if unknown := sorted(set(fields) - set(config.task)):
        raise UserError(f'{run} has no field task.{unknown[0]}: its task is {config.task.name}.')
    with config.unlocked():
        config.name, config.train.ema = out.name, 0.0  # the average stands for the parameters now
        config.data.shards = config.train.init_from = ''  # places on the machine that trained it
        config.task.update(fields)
    tasks.build(config)  # refuses what it cannot answer by
    content = (config.to_json_best_effort(indent=1) + '\n').encode()

    trained_step, state = int(state.step), jax.device_get(state)
    with np.errstate(over='ignore'):  # refused in the next lines
        arrays = {name: array.astype(np.float16 if array.ndim > 1 else np.float32) for name, array in _flat(state).items()}
    if damaged := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise UserError(f'{run}: {damaged[0]} does not fit half precision; it cannot be exported.')
    parameters = sum(array.size for name, array in arrays.items() if name.startswith('params/'))
    said = {
        'format': _FORMAT, 'name': out.name, 'step': str(trained_step), 'parameters': str(parameters),
        'summary': summary, 'config': hashlib.sha256(content).hexdigest(),
    }  # fmt: skip
    weights = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, said)
    partial = [out / f'{name}.{os.getpid()}.partial' for name in ('config.json', WEIGHTS)]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path, data in zip(partial, (content, weights), strict=True):
            path.write_bytes(data)
        for path in partial:
            os.replace(path, path.with_suffix('').with_suffix(''))
    except OSError as error:
        raise UserError(f'{out} cannot be written ({error.strerror}).') from None
    finally:
        for path in partial:
            path.unlink(missing_ok=True)
    return out


def _joined(run, config, state, others, step):
    """The config and state of the ensemble of a run's network and others'."""
    from jaxcolor.weights import runs

    states = [state]
    if config.model.name != 'ltbc' or config.model.get('members', 1) != 1:
        raise UserError(f'{run} is no single ltbc: only of those one model is made of several.')
    for other in others:
        its, _, found = runs.load(other, step)
        if differing := [name for name in ('model', 'task') if its[name] != config[name]]:
            raise UserError(f'{other} is of another kind than {run}: section {differing[0]} of their config.json differs.')
        states.append(found.averaged())
    with config.unlocked():
        config.model.members = len(states)
    model_state = {}
    for name in state.model_state:
        parts = [each.model_state[name] for each in states]
        # What the task keeps beside the networks' own (tasks.color_classes) is of all together.
        shared = name == 'color_prior'
        model_state[name] = jax.tree.map(lambda *x: sum(x) / len(x), *parts) if shared else _members(parts)
    return config, state.replace(params=_members([each.params for each in states]), model_state=model_state)


def _members(trees):
    return {f'members_{number}': tree for number, tree in enumerate(trees)}


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
    parser.add_argument('run', metavar='RUN', nargs='+', help='the run directory; of several, their answers are averaged')
    parser.add_argument('out', metavar='OUT', help='folder of the exported model')
    parser.add_argument('--step', type=int, help='of the checkpoint (default: the best by validation loss)')
    parser.add_argument('--temperature', type=float, help='task.temperature of the model (python -m jaxcolor.tune)')
    parser.add_argument('--answer-rebalance', type=float, help='task.answer_rebalance of the model, likewise')
    parser.add_argument('--chroma-gain', type=float, help='task.chroma_gain of the model, likewise')
    parser.add_argument('--mirror', action='store_true', default=None, help='task.mirror of the model, set to True')
    parser.add_argument('--summary', default='', help='a line about it')
    args = parser.parse_args(argv)
    fields = {name: getattr(args, name) for name in ('temperature', 'answer_rebalance', 'chroma_gain', 'mirror')}
    fields = {name: value for name, value in fields.items() if value is not None}
    run, *others = args.run
    out = export(run, args.out, args.step, args.summary, fields, others)
    size = (out / WEIGHTS).stat().st_size / 2**20
    print(f'{", ".join(args.run)} is exported to {out} ({size:.1f} MiB). Colour a photo with it:')
    print(f'  python -m jaxcolor.colorize --model={out} PHOTO')


if __name__ == '__main__':
    main()
