"""Batch norms folded into the layers ahead of them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers import small_recipe

from jaxcolor import tasks
from jaxcolor.models.folding import fold_batch_norms
from jaxcolor.models.layers import ConvBlock, DeconvBlock, DenseBlock, Fusion


def trained_like(variables):
    """Variables whose batch norms have seen something: random scales, biases, means and variances."""
    rng = np.random.default_rng(0)

    def of(path, value):
        if path[-1].key in ('scale', 'var'):
            return rng.uniform(0.5, 2, value.shape).astype(np.float32)
        return value + rng.uniform(-0.5, 0.5, value.shape).astype(np.float32) if path[-1].key in ('bias', 'mean') else value

    return jax.tree_util.tree_map_with_path(of, variables)


@pytest.mark.parametrize(
    ('layer', 'shapes'),
    [
        (ConvBlock(5, 2, batch_norm=True), [(2, 9, 7, 3)]),
        (ConvBlock(3, batch_norm=True, residual=True, epsilon=0.1), [(2, 9, 7, 3)]),
        (DeconvBlock(5, 2, batch_norm=True), [(2, 5, 7, 3)]),
        (DenseBlock(5, batch_norm=True), [(2, 7)]),
        (Fusion(5, batch_norm=True), [(2, 5, 7, 3), (2, 4)]),
    ],
)
def test_layers(layer, shapes):
    inputs = [np.random.default_rng(1).normal(size=shape).astype(np.float32) for shape in shapes]

    class Predicting(nn.Module):
        inner: nn.Module

        def __call__(self, *inputs):
            return self.inner(*inputs, False)

    network = Predicting(layer)
    variables = trained_like(network.init(jax.random.PRNGKey(0), *inputs))
    folded = fold_batch_norms(network, variables, *inputs)
    assert not jax.tree.leaves(folded['batch_stats'])
    expected = network.apply(variables, *inputs)
    np.testing.assert_allclose(network.apply(folded, *inputs), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ('recipe', 'left'),  # batch norms that do not follow a linear layer
    [
        ('ltbc', 0),
        ('ltbc_deconv', 0),
        pytest.param('ltbc_lite', 0, marks=pytest.mark.slow),
        ('vgg_fusion', 2),
        ('eccv16', 7),
    ],
)
def test_networks(recipe, left):
    task = tasks.build(small_recipe(recipe))
    shapes = task.network_inputs()
    variables = task.network.init(jax.random.PRNGKey(0), *(jnp.zeros(each.shape) for each in shapes))
    variables = trained_like(variables)
    folded = fold_batch_norms(task.network, variables, *shapes)
    norms = [path[:-1] for path in flatten_dict(folded['batch_stats']) if path[-1] == 'mean']
    assert len(norms) == left
    inputs = [np.random.default_rng(2).uniform(0, 1, each.shape).astype(np.float32) for each in shapes]
    before, after = (jax.jit(task.network.apply)(v, *inputs) for v in (variables, folded))
    for name, expected in before.items():
        np.testing.assert_allclose(after[name], expected, rtol=0, atol=1e-4 * np.abs(expected).max(), err_msg=name)
