"""Files as Iizuka et al. published theirs, from variables of jaxcolor's network, for tests."""

import numpy as np
from torch7_files import module, table


def conv(kernel, bias, strides, matrix=False):
    """A module of a kernel (h, w, in, out); `matrix`: as SpatialConvolutionMM, whose weights are a matrix."""
    weight = np.ascontiguousarray(np.asarray(kernel).transpose(3, 2, 0, 1))
    h, w = weight.shape[2:]
    sizes = {'kH': h, 'kW': w, 'dH': strides, 'dW': strides, 'padH': h // 2, 'padW': w // 2}
    weight = weight.reshape(weight.shape[0], -1) if matrix else weight
    kind = 'nn.SpatialConvolutionMM' if matrix else 'cudnn.SpatialConvolution'
    return module(kind, weight=weight, bias=np.asarray(bias), gradWeight=np.zeros_like(weight), **sizes)


def norm(params, stats, kind, inverse=False):
    """inverse: `running_std`, as of 2015, which is 1 / sqrt(var + eps)."""
    var = np.asarray(stats['var'])
    running = {'running_std': (var.astype(np.float64) + 1e-5) ** -0.5} if inverse else {'running_var': var, 'eps': 1e-5}
    arrays = {'weight': np.asarray(params['scale']), 'bias': np.asarray(params['bias'])}
    return module(f'nn.{kind}', running_mean=np.asarray(stats['mean']), **arrays, **running)


def sequential(*modules):
    return module('nn.Sequential', modules=table(*modules))


def node(number, inner=None, **data):
    held = table(**data)
    if inner is not None:
        held['module'] = inner
    made = module('graph.Node', id=number, data=held)
    made['data']['annotations'] = table(node=made)  # a circle, as graphs have them
    return made


def graph_of(variables, *, matrix=False, inverse=False, copied=False, global_first=False, vector_first=False, up=True):
    """The content of a file, of variables of `Iizuka`: a graph of networks.

    copied: the low-level network comes twice. global_first: that branch is computed ahead of the mid-level network.
    vector_first: the global vector's channels are the first of the fusion. up: the output is enlarged.
    """
    params, stats = variables['params'], variables.get('batch_stats', {})

    def with_norm(path, layer, activation, kind='SpatialBatchNormalization'):
        norms = [norm(params[path]['norm'], stats[path]['norm'], kind, inverse)] if path in stats else []
        return [layer, *norms, module(f'nn.{activation}')]

    def convs(part, strides, ups=()):
        layers = []
        for i, stride in enumerate(strides):
            path = f'{part}_{i}'
            layers += [module('nn.SpatialUpSamplingNearest', scale_factor=2)] if i in ups else []
            layer = conv(**params[path]['conv'], strides=stride, matrix=matrix)
            layers += with_norm(path, layer, 'ReLU')
        return layers

    def dense(path, activation='ReLU', flattened=0):
        kernel = np.asarray(params[path]['dense']['kernel'])
        if flattened:  # Torch's view of a map has the channels first
            kernel = kernel.reshape(flattened, flattened, -1, kernel.shape[1]).transpose(2, 0, 1, 3)
            kernel = kernel.reshape(-1, kernel.shape[3])
        layer = module('nn.Linear', weight=np.ascontiguousarray(kernel.T), bias=np.asarray(params[path]['dense']['bias']))
        return with_norm(path, layer, activation, 'BatchNormalization')

    low_modules = convs('low', (2, 1, 2, 1, 2, 1))
    low, again = sequential(*low_modules), sequential(*convs('low', (2, 1, 2, 1, 2, 1))) if copied else None
    mid = sequential(*convs('mid', (1, 1)))
    width = np.asarray(params['low_5']['conv']['kernel']).shape[3]
    side = round((np.asarray(params['global_dense_0']['dense']['kernel']).shape[0] / width) ** 0.5)
    features = sequential(
        *convs('global_conv', (2, 1, 2, 1)),
        module('nn.View', numElements=7),
        *dense('global_dense_0', flattened=side),
        *dense('global_dense_1'),
    )
    repeat = module('nn.Replicate', nfeatures=28)
    vector = sequential(*dense('global_dense_2'), repeat, repeat)
    kernel = np.asarray(params['fusion']['kernel'])
    if vector_first:
        size = np.asarray(params['mid_1']['conv']['kernel']).shape[3]
        kernel = np.concatenate([kernel[:, :, size:], kernel[:, :, :size]], axis=2)
    fusion = with_norm('fusion', conv(kernel, params['fusion']['bias'], 1, matrix), 'ReLU')
    output = with_norm('output', conv(**params['output']['conv'], strides=1, matrix=matrix), 'Sigmoid')
    enlarged = [module('nn.SpatialUpSamplingNearest', scale_factor=2)] if up else []
    decoder = sequential(*fusion, *convs('color', (1, 1, 1, 1), ups=(1, 3)), *output, *enlarged)
    classifier = []
    if 'classifier' in params:
        classifier = [node(12, sequential(*dense('classifier_hidden'), *dense('classifier', 'LogSoftMax')))]
    joined = [table(module=mid), table(module=vector)]
    join = node(10, module('nn.JoinTable', dimension=2), mapindex=table(*(joined[::-1] if vector_first else joined)))
    branches = [node(5, mid), node(8, features)]
    nodes = [node(1), node(2), node(3), node(4, low), *([node(6, again)] if copied else [])]
    nodes += [*(branches[::-1] if global_first else branches), node(9, vector), *classifier, join, node(11, decoder)]
    graph = module('nn.gModule', forwardnodes=table(*nodes), modules=table(low, mid, features, vector, decoder))
    graph['fg'] = table(nodes=table(*nodes), owner=graph)
    return table(model=graph, mean=0.4375)
