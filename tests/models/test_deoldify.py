"""DeOldify: sizes, attention, training. weights/test_deoldify_torch compares it with PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcolor import config as base
from jaxcolor import models
from jaxcolor.errors import UserError
from jaxcolor.models.deoldify import SelfAttention

# Of the published files: encoder, all; and how many are lengths of the kernels under weight norm.
PUBLISHED = {'artistic': (21_284_672, 63_646_881, 4 * 300), 'stable': (42_500_160, 218_222_197, 4 * 256)}


def shapes(size=(64, 64), dtype='float32', **fields):
    """(outputs, variables, the new statistics) for two photos, as shapes."""
    network = models.build({**base.deoldify(), 'dtype': dtype, **fields})
    lightness = jnp.zeros((2, *size, 1))
    return jax.eval_shape(lambda: network.init_with_output(jax.random.key(0), lightness, train=True))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize('variant', PUBLISHED)
def test_parameters_are_those_of_the_published_files(variant):
    params = shapes(variant=variant)[1]['params']
    encoder, total, lengths = PUBLISHED[variant]
    assert count(params['encoder']) == encoder
    assert count(params) == total - lengths


@pytest.mark.parametrize('size', [(64, 96), (50, 33), (1, 1)])
def test_any_size_comes_out_as_it_went_in(size):
    outputs, variables = shapes(size, 'bfloat16', width=1 / 16)
    assert {name: output.shape for name, output in outputs.items()} == {'ab': (2, *size, 2)}
    assert {leaf.dtype for leaf in jax.tree.leaves([outputs, variables])} == {jnp.dtype('float32')}


def test_attention_shares_each_pixel_out_among_those_that_look_at_it():
    """The softmax goes over the queries (axis 1 of query^T key), as published."""
    x = np.random.default_rng(0).normal(size=(2, 3, 2, 16)).astype(np.float32)
    attention = SelfAttention()
    params = dict(attention.init(jax.random.key(0), x)['params'])
    np.testing.assert_array_equal(attention.apply({'params': params}, x), x)  # its gain is 0 at first
    params['gain'] = jnp.asarray([0.5])
    pixels = x.reshape(2, 6, 16)
    query, key, value = (pixels @ np.asarray(params[name]['kernel']) for name in ('query', 'key', 'value'))
    share = np.exp(query @ key.transpose(0, 2, 1))
    share /= share.sum(axis=1, keepdims=True)
    expected = pixels + 0.5 * share.transpose(0, 2, 1) @ value
    np.testing.assert_allclose(attention.apply({'params': params}, x), expected.reshape(x.shape), rtol=0, atol=1e-5)


def test_a_frozen_encoder_keeps_its_statistics():
    network = models.build({**base.deoldify(), 'width': 1 / 16, 'encoder_norm': 'frozen'})
    lightness = np.random.default_rng(0).uniform(size=(2, 16, 16, 1)).astype(np.float32)

    @jax.jit
    def run():
        variables = network.init(jax.random.key(0), lightness)
        return variables['batch_stats'], network.apply(variables, lightness, train=True, mutable='batch_stats')[1]

    before, after = run()
    moved = {
        name: any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), layer, after['batch_stats'][name])))
        for name, layer in before.items()
    }
    assert {name for name, is_moved in moved.items() if not is_moved} == {'encoder'}


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'variant': 'wide'}, "model.variant: there is no deoldify 'wide'; there are artistic, stable"),
        ({'encoder_norm': 'no'}, 'model.encoder_norm: .* is none of trained, frozen'),
    ],
)
def test_what_it_cannot_be_is_refused(change, words):
    with pytest.raises(UserError, match=words):
        models.build({**base.deoldify(), **change})
