"""`jaxcolor benchmark --budget`: what is wanted of a machine, above all of one with a GPU, most wanted first.

Everything runs on one device. PyTorch shares its memory: XLA_PYTHON_CLIENT_MEM_FRACTION says how much is JAX's. A part takes
a `Bench`, and asks it whether there is time before it begins something long.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxcolor.benchmark import budget_checks
from jaxcolor.benchmark.budget import Bench, Budget, Worker, markdown, read_rows
from jaxcolor.benchmark.coloring import time_colorize
from jaxcolor.benchmark.timing import paired
from jaxcolor.benchmark.torch_comparison import torch_training, varied_batch
from jaxcolor.benchmark.workload import ceilings, measure
from jaxcolor.config import DEFAULT_MODEL
from jaxcolor.errors import UserError
from jaxcolor.prepare.bundled import PHOTOS
from jaxcolor.recipes import load_recipe
from jaxcolor.runtime.machine import processor


def about(bench: Bench) -> None:
    """The device, its driver and clocks, the host, the versions."""
    device = jax.devices()[0]
    row = {'device': f'{jax.device_count()} x {device.device_kind}', 'host': f'{processor()}, {os.cpu_count()} cores'}
    if bench.on_gpu and shutil.which('nvidia-smi'):
        for field in ('name', 'driver_version', 'memory.total', 'power.limit', 'clocks.sm', 'clocks.max.sm', 'clocks.mem'):
            command = ['nvidia-smi', f'--query-gpu={field}', '--format=csv,noheader', '--id=0']
            row[field] = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    packages = [name for name in ('jax', 'jaxlib', 'flax', 'torch') if importlib.util.find_spec(name)]
    versions = [f'{name} {importlib.metadata.version(name)}' for name in packages]
    for name, value in {**row, 'versions': ', '.join([*versions, f'Python {platform.python_version()}'])}.items():
        bench.row(what=name, value=value)


def tops(bench: Bench) -> None:
    """The rates of a large matrix product and of a large copy."""
    for precision in ('bf16', 'tf32', 'f32') if bench.on_gpu else ('bf16', 'f32'):
        rates = bench.ceilings[precision] = ceilings(precision)
        tflops, copied = rates['flops_per_second'] / 1e12, rates['bytes_per_second'] / 1e9
        bench.row(precision=precision, product_tflops=tflops, copy_gb_per_s=copied)


def train(bench: Bench) -> None:
    """Training steps in float32 (TF32 on a GPU) and in bfloat16."""
    for precision in (bench.float32, 'bf16'):
        if bench.has(30, precision):
            bench.time(precision=precision)


def infer(bench: Bench) -> None:
    """Inference in bfloat16 by batch."""
    for batch in dict.fromkeys((bench.batch, min(8, bench.batch), 1)):
        if bench.has(20, f'batch {batch}'):
            bench.time(mode='infer', batch=batch)


def batches(bench: Bench) -> None:
    """Training steps by batch."""
    for batch in (4 * bench.batch, bench.batch // 2):
        if bench.has(60, f'batch {batch}'):
            bench.time(batch=batch)


def inputs(bench: Bench) -> None:
    """Training steps whose photos come from shards or from a set on the device; the share of the time that they wait."""
    fixed = measure(bench.workload())['step_s']
    for data in ('stream', 'device'):
        if bench.has(45, data):
            bench.time(lambda row: {'wait_share': 1 - fixed / row['step_s']}, data=data)


def recipes(bench: Bench) -> None:
    """A training step of every recipe in bfloat16, at its own batch or the one asked for."""
    for recipe, cached in bench.recipes:
        batch = load_recipe(recipe).train.batch_size if bench.is_full else bench.batch
        if recipe == bench.recipe or not bench.has(40, recipe):
            continue
        try:
            bench.time(recipe=recipe, batch=batch, cached=cached)
        except (jax.errors.JaxRuntimeError, UserError) as error:  # too large for the memory, perhaps; the others are not
            bench.row(failed=f'{recipe}: {type(error).__name__}: {error}')


def torch(bench: Bench) -> None:
    """The same network in PyTorch, mixed precision and channels last, in turns with ours."""
    ours, ours_infer = bench.workload(), None
    batch = varied_batch(ours.config, bench.batch)
    for kind, how, needed in (('eager', False, 25), ('compiled', True, 60), (AUTOTUNE, AUTOTUNE, 120)):
        if how == AUTOTUNE and not bench.on_gpu:
            return
        if not bench.has(needed, kind):
            continue
        start = time.perf_counter()
        theirs = torch_training(ours.config, batch, 'bf16', how)
        _compare(bench, kind, 'train', ours, theirs, theirs.step, start)
        if how != AUTOTUNE and bench.has(needed / 2, f'inference, {kind}'):
            ours_infer = ours_infer or bench.workload(mode='infer')
            _compare(bench, kind, 'infer', ours_infer, theirs, theirs.infer, time.perf_counter())


AUTOTUNE = 'max-autotune-no-cudagraphs'  # without CUDA's graphs: the steps' tensors would have to be copied


def _compare(bench, kind, mode, ours, theirs, step, start):
    """Times our step and theirs in turns. start: of the construction."""
    step()
    theirs.synchronize()
    start_s = time.perf_counter() - start
    steps = ours.steps_that_take(0.2)

    def run():
        for _ in range(steps):
            step()
        theirs.synchronize()

    ratio = paired(lambda: ours.run(steps), run, rounds=7)
    ours_ms, theirs_ms = 1e3 * ratio.ours_s / steps, 1e3 * ratio.theirs_s / steps
    rates = {'images_per_s': 1e3 * bench.batch / ours_ms, 'theirs_images_per_s': 1e3 * bench.batch / theirs_ms}
    spread = f'{ratio.median:.3f} ({ratio.least:.3f}-{ratio.largest:.3f})'
    times = {'ours_ms': ours_ms, 'theirs_ms': theirs_ms, 'ours_over_theirs': spread, 'theirs_start_s': start_s}
    bench.row(PyTorch=kind, mode=mode, batch=bench.batch, **times, **rates)


def colorize(bench: Bench) -> None:
    """Photos a second of `colorize` on the bundled photos, and of its network alone."""
    count, ratio = time_colorize(DEFAULT_MODEL, PHOTOS, 3)
    bench.row(photos=count, photos_per_s=count / ratio.ours_s, network_photos_per_s=count / ratio.theirs_s)


PARTS: Mapping[str, Callable[[Bench], None]] = {
    'about': about,
    'ceilings': tops,
    'train': train,
    'profile': budget_checks.profile,
    'infer': infer,
    'torch': torch,
    'correct': budget_checks.correct,
    'input': inputs,
    'batch': batches,
    'recipes': recipes,
    'layers': budget_checks.layers,
    'colorize': colorize,
}


def run(args: argparse.Namespace, all_recipes: Sequence[tuple[str, bool]]) -> None:
    """Runs the parts of --parts, or all. Raises UserError.

    Args:
        args: of the command. --config, --batch and --size change the network (`ltbc`), the batch (128) and the size of the
            photos (the recipe's) of all parts, to try them on a slow machine.
        all_recipes: (name, whether the extractor's features are cached) of the part `recipes`.
    """
    if unknown := [name for name in args.parts if name not in PARTS]:
        raise UserError(f'--parts: {unknown[0]!r} is none of {", ".join(PARTS)}.')
    if args.budget <= 0:
        raise UserError('--budget must be a number of seconds above 0.')
    changed: dict[str, Any] = {'recipe': args.configs, 'batch': args.batch, 'size': list(filter(None, args.size))}
    budget = Budget(args.budget, args.out or 'runs/benchmark')
    bench = Bench(budget.out, tuple(all_recipes), **{name: values[0] for name, values in changed.items() if values})
    with contextlib.closing(Worker(PARTS, bench)) as worker:
        budget.run(args.parts or list(PARTS), worker.perform)
    print(f'\n{markdown(read_rows(budget.out))}')
