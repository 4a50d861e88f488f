"""eccv16 and siggraph17 against PyTorch: block by block and whole, from their files; what each is trained on as."""

import jax
import numpy as np
import pytest
from torch_helpers import assert_close, channels_last, randomize

from jaxcolor import color, models, tasks
from jaxcolor import config as base
from jaxcolor.weights.published import zhang
from jaxcolor.weights.weight_files import read_weights

pytestmark = pytest.mark.torch
torch = pytest.importorskip('torch')
twins = pytest.importorskip('jaxcolor.benchmark.torch_zhang')

SIZES = [(64, 72), (60, 53)]
PARAMETERS = {
    'eccv16': ([37_696, 221_696, 1_475_840, 5_900_800, *[7_080_448] * 3, 3_358_009], 32_236_011, 82),
    'siggraph17': ([39_424, 221_696, 1_475_840, 5_900_800, *[7_080_448] * 3], 34_187_027, 107),
}


def torch_of(x):
    return torch.from_numpy(np.ascontiguousarray(np.asarray(x).transpose(0, 3, 1, 2)))


def scaled_up(twin):
    """Random weights, under which the output neither fades nor saturates."""
    twin = randomize(twin)
    with torch.no_grad():
        for module in twin.modules():
            if isinstance(module, torch.nn.ConvTranspose2d):
                torch.nn.init.kaiming_uniform_(module.weight, nonlinearity='relu')
                torch.nn.init.uniform_(module.bias, -0.2, 0.2)
    return twin


def saved(twin, path, **options):
    torch.save(twin.state_dict(), path, **options)
    return path


def restored(converted):
    network = models.build(converted.model)
    return network, {'params': converted.params, 'batch_stats': converted.model_state['batch_stats']}


def blocks_of(network, variables, *inputs, **options):
    """The published network's output, and what comes out of each block."""

    @jax.jit
    def run(variables, *inputs):
        watch = {'capture_intermediates': lambda module, name: name == '__call__', 'mutable': ['intermediates']}
        return network.apply(variables, *inputs, method='published', **watch, **options)

    ab, seen = run(variables, *inputs)
    return ab, {name: layer['__call__'][0] for name, layer in seen['intermediates'].items()}


@pytest.mark.parametrize('width', [0.125, pytest.param(1.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('grid', [False, True])
def test_eccv16(tmp_path, size, grid, width):
    twin = scaled_up(twins.ECCV16(width))
    with torch.no_grad():
        twin.model8[6].weight *= 3  # some classes are likelier than others
        if grid:
            order = np.random.default_rng(0).permutation(313)
            twin.model_out.weight[:] = torch.from_numpy(color.zhang_class_centers()[order].T / 110)[..., None, None]
    file = saved(twin, tmp_path / 'eccv16.pth', _use_new_zipfile_serialization=False)
    converted = zhang.convert(read_weights(file).arrays, width)
    network, variables = restored(converted)
    assert converted.model['color_classes'] == (313 if grid else 0)
    assert converted.task['name'] == ('color_classes' if grid else 'regression')
    lightness = np.random.default_rng(1).uniform(0, 100, (2, *size, 1)).astype(np.float32)
    with torch.no_grad():
        expected, blocks = twin(torch_of(lightness))
    ab, seen = blocks_of(network, variables, (lightness - 50) / 100)
    for i, block in enumerate(blocks[:7]):
        assert_close(np.asarray(seen[f'block_{i}']), channels_last(block))
    if grid:
        classes = channels_last(blocks[7])[..., order.argsort()]
        assert_close(np.asarray(seen['classes']) / 0.38, classes)
    else:
        assert_close(np.asarray(seen['classes']), channels_last(blocks[7]))
    assert_close(np.asarray(ab), channels_last(expected))

    # jaxcolor's own path gives the same, at the photo's size.
    config = base.get_config()
    config.model, config.task = type(config)(converted.model), type(config)(converted.task)
    task = tasks.build(config)
    state = jax.eval_shape(task.init, jax.random.PRNGKey(0)).replace(params=converted.params, ema=())
    state = state.replace(model_state=converted.model_state)
    if size == SIZES[0]:
        assert_close(np.asarray(jax.jit(task.predict)(state, lightness)), channels_last(expected))
    else:
        assert jax.eval_shape(task.predict, state, lightness).shape == (2, *size, 2)


@pytest.mark.parametrize('width', [0.125, pytest.param(1.0, marks=pytest.mark.slow)])
def test_siggraph17(tmp_path, width):
    twin = scaled_up(twins.SIGGRAPH17(width))
    converted = zhang.convert(read_weights(saved(twin, tmp_path / 'siggraph17.pth')).arrays, width)
    assert converted.notes == ['Its layer model_class, which nothing follows from, was left out.']
    network, variables = restored(converted)
    rng = np.random.default_rng(1)
    lightness = rng.uniform(0, 100, (2, 64, 72, 1)).astype(np.float32)
    mask = (rng.uniform(size=(2, 64, 72, 1)) < 0.1).astype(np.float32)
    hints = mask * rng.uniform(-80, 80, (2, 64, 72, 2)).astype(np.float32)
    names = [*(f'block_{i}' for i in range(7)), 'block_8', 'block_9', 'block_10']
    for given in (1, 0):
        with torch.no_grad():
            expected, blocks = twin(*map(torch_of, (lightness, given * hints, given * mask)))
        ab, seen = blocks_of(network, variables, lightness, given * hints, given * mask)
        for name, block in zip(names, blocks, strict=True):
            assert_close(np.asarray(seen[name]), channels_last(block))
        assert_close(np.asarray(ab), channels_last(expected))
        own = [np.concatenate([hints, mask], axis=-1)] if given else []
        found = 128 * jax.jit(network.apply)(variables, lightness / 100, *own)['ab']
        assert_close(np.asarray(found), channels_last(expected))


@pytest.mark.parametrize('name', PARAMETERS)
def test_the_twins_are_of_the_published_sizes(name):
    encoder, parameters, entries = PARAMETERS[name]
    with torch.device('meta'):
        twin = {'eccv16': twins.ECCV16, 'siggraph17': twins.SIGGRAPH17}[name]()
    counts = {child: sum(p.numel() for p in module.parameters()) for child, module in twin.named_children()}
    assert [counts[f'model{i}'] for i in range(1, len(encoder) + 1)] == encoder
    assert sum(counts.values()) == parameters
    assert len(twin.state_dict()) == entries
