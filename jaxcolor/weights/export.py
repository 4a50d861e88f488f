"""Exports a trained run, or several as an ensemble, as a small folder to share. `portable` writes other kinds of files."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxcolor import tasks
from jaxcolor.errors import UserError
from jaxcolor.tasks.state import TrainState
from jaxcolor.tasks.task import Task
from jaxcolor.weights import runs, store
from jaxcolor.weights.published import library


def export(
    models: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike,
    step: int | None = None,
    summary: str = '',
    fields: Mapping[str, Any] | None = None,
) -> Path:
    """Exports a trained network, with its averaged parameters if it has an average.

    Args:
        models: a run directory or model; several networks `ltbc` of the same kind become an ensemble, which averages their
            predictions.
        out: the folder of the exported model; its name is the model's name.
        step: of the checkpoint; by default the one with the lowest validation loss.
        summary: a line that `jaxcolor models` shows.
        fields: inference settings of the config's section `task` to store in the model, as {'temperature': 0.3}.

    Returns:
        The folder.

    Raises:
        UserError: there is no such run or checkpoint; the networks are of different kinds or need an extractor; the task
            has no such field or refuses its value; the folder cannot be written or holds something else.
    """
    out = Path(out).resolve()
    if out.exists() and not (out.is_dir() and (store.is_exported(out) or not any(out.iterdir()))):
        raise UserError(f'{out} holds something else than an exported model; name a new folder.')
    config, _, state = gather(models, out.name, step, fields)
    try:
        store.write(out, config, state, summary, notice=_notice(models))
    except UserError as error:
        raise UserError(f'{_first(models)}: {error}') from None
    return out


def gather(
    models: str | os.PathLike | Sequence[str | os.PathLike],
    name: str,
    step: int | None = None,
    fields: Mapping[str, Any] | None = None,
) -> tuple[ConfigDict, Task, TrainState]:
    """What an export of models holds.

    Args:
        models, step, fields: as for `export`.
        name: of the export.

    Returns:
        (config, task, state): of inference, with the averaged parameters if there is an average; computed in float32.

    Raises:
        UserError: as `export`, but for the folder.
    """
    run, *others = [models] if isinstance(models, (str, os.PathLike)) else models
    fields = fields or {}
    config, _, state = runs.load(run, step)
    state = state.for_inference()
    if others:
        config, state = _ensemble(run, config, state, others, step)
    if config.extractor.name:
        raise UserError(f'{run} needs the {config.extractor.name} of its run directory; copy that instead of exporting it.')
    if unknown := sorted(set(fields) - set(config.task)):
        raise UserError(f'{run} has no field task.{unknown[0]}: its task is {config.task.name}.')
    with config.unlocked():
        config.name, config.train.ema = name, 0.0  # the parameters are the average already
        config.data.shards = config.train.init_from = config.train.encoder_weights = ''  # paths on the training's machine
        config.model.dtype = 'float32'  # what trains fastest on a GPU in bfloat16 is colored on CPUs, which are slow in it
        config.task.update(fields)
    return config, tasks.build(config), state  # refuses fields that do not fit


def _notice(models):
    """What is to be said at every use of one of the models is so of their export, too."""
    names = [models] if isinstance(models, (str, os.PathLike)) else models
    return next(filter(None, (library.notice_of(library.model_folder(name)) for name in names)), '')


def _first(models):
    return models if isinstance(models, (str, os.PathLike)) else models[0]


def _ensemble(run, config, state, others, step) -> tuple[ConfigDict, TrainState]:
    """The config and state of the ensemble of the networks of a run and of others."""
    states = [state]
    if config.model.name != 'ltbc' or config.model.members != 1:
        raise UserError(f'{run} is no single ltbc; ensembles are made of those only.')
    for other in others:
        other_config, _, other_state = runs.load(other, step)
        if differing := [name for name in ('model', 'task') if other_config[name] != config[name]]:
            raise UserError(f'{other} is of another kind than {run}: section {differing[0]} of their config.json differs.')
        states.append(other_state.for_inference())
    with config.unlocked():
        config.model.members = len(states)
    model_state = {}
    for name in state.model_state:
        collections = [each.model_state[name] for each in states]
        if name == 'color_prior':  # of the task (tasks.color_classes), not of a network
            model_state[name] = jax.tree.map(lambda *x: sum(x) / len(x), *collections)
        else:
            model_state[name] = _by_member(collections)
    return config, state.replace(params=_by_member([each.params for each in states]), model_state=model_state)


def _by_member(trees):
    return {f'members_{number}': tree for number, tree in enumerate(trees)}
