"""Command: what each network costs on this machine.

    python -m jaxcolor.benchmark [--configs=ltbc,deepcolor:base] [--batch=4] [--rounds=7]

A row a recipe: its parameters, the floating-point operations of one photo's forward pass as XLA counts them, and the
time of a training step on fixed data. The recipes come at their own photo size and width; only the batch is `--batch`.
Extractors have random weights, which cost what trained ones do.
"""

import argparse
import importlib
import os
import platform
import time

import jax
import numpy as np

from jaxcolor import tasks
from jaxcolor.errors import UserError, one_line_errors
from jaxcolor.models import extractors
from jaxcolor.parallel import DataParallel, compiler_options

# Recipe, and whether its extractor's features come cached.
ROWS = [
    ('ltbc', False), ('ltbc:quickstart', False), ('ltbc_pytorch', False), ('ltbc_deconv', False), ('vgg_fusion', False),
    ('vgg_fusion', True), ('cgan', False), ('deepcolor:base', False), ('deepcolor:base', True), ('deepcolor:1', True),
    ('deepcolor:2', True), ('deepcolor:3', True),
]  # fmt: skip


def load_recipe(name: str):
    """'deepcolor:base' -> the config of configs/deepcolor.py. Raises UserError where there is none."""
    module, _, variant = name.partition(':')
    try:
        recipe = importlib.import_module(f'configs.{module}')
        return recipe.get_config(variant) if variant else recipe.get_config()
    except (ImportError, ValueError) as error:
        raise UserError(f'--configs: {name!r} cannot be read ({error}); run this in the checkout.') from None


def measure(name: str, cached: bool, batch_size: int, rounds: int) -> dict:
    """One row: {name, parameters, gflop, compile_s, step_s (median), spread_s (largest - smallest), batch}."""
    config = load_recipe(name)
    config.extractor.cached = cached
    config.train.batch_size = batch_size
    task = tasks.build(config)
    parallel = DataParallel(config.train.mapping, jax.devices()[:1])
    state = jax.jit(task.init, out_shardings=parallel.replicated)(jax.random.PRNGKey(0))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    batch = _fixed_batch(config, batch_size)
    if config.extractor.name:
        extractor = extractors.random_extractor(config.extractor.name)
        if cached:
            batch['features'] = {extractor.name: np.ones((batch_size, 1000), np.float32)}
        else:
            state = state.replace(frozen=parallel.replicate(extractor))
    batch = parallel.shard(batch)

    forward = jax.jit(lambda state, batch: task.eval_step(state, batch)[1], compiler_options=compiler_options())
    gflop = forward.lower(state, batch).compile().cost_analysis()['flops'] / batch_size / 1e9

    step = parallel.map(task.train_step, donate_state=True)
    start = time.perf_counter()
    state, measured = jax.block_until_ready(step(state, batch))
    compile_s = time.perf_counter() - start
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        state, measured = jax.block_until_ready(step(state, batch))
        times.append(time.perf_counter() - start)
    del measured
    return {
        'name': f'{name}, cached' if cached else name,
        'parameters': parameters,
        'size': config.data.crop,
        'gflop': gflop,
        'compile_s': compile_s,
        'step_s': float(np.median(times)),
        'spread_s': max(times) - min(times),
        'batch': batch_size,
    }


def _fixed_batch(config, batch_size):
    rng = np.random.default_rng(0)
    lab = rng.integers(0, 256, (batch_size, config.data.crop, config.data.crop, 3), dtype=np.uint8)
    return {'lab': lab, 'label': np.zeros(batch_size, np.int32)}


def markdown(rows) -> str:
    """The rows as a table."""
    head = ['recipe', 'trained parameters', 'photo', 'GFLOP forward', 'batch', 'step (ms)', 'spread', 'images/s']
    lines = ['| ' + ' | '.join(head) + ' |', '|:--|' + '--:|' * (len(head) - 1)]
    for row in rows:
        cells = [
            row['name'], f'{row["parameters"]:,}', row['size'], f'{row["gflop"]:.2f}', row['batch'],
            f'{1e3 * row["step_s"]:.0f}', f'{100 * row["spread_s"] / row["step_s"]:.0f} %',
            f'{row["batch"] / row["step_s"]:.1f}',
        ]  # fmt: skip
        lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
    return '\n'.join(lines)


@one_line_errors
def main(argv=None):
    """Parses the command line, measures, prints."""
    parser = argparse.ArgumentParser('python -m jaxcolor.benchmark', description='Step times of the networks.')
    parser.add_argument('--configs', help='recipes, separated by commas (default: all)')
    parser.add_argument('--batch', type=int, default=4, help='photos a step (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=7, help='timed steps (default: %(default)s)')
    args = parser.parse_args(argv)
    if args.batch < 1 or args.rounds < 1:
        raise UserError('--batch and --rounds must be at least 1.')
    rows = [(name, False) for name in args.configs.split(',')] if args.configs else ROWS
    device = jax.devices()[0]
    print(f'{device.device_kind} ({platform.machine()}, {os.cpu_count()} cores), jax {jax.__version__}, float32', flush=True)
    done = []
    for name, cached in rows:
        done.append(measure(name, cached, args.batch, args.rounds))
        print(f'{done[-1]["name"]}: {1e3 * done[-1]["step_s"]:.0f} ms', flush=True)
    print(f'\n{markdown(done)}')


if __name__ == '__main__':
    main()
