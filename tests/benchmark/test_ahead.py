"""Steps compiled for devices that are not there. Most need JAX's plugin for them: marker `aot`."""

import json

import pytest

from jaxcolor import cli
from jaxcolor.benchmark import ahead, hlo
from jaxcolor.benchmark.targets import Target, load_target, write_target
from jaxcolor.benchmark.workload import Case
from jaxcolor.errors import UserError

RECIPES = [
    'ltbc',
    'ltbc_pytorch',
    'ltbc_deconv',
    'ltbc_compact',
    'ltbc_lite',
    'vgg_fusion',
    'cgan',
    'deepcolor:base',
    'eccv16',
]


def test_an_unknown_target_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"there is no 'h1000'; there are h100, v5e"):
        load_target('h1000')
    (tmp_path / 'gpu.json').write_text('{"device": "x"}')
    with pytest.raises(UserError, match='describes no device'):
        load_target(str(tmp_path / 'gpu.json'))


def test_a_target_of_a_file(tmp_path):
    (tmp_path / 'gpu.json').write_text(json.dumps(load_target('h100')._replace(device='mine')._asdict()))
    target = load_target(str(tmp_path / 'gpu.json'))
    assert (target.device, target.description) == ('mine', load_target('h100').description)


def test_what_cannot_be_compiled_is_one_sentence(capsys):
    with pytest.raises(UserError, match=r"ltbc:quickstart was not compiled for nothing: .*'\.\[tpu\]'"):
        ahead.measure(Case('ltbc:quickstart', batch=8), Target('nothing', 'tpu', {'f32': 1, 'bf16': 1}, 1, 1, 'v0:1x1'))


def test_without_a_gpu_there_is_none_to_describe(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(['benchmark', f'--describe={tmp_path}/gpu.json'])
    assert capsys.readouterr().err.startswith('jaxcolor: error: --describe: JAX sees no GPU here')
    with pytest.raises(UserError, match='XLA describes no GPU here'):
        write_target(tmp_path / 'gpu.json', {}, 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.aot
@pytest.mark.parametrize('mode', ['train', 'infer'])
@pytest.mark.parametrize('recipe', RECIPES)
def test_compiled_for_an_h100(recipe, mode, tmp_path):
    case = Case(recipe, mode, 'bf16', 32)
    row = ahead.measure(case, load_target('h100'), tmp_path)
    kernels = hlo.kernels(hlo.parse(next(tmp_path.iterdir()).read_text()))
    assert max(max(window) for window in hlo.windows(kernels)) <= 11  # no layer's is larger: the gradients are ordinary ones
    assert set(hlo.layouts(kernels)) == {'b01f'}
    libraries = {
        kernel.instruction.find('custom_call_target="([^"]*)"') for kernel in kernels if kernel.kind == 'convolution'
    }
    assert all(library.startswith('__cudnn$conv') for library in libraries)
    photo = ahead.config_of(case).data.crop ** 2
    maps = [
        (kernel.kind, array)
        for kernel in kernels
        for array in kernel.instruction.arrays
        if len(array.shape) == 4 and array.shape[0] == case.batch and array.shape[1] * array.shape[2] >= photo // 16
        if array.shape[3] > 3  # photos and their a*b*, which are float32, are no layers' maps
    ]
    assert not [array for kind, array in maps if kind == 'transposition']
    # Float32 are the logits of colors alone.
    assert not [array for _, array in maps if array.dtype == 'f32' and array.shape[3] < 250]
    assert row['memory'] < load_target('h100').memory


@pytest.mark.aot
def test_eight_gpus_reduce_all_gradients_in_few_collectives():
    row = ahead.measure(Case('ltbc', 'train', 'bf16', 128, devices=8), load_target('h100'))
    assert row['collectives'].keys() == {'all-reduce'}
    assert row['collectives']['all-reduce'] <= 8
