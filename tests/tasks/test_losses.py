"""Losses against their formulas, and the moving average of the parameters against one by hand."""

import jax
import numpy as np
import optax
import pytest
from helpers import batch_of

from jaxcolor import color, tasks
from jaxcolor.errors import UserError
from jaxcolor.evaluation import metrics
from jaxcolor.recipes import load_recipe
from jaxcolor.runtime.parallel import DataParallel
from jaxcolor.tasks import losses


@pytest.fixture
def ab():
    """Two a*b* of two photos, float32 (2, 3, 4, 2)."""
    return np.random.default_rng(0).standard_normal((2, 2, 3, 4, 2)).astype(np.float32)


@pytest.mark.parametrize('reduction', ['sum', 'mean'])
def test_color_errors_are_their_formulas(ab, reduction):
    a, b = ab
    reduce = getattr(np, reduction)
    np.testing.assert_allclose(losses.color_error(a, b, reduction), reduce((a - b) ** 2, axis=(1, 2, 3)), rtol=1e-5)
    huber = 2 * np.asarray(optax.losses.huber_loss(a, b, delta=0.7))
    np.testing.assert_allclose(losses.color_error(a, b, reduction, 0.7), reduce(huber, axis=(1, 2, 3)), rtol=1e-5)
    absolute = losses.color_error(a, b, reduction, absolute=True)
    np.testing.assert_allclose(absolute, reduce(np.abs(a - b), axis=(1, 2, 3)), rtol=1e-5)
    weight = np.random.default_rng(1).uniform(1, 3, a.shape[:3]).astype(np.float32)
    expected = reduce(weight[..., None] * (a - b) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(losses.color_error(a, b, reduction, weight=weight), expected, rtol=1e-5)


def test_the_task_gives_them_units_and_chroma(tiny_config, ab):
    tiny_config.task.update({'error': 'huber', 'huber_delta': 10.0, 'chroma_weight': 3.0, 'reduction': 'mean'})
    task = tasks.build(tiny_config)
    a, b = (20 * x for x in ab)
    normal = [color.normalize(x, 'lab', tiny_config.model.output_activation) for x in (a, b)]
    huber = 2 * np.asarray(optax.losses.huber_loss(a, b, delta=10.0)) / 256**2  # sigmoid: 256 units to 1
    weight = 1 + 3 * np.hypot(b[..., 0], b[..., 1]) / 100
    expected = (weight[..., None] * huber).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(task._color_error(*map(jax.numpy.asarray, [*normal, b])), expected, rtol=1e-4)
    tiny_config.task.error = 'cubic'
    with pytest.raises(UserError, match=r"task\.error: 'cubic' is none of squared, huber, absolute"):
        tasks.build(tiny_config)


def test_colorfulness_is_that_of_the_metric_and_a_gray_photo_has_a_gradient():
    rgb = jax.numpy.asarray(np.random.default_rng(0).uniform(size=(2, 8, 9, 3)), jax.numpy.float32)
    expected = 1 - metrics.colorfulness_absolute(rgb) / 255
    np.testing.assert_allclose(losses.colorfulness_loss(rgb), expected, rtol=0, atol=1e-6)
    gray = jax.numpy.full((1, 4, 4, 3), 0.5)
    np.testing.assert_allclose(losses.colorfulness_loss(gray), 1, rtol=0, atol=1e-3)
    assert np.isfinite(jax.grad(lambda rgb: losses.colorfulness_loss(rgb).sum())(gray)).all()


def test_the_task_weighs_the_colorfulness_of_the_predicted_photo(tiny_config):
    tiny_config.task.update({'error': 'absolute', 'colorfulness': 0.25, 'reduction': 'mean'})
    task = tasks.build(tiny_config)
    rng = np.random.default_rng(0)
    batch = {'lab': jax.numpy.asarray(rng.integers(64, 192, (2, 8, 8, 3)), jax.numpy.uint8)}
    output = jax.numpy.asarray(rng.uniform(0.4, 0.6, (2, 4, 4, 2)), jax.numpy.float32)
    terms = task.loss_terms({'ab': output}, batch, {})
    lab = np.asarray(color.decode_lab(batch['lab'])).reshape(2, 4, 2, 4, 2, 3).mean(axis=(2, 4))
    predicted = 256 * np.asarray(output) - 128  # sigmoid: 256 units to 1
    np.testing.assert_allclose(256 * terms['color_loss'], np.abs(predicted - lab[..., 1:]).mean(axis=(1, 2, 3)), rtol=1e-4)
    rgb = color.lab_to_rgb(jax.numpy.asarray(np.concatenate([lab[..., :1], predicted], axis=-1), jax.numpy.float32))
    np.testing.assert_allclose(terms['colorfulness_loss'], 0.25 * losses.colorfulness_loss(rgb), rtol=1e-4)


def one_step(config, batch, devices):
    """The metrics of a fresh network's first step."""
    task, parallel = tasks.build(config), DataParallel(devices=jax.devices()[:devices])
    state = parallel.create(task.init, jax.random.PRNGKey(0))
    return task, state, jax.device_get(parallel.map(task.train_step)(state, parallel.shard(batch))[1])


@pytest.mark.parametrize('parts', [1, 2])
def test_a_step_measures_the_accuracies_of_its_own_predictions(tiny_config, parts):
    """At the size of the network's output; photos without a label are left out of the class's accuracy."""
    tiny_config.data.crop = 32
    tiny_config.model.update({'classes': 3, 'batch_norm': False})
    tiny_config.train.accumulation_steps = parts
    batch = batch_of(8, 32)
    task, state, measured = one_step(tiny_config, batch, devices=2)
    lab = color.decode_lab(batch['lab'])
    outputs = task.network.apply({'params': jax.device_get(state.params)}, lab[..., :1] / 100)
    halves = np.asarray(lab[..., 1:]).reshape(8, 16, 2, 16, 2, 2).mean(axis=(2, 4))
    prediction = np.asarray(outputs['ab'])
    expected = np.mean(prediction.argmax(axis=-1) == halves.argmax(axis=-1))
    # Rounding may turn a pixel in a thousand, whose channels are all but equal.
    np.testing.assert_allclose(measured['larger_channel_agreement'], expected, rtol=0, atol=1e-3)
    is_labeled = batch['label'] >= 0
    assert 0 < is_labeled.sum() < 8
    found = np.asarray(outputs['logits']).argmax(axis=-1) == batch['label']
    np.testing.assert_allclose(measured['top1'], found[is_labeled].mean(), rtol=1e-6)
    assert 'labeled' not in measured


def test_a_step_without_labels_has_no_accuracy_of_the_class(tiny_config):
    tiny_config.data.crop = 32
    tiny_config.model.classes = 3
    batch = {**batch_of(4, 32), 'label': np.full(4, -1, np.int32)}
    measured = one_step(tiny_config, batch, devices=2)[2]
    assert np.isnan(measured['top1']) and np.isfinite(measured['loss'])


def test_the_moving_average_evaluates_and_colors(tiny_config):
    tiny_config.data.crop = 32
    tiny_config.optimizer.update({'name': 'sgd', 'learning_rate': 1.0, 'schedule': 'constant', 'warmup_steps': 0})
    tiny_config.train.ema = 0.5
    task, parallel = tasks.build(tiny_config), DataParallel(devices=jax.devices()[:2])
    lab = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    batch = {'lab': lab, 'label': np.full(4, -1, np.int32)}
    state = parallel.create(task.init, jax.random.PRNGKey(0))
    step, average = parallel.map(task.train_step), jax.device_get(state.weights())
    for kept in (2 / 11, 3 / 12, 4 / 13):
        state, _ = step(state, parallel.shard(batch))
        new = jax.device_get(state.weights())
        average = jax.tree.map(lambda old, new, kept=kept: old * kept + new * (1 - kept), average, new)
    for found, expected in zip(jax.tree.leaves(jax.device_get(state.ema)), jax.tree.leaves(average), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    lightness = color.decode_lab(lab)[..., :1]
    predict = jax.jit(task.predict)
    averaged, own = (np.asarray(predict(each, lightness)) for each in (state, state.replace(ema=())))
    expected = np.asarray(predict(state.replace(**state.ema, ema=()), lightness))
    rounding = 32 * 256 * np.finfo(np.float32).eps  # of a*b*, whose range of 256 is 1 at the network's output
    np.testing.assert_allclose(averaged, expected, rtol=0, atol=rounding)
    assert np.abs(averaged - own).max() > 10 * rounding


def test_the_two_losses_of_ltbc_are_of_similar_magnitude(photos):
    """Report 003, 2.2, says so of alpha = 1/300. Gray photos of the usual chroma against a classifier that knows nothing."""
    config = load_recipe('ltbc')
    ab = [color.normalize(color.rgb_to_lab(photo)[None, ..., 1:], 'lab', config.model.output_activation) for photo in photos]
    gray = color.normalize(np.zeros((1, 1, 1, 2), np.float32), 'lab', config.model.output_activation)
    colors = {
        reduction: np.mean([losses.color_error(np.broadcast_to(gray, each.shape), each, reduction)[0] for each in ab])
        for reduction in ('mean', 'sum')
    }
    classes = config.task.alpha * np.log(config.model.classes)
    assert 0.1 < colors[config.task.reduction] / classes < 10
    assert colors['sum'] / classes > 1_000
