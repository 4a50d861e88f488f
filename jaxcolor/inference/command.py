"""The command `jaxcolor colorize`: its arguments and what it runs."""

import argparse
import sys

import numpy as np

from jaxcolor.config import DEFAULT_MODEL
from jaxcolor.errors import UserError, counted, printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `jaxcolor colorize`."""
    add = parser.add_argument
    add('photos', nargs='+', metavar='PHOTO_OR_FOLDER', help='photos, or folders of photos')
    model = 'a run directory, an exported model, a name that `jaxcolor models` lists, or a published file (%(default)s)'
    add('--model', default=DEFAULT_MODEL, metavar='RUN_OR_NAME', help=model)
    out = 'the folder of the results, or the result of a single photo (%(default)s)'
    add('--out', default='colored', metavar='FOLDER_OR_FILE', help=out)
    add('--overwrite', action='store_true', help='replace files that are no results, and color finished photos again')
    add('--style', metavar='PHOTO', help='colorize with the global features (the mood) of this photo')
    hints = 'colors of places of one photo: a picture, transparent but for the strokes, or x,y,#rrggbb;... (may be repeated)'
    add('--hints', action='append', default=[], metavar='PNG_OR_POINTS', help=hints)
    add('--variants', type=int, default=1, metavar='N', help='results per photo (cgan)')
    add('--agreement', action='store_true', help='also draw where predictions for several sizes of a photo disagree')
    add('--size', type=int, default=0, help="shorter side of the network's input in pixels (that of training)")
    add('--chroma', type=float, default=1.0, metavar='GAIN', help='multiply the predicted a*b*: 1.2 is more colorful')
    add('--faithful', action='store_true', help="a published network's own pre- and postprocessing, in place of ours")
    factor = "with --faithful, for deoldify: a sixteenth of its square's side (35; deoldify-video: 21)"
    add('--render-factor', type=int, default=0, metavar='N', help=factor)
    add('--step', type=int, help='checkpoint step (that of the lowest validation loss)')
    add('--max-megapixels', type=float, default=200, help='reject larger photos (%(default)s)')


def run(args: argparse.Namespace) -> None:
    """Runs `jaxcolor colorize`.

    Raises:
        UserError: an argument cannot be used, or there are no photos.
        SystemExit: 1, a photo was not colored.
    """
    import jax

    from jaxcolor.inference.colorize import colorize
    from jaxcolor.inference.colorizer import MULTIPLE, Colorizer
    from jaxcolor.inference.hints import read_hints
    from jaxcolor.inference.photos import read_photo
    from jaxcolor.inference.plan import plan_outputs
    from jaxcolor.prepare.decode import pillow_unguarded

    if args.size < 0 or 0 < args.size < MULTIPLE:
        raise UserError(f'--size must be at least {MULTIPLE}, not {args.size}.')
    if args.variants < 1:
        raise UserError(f'--variants must be at least 1, not {args.variants}.')
    if args.faithful and (args.style or args.agreement or args.variants > 1):
        raise UserError("--faithful colors as the network's authors do: without --style, --variants and --agreement.")
    # Photos have threads of their own; handing each small computation to another takes longer than waiting for it.
    jax.config.update('jax_cpu_enable_async_dispatch', False)
    plan, hints = plan_outputs(args.photos, args.out), None
    if args.hints:
        if len(plan.pairs) > 1:
            raise UserError(f'--hints are for one photo, and here are {len(plan.pairs)}.')
        with pillow_unguarded():
            hints = read_hints(args.hints, args.max_megapixels)
    colorizer = Colorizer(
        args.model,
        args.step,
        args.size,
        chroma=args.chroma,
        faithful=args.faithful,
        render_factor=args.render_factor,
    )
    style = None
    if args.style:
        with pillow_unguarded():
            style = np.asarray(colorizer.global_features(read_photo(args.style, args.max_megapixels)))
    summary = colorize(
        colorizer,
        plan,
        style=style,
        hints=hints,
        variants=args.variants,
        max_megapixels=args.max_megapixels,
        overwrite=args.overwrite,
        with_agreement=args.agreement,
    )
    print(f'{summary.colored} of {counted(len(plan.pairs), "photo")} colored, in {printable(args.out)}')
    if summary.failures:
        sys.exit(1)
