"""Exporting: a trained run, or several as an ensemble -> a small folder to hand on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxcolor import tasks
from jaxcolor.errors import UserError
from jaxcolor.tasks.state import TrainState
from jaxcolor.weights import runs, store


def export(
    models: str | Path | Sequence[str | Path],
    out: str | Path,
    step: int | None = None,
    summary: str = '',
    fields: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a trained network, with its moving average where one is kept, as an exported model.

    Args:
        models: the run directory; of several with networks `ltbc` of the same kind the model is an ensemble, which
            averages their predictions.
        out: the folder of the model; its last part is the model's name.
        step: of the checkpoint; the best by validation loss by default.
        summary: a line that `jaxcolor models` shows.
        fields: inference settings of the config's section `task` to store in the model: {'temperature': 0.3}.

    Returns:
        The folder.

    Raises:
        UserError: no run, no checkpoint; networks of different kinds; a network with a frozen extractor; a field that the
            task refuses or lacks; a folder that cannot be written or holds something else.
    """
    run, *others = [models] if isinstance(models, (str, Path)) else models
    out, fields = Path(out).resolve(), fields or {}
    if out.exists() and not store.is_exported(out) and any(out.iterdir()):
        raise UserError(f'{out} holds something else than an exported model; name a new folder.')
    config, _, state = runs.load(run, step)
    state = state.for_inference()
    if others:
        config, state = _ensemble(run, config, state, others, step)
    if config.extractor.name:
        raise UserError(f'{run} needs the {config.extractor.name} of its run directory; copy that instead of exporting it.')
    if unknown := sorted(set(fields) - set(config.task)):
        raise UserError(f'{run} has no field task.{unknown[0]}: its task is {config.task.name}.')
    with config.unlocked():
        config.name, config.train.ema = out.name, 0.0  # the average stands for the parameters now
        config.data.shards = config.train.init_from = ''  # paths on the machine that trained it
        config.task.update(fields)
    tasks.build(config)  # refuses fields that do not fit
    try:
        store.write(out, config, state, summary)
    except UserError as error:
        raise UserError(f'{run}: {error}') from None
    return out


def _ensemble(run, config, state, others, step) -> tuple[ConfigDict, TrainState]:
    """The config and state of the ensemble of a run's network and others'."""
    states = [state]
    if config.model.name != 'ltbc' or config.model.members != 1:
        raise UserError(f'{run} is no single ltbc: only of those an ensemble is made.')
    for other in others:
        other_config, _, other_state = runs.load(other, step)
        if differing := [name for name in ('model', 'task') if other_config[name] != config[name]]:
            raise UserError(f'{other} is of another kind than {run}: section {differing[0]} of their config.json differs.')
        states.append(other_state.for_inference())
    with config.unlocked():
        config.model.members = len(states)
    model_state = {}
    for name in state.model_state:
        parts = [each.model_state[name] for each in states]
        # What the task keeps beside the networks' own (tasks.color_classes) is of all together.
        is_shared = name == 'color_prior'
        model_state[name] = jax.tree.map(lambda *x: sum(x) / len(x), *parts) if is_shared else _by_member(parts)
    return config, state.replace(params=_by_member([each.params for each in states]), model_state=model_state)


def _by_member(trees):
    return {f'members_{number}': tree for number, tree in enumerate(trees)}
