"""Networks for other programs: the files compute what the network does."""

import importlib.util
import json

import jax
import numpy as np
import pytest
import safetensors
from conftest import assert_one_sentence

from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.weights import runs

# What float32 costs a*b*, whose range of 256 is 1 at the network's output: some 32 roundings, for its layers.
ROUNDING = 256 * 32 * float(np.finfo(np.float32).eps)


def test_stablehlo_takes_any_batch_and_size(trained, tmp_path, cli):
    out = tmp_path / 'small.stablehlo'
    code, printed, err = cli('export', f'--model={trained}', f'--out={out}', '--format=stablehlo', '--chroma-gain=1.5')
    assert code == 0, err
    assert 'small.stablehlo' in printed
    program = jax.export.deserialize(bytearray(out.read_bytes()))
    colorizer = Colorizer(trained, chroma=1.5)
    for size in ((1, 64, 96, 1), (3, 32, 64, 1)):
        lightness = np.random.default_rng(0).uniform(0, 100, size).astype(np.float32)
        np.testing.assert_allclose(program.call(lightness), colorizer.predict_ab(lightness), rtol=0, atol=1.5 * ROUNDING)


def test_safetensors_hold_the_weights_in_full_precision(trained, tmp_path, cli):
    code, _, err = cli('export', f'--model={trained}', f'--out={tmp_path / "weights"}', '--format=safetensors')
    assert code == 0, err
    config, _, state = runs.load(trained)
    with safetensors.safe_open(tmp_path / 'weights.safetensors', 'numpy') as file:
        kernel = file.get_tensor('params/low_0/conv/kernel')
        stored = json.loads(file.metadata()['config'])
    np.testing.assert_array_equal(kernel, state.for_inference().params['low_0']['conv']['kernel'])
    assert stored['model'] == json.loads(config.to_json_best_effort())['model']


@pytest.mark.parametrize(
    ('arguments', 'part'),
    [
        (['--format=stablehlo', '--size=64x64'], '--size is for --format=onnx'),
        (['--format=onnx', '--size=64'], 'multiples of 32'),
        (['--format=onnx', '--size=64x65'], 'multiples of 32'),
        (['--format=hdf5'], 'invalid choice'),
    ],
)
def test_arguments_that_do_not_fit(trained, tmp_path, cli, arguments, part):
    code, _, err = cli('export', f'--model={trained}', f'--out={tmp_path / "out"}', *arguments)
    assert_one_sentence(code, err, part)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('kind', ['stablehlo', 'onnx'])
def test_a_library_that_is_missing(trained, tmp_path, cli, monkeypatch, kind):
    find = importlib.util.find_spec
    missing = ('jax2onnx', 'flatbuffers')
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *rest: None if name in missing else find(name, *rest))
    code, _, err = cli('export', f'--model={trained}', f'--out={tmp_path / "out"}', f'--format={kind}')
    assert_one_sentence(code, err, f"pip install 'jaxcolor[{kind}]'")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_in_the_way(trained, tmp_path, cli):
    (tmp_path / 'out.safetensors').mkdir()
    code, _, err = cli('export', f'--model={trained}', f'--out={tmp_path / "out"}', '--format=safetensors')
    assert_one_sentence(code, err, 'out.safetensors is a folder')
    code, _, err = cli('export', f'--model={trained}', '--out=/proc/none/out', '--format=safetensors')
    assert_one_sentence(code, err, '/proc/none')
