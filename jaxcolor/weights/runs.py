"""A run directory: config.json, checkpoints/, metrics.jsonl, samples/, curves.png. It needs nothing outside itself."""

import json
from pathlib import Path

import flax
import jax
from absl import logging
from ml_collections import ConfigDict

from jaxcolor import tasks
from jaxcolor.runtime import cluster
from jaxcolor.weights import export
from jaxcolor.runtime.checkpoint import Checkpoints, abstract
from jaxcolor.data import pipeline
from jaxcolor.errors import UserError
from jaxcolor.runtime.logs import write_atomically
from jaxcolor.models import extractors
from jaxcolor.weights import imagenet
from jaxcolor.runtime.parallel import DataParallel

# Fields that change neither parameters (but for rounding) nor batches up to a step: a run may be continued with others.
FREE_FIELDS = {
    'task.temperature', 'task.answer_rebalance', 'task.chroma_gain', 'task.mirror',
    'data.placement', 'data.read_threads', 'data.prefetch', 'data.workers', 'train.steps', 'train.accumulation_steps',
    'train.heartbeat', 'train.log_every', 'train.eval_every', 'train.eval_splits', 'train.checkpoint_every',
    'train.keep_best', 'train.grid_photos', 'train.tensorboard',
}  # fmt: skip


def claim(run, config: ConfigDict) -> None:
    """Makes the run directory for a config, or checks that it is that config's, and writes config.json.

    Raises:
        UserError: it cannot be written, or is of another config.
    """
    run = Path(run)
    try:
        (run / 'samples').mkdir(parents=True, exist_ok=True)
        if (run / 'config.json').exists() and any((run / 'checkpoints').glob('*')):
            old, new = _flat(read_config(run)), _flat(config)
            differing = sorted(
                name for name in old.keys() | new.keys() if name not in FREE_FIELDS and old.get(name) != new.get(name)
            )
            if differing:
                changes = ', '.join(f'{name} ({old.get(name)} there, {new.get(name)} now)' for name in differing)
                raise UserError(f'{run} holds a run of another config: {changes}; name another --workdir or remove it.')
        write_atomically(run / 'config.json', config.to_json_best_effort(indent=1) + '\n')
    except OSError as error:
        raise UserError(f'the run directory {run} cannot be written ({error.strerror}).') from None


def read_config(run) -> ConfigDict:
    """The config of a run directory. Raises UserError where there is none."""
    path = exported.folder_of(run) / 'config.json'
    if str(run) == exported.DEFAULT and not path.exists():
        raise UserError(f'the model {run} is missing from this installation of jaxcolor; install it again.')
    try:
        return ConfigDict(json.loads(path.read_text(encoding='utf-8')))
    except FileNotFoundError:
        models = ', '.join(exported.names())
        shipped = f', and no model that comes with jaxcolor ({models})' if models else ''
        raise UserError(f'{run} is no run directory (it has no config.json){shipped}; train one or name another.') from None
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read ({error}).') from None


def frozen(run, config: ConfigDict):
    """The extractor that a config names, () where it names none. The run directory keeps the one it was begun with.

    Raises:
        UserError: no such extractor; its weights are not there and cannot be downloaded; they do not fit.
    """
    name, weights = config.extractor.name, config.extractor.weights
    if not name:
        return ()
    if name not in extractors.NETWORKS:
        raise UserError(f'extractor.name: there is no {name!r}; there are {", ".join(sorted(extractors.NETWORKS))}.')
    kept = Path(run) / 'extractor.safetensors'

    def keep():
        if not kept.exists():
            extractor = import_weights.find_extractor(name, weights)  # perhaps downloads it
            kept.parent.mkdir(parents=True, exist_ok=True)
            extractors.save_extractor(extractor, kept)

    cluster.on_first(keep)
    return import_weights.import_extractor(name, kept)


def import_run(run, config: ConfigDict, weights) -> None:
    """Makes a run directory, at step 0, of a peer's checkpoint (`import_weights.import_ltbc`).

    Raises:
        UserError: the config's network is no `ltbc` or does not fit the file; the directory holds checkpoints already.
    """
    if config.model.name != 'ltbc' or config.model.get('members', 1) != 1:
        raise UserError(f'--mode=import reads single networks of configs/ltbc_pytorch.py, not {config.model.name}.')
    task = tasks.build(config)
    params = import_weights.import_ltbc(weights, task.network)
    claim(run, config)
    with Checkpoints(Path(run) / 'checkpoints', config.train.keep_best) as checkpoints:
        if checkpoints.latest_step is not None:
            raise UserError(f'{run} holds checkpoints already; name another --workdir.')
        state = DataParallel().create(task.init, jax.random.PRNGKey(config.seed))
        state = state.replace(params=jax.tree.map(jax.numpy.asarray, params))
        state = state.replace(ema=state.averages() if config.train.ema else ())
        checkpoints.save(0, state, pipeline.START, json.loads(config.to_json()))


def load(run, step: int | None = None, sharding=None):
    """A trained network, ready to evaluate and predict.

    Args:
        run: the run directory; or an exported model, by its folder or its name in `exported.names`.
        step: of the checkpoint; None takes the best by validation loss. An exported model has only one.
        sharding: where the arrays go; None puts them on the first device.

    Returns:
        (config, task, state); the state's opt_state is empty.

    Raises:
        UserError: no run, no checkpoint, one that is damaged, a run of another version.
    """
    run = exported.folder_of(run)
    config = read_config(run)
    try:
        task = tasks.build(config)
    except tasks.MissingFieldError as error:
        raise UserError(f'{run} is of another version of jaxcolor ({error}) Train it again.') from None
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(task.init, jax.random.PRNGKey(0))
    if exported.is_exported(run):
        if step not in (None, only := int(exported.about(run)['step'])):
            raise UserError(f'--step={step}: the exported model {run} is of step {only} alone.')
        return config, task, jax.device_put(exported.read(run, shapes), sharding)
    if not (run / 'checkpoints').is_dir():
        raise UserError(f'{run} holds no checkpoint yet.')
    with Checkpoints(run / 'checkpoints', read_only=True) as checkpoints:
        step = checkpoints.best_step if step is None else step
        if step is None:
            raise UserError(f'{run} holds no checkpoint yet.')
        logging.info('loading step %d of %s', step, run)
        state, _ = checkpoints.restore(step, abstract(shapes, sharding))
    extractor = jax.device_put(frozen(run, config), sharding)
    return config, task, state.replace(opt_state=(), frozen=extractor)


def begin_as(run, state, redraw=(), sharding=None):
    """A fresh state, with the network of a run or an exported model (its average, where it keeps one) for what was drawn.

    Args:
        redraw: layers, by name, that stay as they were drawn.

    Raises:
        UserError: as `load`; another network than the state's, but for those layers.
    """
    drawn, found = (
        flax.traverse_util.flatten_dict(tree, sep='.')
        for tree in (state.averages(), load(run, sharding=sharding)[2].averaged().averages())
    )
    known = {part for name in drawn.keys() | found.keys() for part in name.split('.')}
    if missing := sorted(set(filter(None, redraw)) - known):
        raise UserError(f'train.init_redraw: neither network has a layer {missing[0]!r}.')
    stays = {name for name in drawn.keys() | found.keys() if set(redraw) & set(name.split('.'))}
    for name in sorted((drawn.keys() | found.keys()) - stays):
        own, its = (getattr(tree.get(name), 'shape', 'missing') for tree in (drawn, found))
        if own != its:
            raise UserError(
                f'train.init_from: {run} is another network: {name} is {its} there, {own} by the config. '
                f'Layers that train.init_redraw names are drawn instead.'
            )
    begun = {name: drawn[name] if name in stays else found[name] for name in drawn}
    begun = flax.traverse_util.unflatten_dict(begun, '.')
    return state.replace(**begun, ema=jax.tree.map(jax.numpy.copy, begun) if state.ema else ())  # donated apart


def evaluation_folder(run) -> Path:
    """Where what is measured of a run goes, made where it is missing: RUN/evaluation; runs/NAME/evaluation for a model that
    comes with the package. Raises UserError."""
    folder = (Path('runs', run) if str(run) in exported.names() else Path(run)) / 'evaluation'
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'the folder {folder} cannot be made ({error.strerror}).') from None
    return folder


def check_classes(config, shards) -> None:
    """Raises UserError where a shard set has more classes than the network can tell apart."""
    classes = config.model.get('classes', 0)
    if classes and len(shards.classes) > classes:
        raise UserError(
            f'{shards.path} has {len(shards.classes)} classes, model.classes is {classes}: '
            f'set --config.model.classes={len(shards.classes)}, or 0 for no classifier.'
        )


def _flat(config) -> dict:
    """{'section.field': value} with lists for tuples, as JSON gives them back."""
    flat = {}
    for name, value in json.loads(config.to_json_best_effort()).items():
        if isinstance(value, dict):
            flat |= {f'{name}.{field}': inner for field, inner in value.items()}
        else:
            flat[name] = value
    return flat
