"""The 24 photos that come with the package (public domain or CC0; photos/manifest.csv): 20 train, 4 validation."""

import os
from pathlib import Path

from jaxcolor import data
from jaxcolor.prepare.shard_set import prepare
from jaxcolor.runtime import cluster

PHOTOS = Path(data.__file__).parent / 'photos'


def prepare_for(crop: int, out: str | os.PathLike) -> Path:
    """Prepares the bundled photos for training and prints that it does. Process 0 works, the others wait.

    Args:
        crop: the training's crop in pixels. The photos' shorter side becomes 8/7 of it, as the paper's 256 is of 224.
        out: the folder of the shard set.

    Returns:
        That folder.

    Raises:
        UserError: it cannot be written.
    """
    size = round(crop * 8 / 7)

    def prepare_bundled():
        print(f'No shards named (data.shards): training on the bundled photos, at {size} pixels.', flush=True)
        prepare(PHOTOS, out, size=size, quiet=True)

    cluster.run_on_main(prepare_bundled)
    return Path(out)
