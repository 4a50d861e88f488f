"""Records, shard sets, and the command `inspect`."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from jaxcolor import color, files
from jaxcolor.data import shards
from jaxcolor.data.plain_records import PlainRecords
from jaxcolor.errors import UserError
from jaxcolor.prepare import aged, bundled, inspect, prepare
from jaxcolor.tasks import degrade


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    return prepare(bundled.PHOTOS, tmp_path_factory.mktemp('set') / 'shards', size=64, shard_photos=8, quiet=True)


@pytest.fixture
def own(prepared, tmp_path):
    """A copy of the set, to damage."""
    for file in prepared.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def photo_lab():
    image = Image.open(bundled.PHOTOS / 'train' / 'farm_animals-cat.jpg')
    return color.encode_lab(color.rgb_to_lab(np.asarray(image)))


def psnr(lab, other):
    rgb, other = (color.lab_to_rgb(color.decode_lab(x)) for x in (lab, other))
    return -10 * np.log10(np.mean((rgb - other) ** 2))


@pytest.mark.parametrize('encoding', ['raw', 'zstd'])
def test_lossless_record_round_trips(encoding):
    lab = photo_lab()
    features = {'vgg': np.arange(6, dtype=np.float16).reshape(2, 3), 'other': np.ones(4, np.float32)}
    photo = shards.decode_record(shards.encode_record('fish/ü 1.jpg', 7, lab, encoding, features))
    np.testing.assert_array_equal(photo['lab'], lab)
    assert (photo['name'], photo['label'], photo['label'].dtype) == ('fish/ü 1.jpg', 7, np.int32)
    assert photo['features'].keys() == features.keys()
    for name, value in features.items():
        np.testing.assert_array_equal(photo['features'][name], value)
        assert photo['features'][name].dtype == value.dtype


def test_jpeg_record_keeps_the_lab_planes():
    lab = photo_lab()[:201, :301]
    record = shards.encode_record('x', -1, lab, 'jpeg')
    photo = shards.decode_record(record)['lab']
    assert photo.shape == lab.shape and len(record) < 30_000
    assert psnr(lab, photo) > 38
    # A second color transform would move the planes by far more than the loss does.
    assert np.abs(photo.astype(int) - lab).mean(axis=(0, 1)).max() < 2


def test_reads_a_prepared_set(prepared):
    assert prepared.counts == {'train': 20, 'validation': 4}
    assert prepared.classes == []
    # The manifest, which is no photo, was one of the first eight candidates.
    assert [shard['photos'] for shard in prepared.meta['shards']] == [7, 8, 5, 4]
    records = pickle.loads(pickle.dumps(prepared.records('train')))
    photo = records[19]
    assert photo['lab'].dtype == np.uint8 and min(photo['lab'].shape[:2]) == 64 and photo['label'] == -1
    assert len({records[i]['name'] for i in range(len(records))}) == 20
    with pytest.raises(IndexError):
        records[20]


def test_a_set_may_mix_encodings(own):
    """The encoding is stored in each record."""
    lab = photo_lab()
    file = own / 'train-00000.arrayrecord'
    packed = [shards.encode_record(str(i), -1, lab, encoding) for i, encoding in enumerate(('raw', 'jpeg') * 4)]
    shards.write_shard(file, packed, 'zstd')
    meta = json.loads((own / 'dataset.json').read_text())
    meta['shards'][0]['bytes'] = file.stat().st_size
    files.write_json(own / 'dataset.json', meta)
    records = shards.open_shards(own).records('train')
    np.testing.assert_array_equal(records[0]['lab'], lab)
    assert psnr(records[1]['lab'], lab) > 38


def test_encodings_are_measured(cli):
    code, out, _ = cli('benchmark', '--of=encodings', bundled.PHOTOS / 'validation', '--rounds=1', '--count=2')
    assert code == 0
    rows = [line.split(' | ') for line in out.splitlines() if line[:2] == '| ' and 'dB' in line]
    assert [row[0] for row in rows] == ['| raw', '| zstd', '| jpeg']
    assert [float(row[6].split()[0]) > limit for row, limit in zip(rows, (50, 50, 38), strict=True)] == [True] * 3


def test_features_of_earlier_versions_are_read(own):
    meta = json.loads((own / 'dataset.json').read_text())
    meta['features'] = {'vgg16': {'flavour': 'keras', 'source': 'vgg16.h5'}}
    files.write_json(own / 'dataset.json', meta)
    assert shards.open_shards(own).meta['features'] == {'vgg16': {'flavor': 'keras', 'source': 'vgg16.h5'}}


def test_missing_set(tmp_path):
    with pytest.raises(UserError, match='does not exist.*jaxcolor prepare'):
        shards.open_shards(tmp_path / 'nowhere')
    with pytest.raises(UserError, match='no finished shard set'):
        shards.open_shards(tmp_path)


@pytest.mark.parametrize('text', ['{"version": 1', '[]', '{}', ''])
def test_broken_sidecar(own, text):
    (own / 'dataset.json').write_text(text)
    with pytest.raises(UserError, match='cannot be read'):
        shards.open_shards(own)


def test_sidecar_with_gaps(own):
    (own / 'dataset.json').write_text('{"version": 1}')
    with pytest.raises(UserError, match='lacks classes, counts, shards'):
        shards.open_shards(own)


def test_sidecar_of_another_version(own):
    meta = json.loads((own / 'dataset.json').read_text())
    (own / 'dataset.json').write_text(json.dumps({**meta, 'version': 99}))
    with pytest.raises(UserError, match='version 99'):
        shards.open_shards(own)


def test_shard_missing_or_cut_short(own):
    shard = own / 'train-00001.arrayrecord'
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r'train-00001.*instead of'):
        shards.open_shards(own)
    shard.unlink()
    with pytest.raises(UserError, match=r'train-00001.*is missing'):
        shards.open_shards(own)


def test_empty_split(prepared):
    with pytest.raises(UserError, match=r"split 'test'; it holds train \(20\), validation \(4\)"):
        prepared.records('test')


def damage(folder):
    """Turns over a byte in the middle of the second shard's photos; the file keeps its size."""
    shard = folder / 'train-00001.arrayrecord'
    data = bytearray(shard.read_bytes())
    data[70_000] ^= 255
    shard.write_bytes(data)


def test_damaged_record_is_named_when_it_is_read(own):
    damage(own)
    records = shards.open_shards(own).records('train')
    with pytest.raises(UserError, match=r'train-00001.*damaged'):
        for i in range(len(records)):
            records[i]


@pytest.mark.parametrize('encoding', shards.ENCODINGS)
def test_borrowed_photos_are_those_of_the_records(tmp_path, encoding):
    """Of records up to several blocks of 64 KiB long, that begin anywhere in one."""
    rng = np.random.default_rng(0)
    path = tmp_path / 'x.arrayrecord'
    sizes = [(8, 9), (200, 300), (1, 1), (150, 146), (147, 149), *rng.integers(1, 160, (30, 2))]
    labs = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    features = {'f': np.arange(40_000, dtype=np.float32)}  # a header longer than a block
    own = dict.fromkeys(range(3, len(labs), 7), features)
    packed = [shards.encode_record(f'{i}ü', i, lab, encoding, own.get(i)) for i, lab in enumerate(labs)]
    shards.write_shard(path, packed, encoding)
    records = pickle.loads(pickle.dumps(shards.Records([path], [len(labs)])))
    assert (records._plain_reader(0) is None) == (encoding == 'zstd')
    for i in [*range(len(labs)), *reversed(range(len(labs)))]:
        borrowed, expected = records.borrow(i), records[i]
        assert borrowed.keys() == expected.keys() and borrowed['name'] == f'{i}ü' and borrowed['label'] == i
        np.testing.assert_array_equal(borrowed['lab'], expected['lab'])
        if 'features' in expected:
            np.testing.assert_array_equal(borrowed['features']['f'], features['f'])


@pytest.mark.parametrize('count', [1, 3, 2000])
def test_plain_records_of_files_of_any_length(tmp_path, count):
    """A list of places longer than a block, and records shorter than one."""
    packed = [shards.encode_record(str(i), i, np.full((3, 5, 3), i % 256, np.uint8)) for i in range(count)]
    shards.write_shard(tmp_path / 'x', packed, 'raw')
    plain = PlainRecords(str(tmp_path / 'x'))
    buffer = np.empty(plain.largest, np.uint8)
    assert len(plain) == count
    assert all(plain.read(i, buffer) == packed[i] for i in range(count))


def test_damaged_lengths_are_named_when_a_photo_is_borrowed(own):
    file = own / 'train-00001.arrayrecord'
    whole = file.read_bytes()
    header = whole.index(b'name') - 2  # of the first record; before it are 4 bytes of its length and those of the chunk
    footer = len(whole) - 2**16 + 24 + 40
    for place in (header - 4, header - 9, whole.index(b'height') + 6, footer, footer + 6, footer + 7):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        records = shards.open_shards(own).records('train')
        with pytest.raises(UserError, match=r'train-00001.*damaged'):
            for i in range(len(records)):
                records.borrow(i)


def test_inspect_counts_and_draws(prepared, tmp_path):
    report = inspect.inspect(prepared.path, tmp_path)
    assert report['train']['photos'] == 20 and report['train']['classes'] == {'(none)': 20}
    assert sum(report['validation']['sizes'].values()) == 4
    assert report['train']['damaged'] == []
    assert sum(report['chroma'].values()) == pytest.approx(1, abs=1e-3)
    assert Image.open(tmp_path / 'contact_sheet.png').size == (8 * 128, 3 * 128)
    assert Image.open(tmp_path / 'ab_histogram.png').size == (768, 768)


def test_inspect_draws_aged_photos(prepared, tmp_path, cli):
    code, _, _ = cli('inspect', f'--data={prepared.path}', f'--out={tmp_path}', '--aged')
    assert code == 0
    sheet = np.asarray(Image.open(tmp_path / 'degradations.png'), np.float32)
    rows = sheet[:, aged.LABEL :].reshape(-1, aged.SIDE, 2 * aged.EXAMPLES * aged.SIDE)
    assert len(rows) == len(degrade.STRONG) + 2
    assert np.array_equal(rows[0, :, : aged.SIDE], rows[0, :, aged.SIDE : 2 * aged.SIDE])  # as they are
    assert (np.abs(rows[1:] - rows[0]).mean(axis=(1, 2)) > 0.2).all()


def test_ab_histogram_shows_colors_where_they_belong():
    histogram = np.zeros((256, 256), np.int64)
    histogram[128 + 60, 128 + 40] = 100  # a red
    image = np.asarray(inspect.histogram_image(histogram))
    red, green, blue = image[(255 - 168) * 3 + 1, 188 * 3 + 1].astype(int)
    assert red > green + 50 and red > blue + 50
    assert np.count_nonzero(image.any(-1)) == 9


def test_inspect_command_tells_of_damage(own, tmp_path, cli):
    inspect_it = ('inspect', f'--data={own}', f'--out={tmp_path / "pictures"}')
    code, out, _ = cli(*inspect_it)
    assert code == 0 and 'all records are intact' in out
    damage(own)
    code, _, error = cli(*inspect_it)
    assert code == 1 and 'records are damaged' in error and 'Traceback' not in error
