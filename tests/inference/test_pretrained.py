"""The model that comes with the package: what a new user gets without naming one."""

import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, assert_one_sentence
from PIL import Image

import jaxcolor
from jaxcolor import color
from jaxcolor.errors import UserError
from jaxcolor.weights import runs, store

FOLDER = store.model_folder(store.DEFAULT_MODEL)


@pytest.fixture(scope='module')
def colorizer():
    return jaxcolor.load()


def test_photos_that_nobody_trained_on_come_nearer_to_their_colors(colorizer, photos):
    """Of the bundled photos, by squared ab error, most do, and all together; and none is left gray."""
    errors = []
    for photo in photos:
        gray = Image.fromarray(photo).convert('L').convert('RGB')
        found, truth = (color.rgb_to_lab(np.asarray(image))[..., 1:] for image in (colorizer(gray), photo))
        errors.append((np.mean((found - truth) ** 2), np.mean(truth**2)))
        assert np.abs(found).mean() > 2
    ours, of_gray = np.array(errors).T
    assert ours.mean() < of_gray.mean() and np.mean(ours < of_gray) > 0.5


def test_its_colors_do_not_come_from_the_photo_s(colorizer, photos):
    photo = Image.fromarray(photos[0])
    # L*'s own gray, so that the network sees the same.
    lab = color.rgb_to_lab(photos[0]) * np.array([1, 0, 0], np.float32)
    gray = Image.fromarray(color.to_uint8(color.lab_to_rgb(lab)))
    ours, theirs = (np.asarray(colorizer(image), np.int32) for image in (gray, photo))
    assert np.abs(ours - theirs).mean() < 2


def test_it_is_what_its_card_says():
    card = (FOLDER / 'README.md').read_text(encoding='utf-8')
    about, config = store.read_metadata(FOLDER), runs.read_config(store.DEFAULT_MODEL)
    assert f'{int(about["parameters"]):,} parameters' in card
    size = (FOLDER / store.WEIGHTS).stat().st_size / 2**20
    assert size < 12 and f'{size:.1f} MiB' in card
    assert config.data.crop in range(128, 161) and config.model.width < 1
    for field in ('temperature', 'inference_rebalance', 'chroma_gain'):
        assert f'`task.{field}={config.task[field]:g}`' in card
    assert f'`task.mirror={config.task.mirror}`' in card
    assert not config.data.shards and not config.train.init_from  # no places on the machine that trained it


def test_the_package_carries_it():
    patterns = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['setuptools']['package-data']['jaxcolor']
    package = Path(jaxcolor.__file__).parent
    carried = {path for pattern in patterns for path in package.glob(pattern)}
    assert {FOLDER / 'config.json', FOLDER / store.WEIGHTS, FOLDER / 'README.md'} <= carried


def test_the_command_takes_it_where_none_is_named(photos, tmp_path, command, cli):
    Image.fromarray(photos[0]).convert('L').save(tmp_path / 'gray.png')
    code, out, err = command('colorize', tmp_path / 'gray.png', f'--out={tmp_path / "out"}')
    assert code == 0 and '1 of 1 photos colored' in out, err
    made = Image.open(tmp_path / 'out' / 'gray.png')
    assert made.mode == 'RGB' and made.size == photos[0].shape[1::-1]
    code, _, err = cli('evaluate', f'--model={store.DEFAULT_MODEL}')
    assert_one_sentence(code, err, 'without the photos of its training', '--data=SHARDS')


@pytest.mark.parametrize('damage', ['weights cut', 'weights gone', 'config gone', 'all gone', 'config of another'])
def test_damage_is_one_sentence(damage, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(FOLDER, tmp_path / store.DEFAULT_MODEL))
    monkeypatch.setattr(store, '_PRETRAINED', tmp_path)
    match damage:
        case 'weights cut':
            (folder / store.WEIGHTS).write_bytes((folder / store.WEIGHTS).read_bytes()[:100_000])
        case 'weights gone':
            (folder / store.WEIGHTS).unlink()
        case 'config gone':
            (folder / 'config.json').unlink()
        case 'all gone':
            shutil.rmtree(folder)
        case 'config of another':
            (folder / 'config.json').write_text((folder / 'config.json').read_text().replace('"seed": ', '"seed": 1'))
    with pytest.raises(UserError, match='install') as caught:
        jaxcolor.load()
    assert '\n' not in str(caught.value) and store.DEFAULT_MODEL in str(caught.value)
