"""The GAN: who learns in which half-step, what the noise reaches, its losses, and what a photo's figures depend on.

Its training, resuming and equality on 8 devices are in test_networks, with those of the other networks.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_identical, small_recipe

from jaxcolor import color, tasks
from jaxcolor.errors import UserError
from jaxcolor.models import cgan
from jaxcolor.models.layers import ConvBlock
from jaxcolor.runtime.parallel import DataParallel
from jaxcolor.tasks import adversarial

CONVOLUTIONS = [*(f'conv_{i}' for i in range(6)), 'output']


@pytest.fixture(scope='module')
def task():
    config = small_recipe('cgan')
    config.train.cross_device_batch_norm = False  # these tests are on one device, and look inside the step
    return tasks.build(config)


@pytest.fixture(scope='module')
def state(task):
    """A fresh state, on the host."""
    return jax.device_get(DataParallel().create(task.init, jax.random.PRNGKey(0)))


@pytest.fixture(scope='module')
def lab(photos):
    """The middles of 6 bundled photos, uint8 Lab (6, 32, 32, 3)."""
    middles = [photo[: len(photo) // 32 * 32 : len(photo) // 32, : 32 * 4 : 4][:32, :32] for photo in photos[:6]]
    return color.encode_lab(color.rgb_to_lab(np.stack(middles)))


@pytest.fixture(scope='module')
def half_steps(task, state, lab):
    """{name of the network that learns: (the state before, the state after, what was measured, the noise)}."""
    decoded = color.decode_lab(lab)
    yuv = color.rgb_to_yuv(color.lab_to_rgb(decoded))
    parallel = DataParallel(devices=jax.devices()[:1])
    before, made = state, {}
    for i, name in enumerate(('discriminator', 'generator')):
        noise = np.random.default_rng(i).uniform(-1, 1, (len(lab), 100)).astype(np.float32)
        step = parallel.map(lambda state, batch, name=name: getattr(task, f'{name}_step')(state, *batch))
        truth = (decoded[..., 1:],) if name == 'generator' else ()
        after, measured = jax.device_get(step(before, (yuv, noise, *truth)))
        made[name] = before, after, measured, noise
        before = after
    return made


@pytest.mark.parametrize(('learner', 'other'), [('discriminator', 'generator'), ('generator', 'discriminator')])
def test_a_half_step_changes_only_its_own_network(half_steps, learner, other):
    before, after, _, _ = half_steps[learner]
    for part in ('params', 'model_state', 'opt_state'):
        old, new = getattr(before, part), getattr(after, part)
        assert_identical(old[other], new[other])
        leaves = zip(jax.tree_util.tree_leaves_with_path(old[learner]), jax.tree.leaves(new[learner]), strict=True)
        unchanged = [path for (path, x), y in leaves if np.array_equal(x, y)]
        # Batch norm takes a constant away again: but for rounding, the biases ahead of it have no gradient.
        assert {path[-1].key for path in unchanged} <= {'bias'}, unchanged
    assert_identical((before.step, before.rng), (after.step, after.rng))


def test_losses_and_accuracies_by_hand(task, half_steps, lab):
    """Cross entropy with labels 0.9 (one-sided smoothing) for photos, 0 for generated ones; 1 for the generator."""
    yuv = color.rgb_to_yuv(color.lab_to_rgb(color.decode_lab(lab)))

    @jax.jit
    def forward(params, statistics, noise):
        def run(method, *inputs):
            variables = {'params': params, 'batch_stats': statistics}
            return task.network.apply(variables, *inputs, method=method, train=True, mutable=['batch_stats'])[0]

        chroma = run('generate', yuv[..., :1], noise)
        fake = jnp.concatenate([yuv[..., :1], chroma], axis=-1)
        return chroma, run('discriminate', yuv), run('discriminate', fake)

    def cross_entropy(logits, label):
        probability = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
        return -np.mean(label * np.log(probability) + (1 - label) * np.log(1 - probability))

    before, _, measured, noise = half_steps['discriminator']
    _, real, fake = forward(before.params, before.model_state, noise)
    expected = {
        'discriminator_loss': cross_entropy(real, 0.9) + cross_entropy(fake, 0.0),
        'accuracy_on_photos': np.asarray(real > 0).mean(),
        'accuracy_on_generated': np.asarray(fake < 0).mean(),
    }
    assert measured.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(measured[name], value, rtol=1e-4, err_msg=name)

    before, _, measured, noise = half_steps['generator']
    chroma, _, fake = forward(before.params, before.model_state, noise)
    expected = {
        'generator_loss': cross_entropy(fake, 1.0),
        'generator_fools': np.asarray(fake > 0).mean(),
        'l1_loss': 10 * np.abs(chroma - yuv[..., 1:]).mean(),
    }
    generated = task._ab(jnp.concatenate([yuv[..., :1], chroma], axis=-1))
    larger = [x[..., 1] > x[..., 0] for x in (np.asarray(generated), color.decode_lab(lab)[..., 1:])]
    # Rounding may turn a pixel of 6 x 32 x 32 whose channels are all but equal.
    agreement = measured.pop('larger_channel_agreement')
    np.testing.assert_allclose(agreement, np.mean(larger[0] == larger[1]), rtol=0, atol=3 / (6 * 32 * 32))
    assert measured.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(measured[name], value, rtol=1e-4, err_msg=name)


def test_the_noise_reaches_the_first_three_layers_and_y_reaches_all(task, state, lab):
    luma = color.decode_lab(lab)[:2, ..., :1] / 100
    noise = np.random.default_rng(0).uniform(-1, 1, (2, 2, 100)).astype(np.float32)

    @jax.jit
    def generate(params, noise):
        seen = {}

        def watch(next_function, args, kwargs, context):
            output = next_function(*args, **kwargs)
            if context.method_name == '__call__' and isinstance(context.module, ConvBlock):
                seen[context.module.name] = args[0]
            elif context.module.name == 'noise':
                seen['noise'] = output.reshape(luma.shape)
            return output

        with nn.intercept_methods(watch):
            chroma = task.network.apply({'params': params, 'batch_stats': state.model_state}, luma, noise, method='generate')
        return chroma, seen

    chroma, seen = jax.device_get(generate(state.params, noise[0]))
    assert set(seen) == {*CONVOLUTIONS, 'noise'}

    def reached_by(plane):
        return [name for name in CONVOLUTIONS if (seen[name] == plane).all(axis=(0, 1, 2)).any()]

    assert reached_by(seen['noise']) == ['conv_0', 'conv_1', 'conv_2']
    assert reached_by(luma) == CONVOLUTIONS
    # It matters to the colors, and by no other way: these layers' kernels with their part for the plane at zero let
    # nothing of it through.
    assert np.abs(generate(state.params, noise[1])[0] - chroma).max() > 1e-3
    params = jax.tree.map(np.copy, state.params)
    for name in ('conv_0', 'conv_1', 'conv_2'):
        params['generator'][name]['conv']['kernel'][:, :, -1] = 0
    np.testing.assert_array_equal(generate(params, noise[0])[0], generate(params, noise[1])[0])


def test_same_seed_same_colors_another_seed_others(task, state, lab):
    lightness = color.decode_lab(lab)[..., :1]
    predict = jax.jit(task.predict)
    first, again, other = (predict(state, lightness, jax.random.PRNGKey(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (6, 32, 32, 2)
    assert all(np.abs(a - b).max() > 0.5 for a, b in zip(first, other, strict=True))  # units of a*b*, photo by photo


def test_a_photo_s_figures_depend_on_nothing_but_the_photo(task, state, lab):
    """Whatever batch and place it is evaluated in: its noise is drawn from its pixels."""
    evaluate = jax.jit(task.eval_step)
    whole, colors = evaluate(state, {'lab': lab})
    order = np.array([4, 0, 5, 4, 2, 1])
    moved, moved_colors = evaluate(state, {'lab': lab[order]})
    alone, alone_colors = evaluate(state, {'lab': lab[4:5]})
    assert set(whole) == {'loss', 'accuracy_on_photos', 'accuracy_on_generated'}
    for name, values in whole.items():
        np.testing.assert_allclose(moved[name], values[order], rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(alone[name], values[4:5], rtol=1e-4, err_msg=name)
    # U and V in float32, and a*b* of them, which grow up to a hundredfold what rounding does to dark pixels.
    rounding = 1e-4 * np.abs(colors).max()
    np.testing.assert_allclose(moved_colors, colors[order], rtol=0, atol=rounding)
    np.testing.assert_allclose(alone_colors, colors[4:5], rtol=0, atol=rounding)
    # The colors are those of the figures: U and V of the answer are as far from the photo's as the loss says.
    yuv = color.rgb_to_yuv(color.lab_to_rgb(color.decode_lab(lab)))
    assert np.abs(colors[0] - colors[4]).max() > 0.5
    assert whole['loss'].shape == (6,)
    assert (np.asarray(whole['loss']) < np.abs(yuv[..., 1:]).max()).all()


def test_yuv_targets_from_shards_are_those_of_the_photo(photos):
    """Against BT.601 in float64, over all bundled photos: what remains is the rounding of Lab to uint8.

    Measured, in Y, U, V of range [0, 1]: 0.0012, 0.0011, 0.0015 in the mean, 0.021, 0.014, 0.035 at most.
    """
    rgb = np.concatenate([photo.reshape(-1, 3) for photo in photos])[None, None]
    r, g, b = np.moveaxis(rgb.astype(np.float64) / 255, -1, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    expected = np.stack([y, 0.5 + 0.492 * (b - y) / 0.872, 0.5 + 0.877 * (r - y) / 1.23], axis=-1)
    error = np.abs(adversarial._yuv(color.encode_lab(color.rgb_to_lab(rgb))) - expected)
    assert (error.mean(axis=(0, 1, 2)) < 0.002).all()
    assert error.max() < 0.04


def test_the_discriminator_s_fields(task, state, lab):
    """Leaky slope, momentum and eps, by hand: its layers in NumPy from the same parameters."""
    photo = np.asarray(lab[:2] / 255, np.float32)
    network = cgan.Discriminator(width=0.0625, leaky_slope=0.3, momentum=0.7, epsilon=0.5)
    params = state.params['discriminator']
    variables = {'params': params, 'batch_stats': state.model_state['discriminator']}
    logits, new = network.apply(variables, photo, True, mutable=['batch_stats'])
    x = photo
    for i in range(4):
        x = jax.lax.conv_general_dilated(
            x, params[f'conv_{i}']['kernel'], (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        )
        mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
        np.testing.assert_allclose(new['batch_stats'][f'norm_{i}']['mean'], 0.3 * mean, rtol=0, atol=1e-5)
        x = (x - mean) / np.sqrt(var + 0.5)
        x = np.where(x > 0, x, 0.3 * x)
    x = x.reshape(2, -1)
    for name in ('hidden', 'logit'):
        x = x @ params[name]['kernel'] + params[name]['bias']
    np.testing.assert_allclose(logits, x[:, 0], rtol=0, atol=1e-4 * np.abs(x).max())


def test_tanh_scales_photos_to_its_own_range(task, state, lab):
    """The discriminator sees photos' U and V, and generated ones, in [-1, 1]; losses and a*b* are in sigmoid's units."""
    config = small_recipe('cgan')
    config.model.output_activation = 'tanh'
    other = tasks.build(config)
    yuv, photos = task._photos(lab), other._photos(lab)
    np.testing.assert_array_equal(yuv, adversarial._yuv(lab))
    np.testing.assert_array_equal(photos[..., :1], yuv[..., :1])
    np.testing.assert_allclose(photos[..., 1:], 2 * yuv[..., 1:] - 1, rtol=0, atol=1e-6)
    np.testing.assert_allclose(other._ab(photos), task._ab(yuv), rtol=0, atol=0.01)
    shifted = other._uv_error(photos[..., 1:] + 0.2, photos[..., 1:])
    np.testing.assert_allclose(shifted, 0.1, rtol=1e-5)

    # 2 sigmoid(2x) - 1 is tanh(x): with its last layer halved, the generator gives the same colors in the other range.
    params = jax.tree.map(np.copy, state.params)
    for leaf in jax.tree.leaves(params['generator']['output']):
        leaf /= 2
    other_state = state.replace(params=params)
    ours, theirs = (each.eval_step(s, {'lab': lab}) for each, s in [(task, state), (other, other_state)])
    np.testing.assert_allclose(theirs[0]['loss'], ours[0]['loss'], rtol=1e-4)
    np.testing.assert_allclose(theirs[1], ours[1], rtol=0, atol=1e-3 * np.abs(ours[1]).max())


def test_the_sizes_of_network_and_crop_have_to_agree():
    config = small_recipe('cgan')
    config.data.crop = 64
    with pytest.raises(UserError, match=r'model.size is 32, data.crop 64'):
        tasks.build(config)
