"""Where photographs come from: folders and archives. `datasets.py` knows the layouts of published sets.

A source is a generator of Photos in an order that never changes, called with the path and the size in bytes above which
files are refused. It names the photos and says where their bytes are; nothing is decoded, and only streams are read.
"""

import contextlib
import dataclasses
import functools
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable

import numpy as np

from jaxcolor.errors import UserError
from jaxcolor.prepare.decode import SUFFIXES, RejectedError

SPLITS = {'train': 'train', 'training': 'train', 'val': 'validation', 'valid': 'validation', 'validation': 'validation'}
SPLITS |= {'test': 'test', 'testing': 'test'}
ARCHIVES = ('.tar', '.tar.gz', '.tgz', '.tar.bz2', '.tar.xz', '.zip')
MOST_CLASSES = 1_000_000


@dataclasses.dataclass
class Photo:
    """One candidate: what is known of it before it is decoded, and where its bytes are."""

    name: str  # unique within the source, '/' between its parts
    label: str | None = None  # its class by name
    number: int | None = None  # its class by the number that the source gives it
    split: str | None = None  # train, validation or test where the source says so
    load: Callable[[int], bytes | np.ndarray] | None = None  # picklable; limit in bytes -> file, or uint8 Lab (H, W, 3)
    data: bytes | None = None  # the file itself, where it comes out of a stream
    refused: str | None = None  # why it cannot be used, where that is known already
    position: float = 1.0  # how much of the source has been walked with it, in (0, 1]

    def __post_init__(self):
        # File systems and archives may hold names that are no UTF-8.
        self.name = _printable(self.name)
        self.label = self.label and _printable(self.label)


def _printable(name):
    return name.encode(errors='surrogateescape').decode(errors='backslashreplace')


def read_range(path, offset, size, limit):
    """`size` bytes of a file from `offset` on, or all of it where `size` is None; RejectedError above the limit."""
    try:
        with open(path, 'rb') as file:
            file.seek(offset)
            data = file.read(min(limit + 1, limit + 1 if size is None else size))
    except OSError as error:
        raise RejectedError(f'cannot be read: {error.strerror}') from None
    if len(data) > limit:
        raise RejectedError(f'its file is larger than {limit / 1e6:g} MB')
    return data


def photo_from_path(parts, **known):
    """A Photo named by its path below the source: a leading train, val, ... folder is its split, the rest its class."""
    name = '/'.join(parts)
    if len(parts) > 1 and parts[0].lower() in SPLITS:
        known.setdefault('split', SPLITS[parts[0].lower()])
        parts = parts[1:]
    known.setdefault('label', '/'.join(parts[:-1]) or None)
    if not known.get('refused') and os.path.splitext(parts[-1])[1].lower() not in SUFFIXES:
        known['refused'] = 'not a photo, by its name'
    return Photo(name, **known)


def _walk(folder):
    """Files below a folder as (path, parts below it), in a fixed order; hidden ones are passed over."""
    stack = [(os.fspath(folder), ())]
    while stack:
        path, parts = stack.pop()
        with os.scandir(path) as entries:
            entries = sorted((entry for entry in entries if entry.name[0] != '.'), key=lambda entry: entry.name)
        for entry in entries:
            if not entry.is_dir():
                yield entry.path, (*parts, entry.name)
        stack.extend((entry.path, (*parts, entry.name)) for entry in reversed(entries) if entry.is_dir())


def folder(path, limit):
    """A folder tree: each sub-folder is a class; a top level of train, val(idation) and test folders is the split."""
    if not path.is_dir():
        raise UserError(f'{path} is no folder')
    total = sum(1 for _ in _walk(path))
    for done, (file, parts) in enumerate(_walk(path), 1):
        yield photo_from_path(parts, load=functools.partial(read_range, file, 0, None), position=done / total)


# Archives, read as they are.


def archive(path, limit):
    """A tar (compressed or not) or zip of a folder tree, or a folder of several; WebDataset's `.cls` give classes.

    A leading folder of the archive's own name does not count.
    """
    files = [path] if path.is_file() else archives_in(path)
    if not files:
        raise UserError(f'{path} holds no archives ({", ".join(ARCHIVES)})')
    for done, file in enumerate(files):
        members = _zip_members(file) if _is_zip(file) else _tar_members(file, limit)
        stem = file.name[: -len(_archive_suffix(file))] if _archive_suffix(file) else file.name
        # train-00012.tar, val.zip
        split = {'split': SPLITS[word]} if (word := stem.lower().split('-')[0]) in SPLITS else {}
        with _readable(file):
            for member, label in _with_classes(members):
                parts = [part for part in member.name.split('/') if part != '.']
                member.position = (done + member.position) / len(files)
                if member.name.startswith('/') or '..' in parts or '\\' in member.name or not all(parts):
                    yield dataclasses.replace(member, refused='its name leads out of the archive')
                    continue
                if any(part.startswith(('.', '__MACOSX')) for part in parts):
                    continue
                if len(parts) > 1 and parts[0] == stem:
                    parts = parts[1:]
                known = {key: getattr(member, key) for key in ('load', 'data', 'refused', 'position')}
                yield photo_from_path(parts, **known | split | label)


def archives_in(path):
    """The archives that lie directly in a folder, sorted."""
    return sorted(file for file in path.iterdir() if file.is_file() and _archive_suffix(file))


def _archive_suffix(file):
    return next((suffix for suffix in ARCHIVES if file.name.lower().endswith(suffix)), '')


def _is_zip(file):
    with open(file, 'rb') as start:
        return start.read(2) == b'PK'


@contextlib.contextmanager
def _readable(file):
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, struct.error) as error:
        raise UserError(f'the archive {file} is cut short or damaged ({error}); fetch it again') from None


def _with_classes(members):
    """Members -> (photo, what a `.cls` of its key says of it); WebDataset lays the files of a key side by side."""
    group, key = [], None
    for member in members:
        folder, _, base = member.name.rpartition('/')
        if (folder, base.partition('.')[0]) != key or len(group) == 64:
            yield from _classified(group)
            group, key = [], (folder, base.partition('.')[0])
        group.append(member)
    yield from _classified(group)


def _classified(group):
    is_photo = [os.path.splitext(member.name)[1].lower() in SUFFIXES for member in group]
    label = {}
    for member in group:
        if member.name.endswith('.cls') and any(is_photo):
            with contextlib.suppress(RejectedError):
                label = class_from((member.data or member.load(1000)).decode(errors='replace').strip())
    for member, photo in zip(group, is_photo, strict=True):
        if photo or not any(is_photo):  # what stands beside a photo of the same key belongs to it
            yield member, label


def class_from(value):
    """A class as data sets write it, a number or a name -> fields of Photo."""
    text = str(value)
    if not text.lstrip('-').isdigit():
        return {'label': text or None}
    if int(text) < 0:
        return {'label': None}
    if int(text) >= MOST_CLASSES:
        return {'label': None, 'refused': f'class number {text[:20]} is out of range'}
    return {'label': str(int(text)), 'number': int(text)}


def _tar_members(path, limit):
    size = path.stat().st_size
    with open(path, 'rb') as file, _readable(path):
        try:
            tarfile.open(fileobj=file, mode='r:').close()
            mode = 'r:'
        except tarfile.ReadError:
            mode = 'r|*'  # compressed: one pass from front to back
        file.seek(0)
        with tarfile.open(fileobj=file, mode=mode) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # or it would keep them all
                if not member.isreg() or member.sparse:
                    continue
                photo = Photo(member.name, position=min(1.0, max(1, file.tell()) / size))
                if mode == 'r:':
                    photo.load = functools.partial(read_range, os.fspath(path), member.offset_data, member.size)
                elif member.size > limit:
                    photo.refused = f'its file is larger than {limit / 1e6:g} MB'
                else:
                    photo.data = tar.extractfile(member).read()
                yield photo


def _zip_members(path):
    with _readable(path), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    for done, member in enumerate(members, 1):
        if member.is_dir():
            continue
        load = functools.partial(
            _zip_member, os.fspath(path), member.header_offset, member.compress_size, member.compress_type
        )
        refused = 'encrypted' if member.flag_bits & 1 else None
        yield Photo(member.filename, load=load, refused=refused, position=done / len(members))


def _zip_member(path, offset, size, method, limit):
    """One file of a zip, found by the offset of its header: workers need not read the archive's directory again."""
    header = read_range(path, offset, 30, limit)
    if len(header) < 30 or header[:4] != b'PK\3\4':
        raise RejectedError('broken: the archive is damaged here')
    start = offset + 30 + sum(struct.unpack('<HH', header[26:30]))  # behind the name and the extra field
    if method == zipfile.ZIP_STORED:
        return read_range(path, start, size, limit)
    if method != zipfile.ZIP_DEFLATED:
        raise RejectedError(f'packed in a way that is not supported (zip method {method})')
    try:
        data = zlib.decompressobj(-15).decompress(read_range(path, start, size, limit), limit + 1)
    except zlib.error as error:
        raise RejectedError(f'broken: {error}') from None
    if len(data) > limit:
        raise RejectedError(f'its file unpacks to more than {limit / 1e6:g} MB')
    return data
