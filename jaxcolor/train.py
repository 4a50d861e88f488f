"""Training: the loop, read from top to bottom."""

import json
import math
import sys
from pathlib import Path

import jax

from jaxcolor import tasks
from jaxcolor.runtime import cluster
from jaxcolor.weights import runs
from jaxcolor.runtime.checkpoint import Checkpoints, abstract
from jaxcolor.data import device, pipeline
from jaxcolor.prepare import bundled
from jaxcolor.prepare.features import check_source
from jaxcolor.data.shards import open_shards
from jaxcolor.errors import UserError
from jaxcolor.evaluation.evaluator import Evaluator
from jaxcolor.runtime.logs import MetricsLog, Progress, draw_curves
from jaxcolor.tasks.optimizers import peak_rate
from jaxcolor.runtime.parallel import DataParallel
from jaxcolor.evaluation.report import table


def train(config, run) -> dict[str, dict[str, float]]:
    """Trains as a config says, into a run directory; goes on from the newest checkpoint there that can be read.

    Every process of a training calls it, after `cluster.join`; process 0 alone writes, but for checkpoints.

    Args:
        config: as `configs/base.py` gives it.
        run: the run directory.

    Returns:
        The last evaluation, {split: {name: value}}.

    Raises:
        UserError: what the config asks for cannot be done, or the loss is not finite.
        SystemExit: with `cluster.EXIT_PREEMPTED`, after a SIGTERM and a checkpoint of the step that it came at.
    """
    run, hp = Path(run), config.train
    is_main = jax.process_index() == 0
    parallel = DataParallel(hp.mapping)
    _check(config, parallel.device_count)
    task = tasks.build(config)
    named_shards = open_shards(config.data.shards) if config.data.shards else None
    cluster.on_first(runs.claim, run, config)

    # Data: every process reads its share of each batch.
    shards = named_shards or open_shards(bundled.prepare_for(config.data.crop, run / 'shards'))
    runs.check_classes(config, shards)
    share = {
        'batch_size': hp.batch_size // jax.process_count(),
        'process_index': jax.process_index(),
        'process_count': jax.process_count(),
    }
    step_of_device, held = task.train_step, ()
    if config.data.placement == 'device':
        held = (device.hold(shards, 'train', config.data, parallel.replicated),)
        batches = device.HeldBatches(*held, **share)

        def step_of_device(state, places, held):
            return task.train_step(state, device.gather(held, **places, data=config.data, seed=config.seed))
    else:
        batches = pipeline.train_batches(shards, data=config.data, seed=config.seed, **share)
    splits = [split for split in hp.eval_splits if shards.counts.get(split)]

    # Network and optimizer: one state, a copy on every device; one compiled step over all of them.
    extractor = runs.frozen(run, config)
    if config.extractor.cached:
        check_source(shards, extractor)
    rng = jax.random.PRNGKey(config.seed)
    train_step = parallel.map(step_of_device, donate_state=True)
    evaluator = Evaluator(task, parallel, shards, config)
    progress = Progress(hp.steps, 'steps', items_per_unit=hp.batch_size, item='images', quiet=not is_main)

    with Checkpoints(run / 'checkpoints', hp.keep_best) as checkpoints:
        # Resume, or start.
        shapes = abstract(jax.eval_shape(task.init, rng), parallel.replicated)
        restored = checkpoints.restore_newest(shapes, progress.say)
        if restored is not None:
            first, state, position = restored
            batches.set_state(position)
            progress.say(f'resuming {run} from its checkpoint at step {first}')
        else:
            first = 0
            state = parallel.create(task.init, rng)
            if hp.init_from:
                state = runs.begin_as(hp.init_from, state, hp.init_redraw, parallel.replicated)
                progress.say(f'beginning as the network of {hp.init_from}')
        state = state.replace(frozen=parallel.replicate(extractor))
        _announce(progress, config, parallel, shards, state, splits)
        progress.done = progress.start = first
        log = MetricsLog(run, first, hp.tensorboard) if is_main else None
        pending, results = [], {}

        # Steps. A step is dispatched, not awaited: what is logged are the metrics of steps before it.
        for step in range(first + 1, hp.steps + 1):
            state, measured = train_step(state, parallel.shard(next(batches)), *held)
            pending.append((step, measured))
            if len(pending) > 1:
                jax.block_until_ready(pending[-2][1])  # no step runs far ahead: a peer's death is known at once
            is_preempted = cluster.is_preempted(step) and step < hp.steps
            is_eval = bool(splits) and (step % hp.eval_every == 0 or step == hp.steps) and not is_preempted
            is_save = is_eval or is_preempted or step % hp.checkpoint_every == 0 or step == hp.steps

            if step == first + 1:
                jax.block_until_ready(measured)
                progress.restart_clock()
            if step % hp.log_every == 0 or is_save:
                done = pending if is_save else pending[:-1]
                pending = pending[len(done) :]
                if done:
                    means = _means(done, checkpoints)
                    progress.note = f'loss {means["loss"]:.4g}'
                    if is_main:
                        log.write(done[-1][0], {**means, 'images_per_second': progress.rate})
            progress.update()

            if is_eval:
                results = {split: evaluator.measure(state, split) for split in splits}
                if not math.isfinite(loss := results[splits[0]]['loss']):
                    raise _not_finite(f'the loss on {splits[0]}', step, loss, means['learning_rate'], checkpoints)
                if is_main:
                    log.write(step, {f'{split}/{name}': v for split, row in results.items() for name, v in row.items()})
                    draw_curves(run)
                    for split in splits:
                        evaluator.grid(state, split, run / 'samples' / f'{split}_{step:07d}.png', evaluator.spread(split))
                progress.say(f'step {step}: ' + ', '.join(_brief(split, results[split]) for split in splits))
            if is_save:
                loss = results[splits[0]]['loss'] if is_eval else None
                checkpoints.save(step, state.replace(frozen=()), batches.get_state(), json.loads(config.to_json()), loss)
            if is_preempted:
                checkpoints.wait()
                cluster.wait_for_all('preempted step saved')  # the launcher ends all when the first has ended
            for saved in checkpoints.newly_saved():
                progress.say(f'saved step {saved}')
            if is_preempted:
                progress.say(f'SIGTERM: step {step} is saved; the same command goes on from there.')
                sys.exit(cluster.EXIT_PREEMPTED)
        checkpoints.wait()
        for saved in checkpoints.newly_saved():
            progress.say(f'saved step {saved}')
    progress.close()

    if is_main:
        log.close()
        draw_curves(run)
        if results:
            print(f'\n{table(results)}')
        _farewell(run, splits, hp.steps)
    return results


def _check(config, device_count):
    """Refuses what could only fail later."""
    hp = config.train
    counts = ('steps', 'batch_size', 'accumulation_steps', 'log_every', 'eval_every', 'checkpoint_every', 'grid_photos')
    for name in counts:
        if hp[name] < 1:
            raise UserError(f'train.{name} must be at least 1, not {hp[name]}.')
    if config.data.placement not in ('host', 'device'):
        raise UserError(f"data.placement: {config.data.placement!r} is none of 'host', 'device'.")
    if config.data.placement == 'device' and config.extractor.cached:
        raise UserError("extractor.cached: data.placement='device' does not hold features; take placement 'host'.")
    parts = device_count * hp.accumulation_steps
    if hp.batch_size % parts:
        in_parts = f' in {hp.accumulation_steps} parts each' if hp.accumulation_steps > 1 else ''
        raise UserError(
            f'train.batch_size: {hp.batch_size} photos cannot be dealt evenly to {device_count} devices{in_parts}; '
            f'take a multiple of {parts}.'
        )
    if hp.mapping == 'pmap' and jax.process_count() > 1:
        raise UserError("train.mapping: 'pmap' is for one process; take 'shard_map', with the same numbers.")


def _announce(progress, config, parallel, shards, state, splits):
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    hp, devices = config.train, parallel.device_count
    each = hp.batch_size // (devices * hp.accumulation_steps)
    accumulated = f' x {hp.accumulation_steps} accumulation steps' if hp.accumulation_steps > 1 else ''
    progress.say(
        f'{config.name}: {config.model.name}, {count:,} parameters; {shards.counts.get("train", 0)} training photos at '
        f'{config.data.crop} pixels; batch {hp.batch_size} = {each} x {devices} '
        f'{parallel.mesh.devices.flat[0].device_kind} device(s) of {jax.process_count()} process(es){accumulated}; '
        f'learning rate {peak_rate(config.optimizer, hp.batch_size):.3g}; {hp.steps} steps. Compiling.'
    )
    if not splits:
        progress.say(f'{shards.path} has none of the splits {list(config.train.eval_splits)}: nothing is evaluated.')


def _means(rows, checkpoints) -> dict[str, float]:
    """[(step, {name: scalar on device})] -> {name: mean}; the learning rate is the last one's.

    Raises:
        UserError: a loss or gradient is not finite.
    """
    values = jax.device_get([measured for _, measured in rows])
    for (step, _), row in zip(rows, values, strict=True):
        if not (math.isfinite(row['loss']) and math.isfinite(row.get('grad_norm', 0.0))):
            raise _not_finite('the loss or its gradient', step, float(row['loss']), float(row['learning_rate']), checkpoints)
    means = {name: float(sum(row[name] for row in values) / len(values)) for name in values[0]}
    return means | {'learning_rate': float(values[-1]['learning_rate'])}


def _not_finite(what, step, loss, rate, checkpoints):
    """The UserError to raise."""
    checkpoints.wait()
    kept = checkpoints.latest_step
    return UserError(
        f'{what} is not finite at step {step} (loss {loss:.4g}, learning rate {rate:.4g}); lower optimizer.learning_rate or '
        f'set optimizer.clip_norm; '
        + (f'the checkpoint of step {kept} is kept.' if kept else 'no checkpoint had been made yet.')
    )


def _brief(split, row):
    psnr = f'PSNR {row["psnr"]:.2f} dB (gray {row["psnr_gray"]:.2f})'
    return f'{split} loss {row["loss"]:.4g}, {psnr}, {row["chroma_kept"]:.0%} of the chroma'


def _farewell(run, splits, step):
    pictures = ' '.join(str(run / 'samples' / f'{split}_{step:07d}.png') for split in splits)
    print(f'\nExample grids (gray, output, truth): {pictures or "none, as nothing was evaluated"}')
    print(f'Curves: {run / "curves.png"}')
    print('Colour a photo of yours with the model just trained:')
    print(f'  {Path(sys.executable)} -m jaxcolor.colorize --model={run} PHOTO.jpg --out=colored', flush=True)
