"""Reads files of Torch7 (`.t7`, Lua): tables, tensors, and objects as tables of their fields. Nothing in them is run.

The format is that of `torch.save` in Lua, binary, as 64-bit little-endian machines write it: an object is its type (int32)
and its content; tables, objects and functions have a number, by which they are named when they come again.
"""

import math
import os
import struct
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from jaxcolor.errors import UserError

_NIL, _NUMBER, _STRING, _TABLE, _OBJECT, _BOOLEAN, *_FUNCTIONS = range(9)
# How deep objects may lie in each other, and how many there may be; a network of a hundred layers has a few thousand.
MAX_DEPTH, MAX_OBJECTS = 20_000, 2_000_000
_MAX_AXES = 32  # NumPy's own limit is twice that
_DTYPES = {
    'Double': np.dtype('<f8'),
    'Float': np.dtype('<f4'),
    'Half': np.dtype('<f2'),
    'Long': np.dtype('<i8'),
    'Int': np.dtype('<i4'),
    'Short': np.dtype('<i2'),
    'Char': np.dtype('i1'),
    'Byte': np.dtype('u1'),
}
# Of CUDA's: without a type in their name, float32.
_DTYPES |= {f'Cuda{name}': dtype for name, dtype in _DTYPES.items()} | {'Cuda': np.dtype('<f4')}
_TENSORS = {f'torch.{name}Tensor' for name in _DTYPES}
_STORAGES = {f'torch.{name}Storage': dtype for name, dtype in _DTYPES.items()}


class Table(dict):
    """A table of Lua, or an object: {key: value} of numbers, strings, booleans, tables, arrays and None.

    Whole numbers are int. As in Lua, tables may hold each other, be keys, and are equal only to themselves.

    Attributes:
        class_name: of an object, as 'nn.Linear'; '' for a plain table.
    """

    __slots__ = ('class_name',)
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__
    __ne__ = object.__ne__

    def __init__(self, class_name: str = '') -> None:
        super().__init__()
        self.class_name = class_name

    def __repr__(self) -> str:
        return f'<{self.class_name or "table"} of {len(self)}>'


def is_torch7(head: bytes) -> bool:
    """Whether a file begins (16 bytes) as Torch7 begins one with a table or an object, the first of its numbers."""
    return head[:8] in (struct.pack('<ii', kind, 1) for kind in (_TABLE, _OBJECT))


def read_torch7(path: str | os.PathLike) -> Any:
    """Reads the object that a file holds.

    Args:
        path: of the file. It is mapped, not read: arrays stay on the disk until they are used.

    Returns:
        A `Table`, an array, a number, a string, a bool, or None; functions are None.

    Raises:
        UserError: the file is damaged, cut short, or no file of Torch7; the sentence does not name it.
        OSError, ValueError: it cannot be mapped.
    """
    return _Reader(np.memmap(path, np.uint8, 'r')).read()


def strided_view(storage: np.ndarray, offset: int, size: Sequence[int], stride: Sequence[int]) -> np.ndarray:
    """A tensor's view of a storage, which is not copied.

    Args:
        storage: (values,).
        offset: of the first value.
        size, stride: of each axis; strides are in values.

    Raises:
        UserError: it lies outside the storage, or has more values, whose copy could take any memory.
    """
    if math.prod(size) == 0 and min(size) == 0:
        return np.zeros(size, storage.dtype)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if min([offset, *size, *stride]) < 0 or last >= storage.size:
        raise UserError('a tensor lies outside the stored values: it is damaged; fetch it again.')
    if math.prod(size) > storage.size:
        raise UserError('a tensor has more values than are stored: it is damaged; fetch it again.')
    return np.lib.stride_tricks.as_strided(storage[offset:], size, [s * storage.itemsize for s in stride])


class _Reader:
    """Reads one object, with all that it holds, from the bytes of a file."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.position = data, 0
        self.known: dict[int, Any] = {}  # by number

    def read(self) -> Any:
        """An object is read by a generator, which yields where it needs an object inside it. So depth costs no recursion."""
        stack, value = [self._object()], None
        while stack:
            try:
                stack[-1].send(value)
                stack.append(self._object())
                value = None
            except StopIteration as end:
                stack.pop()
                value = end.value
            if len(stack) > MAX_DEPTH or len(self.known) > MAX_OBJECTS:
                raise UserError('its objects are too many or lie too deep in each other; it is damaged.')
        return value

    def _object(self) -> Generator[None, Any, Any]:
        kind = self._int()
        if kind == _NIL:
            return None
        if kind == _NUMBER:
            number = struct.unpack('<d', self._take(8))[0]
            return int(number) if number.is_integer() else number
        if kind == _STRING:
            return self._string()
        if kind == _BOOLEAN:
            return self._int() == 1
        if kind not in (_TABLE, _OBJECT, *_FUNCTIONS):
            raise UserError(f'it has an object of type {kind}, which Torch7 does not know: it is damaged; fetch it again.')
        number = self._int()
        if number in self.known:
            return self.known[number]
        self.known[number] = None
        if kind == _TABLE:
            return (yield from self._table(number))
        if kind == _OBJECT:
            return (yield from self._torch_object(number))
        self._take(self._int())  # the function's code
        yield  # what it refers to
        return None

    def _table(self, number):
        table = self.known[number] = Table()
        for _ in range(self._int()):
            key = yield
            value = yield
            if not isinstance(key, np.ndarray):  # Torch compares tensors as keys by their address
                table[key] = value
        return table

    def _torch_object(self, number):
        name = self._string()
        if name.startswith('V '):  # before there were versions, the name came first
            name = self._string()
        if name in _STORAGES:
            self.known[number] = self._storage(_STORAGES[name])
        elif name in _TENSORS:
            self.known[number] = yield from self._tensor()
        else:
            table = self.known[number] = Table(name)
            fields = yield
            if isinstance(fields, Table):
                table.update(fields)
        return self.known[number]

    def _tensor(self):
        axes = self._int()
        if not 0 <= axes <= _MAX_AXES:
            raise UserError(f'a tensor has {axes} axes: it is damaged; fetch it again.')
        size, stride, (offset,) = (self._longs(count) for count in (axes, axes, 1))
        storage = yield
        if storage is None or not axes:
            return np.zeros((0,) * max(axes, 1), np.float32)
        if not isinstance(storage, np.ndarray) or storage.ndim != 1:
            raise UserError('a tensor has no stored values: it is damaged; fetch it again.')
        if math.prod(size) > storage.size:  # repeated by strides of 0, as the outputs that `Replicate` keeps: not needed
            return np.zeros(0, storage.dtype)
        return strided_view(storage, offset - 1, size, stride)

    def _storage(self, dtype):
        (count,) = self._longs(1)
        return self._take(count * dtype.itemsize).view(dtype)

    def _int(self):
        return struct.unpack('<i', self._take(4))[0]

    def _longs(self, count):
        return struct.unpack(f'<{count}q', self._take(8 * count))

    def _string(self):
        return self._take(self._int()).tobytes().decode('latin-1')

    def _take(self, count):
        """The next bytes, not copied."""
        if not 0 <= count <= self.data.size - self.position:
            raise UserError('it is damaged or cut short; fetch it again.')
        self.position += count
        return self.data[self.position - count : self.position]
