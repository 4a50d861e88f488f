"""Grids of photos with labeled rows."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from jaxcolor import color, files

COLUMNS = 8  # photos beside each other


def save_grid(rows: Mapping[str, np.ndarray], path: str | PathLike) -> None:
    """Writes rows of photos, {label: float RGB (B, H, W, 3) in [0, 1]}, to a PNG; more than COLUMNS continue below."""
    widest = max(ImageDraw.Draw(Image.new('L', (1, 1))).textlength(label, font_size=16) for label in rows)
    margin = max(64, int(widest) + 12)
    B, H, W, _ = next(iter(rows.values())).shape
    blocks = range(0, B, COLUMNS)
    gap = H // 8  # between the blocks
    height = len(blocks) * (len(rows) * H + gap) - gap
    sheet = Image.new('RGB', (margin + min(B, COLUMNS) * W, height), 'white')
    draw = ImageDraw.Draw(sheet)
    for block, first in enumerate(blocks):
        for row, (label, photos) in enumerate(rows.items()):
            y = block * (len(rows) * H + gap) + row * H
            draw.text((6, y + H // 2), label, fill='black', anchor='lm', font_size=16)
            for x, photo in enumerate(color.to_uint8(photos[first : first + COLUMNS])):
                sheet.paste(Image.fromarray(photo), (margin + x * W, y))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic(path) as temporary:
        sheet.save(temporary, 'PNG')
