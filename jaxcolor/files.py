"""Atomic writing: a file appears whole or not at all."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic(path: str | os.PathLike, folder: str | os.PathLike | None = None) -> Iterator[Path]:
    """Yields a temporary path to write to; it replaces `path` when the block ends, and is removed when the block fails.

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
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a UTF-8 text file atomically. Raises OSError."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes a JSON file atomically. Raises OSError."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + '\n')
