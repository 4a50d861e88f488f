"""The shard set: a folder of ArrayRecord files and the `dataset.json` that describes them.

A record is a header and the photo: 4 bytes with the header's length (little-endian), the header as a msgpack map of
`name` (str), `label` (int, -1 for none), `height`, `width`, `encoding` (a key of ENCODINGS) and, where something was
computed ahead of training, `features` (name -> {dtype, shape, bytes}); then, up to the end, the uint8 Lab photo of
`color.encode_lab` in that encoding.
"""

import bisect
import contextlib
import dataclasses
import io
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import msgpack
import numpy as np
from PIL import Image

from jaxcolor.errors import UserError

VERSION = 1
SIDECAR = 'dataset.json'
_RANDOM_ACCESS = {'options': 'readahead_buffer_size:0,max_parallelism:0', 'file_reader_buffer_size': 32768}


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How a record's bytes hold the photo, and how ArrayRecord packs records in turn."""

    encode: Callable[[np.ndarray], bytes]  # of uint8 (H, W, 3)
    decode: Callable[[bytes, int, int], np.ndarray]  # of bytes, height, width
    packing: str = 'uncompressed'


def _from_raw(data, height, width):
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def _to_jpeg(lab):
    """L* goes where JPEG keeps Y, a* and b* where it keeps Cb and Cr, all at full resolution and as they are."""
    file = io.BytesIO()
    Image.frombytes('YCbCr', lab.shape[1::-1], lab.tobytes()).save(file, 'JPEG', quality=90, subsampling=0)
    return file.getvalue()


def _from_jpeg(data, height, width):
    image = Image.open(io.BytesIO(data), formats=['JPEG'])
    image.draft('YCbCr', None)  # the planes as they are stored
    return np.asarray(image)


ENCODINGS = {
    'raw': Encoding(np.ndarray.tobytes, _from_raw),
    'zstd': Encoding(np.ndarray.tobytes, _from_raw, packing='zstd:3'),
    'jpeg': Encoding(_to_jpeg, _from_jpeg),
}


def encode_record(name, label, lab, encoding='raw', features=None):
    """uint8 Lab (H, W, 3) and what is known of it -> the bytes of one record."""
    header = {'name': name, 'label': label, 'height': lab.shape[0], 'width': lab.shape[1], 'encoding': encoding}
    if features:
        header['features'] = _pack_arrays(features)
    return _join(header, ENCODINGS[encoding].encode(lab))


def add_to_record(data, features):
    """The bytes of one record and {name: array} -> the bytes of that record with those features, the photo untouched."""
    end = 4 + int.from_bytes(data[:4], 'little')
    header = msgpack.unpackb(data[4:end])
    header['features'] = {**header.get('features', {}), **_pack_arrays(features)}
    return _join(header, data[end:])


def _join(header, photo):
    header = msgpack.packb(header)
    return b''.join([len(header).to_bytes(4, 'little'), header, photo])


def _pack_arrays(arrays):
    return {
        key: {'dtype': value.dtype.name, 'shape': value.shape, 'bytes': value.tobytes()} for key, value in arrays.items()
    }


def decode_record(data):
    """The bytes of one record -> {lab: uint8 (H, W, 3), label: int32, name: str[, features: {name: array}]}."""
    end = 4 + int.from_bytes(data[:4], 'little')
    header = msgpack.unpackb(data[4:end])
    lab = ENCODINGS[header['encoding']].decode(memoryview(data)[end:], header['height'], header['width'])
    photo = {'lab': lab, 'label': np.int32(header['label']), 'name': header['name']}
    if 'features' in header:
        photo['features'] = {
            key: np.frombuffer(value['bytes'], value['dtype']).reshape(value['shape'])
            for key, value in header['features'].items()
        }
    return photo


def _array_record():
    """The module of ArrayRecord. It is imported late, since Windows has none and colorizes all the same."""
    try:
        from array_record.python import array_record_module
    except ImportError:
        raise UserError(
            'shard sets need the package array_record, which is not installed; on Windows there is none: use WSL'
        ) from None
    return array_record_module


def write_shard(path: str | os.PathLike, records: Iterable[bytes], encoding: str) -> None:
    """Writes one ArrayRecord file; the caller names it and moves it in place.

    Args:
        path: of the file.
        records: what `encode_record` made.
        encoding: a key of ENCODINGS; it says how the file is packed.

    Raises:
        UserError: this system has no array_record.
    """
    writer = _array_record().ArrayRecordWriter(os.fspath(path), f'group_size:1,{ENCODINGS[encoding].packing}')
    try:
        for record in records:
            writer.write(record)
    finally:
        writer.close()


class Records:
    """Random access to the photos of one split: `len(records)`, `records[i]` as `decode_record` gives them."""

    def __init__(self, paths, counts):
        self._paths = [os.fspath(path) for path in paths]
        self._ends = list(itertools.accumulate(counts))
        self.__setstate__({})

    def __getstate__(self):
        return {'_paths': self._paths, '_ends': self._ends}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._readers, self._lock = {}, threading.Lock()  # opened when they are needed, in each process

    def __len__(self):
        return self._ends[-1]

    def __getitem__(self, index):
        with self._naming_damage(index):
            return decode_record(self._read(index))

    def raw(self, index):
        """The bytes of one record, as `encode_record` made them."""
        with self._naming_damage(index):
            return self._read(index)

    def _read(self, index):
        shard, place = self._locate(index)
        return self._reader(shard).read([place])[0]

    def _locate(self, index):
        """The place of a photo: which shard, and which record in it."""
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    @contextlib.contextmanager
    def _naming_damage(self, index):
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            yield
        except (RuntimeError, IndexError, KeyError, TypeError, ValueError, OSError, msgpack.UnpackException) as error:
            shard, place = self._locate(index)
            raise UserError(
                f'record {place} in {self._paths[shard]} cannot be read ({type(error).__name__}: {str(error)[:120]}): '
                f'the shard is damaged; prepare the set again'
            ) from error

    def _reader(self, shard):
        """Readers serve several threads at once."""
        reader = self._readers.get(shard)
        if reader is None:
            with self._lock:
                reader = self._readers.get(shard)
                if reader is None:
                    reader = _array_record().ArrayRecordReader(self._paths[shard], **_RANDOM_ACCESS)
                    self._readers[shard] = reader
        return reader


@dataclasses.dataclass(frozen=True)
class ShardSet:
    """An opened shard set. `meta` is its `dataset.json`; the shards are read when records are asked for."""

    path: Path
    meta: dict

    @property
    def classes(self):
        """The names that labels index; empty where photos have no label."""
        return self.meta['classes']

    @property
    def counts(self):
        """Photos by split."""
        return self.meta['counts']

    def records(self, split):
        """The photos of one split as a random-access source, picklable, safe to read from several threads."""
        shards = [shard for shard in self.meta['shards'] if shard['split'] == split and shard['photos']]
        if not shards:
            held = ', '.join(f'{name} ({count})' for name, count in self.counts.items()) or 'nothing'
            raise UserError(f'{self.path} holds no photos in the split {split!r}; it holds {held}')
        return Records([self.path / shard['file'] for shard in shards], [shard['photos'] for shard in shards])


def open_shards(path):
    """Opens the shard set in the folder `path`, checking that it is whole by the sizes of its files.

    Raises:
        UserError: no such folder, no or unreadable `dataset.json`, unknown version, a shard missing or cut short.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f'the shard set {path} does not exist; make it with `jaxcolor prepare`')
    try:
        meta = json.loads((path / SIDECAR).read_text(encoding='utf-8'))
        version = meta['version']
    except FileNotFoundError:
        raise UserError(f'{path} is no finished shard set (no {SIDECAR}); run its prepare command again') from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path / SIDECAR} cannot be read ({error}); prepare the set again') from None
    if version != VERSION:
        raise UserError(f'{path} is a shard set of version {version}; this program reads {VERSION}; prepare it again')
    if missing := {'counts', 'classes', 'shards'} - meta.keys():
        raise UserError(f'{path / SIDECAR} lacks {", ".join(sorted(missing))}; prepare the set again')
    for shard in meta['shards']:
        file = path / shard['file']
        size = file.stat().st_size if file.exists() else None
        if size != shard['bytes']:
            found = 'is missing' if size is None else f'has {size} bytes instead of {shard["bytes"]}'
            raise UserError(f'the shard {file} {found}; copy it again or prepare the set again')
    return ShardSet(path, meta)
