"""The commands `jaxcolor prepare` and `jaxcolor inspect`: their arguments and what they run."""

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxcolor.data.shards import ENCODINGS, ShardSet, open_shards
from jaxcolor.errors import UserError, listed, path_of
from jaxcolor.prepare.datasets import SOURCES
from jaxcolor.prepare.inspect import inspect_and_print
from jaxcolor.prepare.selection import DEFAULT_SPLIT, Options, read_names
from jaxcolor.prepare.shard_set import prepare_part

_EXTRACTORS = ('vgg16', 'inception_resnet_v2', 'efficientnet_lite0', 'efficientnet_lite2')


def add_prepare_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `jaxcolor prepare`."""
    default, add = Options(), parser.add_argument
    add('photos', metavar='PHOTOS', help='the folder or file that holds the photos; @FILE reads arguments, one a line')
    add('--out', required=True, metavar='SHARDS', help='the folder of the shard set')
    add('--size', type=int, default=default.size, help='shorter side in pixels; smaller photos keep theirs (%(default)s)')
    add('--encoding', default=default.encoding, choices=ENCODINGS, help='how records store photos (%(default)s)')
    add('--source', default=default.source, choices=['auto', *SOURCES], help='the source type (%(default)s: detected)')
    split = f"fractions by a hash of the photo's name (the source's own splits; {DEFAULT_SPLIT} for photos in none); "
    add('--split', metavar='NAME:FRACTION,...', help=split + "test:test keeps the source's own split test")
    add('--classes', type=lambda text: tuple(text.split(',')), metavar='NAME,...', help='only photos of these classes')
    limit = 'at most N random photos of each split, or of those named (train:1000,validation:200,test:200)'
    add('--limit', metavar='N|NAME:N,...', help=limit)
    add('--limit-per-class', type=int, metavar='N', help="at most N photos of each class in each of the source's splits")
    add('--fraction', type=float, default=default.fraction, help="keep this fraction, by a hash of the photo's name (all)")
    repeat = 'repeat photos in the split train, by class, name or pattern (bird/*-wild.jpg); may be given several times'
    add('--repeat', metavar='NAME:COUNT,...', action='append', help=repeat)
    leave_out = 'a file with names or patterns of photos that no split takes, one a line; may be given several times'
    add('--leave-out', metavar='FILE', action='append', help=leave_out)
    add('--drop-duplicates', action='store_true', help='reject files with the same content')
    add('--keep-gray', action='store_true', help='keep photos without color')
    add('--min-size', type=int, default=default.min_size, help='reject photos with a shorter side below this (%(default)s)')
    add('--max-megapixels', type=float, default=default.max_megapixels, help='reject larger photos (%(default)s)')
    add('--max-file-mb', type=float, default=default.max_file_mb, help='reject larger files, in MB (%(default)s)')
    add('--shard-photos', type=int, default=default.shard_photos, help='candidates per shard (%(default)s)')
    part = 'make one of N parts of the shards, on several machines that share a file system; the last one finishes the set'
    add('--part', metavar='I/N', help=part)
    add('--workers', type=int, default=os.cpu_count(), help='worker processes (%(default)s, one per core)')
    add('--quiet', action='store_true', help='print neither progress nor a summary')
    add('--features', choices=_EXTRACTORS, help="also store this extractor's outputs in the records")
    weights = "the extractor's weights, or 'random' (a file in the cache, else downloaded or that of a package)"
    add('--extractor-weights', default='', metavar='FILE', help=weights)


def run_prepare(args: argparse.Namespace) -> None:
    """Prepares photos and, with --features, stores an extractor's outputs. Raises UserError."""
    prepare_photos(**{name: value for name, value in vars(args).items() if name != 'run'})


def prepare_photos(
    photos: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    workers: int | None = 0,
    quiet: bool = False,
    part: str | None = None,
    repeat: str | Sequence[str] | None = None,
    leave_out: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    features: str | None = None,
    extractor_weights: str = '',
    **options: Any,
) -> ShardSet | None:
    """Turns photographs into a shard set, as `jaxcolor prepare` does; `jaxcolor.prepare(...)` is this.

    Args:
        photos: the folder or file that holds the photos.
        out: the folder of the shard set; a finished one is left as it is.
        workers: processes; 0 or 1 works in this one.
        quiet: prints neither progress nor a summary.
        part: '2/8' makes part 2 of 8; None all of them.
        repeat: 'NAME:COUNT,...', photos to repeat in the split train; one or several.
        leave_out: a file with the names of photos that no split takes; one or several.
        features: an extractor whose outputs are stored, too.
        extractor_weights: its file, or 'random'.
        **options: fields of `selection.Options`, as the command's arguments: numbers (size, limit_per_class, fraction,
            min_size, max_megapixels, max_file_mb, shard_photos), texts (encoding, source; split='train:0.9,validation:0.1';
            limit=1000 or 'train:1000,test:200'; classes='bird,fish' or a list), and whether to drop_duplicates or keep_gray.

    Returns:
        The set; None where `part` did not finish it.

    Raises:
        UserError: as `shard_set.prepare`, an argument is of another kind, or the extractor's weights are missing.
    """
    if unknown := sorted(options.keys() - {field.name for field in dataclasses.fields(Options)}):
        raise UserError(f'preparing takes no argument {unknown[0]!r}.')
    photos, out = path_of(photos, 'photos'), path_of(out, 'out')
    options['repeat'] = ','.join(listed(repeat, 'repeat')) or None
    names = [name for file in listed(leave_out, 'leave_out') for name in read_names(file)]
    options['leave_out'] = '\n'.join(names) or None
    if isinstance(options.get('limit'), int):
        options['limit'] = str(options['limit'])
    if options.get('classes') is not None:
        classes = options['classes']
        options['classes'] = tuple(classes.split(',') if isinstance(classes, str) else listed(classes, 'classes'))
    if workers is not None and not isinstance(workers, int):
        raise UserError(f'workers is a number of processes, not {workers!r}.')
    if features and features not in _EXTRACTORS:
        raise UserError(f'there is no extractor {features!r}; choose one of {", ".join(_EXTRACTORS)}.')
    if not features:
        finished = prepare_part(photos, out, part, workers=workers or 0, quiet=quiet, **options)
        return open_shards(out) if finished else None
    if part:
        raise UserError('--features is for a whole set: prepare its parts first, then run the command without --part.')
    # Late: preparing photos alone needs no JAX.
    from jaxcolor.prepare.features import add_features
    from jaxcolor.weights.imagenet import find_extractor

    extractor = find_extractor(features, extractor_weights)  # first, so that a missing file is reported at once
    prepare_part(photos, out, None, workers=workers or 0, quiet=quiet, **options)
    add_features(open_shards(out), extractor, quiet=quiet)
    return open_shards(out)


def add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `jaxcolor inspect`."""
    parser.add_argument('--data', required=True, metavar='SHARDS', help='the folder of the shard set')
    parser.add_argument('--out', metavar='FOLDER', help='where the pictures are written (SHARDS/inspect)')
    parser.add_argument('--json', action='store_true', help='print the report as JSON, with all classes and sizes')
    aged = 'also draw what the degradations (data.blur, data.grain, ...) make of two photos, degradations.png'
    parser.add_argument('--aged', action='store_true', help=aged)


def run_inspect(args: argparse.Namespace) -> None:
    """Inspects a shard set. Raises UserError."""
    if args.aged:
        # Late: all else here needs no networks.
        from jaxcolor.prepare.aged import draw_aged

        draw_aged(args.data, Path(args.out or Path(args.data) / 'inspect'))
    inspect_and_print(args.data, Path(args.out or Path(args.data) / 'inspect'), args.json)
