"""Grids of photos with labeled rows."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from jaxcolor import color, files


def save_grid(rows: Mapping[str, np.ndarray], path: str | PathLike) -> None:
    """Writes rows of photos, {label: float RGB (B, H, W, 3) in [0, 1]}, to a PNG."""
    widest = max(ImageDraw.Draw(Image.new('L', (1, 1))).textlength(label, font_size=16) for label in rows)
    margin = max(64, int(widest) + 12)
    B, H, W, _ = next(iter(rows.values())).shape
    sheet = Image.new('RGB', (margin + B * W, len(rows) * H), 'white')
    draw = ImageDraw.Draw(sheet)
    for y, (label, photos) in enumerate(rows.items()):
        draw.text((6, y * H + H // 2), label, fill='black', anchor='lm', font_size=16)
        for x, photo in enumerate(color.to_uint8(photos)):
            sheet.paste(Image.fromarray(photo), (margin + x * W, y * H))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic(path) as temporary:
        sheet.save(temporary, 'PNG')
