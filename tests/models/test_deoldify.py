"""DeOldify: sizes, attention, training. weights/test_deoldify_torch compares it with PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import count, network_shapes, small_recipe
from PIL import Image

from jaxcolor import config as base
from jaxcolor import models
from jaxcolor.errors import UserError
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.models.deoldify import VARIANTS, SelfAttention, Variant
from jaxcolor.runtime import logs
from jaxcolor.train import train
from jaxcolor.weights import runs
from jaxcolor.weights.export import export

# Of the published files: encoder, all; and how many are lengths of the kernels under weight norm.
PUBLISHED = {'artistic': (21_284_672, 63_646_881, 4 * 300), 'stable': (42_500_160, 218_222_197, 4 * 256)}


@pytest.mark.parametrize('variant', PUBLISHED)
def test_parameters_are_those_of_the_published_files(variant):
    params = network_shapes('deoldify', variant=variant)[1]['params']
    encoder, total, lengths = PUBLISHED[variant]
    assert count(params['encoder']) == encoder
    assert count(params) == total - lengths


@pytest.mark.parametrize('size', [(64, 96), (50, 33), (1, 1)])
def test_any_size_comes_out_as_it_went_in(size):
    outputs, variables = network_shapes('deoldify', size, 'bfloat16', width=1 / 16)
    assert {name: output.shape for name, output in outputs.items()} == {'ab': (2, *size, 2)}
    assert {leaf.dtype for leaf in jax.tree.leaves([outputs, variables])} == {jnp.dtype('float32')}


def test_attention_shares_each_pixel_out_among_those_that_look_at_it():
    """The softmax goes over the queries (axis 1 of query^T key), as published."""
    x = np.random.default_rng(0).normal(size=(2, 3, 2, 16)).astype(np.float32)
    attention = SelfAttention()
    params = dict(attention.init(jax.random.key(0), x)['params'])
    np.testing.assert_array_equal(attention.apply({'params': params}, x), x)  # its gain is 0 at first
    params['gain'] = {'gain': jnp.asarray([0.5])}
    pixels = x.reshape(2, 6, 16)
    query, key, value = (pixels @ np.asarray(params[name]['kernel']) for name in ('query', 'key', 'value'))
    share = np.exp(query @ key.transpose(0, 2, 1))
    share /= share.sum(axis=1, keepdims=True)
    expected = pixels + 0.5 * share.transpose(0, 2, 1) @ value
    np.testing.assert_allclose(attention.apply({'params': params}, x), expected.reshape(x.shape), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_frozen_encoder_keeps_its_statistics(monkeypatch):
    monkeypatch.setitem(VARIANTS, 'shallow', Variant((1, 1, 1, 1), False, (8,) * 4, ((8,),) * 4))
    network = models.build({**base.deoldify(), 'variant': 'shallow', 'width': 1 / 16, 'encoder_norm': 'frozen'})
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


@pytest.mark.slow
def test_learns_with_its_encoder_as_it_is_and_colors_photos(shards, tmp_path):
    config = small_recipe('ddcolor', shards)
    config.model = base.deoldify()
    config.model.update({'width': 1 / 16, 'encoder_norm': 'frozen'})
    config.task.update({'error': 'squared', 'colorfulness': 0.0})
    config.optimizer.encoder_rate = 0.0
    train(config, tmp_path / 'run')
    rows = [row['color_loss'] for row in logs.read_metrics(tmp_path / 'run') if 'color_loss' in row]
    assert np.mean(rows[-4:]) < np.mean(rows[:4])
    _, task, state = runs.load(export(tmp_path / 'run', tmp_path / 'exported', config.train.steps))
    fresh = jax.jit(task.init)(jax.random.PRNGKey(config.seed))
    for name in ('encoder', 'middle'):
        moved = jax.tree.map(
            lambda a, b: not np.allclose(a, b, rtol=2**-10, atol=1e-6), fresh.params[name], state.params[name]
        )
        assert any(jax.tree.leaves(moved)) is (name != 'encoder')
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (33, 37), dtype=np.uint8))
    assert Colorizer(tmp_path / 'exported')(photo).size == photo.size


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
