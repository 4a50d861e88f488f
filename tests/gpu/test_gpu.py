"""What GPUs compute is what CPUs do, within rounding: `pytest -m gpu` on a machine that has one.

    JAXCOLOR_TESTS_ON=cpu python -m pytest -m gpu

runs the same on the CPU.
"""

import jax
import numpy as np
import pytest
from conftest import TESTS_ON, small_config
from helpers import SMALL, assert_identical, norm, state_of
from references import colored, read, step_of

from jaxcolor.runtime import logs
from jaxcolor.train import train

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def on_a_gpu():
    if jax.default_backend() != TESTS_ON:
        pytest.skip('there is no GPU that JAX can use')
    with jax.default_matmul_precision('float32'):  # where networks are float32; GPUs take TF32 by themselves
        yield


@pytest.fixture(scope='module')
def references():
    return read()


def assert_step(found, expected, tolerance):
    """The gradients are within this part of their length, by their sketches, whose length is right to about a half."""
    assert found.keys() == expected.keys()
    whole = norm([value for key, value in expected.items() if key.startswith('gradients')])
    assert whole > 1e-3
    for key, value in expected.items():
        if key.startswith('gradients'):
            assert norm([found[key] - value]) < tolerance * (norm([value]) + 0.01 * whole), key
    np.testing.assert_allclose(found['metrics/loss'], expected['metrics/loss'], rtol=tolerance / 30)
    difference = norm([found[key] - value for key, value in expected.items() if key.startswith('gradients')])
    assert difference < tolerance * whole / 3


@pytest.mark.parametrize('name', list(SMALL))
def test_a_step_of_every_recipe(references, tmp_path, name):
    assert_step(step_of(name, tmp_path), references[0][name], 0.06)


@pytest.mark.parametrize('name', ['ltbc', 'ltbc_lite', 'cgan', 'ddcolor'])
def test_bfloat16_beside_float32(references, tmp_path, name):
    """The loss, and how long the gradient is; its direction is mostly rounding in networks that have learned nothing, whose
    batch norms divide by small deviations."""
    with jax.numpy_dtype_promotion('standard'):  # Flax' layer norm mixes float32 with bfloat16
        found = step_of(name, tmp_path, dtype='bfloat16')
    expected = references[0][name]
    np.testing.assert_allclose(found['metrics/loss'], expected['metrics/loss'], rtol=0.05)
    lengths = [norm([value for key, value in step.items() if key.startswith('gradients')]) for step in (found, expected)]
    assert 0.5 < lengths[0] / lengths[1] < 2


def test_colors_a_photo_alike(references):
    difference = np.abs(colored().astype(int) - references[1])
    assert difference.max() <= 4 and difference.mean() < 0.2


def test_a_training_resumes_to_the_same_bits(shards, tmp_path, capsys):
    """With deterministic kernels; the GPU holds the photos, by itself."""
    config = small_config(shards)
    config.optimizer.schedule = 'constant'
    config.train.update({'steps': 8, 'deterministic': True, 'eval_splits': ('validation',)})
    results = train(config, tmp_path / 'whole')
    assert ('held on every device' if TESTS_ON == 'gpu' else 'streamed from the host') in capsys.readouterr().err
    config.train.steps = 4
    train(config, tmp_path / 'parts')
    config.train.steps = 8
    assert train(config, tmp_path / 'parts') == results
    assert_identical(*(state_of(tmp_path / name, 8, config) for name in ('whole', 'parts')))
    config.data.placement = 'host' if TESTS_ON == 'gpu' else 'device'
    train(config, tmp_path / 'other')
    losses = [[row['loss'] for row in logs.read_metrics(tmp_path / name) if 'loss' in row] for name in ('whole', 'other')]
    np.testing.assert_allclose(*losses, rtol=1e-2)
