"""Sweeps: several trainings, one after the other, into one table and one picture.

A sweep is a text file: on each line the arguments of a training (`jaxcolor train`); lines that begin with # are remarks.
Training K lives in OUT/K. Stopped, a sweep resumes where it was. As a Slurm array the same file is trained by
launch/slurm/array.sbatch; `jaxcolor sweep FILE --collect` then tabulates.
"""

import contextlib
import csv
import io
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcolor import files
from jaxcolor.data.shards import SIDECAR, open_shards
from jaxcolor.errors import UserError
from jaxcolor.evaluation.evaluate import load_baselines, training_shards
from jaxcolor.evaluation.evaluator import Evaluator, aggregate
from jaxcolor.recipes import recipes_folder
from jaxcolor.runtime import logs
from jaxcolor.runtime.parallel import DataParallel
from jaxcolor.tasks.length import Length
from jaxcolor.weights.runs import read_config

# Columns of the table: of each training's best evaluation, that of the least loss, and of the baselines. Further splits of
# train.eval_splits have columns of their own, SPLIT/NAME.
_FIGURES = ('psnr', 'ab_rmse', 'ssim', 'larger_channel_agreement', 'top1', 'colorfulness', 'chroma_kept', 'loss')
_ERROR = 'jaxcolor: error: '


def read_sweep(path: str | Path) -> list[list[str]]:
    """The trainings of a sweep: the arguments of each. Raises UserError where there are none."""
    try:
        bundled = recipes_folder() / 'sweeps' / f'{path}.txt'
        lines = (bundled if bundled.is_file() else Path(path)).read_text(encoding='utf-8').splitlines()
    except OSError as error:
        raise UserError(f'the sweep {path} cannot be read ({error.strerror}).') from None
    trainings = [line.split() for line in lines if line.strip() and not line.startswith('#')]
    if not trainings:
        raise UserError(f'the sweep {path} has no line of flags.')
    return trainings


def train_all(trainings: Sequence[Sequence[str]], out: Path, fields: Sequence[str] = ()) -> None:
    """Trains what is not trained yet, each in a process of its own; a diverged one leaves its reason in OUT/K/failed.txt."""
    for number, flags in enumerate(trainings, 1):
        run = out / str(number)
        if _is_done(run):
            continue
        print(f'\n{number}/{len(trainings)}: {" ".join(flags)}', file=sys.stderr, flush=True)
        command = [sys.executable, '-m', 'jaxcolor.main', *flags, *fields, f'--workdir={run}']
        reason = None
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            for line in process.stderr or ():
                print(line, end='', file=sys.stderr, flush=True)
                if line.startswith(_ERROR):
                    reason = line.removeprefix(_ERROR).strip()
        if process.returncode and reason and 'not finite' in reason:
            files.write_text(run / 'failed.txt', reason + '\n')  # a result, too
        elif process.returncode:
            raise UserError(f'training {number} of the sweep ended with {process.returncode}: {reason or "see above"}')


def _is_done(run):
    if (run / 'failed.txt').exists():
        return True
    with contextlib.suppress(UserError):
        config = read_config(run)
        steps = Length.of(config.train, open_shards(training_shards(run, config)).counts.get('train', 0)).steps
        return (run / 'checkpoints' / str(steps)).is_dir() and any(row['step'] >= steps for row in logs.read_metrics(run))
    return False


def collect(trainings: Sequence[Sequence[str]], out: Path) -> list[dict[str, Any]]:
    """Writes OUT/table.csv and OUT/sweep.png of what is trained -> the table's rows."""
    rows: list[dict[str, Any]] = []
    baselines: list[dict[str, Any]] = []
    curves = []
    for number, flags in enumerate(trainings, 1):
        run = out / str(number)
        row = {'number': number, 'flags': ' '.join(flags), 'steps': '', 'result': 'not trained yet'}
        metrics = logs.read_metrics(run)
        evaluations = [row for row in metrics if any('/' in name for name in row)]
        if evaluations:
            split, *others = _splits(evaluations[0])
            best = min(evaluations, key=lambda row: row[f'{split}/loss'])
            row |= {'steps': best['step'], 'result': f'of {split}'}
            row |= {name: f'{best[f"{split}/{name}"]:.5g}' for name in _FIGURES if f'{split}/{name}' in best}
            further = [f'{other}/{name}' for other in others for name in _FIGURES]
            row |= {name: f'{best[name]:.5g}' for name in further if name in best}
            baselines = baselines or _baselines(run, split)
            curves.append((number, [(row['step'], row[f'{split}/psnr']) for row in evaluations]))
        if (run / 'failed.txt').exists():
            row['result'] = (run / 'failed.txt').read_text(encoding='utf-8').strip()
        rows.append(row)
    rows += baselines
    text = io.StringIO()
    further = list(dict.fromkeys(name for row in rows for name in row if '/' in name))
    columns = ['number', 'flags', 'steps', *_FIGURES, *further, 'result']
    table = csv.DictWriter(text, columns, restval='', lineterminator='\n')
    table.writeheader()
    table.writerows(rows)
    files.write_text(out / 'table.csv', text.getvalue())
    _draw(out / 'sweep.png', rows, curves)
    return rows


def _splits(evaluation):
    """The splits of an evaluation, in the order of train.eval_splits; the first one's loss says which is best."""
    return list(dict.fromkeys(name.split('/')[0] for name in evaluation if '/' in name))


def _baselines(run, split) -> list[dict]:
    """Rows of the baselines, on the photos that a run was trained and evaluated on."""
    config = read_config(run)
    if not (training_shards(run, config) / SIDECAR).exists():
        return []
    evaluator = Evaluator(None, DataParallel(), open_shards(training_shards(run, config)), config)
    rows = []
    for name, predict_ab in load_baselines(run, config).items():
        figures = aggregate(*evaluator.per_photo_metrics((), evaluator.batches(split), predict_ab))
        row = {'number': '', 'flags': name, 'steps': '', 'result': f'of {split}, a baseline'}
        rows.append(row | {name: f'{figures[name]:.5g}' for name in _FIGURES if name in figures})
    return rows


def _draw(path, rows, curves):
    """PSNR and kept chroma as bars, PSNR by step as curves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 1.5 + 0.4 * max(6, len(rows))), layout='constrained')
    panels = figure.subplots(1, 3, width_ratios=(2, 2, 3))
    names = [str(row['number'] or row['flags']) for row in rows]
    titles = {'psnr': 'PSNR (dB)', 'chroma_kept': 'chroma / chroma of truth'}
    for axes, (name, title) in zip(panels, titles.items(), strict=False):
        axes.barh(names, [float(row.get(name) or 'nan') for row in rows])
        axes.set(title=title)
        axes.invert_yaxis()
    low = [float(row['psnr']) for row in rows if row.get('psnr')]
    if low:
        panels[0].set_xlim(left=min(low) - 1)
    for number, points in curves:
        panels[2].plot(*zip(*points, strict=True), marker='o', markersize=3, label=str(number))
    panels[2].set(title='PSNR (dB) by step', xlabel='step')
    if curves:
        panels[2].legend(fontsize='small')
    with files.atomic(path) as temporary:
        figure.savefig(temporary, dpi=90, format='png')


def draw_over(field: str, trainings: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Draws OUT/over.png: figures of the trainings over a field, a line for those that differ in nothing else.

    Trainings that differ in the seed only are one point, with a bar from the least to the greatest. What leaves the numbers
    as they are (train.accumulation_steps) makes no other line.

    Args:
        field: 'SECTION.FIELD', of numbers.
        trainings: as `read_sweep` gives them.
        rows: as `collect` gives them.
        out: the folder of the run directories.

    Raises:
        UserError: there is no such field, or it is no number in one of the trainings.
    """
    from matplotlib.figure import Figure

    section, _, name = field.partition('.')
    apart = tuple(f'--config.{each}=' for each in (field, 'seed', 'train.accumulation_steps'))
    is_one_recipe = len({flags[0] for flags in trainings}) == 1
    lines: dict[str, dict[float, list[Mapping[str, Any]]]] = {}
    for number, (flags, row) in enumerate(zip(trainings, rows, strict=False), 1):
        if not row.get('ab_rmse'):
            continue
        try:
            at = float(read_config(out / str(number))[section][name])
        except (KeyError, TypeError, ValueError):
            raise UserError(f'--over: {field!r} is no field that is a number in training {number}.') from None
        words = [word for word in flags[is_one_recipe:] if not word.startswith(apart)]
        label = ' '.join(re.sub(r'^--config[.=]', '', word) for word in words) or 'as the recipe'
        lines.setdefault(label, {}).setdefault(at, []).append(row)

    # A single point is no line, unless there is nothing else.
    lines = {label: line for label, line in lines.items() if len(line) > 1} or lines
    ticks = sorted({at for line in lines.values() for at in line})
    figures = {'ab_rmse': 'ab RMSE', 'psnr': 'PSNR (dB)', 'top1': 'top-1 accuracy of the class'}
    figures = {key: title for key, title in figures.items() if any(row.get(key) for row in rows)}
    picture = Figure(figsize=(5.5 * max(1, len(figures)), 5 + 0.2 * len(lines)), layout='constrained')
    panels = picture.subplots(1, len(figures), squeeze=False)[0] if figures else []
    for axes, (key, title) in zip(panels, figures.items(), strict=True):
        for number, (label, line) in enumerate(sorted(lines.items())):
            values = {at: [float(row[key]) for row in line[at] if row.get(key)] for at in sorted(line)}
            values = {at: each for at, each in values.items() if each}
            mean = [sum(each) / len(each) for each in values.values()]
            below = [m - min(each) for m, each in zip(mean, values.values(), strict=True)]
            above = [max(each) - m for m, each in zip(mean, values.values(), strict=True)]
            style = {'color': f'C{number % 10}', 'linestyle': ('-', '--', ':')[number // 10 % 3]}
            axes.errorbar(list(values), mean, [below, above], marker='o', capsize=3, label=label, **style)
        axes.set(xscale='log' if min(ticks) > 0 else 'linear', xlabel=field, title=title)
        axes.set_xticks(ticks, [f'{tick:g}' for tick in ticks], minor=False)
        axes.minorticks_off()
    if figures:
        picture.legend(*panels[0].get_legend_handles_labels(), loc='outside lower center', fontsize='small', ncols=2)
    with files.atomic(out / 'over.png') as temporary:
        picture.savefig(temporary, dpi=90, format='png')


def run_sweep(
    path: str | Path, out: Path, fields: Sequence[str] = (), only_collect: bool = False, over: str | None = None
) -> None:
    """Trains what is not trained yet and tabulates all of it.

    Args:
        path: the sweep file.
        out: folder of the run directories, table.csv and sweep.png.
        fields: '--config.SECTION.FIELD=VALUE' of all trainings.
        only_collect: tabulates what is there.
        over: 'SECTION.FIELD' to draw the errors over.

    Raises:
        UserError: the file cannot be read or is empty; a training failed.
    """
    trainings = read_sweep(path)
    out.mkdir(parents=True, exist_ok=True)
    if not only_collect:
        train_all(trainings, out, fields)
    rows = collect(trainings, out)
    for row in rows:
        figures = ', '.join(f'{name} {row[name]}' for name in _FIGURES[:2] if row.get(name))
        print(f'{row["number"] or "baseline"}: {row["flags"]}\n   {figures or row["result"]}')
    if over:
        draw_over(over, trainings, rows, out)
    print(f'\ntable: {out / "table.csv"}; picture: {out / "sweep.png"}' + (f'; {out / "over.png"}' if over else ''))
