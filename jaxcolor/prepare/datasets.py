"""Published sets in the layouts that they come in, and how a path is recognised as one of them."""

import functools
import json
import os
from pathlib import Path

import numpy as np

from jaxcolor.errors import UserError
from jaxcolor.prepare.decode import RejectedError
from jaxcolor.prepare.sources import (
    ARCHIVES,
    SPLITS,
    Photo,
    archive,
    archives_in,
    class_from,
    folder,
    photo_from_path,
    read_range,
)


def _first(path, candidates, test=Path.exists):
    """The first of some paths below `path` that is there, or None."""
    return next((path / name for name in candidates if test(path / name)), None)


def _need(found, path, what):
    if found is None:
        raise UserError(f'{path} does not look as expected: {what} is missing')
    return found


def _package(name):
    try:
        return __import__(name, fromlist=[''])
    except ImportError:
        name = name.partition('.')[0]
        raise UserError(f"this source needs the package {name}: pip install 'jaxcolor[sources]'") from None


def _lines(path):
    """The lines of a list as fields and the part of it that is behind them; commas count as blanks."""
    size = path.stat().st_size
    with open(path, encoding='utf-8', errors='replace') as file:
        done = 0
        for line in file:
            done += len(line)
            if fields := line.replace(',', ' ').split():
                yield fields, min(1.0, done / size)


# CelebA: a folder of photos and a list of which is for what.

_CELEBA_LISTS = ('list_eval_partition.txt', 'Eval/list_eval_partition.txt', 'list_eval_partition.csv')
_CELEBA_FOLDERS = ('img_align_celeba/img_align_celeba', 'img_align_celeba', 'Img/img_align_celeba', 'img_celeba')


def celeba(path, limit):
    """CelebA: `list_eval_partition.txt` names the photos and their splits (0 train, 1 validation, 2 test)."""
    partition = _need(_first(path, _CELEBA_LISTS), path, _CELEBA_LISTS[0])
    photos = _need(_first(path, _CELEBA_FOLDERS, Path.is_dir), path, f'the folder {_CELEBA_FOLDERS[1]}')
    splits = {'0': 'train', '1': 'validation', '2': 'test'}
    for fields, position in _lines(partition):
        if len(fields) < 2 or fields[1] not in splits or '/' in fields[0]:
            if fields[0] != 'image_id':
                yield Photo(fields[0], refused='its line in the list is not understood', position=position)
            continue
        load = functools.partial(read_range, os.fspath(photos / fields[0]), 0, None)
        yield photo_from_path([fields[0]], label=None, split=splits[fields[1]], load=load, position=position)


# Places365: lists of paths and class numbers; folders nested by letter and class, or one flat folder a class.

_PLACES_LISTS = {'train': 'places365_train_standard.txt', 'validation': 'places365_val.txt'}
_PLACES_CATEGORIES = ('categories_places365.txt', 'filelist_places365-standard/categories_places365.txt')
_PLACES_FOLDERS = {
    'train': ('data_256_standard', 'data_large_standard', 'data_256', 'data_large', 'train', '.'),
    'validation': ('val_256', 'val_large', 'val', '.'),
}


def _places_list(path, split):
    return _first(path, (_PLACES_LISTS[split], f'filelist_places365-standard/{_PLACES_LISTS[split]}'))


def places365(path, limit):
    """Places365-Standard, small or large images; its own numbers for the classes."""
    lists = {split: found for split in _PLACES_LISTS if (found := _places_list(path, split))}
    if not lists:
        raise UserError(f'{path} does not look as expected: {_PLACES_LISTS["train"]} is missing')
    names = {}  # class number -> name
    if (categories := _first(path, _PLACES_CATEGORIES)) is not None:
        names |= {int(number): name.strip('/').partition('/')[2] for (name, number), _ in _lines(categories)}
    for done, (split, file) in enumerate(lists.items()):
        find = None
        for fields, position in _lines(file):
            parts = fields[0].strip('/').split('/')
            if len(fields) < 2 or not fields[1].isdigit() or '..' in parts:
                yield Photo(fields[0], refused='its line in the list is not understood')
                continue
            find = find or _places_layout(path, split, parts)
            known = class_from(fields[1])
            if len(parts) > 2:  # a/abbey/00000001.jpg
                names.setdefault(known.get('number'), '/'.join(parts[1:-1]))
            known['label'] = names.get(known.get('number'), known['label'])
            known['load'] = functools.partial(read_range, find(parts, known['label']), 0, None)
            yield photo_from_path(parts, split=split, position=(done + position) / len(lists), **known)


def _places_layout(path, split, parts):
    """How to get from a line of the list to a file, as the first line shows."""
    for name in _PLACES_FOLDERS[split]:
        root = os.fspath(path / name)
        layouts = (
            lambda parts, label, root=root: os.path.join(root, *parts),
            lambda parts, label, root=root: os.path.join(root, label.replace('/', '-'), parts[-1]),
        )
        for layout in layouts:
            label = '/'.join(parts[1:-1])
            if os.path.exists(layout(parts, label)):
                return layout
    raise UserError(f'{path} does not look as expected: there is no photo {"/".join(parts)} of its list in any folder')


# LSUN: one LMDB a class and split, its values are JPEG or WebP files.


def lsun(path, limit):
    """LSUN: an LMDB folder, or a folder of them, named `<class>_<split>_lmdb`."""
    folders = [path] if (path / 'data.mdb').exists() else _lmdbs_in(path)
    if not folders:
        raise UserError(f'{path} does not look as expected: there is no LMDB (a folder with data.mdb) in it')
    for done, file in enumerate(folders):
        words = file.name.removesuffix('_lmdb').split('_')
        split = SPLITS.get(words[-1].lower())
        label = '_'.join(words[:-1] if split else words) or None
        with _lmdb(os.fspath(file)).begin() as transaction:
            entries = transaction.stat()['entries']
            for i, key in enumerate(transaction.cursor().iternext(values=False), 1):
                load = functools.partial(_lmdb_value, os.fspath(file), bytes(key))
                name = f'{file.name}/{bytes(key).decode(errors="backslashreplace")}'
                yield Photo(name, label, split=split, load=load, position=(done + i / entries) / len(folders))


def _lmdbs_in(path):
    return sorted(folder for folder in path.iterdir() if (folder / 'data.mdb').exists())


@functools.lru_cache(maxsize=8)
def _lmdb(path):
    lmdb = _package('lmdb')
    try:
        environment = lmdb.open(path, readonly=True, lock=False, readahead=False)
        whole = (environment.info()['last_pgno'] + 1) * environment.stat()['psize']
        size = os.path.getsize(os.path.join(path, 'data.mdb'))
    except lmdb.Error as error:
        raise UserError(f'the LMDB {path} cannot be read ({error}); fetch it again') from None
    if size < whole:  # reading on would end the process, since the file is mapped into memory
        raise UserError(f'the LMDB {path} is cut short: it has {size} of {whole} bytes; fetch it again')
    return environment


def _lmdb_value(path, key, limit):
    lmdb = _package('lmdb')
    try:
        with _lmdb(path).begin(buffers=True) as transaction:
            value = transaction.get(key)
            if value is None:
                raise RejectedError('broken: no value')
            if len(value) > limit:
                raise RejectedError(f'its file is larger than {limit / 1e6:g} MB')
            return bytes(value)
    except lmdb.Error as error:
        raise RejectedError(f'broken: {error}') from None


# Kaggle's "image colorization": lightness in one NumPy file, a* and b* in several.

_GRAY, _AB = ('gray_scale.npy', 'l/gray_scale.npy'), ('', 'ab', 'ab/ab')


def numpy_set(path, limit):
    """`gray_scale.npy` (N, H, W) and `ab1.npy`, ... (M, H, W, 2), M adding up to N: uint8 Lab as OpenCV's and ours."""
    gray_file = _need(_first(path, _GRAY), path, _GRAY[0])
    folder = _need(_first(path, _AB, lambda folder: (folder / 'ab1.npy').exists()), path, 'ab1.npy')
    ab_files = sorted(folder.glob('ab[0-9]*.npy'), key=lambda file: (len(file.name), file.name))
    gray, chroma = _mapped(os.fspath(gray_file)), [_mapped(os.fspath(file)) for file in ab_files]
    for file, array, tail in zip([gray_file, *ab_files], [gray, *chroma], [(), *[(2,)] * len(chroma)], strict=True):
        if array.dtype != np.uint8 or array.ndim != 3 + len(tail) or array.shape[1:] != gray.shape[1:] + tail:
            wanted = '(photos, height, width, 2)' if tail else '(photos, height, width)'
            raise UserError(f'{file} holds {array.dtype} {array.shape}, not uint8 {wanted}')
    total = sum(map(len, chroma))
    if total != len(gray):
        parts = ', '.join(file.name for file in ab_files)
        raise UserError(f'{path} is incomplete: {gray_file.name} holds {len(gray)} photos, {parts} together {total}')
    index = 0
    for file, array in zip(ab_files, chroma, strict=True):
        for row in range(len(array)):
            load = functools.partial(_numpy_photo, os.fspath(gray_file), index, os.fspath(file), row)
            index += 1
            yield Photo(f'{index - 1:06}', load=load, position=index / total)


@functools.lru_cache(maxsize=16)
def _mapped(path):
    try:
        return np.load(path, mmap_mode='r', allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f'{path} is no NumPy file of numbers ({error}); fetch it again') from None


def _numpy_photo(gray, index, ab, row, limit):
    return np.concatenate([_mapped(gray)[index][..., None], _mapped(ab)[row]], axis=-1)


# Hugging Face's image tables.

_IMAGE_COLUMNS, _LABEL_COLUMNS = ('image', 'img', 'jpg'), ('label', 'labels', 'fine_label')


def parquet(path, limit):
    """Parquet files with a column `image` (bytes, or {bytes, path}) and maybe `label`; splits by the files' names."""
    files = [path] if path.is_file() else _parquets_in(path)
    if not files:
        raise UserError(f'{path} holds no .parquet files')
    for done, file in enumerate(files):
        yield from _parquet_rows(file, done, len(files))


def _parquets_in(path):
    return sorted([*path.glob('*.parquet'), *path.glob('data/*.parquet')])


def _parquet_rows(file, done, files):
    pyarrow, pq = _package('pyarrow'), _package('pyarrow.parquet')
    split = SPLITS.get(file.name.split('-')[0].split('.')[0].lower())
    try:
        table = pq.ParquetFile(file)
        columns = table.schema_arrow.names
        image = next((name for name in _IMAGE_COLUMNS if name in columns), None)
        label = next((name for name in _LABEL_COLUMNS if name in columns), None)
        if image is None:
            raise UserError(f'{file} has no column {" or ".join(_IMAGE_COLUMNS)}, but {", ".join(columns)}')
        names = _class_names(table.schema_arrow, label)
        row = 0
        for batch in table.iter_batches(batch_size=16, columns=[name for name in (image, label) if name]):
            for cell in batch.to_pylist():
                row += 1
                value = cell[image]
                value, name = (value.get('bytes'), value.get('path')) if isinstance(value, dict) else (value, None)
                photo = Photo(name or f'{file.stem}/{row - 1:07}', split=split, data=value)
                photo.position = (done + row / table.metadata.num_rows) / files
                if not isinstance(value, bytes):
                    photo.data, photo.refused = None, 'the table holds no image here'
                if label and cell[label] is not None:
                    for key, known in class_from(cell[label]).items():
                        setattr(photo, key, known)
                    photo.label = names.get(photo.number, photo.label)
                yield photo
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f'the table {file} cannot be read ({str(error)[:200]}); fetch it again') from None


def _class_names(schema, label):
    """Class number -> name, where Hugging Face wrote them into the table's schema."""
    try:
        feature = json.loads(schema.metadata[b'huggingface'])['info']['features'][label]
        return dict(enumerate(feature['names']))
    except (KeyError, TypeError, ValueError):
        return {}


# Choosing the source.

SOURCES = {
    'folder': folder,
    'archive': archive,
    'lsun': lsun,
    'celeba': celeba,
    'places365': places365,
    'linnaeus5': folder,  # train and test folders with a folder a class
    'numpy': numpy_set,
    'parquet': parquet,
}


def detect(path):
    """The name of the source that `path` looks like."""
    if path.is_file():
        suffixes = {'.parquet': 'parquet'} | dict.fromkeys(ARCHIVES, 'archive')
        for suffix, name in suffixes.items():
            if path.name.lower().endswith(suffix):
                return name
        raise UserError(f'{path} is neither a folder nor an archive ({", ".join(ARCHIVES)}) nor a .parquet file')
    if _first(path, _CELEBA_LISTS):
        return 'celeba'
    if any(_places_list(path, split) for split in _PLACES_LISTS):
        return 'places365'
    if (path / 'data.mdb').exists() or _lmdbs_in(path):
        return 'lsun'
    if _first(path, _GRAY):
        return 'numpy'
    if _parquets_in(path):
        return 'parquet'
    return 'archive' if archives_in(path) and not any(child.is_dir() for child in path.iterdir()) else 'folder'


def open_source(path, source, limit):
    """The Photos of what lies at `path`.

    Args:
        source: a key of SOURCES, or 'auto'.
        limit: bytes; larger files are refused.

    Raises:
        UserError: nothing there, no such source, not laid out as that source is; while walking: damaged.
    """
    if not path.exists():
        raise UserError(f'{path} does not exist; name the folder or file that holds the photos')
    try:
        return SOURCES[detect(path) if source == 'auto' else source](path, limit)
    except KeyError:
        raise UserError(f'there is no source {source!r}; choose one of auto, {", ".join(SOURCES)}') from None
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}') from None
