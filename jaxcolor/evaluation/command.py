"""What the command `jaxcolor evaluate` runs, and `jaxcolor.evaluate`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxcolor.errors import UserError, listed, path_of


def check(photos: str | os.PathLike[str] | None, protocol: str, data: str | os.PathLike[str] | None = '') -> None:
    """Raises UserError where one of a folder of photos and a protocol is given without the other, or a shard set, too."""
    if photos and data:
        raise UserError('photos are of a folder (PHOTOS, with --protocol) or of a shard set (--data=SHARDS), not of both.')
    if protocol and not photos:
        raise UserError('--protocol needs a folder: jaxcolor evaluate --model=RUN --protocol=NAME PHOTOS.')
    if photos and not protocol:
        raise UserError('PHOTOS need --protocol=NAME; a shard set is given with --data=SHARDS.')


def evaluate(
    model: str | os.PathLike[str],
    photos: str | os.PathLike[str] = '',
    *,
    data: str | os.PathLike[str] = '',
    splits: str | Sequence[str] = ('validation',),
    protocol: str = '',
    photo_list: str = '',
    compare: str | Sequence[str] = (),
    lpips: bool = False,
    fid: str = '',
    grid_photos: int | None = None,
    step: int | None = None,
    faithful: bool = False,
) -> dict[str, dict[str, Any]] | Path:
    """Measures a trained network beside baselines, as `jaxcolor evaluate` does; prints and writes tables and pictures.

    Args:
        model: a run directory, an exported model, or a name that `jaxcolor models` lists.
        photos: with `protocol`, the folder of photos.
        data: the shard set; '' takes that of the training.
        splits: of the shard set; one or several.
        protocol: how photos are selected: 'val5k', 'val50k', 'ctest10k' or 'native'.
        photo_list: with `protocol`, a file with the photos to take, one name a line.
        compare: other runs, to write a page that compares them with `model`, on the first split or the protocol's photos.
        lpips: whether to compute LPIPS.
        fid: weights of Inception v3, to compute the FID.
        grid_photos: photos in each picture of examples; None for the training's.
        step: of the checkpoint; None for the one with the lowest validation loss.
        faithful: also evaluate a published network as its authors' program uses it.

    Returns:
        {split: {'network', 'gray', ...: {metric: mean}}}; with `protocol` the same of it alone, {'network': ...}; with
        `compare`, the path of the page.

    Raises:
        UserError: the model, the data or a metric's weights are missing or do not fit; arguments that exclude each other.
    """
    check(photos, protocol, data)
    model, data, photos = path_of(model, 'model'), path_of(data, 'data'), path_of(photos, 'photos')
    splits, compare = listed(splits, 'splits'), listed(compare, 'compare')
    if not splits:
        raise UserError('splits names none; validation is what most shard sets have.')
    from jaxcolor.evaluation.compare import compare_runs
    from jaxcolor.evaluation.evaluate import evaluate_protocol, evaluate_run
    from jaxcolor.evaluation.photo_sets import PhotoSet
    from jaxcolor.runtime.cache import enable_compilation_cache

    enable_compilation_cache()
    if compare:
        photo_set = PhotoSet(photos, protocol, photo_list) if protocol else None
        return compare_runs(
            [model, *compare], data, protocol or splits[0], lpips=lpips, fid=fid, faithful=faithful, photo_set=photo_set
        )
    if protocol:
        return evaluate_protocol(model, protocol, photos, photo_list, step, lpips, fid, grid_photos, faithful)
    return evaluate_run(model, data, splits, step, lpips, fid, grid_photos, faithful)
