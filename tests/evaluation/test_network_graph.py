"""The picture of a network: what the graph says of every recipe's network, and that no arrow runs through a box."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from helpers import SMALL, small_recipe
from PIL import Image

from jaxcolor import tasks
from jaxcolor import train as train_module
from jaxcolor.evaluation import network_picture
from jaxcolor.evaluation.network_graph import network_graph
from jaxcolor.models.layers import ConvBlock
from jaxcolor.recipes import load_recipe


def small_task(name):
    """The task of a recipe, narrow, at its own depth and wiring."""
    if name in SMALL:
        return tasks.build(small_recipe(name))
    name, _, change = name.partition(' ')
    config = load_recipe(name, ['--config.model.width=0.0625', '--config.data.crop=64', '--config.model.global_size=64'])
    config.model.update({'members=3': {'members': 3}, 'global_size=32': {'global_size': 32}, '': {}}[change])
    return tasks.build(config)


NETWORKS = [*SMALL, 'ltbc', 'ltbc global_size=32', 'ltbc_compact', 'ltbc_compact members=3']


@pytest.fixture(scope='module', params=NETWORKS)
def traced(request):
    """(the task, the graph) of a network."""
    task = small_task(request.param)
    return task, network_graph(task.network, task.network_inputs())


def layers_of(nodes):
    return {node.title: node for node in nodes if node.kind == 'layer'}


def titles(nodes):
    return [node.title for node in nodes]


def ancestors(node):
    found, waiting = set(), [node]
    while waiting:
        node = waiting.pop()
        if id(node) not in found:
            found.add(id(node))
            waiting += node.sources
    return found


def test_every_parameter_is_counted_once_and_shapes_are_the_network_s(traced):
    task, nodes = traced
    variables = jax.eval_shape(task.network.init, jax.random.PRNGKey(0), *task.network_inputs())
    expected = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
    assert sum(node.parameters for node in nodes) == expected
    outputs = jax.eval_shape(task.network.apply, variables, *task.network_inputs())
    shapes = [node.shape for node in nodes if node.kind == 'output']
    assert shapes == [each.shape[1:] for each in jax.tree.leaves(outputs)]
    assert [node.shape for node in nodes if node.kind == 'input'] == [each.shape[1:] for each in task.network_inputs()]


def test_the_data_flow_from_the_inputs_to_the_outputs(traced):
    _, nodes = traced
    known = set()
    for node in nodes:
        assert {id(source) for source in node.sources} <= known, node.title
        assert bool(node.sources) == (node.kind != 'input' and node.text != 'learned vectors'), node.title
        known.add(id(node))
    inputs = {id(node) for node in nodes if node.kind == 'input'}
    assert inputs <= ancestors(next(node for node in nodes if node.kind == 'output'))


def test_no_two_boxes_at_one_place_and_no_arrow_through_one(traced):
    _, nodes = traced
    rows, lanes = network_picture.place(nodes)
    places = {(rows[id(node)], lanes[id(node)]) for node in nodes}
    assert len(places) == len(nodes)
    assert all(rows[id(source)] < rows[id(node)] for node in nodes for source in node.sources)
    width, height = network_picture._WIDTH, 0.6
    across, down = width + network_picture._LANE_GAP, height + network_picture._ROW_GAP
    centers = {id(node): (lanes[id(node)] * across, -rows[id(node)] * down) for node in nodes}
    for route in network_picture.routes(nodes, rows, lanes):
        points = [
            (centers[id(a)][0] + halves * width / 2 + right, centers[id(b)][1] + up * height / 2 + above)
            for (a, halves, right), (b, up, above) in route
        ]
        for (x, y), (next_x, next_y) in itertools.pairwise(points):
            assert x == next_x or y == next_y  # along one axis
            for node_x, node_y in centers.values():
                inside_x = min(x, next_x) < node_x + 0.49 * width and node_x - 0.49 * width < max(x, next_x)
                inside_y = min(y, next_y) < node_y + 0.49 * height and node_y - 0.49 * height < max(y, next_y)
                assert not (inside_x and inside_y)


def test_the_branches_of_ltbc_meet_in_the_fusion():
    task = small_task('ltbc')
    nodes = network_graph(task.network, task.network_inputs())
    layers = layers_of(nodes)
    assert sorted(titles(layers['fusion'].sources)) == ['global_dense_2', 'mid_1']
    assert titles(layers['mid_0'].sources) == titles(layers['global_conv_0'].sources) == ['low_5']
    assert titles(layers['classifier_hidden'].sources) == ['global_dense_1']
    assert layers['low_0'].text == '3×3 convolution, 4 filters, stride 2, batch norm, relu'
    assert layers['color_1'].text == '3×3 convolution, 4 filters, upsampled, batch norm, relu'
    assert layers['fusion'].text == '1×1 fusion, 16 filters, relu'
    assert layers['global_dense_0'].text == 'dense, 64 units, batch norm, relu'
    assert titles(layers['global_dense_0'].sources) == ['flatten']


def test_the_layers_of_vgg_fusion():
    """Report 001, section 3.3 and table 3: activations, and where the two batch norms stand."""
    task = small_task('vgg_fusion')
    nodes = [node for node in network_graph(task.network, task.network_inputs()) if node.kind == 'layer']
    names = titles(nodes)
    after = {name: names[names.index(name) - 1] for name in ('encoder_norm', 'decoder_norm')}
    assert after == {'encoder_norm': 'encoder_2', 'decoder_norm': 'decoder_3'}
    *layers, output = [node for node in nodes if not node.title.endswith('_norm')]
    assert all(node.text.endswith(', relu') for node in layers) and len(layers) == 6 + 1 + 7
    assert output.text == '1×1 transposed convolution, 2 filters, tanh'


def test_layers_that_run_twice_are_drawn_twice_with_one_set_of_parameters():
    """Where photos are not of the global branch's size, both branches run the low-level features."""
    task = small_task('ltbc global_size=32')
    nodes = network_graph(task.network, task.network_inputs())
    twice = [node for node in nodes if node.title == 'low_0']
    assert [node.shape for node in twice] == [(32, 32, 4), (16, 16, 4)]
    assert sorted(titles(node.sources)[0] for node in twice) == ['lightness', 'resize']
    assert [node.parameters > 0 for node in twice] == [True, False]


def test_the_gan_s_two_networks_and_what_is_joined_to_each_layer():
    task = small_task('cgan')
    nodes = network_graph(task.network, task.network_inputs())
    layers = layers_of(nodes)
    assert {node.group for node in layers.values()} == {'generator', 'discriminator'}
    for i, name in enumerate([*(f'conv_{i}' for i in range(6)), 'output']):
        (joined,) = layers[f'generator/{name}'].sources
        expected = {'luma', *(['reshape'] if i < 3 else []), *([f'generator/conv_{i - 1}'] if i else [])}
        assert joined.title == 'concatenate' and set(titles(joined.sources)) == expected
    assert layers['discriminator/norm_0'].text == 'batch norm, leaky relu'
    assert titles(layers['discriminator/conv_0'].sources[0].sources) == ['luma', 'generator/output']


class Residual(nn.Module):
    """A block with a skip connection."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = ConvBlock(4, name='first')(x, train)
        y = ConvBlock(4, name='second')(x, train)
        return {'ab': nn.Conv(2, (1, 1), name='last')(x + y)}


def test_a_skip_connection_is_an_addition_of_two(tmp_path):
    shape = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    nodes = network_graph(Residual(), [shape])
    (joined,) = layers_of(nodes)['last'].sources
    assert joined.title == 'add' and titles(joined.sources) == ['first', 'second']
    network_picture.draw_network(Residual(), [shape], tmp_path / 'network.svg')
    assert '<svg' in (tmp_path / 'network.svg').read_text()


def test_a_training_draws_its_network_once_and_no_training_fails_by_it(tmp_path, monkeypatch):
    class Said(list):
        say = list.append

    task, said = small_task('ltbc'), Said()
    train_module._draw_network(task, tmp_path, said)
    assert Image.open(tmp_path / 'network.png').width > 500 and not said
    monkeypatch.setattr(train_module, 'draw_network', lambda *_: 1 / 0)
    train_module._draw_network(task, tmp_path, said)
    assert not said  # it is there
    (tmp_path / 'network.png').unlink()
    train_module._draw_network(task, tmp_path, said)
    assert len(said) == 1 and 'was not drawn (ZeroDivisionError' in said[0]
