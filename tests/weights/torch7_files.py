"""Writes files of Torch7, for tests."""

import struct

import numpy as np

from jaxcolor.weights.torch7 import Table

TENSORS = {'float32': 'Float', 'float64': 'Double', 'int64': 'Long', 'uint8': 'Byte'}


class Function:
    """A function of Lua, with what it refers to."""

    def __init__(self, code, upvalues=None, kind=8):
        self.code, self.upvalues, self.kind = code, upvalues, kind


def table(*items, **fields):
    """A table of items at 1, 2, ... and of fields."""
    return module('', *items, **fields)


def module(class_name, *items, **fields):
    made = Table(class_name)
    made.update(dict(enumerate(items, 1)) | fields)
    return made


def write_torch7(content, path, cuda=False, version='V 1'):
    """cuda: float32 arrays are CudaTensor. version: '' writes none, as before there were versions."""
    out, numbers, kept = bytearray(), {}, []

    def put(form, *values):
        out.extend(struct.pack(f'<{form}', *values))

    def string(text):
        put('i', len(text))
        out.extend(text.encode('latin-1'))

    def numbered(kind, value, role=''):
        """Whether the value is new in this role; kept, so that no other gets its id."""
        put('i', kind)
        kept.append(value)
        is_new = (id(value), role) not in numbers
        put('i', numbers.setdefault((id(value), role), len(numbers) + 1))
        return is_new

    def head(class_name):
        if version:
            string(version)
        string(class_name)

    def array(value):
        if not numbered(4, value):
            return
        base = value if value.base is None else value.base
        kind = 'Cuda' if cuda and value.dtype == np.float32 else TENSORS[value.dtype.name]
        head(f'torch.{kind}Tensor')
        put('i', value.ndim)
        put(f'{2 * value.ndim}q', *value.shape, *(step // value.itemsize for step in value.strides))
        offset = value.__array_interface__['data'][0] - base.__array_interface__['data'][0]
        put('q', offset // value.itemsize + 1)
        if not value.size:
            put('i', 0)
        elif numbered(4, base, 'storage'):
            head(f'torch.{kind}Storage')
            put('q', base.size)
            out.extend(base.tobytes())

    def put_object(value):
        if value is None:
            put('i', 0)
        elif isinstance(value, bool):
            put('ii', 5, value)
        elif isinstance(value, (int, float)):
            put('id', 1, value)
        elif isinstance(value, str):
            put('i', 2)
            string(value)
        elif isinstance(value, np.ndarray):
            array(value)
        elif isinstance(value, Function):
            if numbered(value.kind, value):
                put('i', len(value.code))
                out.extend(value.code)
                put_object(value.upvalues)
        elif numbered(4 if value.class_name else 3, value):
            if value.class_name:
                head(value.class_name)
                fields = Table()
                fields.update(value)
                numbered(3, fields)
            put('i', len(value))
            for key, each in value.items():
                put_object(key)
                put_object(each)

    put_object(content)
    with open(path, 'wb') as file:
        file.write(out)
