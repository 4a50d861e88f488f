"""Published datasets in their original layouts: the same photos in each give the same records."""

import errno
import io
import json
import os
import sys
from pathlib import Path

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from prepare_helpers import JPEG, JPEGS, SIZE, prepare_records, prepare_tree, rejected, write

from jaxcolor import color
from jaxcolor.data.shards import open_shards
from jaxcolor.errors import UserError
from jaxcolor.prepare import prepare
from jaxcolor.prepare.datasets import detect

OPTIONS = {'size': SIZE, 'split': 'train:1', 'quiet': True}


def test_a_folder_that_cannot_be_read_is_no_data_set(tmp_path, monkeypatch):
    (tmp_path / 'closed').mkdir()
    stat = os.stat

    def deny(path, *args, **options):
        if isinstance(path, (str, os.PathLike)) and 'closed' in Path(path).parent.parts:
            raise PermissionError(errno.EACCES, 'Permission denied', os.fspath(path))
        return stat(path, *args, **options)

    monkeypatch.setattr(os, 'stat', deny)
    assert detect(tmp_path) == 'folder'


@pytest.fixture(scope='module')
def expected(tmp_path_factory):
    return prepare_tree(tmp_path_factory.mktemp('expected'))


# LSUN.


def write_lsun(root):
    for (label, split, name), data in JPEGS.items():
        folder = root / f'{label}_{split.replace("validation", "val")}_lmdb'
        folder.mkdir(parents=True, exist_ok=True)
        with lmdb.open(str(folder), map_size=10_000_000) as environment, environment.begin(write=True) as transaction:
            transaction.put(name.encode(), data)


def test_lsun(tmp_path, expected):
    write_lsun(tmp_path / 'lsun')
    assert prepare_records(tmp_path / 'lsun', tmp_path) == expected


def test_single_lmdb_with_broken_and_webp_values(tmp_path, expected):
    write_lsun(tmp_path / 'lsun')
    folder = tmp_path / 'lsun' / 'a_train_lmdb'
    webp = io.BytesIO()
    Image.open(io.BytesIO(JPEG)).save(webp, 'WEBP', lossless=True)
    with lmdb.open(str(folder), map_size=10_000_000) as environment, environment.begin(write=True) as transaction:
        transaction.put(b'broken', JPEG[:-500])
        transaction.put(b'empty', b'')
        transaction.put(b'garbage', bytes(range(256)))
        transaction.put(b'webp', webp.getvalue())
    shards = prepare(folder, tmp_path / 'out', size=SIZE, quiet=True)
    assert shards.counts == {'train': 3} and shards.classes == ['a']
    reasons = rejected(tmp_path)
    assert reasons.keys() == {'a_train_lmdb/broken', 'a_train_lmdb/empty', 'a_train_lmdb/garbage'}
    assert reasons['a_train_lmdb/broken'] == 'truncated' and reasons['a_train_lmdb/garbage'] == 'not a photo'


def test_truncated_lmdb(tmp_path):
    write_lsun(tmp_path / 'lsun')
    file = tmp_path / 'lsun' / 'a_train_lmdb' / 'data.mdb'
    file.write_bytes(file.read_bytes()[:8192])
    with pytest.raises(UserError, match=r'cut short|cannot be read'):
        prepare(tmp_path / 'lsun', tmp_path / 'out', **OPTIONS)


# CelebA and Places365.


def without_class(expected):
    return {lab: (None, split) for lab, (_, split) in expected.items()}


@pytest.mark.parametrize('layout', ['flat', 'Img'])
def test_celeba(tmp_path, expected, layout):
    root = tmp_path / 'celeba'
    lines = []
    for (_, split, name), data in JPEGS.items():
        write((root if layout == 'flat' else root / 'Img') / 'img_align_celeba' / name, data)
        lines.append(f'{name} {["train", "validation"].index(split)}\n')
    write(root / ('' if layout == 'flat' else 'Eval') / 'list_eval_partition.txt', ''.join(lines).encode())
    assert prepare_records(root, tmp_path) == without_class(expected)


def test_celeba_by_the_report_s_numbers(tmp_path, cli):
    """As 1,000, 200 and 200 of 200,000 are taken by one command: --limit by split."""
    root = tmp_path / 'celeba'
    lines = [f'{i}.jpg {[0, 0, 0, 1, 2][i % 5]}\n' for i in range(20)]
    for i in range(20):
        write(root / 'img_align_celeba' / f'{i}.jpg', list(JPEGS.values())[i % 6])
    write(root / 'list_eval_partition.txt', ''.join(lines).encode())
    limit = '--limit=train:5,validation:3,test:2'
    code, _, err = cli('prepare', root, f'--out={tmp_path / "out"}', f'--size={SIZE}', limit, '--quiet', '--workers=1')
    assert code == 0, err
    assert open_shards(tmp_path / 'out').counts == {'test': 2, 'train': 5, 'validation': 3}


def test_celeba_with_a_missing_photo_and_bad_lines(tmp_path):
    write(tmp_path / 'secret.jpg', JPEG)
    write(tmp_path / 'set' / 'img_align_celeba' / '1.jpg', JPEG)
    write(tmp_path / 'set' / 'list_eval_partition.txt', b'1.jpg 0\n2.jpg 0\n../../secret.jpg 0\n3.jpg x\n')
    assert prepare(tmp_path / 'set', tmp_path / 'out', size=SIZE, quiet=True).counts == {'train': 1}
    reasons = rejected(tmp_path)
    assert 'No such file' in reasons['2.jpg']
    assert reasons['../../secret.jpg'] == reasons['3.jpg'] == 'its line in the list is not understood'


@pytest.mark.parametrize('layout', ['nested', 'flat'])
def test_places365(tmp_path, layout):
    """Class numbers of the lists; folders nested by letter and class, or one flat folder a class."""
    root, names = tmp_path / 'places', {'a': 'attic', 'b': 'beach/sandy'}
    train, val = [], []
    for (label, split, name), data in JPEGS.items():
        number = {'a': 2, 'b': 5}[label]
        if split == 'train':
            train.append(f'/{label}/{names[label]}/{name} {number}\n')
            nested = root / 'data_256_standard' / label / names[label] / name
            write(nested if layout == 'nested' else root / 'train' / names[label].replace('/', '-') / name, data)
        else:
            val.append(f'Places365_val_{name} {number}\n')
            write(root / ('val_256' if layout == 'nested' else 'val') / f'Places365_val_{name}', data)
    (root / 'places365_train_standard.txt').write_text(''.join(train))
    (root / 'places365_val.txt').write_text(''.join(val))
    shards = prepare(root, tmp_path / 'out', size=SIZE, quiet=True)
    assert shards.counts == {'train': 4, 'validation': 2} and shards.meta['rejected'] == 0
    assert shards.classes == ['0', '1', 'attic', '3', '4', 'beach/sandy']
    assert [int(shards.records('train')[i]['label']) for i in range(4)] == [2, 5, 2, 5]
    assert [int(shards.records('validation')[i]['label']) for i in range(2)] == [2, 5]
    only = prepare(root, tmp_path / 'only', size=SIZE, classes=('attic',), quiet=True)
    assert only.counts == {'train': 2, 'validation': 1} and int(only.records('train')[0]['label']) == 2


def test_places365_test_photos_and_fractions_of_the_rest(tmp_path):
    """Test photos have no classes; a split by fractions leaves them where they are."""
    root = tmp_path / 'places'
    train = []
    for i in range(20):
        write(root / 'data_256_standard' / 'a' / 'attic' / f'{i:08}.jpg', list(JPEGS.values())[i % 6])
        train.append(f'/a/attic/{i:08}.jpg 2\n')
    (root / 'places365_train_standard.txt').write_text(''.join(train))
    (root / 'places365_test.txt').write_text('Places365_test_1.jpg\nPlaces365_test_2.jpg\n')
    assert prepare(root, tmp_path / 'without', size=SIZE, split='train:1', quiet=True).counts == {'train': 20}
    for i, data in enumerate(list(JPEGS.values())[:2], 1):
        write(root / 'test_256' / f'Places365_test_{i}.jpg', data)
    split = 'train:0.8,validation:0.2,test:test'
    shards = prepare(root, tmp_path / 'out', size=SIZE, split=split, limit_per_class=15, quiet=True)
    assert shards.counts['train'] + shards.counts['validation'] == 15 and shards.counts['test'] == 2
    assert shards.counts['train'] > shards.counts['validation'] > 0
    test, train = shards.records('test'), shards.records('train')
    assert [test[i]['name'] for i in range(2)] == ['Places365_test_1.jpg', 'Places365_test_2.jpg']
    assert {int(test[i]['label']) for i in range(2)} == {-1} and int(train[0]['label']) == 2


def test_places365_without_its_photos(tmp_path):
    write(tmp_path / 'set' / 'places365_val.txt', b'Places365_val_1.jpg 3\n')
    with pytest.raises(UserError, match=r'there is no photo Places365_val_1\.jpg'):
        prepare(tmp_path / 'set', tmp_path / 'out', **OPTIONS)


# NumPy.


def numpy_arrays():
    rgb = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in JPEGS.values()])
    lab = color.encode_lab(color.rgb_to_lab(rgb))
    return lab[..., 0], lab[..., 1:]


def test_numpy_set_is_stored_unchanged(tmp_path):
    gray, ab = numpy_arrays()
    (tmp_path / 'set' / 'l').mkdir(parents=True)
    (tmp_path / 'set' / 'ab' / 'ab').mkdir(parents=True)
    np.save(tmp_path / 'set' / 'l' / 'gray_scale.npy', gray)
    for i, part in enumerate((ab[:3], ab[3:5], ab[5:]), 1):
        np.save(tmp_path / 'set' / 'ab' / 'ab' / f'ab{i}.npy', part)
    shards = prepare(tmp_path / 'set', tmp_path / 'out', **{**OPTIONS, 'size': 64})
    source = shards.records('train')
    for i in range(6):
        np.testing.assert_array_equal(source[i]['lab'], np.concatenate([gray[i][..., None], ab[i]], axis=-1))
    smaller = prepare(tmp_path / 'set', tmp_path / 'smaller', **{**OPTIONS, 'size': 30}).records('train')[0]['lab']
    pairs = source[0]['lab'].reshape(30, 2, 40, 2, 3).mean(axis=(1, 3))
    assert smaller.shape == (30, 40, 3) and np.abs(smaller - pairs).max() <= 1


def test_invalid_numpy_set(tmp_path):
    gray, ab = numpy_arrays()

    def make(name, gray, ab):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / 'gray_scale.npy', gray)
        np.save(tmp_path / name / 'ab1.npy', ab)
        return tmp_path / name

    bad = [
        (make('short', gray, ab[:4]), 'gray_scale.npy holds 6 photos, ab1.npy together 4'),
        (make('float', gray, ab.astype(np.float32)), 'float32'),
        (make('shape', gray, ab[:, 1:]), 'not uint8'),
        (make('object', gray, np.array([PickleBomb()], object)), 'not a NumPy file of numbers'),
    ]
    cut = make('cut', gray, ab)
    (cut / 'ab1.npy').write_bytes((cut / 'ab1.npy').read_bytes()[:5000])
    bad.append((cut, 'not a NumPy file of numbers'))
    for path, message in bad:
        with pytest.raises(UserError, match=message):
            prepare(path, tmp_path / 'out', **OPTIONS)
    assert not PickleBomb.was_unpickled


class PickleBomb:
    """Shows whether it was unpickled."""

    was_unpickled = False

    def __reduce__(self):
        return setattr, (PickleBomb, 'was_unpickled', True)


# Parquet.


def write_parquet(root, names=('a', 'b')):
    features = {'image': {'_type': 'Image'}, 'label': {'_type': 'ClassLabel', 'names': list(names)}}
    schema = pa.schema(
        {'image': pa.struct({'bytes': pa.binary(), 'path': pa.string()}), 'label': pa.int64()},
        metadata={'huggingface': json.dumps({'info': {'features': features}})},
    )
    root.mkdir()
    for wanted in ('train', 'validation'):
        rows = [
            {'image': {'bytes': data, 'path': name}, 'label': 'ab'.index(label)}
            for (label, split, name), data in JPEGS.items()
            if split == wanted
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema), root / f'{wanted}-00000-of-00001.parquet')


def test_parquet(tmp_path, expected):
    write_parquet(tmp_path / 'set')
    assert prepare_records(tmp_path / 'set', tmp_path, shard_photos=3) == expected


def test_classes_of_the_same_name_stay_apart(tmp_path):
    """ImageNet has two cranes."""
    write_parquet(tmp_path / 'set', ('crane', 'crane'))
    shards = prepare(tmp_path / 'set', tmp_path / 'out', size=SIZE, quiet=True)
    assert shards.classes == ['crane', 'crane']
    assert [int(shards.records('train')[i]['label']) for i in range(4)] == [0, 1, 0, 1]


def test_parquet_of_plain_bytes_with_missing_images(tmp_path, expected):
    table = pa.table({'image': [*JPEGS.values(), None, b'garbage']})
    pq.write_table(table, tmp_path / 'photos.parquet')
    assert prepare_records(tmp_path / 'photos.parquet', tmp_path, split='train:1').keys() == expected.keys()
    assert rejected(tmp_path) == {'photos/0000006': 'the table holds no image here', 'photos/0000007': 'not a photo'}


def test_invalid_parquet(tmp_path):
    pq.write_table(pa.table({'text': ['x']}), tmp_path / 'text.parquet')
    with pytest.raises(UserError, match='has no column image'):
        prepare(tmp_path / 'text.parquet', tmp_path / 'out', **OPTIONS)
    (tmp_path / 'cut.parquet').write_bytes((tmp_path / 'text.parquet').read_bytes()[:-10])
    with pytest.raises(UserError, match=r'cut\.parquet cannot be read'):
        prepare(tmp_path / 'cut.parquet', tmp_path / 'out', **OPTIONS)


@pytest.mark.parametrize('package', ['lmdb', 'pyarrow'])
def test_missing_package_is_named(tmp_path, monkeypatch, package):
    write_lsun(tmp_path / 'lsun')
    write_parquet(tmp_path / 'parquet')
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"package {package}: pip install 'jaxcolor\[sources\]'"):
        prepare(tmp_path / ('lsun' if package == 'lmdb' else 'parquet'), tmp_path / 'out', **OPTIONS)
