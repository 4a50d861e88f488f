"""Evaluates a trained network on splits of a shard set or on a folder of photos; writes tables and pictures."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from jaxcolor import color
from jaxcolor.allowed import check_section
from jaxcolor.data.shards import SIDECAR, ShardSet, open_shards
from jaxcolor.errors import UserError
from jaxcolor.evaluation import baselines, report
from jaxcolor.evaluation.evaluator import Evaluator, PredictAb, aggregate
from jaxcolor.evaluation.perceptual import Inception, load_perceptual_metrics
from jaxcolor.evaluation.photo_sets import PhotoSet
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.prepare.decode import pillow_unguarded
from jaxcolor.runtime.parallel import DataParallel
from jaxcolor.weights import runs, store
from jaxcolor.weights.published import library

Means = dict[str, float]  # {name of METRICS: mean over photos}


def evaluate_run(
    model: str | Path,
    data: str = '',
    splits: Sequence[str] = ('validation',),
    step: int | None = None,
    lpips: bool = False,
    fid: str = '',
    grid_photos: int | None = None,
    faithful: bool = False,
) -> dict[str, dict[str, Means]]:
    """Evaluates a model and the baselines on splits of a shard set.

    Prints a report per split and writes RUN/evaluation/SPLIT.md, .json, .png (examples), SPLIT_worst.png (largest errors)
    and SPLIT_chroma.png (chroma by lightness and class).

    Args:
        model: a run directory or an exported model.
        data: folder of the shard set; '' takes the one that the run was trained on.
        splits: of the shard set.
        step: of the checkpoint; by default the one with the best validation loss.
        lpips: whether to compute LPIPS, which takes longer than all other metrics.
        fid: weights of Inception v3, to compute the FID; '' skips it.
        grid_photos: photos in each picture of examples, drawn at random; None for the config's train.grid_photos.
        faithful: whether to evaluate the pictures of a published network, too, as `colorize` makes them and as its authors'
            program does.

    Returns:
        {split: {'network', 'gray', ...: {name: value}}}.

    Raises:
        UserError: the run, checkpoint, shard set or split is missing; the set has other classes; LPIPS or FID is not
            available, or the network is no published one.
    """
    perceptual_metrics = load_perceptual_metrics(lpips, fid)
    parallel = DataParallel(runs.read_config(model).train.mapping)
    config, task, state = runs.load(model, step, parallel.replicated)
    _set_grid_photos(config, grid_photos)
    shards = open_shards_for(model, config, data)
    for split in splits:
        shards.records(split)  # a missing split is reported before the first is evaluated
    evaluator = Evaluator(task, parallel, shards, config, perceptual_metrics)
    predictors, folder = load_baselines(model, config, shards), runs.evaluation_folder(model)
    predictors |= by_both_ways(model, step) if faithful else {}
    results = {}
    for split in splits:
        measurements = {'network': evaluator.per_photo_metrics(state, evaluator.batches(split))}
        for name, predict_ab in predictors.items():
            measurements[name] = evaluator.per_photo_metrics((), evaluator.batches(split), predict_ab)
        about = {'run': str(model), 'name': config.name, 'step': int(state.step), 'photos': f'{shards.path}, {split}'}
        results[split] = _write_report(folder / split, about, measurements, shards.classes, perceptual_metrics)
        if jax.process_index() == 0:
            evaluator.draw_examples(state, split, folder / split, measurements['network'][0])
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
    grid_photos: int | None = None,
    faithful: bool = False,
) -> dict[str, Means]:
    """Evaluates a model and the baselines on a folder of photos by a protocol.

    Writes the files of `evaluate_run` under the protocol's name, and the photos with their SHA-256 to
    RUN/evaluation/PROTOCOL_files.csv.

    Args:
        model: a run directory or an exported model.
        protocol: a key of `photo_sets.PROTOCOLS`.
        photos: folder of the photos.
        photo_list: file with the names of the photos to take, one per line; '' takes all.
        step: as in `evaluate_run`.
        lpips: as in `evaluate_run`.
        fid: as in `evaluate_run`.
        grid_photos: as in `evaluate_run`.
        faithful: as in `evaluate_run`.

    Returns:
        {'network', 'gray', ...: {name: value}}.

    Raises:
        UserError: the run, checkpoint, protocol or folder is missing; the folder has no photos; a file is not a photo; LPIPS
            or FID is not available, or the network is no published one.
    """
    photo_set = PhotoSet(photos, protocol, photo_list)
    perceptual_metrics = load_perceptual_metrics(lpips, fid)
    is_native = not photo_set.protocol.size
    if is_native and jax.process_count() > 1:
        raise UserError(f'--protocol={protocol} evaluates photos one by one; run it with one process.')
    parallel = DataParallel(runs.read_config(model).train.mapping, jax.devices()[:1] if is_native else None)
    config, task, state = runs.load(model, step, parallel.replicated)
    _set_grid_photos(config, grid_photos)
    with config.unlocked():
        trained_size, config.data.crop = config.data.crop, photo_set.protocol.size or config.data.crop
    evaluator = Evaluator(task, parallel, photo_set, config, perceptual_metrics, losses=False)
    predictors = load_baselines(model, config) | (by_both_ways(model, step) if faithful else {})
    if is_native:
        predictors.pop('nearest photo', None)  # its colors have the shape of the crop
        batches = photo_set.batches_of_one
        network = predictor(Colorizer(model, step, trained_size))
    else:
        batches, network = lambda: evaluator.batches(protocol), None
    folder = runs.evaluation_folder(model)
    if jax.process_index() == 0:
        photo_set.write_list(folder / f'{protocol}_files.csv')
    measurements = {'network': evaluator.per_photo_metrics(state, batches(), network)}
    for name, predict_ab in predictors.items():
        measurements[name] = evaluator.per_photo_metrics((), batches(), predict_ab)
    about = {'run': str(model), 'name': config.name, 'step': int(state.step), 'photos': f'{photos} by protocol {protocol}'}
    columns = _write_report(folder / protocol, about, measurements, (), perceptual_metrics)
    if not is_native and jax.process_index() == 0:
        evaluator.draw_examples(state, protocol, folder / protocol, measurements['network'][0])
    return columns


def _set_grid_photos(config, count):
    if count is not None:
        check_section('train', {'grid_photos': count})
        config.train.grid_photos = count


def predictor(colorizer: Colorizer, of_pictures: bool = False) -> PredictAb:
    """A Colorizer as a function from a batch of photos of any size to a*b*, float32 (B, H, W, 2).

    of_pictures: takes them from the pictures that it makes, in 8 bits, which is all that a published program gives.
    """

    def predict_one(lab):
        H, W = lab.shape[:2]
        gray = color.lab_to_rgb(color.gray_lab(color.decode_lab(lab)[..., :1]))
        image = Image.fromarray(color.to_uint8(gray))
        if of_pictures:
            return color.rgb_to_lab(np.asarray(colorizer(image)))[..., 1:]
        ab = colorizer.predict_ab(colorizer.preprocess(image))[0]
        planes = [Image.fromarray(np.ascontiguousarray(ab[..., i])) for i in range(2)]
        return np.stack([np.asarray(plane.resize((W, H), Image.Resampling.BICUBIC)) for plane in planes], axis=-1)

    return lambda batch: np.stack([predict_one(lab) for lab in batch['lab']])


def by_both_ways(model: str | Path, step: int | None = None) -> dict[str, PredictAb]:
    """The pictures of a published network, as `colorize` makes them and as its authors' program does, {name: batch -> a*b*}.

    Raises:
        UserError: as for `Colorizer`; the network is no published one.
    """
    return {
        name: predictor(Colorizer(model, step, faithful=name == 'faithful'), of_pictures=True)
        for name in ('colorize', 'faithful')
    }


def training_shards(model: str | Path, config: ConfigDict) -> Path:
    """The folder of the shard set that a run was trained on."""
    return Path(config.data.shards or Path(model) / 'shards')


def open_shards_for(model: str | Path, config: ConfigDict, data: str = '') -> ShardSet:
    """Opens the shard set at `data`; '' opens the one that the run was trained on. Raises UserError."""
    if not data and store.is_exported(library.model_folder(model)):
        raise UserError(f'{model} is an exported model, without its training photos; name a shard set with --data=SHARDS.')
    shards = open_shards(data or training_shards(model, config))
    runs.check_classes(config, shards)
    return shards


def load_baselines(model: str | Path, config: ConfigDict, shards: ShardSet | None = None) -> dict[str, PredictAb]:
    """The baselines, {name: batch -> a*b*}; without the training photos, only 'gray'.

    Args:
        model: a run directory or an exported model.
        config: of the model.
        shards: its split 'train' replaces the training photos of an exported model, which are not exported.
    """
    predictors: dict[str, PredictAb]
    predictors, folder = {'gray': baselines.gray}, training_shards(model, config)
    training = open_shards(folder) if (folder / SIDECAR).exists() else None
    is_exported = store.is_exported(library.model_folder(model))
    if is_exported and shards is not None and shards.counts.get('train'):
        training = shards
    if training:
        photos = baselines.TrainingPhotos(training.records('train'), config.data.crop)
        predictors |= {'mean color': photos.mean_color, 'nearest photo': photos.nearest}
    elif not is_exported:  # an exported model has never had any
        logging.warning('no training photos at %s: skipping the baselines mean color and nearest photo', folder)
    return predictors


def _write_report(path, about, measurements, classes, perceptual_metrics):
    """Writes and prints a report -> {column: {name: value}}."""
    columns = {name: aggregate(*measurement) for name, measurement in measurements.items()}
    for metric in perceptual_metrics:
        if isinstance(metric, Inception):
            about = {**about, 'fid': metric.description}
    if jax.process_index() == 0:
        print(report.write_report(path, about, columns, measurements, classes), flush=True)
    return columns
