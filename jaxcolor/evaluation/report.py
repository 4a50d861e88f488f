"""What an evaluation tells: tables with intervals, a verdict, and a picture of the chroma that got lost."""

import json
from pathlib import Path

import numpy as np

from jaxcolor import files
from jaxcolor.evaluation import metrics

# What the table calls each figure, with its unit.
TITLES = {
    'photos': 'photos',
    'loss': 'loss',
    'color_loss': 'color loss',
    'class_loss': 'class loss',
    'ab_rmse': 'ab RMSE',
    'ab_rmse_photo': "mean of photos' ab RMSE",
    'psnr': 'PSNR (dB)',
    'psnr_gray': 'PSNR of gray (dB)',
    'ssim': 'SSIM',
    'lpips': 'LPIPS',
    'fid': 'FID',
    'ab_auc': 'AuC of ab errors',
    'ab_auc_balanced': 'AuC, colors balanced',
    'larger_channel_agreement': 'larger-of-a,b agreement',
    'colorfulness': 'colorfulness',
    'colorfulness_true': 'colorfulness of the truth',
    'colorfulness_absolute': "colorfulness, DDColor's",
    'colorfulness_absolute_true': "colorfulness of the truth, DDColor's",
    'colorfulness_absolute_delta': "difference of DDColor's",
    'chroma_kept': "chroma, part of the truth's",
    'top1': 'class found',
    'top5': 'class among first 5',
}
# Figures of single photos whose means have an interval; the root of the first stands in the table as 'ab_rmse'.
_OF_PHOTOS = (
    'ab_squared_error',
    'ab_rmse_photo',
    'psnr',
    'ssim',
    'lpips',
    'ab_auc',
    'colorfulness',
    'colorfulness_absolute',
    'top1',
    'top5',
)
# Of these, by which a network is held against the baselines: what is better, and what it is called.
_JUDGED = {'ab_squared_error': (-1, 'squared ab error'), 'psnr': (1, 'PSNR'), 'lpips': (-1, 'LPIPS')}
# Classes in the picture of the chroma: those of the most photos.
_MOST_CLASSES = 20


def table(columns: dict[str, dict[str, float]], intervals: dict[str, dict[str, tuple[float, float]]] | None = None) -> str:
    """{column: {name: value}} -> a Markdown table, a row a figure; arguments as those of `cells`."""
    return _markdown(cells(columns, intervals))


def cells(
    columns: dict[str, dict[str, float]], intervals: dict[str, dict[str, tuple[float, float]]] | None = None
) -> list[list[str]]:
    """{column: {name: value}} -> the cells of a table, the head first and then a row a figure.

    Args:
        intervals: {column: {name: (low, high)}}, for those that have one.
    """
    names = [name for name in TITLES if any(name in row for row in columns.values())]
    names += sorted({name for row in columns.values() for name in row} - set(names))
    rows = [['', *columns], *([TITLES.get(name, name)] for name in names)]
    for row, name in zip(rows[1:], names, strict=True):
        for column, values in columns.items():
            cell = f'{values[name]:.5g}' if name in values else ''
            low_high = (intervals or {}).get(column, {}).get(name)
            row.append(cell + (f' ({low_high[0]:.4g} to {low_high[1]:.4g})' if low_high else ''))
    return rows


def intervals(photos) -> dict[str, tuple[float, float]]:
    """Figures of single photos -> 95 % intervals of their means over photos, {name: (low, high)}."""
    found = {}
    for name in _OF_PHOTOS:
        values = metrics.known(name, photos.get(name, np.array([])))
        if len(values) > 1:
            found[name] = metrics.interval(values)
    if 'ab_squared_error' in found:
        found['ab_rmse'] = tuple(value**0.5 for value in found.pop('ab_squared_error'))
    return found


def gains(measured, of=slice(None)) -> dict[str, dict[str, tuple[float, float, float]]]:
    """By how much the network is better than each baseline, photo by photo.

    Args:
        measured: as `write` takes it.
        of: which photos, an index of their arrays.

    Returns:
        {baseline: {name: (mean, low, high)}}, with the 95 % interval of the mean over photos; nothing of a single photo.
    """
    network, found = measured['network'][0], {}
    for rival in list(measured)[1:]:
        found[rival] = {}
        for name, (sign, _) in _JUDGED.items():
            if name in network and len(network[name][of]) > 1:
                gain = sign * (network[name][of] - measured[rival][0][name][of])
                found[rival][name] = (float(gain.mean()), *metrics.interval(gain))
    return found


def verdict(found) -> list[str]:
    """`gains` -> a sentence for each baseline that the network is not better than beyond chance."""
    return [
        f'This network is not better than "{rival}" by {_JUDGED[name][1]}: it gains {mean:.4g} a photo '
        f'(95 % interval {low:.4g} to {high:.4g}).'
        for rival, of_rival in found.items()
        for name, (mean, low, high) in of_rival.items()
        if not low > 0
    ]


def gains_table(found) -> str:
    """`gains` -> a Markdown table."""
    figures = [name for name in _JUDGED if any(name in of_rival for of_rival in found.values())]
    rows = [['gain a photo over', *(_JUDGED[name][1] for name in figures)]]
    rows += [[rival, *(_with_interval(of_rival[name]) for name in figures)] for rival, of_rival in found.items()]
    return _markdown(rows)


def classes_table(measured, classes) -> str:
    """Figures of every class of photos, and the gain over no color, as a Markdown table; '' for fewer than two classes."""
    network, gray = measured['network'][0], measured['gray'][0]
    labels = network.get('label', np.array([], np.int32))
    rows = [['class', 'photos', 'PSNR (dB)', 'gain over gray (dB)', 'ab RMSE', 'of gray', 'colorfulness', "truth's"]]
    for number in sorted(set(labels[labels >= 0].astype(int).tolist())):
        of = labels == number
        gain = gains(measured, of)['gray'].get('psnr')
        errors = [np.mean(photos['ab_squared_error'][of], dtype=np.float64) ** 0.5 for photos in (network, gray)]
        psnr, *colorful = (network[name][of].mean() for name in ('psnr', 'colorfulness', 'colorfulness_true'))
        cells = [f'{value:.4g}' for value in (psnr, *errors, *colorful)]
        rows.append([classes[number], f'{of.sum()}', cells[0], _with_interval(gain) if gain else '', *cells[1:]])
    return _markdown(rows) if len(rows) > 2 else ''


def _with_interval(mean_low_high):
    mean, low, high = mean_low_high
    return f'{mean:.4g} ({low:.4g} to {high:.4g})'


def _markdown(rows):
    """Rows of cells, the head first -> a Markdown table; all columns but the first are set to the right."""
    widths = [max(10, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append(f'| {" | ".join(cells)} |')
    rule = '|:' + '-' * (widths[0] + 1) + '|' + ''.join('-' * (w + 1) + ':|' for w in widths[1:])
    return '\n'.join([lines[0], rule, *lines[1:]])


def write_report(path, about, rows, measured, classes) -> str:
    """Writes an evaluation to PATH.json, PATH.md and PATH_chroma.png.

    Args:
        about: {'run', 'step', 'photos'[, 'fid']}: what was measured, and by whose weights.
        rows: {column: {name: value}}, the network first.
        measured: {column: what `Evaluator.photos` gives}.
        classes: names that labels index.

    Returns:
        What there is to say: the table, the verdict, the picture.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    ranges = {column: intervals(photos) for column, (photos, _) in measured.items()}
    found = gains(measured)
    content = {**about, 'figures': rows, 'intervals': ranges, 'gains': found}
    files.write_text(path.with_suffix('.json'), json.dumps(content, indent=1) + '\n')
    draw_chroma(f'{path}_chroma.png', *measured['network'], classes)
    beats = 'By ab error, PSNR and LPIPS where measured, this network beats every baseline here.'
    is_enough = rows['network']['photos'] > 1
    sentences = (verdict(found) or [beats]) if is_enough else ['One photo says nothing of what the network is worth.']
    text = f'{about["run"]}, step {about["step"]}, on {about["photos"]} (95 % intervals over photos):'
    if 'fid' in about:
        sentences.append(f'FID by {about["fid"]}, over {rows["network"]["photos"]:.0f} photos.')
    tables = [table(rows, ranges), gains_table(found) if is_enough else '', classes_table(measured, classes)]
    text = '\n\n'.join([text, *filter(None, tables), '\n'.join(sentences)])
    files.write_text(path.with_suffix('.md'), text + '\n')
    return f'{text}\n\nchroma kept: {path}_chroma.png'


def draw_chroma(path, photos, sums, classes) -> None:
    """Draws how much chroma the network gives, and the truth has, by lightness and by class."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout='constrained')
    left, right = figure.subplots(1, 2)
    predicted, true, pixels = sums['chroma_by_lightness'].T
    seen = pixels > 0
    middles = (np.arange(len(pixels)) + 0.5) * 100 / len(pixels)
    for values, label in ((true, 'truth'), (predicted, 'network')):
        left.plot(middles[seen], values[seen] / pixels[seen], marker='o', label=label)
    left.set(xlabel='L* of the pixel', ylabel='mean chroma', title='by lightness', xlim=(0, 100), ylim=(0, None))
    left.legend()
    kept = {}
    labels = photos.get('label', np.array([], np.int32)).astype(np.int32)
    for number in sorted(set(labels[labels >= 0]), key=lambda n: -np.sum(labels == n))[:_MOST_CLASSES]:
        of_class = labels == number
        kept[classes[number]] = photos['chroma'][of_class].sum() / max(photos['chroma_true'][of_class].sum(), 1e-6)
    kept['all'] = photos['chroma'].sum() / max(photos['chroma_true'].sum(), 1e-6)
    right.barh(list(kept), list(kept.values()))
    right.axvline(1, color='gray', linewidth=1)
    right.set(xlabel="chroma, part of the truth's", title='by class of photo')
    right.invert_yaxis()
    with files.atomic(path) as temporary:
        figure.savefig(temporary, dpi=100, format='png')
