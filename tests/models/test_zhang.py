"""The networks eccv16 and siggraph17: sizes, hints, batch norm in training, what the tasks say of their fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcolor import config as base
from jaxcolor import models, tasks
from jaxcolor.errors import UserError
from jaxcolor.models.zhang_layers import Doubling

WIDTH = 1 / 16
NETWORKS = {
    'eccv16': (base.eccv16(), 'color_logits', 4, 313),
    'eccv16, regression': ({**base.eccv16(), 'color_classes': 0}, 'ab', 4, 2),
    'siggraph17': (base.siggraph17(), 'ab', 1, 2),
}


def made(name, size=(32, 40)):
    """(network, variables, L*/100 of two photos)"""
    network = models.build({**NETWORKS[name][0], 'width': WIDTH})
    lightness = jax.random.uniform(jax.random.key(1), (2, *size, 1))
    return network, jax.jit(network.init)(jax.random.key(0), lightness), lightness


@pytest.mark.parametrize('size', [(64, 96), (75, 101), (1, 1)])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('name', NETWORKS)
def test_output_sizes(name, size, dtype):
    section, output, stride, channels = NETWORKS[name]
    network = models.build({**section, 'dtype': dtype})
    lightness = jax.ShapeDtypeStruct((2, *size, 1), jnp.float32)
    outputs, variables = jax.eval_shape(lambda x: network.init_with_output(jax.random.key(0), x), lightness)
    height, width = (-(-side // stride) for side in size)
    assert {key: (x.shape, x.dtype) for key, x in outputs.items()} == {output: ((2, height, width, channels), jnp.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


@pytest.mark.parametrize('name', NETWORKS)
def test_sizes_of_the_published_networks_own_outputs(name):
    network = models.build(NETWORKS[name][0])
    x, hints, mask = (jax.ShapeDtypeStruct((1, 56, 72, channels), jnp.float32) for channels in (1, 2, 1))
    given = (x, hints, mask) if name == 'siggraph17' else (x,)
    shape, _ = jax.eval_shape(lambda *x: network.init_with_output(jax.random.key(0), *x, method='published'), *given)
    assert shape.shape == (1, 56, 72, 2)


def test_other_classes_than_the_paper_s_have_no_published_form():
    network = models.build({**base.eccv16(), 'color_classes': 260})
    lightness = jnp.zeros((1, 8, 8, 1))
    with pytest.raises(UserError, match=r"model.color_classes=260: the published network's is 313, or 0"):
        jax.eval_shape(lambda x: network.init_with_output(jax.random.key(0), x, method='published'), lightness)


@pytest.mark.parametrize(
    'name', [name if name == 'eccv16' else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_training_changes_the_batch_statistics_and_every_kernel(name):
    network, variables, lightness = made(name)

    @jax.jit
    def step(params):
        def loss(params):
            state = {**variables, 'params': params}
            outputs, updated = network.apply(state, lightness, train=True, mutable=['batch_stats'])
            return jnp.mean(jnp.square(outputs[NETWORKS[name][1]] - 0.3)), updated

        return jax.grad(loss, has_aux=True)(params)

    gradients, updated = step(variables['params'])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all(), path
        if path[-1].key == 'kernel':
            assert np.abs(leaf).max() > 0, path
    blocks = 7 if name.startswith('eccv16') else 9
    assert len(updated['batch_stats']) == blocks
    for before, after in zip(
        jax.tree.leaves(variables['batch_stats']), jax.tree.leaves(updated['batch_stats']), strict=True
    ):
        assert (before != after).any()


def test_hints_count_where_they_are():
    network, variables, lightness = made('siggraph17', (64, 64))
    apply = jax.jit(network.apply)
    none = apply(variables, lightness)['ab']
    hints = np.zeros((2, 64, 64, 3), np.float32)
    np.testing.assert_array_equal(apply(variables, lightness, hints)['ab'], none)
    hints[0, 8:12, 8:12] = (60, -40, 1)
    hinted = apply(variables, lightness, hints)['ab']
    np.testing.assert_array_equal(hinted[1], none[1])
    change = np.abs(hinted[0] - none[0]).max(axis=-1)
    assert change[8:12, 8:12].mean() > 3 * change[48:, 48:].mean()


def test_the_doubling_is_the_transposed_convolution():
    """Its values one by one: tap t of pixel x falls on place 2x + t - 1 (for the kernel unmirrored, 2x + 2 - t)."""
    layer = Doubling(1)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 2, 1)), jnp.float32)
    kernel = np.random.default_rng(1).normal(size=(4, 4, 1, 1)).astype(np.float32)
    y = layer.apply({'params': {'kernel': kernel, 'bias': np.full(1, 0.5, np.float32)}}, x)
    expected = np.full((8 + 2, 6 + 2), 0.5)
    for i, j, s, t in np.ndindex(3, 2, 4, 4):
        expected[2 * i + 2 - s + 1, 2 * j + 2 - t + 1] += x[0, i, j, 0] * kernel[s, t, 0, 0]
    np.testing.assert_allclose(y[0, :, :, 0], expected[1:7, 1:5], rtol=1e-5, atol=1e-6)


def config_of(model, task):
    config = base.get_config()
    config.model, config.task = model, task
    config.data.crop = 32
    return config


@pytest.mark.parametrize(
    ('model', 'task', 'words'),
    [
        (base.eccv16(), base.regression(), 'model.color_classes is for task.name=color_classes'),
        (base.siggraph17(), base.color_classes(), 'task.name=color_classes is for the networks ltbc, ltbc_lite and eccv16'),
    ],
)
def test_tasks_that_do_not_fit_are_refused(model, task, words):
    with pytest.raises(UserError, match=words):
        tasks.build(config_of(model, task))


def test_there_is_no_style_of_a_network_without_a_vector():
    task = tasks.build(config_of(base.siggraph17(), base.regression()))
    with pytest.raises(UserError, match='siggraph17 has no global features, so it takes no style'):
        task.global_features(None, jnp.zeros((1, 8, 8, 1)))
