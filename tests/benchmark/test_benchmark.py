"""The benchmark command: counted operations, reports, bad flags."""

import argparse
import json
import sys

import jax
import pytest
from conftest import PHOTOS, assert_one_sentence

from jaxcolor import tasks
from jaxcolor.benchmark import command, flops, report, timing, workload
from jaxcolor.cli import main
from jaxcolor.errors import UserError
from jaxcolor.recipes import load_recipe


def ltbc_multiply_adds(size=224):
    """Multiply-adds of LTBC's convolutions and dense layers, from table 1 of the paper."""
    # (side of the output, input channels, output channels)
    layers = [(size / 2, 1, 64), (size / 2, 64, 128), (size / 4, 128, 128), (size / 4, 128, 256)]  # low
    layers += [(size / 8, 256, 256), (size / 8, 256, 512), (size / 8, 512, 512), (size / 8, 512, 256)]  # low, mid
    layers += [(14, 512, 512), (14, 512, 512), (7, 512, 512), (7, 512, 512)]  # global
    layers += [(size / 8, 256, 128), (size / 4, 128, 64), (size / 4, 64, 64), (size / 2, 64, 32), (size / 2, 32, 2)]
    dense = [(25088, 1024), (1024, 512), (512, 256), (256, 256)]  # the last: the global part of the fusion
    fusion = (size / 8) ** 2 * 256 * 256
    return sum(9 * side**2 * a * b for side, a, b in layers) + sum(a * b for a, b in dense) + fusion


@pytest.mark.parametrize('recipe', ['ltbc', 'ltbc_pytorch'])
def test_flops_agree_with_table_1_of_the_paper(recipe):
    config = load_recipe(recipe)
    config.model.classes = 0
    task = tasks.build(config)
    state = jax.eval_shape(task.init, jax.random.PRNGKey(0))
    batch = {'lab': jax.ShapeDtypeStruct((1, 224, 224, 3), 'uint8'), 'label': jax.ShapeDtypeStruct((1,), 'int32')}
    assert flops.count(task.eval_step, state, batch) == pytest.approx(2 * ltbc_multiply_adds(), rel=3e-3)
    # The backward pass has as many for the kernels, and for the input of every layer but the first.
    first_input = 9 * 112**2 * 64
    expected = 2 * (3 * ltbc_multiply_adds() - first_input)
    assert flops.count(task.train_step, state, batch) == pytest.approx(expected, rel=3e-3)


@pytest.mark.slow
def test_command_writes_report(tmp_path, capsys):
    arguments = ['benchmark', '--config=ltbc:quickstart', '--size=32', '--batch=2', '--rounds=2', f'--out={tmp_path}']
    main([*arguments, '--mode=train,infer'])
    results = json.loads((tmp_path / 'results.json').read_text())
    train, infer = results['rows']
    assert (train['mode'], infer['mode']) == ('train', 'infer')
    assert train['parameters'] == infer['parameters'] == 1_558_826
    for row in results['rows']:
        assert 0 < row['step_s'] < row['compile_s']
        assert row['images_per_second'] == pytest.approx(2 / row['step_s'])
        assert row['flops_per_second'] == pytest.approx(row['gflop'] * 2e9 / row['step_s'])
        assert row['bytes'] > 4 * 1_558_826
        assert row['memory'] > 4 * 1_558_826
    assert train['gflop'] > 2 * infer['gflop']
    table = (tmp_path / 'results.md').read_text()
    assert table in capsys.readouterr().out
    assert table.count('\n|') == 3
    assert (tmp_path / 'results.png').read_bytes().startswith(b'\x89PNG')
    main([*arguments[:-1], '--mode=infer', '--batch=1', f'--compare={tmp_path / "results.json"}'])
    assert 'have none of these cases' in capsys.readouterr().out


@pytest.mark.slow
def test_every_source_of_data_and_form_runs():
    sizes = {'batch': 2, 'size': 32}
    for change in ({'data': 'stream', 'precision': 'bf16'}, {'data': 'device', 'devices': 2, 'cpu_kernels': 'none'}):
        timed = workload.Workload(workload.Case('ltbc:quickstart', **sizes, **change))
        assert timed.run(2) > 0
        assert int(timed.state.step) == 3  # one when compiled
        timed.close()


@pytest.mark.parametrize(
    ('flags', 'parts'),
    [
        (['--config=nothing'], ['nothing']),
        (['--mode=fly'], ['--mode', 'fly']),
        (['--input=disk'], ['--input', 'disk', 'fixed, stream, device']),
        (['--input=stream', '--mode=infer'], ['--input=stream', '--mode=train']),
        (['--cpu-kernels=fast'], ['--cpu-kernels', 'fast']),
        (['--precision=tf32'], ['tf32']),
        (['--batch=3', '--devices=2'], ['--batch', '3 photos']),
        (['--compare=none.json'], ['none.json']),
    ],
)
def test_bad_flags_give_one_sentence(cli, flags, parts):
    code, _, err = cli('benchmark', *flags)
    assert_one_sentence(code, err, *parts)


def test_cases_combine_all_values():
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    cases = command.cases(parser.parse_args(['--config=ltbc', '--input=fixed,stream,device', '--batch=4,8']))
    assert [(case.batch, case.data) for case in cases] == [
        (batch, data) for batch in (4, 8) for data in ('fixed', 'stream', 'device')
    ]
    assert [case.data for case in command.cases(parser.parse_args(['--config=ltbc']))] == ['fixed']


def test_paired_calls_alternate():
    calls = []
    ratio = timing.paired(lambda: calls.append('a'), lambda: calls.append('b'), rounds=3)
    assert ''.join(calls) == 'ab' * 4
    assert 0 < ratio.least <= ratio.median <= ratio.largest


def test_each_method_goes_first_in_turn():
    calls = []

    def method(name, rate):
        return lambda: calls.append(name) or rate

    rates = timing.take_turns({'a': method('a', 1.0), 'b': method('b', 2.0), 'c': method('c', 3.0)}, rounds=3)
    assert ''.join(calls) == 'abcbcacab'
    assert rates == {'a': [1.0] * 3, 'b': [2.0] * 3, 'c': [3.0] * 3}


@pytest.mark.parametrize('module', ['torch', 'skimage'])
def test_missing_packages_give_one_sentence(module, cli, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    code, _, err = cli('benchmark', '--of=stream', tmp_path)
    assert_one_sentence(code, err, '--of=stream', 'pip install')


@pytest.mark.torch
def test_streaming_needs_a_batch_of_photos(cli):
    code, _, err = cli('benchmark', '--of=stream', PHOTOS)
    assert_one_sentence(code, err, 'at least 32 photos', 'has 24')


def test_comparison_without_pytorch_gives_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)
    for name in [name for name in sys.modules if name.startswith('jaxcolor.benchmark.torch_')]:
        monkeypatch.delitem(sys.modules, name)
    from jaxcolor.benchmark.torch_comparison import torch_training

    with pytest.raises(UserError, match=r"pip install 'jaxcolor\[torch\]'"):
        torch_training(load_recipe('deepcolor:base'), {})


def test_results_without_a_field_are_refused(tmp_path):
    row = dict.fromkeys(report.FIELDS, 1) | {'step_s': 1.0}
    path = tmp_path / 'results.json'
    path.write_text(json.dumps({'machine': {}, 'rows': [row]}))
    assert report.read(path)['rows'] == [row]
    del row['cpu_kernels']
    path.write_text(json.dumps({'machine': {}, 'rows': [row]}))
    with pytest.raises(UserError, match='cpu_kernels'):
        report.read(path)
