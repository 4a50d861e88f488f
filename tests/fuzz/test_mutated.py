"""The nightly fuzzing: mutated files for each reader. $JAXCOLOR_FUZZ_FILES says how many (10,000)."""

import os
import subprocess
import sys
from pathlib import Path

import mutated
import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('target', mutated.TARGETS)
def test_mutated_files(target):
    """In a process of its own: libraries may crash or hang in C."""
    count = os.environ.get('JAXCOLOR_FUZZ_FILES', '10000')
    script = Path(__file__).parent / 'mutated.py'
    done = subprocess.run([sys.executable, script, target, f'--files={count}'], capture_output=True, text=True)
    assert done.returncode == 0, f'exit code {done.returncode}\n{done.stderr[-4000:]}'
    assert f'{count} mutated files' in done.stdout
