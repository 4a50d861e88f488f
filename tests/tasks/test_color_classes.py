"""Sorting pixels into classes of colors: against the formulas of Zhang, Isola, Efros 2016, one pixel at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import small_config

from jaxcolor import color, tasks
from jaxcolor import config as base
from jaxcolor.errors import UserError
from jaxcolor.runtime.parallel import DataParallel
from jaxcolor.tasks.color_classes import class_centers
from jaxcolor.train import train

# What float32 costs a mean of colors up to 110 whose weights are powers of e of up to some 40.
ROUNDING = 110 * 128 * float(np.finfo(np.float32).eps)
EVEN = {'color_prior': {'share': np.full(len(class_centers()), 1 / len(class_centers()), np.float32)}}


@pytest.fixture
def config(shards):
    config = small_config(shards)
    config.task = base.color_classes()
    config.model.color_classes = len(class_centers())
    config.data.crop = 32
    return config


def photos(count=4):
    """A batch of 32-pixel photos, 8-pixel squares of colors that are nearer to one class than to any other."""
    rng = np.random.default_rng(0)
    ab = rng.choice(class_centers(), (count, 4, 4)) + rng.integers(-4, 5, (count, 4, 4, 2))
    lab = np.concatenate([np.full((count, 4, 4, 1), 50), ab], axis=-1).repeat(8, axis=1).repeat(8, axis=2)
    return {'lab': color.encode_lab(lab.astype(np.float32)), 'label': np.full(count, -1, np.int32)}


def test_the_classes_are_the_squares_that_srgb_reaches():
    levels = np.arange(0, 256, 5)
    rgb = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3).astype(np.uint8)
    squares = np.asarray(color.rgb_to_lab(rgb)[..., 1:], np.float64) / 10
    # Farther from the edges than rounding moves a color, the same squares are reached.
    inside = squares[np.abs(squares - np.round(squares)).max(axis=1) < 0.4999]
    expected = {tuple(10 * place) for place in np.round(inside)}
    assert {tuple(center) for center in class_centers().tolist()} == expected
    assert len(class_centers()) == len(expected) == 260
    assert (np.asarray(color.ab_bin(class_centers())) == np.unique(color.ab_bin(class_centers()))).all()


def test_the_loss_is_the_paper_s(config):
    task, batch = tasks.build(config), photos()
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((4, 8, 8, len(class_centers()))).astype(np.float32)
    share = rng.dirichlet(np.ones(len(class_centers()))).astype(np.float32)
    found = task.loss_terms({'color_logits': logits}, batch, {'color_prior': {'share': share}})['color_loss']
    weights = 1 / (0.5 * share + 0.5 / len(class_centers()))
    weights /= (share * weights).sum()
    # Photos of 8-pixel squares: a pixel at a quarter of the size has one color.
    ab = color.decode_lab(batch['lab'])[:, ::4, ::4, 1:]
    likely = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = np.zeros(4)
    for photo, y, x in np.ndindex(4, 8, 8):
        distance = np.linalg.norm(ab[photo, y, x] - class_centers(), axis=1)
        near = np.argsort(distance)[:5]  # the paper takes the five nearest; so much they hold of all
        soft = np.exp(-(distance**2) / 50)
        assert soft[near].sum() > 0.87 * soft.sum()
        soft /= soft.sum()
        expected[photo] -= weights[near[0]] * (soft * likely[photo, y, x]).sum() / 64
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_temperature_goes_from_the_mean_to_the_likeliest(config):
    logits = np.random.default_rng(0).standard_normal((1, 2, 2, len(class_centers()))).astype(np.float32) * 4
    of = {}
    for temperature in (1.0, 0.38, 0.01):
        config.task.temperature = temperature
        of[temperature] = tasks.build(config).decode({'color_logits': jnp.asarray(logits)}, jnp.zeros((1, 2, 2, 1)), EVEN)
    likely = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(of[1.0], likely @ class_centers(), rtol=0, atol=ROUNDING)
    annealed = likely ** (1 / 0.38)
    np.testing.assert_allclose(
        of[0.38], annealed @ class_centers() / annealed.sum(axis=-1, keepdims=True), rtol=0, atol=ROUNDING
    )
    np.testing.assert_allclose(
        of[0.01], class_centers()[logits.argmax(axis=-1)], rtol=0, atol=0.5
    )  # what others still weigh
    config.task.chroma_gain = 1.5
    gained = tasks.build(config).decode({'color_logits': jnp.asarray(logits)}, jnp.zeros((1, 2, 2, 1)), EVEN)
    np.testing.assert_allclose(gained, 1.5 * of[0.01], rtol=0, atol=ROUNDING)


def test_a_step_s_agreement_is_of_every_fourth_row_and_column(config):
    task, batch = tasks.build(config), photos()
    logits = 4 * np.random.default_rng(0).standard_normal((4, 8, 8, len(class_centers()))).astype(np.float32)
    found = task._accuracies({'color_logits': jnp.asarray(logits)}, batch, EVEN)
    prediction = np.asarray(task.decode({'color_logits': jnp.asarray(logits)}, jnp.zeros((4, 8, 8, 1)), EVEN))[:, ::4, ::4]
    truth = np.asarray(color.decode_lab(batch['lab'])[:, ::16, ::16, 1:])  # squares of 8 pixels, outputs of 4
    assert found.keys() == {'larger_channel_agreement'}
    expected = np.mean(prediction.argmax(axis=-1) == truth.argmax(axis=-1))
    np.testing.assert_allclose(found['larger_channel_agreement'], expected, rtol=1e-6)


def test_an_answer_is_rebalanced_as_a_loss_would_be(config):
    """Where each class has the weight w, the likelihoods p go over into w p, made to add up to 1 again."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((1, 2, 2, len(class_centers()))).astype(np.float32) * 2
    share = rng.dirichlet(np.ones(len(class_centers()))).astype(np.float32)
    config.task.update({'inference_rebalance': 0.25, 'temperature': 1.0})
    found = tasks.build(config).decode(
        {'color_logits': jnp.asarray(logits)}, jnp.zeros((1, 2, 2, 1)), {'color_prior': {'share': share}}
    )
    likely = np.exp(logits) / (0.75 * share + 0.25 / len(class_centers()))
    np.testing.assert_allclose(found, likely @ class_centers() / likely.sum(axis=-1, keepdims=True), rtol=0, atol=ROUNDING)


def test_it_learns_and_its_prior_is_the_mean_of_what_all_parts_of_all_devices_saw(config):
    config.optimizer.update({'learning_rate': 3e-3, 'schedule': 'constant', 'warmup_steps': 0})
    config.task.rebalance = 1.0  # with weights that move with the prior, losses would not compare
    config.train.update({'accumulation_steps': 2, 'ema': 0.5})
    task, batch = tasks.build(config), photos(8)
    parallel, losses = DataParallel(devices=jax.devices()[:4]), []
    state, step = parallel.create(task.init, jax.random.PRNGKey(0)), parallel.map(task.train_step)
    for _ in range(5):
        state, measured = step(state, parallel.shard(batch))
        losses.append(float(measured['loss']))
    assert losses[-1] < losses[0] - 0.1
    ab = color.decode_lab(batch['lab'])[:, ::4, ::4, 1:].reshape(-1, 1, 2)
    soft = np.exp(-np.square(ab - class_centers()).sum(axis=-1) / 50)
    seen = (soft / soft.sum(axis=1, keepdims=True)).mean(axis=0)
    expected = (1 / len(class_centers()) + 5 * seen) / 6  # the even share that it starts from counts as one step
    np.testing.assert_allclose(state.model_state['color_prior']['share'], expected, rtol=0, atol=1e-4 * expected.max())
    ab = jax.jit(task.predict)(state, jnp.full((1, 37, 50, 1), 50.0))
    assert ab.shape == (1, 37, 50, 2) and ab.dtype == jnp.float32
    weak = [leaf for leaf in jax.tree.leaves(jax.eval_shape(task.init, jax.random.PRNGKey(0))) if leaf.weak_type]
    assert not weak  # the step would be compiled twice


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_its_prior(config, tmp_path):
    config.train.update({'steps': 6, 'checkpoint_every': 3, 'eval_every': 6, 'eval_splits': ('train',)})
    whole = train(config, tmp_path / 'whole')
    config.train.update({'steps': 3, 'eval_every': 3})
    train(config, tmp_path / 'parts')
    config.train.update({'steps': 6, 'eval_every': 6})
    assert train(config, tmp_path / 'parts')['train'] == whole['train']


def test_a_config_of_another_task_is_refused(config):
    config.task = base.regression()
    config.task.name = 'color_classes'
    with pytest.raises(UserError, match='the section task of color_classes lacks the field .*rebalance'):
        tasks.build(config)


@pytest.mark.parametrize(
    ('section', 'field', 'value', 'words'),
    [
        ('task', 'temperature', 0.0, 'task.temperature must lie between 0.01 and 10, not 0.0'),
        ('task', 'inference_rebalance', 0.0, 'task.inference_rebalance must lie between 0.001 and 1'),
        ('task', 'rebalance', 1.5, 'task.rebalance must lie between 0 and 1'),
        ('model', 'color_classes', 300, 'model.color_classes=260 or 313'),
        ('model', 'decoder', 'deconv', 'model.decoder=nearest'),
        ('model', 'output_space', 'rgb', 'model.output_space: color classes are classes of'),
        ('task', 'name', 'regression', 'model.color_classes is for task.name=color_classes'),
    ],
)
def test_what_does_not_fit_is_refused(config, section, field, value, words):
    if field == 'name':
        config.task = base.regression()
    config[section][field] = value
    with pytest.raises(UserError, match=words):
        tasks.build(config)
