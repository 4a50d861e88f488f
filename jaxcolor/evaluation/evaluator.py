"""Evaluates a network or a baseline: metrics of every photo, their means, and grids of examples."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

import jax
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
# ({name: (N,) of all photos}, {name: sums over all pixels}).
PhotoMetrics = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


class Evaluator:
    """Evaluates states of a task on splits of a shard set, on all devices."""

    def __init__(
        self,
        task: Any,
        parallel: DataParallel,
        shards: Any,
        config: ConfigDict,
        perceptual_metrics: Sequence[Any] = (),
        losses: bool = True,
    ) -> None:
        """Maps the evaluation step over the devices.

        Args:
            task: of `jaxcolor.tasks`; None to evaluate baselines only.
            parallel: the devices.
            shards: a `ShardSet` or `PhotoSet`: anything with `records(split)`.
            config: the whole config. Photos are cropped to data.crop; a device's batch is that of an accumulation step of
                train.batch_size, rounded up.
            perceptual_metrics: of `evaluation.perceptual`.
            losses: whether to compute the task's losses, which need photos of the training size.
        """
        self.task, self.parallel, self.shards, self.config, self.losses = task, parallel, shards, config, losses
        self.perceptual_metrics = tuple(parallel.replicate(metric) for metric in perceptual_metrics)
        per_device = -(-config.train.batch_size // (parallel.device_count * config.train.accumulation_steps))
        self.batch_size = per_device * parallel.device_count // jax.process_count()
        self._evaluate_network = parallel.map(self._network_step, outputs=(True, False))
        self._evaluate_ab = parallel.map(self._ab_step, outputs=(True, False))

    @functools.cached_property
    def _predict(self):
        return jax.jit(self.task.predict, compiler_options=compiler_options())

    def evaluate(self, state: TrainState, split: str) -> dict[str, float]:
        """Means over the photos of a split, {name of METRICS: value}."""
        return aggregate(*self.per_photo_metrics(state, self.batches(split)))

    def per_photo_metrics(
        self, state: TrainState | tuple[()], batches: Iterable[Mapping[str, Any]], predict_ab: PredictAb | None = None
    ) -> PhotoMetrics:
        """Metrics of all photos, in order.

        Args:
            state: of the task; () with `predict_ab`.
            batches: as `batches` yields them.
            predict_ab: evaluates its a*b* instead of the task's predictions.

        Returns:
            ({name: float32 (N,), 'label': int32 (N,), -1 for none}, sums of `metrics.error_by_color` and
            `metrics.chroma_by_lightness` over all photos).
        """
        parts: list[dict[str, np.ndarray]] = []
        totals: dict[str, np.ndarray] = {}
        for values, sums in _one_ahead(self._dispatch(state, batch, predict_ab) for batch in batches):
            parts.append(_gather(values))
            for name, value in jax.device_get(sums).items():
                totals[name] = totals.get(name, 0.0) + value.astype(np.float64)
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        mask = joined.pop('mask')
        return {name: values[mask] for name, values in joined.items()}, totals

    def _dispatch(self, state, batch, predict_ab):
        """Starts the evaluation of a batch -> its values and sums, still on the devices."""
        arrays = {name: batch[name] for name in batch if name != 'name'}
        if predict_ab is None:
            return self._evaluate_network(state, self.parallel.shard(arrays), self.perceptual_metrics)
        arrays = {**{name: arrays[name] for name in ('lab', 'label', 'mask')}, 'ab': predict_ab(batch)}
        return self._evaluate_ab((), self.parallel.shard(arrays), self.perceptual_metrics)

    def draw_grid(self, state: TrainState, split: str, path: str | PathLike, indices: Iterable[int]) -> None:
        """Draws photos of a split: gray, output, truth. Call it on one process.

        Args:
            state: of the task.
            split: of the shard set.
            path: of the PNG.
            indices: of the photos in the split, e.g. from `random_photos` or `worst`.
        """
        # One device's copy of the state, so that no other process has to take part.
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
        """Draws examples to PATH.png and the photos of the largest ab errors to PATH_worst.png.

        Args:
            state: of the task.
            split: of the shard set.
            path: without suffix.
            photos: {name: (N,)} of `per_photo_metrics`.
        """
        self.draw_grid(state, split, f'{path}.png', self.random_photos(split))
        self.draw_grid(state, split, f'{path}_worst.png', self.worst(photos))
        print(f'examples: {path}.png; largest errors: {path}_worst.png\n', flush=True)

    def random_photos(self, split: str) -> np.ndarray:
        """Indices of train.grid_photos photos of a split, drawn at random, so that nobody chose them; always the same."""
        count = len(self.shards.records(split))
        return np.sort(np.random.default_rng(0).choice(count, min(count, self.config.train.grid_photos), replace=False))

    def worst(self, photos: Mapping[str, np.ndarray]) -> np.ndarray:
        """Indices of the train.grid_photos photos with the largest ab errors, largest first."""
        return np.argsort(-photos['ab_squared_error'])[: self.config.train.grid_photos]

    def batches(self, split: str) -> Iterable[dict[str, Any]]:
        """This process's share of a split, batches of `pipeline.eval_batches`."""
        return pipeline.eval_batches(
            self.shards,
            split,
            batch_size=self.batch_size,
            crop=self.config.data.crop,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def _network_step(self, state, batch, perceptual_metrics):
        if self.losses:
            task_metrics, ab = self.task.eval_step(state, batch)
        else:
            task_metrics, ab = {}, self.task.predict(state, color.decode_lab(batch['lab'])[..., :1], jax.random.PRNGKey(0))
        return self._metrics(task_metrics, batch, ab, perceptual_metrics)

    def _ab_step(self, state, batch, perceptual_metrics):
        del state
        return self._metrics({}, batch, batch['ab'], perceptual_metrics)

    def _metrics(self, task_metrics, batch, ab, perceptual_metrics):
        """-> ({name: values of each photo}, {name: sums over all devices})."""
        lab, mask = color.decode_lab(batch['lab']), batch['mask']
        lightness, ab_true = lab[..., :1], lab[..., 1:]
        pair = metrics.PhotoPair(
            ab=ab,
            ab_true=ab_true,
            rgb=color.lab_to_rgb(color.join_lab(lightness, ab)),
            rgb_true=color.lab_to_rgb(lab),
            rgb_gray=color.lab_to_rgb(color.gray_lab(lightness)),
        )
        values = {**task_metrics, 'mask': mask, 'label': batch['label'], **metrics.per_photo(pair)}
        for metric in perceptual_metrics:
            values |= metric(pair.rgb, pair.rgb_true)
        sums = {
            'error_by_color': metrics.error_by_color(ab, ab_true, mask),
            'chroma_by_lightness': metrics.chroma_by_lightness(ab, ab_true, lightness, mask),
        }
        return values, lax.psum(sums, AXIS)


def _one_ahead(items):
    """Yields each item after the next one has been made: the devices compute a batch while the one before is fetched."""
    before = None
    for item in items:
        if before is not None:
            yield before
        before = item
    if before is not None:
        yield before


def _gather(values):
    """Sharded arrays of a global batch -> NumPy arrays of it, photos in order, on every process."""
    count = jax.process_count()
    if count == 1:
        return jax.device_get(values)
    # Rows arrive process by process, but photos were dealt to the processes in turns.
    gathered = multihost_utils.process_allgather(values, tiled=True)
    in_turns = {name: np.moveaxis(x.reshape(count, -1, *x.shape[1:]), 0, 1) for name, x in gathered.items()}
    return {name: x.reshape(-1, *x.shape[2:]) for name, x in in_turns.items()}


def aggregate(photos: Mapping[str, np.ndarray], sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Means over photos.

    Args:
        photos: {name: (N,)} of `Evaluator.per_photo_metrics`.
        sums: the sums of `Evaluator.per_photo_metrics`.

    Returns:
        {name of METRICS: value}.
    """
    means = {'photos': float(len(photos['psnr']))}
    for name, values in photos.items():
        if name == 'label' or values.ndim > 1:
            continue
        values = metrics.drop_unlabeled(name, values)
        if len(values):
            means[name] = float(np.mean(values, dtype=np.float64))
    means['ab_rmse'] = means.pop('ab_squared_error') ** 0.5
    means['ab_auc_balanced'] = metrics.balanced_ab_auc(sums['error_by_color'])
    means['colorfulness_absolute_delta'] = means['colorfulness_absolute'] - means['colorfulness_absolute_true']
    if 'fid_output' in photos and len(photos['fid_output']) > 1:
        means['fid'] = metrics.frechet_distance(photos['fid_output'], photos['fid_truth'])
    means['chroma_kept'] = means.pop('chroma') / max(means.pop('chroma_true'), 1e-6)
    return means
