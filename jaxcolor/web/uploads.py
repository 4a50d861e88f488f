"""Reads the body of a request within limits on its bytes and its time, and keeps it in memory: nothing comes to the disk."""

import asyncio
import re
from collections.abc import AsyncGenerator
from typing import NamedTuple

from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from jaxcolor.errors import printable

_MAX_FIELDS = 8
_MAX_TEXT = 2**16  # bytes of a field that is no file
_MAX_NAME = 150  # letters of a file's name


class Form(NamedTuple):
    """The parts of a form."""

    texts: dict[str, str]
    files: dict[str, tuple[str, bytes]]  # {field: (name, data)}


class _InMemory(MultiPartParser):
    spool_max_size = 2**62  # larger files would go to a temporary one; the body is limited before


async def read_form(request: Request, max_bytes: int, seconds: float) -> Form:
    """Reads a form, multipart/form-data.

    Args:
        request: whose body was not read yet.
        max_bytes: of the body.
        seconds: that it may take.

    Raises:
        HTTPException: 400, it is no form; 408, it takes longer; 413, it is larger; 415, it is something else.
        ClientDisconnect: the client is gone.
    """
    if not request.headers.get('content-type', '').lower().startswith('multipart/form-data'):
        raise HTTPException(415, 'send a form, multipart/form-data, with the photo as its file `photo`.')
    length = request.headers.get('content-length', '')
    if length.isdecimal() and len(length) < 20 and int(length) > max_bytes:
        raise _too_large(max_bytes)
    parser = _InMemory(
        request.headers, _limited(request, max_bytes), max_files=2, max_fields=_MAX_FIELDS, max_part_size=_MAX_TEXT
    )
    try:
        async with asyncio.timeout(seconds):
            form = await parser.parse()
            texts, files = {}, {}
            for name, value in form.multi_items():
                if name in texts or name in files:
                    raise ValueError(f'it has `{printable(name)}` twice')
                if isinstance(value, UploadFile):
                    files[name] = (clean_name(value.filename or ''), await value.read())
                else:
                    texts[name] = value
            await form.close()
    except TimeoutError:
        raise HTTPException(408, f'the upload took longer than {seconds:g} seconds.') from None
    except (MultiPartException, FormParserError, ValueError, UnicodeError) as error:
        raise HTTPException(400, f'the form cannot be read ({getattr(error, "message", error)}).') from None
    return Form(texts, files)


async def _limited(request, max_bytes) -> AsyncGenerator[bytes, None]:
    count = 0
    async for chunk in request.stream():
        count += len(chunk)
        if count > max_bytes:
            raise _too_large(max_bytes)
        yield chunk


def _too_large(max_bytes):
    return HTTPException(413, f'the upload is larger than {max_bytes / 1e6:g} MB.')


def clean_name(name: str) -> str:
    """The last part of a file's name, without what is no letter for people; 'photo' where nothing is left."""
    name = re.split(r'[/\\]', name)[-1]
    name = ''.join(letter if letter.isprintable() else ' ' for letter in name).strip().strip('.')
    stem, dot, suffix = name.rpartition('.')
    name = f'{stem[: _MAX_NAME - len(suffix)]}.{suffix}' if dot and len(suffix) < 8 else name[:_MAX_NAME]
    return name if name.strip('. ') else 'photo'


__all__ = ['ClientDisconnect', 'Form', 'clean_name', 'read_form']
