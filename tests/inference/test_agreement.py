"""`--agreement`: where predictions for several sizes and the mirror image of a photo disagree."""

from pathlib import Path

import numpy as np
from conftest import PHOTOS, assert_one_sentence
from matplotlib import colormaps
from PIL import Image

from jaxcolor.inference.agreement import TOP, Agreement, measure, picture_paths
from jaxcolor.inference.tags import read_tag

FISH = PHOTOS / 'train' / 'fish1.jpg'


class Stub:
    """A network that paints the upper half a*b* = (10, 0), and the lower one by the size and the side."""

    size = 64

    def preprocess(self, image, size):
        side = 32 * round(size / 32)
        ramp = np.linspace(0, 100, side, dtype=np.float32)
        return np.broadcast_to(ramp[None, None, :, None], (1, side, side, 1))

    def predict_ab(self, lightness):
        _, h, w, _ = lightness.shape
        is_mirrored = lightness[0, 0, 0, 0] > 50
        ab = np.zeros((1, h, w, 2), np.float32)
        ab[:, : h // 2, :, 0] = 10
        ab[:, h // 2 :, :, 1] = 4 if is_mirrored else -4
        ab[:, h // 2 :, :, 0] = 3 if is_mirrored else -3
        return ab


def test_the_spread_is_a_standard_deviation():
    found = measure(Stub(), Image.open(FISH))
    assert found.spread.shape == (64, 64)
    np.testing.assert_allclose(found.spread[:28], 0, atol=1e-5)
    np.testing.assert_allclose(found.spread[36:], 5, rtol=1e-5)  # of +-(3, 4)
    np.testing.assert_allclose(found.mean, found.spread.mean())


def test_the_picture_is_of_the_photos_size_and_viridis():
    spread = np.repeat(np.float32([[0, TOP / 2], [TOP, 10 * TOP]]), 40, axis=0).repeat(40, axis=1)
    picture = np.asarray(Agreement(spread, 0.0).picture((160, 320)).convert('RGB'))
    assert picture.shape == (320, 160, 3)
    for (y, x), level in {(20, 20): 0, (20, 140): 127, (300, 20): 255, (300, 140): 255}.items():
        expected = 255 * np.array(colormaps['viridis'](level)[:3])
        np.testing.assert_allclose(picture[y, x], expected, atol=1)


def test_a_network_disagrees_with_itself(colorizer):
    found = measure(colorizer, Image.open(FISH))
    assert 0 < found.mean < 100
    assert found.spread.shape == colorizer.preprocess(Image.open(FISH)).shape[1:3]


def test_no_two_files_get_one_name():
    targets = [Path('out', name) for name in ('a.jpg', 'a.png', 'A-agreement.png', 'b.jpg')]
    paths = [path.name for path in picture_paths(targets).values()]
    assert paths == ['a-agreement-2.png', 'a-agreement-3.png', 'A-agreement-agreement.png', 'b-agreement.png']


def test_the_command_draws_it(trained, tmp_path, cli):
    Image.open(FISH).save(tmp_path / 'fish.jpg')
    arguments = (tmp_path / 'fish.jpg', f'--model={trained}', f'--out={tmp_path / "out"}')
    assert cli('colorize', *arguments)[0] == 0
    for finished in (False, True):
        code, out, err = cli('colorize', *arguments, '--agreement')
        assert code == 0 and ('0 of 1' in out) == finished
        assert ('predictions differ by' in err) == (not finished)
    result, picture = (tmp_path / 'out' / name for name in ('fish.jpg', 'fish-agreement.png'))
    assert read_tag(result) == read_tag(picture) and Image.open(picture).size == Image.open(FISH).size
    picture.write_text('my notes')
    code, _, err = cli('colorize', *arguments, '--agreement')
    assert_one_sentence(code, err, 'fish-agreement.png exists and is not a result')
    assert picture.read_text() == 'my notes'
