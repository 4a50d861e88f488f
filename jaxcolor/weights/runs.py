"""A run directory: config.json, checkpoints/, metrics.jsonl, samples/, curves.png. It needs nothing outside itself."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax
import jax
from absl import logging
from ml_collections import ConfigDict

from jaxcolor import files, tasks
from jaxcolor.config import DEFAULT_MODEL, FieldError
from jaxcolor.data.shards import ShardSet
from jaxcolor.errors import UserError
from jaxcolor.models import extractors
from jaxcolor.runtime import cluster
from jaxcolor.runtime.checkpoint import Checkpoints, abstract
from jaxcolor.tasks.state import TrainState
from jaxcolor.weights import imagenet, store
from jaxcolor.weights.migration import migrate

# Fields that change neither parameters (but for rounding) nor batches up to a step: a resumed run may have others.
CHANGEABLE_FIELDS = {
    'task.temperature',
    'task.inference_rebalance',
    'task.chroma_gain',
    'task.mirror',
    'data.placement',
    'data.read_threads',
    'data.prefetch',
    'data.workers',
    'train.steps',
    'train.accumulation_steps',
    'train.heartbeat',
    'train.log_every',
    'train.eval_every',
    'train.eval_splits',
    'train.checkpoint_every',
    'train.keep_best',
    'train.grid_photos',
    'train.tensorboard',
}


def create_or_check(run: str | Path, config: ConfigDict) -> None:
    """Makes the run directory of a config, or checks that it belongs to that config; writes config.json.

    Raises:
        UserError: it cannot be written, or belongs to another config.
    """
    run = Path(run)
    try:
        (run / 'samples').mkdir(parents=True, exist_ok=True)
        if (run / 'config.json').exists() and any((run / 'checkpoints').glob('*')):
            old, new = _flat(read_config(run)), _flat(config)
            differing = sorted(
                name for name in old.keys() | new.keys() if name not in CHANGEABLE_FIELDS and old.get(name) != new.get(name)
            )
            if differing:
                changes = ', '.join(f'{name} ({old.get(name)} there, {new.get(name)} now)' for name in differing)
                raise UserError(f'{run} holds a run of another config: {changes}; name another --workdir or remove it.')
        files.write_text(run / 'config.json', config.to_json_best_effort(indent=1) + '\n')
    except OSError as error:
        raise UserError(f'the run directory {run} cannot be written ({error.strerror}).') from None


def read_config(model: str | Path) -> ConfigDict:
    """The config of a run directory or an exported model, with today's fields. Raises UserError where there is none."""
    path = store.model_folder(model) / 'config.json'
    if str(model) == DEFAULT_MODEL and not path.exists():
        raise UserError(f'the model {model} is missing from this installation of jaxcolor; install it again.')
    try:
        return ConfigDict(migrate(json.loads(path.read_text(encoding='utf-8'))))
    except FileNotFoundError:
        models = ', '.join(store.model_names())
        shipped = f', and no model that comes with jaxcolor ({models})' if models else ''
        raise UserError(f'{model} is no run directory (no config.json){shipped}; train one or name another.') from None
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f'{path} cannot be read ({error}).') from None


def load_extractor(run: str | Path, config: ConfigDict) -> extractors.Extractor | tuple[()]:
    """The extractor that a config names, () where it names none. The run directory keeps the one it started with.

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
            extractor = imagenet.find_extractor(name, weights)  # perhaps downloads it
            kept.parent.mkdir(parents=True, exist_ok=True)
            imagenet.save_extractor(extractor, kept)

    cluster.run_on_main(keep)
    return imagenet.import_extractor(name, kept)


def load(
    model: str | Path, step: int | None = None, sharding: jax.sharding.Sharding | None = None
) -> tuple[ConfigDict, Any, TrainState]:
    """A trained network, ready to evaluate and predict.

    Args:
        model: a run directory; or an exported model, by its folder or its name in `store.model_names`.
        step: of the checkpoint; None takes the best by validation loss. An exported model has only one.
        sharding: where the arrays go; None puts them on the first device.

    Returns:
        (config, task, state); the state's opt_state is empty.

    Raises:
        UserError: no run, no checkpoint, one that is damaged, a run of another version.
    """
    run = store.model_folder(model)
    config = read_config(run)
    try:
        task = tasks.build(config)
    except FieldError as error:
        raise UserError(f'{run} is of another version of jaxcolor: {error} Train it again.') from None
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(task.init, jax.random.PRNGKey(0))
    if store.is_exported(run):
        if step not in (None, only := int(store.read_metadata(run)['step'])):
            raise UserError(f'--step={step}: the exported model {run} is of step {only} alone.')
        return config, task, jax.device_put(store.read_state(run, shapes), sharding)
    if not (run / 'checkpoints').is_dir():
        raise UserError(f'{run} holds no checkpoint yet.')
    with Checkpoints(run / 'checkpoints', read_only=True) as checkpoints:
        step = checkpoints.best_step if step is None else step
        if step is None:
            raise UserError(f'{run} holds no checkpoint yet.')
        logging.info('loading step %d of %s', step, run)
        state, _ = checkpoints.restore(step, abstract(shapes, sharding))
    extractor = jax.device_put(load_extractor(run, config), sharding)
    return config, task, state.replace(opt_state=(), frozen=extractor)


def init_from(
    model: str | Path, state: TrainState, redraw: Sequence[str] = (), sharding: jax.sharding.Sharding | None = None
) -> TrainState:
    """A fresh state with its weights replaced by those of a trained model (its moving average, where one is kept).

    Args:
        model: as for `load`.
        state: fresh; its optimizer state stays.
        redraw: layers, by name, that keep their fresh weights.

    Raises:
        UserError: as `load`; another network than the state's, but for those layers.
    """
    fresh, trained = (
        flax.traverse_util.flatten_dict(tree, sep='.')
        for tree in (state.weights(), load(model, sharding=sharding)[2].for_inference().weights())
    )
    layers = {part for name in fresh.keys() | trained.keys() for part in name.split('.')}
    if missing := sorted(set(redraw) - layers):
        raise UserError(f'train.init_redraw: neither network has a layer {missing[0]!r}.')
    kept = {name for name in fresh.keys() | trained.keys() if set(redraw) & set(name.split('.'))}
    for name in sorted((fresh.keys() | trained.keys()) - kept):
        by_config, in_model = (getattr(tree.get(name), 'shape', 'missing') for tree in (fresh, trained))
        if by_config != in_model:
            raise UserError(
                f'train.init_from: {model} is another network: {name} is {in_model} there, {by_config} by the config. '
                f'Layers that train.init_redraw names are drawn instead.'
            )
    weights = {name: fresh[name] if name in kept else trained[name] for name in fresh}
    weights = flax.traverse_util.unflatten_dict(weights, '.')
    # The step donates parameters and average: they may not share arrays.
    return state.replace(**weights, ema=jax.tree.map(jax.numpy.copy, weights) if state.ema else ())


def evaluation_folder(model: str | Path) -> Path:
    """The folder for a model's evaluations, made if missing: RUN/evaluation, or runs/NAME/evaluation for a model that comes
    with the package. Raises UserError."""
    folder = (Path('runs', model) if str(model) in store.model_names() else Path(model)) / 'evaluation'
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'the folder {folder} cannot be made ({error.strerror}).') from None
    return folder


def check_classes(config: ConfigDict, shards: ShardSet) -> None:
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
