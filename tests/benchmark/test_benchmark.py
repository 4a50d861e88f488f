"""The benchmark's structure, and its operations against a count by hand."""

import argparse
import json

import jax
import pytest
from conftest import assert_one_sentence

from jaxcolor import tasks
from jaxcolor.benchmark import command, flops, report, workload
from jaxcolor.cli import main
from jaxcolor.config import load_recipe
from jaxcolor.errors import UserError


def by_hand(size=224):
    """Multiply-adds of LTBC's convolutions and dense layers, table 1 of the paper: (side of the output, inputs, outputs)."""
    layers = [(size / 2, 1, 64), (size / 2, 64, 128), (size / 4, 128, 128), (size / 4, 128, 256)]  # low
    layers += [(size / 8, 256, 256), (size / 8, 256, 512), (size / 8, 512, 512), (size / 8, 512, 256)]  # low, mid
    layers += [(14, 512, 512), (14, 512, 512), (7, 512, 512), (7, 512, 512)]  # global
    layers += [(size / 8, 256, 128), (size / 4, 128, 64), (size / 4, 64, 64), (size / 2, 64, 32), (size / 2, 32, 2)]
    dense = [(25088, 1024), (1024, 512), (512, 256), (256, 256)]  # the last: the global part of the fusion
    fusion = (size / 8) ** 2 * 256 * 256
    return sum(9 * side**2 * a * b for side, a, b in layers) + sum(a * b for a, b in dense) + fusion


@pytest.mark.parametrize('recipe', ['ltbc', 'ltbc_pytorch'])
def test_operations_are_those_counted_by_hand(recipe):
    config = load_recipe(recipe)
    config.model.classes = 0
    task = tasks.build(config)
    state = jax.eval_shape(task.init, jax.random.PRNGKey(0))
    batch = {'lab': jax.ShapeDtypeStruct((1, 224, 224, 3), 'uint8'), 'label': jax.ShapeDtypeStruct((1,), 'int32')}
    assert flops.count(task.eval_step, state, batch) == pytest.approx(2 * by_hand(), rel=3e-3)
    # Backward: as much again to the kernels, and to every layer's input but the photo.
    to_the_photo = 9 * 112**2 * 64
    assert flops.count(task.train_step, state, batch) == pytest.approx(2 * (3 * by_hand() - to_the_photo), rel=3e-3)


@pytest.mark.slow
def test_a_report(tmp_path, capsys):
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
    assert 'None of the cases' in capsys.readouterr().out


@pytest.mark.slow
def test_every_source_of_data_runs_and_without_cpu_kernels():
    sizes = {'batch': 2, 'size': 32}
    for change in ({'data': 'stream', 'precision': 'bf16'}, {'data': 'device', 'devices': 2, 'cpu_kernels': 'none'}):
        timed = workload.Workload(workload.Case('ltbc:quickstart', **sizes, **change))
        assert timed.run(2) > 0
        assert int(timed.state.step) == 3  # one to compile
        timed.close()


@pytest.mark.parametrize(
    ('flags', 'parts'),
    [
        (['--config=nothing'], ['nothing']),
        (['--mode=fly'], ['--mode', 'fly']),
        (['--cpu-kernels=fast'], ['--cpu-kernels', 'fast']),
        (['--precision=tf32'], ['tf32']),
        (['--batch=3', '--devices=2'], ['--batch', '3 photos']),
        (['--compare=none.json'], ['none.json']),
    ],
)
def test_bad_flags_are_one_sentence(cli, flags, parts):
    code, _, err = cli('benchmark', *flags)
    assert_one_sentence(code, err, *parts)


def test_results_without_a_field_are_refused(tmp_path):
    row = dict.fromkeys(report.FIELDS, 1) | {'step_s': 1.0}
    path = tmp_path / 'results.json'
    path.write_text(json.dumps({'machine': {}, 'rows': [row]}))
    assert report.read(path)['rows'] == [row]
    del row['cpu_kernels']
    path.write_text(json.dumps({'machine': {}, 'rows': [row]}))
    with pytest.raises(UserError, match='cpu_kernels'):
        report.read(path)


def test_input_is_short_for_all_sources_of_photos():
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    for flags, data in ((['--input'], ['fixed', 'stream', 'device']), ([], ['fixed'])):
        assert [case.data for case in command.cases(parser.parse_args(['--config=ltbc', *flags]))] == data
