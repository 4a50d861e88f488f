"""Preparing: what is chosen, what is left out, interruption at any moment, a full disk, bad input."""

import contextlib
import csv
import io
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2lab

from jaxcolor import color
from jaxcolor.cli import main
from jaxcolor.data import shards
from jaxcolor.errors import UserError
from jaxcolor.prepare import bundled, lab_table, prepare, selection

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """40 photos of 2 classes, small, among them five that cannot be used."""
    root = tmp_path_factory.mktemp('photos')
    paths = sorted((bundled.PHOTOS / 'train').glob('*.jpg'))
    for i in range(35):
        image = Image.open(paths[i % 20]).resize((120 + i, 90))
        (root / 'ab'[i % 2]).mkdir(exist_ok=True)
        image.save(root / 'ab'[i % 2] / f'{i:03}.jpg', quality=90)
    (root / 'a' / 'text.jpg').write_text('no photo')
    (root / 'a' / 'cut.jpg').write_bytes((root / 'a' / '000.jpg').read_bytes()[:2000])
    (root / 'b' / 'empty.jpg').write_bytes(b'')
    Image.open(paths[0]).resize((1, 1)).save(root / 'b' / 'tiny.jpg')
    Image.open(paths[0]).convert('L').convert('RGB').save(root / 'b' / 'gray.jpg')
    return root


def content(folder):
    """All files of a folder by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def names(shard_set, split):
    records = shard_set.records(split)
    return [records[i]['name'] for i in range(len(records))]


OPTIONS = {'size': 64, 'shard_photos': 4}
FLAGS = ['--size=64', '--shard-photos=4']


@pytest.fixture(scope='module')
def expected(photos, tmp_path_factory):
    """The set as one uninterrupted process makes it."""
    return prepare(photos, tmp_path_factory.mktemp('expected') / 'out', quiet=True, **OPTIONS)


def command(*arguments):
    return [sys.executable, '-m', 'jaxcolor', 'prepare', *map(str, arguments)]


def run(*arguments):
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=120)


# What comes out.


def test_records_hold_the_photos(photos, expected):
    records = expected.records('train')
    for i in range(5):
        photo = records[i]
        with Image.open(photos / photo['name']) as image:
            scale = 64 / min(image.size)
            small = image.resize((round(image.width * scale), 64), Image.Resampling.BOX)
        np.testing.assert_array_equal(photo['lab'], color.encode_lab(color.rgb_to_lab(np.asarray(small))))
        assert expected.classes[photo['label']] == photo['name'][0]


def test_lab_is_scikit_images(photos):
    rgb = np.asarray(Image.open(photos / 'a' / '000.jpg'))
    assert np.abs(color.rgb_to_lab(rgb) - rgb2lab(rgb)).max() < 1e-3  # 500 times 16 roundings of float32, as in test_color


def test_table_gives_what_computing_gives():
    rgb = np.random.default_rng(0).integers(0, 256, (300, 301, 3), np.uint8)
    encode = lab_table.LabEncoder()
    computed = encode(Image.fromarray(rgb))
    encode(Image.new('RGB', (4096, 4096)))
    table = encode(Image.fromarray(rgb))
    np.testing.assert_array_equal(computed, lab_table.compute(rgb))
    # Products of matrices of other shapes may be rounded otherwise, which matters on the edge between two steps.
    assert np.abs(table.astype(int) - computed).max() <= 1 and np.mean(table != computed) < 1e-4


def test_left_out_files_are_listed_with_reasons(expected):
    with open(expected.path / 'rejected.csv', newline='') as file:
        reasons = {row['name']: row['reason'] for row in csv.DictReader(file)}
    assert reasons.keys() == {'a/text.jpg', 'a/cut.jpg', 'b/empty.jpg', 'b/tiny.jpg', 'b/gray.jpg'}
    assert reasons['a/text.jpg'] == reasons['b/empty.jpg'] == 'not a photo'
    assert reasons['a/cut.jpg'] == 'truncated' and reasons['b/tiny.jpg'] == 'too small: 1x1'
    assert reasons['b/gray.jpg'].startswith('gray')
    assert expected.meta['rejected'] == 5 and sum(expected.counts.values()) == 35


def test_larger_photos_shrink_and_smaller_ones_stay(photos, tmp_path):
    records = prepare(photos, tmp_path / 'out', size=100, split='train:1', quiet=True).records('train')
    assert {min(records[i]['lab'].shape[:2]) for i in range(len(records))} == {90}


def test_encodings_hold_the_same_photos(photos, expected, tmp_path):
    raw = expected.records('train')
    for encoding, tolerance in (('zstd', 0), ('jpeg', 3)):
        records = prepare(photos, tmp_path / encoding, encoding=encoding, quiet=True, **OPTIONS).records('train')
        for i in range(len(raw)):
            difference = np.abs(records[i]['lab'].astype(int) - raw[i]['lab'])
            assert difference.mean() <= tolerance and records[i]['name'] == raw[i]['name']


# What is chosen.


def test_split_does_not_depend_on_what_else_is_there(photos, expected, tmp_path):
    shutil.copytree(photos, tmp_path / 'more')
    for i in range(10):
        (tmp_path / 'more' / 'a' / f'new{i}.jpg').write_bytes((photos / 'a' / '000.jpg').read_bytes())
    more = prepare(tmp_path / 'more', tmp_path / 'out', quiet=True, **OPTIONS)
    for split in expected.counts:
        assert set(names(expected, split)) <= set(names(more, split))


def test_split_by_parts():
    split = selection.parse_split('train:0.6,validation:0.2,test:0.2')
    counts = dict.fromkeys(split, 0)
    for i in range(5000):
        counts[selection.split_by_name(f'{i}.jpg', split)] += 1
    assert {key: round(count / 5000, 1) for key, count in counts.items()} == split


@pytest.mark.parametrize('text', ['train', 'train:0.5', 'train:2,test:-1', 'a:b', '', 'train:nan', '../x:1'])
def test_split_that_makes_no_sense(text):
    with pytest.raises(UserError, match='--split'):
        selection.parse_split(text)


def test_selection(photos, tmp_path):
    def chosen(name, **options):
        return prepare(photos, tmp_path / name, split='train:1', size=32, quiet=True, **options)

    assert {name[0] for name in names(chosen('classes', classes=('b',)), 'train')} == {'b'}
    limited = names(chosen('limit', limit_per_class=3), 'train')
    assert limited == ['a/000.jpg', 'a/002.jpg', 'a/004.jpg', 'b/001.jpg', 'b/003.jpg', 'b/005.jpg']
    part = names(chosen('part', fraction=0.4), 'train')
    assert 5 <= len(part) <= 25 and set(part) <= set(names(chosen('more', fraction=0.8), 'train'))
    repeated = names(chosen('repeat', limit_per_class=2, repeat='b:3'), 'train')
    assert repeated == ['a/000.jpg', 'a/002.jpg', *['b/001.jpg'] * 3, *['b/003.jpg'] * 3]
    several = 'a:4,*/002.jpg:2,*/00?.jpg:1,b/001.jpg:0,b/00[3-9]*:3'
    by_name = names(chosen('by_name', limit_per_class=2, repeat=several), 'train')
    assert by_name == ['a/000.jpg', *['a/002.jpg'] * 2, 'b/003.jpg']
    with pytest.raises(UserError, match=r'no photo of b/9\*'):
        chosen('no_name', repeat='b/9*:3')
    with pytest.raises(UserError, match='no photo of nobody'):
        chosen('none', repeat='b:3,nobody:2')
    assert len(names(chosen('gray', keep_gray=True, min_size=1), 'train')) == 37  # and the 1x1


def test_options_from_a_file(photos, tmp_path):
    (tmp_path / 'options').write_text('--repeat=a:0,b/001.jpg:3\n--repeat=b:4\n--size=32\n--split=train:1\n')
    options = [f'@{tmp_path / "options"}', '--repeat=b:2']  # the last counts
    main(['prepare', str(photos), f'--out={tmp_path / "out"}', '--limit-per-class=2', '--quiet', *options])
    assert names(shards.open_shards(tmp_path / 'out'), 'train') == [*['b/001.jpg'] * 3, *['b/003.jpg'] * 2]


def test_own_splits_are_kept_unless_others_are_asked_for(tmp_path):
    own = prepare(bundled.PHOTOS, tmp_path / 'own', size=32, quiet=True)
    assert own.counts == {'train': 20, 'validation': 4}
    other = prepare(bundled.PHOTOS, tmp_path / 'other', size=32, split='train:0.5,test:0.5', quiet=True)
    assert other.counts.keys() == {'train', 'test'} and sum(other.counts.values()) == 24


def test_duplicates(photos, tmp_path):
    shutil.copytree(photos, tmp_path / 'photos')
    (tmp_path / 'photos' / 'b' / 'again.jpg').write_bytes((photos / 'a' / '000.jpg').read_bytes())
    kept = prepare(tmp_path / 'photos', tmp_path / 'kept', size=32, quiet=True)
    dropped = prepare(tmp_path / 'photos', tmp_path / 'dropped', size=32, drop_duplicates=True, quiet=True)
    assert sum(kept.counts.values()) == 36 and sum(dropped.counts.values()) == 35
    assert 'b/again.jpg,duplicate: the same content came up before' in (dropped.path / 'rejected.csv').read_text()


# Interruption.


def test_workers_and_kills_change_no_byte(photos, expected, tmp_path):
    """SIGKILL at five random moments, with two workers, then once to the end: as one process makes it at one go."""
    out = tmp_path / 'out'
    rng = random.Random(os.urandom(8))
    arguments = (photos, f'--out={out}', *FLAGS, '--workers=2')
    made = []
    for wanted in (0, 1, 3, 5, 7):
        process = subprocess.Popen(command(*arguments), cwd=ROOT, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not out.exists() or len(list(out.glob('*.arrayrecord'))) < wanted):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.wait()
        made.append(len(list(out.glob('*.arrayrecord'))))
    assert made == sorted(made) and made[0] < len(expected.meta['shards'])
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    assert content(out) == content(expected.path)


def workers_of(process):
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    return [int(child) for child in children if b'spawn_main' in Path(f'/proc/{child}/cmdline').read_bytes()]


def test_worker_that_is_killed(photos, expected, tmp_path):
    """As the kernel does when memory runs out: one clear line, the other workers end, and the command goes on later."""
    arguments = (photos, f'--out={tmp_path / "out"}', *FLAGS, '--workers=2')
    process = subprocess.Popen(command(*arguments), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while len(workers := workers_of(process)) < 2:
        time.sleep(0.01)
    os.kill(workers[0], signal.SIGKILL)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and 'Traceback' not in error
    assert 'jaxcolor: error: a worker process was killed' in error
    assert not Path(f'/proc/{workers[1]}').exists()
    prepare(photos, tmp_path / 'out', quiet=True, **OPTIONS)
    assert content(tmp_path / 'out') == content(expected.path)


@pytest.mark.parametrize('sent', [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_command_leaves_no_workers(photos, tmp_path, sent):
    """One worker waits for a photo forever. It ends with the command all the same, and the finished shards stay."""
    shutil.copytree(photos, tmp_path / 'photos')
    stuck = tmp_path / 'photos' / 'a' / '!.jpg'  # the first photo of all
    os.mkfifo(stuck)
    out = tmp_path / 'out'
    arguments = (tmp_path / 'photos', f'--out={out}', *FLAGS, '--split=train:1', '--workers=2')
    process = subprocess.Popen(command(*arguments), cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while len(list((out / '.preparing').glob('train-*.json'))) < 3:
        time.sleep(0.01)
    workers = workers_of(process)
    assert len(workers) == 2
    try:
        if sent == signal.SIGINT:
            os.killpg(process.pid, sent)  # as Ctrl-C in a terminal
            assert process.communicate(timeout=60)[1].splitlines()[-1] == 'jaxcolor: interrupted'
            assert process.returncode == 130
        else:
            process.send_signal(sent)
            process.communicate(timeout=60)
        deadline = time.monotonic() + 60
        while running := [worker for worker in workers if is_running(worker)]:
            assert time.monotonic() < deadline, running
            time.sleep(0.01)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    stuck.unlink()
    stuck.write_text('no photo')
    made = {path: path.stat().st_mtime_ns for path in out.glob('*.arrayrecord')}
    assert len(made) >= 3 and not (out / 'train-00000.arrayrecord').exists()
    options = {**OPTIONS, 'split': 'train:1', 'quiet': True}
    prepare(tmp_path / 'photos', out, **options)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    prepare(tmp_path / 'photos', tmp_path / 'fresh', **options)
    assert content(out) == content(tmp_path / 'fresh')


def test_interrupt_while_workers_start(photos, tmp_path):
    """One line, and no traceback of a worker that still imports."""
    arguments = (photos, f'--out={tmp_path / "out"}', *FLAGS, '--workers=2')
    process = subprocess.Popen(command(*arguments), cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not any('numpy' in Path(f'/proc/{worker}/maps').read_text() for worker in workers_of(process)):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[1] == 'jaxcolor: interrupted\n'
    assert process.returncode == 130


def is_running(process_id):
    """Whether a process is there and no zombie."""
    try:
        return Path(f'/proc/{process_id}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def test_workers_tell_of_every_photo(photos, tmp_path):
    """Progress does not wait for a shard to be whole."""
    shutil.copytree(photos, tmp_path / 'photos')
    stuck = tmp_path / 'photos' / 'b' / 'zzz.jpg'  # the last photo of the only shard
    os.mkfifo(stuck)
    told, released, deadline = [], [], time.monotonic() + 60

    def update(self, units=1):
        told.append(units)
        assert sum(told) > 40 or time.monotonic() < deadline, told
        if sum(told) == 40 and not released:
            released.append(os.open(stuck, os.O_WRONLY))  # the worker can go on

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('jaxcolor.logs.Progress.update', update)
        prepare(tmp_path / 'photos', tmp_path / 'out', size=32, split='train:1', workers=2, quiet=True)
    os.close(*released)
    assert sum(told) == 41
    assert not multiprocessing.active_children()


def test_finished_set_is_left_alone(photos, expected):
    before = {path: path.stat().st_mtime_ns for path in expected.path.iterdir()}
    prepare(photos, expected.path, quiet=True, **OPTIONS)
    assert {path: path.stat().st_mtime_ns for path in expected.path.iterdir()} == before
    with pytest.raises(UserError, match=r'made otherwise \(size: 64, now 65\)'):
        prepare(photos, expected.path, quiet=True, **{**OPTIONS, 'size': 65})


def interrupted(photos, out):
    """A folder in which preparing has stopped after two shards."""

    def stop(*args):
        if len(list(out.glob('*.arrayrecord'))) == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr('jaxcolor.prepare.Progress.update', stop)
        prepare(photos, out, quiet=True, **OPTIONS)


def test_interrupted_set_goes_on_only_with_the_same_options(photos, expected, tmp_path):
    interrupted(photos, tmp_path / 'out')
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').glob('*.arrayrecord')}
    assert len(before) == 2
    with pytest.raises(UserError, match='no finished shard set'):
        shards.open_shards(tmp_path / 'out')
    with pytest.raises(UserError, match='made otherwise'):
        prepare(photos, tmp_path / 'out', quiet=True, **{**OPTIONS, 'keep_gray': True})
    prepare(photos, tmp_path / 'out', quiet=True, **OPTIONS)
    assert content(tmp_path / 'out') == content(expected.path)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_photos_that_changed_meanwhile_are_made_again(photos, tmp_path):
    shutil.copytree(photos, tmp_path / 'photos')
    interrupted(tmp_path / 'photos', tmp_path / 'out')
    (tmp_path / 'photos' / 'a' / '000.jpg').rename(tmp_path / 'photos' / 'a' / '001.jpg')
    prepare(tmp_path / 'photos', tmp_path / 'out', quiet=True, **OPTIONS)
    prepare(tmp_path / 'photos', tmp_path / 'fresh', quiet=True, **OPTIONS)
    assert content(tmp_path / 'out') == content(tmp_path / 'fresh')


FULL_DISK = """
set -e
mount -t tmpfs -o size=300k tmpfs {disk}
if {command}; then exit 9; fi
ls {disk}/out/*.arrayrecord | wc -l > {tmp}/made
mount -o remount,size=20m {disk}
{command}
cp -r {disk}/out {tmp}/copy
"""


@pytest.mark.parametrize('workers', [1, 2])
def test_full_disk(photos, expected, tmp_path, workers):
    """On a small tmpfs in a mount namespace of its own: a clear sentence, then more room, then on to the same bytes."""
    (tmp_path / 'disk').mkdir()
    line = ' '.join(command(photos, f'--out={tmp_path}/disk/out', *FLAGS, f'--workers={workers}'))
    script = FULL_DISK.format(disk=tmp_path / 'disk', tmp=tmp_path, command=line)
    result = subprocess.run(
        ['unshare', '--mount', '--map-root-user', 'bash', '-c', script], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r'jaxcolor: error: the disk of \S+ is full; make room and run the same command', result.stderr)
    assert 'Traceback' not in result.stderr
    assert int((tmp_path / 'made').read_text()) >= 1
    assert content(tmp_path / 'copy') == content(expected.path)


def test_two_commands_at_once(photos, tmp_path):
    (tmp_path / 'out' / '.preparing').mkdir(parents=True)
    lock = filelock.FileLock(tmp_path / 'out' / '.preparing' / 'lock')
    with lock, pytest.raises(UserError, match='another prepare command is working'):
        prepare(photos, tmp_path / 'out', quiet=True, **OPTIONS)
    assert prepare(photos, tmp_path / 'out', quiet=True, **OPTIONS).counts


# Bad input.


def failure(capsys, *arguments):
    """The one line on stderr with which the command fails."""
    with pytest.raises(SystemExit) as exit_:
        main(['prepare', *map(str, arguments), '--workers=0', '--quiet'])
    assert exit_.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith('jaxcolor: error: ')
    return lines[0]


def test_bad_photos(photos, tmp_path, capsys):
    out = f'--out={tmp_path / "out"}'
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'useless').mkdir()
    (tmp_path / 'useless' / 'x.jpg').write_text('text')
    assert 'does not exist' in failure(capsys, tmp_path / 'nowhere', out)
    assert 'there are no photos' in failure(capsys, tmp_path / 'empty', out)
    assert not (tmp_path / 'out').exists()
    assert 'none can be used, for example x.jpg: not a photo' in failure(capsys, tmp_path / 'useless', out)
    assert 'nothing to prepare' in failure(capsys, photos, '--classes=zebra', out)
    assert 'inside the photos' in failure(capsys, photos, f'--out={photos / "out"}')
    prepare(photos, tmp_path / 'out', quiet=True, **OPTIONS)  # nothing that failed stands in the way


def test_bad_output(photos, tmp_path, capsys):
    (tmp_path / 'file').write_text('mine')
    assert 'cannot be written' in failure(capsys, photos, f'--out={tmp_path / "file"}')
    assert (tmp_path / 'file').read_text() == 'mine'
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'thesis.txt').write_text('mine')
    assert 'not empty' in failure(capsys, photos, f'--out={tmp_path / "full"}')
    assert content(tmp_path / 'full') == {'thesis.txt': b'mine'}
    assert 'cannot be written' in failure(capsys, photos, '--out=/proc/shards')


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
def test_bad_flags(photos, tmp_path, capsys, flag):
    assert flag.split('=')[0] in failure(capsys, photos, f'--out={tmp_path / "out"}', flag)
    assert not (tmp_path / 'out').exists()


def test_photo_of_100_megapixels(tmp_path):
    (tmp_path / 'photos').mkdir()
    image = Image.new('RGB', (10_000, 10_000), (200, 80, 40))
    file = io.BytesIO()
    image.save(file, 'JPEG')
    (tmp_path / 'photos' / 'large.jpg').write_bytes(file.getvalue())
    taken = prepare(tmp_path / 'photos', tmp_path / 'out', size=32, split='train:1', quiet=True)
    assert taken.records('train')[0]['lab'].shape == (32, 32, 3)
    with pytest.raises(UserError, match='10000x10000 is more than 50 megapixels'):
        prepare(tmp_path / 'photos', tmp_path / 'small', size=32, max_megapixels=50, quiet=True)


def test_progress_and_summary(photos, tmp_path):
    result = run(photos, f'--out={tmp_path / "out"}', '--size=32', '--workers=2', '--split=train:1')
    assert result.returncode == 0 and 'photos: 35 train; classes: 2; 5 files left out' in result.stderr
