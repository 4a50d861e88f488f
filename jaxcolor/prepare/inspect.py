"""Inspects a shard set: reads every record, counts photos, draws a contact sheet and the ab histogram."""

import collections
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxcolor import color
from jaxcolor.data.augment import center_crop
from jaxcolor.data.shards import open_shards
from jaxcolor.errors import UserError
from jaxcolor.runtime.logs import Progress

# The contact sheet: pixels of a thumbnail's side, thumbnails per row, rows.
THUMBNAIL, COLUMNS, ROWS = 128, 8, 6


def inspect(path: str | os.PathLike, out: str | os.PathLike, quiet: bool = True) -> dict[str, Any]:
    """Reads every record of a shard set.

    Args:
        path: the set's folder.
        out: folder for `contact_sheet.png` (photos spread evenly over the set) and `ab_histogram.png` (which colors
            occur; see `histogram_image`).
        quiet: prints no progress.

    Returns:
        By split: `photos` (number of intact ones), `classes` (photos by class name), `sizes` (photos by 'WxH') and
        `damaged` (a sentence per damaged record). For all splits together, `chroma`: the fraction of pixels by chroma
        (0-10, 10-20, ..., 50-).

    Raises:
        UserError: the set cannot be opened, or `out` cannot be written.
    """
    shards = open_shards(path)
    out = Path(out)
    total = sum(shards.counts.values())
    sampled = set(np.linspace(0, total - 1, min(total, COLUMNS * ROWS)).round().astype(int).tolist())
    progress = Progress(total, 'photos', quiet=quiet)
    report: dict[str, Any] = {}
    thumbnails: list[np.ndarray] = []
    histogram: np.ndarray = np.zeros(65536, np.int64)  # by 256 * a + b
    position = 0
    for split in shards.counts:
        classes: collections.Counter[str] = collections.Counter()
        sizes: collections.Counter[str] = collections.Counter()
        damaged = []
        records = shards.records(split)
        for i in range(len(records)):
            try:
                photo = records[i]
            except UserError as error:
                damaged.append(str(error))
            else:
                lab, label = photo['lab'], int(photo['label'])
                if not -1 <= label < len(shards.classes):
                    damaged.append(f'record {i} of {split} ({photo["name"]}) has the label {label}, which is no class')
                else:
                    classes[shards.classes[label] if label >= 0 else '(none)'] += 1
                sizes[f'{lab.shape[1]}x{lab.shape[0]}'] += 1
                histogram += np.bincount(lab[..., 1].ravel() * np.uint16(256) + lab[..., 2].ravel(), minlength=65536)
                if position in sampled:
                    thumbnails.append(_thumbnail(lab))
            position += 1
            progress.update()
        report[split] = {
            'photos': len(records) - len(damaged),
            'classes': dict(sorted(classes.items())),
            'sizes': dict(sizes.most_common()),
            'damaged': damaged,
        }
    progress.close()
    histogram = histogram.reshape(256, 256)  # a, b
    try:
        out.mkdir(parents=True, exist_ok=True)
        contact_sheet(thumbnails).save(out / 'contact_sheet.png')
        histogram_image(histogram).save(out / 'ab_histogram.png')
    except OSError as error:
        raise UserError(f'{out} cannot be written: {error}') from None
    report['chroma'] = _chroma(histogram)
    return report


def _thumbnail(lab):
    """uint8 Lab (H, W, 3) -> its center square, uint8 RGB (THUMBNAIL, THUMBNAIL, 3)."""
    square = center_crop(lab, min(lab.shape[:2]))
    rgb = color.to_uint8(color.lab_to_rgb(color.decode_lab(square)))
    return np.asarray(Image.fromarray(rgb).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))


def contact_sheet(thumbnails: Sequence[np.ndarray]) -> Image.Image:
    """Arranges thumbnails, uint8 RGB (THUMBNAIL, THUMBNAIL, 3), in one image with COLUMNS in a row."""
    rows = max(1, -(-len(thumbnails) // COLUMNS))
    sheet = np.full((rows, COLUMNS, THUMBNAIL, THUMBNAIL, 3), 255, np.uint8)
    for i, thumbnail in enumerate(thumbnails):
        sheet[divmod(i, COLUMNS)] = thumbnail
    return Image.fromarray(sheet.transpose(0, 2, 1, 3, 4).reshape(rows * THUMBNAIL, COLUMNS * THUMBNAIL, 3))


def histogram_image(histogram: np.ndarray) -> Image.Image:
    """Draws pixel counts by a and b, (256, 256): a to the right, b upwards, each color as bright as log(count)."""
    level = np.arange(256, dtype=np.float32) - 128
    lab = np.stack([np.full((256, 256), 70, np.float32), *np.meshgrid(level, level, indexing='ij')], axis=-1)
    weight = np.log1p(histogram) / max(1.0, np.log1p(histogram.max()))
    rgb = color.lab_to_rgb(lab) * weight[..., None].astype(np.float32)  # (a, b, 3)
    image = Image.fromarray(color.to_uint8(rgb.transpose(1, 0, 2)[::-1]))
    return image.resize((768, 768), Image.Resampling.NEAREST)


def _chroma(histogram):
    """Pixel counts (256, 256) by a and b -> {'0-10': fraction, ..., '50-': fraction}."""
    level = np.arange(256) - 128
    chroma = np.hypot(level[:, None], level[None, :])
    edges = [*range(0, 60, 10), 256]
    counts = np.histogram(chroma, edges, weights=histogram)[0]
    names = [f'{low}-{high}' for low, high in itertools.pairwise(edges[:-1])] + [f'{edges[-2]}-']
    return {name: round(float(count / max(1, histogram.sum())), 4) for name, count in zip(names, counts, strict=True)}


def inspect_and_print(path: str | os.PathLike, out: Path, as_json: bool = False) -> None:
    """Inspects a shard set, with progress, and prints the report.

    Args:
        path, out: as for `inspect`.
        as_json: prints the whole report as JSON.

    Raises:
        UserError: as `inspect`; a record is damaged.
    """
    report = inspect(path, out, quiet=False)
    splits = {name: value for name, value in report.items() if name != 'chroma'}
    if as_json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
    else:
        for name, split in splits.items():
            print(f'{name}: {split["photos"]} photos')
            for title in ('classes', 'sizes'):
                first = list(split[title].items())[:20]
                more = ', ...' * (len(split[title]) > len(first))
                print(f'  {title}: ' + ', '.join(f'{key} {count}' for key, count in first) + more)
        print('pixels by chroma: ' + ', '.join(f'{key} {fraction:.1%}' for key, fraction in report['chroma'].items()))
        print(f'pictures: {out / "contact_sheet.png"}, {out / "ab_histogram.png"}')
    if damaged := [sentence for split in splits.values() for sentence in split['damaged']]:
        raise UserError(f'{len(damaged)} records are damaged; the first one: {damaged[0]}')
    if not as_json:
        print('all records are intact')
