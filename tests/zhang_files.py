"""State dicts as Zhang et al. published theirs, without PyTorch, for tests."""

import itertools

import numpy as np

from jaxcolor import color


def state_dict(name, width=1 / 16, grid=True, seed=0):
    """{key: array} of 'eccv16' or 'siggraph17'. grid: the classes' colors are the paper's, in another order."""
    rng = np.random.default_rng(seed)
    a, b, c, d = (max(1, round(width * features)) for features in (64, 128, 256, 512))
    arrays = {}

    def layer(key, inputs, outputs, kernel=3, transposed=False, bias=True):
        shape = (inputs, outputs) if transposed else (outputs, inputs)
        draw = rng.standard_normal((*shape, kernel, kernel), np.float32)
        arrays[f'{key}.weight'] = draw * np.float32((2 / (inputs * kernel**2)) ** 0.5)
        if bias:
            arrays[f'{key}.bias'] = rng.uniform(-0.2, 0.2, outputs).astype(np.float32)

    def norm(key, features):
        for part in ('weight', 'bias', 'running_mean', 'running_var'):
            low, high = (0.5, 1.5) if part in ('weight', 'running_var') else (-0.2, 0.2)
            arrays[f'{key}.{part}'] = rng.uniform(low, high, features).astype(np.float32)
        arrays[f'{key}.num_batches_tracked'] = np.array(7)

    sizes = ((1 if name == 'eccv16' else 4, a, a), (a, b, b), (b, c, c, c), (c, d, d, d), *((d,) * 4 for _ in range(3)))
    for block, channels in enumerate(sizes, 1):
        for i, (inputs, outputs) in enumerate(itertools.pairwise(channels)):
            layer(f'model{block}.{2 * i}', inputs, outputs)
        norm(f'model{block}.{2 * len(channels) - 2}', channels[-1])
    if name == 'eccv16':
        layer('model8.0', d, c, 4, transposed=True)
        layer('model8.2', c, c)
        layer('model8.4', c, c)
        layer('model8.6', c, 313, 1)
        layer('model_out', 313, 2, 1, bias=False)
        if grid:
            arrays['model_out.weight'] = rng.permutation(color.zhang_class_centers()).T[..., None, None] / np.float32(110)
        return arrays
    for i, (wide, narrow, skip) in ((8, (d, c, c)), (9, (c, b, b)), (10, (b, b, a))):
        layer(f'model{i}up.0', wide, narrow, 4, transposed=True)
        layer(f'model{11 - i}short{i}.0', skip, narrow)
        layer(f'model{i}.1', narrow, narrow)
        if i == 8:
            layer('model8.3', c, c)
        if i < 10:
            norm(f'model{i}.{5 if i == 8 else 3}', narrow)
    layer('model_class.0', c, 529, 1)
    layer('model_out.0', b, 2, 1)
    return arrays
