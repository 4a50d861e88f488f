"""Sources that read published datasets in their original layouts, and the detection of a path's source.

`sources.py` says what a source is. A new one is a generator here, a line in SOURCES and, to be detected, one in `detect`.
"""

import functools
import importlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from jaxcolor.errors import UserError
from jaxcolor.prepare.decode import RejectedError, is_photo
from jaxcolor.prepare.sources import (
    ARCHIVE_SUFFIXES,
    SPLITS,
    Photo,
    archive,
    folder,
    list_archives,
    parse_class,
    photo_from_path,
    read_range,
    too_large,
)


def _first_existing(path, names, exists=os.path.exists):  # a folder that cannot be read holds none
    """The first of `path / name` that exists, or None."""
    return next((path / name for name in names if exists(path / name)), None)


def _require(file, path, name):
    """Returns `file`, or raises the UserError that `name` is missing in `path` where it is None."""
    if file is None:
        raise UserError(f'{path} does not have the expected layout: {name} is missing')
    return file


def _import_optional(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        name = name.partition('.')[0]
        raise UserError(f"this source needs the package {name}: pip install 'jaxcolor[sources]'") from None


def _read_list(path):
    """Yields a list's lines, split at blanks and commas, and the fraction of the file read with each."""
    size = path.stat().st_size
    with open(path, encoding='utf-8', errors='replace') as file:
        count = 0
        for line in file:
            count += len(line)
            if fields := line.replace(',', ' ').split():
                yield fields, min(1.0, count / size)


_BAD_LINE = 'its line in the list is not understood'

# CelebA: one folder of photos, and a list of their splits.

_CELEBA_LISTS = ('list_eval_partition.txt', 'Eval/list_eval_partition.txt', 'list_eval_partition.csv')
_CELEBA_FOLDERS = ('img_align_celeba/img_align_celeba', 'img_align_celeba', 'Img/img_align_celeba', 'img_celeba')
_CELEBA_SPLITS = {'0': 'train', '1': 'validation', '2': 'test'}


def celeba(path: Path, max_bytes: int) -> Iterator[Photo]:
    """CelebA: `list_eval_partition.txt` names the photos and their splits (0 train, 1 validation, 2 test)."""
    partition = _require(_first_existing(path, _CELEBA_LISTS), path, _CELEBA_LISTS[0])
    photos = _require(_first_existing(path, _CELEBA_FOLDERS, Path.is_dir), path, f'the folder {_CELEBA_FOLDERS[1]}')
    for fields, position in _read_list(partition):
        if len(fields) < 2 or fields[1] not in _CELEBA_SPLITS or '/' in fields[0]:
            if fields[0] != 'image_id':  # the header of the .csv
                yield Photo(fields[0], rejected=_BAD_LINE, position=position)
            continue
        load = functools.partial(read_range, os.fspath(photos / fields[0]), 0, None)
        split = _CELEBA_SPLITS[fields[1]]
        yield photo_from_path([fields[0]], class_name=None, split=split, load=load, position=position)


# Places365: lists of paths and class numbers; folders nested by letter and class, or one flat folder per class.

_PLACES_LISTS = {
    'train': 'places365_train_standard.txt',
    'validation': 'places365_val.txt',
    'test': 'places365_test.txt',
}
_PLACES_CATEGORIES = ('categories_places365.txt', 'filelist_places365-standard/categories_places365.txt')
_PLACES_FOLDERS = {
    'train': ('data_256_standard', 'data_large_standard', 'data_256', 'data_large', 'train', '.'),
    'validation': ('val_256', 'val_large', 'val', '.'),
    'test': ('test_256', 'test_large', 'test'),
}


def _places_list(path, split):
    return _first_existing(path, (_PLACES_LISTS[split], f'filelist_places365-standard/{_PLACES_LISTS[split]}'))


def places365(path: Path, max_bytes: int) -> Iterator[Photo]:
    """Places365-Standard, small or large images, with its own class numbers, which its test photos lack."""
    lists = {split: file for split in _PLACES_LISTS if (file := _places_list(path, split))}
    if not _first_existing(path, _PLACES_FOLDERS['test'], Path.is_dir):
        lists.pop('test', None)  # its list comes with the others, its photos need not
    if not lists:
        raise UserError(f'{path} does not have the expected layout: {_PLACES_LISTS["train"]} is missing')
    names: dict[int | None, str] = {}  # by class number
    if (categories := _first_existing(path, _PLACES_CATEGORIES)) is not None:
        names |= {int(number): name.strip('/').partition('/')[2] for (name, number), _ in _read_list(categories)}
    for index, (split, file) in enumerate(lists.items()):
        to_path = None
        for line, position in _read_list(file):
            parts = line[0].strip('/').split('/')
            number = line[1] if len(line) > 1 else '-1'
            if not (number.isdigit() or (split == 'test' and number == '-1')) or '..' in parts:
                yield Photo(line[0], rejected=_BAD_LINE)
                continue
            to_path = to_path or _places_layout(path, split, parts)
            fields = parse_class(number)
            label = fields.get('label')
            if len(parts) > 2:  # a/abbey/00000001.jpg
                names.setdefault(label, '/'.join(parts[1:-1]))
            fields['class_name'] = names.get(label, fields['class_name'])
            fields['load'] = functools.partial(read_range, to_path(parts, fields['class_name']), 0, None)
            yield photo_from_path(parts, split=split, position=(index + position) / len(lists), **fields)


def _places_layout(path, split, parts):
    """The function (parts of a line's path, class name) -> file that fits the list's first line."""
    for name in _PLACES_FOLDERS[split]:
        root = os.fspath(path / name)
        layouts = (
            lambda parts, class_name, root=root: os.path.join(root, *parts),
            lambda parts, class_name, root=root: os.path.join(root, class_name.replace('/', '-'), parts[-1]),
        )
        for layout in layouts:
            if os.path.exists(layout(parts, '/'.join(parts[1:-1]))):
                return layout
    raise UserError(
        f'{path} does not have the expected layout: there is no photo {"/".join(parts)} of its list in any folder'
    )


# LSUN: one LMDB per class and split; its values are JPEG or WebP files.


def lsun(path: Path, max_bytes: int) -> Iterator[Photo]:
    """LSUN: an LMDB folder, or a folder of them, named `<class>_<split>_lmdb`."""
    folders = [path] if (path / 'data.mdb').exists() else _list_lmdbs(path)
    if not folders:
        raise UserError(f'{path} does not have the expected layout: there is no LMDB (a folder with data.mdb) in it')
    for index, lmdb_folder in enumerate(folders):
        words = lmdb_folder.name.removesuffix('_lmdb').split('_')
        split = SPLITS.get(words[-1].lower())
        class_name = '_'.join(words[:-1] if split else words) or None
        with _open_lmdb(os.fspath(lmdb_folder)).begin() as transaction:
            total = transaction.stat()['entries']
            for count, key in enumerate(transaction.cursor().iternext(values=False), 1):
                load = functools.partial(_read_lmdb_value, os.fspath(lmdb_folder), bytes(key))
                name = f'{lmdb_folder.name}/{bytes(key).decode(errors="backslashreplace")}'
                yield Photo(name, class_name, split=split, load=load, position=(index + count / total) / len(folders))


def _list_lmdbs(path):
    return sorted(child for child in path.iterdir() if os.path.exists(child / 'data.mdb'))


@functools.lru_cache(maxsize=8)
def _open_lmdb(path):
    lmdb = _import_optional('lmdb')
    try:
        environment = lmdb.open(path, readonly=True, lock=False, readahead=False)
        expected_size = (environment.info()['last_pgno'] + 1) * environment.stat()['psize']
        size = os.path.getsize(os.path.join(path, 'data.mdb'))
    except lmdb.Error as error:
        raise UserError(f'the LMDB {path} cannot be read ({error}); download it again') from None
    if size < expected_size:  # the file is memory-mapped: reading past its end would kill the process
        raise UserError(f'the LMDB {path} is cut short: it has {size} of {expected_size} bytes; download it again')
    return environment


def _read_lmdb_value(path, key, max_bytes):
    lmdb = _import_optional('lmdb')
    try:
        with _open_lmdb(path).begin(buffers=True) as transaction:
            value = transaction.get(key)
            if value is None:
                raise RejectedError('broken: no value')
            if len(value) > max_bytes:
                raise RejectedError(too_large(max_bytes))
            return bytes(value)
    except lmdb.Error as error:
        raise RejectedError(f'broken: {error}') from None


# Kaggle's "image colorization": lightness in one NumPy file, a* and b* in several.

_GRAY_FILES, _AB_FOLDERS = ('gray_scale.npy', 'l/gray_scale.npy'), ('', 'ab', 'ab/ab')


def numpy_set(path: Path, max_bytes: int) -> Iterator[Photo]:
    """`gray_scale.npy` (N, H, W) and `ab1.npy`, ... (M, H, W, 2), M adding up to N: OpenCV's uint8 Lab, as is ours."""
    gray_file = _require(_first_existing(path, _GRAY_FILES), path, _GRAY_FILES[0])
    ab_folder = _require(_first_existing(path, _AB_FOLDERS, lambda child: (child / 'ab1.npy').exists()), path, 'ab1.npy')
    ab_files = sorted(ab_folder.glob('ab[0-9]*.npy'), key=lambda file: (len(file.name), file.name))
    gray, ab = _memory_map(os.fspath(gray_file)), [_memory_map(os.fspath(file)) for file in ab_files]
    for file, array, channels in zip([gray_file, *ab_files], [gray, *ab], [(), *[(2,)] * len(ab)], strict=True):
        if array.dtype != np.uint8 or array.ndim != 3 + len(channels) or array.shape[1:] != gray.shape[1:] + channels:
            expected = '(photos, height, width, 2)' if channels else '(photos, height, width)'
            raise UserError(f'{file} holds {array.dtype} {array.shape}, not uint8 {expected}')
    total = sum(map(len, ab))
    if total != len(gray):
        names = ', '.join(file.name for file in ab_files)
        raise UserError(f'{path} is incomplete: {gray_file.name} holds {len(gray)} photos, {names} together {total}')
    index = 0
    for file, array in zip(ab_files, ab, strict=True):
        for row in range(len(array)):
            load = functools.partial(_read_numpy_photo, os.fspath(gray_file), index, os.fspath(file), row)
            index += 1
            yield Photo(f'{index - 1:06}', load=load, position=index / total)


@functools.lru_cache(maxsize=16)
def _memory_map(path):
    try:
        return np.load(path, mmap_mode='r', allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f'{path} is not a NumPy file of numbers ({error}); download it again') from None


def _read_numpy_photo(gray_file, index, ab_file, row, max_bytes):
    """uint8 Lab (H, W, 3)."""
    return np.concatenate([_memory_map(gray_file)[index][..., None], _memory_map(ab_file)[row]], axis=-1)


# Hugging Face's image tables.

_IMAGE_COLUMNS, _LABEL_COLUMNS = ('image', 'img', 'jpg'), ('label', 'labels', 'fine_label')


def parquet(path: Path, max_bytes: int) -> Iterator[Photo]:
    """Parquet files with a column `image` (bytes, or {bytes, path}) and maybe `label`; splits by the files' names."""
    files = [path] if path.is_file() else _list_parquet_files(path)
    if not files:
        raise UserError(f'{path} holds no .parquet files')
    for index, file in enumerate(files):
        for photo in _parquet_photos(file):
            photo.position = (index + photo.position) / len(files)
            yield photo


def _list_parquet_files(path):
    return sorted([*path.glob('*.parquet'), *path.glob('data/*.parquet')])


def _parquet_photos(file):
    pyarrow, pq = _import_optional('pyarrow'), _import_optional('pyarrow.parquet')
    split = SPLITS.get(file.name.split('-')[0].split('.')[0].lower())
    try:
        table = pq.ParquetFile(file)
        columns = table.schema_arrow.names
        image_column = next((name for name in _IMAGE_COLUMNS if name in columns), None)
        label_column = next((name for name in _LABEL_COLUMNS if name in columns), None)
        if image_column is None:
            raise UserError(f'{file} has no column {" or ".join(_IMAGE_COLUMNS)}, but {", ".join(columns)}')
        class_names = _class_names(table.schema_arrow, label_column)
        count = 0
        for batch in table.iter_batches(batch_size=16, columns=[name for name in (image_column, label_column) if name]):
            for row in batch.to_pylist():
                count += 1
                data, name = row[image_column], None
                if isinstance(data, dict):
                    data, name = data.get('bytes'), data.get('path')
                photo = Photo(name or f'{file.stem}/{count - 1:07}', split=split, data=data)
                photo.position = count / table.metadata.num_rows
                if not isinstance(data, bytes):
                    photo.data, photo.rejected = None, 'the table holds no image here'
                if label_column and row[label_column] is not None:
                    for field, value in parse_class(row[label_column]).items():
                        setattr(photo, field, value)
                    photo.class_name = class_names.get(photo.label, photo.class_name)
                yield photo
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f'the table {file} cannot be read ({str(error)[:200]}); download it again') from None


def _class_names(schema, label_column):
    """Class number -> name, where Hugging Face's metadata are in the table's schema."""
    try:
        feature = json.loads(schema.metadata[b'huggingface'])['info']['features'][label_column]
        return dict(enumerate(feature['names']))
    except (KeyError, TypeError, ValueError):
        return {}


# Detection.

SOURCES: dict[str, Callable[[Path, int], Iterator[Photo]]] = {
    'folder': folder,
    'archive': archive,
    'lsun': lsun,
    'celeba': celeba,
    'places365': places365,
    'linnaeus5': folder,  # train and test folders with a folder per class
    'numpy': numpy_set,
    'parquet': parquet,
}


def detect(path: Path) -> str:
    """Detects the source type, a key of SOURCES, of an existing folder or file.

    Raises:
        UserError: a file of no known type.
    """
    if path.is_file():
        name = path.name.lower()
        if name.endswith('.parquet'):
            return 'parquet'
        if name.endswith(ARCHIVE_SUFFIXES):
            return 'archive'
        raise UserError(f'{path} is neither a folder nor an archive ({", ".join(ARCHIVE_SUFFIXES)}) nor a .parquet file')
    if _first_existing(path, _CELEBA_LISTS):
        return 'celeba'
    if any(_places_list(path, split) for split in _PLACES_LISTS):
        return 'places365'
    if os.path.exists(path / 'data.mdb') or _list_lmdbs(path):
        return 'lsun'
    if _first_existing(path, _GRAY_FILES):
        return 'numpy'
    children = list(path.iterdir())
    if any(is_photo(child) for child in children):  # a table or an archive beside photos is not what is meant
        return 'folder'
    if _list_parquet_files(path):
        return 'parquet'
    return 'archive' if list_archives(path) and not any(child.is_dir() for child in children) else 'folder'


def open_source(path: str | os.PathLike, source: str, max_bytes: int) -> Iterator[Photo]:
    """Opens the source at `path`.

    Args:
        path: a folder or file.
        source: a key of SOURCES, or 'auto' to detect it.
        max_bytes: larger files are rejected.

    Returns:
        A generator of the source's photos.

    Raises:
        UserError: the path does not exist, or there is no such source. The generator raises it, too: the layout is not that
            source's, a package is missing, an archive is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f'{path} does not exist; give the folder or file that holds the photos')
    if source != 'auto' and source not in SOURCES:
        raise UserError(f'there is no source {source!r}; choose one of auto, {", ".join(SOURCES)}')
    try:
        return SOURCES[detect(path) if source == 'auto' else source](path, max_bytes)
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}') from None
