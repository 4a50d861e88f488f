"""The default model, which comes with the package."""

import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, assert_one_sentence
from PIL import Image

import jaxcolor
from jaxcolor import color
from jaxcolor.config import DEFAULT_MODEL
from jaxcolor.errors import UserError
from jaxcolor.weights import runs, store

FOLDER = store.model_folder(DEFAULT_MODEL)


@pytest.fixture(scope='module')
def colorizer():
    return jaxcolor.load()


def test_unseen_photos_get_closer_to_their_colors_than_gray(colorizer, photos):
    """By squared ab error, over all bundled photos and for most of them; none stays gray."""
    errors = []
    for photo in photos:
        gray = Image.fromarray(photo).convert('L').convert('RGB')
        ab, truth = (color.rgb_to_lab(np.asarray(image))[..., 1:] for image in (colorizer(gray), photo))
        errors.append((np.mean((ab - truth) ** 2), np.mean(truth**2)))
        assert np.abs(ab).mean() > 2
    model_errors, gray_errors = np.array(errors).T
    assert model_errors.mean() < gray_errors.mean() and np.mean(model_errors < gray_errors) > 0.5


def test_colors_of_the_input_are_ignored(colorizer, photos):
    photo = Image.fromarray(photos[0])
    # Gray of the same L*, so that the network's input is the same.
    lab = color.rgb_to_lab(photos[0]) * np.array([1, 0, 0], np.float32)
    gray = Image.fromarray(color.to_uint8(color.lab_to_rgb(lab)))
    results = [np.asarray(colorizer(image), np.int32) for image in (gray, photo)]
    assert np.abs(results[0] - results[1]).mean() < 2


def test_model_card_matches_the_model():
    card = (FOLDER / 'README.md').read_text(encoding='utf-8')
    about, config = store.read_metadata(FOLDER), runs.read_config(DEFAULT_MODEL)
    assert f'{int(about["parameters"]):,} parameters' in card
    size = (FOLDER / store.WEIGHTS).stat().st_size / 2**20
    assert size < 12 and f'{size:.1f} MiB' in card
    assert config.data.crop in range(128, 161)
    for field in ('temperature', 'inference_rebalance', 'chroma_gain'):
        assert f'`task.{field}={config.task[field]:g}`' in card
    assert f'`task.mirror={config.task.mirror}`' in card
    # No paths of the machine that trained it.
    assert not config.data.shards and not config.train.init_from and not config.train.encoder_weights


def test_package_contains_the_model():
    patterns = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['setuptools']['package-data']['jaxcolor']
    package = Path(jaxcolor.__file__).parent
    included = {path for pattern in patterns for path in package.glob(pattern)}
    assert {FOLDER / 'config.json', FOLDER / store.WEIGHTS, FOLDER / 'README.md'} <= included


def test_command_uses_the_default_model(photos, tmp_path, command, cli):
    Image.fromarray(photos[0]).convert('L').save(tmp_path / 'gray.png')
    code, out, err = command('colorize', tmp_path / 'gray.png', f'--out={tmp_path / "out"}')
    assert code == 0 and '1 of 1 photo colored' in out, err
    result = Image.open(tmp_path / 'out' / 'gray.png')
    assert result.mode == 'RGB' and result.size == photos[0].shape[1::-1]
    code, _, err = cli('evaluate', f'--model={DEFAULT_MODEL}')
    assert_one_sentence(code, err, 'without its training photos', '--data=SHARDS')


@pytest.mark.parametrize('damage', ['weights truncated', 'no weights', 'no config', 'no folder', 'other config'])
def test_damaged_model_gives_one_sentence(damage, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(FOLDER, tmp_path / DEFAULT_MODEL))
    monkeypatch.setattr(store, '_PRETRAINED', tmp_path)
    match damage:
        case 'weights truncated':
            (folder / store.WEIGHTS).write_bytes((folder / store.WEIGHTS).read_bytes()[:100_000])
        case 'no weights':
            (folder / store.WEIGHTS).unlink()
        case 'no config':
            (folder / 'config.json').unlink()
        case 'no folder':
            shutil.rmtree(folder)
        case 'other config':
            (folder / 'config.json').write_text((folder / 'config.json').read_text().replace('"seed": ', '"seed": 1'))
    with pytest.raises(UserError, match='install') as caught:
        jaxcolor.load()
    assert '\n' not in str(caught.value) and DEFAULT_MODEL in str(caught.value)
