"""Published networks: what their files are told by, what is refused of them, what the table says."""

import functools

import flax
import jax
import ml_dtypes
import numpy as np
import published_files
import pytest
import safetensors.numpy
from conftest import PHOTOS
from iizuka_files import graph_of
from PIL import Image
from published_files import small_converter, small_network
from test_iizuka import network_of, variables_of
from torch7_files import write_torch7
from torch_files import write_torch_stream, write_torch_zip
from zhang_files import state_dict

from jaxcolor import color, models, tasks
from jaxcolor import config as base
from jaxcolor.errors import UserError
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.models.eccv16 import CLASSES
from jaxcolor.models.layers import IMAGENET_DEVIATION, IMAGENET_MEAN
from jaxcolor.recipes import load_recipe
from jaxcolor.tasks.color_classes import class_centers
from jaxcolor.train import train
from jaxcolor.weights import published, runs
from jaxcolor.weights.export import export
from jaxcolor.weights.published import converted, library, zhang

NAMES = ('eccv16', 'siggraph17')
WIDTH = 1 / 16


def state_of(converted):
    """(task, state) of a converted network."""
    config = base.get_config()
    config.model, config.task = type(config)(converted.model), type(config)(converted.task)
    task = tasks.build(config)
    state = jax.eval_shape(task.init, jax.random.PRNGKey(0))
    expected = {'params': state.params, 'model_state': state.model_state}
    found = {'params': converted.params, 'model_state': converted.model_state}
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    assert jax.tree.map(lambda leaf: leaf.shape, expected) == jax.tree.map(np.shape, found)
    return task, state.replace(params=converted.params, model_state=converted.model_state, ema=())


@pytest.mark.parametrize('name', NAMES)
def test_a_file_becomes_a_network_of_its_task(name):
    converted = zhang.convert(state_dict(name), WIDTH)
    assert converted.model == {**getattr(base, name)(), 'width': WIDTH}
    task, state = state_of(converted)
    lightness = np.random.default_rng(0).uniform(0, 100, (1, 21, 30, 1)).astype(np.float32)
    ab = jax.jit(task.predict)(state, lightness)
    assert ab.shape == (1, 21, 30, 2) and np.isfinite(ab).all() and np.abs(ab).max() > 1


def test_classes_of_a_file_are_put_into_the_paper_s_order():
    arrays = state_dict('eccv16')
    converted = zhang.convert(arrays, WIDTH)
    assert converted.task['name'] == 'color_classes' and converted.task['temperature'] == 0.38
    assert converted.notes == ['The colors of its 313 classes are those of the paper; task.temperature is 0.38.']
    found = {tuple(center): i for i, center in enumerate(color.zhang_class_centers().tolist())}
    order = [found[tuple(np.round(110 * pair).tolist())] for pair in arrays['model_out.weight'][..., 0, 0].T]
    np.testing.assert_array_equal(converted.params['classes']['bias'][order], np.float32(0.38) * arrays['model8.6.bias'])
    assert_predicts_as_published(converted)  # the mean at that temperature


def assert_predicts_as_published(converted):
    task, state = state_of(converted)
    lightness = np.random.default_rng(0).uniform(0, 100, (1, 16, 24, 1)).astype(np.float32)
    network = models.build(converted.model)
    variables = {'params': state.params, 'batch_stats': state.model_state['batch_stats']}
    faithful = network.apply(variables, (lightness - 50) / 100, method='published')
    np.testing.assert_allclose(jax.jit(task.predict)(state, lightness), faithful, rtol=0, atol=1e-2)  # units of a*b*


def test_other_colors_make_it_a_regression():
    converted = zhang.convert(state_dict('eccv16', grid=False), WIDTH)
    assert converted.model['color_classes'] == 0 and converted.task['name'] == 'regression'
    assert converted.notes[0].startswith('The colors of its 313 classes are not those of the paper')
    assert_predicts_as_published(converted)


def test_the_313_classes():
    centers = color.zhang_class_centers()
    assert centers.shape == (CLASSES, 2) == (313, 2)
    bins = np.asarray(color.ab_bin(centers))
    assert (np.diff(bins) > 0).all()  # in the grid's own order, each once
    np.testing.assert_array_equal(color.ab_bin_centers()[bins], centers)
    assert {tuple(center) for center in class_centers().tolist()} < {tuple(center) for center in centers.tolist()}


# -- Files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', NAMES)
def test_files_of_all_kinds_are_told_by_their_keys(name, tmp_path, monkeypatch):
    arrays = state_dict(name, width=1 / 32)
    arrays = {key: array for key, array in arrays.items() if array.ndim}
    monkeypatch.setitem(published.CONVERTERS, name, lambda arrays: zhang.convert(arrays, 1 / 32))
    write_torch_stream(arrays, tmp_path / 'old.pth')
    write_torch_zip({'state_dict': {f'module.{key}': array for key, array in arrays.items()}}, tmp_path / 'new.pth')
    safetensors.numpy.save_file(
        {key: np.ascontiguousarray(array) for key, array in arrays.items()}, tmp_path / 'file.safetensors'
    )
    half = {key: array.astype(np.float16) for key, array in arrays.items()}
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in half.items()}, tmp_path / 'half.safetensors')
    one, *others = (
        published.convert(tmp_path / file) for file in ('old.pth', 'new.pth', 'file.safetensors', 'half.safetensors')
    )
    assert one.model['name'] == name
    for other, tolerance in zip(others, (0, 0, 2e-3), strict=True):
        assert (other.model, other.task, other.notes) == (one.model, one.task, one.notes)
        jax.tree.map(lambda a, b, t=tolerance: np.testing.assert_allclose(a, b, rtol=t, atol=t), one.params, other.params)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda arrays: arrays.pop('model5.2.bias'), r'differs is model5.2.bias \(block_4/conv_1/bias\): missing'),
        (lambda arrays: arrays.pop('model3.6.running_var'), 'differs is model3.6.running_var .*: missing'),
        (
            lambda arrays: arrays.update({'model11.0.weight': np.zeros(3)}),
            r'it has model11.0.weight of shape',
        ),
        (
            lambda arrays: arrays.update({'model2.0.bias': np.zeros(9)}),
            r'model2.0.bias .*: of shape \(9,\), not of',
        ),
        (lambda arrays: arrays['model2.0.bias'].fill(np.nan), 'model2.0.bias .* holds values that are not finite'),
    ],
)
def test_what_does_not_fit_is_named(name, change, words):
    arrays = state_dict(name)
    change(arrays)
    with pytest.raises(UserError, match=f'it does not fit {name}: .*{words}'):
        zhang.convert(arrays, WIDTH)


def test_a_file_of_another_width_or_network_or_cut_short_is_refused(tmp_path):
    arrays = {key: array for key, array in state_dict('eccv16').items() if array.ndim}
    file = tmp_path / 'narrow.pth'
    write_torch_zip(arrays, file)
    with pytest.raises(UserError, match=r'narrow.pth: it does not fit eccv16: .* not of shape \(64, 1, 3, 3\)'):
        published.convert(file)
    (tmp_path / 'cut.pth').write_bytes(file.read_bytes()[:-5_000])
    with pytest.raises(UserError, match='cut.pth is damaged or cut short'):
        published.convert(tmp_path / 'cut.pth')
    write_torch_zip({'conv1.weight': np.zeros((2, 2))}, tmp_path / 'other.pth')
    words = r'of no published network .*: it holds 1 arrays, the first of which is conv1.weight of shape \(2, 2\)'
    with pytest.raises(UserError, match=f'other.pth: it is {words}'):
        published.convert(tmp_path / 'other.pth')


@pytest.mark.parametrize(
    ('key', 'kind'),
    [
        ('encoder.arch.stages.0.0.gamma', None),
        ('decoder.color_decoder.query_feat.weight', 'ddcolor'),
        ('layers.11.0.weight_orig', 'deoldify'),
        ('module.model1.0.weight', 'eccv16'),
    ],
)
def test_kinds_are_told_by_keys(key, kind):
    arrays = {'a': np.zeros(2), key: np.zeros((4, 1, 3, 3))}
    if kind is None:
        with pytest.raises(UserError, match='of no published network'):
            published.recognize(arrays)
    else:
        assert published.recognize(arrays) == kind


@pytest.mark.parametrize('name', ['ddcolor', 'deoldify'])
def test_files_of_unets_that_do_not_fit(name, monkeypatch):
    """Without PyTorch; test_ddcolor_torch and test_deoldify_torch have more."""
    network, convert = small_network(name, monkeypatch), small_converter(name, monkeypatch)
    monkeypatch.setattr(published_files.CONVERTERS[name], 'variable_shapes', functools.cache(converted.variable_shapes))
    arrays = published_files.state_dict(network)
    assert convert(arrays).model['name'] == published.recognize(arrays) == name
    first = next(iter(arrays))
    spectral = next(key for key in arrays if key.endswith('weight_u'))
    for changed, words in (
        ({key: array for key, array in arrays.items() if key != first}, f'{first} .*: missing'),
        ({key: array for key, array in arrays.items() if key != spectral}, f'{spectral} is missing'),
        ({**arrays, 'layers.99.weight': np.zeros(3)}, r'it has layers.99.weight of shape \(3,\), which is no layer'),
        ({**arrays, first: np.zeros((2, 2))}, rf'{first} .*: of shape \(2, 2\), not of'),
    ):
        with pytest.raises(UserError, match=f'it does not fit {name}: .*{words}'):
            convert(changed)


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_ddcolor_in_half_precision(dtype, monkeypatch):
    """Its mean and deviation of the input are rounded, too; those of another input are refused."""
    network, convert = small_network('ddcolor', monkeypatch), small_converter('ddcolor', monkeypatch)
    arrays = published_files.state_dict(network)
    arrays |= {
        'mean': np.float32(IMAGENET_MEAN).reshape(1, 3, 1, 1),
        'std': np.float32(IMAGENET_DEVIATION).reshape(1, 3, 1, 1),
    }
    whole = convert(arrays)
    half = convert({name: array.astype(dtype).astype(np.float32) for name, array in arrays.items()})
    assert (half.model, half.notes) == (whole.model, whole.notes)
    for path, array in flax.traverse_util.flatten_dict(whole.params).items():
        found = flax.traverse_util.flatten_dict(half.params)[path]
        # Spectral norm divides rounded numbers by what follows from them.
        assert np.abs(found - array).max() <= 8 * float(ml_dtypes.finfo(dtype).eps) * np.abs(array).max(), path
    with pytest.raises(UserError, match='its mean of the input is not that of ImageNet'):
        convert({**arrays, 'mean': np.full((1, 3, 1, 1), 0.48, np.float32)})


# -- The table --------------------------------------------------------------------------------------------------------


def test_the_table_of_published_networks():
    table = published.PUBLISHED
    assert list(table) == [each.name for each in table.values()]
    for each in table.values():
        assert each.url.startswith(('https://', 'http://iizuka.cs.tsukuba.ac.jp/')) and each.license_url.startswith(
            'https://'
        )
        assert set(each.sha256) <= set('0123456789abcdef') and len(each.sha256) in (0, 8, 64)
        assert not each.verified  # nobody could, for want of the files
        assert each.noncommercial == ('NC' in each.license)
        # float32, a few buffers, names; Torch7's have their gradients beside them.
        if not each.name.startswith('iizuka'):  # whose files hold gradients, too
            assert 1 <= each.bytes / (4 * each.parameters) < 1.002


@pytest.mark.parametrize('name', NAMES)
def test_numbers_of_parameters(name):
    network = models.build(getattr(base, name)())
    shapes = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 1), np.float32))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))
    left_out = {'eccv16': 313 * 2, 'siggraph17': 256 * 529 + 529}[name]
    assert count + left_out == published.PUBLISHED[name].parameters


def test_iizukas_number_of_parameters_is_that_of_the_papers_layers():
    network = models.build({**base.iizuka(), 'classes': 0, 'batch_norm': False})
    shapes = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 1), np.float32))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))
    for name in ('iizuka-places', 'iizuka-imagenet'):
        assert published.PUBLISHED[name].parameters == round(count, -6)


# -- Training on ------------------------------------------------------------------------------------------------------

# Of each network: its name in the table, and of its parameters the layers that a frozen encoder keeps.
TUNED = {
    'eccv16': ('eccv16', 'block_'),
    'siggraph17': ('siggraph17', ('block_0', 'block_2', 'block_6')),
    'ddcolor': ('ddcolor-paper-tiny', 'encoder'),
    'deoldify': ('deoldify-artistic', 'encoder'),
    'iizuka': ('iizuka-places', ('low_', 'global_')),
}


def write_small_file(name, folder, monkeypatch):
    """A published file of a narrow network, which its converter takes for the whole one."""
    if name == 'iizuka':
        write_torch7(graph_of(variables_of(network_of(global_size=32))), folder / 'colornet.t7')
        return folder / 'colornet.t7'
    monkeypatch.setitem(published.CONVERTERS, name, small_converter(name, monkeypatch))
    arrays = state_dict(name, WIDTH) if name in NAMES else published_files.state_dict(small_network(name, monkeypatch))
    write_torch_stream({key: array for key, array in arrays.items() if array.ndim}, folder / 'weights.pth')
    return folder / 'weights.pth'


@pytest.mark.slow
@pytest.mark.parametrize('encoder', ['free', 'frozen'])
@pytest.mark.parametrize('name', TUNED)
def test_a_published_network_is_trained_on_exported_and_colors(name, encoder, tmp_path, shards, monkeypatch):
    """`train.init_from` of a name, with the config of an import: a few steps, and all that follows a training."""
    called, layers = TUNED[name]
    monkeypatch.setenv('JAXCOLOR_CACHE', str(tmp_path / 'cache'))
    file = write_small_file(name, tmp_path, monkeypatch)
    library.write_model(file, library._folder(called), 'float32')
    library.write_model(file, tmp_path / 'imported')
    fields = {'optimizer.learning_rate': 1e-3, 'data.shards': shards, 'data.crop': 32, 'train.init_from': called}
    fields |= dict.fromkeys(('train.steps', 'train.eval_every', 'train.checkpoint_every'), 2)
    fields |= {'train.batch_size': 4, 'train.log_every': 1, 'train.grid_photos': 1}
    if encoder == 'frozen':
        fields['optimizer.encoder_rate'] = 0.0
        fields |= {} if name == 'ddcolor' else {'model.encoder_norm': 'frozen'}
    config = load_recipe(str(tmp_path / 'imported'), [f'--config.{field}={value}' for field, value in fields.items()])
    assert (config.name, config.optimizer.name, config.model.name) == ('imported', 'adam', name)
    photo = Image.open(PHOTOS / 'train' / 'fish1.jpg').convert('L').resize((37, 33))
    before = runs.load(called)[2]
    assert np.asarray(Colorizer(called)(photo)).shape == (33, 37, 3)

    results = train(config, tmp_path / 'run')
    assert np.isfinite(results['validation']['loss'])
    exported = export(tmp_path / 'run', tmp_path / 'exported')
    assert np.asarray(Colorizer(exported)(photo)).shape == (33, 37, 3)
    after = runs.load(tmp_path / 'run')[2]
    for one, two in ((before.params, after.params), (before.model_state, after.model_state)):
        old, new = (flax.traverse_util.flatten_dict(each) for each in (one, two))
        moved = {next(part for part in path if part != 'batch_stats') for path in old if (old[path] != new[path]).any()}
        of_encoder = {layer for layer in moved if layer.startswith(layers)}
        assert moved - of_encoder
        if encoder == 'frozen':
            assert not of_encoder
        elif one is before.params:
            assert of_encoder
