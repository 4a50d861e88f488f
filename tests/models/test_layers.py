"""The layers against Flax's own, with and without CPU kernels."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxcolor.models import cpu_convolutions, depthwise, layers
from jaxcolor.models.cpu_kernels import CPU_KERNELS, only_cpu_kernels
from jaxcolor.models.depthwise import depthwise_conv2d

AXES = ('NHWC', 'HWIO', 'NHWC')


@pytest.mark.parametrize('kernels', [(), CPU_KERNELS])
def test_layers_are_those_of_flax(kernels):
    x, key = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 6, 3)), 'float32'), jax.random.PRNGKey(0)
    pairs = [
        (layers.Conv(4, 2, 3, 'SAME'), nn.Conv(4, (3, 3), 2)),
        (layers.Conv(4, 2, 3), nn.Conv(4, (3, 3), 2, padding=1)),
        (layers.ConvTranspose(4, 2), nn.ConvTranspose(4, (3, 3), (2, 2))),
        (layers.ConvTranspose(4), nn.ConvTranspose(4, (3, 3))),
    ]
    with only_cpu_kernels(kernels):
        for ours, theirs in pairs:
            variables = theirs.init(key, x)
            expected = theirs.apply(variables, x)
            np.testing.assert_allclose(ours.apply(variables, x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        for train in (True, False):
            ours, theirs = layers.BatchNorm(train), nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5)
            variables = theirs.init(key, x)
            variables['batch_stats']['var'] = jnp.full(3, 2.0)
            results = [layer.apply(variables, x, mutable=['batch_stats']) for layer in (ours, theirs)]
            for a, b in zip(*map(jax.tree.leaves, results), strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize('kernels', [(), CPU_KERNELS])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('kernel', [3, 5])
@pytest.mark.parametrize('strides', [1, 2])
@pytest.mark.parametrize('size', [(8, 8), (7, 9)])
def test_depthwise_convolutions_are_grouped_ones(size, strides, kernel, dtype, kernels):
    """Values and gradients, against XLA's own in float32; of the largest: a thousand sums, and bfloat16's roundings."""
    rng, half = np.random.default_rng(0), kernel // 2
    padding = ((half - 1, half), (half, half))
    x, w = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((2, *size, 3), (kernel, kernel, 1, 3)))

    def ours(x, w):
        return depthwise_conv2d(x, w, strides=strides, padding=padding)

    def grouped(x, w):
        dimensions = ('NHWC', 'HWIO', 'NHWC')
        return lax.conv_general_dilated(
            x, w, (strides,) * 2, padding, dimension_numbers=dimensions, feature_group_count=3, precision='highest'
        )

    def both(function):
        def value_and_gradients(x, w):
            with only_cpu_kernels(kernels):
                y, pullback = jax.vjp(function, x, w)
                return y, *pullback(jnp.asarray(np.random.default_rng(1).normal(size=y.shape), dtype).astype(y.dtype))

        return jax.jit(value_and_gradients)

    found, expected = both(ours)(x, w), both(grouped)(x.astype(jnp.float32), w.astype(jnp.float32))
    assert found[0].dtype == dtype and found[0].shape == expected[0].shape
    tolerance = 128 * float(jnp.finfo(jnp.float32).eps) if dtype == jnp.float32 else 2 * float(jnp.finfo(dtype).eps)
    for a, b in zip(found, expected, strict=True):
        b = np.asarray(b)
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=0, atol=tolerance * np.abs(b).max())


def test_both_ways_to_join_the_places_of_a_stride():
    phases = list(np.random.default_rng(0).normal(size=(4, 2, 3, 5, 7)).astype(np.float32))
    np.testing.assert_array_equal(depthwise._spread(phases), cpu_convolutions.interleave(phases))


@pytest.mark.parametrize(('platform', 'convolutions'), [('cpu', 0), ('cuda', 0), ('tpu', 3)])
def test_only_tpus_have_grouped_convolutions(platform, convolutions):
    """One for the value, two for the gradients."""
    x, w = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 1, 3))

    def gradients(x, w):
        y, pullback = jax.vjp(lambda *both: depthwise_conv2d(*both, strides=1, padding=((1, 1), (1, 1))), x, w)
        return y, pullback(y)

    program = jax.jit(gradients).trace(x, w).lower(lowering_platforms=(platform,)).as_text()
    assert program.count('stablehlo.convolution') == convolutions


def transposed(strides):
    """Our transposed convolution, and JAX's."""
    return functools.partial(layers.conv_transpose2d, strides=strides), functools.partial(
        lax.conv_transpose, strides=(strides,) * 2, padding='SAME', dimension_numbers=AXES
    )


def dilated(dilation):
    return functools.partial(layers.dilated_conv2d, dilation=dilation), functools.partial(
        lax.conv_general_dilated,
        window_strides=(1, 1),
        padding=((dilation,) * 2,) * 2,
        rhs_dilation=(dilation,) * 2,
        dimension_numbers=AXES,
    )


@pytest.mark.parametrize('kernels', [(), CPU_KERNELS])
@pytest.mark.parametrize('size', [(8, 8), (7, 9)])
@pytest.mark.parametrize('convolutions', [transposed(1), transposed(2), dilated(2), dilated(3)])
def test_gradients_of_convolutions_are_those_of_jax(convolutions, size, kernels):
    """Of the largest: sums of some thousand products, regrouped."""
    rng, (ours, theirs) = np.random.default_rng(0), convolutions
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, *size, 3), (3, 3, 3, 5)))
    with only_cpu_kernels(kernels):
        found, pullback = jax.vjp(ours, x, w)
        expected, their_pullback = jax.vjp(theirs, x, w)
        gradient = jnp.asarray(rng.normal(size=found.shape), jnp.float32)
        pairs = zip((found, *pullback(gradient)), (expected, *their_pullback(gradient)), strict=True)
        for a, b in pairs:
            tolerance = 128 * np.finfo(np.float32).eps * np.abs(b).max()
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize('convolutions', [transposed(2), dilated(2)])
def test_gradients_to_kernels_are_those_that_gpu_libraries_know(convolutions):
    """In what a GPU gets: each convolution has a layer's window, or is a gradient to a layer's kernel."""
    x, w = jnp.zeros((2, 28, 28, 8)), jnp.zeros((3, 3, 8, 4))

    def program(convolution):
        loss = jax.jit(jax.grad(lambda x, w: jnp.sum(jnp.square(convolution(x, w))), (0, 1)))
        text = loss.trace(x, w).lower(lowering_platforms=('cuda',)).as_text()
        return [line for line in text.splitlines() if 'stablehlo.convolution' in line]

    def is_known(line):
        is_small = re.search(r', tensor<3x3x\d+x\d+xf32>\) ->', line)
        return is_small or ('stride = [1, 1]' in line and 'lhs_dilate = [1, 1]' in line)

    ours, theirs = map(program, convolutions)
    assert len(ours) == 3 and all(map(is_known, ours))
    assert not all(map(is_known, theirs))  # else none of ours was needed
