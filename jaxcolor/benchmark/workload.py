"""The training or inference step of a network, compiled and ready to be timed."""

import contextlib
import dataclasses
import math
import statistics
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxcolor import color, tasks
from jaxcolor.benchmark import flops, published
from jaxcolor.data import device, pipeline
from jaxcolor.data.shards import open_shards
from jaxcolor.errors import UserError
from jaxcolor.models import extractors
from jaxcolor.models.cpu_kernels import CPU_KERNELS, only_cpu_kernels
from jaxcolor.prepare import bundled
from jaxcolor.runtime.parallel import DataParallel, compiler_options

CHOICES = {
    'mode': ('train', 'infer'),
    'precision': ('f32', 'tf32', 'bf16'),
    'mapping': ('shard_map', 'pmap'),
    'data': ('fixed', 'stream', 'device'),
    'cpu_kernels': ('all', 'none', *CPU_KERNELS),
}
MATMUL_PRECISION = {'f32': 'float32', 'tf32': 'tensorfloat32', 'bf16': None}


@dataclasses.dataclass(frozen=True)
class Case:
    """What is timed. The values of some fields are listed in CHOICES.

    Attributes:
        recipe: 'ltbc', 'deepcolor:base', ...; in inference, also a published network: 'siggraph17', 'deoldify-artistic', ...
        mode: a training or an inference step.
        precision: of matrix products and convolutions.
        batch: photos per step, over all devices.
        size: side of the photos in pixels; 0 takes the recipe's.
        devices: number of devices; 0 takes all.
        mapping: of the step over the devices.
        data: 'fixed', one batch on the devices; 'stream', from shards; 'device', from a set on the devices (`--input`).
        cpu_kernels: which of `CPU_KERNELS` are used on CPUs: all, none, or just one.
        cached: whether the extractor's features are cached.
    """

    recipe: str
    mode: str = 'train'
    precision: str = 'f32'
    batch: int = 4
    size: int = 0
    devices: int = 1
    mapping: str = 'shard_map'
    data: str = 'fixed'
    cpu_kernels: str = 'all'
    cached: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for a value that cannot be measured."""
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                flag = 'input' if field == 'data' else field
                raise UserError(f'--{flag.replace("_", "-")}: {getattr(self, field)!r} is none of {", ".join(choices)}.')
        if self.batch < 1 or self.batch % (self.devices or len(jax.devices())):
            raise UserError(f'--batch: {self.batch} photos cannot be divided evenly among {self.devices or "all"} devices.')


def config_of(case: Case) -> ConfigDict:
    """The config of a case's recipe or published network, changed as the case says. Raises UserError."""
    config = published.find_config(case.recipe, case.mode)
    config.extractor.cached = case.cached
    config.train.batch_size = case.batch
    config.data.crop = case.size or config.data.crop
    config.data.placement = 'device' if case.data == 'device' else 'host'
    if case.precision == 'bf16':
        config.model.dtype = 'bfloat16'
    return config


class Workload:
    """A compiled case. Extractors have random weights, which take the same time as trained ones.

    Attributes:
        case: what is timed.
        config: of the recipe, changed as the case says.
        task: of the config.
        state: after the steps so far.
        batch: of every step; None if `case.data` is not 'fixed'.
        parameters: number of trained parameters.
        flops: of a step, over all devices (`flops.count`).
        bytes: that a step moves on one device, by XLA; None under pmap.
        memory: bytes that a step needs on one device, by XLA; None under pmap.
        xla_flops: of a step on one device, by XLA; None under pmap.
        compile_s: seconds to trace and compile.
    """

    def __init__(self, case: Case, aged: bool = True) -> None:
        """Compiles the case and runs one step. aged: False trains on photos as they are. Raises UserError."""
        if case.precision == 'tf32' and jax.default_backend() != 'gpu':
            raise UserError('--precision: tf32 needs a GPU.')
        self.case, self.config = case, config_of(case)
        self.config.data.degraded *= aged
        self.task = tasks.build(self.config)
        self.parallel = DataParallel(case.mapping, jax.devices()[: case.devices or None])
        self._context = contextlib.ExitStack()
        with self:
            self.state = self.parallel.create(self.task.init, jax.random.PRNGKey(0))
            self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
            self._make_batch()
            if case.mode == 'infer':
                self.state = self.task.folded(self.state)
            self._compile()

    def __enter__(self) -> 'Workload':
        """Makes what is traced take the case's precision and CPU kernels."""
        if precision := MATMUL_PRECISION[self.case.precision]:
            self._context.enter_context(jax.default_matmul_precision(precision))
        if self.case.cpu_kernels != 'all':
            self._context.enter_context(only_cpu_kernels(set(CPU_KERNELS) & {self.case.cpu_kernels}))
        return self

    def __exit__(self, *exception: Any) -> None:
        """Restores them."""
        self._context.close()

    def _make_batch(self):
        case, config, parallel = self.case, self.config, self.parallel
        rng = np.random.default_rng(0)
        lab = rng.integers(0, 256, (case.batch, config.data.crop, config.data.crop, 3), dtype=np.uint8)
        batch = {'lab': lab, 'label': np.zeros(case.batch, np.int32)}
        if config.extractor.name:
            extractor = extractors.random_extractor(config.extractor.name)
            if case.cached:
                batch['features'] = {extractor.name: np.ones((case.batch, 1000), np.float32)}
            else:
                self.state = self.state.replace(frozen=parallel.replicate(extractor))
        if case.mode == 'infer':
            batch['lightness'] = color.decode_lab(batch.pop('lab'))[..., :1]
            del batch['label']
        self.batch, self._resident, self._batches = parallel.shard(batch), (), None
        if case.data != 'fixed':
            if case.mode == 'infer' or case.cached:
                raise UserError(f'--input={case.data} needs --mode=train without --cached.')
            folder = tempfile.TemporaryDirectory()
            self._shards_folder = folder  # removed with this object
            shards = open_shards(bundled.prepare_for(config.data.crop, f'{folder.name}/shards'))
            share = {'batch_size': case.batch, 'process_index': 0, 'process_count': 1}
            if case.data == 'device':
                self._resident = (device.to_device(shards, 'train', config.data, parallel.replicated),)
                self._batches = device.DeviceBatches(*self._resident, **share)
            else:
                self._batches = pipeline.train_batches(shards, data=config.data, seed=0, **share)
            self.batch = None

    def _next(self):
        return self.batch if self._batches is None else self.parallel.shard(next(self._batches))

    def device_step(self, state: Any, batch: Any, *resident: Any) -> tuple[Any, ...]:
        """The step of one device: (state, batch) -> (state, metrics), or (a*b*,) in inference."""
        if self.case.mode == 'infer':
            features = {'global_features': next(iter(batch['features'].values()))} if self.case.cached else {}
            return (self.task.predict(state, batch['lightness'], jax.random.PRNGKey(0), **features),)
        if resident:
            batch = device.gather(*resident, **batch, data=self.config.data, seed=0)
        return self.task.train_step(state, device.flip(batch))

    def _compile(self):
        batch = self._next()
        per_device = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((x.shape[0] // self.parallel.device_count, *x.shape[1:]), x.dtype), batch
        )
        self.flops = self.parallel.device_count * flops.count(self.device_step, self.state, per_device, *self._resident)
        is_training = self.case.mode == 'train'
        step = self.parallel.map(self.device_step, (False, False) if is_training else (True,), donate_state=is_training)
        start = time.perf_counter()
        self.bytes = self.memory = self.xla_flops = None
        if hasattr(step, 'lower'):
            step = step.lower(self.state, batch, *self._resident).compile()
            costs = step.cost_analysis()
            self.bytes, self.xla_flops = costs.get('bytes accessed'), costs.get('flops')
            sizes = step.memory_analysis()
            self.memory = sizes and (
                sizes.argument_size_in_bytes
                + sizes.output_size_in_bytes
                + sizes.temp_size_in_bytes
                - sizes.alias_size_in_bytes
            )
        self._step = step
        self._run_step(batch)
        jax.block_until_ready(self.result)
        self.compile_s = time.perf_counter() - start

    def run(self, steps: int) -> float:
        """Runs `steps` steps, waits for the last, and returns the seconds."""
        start = time.perf_counter()
        for _ in range(steps):
            self._run_step(self._next())
        jax.block_until_ready((self.state, self.result))
        return time.perf_counter() - start

    def _run_step(self, batch):
        """Updates the state; the result is the metrics or predictions."""
        *state, self.result = self._step(self.state, batch, *self._resident)
        if state:
            (self.state,) = state

    def program(self) -> str:
        """The compiled step as text, optimized HLO."""
        return self._step.as_text()

    def steps_that_take(self, seconds: float) -> int:
        """The number of steps that take about `seconds`, at least 1."""
        return max(1, math.ceil(seconds / self.run(1)))

    def close(self) -> None:
        """Stops the stream."""
        if hasattr(self._batches, 'close'):
            self._batches.close()


def measure(workload: Workload, rounds: int = 7, seconds: float = 0.3) -> dict[str, Any]:
    """Times a case.

    Args:
        workload: the compiled case.
        rounds: timed rounds.
        seconds: of a round, which is at least one step.

    Returns:
        A row of the report: the fields of the case, parameters, gflop and xla_gflop (per image), compile_s, step_s (median
        of the rounds), mean_step_s, spread ((largest - smallest) / median), images_per_second, flops_per_second, bytes,
        memory.
    """
    case = workload.case
    steps = workload.steps_that_take(seconds)
    times = [workload.run(steps) / steps for _ in range(rounds)]
    step_s = statistics.median(times)
    return {
        **dataclasses.asdict(case),
        'size': workload.config.data.crop,
        'devices': workload.parallel.device_count,
        'parameters': workload.parameters,
        'gflop': workload.flops / case.batch / 1e9,
        'compile_s': workload.compile_s,
        'step_s': step_s,
        'mean_step_s': statistics.fmean(times),
        'spread': (max(times) - min(times)) / step_s,
        'images_per_second': case.batch / step_s,
        'flops_per_second': workload.flops / step_s,
        'xla_gflop': workload.xla_flops and workload.xla_flops * workload.parallel.device_count / case.batch / 1e9,
        'bytes': workload.bytes,
        'memory': workload.memory,
    }


def ceilings(precision: str) -> dict[str, float]:
    """The best rates of one device: {'flops_per_second'} of a large matrix product, {'bytes_per_second'} of a large copy."""
    is_cpu = jax.default_backend() == 'cpu'
    n, dtype = (2048 if is_cpu else 8192), (jnp.bfloat16 if precision == 'bf16' else jnp.float32)
    matrix = jax.random.normal(jax.random.PRNGKey(0), (n, n), dtype)
    image = jnp.zeros((1 << 26 if is_cpu else 1 << 28,), jnp.float32)
    options: dict[str, Any] = {'compiler_options': compiler_options()}
    with jax.default_matmul_precision(MATMUL_PRECISION[precision]):
        product_s = _best_time(jax.jit(lambda a: a @ a / n, **options), matrix)
    copy_s = _best_time(jax.jit(lambda a: -a, donate_argnums=0, **options), image)  # donated, so that no memory is allocated
    return {'flops_per_second': 2 * n**3 / product_s, 'bytes_per_second': 2 * image.nbytes / copy_s}


def _best_time(function, x, rounds=7):
    x = jax.block_until_ready(function(x))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        x = jax.block_until_ready(function(x))
        times.append(time.perf_counter() - start)
    return min(times)
