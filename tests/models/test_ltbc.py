"""The network `ltbc`: sizes, parameters, sharing, transfer, precision."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcolor import models
from jaxcolor.errors import UserError
from jaxcolor.models import ltbc
from jaxcolor.models.layers import Conv, ConvBlock, ConvTranspose, DeconvBlock, Fusion, upsample

TINY = {'name': 'ltbc', 'dtype': 'float32', 'width': 0.0625, 'classes': 5, 'batch_norm': False, 'global_size': 64}


def shape_of(network, size, method=None):
    lightness = jnp.zeros((2, *size, 1))
    return jax.eval_shape(lambda: network.init_with_output(jax.random.key(0), lightness, method=method))


@pytest.mark.parametrize(
    ('classes', 'classifier_width', 'expected'), [(0, 256, 42_169_826), (205, 256, 42_353_839), (365, 400, 42_521_391)]
)
def test_parameter_counts(classes, classifier_width, expected):
    config = {'name': 'ltbc', 'dtype': 'float32', 'batch_norm': False}
    network = models.build({**config, 'classes': classes, 'classifier_width': classifier_width})
    _, variables = shape_of(network, (224, 224))
    assert set(variables) == {'params'}
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == expected


@pytest.mark.parametrize(
    ('size', 'half'), [((224, 224), (112, 112)), ((256, 320), (128, 160)), ((225, 131), (113, 66)), ((1, 1), (1, 1))]
)
def test_output_sizes(size, half):
    outputs, _ = shape_of(models.build(TINY), size)
    assert outputs['ab'].shape == (2, *half, 2)
    assert outputs['logits'].shape == (2, 5)
    assert outputs['ab'].dtype == jnp.float32


def test_shared_low_level_features_equal_two_passes():
    network = models.build(TINY)
    lightness = jax.random.uniform(jax.random.key(1), (2, 64, 64, 1))
    variables = network.init(jax.random.key(0), lightness)
    shared = network.apply(variables, lightness)
    # `global_features` computes the low-level features again, from its own (here: equal) copy.
    features, logits = network.apply(variables, lightness, method='global_features')
    separate = network.apply(variables, lightness, features)
    np.testing.assert_allclose(shared['ab'], separate['ab'], rtol=0, atol=1e-5)  # of 1
    np.testing.assert_allclose(shared['logits'], logits, rtol=0, atol=1e-5 * np.abs(logits).max())


def test_low_level_features_are_computed_once_at_the_global_size():
    network = models.build(TINY)

    def convolutions(size):
        lightness = jnp.zeros((1, size, size, 1))
        variables = jax.eval_shape(lambda: network.init(jax.random.key(0), lightness))
        jaxpr = jax.make_jaxpr(network.apply)(variables, lightness)
        return str(jaxpr).count('conv_general_dilated[')

    assert convolutions(96) - convolutions(64) == 6


def test_global_features_affect_the_colors_through_the_fusion_only():
    network = models.build(TINY)
    first, second = jax.random.uniform(jax.random.key(1), (2, 1, 32, 32, 1))
    variables = network.init(jax.random.key(0), first)
    own, other = (network.apply(variables, x, method='global_features')[0] for x in (first, second))
    plain = network.apply(variables, first)['ab']
    np.testing.assert_allclose(network.apply(variables, first, own)['ab'], plain, rtol=0, atol=1e-5)  # of 1
    assert np.abs(network.apply(variables, first, other)['ab'] - plain).max() > 1e-4
    # With the global part of the fusion's kernel at zero, nothing of the other photo gets through.
    local = variables['params']['fusion']['kernel'].shape[2] - own.shape[1]
    variables['params']['fusion']['kernel'] = variables['params']['fusion']['kernel'].at[:, :, local:].set(0.0)
    np.testing.assert_array_equal(network.apply(variables, first, other)['ab'], network.apply(variables, first, own)['ab'])


def test_fusion_is_a_1x1_convolution_over_the_joined_channels():
    local = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    vector = jax.random.normal(jax.random.key(1), (2, 7))
    fused, variables = Fusion(6).init_with_output(jax.random.key(2), local, vector)
    joined = jnp.concatenate([local, jnp.broadcast_to(vector[:, None, None], (2, 3, 4, 7))], axis=-1)
    kernel = variables['params']['kernel']
    expected = jax.lax.conv_general_dilated(joined, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    np.testing.assert_allclose(fused, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_upsample_repeats_each_pixel():
    x = jnp.arange(24.0).reshape(1, 3, 4, 2)
    np.testing.assert_array_equal(upsample(x), jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))


def test_dropout_depends_on_the_photo_and_the_step_only():
    network = models.build({**TINY, 'global_dropout': 0.5})
    lightness = jax.random.uniform(jax.random.key(1), (3, 64, 64, 1))
    variables = network.init(jax.random.key(0), lightness)

    def global_features(lightness, step, train=True):
        rngs = {'dropout': jax.random.key(step)}
        return network.apply(variables, lightness, train=train, rngs=rngs, method='global_features')[0]

    together = global_features(lightness, 0)
    np.testing.assert_allclose(together[2:], global_features(lightness[2:], 0), rtol=0, atol=1e-5 * np.abs(together).max())
    assert np.abs(together - global_features(lightness, 1)).max() > 1e-3
    plain = models.build(TINY).apply(variables, lightness, method='global_features')[0]
    np.testing.assert_array_equal(global_features(lightness, 0, train=False), plain)
    values = jnp.ones((3, 4000))
    dropped = ltbc.dropout_by_photo(values, lightness, jax.random.key(0), 0.5)
    assert set(np.unique(dropped)) == {0.0, 2.0}
    np.testing.assert_allclose(dropped.mean(axis=1), 1, atol=0.1)  # the mean stays; 0.016 is its standard deviation


def test_bfloat16_keeps_float32_parameters_and_outputs():
    full, half = models.build(TINY), models.build({**TINY, 'dtype': 'bfloat16'})
    lightness = jax.random.uniform(jax.random.key(1), (2, 64, 64, 1))
    variables = half.init(jax.random.key(0), lightness)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    output = half.apply(variables, lightness)
    assert output['ab'].dtype == output['logits'].dtype == jnp.float32
    exact = full.apply(variables, lightness)
    assert 0 < np.abs(output['ab'] - exact['ab']).max() < 2 * 2**-8  # two steps of bfloat16 about one half
    np.testing.assert_allclose(output['logits'], exact['logits'], rtol=0, atol=8 * 2**-8 * np.abs(exact['logits']).max())


DENSE = {'global_dense_0', 'global_dense_1', 'global_dense_2', 'classifier_hidden'}


@pytest.mark.parametrize(
    ('change', 'without'),
    [
        ({}, {'output', 'classifier', 'fusion'}),
        ({'decoder': 'deconv'}, {'output', 'classifier', 'fusion'}),
        ({'batch_norm_dense': False}, {'output', 'classifier', 'fusion', *DENSE}),
        ({'batch_norm_dense': False, 'batch_norm_fusion': True, 'decoder': 'deconv'}, {'output', 'classifier', *DENSE}),
        ({'batch_norm_output': True}, {'classifier', 'fusion'}),
        ({'batch_norm_output': True, 'decoder': 'deconv'}, {'classifier', 'fusion'}),
        ({'batch_norm_output': True, 'batch_norm_fusion': True, 'color_classes': 7}, {'classifier'}),
    ],
)
def test_which_layers_have_batch_norm(change, without):
    _, variables = shape_of(models.build({**TINY, 'batch_norm': True, **change}), (64, 64))
    layers = set(variables['params'])
    for collection in ('batch_stats', 'params'):
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(variables[collection])]
        normed = {path[0].key for path in paths if path[1].key == 'norm'}
        assert layers - normed == without
    switched_off = models.build({**TINY, **change, 'batch_norm_fusion': True})
    assert set(shape_of(switched_off, (64, 64))[1]) == {'params'}


def test_batch_norm_of_the_fusion():
    """It stands between the 1x1 convolution and its ReLU, with the statistics of all pixels of the batch."""
    rng = np.random.default_rng(0)
    local, vector = (rng.standard_normal(shape, np.float32) for shape in [(2, 4, 6, 5), (2, 3)])
    network = Fusion(7, batch_norm=True)
    variables = network.init(jax.random.key(0), local, vector)
    before = Fusion(7).apply({'params': {key: variables['params'][key] for key in ('kernel', 'bias')}}, local, vector)
    after, new = network.apply(variables, local, vector, True, mutable=['batch_stats'])
    mean, var = np.mean(before, axis=(0, 1, 2)), np.var(before, axis=(0, 1, 2))
    np.testing.assert_allclose(after, (before - mean) / np.sqrt(var + 1e-5), rtol=0, atol=1e-5)
    np.testing.assert_allclose(new['batch_stats']['norm']['mean'], 0.1 * mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize('decoder', ['nearest', 'deconv'])
@pytest.mark.parametrize(('space', 'name', 'channels'), [('lab', 'ab', 2), ('yuv', 'uv', 2), ('rgb', 'rgb', 3)])
def test_output_spaces(space, name, channels, decoder):
    outputs, variables = shape_of(models.build({**TINY, 'width': 1.0, 'decoder': decoder, 'output_space': space}), (64, 64))
    side = 32 if decoder == 'nearest' else 64
    assert {key: value.shape for key, value in outputs.items()} == {name: (2, side, side, channels), 'logits': (2, 5)}
    (kernel,) = (leaf for leaf in jax.tree.leaves(variables['params']['output']) if leaf.ndim == 4)
    assert kernel.shape == (3, 3, 32, channels)


@pytest.mark.parametrize('decoder', ['nearest', 'deconv'])
def test_residual_connections(decoder):
    """Layers with inputs and outputs of one shape add their input ahead of the ReLU, and no others; no parameters more."""
    plain, residual = (models.build({**TINY, 'decoder': decoder, 'residual': each}) for each in (False, True))
    lightness = jax.random.uniform(jax.random.key(1), (2, 64, 64, 1))
    variables = plain.init(jax.random.key(0), lightness)
    shapes = jax.eval_shape(lambda: residual.init(jax.random.key(0), lightness))
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)

    def difference_of_layers(network):
        seen = {}

        def watch(next_function, args, kwargs, context):
            output = next_function(*args, **kwargs)
            if context.method_name == '__call__' and isinstance(context.module, (Conv, ConvTranspose)):
                seen[context.module.path[0], 'convolved'] = output
            elif context.method_name == '__call__' and isinstance(context.module, (ConvBlock, DeconvBlock)):
                seen[context.module.path[0], 'input'], seen[context.module.path[0], 'output'] = args[0], output
            return output

        with nn.intercept_methods(watch):
            network.apply(variables, lightness)
        return seen

    seen = difference_of_layers(residual)
    added = []
    for layer, part in seen:
        if part == 'input' and layer != 'output':
            x, convolved, y = (seen[layer, each] for each in ('input', 'convolved', 'output'))
            if np.allclose(y, nn.relu(convolved), rtol=0, atol=1e-6):
                continue
            np.testing.assert_allclose(y, nn.relu(convolved + x), rtol=0, atol=1e-5 * np.abs(y).max())
            added.append(layer)
    # 512 to 512 filters in the middle, twice globally, and 64 to 64 in the decoder.
    assert sorted(added) == ['color_2', 'global_conv_1', 'global_conv_3', 'mid_0']


def test_an_ensemble_averages_log_probabilities():
    config = {**TINY, 'color_classes': 7}
    network, single = models.build({**config, 'members': 2}), models.build(config)
    lightness = jax.random.uniform(jax.random.key(1), (2, 32, 32, 1))
    variables = network.init(jax.random.key(0), lightness)
    own = [{'params': variables['params'][f'members_{number}']} for number in range(2)]
    both, first, second = (
        net.apply(values, lightness) for net, values in [(network, variables), (single, own[0]), (single, own[1])]
    )
    assert set(both) == set(first) == {'color_logits', 'logits'}
    for name in both:
        expected = jnp.sqrt(jax.nn.softmax(first[name]) * jax.nn.softmax(second[name]))
        likely = jax.nn.softmax(both[name])
        np.testing.assert_allclose(likely, expected / expected.sum(axis=-1, keepdims=True), rtol=0, atol=1e-5)
        assert np.abs(likely - jax.nn.softmax(first[name])).max() > 1e-3


def test_invalid_configs_are_refused():
    refused = [({'name': 'x'}, 'no network'), ({'dtype': 'half'}, 'bfloat16'), ({'depth': 3}, 'no such field')]
    refused += [({'global_dropout': 1.0}, 'must lie between 0 and 0.99'), ({'members': 0}, 'at least 1')]
    for change, word in refused:
        with pytest.raises(UserError, match=word):
            models.build({**TINY, **change})
