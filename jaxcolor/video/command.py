"""The command `jaxcolor video`: its arguments and what it runs."""

import argparse

from jaxcolor.config import DEFAULT_MODEL
from jaxcolor.errors import UserError, counted, printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `jaxcolor video`."""
    add = parser.add_argument
    add('film', metavar='IN', help='the film, in any container that FFmpeg reads')
    add('out', metavar='OUT', help='the colored film; its suffix names the container, .mkv keeps most')
    model = 'a run directory, an exported model, a name that `jaxcolor models` lists, or a published file (%(default)s)'
    add('--model', default=DEFAULT_MODEL, metavar='RUN_OR_NAME', help=model)
    add('--step', type=int, help='checkpoint step (that of the lowest validation loss)')
    add('--size', type=int, default=0, help="shorter side of the network's input in pixels (that of training)")
    add('--chroma', type=float, default=1.0, metavar='GAIN', help='multiply the predicted a*b*: 1.2 is more colorful')
    temporal = (
        'how much of a color is carried along the motion from frame to frame, from 0 (nothing) to below 1 (%(default)s)'
    )
    add('--temporal', type=float, default=0.95, metavar='SHARE', help=temporal)
    codec = "FFmpeg's name of an encoder (8 bits: libx264; more: libx265; .webm: libvpx-vp9, libsvtav1)"
    add('--codec', default='', metavar='NAME', help=codec)
    quality = "the encoder's constant rate factor; lower is better and larger (libx264: 17, libx265: 19, others: 24)"
    add('--quality', type=float, metavar='CRF', help=quality)
    add('--option', action='append', default=[], metavar='NAME=VALUE', help='an option of the encoder (may be repeated)')
    add('--overwrite', action='store_true', help='replace OUT, and start anew where an earlier run was interrupted')


def run(args: argparse.Namespace) -> None:
    """Runs `jaxcolor video`.

    Raises:
        UserError: PyAV or OpenCV is missing, or what `color_film` raises.
    """
    try:
        import av  # noqa: F401
        import cv2  # noqa: F401
    except ImportError:
        raise UserError("films need PyAV and OpenCV: pip install 'jaxcolor[video]'.") from None
    from jaxcolor.inference.colorizer import MULTIPLE, Colorizer
    from jaxcolor.video.film import color_film

    if args.size < 0 or 0 < args.size < MULTIPLE:
        raise UserError(f'--size must be at least {MULTIPLE}, not {args.size}.')
    options = {}
    for option in args.option:
        name, equals, value = option.partition('=')
        if not (name and equals):
            raise UserError(f'--option={option} is not NAME=VALUE.')
        options[name] = value
    colorizer = Colorizer(args.model, args.step, args.size, chroma=args.chroma)
    summary = color_film(
        colorizer,
        args.film,
        args.out,
        temporal=args.temporal,
        codec=args.codec,
        quality=args.quality,
        options=options,
        overwrite=args.overwrite,
    )
    for note in summary.notes:
        print(f'jaxcolor: note: {note}')
    print(f'{counted(summary.frames, "frame")} colored, in {printable(args.out)}')
