"""The second form of each layer is the first: the same values and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcolor.models import blocks

TOLERANCE = {'float32': 1e-5, 'bfloat16': 0.03}  # of the largest value


def random(*shape, dtype='float32', seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def assert_equal_forms(function, *inputs):
    """Values, and gradients to every input, of the first form and of the second."""
    results = []
    for layers in ((), blocks.FORMS):
        with blocks.second_form_of(layers):
            outputs, pullback = jax.vjp(lambda *inputs: function(*inputs), *inputs)
            gradients = jax.tree.map(lambda y: random(*y.shape, dtype=y.dtype, seed=1), outputs)
            results.append((str(jax.make_jaxpr(lambda *inputs: function(*inputs))(*inputs)), (outputs, pullback(gradients))))
    (first_program, first), (second_program, second) = results
    assert first_program != second_program
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE[inputs[0].dtype.name] * np.abs(a).max())


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('size', [(8, 8), (7, 9), (6, 11)])
class TestForms:
    @pytest.mark.parametrize('kernel', [3, 5])
    @pytest.mark.parametrize('padding', ['symmetric', 'SAME'])
    def test_strided(self, size, dtype, kernel, padding):
        layer = blocks.Conv(4, 2, kernel, padding, dtype=dtype)
        params = {'kernel': random(kernel, kernel, 3, 4), 'bias': random(4)}
        assert_equal_forms(lambda x, params: layer.apply({'params': params}, x), random(2, *size, 3, dtype=dtype), params)

    def test_upsampled(self, size, dtype):
        layer = blocks.Conv(4, upsampled=True, dtype=dtype)
        params = {'kernel': random(3, 3, 3, 4), 'bias': random(4)}
        assert_equal_forms(lambda x, params: layer.apply({'params': params}, x), random(2, *size, 3, dtype=dtype), params)

    def test_transposed(self, size, dtype):
        layer = blocks.ConvTranspose(4, 2, dtype=dtype)
        params = {'kernel': random(3, 3, 3, 4), 'bias': random(4)}
        assert_equal_forms(lambda x, params: layer.apply({'params': params}, x), random(2, *size, 3, dtype=dtype), params)

    def test_normalized(self, size, dtype):
        layer = blocks.BatchNorm(train=True, dtype=dtype)
        params = {'scale': random(3), 'bias': random(3)}
        statistics = {'mean': random(3), 'var': jnp.ones(3)}

        def outputs_and_statistics(x, params):
            return layer.apply({'params': params, 'batch_stats': statistics}, x, mutable=['batch_stats'])

        assert_equal_forms(outputs_and_statistics, random(2, *size, 3, dtype=dtype), params)


@pytest.mark.parametrize('size', [(32, 32), (31, 35)])
def test_winograd(size):
    layer = blocks.Conv(256)
    params = {'kernel': random(3, 3, 128, 256) / 34, 'bias': random(256)}
    assert_equal_forms(lambda x, params: layer.apply({'params': params}, x), random(2, *size, 128), params)


def test_plain_forms_are_those_of_flax():
    x, key = random(2, 8, 6, 3), jax.random.PRNGKey(0)
    pairs = [
        (blocks.Conv(4, 2, 3, 'SAME'), nn.Conv(4, (3, 3), 2)),
        (blocks.Conv(4, 2, 3), nn.Conv(4, (3, 3), 2, padding=1)),
        (blocks.ConvTranspose(4, 2), nn.ConvTranspose(4, (3, 3), (2, 2))),
        (blocks.ConvTranspose(4), nn.ConvTranspose(4, (3, 3))),
    ]
    for ours, theirs in pairs:
        variables = theirs.init(key, x)
        np.testing.assert_allclose(ours.apply(variables, x), theirs.apply(variables, x), atol=1e-5)
    for train in (True, False):
        ours, theirs = blocks.BatchNorm(train), nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5)
        variables = theirs.init(key, x)
        variables['batch_stats']['var'] = jnp.full(3, 2.0)
        results = [layer.apply(variables, x, mutable=['batch_stats']) for layer in (ours, theirs)]
        for a, b in zip(*map(jax.tree.leaves, results), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
