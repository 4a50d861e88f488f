"""CPU kernels: some operations written by hand, with the same values and gradients, because CPUs are faster so.

What makes an operation have one, and those of sums and of attention; `cpu_convolutions` has those of convolutions, `parts`
those of layers whose maps lie in no cache (by single photos of a batch, or by bands of a photo):

- the gradient of depthwise convolutions to their kernel by one loop with a sum for each of the kernel's pixels;
- the sums of batch norm 16 rows at a time, since of longer sums XLA makes loops that use no vectors; those of biases'
  gradients by matrix products;
- attention head by head, so that what one head sees stays in the caches and no head's axis is moved.

The README has the timings. A kernel is used where a program is lowered for CPUs, on whatever machine: a program exported
for CUDA has the plain operations.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

CPU_KERNELS = (
    'strided',
    'winograd',
    'narrow',
    'dilated',
    'gradients',
    'upsampled',
    'transposed',
    'depthwise',
    'sums',
    'attention',
    'bands',
    'photos',
    'parts',
)

_enabled = contextvars.ContextVar('cpu_kernels', default=frozenset(CPU_KERNELS))


@contextlib.contextmanager
def setting(variable: contextvars.ContextVar[Any], value: Any) -> Iterator[None]:
    """A context variable has this value inside."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def only_cpu_kernels(names: Iterable[str]) -> contextlib.AbstractContextManager[None]:
    """Only these of CPU_KERNELS are used in what is traced inside; for comparisons. `()` turns all off."""
    return setting(_enabled, frozenset(names))


class CPUKernel(NamedTuple):
    """How CPUs compute an operation `(*arrays, **options)`.

    Attributes:
        name: one of CPU_KERNELS.
        forward: takes the operation's arguments; None where the operation itself is fast.
        backward: takes the gradient of the output, then the operation's arguments; returns the gradient of every array.
            None where that of the operation itself is fast.
        suits: takes the operation's arguments; whether the kernel can compute them, and faster.
    """

    name: str
    forward: Callable | None = None
    backward: Callable | None = None
    suits: Callable[..., bool] = lambda *arrays, **options: True


def is_used(kernel: CPUKernel, *arrays: Any, **options: Any) -> bool:
    """Whether a kernel is enabled and suits the arguments."""
    return kernel.name in _enabled.get() and kernel.suits(*arrays, **options)


def on_cpus(*kernels: CPUKernel) -> Callable[[Callable], Callable]:
    """Decorates an operation: on CPUs, the first enabled kernel that suits the arguments computes it."""

    def decorate(operation):
        @functools.wraps(operation)
        def dispatch(*arrays, **options):
            for kernel in kernels:
                if is_used(kernel, *arrays, **options):
                    return _by_platform(operation, kernel, options)(*arrays)
            return operation(*arrays, **options)

        return dispatch

    return decorate


def _by_platform(operation, kernel, options):
    """The operation, with the kernel in its place where it is lowered for CPUs.

    Forward and backward pass each choose: differentiating through the choice would keep the residuals of both branches.
    """

    def choose(for_cpus, otherwise, *arrays):
        otherwise = functools.partial(otherwise, **options)
        if for_cpus is None:
            return otherwise(*arrays)
        return lax.platform_dependent(*arrays, cpu=functools.partial(for_cpus, **options), default=otherwise)

    def forward(*arrays):
        return choose(kernel.forward, operation, *arrays)

    chosen = jax.custom_vjp(forward)
    chosen.defvjp(
        lambda *arrays: (forward(*arrays), arrays),
        lambda arrays, gradient: choose(kernel.backward, vjp(operation), gradient, *arrays),
    )
    return chosen


def vjp(operation: Callable) -> Callable:
    """The backward pass that JAX derives: takes the gradient of the output, then the operation's arguments."""
    return lambda gradient, *arrays, **options: jax.vjp(functools.partial(operation, **options), *arrays)[1](gradient)


def _sums_of_products(x, *others):
    """Photo by photo: the rounding grows with the number of terms of a sum."""
    zeros = [np.zeros((), x.dtype)] * len(others)
    sums = lax.reduce([x * other for other in others], zeros, lambda a, b: list(map(jnp.add, a, b)), (1, 2))
    return jnp.sum(jnp.stack(sums), axis=1)


SUMS_OF_PRODUCTS = CPUKernel('depthwise', forward=_sums_of_products)


def _sums_of_rows(*arrays):
    """n > 1 of (..., C) -> n of (C,). Up to 16 rows at a time, over and over: so the loop over C is a vector's."""
    C = arrays[0].shape[-1]
    rows = arrays[0].size // C
    zeros = [np.zeros((), x.dtype) for x in arrays]
    while rows > 1:
        few = next((n for n in range(16, 1, -1) if rows % n == 0), rows)
        rows //= few
        parts = [x.reshape(rows, few, C) for x in arrays]
        arrays = lax.reduce(parts, zeros, lambda a, b: list(map(jnp.add, a, b)), (1,))
    return [x.reshape(C) for x in arrays]


def _moments(x):
    count = x.size // x.shape[-1]
    total, squares = _sums_of_rows(x, x * x)
    return total / count, squares / count


def _scale_and_shift_backward(gradient, x, scale, shift):
    return gradient * scale, *_sums_of_rows(gradient * x, gradient)


def _add_bias_backward(gradient, x, bias):
    """The sum by products with ones: a loop for a single sum is slow in any form."""
    C = bias.size
    count = gradient.size // C
    # In two steps: a product adds its terms one after the other, and the rounding grows with their number.
    parts = math.gcd(count, 2**5)
    rows = gradient.astype(jnp.float32).reshape(count // parts, parts * C)
    sums = jnp.dot(jnp.ones(count // parts, jnp.float32), rows, precision='highest').reshape(parts, C)
    return gradient, jnp.sum(sums, axis=0).astype(bias.dtype)


ADD_BIAS = CPUKernel('sums', backward=_add_bias_backward)
MOMENTS = CPUKernel('sums', forward=_moments)
SCALE_AND_SHIFT = CPUKernel('sums', backward=_scale_and_shift_backward)


def _attention(queries, keys, values, *, heads):
    parts = zip(*(jnp.split(x, heads, axis=-1) for x in (queries, keys, values)), strict=True)
    return jnp.concatenate([_attention_of_head(*part) for part in parts], axis=-1)


def _attention_of_head(queries, keys, values):
    """(B, Q, d), (B, N, d), (B, N, d) -> (B, Q, d)"""
    scores = jnp.einsum('bqd,bnd->bqn', queries, keys, preferred_element_type=jnp.float32)
    seen = jax.nn.softmax(scores / math.sqrt(queries.shape[-1])).astype(values.dtype)
    return jnp.einsum('bqn,bnd->bqd', seen, values)


ATTENTION = CPUKernel('attention', _attention, vjp(_attention))
