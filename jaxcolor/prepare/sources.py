"""Sources of photos: folders and archives. `datasets.py` reads published datasets.

A source is a function (path, max_bytes) -> generator of `Photo`s, in an order that never changes. It names the photos and
says where their bytes are. It decodes nothing, and reads photo bytes only from streams. Files of more than `max_bytes` are
rejected.
"""

import contextlib
import dataclasses
import functools
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcolor.errors import UserError
from jaxcolor.files import walk
from jaxcolor.prepare.decode import RejectedError, is_photo

# A folder's or file's name -> the split that it holds.
SPLITS = {
    'train': 'train',
    'training': 'train',
    'val': 'validation',
    'valid': 'validation',
    'validation': 'validation',
    'test': 'test',
    'testing': 'test',
}
ARCHIVE_SUFFIXES = ('.tar', '.tar.gz', '.tgz', '.tar.bz2', '.tar.xz', '.zip')
MAX_CLASSES = 1_000_000
_MAX_KEY_FILES = 64  # files of one WebDataset key, held in memory together
_MAX_CLS_BYTES = 1000


@dataclasses.dataclass
class Photo:
    """A candidate for the shard set, before it is decoded."""

    name: str  # unique within the source, parts separated by '/'
    class_name: str | None = None
    label: int | None = None  # the class number that the source gives it; `shard_tasks` numbers the others
    split: str | None = None  # train, validation or test where the source says so
    load: Callable[[int], bytes | np.ndarray] | None = None  # picklable; see `read`
    data: bytes | None = None  # the file itself, where it comes from a stream
    rejected: str | None = None  # why it cannot be used, where that is already known
    position: float = 1.0  # fraction of the source that has been walked with it, in (0, 1]

    def __post_init__(self) -> None:
        # File systems and archives may hold names that are not UTF-8.
        self.name = _printable(self.name)
        self.class_name = self.class_name and _printable(self.class_name)

    def read(self, max_bytes: int) -> bytes | np.ndarray:
        """Returns the photo's file, or the photo itself as uint8 Lab (H, W, 3).

        Raises:
            RejectedError: it cannot be used or read, or its file has more than `max_bytes`.
        """
        if self.rejected:
            raise RejectedError(self.rejected)
        if self.data is not None:
            return self.data
        assert self.load is not None, f'{self.name} has neither data nor load'
        return self.load(max_bytes)


def _printable(name):
    return name.encode(errors='surrogateescape').decode(errors='backslashreplace')


def read_range(path: str | os.PathLike, offset: int, size: int | None, max_bytes: int) -> bytes:
    """Reads `size` bytes of a file from `offset` on, all of it where `size` is None.

    Raises:
        RejectedError: it cannot be read, or these are more than `max_bytes`.
    """
    try:
        with open(path, 'rb') as file:
            file.seek(offset)
            data = file.read(min(max_bytes + 1, max_bytes + 1 if size is None else size))
    except OSError as error:
        raise RejectedError(f'cannot be read: {error.strerror}') from None
    if len(data) > max_bytes:
        raise RejectedError(too_large(max_bytes))
    return data


def too_large(max_bytes: int) -> str:
    """The reason to reject a file of more than `max_bytes`."""
    return f'its file is larger than {max_bytes / 1e6:g} MB'


def photo_from_path(parts: Sequence[str], **fields: Any) -> Photo:
    """A photo named by its path below the source: a leading train, val, ... folder is its split, the rest its class.

    Args:
        parts: of the path; the last one is the file's name.
        **fields: of the Photo; they take precedence over the path.
    """
    name = '/'.join(parts)
    if len(parts) > 1 and parts[0].lower() in SPLITS:
        fields.setdefault('split', SPLITS[parts[0].lower()])
        parts = parts[1:]
    fields.setdefault('class_name', '/'.join(parts[:-1]) or None)
    if not fields.get('rejected') and not is_photo(parts[-1]):
        fields['rejected'] = 'not a photo, by its name'
    return Photo(name, **fields)


def parse_class(value: str | int) -> dict[str, Any]:
    """Parses a class as datasets write it, a number or a name, to fields of Photo."""
    text = str(value)
    if not text.lstrip('-').isdigit():
        return {'class_name': text or None}
    if int(text) < 0:
        return {'class_name': None}
    if int(text) >= MAX_CLASSES:
        return {'class_name': None, 'rejected': f'class number {text[:20]} is out of range'}
    return {'class_name': str(int(text)), 'label': int(text)}


# Folders.


def folder(path: Path, max_bytes: int) -> Iterator[Photo]:
    """A folder tree: each subfolder is a class; a top level of train, val(idation) and test folders is the split."""
    if not path.is_dir():
        raise UserError(f'{path} is not a folder')
    total = sum(1 for _ in walk(path))
    for count, file in enumerate(walk(path), 1):
        load = functools.partial(read_range, file.path, 0, None)
        yield photo_from_path(file.parts or ('.',), load=load, rejected=file.problem or None, position=count / total)


# Archives, read without unpacking them to disk.


def archive(path: Path, max_bytes: int) -> Iterator[Photo]:
    """A tar (compressed or not) or zip of a folder tree, or a folder of archives. WebDataset's `.cls` files give classes.

    A leading folder that has the archive's name is ignored.
    """
    files = [path] if path.is_file() else list_archives(path)
    if not files:
        raise UserError(f'{path} holds no archives ({", ".join(ARCHIVE_SUFFIXES)})')
    for index, file in enumerate(files):
        members = _zip_members(file) if _is_zip(file) else _tar_members(file, max_bytes)
        stem = file.name[: len(file.name) - len(_archive_suffix(file))]
        word = stem.lower().split('-')[0]  # train-00012.tar, val.zip
        split = {'split': SPLITS[word]} if word in SPLITS else {}
        with _refusing_damage(file):
            for member, class_fields in _with_classes(members):
                parts = [part for part in member.name.split('/') if part != '.']
                member.position = (index + member.position) / len(files)
                if member.name.startswith('/') or '..' in parts or '\\' in member.name or not all(parts):
                    yield dataclasses.replace(member, rejected='its name leads out of the archive')
                    continue
                if any(part.startswith(('.', '__MACOSX')) for part in parts):
                    continue
                if len(parts) > 1 and parts[0] == stem:
                    parts = parts[1:]
                fields = {key: getattr(member, key) for key in ('load', 'data', 'rejected', 'position')}
                yield photo_from_path(parts, **fields | split | class_fields)


def list_archives(path: Path) -> list[Path]:
    """The archives directly in a folder, sorted."""
    return sorted(file for file in path.iterdir() if file.is_file() and _archive_suffix(file))


def _archive_suffix(file):
    return next((suffix for suffix in ARCHIVE_SUFFIXES if file.name.lower().endswith(suffix)), '')


def _is_zip(file):
    with open(file, 'rb') as stream:
        return stream.read(2) == b'PK'


@contextlib.contextmanager
def _refusing_damage(file):
    """Raises UserError where reading the archive fails."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, struct.error) as error:
        raise UserError(f'the archive {file} is cut short or damaged ({error}); download it again') from None


def _with_classes(members):
    """Yields (member, class fields from the `.cls` of its key). In a WebDataset the files of a key are adjacent."""
    group, group_key = [], None
    for member in members:
        folder, _, base = member.name.rpartition('/')
        key = folder, base.partition('.')[0]
        if key != group_key or len(group) == _MAX_KEY_FILES:
            yield from _classify(group)
            group, group_key = [], key
        group.append(member)
    yield from _classify(group)


def _classify(group):
    """Yields (member, class fields) of one key. Files beside a photo belong to it and are no candidates of their own."""
    are_photos = [is_photo(member.name) for member in group]
    class_fields = {}
    for member in group:
        if member.name.endswith('.cls') and any(are_photos):
            with contextlib.suppress(RejectedError):
                class_fields = parse_class(member.read(_MAX_CLS_BYTES).decode(errors='replace').strip())
    for member, is_one in zip(group, are_photos, strict=True):
        if is_one or not any(are_photos):
            yield member, class_fields


def _tar_members(path, max_bytes):
    size = path.stat().st_size
    with open(path, 'rb') as file, _refusing_damage(path):
        try:
            tarfile.open(fileobj=file, mode='r:').close()
            mode = 'r:'
        except tarfile.ReadError:
            mode = 'r|*'  # compressed: one pass from front to back
        file.seek(0)
        with tarfile.open(fileobj=file, mode=mode) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # it would keep them all in memory
                if not member.isreg() or member.sparse:
                    continue
                photo = Photo(member.name, position=min(1.0, max(1, file.tell()) / size))
                if mode == 'r:':
                    photo.load = functools.partial(read_range, os.fspath(path), member.offset_data, member.size)
                elif member.size > max_bytes:
                    photo.rejected = too_large(max_bytes)
                else:
                    photo.data = tar.extractfile(member).read()
                yield photo


def _zip_members(path):
    with _refusing_damage(path), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    for count, member in enumerate(members, 1):
        if member.is_dir():
            continue
        load = functools.partial(
            _read_zip_member, os.fspath(path), member.header_offset, member.compress_size, member.compress_type
        )
        rejected = 'encrypted' if member.flag_bits & 1 else None
        yield Photo(member.filename, load=load, rejected=rejected, position=count / len(members))


def _read_zip_member(path, offset, size, method, max_bytes):
    """Reads a zip's file by the offset of its header, so that workers need not read the archive's directory."""
    header = read_range(path, offset, 30, max_bytes)
    if len(header) < 30 or header[:4] != b'PK\3\4':
        raise RejectedError('broken: the archive is damaged here')
    start = offset + 30 + sum(struct.unpack('<HH', header[26:30]))  # after the name and the extra field
    if method == zipfile.ZIP_STORED:
        return read_range(path, start, size, max_bytes)
    if method != zipfile.ZIP_DEFLATED:
        raise RejectedError(f'packed in a way that is not supported (zip method {method})')
    try:
        data = zlib.decompressobj(-15).decompress(read_range(path, start, size, max_bytes), max_bytes + 1)
    except zlib.error as error:
        raise RejectedError(f'broken: {error}') from None
    if len(data) > max_bytes:
        raise RejectedError(f'its file unpacks to more than {max_bytes / 1e6:g} MB')
    return data
