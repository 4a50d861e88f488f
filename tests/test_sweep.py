"""Studies: every line trained once, also after an interruption; what diverges is a result; the table."""

import csv
import json
import shutil

import pytest
from conftest import ROOT, assert_one_sentence
from matplotlib.axes import Axes
from PIL import Image

from jaxcolor import sweep
from jaxcolor.errors import UserError
from jaxcolor.recipes import load_recipe
from jaxcolor.runtime import logs

SMALL = [
    '--config.model.width=0.0625',
    '--config.model.global_size=32',
    '--config.data.crop=32',
    '--config.train.batch_size=4',
    '--config.train.steps=2',
    '--config.train.log_every=1',
    '--config.train.eval_every=2',
    '--config.train.grid_photos=2',
    "--config.train.eval_splits=('validation',)",
]


def test_what_is_trained_is_tabulated(trained, tmp_path):
    shutil.copytree(trained, tmp_path / '1')
    (tmp_path / '2').mkdir()
    (tmp_path / '2' / 'failed.txt').write_text('the loss is not finite at step 7\n')
    rows = sweep.collect([['--config=a.py'], ['--config=b.py', '--config.seed=1'], ['--config=c.py']], tmp_path)
    assert [row['result'] for row in rows[:3]] == ['of validation', 'the loss is not finite at step 7', 'not trained yet']
    assert [row['flags'] for row in rows[3:]] == ['gray', 'mean color', 'nearest photo']
    last = logs.read_metrics(trained)[-1]
    assert float(rows[3]['psnr']) == pytest.approx(last['validation/psnr_gray'], rel=1e-3)
    assert float(rows[0]['psnr']) == pytest.approx(last['validation/psnr'], rel=1e-3)
    with open(tmp_path / 'table.csv', encoding='utf-8') as file:
        assert [row['flags'] for row in csv.DictReader(file)] == [row['flags'] for row in rows]
    assert Image.open(tmp_path / 'sweep.png').width > 1000
    assert sweep._is_done(tmp_path / '1') and sweep._is_done(tmp_path / '2') and not sweep._is_done(tmp_path / '3')


def test_further_splits_have_columns_of_their_own(trained, tmp_path):
    shutil.copytree(trained, tmp_path / '1')
    rows = logs.read_metrics(trained)
    rows[-1] |= {'test/loss': 9.0, 'test/psnr': 21.5}
    (tmp_path / '1' / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    (row, *_) = sweep.collect([['--config=a.py']], tmp_path)
    assert float(row['psnr']) == pytest.approx(rows[-1]['validation/psnr'], rel=1e-3)
    with open(tmp_path / 'table.csv', encoding='utf-8') as file:
        first, *baselines = csv.DictReader(file)
    assert (first['test/psnr'], first['test/loss']) == ('21.5', '9')
    assert [row['test/psnr'] for row in baselines] == ['', '', '']


def test_errors_over_a_field(trained, tmp_path, monkeypatch):
    """A line for each setting of the other fields; seeds are one point with a bar."""
    drawn = []
    monkeypatch.setattr(Axes, 'errorbar', lambda self, x, y, spread, label, **style: drawn.append((label, x, y, spread)))
    trainings, rows = [], []
    settings = [(32, 0, 'adam', 12.0), (256, 0, 'adam', 13.0), (256, 1, 'adam', 15.0)]
    settings += [(256, 0, 'lamb', 14.0), (32, 0, 'lamb', 16.0), (32, 0, 'lars', 40.0)]
    for number, (batch, seed, name, rmse) in enumerate(settings, 1):
        words = [f'--config.train.batch_size={batch}', f'--config.seed={seed}', f'--config.optimizer.name={name}']
        trainings.append(['--config=a.py', *words, f'--config.train.accumulation_steps={batch // 32}'])
        config = json.loads((trained / 'config.json').read_text())
        config['train']['batch_size'] = batch
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / 'config.json').write_text(json.dumps(config))
        rows.append({'ab_rmse': str(rmse), **({'top1': '0.5'} if name == 'lamb' else {})})
    trainings.append(['--config=b.py'])
    rows.append({'result': 'not trained yet'})
    sweep.draw_over('train.batch_size', trainings, rows, tmp_path)
    assert drawn == [
        ('a.py optimizer.name=adam', [32.0, 256.0], [12.0, 14.0], [[0.0, 1.0], [0.0, 1.0]]),
        ('a.py optimizer.name=lamb', [32.0, 256.0], [16.0, 14.0], [[0.0, 0.0], [0.0, 0.0]]),
        ('a.py optimizer.name=adam', [], [], [[], []]),  # the second panel: only one has a classifier
        ('a.py optimizer.name=lamb', [32.0, 256.0], [0.5, 0.5], [[0.0, 0.0], [0.0, 0.0]]),
    ]  # and none of lars, which is a single point
    assert Image.open(tmp_path / 'over.png').width > 300
    for field in ('train.batch', 'optimizer.name', 'seed', 'train.epochs'):
        with pytest.raises(UserError, match=f"--over: '{field}' is no field that is a number"):
            sweep.draw_over(field, trainings, rows, tmp_path)


@pytest.mark.slow
def test_a_sweep_is_trained_tabulated_and_goes_on(shards, tmp_path, command):
    recipe = '--config=configs/ltbc.py:quickstart'
    lines = ['# two trainings', recipe, '', f'{recipe} --config.optimizer.learning_rate=1e30']
    (tmp_path / 'sweep.txt').write_text('\n'.join(lines) + '\n')
    arguments = ('sweep', tmp_path / 'sweep.txt', f'--out={tmp_path / "out"}', *SMALL, f'--config.data.shards={shards}')
    code, out, err = command(*arguments)
    assert code == 0, err
    with open(tmp_path / 'out' / 'table.csv', encoding='utf-8') as file:
        first, second, *baselines = csv.DictReader(file)
    assert len(baselines) == 3 and all(5 < float(row['psnr']) < 40 for row in baselines)
    assert first['flags'] == recipe and first['steps'] == '2' and 5 < float(first['psnr']) < 40
    assert 'not finite at step' in second['result']
    assert Image.open(tmp_path / 'out' / 'sweep.png').width > 1000
    config = (tmp_path / 'out' / '1' / 'config.json').stat().st_mtime_ns
    again = command(*arguments)
    assert again[0] == 0 and out.endswith(again[1])
    assert (tmp_path / 'out' / '1' / 'config.json').stat().st_mtime_ns == config


def test_a_mistake_in_a_sweep_ends_it(tmp_path, command, cli):
    (tmp_path / 'sweep.txt').write_text('--config=configs/none.py\n')
    code, _, err = command('sweep', tmp_path / 'sweep.txt', f'--out={tmp_path / "out"}')
    assert code == 1 and 'training 1 of the sweep ended' in err and 'none.py' in err and 'Traceback' not in err
    code, _, err = cli('sweep', tmp_path / 'sweep.txt', f'--out={tmp_path / "out"}', '--steps=3')
    assert_one_sentence(code, err, '--steps=3')
    (tmp_path / 'sweep.txt').write_text('# nothing\n')
    with pytest.raises(UserError, match='no line of flags'):
        sweep.read_sweep(tmp_path / 'sweep.txt')


def test_the_reports_studies_are_flags_that_their_recipes_know():
    for path in sorted((ROOT / 'configs' / 'sweeps').glob('*.txt')):
        for recipe, *overrides in sweep.read_sweep(path):
            load_recipe(recipe.removeprefix('--config='), overrides)
