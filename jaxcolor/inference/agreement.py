"""Where not to believe the colors: how far predictions for several sizes and the mirror image of a photo differ.

Predictions for changed copies of a photo are those of a small ensemble, whose spread is a measure of uncertainty (Ayhan,
Berens, *Test-time Data Augmentation for Estimation of Heteroscedastic Aleatoric Uncertainty*, MIDL 2018).
"""

import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from PIL import Image

from jaxcolor import files
from jaxcolor.errors import UserError
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.inference.encode import Output
from jaxcolor.inference.metadata import encode_exif
from jaxcolor.inference.photos import check_target
from jaxcolor.inference.tags import Tag, seal
from jaxcolor.prepare.deep import DeepImage

# Sizes of the network's input, parts of the colorizer's.
SCALES = (0.75, 1.0, 1.5)
# The standard deviation at the bright end of the picture's scale, in units of a*b*; a fixed one, to compare pictures.
TOP = 20.0
_COLORMAP = 'viridis'


class Agreement(NamedTuple):
    """The predictions for a photo at several sizes, each for it and for its mirror image.

    spread: their standard deviation, the root of the sum of the variances of a* and b*; float32 (h, w).
    mean: of the spread, over the photo.
    """

    spread: np.ndarray
    mean: float

    def picture(self, size: tuple[int, int]) -> Image.Image:
        """The spread enlarged to a photo's (W, H), from dark, 0, to bright, TOP and more; mode P."""
        levels = np.clip(self.spread * np.float32(255 / TOP), 0, 255)
        picture = Image.fromarray(levels.astype(np.float32)).resize(size, Image.Resampling.BILINEAR).convert('L')
        picture.putpalette((255 * np.array(colormaps[_COLORMAP](range(256)))[:, :3]).round().astype(np.uint8).tobytes())
        return picture


def measure(colorizer: Colorizer, image: Image.Image | DeepImage) -> Agreement:
    """How far a network agrees with itself about a photo.

    Args:
        colorizer: the network, and its gain and size.
        image: the photo.
    """
    inputs = [colorizer.preprocess(image, max(1, round(scale * colorizer.size))) for scale in SCALES]
    height, width = inputs[SCALES.index(1.0)].shape[1:3]
    predictions = []
    for lightness in {each.shape: each for each in inputs}.values():  # small sizes may be rounded to one
        ab = colorizer.predict_ab(lightness)[0]
        mirrored = colorizer.predict_ab(np.ascontiguousarray(lightness[:, :, ::-1]))[0, :, ::-1]
        predictions += [_resize(each, width, height) for each in (ab, mirrored)]
    spread = np.sqrt(np.var(predictions, axis=0).sum(axis=-1))
    return Agreement(spread, float(spread.mean()))


def _resize(ab, width, height):
    """a*b* (h, w, 2) -> (height, width, 2)"""
    planes = [Image.fromarray(np.ascontiguousarray(ab[..., i], np.float32)) for i in range(2)]
    return np.stack([np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR)) for plane in planes], axis=-1)


def picture_paths(targets: Iterable[Path]) -> dict[Path, Path]:
    """Where the pictures of results go: NAME-agreement.png beside NAME.jpg, or a number behind it where that is taken."""
    targets = list(targets)
    taken, paths = {_key(target) for target in targets}, {}
    for target in targets:
        number, path = 1, target.with_name(files.fit_name(target.stem, '-agreement.png'))
        while _key(path) in taken:
            number += 1
            path = target.with_name(files.fit_name(target.stem, f'-agreement-{number}.png'))
        taken.add(_key(path))
        paths[target] = path
    return paths


def _key(path):
    """Equal for paths that are one file on some file systems."""
    return unicodedata.normalize('NFC', str(path)).casefold()


def write_picture(agreement: Agreement, size: tuple[int, int], path: Path, tag: Tag, overwrite: bool) -> None:
    """Writes the picture of a photo's agreement atomically.

    Args:
        agreement: of the photo.
        size: (W, H) of the photo.
        path: of the picture, a PNG.
        tag: of the photo's result.
        overwrite: as in `check_target`.

    Raises:
        UserError: the file cannot be written, or is there and none of this program's, or was changed.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic(path) as temporary:
            with Output(temporary) as file:
                agreement.picture(size).save(file, 'PNG', exif=encode_exif({}, tag)[0])
                seal(file, tag)
            check_target(path, overwrite)
    except OSError as error:
        raise UserError(f'{path} cannot be written ({error.strerror or error}).') from None
