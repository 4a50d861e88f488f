"""Which photos are selected, and into which split."""

import shutil

import pytest
from conftest import PHOTOS
from prepare_helpers import names, write_photos

from jaxcolor.data import shards
from jaxcolor.errors import UserError
from jaxcolor.prepare import prepare, selection


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp('photos'))


def test_adding_photos_moves_none_between_splits(photos, tmp_path):
    fewer = prepare(photos, tmp_path / 'fewer', size=32, quiet=True)
    shutil.copytree(photos, tmp_path / 'more')
    for i in range(10):
        (tmp_path / 'more' / 'a' / f'new{i}.jpg').write_bytes((photos / 'a' / '000.jpg').read_bytes())
    more = prepare(tmp_path / 'more', tmp_path / 'out', size=32, quiet=True)
    for split in fewer.counts:
        assert set(names(fewer, split)) <= set(names(more, split))


def test_split_fractions():
    split, kept = selection.parse_split('train:0.6,validation:0.2,test:0.2')
    assert kept == {}
    counts = dict.fromkeys(split, 0)
    for i in range(5000):
        counts[selection.split_by_name(f'{i}.jpg', split)] += 1
    assert {key: round(count / 5000, 1) for key, count in counts.items()} == split


@pytest.mark.parametrize('text', ['train', 'train:0.5', 'train:2,test:-1', 'a:b', '', 'train:nan', '../x:1', 'test:test'])
def test_invalid_split(text):
    with pytest.raises(UserError, match='--split'):
        selection.parse_split(text)


def test_selection(photos, tmp_path):
    def prepared(name, **options):
        return prepare(photos, tmp_path / name, split='train:1', size=32, quiet=True, **options)

    assert {name[0] for name in names(prepared('classes', classes=('b',)), 'train')} == {'b'}
    limited = names(prepared('limit', limit_per_class=3), 'train')
    assert limited == ['a/000.jpg', 'a/002.jpg', 'a/004.jpg', 'b/001.jpg', 'b/003.jpg', 'b/005.jpg']
    part = names(prepared('part', fraction=0.4), 'train')
    assert 5 <= len(part) <= 25 and set(part) <= set(names(prepared('more', fraction=0.8), 'train'))
    repeated = names(prepared('repeat', limit_per_class=2, repeat='b:3'), 'train')
    assert repeated == ['a/000.jpg', 'a/002.jpg', *['b/001.jpg'] * 3, *['b/003.jpg'] * 3]
    several = 'a:4,*/002.jpg:2,*/00?.jpg:1,b/001.jpg:0,b/00[3-9]*:3'
    by_name = names(prepared('by_name', limit_per_class=2, repeat=several), 'train')
    assert by_name == ['a/000.jpg', *['a/002.jpg'] * 2, 'b/003.jpg']
    with pytest.raises(UserError, match=r'no photo of b/9\*'):
        prepared('no_name', repeat='b/9*:3')
    with pytest.raises(UserError, match='no photo of nobody'):
        prepared('none', repeat='b:3,nobody:2')
    assert len(names(prepared('gray', keep_gray=True, min_size=1), 'train')) == 37  # and the 1x1


def test_options_from_a_file(photos, tmp_path, cli):
    (tmp_path / 'options').write_text('--repeat=a:0,b/001.jpg:3\n--repeat=b:4\n--size=32\n--split=train:1\n')
    options = [f'@{tmp_path / "options"}', '--repeat=b:2']  # the last one applies
    code, _, _ = cli('prepare', photos, f'--out={tmp_path / "out"}', '--limit-per-class=2', '--quiet', *options)
    assert code == 0
    assert names(shards.open_shards(tmp_path / 'out'), 'train') == [*['b/001.jpg'] * 3, *['b/003.jpg'] * 2]


def test_photos_are_left_out_of_every_split(photos, tmp_path, cli):
    (tmp_path / 'list').write_text('# two of a, and nearly all of b\na/000.jpg\na/002.jpg\n\nb/0[1-3]*\n')
    options = ('--size=32', '--split=train:0.6,validation:0.4', '--quiet')
    code, _, _ = cli('prepare', photos, f'--out={tmp_path / "all"}', *options)
    assert code == 0
    code, _, _ = cli('prepare', photos, f'--out={tmp_path / "some"}', f'--leave-out={tmp_path / "list"}', *options)
    assert code == 0
    every, some = (shards.open_shards(tmp_path / name) for name in ('all', 'some'))
    for split in every.counts:
        left = [name for name in names(every, split) if name[:4] not in ('b/01', 'b/02', 'b/03')]
        assert names(some, split) == [name for name in left if name not in ('a/000.jpg', 'a/002.jpg')]
    assert sum(some.counts.values()) < sum(every.counts.values()) - 10
    # Another list makes another set, and a name that is wrong is told.
    (tmp_path / 'list').write_text('a/000.jpg\n')
    code, _, error = cli('prepare', photos, f'--out={tmp_path / "some"}', f'--leave-out={tmp_path / "list"}', *options)
    assert code != 0 and 'leave_out' in error
    with pytest.raises(UserError, match=r'--leave-out: there is no photo of a/x\.jpg'):
        prepare(photos, tmp_path / 'wrong', size=32, leave_out='a/x.jpg\na/000.jpg', quiet=True)
    with pytest.raises(UserError, match='--leave-out: .*cannot be read'):
        selection.read_names(tmp_path / 'nothing')


def test_source_splits_are_kept_unless_overridden(tmp_path):
    own = prepare(PHOTOS, tmp_path / 'own', size=32, quiet=True)
    assert own.counts == {'train': 20, 'validation': 4}
    other = prepare(PHOTOS, tmp_path / 'other', size=32, split='train:0.5,test:0.5', quiet=True)
    assert other.counts.keys() == {'train', 'test'} and sum(other.counts.values()) == 24


def test_a_split_of_the_source_is_kept_beside_fractions(tmp_path):
    """The 24 bundled photos are 20 of train and 4 of validation."""
    split = 'train:0.5,validation:0.5,test:validation'
    own = prepare(PHOTOS, tmp_path / 'own', size=32, quiet=True)
    divided = prepare(PHOTOS, tmp_path / 'divided', size=32, split=split, quiet=True)
    assert names(divided, 'test') == names(own, 'validation')
    assert sorted(names(divided, 'train') + names(divided, 'validation')) == sorted(names(own, 'train'))
    assert divided.counts['validation'] > 4


def test_limit_by_split(photos, tmp_path):
    def prepared(name, **options):
        return prepare(photos, tmp_path / name, size=32, quiet=True, **options)

    split = 'train:0.5,validation:0.3,test:0.2'
    whole = prepared('whole', split=split)
    some = prepared('some', split=split, limit='train:6,validation:3')
    # Up to two of 40 are rejected when they are decoded, and in the place of none.
    assert 4 <= some.counts['train'] <= 6 and 1 <= some.counts['validation'] <= 3
    assert some.counts['test'] == whole.counts['test']
    for name in whole.counts:
        assert set(names(some, name)) <= set(names(whole, name))
    assert {name[0] for name in names(some, 'train')} == {'a', 'b'}  # of all the split, not the first ones
    assert set(names(prepared('fewer', split=split, limit='train:2'), 'train')) <= set(names(some, 'train'))
    each = prepared('each', split=split, limit='2', min_size=1, keep_gray=True)
    assert all(count <= 2 for count in each.counts.values())
    assert prepared('no_test', split=split, limit='test:0').counts.keys() == {'train', 'validation'}
    assert prepared('all', split=split, limit='1000').counts == whole.counts
    with pytest.raises(UserError, match='--limit: there are no photos of the split tset'):
        prepared('none', split=split, limit='tset:3')


@pytest.mark.parametrize('text', ['train', 'train:-1', 'train:x', '-2', '1.5', '5,train:3'])
def test_invalid_limit(text):
    with pytest.raises(UserError, match='--limit'):
        selection.parse_limit(text)


def test_duplicates(photos, tmp_path):
    shutil.copytree(photos, tmp_path / 'photos')
    (tmp_path / 'photos' / 'b' / 'again.jpg').write_bytes((photos / 'a' / '000.jpg').read_bytes())
    kept = prepare(tmp_path / 'photos', tmp_path / 'kept', size=32, quiet=True)
    dropped = prepare(tmp_path / 'photos', tmp_path / 'dropped', size=32, drop_duplicates=True, quiet=True)
    assert sum(kept.counts.values()) == 36 and sum(dropped.counts.values()) == 35
    assert 'b/again.jpg,duplicate: the same content came up before' in (dropped.path / 'rejected.csv').read_text()
