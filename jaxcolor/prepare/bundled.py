"""The 24 photographs that come with the package (public domain or CC0; photos/manifest.csv): 20 train, 4 validation."""

from pathlib import Path

from jaxcolor import data
from jaxcolor.prepare import prepare
from jaxcolor.runtime import cluster

PHOTOS = Path(data.__file__).parent / 'photos'


def prepare_for(crop: int, out: str | Path) -> Path:
    """Prepares the bundled photos for training at a crop, into the folder `out`, and says so in one line.

    Their shorter side is 8/7 of the crop, as the paper's 256 is of 224. One process does it, the others wait.
    """
    size = round(crop * 8 / 7)

    def make():
        print(f'No shards named (data.shards): training on the bundled photos, at {size} pixels.', flush=True)
        prepare(PHOTOS, out, size=size, quiet=True)

    cluster.run_on_main(make)
    return Path(out)
