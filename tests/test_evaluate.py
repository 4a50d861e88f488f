"""Figures: every photo once whatever the batch, the same on 1 and 8 devices, the table, the grids."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_one_sentence
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from jaxcolor import color, evaluate, logs, metrics, tasks
from jaxcolor.data.shards import open_shards
from jaxcolor.parallel import DataParallel


@pytest.fixture
def photo_pair(photos):
    """Two RGB photos, float32 (2, 200, 200, 3), and the same with their colours halved."""
    truth = np.stack([photo[:200, :200] for photo in photos[:2]])
    lab = color.rgb_to_lab(truth)
    faded = color.lab_to_rgb(lab * np.array([1, 0.5, 0.5], np.float32))
    return jnp.asarray(faded), jnp.asarray(truth.astype(np.float32) / np.float32(255))


def test_psnr_agrees_with_scikit_image(photo_pair):
    faded, truth = photo_pair
    expected = [
        peak_signal_noise_ratio(np.asarray(color.to_uint8(b)), np.asarray(color.to_uint8(a)), data_range=255)
        for a, b in zip(faded, truth, strict=True)
    ]
    np.testing.assert_allclose(metrics.psnr(faded, truth), expected, rtol=1e-5)
    assert (np.asarray(metrics.psnr(truth, truth)) > 90).all()


def test_colorfulness_is_hasler_and_suesstrunk_s(photo_pair):
    for photo, value in zip(photo_pair[0], metrics.colorfulness(photo_pair[0]), strict=True):
        r, g, b = np.moveaxis(255 * np.asarray(photo, np.float64), -1, 0)
        rg, yb = r - g, (r + g) / 2 - b
        expected = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
        np.testing.assert_allclose(value, expected, rtol=1e-4)
        rg, yb = abs(rg), abs(yb)  # DDColor's
        expected = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
        np.testing.assert_allclose(metrics.colorfulness_absolute(photo[None])[0], expected, rtol=1e-4)


def test_ssim_agrees_with_scikit_image(photo_pair):
    faded, truth = (np.asarray(x, np.float64) for x in photo_pair)
    options = {'gaussian_weights': True, 'sigma': 1.5, 'use_sample_covariance': False, 'channel_axis': -1, 'data_range': 1}
    expected = [structural_similarity(b, a, **options) for a, b in zip(faded, truth, strict=True)]
    np.testing.assert_allclose(metrics.ssim(*photo_pair), expected, atol=2e-5)
    np.testing.assert_allclose(metrics.ssim(photo_pair[1], photo_pair[1]), 1, atol=1e-6)


def test_auc_is_the_area_under_the_curve_of_zhang(photo_pair):
    a, b = (color.rgb_to_lab(np.asarray(photo))[..., 1:] for photo in photo_pair)
    error = np.linalg.norm(a - b, axis=-1)
    thresholds = np.linspace(0, 150, 3001)
    curve = [[(e <= t).mean() for t in thresholds] for e in error]
    np.testing.assert_allclose(metrics.ab_auc(a, b), np.trapezoid(curve, thresholds) / 150, atol=1e-4)


def test_agreement_is_keras_accuracy_of_two_channels():
    truth = jnp.array([[[[1.0, 0.0], [0.0, 1.0], [5.0, -5.0], [2.0, 3.0]]]])
    prediction = jnp.array([[[[0.2, 0.1], [9.0, 1.0], [-1.0, -2.0], [0.0, 0.5]]]])
    assert float(metrics.larger_channel_agreement(prediction, truth)[0]) == 0.75


def test_every_photo_counts_once_whatever_the_batch_and_the_devices(tiny_config, shards):
    task = tasks.build(tiny_config)
    state = jax.jit(task.init)(jax.random.PRNGKey(0))
    rows = []
    for batch_size, devices in [(20, 1), (7, 1), (64, 8)]:
        tiny_config.train.batch_size = batch_size
        parallel = DataParallel(devices=jax.devices()[:devices])
        evaluator = evaluate.Evaluator(task, parallel, open_shards(shards), tiny_config)
        rows.append(evaluator.measure(parallel.replicate(state), 'train'))
    assert rows[0]['photos'] == 20
    for row in rows[1:]:
        assert row.keys() == rows[0].keys()
        for name, value in rows[0].items():
            assert row[name] == pytest.approx(value, rel=2e-5), name


def test_a_network_that_says_gray_scores_as_gray(tiny_config, shards):
    task = tasks.build(tiny_config)
    state = jax.jit(task.init)(jax.random.PRNGKey(0))
    zeroed = jax.tree.map(jnp.zeros_like, state.params['output'])  # sigmoid(0) is a* = b* = 0
    state = state.replace(params={**state.params, 'output': zeroed})
    parallel = DataParallel()
    row = evaluate.Evaluator(task, parallel, open_shards(shards), tiny_config).measure(parallel.replicate(state), 'train')
    assert row['psnr'] == pytest.approx(row['psnr_gray'])
    assert row['colorfulness'] < 0.5 < 30 < row['colorfulness_true']


def test_the_command_prints_the_table_and_draws_the_grid(trained, tmp_path, command):
    expected = logs.read_metrics(trained)[-1]
    shutil.copytree(trained, tmp_path / 'run')
    code, out, err = command('main', '--mode=evaluate', f'--workdir={tmp_path / "run"}', '--splits=validation,train')
    assert code == 0, err
    for split in ('validation', 'train'):
        assert Image.open(tmp_path / 'run' / 'evaluation' / f'{split}.png').size == (64 + 2 * 64, 3 * 64)
    row = next(line for line in out.splitlines() if 'PSNR (dB)' in line)
    values = [float(cell) for cell in row.split('|')[2:4]]
    assert values == pytest.approx([expected[f'{split}/psnr'] for split in ('validation', 'train')], rel=1e-3)


def test_bad_evaluations_are_one_sentence(trained, tmp_path, command):
    code, _, err = command('main', '--mode=evaluate', f'--workdir={tmp_path}')
    assert_one_sentence(code, err, tmp_path, 'no run directory')
    code, _, err = command('main', '--mode=evaluate', f'--workdir={trained}', '--splits=holiday')
    assert_one_sentence(code, err, 'holiday', 'validation')
    code, _, err = command('main', '--mode=evaluate', f'--workdir={trained}', f'--data={tmp_path / "none"}')
    assert_one_sentence(code, err, tmp_path / 'none')
