"""The cache folder of this machine: downloaded weights and compiled programs."""

import hashlib
import os
from pathlib import Path

import jax
import pooch

from jaxcolor.runtime.machine import processor_features

_WORTH_KEEPING = 0.05  # seconds; JAX's default of 1 compiles the small programs of coloring at every start


def folder() -> Path:
    """$JAXCOLOR_CACHE, else the user's cache folder."""
    return Path(os.environ.get('JAXCOLOR_CACHE') or pooch.os_cache('jaxcolor'))


def enable_compilation_cache() -> None:
    """Turns on JAX's persistent compilation cache, so that the same training compiles only the first time.

    Programs that compile in less than `_WORTH_KEEPING` are not cached. Nothing changes if JAX has a cache folder already
    (JAX_COMPILATION_CACHE_DIR), or if the folder cannot be made.
    """
    if getattr(jax.config, 'jax_compilation_cache_dir', None) is not None:
        return
    # One folder for each kind of processor: several machines may share a home directory.
    key = hashlib.blake2b(processor_features().encode(), digest_size=6).hexdigest()
    path = folder() / 'compiled' / key
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update('jax_compilation_cache_dir', os.fspath(path))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', _WORTH_KEEPING)
