"""Evaluates a trained network: on splits of a shard set, or on a set of photos. Writes tables, a report and pictures."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from jaxcolor import color
from jaxcolor.data.shards import SIDECAR, ShardSet, open_shards
from jaxcolor.errors import UserError
from jaxcolor.evaluation import baselines, report
from jaxcolor.evaluation.evaluator import Evaluator, PredictAb, aggregate
from jaxcolor.evaluation.perceptual import load_perceptual_metrics
from jaxcolor.evaluation.photo_sets import PhotoSet
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.prepare.decode import pillow_unguarded
from jaxcolor.runtime.parallel import DataParallel
from jaxcolor.weights import runs, store

Figures = dict[str, float]


def evaluate_run(
    model: str | Path,
    data: str = '',
    splits: Sequence[str] = ('validation',),
    step: int | None = None,
    lpips: bool = False,
    fid: str = '',
) -> dict[str, dict[str, Figures]]:
    """Evaluates a model on splits of a shard set, beside the baselines.

    Prints a table for each split and writes it to RUN/evaluation/SPLIT.md and .json, with examples in SPLIT.png, the largest
    errors in SPLIT_worst.png, and the part of the truth's chroma that is kept in SPLIT_chroma.png.

    Args:
        model: a run directory or an exported model.
        data: the shard set's folder; '' takes the one that the run was trained on.
        step: of the checkpoint; the best by validation loss by default.
        lpips: whether to compute LPIPS, which takes longer than all else.
        fid: file of Inception v3's weights, to compute the FID; '' does not.

    Returns:
        {split: {'network', 'gray', ...: {name: value}}}.

    Raises:
        UserError: no run, no checkpoint, no such shard set or split; a set of more classes; LPIPS or FID is not available.
    """
    perceptual_metrics = load_perceptual_metrics(lpips, fid)
    parallel = DataParallel(runs.read_config(model).train.mapping)
    config, task, state = runs.load(model, step, parallel.replicated)
    shards = open_shards_for(model, config, data)
    for split in splits:
        shards.records(split)  # a missing split should not wait for the others
    evaluator = Evaluator(task, parallel, shards, config, perceptual_metrics)
    predictors, folder = load_baselines(model, config, shards), runs.evaluation_folder(model)
    results = {}
    for split in splits:
        measured = {'network': evaluator.per_photo_metrics(state, evaluator.batches(split))}
        for name, predict_ab in predictors.items():
            measured[name] = evaluator.per_photo_metrics((), evaluator.batches(split), predict_ab)
        about = {'run': str(model), 'step': int(state.step), 'photos': f'{shards.path}, {split}'}
        results[split] = _write_report(folder / split, about, measured, shards.classes, perceptual_metrics)
        if jax.process_index() == 0:
            evaluator.draw_examples(state, split, folder / split, measured['network'][0])
    return results


@pillow_unguarded()
def evaluate_protocol(
    model: str | Path,
    protocol: str,
    photos: str | Path,
    photo_list: str = '',
    step: int | None = None,
    lpips: bool = False,
    fid: str = '',
) -> dict[str, Figures]:
    """Evaluates a model on a folder of photos by a protocol, beside the baselines.

    Writes what `evaluate_run` writes, under the protocol's name, and the list of the photos with the SHA-256 of their files
    to RUN/evaluation/PROTOCOL_files.csv.

    Args:
        model: a run directory or an exported model.
        protocol: key of `photo_sets.PROTOCOLS`.
        photos: the folder.
        photo_list: a file that names the photos to take, one a line; '' takes all.
        step, lpips, fid: as for `evaluate_run`.

    Returns:
        {'network', 'gray', ...: {name: value}}.

    Raises:
        UserError: no run, no checkpoint; no such protocol, folder or photos; a file that is no photo; LPIPS or FID is not
            available.
    """
    photo_set = PhotoSet(photos, protocol, photo_list)
    perceptual_metrics = load_perceptual_metrics(lpips, fid)
    is_native = not photo_set.protocol.size
    if is_native and jax.process_count() > 1:
        raise UserError(f'--protocol={protocol} takes photos of any size one by one: evaluate it with one process.')
    parallel = DataParallel(runs.read_config(model).train.mapping, jax.devices()[:1] if is_native else None)
    config, task, state = runs.load(model, step, parallel.replicated)
    with config.unlocked():
        trained_size, config.data.crop = config.data.crop, photo_set.protocol.size or config.data.crop
    evaluator = Evaluator(task, parallel, photo_set, config, perceptual_metrics, losses=False)
    predictors = load_baselines(model, config)
    if is_native:
        predictors.pop('nearest photo', None)  # it has no colors for photos of other shapes
        batches = photo_set.single
        network = predictor(Colorizer(model, step, trained_size))
    else:
        batches, network = lambda: evaluator.batches(protocol), None
    folder = runs.evaluation_folder(model)
    if jax.process_index() == 0:
        photo_set.write_list(folder / f'{protocol}_files.csv')
    measured = {'network': evaluator.per_photo_metrics(state, batches(), network)}
    for name, predict_ab in predictors.items():
        measured[name] = evaluator.per_photo_metrics((), batches(), predict_ab)
    about = {'run': str(model), 'step': int(state.step), 'photos': f'{photos} by protocol {protocol}'}
    figures = _write_report(folder / protocol, about, measured, (), perceptual_metrics)
    if not is_native and jax.process_index() == 0:
        evaluator.draw_examples(state, protocol, folder / protocol, measured['network'][0])
    return figures


def predictor(colorizer: Colorizer) -> PredictAb:
    """A Colorizer as a function from an evaluation's batch to a*b*, for photos of any one size."""

    def predict_one(lab):
        H, W = lab.shape[:2]
        gray = color.lab_to_rgb(color.gray_lab(color.decode_lab(lab)[..., :1]))
        ab = colorizer.predict_ab(colorizer.preprocess(Image.fromarray(color.to_uint8(gray))))[0]
        planes = [Image.fromarray(np.ascontiguousarray(ab[..., i])) for i in range(2)]
        return np.stack([plane.resize((W, H), Image.Resampling.BICUBIC) for plane in planes], axis=-1)

    return lambda batch: np.stack([predict_one(lab) for lab in batch['lab']])


def training_shards(model: str | Path, config: ConfigDict) -> Path:
    """The folder of the shard set that a run was trained on."""
    return Path(config.data.shards or Path(model) / 'shards')


def open_shards_for(model: str | Path, config: ConfigDict, data: str = '') -> ShardSet:
    """The shard set at `data`; '' takes the one that the run was trained on. Raises UserError."""
    if not data and store.is_exported(store.model_folder(model)):
        raise UserError(f'{model} is an exported model without the photos of its training; name some, --data=SHARDS.')
    shards = open_shards(data or training_shards(model, config))
    runs.check_classes(config, shards)
    return shards


def load_baselines(model: str | Path, config: ConfigDict, shards: ShardSet | None = None) -> dict[str, PredictAb]:
    """The baselines that are available, by name.

    Args:
        shards: its training photos stand for those of an exported model, which does not know its own.
    """
    predictors, folder = {'gray': baselines.gray}, training_shards(model, config)
    training = open_shards(folder) if (folder / SIDECAR).exists() else None
    if store.is_exported(store.model_folder(model)) and shards is not None and shards.counts.get('train'):
        training = shards
    if training:
        photos = baselines.TrainingPhotos(training.records('train'), config.data.crop)
        predictors |= {'mean color': photos.mean_color, 'nearest photo': photos.nearest}
    else:
        logging.warning('%s, the training photos, are gone: their mean color and nearest photo are left out', folder)
    return predictors


def _write_report(path, about, measured, classes, perceptual_metrics):
    """Writes and prints a report -> {column: {name: value}}."""
    figures = {name: aggregate(*of) for name, of in measured.items()}
    for metric in perceptual_metrics:
        if hasattr(metric, 'about'):
            about['fid'] = metric.about
    if jax.process_index() == 0:
        print(report.write_report(path, about, figures, measured, classes), flush=True)
    return figures
