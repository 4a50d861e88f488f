"""Data parallelism: the mesh of all devices, and the mapping of a per-device step over it.

A step is written for one device: it sees its share of the batch, and `lax.pmean(..., AXIS)` is the mean over all.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxcolor.config import check_section

AXIS = 'data'
_REPLICATED, _SPLIT = PartitionSpec(), PartitionSpec(AXIS)
_LEVEL = 'xla_backend_optimization_level'


@functools.cache
def compiler_options(once: bool = False) -> dict | None:
    """Options for `jax.jit` on this machine's devices.

    On CPUs, jaxlib 0.10 hands single convolutions to YNNPACK, which takes a third longer over them than XLA itself. A
    jaxlib that does not know the option refuses it when it compiles, so it is tried on something small.

    Args:
        once: for a program that runs once, as the one that draws the parameters: optimized less, it compiles on CPUs in
            a third of the time and runs as fast.
    """
    options = {'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT'}
    if once and _LEVEL not in os.environ.get('XLA_FLAGS', ''):
        options[_LEVEL] = 1
    if jax.default_backend() != 'cpu':
        return None
    try:
        jax.jit(lambda x: x + 1, compiler_options=options).lower(0.0).compile()
    except (jax.errors.JaxRuntimeError, ValueError):
        return None
    return options


def mean_over_batch(function: Callable[[Any], Any], batch: Any, accumulation_steps: int = 1) -> Any:
    """Inside a device's step: the mean of `function(part of the batch)` over all parts of all devices.

    A device runs its parts one after the other in the memory of one: gradient accumulation. Of N parts, part i of device d
    is what device `d * N + i` of N times as many devices would have, so the result is the same as theirs.

    Args:
        function: takes a tree of arrays like `batch`, returns one of float arrays.
        batch: this device's rows (B, ...) of every array.
        accumulation_steps: parts of the batch, a divisor of B.
    """
    if accumulation_steps == 1:
        return lax.pmean(function(batch), AXIS)
    cut = jax.tree.map(lambda x: x.reshape(accumulation_steps, -1, *x.shape[1:]), batch)
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], cut))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, function(part)), None), zeros, cut)
    return lax.pmean(jax.tree.map(lambda x: x / accumulation_steps, total), AXIS)


class DataParallel:
    """Maps per-device steps over devices: state is replicated, batches are split along their first axis.

    Args:
        mapping: 'shard_map' (under jit) or 'pmap'; the numbers are the same.
        devices: the devices to use, all by default.
    """

    def __init__(self, mapping: str = 'shard_map', devices=None):
        check_section('train', {'mapping': mapping})
        devices = jax.devices() if devices is None else devices
        self.mapping = mapping
        self.mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
        self.replicated = NamedSharding(self.mesh, _REPLICATED)
        self.split = NamedSharding(self.mesh, _SPLIT)

    @property
    def device_count(self) -> int:
        """Devices of all processes."""
        return self.mesh.size

    def create(self, make, *arguments):
        """Runs `make(*arguments)` once, compiled, with its result on every device."""
        return jax.jit(make, out_shardings=self.replicated, compiler_options=compiler_options(once=True))(*arguments)

    def replicate(self, tree):
        """Puts a copy of every array on every device."""
        return jax.device_put(tree, self.replicated)

    def shard(self, batch):
        """This process's rows of a batch (NumPy, first axis) -> global arrays, split over all devices in order."""
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.split, np.asarray(x)), batch)

    def map(self, step, outputs=(False, False), donate_state: bool = False):
        """Compiles `step(state, batch, *replicated)` of one device into one of all devices.

        Args:
            step: takes the replicated state, the device's share of the batch and whatever more is replicated; returns a
                tuple.
            outputs: for each of the step's outputs, whether it is split along the batch (True) or equal on all devices.
            donate_state: whether the state's memory is used for the new one, so that the caller's copy is gone.
        """
        donated = (0,) if donate_state else ()
        if self.mapping == 'pmap':
            axes = tuple(0 if is_split else None for is_split in outputs)
            mapped = jax.pmap(
                lambda state, batch, replicated: step(state, batch, *replicated),
                AXIS,
                in_axes=(None, 0, None),
                out_axes=axes,
                devices=list(self.mesh.devices),
                donate_argnums=donated,
            )
            n = self.device_count

            def call(state, batch, *replicated):
                batch = jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), batch)
                results = mapped(state, batch, replicated)
                return tuple(
                    jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), result) if is_split else result
                    for result, is_split in zip(results, outputs, strict=True)
                )

            return call
        specs = tuple(_SPLIT if is_split else _REPLICATED for is_split in outputs)
        # check_vma=False: a gradient inside is the device's own, as under pmap, and pmean'ing it is right for both.
        mapped = jax.shard_map(
            lambda state, batch, replicated: step(state, batch, *replicated),
            mesh=self.mesh,
            in_specs=(_REPLICATED, _SPLIT, _REPLICATED),
            out_specs=specs,
            check_vma=False,
        )
        return jax.jit(
            lambda state, batch, *replicated: mapped(state, batch, replicated),
            donate_argnums=donated,
            compiler_options=compiler_options(),
        )
