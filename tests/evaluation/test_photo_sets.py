"""Evaluation protocols: the choice of photos, how they are cropped, and the metrics of colorized photos."""

import csv
import json
import shutil

import numpy as np
import pytest
from conftest import PHOTOS, assert_one_sentence
from odd_photos import quadrants, turned_files, turned_wrongly
from PIL import Image

from jaxcolor import color
from jaxcolor.errors import UserError
from jaxcolor.evaluation import photo_sets
from jaxcolor.evaluation.evaluate import evaluate_protocol
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.prepare.decode import pillow_unguarded


@pytest.fixture
def folder(tmp_path):
    """Five photos in two folders."""
    for i, path in enumerate(sorted(PHOTOS.rglob('*.jpg'))[:5]):
        target = tmp_path / 'photos' / f'set{i % 2}' / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return tmp_path / 'photos'


def test_list_has_relative_names_and_hashes(folder, tmp_path):
    photo_sets.PhotoSet(folder, 'val5k').write_list(tmp_path / 'a.csv')
    folder.rename(tmp_path / 'elsewhere')
    photo_sets.PhotoSet(tmp_path / 'elsewhere', 'val5k').write_list(tmp_path / 'b.csv')
    assert (tmp_path / 'a.csv').read_bytes() == (tmp_path / 'b.csv').read_bytes()
    with open(tmp_path / 'a.csv', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert [row['name'] for row in rows] == sorted(row['name'] for row in rows)
    assert len({row['sha256'] for row in rows}) == 5


def test_too_few_photos_for_a_protocol_are_said(folder, monkeypatch):
    said = []
    monkeypatch.setattr(photo_sets.logging, 'warning', lambda text, *values: said.append(text % values))
    photo_sets.PhotoSet(folder, 'val5k')
    assert len(said) == 1 and '5,000 photos' in said[0] and 'has 5:' in said[0]
    photo_sets.PhotoSet(folder, 'native')
    assert len(said) == 1


def test_photos_are_cropped_and_resized(folder):
    for name, box in [('val5k', True), ('val50k', False)]:
        photo_set = photo_sets.PhotoSet(folder, name)
        photo = photo_set.records()[0]
        assert photo['lab'].shape == (256, 256, 3)
        image = Image.open(folder / photo['name'])
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        if box:
            image = image.crop((left, top, left + side, top + side))
        expected = np.asarray(image.resize((256, 256), Image.Resampling.BICUBIC), np.float32)
        rgb = 255 * color.lab_to_rgb(color.decode_lab(photo['lab']))
        assert np.abs(rgb - expected).mean() < 2.5
    assert photo_sets.PhotoSet(folder, 'native').records()[0]['lab'].shape[:2] == image.size[::-1]


def test_photos_are_turned_once(tmp_path):
    """All eight EXIF orientations, in every format."""
    turned_files(tmp_path / 'photos')
    with pillow_unguarded():
        for photo in photo_sets.PhotoSet(tmp_path / 'photos', 'native').records():
            rgb = 255 * color.lab_to_rgb(color.decode_lab(photo['lab']))
            assert rgb.shape == (48, 64, 3), photo['name']
            assert turned_wrongly(rgb, quadrants()) < 0.1, photo['name']


def test_photo_list_selects_photos(folder, tmp_path):
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob('*.jpg'))]
    (tmp_path / 'list.txt').write_text('\n'.join(reversed(names[1:3])) + '\n')
    assert photo_sets.PhotoSet(folder, 'ctest10k', tmp_path / 'list.txt').names == names[1:3]
    (tmp_path / 'list.txt').write_text('set0/none.jpg\n')
    with pytest.raises(UserError, match='set0/none.jpg'):
        photo_sets.PhotoSet(folder, 'ctest10k', tmp_path / 'list.txt')


@pytest.mark.parametrize('protocol', [pytest.param('val5k', marks=pytest.mark.slow), 'native'])
def test_evaluate_protocol(trained, folder, tmp_path, protocol):
    shutil.copytree(trained, tmp_path / 'run')
    for path in sorted(folder.rglob('*.jpg'))[2:]:
        path.unlink()
    rows = evaluate_protocol(tmp_path / 'run', protocol, folder)
    assert rows['network']['photos'] == 2
    content = json.loads((tmp_path / 'run' / 'evaluation' / f'{protocol}.json').read_text())
    assert content['figures'] == rows and content['step'] == 4
    assert len((tmp_path / 'run' / 'evaluation' / f'{protocol}_files.csv').read_text().splitlines()) == 3
    if protocol == 'native':  # the PSNR of colorized photos
        colorizer, errors = Colorizer(tmp_path / 'run'), []
        for path in sorted(folder.rglob('*.jpg')):
            photo = Image.open(path)
            error = np.asarray(colorizer(photo), np.float64) - np.asarray(photo)
            errors.append(10 * np.log10(255**2 / np.square(error).mean()))
        assert rows['network']['psnr'] == pytest.approx(np.mean(errors), abs=0.05)


def test_bad_input_gives_one_sentence(trained, folder, tmp_path, cli):
    code, _, err = cli('evaluate', f'--model={trained}', '--protocol=val7', folder)
    assert_one_sentence(code, err, 'val5k, val50k')
    cases = [('val5k', tmp_path / 'none', 'none does not exist'), ('ctest10k', folder, '--photo-list')]
    for protocol, photos, part in cases:
        with pytest.raises(UserError, match=part):
            evaluate_protocol(trained, protocol, photos)
    (folder / 'set0' / 'a.jpg').write_text('this is no photo')
    with pytest.raises(UserError, match=r'set0/a\.jpg cannot be evaluated: not a photo'):
        photo_sets.PhotoSet(folder, 'val5k').records()[0]
