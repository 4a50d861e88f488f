"""The server's answers: the page, and the HTTP API beside it."""

import asyncio
import contextlib
import functools
import importlib.resources
import json
import mimetypes
import os
import threading
import urllib.parse
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxcolor.errors import UserError, printable
from jaxcolor.web import service as coloring
from jaxcolor.web.batches import MAX_BATCH
from jaxcolor.web.document import document
from jaxcolor.web.uploads import read_form

# A page of this server loads from it alone, and shows photos that are in the browser's memory.
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    'Content-Security-Policy': _CSP,
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Cache-Control': 'no-store',
}
_STATIC = ('page.css', 'page.js', 'zip.js', 'icon.svg')
_GONE = 499  # nobody reads this answer


class Limits(NamedTuple):
    """What a client may ask for."""

    max_bytes: int = 100_000_000  # of an upload
    queue: int = 32  # requests with photos at a time
    upload_seconds: float = 60.0
    color_seconds: float = 120.0


class _Guard:
    """Sets the headers of all answers, and refuses what a page of another site sends."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message['type'] == 'http.response.start':
                own = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, 'headers': [*message['headers'], *own]}
            await send(message)

        headers = dict(scope.get('headers', ()))
        site = headers.get(b'sec-fetch-site')  # browsers tell; programs do not
        is_foreign = site in (b'cross-site', b'same-site')
        if site is None and b'origin' in headers:  # browsers without TLS, of posts
            is_foreign = headers[b'origin'].rpartition(b'//')[2] != headers.get(b'host')
        is_link = headers.get(b'sec-fetch-mode') == b'navigate' and scope.get('method') == 'GET'
        if is_foreign and not is_link:
            await _error(403, 'this server answers its own page alone.')(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers if scope['type'] == 'http' else send)


class _Photos:
    """Answers requests with photos: a few are worked on at a time, some wait, others are refused."""

    def __init__(self, service: coloring.Service, limits: Limits, workers: int) -> None:
        self.service, self.limits, self.requests = service, limits, 0
        self._free, self._pool = asyncio.Semaphore(workers), ThreadPoolExecutor(workers, 'jaxcolor-photo')

    async def answer(self, request: Request, work: Callable[[Any, threading.Event], Response]) -> Response:
        """Reads a form, works on it in a thread, and answers.

        Args:
            request: whose body is the form.
            work: takes a `Form`, and what is set when nobody waits for the answer any more.
        """
        if self.requests >= self.limits.queue:
            return _error(503, f'{self.requests} requests are being answered; come again later.', {'Retry-After': '2'})
        self.requests += 1
        left = threading.Event()
        try:
            form = await read_form(request, self.limits.max_bytes, self.limits.upload_seconds)
            if 'photo' not in form.files:
                raise UserError('the form has no file `photo`.')
            task = asyncio.ensure_future(self._work(functools.partial(work, form, left), left))
            gone = asyncio.ensure_future(_disconnected(request))
            done, _ = await asyncio.wait(
                [task, gone], timeout=self.limits.color_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            gone.cancel()
            if task in done:
                return task.result()
            task.cancel()  # if it waits still
            if gone in done:
                return Response(status_code=_GONE)
            return _error(504, f'coloring took longer than {self.limits.color_seconds:g} seconds.')
        except UserError as error:
            return _error(422, printable(str(error)))
        except ClientDisconnect:
            return Response(status_code=_GONE)
        finally:
            left.set()
            self.requests -= 1

    async def _work(self, work, left):
        """Runs it in a thread, when one is free; keeps the thread until it ends, also where nobody waits any more."""

        def report():
            try:
                return work()
            except UserError:
                if not left.is_set():  # else nobody is there to be told
                    raise

        await self._free.acquire()
        future = self._pool.submit(report)
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._free.release))
        return await asyncio.shield(asyncio.wrap_future(future))

    def close(self) -> None:
        """Waits for the threads."""
        self._pool.shutdown()


async def _disconnected(request):
    """Returns when the client is gone."""
    while (await request.receive())['type'] != 'http.disconnect':
        pass


def _error(code, sentence, headers=None):
    return JSONResponse({'error': sentence}, code, headers)


def make_app(
    service: coloring.Service, limits: Limits | None = None, workers: int = 0, hosts: Sequence[str] = ('*',)
) -> Starlette:
    """The application.

    Args:
        service: the models.
        limits: what a client may ask for.
        workers: photos that are read and written at a time; 0 for one a core, at least as many as a
            batch has.
        hosts: names by which browsers may call this server, so that no page of another name can reach it; '*' is all.
    """
    photos = _Photos(service, limits or Limits(), workers or max(MAX_BATCH, os.cpu_count() or 1))
    folder = importlib.resources.files('jaxcolor.web') / 'static'

    def file(name: str) -> Response:
        kind = mimetypes.guess_type(name)[0] or 'application/octet-stream'
        return Response((folder / name).read_bytes(), media_type=kind)

    def page(request: Request) -> Response:
        return file('page.html')

    def static(request: Request) -> Response:
        if request.path_params['name'] not in _STATIC:
            raise HTTPException(404)
        return file(request.path_params['name'])

    def models(request: Request) -> Response:
        return JSONResponse([{'name': name, 'style': service.takes_style(name)} for name in service.names])

    async def health(request: Request) -> Response:
        batches = service.batches
        counts = {'photos': batches.photos, 'batches': batches.batches, 'mean_batch': round(batches.mean_batch, 3)}
        return JSONResponse({'status': 'ok', 'requests': photos.requests, **counts})

    async def openapi(request: Request) -> Response:
        return JSONResponse(document(service.names))

    async def colorize(request: Request) -> Response:
        return await photos.answer(request, functools.partial(_colorize, service))

    async def preview(request: Request) -> Response:
        return await photos.answer(request, functools.partial(_preview, service))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        photos.close()

    return Starlette(
        routes=[
            Route('/', page),
            Route('/static/{name}', static),
            Route('/openapi.json', openapi),
            Route('/api/models', models),
            Route('/api/health', health),
            Route('/api/colorize', colorize, methods=['POST']),
            Route('/api/preview', preview, methods=['POST']),
        ],
        middleware=[Middleware(_Guard), Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)],
        exception_handlers={HTTPException: _http_error, Exception: _fault},
        lifespan=lifespan,
    )


def _colorize(service, form, left):
    """Form -> the colored photo. Raises UserError."""
    for field in ('model', 'chroma', 'hints'):
        if field in form.files:
            raise UserError(f'the field `{field}` is text; it came as a file.')
    if form.texts.get('style'):
        raise UserError('the field `style` is the file of a photo; it came as text.')
    name, data = form.files['photo']
    try:
        chroma = float(form.texts.get('chroma') or 1)
    except ValueError:
        raise UserError(f'chroma={form.texts["chroma"]} is not a number.') from None
    style = form.files.get('style', ('', b''))[1]
    result = service.color(
        coloring.Request(name, data, form.texts.get('model', ''), chroma, form.texts.get('hints', ''), style, left)
    )
    headers = {
        'Content-Disposition': f"attachment; filename*=UTF-8''{urllib.parse.quote(result.name, safe='')}",
        'X-Jaxcolor-Notes': json.dumps([printable(note) for note in result.notes]),
    }
    return Response(result.data, headers=headers, media_type=_media_type(result.data))


def _media_type(data):
    """Of the formats that results have."""
    starts = {b'\xff\xd8': 'jpeg', b'\x89PNG': 'png', b'RIFF': 'webp', b'II*\0': 'tiff'}
    return next(f'image/{kind}' for start, kind in starts.items() if data.startswith(start))


def _preview(service, form, left):
    data, (width, height) = service.preview(*form.files['photo'])
    headers = {'X-Photo-Width': str(width), 'X-Photo-Height': str(height)}
    return Response(data, headers=headers, media_type='image/jpeg')


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail, error.headers)


async def _fault(request: Request, error: Exception) -> Response:
    return _error(500, f'the server failed ({type(error).__name__}); its log says more.')
