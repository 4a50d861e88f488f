"""Colorfulness against error over an inference setting of a trained network, which needs no further training.

The expected color of a pixel is grayer than its possible colors. `temperature` (task `color_classes`) moves it towards the
most likely color, `inference_rebalance` (same task) towards rare ones, `chroma_gain` multiplies it. Choose a setting on
validation photos and report it on others.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxcolor import files, tasks
from jaxcolor.errors import UserError
from jaxcolor.evaluation import report
from jaxcolor.evaluation.evaluate import open_shards_for
from jaxcolor.evaluation.evaluator import Evaluator
from jaxcolor.runtime.parallel import DataParallel
from jaxcolor.weights import runs

# Fields of the config's section `task` that change predictions only.
FIELDS = ('temperature', 'inference_rebalance', 'chroma_gain')


def sweep_inference(
    model: str | Path, field: str, values: Sequence[float], data: str = '', split: str = 'validation'
) -> dict[str, dict[str, float]]:
    """Evaluates a model with each value of a setting; writes RUN/evaluation/tune_FIELD_SPLIT.md (table) and .png (curve).

    Args:
        model: a run directory or an exported model.
        field: one of FIELDS.
        values: of the field.
        data: folder of the shard set; '' takes the one that the run was trained on.
        split: of the shard set.

    Returns:
        {value as text, e.g. '0.38': {name of METRICS: mean over photos}}.

    Raises:
        UserError: the run, shard set or split is missing; the task lacks the field or refuses a value.
    """
    parallel = DataParallel()
    config, _, state = runs.load(model, sharding=parallel.replicated)
    if field not in FIELDS or field not in config.task:
        raise UserError(f'--field: {field!r} is not an inference setting of {model}; its task may have {", ".join(FIELDS)}.')
    tasks_by_value = {}
    for value in values:  # a bad value is reported before the first is evaluated
        changed = copy.deepcopy(config)
        with changed.unlocked():
            changed.task[field] = value
        tasks_by_value[f'{value:g}'] = tasks.build(changed)
    shards, folder = open_shards_for(model, config, data), runs.evaluation_folder(model)
    shards.records(split)
    columns = {
        value: Evaluator(task, parallel, shards, config).evaluate(state, split) for value, task in tasks_by_value.items()
    }
    text = f'{model}, step {int(state.step)}, on {shards.path}, {split}, by task.{field}:\n\n{report.table(columns)}'
    files.write_text(folder / f'tune_{field}_{split}.md', text + '\n')
    draw(folder / f'tune_{field}_{split}.png', field, {str(model): columns})
    print(text)
    return columns


def draw(path: str | Path, field: str, results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Draws one curve per model, colorfulness over ab RMSE.

    Args:
        path: of the PNG.
        field: that was swept.
        results: {model: `sweep_inference`}.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout='constrained')
    axes = figure.subplots()
    for model, columns in results.items():
        points = [(means['ab_rmse'], means['colorfulness'] / means['colorfulness_true']) for means in columns.values()]
        axes.plot(*zip(*points, strict=True), marker='o', label=model)
        for value, point in zip(columns, points, strict=True):
            axes.annotate(value, point, textcoords='offset points', xytext=(5, -10))
    if len(results) > 1:
        axes.legend()
    axes.set(xlabel='ab RMSE', ylabel='colorfulness / colorfulness of truth', title=f'task.{field}')
    with files.atomic(path) as temporary:
        figure.savefig(temporary, dpi=90, format='png')


def sweep_models(
    models: Sequence[str], field: str, values: Sequence[float], data: str = '', split: str = 'validation'
) -> None:
    """Runs `sweep_inference` for each model, and draws the curves of several models together in the first one's folder.

    Args:
        models: run directories or exported models.
        field: as in `sweep_inference`.
        values: as in `sweep_inference`.
        data: as in `sweep_inference`.
        split: as in `sweep_inference`.

    Raises:
        UserError: as `sweep_inference`.
    """
    results = {model: sweep_inference(model, field, values, data, split) for model in models}
    if len(results) > 1:
        path = runs.evaluation_folder(models[0]) / f'tune_{field}_{split}_compared.png'
        draw(path, field, results)
        print(f'curves of all models: {path}')
