"""DDColor against its PyTorch twin, block by block and whole, by way of its files; files that do not fit."""

import jax
import numpy as np
import pytest
from torch_helpers import arrays_of, assert_close, outputs_of

from jaxcolor import color, models
from jaxcolor.errors import UserError
from jaxcolor.models.ddcolor import VARIANTS, DDColor, Variant
from jaxcolor.weights.published import ddcolor, recognize
from jaxcolor.weights.weight_files import read_weights

pytestmark = pytest.mark.torch
torch = pytest.importorskip('torch')
randomize = pytest.importorskip('jaxcolor.benchmark.torch_published').randomize
torch_ddcolor = pytest.importorskip('jaxcolor.benchmark.torch_ddcolor')
DDColorTwin = torch_ddcolor.DDColorTwin

SMALL = {'variant': 'shallow', 'width': 1 / 16, 'queries': 5, 'layers': 4}
# Of the published files: parameters of the parts, entries, bytes.
FILES = {
    'tiny': ((27_823_008, 11_343_680, 1_052_672, 14_787_072, 208), 55_006_640, 440, 220_204_100),
    'large': ((196_236_096, 15_793_280, 1_052_672, 14_787_072, 208), 227_869_328, 602, 911_687_492),
}
# Of each block: its module in the file, and its place among the network's.
BLOCKS = {
    **{f'encoder.arch.norm{i}': ('encoder', i) for i in range(4)},
    **{f'decoder.layers.{i}': (f'decoder_{i}', None) for i in range(3)},
    'decoder.color_decoder': ('color_decoder', None),
}


@pytest.fixture(scope='module', autouse=True)
def shallow():
    """A variant with few blocks."""
    with pytest.MonkeyPatch.context() as patch:
        depths, dims = (1, 2, 2, 1), (96, 192, 384, 768)
        patch.setitem(torch_ddcolor.DEPTHS, 'shallow', depths)
        patch.setitem(torch_ddcolor.DIMS, 'shallow', dims)
        patch.setitem(VARIANTS, 'shallow', Variant(depths, dims))
        yield


@pytest.fixture(scope='module')
def small():
    """(a narrow and shallow twin, its arrays)"""
    twin = randomize(DDColorTwin(**SMALL))
    return twin, arrays_of(twin)


@pytest.mark.parametrize('variant', FILES)
def test_the_twin_is_as_large_as_the_published_files(variant):
    parts, parameters, entries, size = FILES[variant]
    with torch.device('meta'):
        twin = DDColorTwin(variant)
    decoder = twin.decoder
    modules = (twin.encoder, decoder.layers, decoder.last_shuf, decoder.color_decoder, twin.refine_net)
    assert tuple(sum(each.numel() for each in module.parameters()) for module in modules) == parts
    assert sum(each.numel() for each in twin.parameters()) == parameters
    state = twin.state_dict()
    assert len(state) == entries
    assert sum(each.numel() * each.element_size() for each in state.values()) == size


def gray(height, width, seed=0):
    """Two photos, RGB (2, H, W, 3) in [0, 1]."""
    return np.repeat(np.random.default_rng(seed).uniform(size=(2, height, width, 1)), 3, axis=-1).astype(np.float32)


@pytest.mark.parametrize(('fields', 'size'), [({'variant': 'tiny'}, (64, 96)), (SMALL, (64, 32))])
def test_every_block_equals_the_twin_s(fields, size):
    twin = randomize(DDColorTwin(**fields))
    arrays = arrays_of(twin)
    converted = ddcolor.convert(arrays, DDColor(**fields) if fields == SMALL else None)
    assert converted.model['variant'] == fields['variant']
    assert recognize(arrays) == 'ddcolor'
    assert converted.notes[1:] == ['Its encoder.arch.norm was left out: the network does not use it.']
    image = gray(*size)
    expected, blocks = outputs_of(twin, image, BLOCKS)
    assert np.abs(expected[0] - expected[1]).max() > 0.01 * np.abs(expected).max()
    network = models.build(converted.model)
    given, state = jax.jit(
        lambda variables: network.apply(
            variables, image, method='published', capture_intermediates=True, mutable='intermediates'
        )
    )({'params': converted.params, **converted.model_state})
    for name, (layer, place) in BLOCKS.items():
        inner = state['intermediates'][layer]['__call__'][0]
        assert_close(np.asarray(inner if place is None else inner[place]), blocks[name])
    assert_close(np.asarray(given), expected)


def test_large_is_told_by_its_depth_and_has_a_place_for_every_array():
    with torch.device('meta'):
        twin = DDColorTwin('large', 1 / 16)
    arrays = {name: np.ones(tensor.shape, np.float32) for name, tensor in twin.state_dict().items()}
    arrays = {name: array for name, array in arrays.items() if name not in ('mean', 'std')}
    params = ddcolor.convert(arrays, DDColor('large', 1 / 16)).params
    assert params['encoder']['stage_2_26']['expand']['kernel'].shape == (48, 192)
    with pytest.raises(UserError, match=r'of shape \(12, 3, 4, 4\), not of shape \(192, 3, 4, 4\)'):
        ddcolor.convert(arrays)


def test_lightness_of_any_size_is_padded_and_the_padding_cut_off(small):
    twin, arrays = small
    converted = ddcolor.convert(arrays, DDColor(**SMALL))
    lightness = np.random.default_rng(0).uniform(5, 95, size=(2, 50, 70, 1)).astype(np.float32)
    padded = np.pad(lightness, ((0, 0), (0, 14), (0, 26), (0, 0)), mode='edge')
    rgb = np.repeat(color.gray_luma(padded), 3, axis=-1)
    expected, _ = outputs_of(twin, rgb, [])
    network = models.build(converted.model)
    outputs = jax.jit(network.apply)({'params': converted.params, **converted.model_state}, lightness / 100)
    assert_close(128 * np.asarray(outputs['ab']), expected[:, :50, :70])


def test_wrappers_prefixes_and_folded_norms_do_not_matter(small):
    _, arrays = small
    expected = ddcolor.convert(arrays, DDColor(**SMALL))
    for others in (
        {f'module.{name}': array for name, array in arrays.items()},
        {name: array for name, array in arrays.items() if name not in ('mean', 'std', 'encoder.arch.norm.weight')},
    ):
        given = ddcolor.convert(others, DDColor(**SMALL))
        jax.tree.map(np.testing.assert_array_equal, given.params, expected.params)


@pytest.mark.parametrize(
    ('name', 'change', 'words'),
    [
        ('encoder.arch.stages.1.1.pwconv1.bias', None, 'differs is encoder.arch.stages.1.1.pwconv1.bias .*: missing'),
        ('decoder.layers.1.conv.0.weight_u', None, 'decoder.layers.1.conv.0.weight_u is missing'),
        ('decoder.layers.1.conv.0.weight_v', np.ones(3), r'weight_v is of shape \(3,\), not of shape'),
        ('decoder.layers.2.conv.0.weight_orig', None, 'differs is decoder.layers.2.conv.0.weight .*: missing'),
        ('refine_net.0.0.bias', np.ones(3), r'differs is refine_net.0.0.bias \(refine/bias\): of shape \(3,\), not'),
        ('decoder.color_decoder.decoder_norm.bias', np.full(16, np.nan), 'decoder_norm.bias .* not finite'),
        ('decoder.color_decoder.level_embed.weight', np.ones((2, 16)), 'level_embed.weight .*: of shape'),
        ('mean', np.ones((1, 3, 1, 1)), 'its mean of the input is not that of ImageNet'),
        ('decoder.layers.3.bn.weight', np.ones(4), 'it has decoder.layers.3.bn.weight of shape .*, which is no layer'),
    ],
)
def test_a_file_that_does_not_fit_is_refused(small, name, change, words):
    arrays = {key: array for key, array in small[1].items() if key != name}
    if change is not None:
        arrays[name] = np.asarray(change, np.float32)
    with pytest.raises(UserError, match=f'it does not fit ddcolor: .*{words}') as error:
        ddcolor.convert(arrays, DDColor(**SMALL))
    assert '\n' not in str(error.value)


def test_a_file_of_another_depth_is_refused(small):
    with pytest.raises(UserError, match=r'encoder.arch.stages.2 has 3 blocks, not 9 or 27'):
        ddcolor.convert({**small[1], 'encoder.arch.stages.2.2.gamma': np.ones(24)})


def test_a_file_cut_short_is_refused(small, tmp_path):
    path = tmp_path / 'pytorch_model.bin'
    torch.save(small[0].state_dict(), path)
    assert read_weights(path).arrays.keys() == small[1].keys()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match='damaged or cut short'):
        read_weights(path)
