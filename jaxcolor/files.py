"""Atomic writing: a file appears whole or not at all."""

import contextlib
import json
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

# What file systems of all platforms allow for one name.
MAX_NAME_BYTES = 255


class Found(NamedTuple):
    """A file below a folder, or what cannot be searched."""

    path: str
    parts: tuple[str, ...]  # of the path below the folder
    problem: str = ''  # 'is a link to a folder that it lies in'; '' for a file
    is_lost: bool = False  # the problem may hide files


def walk(folder: str | os.PathLike, skip: os.stat_result | None = None) -> Iterator[Found]:
    """Yields the files below a folder, without hidden ones, in an order that depends on their names alone.

    Links to folders are followed, but not into a folder that they lie in. A folder that cannot be listed, such a link, and
    what is neither a file nor a folder (a pipe would block its reader) are yielded as problems.

    Args:
        folder: where to search.
        skip: a folder that is left out, itself a problem.
    """
    stack: list[tuple[str, tuple[str, ...], tuple[os.stat_result, ...]]] = [(os.fspath(folder), (), ())]
    while stack:
        path, parts, above = stack.pop()
        try:
            this = os.stat(path)
            if skip is not None and os.path.samestat(this, skip):
                yield Found(path, parts, 'is the folder of the results')
                continue
            if any(os.path.samestat(this, other) for other in above):
                yield Found(path, parts, 'is a link to a folder that it lies in')
                continue
            with os.scandir(path) as listing:
                entries = sorted((entry for entry in listing if entry.name[0] != '.'), key=lambda entry: entry.name)
        except OSError as error:
            yield Found(path, parts, f'cannot be read ({error.strerror})', is_lost=True)
            continue
        folders = []
        for entry in entries:
            below = (*parts, entry.name)
            mode = _mode(entry)
            if stat.S_ISDIR(mode):
                folders.append((entry.path, below, (*above, this)))
            elif mode and not stat.S_ISREG(mode):
                yield Found(entry.path, below, 'is neither a file nor a folder')
            else:
                yield Found(entry.path, below)
        stack.extend(reversed(folders))


def _mode(entry):
    """The kind of what a directory entry is or links to; 0 if that cannot be told, as for a link to nothing."""
    try:
        if not entry.is_symlink() and entry.is_file(follow_symlinks=False):
            return stat.S_IFREG  # told by the listing, without a further call
        return entry.stat().st_mode
    except OSError:
        return 0


def fit_name(stem: str, suffix: str) -> str:
    """A file name, `stem` + `suffix`; the stem is shortened where the name would be longer than file systems allow."""
    while stem and len(os.fsencode(stem + suffix)) > MAX_NAME_BYTES:
        stem = stem[:-1]
    return stem + suffix


@contextlib.contextmanager
def atomic(path: str | os.PathLike, folder: str | os.PathLike | None = None) -> Iterator[Path]:
    """Yields a temporary path to write to; it replaces `path` when the block ends, and is removed when the block fails.

    The file is on the disk before it replaces another: a full disk or a network file system may say only then that it did
    not take it.

    Args:
        path: the file to write.
        folder: where the temporary file goes, on the same file system; beside `path` by default.

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    path = Path(path)
    # A short name of its own: a legal name plus a suffix can be longer than a file system allows.
    temporary = Path(folder or path.parent) / f'.{uuid.uuid4().hex[:16]}.tmp'
    try:
        yield temporary
        with open(temporary, 'rb+') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # what went wrong with the file is the error to raise
            temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a UTF-8 text file atomically. Raises OSError."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes a JSON file atomically. Raises OSError."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + '\n')
