"""The layers against Flax's own, with and without CPU kernels."""

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


@pytest.mark.parametrize('strides', [1, 2])
@pytest.mark.parametrize('size', [(8, 8), (7, 9)])
@pytest.mark.parametrize('kernels', [(), CPU_KERNELS])
def test_gradients_of_transposed_convolutions_are_those_of_jax(size, strides, kernels):
    """Of the largest: sums of some thousand products, regrouped."""
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, *size, 3), (3, 3, 3, 5)))

    def theirs(x, w):
        return lax.conv_transpose(x, w, (strides,) * 2, 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

    with only_cpu_kernels(kernels):
        found, pullback = jax.vjp(lambda x, w: layers.conv_transpose2d(x, w, strides=strides), x, w)
        expected, their_pullback = jax.vjp(theirs, x, w)
        gradient = jnp.asarray(rng.normal(size=found.shape), jnp.float32)
        pairs = zip((found, *pullback(gradient)), (expected, *their_pullback(gradient)), strict=True)
        for a, b in pairs:
            tolerance = 128 * np.finfo(np.float32).eps * np.abs(b).max()
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def test_no_window_of_a_transposed_convolution_is_larger_than_its_kernel():
    """In what a GPU gets: forward pass and gradients."""
    x, w = jnp.zeros((2, 28, 28, 8)), jnp.zeros((3, 3, 8, 4))

    def loss(x, w):
        return jnp.sum(jnp.square(layers.conv_transpose2d(x, w, strides=2)))

    program = jax.jit(jax.grad(loss, (0, 1))).trace(x, w).lower(lowering_platforms=('cuda',)).as_text()
    convolutions = [line for line in program.splitlines() if 'stablehlo.convolution' in line]
    assert len(convolutions) == 3
    for line in convolutions:
        # A larger window is that of a gradient to a strided convolution's kernel, which cuDNN knows, and dilates no image.
        is_small = re.search(r', tensor<3x3x\d+x\d+xf32>\) ->', line)
        assert is_small or ('lhs_dilate = [1, 1]' in line and 'rhs_dilate = [2, 2]' in line), line
