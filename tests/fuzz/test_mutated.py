"""The nightly fuzzing: mutated files for each reader. $JAXCOLOR_FUZZ_FILES says how many (10,000)."""

import os
import subprocess
import sys
from pathlib import Path

import mutated
import pytest


@pytest.mark.slow
@pytest.mark.parametrize('target', mutated.TARGETS)
def test_mutated_files(target):
    read_mutated_files(target, os.environ.get('JAXCOLOR_FUZZ_FILES', '10000'))


def test_a_few_mutated_photos():
    """So that the nightly command is known to run."""
    read_mutated_files('colorize', 40)


def read_mutated_files(target, count):
    """In a process of its own: libraries may crash or hang in C."""
    script = Path(__file__).parent / 'mutated.py'
    done = subprocess.run([sys.executable, script, target, f'--files={count}'], capture_output=True, text=True)
    assert done.returncode == 0, f'exit code {done.returncode}\n{done.stderr[-4000:]}'
    assert f'{count} mutated files' in done.stdout
