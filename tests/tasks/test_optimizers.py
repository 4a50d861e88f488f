"""Learning rate schedules, and the optimizers for large batches."""

from fractions import Fraction

import jax
import numpy as np
import pytest

from jaxcolor import allowed
from jaxcolor import config as fields
from jaxcolor.errors import UserError
from jaxcolor.recipes import load_recipe
from jaxcolor.tasks import optimizers
from jaxcolor.tasks.length import Length

LENGTH = Length(100, Fraction(25, 2))


@pytest.mark.parametrize(('scaling', 'factor'), [('none', 1), ('linear', 16), ('sqrt', 4)])
def test_learning_rate_scaling_and_warm_up(scaling, factor):
    config = fields.optimizer()
    config.update({'learning_rate': 0.5, 'scaling': scaling, 'base_batch_size': 32, 'warmup_steps': 10})
    rate = optimizers.schedule(config, LENGTH, 512)
    assert [float(rate(step)) for step in (0, 5, 10, 99)] == [0.0, 0.25 * factor, 0.5 * factor, 0.5 * factor]
    config.schedule = 'cosine'
    assert float(optimizers.schedule(config, LENGTH, 512)(55)) == pytest.approx(0.25 * factor)


def test_adagrad_divides_by_the_root_of_all_squares():
    """Duchi, Hazan, Singer 2011; the sum starts at 0.1, as in TensorFlow."""
    config = fields.optimizer()
    config.update({'name': 'adagrad', 'learning_rate': 0.5, 'eps': 1e-8})
    optimizer = optimizers.build(config, 0.5)
    params = {'kernel': np.zeros(2, np.float32)}
    state, total = optimizer.init(params), 0.1
    for gradient in (1.0, -3.0, 0.5):
        updates, state = optimizer.update({'kernel': np.full(2, gradient, np.float32)}, state, params)
        total += gradient**2
        np.testing.assert_allclose(updates['kernel'], -0.5 * gradient / np.sqrt(total), rtol=1e-5)


@pytest.mark.parametrize('name', ['lars', 'lamb'])
def test_lars_and_lamb_adapt_kernels_only(name):
    """The norm of a kernel's update depends on the kernel's norm, not on the gradient's; a bias follows the gradient."""
    config = fields.optimizer()
    config.update({'name': name, 'learning_rate': 0.5, 'weight_decay': 0.0, 'momentum': 0.9, 'eps': 1e-12})
    optimizer = optimizers.build(config, 0.5)
    params = {'kernel': np.full((3, 4), 2.0, np.float32), 'bias': np.full(4, 3.0, np.float32)}
    state = optimizer.init(params)
    for scale in (1.0, 100.0):
        grads = jax.tree.map(lambda x, scale=scale: np.full_like(x, scale), params)
        updates, _ = optimizer.update(grads, state, params)
        coefficient = {'lars': 0.001, 'lamb': 1.0}[name]
        np.testing.assert_allclose(updates['kernel'], -0.5 * coefficient * 2.0, rtol=1e-4)
        if name == 'lars':
            np.testing.assert_allclose(updates['bias'], -0.5 * scale, rtol=1e-5)


def test_a_warm_up_in_epochs():
    config = fields.optimizer()
    config.update({'learning_rate': 0.5, 'warmup_epochs': 2})
    rate = optimizers.schedule(config, LENGTH, 128)
    assert [float(rate(step)) for step in (0, 5, 25, 99)] == pytest.approx([0.0, 0.1, 0.5, 0.5])


def test_a_name_brings_its_own_defaults():
    """As published; a recipe's own values are for the recipe's optimizer."""
    for name, defaults in allowed.OPTIMIZER_DEFAULTS.items():
        config = load_recipe('ltbc', [f'--config.optimizer.name={name}'])
        resolved = optimizers.resolve(config.optimizer)
        assert {field: resolved[field] for field in allowed.OPTIMIZER_FIELDS} == {
            field: defaults.get(field) for field in allowed.OPTIMIZER_FIELDS
        }
        optimizers.build(config.optimizer, 1e-3).init({'kernel': np.ones((2, 2), np.float32)})
    assert allowed.OPTIMIZER_DEFAULTS.keys() == optimizers.OPTIMIZERS.keys()

    config = load_recipe('ltbc_pytorch', ['--config.optimizer.name=adadelta', '--config.optimizer.eps=1e-7'])
    resolved = optimizers.resolve(config.optimizer)
    assert (resolved.learning_rate, resolved.rho, resolved.eps, resolved.beta1) == (1.0, 0.95, 1e-7, None)
    config = load_recipe('ltbc_pytorch', ['--config.optimizer.name=adam'])
    assert optimizers.resolve(config.optimizer).learning_rate == 1e-4
    config = load_recipe('ltbc', ['--config.optimizer.name', 'adam', '--config.optimizer.learning_rate', '3e-4'])
    assert optimizers.resolve(config.optimizer).learning_rate == 3e-4
    with pytest.raises(UserError, match=r'optimizer\.name: there is no .adma.; there are adadelta'):
        optimizers.resolve(load_recipe('ltbc', ['--config.optimizer.name=adma']).optimizer)
