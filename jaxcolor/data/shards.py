"""The shard set: a folder of ArrayRecord files and the `dataset.json` that describes them.

A record is 4 bytes with the length of the header (little-endian), the header, and the photo. The header is a msgpack map of
`name` (str), `label` (int, -1 for none), `height`, `width`, `encoding` (a key of ENCODINGS) and, for cached features,
`features` (name -> {dtype, shape, bytes}). The photo is the uint8 Lab array of `color.encode_lab` in that encoding.
"""

import bisect
import contextlib
import dataclasses
import io
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from PIL import Image

from jaxcolor.data.plain_records import NotPlainError, PlainRecords
from jaxcolor.errors import UserError

VERSION = 1
SIDECAR = 'dataset.json'
# What reading damaged records raises.
_UNREADABLE = (RuntimeError, IndexError, KeyError, TypeError, ValueError, OSError, msgpack.UnpackException)
_RANDOM_ACCESS = {'options': 'readahead_buffer_size:0,max_parallelism:0', 'file_reader_buffer_size': 32768}


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How a photo is stored in a record, and how ArrayRecord compresses the record."""

    encode: Callable[[np.ndarray], bytes]  # uint8 (H, W, 3) -> bytes
    decode: Callable[[Any, int, int], np.ndarray]  # buffer, H, W -> uint8 (H, W, 3)
    compression: str = 'uncompressed'


def _from_raw(data, height, width):
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def _to_jpeg(lab):
    """Stores L*, a*, b* as JPEG's Y, Cb, Cr, unconverted and at full resolution."""
    file = io.BytesIO()
    Image.frombytes('YCbCr', lab.shape[1::-1], lab.tobytes()).save(file, 'JPEG', quality=90, subsampling=0)
    return file.getvalue()


def _from_jpeg(data, height, width):
    image = Image.open(io.BytesIO(data), formats=['JPEG'])
    image.draft('YCbCr', None)  # without a conversion to RGB
    return np.asarray(image)


ENCODINGS = {
    'raw': Encoding(np.ndarray.tobytes, _from_raw),
    'zstd': Encoding(np.ndarray.tobytes, _from_raw, compression='zstd:3'),
    'jpeg': Encoding(_to_jpeg, _from_jpeg),
}


def encode_record(
    name: str,
    label: int,
    lab: np.ndarray,
    encoding: str = 'raw',
    features: Mapping[str, np.ndarray] | None = None,
) -> bytes:
    """Encodes a record.

    Args:
        name: of the photo.
        label: of its class, -1 for none.
        lab: uint8 Lab (H, W, 3).
        encoding: a key of ENCODINGS.
        features: {name of the extractor: array of any shape}.
    """
    header: dict[str, Any] = {
        'name': name,
        'label': label,
        'height': lab.shape[0],
        'width': lab.shape[1],
        'encoding': encoding,
    }
    if features:
        header['features'] = _pack_arrays(features)
    return _join(header, ENCODINGS[encoding].encode(lab))


def add_to_record(data: bytes, features: Mapping[str, np.ndarray]) -> bytes:
    """Adds features, {name: array}, to the bytes of a record; the photo is not decoded."""
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


def decode_record(data: bytes | memoryview) -> dict[str, Any]:
    """The bytes of a record -> {lab: uint8 (H, W, 3), label: int32, name: str[, features: {name: array}]}."""
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
    """Writes records as an ArrayRecord file; not atomically, so give it a temporary path.

    Args:
        path: of the file.
        records: of `encode_record`.
        encoding: a key of ENCODINGS, for the compression.

    Raises:
        UserError: this system has no array_record.
    """
    writer = _array_record().ArrayRecordWriter(os.fspath(path), f'group_size:1,{ENCODINGS[encoding].compression}')
    try:
        for record in records:
            writer.write(record)
    finally:
        writer.close()


class Records:
    """Random access to the photos of one split, `records[i]` as `decode_record` returns them.

    Picklable, and safe to read from several threads.

    Args:
        paths: of the shards.
        counts: the number of photos in each.
    """

    def __init__(self, paths: Sequence[str | os.PathLike], counts: Sequence[int]) -> None:
        self.__setstate__({'_paths': [os.fspath(path) for path in paths], '_ends': list(itertools.accumulate(counts))})

    def __getstate__(self) -> dict[str, Any]:
        return {'_paths': self._paths, '_ends': self._ends}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._paths: list[str] = state['_paths']
        self._ends: list[int] = state['_ends']
        # Each process opens its own readers when it needs them.
        self._readers: dict[int, Any] = {}
        self._plain: dict[int, PlainRecords | None] = {}
        self._lock = threading.Lock()
        self._own = threading.local()  # each thread's buffer

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        with self._report_damage(index):
            return decode_record(self._read(index))

    def borrow(self, index: int) -> dict[str, Any]:
        """As `records[index]`, for streaming: `lab` is only valid until this thread's next call.

        Of an uncompressed shard, nothing is hashed, so that changed pixels go unnoticed; `jaxcolor inspect` finds them.
        """
        shard, position = self._locate(index)
        plain = self._plain_reader(shard)
        if plain is not None:
            if len(getattr(self._own, 'buffer', ())) < plain.largest:
                self._own.buffer = np.empty(plain.largest, np.uint8)
            with contextlib.suppress(*_UNREADABLE):  # ArrayRecord finds out and says what is wrong
                return decode_record(plain.read(position, self._own.buffer))
        return self[index]

    def raw(self, index: int) -> bytes:
        """The bytes of a record, as `encode_record` made them."""
        with self._report_damage(index):
            return self._read(index)

    def _read(self, index):
        shard, position = self._locate(index)
        return self._reader(shard).read([position])[0]

    def _locate(self, index):
        """The shard of a photo, and the position in the shard."""
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    @contextlib.contextmanager
    def _report_damage(self, index):
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            yield
        except _UNREADABLE as error:
            shard, position = self._locate(index)
            raise UserError(
                f'record {position} in {self._paths[shard]} cannot be read ({type(error).__name__}: {str(error)[:120]}): '
                f'the shard is damaged; prepare the set again'
            ) from error

    def _plain_reader(self, shard):
        """The fast reader of a shard, or None where only ArrayRecord can read it."""
        if shard not in self._plain:
            with self._lock:
                if shard not in self._plain:
                    try:
                        plain = PlainRecords(self._paths[shard])
                    except (NotPlainError, OSError):
                        plain = None
                    self._plain[shard] = plain
        return self._plain[shard]

    def _reader(self, shard):
        """The reader of a shard, shared by all threads."""
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
    """An opened shard set. Shards are opened when their records are read."""

    path: Path
    meta: dict[str, Any]  # the content of dataset.json

    @property
    def classes(self) -> list[str]:
        """Class names, indexed by labels; empty if the photos have no labels."""
        return self.meta['classes']

    @property
    def counts(self) -> dict[str, int]:
        """The number of photos by split."""
        return self.meta['counts']

    def records(self, split: str) -> Records:
        """The photos of a split. Raises UserError if there are none."""
        shards = [shard for shard in self.meta['shards'] if shard['split'] == split and shard['photos']]
        if not shards:
            splits = ', '.join(f'{name} ({count})' for name, count in self.counts.items()) or 'nothing'
            raise UserError(f'{self.path} holds no photos in the split {split!r}; it holds {splits}')
        return Records([self.path / shard['file'] for shard in shards], [shard['photos'] for shard in shards])


def open_shards(path: str | os.PathLike) -> ShardSet:
    """Opens the shard set in a folder and checks the sizes of its files.

    Raises:
        UserError: there is no such folder; its `dataset.json` is missing, unreadable or of another version; a shard is
            missing or incomplete.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f'the shard set {path} does not exist; make it with `jaxcolor prepare`')
    try:
        meta = json.loads((path / SIDECAR).read_text(encoding='utf-8'))
        version = meta['version']
    except FileNotFoundError:
        raise UserError(f'{path} is no finished shard set (no {SIDECAR}); run `jaxcolor prepare` again') from None
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
            problem = 'is missing' if size is None else f'has {size} bytes instead of {shard["bytes"]}'
            raise UserError(f'the shard {file} {problem}; copy it again or prepare the set again')
    for source in meta.get('features', {}).values():
        if 'flavour' in source:  # the key of earlier versions
            source['flavor'] = source.pop('flavour')
    return ShardSet(path, meta)
