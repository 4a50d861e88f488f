"""DDColor: sizes, its decoder's shortcut, training. weights/test_ddcolor_torch compares it with PyTorch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import count, network_shapes

from jaxcolor import config as base
from jaxcolor import models
from jaxcolor.errors import UserError
from jaxcolor.models.ddcolor import Enlarge, Refine, sine_positions
from jaxcolor.models.unet import blur, shuffle

# Of the published files: encoder, color decoder, all; and how many of the encoder are of a norm that nothing uses.
PUBLISHED = {
    'tiny': (27_823_008, 14_787_072, 55_006_640, 2 * 768),
    'large': (196_236_096, 14_787_072, 227_869_328, 2 * 1536),
}


@pytest.mark.parametrize('variant', PUBLISHED)
def test_parameters_are_those_of_the_published_files(variant):
    params = network_shapes('ddcolor', variant=variant)[1]['params']
    encoder, color_decoder, total, unused = PUBLISHED[variant]
    assert count(params['encoder']) == encoder - unused
    assert count(params['color_decoder']) == color_decoder
    assert count(params) == total - unused


@pytest.mark.parametrize('size', [(64, 96), (50, 33), (1, 1)])
def test_any_size_comes_out_as_it_went_in(size):
    with jax.numpy_dtype_promotion('standard'):  # Flax' layer norm mixes float32 with bfloat16
        outputs, variables = network_shapes('ddcolor', size, 'bfloat16', width=1 / 16, layers=3)
    assert {name: output.shape for name, output in outputs.items()} == {'ab': (2, *size, 2)}
    assert {leaf.dtype for leaf in jax.tree.leaves([outputs, variables])} == {jnp.dtype('float32')}


def test_refining_before_enlarging_changes_nothing():
    """As the paper has it: every pixel's features, its product with each color, then the dense layer."""
    rng = np.random.default_rng(0)
    h, w, C, Q = 3, 5, 8, 7
    shapes = (2, h, w, C), (1, 1, C, 16 * C), (16 * C,), (2, Q, C), (2, 4 * h, 4 * w, 3), (Q + 3, 2), (2,)
    x, kernel, bias, colors, image, last_kernel, last_bias = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes
    )
    mixed, of_image = Refine().apply({'params': {'kernel': last_kernel, 'bias': last_bias}}, colors, image)
    enlarged = Enlarge().apply({'params': {'kernel': kernel, 'bias': bias}}, x, mixed)
    given = blur(shuffle(enlarged, 4)) + of_image
    features = jnp.maximum(x @ kernel[0, 0] + bias, 0)
    maps = jnp.einsum('bqc,bhwc->bhwq', colors, blur(shuffle(features, 4)))
    expected = jnp.concatenate([maps, image], axis=-1) @ last_kernel + last_bias
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max()))


def test_positions_are_sines_and_cosines_of_the_row_then_the_column():
    h, w, C = 3, 5, 8
    given = np.asarray(sine_positions(h, w, C)).reshape(h, w, C)
    for y, x, i in np.ndindex(h, w, C):
        place, side = ((y, h), (x, w))[i // (C // 2)]
        m = i % (C // 2)
        angle = 2 * math.pi * (place + 1) / (side + 1e-6) / 10_000 ** (2 * (m // 2) / (C // 2))
        assert given[y, x, i] == pytest.approx(math.cos(angle) if m % 2 else math.sin(angle), abs=2e-6)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'variant': 'small'}, "model.variant: there is no ddcolor 'small'; there are tiny, large"),
        ({'width': 0.01}, 'model.width: 3 features of ddcolor are no multiple of 8 heads'),
        ({'queries': 0}, 'model.queries must be at least 1'),
        ({'color_classes': 260}, "model.color_classes: network 'ddcolor' has no such field"),
    ],
)
def test_what_it_cannot_be_is_refused(change, words):
    with pytest.raises(UserError, match=words):
        models.build({**base.ddcolor(), **change})
