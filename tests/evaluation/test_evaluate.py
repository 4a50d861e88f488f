"""Evaluation: metrics against references, every photo counted once on any number of devices, reports, example grids."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import assert_one_sentence
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from jaxcolor import color, tasks
from jaxcolor.data import pipeline
from jaxcolor.data.shards import open_shards
from jaxcolor.errors import UserError
from jaxcolor.evaluation import baselines, metrics, report
from jaxcolor.evaluation import evaluator as evaluator_module
from jaxcolor.evaluation.compare import compare_runs
from jaxcolor.evaluation.evaluate import evaluate_run
from jaxcolor.evaluation.evaluator import Evaluator
from jaxcolor.evaluation.grids import COLUMNS, save_grid
from jaxcolor.runtime import logs
from jaxcolor.runtime.parallel import DataParallel
from jaxcolor.tasks import losses

# A photo of 20 that counts twice, or not at all, moves means by more. Rounding moves them by less, also where it takes some
# pixels from one step of 8 bits, or one class, to the next; and the colors of gray, which are 0 but for it.
ONCE = 2e-4
# A thousandth of a decibel is 2.3e-4 of the mean square: float32 sums over a photo, and some pixels rounded the other way.
DECIBEL = 1e-3


@pytest.fixture
def photo_pair(photos):
    """Two RGB photos, float32 (2, 200, 200, 3), and the same with their colors halved."""
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
    np.testing.assert_allclose(metrics.psnr(faded, truth), expected, rtol=0, atol=DECIBEL)
    assert (np.asarray(metrics.psnr(truth, truth)) > 90).all()


def test_colorfulness_matches_hasler_and_suesstrunk(photo_pair):
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
    rounding = np.finfo(np.float32).eps / 0.03**2  # of variances, which are compared beside c2
    np.testing.assert_allclose(metrics.ssim(*photo_pair), expected, rtol=0, atol=rounding)
    np.testing.assert_allclose(metrics.ssim(photo_pair[1], photo_pair[1]), 1, rtol=0, atol=rounding)


def test_ab_auc_is_the_area_under_the_cumulative_curve(photo_pair):
    a, b = (color.rgb_to_lab(np.asarray(photo))[..., 1:] for photo in photo_pair)
    error = np.linalg.norm(a - b, axis=-1)
    thresholds = np.linspace(0, 150, 3001)
    curve = [[(e <= t).mean() for t in thresholds] for e in error]
    step = thresholds[1] / 150
    np.testing.assert_allclose(metrics.ab_auc(a, b), np.trapezoid(curve, thresholds) / 150, rtol=0, atol=step)


def test_balanced_ab_auc_weighs_every_color_equally(photo_pair):
    a, b = (color.rgb_to_lab(np.asarray(photo))[..., 1:] for photo in photo_pair)
    b = np.round(b) + np.float32(0.25)  # away from the edges of the classes, which rounding would take pixels across
    hits = {}
    for prediction, truth in zip(a.reshape(-1, 2), b.reshape(-1, 2), strict=True):
        color_bin = tuple(np.floor(truth / 10 + 0.5))
        hits.setdefault(color_bin, []).append(1 - min(np.linalg.norm(prediction - truth), 150) / 150)
    expected = np.mean([np.mean(values) for values in hits.values()])
    batch = [jnp.asarray(np.concatenate([x, 0 * x])) for x in (a, b)]  # padding after the last photo
    sums = metrics.error_by_color(*batch, jnp.arange(4) < 2)
    assert metrics.balanced_ab_auc(sums) == pytest.approx(expected, abs=1e-5)


def test_chroma_by_lightness(photo_pair):
    a, b = (color.rgb_to_lab(np.asarray(photo)) for photo in photo_pair)
    b = np.round(b) + np.float32(0.25)  # away from the edges of the bands, which rounding would take pixels across
    sums = metrics.chroma_by_lightness(*map(jnp.asarray, (a[..., 1:], b[..., 1:], b[..., :1])), jnp.array([True, False]))
    for band in range(10):
        inside = (b[0, ..., 0] >= 10 * band) & (b[0, ..., 0] < 10 * band + 10 + (band == 9))
        of_band = [np.hypot(x[0, ..., 1], x[0, ..., 2])[inside].sum() for x in (a, b)]
        np.testing.assert_allclose(sums[band], [*of_band, inside.sum()], rtol=1e-3)


def test_top_k_accuracy():
    rng = np.random.default_rng(0)
    logits, label = rng.standard_normal((50, 9)).astype(np.float32), rng.integers(-1, 9, 50).astype(np.int32)
    for k in (1, 5):
        accuracy = np.asarray(losses.top_k_accuracy(jnp.asarray(logits), jnp.asarray(label), k))
        top = np.argsort(-logits, axis=1)[:, :k]
        np.testing.assert_array_equal(accuracy[label >= 0], (top == label[:, None]).any(axis=1)[label >= 0])
        assert np.isnan(accuracy[label < 0]).all()


def test_confidence_interval_agrees_with_scipy_bootstrap():
    values = np.random.default_rng(1).gamma(2.0, size=80)
    expected = scipy.stats.bootstrap((values,), np.mean, method='percentile', n_resamples=9999, rng=2).confidence_interval
    # An end of 2000 samples has a standard error of 1.5 % of the width.
    np.testing.assert_allclose(
        metrics.confidence_interval(values), expected, rtol=0, atol=0.06 * (expected.high - expected.low)
    )


def test_photos_of_several_processes_are_gathered_in_order(monkeypatch):
    """Photos are dealt to the processes in turns, but arrive process by process."""
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    gathered = {'psnr': np.array([0, 2, 4, 1, 3, 5])}
    monkeypatch.setattr('jax.experimental.multihost_utils.process_allgather', lambda each, tiled: gathered)
    np.testing.assert_array_equal(evaluator_module._gather({})['psnr'], np.arange(6))


def test_baselines_of_the_training_photos(shards):
    records = open_shards(shards).records('train')
    training = baselines.TrainingPhotos(records, 64)
    batch = next(pipeline.eval_batches(open_shards(shards), 'train', batch_size=20, crop=64))
    expected = color.decode_lab(batch['lab'])[..., 1:].mean(axis=(0, 1, 2))
    for ab in training.mean_color(batch).reshape(-1, 2)[::999]:
        np.testing.assert_allclose(ab, expected, rtol=0, atol=1e-3)  # float32 means of steps of 1, up to 128
    np.testing.assert_array_equal(training.nearest(batch), color.decode_lab(batch['lab'])[..., 1:])


def test_larger_channel_agreement_is_keras_accuracy():
    truth = jnp.array([[[[1.0, 0.0], [0.0, 1.0], [5.0, -5.0], [2.0, 3.0]]]])
    prediction = jnp.array([[[[0.2, 0.1], [9.0, 1.0], [-1.0, -2.0], [0.0, 0.5]]]])
    assert float(metrics.larger_channel_agreement(prediction, truth)[0]) == 0.75


def test_every_photo_counts_once_for_any_batch_size_and_devices(tiny_config, shards):
    task = tasks.build(tiny_config)
    state = jax.jit(task.init)(jax.random.PRNGKey(0))
    rows = []
    for batch_size, devices in [(20, 1), (7, 1), (64, 8)]:
        tiny_config.train.batch_size = batch_size
        parallel = DataParallel(devices=jax.devices()[:devices])
        evaluator = Evaluator(task, parallel, open_shards(shards), tiny_config)
        rows.append(evaluator.evaluate(parallel.replicate(state), 'train'))
    assert rows[0]['photos'] == 20
    for row in rows[1:]:
        assert row.keys() == rows[0].keys()
        for name, value in rows[0].items():
            assert row[name] == pytest.approx(value, rel=ONCE, abs=ONCE), name


def test_gray_predictions_score_as_gray(tiny_config, shards):
    task = tasks.build(tiny_config)
    state = jax.jit(task.init)(jax.random.PRNGKey(0))
    zeroed = jax.tree.map(jnp.zeros_like, state.params['output'])  # sigmoid(0) is a* = b* = 0
    state = state.replace(params={**state.params, 'output': zeroed})
    parallel = DataParallel()
    row = Evaluator(task, parallel, open_shards(shards), tiny_config).evaluate(parallel.replicate(state), 'train')
    assert row['psnr'] == pytest.approx(row['psnr_gray'], abs=DECIBEL)
    batch = next(pipeline.eval_batches(open_shards(shards), 'train', batch_size=20, crop=64))
    errors = np.square(color.decode_lab(batch['lab'])[..., 1:]).mean(axis=(1, 2, 3))
    assert row['ab_rmse'] == pytest.approx(errors.mean() ** 0.5, rel=1e-4)
    assert row['ab_rmse_photo'] == pytest.approx((errors**0.5).mean(), rel=1e-4)
    assert row['colorfulness'] < 0.5 < 30 < row['colorfulness_true']


def test_command_writes_report_and_grids(trained, tmp_path, command):
    expected = logs.read_metrics(trained)[-1]
    shutil.copytree(trained, tmp_path / 'run')
    code, out, err = command('evaluate', f'--model={tmp_path / "run"}', '--splits=validation,train')
    assert code == 0, err
    for split in ('validation', 'train'):
        assert Image.open(tmp_path / 'run' / 'evaluation' / f'{split}.png').size == (64 + 2 * 64, 3 * 64)
        content = json.loads((tmp_path / 'run' / 'evaluation' / f'{split}.json').read_text())
        figures, intervals = content['figures'], content['intervals']
        assert list(figures) == ['network', 'gray', 'mean color', 'nearest photo']
        for name in ('loss', 'psnr', 'ab_rmse', 'chroma_kept'):
            assert figures['network'][name] == pytest.approx(expected[f'{split}/{name}'], rel=1e-3)
        assert figures['gray']['psnr'] == pytest.approx(figures['network']['psnr_gray'], abs=DECIBEL)
        assert figures['gray']['chroma_kept'] == 0
        assert Image.open(tmp_path / 'run' / 'evaluation' / f'{split}_worst.png').size == (64 + 2 * 64, 3 * 64)
        for baseline, gains in content['gains'].items():
            mean, low, high = gains['psnr']
            assert (
                mean == pytest.approx(figures['network']['psnr'] - figures[baseline]['psnr'], abs=1e-4) and low < mean < high
            )
        for column in figures:
            for name, (low, high) in intervals[column].items():
                assert low <= figures[column][name] <= high
        table = (tmp_path / 'run' / 'evaluation' / f'{split}.md').read_text()
        assert table in out
        row = next(line for line in table.splitlines() if 'PSNR (dB)' in line)
        assert float(row.split('|')[2].split()[0]) == pytest.approx(figures['network']['psnr'], rel=1e-3)
        assert Image.open(tmp_path / 'run' / 'evaluation' / f'{split}_chroma.png').size == (1100, 450)
    # 8 devices give the numbers of the command's one.
    on_eight = evaluate_run(shutil.copytree(trained, tmp_path / 'again'), '', ['train'])['train']
    assert on_eight.keys() == figures.keys()
    for column, row in figures.items():
        assert on_eight[column] == pytest.approx(row, rel=ONCE, abs=ONCE)
    # On the training photos the nearest one is the photo itself.
    assert figures['nearest photo']['ab_rmse'] == 0
    assert 'not significantly better than "nearest photo" in squared ab error' in out


def test_gains_over_a_baseline_and_by_class():
    network = {'psnr': [25.0, 27, 24, 22], 'ab_squared_error': [50.0, 70, 100, 100], 'colorfulness': [9.0, 11, 4, 6]}
    gray = {'psnr': [20.0, 22, 24, 26], 'ab_squared_error': [80.0, 120, 49, 49], 'colorfulness': [0.0] * 4}
    truth = {'label': [1, 1, 0, 0], 'colorfulness_true': [30.0] * 4}
    network, gray = ({key: np.array(values) for key, values in (photos | truth).items()} for photos in (network, gray))
    mean, low, high = report.gains(network, gray)['psnr']
    assert mean == 1.5 and -4 <= low < mean < high <= 5
    assert report.gains(network, gray)['ab_squared_error'][0] == pytest.approx(-5.5)
    assert report.gains(network, gray, np.array([1, 1, 0, 0], bool)) == {
        'psnr': (5, 5, 5),
        'ab_squared_error': (40, pytest.approx(30), pytest.approx(50)),
    }
    sentences = report.conclusions({'gray': report.gains(network, gray)})
    assert len(sentences) == 2
    assert 'not significantly better than "gray" in squared ab error: mean gain -5.5 ' in sentences[0]
    better = dict.fromkeys(('ab_squared_error', 'psnr'), (1.0, 0.5, 1.5))
    sentences = report.conclusions({'gray': better})
    assert sentences == ['The network is significantly better than every baseline in squared ab error, PSNR (dB).']
    table = report.classes_table(report.by_class(network, gray, 'ab'))
    lines = [[cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines()]
    assert lines[2][:2] == ['a', '2'] and lines[2][4:] == ['10', '7', '0', '5', '30']
    assert lines[3] == ['b', '2', '26', '5 (5 to 5)', '7.746', '10', '1', '10', '30']
    one_class = [{key: values[:2] for key, values in photos.items()} for photos in (network, gray)]
    assert report.classes_table(report.by_class(*one_class, 'ab')) == ''


def test_groups_of_classes_have_figures_of_their_own():
    """Classes of one folder make a group; one alone makes none."""
    network = {
        'psnr': np.array([25.0, 27, 24, 22, 30]),
        'ab_squared_error': np.array([50.0, 70, 100, 100, 9]),
        'colorfulness': np.array([9.0, 11, 4, 6, 5]),
        'colorfulness_true': np.full(5, 20.0),
        'lpips': np.array([0.1, 0.2, 0.3, 0.4, 0.5]),
        'label': np.array([0, 1, 2, -1, 3]),
    }
    gray = {**network, 'psnr': np.full(5, 23.0), 'ab_squared_error': np.full(5, 60.0), 'lpips': np.full(5, 0.25)}
    figures = report.by_class(network, gray, ['people/a', 'people/b', 'scenes/c', 'debian'])
    assert list(figures) == ['people/', 'people/a', 'people/b', 'scenes/c', 'debian']
    people = figures['people/']
    assert (people['photos'], people['psnr'], people['nearer'], people['colorfulness']) == (2, 26, 0.5, 10)
    assert people['gain'] == (3, pytest.approx(2, abs=0.01), pytest.approx(4, abs=0.01))
    assert people['ab_rmse'] == pytest.approx(60**0.5) and people['ab_rmse_gray'] == pytest.approx(60**0.5)
    assert people['lpips'] == pytest.approx(0.15) and people['lpips_gray'] == pytest.approx(0.25)
    assert figures['debian']['gain'] is None and figures['debian']['photos'] == 1
    header = report.classes_table(figures).splitlines()[0]
    assert 'nearer than gray' in header and 'LPIPS of gray' in header


def test_example_photos(tiny_config, shards):
    tiny_config.train.grid_photos = 3
    evaluator = Evaluator(None, DataParallel(), open_shards(shards), tiny_config)
    drawn = evaluator.random_photos('train').tolist()
    assert len(set(drawn)) == 3 and drawn == sorted(drawn) == evaluator.random_photos('train').tolist()
    assert len(evaluator.random_photos('validation')) == 3
    assert evaluator.worst({'ab_squared_error': np.array([3.0, 9, 1, 5])}).tolist() == [1, 3, 0]
    tiny_config.train.grid_photos = 30
    assert evaluator.random_photos('validation').tolist() == [0, 1, 2, 3]


def test_a_grid_of_many_photos_continues_below(tmp_path):
    photos = np.linspace(0, 1, 19 * 8 * 8 * 3, dtype=np.float32).reshape(19, 8, 8, 3)
    save_grid({'gray': 1 - photos, 'truth': photos}, tmp_path / 'grid.png')
    sheet = np.asarray(Image.open(tmp_path / 'grid.png'))
    margin, gap = sheet.shape[1] - COLUMNS * 8, 1
    assert sheet.shape[0] == 3 * 2 * 8 + 2 * gap
    for i, photo in enumerate(np.asarray(color.to_uint8(photos))):
        top, left = i // COLUMNS * (2 * 8 + gap) + 8, margin + i % COLUMNS * 8
        np.testing.assert_array_equal(sheet[top : top + 8, left : left + 8], photo)


def test_a_number_of_random_photos_can_be_asked_for(trained, tmp_path, cli):
    shutil.copytree(trained, tmp_path / 'run')
    code, _, err = cli('evaluate', f'--model={tmp_path / "run"}', '--splits=validation', '--grid-photos=3')
    assert code == 0, err
    width = Image.open(tmp_path / 'run' / 'evaluation' / 'validation.png').width
    assert 3 * 64 < width < 4 * 64 + 64  # and a margin for the rows' names
    code, _, err = cli('evaluate', f'--model={trained}', '--grid-photos=0')
    assert_one_sentence(code, err, 'train.grid_photos must be at least 1')


def test_bad_input_gives_one_sentence(trained, tmp_path, cli):
    code, _, err = cli('evaluate', f'--model={trained}', '--splits=validation,holiday')
    assert_one_sentence(code, err, 'holiday', 'validation')
    with pytest.raises(UserError, match=f'{tmp_path} is no run directory'):
        evaluate_run(tmp_path, '', ['validation'])
    with pytest.raises(UserError, match='none does not exist'):
        evaluate_run(trained, str(tmp_path / 'none'), ['validation'])
    config = json.loads((trained / 'config.json').read_text())
    del config['task']['reduction']
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(UserError, match='of another version of jaxcolor: .*reduction'):
        evaluate_run(tmp_path, '', ['validation'])
    with pytest.raises(UserError, match='named twice'):
        compare_runs([trained, trained], '', 'validation')
