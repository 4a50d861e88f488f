"""The network `ltbc_lite`: sizes, the encoder, its weights and its learning rate, style transfer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcolor import color, models, tasks
from jaxcolor import config as base
from jaxcolor.benchmark.torch_comparison import random_state
from jaxcolor.errors import UserError
from jaxcolor.models import efficientnet_lite, extractors
from jaxcolor.recipes import load_recipe
from jaxcolor.runtime.parallel import DataParallel
from jaxcolor.tasks import optimizers
from jaxcolor.weights import imagenet, runs

MODEL = {**base.ltbc_lite(), 'width': 0.125, 'vector': 8}


@functools.cache
def drawn():
    """The variables of MODEL, at random: JAX takes longer to compile how a network is initialized than to run it."""
    config = load_recipe('ltbc_lite:regression')
    config.model.update(MODEL)
    state = random_state(tasks.build(config), config)
    return {'params': state.params, **state.model_state}


def made(**fields):
    """(network, variables, L*/100 of two photos)"""
    return models.build({**MODEL, **fields}), drawn(), jax.random.uniform(jax.random.key(1), (2, 64, 64, 1))


@pytest.mark.parametrize('size', [(96, 96), (75, 101), (1, 1)])
@pytest.mark.parametrize(('classes', 'stride', 'name'), [(0, 2, 'ab'), (7, 4, 'color_logits')])
@pytest.mark.parametrize('variant', ['lite0', 'lite2'])
def test_output_sizes(size, classes, stride, name, variant):
    network = models.build({**MODEL, 'color_classes': classes, 'variant': variant, 'dtype': 'bfloat16'})
    lightness = jax.ShapeDtypeStruct((2, *size, 1), jnp.float32)
    outputs, _ = jax.eval_shape(lambda x: network.init_with_output(jax.random.key(0), x), lightness)
    height, width = (-(-side // stride) for side in size)
    assert {key: (x.shape, x.dtype) for key, x in outputs.items()} == {name: ((2, height, width, classes or 2), jnp.float32)}


def test_the_encoder_sees_the_photo_in_gray():
    network, variables, lightness = made()

    @jax.jit
    def stem(variables, lightness):
        is_stem = {'capture_intermediates': lambda module, _: module.name == 'stem', 'mutable': ['intermediates']}
        _, seen = network.apply(variables, lightness, **is_stem)
        return seen['intermediates']['encoder']['stem']['__call__'][0]

    encoder = efficientnet_lite.EfficientNetLite().bind({name: variables[name]['encoder'] for name in variables})
    rgb = color.lab_to_rgb(color.gray_lab(100 * lightness))
    # In RGB, gray has a little color: 0.005 units of a*b*, since the standard rounds its matrix.
    expected = encoder.stem(efficientnet_lite.preprocess(rgb), False)
    np.testing.assert_allclose(stem(variables, lightness), expected, atol=2e-3)


def test_the_vector_of_another_photo_takes_the_place_of_its_own():
    network, variables, lightness = made()
    own, logits = jax.jit(functools.partial(network.apply, method='global_features'))(variables, lightness)
    assert own.shape == (2, 8) and logits is None
    apply = jax.jit(network.apply)
    with_own, without = apply(variables, lightness, own)['ab'], apply(variables, lightness)['ab']
    np.testing.assert_allclose(with_own, without, rtol=0, atol=1e-5)  # of 1
    assert np.abs(apply(variables, lightness, own[::-1] + 1)['ab'] - without).max() > 1e-3


def test_padding_does_not_show():
    """Sides that are no multiples of 32 are padded by their edges: a photo that repeats its edge itself looks the same."""
    network, variables, lightness = made()
    lightness = lightness[:1, :40]
    longer = jnp.pad(lightness, ((0, 0), (0, 24), (0, 0), (0, 0)), mode='edge')
    apply = jax.jit(network.apply)
    short = apply(variables, lightness)['ab']
    np.testing.assert_allclose(short, apply(variables, longer)['ab'][:, :20], rtol=0, atol=1e-5)


@pytest.mark.parametrize('encoder_norm', ['trained', 'frozen'])
def test_batch_norm_of_the_encoder(encoder_norm):
    network, variables, lightness = made(encoder_norm=encoder_norm)
    apply = jax.jit(functools.partial(network.apply, train=True, mutable=['batch_stats']))
    _, updated = apply(variables, lightness)
    changed = {
        name: any(
            bool(jnp.any(a != b))
            for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(updated['batch_stats'][name]), strict=True)
        )
        for name, before in variables['batch_stats'].items()
    }
    assert changed.pop('encoder') == (encoder_norm == 'trained')
    assert all(changed.values())


def test_the_encoder_s_learning_rate():
    params = {'encoder': {'kernel': np.ones(2, np.float32)}, 'top': {'kernel': np.ones(2, np.float32)}}
    gradients = jax.tree.map(lambda x: 2 * x, params)
    config = base.optimizer()
    config.update({'name': 'sgd', 'learning_rate': 0.5, 'encoder_rate': 0.25})
    optimizer = optimizers.build(config, 0.5)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    new = optax.apply_updates(params, updates)
    np.testing.assert_allclose(new['encoder']['kernel'], 1 - 0.25 * 0.5 * 2)
    np.testing.assert_allclose(new['top']['kernel'], 1 - 0.5 * 2)


def small_config(**train):
    config = load_recipe('ltbc_lite')
    config.model.update({'width': 0.125, 'vector': 8})
    config.data.crop = 32
    config.train.update({'batch_size': 2, **train})
    return config


def test_the_encoder_starts_from_imagenet_weights(tmp_path):
    weights = tmp_path / 'lite0.safetensors'
    extractor = extractors.random_extractor('efficientnet_lite0', seed=5)
    imagenet.save_extractor(extractor, weights)
    config = small_config(encoder_weights=str(weights))
    fresh = jax.jit(tasks.build(config).init)(jax.random.PRNGKey(0))
    state = runs.init_encoder(config, fresh, DataParallel(devices=jax.devices()[:1]).replicated)
    for collection, tree in (('params', state.params), ('batch_stats', state.model_state['batch_stats'])):
        assert 'predictions' not in tree['encoder'] and 'head' not in tree['encoder']
        for layer, leaves in tree['encoder'].items():
            jax.tree.map(np.testing.assert_array_equal, leaves, extractor.variables[collection][layer])
    jax.tree.map(np.testing.assert_array_equal, state.ema, state.weights())
    jax.tree.map(np.testing.assert_array_equal, state.params['top'], fresh.params['top'])
    config.train.encoder_weights = 'random'
    assert runs.init_encoder(config, fresh) is fresh


@pytest.mark.parametrize(
    ('recipe', 'changes', 'sentence'),
    [
        ('ltbc:quickstart', {}, "train.encoder_weights is for the network ltbc_lite; set it to 'random' for others."),
        ('ltbc_lite', {'variant': 'lite3'}, 'model.variant: only lite0, lite2 have published weights'),
    ],
)
def test_weights_that_there_are_none_of(recipe, changes, sentence):
    config = load_recipe(recipe)
    config.model.update(changes)
    config.train.encoder_weights = ''
    state = jax.eval_shape(tasks.build(config).init, jax.random.PRNGKey(0))
    with pytest.raises(UserError, match=sentence):
        runs.init_encoder(config, state)
