"""Runs and exported models of earlier versions load, predict and train on as they did then (tests/legacy/README.md)."""

import json
import shutil
import tarfile

import jax
import numpy as np
import pytest
from conftest import ROOT, made_once
from helpers import state_of
from PIL import Image

from jaxcolor import config as fields
from jaxcolor import models, tasks
from jaxcolor.errors import UserError
from jaxcolor.inference import recompose
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.recipes import load_recipe
from jaxcolor.runtime.checkpoint import Checkpoints
from jaxcolor.tasks.degrade import Degradation
from jaxcolor.train import train
from jaxcolor.weights import runs, store
from jaxcolor.weights.migration import migrate

LEGACY = ROOT / 'tests' / 'legacy'
RUNS = ('regression', 'color_classes', 'cgan', 'deepcolor')
EXPORTED = ('exported', 'ensemble', 'first_export')
# Their commands, as make.sh has them, with today's names of the fields.
SMALL = [
    '--config.data.shards=shards',
    '--config.data.crop=32',
    '--config.data.read_threads=1',
    '--config.train.log_every=4',
    '--config.train.batch_size=8',
    '--config.train.eval_every=1000',
    '--config.train.checkpoint_every=1000',
    '--config.train.grid_photos=2',
    '--config.train.cross_device_batch_norm=True',
]
COMMANDS = {
    'regression': (
        '--config=ltbc --config.train.steps=14 --config.name=regression --config.seed=5 '
        '--config.model.width=0.025 --config.model.global_size=32 --config.model.classes=2 '
        '--config.model.classifier_width=64 --config.task.reduction=mean --config.task.alpha=0.1 '
        '--config.task.chroma_gain=1.25 --config.task.kernel_l2=0.001 '
        '--config.optimizer.name=adam --config.optimizer.learning_rate=0.01 --config.optimizer.eps=1e-3 '
        '--config.optimizer.weight_decay=0.01 --config.optimizer.warmup_steps=2 '
        '--config.data.brightness=0.2 --config.data.resized_crop=0.5 --config.train.ema=0.9'
    ),
    'color_classes': (
        '--config=ltbc_compact --config.train.steps=12 --config.name=color_classes --config.seed=3 '
        '--config.model.width=0.02 --config.model.global_size=32 '
        '--config.task.rebalance=0.5 --config.task.inference_rebalance=0.6 --config.task.temperature=0.25 '
        '--config.task.chroma_gain=1.1 --config.optimizer.name=sgd --config.optimizer.learning_rate=0.1 '
        '--config.optimizer.momentum=0.9 --config.optimizer.schedule=cosine --config.optimizer.clip_norm=1.0 '
        '--config.optimizer.warmup_steps=2 --config.train.ema=0.0'
    ),
    'cgan': (
        '--config=cgan:stable --config.train.steps=6 --config.seed=7 --config.name=cgan '
        '--config.model.size=32 --config.model.width=0.03 --config.model.noise_size=4 '
        '--config.optimizer.name=rmsprop --config.optimizer.learning_rate=0.01 --config.optimizer.eps=1e-3 '
        '--config.data.flip=True'
    ),
    'deepcolor': (
        '--config=deepcolor:3 --config.train.steps=2 --config.name=deepcolor --config.seed=7 '
        '--config.model.width=0.05 --config.extractor.weights=random'
    ),
}


@pytest.fixture(scope='module')
def legacy(tmp_path_factory):
    """The folder of all unpacked archives, for reading only."""

    def unpack(folder):
        for path in LEGACY.glob('*.tar.xz'):
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter='data')

    return made_once(tmp_path_factory, 'legacy', unpack)


def recipe_of(name):
    recipe, *overrides = COMMANDS[name].split()
    return load_recipe(recipe.removeprefix('--config='), [*SMALL, *overrides])


@pytest.mark.parametrize('name', [*RUNS, *EXPORTED])
def test_predictions_are_those_of_then(name, legacy, monkeypatch):
    colorizer = Colorizer(legacy / name)
    with np.load(LEGACY / f'{name}.npz') as then:
        ab = jax.jit(colorizer.task.predict)(colorizer.state, then['lightness'], jax.random.PRNGKey(0))
        # Float32 through some twenty layers: errors of many roundings, in proportion to the largest value.
        np.testing.assert_allclose(ab, then['ab'], rtol=0, atol=2e-5 * np.abs(then['ab']).max())
        if 'gray' not in then:
            return  # at that time photos were shrunk by another filter
        monkeypatch.setattr(recompose, '_EDGE_NOISE', np.float32(np.inf))  # at that time no edges were followed
        colored = np.asarray(colorizer(Image.fromarray(then['gray']).convert('RGB')), np.int32)
        # Colors outside sRGB were clipped at that time.
        inside = ((then['colored'] > 0) & (then['colored'] < 255)).all(axis=-1)
        assert inside.mean() > 0.25
        assert np.abs(colored - then['colored'])[inside].max() <= 1  # a level, where it was rounded the other way


@pytest.mark.parametrize('name', RUNS)
def test_the_same_command_continues_an_old_run(name, legacy, tmp_path):
    run = shutil.copytree(legacy / name, tmp_path / name)
    config = recipe_of(name)
    runs.create_or_check(run, config)
    assert json.loads((run / 'config.json').read_text()) == json.loads(config.to_json_best_effort())
    # The whole state is there, the optimizer's part too.
    with Checkpoints(run / 'checkpoints', read_only=True) as checkpoints:
        step = checkpoints.latest_step
    state, _ = state_of(run, step, config)
    assert int(state.step) == step
    assert jax.tree.leaves(state.opt_state)


def test_an_old_run_trains_on_to_what_it_came_to_then(legacy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # its shard set is named by a relative path
    for name in ('regression', 'shards'):
        shutil.copytree(legacy / name, tmp_path / name)
    train(recipe_of('regression'), 'regression')
    rows = [json.loads(line) for line in (tmp_path / 'regression' / 'metrics.jsonl').read_text().splitlines()]
    last = {key: value for row in rows if row['step'] == 14 for key, value in row.items()}
    state, _ = state_of(tmp_path / 'regression', 14, runs.read_config('regression'))
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    with np.load(LEGACY / 'regression.npz') as then:
        assert sorted(leaves) == sorted(then['resumed_names'])
        # The first gradient differs by rounding (8 devices in place of 1), and Adam divides by its size.
        assert last['loss'] == pytest.approx(then['resumed_loss'], rel=1e-4)
        assert last['validation/loss'] == pytest.approx(then['resumed_validation_loss'], rel=1e-3)
        for name in then:
            if name.startswith('resumed/'):
                value = then[name]
                np.testing.assert_allclose(
                    leaves[name.removeprefix('resumed/')], value, rtol=0, atol=1e-3 * np.abs(value).max(), err_msg=name
                )


def test_another_config_is_refused_by_the_names_of_today(legacy, tmp_path):
    run = shutil.copytree(legacy / 'color_classes', tmp_path / 'color_classes')
    config = recipe_of('color_classes')
    config.task.rebalance = 0.75
    with pytest.raises(UserError, match=r'another config: task\.rebalance \(0\.5 there, 0\.75 now\);'):
        runs.create_or_check(run, config)


def test_inference_settings_keep_their_values(legacy):
    task = runs.read_config(legacy / 'exported').task
    assert (task.inference_rebalance, task.temperature) == (0.3, 0.5)
    assert 'answer_rebalance' not in task
    ensemble = runs.read_config(legacy / 'ensemble')
    assert (ensemble.model.members, ensemble.task.mirror, ensemble.task.inference_rebalance) == (2, True, 0.6)


def test_later_fields_mean_as_before(legacy):
    written = json.loads((legacy / 'first_export' / 'config.json').read_text())
    config = runs.read_config(legacy / 'first_export').to_dict()
    added = {
        f'{name}.{field}': value
        for name, section in config.items()
        if isinstance(section, dict)
        for field, value in section.items()
        if field not in written[name]
    }
    assert added == {
        'model.batch_norm_dense': True,
        'model.batch_norm_fusion': False,
        'model.batch_norm_output': False,
        'model.output_space': 'lab',
        'model.residual': False,
        'model.global_dropout': 0.0,
        'model.members': 1,
        'task.inference_rebalance': 1.0,
        'task.chroma_gain': 1.0,
        'task.mirror': False,
        'train.init_from': '',
        'train.init_redraw': [],
        'train.encoder_weights': 'random',
        'optimizer.encoder_rate': 1.0,
        'optimizer.warmup_epochs': 0.0,
        'data.degraded': 0.5,
        **{f'data.{each.field}': 0 for each in Degradation},
        'train.devices': 0,
        'train.deterministic': False,
        'train.epochs': None,
        'train.epoch_steps': None,
        'train.steps_per_call': 1,
        'train.eval_every_epochs': None,
    }


def test_the_very_first_config_has_all_fields_of_today():
    """A config as the first version wrote it: the fields that it had, with other values than the defaults of today."""
    first = {
        'name': 'ltbc',
        'seed': 1,
        'model': {
            'name': 'ltbc',
            'dtype': 'bfloat16',
            'width': 0.5,
            'batch_norm': False,
            'classes': 3,
            'classifier_width': 16,
            'output_activation': 'tanh',
            'global_size': 64,
            'padding': 'SAME',
        },
        'task': {
            'name': 'regression',
            'reduction': 'mean',
            'loss_resolution': 'input',
            'alpha': 0.5,
            'kernel_l2': 0.1,
            'kernel_l2_excluded': [''],
        },
        'optimizer': {
            'name': 'sgd',
            'learning_rate': 0.1,
            'schedule': 'step',
            'warmup_steps': 1,
            'decay_every': 2,
            'decay_factor': 0.5,
            'weight_decay': 0.1,
            'clip_norm': 1.0,
            'rho': 0.5,
            'eps': 1e-3,
            'beta1': 0.5,
            'beta2': 0.5,
            'momentum': 0.5,
            'nesterov': True,
        },
        'data': {'shards': 'shards', 'crop': 64, 'flip': False, 'read_threads': 1, 'prefetch': 1, 'workers': 1},
        'train': {
            'steps': 3,
            'batch_size': 4,
            'mapping': 'pmap',
            'cross_device_batch_norm': True,
            'log_every': 1,
            'eval_every': 1,
            'eval_splits': ['train'],
            'checkpoint_every': 1,
            'keep_best': 1,
            'grid_photos': 1,
            'tensorboard': True,
        },
    }
    migrated = migrate(first)
    assert {name: set(value) for name, value in migrated.items() if isinstance(value, dict)} == {
        name: set(value) for name, value in fields.get_config().to_dict().items() if isinstance(value, dict)
    }
    for name, section in first.items():
        if isinstance(section, dict):
            expected = {**section, 'kernel_l2_excluded': []} if name == 'task' else section
            assert migrated[name] == migrated[name] | expected
        else:
            assert migrated[name] == section


@pytest.mark.parametrize('decoder', ['nearest', 'deconv'])
def test_batch_norm_of_old_outputs(decoder):
    """Only transposed convolutions had one: parameters and statistics of the network of then, by name."""
    config = fields.get_config()
    config.model.update({'decoder': decoder, 'width': 0.0625, 'global_size': 32})
    old = config.to_dict()
    for field in ('batch_norm_dense', 'batch_norm_fusion', 'batch_norm_output'):
        del old['model'][field]
    network = models.build(migrate(old)['model'])
    variables = jax.eval_shape(network.init, jax.random.PRNGKey(0), np.zeros((1, 32, 32, 1), np.float32))
    without = {'fusion', 'classifier', 'output'} - ({'output'} if decoder == 'deconv' else set())
    assert set(variables['params']) - set(variables['batch_stats']) == without


@pytest.mark.parametrize(
    'recipe', ['ltbc', 'ltbc_deconv', 'ltbc_compact', 'ltbc_compact:regression', 'vgg_fusion', 'deepcolor:1', 'cgan']
)
def test_a_config_of_today_stays_as_it_is(recipe):
    config = json.loads(load_recipe(recipe).to_json_best_effort())
    assert migrate(config) == config
    assert migrate(migrate(config)) == config


@pytest.mark.parametrize('name', ['eccv16', 'siggraph17', 'iizuka'])
def test_encoders_of_published_networks_had_norms_as_others(name):
    section = getattr(fields, name)().to_dict()
    del section['encoder_norm']
    assert migrate({'model': section})['model']['encoder_norm'] == 'trained'


def test_the_models_of_the_package_are_up_to_date():
    for name in store.model_names():
        tasks.build(runs.read_config(name))
