"""Iizuka et al.'s published networks: files of a small one, which come back as the network that they are of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from iizuka_files import graph_of
from torch7_files import module, table, write_torch7

from jaxcolor import color, models, tasks
from jaxcolor import config as base
from jaxcolor.errors import UserError
from jaxcolor.weights import published
from jaxcolor.weights.published import iizuka
from jaxcolor.weights.torch7 import Table

WIDTH = 1 / 16


def network_of(**fields):
    section = {**base.iizuka(), 'width': WIDTH, 'classes': 0, 'luma_mean': 0.4375, 'repeat_output': True, **fields}
    return models.build(section)


def variables_of(network, seed=0):
    """Random variables, batch statistics among them."""
    side = network.global_size
    shapes = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name in ('var', 'scale'):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        fan_in = max(1, leaf.size // leaf.shape[-1])
        scale = (2 / fan_in) ** 0.5 if name == 'kernel' else 0.2
        return rng.normal(scale=scale, size=leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def converted_of(content, path):
    write_torch7(content, path)
    return published.convert(path)


CASES = {
    'batch norm, as a matrix': ({'batch_norm': True}, {'matrix': True, 'inverse': True, 'copied': True}),
    'no batch norm': ({'batch_norm': False, 'repeat_output': False}, {'up': False, 'global_first': True}),
    'batch norm everywhere, a classifier': (
        {'batch_norm': True, 'batch_norm_fusion': True, 'batch_norm_output': True, 'classes': 5},
        {'vector_first': True},
    ),
    'other sizes': ({'batch_norm': True, 'batch_norm_dense': False, 'global_size': 64, 'dense_widths': (512, 512, 256)}, {}),
}


@pytest.mark.parametrize('case', CASES)
def test_a_file_becomes_the_network_that_it_is_of(tmp_path, case):
    fields, form = CASES[case]
    network = network_of(**fields)
    variables = variables_of(network)
    converted = converted_of(graph_of(variables, **form), tmp_path / 'colornet.t7')
    built = models.build(converted.model)
    given, found = (
        {name: getattr(each, name) for name in base.iizuka() if name not in ('name', 'dtype', 'classifier_width')}
        for each in (network, built)
    )
    if not network.batch_norm:
        found['batch_norm_dense'] = given['batch_norm_dense']  # which does not matter then
    assert found == given
    assert converted.task['name'] == 'regression'
    expected = {'params': variables['params'], **{k: v for k, v in variables.items() if k != 'params'}}
    result = {'params': converted.params, **converted.model_state}
    for (path, one), two in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(result), strict=True):
        # A variance is stored as the inverse of its root.
        np.testing.assert_allclose(two, one, rtol=1e-6, err_msg=jax.tree_util.keystr(path))
    assert converted.notes[0].startswith(f'Found: 18 convolutions of {WIDTH} times the width')
    assert ('a classifier of 5 classes' in converted.notes[0]) == bool(network.classes)
    assert ('Its fusion has the global vector first.' in converted.notes) == form.get('vector_first', False)


def test_missing_batch_norms_are_said(tmp_path):
    network = network_of()
    content = graph_of(variables_of(network))
    mid = content['model']['modules'][2]['modules']
    del mid[5], mid[6]
    norm, relu = mid[2], mid[3]
    content['model']['modules'][2]['modules'] = table(mid[1], norm, relu, mid[4], module('nn.ReLU'))
    converted = converted_of(content, tmp_path / 'colornet.t7')
    assert converted.notes[1] == 'Batch norms that change nothing were added after mid_1.'
    assert (converted.params['mid_1']['norm']['scale'] == 1).all()
    np.testing.assert_allclose(converted.model_state['batch_stats']['mid_1']['norm']['var'] + 1e-5, 1, rtol=1e-6)


@pytest.mark.parametrize('field', ['running_mean', 'running_var'])
def test_copies_of_a_layer_that_differ_are_said(tmp_path, field):
    """The low-level network comes twice, and its batch norms saw other photos."""
    network = network_of(global_size=32)
    content = graph_of(variables_of(network), copied=True)
    again = content['model']['forwardnodes'][5]['data']['module']
    again['modules'][2][field] = 2 * again['modules'][2][field]
    converted = converted_of(content, tmp_path / 'colornet.t7')
    assert 'Layers come twice, with other biases or batch-norm statistics' in converted.notes[-1]
    kept = converted.model_state['batch_stats']['low_0']['norm'][{'running_mean': 'mean', 'running_var': 'var'}[field]]
    first = content['model']['forwardnodes'][4]['data']['module']['modules'][2][field]
    np.testing.assert_allclose(kept, first, rtol=1e-5)


@pytest.mark.parametrize(
    ('inner', 'words'),
    [
        (module('nn.Identity'), 'it has more than 10,000 modules'),
        (module('nn.Sequential', modules=table(1.0)), 'it has a module nn.Sequential, which is not known'),
    ],
)
def test_modules_that_hold_each_other_twice_end(tmp_path, inner, words):
    """2^60 modules in a file of 60."""
    for _ in range(60):
        inner = module('nn.Sequential', modules=table(inner, inner))
    with pytest.raises(UserError, match=words):
        converted_of(table(model=inner, mean=0.4), tmp_path / 'colornet.t7')


def test_its_inputs_and_outputs_are_the_published_ones():
    """L* and the published luma, a*b* and the published values: the same network by both ways."""
    network = network_of(global_size=32)
    variables = variables_of(network)
    lightness = np.random.default_rng(1).uniform(0, 100, (2, 32, 32, 1)).astype(np.float32)
    luma = color.gray_luma(lightness) - np.float32(0.4375)
    values = np.asarray(jax.jit(lambda x: network.apply(variables, x, x, method='published'))(luma))
    assert values.shape == (2, 32, 32, 2)
    np.testing.assert_array_equal(values[:, ::2, ::2], values[:, 1::2, 1::2])
    config = base.get_config()
    config.model = type(config)({**base.iizuka(), 'width': WIDTH, 'classes': 0, 'luma_mean': 0.4375, 'global_size': 32})
    config.data.crop = 32
    task = tasks.build(config)
    outputs = jax.jit(task.network.apply)(variables, lightness / 100)
    ab = color.decode_output(outputs['ab'], lightness, 'lab', 'sigmoid')
    assert ab.shape == (2, 16, 16, 2)
    np.testing.assert_allclose(ab, 100 * (2 * values[:, ::2, ::2] - 1), rtol=0, atol=1e-3)  # units of a*b*
    state = jax.eval_shape(task.init, jax.random.PRNGKey(0)).replace(params=variables['params'], ema=())
    state = state.replace(model_state={'batch_stats': variables['batch_stats']})
    assert jax.eval_shape(task.global_features, state, lightness).shape == (2, round(256 * WIDTH))


def changed(content, change):
    """The content of a file after a change of its graph's modules, by name."""
    low, mid, features, vector, decoder = (content['model']['modules'][i]['modules'] for i in range(1, 6))
    change({'low': low, 'mid': mid, 'features': features, 'vector': vector, 'decoder': decoder, 'all': content})
    return content


def put(part, place, value):
    return lambda modules: modules[part].__setitem__(place, value)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda modules: modules['all'].pop('mean'), "no file of Iizuka's: it holds no `model` and `mean`"),
        (put('mid', 1, module('nn.Identity')), 'a nn.SpatialBatchNormalization follows no layer that it could belong to'),
        (put('mid', 3, module('nn.ELU')), 'it has a module nn.ELU, which is not known here'),
        (put('vector', 3, module('nn.Sigmoid')), 'global_dense_2, a dense layer 32 -> 16, is followed by Sigmoid, not ReLU'),
        (put('mid', 3, module('nn.Sigmoid')), 'mid_0, a 3x3 convolution 32 -> 32, .* is followed by Sigmoid, not ReLU'),
        (put('decoder', 6, module('nn.Identity')), 'the first convolution that differs is .*, in place of color_1'),
        (lambda modules: modules['low'][4].update(dW=2), r'stride \[1, 2\], padding \[1\], in place of low_1 \(3x3, 4 -> 8'),
        (lambda modules: modules['low'][4].update(padW=0), r'stride \[1\], padding \[0, 1\], in place of low_1'),
        (lambda modules: modules['low'][4].pop('weight'), 'a module cudnn.SpatialConvolution has no weights'),
        (lambda modules: modules['low'][4].update(bias=np.zeros(3)), r'low_1/conv/bias .*: of shape \(3,\), not of'),
        (put('vector', 1, module('nn.Identity')), 'a nn.BatchNormalization follows no layer that it could belong to'),
        (lambda modules: modules['features'].update({1: modules['all']['model']}), 'its modules lie too deep in each other'),
    ],
)
def test_other_networks_are_refused(tmp_path, change, words):
    content = changed(graph_of(variables_of(network_of())), change)
    with pytest.raises(UserError, match=words) as caught:
        converted_of(content, tmp_path / 'colornet.t7')
    assert 'colornet.t7' in str(caught.value)


def test_the_published_network_has_as_many_parameters_as_the_paper_s():
    network = models.build({**base.iizuka(), 'batch_norm': False, 'classes': 0})
    shapes = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 1), jnp.float32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 42_169_826


def tables_of(root):
    """All tables in each other, which may be circles."""
    found, waiting = {}, [root]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Table) and id(each) not in found:
            found[id(each)] = each
            waiting += each.values()
    return [each for each in found.values() if each]


CLASSES = ['', 'nn.Linear', 'nn.gModule', 'nn.SpatialConvolutionMM', 'nn.ReLU', 'nn.JoinTable']
VALUES = [None, '', True, 0, -1, 2, 3.5, float('nan'), float('inf'), 10**30, table(1, 'a'), module('nn.SpatialConvolution')]
VALUES += [np.zeros(shape) for shape in ((0,), (2, 3), (2, 2, 3, 3), (2,) * 5, (0, 3), (0, 1, 3, 3))]
VALUES += [np.full(4, np.nan), np.zeros((1, 1, 1, 1), np.int64)]


@pytest.mark.parametrize('count', [40, pytest.param(500, marks=pytest.mark.slow)])
def test_a_changed_graph_is_converted_or_refused_in_one_sentence(count):
    variables = variables_of(network_of(width=1 / 64, dense_widths=(64, 64, 64), global_size=32, classes=3))
    rng, refused = np.random.default_rng(0), 0
    for i in range(count):
        root = graph_of(variables, matrix=bool(i % 2), inverse=i % 3 == 0)
        tables = tables_of(root)
        changed = tables[rng.integers(len(tables))]
        key = list(changed)[rng.integers(len(changed))]
        match rng.integers(4):
            case 0:
                del changed[key]
            case 1:
                changed.class_name = str(rng.choice(CLASSES))
            case _:
                changed[key] = VALUES[rng.integers(len(VALUES))]
        try:
            iizuka.convert(root)
        except UserError as error:
            refused += 1
            assert '\n' not in str(error)
    assert count / 10 < refused < count
