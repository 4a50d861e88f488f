"""Every network, made small, learns, resumes, evaluates and colorizes, on one device and on eight."""

import shutil

import jax
import numpy as np
import optax
import pytest
from conftest import PHOTOS, assert_one_sentence
from helpers import HALF, SMALL, Glance, assert_identical, batch_of, norm, small_recipe, state_of
from PIL import Image

from jaxcolor import color, tasks
from jaxcolor.data.shards import open_shards
from jaxcolor.evaluation.evaluator import Evaluator
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.models import extractors
from jaxcolor.runtime import logs
from jaxcolor.runtime.parallel import DataParallel
from jaxcolor.tasks import losses
from jaxcolor.train import train
from jaxcolor.weights import runs

FISH = PHOTOS / 'train' / 'fish1.jpg'


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope='module', autouse=True)
def glance():
    """An extractor by that name, which the configs below ask for; files and steps handle it as any other."""
    network = extractors.Network(Glance, 8, {'keras': lambda rgb: rgb})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(extractors.NETWORKS, 'glance', network)
        yield


# The term of the loss that has to fall, and to which part of the first step's it has to.
FALLS = {
    'ltbc_pytorch': ('color_loss', 0.9),
    'ltbc_deconv': ('color_loss', 0.6),
    'vgg_fusion': ('color_loss', 0.9),
    'deepcolor': ('color_loss', 0.9),
    'cgan': ('l1_loss', 0.92),
}


def fresh_state(task, config, run):
    """A state as a training begins with it, on the host."""
    state = DataParallel().create(task.init, jax.random.PRNGKey(config.seed))
    return jax.device_get(state.replace(frozen=runs.load_extractor(run, config)))


# test_train.py does the same with `ltbc`, and `vgg_fusion` is DeepColor's module with other layers.
_NIGHTLY = ('ltbc_pytorch', 'ltbc_deconv', 'vgg_fusion')


@pytest.mark.parametrize('name', [pytest.param(n, marks=pytest.mark.slow) if n in _NIGHTLY else n for n in SMALL])
def test_learns_resumes_evaluates_and_colorizes(shards, tmp_path, capsys, name):
    """The loss falls (measured at the time of writing: to 0.77, 0.28, 0.65, 0.74, 0.79 of the first, in SMALL's order)."""
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


# ltbc_pytorch has nothing that ltbc_deconv, or `ltbc` in test_parallel.py, has not.
@pytest.mark.parametrize(
    'name', [pytest.param(n, marks=pytest.mark.slow) if n in ('ltbc_pytorch', 'vgg_fusion') else n for n in SMALL]
)
def test_eight_devices_equal_one(tmp_path, name):
    """One step on the same 16 photos: gradients with their scale, statistics, losses. Batch norm is over all devices."""
    config = small_recipe(name)
    task = tasks.build(config)
    state = fresh_state(task, config, tmp_path)
    batch = batch_of(16, config.data.crop)

    def one_step(devices):
        parallel = DataParallel(devices=jax.devices()[:devices])
        step = parallel.map(task.train_step, donate_state=True)
        after, measured = jax.device_get(step(parallel.replicate(state), parallel.shard(batch)))
        # Adam's first moment is after one step (1 - beta1) times the gradient; the parameters would not show its scale.
        moments = [moment for _, moment in optax.tree.get_all_with_path(after.opt_state, 'mu')]
        return jax.tree.map(lambda m: m / (1 - config.optimizer.beta1), moments), after, measured

    (one, after_one, measured_one), (eight, after_eight, measured_eight) = one_step(1), one_step(8)
    assert len(one) == (2 if name == 'cgan' else 1)
    assert count(one) == count(state.params)
    # By norms: single elements jump where rounding takes a pixel across a ReLU's zero.
    whole = norm(jax.tree.leaves(one))
    assert whole > 1e-3
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(eight), strict=True):
        assert norm([a - b]) < 0.03 * norm([a]) + 1e-4 * whole, jax.tree_util.keystr(path)
    statistics = [jax.tree.leaves(after.model_state) for after in (after_one, after_eight)]
    for a, b in zip(*statistics, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-3 * np.abs(a).max())
    assert measured_one.keys() == measured_eight.keys()
    for term in measured_one:
        np.testing.assert_allclose(measured_one[term], measured_eight[term], rtol=1e-3, err_msg=term)
    if name == 'deepcolor':
        l2 = 0.01 * losses.kernel_l2(state.params, ('encoder_7',))
        np.testing.assert_allclose(measured_one['l2_loss'], l2, rtol=1e-5)


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
