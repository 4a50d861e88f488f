"""Run directories: config.json, checkpoints/, metrics.jsonl, samples/, curves.png, network.png. They are self-contained."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax
import jax
from absl import logging
from ml_collections import ConfigDict

from jaxcolor import files, tasks
from jaxcolor.allowed import FieldError
from jaxcolor.config import DEFAULT_MODEL
from jaxcolor.data.shards import ShardSet
from jaxcolor.errors import UserError
from jaxcolor.models import extractors
from jaxcolor.runtime import cluster
from jaxcolor.tasks import optimizers
from jaxcolor.tasks.state import TrainState
from jaxcolor.weights import imagenet, store
from jaxcolor.weights.migration import migrate
from jaxcolor.weights.published import library
from jaxcolor.weights.published.table import PUBLISHED

# Fields that a resumed run may change: they affect neither the parameters (except for rounding) nor the batches. A run may
# move to another number of devices (or of accumulation steps), too, although batch statistics of each are its own photos'.
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
    'train.epochs',
    'train.epoch_steps',
    'train.accumulation_steps',
    'train.steps_per_call',
    'train.devices',
    'train.mapping',
    'train.heartbeat',
    'train.log_every',
    'train.eval_every',
    'train.eval_every_epochs',
    'train.eval_splits',
    'train.checkpoint_every',
    'train.keep_best',
    'train.grid_photos',
    'train.tensorboard',
}


def create_or_check(run: str | os.PathLike, config: ConfigDict) -> None:
    """Creates a run directory and writes its config.json. One with checkpoints must have the same config.

    Args:
        run: the run directory.
        config: of the training; may differ from the directory's in CHANGEABLE_FIELDS.

    Raises:
        UserError: the directory cannot be written, or is of another config.
    """
    run = Path(run)
    try:
        (run / 'samples').mkdir(parents=True, exist_ok=True)
        if (run / 'config.json').exists() and any((run / 'checkpoints').glob('*')):
            old, new = (_flat(_resolved(each)) for each in (read_config(run), config))
            differing = sorted(
                name for name in old.keys() | new.keys() if name not in CHANGEABLE_FIELDS and old.get(name) != new.get(name)
            )
            if differing:
                changes = ', '.join(f'{name} ({old.get(name)} there, {new.get(name)} now)' for name in differing)
                raise UserError(f'{run} holds a run of another config: {changes}; name another --workdir or remove it.')
        files.write_text(run / 'config.json', config.to_json_best_effort(indent=1) + '\n')
    except OSError as error:
        raise UserError(f'the run directory {run} cannot be written ({error.strerror}).') from None


def _resolved(config):
    """With the values that the optimizer itself brings, and without those of fields that change nothing."""
    optimizer = optimizers.resolve(config.optimizer).to_dict()
    if optimizer['scaling'] == 'none':
        del optimizer['base_batch_size']
    return ConfigDict({**config, 'optimizer': optimizer})


def read_config(model: str | os.PathLike) -> ConfigDict:
    """Reads the config of a run directory or exported model, migrated to this version. Raises UserError if there is none."""
    path = library.model_folder(model) / 'config.json'
    if str(model) == DEFAULT_MODEL and not path.exists():
        raise UserError(f'the model {model} is missing from this installation of jaxcolor; install it again.')
    try:
        return ConfigDict(migrate(json.loads(path.read_text(encoding='utf-8'))))
    except FileNotFoundError:
        names = ', '.join([*store.model_names(), *PUBLISHED])
        raise UserError(
            f'{model} is no run directory (no config.json) and no known model ({names}); name another.'
        ) from None
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f'{path} cannot be read ({error}).') from None


def load_extractor(run: str | os.PathLike, config: ConfigDict) -> extractors.Extractor | tuple[()]:
    """Loads the extractor of a config. The run directory keeps a copy of its weights, made the first time.

    Args:
        run: the run directory.
        config: its section `extractor` is used.

    Returns:
        The extractor, () if the config names none.

    Raises:
        UserError: there is no such extractor; its weights do not fit, or are missing and cannot be downloaded.
    """
    name, weights = config.extractor.name, config.extractor.weights
    if not name:
        return ()
    if name not in extractors.NETWORKS:
        raise UserError(f'extractor.name: there is no {name!r}; there are {", ".join(sorted(extractors.NETWORKS))}.')
    copy = Path(run) / 'extractor.safetensors'

    def make_copy():
        if not copy.exists():
            extractor = imagenet.find_extractor(name, weights)  # may download it
            copy.parent.mkdir(parents=True, exist_ok=True)
            imagenet.save_extractor(extractor, copy)

    cluster.run_on_main(make_copy)
    return imagenet.import_extractor(name, copy)


def load(
    model: str | os.PathLike, step: int | None = None, sharding: jax.sharding.Sharding | None = None
) -> tuple[ConfigDict, Any, TrainState]:
    """Loads a trained network, to evaluate it or to predict.

    Args:
        model: a run directory; an exported model by its folder or its name in `store.model_names`; or a published network
            by its name in `published.PUBLISHED` or the path of its file.
        step: of the checkpoint; None for the one with the lowest validation loss. An exported model has only one.
        sharding: of the arrays; None for the first device.

    Returns:
        (config, task, state), without the optimizer's state.

    Raises:
        UserError: there is no such model or checkpoint; it is damaged, or of an incompatible version.
    """
    run = library.model_folder(model)
    config = read_config(run)
    try:
        task = tasks.build(config)
    except FieldError as error:
        raise UserError(f'{run} is of another version of jaxcolor: {error} Train it again.') from None
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    if store.is_exported(run):
        if step not in (None, only := int(store.read_metadata(run)['step'])):
            raise UserError(f'--step={step}: the exported model {run} has step {only} only.')
        return config, task, jax.device_put(store.read_state(run, task.weight_shapes()), sharding)
    if not (run / 'checkpoints').is_dir():
        raise UserError(f'{run} holds no checkpoint yet.')
    from jaxcolor.runtime.checkpoint import Checkpoints, abstract  # imported late: Orbax takes 0.2 s

    shapes = jax.eval_shape(task.init, jax.random.PRNGKey(0))
    with Checkpoints(run / 'checkpoints', read_only=True) as checkpoints:
        step = checkpoints.best_step if step is None else step
        if step is None:
            raise UserError(f'{run} holds no checkpoint yet.')
        logging.info('loading step %d of %s', step, run)
        state, _ = checkpoints.restore(step, abstract(shapes, sharding))
    extractor = jax.device_put(load_extractor(run, config), sharding)
    return config, task, state.replace(opt_state=(), frozen=extractor)


def init_from(
    model: str | os.PathLike, state: TrainState, redraw: Sequence[str] = (), sharding: jax.sharding.Sharding | None = None
) -> TrainState:
    """Initializes a state with the weights of a trained model (its averaged ones, if it has an average).

    Args:
        model: as for `load`.
        state: a fresh state, whose optimizer state is kept.
        redraw: names of layers that keep their fresh weights.
        sharding: as for `load`.

    Returns:
        The state with those weights.

    Raises:
        UserError: as `load`; a layer that is not in `redraw` has another shape, or is in one network only.
    """
    fresh, trained = (
        flax.traverse_util.flatten_dict(tree, sep='.')
        for tree in (state.weights(), load(model, sharding=sharding)[2].for_inference().weights())
    )
    layers = {layer for name in fresh.keys() | trained.keys() for layer in name.split('.')}
    if missing := sorted(set(redraw) - layers):
        raise UserError(f'train.init_redraw: neither network has a layer {missing[0]!r}.')
    kept = {name for name in fresh.keys() | trained.keys() if set(redraw) & set(name.split('.'))}
    for name in sorted((fresh.keys() | trained.keys()) - kept):
        in_config, in_model = (getattr(tree.get(name), 'shape', 'missing') for tree in (fresh, trained))
        if in_config != in_model:
            raise UserError(
                f'train.init_from: {model} is another network: {name} is {in_model} there, {in_config} by the config. '
                f'Name layers that differ in train.init_redraw.'
            )
    weights = {name: fresh[name] if name in kept else trained[name] for name in fresh}
    weights = flax.traverse_util.unflatten_dict(weights, '.')
    # The training step donates parameters and average, so they must not share arrays.
    return state.replace(**weights, ema=jax.tree.map(jax.numpy.copy, weights) if state.ema else ())


def init_encoder(config: ConfigDict, state: TrainState, sharding: jax.sharding.Sharding | None = None) -> TrainState:
    """Initializes the encoder of `ltbc_lite` with ImageNet weights.

    Args:
        config: model.variant says which, train.encoder_weights where they are; 'random' leaves the state as it is.
        state: a fresh state.
        sharding: as for `load`.

    Returns:
        The state with those weights.

    Raises:
        UserError: the network has no encoder, or there are no published weights of the variant; they are missing, or do
            not fit.
    """
    if config.train.encoder_weights == 'random':
        return state
    if 'encoder' not in state.params:
        raise UserError("train.encoder_weights is for the network ltbc_lite; set it to 'random' for others.")
    name = f'efficientnet_{config.model.variant}'
    if name not in extractors.NETWORKS:
        there = ', '.join(each.removeprefix('efficientnet_') for each in imagenet.PACKAGES)
        raise UserError(f"model.variant: only {there} have published weights; set train.encoder_weights to 'random'.")
    found = imagenet.find_extractor(name, config.train.encoder_weights).variables

    def with_encoder(tree, collection):
        encoder = {layer: found[collection][layer] for layer in tree['encoder']}  # without the head and the 1000 outputs
        return {**tree, 'encoder': jax.device_put(encoder, sharding)}

    params = with_encoder(state.params, 'params')
    batch_stats = with_encoder(state.model_state['batch_stats'], 'batch_stats')
    state = state.replace(params=params, model_state={**state.model_state, 'batch_stats': batch_stats})
    # The training step donates parameters and average, so they must not share arrays.
    return state.replace(ema=jax.tree.map(jax.numpy.copy, state.weights()) if state.ema else ())


def evaluation_folder(model: str | os.PathLike) -> Path:
    """Makes the folder for evaluations: RUN/evaluation; runs/NAME/evaluation for a model by name, or the file NAME.SUFFIX.

    Raises:
        UserError: it cannot be made.
    """
    folder = Path(model)
    if str(model) in (*store.model_names(), *PUBLISHED) or folder.is_file():
        folder = Path('runs', folder.stem)
    folder /= 'evaluation'
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'the folder {folder} cannot be made ({error.strerror}).') from None
    return folder


def check_classes(config: ConfigDict, shards: ShardSet) -> None:
    """Raises UserError if a shard set has more classes than the network's classifier."""
    classes = config.model.get('classes', 0)
    if classes and len(shards.classes) > classes:
        raise UserError(
            f'{shards.path} has {len(shards.classes)} classes, model.classes is {classes}: '
            f'set --config.model.classes={len(shards.classes)}, or 0 for no classifier.'
        )


def _flat(config: ConfigDict) -> dict[str, Any]:
    """{'section.field': value}, with lists for tuples as in JSON."""
    flat: dict[str, Any] = {}
    for name, value in json.loads(config.to_json_best_effort()).items():
        if isinstance(value, dict):
            flat |= {f'{name}.{field}': inner for field, inner in value.items()}
        else:
            flat[name] = value
    return flat
