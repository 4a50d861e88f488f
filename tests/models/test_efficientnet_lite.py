"""EfficientNet-Lite's variants: counts, feature maps, training. weights/test_torch_files compares it with PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcolor.errors import UserError
from jaxcolor.models.efficientnet_lite import VARIANTS, EfficientNetLite, blocks
from jaxcolor.models.extractors import random_extractor

# The parameters of `efficientnet-lite-pytorch`, and of its networks without the head and the 1000 outputs.
COUNTS = {
    'lite0': (4_652_008, 2_958_848),
    'lite1': (5_416_680, 3_723_520),
    'lite2': (6_092_072, 4_357_952),
    'lite3': (8_197_096, 6_422_016),
    'lite4': (13_006_568, 11_149_568),
}
CHANNELS = {
    'lite0': (16, 24, 40, 112, 320),
    'lite1': (16, 24, 40, 112, 320),
    'lite2': (16, 24, 48, 120, 352),
    'lite3': (24, 32, 48, 136, 384),
    'lite4': (24, 32, 56, 160, 448),
}


def shapes(network, size, method):
    image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    return jax.eval_shape(lambda image: network.init_with_output(jax.random.key(0), image, method=method), image)


@pytest.mark.parametrize('variant', VARIANTS)
def test_parameter_counts(variant):
    for method, expected in zip(('__call__', 'features'), COUNTS[variant], strict=True):
        _, variables = shapes(EfficientNetLite(variant), (64, 64), method)
        assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == expected
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('size', [(64, 96), (75, 101)])
def test_feature_maps_by_stride(variant, size):
    features, _ = shapes(EfficientNetLite(variant, dtype=jnp.bfloat16), size, 'features')
    H, W = size
    assert {stride: (each.shape, each.dtype) for stride, each in features.items()} == {
        stride: ((2, -(-H // stride), -(-W // stride), channels), jnp.bfloat16)
        for stride, channels in zip((2, 4, 8, 16, 32), CHANNELS[variant], strict=True)
    }


def test_first_and_last_stage_do_not_grow_deeper():
    assert [len(blocks(variant)) for variant in VARIANTS] == [16, 21, 21, 24, 30]
    strides = [[block.strides for block in blocks(variant)].count(2) for variant in VARIANTS]
    assert strides == [4] * len(VARIANTS)


def test_training_normalizes_by_the_batch_and_keeps_its_statistics():
    network = EfficientNetLite('lite0')
    image = jnp.asarray(np.random.default_rng(0).normal(size=(4, 32, 32, 3)), jnp.float32)
    variables = random_extractor('efficientnet_lite0').variables  # batch norms are the identity

    @jax.jit
    def step(variables, key):
        return network.apply(variables, image, train=True, rngs={'dropout': key}, mutable='batch_stats')

    logits, updated = step(variables, jax.random.key(1))
    assert np.isfinite(logits).all()
    stem = jax.lax.conv_general_dilated(
        image, variables['params']['stem']['kernel'], (2, 2), ((0, 1), (0, 1)), dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    mean, var = (updated['batch_stats']['stem']['norm'][name] for name in ('mean', 'var'))
    np.testing.assert_allclose(mean, 0.01 * stem.mean((0, 1, 2)), rtol=0, atol=1e-6)
    np.testing.assert_allclose(var, 0.99 + 0.01 * stem.var((0, 1, 2)), rtol=1e-5)
    # Dropout follows its random numbers.
    assert np.abs(step(variables, jax.random.key(2))[0] - logits).max() > 0.01
    np.testing.assert_array_equal(step(variables, jax.random.key(1))[0], logits)


def test_unknown_variant_is_refused():
    with pytest.raises(UserError, match=r"no EfficientNet 'lite5'; there are lite0, lite1, lite2, lite3, lite4"):
        EfficientNetLite('lite5')
