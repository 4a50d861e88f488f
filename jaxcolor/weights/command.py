"""The commands `jaxcolor export`, `import` and `models`: their arguments and what they run."""

import argparse
import re

from jaxcolor.errors import UserError

FORMATS = ('jaxcolor', 'stablehlo', 'onnx', 'safetensors')


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `jaxcolor export`."""
    add = parser.add_argument
    run = 'run directories or models; several make an ensemble'
    add('--model', type=_names, required=True, metavar='RUN,...', help=run)
    add('--out', required=True, metavar='OUT', help='the folder of the exported model, or the file of another format')
    add('--format', choices=FORMATS, default='jaxcolor', help='what is written (%(default)s)')
    size = "pixels of the photo that an ONNX file takes; multiples of 32 (training's)"
    add('--size', type=_size, default=(0, 0), metavar='HEIGHTxWIDTH', help=size)
    add('--step', type=int, help='checkpoint step (that of the lowest validation loss)')
    add('--temperature', type=float, help='set task.temperature (see tune-inference)')
    add('--inference-rebalance', type=float, help='set task.inference_rebalance')
    add('--chroma-gain', type=float, help='set task.chroma_gain')
    add('--mirror', action='store_true', default=None, help='set task.mirror: average with the mirror image')
    add('--summary', default='', help='a one-line description, for `jaxcolor models`')


def _names(text):
    if names := [name for name in text.split(',') if name]:
        return names
    raise argparse.ArgumentTypeError('names nothing')


def _size(text):
    match = re.fullmatch(r'(\d+)x(\d+)', text)
    sides = tuple(int(side) for side in match.groups()) if match else (0, 0)
    if not all(side > 0 and side % 32 == 0 for side in sides):
        raise argparse.ArgumentTypeError(f'{text} is not of the form 256x320, multiples of 32')
    return sides


def run_export(args: argparse.Namespace) -> None:
    """Runs `jaxcolor export`. Raises UserError."""
    from pathlib import Path

    from jaxcolor.weights import portable
    from jaxcolor.weights.export import export, gather
    from jaxcolor.weights.store import WEIGHTS

    fields = {name: getattr(args, name) for name in ('temperature', 'inference_rebalance', 'chroma_gain', 'mirror')}
    fields = {name: value for name, value in fields.items() if value is not None}
    if args.size != (0, 0) and args.format != 'onnx':
        raise UserError(f'--size is for --format=onnx; --format={args.format} has no size of its own.')
    models = ', '.join(args.model)
    if args.format == 'jaxcolor':
        out = export(args.model, args.out, args.step, args.summary, fields)
        size = (out / WEIGHTS).stat().st_size / 2**20
        print(f'{models} was exported to {out} ({size:.1f} MiB). Colorize a photo with it:')
        print(f'  jaxcolor colorize PHOTO --model={out}')
        return
    config, task, state = gather(args.model, Path(args.out).stem, args.step, fields)
    out = portable.write(args.format, args.out, config, task, state, args.size)
    what = portable.FORMATS[args.format].what
    print(f'{models} was exported to {out} ({out.stat().st_size / 2**20:.1f} MiB): {what}.')


def run_models() -> None:
    """Runs `jaxcolor models`."""
    from jaxcolor.weights import store

    for name in store.model_names():
        about = store.read_metadata(store.model_folder(name))
        size = (store.model_folder(name) / store.WEIGHTS).stat().st_size / 2**20
        print(f'{name}: {int(about["parameters"]):,} parameters, {size:.1f} MiB. {about["summary"]}')
