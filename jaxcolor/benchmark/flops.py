"""Floating-point operations of a computation, counted by hand: what the convolutions and matrix products have to do.

XLA's own count leaves out padding and changes with every rewrite of a layer; this one is the same with and without CPU
kernels, so that a kernel which does less work shows as a higher utilization.
"""

import math

import jax
from jax.extend import core

from jaxcolor.models.cpu_kernels import only_cpu_kernels
from jaxcolor.runtime.parallel import AXIS


def count(function, *args) -> int:
    """Multiplications and additions of the convolutions and matrix products of a per-device step, without CPU kernels."""
    with only_cpu_kernels(()):
        # A fresh function: a traced one is remembered together with the CPU kernels that it was traced with.
        return _of(jax.make_jaxpr(lambda *args: function(*args), axis_env=[(AXIS, 1)])(*args).jaxpr)


def _of(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        repeats = equation.params['length'] if name == 'scan' else 1
        if name == 'conv_general_dilated':
            total += _of_convolution(equation)
        elif name == 'dot_general':
            (contracted, _), _ = equation.params['dimension_numbers']
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
        for inner in _inner(equation.params.values()):
            total += repeats * _of(inner)
    return total


def _of_convolution(equation):
    """2 x outputs x taps x channels; of taps on an image dilated by zeros only those that can meet a pixel count."""
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
