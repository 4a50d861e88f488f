"""Writes the files of torch.save without PyTorch, for tests."""

import collections
import contextlib
import io
import pickle
import sys
import types
import zipfile

import numpy as np


@contextlib.contextmanager
def torch_names():
    """Stand-ins for the names of PyTorch that its pickles use, so that a pickle can be written without it."""

    def _rebuild_tensor_v2(*args):
        raise AssertionError('unpickled by its name')

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = 'torch._utils', '_rebuild_tensor_v2'
    torch, utils = types.ModuleType('torch'), types.ModuleType('torch._utils')
    torch.FloatStorage = type('FloatStorage', (), {'__module__': 'torch'})
    utils._rebuild_tensor_v2, torch._utils = _rebuild_tensor_v2, utils
    before = {name: sys.modules.get(name) for name in ('torch', 'torch._utils')}
    sys.modules |= {'torch': torch, 'torch._utils': utils}
    try:
        yield torch
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


class Storage:
    """Values of a tensor, which go beside the pickle."""

    def __init__(self, values):
        self.values = values.ravel(order='K')


def torch_pickle(content, view=None):
    """A pickle as torch.save makes it, and its storages by key.

    view: (offset, size, stride) of every tensor, instead of its own.
    """
    storages, buffer = {}, io.BytesIO()
    with torch_names() as torch:

        class Pickler(pickle.Pickler):
            def persistent_id(self, value):
                if not isinstance(value, Storage):
                    return None
                key = str(len(storages))
                storages[key] = value.values
                return ('storage', torch.FloatStorage, key, 'cpu', value.values.size)

            def reducer_override(self, value):
                if not isinstance(value, np.ndarray):
                    return NotImplemented
                place = view or (0, value.shape, tuple(s // value.itemsize for s in value.strides))
                rebuild = torch._utils._rebuild_tensor_v2
                return rebuild, (Storage(value), *place, False, collections.OrderedDict())

        Pickler(buffer, protocol=2).dump(content)
    return buffer.getvalue(), storages


def write_torch_zip(content, path, view=None):
    pickled, storages = torch_pickle(content, view)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', pickled)
        archive.writestr('archive/byteorder', 'little')
        for key, values in storages.items():
            archive.writestr(f'archive/data/{key}', values.tobytes())


def write_torch_stream(content, path, magic=0x1950A86A20F9469CFC6C):
    pickled, storages = torch_pickle(content)
    with open(path, 'wb') as file:
        for head in (magic, 1001, {'protocol_version': 1001, 'little_endian': True}):
            pickle.dump(head, file, protocol=2)
        file.write(pickled)
        pickle.dump(list(storages), file, protocol=2)
        for values in storages.values():
            file.write(values.size.to_bytes(8, 'little') + values.tobytes())
