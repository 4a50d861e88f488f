"""`colorize` on a folder of photos, beside the network alone on the same photos."""

import tempfile

import numpy as np

from jaxcolor.benchmark.against import Ratio, paired
from jaxcolor.inference.colorize import colorize, plan_outputs
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.inference.photos import read_photo
from jaxcolor.prepare.decode import pillow_unguarded


@pillow_unguarded()
def beside_the_network(model, photos, rounds: int) -> tuple[int, Ratio]:
    """How many photos there are, and the seconds of coloring them, files and all, over those of the network alone.

    Args:
        model: a run directory.
        photos: a folder.

    Raises:
        UserError: no such run or folder; a photo cannot be read.
    """
    colorizer = Colorizer(model)
    with tempfile.TemporaryDirectory() as out:
        pairs = plan_outputs([photos], out)
        by_shape = {}
        for photo, _ in pairs:
            lightness = colorizer.preprocess(read_photo(photo, 200))
            by_shape.setdefault(lightness.shape, []).append(lightness)
        size = colorizer.batch_size
        batches = [np.concatenate(group[i : i + size]) for group in by_shape.values() for i in range(0, len(group), size)]

        def network():
            for batch in batches:
                colorizer.predict_ab(batch)

        return len(pairs), paired(lambda: colorize(colorizer, pairs, quiet=True), network, rounds)
