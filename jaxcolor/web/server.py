"""Runs the application under uvicorn."""

import ipaddress
import logging
import socket
import sys
from collections.abc import Sequence

import uvicorn

from jaxcolor.errors import UserError
from jaxcolor.web.app import Limits, make_app
from jaxcolor.web.connections import ImpatientProtocol
from jaxcolor.web.service import Service

_LOCAL = ('localhost', '127.0.0.1', '[::1]')


def serve(
    models: Sequence[str],
    *,
    host: str = '127.0.0.1',
    port: int = 8000,
    device: str | None = None,
    workers: int = 0,
    max_megapixels: float = 100.0,
    limits: Limits | None = None,
) -> None:
    """Serves until it is told to end: SIGINT, SIGTERM.

    Args:
        models: to choose from, as `Colorizer` takes them.
        host: the address to listen on.
        port: 0 takes a free one.
        device: as of `Colorizer`.
        workers: photos that are read and written at a time; 0 for one a core, at least 8.
        max_megapixels: refuses larger photos.
        limits: what a client may ask for.

    Raises:
        UserError: there is no such model or device, or the address cannot be listened on.
    """
    limits = limits or Limits()
    logging.getLogger('python_multipart').setLevel(logging.ERROR)  # it warns of every form that it refuses
    listening = _listen(host, port)
    host, port = listening.getsockname()[:2]
    print('jaxcolor: loading and compiling the network ...', file=sys.stderr, flush=True)
    service = Service(models, device, max_megapixels)
    app = make_app(service, limits, workers, _LOCAL if _is_loopback(host) else ('*',))
    # Connections that never send a request are bounded, too.
    config = uvicorn.Config(
        app,
        http=ImpatientProtocol,
        ws='none',
        log_level='warning',
        limit_concurrency=4 * limits.queue + 64,
        timeout_graceful_shutdown=10,
        server_header=False,
    )
    shown = 'localhost' if host in ('127.0.0.1', '::1') else f'[{host}]' if ':' in host else host
    print(f'jaxcolor: serving at http://{shown}:{port}/ (Ctrl-C ends it)', file=sys.stderr, flush=True)
    try:
        uvicorn.Server(config).run([listening])
    finally:
        service.close()


def _listen(host, port):
    """A listening socket. Raises UserError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
        return listening
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'{host}:{port} cannot be listened on ({reason}); give another --port or --host.') from None


def _is_loopback(host):
    return ipaddress.ip_address(host.partition('%')[0]).is_loopback
