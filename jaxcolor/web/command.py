"""The command `jaxcolor serve`: its arguments and what it runs."""

import argparse

from jaxcolor.config import DEFAULT_MODEL
from jaxcolor.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `jaxcolor serve`."""
    add = parser.add_argument
    model = f'a model to choose from; may be given several times, the first is the default ({DEFAULT_MODEL})'
    add('--model', action='append', default=[], metavar='RUN_OR_NAME', help=model)
    add(
        '--host',
        default='127.0.0.1',
        help='the address to listen on; 0.0.0.0 lets others in (%(default)s: this machine alone)',
    )
    add('--port', type=int, default=8000, help='the port; 0 takes a free one (%(default)s)')
    add('--device', help="'cpu', 'gpu', 'gpu:1' (a GPU if there is one)")
    add('--max-mb', type=float, default=100, help='refuse larger uploads, in MB (%(default)s)')
    add('--max-megapixels', type=float, default=100, help='refuse larger photos (%(default)s)')
    add('--queue', type=int, default=32, metavar='N', help='requests at a time, the others are to come later (%(default)s)')
    add(
        '--workers',
        type=int,
        default=0,
        metavar='N',
        help='photos that are worked on at a time (one a core, at least 8)',
    )
    add('--upload-seconds', type=float, default=60, metavar='S', help='end uploads that take longer (%(default)s)')
    add('--color-seconds', type=float, default=120, metavar='S', help='give up on photos that take longer (%(default)s)')


def run(args: argparse.Namespace) -> None:
    """Checks the arguments, loads the models and serves.

    Raises:
        UserError: the extra is not installed, an argument cannot be used, there is no such model, or the port is taken.
    """
    try:
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"jaxcolor serve needs the extra `web`: pip install 'jaxcolor[web]' ({error}).") from None
    from jaxcolor.web.app import Limits
    from jaxcolor.web.server import serve

    for name in ('max_mb', 'max_megapixels', 'queue', 'upload_seconds', 'color_seconds'):
        if not getattr(args, name) > 0:
            raise UserError(f'--{name.replace("_", "-")} must be above 0, not {getattr(args, name)}.')
    if not 0 <= args.port < 2**16:
        raise UserError(f'--port must lie between 0 and 65535, not {args.port}.')
    limits = Limits(int(args.max_mb * 1e6), args.queue, args.upload_seconds, args.color_seconds)
    serve(
        args.model or [DEFAULT_MODEL],
        host=args.host,
        port=args.port,
        device=args.device,
        workers=args.workers,
        max_megapixels=args.max_megapixels,
        limits=limits,
    )
