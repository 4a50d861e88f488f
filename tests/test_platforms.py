"""What works on Windows, as far as Linux can tell."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The libraries know Windows; they are imported first, and as they are here.
WITHOUT_POSIX = """
import importlib, sys
import filelock, grain, jax, orbax.checkpoint, pooch
from jaxcolor.errors import UserError

array_record = [name for name in sys.modules if name.startswith('array_record')]
for name in ('fcntl', 'grp', 'pwd', 'resource', 'termios', *array_record):
    sys.modules[name] = None
module = importlib.import_module(sys.argv[1])
{then}
"""


def run(module, then=''):
    """Imports a module where the modules that Windows lacks cannot be imported, then runs some code -> its stdout."""
    line = [sys.executable, '-c', WITHOUT_POSIX.format(then=then), module]
    result = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize('module', ['jaxcolor.__main__', 'jaxcolor.inference.colorize', 'jaxcolor.train'])
def test_imports_without_posix(module):
    run(module)


def test_shard_sets_without_array_record(tmp_path):
    """`prepare` imports, and says what is missing once it is to write."""
    then = f"""
try:
    module.prepare('jaxcolor/data/photos', {str(tmp_path / 'out')!r}, size=32, quiet=True)
except UserError as error:
    print(error)
"""
    assert 'need the package array_record' in run('jaxcolor.prepare', then)
