"""The networks of the reports: parameters, sizes, recipes; a small training of each through the code that `ltbc` uses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from jaxcolor import config as base
from jaxcolor import models, tasks
from jaxcolor.errors import UserError
from jaxcolor.recipes import load_recipe
from jaxcolor.tasks import losses

FISH = ROOT / 'jaxcolor' / 'data' / 'photos' / 'train' / 'fish1.jpg'
MEAN_AT_INPUT = {'task.reduction': 'mean', 'task.loss_resolution': 'input'}
ADAM = {'optimizer.name': 'adam', 'optimizer.schedule': 'constant', 'optimizer.warmup_steps': 0}
DEEPCOLOR = {
    **MEAN_AT_INPUT,
    **ADAM,
    'extractor.name': 'inception_resnet_v2',
    'model.output_activation': 'tanh',
    'optimizer.learning_rate': 1e-4,
    'task.kernel_l2': 0.01,
    'train.batch_size': 5,
    'data.crop': 224,
    'train.epochs': 2_500,
    'data.flip': False,
}
# By hand, layer by layer: generator, discriminator.
CGAN = 1_002_740 + 4_832_897
# Scale and bias of every convolution's filters: low, mid, global, fusion, transposed.
DECONV_NORMS = 2 * (1344 + 768 + 2048 + 256 + 288)
# Of every recipe: its network's parameters, and what its report says.
RECIPES = {
    ('ltbc', ''): (42_353_839 + 12_992, {'optimizer.name': 'adadelta', 'train.batch_size': 128}),
    ('ltbc', 'quickstart'): (None, {'model.width': 0.25, 'model.classes': 0, 'data.crop': 128}),
    # At a quarter of the width: the network above without a classifier, its first dense layer of 4 x 4 x 128 for 128 pixels.
    ('ltbc_compact', 'regression'): (1_558_826, {'model.width': 0.25, 'data.crop': 128, 'task.name': 'regression'}),
    # Colors: 3 convolutions of 32 channels with batch norm, 260 classes; in place of 32, 16, 16, 8 and the output's 2.
    ('ltbc_compact', ''): (
        1_558_826
        - (64 * 32 + 32 * 16 + 16 * 16 + 16 * 8 + 8 * 2) * 9
        - (3 * (32 + 16 + 16 + 8) + 2)
        + (64 * 32 + 32 * 32 + 32 * 32) * 9
        + 3 * 3 * 32
        + 32 * 260
        + 260,
        {'model.color_classes': 260, 'task.rebalance': 1.0, 'task.temperature': 0.6, 'data.crop': 128},
    ),
    ('ltbc_compact', 'small'): (None, {'model.color_classes': 260, 'data.crop': 64, 'model.global_size': 64}),
    # The encoder; the vector; the coarsest map; three joins of 128 channels; the fusion; the output.
    ('ltbc_lite', ''): (
        2_958_848
        + 2 * (320 * 128 + 128)
        + 3 * 2 * (128 * 9 * 128 + 128)
        + (112 + 40 + 24 + 3) * 128
        + 2 * 128 * (1 + 3 * 3)
        + 2 * 128 * 128
        + 128
        + 128 * 260
        + 260,
        {'model.color_classes': 260, 'task.rebalance': 1.0, 'data.crop': 128, 'train.encoder_weights': ''},
    ),
    ('ltbc_lite', 'tune'): (
        None,
        {'train.init_from': 'ltbc-lite', 'optimizer.encoder_rate': 0.0, 'model.color_classes': 260},
    ),
    ('ltbc_lite', 'regression'): (None, {'task.name': 'regression', 'task.error': 'huber', 'model.color_classes': 0}),
    ('ltbc_pytorch', ''): (
        42_521_391,
        {
            **MEAN_AT_INPUT,
            **ADAM,
            'model.batch_norm': False,
            'model.classes': 365,
            'model.classifier_width': 400,
            'optimizer.learning_rate': 1e-4,
            'task.alpha': 0.005,
            'train.batch_size': 32,
            'train.epochs': 14,
            'train.eval_every_epochs': 1,
            'train.grid_photos': 32,
        },
    ),
    ('ltbc_deconv', ''): (
        41_973_218 + DECONV_NORMS,
        {
            **ADAM,
            'model.batch_norm': True,
            'model.batch_norm_dense': False,
            'model.batch_norm_fusion': True,
            'model.batch_norm_output': False,
            'model.classes': 0,
            'model.dense_widths': (1024, 256, 512),
            'model.decoder': 'deconv',
            'task.reduction': 'mean',
            'optimizer.learning_rate': 1e-3,
            'train.batch_size': 50,
            'train.epochs': 200,
            'train.epoch_steps': 100,
            'data.flip': False,
        },
    ),
    ('ltbc_deconv', 'linnaeus'): (
        41_973_218 + DECONV_NORMS,
        {'train.batch_size': 50, 'train.epochs': 30, 'train.epoch_steps': 100},
    ),
    ('vgg_fusion', ''): (
        7_726_882 + 512,
        {
            **MEAN_AT_INPUT,
            **ADAM,
            'extractor.name': 'vgg16',
            'model.output_activation': 'tanh',
            'data.crop': 256,
            'optimizer.learning_rate': 1e-3,
            'train.batch_size': 32,
            'train.epochs': 2_000,
            'task.alpha': 0.0,
            'data.flip': True,
            'data.flip_vertical': True,
            'data.rotate': 15.0,
            'data.shift': 0.1,
            'data.brightness': 0.2,
        },
    ),
    ('deepcolor', 'base'): (6_606_994, {**DEEPCOLOR, 'task.kernel_l2_excluded': ('encoder_7',)}),
    ('deepcolor', '1'): (4_247_186, {**DEEPCOLOR, 'task.kernel_l2_excluded': ('encoder_6',)}),
    ('deepcolor', '2'): (1_223_314, {**DEEPCOLOR, 'task.kernel_l2_excluded': ('encoder_4',)}),
    ('deepcolor', '3'): (249_170, {**DEEPCOLOR, 'task.kernel_l2_excluded': ('encoder_4',)}),
    # The encoder of 'base'; fusion, 5 convolutions. Its own vector is of 1001 values, which are 256 parameters more.
    ('deepcolor', 'koalarization'): (
        5_827_200 + (256 + 1000) * 256 + 256 + 295_040 + 73_792 + 36_928 + 18_464 + 578,
        {
            **DEEPCOLOR,
            'model.variant': 'koalarization',
            'optimizer.learning_rate': 1e-3,
            'task.kernel_l2': 0.0,
            'task.kernel_l2_excluded': (),
            'train.batch_size': 100,
            'train.epochs': 100,
            'data.flip': False,
        },
    ),
    # The published network without the colors of its classes, 313 times two numbers.
    ('eccv16', ''): (
        32_236_011 - 626,
        {
            'model.color_classes': 313,
            'task.name': 'color_classes',
            'task.rebalance': 0.5,
            'task.sigma': 5.0,
            'task.temperature': 0.38,
            'optimizer.name': 'adam',
            'optimizer.learning_rate': 3.16e-5,
            'optimizer.beta1': 0.9,
            'optimizer.beta2': 0.99,
            'optimizer.decay_every': 215_000,
            'train.batch_size': 40,
            'train.steps': 450_000,
            'data.crop': 176,
            'data.flip': True,
        },
    ),
    ('ddcolor', ''): (
        55_006_640 - 2 * 768,
        {
            'model.variant': 'tiny',
            'data.crop': 256,
            'task.error': 'absolute',
            'task.colorfulness': 0.5 / (128 * 0.1),
            'task.adversarial': 1 / (128 * 0.1),
            'optimizer.learning_rate': 1e-4,
            'optimizer.beta1': 0.9,
            'optimizer.beta2': 0.99,
            'optimizer.weight_decay': 0.01,
            'train.batch_size': 16,
            'train.steps': 400_000,
        },
    ),
    ('ddcolor', 'large'): (227_869_328 - 2 * 1536, {'model.variant': 'large'}),
    ('cgan', ''): (
        CGAN,
        {
            'optimizer.name': 'rmsprop',
            'optimizer.learning_rate': 0.01,
            'optimizer.rho': 0.9,
            'data.crop': 64,
            'model.size': 64,
            'model.noise_size': 100,
            'train.batch_size': 128,
            'train.steps': 5_000,
            'data.flip': False,
            'task.l1': 0.0,
            'task.real_label': 1.0,
        },
    ),
    ('cgan', 'stable'): (
        CGAN,
        {
            'optimizer.name': 'adam',
            'optimizer.learning_rate': 2e-4,
            'optimizer.beta1': 0.5,
            'task.l1': 10.0,
            'task.real_label': 0.9,
        },
    ),
}


def recipe(name, variant=''):
    return load_recipe(f'{name}:{variant}' if variant else name)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_every_recipe_is_checked_here():
    files = {path.stem for path in (ROOT / 'configs').glob('*.py')} - {'__init__', 'base'}
    assert files == {name for name, _ in RECIPES}


@pytest.mark.parametrize(('name', 'variant'), RECIPES)
def test_recipe_follows_its_report_and_builds(name, variant):
    parameters, fields = RECIPES[name, variant]
    config = recipe(name, variant)
    for path, value in fields.items():
        section, field = path.split('.')
        assert config[section][field] == value, path
    state = jax.eval_shape(tasks.build(config).init, jax.random.PRNGKey(0))
    if parameters is not None:
        assert count(state.params) == parameters


@pytest.mark.parametrize('name', ['ltbc', 'ltbc_deconv', 'deepcolor', 'cgan'])
def test_an_unknown_variant_is_refused(name):
    with pytest.raises(UserError, match="no variant 'x'; there are"):
        recipe(name, 'x')


@pytest.mark.parametrize(('layers', 'parameters'), [(7, CGAN), (6, CGAN - 52_096 - 1_652 + 3_252)])
def test_layers_of_the_cgan_s_generator(layers, parameters):
    """Seven: the report's six and an output layer. Six: the sixth, of 65 channels, gives U and V in place of 32 filters."""
    config = recipe('cgan')
    assert config.model.generator_layers == 7
    config.model.generator_layers = layers
    state = jax.eval_shape(tasks.build(config).init, jax.random.PRNGKey(0))
    convolutions = {name: layer for name, layer in state.params['generator'].items() if name != 'noise'}
    assert list(convolutions) == [*(f'conv_{i}' for i in range(layers - 1)), 'output']
    assert {name for name, layer in convolutions.items() if 'norm' not in layer} == {'output'}
    assert convolutions['output']['conv']['kernel'].shape == (5, 5, 33 if layers == 7 else 65, 2)
    assert count(state.params) == parameters


def test_deconv_parameters_without_batch_norm():
    config = recipe('ltbc_deconv')
    config.model.batch_norm = False
    assert count(jax.eval_shape(tasks.build(config).init, jax.random.PRNGKey(0)).params) == 41_973_218


NETWORKS = {
    'deepcolor_base': base.deepcolor(),
    'deepcolor_1': {**base.deepcolor(), 'variant': '1'},
    'deepcolor_2': {**base.deepcolor(), 'variant': '2'},
    'deepcolor_3': {**base.deepcolor(), 'variant': '3'},
    'koalarization': {**base.deepcolor(), 'variant': 'koalarization'},
    'vgg_fusion': base.vgg_fusion(),
    'ltbc_deconv': recipe('ltbc_deconv').model,
}


def shapes_of(config, size, dtype='float32'):
    """(outputs, variables, {layer: its output}) for two photos of a size, as shapes."""
    network = models.build({**config, 'dtype': dtype})
    vector = () if config['name'] == 'ltbc' else (jnp.zeros((2, 1000)),)

    def run():
        outputs, variables = network.init_with_output(
            jax.random.key(0), jnp.zeros((2, *size, 1)), *vector, train=True, capture_intermediates=True
        )
        inner = {name: layer['__call__'][0] for name, layer in variables.pop('intermediates').items() if name[0] != '_'}
        return outputs, variables, inner

    return jax.eval_shape(run)


@pytest.mark.parametrize('size', [(224, 224), (64, 96), (225, 131), (1, 1)])
@pytest.mark.parametrize('name', NETWORKS)
def test_output_sizes(name, size):
    outputs, *_ = shapes_of(NETWORKS[name], size)
    expected = tuple(-(-side // 2) for side in size) if NETWORKS[name]['name'] == 'deepcolor' else size
    assert outputs['ab'].shape == (2, *expected, 2)
    assert outputs['ab'].dtype == jnp.float32
    assert set(outputs) == {'ab'}


@pytest.mark.parametrize(
    ('name', 'size', 'layer', 'encoded', 'fused'),
    [
        ('deepcolor_base', 224, 'fusion_0', (28, 28, 256), 256),
        ('deepcolor_1', 224, 'fusion_0', (28, 28, 256), 256),
        ('deepcolor_2', 224, 'fusion_0', (28, 28, 256), 256),
        ('deepcolor_3', 224, 'fusion_0', (28, 28, 64), 64),
        ('koalarization', 224, 'fusion_0', (28, 28, 256), 256),
        ('vgg_fusion', 256, 'fusion', (4, 4, 512), 512),
        ('ltbc_deconv', 224, 'fusion', (28, 28, 256), 256),
    ],
)
def test_fusion_shapes(name, size, layer, encoded, fused):
    _, variables, inner = shapes_of(NETWORKS[name], (size, size))
    vector = 512 if name == 'ltbc_deconv' else 1000
    assert inner[layer].shape == (2, *encoded[:2], fused)
    assert variables['params'][layer]['kernel'].shape == (1, 1, encoded[2] + vector, fused)


@pytest.mark.parametrize('name', ['deepcolor_3', 'vgg_fusion'])
@pytest.mark.parametrize('use_features', [True, False])
def test_vector_counts_unless_it_is_left_out(name, use_features):
    network = models.build({**NETWORKS[name], 'width': 0.125, 'use_features': use_features})
    rng = np.random.default_rng(0)
    lightness = jnp.asarray(rng.uniform(size=(1, 64, 64, 1)), jnp.float32)
    one, other = jnp.asarray(rng.normal(size=(2, 1, 1000)), jnp.float32)
    variables = jax.jit(network.init)(jax.random.key(0), lightness, one)
    run = jax.jit(lambda vector: network.apply(variables, lightness, vector)['ab'])
    assert bool((run(one) == run(other)).all()) is not use_features


@pytest.mark.parametrize('name', ['deepcolor_base', 'vgg_fusion'])
def test_bfloat16_keeps_float32_parameters_and_outputs(name):
    with jax.numpy_dtype_promotion('standard'):  # Flax' batch norm mixes float32 statistics with bfloat16
        outputs, variables, inner = shapes_of(NETWORKS[name], (64, 64), 'bfloat16')
    assert {leaf.dtype for leaf in jax.tree.leaves([outputs, variables])} == {jnp.dtype('float32')}
    assert inner['encoder_0'].dtype == jnp.bfloat16


def test_layers_of_deep_koalarization():
    """Table 1 of Baldassarre et al. 2017: filters and sizes, layer by layer."""
    _, _, inner = shapes_of(NETWORKS['koalarization'], (224, 224))
    encoder = [(112, 64), (112, 128), (56, 128), (56, 256), (28, 256), (28, 512), (28, 512), (28, 256)]
    expected = {f'encoder_{i}': shape for i, shape in enumerate(encoder)} | {'fusion_0': (28, 256)}
    expected |= {'decoder_0': (28, 128), 'decoder_2': (56, 64), 'decoder_3': (56, 64), 'decoder_5': (112, 32)}  # 1, 4: up
    expected['output'] = (112, 2)
    assert {name: (layer.shape[1], layer.shape[3]) for name, layer in inner.items()} == expected


# Of each architecture: how many convolutions its encoder and its fusion have.
LAYERS = {'base': (8, 2), '1': (7, 2), '2': (5, 2), '3': (5, 1)}


@pytest.mark.parametrize('variant', LAYERS)
def test_kernel_l2_covers_all_convolutions_but_the_encoder_s_last(variant):
    config = recipe('deepcolor', variant)
    config.model.width = 0.0625
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(tasks.build(config).init, jax.random.PRNGKey(0)).params
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
    squares = {}
    for layer, leaves in params.items():
        (kernel,) = (leaf for path, leaf in jax.tree_util.tree_leaves_with_path(leaves) if path[-1].key == 'kernel')
        squares[layer] = float(np.square(kernel).sum())
    encoder, fusion = LAYERS[variant]
    last = f'encoder_{encoder - 1}'
    listed = {f'encoder_{i}' for i in range(encoder - 1)} | {f'fusion_{i}' for i in range(fusion)}
    listed |= {f'decoder_{i}' for i in (0, 2, 4, 5)} | {'output'}  # 1 and 3 are upsampling
    assert set(squares) == listed | {last}
    expected = sum(squares[layer] for layer in listed)
    assert float(losses.kernel_l2(params, config.task.kernel_l2_excluded)) == pytest.approx(expected, rel=1e-5)
    assert float(losses.kernel_l2(params)) == pytest.approx(expected + squares[last], rel=1e-5)


@pytest.mark.parametrize(
    ('name', 'change', 'words'),
    [
        ('deepcolor', {'variant': '4'}, "model.variant: there is no deepcolor '4'; there are base, 1, 2, 3, koalarization"),
        ('vgg_fusion', {'encoder_widths': (64, 128)}, 'model.encoder_widths: 2 .* six'),
        ('cgan', {'output_activation': 'linear'}, 'model.output_activation: the cgan.s is sigmoid or tanh, not linear'),
        ('cgan', {'generator_layers': 8}, 'model.generator_layers must lie between 6 and 7, not 8'),
    ],
)
def test_invalid_architectures_are_refused(name, change, words):
    config = recipe(name)
    config.model.update(change)
    with pytest.raises(UserError, match=words):
        tasks.build(config)
