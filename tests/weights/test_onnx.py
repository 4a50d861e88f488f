"""ONNX files: onnxruntime computes what JAX does, and the page of plain Python colors with them."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import PHOTOS, ROOT
from PIL import Image

from jaxcolor import color
from jaxcolor.inference.colorizer import Colorizer
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


def test_the_page_of_plain_python_colors_a_photo(tmp_path):
    pytest.importorskip('onnxruntime')
    model = write('ltbc-lite', tmp_path, (224, 288))
    page = ROOT / 'jaxcolor' / 'weights' / 'onnx_colorize.py'
    copy = tmp_path / 'page.py'
    copy.write_bytes(page.read_bytes())
    subprocess.run([sys.executable, '-I', copy, model, FISH, tmp_path / 'result.png'], check=True, timeout=120)
    # The same by jaxcolor's functions; colors outside sRGB, which the page clips, are left out.
    photo = Image.open(FISH).convert('RGB')
    small = color.rgb_to_lab(np.asarray(photo.resize((288, 224), Image.Resampling.BILINEAR)))[None, ..., :1]
    ab = Colorizer('ltbc-lite').predict_ab(small)[0]
    planes = [np.asarray(Image.fromarray(ab[..., i].copy()).resize(photo.size, Image.Resampling.BICUBIC)) for i in range(2)]
    lightness = color.rgb_to_lab(np.asarray(photo))[..., :1]
    expected = color.to_uint8(color.lab_to_rgb(np.concatenate([lightness, np.stack(planes, axis=-1)], axis=-1)))
    result = np.asarray(Image.open(tmp_path / 'result.png'))
    assert np.abs(result.astype(np.int32) - expected).max() <= 1
