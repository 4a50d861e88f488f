"""Huge pages for the arrays of a program on Linux.

On CPUs, XLA takes the memory of a step's intermediate arrays from the system anew at each call. The system hands it out in
pages of 4 KiB, one by one when first touched: up to a fifth of a step's time. Of huge pages there are 512 times fewer.
Where the system leaves the choice to the program (`madvise`), glibc asks for them if this variable says so at the start.
"""

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

VARIABLE, SETTING = 'GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1'
_MODE = Path('/sys/kernel/mm/transparent_hugepage/enabled')
_FIRST_GLIBC = (2, 35)


def restart_with_huge_pages() -> None:
    """Starts this program again with glibc's huge pages, in the same process, if they are to be had and not set.

    Call it first: what the program has done until then is done twice.
    """
    environment = environment_with(os.environ, _mode(), _glibc())
    if environment is None or not sys.executable:
        return
    with contextlib.suppress(OSError):  # without them it runs as well
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def environment_with(environ: Mapping[str, str], mode: str, glibc: tuple[int, ...]) -> dict[str, str] | None:
    """The environment that turns huge pages on, or None where nothing is to be done.

    Args:
        environ: of this program. What the user has set about huge pages stays.
        mode: what the kernel says: 'always [madvise] never', where the choice in brackets holds.
        glibc: its version; () with another C library.
    """
    tunables = environ.get(VARIABLE, '')
    if '[madvise]' not in mode or glibc < _FIRST_GLIBC or SETTING.partition('=')[0] in tunables:
        return None
    return {**environ, VARIABLE: f'{tunables}:{SETTING}'.lstrip(':')}


def _mode():
    try:
        return _MODE.read_text()
    except OSError:
        return ''


def _glibc():
    """The version of glibc, () with another C library."""
    try:
        name, _, version = (os.confstr('CS_GNU_LIBC_VERSION') or '').partition(' ')
        return tuple(map(int, version.split('.'))) if name == 'glibc' else ()
    except (AttributeError, OSError, ValueError):  # no such function or name on other systems
        return ()
