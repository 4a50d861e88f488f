"""Runs side by side on the same photos: one self-contained HTML page, the same as Markdown, and pictures."""

import base64
import importlib.resources
import io
from pathlib import Path

import jax
import jinja2
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from jaxcolor import color, files
from jaxcolor.data import pipeline
from jaxcolor.errors import UserError
from jaxcolor.evaluation import metrics, report
from jaxcolor.evaluation.evaluate import load_baselines, open_shards_for, predictor
from jaxcolor.evaluation.evaluator import Evaluator, aggregate
from jaxcolor.evaluation.grids import save_grid
from jaxcolor.evaluation.perceptual import load_perceptual_metrics
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.runtime.parallel import DataParallel
from jaxcolor.weights import runs

# Figures of a photo that the page shows, and their decimals.
_SHOWN = {'psnr': 2, 'ab_rmse': 2, 'ssim': 3, 'lpips': 3, 'colorfulness': 1}
# a*b* error that is shown as the brightest of an error map.
_BRIGHTEST = 60.0
_GRID_PHOTOS = 8


def compare_runs(run_paths, data: str, split: str, photos: int = 64, lpips: bool = False, fid: str = '') -> Path:
    """Compares runs on a split of the shard set that the first was trained on, or of another.

    Photos are the center squares that the run with the largest crop sees; every network looks at them at its own size, as
    `jaxcolor.colorize` does. Writes FIRST_RUN/evaluation/compare_SPLIT.html, .md and .png.

    Args:
        run_paths: two run directories or more.
        data: the shard set's folder; '' takes the one that the first run was trained on.
        photos: how many of the split's photos, from its first on, the page shows; figures are of all.
        lpips: whether to measure that distance, too.
        fid: Inception v3's weights, to measure that distance, too; '' does not.

    Returns:
        The page.

    Raises:
        UserError: fewer than two runs, two of one name, no such run, shard set or split; LPIPS or FID cannot be had.
    """
    names = _names(run_paths)
    colorizers = dict(zip(names, map(Colorizer, run_paths), strict=True))
    config = max((colorizer.config for colorizer in colorizers.values()), key=lambda config: config.data.crop)
    shards = open_shards_for(run_paths[0], colorizers[names[0]].config, data)
    parallel = DataParallel(devices=jax.devices()[:1])
    evaluator = Evaluator(colorizers[names[0]].task, parallel, shards, config, load_perceptual_metrics(lpips, fid))

    sources = {name: predictor(colorizer) for name, colorizer in colorizers.items()}
    measured = {
        name: evaluator.per_photo_metrics((), evaluator.batches(split), colors)
        for name, colors in {**sources, **load_baselines(run_paths[0], config)}.items()
    }
    batch = next(pipeline.eval_batches(shards, split, batch_size=photos, crop=config.data.crop))
    shown = {key: [value for value, real in zip(batch[key], batch['mask'], strict=True) if real] for key in ('lab', 'name')}
    lab = np.stack(shown['lab'])
    outputs = {name: colors({'lab': lab}) for name, colors in sources.items()}

    about = f'{", ".join(names)} on {shards.path}, {split}'
    ranges = {name: report.intervals(of_photos) for name, (of_photos, _) in measured.items()}
    figures = {name: aggregate(*of) for name, of in measured.items()}
    gains = _gains(measured, names)
    path = runs.evaluation_folder(run_paths[0]) / f'compare_{split}'
    curves = _curves(color.decode_lab(lab)[..., 1:], outputs)
    _draw_grid(path.with_suffix('.png'), color.decode_lab(lab[:_GRID_PHOTOS]), outputs)
    with files.atomic(path.parent / f'compare_{split}_curves.png') as temporary:
        temporary.write_bytes(curves)
    markdown = f'# {about}\n\n{report.table(figures, ranges)}\n\n' + '\n'.join(f'- {gain}' for gain in gains)
    markdown += f'\n\n![examples](compare_{split}.png)\n![curves](compare_{split}_curves.png)\n'
    files.write_text(path.with_suffix('.md'), markdown)
    page = _render(
        title=about,
        table=report.cells(figures, ranges),
        gains=gains,
        curves=_base64(curves),
        keys=[(run, key) for run in outputs for key in _shown_keys(measured[run][0])],
        titles=report.TITLES,
        brightest=_BRIGHTEST,
        photos=_photos(shown['name'], color.decode_lab(lab), outputs, measured),
    )
    files.write_text(path.with_suffix('.html'), page)
    return path.with_suffix('.html')


def _names(run_paths):
    """The names of the folders, as far up as it takes to tell them apart."""
    if len(run_paths) < 2:
        raise UserError('--compare needs another run directory, or several separated by commas.')
    parts = [Path(run).resolve().parts for run in run_paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ['/'.join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError('--compare: a run directory is named twice.')


def _gains(measured, names):
    """What each run after the first gains on it, photo by photo."""
    first, said = measured[names[0]][0], []
    titles = {'psnr': (1, 'PSNR (dB)'), 'ab_squared_error': (-1, 'squared ab error'), 'lpips': (-1, 'LPIPS')}
    for name in names[1:]:
        for key, (sign, title) in titles.items():
            if key in first and len(first[key]) > 1:
                gain = sign * (measured[name][0][key] - first[key])
                low, high = metrics.interval(gain)
                chance = 'beyond chance' if low > 0 or high < 0 else 'within chance'
                of_mean = f'95 % interval {low:.4g} to {high:.4g}: {chance}'
                said.append(f'{name} gains {gain.mean():.4g} on {names[0]} by {title} ({of_mean}).')
    return said


def _rgb(lab, ab):
    return color.to_uint8(color.lab_to_rgb(color.join_lab(lab[..., :1], ab)))


def _draw_grid(path, lab, outputs):
    rows = {'gray': color.lab_to_rgb(color.gray_lab(lab[..., :1]))}
    for name, ab in outputs.items():
        rows[name] = color.lab_to_rgb(color.join_lab(lab[..., :1], ab[: len(lab)]))
    save_grid({**rows, 'truth': color.lab_to_rgb(lab)}, path)


def _curves(truth, outputs):
    """The a*b* that occur, and the share of pixels within an error -> bytes of a PNG."""
    figure = Figure(figsize=(3.6 * (len(outputs) + 2), 3.6), layout='constrained')
    panels = figure.subplots(1, len(outputs) + 2)
    for axes, (name, ab) in zip(panels, {'truth': truth, **outputs}.items(), strict=False):
        counts, *edges = np.histogram2d(*ab.reshape(-1, 2).T, bins=55, range=[(-110, 110)] * 2)
        axes.pcolormesh(*edges, np.log1p(counts).T, cmap='magma')
        axes.set(title=f'a*b* of {name}', xlabel='a*', ylabel='b*', aspect='equal')
    thresholds = np.arange(151)
    for name, ab in outputs.items():
        error = np.sort(np.linalg.norm(ab - truth, axis=-1).reshape(-1))
        panels[-1].plot(thresholds, np.searchsorted(error, thresholds, side='right') / len(error), label=name)
    panels[-1].set(title='pixels within an ab error', xlabel='error', ylabel='share', ylim=(0, 1))
    panels[-1].legend(fontsize='small')
    file = io.BytesIO()
    figure.savefig(file, dpi=90, format='png')
    return file.getvalue()


def _render(**values) -> str:
    """The page as text: the template compare.html.j2 beside this file, with its values filled in."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = importlib.resources.files(__package__).joinpath('compare.html.j2').read_text(encoding='utf-8')
    return environment.from_string(template).render(values)


def _photos(names, truth, outputs, measured):
    """What the template shows of each photo: its name, its figures by run and its pictures.

    truth: Lab float32 (N, H, W, 3); outputs: {run: a*b* float32 (N, H, W, 2)}.
    """
    photos = []
    for i, name in enumerate(names):
        lab, figures = truth[i], {}
        pictures = [_picture('gray', _rgb(lab, np.zeros_like(lab[..., 1:])))]
        for run, ab in outputs.items():
            figures[run] = _figures(measured[run][0], i)
            said = ', '.join(f'{report.TITLES[key]} {value:.{_SHOWN[key]}f}' for key, value in figures[run].items())
            pictures.append(_picture(run, _rgb(lab, ab[i]), said))
            error = np.linalg.norm(ab[i] - lab[..., 1:], axis=-1) / _BRIGHTEST
            pictures.append(_picture(f'{run}: ab error', color.to_uint8(colormaps['magma'](np.clip(error, 0, 1))[..., :3])))
        pictures.append(_picture('truth', _rgb(lab, lab[..., 1:])))
        photos.append({'name': name, 'figures': figures, 'pictures': pictures})
    return photos


def _shown_keys(of_photos):
    """The figures of _SHOWN that were measured."""
    return [key for key in _SHOWN if key == 'ab_rmse' or key in of_photos]


def _figures(of_photos, i):
    """The figures of photo i that the page shows."""
    values = {**of_photos, 'ab_rmse': of_photos['ab_squared_error'] ** 0.5}
    return {key: float(values[key][i]) for key in _shown_keys(of_photos)}


def _picture(caption, rgb, said=''):
    """A picture for the template; rgb: uint8 (H, W, 3)."""
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, 'JPEG', quality=88, subsampling=0)
    height, width = rgb.shape[:2]
    return {'caption': caption, 'said': said, 'jpeg': _base64(file.getvalue()), 'width': width, 'height': height}


def _base64(data):
    return base64.b64encode(data).decode()
