"""Colorfulness against error, over an inference-time setting of a trained network.

A mean of what a pixel may be is grayer than any of it. `temperature` (task `color_classes`) draws it towards the likeliest
color, `inference_rebalance` (of the same task) towards rare ones, `chroma_gain` multiplies it; none needs another training.
Choose on validation photos, then report others. The curves of several models are drawn together, into the first one's
folder.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxcolor import files, tasks
from jaxcolor.errors import UserError
from jaxcolor.evaluation import report
from jaxcolor.evaluation.evaluate import open_shards_for
from jaxcolor.evaluation.evaluator import Evaluator, aggregate
from jaxcolor.runtime.parallel import DataParallel
from jaxcolor.weights import runs

FIELDS = ('temperature', 'inference_rebalance', 'chroma_gain')


def sweep_inference(
    model: str | Path, field: str, values: Sequence[float], data: str = '', split: str = 'validation'
) -> dict[str, dict[str, float]]:
    """Evaluates a model with each value of a setting; writes RUN/evaluation/tune_FIELD_SPLIT.md and .png, its curve.

    Args:
        model: a run directory or an exported model.
        field: one of FIELDS, of the config's section `task`.
        values: to try.
        data: the shard set's folder; '' takes the one that the run was trained on.

    Returns:
        {'0.38': {name: figure}, ...}

    Raises:
        UserError: no run; a field that its task does not have or that needs another training; a value that it refuses; no
            such shard set or split.
    """
    parallel = DataParallel()
    config, _, state = runs.load(model, sharding=parallel.replicated)
    if field not in FIELDS or field not in config.task:
        raise UserError(f'--field: {field!r} is no inference-time setting of {model}; there are {", ".join(FIELDS)}.')
    tasks_by_value, rows = {}, {}
    for value in values:  # all of them, before any is evaluated: one may be refused
        own = copy.deepcopy(config)
        with own.unlocked():
            own.task[field] = value
        tasks_by_value[f'{value:g}'] = tasks.build(own)
    shards, folder = open_shards_for(model, config, data), runs.evaluation_folder(model)
    shards.records(split)
    for value, task in tasks_by_value.items():
        evaluator = Evaluator(task, parallel, shards, config)
        rows[value] = aggregate(*evaluator.per_photo_metrics(state, evaluator.batches(split)))
    table = f'{model}, step {int(state.step)}, on {shards.path}, {split}, by task.{field}:\n\n{report.table(rows)}'
    files.write_text(folder / f'tune_{field}_{split}.md', table + '\n')
    draw(folder / f'tune_{field}_{split}.png', field, {str(model): rows})
    print(table)
    return rows


def draw(path: str | Path, field: str, measured: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Draws `sweep_inference` of each model, {model: {value: figures}}, as curves into the PNG file `path`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout='constrained')
    axes = figure.subplots()
    for model, rows in measured.items():
        points = [(row['ab_rmse'], row['colorfulness'] / row['colorfulness_true']) for row in rows.values()]
        axes.plot(*zip(*points, strict=True), marker='o', label=model)
        for label, point in zip(rows, points, strict=True):
            axes.annotate(label, point, textcoords='offset points', xytext=(5, -10))
    if len(measured) > 1:
        axes.legend()
    axes.set(xlabel='ab RMSE', ylabel="colorfulness, part of the truth's", title=f'over task.{field}')
    with files.atomic(path) as temporary:
        figure.savefig(temporary, dpi=90, format='png')


def sweep_models(
    models: Sequence[str], field: str, values: Sequence[float], data: str = '', split: str = 'validation'
) -> None:
    """`sweep_inference` of each model, and one picture of several. Raises UserError."""
    measured = {model: sweep_inference(model, field, values, data, split) for model in models}
    if len(measured) > 1:
        path = runs.evaluation_folder(models[0]) / f'tune_{field}_{split}_compared.png'
        draw(path, field, measured)
        print(f'The curves of all: {path}')
