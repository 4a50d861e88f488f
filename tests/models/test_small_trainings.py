"""Every network, made small, learns, resumes, evaluates and colorizes, on one device and on eight."""

import shutil

import numpy as np
import pytest
from conftest import PHOTOS, assert_one_sentence
from helpers import GLANCE, HALF, assert_identical, small_recipe, state_of
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

FISH = PHOTOS / 'train' / 'fish1.jpg'


@pytest.fixture(scope='module', autouse=True)
def glance():
    """An extractor by that name, which the configs below ask for; files and steps handle it as any other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(extractors.NETWORKS, 'glance', GLANCE)
        yield


# The term of the loss that has to fall, and to which part of the first step's it has to.
FALLS = {
    'ltbc_pytorch': ('color_loss', 0.9),
    'ltbc_deconv': ('color_loss', 0.6),
    'vgg_fusion': ('color_loss', 0.9),
    'deepcolor': ('color_loss', 0.9),
    'cgan': ('l1_loss', 0.92),
    'eccv16': ('color_loss', 0.95),
}


# test_train.py does the same with `ltbc`.
_NIGHTLY = ('ltbc_pytorch', 'ltbc_deconv', 'vgg_fusion', 'deepcolor', 'eccv16')


@pytest.mark.parametrize('name', [pytest.param(n, marks=pytest.mark.slow) if n in _NIGHTLY else n for n in FALLS])
def test_learns_resumes_evaluates_and_colorizes(shards, tmp_path, capsys, name):
    """The loss falls (measured when written: to 0.77, 0.28, 0.65, 0.74, 0.79, 0.59 of the first, in FALLS's order)."""
    config, run = small_recipe(name, shards), tmp_path / 'run'
    results = train(config, run)
    term, factor = FALLS[name]
    rows = [row[term] for row in logs.read_metrics(run) if term in row]
    assert np.mean(rows[-4:]) < factor * rows[0]

    # A run that has only its checkpoint from half-way gets to the very same end.
    resumed = tmp_path / 'resumed'
    shutil.copytree(run, resumed)
    shutil.rmtree(resumed / 'checkpoints' / str(2 * HALF))
    assert train(config, resumed) == results
    assert f'resuming {resumed} from its checkpoint at step {HALF}' in capsys.readouterr().err
    assert_identical(*(state_of(path, 2 * HALF, config) for path in (run, resumed)))

    parallel = DataParallel()
    _, task, state = runs.load(run, 2 * HALF, parallel.replicated)
    row = Evaluator(task, parallel, open_shards(shards), config).evaluate(state, 'train')
    assert row == results['train']
    assert row['photos'] == 20
    if config.task.name == 'regression':
        # The loss is the mean square of the same a*b* that the photos get, in the network's units.
        scale, _ = color.AB_RANGE[config.model.output_activation]
        assert row['color_loss'] == pytest.approx((row['ab_rmse'] / scale) ** 2, rel=1e-4)
    side = config.data.crop
    photo = Image.open(FISH).convert('L').resize((side + 5, side + 5))
    colored = Colorizer(run, 2 * HALF)(photo)
    assert colored.size == photo.size
    assert np.abs(color.rgb_to_lab(np.asarray(colored))[..., 1:]).mean() > 1


@pytest.mark.slow
def test_commands_with_the_real_inception(tmp_path, shards, command):
    """Random weights, asked for by name: train, go on, evaluate, color. The run directory needs nothing else."""
    run = tmp_path / 'run'
    arguments = [
        '--config=configs/deepcolor.py:3',
        f'--workdir={run}',
        f'--config.data.shards={shards}',
        '--config.data.crop=64',
        '--config.extractor.weights=random',
    ]
    for steps, words in [(2, '249,170 parameters'), (3, 'from its checkpoint at step 2')]:
        code, _, err = command('main', *arguments, f'--config.train.steps={steps}')
        assert code == 0, err
        assert words in err
    assert [row['step'] for row in logs.read_metrics(run) if 'loss' in row] == [2, 3]
    assert (run / 'extractor.safetensors').stat().st_size > 4 * 55_843_464
    code, out, err = command('main', '--mode=evaluate', f'--workdir={run}', '--splits=validation')
    assert code == 0, err
    assert 'PSNR (dB)' in out
    code, _, err = command('colorize', f'--model={run}', FISH, f'--out={tmp_path}')
    assert code == 0, err
    assert Image.open(tmp_path / FISH.name).size == Image.open(FISH).size
    code, _, err = command('main', *arguments, '--config.train.steps=3', '--config.extractor.weights=none.h5')
    assert_one_sentence(code, err, 'extractor.weights (random there, none.h5 now)')
