"""Weights files with changed bytes: each is read, or refused in one sentence; nothing else comes of it."""

import resource

import numpy as np
import pytest
import safetensors.numpy
from torch7_files import Function, module, table, write_torch7
from torch_files import write_torch_stream, write_torch_zip

from jaxcolor.errors import UserError
from jaxcolor.weights.weight_files import read_weights

ARRAYS = {
    'model1.0.weight': np.arange(36, dtype=np.float32).reshape(4, 1, 3, 3),
    'model1.0.bias': np.zeros(4, np.float32),
    'model1.2.weight': np.ones((4, 4, 1, 1), np.float32),
}


def graph():
    layers = [module('nn.Linear', weight=np.ones((2, 3), np.float32), bias=np.zeros(2)) for _ in range(2)]
    nodes = [module('graph.Node', id=i, module=layer) for i, layer in enumerate(layers)]
    nodes[0]['children'] = table(nodes[1])
    nodes[0]['children'][nodes[1]] = 1
    return table(model=module('nn.gModule', forwardnodes=table(*nodes)), mean=0.5, f=Function(b'\x1bLua', table(1)))


WRITERS = {
    'torch7': lambda path: write_torch7(graph(), path),
    'torch_zip': lambda path: write_torch_zip({'params': ARRAYS}, path),
    'torch_stream': lambda path: write_torch_stream({'model': ARRAYS, 'opt': {}}, path),
    'safetensors': lambda path: safetensors.numpy.save_file(ARRAYS, path),
}


def mutated(content, rng):
    """Some bytes changed, a part lost, doubled, or the end cut off."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(len(content))) if content else 0
        match rng.integers(6):
            case 0:
                content[place : place + 1] = bytes([rng.integers(256)])
            case 1:
                content[place : place + 4] = rng.choice([-1, 0, 1, 2**31 - 1, -(2**31), 4, 8]).astype('<i4').tobytes()
            case 2:
                content[place : place + 8] = rng.choice([-1, 2**40, 2**62, -(2**63), 0]).astype('<i8').tobytes()
            case 3:
                del content[place:]
            case 4:
                del content[place : place + int(rng.integers(1, 20))]
            case 5:
                content[place:place] = content[place : place + int(rng.integers(1, 60))]
    return bytes(content)


@pytest.mark.parametrize('kind', WRITERS)
def test_every_damaged_file_ends_in_one_sentence(kind, tmp_path):
    """fuzz/test_mutated.py has many more."""
    count = 100
    path = tmp_path / 'weights.bin'
    WRITERS[kind](path)
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        path.write_bytes(mutated(whole, rng))
        try:
            read_weights(path)
        except UserError as error:
            refused += 1
            assert str(path) in str(error) and '\n' not in str(error)
    assert refused > count / 4
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert grown < 200_000
