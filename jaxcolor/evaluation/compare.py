"""Compares runs on the same photos: a self-contained HTML page, the same as Markdown, and pictures."""

import base64
import importlib.resources
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jinja2
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from jaxcolor import color, files
from jaxcolor.data import pipeline
from jaxcolor.errors import UserError
from jaxcolor.evaluation import report
from jaxcolor.evaluation.evaluate import load_baselines, open_shards_for, predictor
from jaxcolor.evaluation.evaluator import Evaluator, aggregate
from jaxcolor.evaluation.grids import save_grid
from jaxcolor.evaluation.metrics import METRICS
from jaxcolor.evaluation.perceptual import load_perceptual_metrics
from jaxcolor.evaluation.photo_sets import PhotoSet
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.inference.faithful import is_published
from jaxcolor.runtime.parallel import DataParallel
from jaxcolor.weights import runs

# Metrics that the page shows for each photo, and their decimals.
_DECIMALS = {'psnr': 2, 'ab_rmse': 2, 'ssim': 3, 'lpips': 3, 'colorfulness': 1}
# The a*b* error at the top of the color scale of error maps.
_MAX_ERROR = 60.0
_GRID_PHOTOS = 8


def compare_runs(
    run_paths: Sequence[str | Path],
    data: str,
    split: str,
    photos: int = 64,
    lpips: bool = False,
    fid: str = '',
    faithful: bool = False,
    photo_set: PhotoSet | None = None,
) -> Path:
    """Compares runs on a split of a shard set; writes FIRST_RUN/evaluation/compare_SPLIT.html, .md and .png.

    All runs are evaluated on the center crops of the run with the largest crop; each network sees them at its own size, as
    in `jaxcolor.colorize`.

    Args:
        run_paths: two or more run directories.
        data: folder of the shard set; '' takes the one that the first run was trained on.
        split: of the shard set.
        photos: how many of the split's first photos the page shows; the metrics are of all.
        lpips: whether to compute LPIPS.
        fid: weights of Inception v3, to compute the FID; '' skips it.
        faithful: whether to compare pictures, those of published networks as their authors' programs make them, too.
        photo_set: photos of one size in place of the shard set; `split` is then the name of their protocol.

    Returns:
        Path of the page.

    Raises:
        UserError: there are fewer than two runs, or the same one twice; a run, the shard set or the split is missing; LPIPS
            or FID is not available; `faithful`, and none is a published network.
    """
    names = _names(run_paths)
    colorizers = dict(zip(names, map(Colorizer, run_paths), strict=True))
    config = max((colorizer.config for colorizer in colorizers.values()), key=lambda config: config.data.crop)
    parallel, metrics = DataParallel(devices=jax.devices()[:1]), load_perceptual_metrics(lpips, fid)
    shards: Any = photo_set
    if photo_set is None:
        shards = open_shards_for(run_paths[0], colorizers[names[0]].config, data)
    elif not photo_set.protocol.size:
        raise UserError(f'--compare needs photos of one size, and --protocol={split} keeps theirs: take val5k or val50k.')
    else:
        config = config.copy_and_resolve_references()
        config.data.crop = photo_set.protocol.size
    evaluator = Evaluator(colorizers[names[0]].task, parallel, shards, config, metrics, losses=photo_set is None)

    predictors = {name: predictor(colorizer, of_pictures=faithful) for name, colorizer in colorizers.items()}
    if faithful:
        predictors |= _faithful_predictors(dict(zip(names, run_paths, strict=True)), colorizers)
    measurements = {
        name: evaluator.per_photo_metrics((), evaluator.batches(split), predict_ab)
        for name, predict_ab in {**predictors, **load_baselines(run_paths[0], config)}.items()
    }
    per_photo = {name: values for name, (values, _) in measurements.items()}
    batch = next(pipeline.eval_batches(shards, split, batch_size=photos, crop=config.data.crop))
    shown = {key: [value for value, real in zip(batch[key], batch['mask'], strict=True) if real] for key in ('lab', 'name')}
    encoded = np.stack(shown['lab'])
    lab = color.decode_lab(encoded)
    outputs = {name: predict_ab({'lab': encoded}) for name, predict_ab in predictors.items()}

    title = f'{", ".join(names)} on {shards.path}, {split}'
    intervals = {name: report.intervals(values) for name, values in per_photo.items()}
    columns = {name: aggregate(*measurement) for name, measurement in measurements.items()}
    gains = _gain_sentences(per_photo, list(predictors))
    gains += report.published_figures(colorizer.config.name for colorizer in colorizers.values())
    path = runs.evaluation_folder(run_paths[0]) / f'compare_{split}'
    curves = _draw_curves(lab[..., 1:], outputs)
    _draw_grid(path.with_suffix('.png'), lab[:_GRID_PHOTOS], outputs)
    with files.atomic(path.parent / f'compare_{split}_curves.png') as temporary:
        temporary.write_bytes(curves)
    markdown = f'# {title}\n\n{report.table(columns, intervals)}\n\n' + '\n'.join(f'- {gain}' for gain in gains)
    markdown += f'\n\n![examples](compare_{split}.png)\n![curves](compare_{split}_curves.png)\n'
    files.write_text(path.with_suffix('.md'), markdown)
    page = _render(
        title=title,
        table=report.cells(columns, intervals),
        gains=gains,
        curves=_base64(curves),
        keys=[(run, key) for run in outputs for key in _shown_metrics(per_photo[run])],
        titles={name: metric.title for name, metric in METRICS.items()},
        max_error=_MAX_ERROR,
        photos=_photos(shown['name'], lab, outputs, per_photo),
    )
    files.write_text(path.with_suffix('.html'), page)
    return path.with_suffix('.html')


def _names(run_paths):
    """Names of the run directories, with as many parent folders as it takes to tell them apart."""
    if len(run_paths) < 2:
        raise UserError('--compare needs another run directory, or several separated by commas.')
    parts = [Path(run).resolve().parts for run in run_paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ['/'.join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError('--compare: a run directory is named twice.')


def _faithful_predictors(paths, colorizers):
    published = [name for name, colorizer in colorizers.items() if is_published(colorizer.task.network)]
    if not published:
        raise UserError('--faithful: none of these is a published network (`jaxcolor models` lists them).')
    return {f'{name}, faithful': predictor(Colorizer(paths[name], faithful=True), of_pictures=True) for name in published}


def _gain_sentences(per_photo, names):
    """The mean gains of each run over the first."""
    sentences = []
    for name in names[1:]:
        for metric, (mean, low, high) in report.gains(per_photo[name], per_photo[names[0]]).items():
            significance = 'significant' if low > 0 or high < 0 else 'not significant'
            sentences.append(
                f'Mean gain of {name} over {names[0]} in {METRICS[metric].title}: {mean:.4g} '
                f'(95 % interval {low:.4g} to {high:.4g}, {significance}).'
            )
    return sentences


def _rgb(lab, ab):
    return color.to_uint8(color.lab_to_rgb(color.join_lab(lab[..., :1], ab)))


def _draw_grid(path, lab, outputs):
    rows = {'gray': color.lab_to_rgb(color.gray_lab(lab[..., :1]))}
    for name, ab in outputs.items():
        rows[name] = color.lab_to_rgb(color.join_lab(lab[..., :1], ab[: len(lab)]))
    save_grid({**rows, 'truth': color.lab_to_rgb(lab)}, path)


def _draw_curves(ab_true, outputs):
    """Histograms of a*b*, and the cumulative curve of a*b* errors -> bytes of a PNG."""
    figure = Figure(figsize=(3.6 * (len(outputs) + 2), 3.6), layout='constrained')
    panels = figure.subplots(1, len(outputs) + 2)
    for axes, (name, ab) in zip(panels, {'truth': ab_true, **outputs}.items(), strict=False):
        counts, *edges = np.histogram2d(*ab.reshape(-1, 2).T, bins=55, range=[(-110, 110)] * 2)
        axes.pcolormesh(*edges, np.log1p(counts).T, cmap='magma')
        axes.set(title=f'a*b* of {name}', xlabel='a*', ylabel='b*', aspect='equal')
    thresholds = np.arange(151)
    for name, ab in outputs.items():
        error = np.sort(np.linalg.norm(ab - ab_true, axis=-1).reshape(-1))
        panels[-1].plot(thresholds, np.searchsorted(error, thresholds, side='right') / len(error), label=name)
    panels[-1].set(title='cumulative ab error', xlabel='ab error', ylabel='share of pixels', ylim=(0, 1))
    panels[-1].legend(fontsize='small')
    file = io.BytesIO()
    figure.savefig(file, dpi=90, format='png')
    return file.getvalue()


def _render(**values) -> str:
    """The page as text, from the template compare.html.j2."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = importlib.resources.files(__package__).joinpath('compare.html.j2').read_text(encoding='utf-8')
    return environment.from_string(template).render(values)


def _photos(names, lab, outputs, per_photo):
    """The template's values of each photo: its name, its metrics by run, its pictures.

    lab: true photos, float32 (N, H, W, 3); outputs: {run: a*b* float32 (N, H, W, 2)}.
    """
    photos = []
    for i, name in enumerate(names):
        values = {}
        pictures = [_picture('gray', _rgb(lab[i], np.zeros_like(lab[i, ..., 1:])))]
        for run, ab in outputs.items():
            values[run] = _metrics_of_photo(per_photo[run], i)
            text = ', '.join(f'{METRICS[key].title} {value:.{_DECIMALS[key]}f}' for key, value in values[run].items())
            pictures.append(_picture(run, _rgb(lab[i], ab[i]), text))
            error = np.linalg.norm(ab[i] - lab[i, ..., 1:], axis=-1) / _MAX_ERROR
            pictures.append(_picture(f'{run}: ab error', color.to_uint8(colormaps['magma'](np.clip(error, 0, 1))[..., :3])))
        pictures.append(_picture('truth', _rgb(lab[i], lab[i, ..., 1:])))
        photos.append({'name': name, 'metrics': values, 'pictures': pictures})
    return photos


def _shown_metrics(photos):
    """The metrics of _DECIMALS that were computed."""
    return [key for key in _DECIMALS if key == 'ab_rmse' or key in photos]


def _metrics_of_photo(photos, i):
    """The shown metrics of photo i."""
    values = {**photos, 'ab_rmse': photos['ab_squared_error'] ** 0.5}
    return {key: float(values[key][i]) for key in _shown_metrics(photos)}


def _picture(caption, rgb, text=''):
    """A picture for the template; rgb: uint8 (H, W, 3)."""
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, 'JPEG', quality=88, subsampling=0)
    height, width = rgb.shape[:2]
    return {'caption': caption, 'text': text, 'jpeg': _base64(file.getvalue()), 'width': width, 'height': height}


def _base64(data):
    return base64.b64encode(data).decode()
