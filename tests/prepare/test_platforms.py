"""What works on Windows, simulated on Linux by hiding POSIX modules and array_record."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Third-party libraries support Windows; they are imported before the modules are hidden.
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
    """Imports a module without the modules that Windows lacks, then runs some code; returns its stdout."""
    line = [sys.executable, '-c', WITHOUT_POSIX.format(then=then), module]
    result = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize('module', ['jaxcolor.__main__', 'jaxcolor.inference.colorize', 'jaxcolor.train'])
def test_imports_without_posix(module):
    run(module)


def test_prepare_without_array_record(tmp_path):
    """`prepare` imports, and names the missing package when it writes."""
    then = f"""
try:
    module.prepare('jaxcolor/data/photos', {str(tmp_path / 'out')!r}, size=32, quiet=True)
except UserError as error:
    print(error)
"""
    assert 'need the package array_record' in run('jaxcolor.prepare', then)
