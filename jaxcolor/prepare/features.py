"""Caches a frozen extractor's outputs in a shard set.

They are those of a photo's center square, as large as its shorter side. A training with `extractor.cached` reads them
instead of running the extractor in every step. That is exact where crops show just that square and no other augmentation
changes the photo.
"""

import dataclasses
import json

import jax
import numpy as np

from jaxcolor import color, files
from jaxcolor.data import augment, shards
from jaxcolor.errors import UserError
from jaxcolor.models.extractors import Extractor
from jaxcolor.runtime.logs import Progress
from jaxcolor.runtime.parallel import compiler_options

BATCH = 16  # photos that go through the extractor together


def add_features(shard_set: shards.ShardSet, extractor: Extractor, *, quiet: bool = False) -> shards.ShardSet:
    """Adds an extractor's outputs, float32 (1000,), to every record of a shard set.

    New shards are written beside the old ones, then `dataset.json` names them, then the old ones are removed. Interrupted
    at any moment, the set is whole, and the same call starts over.

    Args:
        shard_set: to add to.
        extractor: a frozen network with its weights.
        quiet: prints no progress.

    Returns:
        The set with `meta['features'][extractor.name]`: {flavor, source}. A set that has it already is returned as it is.

    Raises:
        UserError: the set has features of that extractor with other weights, a shard is damaged, or the disk is full.
    """
    path, meta = shard_set.path, json.loads(json.dumps(shard_set.meta))
    features = meta.get('features', {})
    if extractor.name in features:
        check_features(shard_set, extractor)
        return shard_set
    run = jax.jit(lambda extractor, lightness: extractor(lightness), compiler_options=compiler_options())
    extractor_on_device = jax.device_put(extractor)
    progress = Progress(sum(shard['photos'] for shard in meta['shards']), 'photos', quiet=quiet)
    old_files = [path / shard['file'] for shard in meta['shards']]
    for shard in meta['shards']:
        records = shards.Records([path / shard['file']], [shard['photos']])
        name = shard['file'].replace('.arrayrecord', f'-{extractor.name}.arrayrecord')

        def with_outputs(records=records):
            for start in range(0, len(records), BATCH):
                indices = range(start, min(start + BATCH, len(records)))
                outputs = _outputs(run, extractor_on_device, [records[i]['lab'] for i in indices])
                for i, output in zip(indices, outputs, strict=True):
                    yield shards.add_to_record(records.raw(i), {extractor.name: output})
                progress.update(len(indices))

        try:
            with files.atomic(path / name) as temporary:
                shards.write_shard(temporary, with_outputs(), meta['encoding'])
        except (OSError, RuntimeError) as error:
            raise UserError(f'{path / name} cannot be written ({error}); the shard set is unchanged') from None
        shard |= {'file': name, 'bytes': (path / name).stat().st_size}
    meta['features'] = {**features, extractor.name: _weights_id(extractor)}
    files.write_json(path / shards.SIDECAR, meta)
    for file in old_files:
        file.unlink()
    progress.close()
    return dataclasses.replace(shard_set, meta=meta)


def check_features(shard_set: shards.ShardSet, extractor: Extractor | tuple[()]) -> None:
    """Raises UserError where a shard set has no features of an extractor, or features of other weights.

    Args:
        shard_set: to check.
        extractor: as `runs.load_extractor` returns it; () is none.
    """
    features = shard_set.meta.get('features', {})
    name = extractor.name if extractor else 'an extractor'
    if not extractor or name not in features:
        raise UserError(
            f'extractor.cached: {shard_set.path} holds no features of {name}; prepare it with --features, or leave '
            'extractor.cached off'
        )
    if features[name] != _weights_id(extractor):
        raise UserError(
            f'{shard_set.path} holds features of {name} with the weights {features[name]["source"]}, not '
            f'{extractor.source}; prepare the photos into another folder'
        )


def _weights_id(extractor):
    return {'flavor': extractor.flavor, 'source': extractor.source}


def _outputs(run, extractor, photos):
    """The outputs (N, 1000) of N <= BATCH photos, uint8 Lab (H, W, 3) of any sizes."""
    outputs = [None] * len(photos)
    by_side = {}
    for i, photo in enumerate(photos):
        by_side.setdefault(min(photo.shape[:2]), []).append(i)
    for side, indices in by_side.items():
        lightness = np.zeros((BATCH, side, side, 1), np.float32)  # padded, so that every call has the same shape
        for row, i in enumerate(indices):
            lightness[row] = color.decode_lab(augment.center_crop(photos[i], side))[..., :1]
        for i, output in zip(indices, np.asarray(run(extractor, lightness)), strict=False):
            outputs[i] = output
    return outputs
