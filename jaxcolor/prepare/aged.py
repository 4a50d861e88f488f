"""A picture of what each degradation of `tasks.degrade` does to photos."""

import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw

from jaxcolor import color, config
from jaxcolor.data.augment import center_crop
from jaxcolor.data.shards import open_shards
from jaxcolor.errors import UserError
from jaxcolor.tasks.degrade import STRONG, degrade

# Pixels of a photo's side and of the labels' column; examples of each degradation and photo.
SIDE, LABEL, EXAMPLES = 128, 64, 4


def draw_aged(path: str | os.PathLike, out: Path) -> None:
    """Draws two photos of a shard set to `out`/degradations.png.

    Raises:
        UserError: the set cannot be opened, or `out` cannot be written.
    """
    shards = open_shards(path)
    records = shards.records(next(iter(shards.counts)))
    photos = [center_crop(records[i]['lab'], SIDE) for i in sorted({0, len(records) // 2})]
    try:
        out.mkdir(parents=True, exist_ok=True)
        degradation_sheet(photos).save(out / 'degradations.png')
    except OSError as error:
        raise UserError(f'{out} cannot be written: {error}') from None


def degradation_sheet(photos: Sequence[np.ndarray]) -> Image.Image:
    """Draws what each degradation does to photos, at strengths up to `degrade.STRONG`.

    Args:
        photos: uint8 Lab (SIDE, SIDE, 3).

    Returns:
        A row for the photos as they are, one for each degradation alone, and one for all of them, each hitting 60 % of the
        photos; EXAMPLES of every photo in a row.
    """
    lightness = jax.numpy.asarray(color.decode_lab(np.stack(photos))[..., :1])  # (N, SIDE, SIDE, 1)
    rows = [('photo', {}), *((name, {name: strength, 'degraded': 1.0}) for name, strength in STRONG.items())]
    rows.append(('all', {**STRONG, 'degraded': 0.6}))
    sheet = Image.new('L', (LABEL + len(photos) * EXAMPLES * SIDE, len(rows) * SIDE), 255)
    for i, (label, strengths) in enumerate(rows):
        ImageDraw.Draw(sheet).text((4, i * SIDE + SIDE // 2), label, fill=0)
        data = config.data()
        data.update(strengths)
        age = jax.jit(lambda key, data=data: color.to_uint8(color.lab_to_rgb(color.gray_lab(degrade(lightness, key, data)))))
        for k, key in enumerate(jax.random.split(jax.random.PRNGKey(i), EXAMPLES)):
            for n, tile in enumerate(np.asarray(age(key))[..., 0]):
                sheet.paste(Image.fromarray(tile), (LABEL + (n * EXAMPLES + k) * SIDE, i * SIDE))
    return sheet
