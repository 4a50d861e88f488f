"""Large photos of a batch, which CPUs take one after the other."""

import jax
import numpy as np
import pytest
from helpers import small_recipe

from jaxcolor import tasks


@pytest.fixture(scope='module')
def task():
    return tasks.build(small_recipe('ltbc'))


@pytest.fixture(scope='module')
def state(task):
    return jax.jit(task.init)(jax.random.PRNGKey(0))


def lightness(side):
    return np.random.default_rng(0).uniform(0, 100, (3, side, side, 1)).astype(np.float32)


def test_a_batch_equals_its_photos(task, state):
    photos, predict = lightness(384), jax.jit(task.predict)
    expected = np.concatenate([predict(state, photo[None]) for photo in photos])
    np.testing.assert_allclose(predict(state, photos), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(('side', 'platform', 'loops'), [(384, 'cpu', True), (384, 'cuda', False), (64, 'cpu', False)])
def test_only_cpus_loop_over_large_ones(task, state, side, platform, loops):
    lowered = jax.jit(task.predict).trace(state, lightness(side)).lower(lowering_platforms=(platform,))
    assert ('stablehlo.while' in lowered.as_text()) == loops
