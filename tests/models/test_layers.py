"""The layers against Flax's own, with and without CPU kernels."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcolor.models import layers
from jaxcolor.models.cpu_kernels import CPU_KERNELS, only_cpu_kernels


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
