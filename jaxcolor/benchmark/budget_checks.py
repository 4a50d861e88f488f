"""Parts of `jaxcolor benchmark --budget` that look closer: a profile, single layers, whether the numbers are right."""

import contextlib
import copy
import functools
import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from jaxcolor import color, tasks
from jaxcolor.benchmark import flops
from jaxcolor.benchmark.budget import Bench
from jaxcolor.benchmark.torch_comparison import check_same_loss, random_state, varied_batch
from jaxcolor.data import device, pipeline
from jaxcolor.data.shards import open_shards
from jaxcolor.prepare import bundled
from jaxcolor.recipes import load_recipe
from jaxcolor.runtime.parallel import DataParallel

STEPS = 3  # of a profile
SHOWN = 25  # kernels


def seconds(call: Callable[[], Any], rounds: int = 7, calls: int = 10) -> float:
    """The median time of one call among `calls` that are started one after the other and awaited together."""
    jax.block_until_ready(call())
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready([call() for _ in range(calls)])
        times.append((time.perf_counter() - start) / calls)
    return statistics.median(times)


def profile(bench: Bench) -> None:
    """The kernels of a training step by time, most expensive first; all of them, and the program, in files."""
    workload = bench.workload()
    (bench.out / 'train.hlo.txt.gz').write_bytes(gzip.compress(workload.program().encode()))
    workload.run(STEPS)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            host_s = workload.run(STEPS)
        rows = kernels(folder, STEPS)
    (bench.out / 'kernels.json').write_text(json.dumps(rows, indent=0))
    launches = sum(row['per_step'] for row in rows)
    busy_ms = sum(row['step_ms'] for row in rows)
    bench.row(kinds=len(rows), kernels_per_step=launches, busy_ms=busy_ms, step_ms=1e3 * host_s / STEPS)
    for row in rows[:SHOWN]:
        kernel = row['kernel'][:60]
        bench.row('kernels', **row | {'kernel': kernel, 'time_share': row['step_ms'] / busy_ms})


def kernels(folder: str, steps: int) -> list[dict[str, Any]]:
    """The kernels of a profile's folder, [{op: of the program, kernel, per_step: launches, step_ms}], most time first."""
    total: dict[tuple[str, str], list[float]] = {}
    for path in Path(folder).rglob('*.trace.json.gz'):
        events = json.loads(gzip.decompress(path.read_bytes()))['traceEvents']
        threads = {(e['pid'], e['tid']): e['args'].get('name', '') for e in events if e.get('name') == 'thread_name'}
        streams = {thread for thread, name in threads.items() if name.startswith('Stream')}
        for event in events:
            op = (event.get('args') or {}).get('hlo_op', '')
            # A CPU has no streams; its operations are events of any thread.
            if event.get('ph') == 'X' and ((event['pid'], event['tid']) in streams or (op and not streams)):
                of_kernel = total.setdefault((op, event['name']), [0, 0.0])
                of_kernel[0] += 1
                of_kernel[1] += event['dur'] / 1e3
    rows = [
        {'op': op, 'kernel': name, 'per_step': count / steps, 'step_ms': ms / steps}
        for (op, name), (count, ms) in total.items()
    ]
    return sorted(rows, key=lambda row: -row['step_ms'])


def correct(bench: Bench) -> None:
    """A step of small networks on this device beside the CPU's, from the same parameters; PyTorch's loss; photos; colors."""
    for name in ('ltbc', 'ltbc_deconv', 'cgan'):
        if bench.has(45, name):
            _compare_with_cpu(bench, name)
    _compare_photos(bench)
    rgb = np.random.default_rng(0).integers(0, 256, (1 << 16, 3), dtype=np.uint8)
    off = np.abs(np.asarray(jax.jit(color.rgb_to_lab)(jnp.asarray(rgb))) - color.rgb_to_lab(rgb))
    bench.row('correct colors', of='rgb_to_lab', largest_error=float(off.max()))
    if bench.has(45, 'PyTorch'):
        config = small('ltbc')
        same = check_same_loss(config, varied_batch(config, 8), tolerance=np.inf, gradient_tolerance=np.inf)
        bench.row('correct PyTorch', network='ltbc', **same._asdict())


def small(name: str) -> ConfigDict:
    """A recipe with an eighth of the width (the GAN: a quarter) at 64 pixels, trained by plain SGD."""
    config = copy.deepcopy(load_recipe(name))
    if name == 'cgan':
        config.model.width = 0.25
    else:
        config.model.update({'width': 0.125, 'global_size': 64})
    config.data.crop = 64
    config.optimizer.update({'name': 'sgd', 'momentum': 0.9, 'nesterov': False, 'weight_decay': 0.0, 'clip_norm': 0.0})
    config.optimizer.update({'learning_rate': 1e-3, 'schedule': 'constant', 'warmup_steps': 0})
    return config


def _compare_with_cpu(bench, name):
    config = small(name)
    batch = varied_batch(config, 8)
    cpu, here = jax.devices('cpu')[:1], jax.devices()[:1]
    loss, update, ab = _step(config, batch, cpu, 'float32')
    for dtype in ('float32', 'bfloat16'):
        their_loss, their_update, their_ab = _step(config, batch, here, dtype)
        bench.row(
            network=name,
            dtype=dtype,
            loss_error=abs(their_loss - loss) / abs(loss),
            update_error=float(np.linalg.norm(their_update - update) / np.linalg.norm(update)),
            ab_error=float(np.abs(their_ab - ab).max()),
            ab_largest=float(np.abs(ab).max()),
        )


def _step(config, batch, devices, dtype):
    """-> the loss, what the step adds to all parameters (n,), the predicted a*b* before it (B, H, W, 2)."""
    config.model.dtype = dtype
    task: Any = tasks.build(config)
    state, parallel = random_state(task, config), DataParallel(devices=devices)
    placed = parallel.replicate(state)
    with jax.default_matmul_precision('highest') if dtype == 'float32' else contextlib.nullcontext():
        new, metrics = parallel.map(task.train_step)(placed, parallel.shard(batch))
        predict = parallel.map(lambda state, x: (task.predict(state, x['lightness'], jax.random.PRNGKey(0)),), (True,))
        (ab,) = predict(placed, parallel.shard({'lightness': color.decode_lab(batch['lab'])[..., :1]}))
    pairs = zip(jax.tree.leaves(new.params), jax.tree.leaves(state.params), strict=True)
    update = np.concatenate([np.ravel(np.asarray(after, np.float64) - before) for after, before in pairs])
    return float(metrics['loss']), update, np.asarray(ab)


def _compare_photos(bench):
    """Whether batches gathered on the device have the bytes of the host's."""
    data = load_recipe('ltbc').data
    data.update({'crop': 64, 'flip': True})
    with tempfile.TemporaryDirectory() as folder:
        shards = open_shards(bundled.prepare_for(64, f'{folder}/shards'))
        held = device.to_device(shards, 'train', data)
        places, host = (
            device.DeviceBatches(held, batch_size=8),
            pipeline.train_batches(shards, data=data, seed=0, batch_size=8),
        )
        gather = jax.jit(functools.partial(device.gather, data=data, seed=0))
        same = [np.array_equal(gather(held, **next(places))['lab'], device.flip(next(host))['lab']) for _ in range(4)]
        host.close()
    bench.row('correct photos', batches=len(same), equal=sum(same))


def layers(bench: Bench) -> None:
    """Each convolution of the network alone: forward, its gradient to the image, and that to the kernel."""
    workload = bench.workload(mode='infer')
    for x, kernel, parameters in sorted(
        flops.convolutions(workload.device_step, workload.state, workload.batch), key=lambda case: -case[0].size
    ):
        if not bench.has(15, f'{x.shape} {kernel.shape}'):
            return
        _time_layer(bench, x, kernel, parameters)


def _time_layer(bench: Bench, x: Any, kernel: Any, parameters: dict[str, Any]) -> None:
    keys = jax.random.split(jax.random.PRNGKey(0))
    image, weights = (jax.random.normal(key, of.shape, of.dtype) for key, of in zip(keys, (x, kernel), strict=True))

    def conv(image, weights):
        return lax.conv_general_dilated_p.bind(image, weights, **parameters)

    gradient = conv(image, weights)
    operations = flops.count(conv, x, kernel)
    row: dict[str, Any] = {'image': _by(x.shape), 'kernel': _by(kernel.shape), 'stride': parameters['window_strides'][0]}
    forms: Sequence[tuple[str, Callable]] = (
        ('forward', conv),
        ('to_image', lambda image, weights: jax.vjp(lambda image: conv(image, weights), image)[1](gradient)),
        ('to_kernel', lambda image, weights: jax.vjp(lambda weights: conv(image, weights), weights)[1](gradient)),
    )
    for name, form in forms:
        compiled = jax.jit(form).lower(image, weights).compile()
        taken = seconds(functools.partial(compiled, image, weights), rounds=5)
        row |= {f'{name}_ms': 1e3 * taken, f'{name}_tflops': operations / taken / 1e12}
    bench.row(**row)


def _by(shape):
    return 'x'.join(map(str, shape))
