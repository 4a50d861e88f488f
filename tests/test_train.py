"""The loop: resuming, checkpoints, kills, refusals, and that it learns."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import FLAGS, ROOT, assert_one_sentence
from helpers import TINY, assert_identical, state_of

from configs import ltbc
from jaxcolor import config as base
from jaxcolor import tasks
from jaxcolor.data import pipeline
from jaxcolor.data.shards import open_shards
from jaxcolor.errors import UserError
from jaxcolor.runtime import logs
from jaxcolor.runtime.checkpoint import Checkpoints
from jaxcolor.train import _StepLog, train
from jaxcolor.weights import runs
from jaxcolor.weights.export import export


def test_stop_and_resume_is_bit_identical(tiny_config, tmp_path, capsys):
    tiny_config.optimizer.schedule = 'constant'  # a schedule by the number of steps would differ after 10
    tiny_config.train.update({'steps': 20, 'eval_splits': ()})
    train(tiny_config, tmp_path / 'whole')
    assert 'evaluated' not in capsys.readouterr().err  # nothing is, as asked
    tiny_config.train.steps = 10
    train(tiny_config, tmp_path / 'parts')
    tiny_config.train.steps = 20
    capsys.readouterr()
    train(tiny_config, tmp_path / 'parts')
    assert 'resuming' in capsys.readouterr().err
    whole, parts = (state_of(tmp_path / name, 20, tiny_config) for name in ('whole', 'parts'))
    assert_identical(whole, parts)
    assert int(whole[0].step) == 20
    # The same losses, so the same batches; and no line twice. (A line before a save is the mean of two steps.)
    rows = [{r['step']: r['loss'] for r in logs.read_metrics(tmp_path / p) if 'loss' in r} for p in ('whole', 'parts')]
    assert set(rows[0]) - {9} == set(rows[1]) == set(range(1, 21)) - {9, 19}
    for step in set(rows[1]) - {10}:
        assert rows[0][step] == rows[1][step]


def test_epochs_count_the_photos_of_the_set_also_when_resumed(tiny_config, tmp_path, capsys):
    """20 photos in batches of 8: an epoch is 2.5 steps, two end after step 5."""
    tiny_config.optimizer.schedule = 'constant'
    tiny_config.train.update({'steps': None, 'epochs': 2, 'eval_every': None, 'eval_every_epochs': 1})
    train(tiny_config, tmp_path)
    assert 'photos streamed from the host; 5 steps, 2 epochs' in capsys.readouterr().err
    tiny_config.train.epochs = 3.5
    train(tiny_config, tmp_path)
    assert 'resuming' in capsys.readouterr().err
    evaluated = [row['step'] for row in logs.read_metrics(tmp_path) if 'validation/loss' in row]
    assert evaluated == [3, 5, 8, 9]


def test_a_set_held_on_the_devices_trains_the_same(tiny_config, trained, tmp_path, capsys):
    tiny_config.data.placement = 'device'
    train(tiny_config, tmp_path)
    assert 'photos held on every device; 4 steps' in capsys.readouterr().err
    # Another program, whose rounding may differ and grows from step to step; with other photos losses differ by far more.
    found, expected = ([row['loss'] for row in logs.read_metrics(run) if 'loss' in row] for run in (tmp_path, trained))
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_batches_go_on_where_the_iterator_stood(tiny_config, shards):
    def batches():
        return pipeline.train_batches(open_shards(shards), batch_size=8, data=tiny_config.data, seed=3)

    whole = batches()
    first = [next(whole) for _ in range(5)]
    resumed = batches()
    for _ in range(2):
        next(resumed)
    position = json.loads(json.dumps(resumed.get_state()))
    resumed = batches()
    resumed.set_state(position)
    for expected in first[2:]:
        assert_identical(expected, next(resumed))


@pytest.mark.slow
def test_learns_the_training_photos(tmp_path, shards, command):
    """200 steps took the training photos to 22.0 dB, against 19.4 dB for gray, when this was written."""
    code, _, err = command(
        'main',
        '--config=configs/ltbc.py:quickstart',
        f'--workdir={tmp_path}',
        f'--config.data.shards={shards}',
        '--config.data.crop=64',
        '--config.model.global_size=64',
        '--config.train.steps=200',
        '--config.train.eval_every=200',
        env={'XLA_FLAGS': ''},
    )
    assert code == 0, err
    row = logs.read_metrics(tmp_path)[-1]
    assert row['train/photos'] == 20
    assert row['train/psnr'] > row['train/psnr_gray'] + 1.5
    assert row['train/colorfulness'] > 0.4 * row['train/colorfulness_true']


def test_a_run_directory_is_complete(tiny_config, tmp_path):
    tiny_config.train.update({'eval_every': 2, 'checkpoint_every': 1, 'keep_best': 1})
    tiny_config.train.tensorboard = True
    results = train(tiny_config, tmp_path)
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {
        *('config.json', 'checkpoints', 'metrics.jsonl', 'samples'),
        *('network.png', 'curves.png', 'tensorboard'),
    }
    assert {p.name for p in (tmp_path / 'samples').iterdir()} == {
        f'{split}_{step:07d}.png' for split in ('validation', 'train') for step in (2, 4)
    }
    assert runs.read_config(tmp_path).model.width == tiny_config.model.width
    rows = logs.read_metrics(tmp_path)
    assert [r['step'] for r in rows if 'loss' in r] == [1, 2, 3, 4]
    assert all(r['epoch'] == r['step'] * 8 / 20 for r in rows)  # batches of 8 of 20 photos
    assert all(0 <= r['larger_channel_agreement'] <= 1 for r in rows if 'loss' in r)
    assert {r['step']: r['validation/loss'] for r in rows if 'validation/loss' in r}[4] == results['validation']['loss']
    kept = {int(path.name) for path in (tmp_path / 'checkpoints').iterdir()}
    best = min((r['validation/loss'], r['step']) for r in rows if 'validation/loss' in r)[1]
    assert kept == {best, 3, 4}


def test_a_share_of_no_photos_is_left_out_of_the_log(tmp_path):
    log = _StepLog(tmp_path, 0, 5.0, False, logs.Progress(4, 'steps', quiet=True), None)
    for step, top1 in enumerate([np.nan, 0.25, 0.75, np.nan], 1):
        log.append(step, {'loss': np.float32(1), 'learning_rate': np.float32(0.1), 'top1': np.float32(top1)})
        if step % 3 == 0:
            log.write_all()
    log.write_all()
    log.close()
    rows = logs.read_metrics(tmp_path)
    assert [(row['step'], row['epoch'], row.get('top1')) for row in rows] == [(3, 0.6, 0.5), (4, 0.8, None)]


def test_a_loss_that_is_not_finite_stops_with_step_and_rate(tiny_config, tmp_path):
    tiny_config.train.update({'steps': 30, 'checkpoint_every': 1, 'eval_splits': ()})
    tiny_config.optimizer.update({'name': 'sgd', 'schedule': 'step', 'decay_every': 3, 'decay_factor': 1e30})
    tiny_config.optimizer.update({'learning_rate': 1e-3, 'warmup_steps': 0})
    with pytest.raises(UserError, match=r'not finite at step (\d+) .*learning rate 1e\+') as caught:
        train(tiny_config, tmp_path)
    kept = int(re.search(r'checkpoint of step (\d+) is kept', str(caught.value)).group(1))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state_of(tmp_path, kept, tiny_config)[0]))


def test_what_cannot_be_trained_is_refused_before_anything_is_written(tiny_config, tmp_path):
    for section, change, words in [
        ('train', {'batch_size': 12, 'devices': 8}, 'shared evenly by 8 device'),
        ('train', {'batch_size': 7, 'accumulation_steps': 2}, 'shared evenly by 1 .* in 2 parts each; .* of 2'),
        ('train', {'devices': 9}, 'train.devices: 9 .* there are 8'),
        ('train', {'devices': -1}, 'train.devices must be at least 0'),
        ('train', {'steps': 0}, 'train.steps must be at least 1'),
        ('train', {'accumulation_steps': 0}, 'train.accumulation_steps must be at least 1'),
        ('train', {'mapping': 'vmap'}, 'shard_map, pmap'),
        ('optimizer', {'name': 'lion'}, 'adadelta, adagrad, adam, lamb, lars, rmsprop, sgd'),
        ('optimizer', {'scaling': 'log'}, 'linear, none, sqrt'),
        ('optimizer', {'base_batch_size': 0}, 'optimizer.base_batch_size must be at least 1'),
        ('optimizer', {'schedule': 'cosin'}, 'constant, cosine, step'),
        ('task', {'name': 'x'}, 'regression'),
        ('task', {'reduction': 'max'}, 'sum, mean'),
        ('data', {'shards': str(tmp_path / 'none')}, 'does not exist'),
    ]:
        config = tiny_config.copy_and_resolve_references()
        config[section].update(change)
        with pytest.raises(UserError, match=words):
            train(config, tmp_path / 'run')
        assert not (tmp_path / 'run').exists()


def test_too_few_classes_are_refused(tiny_config, tmp_path):
    from jaxcolor.prepare import prepare

    photos = ROOT / 'jaxcolor' / 'data' / 'photos' / 'train'
    for label, name in [('fish', 'fish1'), ('horse', 'farm_animals-horse')]:
        (tmp_path / 'photos' / label).mkdir(parents=True)
        (tmp_path / 'photos' / label / f'{name}.jpg').symlink_to(photos / f'{name}.jpg')
    prepare(tmp_path / 'photos', tmp_path / 'shards', size=64, split='train:1', quiet=True)
    tiny_config.data.shards = str(tmp_path / 'shards')
    tiny_config.model.classes = 1
    with pytest.raises(UserError, match='has 2 classes, model.classes is 1'):
        train(tiny_config, tmp_path / 'run')


def test_another_config_is_refused_by_its_fields(tiny_config, trained):
    before = sorted(p.name for p in trained.rglob('*'))
    tiny_config.optimizer.learning_rate = 0.5
    tiny_config.seed = 7
    with pytest.raises(UserError, match=r'optimizer.learning_rate \(0.002 there, 0.5 now\), seed \(0 there, 7 now\)'):
        train(tiny_config, trained)
    assert sorted(p.name for p in trained.rglob('*')) == before


def damage(checkpoint, file):
    """Cuts a file of a checkpoint in half."""
    path = checkpoint / file
    if path.is_dir():  # the file that holds the arrays
        path = max(path.iterdir(), key=lambda p: p.stat().st_size)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize('file', ['state/manifest.ocdbt', 'state/d'])
def test_without_another_checkpoint_a_damaged_one_is_one_sentence(tiny_config, trained, tmp_path, file):
    shutil.copytree(trained, tmp_path / 'run')
    damage(tmp_path / 'run' / 'checkpoints' / '4', file)
    tiny_config.train.steps = 6
    with pytest.raises(UserError, match='checkpoints/4 cannot be read'):
        train(tiny_config, tmp_path / 'run')
    assert (tmp_path / 'run' / 'checkpoints' / '4').exists()


def test_a_damaged_checkpoint_makes_it_go_back_to_the_one_before(tiny_config, trained, tmp_path, capsys):
    run = tmp_path / 'run'
    tiny_config.train.update({'checkpoint_every': 2, 'eval_splits': ()})
    train(tiny_config, run)
    damage(run / 'checkpoints' / '4', 'state/d')
    (run / 'checkpoints' / '6.orbax-checkpoint-tmp').mkdir()  # left by a save that died
    capsys.readouterr()
    train(tiny_config, run)
    said = capsys.readouterr().err
    assert 'WARNING: the checkpoint' in said and 'going back to the checkpoint before, of step 2' in said
    assert (run / 'damaged-checkpoints' / '4' / 'state').is_dir()
    assert {path.name for path in (run / 'checkpoints').iterdir()} == {'2', '4'}
    assert [row['step'] for row in logs.read_metrics(run) if 'loss' in row][-1] == 4
    # Nothing is lost but time: the steps since then are made again, as they were.
    assert_identical(state_of(run, 4, tiny_config), state_of(trained, 4, tiny_config))


@pytest.mark.slow
def test_killed_at_any_moment_loses_nothing_that_was_reported_saved(tmp_path):
    """SIGKILL between and during saves; each life goes on from at least the last step that was reported saved."""
    arguments = [*TINY, '--config.train.steps=100000', '--config.train.checkpoint_every=2', '--config.train.eval_splits=()']
    environment = {**os.environ, 'XLA_FLAGS': FLAGS}
    reported = 0
    for life, wait in enumerate([0.0, 0.13, 0.31]):
        process = subprocess.Popen(
            [sys.executable, '-m', 'jaxcolor.main', *arguments, f'--workdir={tmp_path / "run"}'],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        said = []
        resumed = None
        for line in process.stderr:
            said.append(line)
            if match := re.search(r'resuming .* at step (\d+)', line):
                resumed = int(match.group(1))
            if match := re.search(r'saved step (\d+)', line):
                reported = int(match.group(1))
                if resumed is None or reported > resumed + 2:
                    break
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        for line in process.stderr:
            if match := re.search(r'saved step (\d+)', line):
                reported = int(match.group(1))
        process.wait()
        assert reported > 0, said
        if life:
            assert resumed is not None, said
        with Checkpoints(tmp_path / 'run' / 'checkpoints') as checkpoints:
            assert checkpoints.latest_step >= reported
        config = runs.read_config(tmp_path / 'run')
        state, position = state_of(tmp_path / 'run', checkpoints_latest(tmp_path / 'run'), config)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
        assert position['global_next_index'] == int(state.step) * 4


def checkpoints_latest(run):
    return max(int(path.name) for path in (run / 'checkpoints').iterdir() if path.name.isdigit())


def test_the_paper_recipe_is_the_paper_s():
    config = ltbc.get_config()
    assert (config.optimizer.name, config.train.batch_size, config.data.crop) == ('adadelta', 128, 224)
    assert (config.task.alpha, config.task.reduction, config.train.steps) == (1 / 300, 'mean', 200_000)
    assert config.data.flip and config.model.batch_norm and config.model.classes == 205
    assert base.get_config().model.name == 'ltbc'


def test_the_command_starts_the_recipe_as_it_stands(command, tmp_path):
    """With the paper's recipe, but for the sizes that this machine could not take."""
    code, out, err = command(
        'main',
        '--config=configs/ltbc.py',
        f'--workdir={tmp_path / "run"}',
        '--config.model.width=0.0625',
        '--config.train.batch_size=2',
        '--config.train.steps=1',
        '--config.data.crop=32',
        '--config.model.global_size=32',
    )
    assert code == 0, err
    assert 'bundled photos' in out
    assert re.search(r'-m jaxcolor colorize PHOTO.jpg --model=\S+', out)


@pytest.mark.parametrize(
    ('argument', 'parts'),
    [
        ('--config.train.stps=3', ["no field 'stps'", 'steps']),
        ('--config.train.steps=many', ['--config.train.steps=many']),
        ('--config.data.flip=maybe', ['--config.data.flip=maybe']),
        ('--config=configs/none.py', ['configs/none.py']),
        ('--config=configs/ltbc.py:slow', ['slow', 'quickstart']),
        ('--verbose_please', ['verbose-please']),
        ('stray', ['stray']),
    ],
)
def test_bad_arguments_are_one_sentence(cli, argument, parts):
    code, _, err = cli('train', '--config=configs/ltbc.py', argument)
    assert_one_sentence(code, err, *parts)


def test_a_run_directory_that_cannot_be_made_is_one_sentence(command):
    code, _, err = command('train', '--config=configs/ltbc.py', '--workdir=/proc/none')
    assert_one_sentence(code, err, '/proc/none')


@pytest.mark.slow
def test_it_begins_as_another_run_or_an_exported_model(tiny_config, trained, tmp_path):
    whole = runs.load(trained)[2]
    tiny_config.train.update({'init_from': str(trained), 'steps': 1, 'eval_splits': ()})
    tiny_config.optimizer.update({'learning_rate': 0.0, 'weight_decay': 0.0, 'schedule': 'constant'})
    train(tiny_config, tmp_path / 'run')
    state = runs.load(tmp_path / 'run')[2]
    assert int(state.step) == 1  # its own steps count, not the other's
    assert_identical(state.params, whole.params)

    drawn = state.replace(params=jax.tree.map(np.zeros_like, state.params), ema=whole.weights())
    export(trained, tmp_path / 'model')
    for source, rounding in ((trained, 0), (tmp_path / 'model', 2**-11)):  # half a step of half precision
        begun = runs.init_from(source, drawn)
        for tree in (begun.weights(), begun.ema):
            for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(whole.weights()), strict=True):
                np.testing.assert_allclose(a, b, rtol=rounding, atol=rounding * 2**-14)

    tiny_config.model.width = 0.25
    with pytest.raises(UserError, match='another network: model_state.*there'):
        runs.init_from(trained, jax.eval_shape(tasks.build(tiny_config).init, jax.random.PRNGKey(0)))
    tiny_config.model.update({'width': 0.125, 'global_size': 64})  # so that its dense layer alone takes more
    wider = jax.jit(tasks.build(tiny_config).init)(jax.random.PRNGKey(1))
    with pytest.raises(UserError, match=r'params\.global_dense_0\..*kernel is .* in train.init_redraw'):
        runs.init_from(trained, wider)
    begun = runs.init_from(trained, wider, ('global_dense_0',))
    for layer, source in (('global_dense_0', wider), ('global_dense_1', whole), ('output', whole)):
        assert_identical(begun.params[layer], source.params[layer])
    with pytest.raises(UserError, match="init_redraw: neither network has a layer 'encoder'"):
        runs.init_from(trained, wider, ('encoder',))
    tiny_config.train.init_from = str(tmp_path / 'none')
    with pytest.raises(UserError, match='none is no run directory'):
        train(tiny_config, tmp_path / 'begun')
