"""Full disks and network file systems: no half file, no lost original, one sentence for each photo."""

import errno
import io
import os
import resource
import signal

import numpy as np
import pytest
from odd_photos import color_quietly, quadrants
from PIL import Image

from jaxcolor.inference.tags import read_tag

# Of full disks, quotas, broken disks, and servers that restarted.
ERRORS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE]
SUFFIXES = ['.jpg', '.png', '.webp', '.tif']


@pytest.fixture
def photos(tmp_path):
    """A folder of photos, each under the name of a format, and of their results by an earlier model."""
    (tmp_path / 'in').mkdir()
    for suffix in SUFFIXES:
        Image.fromarray(quadrants()).convert('L').save(tmp_path / 'in' / f'a{suffix}')
    return tmp_path / 'in'


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def failing(error, inner, is_it):
    """A function of the operating system that fails where `is_it` says so of its arguments."""

    def call(*args, **kwargs):
        if is_it(*args):
            raise OSError(error, os.strerror(error))
        return inner(*args, **kwargs)

    return call


def is_temporary(path, *_):
    return isinstance(path, (str, os.PathLike)) and os.fspath(path).endswith('.tmp')


CALLS = ['open', 'write', 'fsync', 'close', 'replace', 'mkdir']
CASES = [
    pytest.param(call, error, again, marks=[] if i % len(ERRORS) == j else pytest.mark.slow)
    for i, call in enumerate(CALLS)
    for j, error in enumerate(ERRORS)
    for again in ([False, True] if call != 'mkdir' else [False])
]


@pytest.mark.parametrize(('call', 'error', 'again'), CASES)
def test_errors_while_writing(colorizer, photos, tmp_path, monkeypatch, error, call, again):
    """Also where results of an earlier run are to be replaced: they stay."""
    out = tmp_path / ('out' if call != 'mkdir' else 'out/deep')
    if again:
        color_quietly(colorizer, [photos], out)
    before = contents(tmp_path)
    file_io, plain_open = io.FileIO, open

    class Broken(file_io):
        """A file that fails after its first bytes, or when it is closed."""

        def write(self, data):
            if call == 'write' and is_temporary(self.name):
                super().write(bytes(data)[:10])
                raise OSError(error, os.strerror(error))
            return super().write(data)

        def close(self):
            was_open = not self.closed
            super().close()
            if call == 'close' and was_open and is_temporary(self.name):
                raise OSError(error, os.strerror(error))

    def broken_open(path, mode='r', *args, **kwargs):
        if call == 'open' and is_temporary(path):
            raise OSError(error, os.strerror(error))
        if is_temporary(path) and mode == 'wb':
            return io.BufferedWriter(Broken(path, 'w'))
        return plain_open(path, mode, *args, **kwargs)

    def broken_file(path, mode):
        if call == 'open' and is_temporary(path):
            raise OSError(error, os.strerror(error))
        return Broken(path, mode)

    with monkeypatch.context() as patch:
        patch.setattr('builtins.open', broken_open)
        patch.setattr('jaxcolor.inference.encode.io.FileIO', broken_file)
        if call in ('fsync', 'mkdir'):
            patch.setattr(os, call, failing(error, getattr(os, call), lambda *_: True))
        if call == 'replace':
            patch.setattr(os, call, failing(error, os.replace, is_temporary))
        summary = color_quietly(colorizer, [photos], out, overwrite=again)
    assert summary.colored == 0 and len(summary.failures) == len(SUFFIXES)
    for failure in summary.failures:
        assert os.strerror(error) in failure and '\n' not in failure
    assert contents(tmp_path) == before  # and no temporary file
    # When the disk has room again, the run goes on.
    assert color_quietly(colorizer, [photos], out, overwrite=again).colored == len(SUFFIXES)
    assert all(read_tag(path) for path in out.iterdir())


@pytest.mark.parametrize('error', ERRORS)
def test_errors_while_reading(colorizer, photos, tmp_path, monkeypatch, error):
    read_bytes = type(photos).read_bytes

    def broken(path):
        if path.name == 'a.png':
            raise OSError(error, os.strerror(error))
        return read_bytes(path)

    with monkeypatch.context() as patch:
        patch.setattr(type(photos), 'read_bytes', broken)
        summary = color_quietly(colorizer, [photos], tmp_path / 'out')
    (failure,) = summary.failures
    assert 'a.png cannot be read' in failure and os.strerror(error) in failure
    assert summary.colored == len(SUFFIXES) - 1


@pytest.mark.skipif(not hasattr(signal, 'SIGXFSZ'), reason='needs a limit of the size of files')
@pytest.mark.parametrize('kilobytes', [0, 1, 16, 100])
def test_a_limit_of_the_operating_system(colorizer, tmp_path, kilobytes):
    """The kernel itself refuses to write more, as it does on a full disk."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 400), dtype=np.uint8)
    (tmp_path / 'in').mkdir()
    for suffix in SUFFIXES:
        Image.fromarray(noise).save(tmp_path / 'in' / f'a{suffix}')
    before = contents(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * kilobytes, limits[1]))
    try:
        summary = color_quietly(colorizer, [tmp_path / 'in'], tmp_path / 'out')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    after = contents(tmp_path)
    for failure in summary.failures:
        assert os.strerror(errno.EFBIG) in failure
    assert len(summary.failures) >= 3 and {path: after[path] for path in before} == before
    assert len(after) == len(before) + summary.colored


@pytest.mark.slow
def test_a_full_file_system(colorizer, tmp_path):
    """A file system of 300 kB in memory."""
    disk = tmp_path / 'disk'
    disk.mkdir()
    if os.system(f'mount -t tmpfs -o size=300k tmpfs {disk} 2> {os.devnull}'):
        pytest.skip('mounting is not allowed here')
    try:
        noise = np.random.default_rng(0).integers(0, 256, (300, 400), dtype=np.uint8)
        (tmp_path / 'in').mkdir()
        for number in range(3):
            for suffix in SUFFIXES:
                Image.fromarray(noise).save(tmp_path / 'in' / f'{number}{suffix}')
        summary = color_quietly(colorizer, [tmp_path / 'in'], disk / 'out')
        results = list((disk / 'out').iterdir())
        assert 0 < summary.colored == len(results) < 12
        assert all(os.strerror(errno.ENOSPC) in failure for failure in summary.failures)
        for path in results:
            with Image.open(path) as image:
                image.load()
    finally:
        os.system(f'umount {disk}')
