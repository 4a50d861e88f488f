"""The persistent compilation cache."""

import os
import subprocess
import sys

COMPILES = """
import jax
from jaxcolor.runtime.cache import enable_compilation_cache
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith('cache_hits') else None)
enable_compilation_cache()
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.jit(lambda x: x * 3 + 1)(2.0)
print(len(hits), jax.config.jax_compilation_cache_dir)
"""


def compiles(**environment):
    """Hits of the cache of compiled programs in a fresh process, and where the cache is."""
    kept = {name: value for name, value in os.environ.items() if name != 'JAX_COMPILATION_CACHE_DIR'}
    done = subprocess.run([sys.executable, '-c', COMPILES], env=kept | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    hits, folder = done.stdout.split(maxsplit=1)
    return int(hits), folder.strip()


def test_a_second_start_compiles_nothing(tmp_path):
    first, folder = compiles(JAXCOLOR_CACHE=str(tmp_path))
    assert first == 0
    assert folder.startswith(str(tmp_path / 'compiled'))
    second, again = compiles(JAXCOLOR_CACHE=str(tmp_path))
    assert second > 0
    assert again == folder


def test_a_cache_folder_that_is_set_already_stays(tmp_path):
    given = str(tmp_path / 'mine')
    assert compiles(JAXCOLOR_CACHE=str(tmp_path), JAX_COMPILATION_CACHE_DIR=given)[1] == given


def test_without_a_writable_folder_there_is_no_cache():
    assert compiles(JAXCOLOR_CACHE='/proc/none') == (0, 'None')
