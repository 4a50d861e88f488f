"""The one error that users are meant to read, and the wrapper that turns it into a line and an exit code."""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

P = ParamSpec('P')
R = TypeVar('R')


class UserError(Exception):
    """Something the user gave cannot be used.

    Its message is one sentence: what is wrong, where, and what to do about it. Commands print it without a traceback
    and exit with 1; library callers can catch it.
    """


def printable(text: str) -> str:
    """Text for people, in one line: control characters, and bytes of file names that are no UTF-8, are escaped."""
    text = text.encode(errors='surrogateescape').decode(errors='backslashreplace')
    return ''.join(letter if letter.isprintable() else letter.encode('unicode_escape').decode() for letter in text)


def counted(count: int, noun: str) -> str:
    """'1 photo', '2 photos'."""
    return f'{count} {noun}{"" if count == 1 else "s"}'


def path_of(value: object, name: str) -> str:
    """The path that an argument of a function gives. Raises UserError where it is none."""
    if isinstance(value, str) or (isinstance(value, os.PathLike) and isinstance(os.fspath(value), str)):
        return os.fspath(value)
    raise UserError(f'{name} is a path, not {type(value).__name__}.')


def listed(value: object, name: str) -> list[str]:
    """The texts or paths that an argument of a function gives: one, several, or None. Raises UserError where it is none."""
    values = [value] if isinstance(value, (str, os.PathLike)) else [] if value is None else value
    if not isinstance(values, (list, tuple)):
        raise UserError(f'{name} is a list of texts, not {type(value).__name__}.')
    return [path_of(each, name) for each in values]


@contextlib.contextmanager
def ordinary_errors() -> Iterator[None]:
    """Raises what is no `Exception`, such as panics of decoders in Rust, as RuntimeError; interrupts stay what they are."""
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise RuntimeError(f'{type(error).__name__}: {error}') from None


def one_line_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Decorates a command's entry point: UserError becomes `jaxcolor: error: ...` on stderr and exit code 1."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except UserError as error:
            print(f'jaxcolor: error: {error}', file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print('jaxcolor: interrupted', file=sys.stderr)
            sys.exit(130)

    return wrapped
