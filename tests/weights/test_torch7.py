"""Files of Torch7: what is read of them, what is refused, and that damage always ends in one sentence."""

import struct

import numpy as np
import pytest
from torch7_files import Function, module, table, write_torch7

from jaxcolor.errors import UserError
from jaxcolor.weights import torch7
from jaxcolor.weights.weight_files import read_weights


def read_back(content, path, **options):
    write_torch7(content, path, **options)
    file = read_weights(path)
    assert (file.kind, file.arrays) == ('torch7', {})
    return file.root


def test_values_of_every_kind(tmp_path):
    values = {'a': 1, 'b': 0.5, 'c': 'Grün', 'd': True, 'e': False, 'f': None, 'g': float('inf')}
    read = read_back(table(3, **values), tmp_path / 'values.t7')
    assert dict(read) == {1: 3} | values
    assert isinstance(read[1], int) and isinstance(read['b'], float) and read.class_name == ''


@pytest.mark.parametrize('cuda', [False, True])
def test_tensors_are_views_of_their_storages(tmp_path, cuda):
    storage = np.arange(24, dtype=np.float32)
    part, turned = storage[4:16].reshape(3, 4), storage[:6].reshape(2, 3).T
    content = table(part, turned, np.arange(3), np.arange(4.0), np.zeros(0, np.float32), np.arange(5, dtype=np.uint8))
    read = read_back(content, tmp_path / 'tensors.t7', cuda=cuda)
    for i, array in content.items():
        np.testing.assert_array_equal(read[i], array)
        assert read[i].dtype == array.dtype
    assert np.shares_memory(read[1], read[2])


def test_objects_refer_to_each_other(tmp_path):
    """A graph: its nodes hold each other, and are keys, as nngraph has them."""
    layer = module('nn.Linear', weight=np.ones((2, 3), np.float32))
    first, second = module('graph.Node', id=1), module('graph.Node', id=2, module=layer)
    first['children'], second['parents'] = table(second), table(first)
    first['children'][second] = 1
    graph = module('nn.gModule', forwardnodes=table(first, second), modules=table(layer))
    graph['self'] = graph
    read = read_back(table(model=graph, mean=0.5), tmp_path / 'graph.t7')['model']
    assert read.class_name == 'nn.gModule' and read['self'] is read
    one, two = read['forwardnodes'][1], read['forwardnodes'][2]
    assert one['children'][1] is two and two['parents'][1] is one and one['children'][two] == 1
    assert two['module'] is read['modules'][1] and two['module'].class_name == 'nn.Linear'
    assert one != two and len({one, two}) == 2


def test_functions_and_unknown_classes_are_passed_over(tmp_path):
    shared = table(5)
    fields = {kind: Function(b'\x1bLua os.execute', shared, kind) for kind in (6, 7, 8)}
    content = table(*fields.values(), module('my.Thing', x=1, upvalue=shared), fields[6])
    read = read_back(content, tmp_path / 'functions.t7')
    assert [read[i] for i in (1, 2, 3, 5)] == [None] * 4
    assert (read[4].class_name, read[4]['x'], read[4]['upvalue'][1]) == ('my.Thing', 1, 5)


def test_files_without_versions(tmp_path):
    read = read_back(module('nn.Linear', weight=np.ones(3)), tmp_path / 'old.t7', version='')
    assert read.class_name == 'nn.Linear' and read['weight'].sum() == 3


def test_depth_costs_no_recursion_and_has_a_limit(tmp_path, monkeypatch):
    def nested(depth):
        """A table that holds a table at 1, and so on."""
        links = b''.join(struct.pack('<iidii', 1, 1, 1.0, 3, i + 2) for i in range(depth))
        return struct.pack('<ii', 3, 1) + links + struct.pack('<i', 0)

    (tmp_path / 'deep.t7').write_bytes(nested(5_000))
    inner, depth = read_weights(tmp_path / 'deep.t7').root, 0
    while inner:
        inner, depth = inner[1], depth + 1
    assert depth == 5_000
    (tmp_path / 'deeper.t7').write_bytes(nested(torch7.MAX_DEPTH + 1))
    with pytest.raises(UserError, match=r'deeper.t7: its objects are too many or lie too deep'):
        read_weights(tmp_path / 'deeper.t7')
    monkeypatch.setattr(torch7, 'MAX_OBJECTS', 100)
    with pytest.raises(UserError, match=r'deep.t7: its objects are too many'):
        read_weights(tmp_path / 'deep.t7')


START = struct.pack('<iii', 3, 1, 1) + struct.pack('<id', 1, 1.0)  # a table of one entry, at 1


def tensor(size, stride, offset, storage=b''):
    head = struct.pack('<iii3si', 4, 2, 3, b'V 1', 17) + b'torch.FloatTensor'
    return START + head + struct.pack(f'<i{2 * len(size) + 1}q', len(size), *size, *stride, offset) + storage


STORAGE = struct.pack('<iii3si', 4, 3, 3, b'V 1', 18) + b'torch.FloatStorage' + struct.pack('<q6f', 6, *range(6))


def test_a_tensor_written_by_hand(tmp_path):
    (tmp_path / 'hand.t7').write_bytes(tensor((2, 2), (3, 1), 2, STORAGE))
    np.testing.assert_array_equal(read_weights(tmp_path / 'hand.t7').root[1], [[1, 2], [4, 5]])


def test_values_that_are_repeated_by_strides_of_zero_are_left_out(tmp_path):
    """`Replicate` keeps such outputs; a small file could have one of any size."""
    (tmp_path / 'hand.t7').write_bytes(tensor((2**30, 2**30), (0, 0), 1, STORAGE))
    assert read_weights(tmp_path / 'hand.t7').root[1].shape == (0,)


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (START + struct.pack('<i', 9), 'an object of type 9, which Torch7 does not know'),
        (START + struct.pack('<ii', 2, 10**9), 'damaged or cut short'),
        (START + struct.pack('<ii', 2, -1), 'damaged or cut short'),
        (START, 'damaged or cut short'),
        (START + struct.pack('<iii', 3, 2, 2**31 - 1), 'damaged or cut short'),
        (tensor((2, 2), (3, 1), 3, STORAGE), 'a tensor lies outside the stored values'),
        (tensor((2, 2), (3, 1), 0, STORAGE), 'a tensor lies outside the stored values'),
        (tensor((2, 2), (-3, 1), 4, STORAGE), 'a tensor lies outside the stored values'),
        (tensor((2, 2), (3, 1), 1, struct.pack('<ii', 3, 1)), 'a tensor has no stored values'),
        (tensor((2,) * 33, (1,) * 33, 1, STORAGE), 'a tensor has 33 axes'),
        (tensor((2, 2), (3, 1), 1, STORAGE[:-32] + struct.pack('<q', 2**60)), 'damaged or cut short'),
        (tensor((2, 2), (3, 1), 1, STORAGE[:-32] + struct.pack('<q', -6)), 'damaged or cut short'),
    ],
)
def test_damage_is_named(tmp_path, content, words):
    (tmp_path / 'damaged.t7').write_bytes(content)
    with pytest.raises(UserError, match=rf'damaged.t7: .*{words}'):
        read_weights(tmp_path / 'damaged.t7')


def test_against_torchfile(tmp_path):
    torchfile = pytest.importorskip('torchfile')
    storage = np.arange(12, dtype=np.float32)
    layer = module('nn.Linear', weight=storage[2:8].reshape(2, 3), bias=storage[:2], train=True, name='dense')
    content = table(model=module('nn.Sequential', modules=table(layer, layer)), mean=0.25, code=Function(b'\x1bLua'))
    read = read_back(content, tmp_path / 'other.t7')
    other = torchfile.load(str(tmp_path / 'other.t7'))
    assert other[b'mean'] == read['mean']
    theirs, ours = other[b'model']._obj[b'modules'][0]._obj, read['model']['modules'][1]
    for name in ('weight', 'bias'):
        np.testing.assert_array_equal(theirs[name.encode()], ours[name])
