"""Preparing: the records, the files beside them, the summary, bad input."""

import csv
import io

import numpy as np
import pytest
from odd_photos import quadrants, turned_files, turned_wrongly
from PIL import Image
from prepare_helpers import contents, write_photos
from skimage.color import rgb2lab

from jaxcolor import color
from jaxcolor.errors import UserError
from jaxcolor.prepare import lab_table, prepare

OPTIONS = {'size': 64, 'shard_photos': 4, 'quiet': True}


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp('photos'))


@pytest.fixture(scope='module')
def expected(photos, tmp_path_factory):
    """The set as one uninterrupted process makes it."""
    return prepare(photos, tmp_path_factory.mktemp('expected') / 'out', **OPTIONS)


# The shard set.


def test_records_hold_the_photos(photos, expected):
    records = expected.records('train')
    for i in range(5):
        photo = records[i]
        with Image.open(photos / photo['name']) as image:
            scale = 64 / min(image.size)
            small = image.resize((round(image.width * scale), 64), Image.Resampling.BOX)
        np.testing.assert_array_equal(photo['lab'], color.encode_lab(color.rgb_to_lab(np.asarray(small))))
        assert expected.classes[photo['label']] == photo['name'][0]


def test_lab_matches_scikit_image(photos):
    rgb = np.asarray(Image.open(photos / 'a' / '000.jpg'))
    assert np.abs(color.rgb_to_lab(rgb) - rgb2lab(rgb)).max() < 1e-3  # 500 times 16 roundings of float32, as in test_color


def test_lookup_table_matches_computation():
    rgb = np.random.default_rng(0).integers(0, 256, (300, 301, 3), np.uint8)
    encode = lab_table.LabEncoder()
    computed = encode(Image.fromarray(rgb))
    encode(Image.new('RGB', (4096, 4096)))
    table = encode(Image.fromarray(rgb))
    np.testing.assert_array_equal(computed, lab_table.rgb_to_uint8_lab(rgb))
    # Products of matrices of other shapes may be rounded otherwise, which matters on the edge between two steps.
    assert np.abs(table.astype(int) - computed).max() <= 1 and np.mean(table != computed) < 1e-4


def test_rejected_files_are_listed_with_reasons(expected):
    with open(expected.path / 'rejected.csv', newline='') as file:
        reasons = {row['name']: row['reason'] for row in csv.DictReader(file)}
    assert reasons.keys() == {'a/text.jpg', 'a/cut.jpg', 'b/empty.jpg', 'b/tiny.jpg', 'b/gray.jpg'}
    assert reasons['a/text.jpg'] == reasons['b/empty.jpg'] == 'not a photo'
    assert reasons['a/cut.jpg'] == 'truncated' and reasons['b/tiny.jpg'] == 'too small: 1x1'
    assert reasons['b/gray.jpg'].startswith('gray')
    assert expected.meta['rejected'] == 5 and sum(expected.counts.values()) == 35


def test_smaller_photos_keep_their_size(photos, tmp_path):
    records = prepare(photos, tmp_path / 'out', size=100, split='train:1', quiet=True).records('train')
    assert {min(records[i]['lab'].shape[:2]) for i in range(len(records))} == {90}


def test_encodings_hold_the_same_photos(photos, expected, tmp_path):
    raw = expected.records('train')
    for encoding, tolerance in (('zstd', 0), ('jpeg', 3)):
        records = prepare(photos, tmp_path / encoding, encoding=encoding, **OPTIONS).records('train')
        for i in range(len(raw)):
            difference = np.abs(records[i]['lab'].astype(int) - raw[i]['lab'])
            assert difference.mean() <= tolerance and records[i]['name'] == raw[i]['name']


def test_finished_set_is_left_alone(photos, expected):
    before = {path: path.stat().st_mtime_ns for path in expected.path.iterdir()}
    prepare(photos, expected.path, **OPTIONS)
    assert {path: path.stat().st_mtime_ns for path in expected.path.iterdir()} == before
    with pytest.raises(UserError, match=r'made with other options \(size: 64, now 65\)'):
        prepare(photos, expected.path, **{**OPTIONS, 'size': 65})


def test_photo_of_100_megapixels(tmp_path):
    (tmp_path / 'photos').mkdir()
    image = Image.new('RGB', (10_000, 10_000), (200, 80, 40))
    file = io.BytesIO()
    image.save(file, 'JPEG')
    (tmp_path / 'photos' / 'large.jpg').write_bytes(file.getvalue())
    shard_set = prepare(tmp_path / 'photos', tmp_path / 'out', size=32, split='train:1', quiet=True)
    assert shard_set.records('train')[0]['lab'].shape == (32, 32, 3)
    with pytest.raises(UserError, match='10000x10000 is more than 50 megapixels'):
        prepare(tmp_path / 'photos', tmp_path / 'small', size=32, max_megapixels=50, quiet=True)


def test_command_prints_a_summary(photos, tmp_path, cli):
    code, _, stderr = cli('prepare', photos, f'--out={tmp_path / "out"}', '--size=32', '--workers=2', '--split=train:1')
    assert code == 0 and 'photos: 35 train; classes: 2; 5 files rejected' in stderr


# Bad input.


@pytest.fixture
def failure(cli):
    """Runs `jaxcolor prepare`, which must fail -> its one line on stderr."""

    def run(*arguments):
        code, _, stderr = cli('prepare', *arguments, '--workers=0', '--quiet')
        assert code == 1
        (line,) = stderr.splitlines()
        assert line.startswith('jaxcolor: error: ')
        return line

    return run


def test_unusable_photos(photos, tmp_path, failure):
    out = f'--out={tmp_path / "out"}'
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'useless').mkdir()
    (tmp_path / 'useless' / 'x.jpg').write_text('text')
    assert 'does not exist' in failure(tmp_path / 'nowhere', out)
    assert 'there are no photos' in failure(tmp_path / 'empty', out)
    assert not (tmp_path / 'out').exists()
    assert '1 file rejected, such as x.jpg: not a photo' in failure(tmp_path / 'useless', out)
    assert 'none is selected' in failure(photos, '--classes=zebra', out)
    assert 'lies inside the photos' in failure(photos, f'--out={photos / "out"}')
    prepare(photos, tmp_path / 'out', **OPTIONS)  # the failed commands left nothing behind


def test_unusable_output_folder(photos, tmp_path, failure):
    (tmp_path / 'file').write_text('mine')
    assert 'cannot be written' in failure(photos, f'--out={tmp_path / "file"}')
    assert (tmp_path / 'file').read_text() == 'mine'
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'thesis.txt').write_text('mine')
    assert 'not empty' in failure(photos, f'--out={tmp_path / "full"}')
    assert contents(tmp_path / 'full') == {'thesis.txt': b'mine'}
    assert 'cannot be written' in failure(photos, '--out=/proc/shards')


@pytest.mark.parametrize(
    'flag',
    [
        '--size=0',
        '--limit-per-class=0',
        '--fraction=0',
        '--fraction=nan',
        '--split=train:0.5',
        '--shard-photos=-1',
        '--repeat=a:-1',
        '--repeat=a',
    ],
)
def test_invalid_flags(photos, tmp_path, failure, flag):
    assert flag.split('=')[0] in failure(photos, f'--out={tmp_path / "out"}', flag)
    assert not (tmp_path / 'out').exists()


def test_photos_are_turned_once(tmp_path):
    """All eight EXIF orientations, in every format."""
    turned_files(tmp_path / 'photos')
    shards = prepare(tmp_path / 'photos', tmp_path / 'out', size=48, split='train:1', workers=1, quiet=True)
    records = shards.records('train')
    assert len(records) == len(list((tmp_path / 'photos').iterdir()))
    for i in range(len(records)):
        rgb = 255 * color.lab_to_rgb(color.decode_lab(records[i]['lab']))
        assert rgb.shape == (48, 64, 3), records[i]['name']
        assert turned_wrongly(rgb, quadrants()) < 0.1, records[i]['name']
