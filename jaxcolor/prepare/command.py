"""`jaxcolor prepare` and `jaxcolor inspect`: their arguments, and what they run."""

import argparse
import os
from pathlib import Path

from jaxcolor.data.shards import ENCODINGS
from jaxcolor.prepare import prepare
from jaxcolor.prepare.datasets import SOURCES
from jaxcolor.prepare.inspect import inspect_and_print
from jaxcolor.prepare.selection import DEFAULT_SPLIT, Options


def add_prepare_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `jaxcolor prepare`."""
    default, add = Options(), parser.add_argument
    add('photos', metavar='PHOTOS', help='the folder or file that holds the photos; @FILE stands for arguments, one a line')
    add('--out', required=True, metavar='SHARDS', help='the folder of the shard set')
    add('--size', type=int, default=default.size, help='shorter side in pixels; smaller photos stay (%(default)s)')
    add('--encoding', default=default.encoding, choices=ENCODINGS, help='of the photos in the records (%(default)s)')
    add('--source', default=default.source, choices=['auto', *SOURCES], help='type of the source (%(default)s: detected)')
    own = f"; by default the source's own splits, and {DEFAULT_SPLIT} for photos that are in none"
    add('--split', metavar='NAME:PART,...', help='parts by a hash of the name' + own)
    add('--classes', type=lambda text: tuple(text.split(',')), metavar='NAME,...', help='only these')
    add('--limit-per-class', type=int, metavar='N', help='the first N of each class in each split of the source')
    add('--fraction', type=float, default=default.fraction, help='keep this part, by a hash of the name (%(default)s)')
    times = 'repeat photos of a class, or with names like bird/*-wild.jpg, in the split train; may be given several times'
    add('--repeat', metavar='NAME:TIMES,...', action='append', help=times)
    add('--drop-duplicates', action='store_true', help='leave out files with the same content')
    add('--keep-gray', action='store_true', help='keep photos without colors')
    add('--min-size', type=int, default=default.min_size, help='leave out photos with a shorter side (%(default)s)')
    add('--max-megapixels', type=float, default=default.max_megapixels, help='leave out larger photos (%(default)s)')
    add('--max-file-mb', type=float, default=default.max_file_mb, help='leave out larger files (%(default)s)')
    add('--shard-photos', type=int, default=default.shard_photos, help='candidates a shard (%(default)s)')
    add('--workers', type=int, default=os.cpu_count(), help='processes (%(default)s)')
    add('--quiet', action='store_true', help='no progress')
    add('--features', choices=['vgg16', 'inception_resnet_v2'], help="store this extractor's vectors in the records")
    add('--extractor-weights', default='', metavar='FILE', help="its weights (the cache's, else downloaded); or 'random'")


def run_prepare(args: argparse.Namespace) -> None:
    """Prepares photographs, and stores features where asked for. Raises UserError."""
    options = {name: value for name, value in vars(args).items() if name != 'run'}
    options['repeat'] = ','.join(options['repeat'] or []) or None
    features, weights = options.pop('features'), options.pop('extractor_weights')
    if not features:
        prepare(**options)
        return
    # JAX's networks are not needed to prepare photos alone.
    from jaxcolor.prepare.features import add_features
    from jaxcolor.weights.imagenet import find_extractor

    extractor = find_extractor(features, weights)  # first: a missing file should not wait for the photos
    add_features(prepare(**options), extractor, quiet=args.quiet)


def add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `jaxcolor inspect`."""
    parser.add_argument('--data', required=True, metavar='SHARDS', help='the folder of a shard set')
    parser.add_argument('--out', metavar='FOLDER', help='for the two pictures (SHARDS/inspect)')
    parser.add_argument('--json', action='store_true', help='print the whole report as JSON')


def run_inspect(args: argparse.Namespace) -> None:
    """Inspects a shard set. Raises UserError."""
    inspect_and_print(args.data, Path(args.out or Path(args.data) / 'inspect'), args.json)
