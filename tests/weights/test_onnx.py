"""ONNX files: onnxruntime computes what JAX does, and the page of plain Python colors with them."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import PHOTOS, ROOT
from PIL import Image

from jaxcolor import color, tasks
from jaxcolor import config as fields
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.recipes import load_recipe
from jaxcolor.weights import export, portable

pytestmark = pytest.mark.onnx
TOLERANCE = 1e-3  # units of a*b*
FISH = PHOTOS / 'train' / 'fish1.jpg'


def write(model, tmp_path, size):
    config, task, state = export.gather(model, 'small')
    return portable.write('onnx', tmp_path / 'model.onnx', config, task, state, size)


def inputs(session):
    return [(each.name, each.shape, each.type) for each in (*session.get_inputs(), *session.get_outputs())]


@pytest.mark.parametrize(('model', 'size'), [('trained', (64, 96)), ('ltbc-lite', (224, 288))])
def test_onnxruntime_agrees_on_the_bundled_photos(request, tmp_path, model, size):
    onnxruntime = pytest.importorskip('onnxruntime')
    model = request.getfixturevalue(model) if model == 'trained' else model
    session = onnxruntime.InferenceSession(write(model, tmp_path, size))
    assert inputs(session) == [(name, [1, *size, n], 'tensor(float)') for name, n in (('lightness', 1), ('ab', 2))]
    colorizer = Colorizer(model)
    for path in sorted(PHOTOS.rglob('*.jpg')):
        rgb = Image.open(path).convert('RGB').resize(size[::-1], Image.Resampling.BOX)
        lightness = color.rgb_to_lab(np.asarray(rgb))[None, ..., :1]
        (ab,) = session.run(['ab'], {'lightness': lightness})
        np.testing.assert_allclose(ab, colorizer.predict_ab(lightness), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize('name', ['eccv16', 'siggraph17', 'iizuka', 'ddcolor', 'deoldify'])
def test_published_networks_can_be_written(tmp_path, name):
    """Their transposed convolutions, blurs and max pooling, too; what is written was run and compared."""
    onnxruntime = pytest.importorskip('onnxruntime')
    config = load_recipe('ltbc:quickstart')
    config.model, config.task = getattr(fields, name)(), fields.regression()
    config.model.width, config.task.alpha = 1 / 16, 0.0
    if name == 'eccv16':
        config.model.color_classes = 0
    task = tasks.build(config)
    rng, shapes = np.random.default_rng(0), jax.eval_shape(task.init, jax.random.PRNGKey(0))
    params = jax.tree.map(lambda leaf: rng.uniform(-0.2, 0.2, leaf.shape).astype(np.float32), shapes.params)
    model_state = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes.model_state)
    state = shapes.replace(step=0, params=params, model_state=model_state, opt_state=(), rng=np.zeros(2, np.uint32))
    session = onnxruntime.InferenceSession(portable.write('onnx', tmp_path / name, config, task, state, (64, 96)))
    lightness = rng.uniform(0, 100, (1, 64, 96, 1)).astype(np.float32)
    (ab,) = session.run(['ab'], {'lightness': lightness})
    expected = np.asarray(jax.jit(task.predict)(state, lightness))
    assert np.abs(expected).max() > 100 * TOLERANCE
    np.testing.assert_allclose(ab, expected, rtol=0, atol=TOLERANCE)


def test_the_page_of_plain_python_colors_a_photo(tmp_path):
    pytest.importorskip('onnxruntime')
    model = write('ltbc-lite', tmp_path, (224, 288))
    page = ROOT / 'jaxcolor' / 'weights' / 'onnx_colorize.py'
    copy = tmp_path / 'page.py'
    copy.write_bytes(page.read_bytes())
    exif = Image.Exif()
    exif[0x112] = 6  # it is stored turned to the left
    Image.open(FISH).transpose(Image.Transpose.ROTATE_90).save(tmp_path / 'turned.png', exif=exif)
    for given, result in ((FISH, 'result.png'), (tmp_path / 'turned.png', 'upright.png')):
        subprocess.run([sys.executable, '-I', copy, model, given, tmp_path / result], check=True, timeout=120)
    # The same by jaxcolor's functions; colors outside sRGB, which the page clips, are left out.
    photo = Image.open(FISH).convert('RGB')
    small = color.rgb_to_lab(np.asarray(photo.resize((288, 224), Image.Resampling.BILINEAR)))[None, ..., :1]
    ab = Colorizer('ltbc-lite').predict_ab(small)[0]
    planes = [np.asarray(Image.fromarray(ab[..., i].copy()).resize(photo.size, Image.Resampling.BICUBIC)) for i in range(2)]
    lightness = color.rgb_to_lab(np.asarray(photo))[..., :1]
    expected = color.to_uint8(color.lab_to_rgb(np.concatenate([lightness, np.stack(planes, axis=-1)], axis=-1)))
    result = np.asarray(Image.open(tmp_path / 'result.png'))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'upright.png')), result)
    assert np.abs(result.astype(np.int32) - expected).max() <= 1
