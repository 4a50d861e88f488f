"""Reads weights files of Keras (HDF5, zip), PyTorch (pickles), safetensors as arrays by name, and of Torch7 as they are.

The kind of a file is detected from its first bytes, not its name. No code of a file is run: `_Unpickler` reads pickles
without PyTorch and creates nothing but tensors.
"""

import collections
import io
import mmap
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import h5py
import ml_dtypes
import numpy as np
import safetensors

from jaxcolor.errors import UserError, printable
from jaxcolor.weights.torch7 import is_torch7, read_torch7, strided_view

# The beginning of PyTorch's older files: the pickled number 0x1950a86a20f9469cfc6c, under pickle protocol 2.
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
# Limits of what a file may make this program allocate: its size, and how much larger its content may be; weights hardly
# shrink by compression. The largest published file, trained on with its moving average, has 4 GiB.
_MAX_BYTES, _MAX_INFLATION = 8 * 2**30, 20


class WeightFile(NamedTuple):
    """The content of a weights file.

    kind: 'keras_named' (arrays are named 'LAYER/0', 'LAYER/1', ... by the layers' names), 'keras_counted' (by the layers'
        classes and numbers, 'conv2d_12/0'), 'torch' (a state dict), 'safetensors', or 'torch7'.
    arrays: {name: array} in the order of the file; empty for Torch7, whose files have no names.
    metadata: of safetensors, else empty.
    root: of Torch7, what the file holds (`torch7.Table`), else None.
    """

    kind: str
    arrays: dict[str, np.ndarray]
    metadata: dict[str, str]
    root: Any = None


def read_weights(path: str | os.PathLike) -> WeightFile:
    """Reads a weights file.

    Args:
        path: of a Keras `.h5`, `.weights.h5` or `.keras`, a PyTorch `.pth`, `.pt`, `.bin` or `.ckpt` with a state dict,
            a safetensors file, or a Torch7 `.t7`.

    Raises:
        UserError: the file is missing, incomplete, damaged, of another kind, or asks to run code.
    """
    try:
        with open(path, 'rb') as file:
            return _read(path, file)
    except UserError as error:
        raise UserError(f'Weights file {path}: {brief(error)}') from error
    except OSError as error:
        if error.errno is not None:
            raise UserError(f'Weights file {path} cannot be read: {error.strerror}.') from error
        raise UserError(f'Weights file {path} is damaged or cut short ({brief(error, 200)}); fetch it again.') from error
    except Exception as error:  # on damaged files the libraries raise all kinds of errors
        raise UserError(f'Weights file {path} is damaged or cut short ({brief(error, 200)}); fetch it again.') from error


def brief(error: Exception, letters: int = 2000) -> str:
    """An error's sentence in one line of so many letters at most, since it may quote a damaged file."""
    text = printable(str(error))
    return text if len(text) <= letters else f'{text[:letters]}...'


def _read(path: str | os.PathLike, file: IO[bytes]) -> WeightFile:
    head = file.read(16)
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if size > _MAX_BYTES:
        raise UserError(f'it has {size / 2**30:.0f} GiB, and no network known here more than {_MAX_BYTES / 2**30:.0f}.')
    if head.startswith(b'\x89HDF'):
        return _read_hdf5(file, size)
    if head.startswith(b'PK'):
        archive = zipfile.ZipFile(file)
        _check_inflation(sum(member.file_size for member in archive.infolist()), size)
        if 'model.weights.h5' in archive.namelist():
            content = archive.read('model.weights.h5')
            return _read_hdf5(io.BytesIO(content), len(content))
        return WeightFile('torch', _state_dict(_read_torch_zip(archive)), {})
    if head.startswith(b'\x80'):
        return WeightFile('torch', _state_dict(_read_torch_stream(file)), {})
    if is_torch7(head):
        return WeightFile('torch7', {}, {}, read_torch7(path))
    if head[8:9] == b'{':
        with safetensors.safe_open(path, framework='np') as opened:
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return WeightFile('safetensors', arrays, opened.metadata() or {})
    raise UserError(
        'it is none of the kinds that are read: Keras .h5, .weights.h5 and .keras, '
        'PyTorch .pth and .ckpt with a state dict, safetensors, Torch7 .t7.'
    )


def _check_inflation(content, size):
    if content > _MAX_INFLATION * size:
        raise UserError(f'it claims to hold {content / size:.0f} times its size: it is damaged; fetch it again.')


def _check_heaps(data):
    """Raises UserError where libhdf5 might run forever: at free space of 0 bytes in a heap of strings.

    They are collections of objects, of index, references and size in bytes (HDF5 File Format Specification 3.0, III.E). An
    object of index 0 is free space, whose size counts these 16 bytes, too.
    """

    def number(at, length):
        return int.from_bytes(data[at : at + length], 'little')

    for match in re.finditer(rb'GCOL\x01\0\0\0', data):
        at, end = match.start() + 16, min(len(data), match.start() + number(match.end(), 8))
        while at + 16 <= end:
            index, size = number(at, 2), number(at + 8, 8)
            if index == 0 and size < 16:
                raise UserError('it is damaged: a heap of strings has free space of no size; fetch it again.')
            at += 16 + -(-size // 8) * 8 if index else size


def _read_hdf5(file: IO[bytes], size: int) -> WeightFile:
    def values(dataset):
        _check_inflation(dataset.nbytes, size)
        return dataset[()]

    _check_heaps(file.getbuffer() if isinstance(file, io.BytesIO) else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    with h5py.File(file, 'r') as opened:
        # Keras 3: groups by class and number, with numbered variables.
        if 'layers' in opened:
            groups = {name: group['vars'] for name, group in opened['layers'].items() if 'vars' in group}
            arrays = {f'{name}/{i}': values(vars_[i]) for name, vars_ in groups.items() for i in vars_}
            return WeightFile('keras_counted', arrays, {})
        # Keras 1 and 2: groups by layer name, with an attribute that lists the weights; in a whole model under one group.
        groups = opened.get('model_weights', opened)
        arrays = {}
        for layer, group in groups.items():
            for i, name in enumerate(group.attrs.get('weight_names', ())):
                arrays[f'{layer}/{i}'] = values(group[name])
        if not arrays:
            raise UserError('it is an HDF5 file, but not one of Keras.')
        return WeightFile('keras_named', arrays, {})


# Where checkpoints have their state dict: Lightning; BasicSR, averaged parameters first; fastai.
_WRAPPINGS = ('state_dict', 'params_ema', 'params', 'model')


def _state_dict(loaded):
    """The tensors of a state dict; a training checkpoint has it under one of _WRAPPINGS."""
    if isinstance(loaded, dict):
        loaded = next((loaded[name] for name in _WRAPPINGS if isinstance(loaded.get(name), dict)), loaded)
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


# Python 2's and 3's name of what fastai's optimizers hold.
_IGNORED_NAMES = (('__builtin__', 'slice'), ('builtins', 'slice'))


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
            return lambda storage, offset, size, stride, *_: strided_view(storage, offset, size, stride)
        if (module, name) == ('torch._utils', '_rebuild_parameter'):
            return lambda data, *_: data
        if (module, name) == ('torch', 'Size'):
            return lambda size: tuple(size)
        if module.partition('.')[0] in _IGNORED_PACKAGES or (module, name) in _IGNORED_NAMES:
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


def _unpickle(file, load_storage):
    """Loads one pickle, once its opcodes are looked through: `pickle` makes a table as long as the largest number in it."""
    start = file.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name in ('PUT', 'BINPUT', 'LONG_BINPUT') and argument > count:
            raise UserError('it is damaged; fetch it again.')
    file.seek(start)
    return _Unpickler(file, load_storage).load()


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

    return _unpickle(io.BytesIO(archive.read(pickled)), load_storage)


def _read_torch_stream(file):
    """The older format, used for torchvision's VGG16: several pickles, then the storages."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    storages = {}

    def load_storage(dtype, key, count):
        if key not in storages:
            stored = sum(storage.nbytes for storage in storages.values())
            if not 0 <= count * dtype.itemsize <= size - stored:
                raise UserError('it is cut short; fetch it again.')
            storages[key] = np.empty(count, dtype)
        return storages[key]

    def load():
        return _unpickle(file, load_storage)

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
