"""Reads weights files of Keras (HDF5, zip), PyTorch (pickles) and safetensors as arrays by name.

The kind of a file is detected from its first bytes, not its name. No code of a file is run: `_Unpickler` reads pickles
without PyTorch and creates nothing but tensors.
"""

import collections
import io
import math
import os
import pickle
import zipfile
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import h5py
import ml_dtypes
import numpy as np
import safetensors

from jaxcolor.errors import UserError

# The beginning of PyTorch's older files: the pickled number 0x1950a86a20f9469cfc6c, under pickle protocol 2.
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C


class WeightFile(NamedTuple):
    """The content of a weights file.

    kind: 'keras_named' (arrays are named 'LAYER/0', 'LAYER/1', ... by the layers' names), 'keras_counted' (by the layers'
        classes and numbers, 'conv2d_12/0'), 'torch' (a state dict), or 'safetensors'.
    arrays: {name: array} in the order of the file.
    metadata: of safetensors, else empty.
    """

    kind: str
    arrays: dict[str, np.ndarray]
    metadata: dict[str, str]


def read_weights(path: str | os.PathLike) -> WeightFile:
    """Reads a weights file.

    Args:
        path: of a Keras `.h5`, `.weights.h5` or `.keras`, a PyTorch `.pth`, `.pt`, `.bin` or `.ckpt` with a state dict,
            or a safetensors file.

    Raises:
        UserError: the file is missing, incomplete, damaged, of another kind, or asks to run code.
    """
    try:
        with open(path, 'rb') as file:
            return _read(path, file)
    except UserError as error:
        raise UserError(f'Weights file {path}: {error}') from error
    except OSError as error:
        if error.errno is not None:
            raise UserError(f'Weights file {path} cannot be read: {error.strerror}.') from error
        raise UserError(f'Weights file {path} is damaged or cut short ({error}); fetch it again.') from error
    except Exception as error:  # on damaged files the libraries raise all kinds of errors
        raise UserError(f'Weights file {path} is damaged or cut short ({error}); fetch it again.') from error


def _read(path: str | os.PathLike, file: IO[bytes]) -> WeightFile:
    head = file.read(16)
    file.seek(0)
    if head.startswith(b'\x89HDF'):
        return _read_hdf5(file)
    if head.startswith(b'PK'):
        archive = zipfile.ZipFile(file)
        if 'model.weights.h5' in archive.namelist():
            return _read_hdf5(io.BytesIO(archive.read('model.weights.h5')))
        return WeightFile('torch', _state_dict(_read_torch_zip(archive)), {})
    if head.startswith(b'\x80'):
        return WeightFile('torch', _state_dict(_read_torch_stream(file)), {})
    if head[8:9] == b'{':
        with safetensors.safe_open(path, framework='np') as opened:
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return WeightFile('safetensors', arrays, opened.metadata() or {})
    raise UserError(
        'it is none of the kinds that are read: Keras .h5, .weights.h5 and .keras, '
        'PyTorch .pth and .ckpt with a state dict, safetensors.'
    )


def _read_hdf5(file: IO[bytes]) -> WeightFile:
    with h5py.File(file, 'r') as opened:
        # Keras 3: groups by class and number, with numbered variables.
        if 'layers' in opened:
            groups = {name: group['vars'] for name, group in opened['layers'].items() if 'vars' in group}
            arrays = {f'{name}/{i}': vars_[i][()] for name, vars_ in groups.items() for i in vars_}
            return WeightFile('keras_counted', arrays, {})
        # Keras 1 and 2: groups by layer name, with an attribute that lists the weights; in a whole model under one group.
        groups = opened.get('model_weights', opened)
        arrays = {}
        for layer, group in groups.items():
            for i, name in enumerate(group.attrs.get('weight_names', ())):
                arrays[f'{layer}/{i}'] = group[name][()]
        if not arrays:
            raise UserError('it is an HDF5 file, but not one of Keras.')
        return WeightFile('keras_named', arrays, {})


def _state_dict(loaded):
    """The tensors of a state dict; a training checkpoint has it under 'state_dict'."""
    if isinstance(loaded, dict):
        loaded = loaded.get('state_dict', loaded)
    arrays = {k: v for k, v in loaded.items() if isinstance(v, np.ndarray)} if isinstance(loaded, dict) else {}
    if not arrays:
        raise UserError('it holds no state dict of PyTorch; save one with torch.save(model.state_dict(), PATH).')
    return arrays


# -- PyTorch's pickles ------------------------------------------------------------------------------------------------

_STORAGES = {
    'DoubleStorage': np.dtype('<f8'),
    'FloatStorage': np.dtype('<f4'),
    'HalfStorage': np.dtype('<f2'),
    'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
    'LongStorage': np.dtype('<i8'),
    'IntStorage': np.dtype('<i4'),
    'ShortStorage': np.dtype('<i2'),
    'CharStorage': np.dtype('i1'),
    'ByteStorage': np.dtype('u1'),
    'BoolStorage': np.dtype('?'),
}
# Packages of objects that training checkpoints hold besides the state dict: hyperparameters, callbacks, paths. They are
# not imported; their objects become `_Ignored`.
_IGNORED_PACKAGES = (
    '_codecs',
    'argparse',
    'lightning',
    'lightning_fabric',
    'lightning_utilities',
    'numpy',
    'omegaconf',
    'pathlib',
    'pytorch_lightning',
)


class _Ignored:
    """Replaces an object that is not needed, and ignores whatever the pickle does with it."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        pass


class _Unpickler(pickle.Unpickler):
    """Creates tensors (as NumPy arrays) and their containers, nothing else.

    A pickle names functions and classes to call: `find_class` returns those below and refuses all others.

    Args:
        file: to read.
        load_storage: (dtype, key, count) -> the values of a storage.
    """

    def __init__(self, file: IO[bytes], load_storage: Callable[[np.dtype, str, int], np.ndarray]) -> None:
        super().__init__(file, encoding='latin-1')
        self.load_storage = load_storage

    def find_class(self, module: str, name: str) -> Any:
        """The replacement of a name in the pickle. Raises UserError if there is none."""
        if (module, name) == ('collections', 'OrderedDict'):
            return collections.OrderedDict
        if module in ('torch', 'torch.cuda') and name in _STORAGES:
            return name
        # New functions for each pickle, which could set attributes of what it gets.
        if (module, name) in (('torch._utils', '_rebuild_tensor'), ('torch._utils', '_rebuild_tensor_v2')):
            return lambda storage, offset, size, stride, *_: _tensor(storage, offset, size, stride)
        if (module, name) == ('torch._utils', '_rebuild_parameter'):
            return lambda data, *_: data
        if (module, name) == ('torch', 'Size'):
            return lambda size: tuple(size)
        if module.partition('.')[0] in _IGNORED_PACKAGES:
            return type('Ignored', (_Ignored,), {})
        raise UserError(
            f'it asks for {module}.{name}, and nothing but tensors is taken from a weights file; '
            'save the network with torch.save(model.state_dict(), PATH).'
        )

    def persistent_load(self, pid: Any) -> np.ndarray:
        """The values of a storage."""
        kind, storage, key, _, count, *view = pid
        if kind != 'storage' or view not in ([], [None]) or storage not in _STORAGES:
            raise UserError('it holds something other than tensors; save it anew with torch.save(state_dict, PATH).')
        return self.load_storage(_STORAGES[storage], key, count)


def _tensor(storage, offset, size, stride):
    """A view of a storage. Checks its bounds, which come from the pickle."""
    if math.prod(size) == 0:
        return np.zeros(size, storage.dtype)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if min([offset, *size, *stride]) < 0 or last >= storage.size:
        raise UserError('a tensor lies outside the stored values: it is damaged; fetch it again.')
    return np.lib.stride_tricks.as_strided(storage[offset:], size, [s * storage.itemsize for s in stride])


def _read_torch_zip(archive):
    """The format of torch.save since PyTorch 1.6: a zip archive of a pickle and a file for each storage."""
    pickled = next((name for name in archive.namelist() if name.endswith('data.pkl')), None)
    if pickled is None:
        raise UserError('it is a zip archive, but neither of Keras nor of PyTorch.')
    folder = pickled.removesuffix('data.pkl')
    if f'{folder}byteorder' in archive.namelist() and archive.read(f'{folder}byteorder') != b'little':
        raise UserError('it was written on a big-endian machine; save it anew on another.')
    storages = {}

    def load_storage(dtype, key, count):
        if key not in storages:
            storages[key] = np.frombuffer(archive.read(f'{folder}data/{key}'), dtype, count)
        return storages[key]

    return _Unpickler(io.BytesIO(archive.read(pickled)), load_storage).load()


def _read_torch_stream(file):
    """The older format, used for torchvision's VGG16: several pickles, then the storages."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    storages = {}

    def load_storage(dtype, key, count):
        if key not in storages:
            if not 0 <= count * dtype.itemsize <= size:
                raise UserError('it is cut short; fetch it again.')
            storages[key] = np.empty(count, dtype)
        return storages[key]

    def load():
        return _Unpickler(file, load_storage).load()

    if load() != _TORCH_MAGIC:
        raise UserError('it is a pickle, but not one of PyTorch.')
    _version, system = load(), load()
    if not system['little_endian']:
        raise UserError('it was written on a big-endian machine; save it anew on another.')
    loaded = load()
    for key in load():
        storage = storages[key]
        # The number of values precedes each storage.
        if int.from_bytes(file.read(8), 'little') != storage.size:
            raise UserError('it is damaged or cut short; fetch it again.')
        if file.readinto(storage.view('u1')) != storage.nbytes:
            raise UserError('it is cut short; fetch it again.')
    return loaded
