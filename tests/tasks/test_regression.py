"""The regression in other color spaces than Lab, and with a discriminator to fool."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import batch_of, load_recipe, norm, small_recipe

from jaxcolor import color, tasks
from jaxcolor.benchmark import flops
from jaxcolor.errors import UserError
from jaxcolor.runtime.parallel import DataParallel

WEIGHT = 0.3


@pytest.fixture(scope='module')
def lab(photos):
    """The middles of 4 bundled photos, uint8 Lab (4, 32, 32, 3)."""
    middles = [photo[: len(photo) // 32 * 32 : len(photo) // 32, : 32 * 4 : 4][:32, :32] for photo in photos[:4]]
    return color.encode_lab(color.rgb_to_lab(np.stack(middles)))


def recipe(**task):
    config = small_recipe('ltbc_pytorch')
    config.model.classes = 0
    config.task.update({'alpha': 0.0, **task})
    return config


@pytest.mark.parametrize('resolution', ['input', 'output'])
@pytest.mark.parametrize('activation', ['sigmoid', 'tanh'])
@pytest.mark.parametrize('space', color.OUTPUT_SPACES)
def test_the_truth_has_no_loss_and_decodes_to_its_colors(lab, space, activation, resolution):
    config = recipe(loss_resolution=resolution, chroma_weight=2.0)
    config.model.update({'output_space': space, 'output_activation': activation})
    task, (name, channels) = tasks.build(config), color.OUTPUT_SPACES[space]
    true = color.decode_lab(lab)
    output = color.encode_output(jnp.asarray(true), space, activation)  # of the photo's size: as of a 'deconv' decoder
    batch = {'lab': jnp.asarray(lab)}
    np.testing.assert_allclose(task.loss_terms({name: output}, batch, {})['color_loss'], 0, atol=1e-9)
    decoded = task.decode({name: output}, jnp.asarray(true[..., :1]), {})
    inside = np.abs(color.lab_to_rgb(true) - 0.5).max(axis=-1) < 0.499  # the rounding of Lab leads out of sRGB
    assert inside.mean() > 0.5
    assert np.abs(decoded - true[..., 1:])[inside].max() < 0.02
    # One channel off by a tenth of the range, weighted by the true chroma: the mean over all channels.
    moved = output.at[..., 0].add(0.1)
    weight = 1 + 2 / 100 * np.linalg.norm(true[..., 1:], axis=-1).mean(axis=(1, 2))
    loss = task.loss_terms({name: moved}, batch, {})['color_loss']
    np.testing.assert_allclose(loss, 0.01 / channels * weight, rtol=1e-3)


@pytest.fixture(scope='module')
def adversarial():
    """A task with an adversary, a fresh state on the host, and one step on one device."""
    config = recipe(adversarial=WEIGHT)
    config.train.cross_device_batch_norm = False
    task = tasks.build(config)
    return task, jax.device_get(DataParallel().create(task.init, jax.random.PRNGKey(0)))


def one_step(config, state, batch, devices):
    parallel = DataParallel(devices=jax.devices()[:devices])
    step = parallel.map(tasks.build(config).train_step)
    return jax.device_get(step(parallel.replicate(state), parallel.shard(batch)))


def test_losses_of_both_by_hand(adversarial, lab):
    """The discriminator sees lightness and a*b* at the size of the loss; the network is judged by the updated one."""
    task, state = adversarial
    config = recipe(adversarial=WEIGHT)
    batch = {'lab': lab, 'label': np.full(4, -1, np.int32)}
    after, measured = one_step(config, state, batch, 1)
    true = color.decode_lab(lab)
    outputs = task.network.apply({'params': state.params}, true[..., :1] / 100)['ab']  # (4, 16, 16, 2)
    fake = np.concatenate([true[..., :1] / 100, outputs.repeat(2, axis=1).repeat(2, axis=2)], axis=-1)
    real = np.concatenate([true[..., :1] / 100, (true[..., 1:] + 128) / 256], axis=-1)

    @jax.jit
    def logits(params, statistics, photos):
        variables = {'params': params, 'batch_stats': statistics}
        return task.adversary.network.apply(variables, photos, True, mutable=['batch_stats'])

    def cross_entropy(logits, label):
        probability = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
        return -np.mean(label * np.log(probability) + (1 - label) * np.log(1 - probability))

    before, then = (each.opt_state['adversary'] for each in (state, after))
    on_real, new = logits(before['params'], before['model_state'], real)
    on_fake, new = logits(before['params'], new['batch_stats'], fake)
    expected = cross_entropy(on_real, 1) + cross_entropy(on_fake, 0)
    np.testing.assert_allclose(measured['discriminator_loss'], expected, rtol=1e-4)
    np.testing.assert_allclose(measured['accuracy_on_photos'], np.mean(on_real > 0))
    np.testing.assert_allclose(measured['accuracy_on_generated'], np.mean(on_fake < 0))
    for a, b in zip(jax.tree.leaves(then['model_state']), jax.tree.leaves(new['batch_stats']), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    fooling, _ = logits(then['params'], then['model_state'], fake)
    np.testing.assert_allclose(measured['adversarial_loss'], WEIGHT * cross_entropy(fooling, 1), rtol=1e-4)
    error = np.square(fake - real).sum(axis=-1).mean() / 2
    np.testing.assert_allclose(measured['color_loss'], error, rtol=1e-4)
    np.testing.assert_allclose(measured['loss'], measured['color_loss'] + measured['adversarial_loss'], rtol=1e-5)


@pytest.mark.slow
def test_the_weight_is_that_of_the_gradient(adversarial, lab):
    """The network's gradient is the color loss's + the weight times another; the discriminator does not know the weight."""
    _, state = adversarial
    batch = {'lab': lab, 'label': np.full(4, -1, np.int32)}
    moments, others = {}, []
    for weight in (1e-9, 1.0, 2.0):
        after, _ = one_step(recipe(adversarial=weight), state, batch, 1)
        (moments[weight],) = (
            jax.tree.leaves(each) for _, each in optax.tree.get_all_with_path(after.opt_state['network'], 'mu')
        )
        others.append(after.opt_state['adversary'])
    once, twice = ([a - b for a, b in zip(moments[w], moments[1e-9], strict=True)] for w in (1.0, 2.0))
    assert norm(once) > 1e-3 * norm(moments[1e-9])
    assert norm([2 * a - b for a, b in zip(once, twice, strict=True)]) < 1e-3 * norm(twice)
    for a, b in zip(jax.tree.leaves(others[0]), jax.tree.leaves(others[2]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_a_weight_there_is_no_discriminator(adversarial):
    _, state = adversarial
    plain = jax.eval_shape(tasks.build(recipe()).init, jax.random.PRNGKey(0))
    assert 'adversary' not in plain.opt_state
    assert jax.tree.map(np.shape, state.params) == jax.tree.map(np.shape, plain.params)
    # As in `cgan`, with L* and a*b* in place of Y, U and V; for 32 pixels a quarter of the values reach its dense layer.
    discriminator = 5 * 5 * (3 * 4 + 4 * 8 + 8 * 16 + 16 * 32) + 3 * (4 + 8 + 16 + 32) + 4 * 32 * 4 + 4 + 4 + 1
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state['adversary']['params'])) == discriminator


@pytest.mark.parametrize(
    ('name', 'side'), [('ltbc', 112), ('ltbc_deconv', 224), ('deepcolor:koalarization', 224), ('vgg_fusion', 256)]
)
def test_every_regression_takes_a_discriminator(name, side):
    """Of photos at the size at which its loss is taken: four halvings of it reach the dense layer, of 64 at full width."""
    config = load_recipe(name)
    config.task.adversarial = 0.01
    state = jax.eval_shape(tasks.build(config).init, jax.random.PRNGKey(0))
    params = state.opt_state['adversary']['params']
    assert params['conv_0']['kernel'].shape == (5, 5, 3, 64)
    assert params['hidden']['kernel'].shape == (512 * (side // 16) ** 2, 64)
    plain = load_recipe(name)
    assert state.weights() == jax.eval_shape(tasks.build(plain).init, jax.random.PRNGKey(0)).weights()


def test_an_evaluation_knows_nothing_of_the_discriminator(adversarial, lab):
    task, state = adversarial
    batch = {'lab': lab, 'label': np.full(4, -1, np.int32)}
    metrics, ab = jax.jit(task.eval_step)(state, batch)
    alone, ab_alone = jax.jit(tasks.build(recipe()).eval_step)(state, batch)
    assert metrics.keys() == alone.keys() == {'loss', 'color_loss'}
    np.testing.assert_array_equal(metrics['loss'], alone['loss'])
    np.testing.assert_array_equal(ab, ab_alone)


@pytest.mark.parametrize('accumulation', [pytest.param(1, marks=pytest.mark.slow), 2])
def test_eight_devices_equal_one_with_a_discriminator(adversarial, accumulation):
    """Gradients of both networks and the discriminator's statistics; batch norm is over all devices."""
    _, state = adversarial
    config, batch = recipe(adversarial=WEIGHT), batch_of(16, 32)
    parts = recipe(adversarial=WEIGHT)
    if accumulation == 2:
        parts.train.accumulation_steps = 2
        config.train.cross_device_batch_norm = parts.train.cross_device_batch_norm = False
    # Two parts of one device's batch are as two devices with statistics of their own.
    one, measured_one = one_step(parts, state, batch, 1)
    many, measured_many = one_step(config, state, batch, 8 if accumulation == 1 else 2)
    pairs = zip(jax.tree_util.tree_leaves_with_path(one.opt_state), jax.tree.leaves(many.opt_state), strict=True)
    compared = set()
    for (path, a), b in pairs:
        keys = jax.tree_util.keystr(path, simple=True, separator='/').split('/')
        if 'mu' in keys or 'model_state' in keys:
            assert norm([a - b]) < 0.03 * norm([a]) + 1e-6, keys
            compared.add((keys[0], 'mu' in keys))
    assert compared == {('network', True), ('adversary', True), ('adversary', False)}
    assert measured_one.keys() == measured_many.keys()
    for term in measured_one:
        np.testing.assert_allclose(measured_one[term], measured_many[term], rtol=1e-2, err_msg=term)


def test_bad_values_are_refused():
    with pytest.raises(UserError, match=r'task\.adversarial must be at least 0, not -1'):
        tasks.build(recipe(adversarial=-1.0))
    config = recipe()
    config.model.output_space = 'hsv'
    with pytest.raises(UserError, match="model.output_space: 'hsv' is none of lab, yuv, rgb"):
        tasks.build(config)


def test_at_an_encoder_rate_of_0_no_gradient_to_the_encoder_is_computed(lab):
    """The others are the same; and the step has fewer operations."""
    batch, counted, changes = {'lab': lab, 'label': np.zeros(4, np.int32)}, {}, {}
    for rate in (0.0, 1.0):
        config = recipe()
        config.optimizer.update({'name': 'sgd', 'learning_rate': 1e-2, 'momentum': 0.0, 'nesterov': False})
        config.optimizer.update({'schedule': 'constant', 'warmup_steps': 0, 'clip_norm': 0.0, 'encoder_rate': rate})
        task, parallel = tasks.build(config), DataParallel(devices=jax.devices()[:1])
        state = parallel.create(task.init, jax.random.PRNGKey(0))
        counted[rate] = flops.count(task.train_step, state, batch)
        new, _ = parallel.map(task.train_step, (False, False))(state, parallel.shard(batch))
        changes[rate] = jax.tree.map(lambda a, b: np.asarray(a - b), new.params, state.params)
    assert counted[0.0] < 0.75 * counted[1.0]
    for layer, moved in changes[0.0].items():
        if layer in task.network.encoder_layers:
            assert norm(jax.tree.leaves(moved)) == 0 < norm(jax.tree.leaves(changes[1.0][layer]))
        else:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), moved, changes[1.0][layer])
