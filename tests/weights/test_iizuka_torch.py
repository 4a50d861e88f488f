"""Iizuka et al.'s published network against PyTorch, which runs the modules of the file one by one."""

import jax
import numpy as np
import pytest
from iizuka_files import graph_of
from test_iizuka import network_of, variables_of
from torch7_files import write_torch7
from torch_helpers import assert_close, channels_last

from jaxcolor import models
from jaxcolor.weights import published
from jaxcolor.weights.weight_files import read_weights

pytestmark = pytest.mark.torch
torch = pytest.importorskip('torch')
functional = torch.nn.functional


def tensor(array):
    return torch.from_numpy(np.array(array, np.float32))


def run(module, x):
    """A module of Torch7 on a batch, channels first."""
    kind = module.class_name.split('.')[1]
    arrays = {name: tensor(each) for name, each in module.items() if isinstance(each, np.ndarray)}
    match kind:
        case 'Sequential':
            for i in range(1, len(module['modules']) + 1):
                x = run(module['modules'][i], x)
        case 'SpatialConvolution' | 'SpatialConvolutionMM':
            weight = arrays['weight'].reshape(len(arrays['weight']), -1, module['kH'], module['kW'])
            x = functional.conv2d(x, weight, arrays['bias'], module['dH'], module['padH'])
        case 'Linear':
            x = functional.linear(x, arrays['weight'], arrays['bias'])
        case 'SpatialBatchNormalization' | 'BatchNormalization':
            var = arrays['running_var'] if 'running_var' in arrays else arrays['running_std'] ** -2 - 1e-5
            x = functional.batch_norm(x, arrays['running_mean'], var, arrays['weight'], arrays['bias'], eps=1e-5)
        case 'ReLU':
            x = torch.relu(x)
        case 'Sigmoid':
            x = torch.sigmoid(x)
        case 'View':
            x = x.flatten(1)
        case 'Replicate':
            pass  # by the caller, to the size of the map
        case 'SpatialUpSamplingNearest':
            x = functional.interpolate(x, scale_factor=2, mode='nearest')
        case _:
            raise AssertionError(kind)
    return x


@pytest.mark.parametrize(('fields', 'form'), [({}, {'matrix': True, 'inverse': True}), ({'batch_norm': False}, {})])
@pytest.mark.parametrize('size', [(64, 72), (24, 40)])
def test_the_published_network(tmp_path, fields, form, size):
    write_torch7(graph_of(variables_of(network_of(**fields)), **form), tmp_path / 'colornet.t7')
    root = read_weights(tmp_path / 'colornet.t7').root
    low, mid, features, vector, decoder = (root['model']['modules'][i] for i in range(1, 6))
    rng = np.random.default_rng(0)
    photo, small = (rng.uniform(-0.4, 0.6, (2, *each, 1)).astype(np.float32) for each in (size, (224, 224)))
    with torch.no_grad():
        x, small_x = (tensor(each.transpose(0, 3, 1, 2)) for each in (photo, small))
        of_photo = run(vector, run(features, run(low, small_x)))
        local = run(mid, run(low, x))
        joined = torch.cat([local, of_photo[:, :, None, None].expand(-1, -1, *local.shape[2:])], dim=1)
        expected = run(decoder, joined)
    converted = published.convert(tmp_path / 'colornet.t7')
    network = models.build(converted.model)
    variables = {'params': converted.params, **converted.model_state}
    assert_close(np.asarray(network.apply(variables, photo, small, method='published')), channels_last(expected))
    _, seen = network.apply(
        variables, photo, small, method='published', capture_intermediates=True, mutable=['intermediates']
    )
    inner = {name: layer['__call__'][-1] for name, layer in seen['intermediates'].items() if name[0] != '_'}
    assert_close(np.asarray(inner['mid_1']), channels_last(local))
    assert_close(np.asarray(inner['global_dense_2']), of_photo.numpy())
    assert jax.tree.leaves(variables)
