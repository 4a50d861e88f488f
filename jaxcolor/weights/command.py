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
    from jaxcolor.runtime import cache
    from jaxcolor.weights import store
    from jaxcolor.weights.published import PUBLISHED, library

    print('These come with jaxcolor:')
    for name in store.model_names():
        about = store.read_metadata(store.model_folder(name))
        size = (store.model_folder(name) / store.WEIGHTS).stat().st_size / 2**20
        print(f'  {name}: {int(about["parameters"]):,} parameters, {size:.1f} MiB. {about["summary"]}')
    print(f'These were published by others; the first use downloads the file to {cache.folder()}:')
    for name, published in PUBLISHED.items():
        millions, rest = divmod(published.parameters, 10**6)
        count = f'{published.parameters:,}' if rest else f'about {millions} million'
        license_name = published.license + (', no commercial use' if published.noncommercial else '')
        there = ' It is here already.' if library.is_converted(name) else ''
        print(f'  {name}: {count} parameters, {published.bytes / 2**20:.1f} MiB, {license_name}. {published.title}.{there}')
        verified = 'verified' if published.verified else 'not verified'
        print(f'    {published.figures} ({verified} by us).' if published.figures else '    No published figures are known.')


def add_import_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `jaxcolor import`."""
    add = parser.add_argument
    add('file', nargs='?', metavar='FILE', help='a published file, or the name of a published network (`jaxcolor models`)')
    add('folder', nargs='?', metavar='OUT', help='the folder of the exported model to make of FILE')
    add('--precision', choices=('float16', 'float32'), default='float16', help='of the kernels of OUT (%(default)s)')
    add('--config', metavar='RECIPE', help='the recipe of a checkpoint of the PyTorch reimplementation: ltbc_pytorch')
    add('--config.SECTION.FIELD', dest='fields', metavar='VALUE', help='set a field; jaxcolor/config.py lists all')
    add('--weights', metavar='CHECKPOINT', help='a checkpoint of the PyTorch reimplementation')
    add('--out', metavar='RUN', help='the run directory to create of it (runs/CONFIG-NAME)')


def run_import(args: argparse.Namespace) -> None:
    """Runs `jaxcolor import`. Raises UserError."""
    from jaxcolor.recipes import load_recipe
    from jaxcolor.weights.ltbc_pytorch import import_run
    from jaxcolor.weights.published import PUBLISHED, library

    if args.file is None:
        if not args.config or not args.weights:
            raise UserError('give a published file and a folder, or --config and --weights of a checkpoint.')
        config = load_recipe(args.config, args.fields)
        out = args.out or f'runs/{config.name}'
        import_run(out, config, args.weights)
        print(f'Imported {args.weights} into the run directory {out}: train it further, evaluate or colorize with it.')
        return
    if args.config or args.weights or args.out or args.fields:
        raise UserError('--config, --weights and --out are for checkpoints; of a published file, give only FILE and OUT.')
    if args.folder is None:
        raise UserError(f'give a folder for what becomes of {args.file}: jaxcolor import {args.file} OUT.')
    published = PUBLISHED.get(args.file)
    source, summary = (library.find_file(published), published.title) if published else (args.file, '')
    notes = library.write_model(source, args.folder, args.precision, summary)
    for note in [*notes, published.terms] if published else notes:
        print(note)
    library.model_folder(args.folder)  # says the license, where that is to be said at every use
    print(f'Imported {args.file} into {args.folder}: --model={args.folder} takes it, and so does train.init_from.')
