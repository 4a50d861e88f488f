"""Every source in its true layout: the same photos through each give the same records."""

import gzip
import io
import json
import os
import struct
import sys
import tarfile
import zipfile

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jaxcolor import color
from jaxcolor.errors import UserError
from jaxcolor.prepare import bundled, datasets, prepare

SIZE = 48
OPTIONS = {'size': SIZE, 'split': 'train:1', 'quiet': True}


def _photos():
    """{(class, split, file name): JPEG bytes} of six bundled photos, 60 pixels high."""
    photos = {}
    for i, path in enumerate(sorted((bundled.PHOTOS / 'train').glob('*.jpg'))[:6]):
        file = io.BytesIO()
        Image.open(path).resize((80, 60)).save(file, 'JPEG', quality=95)
        photos['ab'[i % 2], 'train' if i < 4 else 'validation', f'{i:08}.jpg'] = file.getvalue()
    return photos


PHOTOS = _photos()


def records(path, tmp_path, **options):
    """What prepare makes of a source: {Lab bytes: (class or None, split)}."""
    shards = prepare(path, tmp_path / 'out', **{'size': SIZE, 'quiet': True, **options})
    found = {}
    for split in shards.counts:
        source = shards.records(split)
        for i in range(len(source)):
            label = int(source[i]['label'])
            found[source[i]['lab'].tobytes()] = (shards.classes[label] if label >= 0 else None, split)
    return found


def rejected(tmp_path):
    """rejected.csv as {name: reason}."""
    lines = (tmp_path / 'out' / 'rejected.csv').read_text().splitlines()[1:]
    return {name: reason.strip('"') for name, reason in (line.split(',', 1) for line in lines)}


@pytest.fixture(scope='module')
def expected(tmp_path_factory):
    """The records as the folder source makes them."""
    root = tmp_path_factory.mktemp('expected')
    write_tree(root / 'photos')
    found = records(root / 'photos', root)
    assert len(found) == 6
    assert set(found.values()) == {(label, split) for label in 'ab' for split in ('train', 'validation')}
    return found


def without_class(expected):
    return {lab: (None, split) for lab, (_, split) in expected.items()}


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_tree(root):
    for (label, split, name), data in PHOTOS.items():
        write(root / split / label / name, data)


def add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


# Folders.


def test_folder_without_splits_and_classes(tmp_path, expected):
    for (_, _, name), data in PHOTOS.items():
        write(tmp_path / 'photos' / name, data)
    assert records(tmp_path / 'photos', tmp_path, split='train:1') == dict.fromkeys(expected, (None, 'train'))


def test_nested_folders_are_one_class_and_order_is_fixed(tmp_path):
    for (label, _, name), data in PHOTOS.items():
        write(tmp_path / 'photos' / 'scenes' / label / name, data)
    write(tmp_path / 'photos' / '.hidden' / 'x.jpg', b'')
    write(tmp_path / 'photos' / 'scenes' / '._x.jpg', b'')
    write(tmp_path / 'photos' / 'scenes' / 'readme.txt', b'')
    shards = prepare(tmp_path / 'photos', tmp_path / 'out', **OPTIONS)
    assert shards.classes == ['scenes', 'scenes/a', 'scenes/b'] or shards.classes == ['scenes/a', 'scenes/b']
    assert rejected(tmp_path) == {'scenes/readme.txt': 'not a photo, by its name'}
    names = [shards.records('train')[i]['name'] for i in range(6)]
    assert names == sorted(names)


def test_names_that_are_no_utf8(tmp_path):
    data = next(iter(PHOTOS.values()))
    folder = os.fsencode(tmp_path / 'photos') + b'/class\xff'
    os.makedirs(folder)
    with open(folder + b'/\xfe.jpg', 'wb') as file:
        file.write(data)
    shards = prepare(tmp_path / 'photos', tmp_path / 'out', **OPTIONS)
    assert shards.records('train')[0]['name'] == 'class\\xff/\\xfe.jpg' and shards.classes == ['class\\xff']


@pytest.mark.parametrize('source', ['auto', 'linnaeus5'])
def test_linnaeus5(tmp_path, expected, source):
    for (label, split, name), data in PHOTOS.items():
        write(tmp_path / 'Linnaeus 5 32X32' / {'train': 'train', 'validation': 'test'}[split] / label / name, data)
    found = records(tmp_path / 'Linnaeus 5 32X32', tmp_path, source=source)
    assert found == {lab: (label, split.replace('validation', 'test')) for lab, (label, split) in expected.items()}


# Archives.


@pytest.mark.parametrize('mode', ['w', 'w:gz', 'w:xz'])
def test_tar(tmp_path, expected, mode):
    suffix = mode.replace('w', '.tar').replace(':', '.')
    with tarfile.open(tmp_path / f'set{suffix}', mode) as tar:
        for (label, split, name), data in PHOTOS.items():
            add(tar, f'set/{split}/{label}/{name}', data)  # a leading folder of the archive's name does not count
    found = records(tmp_path / f'set{suffix}', tmp_path, shard_photos=2)
    assert found == expected
    assert not list((tmp_path / 'out').rglob('*.spool'))


@pytest.mark.parametrize('method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip(tmp_path, expected, method):
    with zipfile.ZipFile(tmp_path / 'photos.zip', 'w', method) as archive:
        for (label, split, name), data in PHOTOS.items():
            archive.writestr(f'{split}/{label}/{name}', data)
        archive.writestr('__MACOSX/._x.jpg', b'')
    assert records(tmp_path / 'photos.zip', tmp_path) == expected


def test_webdataset(tmp_path):
    """Several tars; the class number stands beside each photo; the split is in the tar's name."""
    for tar_split, tar_name in (('train', 'train-000000.tar'), ('validation', 'val-000000.tar')):
        (tmp_path / 'set').mkdir(exist_ok=True)
        with tarfile.open(tmp_path / 'set' / tar_name, 'w') as tar:
            for i, ((_, split, name), data) in enumerate(PHOTOS.items()):
                if split == tar_split:
                    for ext, content in (('cls', b'%d' % (i % 2 + 3)), ('jpg', data), ('json', b'{}')):
                        add(tar, name.replace('jpg', ext), content)
    shards = prepare(tmp_path / 'set', tmp_path / 'out', size=SIZE, quiet=True)
    assert shards.counts == {'train': 4, 'validation': 2} and shards.meta['rejected'] == 0
    labels = [int(shards.records('train')[i]['label']) for i in range(4)]
    assert labels == [3, 4, 3, 4] and shards.classes == ['0', '1', '2', '3', '4']


@pytest.mark.parametrize('suffix', ['tar', 'tar.gz', 'zip'])
def test_unsafe_names_in_archives(tmp_path, suffix):
    file = tmp_path / f'photos.{suffix}'
    data = next(iter(PHOTOS.values()))
    names = ['../outside.jpg', '/absolute.jpg', 'a/../../b.jpg', 'good/1.jpg']
    if suffix == 'zip':
        with zipfile.ZipFile(file, 'w') as archive:
            for name in names:
                archive.writestr(name, data)
    else:
        with tarfile.open(file, 'w:gz' if suffix == 'tar.gz' else 'w') as tar:
            for name in names:
                add(tar, name, data)
    shards = prepare(file, tmp_path / 'out', **OPTIONS)
    assert shards.counts == {'train': 1} and shards.records('train')[0]['name'] == 'good/1.jpg'
    assert set(rejected(tmp_path)) == set(names[:3])
    assert set(rejected(tmp_path).values()) == {'its name leads out of the archive'}
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out', file.name]


@pytest.mark.parametrize('suffix', ['tar', 'tar.gz', 'zip'])
def test_bomb_in_an_archive_is_refused_by_a_limit(tmp_path, suffix):
    file, bomb = tmp_path / f'photos.{suffix}', bytes(5_000_000)
    if suffix == 'zip':
        with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
            archive.writestr('bomb.jpg', bomb)
            archive.writestr('good.jpg', next(iter(PHOTOS.values())))
        # The directory claims that the bomb is small.
        content = bytearray(file.read_bytes())
        entry = content.index(b'PK\1\2')
        content[entry + 24 : entry + 28] = struct.pack('<I', 1000)
        file.write_bytes(content)
    else:
        with tarfile.open(file, 'w:gz' if suffix == 'tar.gz' else 'w') as tar:
            add(tar, 'bomb.jpg', bomb)
            add(tar, 'good.jpg', next(iter(PHOTOS.values())))
    assert prepare(file, tmp_path / 'out', max_file_mb=2, **OPTIONS).counts == {'train': 1}
    assert 'more than 2 MB' in rejected(tmp_path)['bomb.jpg'] or 'larger than 2 MB' in rejected(tmp_path)['bomb.jpg']
    raised = prepare(file, tmp_path / 'other', max_file_mb=6, **OPTIONS)
    assert raised.counts == {'train': 1} and 'bomb.jpg,not a photo' in (raised.path / 'rejected.csv').read_text()


@pytest.mark.parametrize('suffix', ['tar', 'tar.gz', 'zip'])
def test_archive_cut_short(tmp_path, suffix):
    file = tmp_path / f'photos.{suffix}'
    if suffix == 'zip':
        with zipfile.ZipFile(file, 'w') as archive:
            for (_, _, name), data in PHOTOS.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(file, 'w:gz' if suffix == 'tar.gz' else 'w') as tar:
            for (_, _, name), data in PHOTOS.items():
                add(tar, name, data)
    file.write_bytes(file.read_bytes()[: sum(map(len, PHOTOS.values())) // 2])
    with pytest.raises(UserError, match=f'{file.name} is cut short or damaged'):
        prepare(file, tmp_path / 'out', **OPTIONS)


def test_gzip_of_garbage(tmp_path):
    (tmp_path / 'photos.tar.gz').write_bytes(gzip.compress(b'no tar' * 1000))
    with pytest.raises(UserError, match='cut short or damaged'):
        prepare(tmp_path / 'photos.tar.gz', tmp_path / 'out', **OPTIONS)


# LSUN.


def write_lsun(root):
    for (label, split, name), data in PHOTOS.items():
        folder = root / f'{label}_{split.replace("validation", "val")}_lmdb'
        folder.mkdir(parents=True, exist_ok=True)
        with lmdb.open(str(folder), map_size=10_000_000) as environment, environment.begin(write=True) as transaction:
            transaction.put(name.encode(), data)


def test_lsun(tmp_path, expected):
    write_lsun(tmp_path / 'lsun')
    assert records(tmp_path / 'lsun', tmp_path) == expected


def test_one_lmdb_with_broken_and_webp_values(tmp_path, expected):
    write_lsun(tmp_path / 'lsun')
    folder = tmp_path / 'lsun' / 'a_train_lmdb'
    webp = io.BytesIO()
    Image.open(io.BytesIO(next(iter(PHOTOS.values())))).save(webp, 'WEBP', lossless=True)
    with lmdb.open(str(folder), map_size=10_000_000) as environment, environment.begin(write=True) as transaction:
        transaction.put(b'broken', next(iter(PHOTOS.values()))[:-500])
        transaction.put(b'empty', b'')
        transaction.put(b'garbage', bytes(range(256)))
        transaction.put(b'webp', webp.getvalue())
    shards = prepare(folder, tmp_path / 'out', size=SIZE, quiet=True)
    assert shards.counts == {'train': 3} and shards.classes == ['a']
    reasons = rejected(tmp_path)
    assert reasons.keys() == {'a_train_lmdb/broken', 'a_train_lmdb/empty', 'a_train_lmdb/garbage'}
    assert reasons['a_train_lmdb/broken'] == 'truncated' and reasons['a_train_lmdb/garbage'] == 'not a photo'


def test_lmdb_cut_short(tmp_path):
    write_lsun(tmp_path / 'lsun')
    file = tmp_path / 'lsun' / 'a_train_lmdb' / 'data.mdb'
    file.write_bytes(file.read_bytes()[:8192])
    with pytest.raises(UserError, match=r'cut short|cannot be read'):
        prepare(tmp_path / 'lsun', tmp_path / 'out', **OPTIONS)


# CelebA and Places365.


@pytest.mark.parametrize('layout', ['flat', 'Img'])
def test_celeba(tmp_path, expected, layout):
    root = tmp_path / 'celeba'
    lines = []
    for (_, split, name), data in PHOTOS.items():
        write((root if layout == 'flat' else root / 'Img') / 'img_align_celeba' / name, data)
        lines.append(f'{name} {["train", "validation"].index(split)}\n')
    write(root / ('' if layout == 'flat' else 'Eval') / 'list_eval_partition.txt', ''.join(lines).encode())
    assert records(root, tmp_path) == without_class(expected)


def test_celeba_with_a_missing_photo_and_a_list_that_leads_out(tmp_path):
    write(tmp_path / 'secret.jpg', next(iter(PHOTOS.values())))
    write(tmp_path / 'set' / 'img_align_celeba' / '1.jpg', next(iter(PHOTOS.values())))
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
    for (label, split, name), data in PHOTOS.items():
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


def test_places365_without_its_photos(tmp_path):
    write(tmp_path / 'set' / 'places365_val.txt', b'Places365_val_1.jpg 3\n')
    with pytest.raises(UserError, match=r'there is no photo Places365_val_1\.jpg'):
        prepare(tmp_path / 'set', tmp_path / 'out', **OPTIONS)


# NumPy.


def numpy_arrays():
    rgb = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in PHOTOS.values()])
    lab = color.encode_lab(color.rgb_to_lab(rgb))
    return lab[..., 0], lab[..., 1:]


def test_numpy_set_is_taken_as_it_is(tmp_path):
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


def test_numpy_set_that_is_no_good(tmp_path):
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
        (make('object', gray, np.array([Exploding()], object)), 'no NumPy file of numbers'),
    ]
    cut = make('cut', gray, ab)
    (cut / 'ab1.npy').write_bytes((cut / 'ab1.npy').read_bytes()[:5000])
    bad.append((cut, 'no NumPy file of numbers'))
    for path, message in bad:
        with pytest.raises(UserError, match=message):
            prepare(path, tmp_path / 'out', **OPTIONS)
    assert not Exploding.exploded


class Exploding:
    """Shows whether it was unpickled."""

    exploded = False

    def __reduce__(self):
        return setattr, (Exploding, 'exploded', True)


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
            for (label, split, name), data in PHOTOS.items()
            if split == wanted
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema), root / f'{wanted}-00000-of-00001.parquet')


def test_parquet(tmp_path, expected):
    write_parquet(tmp_path / 'set')
    assert records(tmp_path / 'set', tmp_path, shard_photos=3) == expected


def test_classes_of_the_same_name_stay_apart(tmp_path):
    """ImageNet has two cranes."""
    write_parquet(tmp_path / 'set', ('crane', 'crane'))
    shards = prepare(tmp_path / 'set', tmp_path / 'out', size=SIZE, quiet=True)
    assert shards.classes == ['crane', 'crane']
    assert [int(shards.records('train')[i]['label']) for i in range(4)] == [0, 1, 0, 1]


def test_parquet_of_plain_bytes_with_gaps(tmp_path, expected):
    table = pa.table({'image': [*PHOTOS.values(), None, b'garbage']})
    pq.write_table(table, tmp_path / 'photos.parquet')
    assert records(tmp_path / 'photos.parquet', tmp_path, split='train:1').keys() == expected.keys()
    assert rejected(tmp_path) == {'photos/0000006': 'the table holds no image here', 'photos/0000007': 'not a photo'}


def test_parquet_that_is_no_good(tmp_path):
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


# Choosing the source.


def test_source_by_the_wrong_name(tmp_path):
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
