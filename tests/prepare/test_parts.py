"""Parts of a shard set, made by several commands on machines that share a file system: the same set, to the byte."""

import concurrent.futures
import os
import random
import subprocess
import sys
import tarfile

import pytest
from conftest import ROOT
from prepare_helpers import contents, write_photos

from jaxcolor.cli import main
from jaxcolor.errors import UserError
from jaxcolor.prepare import prepare
from jaxcolor.prepare.shard_set import prepare_part

OPTIONS = {'size': 64, 'shard_photos': 4, 'quiet': True}


@pytest.fixture(scope='module', params=['folder', 'tar'])
def photos(request, tmp_path_factory):
    root = tmp_path_factory.mktemp('photos') / 'set'
    root.mkdir()
    write_photos(root)
    if request.param == 'folder':
        return root
    with tarfile.open(root.parent / 'set.tar.gz', 'w:gz') as tar:  # a stream, which every part reads
        tar.add(root, 'set')
    return root.parent / 'set.tar.gz'


@pytest.fixture(scope='module')
def expected(photos, tmp_path_factory):
    return contents(prepare(photos, tmp_path_factory.mktemp('expected') / 'out', **OPTIONS).path)


@pytest.mark.parametrize('parts', [2, 3, 20])
def test_in_any_order(photos, expected, tmp_path, parts):
    order = random.Random(parts).sample(range(1, parts + 1), parts)
    finished = [prepare_part(photos, tmp_path / 'out', f'{number}/{parts}', **OPTIONS) for number in order]
    assert finished == [False] * (parts - 1) + [True]
    assert contents(tmp_path / 'out') == expected
    assert prepare_part(photos, tmp_path / 'out', f'1/{parts}', **OPTIONS)  # as after a requeue


def test_at_once(photos, expected, tmp_path):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        parts = [pool.submit(prepare_part, photos, tmp_path / 'out', f'{number}/4', **OPTIONS) for number in range(1, 5)]
        finished = [part.result() for part in parts]
    assert any(finished)
    assert contents(tmp_path / 'out') == expected


def test_a_part_does_not_make_the_shards_of_another(photos, tmp_path):
    assert not prepare_part(photos, tmp_path / 'out', '2/3', **OPTIONS)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').glob('*.arrayrecord')}
    assert 0 < len(before) < 5
    assert not prepare_part(photos, tmp_path / 'out', '3/3', **OPTIONS)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert not list((tmp_path / 'out').rglob('*.spool'))


def test_one_command_continues_what_parts_have_begun(photos, expected, tmp_path):
    prepare_part(photos, tmp_path / 'out', '2/3', **OPTIONS)
    prepare(photos, tmp_path / 'out', **OPTIONS)
    assert contents(tmp_path / 'out') == expected


def test_parts_of_different_sets(photos, tmp_path):
    prepare_part(photos, tmp_path / 'out', '1/3', **OPTIONS)
    with pytest.raises(UserError, match='made with other options'):
        prepare_part(photos, tmp_path / 'out', '2/3', **{**OPTIONS, 'size': 32})


@pytest.mark.parametrize('part', ['0/3', '4/3', '1', '1/0', 'a/b', '-1/2'])
def test_parts_that_are_none(part, tmp_path):
    with pytest.raises(UserError, match=f'--part={part} is invalid'):
        prepare_part(tmp_path, tmp_path / 'out', part)


def test_by_command(photos, expected, tmp_path, capsys):
    arguments = ['prepare', str(photos), f'--out={tmp_path / "out"}', '--size=64', '--shard-photos=4', '--workers=1']
    main([*arguments, '--part=1/2'])
    assert 'part 1/2 is ready; the part that is ready last finishes the set' in capsys.readouterr().err
    with pytest.raises(SystemExit) as raised:
        main([*arguments, '--part=2/2', '--features=vgg16', '--extractor-weights=random'])
    assert raised.value.code == 1
    assert '--features is for a whole set' in capsys.readouterr().err
    main([*arguments, '--part=2/2'])
    assert contents(tmp_path / 'out') == expected


@pytest.mark.parametrize('photos', ['folder'], indirect=True)
def test_by_an_array_of_jobs(photos, expected, tmp_path):
    """launch/slurm/prepare.sbatch, in the environment that Slurm gives to the jobs of an array."""
    for job in (2, 1):
        array = {'SLURM_ARRAY_TASK_ID': str(job), 'SLURM_ARRAY_TASK_COUNT': '2', 'SLURM_CPUS_PER_TASK': '1'}
        arguments = [str(photos), f'--out={tmp_path / "out"}', '--size=64', '--shard-photos=4']
        subprocess.run(
            ['bash', 'launch/slurm/prepare.sbatch', *arguments],
            cwd=ROOT,
            env={**os.environ, 'PYTHON': sys.executable, **array},
            check=True,
            timeout=120,
        )
    assert contents(tmp_path / 'out') == expected
