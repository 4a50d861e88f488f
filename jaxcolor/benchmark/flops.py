"""Counts the floating-point operations of the convolutions and matrix products of a step.

XLA's count leaves out padding and changes with the implementation of a layer. This one does not, so that an implementation
that needs fewer operations shows as a higher utilization.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

from jaxcolor.models.cpu_kernels import only_cpu_kernels
from jaxcolor.runtime.parallel import AXIS


def count(function: Callable[..., Any], *args: Any) -> int:
    """Multiplications and additions of a per-device step with these arguments (arrays or `jax.ShapeDtypeStruct`)."""
    with only_cpu_kernels(()):
        # A new function, since JAX caches traces by function whatever implementation of a layer they used.
        return _count(jax.make_jaxpr(lambda *args: function(*args), axis_env=[(AXIS, 1)])(*args).jaxpr)


def convolutions(function: Callable[..., Any], *args: Any) -> list[tuple[Any, Any, dict[str, Any]]]:
    """The different convolutions of a per-device step, [(type of the image, of the kernel, the primitive's parameters)]."""
    with only_cpu_kernels(()):
        jaxpr = jax.make_jaxpr(lambda *args: function(*args), axis_env=[(AXIS, 1)])(*args).jaxpr
    found = [(*(x.aval for x in equation.invars), equation.params) for equation in _convolutions(jaxpr)]
    return list({str(each): each for each in found}.values())


def _convolutions(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'conv_general_dilated':
            yield equation
        for inner in _inner(equation.params.values()):
            yield from _convolutions(inner)


def _count(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        repeats = equation.params['length'] if name == 'scan' else 1
        if name == 'conv_general_dilated':
            total += _count_convolution(equation)
        elif name == 'dot_general':
            (contracted, _), _ = equation.params['dimension_numbers']
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
        for inner in _inner(equation.params.values()):
            total += repeats * _count(inner)
    return total


def _count_convolution(equation):
    """2 x outputs x taps x channels; where zeros dilate the input, only the taps that can meet a pixel."""
    kernel, params = equation.invars[1].aval.shape, equation.params
    numbers = params['dimension_numbers'].rhs_spec
    taps = math.prod(kernel[i] for i in numbers[2:]) / math.prod(params['lhs_dilation'])
    return round(2 * equation.outvars[0].aval.size * taps * kernel[numbers[1]])


def _inner(values):
    for value in values:
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _inner(value)
