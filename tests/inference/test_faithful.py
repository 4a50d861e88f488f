"""`--faithful`: what published programs do around their networks, written again with NumPy, Pillow and scikit-image."""

import jax
import numpy as np
import pytest
import skimage.color
import skimage.transform
from conftest import PHOTOS, assert_one_sentence
from PIL import Image

from jaxcolor import config as fields
from jaxcolor import tasks
from jaxcolor.errors import UserError
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.inference.faithful import Faithful, _torch_scale
from jaxcolor.inference.hints import Hints, Point
from jaxcolor.recipes import load_recipe
from jaxcolor.weights import store

FISH = Image.open(PHOTOS / 'train' / 'fish1.jpg').convert('RGB')


def config_of(name, **model):
    config = load_recipe('ltbc:quickstart')
    config.model, config.task = getattr(fields, name)(), fields.regression()
    config.model.update(model)
    if name == 'eccv16':
        config.task = fields.color_classes()
    config.task.alpha = 0.0
    return config


def faithful_of(name, output, monkeypatch, render_factor=0, **model):
    """(the program around a network that gives `output`, the list of what the network gets)."""
    task = tasks.build(config_of(name, **model))
    seen = []
    monkeypatch.setattr(Faithful, 'run', lambda self, *inputs: seen.extend(inputs) or output)
    monkeypatch.setattr(task, 'folded', lambda state: state)  # of shapes alone
    return Faithful(task, jax.eval_shape(task.init, jax.random.PRNGKey(0)), render_factor), seen


def smooth(height, width, scale, channels=2):
    """A smooth random picture around 0."""
    coarse = np.random.default_rng(0).standard_normal((8, 8, channels))
    return (scale * skimage.transform.resize(coarse, (height, width), order=1)).astype(np.float32)


def linear(x, height, width):
    """Half-pixel centers, no antialiasing."""
    return skimage.transform.resize(x, (height, width), order=1, mode='edge', anti_aliasing=False, preserve_range=True)


def joined(photo, ab):
    """The photo's own L* and a*b*, uint8."""
    lightness = skimage.color.rgb2lab(np.asarray(photo))[..., :1]
    return np.round(255 * np.clip(skimage.color.lab2rgb(np.concatenate([lightness, ab], axis=-1)), 0, 1))


def assert_equal_levels(image, expected, limit=1):
    assert np.abs(np.asarray(image, np.float64) - expected).max() <= limit


@pytest.mark.filterwarnings('ignore:Conversion from CIE-LAB')
@pytest.mark.parametrize('name', ['eccv16', 'siggraph17'])
def test_zhang(monkeypatch, name):
    ab = smooth(256, 256, 20)
    faithful, seen = faithful_of(name, ab, monkeypatch)
    hints = Hints((Point(10, 20, (200, 30, 30)),)) if name == 'siggraph17' else None
    result = faithful(FISH, hints)
    small = FISH.resize((256, 256), Image.Resampling.BICUBIC)
    lightness = skimage.color.rgb2lab(np.asarray(small))[..., :1]
    np.testing.assert_allclose(seen[0], lightness if hints else (lightness - 50) / 100, atol=2e-3)
    if hints:
        np.testing.assert_array_equal(seen[2][..., 0] > 0, np.abs(seen[1]).sum(axis=-1) > 0)
        np.testing.assert_allclose(seen[1][24, 8], skimage.color.rgb2lab(np.uint8([200, 30, 30]))[1:], atol=0.01)
    assert_equal_levels(result, joined(FISH, linear(ab, FISH.height, FISH.width)))


@pytest.mark.filterwarnings('ignore:Conversion from CIE-LAB')
def test_ddcolor(monkeypatch):
    photo = FISH.resize((700, 300))
    ab = 10 * np.random.default_rng(0).standard_normal((512, 512, 2)).astype(np.float32)
    faithful, seen = faithful_of('ddcolor', ab, monkeypatch)
    result = faithful(photo)
    small = skimage.color.rgb2lab(linear(np.asarray(photo) / 255, 512, 512)) * [1, 0, 0]
    np.testing.assert_allclose(seen[0], skimage.color.lab2rgb(small), atol=2e-3)
    nearest = ab[np.arange(300) * 512 // 300][:, np.arange(700) * 512 // 700]
    assert_equal_levels(result, joined(photo, nearest))


def test_deoldify(monkeypatch):
    output = smooth(64, 64, 1, channels=3)
    faithful, seen = faithful_of('deoldify', output, monkeypatch, render_factor=4)
    result = faithful(FISH)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    luma = np.asarray(FISH.resize((64, 64), Image.Resampling.BILINEAR)) @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(seen[0], (luma[..., None] / 255 - mean) / deviation, atol=0.6 / 255 / 0.224)
    levels = np.floor(255 * np.clip(output * deviation + mean, 0, 1)).astype(np.uint8)
    colors = np.asarray(Image.fromarray(levels).resize(FISH.size, Image.Resampling.BILINEAR), np.float64)
    # As the program has it: red is taken for blue.
    weights = np.array([0.114, 0.587, 0.299])
    y = np.asarray(FISH) @ weights
    u, v = 0.492 * (colors[..., 0] - colors @ weights), 0.877 * (colors[..., 2] - colors @ weights)
    expected = np.stack([y + 2.032 * u, y - 0.395 * u - 0.581 * v, y + 1.140 * v], axis=-1)
    assert_equal_levels(result, np.clip(expected, 0, 255), limit=3)  # Y, U and V are rounded to 8 bits


@pytest.mark.filterwarnings('ignore:Conversion from CIE-LAB')
@pytest.mark.parametrize('size', [(320, 208), (101, 67)])
def test_iizuka(monkeypatch, size):
    photo, mean = FISH.resize(size), 0.4
    width, height = (int(np.floor(side / 8 + 0.5)) * 8 for side in size)
    output = 0.5 + smooth(height, width, 0.1)
    faithful, seen = faithful_of('iizuka', output, monkeypatch, luma_mean=mean)
    result = faithful(photo)
    luma = (np.asarray(photo) @ [0.299, 0.587, 0.114])[..., None] / 255
    full = torch_scale(luma, height, width) - mean
    np.testing.assert_allclose(seen[0], full, atol=1e-5)
    np.testing.assert_allclose(seen[1], torch_scale(full, 224, 224), atol=1e-5)
    lab = np.concatenate([skimage.color.rgb2lab(luma.repeat(3, axis=-1))[..., :1], np.zeros((*size[::-1], 2))], axis=-1)
    lab[..., 1:] = 100 * (2 * torch_scale(output, *size[::-1]) - 1)
    rgb = skimage.color.lab2rgb(lab)
    inside = ((rgb > 0.004) & (rgb < 0.996)).all(axis=-1)  # skimage clips
    excess = luma[..., 0] - rgb @ [0.299, 0.587, 0.114]
    expected = 255 * np.clip(rgb + excess[..., None], 0, 1)  # the photo's own Y, the color's U and V
    assert inside.mean() > 0.8
    assert np.abs(np.asarray(result, np.float64) - expected)[inside].max() < 1


def torch_scale(x, height, width):
    """Torch's image.scale, pixel by pixel."""
    for axis, size in ((1, width), (0, height)):
        length = x.shape[axis]
        weights = np.zeros((size, length))
        for i in range(size):
            if size > length:
                place = i * (length - 1) / (size - 1)
                weights[i, int(place)] += 1 - place % 1
                weights[i, min(int(place) + 1, length - 1)] += place % 1
            else:
                start, end = i * length / size, (i + 1) * length / size
                for j in range(length):
                    weights[i, j] = max(0.0, min(end, j + 1) - max(start, j)) / (end - start)
        x = np.moveaxis(np.tensordot(weights, x, (1, axis)), 0, axis)
    return x


@pytest.mark.parametrize('size', [(5, 7), (12, 30), (30, 12), (40, 20), (1, 1)])
def test_torch_scale(size):
    x = np.random.default_rng(0).uniform(0, 1, (12, 20, 2)).astype(np.float32)
    np.testing.assert_allclose(_torch_scale(x, *size), torch_scale(x, *size), atol=1e-6)


@pytest.fixture(scope='module')
def siggraph17(tmp_path_factory):
    """The folder of a narrow siggraph17 with random weights."""
    folder, config = tmp_path_factory.mktemp('models') / 'narrow', config_of('siggraph17', width=1 / 32)
    rng, shapes = np.random.default_rng(0), jax.eval_shape(tasks.build(config).init, jax.random.PRNGKey(0))
    params = jax.tree.map(lambda leaf: rng.uniform(-0.2, 0.2, leaf.shape).astype(np.float32), shapes.params)
    model_state = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes.model_state)
    store.write(folder, config, shapes.replace(step=np.int32(0), params=params, model_state=model_state))
    return folder


def test_the_command_colors_faithfully(siggraph17, tmp_path, cli):
    colorizer = Colorizer(siggraph17, faithful=True)
    photo = FISH.convert('RGBA')
    photo.putalpha(Image.linear_gradient('L').resize(photo.size))
    photo.save(tmp_path / 'fish.png')
    arguments = (tmp_path / 'fish.png', f'--model={siggraph17}', f'--out={tmp_path / "out"}')
    for finished in (False, True):
        code, out, err = cli('colorize', *arguments, '--faithful')
        assert code == 0 and ('0 of 1' in out) == finished, err
    result = np.asarray(Image.open(tmp_path / 'out' / 'fish.png'))
    np.testing.assert_array_equal(result, np.asarray(colorizer(photo)))
    np.testing.assert_array_equal(result[..., 3], np.asarray(photo)[..., 3])
    own = np.asarray(Colorizer(siggraph17)(photo), np.int32)
    assert np.abs(result - own).max() > 1
    assert '1 of 1' in cli('colorize', *arguments)[1]  # another way, another result
    with pytest.raises(UserError, match='neither --size nor --chroma'):
        Colorizer(siggraph17, size=64, faithful=True)


def test_what_does_not_fit_is_one_sentence(trained, siggraph17, tmp_path, cli):
    FISH.save(tmp_path / 'fish.png')
    for model, arguments, part in [
        (trained, ['--faithful'], 'ltbc is no published network'),
        (siggraph17, ['--faithful', '--render-factor=20'], '--render-factor is for deoldify'),
        (siggraph17, ['--render-factor=20'], '--render-factor is for --faithful'),
        (siggraph17, ['--faithful', '--chroma=2'], 'neither --size nor --chroma'),
        (siggraph17, ['--faithful', '--agreement'], 'without --style'),
    ]:
        code, _, err = cli('colorize', tmp_path / 'fish.png', f'--model={model}', f'--out={tmp_path / "out"}', *arguments)
        assert_one_sentence(code, err, part)
    task = tasks.build(config_of('deoldify'))
    with pytest.raises(UserError, match='between 2 and 128, not 1'):
        Faithful(task, jax.eval_shape(task.init, jax.random.PRNGKey(0)), 1)


def test_only_siggraph17_takes_hints(monkeypatch):
    faithful, _ = faithful_of('eccv16', np.zeros((256, 256, 2), np.float32), monkeypatch)
    with pytest.raises(UserError, match='only siggraph17'):
        faithful(FISH, Hints((Point(1, 1, (0, 0, 0)),)))
