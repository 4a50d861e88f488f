"""Color hints: how they are read, and how they spread over the predicted colors."""

import itertools
import math

import jax
import numpy as np
import pytest
from conftest import PHOTOS, assert_one_sentence
from PIL import Image, ImageDraw

from jaxcolor import color, tasks
from jaxcolor import config as fields
from jaxcolor.errors import UserError
from jaxcolor.inference import hints as module
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.inference.hints import Hints, Point, as_hints, read_hints, spread
from jaxcolor.recipes import load_recipe
from jaxcolor.weights import store

FISH = PHOTOS / 'train' / 'fish1.jpg'
RED = (160, 48, 48)
RED_AB = color.rgb_to_lab(np.array(RED, np.uint8))[1:]


def two_halves(width=60, height=40):
    """A photo of two grays, dark at the left."""
    levels = np.where(np.arange(width) < width // 2, 90, 150).astype(np.uint8)
    return Image.fromarray(np.repeat(np.broadcast_to(levels, (height, width))[..., None], 3, axis=-1))


def strokes_of(size, box, rgb=RED):
    image = Image.new('RGBA', size)
    ImageDraw.Draw(image).rectangle(box, fill=(*rgb, 255))
    return image


def test_a_hint_colors_its_surface_and_no_other():
    ab = np.zeros((20, 30, 2), np.float32)
    spread_ab = spread(two_halves(), ab, Hints((Point(10, 20, RED),)))  # (40, 60, 2)
    left, right = spread_ab[:, :30], spread_ab[:, 30:]
    assert np.linalg.norm(left - RED_AB, axis=-1).max() < np.linalg.norm(RED_AB) / 2
    assert np.linalg.norm(right, axis=-1).max() < 0.01 * np.linalg.norm(RED_AB)
    other = spread(two_halves(), ab, Hints((Point(50, 20, RED),)))
    assert np.linalg.norm(other[:, :30], axis=-1).max() < 0.01 * np.linalg.norm(RED_AB)


def test_the_change_solves_the_equations():
    """Each change is the weighted mean of its eight neighbors', drawn to none; by dense linear algebra, pixel by pixel."""
    rng = np.random.default_rng(0)
    h, w = 5, 7
    lightness = rng.uniform(40, 44, (h, w)).astype(np.float32)
    mask = np.zeros((h, w), bool)
    mask[1, 2] = mask[4, 6] = True
    wanted = rng.uniform(-20, 20, (h, w, 2)) * mask[..., None]
    system, right = np.zeros((h * w, h * w)), np.zeros((h * w, 2))
    for i, j in itertools.product(range(h), range(w)):
        row = i * w + j
        if mask[i, j]:
            system[row, row], right[row] = 1, wanted[i, j]
            continue
        system[row, row] = 1 / (module._REACH * h) ** 2
        for k, m in itertools.product(range(max(0, i - 1), min(h, i + 2)), range(max(0, j - 1), min(w, j + 2))):
            if (k, m) != (i, j):
                difference = (float(lightness[i, j]) - float(lightness[k, m])) / module._SIMILAR
                weight = math.exp(-(difference**2) / 2) / math.dist((i, j), (k, m)) + module._LEAST_WEIGHT
                system[row, row] += weight
                system[row, k * w + m] -= weight
    expected = np.linalg.solve(system, right).reshape(h, w, 2)
    np.testing.assert_allclose(module._solve(lightness, mask, wanted), expected, rtol=1e-9, atol=1e-9)


def test_without_a_hint_near_the_prediction_stays():
    rng = np.random.default_rng(0)
    ab = rng.uniform(-20, 20, (40, 60, 2)).astype(np.float32)
    changed = spread(two_halves(), ab, Hints((Point(10, 20, RED),)))
    np.testing.assert_allclose(changed[:, 31:], ab[:, 31:], rtol=0, atol=0.01 * np.linalg.norm(RED_AB - ab[20, 10]))


@pytest.mark.parametrize('scale', [1, 0.5, 2])
def test_hinted_pixels_come_out_in_the_hinted_color(colorizer, scale):
    photo, muted = Image.open(FISH), (150, 112, 104)
    box = [40, 40, 80, 80]
    size = tuple(round(scale * side) for side in photo.size)
    result = colorizer(photo, hints=strokes_of(size, [scale * x for x in box], muted))
    lab, before = (color.rgb_to_lab(np.asarray(image))[44:76, 44:76] for image in (result, photo))
    inside = ((np.asarray(result) > 0) & (np.asarray(result) < 255)).all(axis=-1)[44:76, 44:76]
    wanted = color.rgb_to_lab(np.array(muted, np.uint8))[1:]
    assert inside.mean() > 0.7
    # Rounding to 8 bits moves a* and b* by up to 1.5 units in the dark.
    assert np.abs(lab[..., 1:] - wanted)[inside].max() < 2.5
    assert np.abs(lab[..., 0] - before[..., 0])[inside].max() < 1


def test_points_and_strokes_add_up(tmp_path):
    strokes_of((60, 40), [0, 0, 9, 9]).save(tmp_path / 'strokes.png')
    hints = read_hints([str(tmp_path / 'strokes.png'), '300,200,#ffffff; 55.5,50,a03030', '505,305,#0000ff'])
    assert [point[:2] for point in hints.points] == [(300, 200), (55.5, 50), (505, 305)]
    ab, mask = hints.on_grid((600, 400), 40, 60)
    assert mask[:10, :10].all() and mask[20, 30] and mask[30, 50] and not mask[15:, :20].any()
    np.testing.assert_allclose(ab[9, 9], RED_AB, atol=1e-3)
    np.testing.assert_allclose(ab[20, 30], 0, atol=0.02)  # white
    assert ab[30, 50, 1] < -100  # blue


def test_thin_strokes_reach_the_grid():
    strokes = Image.new('RGBA', (1200, 800))
    strokes.putpixel((605, 405), (*RED, 255))
    ab, mask = Hints(strokes=strokes).on_grid((2400, 1600), 8, 12)
    assert np.argwhere(mask).tolist() == [[4, 6]]
    np.testing.assert_allclose(ab[4, 6], RED_AB, atol=1e-3)


def test_parts_of_a_large_picture_are_the_whole(monkeypatch):
    strokes = Image.fromarray(np.random.default_rng(0).integers(0, 256, (41, 60, 4), np.uint8))
    whole = Hints(strokes=strokes).on_grid((600, 410), 20, 30)
    monkeypatch.setattr(module, '_STROKE_PIXELS', 130)  # two rows
    parts = Hints(strokes=strokes).on_grid((600, 410), 20, 30)
    np.testing.assert_allclose(parts[0], whole[0], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(parts[1], whole[1])


@pytest.mark.parametrize(
    ('texts', 'part'),
    [
        (['12,a03030'], 'neither a file nor points'),
        (['-1,3,#a03030'], 'neither a file nor points'),
        (['1,3,#a0303'], 'neither a file nor points'),
        (['1,3,#a03030;hat.png'], 'neither a file nor points'),
        ([''], 'neither a file nor points'),
    ],
)
def test_texts_that_are_no_hints(texts, part):
    with pytest.raises(UserError, match=part):
        read_hints(texts)


@pytest.mark.parametrize(
    'hints',
    [
        Hints((Point(3, 4, (300, 0, 0)),)),
        Hints((Point(3, 4, (1, 2)),)),
        Hints((Point(3, 4, 'red'),)),
        Hints((Point(-5, 4, (1, 2, 3)),)),
        Hints((Point(float('nan'), 4, (1, 2, 3)),)),
        Hints(strokes='strokes.png'),
        Hints(strokes=Image.new('RGB', (8, 8))),
    ],
)
def test_hints_that_are_none(hints):
    with pytest.raises(UserError, match='a point is|stroke'):
        as_hints(hints)


def test_pictures_that_are_no_strokes(tmp_path):
    Image.new('RGB', (60, 40)).save(tmp_path / 'photo.png')
    Image.new('RGBA', (60, 40)).save(tmp_path / 'empty.png')
    strokes_of((60, 40), [0, 0, 9, 9]).save(tmp_path / 'strokes.png')
    (tmp_path / 'text.png').write_text('none')
    for names, part in [
        (['photo.png'], 'no transparency'),
        (['empty.png'], 'no strokes'),
        (['text.png'], 'not a photo'),
        (['strokes.png', 'strokes.png'], 'only one picture'),
    ]:
        with pytest.raises(UserError, match=part):
            read_hints([str(tmp_path / name) for name in names])
    with pytest.raises(UserError, match='aspects differ'):
        as_hints(strokes_of((40, 60), [0, 0, 9, 9])).on_grid((600, 400), 40, 60)
    with pytest.raises(UserError, match='600,5 lies outside the photo, which has 600x400'):
        as_hints('600,5,#ffffff').on_grid((600, 400), 40, 60)


def test_the_command_takes_hints_for_one_photo(trained, tmp_path, cli):
    two_halves(120, 80).save(tmp_path / 'gray.png')
    Image.open(FISH).save(tmp_path / 'other.png')
    arguments = (f'--model={trained}', f'--out={tmp_path / "out"}')
    hints = ('--hints=20,40,#a03030', '--hints=100,40,#808080')
    for _ in range(2):
        code, out, err = cli('colorize', tmp_path / 'gray.png', *arguments, *hints)
        assert code == 0, err
    assert '0 of 1' in out  # finished
    result = color.rgb_to_lab(np.asarray(Image.open(tmp_path / 'out' / 'gray.png')))
    np.testing.assert_allclose(result[40, 20, 1:], RED_AB, atol=2.5)
    assert np.abs(result[40, 100, 1:]).max() < 2.5
    code, out, _ = cli('colorize', tmp_path / 'gray.png', *arguments, '--hints=20,40,#30a030')
    assert '1 of 1' in out  # other hints, another result
    for photos, bad, part in [
        (['gray.png'], '200,40,#ffffff', 'lies outside'),
        (['gray.png'], 'none.png', 'neither a file'),
        (['gray.png', 'other.png'], '2,4,#ffffff', 'for one photo'),
    ]:
        code, _, err = cli('colorize', *(tmp_path / name for name in photos), *arguments, f'--hints={bad}')
        assert_one_sentence(code, err, part)


def test_networks_that_take_hints_get_them(tmp_path):
    config = load_recipe('ltbc:quickstart')
    config.model, config.task = fields.siggraph17(), fields.regression()
    config.model.width, config.task.mirror, config.task.alpha, config.data.crop = 1 / 16, True, 0.0, 32
    rng, shapes = np.random.default_rng(0), jax.eval_shape(tasks.build(config).init, jax.random.PRNGKey(0))
    params = jax.tree.map(lambda leaf: rng.uniform(-0.2, 0.2, leaf.shape).astype(np.float32), shapes.params)
    model_state = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes.model_state)
    state = shapes.replace(step=np.int32(0), params=params, model_state=model_state)
    store.write(tmp_path, config, state, precision='float32')
    colorizer = Colorizer(tmp_path, chroma=1.5)
    photo, hints = Image.open(FISH), Hints((Point(100, 50, RED), Point(20, 150, (90, 90, 160))))
    lightness = colorizer.preprocess(photo)
    ab, mask = hints.on_grid(photo.size, *lightness.shape[1:3])
    given = [lightness, ab[None] / 1.5, mask[None, ..., None].astype(np.float32)]
    variables = {'params': colorizer.state.params, **colorizer.state.model_state}

    def published(arrays):
        return 1.5 * np.asarray(colorizer.task.network.apply(variables, *arrays, method='published'))[0]

    expected = (published(given) + published([x[:, :, ::-1] for x in given])[:, ::-1]) / 2
    found = colorizer.predict_with_hints(photo, lightness, None, 0, hints)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    assert np.abs(found - colorizer.predict_ab(lightness)[0]).max() > 1e-2
