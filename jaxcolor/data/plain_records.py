"""Reads the records of an uncompressed shard in one system call each, without a copy of the record.

ArrayRecord's own reader allocates, copies and hashes each record: two thirds of the time of streaming raw photos. This one
knows the layout (google/riegeli, doc/riegeli_records_file_format.md) and checks lengths, but no hash; what it does not
understand, ArrayRecord reads. Of a file:

- A block header of 24 bytes stands at every multiple of 64 KiB, in the middle of whatever lies there.
- A chunk is a header of 40 bytes and its data. An uncompressed one of a single record has 0, the number of bytes that the
  length takes, the length (a varint), and the record.
- ArrayRecord ends with a chunk that lists all others' places, and the last 64 KiB begin with one that says where that is.
"""

import itertools
import os
import struct
from collections.abc import Iterator

import numpy as np

_BLOCK, _BLOCK_HEADER = 2**16, 24
_PAYLOAD = _BLOCK - _BLOCK_HEADER  # bytes of a block that belong to chunks
_CHUNK = struct.Struct('<8xQ8xQQ')  # of a chunk's header: bytes of data; kind and number of records; bytes of records
_SIMPLE = ord('r')


class NotPlainError(ValueError):
    """The file is compressed, holds several records in a chunk, or is damaged."""


class PlainRecords:
    """The records of one uncompressed shard by number. Safe to read from several threads that have a buffer each.

    Args:
        path: of the file.

    Raises:
        NotPlainError: it is compressed or damaged, or this system has no `os.preadv`.
        OSError: it cannot be read.
    """

    def __init__(self, path: str) -> None:
        if not hasattr(os, 'preadv'):
            raise NotPlainError('no preadv')
        self._file = open(path, 'rb', buffering=0)  # noqa: SIM115 (the collector closes it)
        self._size = os.fstat(self._file.fileno()).st_size
        try:
            self._bounds = self._find()
        except (LookupError, OverflowError, struct.error) as error:
            raise NotPlainError(str(error)) from error
        self.largest = max(b - a for a, b in itertools.pairwise(self._bounds))  # bytes that a buffer needs

    def _find(self):
        """Where each record's chunk begins, and the last one's ends, in bytes of payload."""
        # The last block holds a chunk of the same record thrice, {1: place of the list of chunks, ...}.
        footer = dict(_fields(self._records_at(self._size - _BLOCK)[0]))[1]
        _, *entries = (dict(_fields(entry)) for entry in self._records_at(footer))  # the first describes the file
        if any(entry.get(3) != 1 for entry in entries):
            raise NotPlainError('several records in a chunk')
        places = [*(entry[1] for entry in entries), footer]
        if footer > self._size or any(first >= last for first, last in itertools.pairwise(places)):
            raise NotPlainError('the places of the records are out of order')
        return [_payload_before(place) for place in places]

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def read(self, index: int, buffer: np.ndarray) -> memoryview:
        """A record, which lies in the buffer.

        Args:
            index: of the record.
            buffer: uint8 (at least `largest`,).

        Raises:
            NotPlainError: the record is not as the file says.
        """
        first, last = self._bounds[index : index + 2]
        return _single_record(self._payload(first, last - first, buffer.data))

    def _payload(self, first, count, buffer):
        """`count` bytes from payload byte `first` on, without the block headers."""
        parts: list[memoryview] = []
        done = 0
        block, start = divmod(first, _PAYLOAD)
        place = block * _BLOCK + _BLOCK_HEADER + start
        while done < count:
            part = min(count - done, _PAYLOAD - start)
            parts += [buffer[done : done + part], _IGNORED]
            done, start = done + part, 0
        if os.preadv(self._file.fileno(), parts[:-1], place) != count + _BLOCK_HEADER * (len(parts) // 2 - 1):
            raise NotPlainError('the file ends too early')
        return buffer[:count]

    def _records_at(self, place):
        """All records of the uncompressed chunk at a place."""
        first = _payload_before(place)
        size, _, _ = _chunk(self._payload(first, _CHUNK.size, memoryview(bytearray(_CHUNK.size))))
        if size > self._size:
            raise NotPlainError('a length is larger than the file')
        return list(_split(self._payload(first + _CHUNK.size, size, memoryview(bytearray(size)))))


_IGNORED = memoryview(bytearray(_BLOCK_HEADER))  # where block headers go


def _payload_before(place):
    """The number of payload bytes before a place in the file."""
    block, start = divmod(place, _BLOCK)
    return block * _PAYLOAD + max(0, start - _BLOCK_HEADER)


def _chunk(header):
    """A chunk's header -> (bytes of data, number of records, bytes of records)."""
    size, kind_and_count, records_size = _CHUNK.unpack_from(header)
    if kind_and_count & 255 != _SIMPLE:
        raise NotPlainError('another kind of chunk')
    return size, kind_and_count >> 8, records_size


def _single_record(chunk):
    """The record of an uncompressed chunk that holds one."""
    size, count, length = _chunk(chunk)
    start = _CHUNK.size + size - length
    if count != 1 or chunk[_CHUNK.size] != 0 or not _CHUNK.size < start <= start + length <= len(chunk):
        raise NotPlainError('another kind of chunk')
    return chunk[start : start + length]


def _split(data) -> Iterator[memoryview]:
    """The data of an uncompressed chunk -> its records."""
    if not len(data) or data[0] != 0:
        raise NotPlainError('compressed')
    size, start = _varint(data, 1)
    end = place = start + size
    while start < end:
        length, start = _varint(data, start)
        yield data[place : place + length]
        place += length


def _fields(message):
    """(number, value) of the varint fields of a protocol buffer's message; others are passed over."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        if key & 7 == 0:
            value, place = _varint(message, place)
            yield key >> 3, value
        elif key & 7 == 2:
            length, place = _varint(message, place)
            place += length
        else:
            raise NotPlainError('another kind of field')


def _varint(data, place):
    """A varint (base 128, lowest digits first) -> (value, place behind it)."""
    value = shift = 0
    while True:
        if place >= len(data):
            raise NotPlainError('a number is cut off')
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
