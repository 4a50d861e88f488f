"""Data parallelism: maps a step that is written for one device over the mesh of the devices that share a batch.

Inside a step, the batch is the device's share, and `lax.pmean(..., AXIS)` takes the mean over all devices.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.multihost_utils import global_array_to_host_local_array
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxcolor.allowed import check_section
from jaxcolor.errors import UserError

AXIS = 'data'
_REPLICATED, _SPLIT = PartitionSpec(), PartitionSpec(AXIS)
_OPTIMIZATION_LEVEL = 'xla_backend_optimization_level'
_DETERMINISTIC = 'xla_gpu_deterministic_ops'


@functools.cache
def compiler_options(
    fast_compile: bool = False, deterministic: bool = False, wide_vectors: bool = False
) -> dict[str, Any] | None:
    """Options for `jax.jit`: on CPUs, those that this jaxlib knows; on other devices none, but for determinism.

    On CPUs, jaxlib 0.10 gives single convolutions to YNNPACK, which takes a third longer than XLA's own code.

    Args:
        fast_compile: optimize less, for a program that runs once, such as the initialization of the parameters: on CPUs it
            compiles in a third of the time and runs as fast.
        deterministic: on GPUs, the same bits in every run; XLA then does not choose kernels by timing them.
        wide_vectors: use vectors of 512 bits where the CPU has them, for plain arithmetic on many numbers: 40 % faster.
    """
    if jax.default_backend() != 'cpu':
        return {_DETERMINISTIC: True} if deterministic and jax.default_backend() == 'gpu' else None
    options: dict[str, Any] = {'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT'}
    if wide_vectors:
        options['xla_cpu_prefer_vector_width'] = 512
    if fast_compile and _OPTIMIZATION_LEVEL not in os.environ.get('XLA_FLAGS', ''):
        options[_OPTIMIZATION_LEVEL] = 1
    try:  # a jaxlib that does not know an option refuses it when it compiles
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except (jax.errors.JaxRuntimeError, ValueError):
        return None
    return options


def mean_over_batch(function: Callable[[Any], Any], batch: Any, accumulation_steps: int = 1) -> Any:
    """The mean of `function(part)` over all parts of all devices, for use inside a step: gradient accumulation.

    A device computes its parts one after the other, so that they need the memory of one. Part i of device d, of N parts
    each, is the share of device `d * N + i` among N times as many devices: the result is the same as theirs.

    Args:
        function: takes a tree of arrays like `batch`, returns one of float arrays.
        batch: the device's share, a tree of arrays (B, ...).
        accumulation_steps: number of parts, a divisor of B.

    Returns:
        A tree as `function` returns it, the same on all devices.
    """
    if accumulation_steps == 1:
        return lax.pmean(function(batch), AXIS)
    parts = jax.tree.map(lambda x: x.reshape(accumulation_steps, -1, *x.shape[1:]), batch)
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, function(part)), None), zeros, parts)
    return lax.pmean(jax.tree.map(lambda x: x / accumulation_steps, total), AXIS)


def in_turn(step: Callable[..., tuple[Any, dict[str, Any]]]) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Several steps as one: what dispatches a call does so once for all, and the devices do not wait for it between them.

    Args:
        step: (state, batch, *replicated) -> (state, {name: scalar}).

    Returns:
        (state, (batch, ...), *replicated) -> (state, {name: (N,)}) of N batches, by `lax.scan`; for one, the step itself.
    """

    def steps(state, batches, *replicated):
        if len(batches) == 1:
            return step(state, batches[0], *replicated)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
        return lax.scan(lambda state, batch: step(state, batch, *replicated), state, stacked)

    return steps


def choose_devices(batch_size: int, accumulation_steps: int = 1, count: int = 0) -> list[jax.Device]:
    """The devices that share a batch evenly: as many of every process.

    Args:
        batch_size: photos of a step, over all devices and accumulation steps.
        accumulation_steps: sequential parts of a device's photos.
        count: of the devices of all processes; 0 for as many as divide the batch.

    Returns:
        The devices, process by process.

    Raises:
        UserError: the batch cannot be shared evenly by `count` devices, or by one of each process; there are fewer.
    """
    processes, there_are = jax.process_count(), jax.device_count()
    of_processes = f' of {processes} processes' if processes > 1 else ''
    if count > there_are or count % processes:
        in_turn = ', each of which must use the same number' if processes > 1 else ''
        raise UserError(
            f'train.devices: {count} devices cannot be used: there are {there_are}{of_processes}{in_turn}; 0 takes as many '
            f'as divide the batch.'
        )
    each = range(1, there_are // processes + 1)
    fitting = [n * processes for n in each if batch_size % (n * processes * accumulation_steps) == 0]
    total = count or max(fitting, default=processes)
    if total not in fitting:
        in_parts = f' in {accumulation_steps} parts each' if accumulation_steps > 1 else ''
        raise UserError(
            f'train.batch_size: {batch_size} photos cannot be shared evenly by {total} device(s){of_processes}{in_parts}; '
            f'take a multiple of {total * accumulation_steps}.'
        )
    return [device for process in range(processes) for device in jax.local_devices(process)[: total // processes]]


def has_fast_bfloat16(device: jax.Device) -> bool:
    """Whether a device is an NVIDIA GPU whose tensor cores take bfloat16: Ampere and later, compute capability 8.0."""
    major = str(getattr(device, 'compute_capability', '')).split('.')[0]  # of AMD's: 'gfx942'
    return device.platform == 'gpu' and major.isdigit() and int(major) >= 8


class DataParallel:
    """Maps per-device steps over devices: the state is replicated, batches are split along their first axis.

    Args:
        mapping: 'shard_map' (under jit) or 'pmap'; the numbers are the same.
        devices: all by default.
        deterministic: as for `compiler_options`.

    Raises:
        UserError: there is no such mapping.
    """

    def __init__(
        self, mapping: str = 'shard_map', devices: Sequence[jax.Device] | None = None, deterministic: bool = False
    ) -> None:
        check_section('train', {'mapping': mapping})
        devices = jax.devices() if devices is None else devices
        self.mapping, self.deterministic = mapping, deterministic
        self.mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
        self.replicated = NamedSharding(self.mesh, _REPLICATED)
        self.split = NamedSharding(self.mesh, _SPLIT)

    @property
    def device_count(self) -> int:
        """The number of devices, of all processes."""
        return self.mesh.size

    def create(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of `function(*arguments)`, compiled and run once, replicated on every device."""
        options = compiler_options(fast_compile=True)
        return jax.jit(function, out_shardings=self.replicated, compiler_options=options)(*arguments)

    def replicate(self, tree: Any) -> Any:
        """Puts a copy of every array on every device."""
        return jax.device_put(tree, self.replicated)

    def shard(self, batch: Any) -> Any:
        """This process's rows of a batch, a tree of NumPy arrays -> global arrays, split over all devices in order."""
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.split, np.asarray(x)), batch)

    def map(
        self, step: Callable[..., tuple], outputs: Sequence[bool] = (False, False), donate_state: bool = False
    ) -> Callable[..., tuple]:
        """Compiles a step of one device into a step of all devices.

        Args:
            step: (state, batch, *replicated) -> tuple; `batch` is the device's share, all else is replicated.
            outputs: for each output, whether it is split along the batch (True) or equal on all devices (False).
            donate_state: reuse the memory of the state; the caller's state can then no longer be used.

        Returns:
            The same function of global arrays.
        """
        donated = (0,) if donate_state else ()
        return (self._pmap if self.mapping == 'pmap' else self._shard_map)(step, outputs, donated)

    def _pmap(self, step, outputs, donated):
        mapped = jax.pmap(
            lambda state, batch, replicated: step(state, batch, *replicated),
            AXIS,
            in_axes=(None, 0, None),
            out_axes=tuple(0 if is_split else None for is_split in outputs),
            devices=list(self.mesh.devices.flat),
            donate_argnums=donated,
        )
        n, compiled, options = self.device_count, {}, compiler_options(deterministic=self.deterministic)
        in_rows = jax.jit(
            lambda tree: jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), tree), out_shardings=self.split
        )
        joined = jax.jit(lambda tree: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree), out_shardings=self.split)

        def call(state, batch, *replicated):
            arguments = state, in_rows(batch), replicated  # of the batch, a row (B / n, ...) for each device
            leaves, structure = jax.tree.flatten(arguments)
            kind = structure, tuple(map(jax.typeof, leaves))
            if kind not in compiled:
                # pmap takes and returns what this process holds; what it compiles, with options, takes global arrays.
                local = global_array_to_host_local_array(arguments, self.mesh, (_REPLICATED, _SPLIT, _REPLICATED))
                compiled[kind] = mapped.lower(*local).compile(compiler_options=options)
            results = compiled[kind](*arguments)
            return tuple(joined(result) if is_split else result for result, is_split in zip(results, outputs, strict=True))

        return call

    def _shard_map(self, step, outputs, donated):
        # check_vma=False: a gradient inside is the device's own, as under pmap, and pmean is right for both.
        mapped = jax.shard_map(
            lambda state, batch, replicated: step(state, batch, *replicated),
            mesh=self.mesh,
            in_specs=(_REPLICATED, _SPLIT, _REPLICATED),
            out_specs=tuple(_SPLIT if is_split else _REPLICATED for is_split in outputs),
            check_vma=False,
        )
        return jax.jit(
            lambda state, batch, *replicated: mapped(state, batch, replicated),
            donate_argnums=donated,
            compiler_options=compiler_options(deterministic=self.deterministic),
        )
