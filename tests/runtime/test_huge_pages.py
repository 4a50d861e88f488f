"""Huge pages: where the program starts again to have them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxcolor.runtime import huge_pages

MADVISE = 'always [madvise] never\n'
NAME = huge_pages.VARIABLE


@pytest.mark.parametrize(
    ('environ', 'mode', 'glibc', 'expected'),
    [
        ({'A': 'b'}, MADVISE, (2, 36), {'A': 'b', NAME: 'glibc.malloc.hugetlb=1'}),
        ({NAME: 'glibc.malloc.arena_max=1'}, MADVISE, (2, 36), {NAME: 'glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1'}),
        ({NAME: 'glibc.malloc.hugetlb=0'}, MADVISE, (2, 36), None),  # as the user wants it
        ({}, '[always] madvise never\n', (2, 36), None),  # they come without asking
        ({}, 'always madvise [never]\n', (2, 36), None),
        ({}, '', (2, 36), None),  # not Linux
        ({}, MADVISE, (2, 34), None),  # it would ignore the setting
        ({}, MADVISE, (), None),
    ],
)
def test_environment(environ, mode, glibc, expected):
    assert huge_pages.environment_with(environ, mode, glibc) == expected


@pytest.mark.parametrize('arguments', [['-m', 'jaxcolor', 'train', 'a b'], ['-m', 'jaxcolor.main', '--config', "it's"]])
def test_program_starts_again_once_with_all_its_arguments(tmp_path, arguments):
    """`sitecustomize` runs before the program: it makes huge pages look available, and notes each start."""
    (tmp_path / 'mode').write_text(MADVISE)
    (tmp_path / 'sitecustomize.py').write_text(
        'import os, pathlib, sys\n'
        'from jaxcolor.runtime import huge_pages\n'
        f'huge_pages._MODE = pathlib.Path({str(tmp_path / "mode")!r})\n'
        'huge_pages._glibc = lambda: (2, 36)\n'
        f'with open({str(tmp_path / "starts")!r}, "a") as file:\n'
        '    print(os.getpid(), os.environ.get(huge_pages.VARIABLE), sys.orig_argv[1:], sep="\\t", file=file)\n'
    )
    root = Path(huge_pages.__file__).parents[2]
    environ = {key: value for key, value in os.environ.items() if key != NAME}
    environ['PYTHONPATH'] = os.pathsep.join([str(tmp_path), str(root)])
    end = subprocess.run([sys.executable, *arguments], env=environ, capture_output=True, text=True)
    assert 'Traceback' not in end.stderr
    (first, before, asked), (second, after, again) = [x.split('\t') for x in (tmp_path / 'starts').read_text().splitlines()]
    assert (first, before, after) == (second, 'None', huge_pages.SETTING)
    assert asked == again == str(arguments)
