"""Interruption at any moment, killed workers, a full disk: the set ends up the same, to the byte."""

import contextlib
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
import pytest
from conftest import ROOT
from prepare_helpers import contents, write_photos

from jaxcolor.data import shards
from jaxcolor.errors import UserError
from jaxcolor.prepare import prepare

OPTIONS = {'size': 64, 'shard_photos': 4, 'quiet': True}
FLAGS = ['--size=64', '--shard-photos=4']


@pytest.fixture(scope='module')
def expected(photos, tmp_path_factory):
    """What every interrupted command has to come to."""
    return prepare(photos, tmp_path_factory.mktemp('expected') / 'out', **OPTIONS)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp('photos'))


# In every Python that has it on its path: a photo whose name ends in -stuck.jpg opens once there is a file `go` beside this.
STUCK = """
import builtins, os, time
real = builtins.open
def open(file, *args, **kwargs):
    if str(file).endswith('-stuck.jpg'):
        while not os.path.exists(os.path.join(os.path.dirname(__file__), 'go')):
            time.sleep(0.01)
    return real(file, *args, **kwargs)
builtins.open = open
"""


@pytest.fixture
def stuck_photos(photos, tmp_path, monkeypatch):
    """A copy of the photos, where those named *-stuck.jpg are read only once they may: as on a disk that does not answer."""
    (tmp_path / 'site').mkdir()
    (tmp_path / 'site' / 'sitecustomize.py').write_text(STUCK)
    path = os.pathsep.join(filter(None, [str(tmp_path / 'site'), os.environ.get('PYTHONPATH')]))
    monkeypatch.setenv('PYTHONPATH', path)
    return shutil.copytree(photos, tmp_path / 'photos')


def command_line(*arguments):
    return [sys.executable, '-m', 'jaxcolor', 'prepare', *map(str, arguments)]


def start(*arguments):
    """The command as in a terminal: in a session of its own, and Ctrl-C is not ignored, as in a shell's background."""
    return subprocess.Popen(
        command_line(*arguments),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def run(*arguments):
    return subprocess.run(command_line(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_workers_and_kills_change_no_byte(photos, expected, tmp_path):
    """SIGKILL at five random moments with two workers, then run to the end: the same as one undisturbed process makes."""
    out = tmp_path / 'out'
    rng = random.Random(os.urandom(8))
    arguments = (photos, f'--out={out}', *FLAGS, '--workers=2')
    made = []
    for shards_before_kill in (0, 1, 3, 5, 7):
        process = subprocess.Popen(command_line(*arguments), cwd=ROOT, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not out.exists() or len(list(out.glob('*.arrayrecord'))) < shards_before_kill):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.wait()
        made.append(len(list(out.glob('*.arrayrecord'))))
    assert made == sorted(made) and made[0] < len(expected.meta['shards'])
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    assert contents(out) == contents(expected.path)


def workers_of(process):
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    return [int(child) for child in children if b'spawn_main' in Path(f'/proc/{child}/cmdline').read_bytes()]


def test_killed_worker(photos, expected, tmp_path):
    """As by the kernel out of memory: one line, the other workers end, and the same command continues later."""
    arguments = (photos, f'--out={tmp_path / "out"}', *FLAGS, '--workers=2')
    process = subprocess.Popen(command_line(*arguments), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while len(workers := workers_of(process)) < 2:
        time.sleep(0.01)
    os.kill(workers[0], signal.SIGKILL)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and 'Traceback' not in error
    assert 'jaxcolor: error: a worker process was killed' in error
    assert not Path(f'/proc/{workers[1]}').exists()
    prepare(photos, tmp_path / 'out', **OPTIONS)
    assert contents(tmp_path / 'out') == contents(expected.path)


@pytest.mark.parametrize('sent', [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_command_leaves_no_workers(stuck_photos, tmp_path, sent):
    """A worker that blocks on a photo ends with the command, too, and the finished shards stay."""
    stuck = stuck_photos / 'a' / '!-stuck.jpg'  # the first photo of all
    stuck.write_text('no photo')
    out = tmp_path / 'out'
    arguments = (stuck_photos, f'--out={out}', *FLAGS, '--split=train:1', '--workers=2')
    process = start(*arguments)
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

    (tmp_path / 'site' / 'go').touch()
    # With its manifest a shard is finished; the command may have been stopped between the two.
    finished = [out / f'{manifest.stem}.arrayrecord' for manifest in (out / '.preparing').glob('train-*.json')]
    made = {path: path.stat().st_mtime_ns for path in finished}
    assert len(made) >= 3 and not (out / 'train-00000.arrayrecord').exists()
    options = {**OPTIONS, 'split': 'train:1'}
    prepare(stuck_photos, out, **options)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    prepare(stuck_photos, tmp_path / 'fresh', **options)
    assert contents(out) == contents(tmp_path / 'fresh')


def test_interrupt_while_workers_start(stuck_photos, tmp_path):
    """One line, and no traceback of a worker that is still importing."""
    (stuck_photos / 'a' / '!-stuck.jpg').write_text('no photo')  # so that nothing ends before the signal
    arguments = (stuck_photos, f'--out={tmp_path / "out"}', *FLAGS, '--workers=2')
    process = start(*arguments)
    while not any('numpy' in Path(f'/proc/{worker}/maps').read_text() for worker in workers_of(process)):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[1] == 'jaxcolor: interrupted\n'
    assert process.returncode == 130


def is_running(process_id):
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f'/proc/{process_id}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def test_workers_report_every_photo(stuck_photos, tmp_path):
    """Progress counts photos, not finished shards."""
    stuck = stuck_photos / 'b' / 'zzz-stuck.jpg'  # the last photo of the only shard
    stuck.write_text('no photo')
    reported, deadline = [], time.monotonic() + 60

    def update(self, units=1):
        reported.append(units)
        assert sum(reported) > 40 or time.monotonic() < deadline, reported
        if sum(reported) == 40:
            (tmp_path / 'site' / 'go').touch()  # the worker continues

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('jaxcolor.runtime.logs.Progress.update', update)
        prepare(stuck_photos, tmp_path / 'out', size=32, split='train:1', workers=2, quiet=True)
    assert sum(reported) == 41
    assert not multiprocessing.active_children()


def interrupt(photos, out):
    """Interrupts preparing after two shards."""

    def stop(*args):
        if len(list(out.glob('*.arrayrecord'))) == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr('jaxcolor.runtime.logs.Progress.update', stop)
        prepare(photos, out, **OPTIONS)


def test_interrupted_set_continues_only_with_the_same_options(photos, expected, tmp_path):
    interrupt(photos, tmp_path / 'out')
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').glob('*.arrayrecord')}
    assert len(before) == 2
    with pytest.raises(UserError, match='no finished shard set'):
        shards.open_shards(tmp_path / 'out')
    with pytest.raises(UserError, match='made with other options'):
        prepare(photos, tmp_path / 'out', **{**OPTIONS, 'keep_gray': True})
    prepare(photos, tmp_path / 'out', **OPTIONS)
    assert contents(tmp_path / 'out') == contents(expected.path)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_shards_of_changed_photos_are_made_again(photos, tmp_path):
    shutil.copytree(photos, tmp_path / 'photos')
    interrupt(tmp_path / 'photos', tmp_path / 'out')
    (tmp_path / 'photos' / 'a' / '000.jpg').rename(tmp_path / 'photos' / 'a' / '001.jpg')
    prepare(tmp_path / 'photos', tmp_path / 'out', **OPTIONS)
    prepare(tmp_path / 'photos', tmp_path / 'fresh', **OPTIONS)
    assert contents(tmp_path / 'out') == contents(tmp_path / 'fresh')


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
    """On a small tmpfs in its own mount namespace: one sentence; with more space, the same command makes the same bytes."""
    (tmp_path / 'disk').mkdir()
    line = ' '.join(command_line(photos, f'--out={tmp_path}/disk/out', *FLAGS, f'--workers={workers}'))
    script = FULL_DISK.format(disk=tmp_path / 'disk', tmp=tmp_path, command=line)
    result = subprocess.run(
        ['unshare', '--mount', '--map-root-user', 'bash', '-c', script], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r'jaxcolor: error: the disk of \S+ is full; free some space and run the same command', result.stderr)
    assert 'Traceback' not in result.stderr
    assert int((tmp_path / 'made').read_text()) >= 1
    assert contents(tmp_path / 'copy') == contents(expected.path)


def test_two_commands_at_once(photos, tmp_path):
    (tmp_path / 'out' / '.preparing').mkdir(parents=True)
    lock = filelock.FileLock(tmp_path / 'out' / '.preparing' / 'lock')
    with lock, pytest.raises(UserError, match='another prepare command is working'):
        prepare(photos, tmp_path / 'out', **OPTIONS)
    assert prepare(photos, tmp_path / 'out', **OPTIONS).counts
