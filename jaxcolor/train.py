"""Training: the loop, read from top to bottom, then its steps by name."""

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxcolor import tasks
from jaxcolor.allowed import check_section
from jaxcolor.callables import make_callable
from jaxcolor.config import get_config
from jaxcolor.data import device, pipeline
from jaxcolor.data.shards import ShardSet, open_shards
from jaxcolor.errors import UserError, path_of
from jaxcolor.evaluation.curves import draw_curves
from jaxcolor.evaluation.evaluator import Evaluator
from jaxcolor.evaluation.network_picture import draw_network
from jaxcolor.evaluation.report import table
from jaxcolor.prepare import bundled
from jaxcolor.prepare.features import check_features
from jaxcolor.recipes import load_recipe
from jaxcolor.runtime import cluster
from jaxcolor.runtime.cache import enable_compilation_cache
from jaxcolor.runtime.checkpoint import Checkpoints, abstract
from jaxcolor.runtime.logs import MetricsLog, Progress
from jaxcolor.runtime.parallel import DataParallel, choose_devices, has_fast_bfloat16, in_turn
from jaxcolor.tasks import optimizers
from jaxcolor.tasks.length import Length
from jaxcolor.tasks.state import TrainState
from jaxcolor.weights import runs


def train(config: ConfigDict, run: str | Path) -> dict[str, dict[str, float]]:
    """Trains as a config says, into a run directory; resumes from the newest readable checkpoint there.

    Every process of a training calls it, after `cluster.join`; process 0 alone writes, but for checkpoints.

    Args:
        config: as `config.get_config` gives it.
        run: the run directory.

    Returns:
        The last evaluation, {split: {name: value}}.

    Raises:
        UserError: the config asks for something that cannot be done, or the loss is not finite.
        SystemExit: with `cluster.EXIT_PREEMPTED`, after a SIGTERM and a checkpoint of the step that it came at.
    """
    config = config.copy_and_resolve_references()
    config.optimizer = optimizers.resolve(config.optimizer)
    run, hp = Path(run), config.train
    is_main = jax.process_index() == 0
    _check(config)
    devices = choose_devices(hp.batch_size, hp.accumulation_steps, hp.devices)
    parallel = DataParallel(hp.mapping, devices, hp.deterministic)
    shards, length = _setup_run(config, run)
    task = tasks.build(config, length)
    data = _setup_data(config, shards, task, parallel)
    train_steps = parallel.map(in_turn(data.train_step), donate_state=True)
    evaluator = Evaluator(task, parallel, data.shards, config)
    progress = Progress(length.steps, 'steps', items_per_unit=hp.batch_size, item='images', quiet=not is_main)

    with Checkpoints(run / 'checkpoints', hp.keep_best) as checkpoints:
        first, state = _restore_or_init(config, run, task, data, parallel, checkpoints, progress)
        _announce(progress, config, parallel, data, state, length)
        if is_main:
            _draw_network(task, run, progress)
        log = _StepLog(run, first, float(length.steps_per_epoch), hp.tensorboard, progress, checkpoints)
        results = {}

        # A call is dispatched, not awaited: what is logged are the metrics of steps before it.
        for call, before in enumerate(range(first, length.steps, hp.steps_per_call), first + 1):
            step = min(before + hp.steps_per_call, length.steps)
            batches = tuple(parallel.shard(next(data.batches)) for _ in range(before, step))
            state, metrics = train_steps(state, batches, *data.resident)
            log.append(step, metrics)
            is_last = step == length.steps
            is_preempted = cluster.is_preempted(call) and not is_last
            is_due = is_last or any(
                length.is_due(n, hp.eval_every, hp.eval_every_epochs) for n in range(before + 1, step + 1)
            )
            is_eval = bool(data.splits) and is_due and not is_preempted
            is_save = is_eval or is_preempted or _passes(before, step, hp.checkpoint_every) or is_last

            if before == first:
                jax.block_until_ready(metrics)
                progress.restart_clock()  # leaves out compilation
            if is_save:
                log.write_all()
            elif _passes(before, step, hp.log_every):
                log.write_finished()
            progress.update(step - before)

            if is_eval:
                results = _evaluate(evaluator, state, step, run, data.splits, log, progress)
            if is_save:
                loss = results[data.splits[0]]['loss'] if is_eval else None
                _save(checkpoints, step, state, data, config, loss)
            if is_preempted:
                _leave(checkpoints, step, progress)
            _tell_saved(checkpoints, progress)
        checkpoints.wait()
        _tell_saved(checkpoints, progress)
    progress.close()
    if is_main:
        log.close()
        draw_curves(run)
        _farewell(run, data.splits, length.steps, results)
    return results


def _passes(before, step, every):
    """Whether a multiple of `every` lies behind one step and not behind another."""
    return step // every > before // every


class _Data(NamedTuple):
    """What a training reads."""

    shards: ShardSet
    batches: pipeline.TrainIterator | device.DeviceBatches
    train_step: Callable[..., Any]  # (state, batch, *resident) of one device
    resident: tuple[Any, ...]  # what the step takes besides: the photos, where they are held on the devices
    splits: list[str]  # to evaluate


def _setup_run(config, run) -> tuple[ShardSet, Length]:
    """Opens the shards and claims the run directory; how long the training is on these shards."""
    shards = open_shards(config.data.shards) if config.data.shards else None
    cluster.run_on_main(runs.create_or_check, run, config)
    shards = shards or open_shards(bundled.prepare_for(config.data.crop, run / 'shards'))
    runs.check_classes(config, shards)
    return shards, Length.of(config.train, shards.counts.get('train', 0))


def _setup_data(config, shards, task, parallel) -> _Data:
    """Every process reads its share of each batch."""
    hp = config.train
    share = {
        'batch_size': hp.batch_size // jax.process_count(),
        'process_index': jax.process_index(),
        'process_count': jax.process_count(),
    }
    splits = [split for split in hp.eval_splits if shards.counts.get(split)]
    if _is_streamed(config, shards, parallel):
        batches = pipeline.train_batches(shards, data=config.data, seed=config.seed, **share)
        return _Data(shards, batches, lambda state, batch: task.train_step(state, device.flip(batch)), (), splits)

    dataset = device.to_device(shards, 'train', config.data, parallel.replicated)

    def train_step(state, indices, dataset):
        return task.train_step(state, device.gather(dataset, **indices, data=config.data, seed=config.seed))

    return _Data(shards, device.DeviceBatches(dataset, **share), train_step, (dataset,), splits)


def _is_streamed(config, shards, parallel) -> bool:
    """Whether photos are read during the training; the same on all processes."""
    if config.extractor.cached:  # the devices hold no features
        return True
    chosen = device.choose_placement(shards, 'train', config.data, parallel.mesh.local_devices[0])
    return bool(cluster.broadcast(int(chosen == 'host')))


def _restore_or_init(config, run, task, data, parallel, checkpoints, progress) -> tuple[int, TrainState]:
    """The step that is done and the state after it, a copy on every device; the batches go on from there."""
    extractor = runs.load_extractor(run, config)
    if config.extractor.cached:
        check_features(data.shards, extractor)
    rng = jax.random.PRNGKey(config.seed)
    shapes = abstract(jax.eval_shape(task.init, rng), parallel.replicated)
    restored = checkpoints.restore_newest(shapes, progress.say)
    if restored is not None:
        first, state, position = restored
        data.batches.set_state(position)
        progress.say(f'resuming {run} from its checkpoint at step {first}')
    else:
        first, state = 0, parallel.create(task.init, rng)
        if not config.train.init_from:
            state = runs.init_encoder(config, state, parallel.replicated)
        else:
            state = runs.init_from(config.train.init_from, state, config.train.init_redraw, parallel.replicated)
            progress.say(f'starting from the network of {config.train.init_from}')
    progress.done = progress.start = first
    return first, state.replace(frozen=parallel.replicate(extractor))


def _evaluate(evaluator, state, step, run, splits, log, progress) -> dict[str, dict[str, float]]:
    """Evaluates all splits, logs the results, draws curves and example grids."""
    results = {split: evaluator.evaluate(state, split) for split in splits}
    if not math.isfinite(loss := results[splits[0]]['loss']):
        raise log.not_finite(f'the loss on {splits[0]}', step, loss)
    if jax.process_index() == 0:
        log.write(step, {f'{split}/{name}': value for split, row in results.items() for name, value in row.items()})
        draw_curves(run)
        for split in splits:
            evaluator.draw_grid(state, split, run / 'samples' / f'{split}_{step:07d}.png', evaluator.random_photos(split))
    progress.say(f'step {step}: ' + ', '.join(_brief(split, results[split]) for split in splits))
    return results


def _save(checkpoints, step, state, data, config, loss) -> None:
    """Starts to save the state, where the batches stand, and the config, together."""
    config = json.loads(config.to_json())
    checkpoints.save(step, state.replace(frozen=()), data.batches.get_state(), config, loss)


def _tell_saved(checkpoints, progress) -> None:
    for step in checkpoints.newly_saved():
        progress.say(f'saved step {step}')


def _leave(checkpoints, step, progress) -> None:
    """Ends a preempted training once its checkpoint is on disk."""
    checkpoints.wait()
    cluster.barrier('preempted step saved')  # the launcher ends all when the first has ended
    _tell_saved(checkpoints, progress)
    progress.say(f'SIGTERM: step {step} is saved; the same command resumes there.')
    sys.exit(cluster.EXIT_PREEMPTED)


class _StepLog:
    """Logs the metrics of steps without awaiting the last one; process 0 writes, the others only check."""

    def __init__(self, run, first, steps_per_epoch, tensorboard, progress, checkpoints):
        self._file = MetricsLog(run, steps_per_epoch, first, tensorboard) if jax.process_index() == 0 else None
        self._progress, self._checkpoints = progress, checkpoints
        self._pending, self._rate = [], math.nan

    def append(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of a call that ended with this step, {name: () or (steps,)} on the device."""
        self._pending.append((step, metrics))
        if len(self._pending) > 1:
            jax.block_until_ready(self._pending[-2][1])  # no step runs far ahead: a peer's death is noticed at once

    def write_finished(self) -> None:
        """Writes the means over the steps before the last one. Raises UserError where one is not finite."""
        finished, self._pending = self._pending[:-1], self._pending[-1:]
        self._write_means(finished)

    def write_all(self) -> None:
        """Writes the means over all steps taken. Raises UserError where one is not finite."""
        finished, self._pending = self._pending, []
        self._write_means(finished)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a line."""
        self._file.write(step, values)

    def not_finite(self, what: str, step: int, loss: float) -> UserError:
        """The error to raise."""
        self._checkpoints.wait()
        kept = self._checkpoints.latest_step
        return UserError(
            f'{what} is not finite at step {step} (loss {loss:.4g}, learning rate {self._rate:.4g}); lower '
            f'optimizer.learning_rate or set optimizer.clip_norm; '
            + (f'the checkpoint of step {kept} is kept.' if kept else 'no checkpoint had been made yet.')
        )

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write_means(self, rows):
        if not rows:
            return
        values = []
        for (last, _), metrics in zip(rows, jax.device_get([metrics for _, metrics in rows]), strict=True):
            count = metrics['loss'].size
            each = [{name: np.ravel(x)[i] for name, x in metrics.items()} for i in range(count)]
            for step, row in enumerate(each, last - count + 1):
                self._rate = float(row['learning_rate'])
                if not (math.isfinite(row['loss']) and math.isfinite(row.get('grad_norm', 0.0))):
                    raise self.not_finite('the loss or its gradient', step, float(row['loss']))
            values += each
        # A share of no photos is NaN: the accuracy of the class where none of a step's photos has a label.
        finite = {name: [row[name] for row in values if math.isfinite(row[name])] for name in values[0]}
        means = {name: float(sum(each) / len(each)) for name, each in finite.items() if each}
        means['learning_rate'] = self._rate
        self._progress.note = f'loss {means["loss"]:.4g}'
        if self._file is not None:
            self._file.write(rows[-1][0], {**means, 'images_per_second': self._progress.rate})


def _check(config) -> None:
    """Refuses what could only fail later, before anything is written."""
    check_section('train', config.train)
    tasks.build(config)
    check_section('data', config.data)
    if config.data.placement == 'device' and config.extractor.cached:
        raise UserError("extractor.cached: data.placement='device' does not hold features; use placement 'host'.")


def _announce(progress, config, parallel, data, state, length) -> None:
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    hp, devices = config.train, parallel.device_count
    each = hp.batch_size // (devices * hp.accumulation_steps)
    accumulated = f' x {hp.accumulation_steps} accumulation steps' if hp.accumulation_steps > 1 else ''
    progress.say(
        f'{config.name}: {config.model.name}, {count:,} parameters; {data.shards.counts.get("train", 0)} training photos at '
        f'{config.data.crop} pixels; batch {hp.batch_size} = {each} x {devices} '
        f'{parallel.mesh.devices.flat[0].device_kind} device(s) of {jax.process_count()} process(es){accumulated}; '
        f'learning rate {optimizers.peak_rate(config.optimizer, hp.batch_size):.3g}; '
        f'photos {"held on every device" if data.resident else "streamed from the host"}; '
        f'{length.steps} steps, {length.epoch_of(length.steps):.4g} epochs. Compiling.'
    )
    if config.model.dtype == 'float32' and has_fast_bfloat16(parallel.mesh.devices.flat[0]):
        progress.say('On this GPU, --config.model.dtype=bfloat16 trains about twice as fast (jaxcolor/benchmark/README.md).')
    if devices < jax.device_count() and not hp.devices:
        progress.say(
            f'{devices} of {jax.device_count()} devices share the batch: no more divide it evenly. '
            f'With train.batch_size a multiple of {jax.device_count() * hp.accumulation_steps}, all would.'
        )
    if hp.eval_splits and not data.splits:
        progress.say(f'{data.shards.path} has none of the splits {list(hp.eval_splits)}: nothing is evaluated.')


def _draw_network(task, run, progress) -> None:
    """Draws the network, once a run; no training fails by it."""
    path = run / 'network.png'
    if path.exists():
        return
    try:
        draw_network(task.network, task.network_inputs(), path)
    except Exception as error:  # whatever a network does that the drawing does not know
        progress.say(f'{path} was not drawn ({type(error).__name__}: {error}).')


def _brief(split, row):
    psnr = f'PSNR {row["psnr"]:.2f} dB (gray {row["psnr_gray"]:.2f})'
    return f'{split} loss {row["loss"]:.4g}, {psnr}, {row["chroma_kept"]:.0%} of the chroma'


def _farewell(run, splits, step, results) -> None:
    if results:
        print(f'\n{table(results)}')
    pictures = ' '.join(str(run / 'samples' / f'{split}_{step:07d}.png') for split in splits)
    print(f'\nExample grids (gray, output, truth): {pictures or "none, as nothing was evaluated"}')
    print(f'Curves: {run / "curves.png"}')
    print('Color a photo of yours with the network just trained:')
    print(f'  {sys.executable} -m jaxcolor colorize PHOTO.jpg --model={run} --out=colored', flush=True)


def train_recipe(
    config: ConfigDict | str,
    workdir: str | Path | None = None,
    *,
    data: str | Path | None = None,
    fields: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, float]]:
    """Trains as `jaxcolor train` does; `jaxcolor.train(...)` is this. Resumes where the run directory has checkpoints.

    Args:
        config: a recipe's path or name, such as 'ltbc:quickstart', or its config.
        workdir: the run directory; None for runs/NAME.
        data: the shard set; None for the config's `data.shards`.
        fields: of a recipe, {'train.steps': 100, ...}.

    Returns:
        The last evaluation, {split: {name: value}}.

    Raises:
        UserError: there is no such recipe or field, or as `train`.
    """
    if not isinstance(fields, (Mapping, type(None))):
        raise UserError(f"fields are a dictionary, such as {{'train.steps': 100}}, not {type(fields).__name__}.")
    if not isinstance(config, ConfigDict):
        config = load_recipe(
            path_of(config, 'config'), [f'--config.{name}={value}' for name, value in (fields or {}).items()]
        )
    elif fields:
        raise UserError('fields are for recipes; set those of a config in it: config.train.steps = 100.')
    if lacking := sorted(set(get_config()) - set(config)):
        raise UserError(f'the config has no {lacking[0]}; jaxcolor.config.get_config() has all that one needs.')
    config = config.copy_and_resolve_references()
    if data is not None:
        config.data.shards = path_of(data, 'data')
    enable_compilation_cache()
    return train(config, workdir or f'runs/{config.name}')


make_callable(__name__, train_recipe)
