"""Colorfulness against error over inference settings."""

import shutil

import pytest
from conftest import assert_one_sentence
from PIL import Image

from jaxcolor.errors import UserError
from jaxcolor.evaluation.sweep_inference import sweep_inference
from jaxcolor.runtime import logs


def test_chroma_gain_from_gray_to_more_than_trained(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / 'run')
    rows = sweep_inference(run, 'chroma_gain', [0.0, 1.0, 3.0])
    assert rows['0']['psnr'] == pytest.approx(rows['0']['psnr_gray'], abs=1e-3) and rows['0']['chroma_kept'] == 0
    logged = logs.read_metrics(trained)[-1]
    for name in ('psnr', 'ab_rmse', 'colorfulness'):
        assert rows['1'][name] == pytest.approx(logged[f'validation/{name}'], rel=1e-4)
    assert rows['3']['chroma_kept'] == pytest.approx(3 * rows['1']['chroma_kept'], rel=1e-4)
    assert rows['3']['colorfulness'] > rows['1']['colorfulness']
    assert '| ab RMSE' in (run / 'evaluation' / 'tune_chroma_gain_validation.md').read_text()
    assert Image.open(run / 'evaluation' / 'tune_chroma_gain_validation.png').width > 400


@pytest.mark.slow
def test_curves_of_several_runs_are_drawn_together(trained, tmp_path, command):
    one, other = (shutil.copytree(trained, tmp_path / name) for name in ('one', 'other'))
    code, out, _ = command('tune-inference', f'--model={one},{other}', '--field=chroma_gain', '--values=1,2')
    path = one / 'evaluation' / 'tune_chroma_gain_validation_compared.png'
    assert code == 0 and str(path) in out and Image.open(path).width > 400
    assert (other / 'evaluation' / 'tune_chroma_gain_validation.md').exists()


def test_unknown_setting_is_refused(trained, cli):
    with pytest.raises(UserError, match=r'temperature.* not an inference setting .*chroma_gain'):
        sweep_inference(trained, 'temperature', [0.5])
    code, _, err = cli('tune-inference', f'--model={trained}', '--field=chroma_gain', '--values=a,b')
    assert_one_sentence(code, err, '--values=a,b')
