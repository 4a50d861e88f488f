"""Reports of an evaluation: tables with confidence intervals, gains over the baselines, and a picture of the chroma."""

import json
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from jaxcolor import files
from jaxcolor.evaluation import metrics
from jaxcolor.evaluation.evaluator import PhotoMetrics
from jaxcolor.evaluation.metrics import METRICS
from jaxcolor.weights.published.table import PUBLISHED

Interval = tuple[float, float]
Gain = tuple[float, float, float]  # mean, and its interval's low and high
Photos = Mapping[str, np.ndarray]  # {name: (N,)} of `Evaluator.per_photo_metrics`

# Classes in the picture of the chroma: those with most photos.
_MAX_CLASSES = 20


def table(columns: Mapping[str, Mapping[str, float]], intervals: Mapping[str, Mapping[str, Interval]] | None = None) -> str:
    """The `cells` as a Markdown table."""
    return _markdown(cells(columns, intervals))


def cells(
    columns: Mapping[str, Mapping[str, float]], intervals: Mapping[str, Mapping[str, Interval]] | None = None
) -> list[list[str]]:
    """Cells of a table: a header row, then one row per metric.

    Args:
        columns: {column: {name: value}}.
        intervals: {column: {name: (low, high)}}, for the metrics that have one.
    """
    names = [name for name in METRICS if any(name in values for values in columns.values())]
    names += sorted({name for values in columns.values() for name in values} - set(names))
    rows = [['', *columns], *([METRICS[name].title if name in METRICS else name] for name in names)]
    for row, name in zip(rows[1:], names, strict=True):
        for column, values in columns.items():
            cell = f'{values[name]:.5g}' if name in values else ''
            interval = (intervals or {}).get(column, {}).get(name)
            row.append(cell + (f' ({interval[0]:.4g} to {interval[1]:.4g})' if interval else ''))
    return rows


def intervals(photos: Photos) -> dict[str, Interval]:
    """Confidence intervals of the means over photos, {name: (low, high)}; 'ab_rmse' has that of 'ab_squared_error'."""
    result = {}
    for name, metric in METRICS.items():
        if metric.has_interval and name in photos:
            values = metrics.drop_unlabeled(name, photos[name])
            if len(values) > 1:
                result[name] = metrics.confidence_interval(values)
    if 'ab_squared_error' in result:
        low, high = result.pop('ab_squared_error')
        result['ab_rmse'] = low**0.5, high**0.5
    return result


def gains(photos: Photos, reference: Photos, index: Any = slice(None)) -> dict[str, Gain]:
    """Mean gains per photo over a reference, positive where `photos` are better.

    Args:
        photos: of the network.
        reference: of a baseline or another network, on the same photos.
        index: selects some of the photos.

    Returns:
        {name: (mean, low, high)} with the 95 % confidence interval, of the metrics that have `better`; {} for one photo.
    """
    result = {}
    for name, metric in METRICS.items():
        if metric.better and name in photos and len(photos[name][index]) > 1:
            gain = metric.better * (photos[name][index] - reference[name][index])
            result[name] = (float(gain.mean()), *metrics.confidence_interval(gain))
    return result


def conclusions(gains_over: Mapping[str, Mapping[str, Gain]]) -> list[str]:
    """A sentence for each baseline and metric in which the network is not significantly better, or one that it always is.

    Args:
        gains_over: {baseline: `gains`}.
    """
    sentences = [
        f'The network is not significantly better than "{baseline}" in {METRICS[name].title}: '
        f'mean gain {mean:.4g} (95 % interval {low:.4g} to {high:.4g}).'
        for baseline, of_baseline in gains_over.items()
        for name, (mean, low, high) in of_baseline.items()
        if not low > 0
    ]
    titles = ', '.join(METRICS[name].title for name in _gain_metrics(gains_over))
    return sentences or [f'The network is significantly better than every baseline in {titles}.']


def published_figures(names: Iterable[str]) -> list[str]:
    """A sentence for each published network among the names of configs of which figures were published."""
    known = [PUBLISHED[name] for name in dict.fromkeys(names) if name in PUBLISHED and PUBLISHED[name].figures]
    return [f'{each.name} as published{"" if each.verified else ", not verified by us"}: {each.figures}.' for each in known]


def gains_table(gains_over: Mapping[str, Mapping[str, Gain]]) -> str:
    """{baseline: `gains`} as a Markdown table."""
    names = _gain_metrics(gains_over)
    rows = [['mean gain over', *(METRICS[name].title for name in names)]]
    rows += [[baseline, *(_format(of_baseline[name]) for name in names)] for baseline, of_baseline in gains_over.items()]
    return _markdown(rows)


def by_class(network: Photos, gray: Photos, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Figures of each class, and of each group of classes whose names begin with the same folder.

    Args:
        network: photos of the network.
        gray: photos of the baseline 'gray'.
        classes: names by label, 'people/clothes'.

    Returns:
        {class, or 'people/' for all of a group: {name: mean over its photos}}, groups first. Beside METRICS there are
        'photos', their number; 'gain', of PSNR over gray with its paired 95 % interval, None for one photo; 'nearer', the
        share of photos with a smaller ab error than gray; and '..._gray', what gray has.
    """
    labels = network.get('label', np.array([], np.int32)).astype(int)
    present = {classes[label]: labels == label for label in sorted(set(labels[labels >= 0].tolist()))}
    folders = [name.split('/')[0] + '/' for name in present if '/' in name]
    groups = {
        folder: np.any([index for name, index in present.items() if name.startswith(folder)], axis=0)
        for folder in sorted(set(folders))
        if folders.count(folder) > 1
    }
    return {name: _figures_of(network, gray, index) for name, index in (groups | present).items()}


def _figures_of(network, gray, index):
    """`by_class` of the photos of an index."""
    error, error_gray = (photos['ab_squared_error'][index] for photos in (network, gray))
    figures = {
        'photos': int(index.sum()),
        'psnr': float(network['psnr'][index].mean()),
        'gain': gains(network, gray, index).get('psnr'),
        'ab_rmse': float(np.mean(error, dtype=np.float64) ** 0.5),
        'ab_rmse_gray': float(np.mean(error_gray, dtype=np.float64) ** 0.5),
        'nearer': float(np.mean(error < error_gray)),
        'colorfulness': float(network['colorfulness'][index].mean()),
        'colorfulness_true': float(network['colorfulness_true'][index].mean()),
    }
    if 'lpips' in network:
        figures |= {
            name: float(photos['lpips'][index].mean()) for name, photos in (('lpips', network), ('lpips_gray', gray))
        }
    return figures


_CLASS_COLUMNS = {
    'photos': 'photos',
    'psnr': 'PSNR (dB)',
    'gain': 'gain over gray (dB)',
    'ab_rmse': 'ab RMSE',
    'ab_rmse_gray': 'ab RMSE of gray',
    'nearer': 'nearer than gray',
    'colorfulness': 'colorfulness',
    'colorfulness_true': 'colorfulness of truth',
    'lpips': 'LPIPS',
    'lpips_gray': 'LPIPS of gray',
}


def classes_table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures of `by_class` as a Markdown table; '' for fewer than two classes."""
    columns = {name: title for name, title in _CLASS_COLUMNS.items() if any(name in row for row in figures.values())}
    rows = [['class', *columns.values()]]
    for class_name, row in figures.items():
        cells = {name: f'{row[name]:.4g}' for name in columns if name != 'gain'}
        cells['gain'] = _format(row['gain']) if row['gain'] else ''
        rows.append([class_name, *(cells[name] for name in columns)])
    return _markdown(rows) if len(rows) > 2 else ''


def _gain_metrics(gains_over):
    """Names of the metrics that any of the gains has, in the order of METRICS."""
    return [name for name in METRICS if any(name in of_baseline for of_baseline in gains_over.values())]


def _format(gain):
    mean, low, high = gain
    return f'{mean:.4g} ({low:.4g} to {high:.4g})'


def _markdown(rows):
    """Rows of cells, the header first -> a Markdown table; all columns but the first are right-aligned."""
    widths = [max(10, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append(f'| {" | ".join(cells)} |')
    rule = '|:' + '-' * (widths[0] + 1) + '|' + ''.join('-' * (w + 1) + ':|' for w in widths[1:])
    return '\n'.join([lines[0], rule, *lines[1:]])


def write_report(
    path: str | PathLike,
    about: Mapping[str, Any],
    columns: Mapping[str, Mapping[str, float]],
    measurements: Mapping[str, PhotoMetrics],
    classes: Sequence[str],
) -> str:
    """Writes PATH.json, PATH.md and PATH_chroma.png.

    Args:
        path: without suffix.
        about: {'run', 'step', 'photos'[, 'name', 'fid']}: the model, the photos, the config's name, the weights of the FID.
        columns: {'network', 'gray', ...: {name: value}}, the network first.
        measurements: {'network', 'gray', ...: `Evaluator.per_photo_metrics`}.
        classes: names by label.

    Returns:
        The report as text.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    intervals_of = {column: intervals(photos) for column, (photos, _) in measurements.items()}
    network, sums = measurements['network']
    gains_over = {name: gains(network, photos) for name, (photos, _) in measurements.items() if name != 'network'}
    of_classes = by_class(network, measurements['gray'][0], classes)
    content = {**about, 'figures': columns, 'intervals': intervals_of, 'gains': gains_over, 'classes': of_classes}
    files.write_text(path.with_suffix('.json'), json.dumps(content, indent=1) + '\n')
    draw_chroma(f'{path}_chroma.png', network, sums, classes)
    sections = [
        f'{about["run"]}, step {about["step"]}, on {about["photos"]} (in brackets: 95 % confidence intervals over photos):',
        table(columns, intervals_of),
    ]
    count = columns['network']['photos']
    if count > 1:
        sentences = conclusions(gains_over)
        sections.append(gains_table(gains_over))
    else:
        sentences = ['One photo is too few to compare the network with the baselines.']
    sentences += published_figures([about.get('name', '')])
    if 'fid' in about:
        sentences.append(f'FID: {about["fid"]}, {count:.0f} photos.')
    if class_rows := classes_table(of_classes):
        sections.append(class_rows)
    text = '\n\n'.join([*sections, '\n'.join(sentences)])
    files.write_text(path.with_suffix('.md'), text + '\n')
    return f'{text}\n\nchroma by lightness and class: {path}_chroma.png'


def draw_chroma(path: str | PathLike, photos: Photos, sums: Mapping[str, np.ndarray], classes: Sequence[str]) -> None:
    """Draws the chroma of the network and of the truth by lightness, and their ratio by class.

    Args:
        path: of the PNG.
        photos: of the network.
        sums: the sums of `Evaluator.per_photo_metrics`.
        classes: names by label.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout='constrained')
    left, right = figure.subplots(1, 2)
    predicted, true, pixels = sums['chroma_by_lightness'].T
    occurs = pixels > 0
    centers = (np.arange(len(pixels)) + 0.5) * 100 / len(pixels)
    for values, label in ((true, 'truth'), (predicted, 'network')):
        left.plot(centers[occurs], values[occurs] / pixels[occurs], marker='o', label=label)
    left.set(xlabel='L*', ylabel='mean chroma', title='by lightness', xlim=(0, 100), ylim=(0, None))
    left.legend()
    ratios = {}
    labels = photos.get('label', np.array([], np.int32)).astype(np.int32)
    for label in sorted(set(labels[labels >= 0]), key=lambda n: -np.sum(labels == n))[:_MAX_CLASSES]:
        index = labels == label
        ratios[classes[label]] = photos['chroma'][index].sum() / max(photos['chroma_true'][index].sum(), 1e-6)
    ratios['all'] = photos['chroma'].sum() / max(photos['chroma_true'].sum(), 1e-6)
    right.barh(list(ratios), list(ratios.values()))
    right.axvline(1, color='gray', linewidth=1)
    right.set(xlabel=METRICS['chroma_kept'].title, title='by class')
    right.invert_yaxis()
    with files.atomic(path) as temporary:
        figure.savefig(temporary, dpi=100, format='png')
