"""Command: how colourful against how wrong, over values of a field that a trained network answers by.

    python -m jaxcolor.tune RUN --field=task.temperature --values=0.1,0.2,0.38,0.6,1 [--data=SHARDS] [--split=validation]
    python -m jaxcolor.tune RUN OTHER ... --field=task.chroma_gain --values=1,1.5,2

A mean of what a pixel may be is grayer than any of it. `task.temperature` (task `color_classes`) draws it towards the
likeliest colour, `task.answer_rebalance` (too) towards rare ones, `task.chroma_gain` multiplies it; none needs another
training. Choose on validation photos, then tell the figures of others. Of several runs the curves are drawn beside each
other, into the first one's folder.
"""

import argparse
import copy
import os

from jaxcolor import tasks
from jaxcolor.evaluation import report
from jaxcolor.runtime import cache, logs
from jaxcolor.weights import runs
from jaxcolor.errors import UserError, one_line_errors
from jaxcolor.evaluation.evaluator import Evaluator, shards_for, summary
from jaxcolor.runtime.parallel import DataParallel

FIELDS = ('task.temperature', 'task.answer_rebalance', 'task.chroma_gain')


def tune(run, field: str, values, data: str = '', split: str = 'validation') -> dict[str, dict[str, float]]:
    """Measures a run with each value; writes RUN/evaluation/tune_NAME_SPLIT.md and .png, its curve.

    Returns:
        {'0.38': {name: figure}, ...}

    Raises:
        UserError: no run; a field that its task does not have or that needs another training; a value that it refuses; no
            such shard set or split.
    """
    parallel = DataParallel()
    config, _, state = runs.load(run, sharding=parallel.replicated)
    section, name = field.split('.') if field in FIELDS else ('', '')
    if name not in config.get(section, {}):
        raise UserError(f'--field: {field!r} is no field of {run} to choose after training; there are {", ".join(FIELDS)}.')
    answering, rows = {}, {}
    for value in values:  # all, before any is measured: one may be refused
        own = copy.deepcopy(config)
        with own.unlocked():
            own[section][name] = value
        answering[f'{value:g}'] = tasks.build(own)
    shards, folder = shards_for(run, config, data), runs.evaluation_folder(run)
    shards.records(split)
    for value, task in answering.items():
        evaluator = Evaluator(task, parallel, shards, config)
        rows[value] = summary(*evaluator.photos(state, evaluator.batches(split)))
    table = f'{run}, step {int(state.step)}, on {shards.path}, {split}, by {field}:\n\n{report.table(rows)}'
    logs.write_atomically(folder / f'tune_{name}_{split}.md', table + '\n')
    draw(folder / f'tune_{name}_{split}.png', field, {str(run): rows})
    print(table)
    return rows


def draw(path, field: str, measured) -> None:
    """Draws what `tune` gave of each run, {run: {value: figures}}, as curves into the PNG file `path`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout='constrained')
    axes = figure.subplots()
    for run, rows in measured.items():
        points = [(row['ab_rmse'], row['colorfulness'] / row['colorfulness_true']) for row in rows.values()]
        axes.plot(*zip(*points, strict=True), marker='o', label=run)
        for label, point in zip(rows, points, strict=True):
            axes.annotate(label, point, textcoords='offset points', xytext=(5, -10))
    if len(measured) > 1:
        axes.legend()
    axes.set(xlabel='ab RMSE', ylabel="colourfulness, part of the truth's", title=f'over {field}')
    figure.savefig(f'{path}.tmp', dpi=90, format='png')
    os.replace(f'{path}.tmp', path)


@one_line_errors
def main(argv=None):
    """`python -m jaxcolor.tune`."""
    parser = argparse.ArgumentParser('python -m jaxcolor.tune', description='Colourfulness against error, over a field.')
    parser.add_argument('runs', metavar='RUN', nargs='+', help='run directories')
    parser.add_argument('--field', required=True, choices=FIELDS)
    parser.add_argument('--values', required=True, metavar='X,...', help='to try')
    parser.add_argument('--data', default='', metavar='SHARDS', help='by default those that the run was trained on')
    parser.add_argument('--split', default='validation')
    args = parser.parse_args(argv)
    try:
        values = [float(value) for value in args.values.split(',')]
    except ValueError:
        raise UserError(f'--values={args.values} are no numbers, separated by commas.') from None
    cache.keep_compiled()
    measured = {run: tune(run, args.field, values, args.data, args.split) for run in args.runs}
    if len(measured) > 1:
        path = runs.evaluation_folder(args.runs[0]) / f'tune_{args.field.split(".")[1]}_{args.split}_compared.png'
        draw(path, args.field, measured)
        print(f'The curves of all: {path}')


if __name__ == '__main__':
    main()
