"""Caching: the vectors of a frozen extractor, computed once into a shard set.

They are those of a photo's center square, the whole of its shorter side. A training with `extractor.cached` takes them
instead of running the extractor in every step; that is the same where a crop shows just that square and nothing else
changes the photo.
"""

import dataclasses
import json

import jax
import numpy as np

from jaxcolor import color, files
from jaxcolor.data import augment, shards
from jaxcolor.errors import UserError
from jaxcolor.runtime.logs import Progress
from jaxcolor.runtime.parallel import compiler_options

BATCH = 16  # photos that go through the extractor together


def add_features(shard_set, extractor, *, quiet=False):
    """Adds an extractor's vectors to every record of a shard set.

    New shards are written beside the old ones, then `dataset.json` names them, then the old ones go: interrupted at any
    moment, the set is whole, and the same call does it again.

    Args:
        shard_set: a `shards.ShardSet`.
        extractor: an `extractors.Extractor`.

    Returns:
        The ShardSet with `meta['features'][extractor.name]`: {flavor, source}. One that has that already is returned
        as it is.

    Raises:
        UserError: it has features of that extractor with other weights; a shard is damaged; nothing can be written.
    """
    path, meta = shard_set.path, json.loads(json.dumps(shard_set.meta))
    there = meta.get('features', {})
    if extractor.name in there:
        check_source(shard_set, extractor)
        return shard_set
    run = jax.jit(lambda extractor, lightness: extractor(lightness), compiler_options=compiler_options())
    extractor_on_device = jax.device_put(extractor)
    progress = Progress(sum(shard['photos'] for shard in meta['shards']), 'photos', quiet=quiet)
    old = [path / shard['file'] for shard in meta['shards']]
    for shard in meta['shards']:
        records = shards.Records([path / shard['file']], [shard['photos']])
        name = shard['file'].replace('.arrayrecord', f'-{extractor.name}.arrayrecord')

        def with_vectors(records=records):
            for begin in range(0, len(records), BATCH):
                places = range(begin, min(begin + BATCH, len(records)))
                vectors = _vectors(run, extractor_on_device, [records[i]['lab'] for i in places])
                for place, vector in zip(places, vectors, strict=True):
                    yield shards.add_to_record(records.raw(place), {extractor.name: vector})
                progress.update(len(places))

        try:
            with files.atomic(path / name) as temporary:
                shards.write_shard(temporary, with_vectors(), meta['encoding'])
        except (OSError, RuntimeError) as error:
            raise UserError(f'{path / name} cannot be written ({error}); the shard set is as it was.') from None
        shard |= {'file': name, 'bytes': (path / name).stat().st_size}
    meta['features'] = {**there, extractor.name: _about(extractor)}
    files.write_json(path / shards.SIDECAR, meta)
    for file in old:
        file.unlink()
    progress.close()
    return dataclasses.replace(shard_set, meta=meta)


def check_source(shard_set, extractor):
    """Raises UserError where a shard set has no features of an extractor, or such of other weights."""
    there = shard_set.meta.get('features', {})
    name = extractor.name if extractor else 'an extractor'
    if name not in there:
        raise UserError(
            f'extractor.cached: {shard_set.path} holds no features of {name}; prepare it with --features, or leave '
            'extractor.cached off.'
        )
    if there[name] != _about(extractor):
        raise UserError(
            f'{shard_set.path} holds features of {name} with the weights {there[name]["source"]}, not '
            f'{extractor.source}; prepare the photos into another folder.'
        )


def _about(extractor):
    return {'flavor': extractor.flavour, 'source': extractor.source}


def _vectors(run, extractor, photos):
    """The vectors (N, 1000) of photos uint8 Lab (H, W, 3) of any sizes, N at most BATCH."""
    vectors = [None] * len(photos)
    by_side = {}
    for i, photo in enumerate(photos):
        by_side.setdefault(min(photo.shape[:2]), []).append(i)
    for side, places in by_side.items():
        batch = np.zeros((BATCH, side, side, 1), np.float32)  # filled up, so that every call has the same shape
        for row, i in enumerate(places):
            batch[row] = color.decode_lab(augment.center_crop(photos[i], side))[..., :1]
        for vector, i in zip(np.asarray(run(extractor, batch)), places, strict=False):
            vectors[i] = vector
    return vectors
