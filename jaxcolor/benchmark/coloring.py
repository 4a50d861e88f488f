"""The speed of `colorize` on a folder of photos, beside the network alone."""

import collections
import os
import tempfile

import numpy as np

from jaxcolor.benchmark.timing import Ratio, paired
from jaxcolor.inference.colorize import colorize
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.inference.photos import read_photo
from jaxcolor.inference.plan import plan_outputs
from jaxcolor.prepare.decode import pillow_unguarded


@pillow_unguarded()
def time_colorize(model: str | os.PathLike[str], photos: str | os.PathLike[str], rounds: int) -> tuple[int, Ratio]:
    """Times coloring all photos of a folder, files included, and the network alone on the same photos.

    Args:
        model: a run directory, an exported model, or the name of one that comes with jaxcolor.
        photos: the folder.
        rounds: of each.

    Returns:
        (number of photos, time of `colorize` over that of the network).

    Raises:
        UserError: the model or the folder is missing, or a photo cannot be read.
    """
    colorizer = Colorizer(model)
    with tempfile.TemporaryDirectory() as out:
        plan = plan_outputs([photos], out)
        by_shape = collections.defaultdict[tuple[int, ...], list[np.ndarray]](list)
        for photo, _ in plan.pairs:
            lightness = colorizer.preprocess(read_photo(photo, 200))
            by_shape[lightness.shape].append(lightness)
        size = colorizer.batch_size
        batches = [np.concatenate(group[i : i + size]) for group in by_shape.values() for i in range(0, len(group), size)]

        def network():
            for batch in batches:
                colorizer.predict_ab(batch)

        return len(plan.pairs), paired(lambda: colorize(colorizer, plan, quiet=True, overwrite=True), network, rounds)
