"""What a shard set holds: checks every record, counts, draws a contact sheet and the ab histogram."""

import collections
import itertools
import json
from pathlib import Path

import numpy as np
from PIL import Image

from jaxcolor import color
from jaxcolor.data.augment import center_crop
from jaxcolor.data.shards import open_shards
from jaxcolor.errors import UserError
from jaxcolor.runtime.logs import Progress

CELL, COLUMNS, ROWS = 128, 8, 6  # of the contact sheet; pixels, photos


def inspect(path, out, quiet=True):
    """Reads every record of a shard set.

    Args:
        path: the set's folder.
        out: folder for `contact_sheet.png` (photos spread evenly over the set) and `ab_histogram.png` (which colors
            occur: a* to the right, b* upwards, each color as bright as it is frequent, on a logarithmic scale).
        quiet: no progress.

    Returns:
        A dict: by split the `photos`, `classes` (photos by name), `sizes` (photos by 'WxH'), and `damaged` records as
        sentences; over all splits, the part of pixels by `chroma` (0-10, 10-20, ...).

    Raises:
        UserError: the set cannot be opened, or `out` cannot be written.
    """
    shards = open_shards(path)
    out = Path(out)
    total = sum(shards.counts.values())
    pick = set(np.linspace(0, total - 1, min(total, COLUMNS * ROWS)).round().astype(int).tolist())
    progress = Progress(total, 'photos', quiet=quiet)
    report, cells, histogram, seen = {}, [], np.zeros(65536, np.int64), 0
    for split in shards.counts:
        classes, sizes, damaged = collections.Counter(), collections.Counter(), []
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
                if seen in pick:
                    cells.append(_cell(lab))
            seen += 1
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
        contact_sheet(cells).save(out / 'contact_sheet.png')
        histogram_image(histogram).save(out / 'ab_histogram.png')
    except OSError as error:
        raise UserError(f'{out} cannot be written: {error}') from None
    report['chroma'] = _chroma(histogram)
    return report


def _cell(lab):
    height, width = lab.shape[:2]
    side = min(height, width)
    rgb = color.to_uint8(color.lab_to_rgb(color.decode_lab(center_crop(lab, side))))
    return np.asarray(Image.fromarray(rgb).resize((CELL, CELL), Image.Resampling.BOX))


def contact_sheet(cells):
    """uint8 (CELL, CELL, 3) each -> one image, COLUMNS in a row."""
    rows = max(1, -(-len(cells) // COLUMNS))
    sheet = np.full((rows, COLUMNS, CELL, CELL, 3), 255, np.uint8)
    for i, cell in enumerate(cells):
        sheet[divmod(i, COLUMNS)] = cell
    return Image.fromarray(sheet.transpose(0, 2, 1, 3, 4).reshape(rows * CELL, COLUMNS * CELL, 3))


def histogram_image(histogram):
    """Pixels by a and b, (256, 256) -> an image: b upwards, a to the right, the color itself where it occurs."""
    level = np.arange(256, dtype=np.float32) - 128
    lab = np.stack([np.full((256, 256), 70, np.float32), *np.meshgrid(level, level, indexing='ij')], axis=-1)
    weight = np.log1p(histogram) / max(1.0, np.log1p(histogram.max()))
    rgb = color.lab_to_rgb(lab) * weight[..., None].astype(np.float32)  # (a, b, 3)
    image = Image.fromarray(color.to_uint8(rgb.transpose(1, 0, 2)[::-1]))
    return image.resize((768, 768), Image.Resampling.NEAREST)


def _chroma(histogram):
    level = np.arange(256) - 128
    chroma = np.hypot(level[:, None], level[None, :])
    edges = [*range(0, 60, 10), 256]
    counts = np.histogram(chroma, edges, weights=histogram)[0]
    names = [f'{low}-{high}' for low, high in itertools.pairwise(edges[:-1])] + [f'{edges[-2]}-']
    return {name: round(float(count / max(1, histogram.sum())), 4) for name, count in zip(names, counts, strict=True)}


def inspect_and_print(path: str | Path, out: Path, as_json: bool = False) -> None:
    """Inspects a shard set, with progress, and prints the report. Raises UserError, too, where a record is damaged."""
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
        print('pixels by chroma: ' + ', '.join(f'{key} {part:.1%}' for key, part in report['chroma'].items()))
        print(f'pictures: {out / "contact_sheet.png"}, {out / "ab_histogram.png"}')
    if damaged := [sentence for split in splits.values() for sentence in split['damaged']]:
        raise UserError(f'{len(damaged)} records are damaged, the first: {damaged[0]}')
    if not as_json:
        print('every record was read and is sound')
