"""Folders and archives: the same photos in every layout give the same records."""

import gzip
import os
import struct
import tarfile
import zipfile

import pytest
from odd_photos import forbid_folder
from prepare_helpers import JPEG, JPEGS, SIZE, add_to_tar, prepare_records, prepare_tree, rejected, write, write_tree

from jaxcolor.errors import UserError
from jaxcolor.prepare import datasets, prepare

OPTIONS = {'size': SIZE, 'split': 'train:1', 'quiet': True}


@pytest.fixture(scope='module')
def expected(tmp_path_factory):
    return prepare_tree(tmp_path_factory.mktemp('expected'))


# Folders.


def test_folder_without_splits_and_classes(tmp_path, expected):
    for (_, _, name), data in JPEGS.items():
        write(tmp_path / 'photos' / name, data)
    assert prepare_records(tmp_path / 'photos', tmp_path, split='train:1') == dict.fromkeys(expected, (None, 'train'))


def test_nested_folders_are_one_class_and_order_is_fixed(tmp_path):
    for (label, _, name), data in JPEGS.items():
        write(tmp_path / 'photos' / 'scenes' / label / name, data)
    write(tmp_path / 'photos' / '.hidden' / 'x.jpg', b'')
    write(tmp_path / 'photos' / 'scenes' / '._x.jpg', b'')
    write(tmp_path / 'photos' / 'scenes' / 'readme.txt', b'')
    shards = prepare(tmp_path / 'photos', tmp_path / 'out', **OPTIONS)
    assert shards.classes == ['scenes', 'scenes/a', 'scenes/b'] or shards.classes == ['scenes/a', 'scenes/b']
    assert rejected(tmp_path) == {'scenes/readme.txt': 'not a photo, by its name'}
    names = [shards.records('train')[i]['name'] for i in range(6)]
    assert names == sorted(names)


def test_names_that_are_not_utf8(tmp_path):
    data = JPEG
    folder = os.fsencode(tmp_path / 'photos') + b'/class\xff'
    os.makedirs(folder)
    with open(folder + b'/\xfe.jpg', 'wb') as file:
        file.write(data)
    shards = prepare(tmp_path / 'photos', tmp_path / 'out', **OPTIONS)
    assert shards.records('train')[0]['name'] == 'class\\xff/\\xfe.jpg' and shards.classes == ['class\\xff']


@pytest.mark.parametrize('source', ['auto', 'linnaeus5'])
def test_linnaeus5(tmp_path, expected, source):
    for (label, split, name), data in JPEGS.items():
        write(tmp_path / 'Linnaeus 5 32X32' / {'train': 'train', 'validation': 'test'}[split] / label / name, data)
    records = prepare_records(tmp_path / 'Linnaeus 5 32X32', tmp_path, source=source)
    assert records == {lab: (label, split.replace('validation', 'test')) for lab, (label, split) in expected.items()}


# Archives.


@pytest.mark.parametrize('mode', ['w', 'w:gz', 'w:xz'])
def test_tar(tmp_path, expected, mode):
    suffix = mode.replace('w', '.tar').replace(':', '.')
    with tarfile.open(tmp_path / f'set{suffix}', mode) as tar:
        for (label, split, name), data in JPEGS.items():
            add_to_tar(tar, f'set/{split}/{label}/{name}', data)  # a leading folder of the archive's name does not count
    records = prepare_records(tmp_path / f'set{suffix}', tmp_path, shard_photos=2)
    assert records == expected
    assert not list((tmp_path / 'out').rglob('*.spool'))


@pytest.mark.parametrize('method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip(tmp_path, expected, method):
    with zipfile.ZipFile(tmp_path / 'photos.zip', 'w', method) as archive:
        for (label, split, name), data in JPEGS.items():
            archive.writestr(f'{split}/{label}/{name}', data)
        archive.writestr('__MACOSX/._x.jpg', b'')
    assert prepare_records(tmp_path / 'photos.zip', tmp_path) == expected


def test_webdataset(tmp_path):
    """Several tars; the class number stands beside each photo; the split is in the tar's name."""
    for tar_split, tar_name in (('train', 'train-000000.tar'), ('validation', 'val-000000.tar')):
        (tmp_path / 'set').mkdir(exist_ok=True)
        with tarfile.open(tmp_path / 'set' / tar_name, 'w') as tar:
            for i, ((_, split, name), data) in enumerate(JPEGS.items()):
                if split == tar_split:
                    for ext, content in (('cls', b'%d' % (i % 2 + 3)), ('jpg', data), ('json', b'{}')):
                        add_to_tar(tar, name.replace('jpg', ext), content)
    shards = prepare(tmp_path / 'set', tmp_path / 'out', size=SIZE, quiet=True)
    assert shards.counts == {'train': 4, 'validation': 2} and shards.meta['rejected'] == 0
    labels = [int(shards.records('train')[i]['label']) for i in range(4)]
    assert labels == [3, 4, 3, 4] and shards.classes == ['0', '1', '2', '3', '4']


def test_webdataset_with_empty_class(tmp_path):
    with tarfile.open(tmp_path / 'set.tar.gz', 'w:gz') as tar:
        add_to_tar(tar, '1.cls', b'')
        add_to_tar(tar, '1.jpg', JPEG)
    assert list(prepare_records(tmp_path / 'set.tar.gz', tmp_path, split='train:1').values()) == [(None, 'train')]


@pytest.mark.parametrize('suffix', ['tar', 'tar.gz', 'zip'])
def test_unsafe_names_in_archives(tmp_path, suffix):
    file = tmp_path / f'photos.{suffix}'
    data = JPEG
    names = ['../outside.jpg', '/absolute.jpg', 'a/../../b.jpg', 'good/1.jpg']
    if suffix == 'zip':
        with zipfile.ZipFile(file, 'w') as archive:
            for name in names:
                archive.writestr(name, data)
    else:
        with tarfile.open(file, 'w:gz' if suffix == 'tar.gz' else 'w') as tar:
            for name in names:
                add_to_tar(tar, name, data)
    shards = prepare(file, tmp_path / 'out', **OPTIONS)
    assert shards.counts == {'train': 1} and shards.records('train')[0]['name'] == 'good/1.jpg'
    assert set(rejected(tmp_path)) == set(names[:3])
    assert set(rejected(tmp_path).values()) == {'its name leads out of the archive'}
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out', file.name]


@pytest.mark.parametrize('suffix', ['tar', 'tar.gz', 'zip'])
def test_archive_bomb_is_rejected(tmp_path, suffix):
    file, bomb = tmp_path / f'photos.{suffix}', bytes(5_000_000)
    if suffix == 'zip':
        with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
            archive.writestr('bomb.jpg', bomb)
            archive.writestr('good.jpg', JPEG)
        # The directory claims that the bomb is small.
        content = bytearray(file.read_bytes())
        entry = content.index(b'PK\1\2')
        content[entry + 24 : entry + 28] = struct.pack('<I', 1000)
        file.write_bytes(content)
    else:
        with tarfile.open(file, 'w:gz' if suffix == 'tar.gz' else 'w') as tar:
            add_to_tar(tar, 'bomb.jpg', bomb)
            add_to_tar(tar, 'good.jpg', JPEG)
    assert prepare(file, tmp_path / 'out', max_file_mb=2, **OPTIONS).counts == {'train': 1}
    assert 'more than 2 MB' in rejected(tmp_path)['bomb.jpg'] or 'larger than 2 MB' in rejected(tmp_path)['bomb.jpg']
    raised = prepare(file, tmp_path / 'other', max_file_mb=6, **OPTIONS)
    assert raised.counts == {'train': 1} and 'bomb.jpg,not a photo' in (raised.path / 'rejected.csv').read_text()


@pytest.mark.parametrize('suffix', ['tar', 'tar.gz', 'zip'])
def test_truncated_archive(tmp_path, suffix):
    file = tmp_path / f'photos.{suffix}'
    if suffix == 'zip':
        with zipfile.ZipFile(file, 'w') as archive:
            for (_, _, name), data in JPEGS.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(file, 'w:gz' if suffix == 'tar.gz' else 'w') as tar:
            for (_, _, name), data in JPEGS.items():
                add_to_tar(tar, name, data)
    file.write_bytes(file.read_bytes()[: sum(map(len, JPEGS.values())) // 2])
    with pytest.raises(UserError, match=f'{file.name} is cut short or damaged'):
        prepare(file, tmp_path / 'out', **OPTIONS)


def test_gzip_of_something_else(tmp_path):
    (tmp_path / 'photos.tar.gz').write_bytes(gzip.compress(b'no tar' * 1000))
    with pytest.raises(UserError, match='cut short or damaged'):
        prepare(tmp_path / 'photos.tar.gz', tmp_path / 'out', **OPTIONS)


# Detection.


def test_wrong_source(tmp_path):
    write_tree(tmp_path / 'photos')
    for source, message in {
        'celeba': 'list_eval_partition.txt is missing',
        'places365': 'places365_train_standard.txt is missing',
        'lsun': 'there is no LMDB',
        'numpy': 'gray_scale.npy is missing',
        'parquet': r'holds no \.parquet files',
        'archive': 'holds no archives',
        'nonsense': "there is no source 'nonsense'",
    }.items():
        with pytest.raises(UserError, match=message):
            prepare(tmp_path / 'photos', tmp_path / 'out', source=source, **OPTIONS)
    write(tmp_path / 'text.txt', b'text')
    with pytest.raises(UserError, match='neither a folder nor an archive'):
        datasets.detect(tmp_path / 'text.txt')


@pytest.mark.parametrize('name', ['old.zip', 'metadata.parquet'])
def test_photos_beside_an_archive_or_a_table(tmp_path, name):
    write(tmp_path / 'photos' / 'a.jpg', JPEG)
    write(tmp_path / 'photos' / name, b'text')
    assert datasets.detect(tmp_path / 'photos') == 'folder'
    assert prepare(tmp_path / 'photos', tmp_path / 'out', **OPTIONS).counts == {'train': 1}
    assert rejected(tmp_path) == {name: 'not a photo, by its name'}


def test_folders_that_cannot_be_read_loops_and_pipes(tmp_path, monkeypatch):
    """They are rejected by name, and the other photos are prepared."""
    write(tmp_path / 'photos' / 'a' / '1.jpg', JPEG)
    write(tmp_path / 'photos' / 'secret' / '2.jpg', JPEG)
    for name in ('l1', 'l2'):  # followed, they would be endless
        (tmp_path / 'photos' / name).symlink_to('.')
    os.mkfifo(tmp_path / 'photos' / 'a' / 'pipe.jpg')  # opened, it would block
    forbid_folder(monkeypatch, 'secret')
    assert len(prepare_records(tmp_path / 'photos', tmp_path, workers=1, split='train:1')) == 1
    assert rejected(tmp_path) == {
        'a/pipe.jpg': 'is neither a file nor a folder',
        'l1': 'is a link to a folder that it lies in',
        'l2': 'is a link to a folder that it lies in',
        'secret': 'cannot be read (Permission denied)',
    }
