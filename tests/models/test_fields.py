"""Networks with other fields than their recipes': each learns, resumes, evaluates, is exported, and colors photos."""

import shutil

import jax
import numpy as np
import pytest
from conftest import PHOTOS
from helpers import GLANCE, assert_identical, small_recipe, state_of
from PIL import Image

from jaxcolor import color
from jaxcolor.data.shards import open_shards
from jaxcolor.evaluation.evaluator import Evaluator
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.models import extractors
from jaxcolor.runtime import logs
from jaxcolor.runtime.parallel import DataParallel
from jaxcolor.train import train
from jaxcolor.weights import runs
from jaxcolor.weights.export import export

FISH = PHOTOS / 'train' / 'fish1.jpg'
STEPS = 12
# Of each case: the recipe, what changes in it, the term of the loss that falls.
CASES = {
    'batch norm everywhere': (
        'ltbc_deconv',
        {'model': {'batch_norm_dense': True, 'batch_norm_output': True, 'output_activation': 'linear'}},
        'color_loss',
    ),
    'yuv, residual, adversary': (
        'ltbc_pytorch',
        {
            'model': {'output_space': 'yuv', 'output_activation': 'tanh', 'residual': True},
            'task': {'adversarial': 0.01, 'chroma_weight': 1.0},
            'train': {'ema': 0.5},
        },
        'color_loss',
    ),
    'rgb, residual, adversary': (
        'ltbc_deconv',
        {'model': {'output_space': 'rgb', 'residual': True}, 'task': {'adversarial': 0.01}},
        'color_loss',
    ),
    'tanh, six layers': (
        'cgan',
        {
            'model': {
                'output_activation': 'tanh',
                'generator_layers': 6,
                'leaky_slope': 0.1,
                'batch_norm_momentum': 0.8,
                'batch_norm_eps': 1e-3,
            },
            'optimizer': {'name': 'adagrad', 'learning_rate': 0.03},
        },
        'l1_loss',
    ),
    'koalarization, relu': (
        'deepcolor',
        {'model': {'variant': 'koalarization', 'output_activation': 'relu'}, 'task': {'kernel_l2': 0.0}},
        'color_loss',
    ),
}


@pytest.fixture(scope='module', autouse=True)
def glance():
    """An extractor by that name, as in test_small_trainings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(extractors.NETWORKS, 'glance', GLANCE)
        yield


def recipe_of(case, shards):
    name, changes, term = CASES[case]
    config = small_recipe(name, shards)
    config.train.update({'steps': STEPS, 'eval_every': STEPS // 2, 'checkpoint_every': STEPS // 2})
    for section, fields in changes.items():
        config[section].update(fields)
    return config, term


_ALWAYS = ('koalarization, relu',)


@pytest.mark.parametrize('case', [case if case in _ALWAYS else pytest.param(case, marks=pytest.mark.slow) for case in CASES])
def test_learns_resumes_is_exported_and_colors(case, shards, tmp_path):
    config, term = recipe_of(case, shards)
    run = tmp_path / 'run'
    results = train(config, run)
    rows = [row[term] for row in logs.read_metrics(run) if term in row]
    assert np.mean(rows[-4:]) < np.mean(rows[:4])  # each of another batch
    resumed = shutil.copytree(run, tmp_path / 'resumed')
    shutil.rmtree(resumed / 'checkpoints' / str(STEPS))
    assert train(config, resumed) == results
    assert_identical(*(state_of(path, STEPS, config) for path in (run, resumed)))

    # A network with an extractor is passed on as its run directory.
    exported = run if config.extractor.name else export(run, tmp_path / 'exported', STEPS)
    for section in ('model', 'task'):
        assert runs.read_config(exported)[section].to_dict() == runs.read_config(run)[section].to_dict()
    parallel = DataParallel()
    _, task, state = runs.load(exported, sharding=parallel.replicated)
    row = Evaluator(task, parallel, open_shards(shards), config).evaluate(state, 'train')
    # Kernels in half precision, whose errors of 2^-11 grow a little from layer to layer.
    assert row['ab_rmse'] == pytest.approx(results['train']['ab_rmse'], rel=0.02)

    photo = Image.open(FISH).convert('L').resize((37, 33))
    colored = Colorizer(exported)(photo)
    assert colored.size == photo.size
    lab = color.rgb_to_lab(np.asarray(colored))
    assert np.abs(lab[..., 1:]).mean() > 0.1
    # The photo's own lightness stays, but where its color leaves sRGB.
    lightness = color.rgb_to_lab(np.asarray(photo.convert('RGB')))[..., :1]
    inside = np.abs(color.lab_to_rgb(color.join_lab(lightness, lab[..., 1:])) - 0.5).max(axis=-1) < 0.49
    assert inside.any()
    assert np.abs(lab[..., :1] - lightness)[inside].max() < 1.5  # units of L*: rounding to uint8
    assert jax.tree.leaves(state.params)
