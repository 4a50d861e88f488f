"""Learning rate schedules, and the optimizers for large batches."""

import jax
import numpy as np
import pytest

from jaxcolor import config as base
from jaxcolor.tasks import optimizers


@pytest.mark.parametrize(('scaling', 'factor'), [('none', 1), ('linear', 16), ('sqrt', 4)])
def test_learning_rate_scaling_and_warm_up(scaling, factor):
    config = base.optimizer()
    config.update({'learning_rate': 0.5, 'scaling': scaling, 'base_batch_size': 32, 'warmup_steps': 10})
    rate = optimizers.schedule(config, 100, 512)
    assert [float(rate(step)) for step in (0, 5, 10, 99)] == [0.0, 0.25 * factor, 0.5 * factor, 0.5 * factor]
    config.schedule = 'cosine'
    assert float(optimizers.schedule(config, 100, 512)(55)) == pytest.approx(0.25 * factor)


def test_adagrad_divides_by_the_root_of_all_squares():
    """Duchi, Hazan, Singer 2011; the sum starts at 0.1, as in TensorFlow."""
    config = base.optimizer()
    config.update({'name': 'adagrad', 'learning_rate': 0.5, 'eps': 1e-8})
    optimizer = optimizers.build(config, 10, 32)
    params = {'kernel': np.zeros(2, np.float32)}
    state, total = optimizer.init(params), 0.1
    for gradient in (1.0, -3.0, 0.5):
        updates, state = optimizer.update({'kernel': np.full(2, gradient, np.float32)}, state, params)
        total += gradient**2
        np.testing.assert_allclose(updates['kernel'], -0.5 * gradient / np.sqrt(total), rtol=1e-5)


@pytest.mark.parametrize('name', ['lars', 'lamb'])
def test_lars_and_lamb_adapt_kernels_only(name):
    """The norm of a kernel's update depends on the kernel's norm, not on the gradient's; a bias follows the gradient."""
    config = base.optimizer()
    config.update({'name': name, 'learning_rate': 0.5, 'weight_decay': 0.0, 'momentum': 0.9, 'eps': 1e-12})
    optimizer = optimizers.build(config, 10, 32)
    params = {'kernel': np.full((3, 4), 2.0, np.float32), 'bias': np.full(4, 3.0, np.float32)}
    state = optimizer.init(params)
    for scale in (1.0, 100.0):
        grads = jax.tree.map(lambda x, scale=scale: np.full_like(x, scale), params)
        updates, _ = optimizer.update(grads, state, params)
        coefficient = {'lars': 0.001, 'lamb': 1.0}[name]
        np.testing.assert_allclose(updates['kernel'], -0.5 * coefficient * 2.0, rtol=1e-4)
        if name == 'lars':
            np.testing.assert_allclose(updates['bias'], -0.5 * scale, rtol=1e-5)
