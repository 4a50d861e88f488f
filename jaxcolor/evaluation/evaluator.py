"""A split -> metrics of every photo, their means, and grids of examples."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from jaxcolor import color
from jaxcolor.data import pipeline
from jaxcolor.data.augment import center_crop
from jaxcolor.evaluation import metrics
from jaxcolor.evaluation.grids import save_grid
from jaxcolor.runtime.parallel import AXIS, DataParallel, compiler_options
from jaxcolor.tasks.state import TrainState

# A batch -> a*b* float32 (B, H, W, 2): a network's prediction or a baseline.
PredictAb = Callable[[Mapping[str, Any]], np.ndarray]
# {name: (N,)} of every photo; {name: sums over all pixels}.
PhotoMetrics = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


class Evaluator:
    """Evaluates a task's states on the splits of a shard set.

    Args:
        task: of `jaxcolor.tasks`; None to measure baselines alone.
        parallel: a DataParallel.
        shards: a ShardSet, or another set with `records(split)`.
        config: whole; photos are cropped to data.crop and batched like train.batch_size (a device's part, rounded up).
        perceptual_metrics: of `evaluation.perceptual`, computed beside the others.
        losses: whether the task's own metrics are computed; they need photos of the size that it was trained on.
    """

    def __init__(
        self,
        task: Any,
        parallel: DataParallel,
        shards: Any,
        config: ConfigDict,
        perceptual_metrics: Sequence[Any] = (),
        losses: bool = True,
    ):
        self.task, self.parallel, self.shards, self.config, self.losses = task, parallel, shards, config, losses
        self.perceptual_metrics = tuple(parallel.replicate(metric) for metric in perceptual_metrics)
        per_device = -(-config.train.batch_size // (parallel.device_count * config.train.accumulation_steps))
        self.batch_size = per_device * parallel.device_count // jax.process_count()
        self._measure_network = parallel.map(self._network_on_device, outputs=(True, False))
        self._measure_ab = parallel.map(self._ab_on_device, outputs=(True, False))

    @functools.cached_property
    def _predict(self):
        return jax.jit(self.task.predict, compiler_options=compiler_options())

    def evaluate(self, state: TrainState, split: str) -> dict[str, float]:
        """Means over the photos of a split, each counted once: {name: value}, names as in report.TITLES."""
        return aggregate(*self.per_photo_metrics(state, self.batches(split)))

    def per_photo_metrics(
        self, state: TrainState | tuple[()], batches: Iterable[Mapping[str, Any]], predict_ab: PredictAb | None = None
    ) -> PhotoMetrics:
        """Metrics of every photo, each once and in order.

        Args:
            state: of the task; () with `predict_ab`.
            batches: as `batches` gives them.
            predict_ab: batch -> a*b* float32 (B, H, W, 2) to measure in place of the network's, as those of
                `evaluation.baselines`.

        Returns:
            {name: float32 (N,)} with 'label', int32, -1 for none; and the sums over all pixels that
            `metrics.error_by_color` and `metrics.chroma_by_lightness` give.
        """
        parts, totals = [], {}
        for batch in batches:
            arrays = {name: batch[name] for name in batch if name != 'name'}
            if predict_ab is None:
                each, sums = self._measure_network(state, self.parallel.shard(arrays), self.perceptual_metrics)
            else:
                arrays = {**{name: arrays[name] for name in ('lab', 'label', 'mask')}, 'ab': predict_ab(batch)}
                each, sums = self._measure_ab((), self.parallel.shard(arrays), self.perceptual_metrics)
            parts.append(_in_order(each))
            for name, value in jax.device_get(sums).items():
                totals[name] = totals.get(name, 0.0) + value.astype(np.float64)
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        mask = joined.pop('mask')
        return {name: values[mask] for name, values in joined.items()}, totals

    def draw_grid(self, state: TrainState, split: str, path: str | PathLike, indices: Iterable[int]) -> None:
        """Draws photos of a split: a column each, of gray, output, truth. Call it on one process.

        indices: of photos in the split, as `spread` or `worst` give them.
        """
        # The state's copy on one device of this process: no other process has to take part.
        state = jax.tree.map(lambda x: x.addressable_data(0), state)
        records = self.shards.records(split)
        lab = color.decode_lab(np.stack([center_crop(records[int(i)]['lab'], self.config.data.crop) for i in indices]))
        ab = jax.device_get(self._predict(state, lab[..., :1], jax.random.PRNGKey(0)))
        rows = {
            'gray': color.lab_to_rgb(color.gray_lab(lab[..., :1])),
            'output': color.lab_to_rgb(color.join_lab(lab[..., :1], ab)),
            'truth': color.lab_to_rgb(lab),
        }
        save_grid(rows, path)

    def draw_examples(self, state: TrainState, split: str, path: str | PathLike, photos: Mapping[str, np.ndarray]) -> None:
        """Draws examples to PATH.png, and those of the largest errors by `per_photo_metrics` to PATH_worst.png."""
        self.draw_grid(state, split, f'{path}.png', self.spread(split))
        self.draw_grid(state, split, f'{path}_worst.png', self.worst(photos))
        print(f'examples: {path}.png; the largest errors: {path}_worst.png\n', flush=True)

    def spread(self, split: str) -> np.ndarray:
        """Indices of train.grid_photos photos, evenly over a split: shards hold one class after the other."""
        count = len(self.shards.records(split))
        return np.unique(np.linspace(0, count - 1, min(count, self.config.train.grid_photos)).round().astype(int))

    def worst(self, photos: Mapping[str, np.ndarray]) -> np.ndarray:
        """Indices of the train.grid_photos photos of the largest ab errors, worst first."""
        return np.argsort(-photos['ab_squared_error'])[: self.config.train.grid_photos]

    def batches(self, split: str) -> Iterable[dict[str, Any]]:
        """This process's part of the photos of a split."""
        return pipeline.eval_batches(
            self.shards,
            split,
            batch_size=self.batch_size,
            crop=self.config.data.crop,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def _network_on_device(self, state, batch, perceptual_metrics):
        if self.losses:
            each, ab = self.task.eval_step(state, batch)
        else:
            each, ab = {}, self.task.predict(state, color.decode_lab(batch['lab'])[..., :1], jax.random.PRNGKey(0))
        return self._metrics(each, batch, ab, perceptual_metrics)

    def _ab_on_device(self, state, batch, perceptual_metrics):
        del state
        return self._metrics({}, batch, batch['ab'], perceptual_metrics)

    def _metrics(self, each, batch, ab, perceptual_metrics):
        """-> (metrics of each photo, sums over all devices)"""
        lab, mask = color.decode_lab(batch['lab']), batch['mask']
        output, truth = color.lab_to_rgb(color.join_lab(lab[..., :1], ab)), color.lab_to_rgb(lab)
        gray = color.lab_to_rgb(color.gray_lab(lab[..., :1]))
        each |= {
            'mask': mask,
            'label': batch['label'],
            'ab_squared_error': metrics.ab_squared_error(ab, lab[..., 1:]),
            'ab_rmse_photo': jnp.sqrt(metrics.ab_squared_error(ab, lab[..., 1:])),
            'psnr': metrics.psnr(output, truth),
            'psnr_gray': metrics.psnr(gray, truth),
            'ssim': metrics.ssim(output, truth),
            'ab_auc': metrics.ab_auc(ab, lab[..., 1:]),
            'larger_channel_agreement': metrics.larger_channel_agreement(ab, lab[..., 1:]),
            'colorfulness': metrics.colorfulness(output),
            'colorfulness_true': metrics.colorfulness(truth),
            'colorfulness_absolute': metrics.colorfulness_absolute(output),
            'colorfulness_absolute_true': metrics.colorfulness_absolute(truth),
            'chroma': metrics.chroma(ab),
            'chroma_true': metrics.chroma(lab[..., 1:]),
        }
        for metric in perceptual_metrics:
            each |= metric(output, truth)
        sums = {
            'error_by_color': metrics.error_by_color(ab, lab[..., 1:], mask),
            'chroma_by_lightness': metrics.chroma_by_lightness(ab, lab[..., 1:], lab[..., :1], mask),
        }
        return each, lax.psum(sums, AXIS)


def _in_order(each):
    """Split arrays of a global batch -> NumPy arrays of it, in the order of the photos, on every process."""
    count = jax.process_count()
    if count == 1:
        return jax.device_get(each)
    # The processes' rows stand one process after the other; photos were dealt to them in turns.
    whole = multihost_utils.process_allgather(each, tiled=True)
    in_turns = {name: np.moveaxis(x.reshape(count, -1, *x.shape[1:]), 0, 1) for name, x in whole.items()}
    return {name: x.reshape(-1, *x.shape[2:]) for name, x in in_turns.items()}


def aggregate(photos: Mapping[str, np.ndarray], sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """`Evaluator.per_photo_metrics` -> means over photos, {name: value}, names as in report.TITLES."""
    row = {'photos': float(len(photos['psnr']))}
    for name, values in photos.items():
        if name == 'label' or values.ndim > 1:
            continue
        values = metrics.known(name, values)
        if len(values):
            row[name] = float(np.mean(values, dtype=np.float64))
    row['ab_rmse'] = row.pop('ab_squared_error') ** 0.5
    row['ab_auc_balanced'] = metrics.balanced_ab_auc(sums['error_by_color'])
    row['colorfulness_absolute_delta'] = row['colorfulness_absolute'] - row['colorfulness_absolute_true']
    if 'fid_output' in photos and len(photos['fid_output']) > 1:
        row['fid'] = metrics.frechet_distance(photos['fid_output'], photos['fid_truth'])
    row['chroma_kept'] = row.pop('chroma') / max(row.pop('chroma_true'), 1e-6)
    return row
