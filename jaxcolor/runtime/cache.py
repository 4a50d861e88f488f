"""What is kept on this machine between commands: downloaded weights, compiled programs."""

import hashlib
import os
import platform
from pathlib import Path

import jax
import pooch


def folder() -> Path:
    """$JAXCOLOR_CACHE, else the user's cache folder."""
    return Path(os.environ.get('JAXCOLOR_CACHE') or pooch.os_cache('jaxcolor'))


def keep_compiled() -> None:
    """Programs that took a second or more to compile are kept, so that starting the same training again compiles nothing.

    Where JAX was told a place of its own (JAX_COMPILATION_CACHE_DIR), or the folder cannot be written, nothing changes.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return
    # A home directory can be shared by machines whose processors differ.
    place = folder() / 'compiled' / hashlib.blake2b(_processor().encode(), digest_size=6).hexdigest()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update('jax_compilation_cache_dir', os.fspath(place))


def _processor():
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            return next(line for line in file if line.startswith(('flags', 'Features')))
    except (OSError, StopIteration):
        return platform.processor() + platform.machine()
