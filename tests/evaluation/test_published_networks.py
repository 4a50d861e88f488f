"""Published networks, as exported models, beside runs and by a protocol; what was published about them."""

import json
import shutil

import numpy as np
import pytest
from conftest import PHOTOS, assert_one_sentence
from ml_collections import ConfigDict
from PIL import Image
from zhang_files import state_dict

from jaxcolor import color
from jaxcolor import config as base
from jaxcolor.evaluation import report
from jaxcolor.evaluation.compare import compare_runs
from jaxcolor.evaluation.evaluate import evaluate_protocol
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.tasks.state import TrainState
from jaxcolor.weights import store
from jaxcolor.weights.published import PUBLISHED, zhang

SENTENCE = f'eccv16 as published, not verified by us: {PUBLISHED["eccv16"].figures}.'


@pytest.fixture(scope='module')
def eccv16(tmp_path_factory):
    """A narrow eccv16 of random weights, as an exported model."""
    converted = zhang.convert(state_dict('eccv16', 1 / 16), 1 / 16)
    config = base.get_config()
    config.name, config.data.crop = 'eccv16', 64
    config.model, config.task = ConfigDict(converted.model), ConfigDict(converted.task)
    folder = tmp_path_factory.mktemp('published') / 'eccv16'
    key = np.zeros(2, np.uint32)
    store.write(folder, config, TrainState(np.int32(0), converted.params, converted.model_state, (), key))
    return folder


def test_figures_are_of_published_names_alone():
    assert report.published_figures(['ltbc', 'eccv16', 'siggraph17', 'eccv16']) == [SENTENCE]


@pytest.mark.slow
def test_comparison_with_a_run(trained, eccv16, tmp_path):
    run = shutil.copytree(trained, tmp_path / 'run')
    page = compare_runs([run, eccv16], '', 'validation', photos=2)
    assert SENTENCE in page.read_text() and SENTENCE in page.with_suffix('.md').read_text()
    assert 'Mean gain of eccv16 over run in PSNR' in page.read_text()


@pytest.mark.slow
def test_protocol(eccv16, tmp_path, capsys):
    folder = tmp_path / 'photos'
    folder.mkdir()
    for path in sorted(PHOTOS.rglob('*.jpg'))[:2]:
        shutil.copy(path, folder)
    columns = evaluate_protocol(eccv16, 'val5k', folder, grid_photos=1)
    assert columns['network']['photos'] == 2 and np.isfinite(columns['network']['psnr'])
    assert SENTENCE in capsys.readouterr().out
    assert SENTENCE in (eccv16 / 'evaluation' / 'val5k.md').read_text()
    assert json.loads((eccv16 / 'evaluation' / 'val5k.json').read_text())['name'] == 'eccv16'


def sheep(folder):
    """A folder with one small photo."""
    folder.mkdir()
    Image.open(PHOTOS / 'validation' / 'farm_animals-sheep.jpg').resize((90, 60)).save(folder / 'sheep.png')
    return folder


@pytest.mark.slow
def test_both_ways_of_coloring_are_evaluated(eccv16, tmp_path):
    columns = evaluate_protocol(eccv16, 'native', sheep(tmp_path / 'photos'), faithful=True)
    assert list(columns) == ['network', 'gray', 'colorize', 'faithful']
    values = {name: column['ab_rmse'] for name, column in columns.items()}
    assert len(set(values.values())) == 4
    # The faithful column is of the authors' pictures.
    photo = Image.open(tmp_path / 'photos' / 'sheep.png')
    lab = color.rgb_to_lab(np.asarray(photo))
    gray = Image.fromarray(color.to_uint8(color.lab_to_rgb(color.gray_lab(lab[..., :1]))))
    ab = color.rgb_to_lab(np.asarray(Colorizer(eccv16, faithful=True)(gray)))[..., 1:]
    assert values['faithful'] == pytest.approx(np.sqrt(np.mean((ab - lab[..., 1:]) ** 2)), rel=0.05)  # 8 bits of Lab


@pytest.mark.slow
def test_comparison_of_both_ways(trained, eccv16, tmp_path):
    run = shutil.copytree(trained, tmp_path / 'run')
    page = compare_runs([run, eccv16], '', 'validation', photos=2, faithful=True).read_text()
    assert 'Mean gain of eccv16, faithful over run in PSNR' in page


@pytest.mark.slow
def test_faithful_is_for_published_networks(trained, tmp_path, cli):
    for arguments, part in (
        (['--protocol=native', sheep(tmp_path / 'photos')], 'ltbc is no published network'),
        ([f'--compare={shutil.copytree(trained, tmp_path / "run")}'], 'none of these is a published network'),
    ):
        code, _, err = cli('evaluate', f'--model={trained}', '--faithful', *arguments)
        assert_one_sentence(code, err, part)
