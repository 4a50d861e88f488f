"""A server of its own process, for tests."""

import contextlib
import os
import re
import subprocess
import sys
from typing import NamedTuple

from conftest import ROOT

# As users compile: optimized, and for one device.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}


class Server(NamedTuple):
    """A server that runs."""

    address: str  # 'http://localhost:8000/'
    pid: int


@contextlib.contextmanager
def served(*flags, folder):
    """Runs `jaxcolor serve FLAGS` on a free port. folder: where its output goes."""
    log = folder / 'server.log'
    with open(log, 'w') as file:
        words = [sys.executable, '-m', 'jaxcolor', 'serve', '--port=0', *flags]
        server = subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=file, text=True)
    try:
        for line in server.stderr:
            if found := re.search(r'http://\S+/', line):
                break
        else:
            raise AssertionError(f'the server ended with code {server.wait()}')
        yield Server(found[0], server.pid)
        assert server.poll() is None, 'the server died'
    finally:
        server.terminate()
        rest = server.communicate(timeout=60)[1]
        print(rest, file=sys.stderr)
    assert server.returncode in (0, -15), rest
    assert 'Traceback' not in rest, rest
