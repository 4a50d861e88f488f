"""A split -> figures of every photo, their means, and a grid of examples."""

import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax import lax
from jax.experimental import multihost_utils
from PIL import Image, ImageDraw

from jaxcolor import color
from jaxcolor.evaluation import baselines, metrics, report
from jaxcolor.weights import export, runs
from jaxcolor.inference.colorize import Colorizer
from jaxcolor.data import pipeline
from jaxcolor.data.augment import center_crop
from jaxcolor.prepare.decode import pillow_unguarded
from jaxcolor.data.shards import SIDECAR, open_shards
from jaxcolor.errors import UserError
from jaxcolor.runtime.parallel import AXIS, DataParallel, compiler_options
from jaxcolor.evaluation.perceptual import load_inception, load_lpips
from jaxcolor.evaluation.photo_sets import PhotoSet


class Evaluator:
    """Evaluates a task's states on the splits of a shard set.

    Args:
        task: of `jaxcolor.tasks`; None to measure baselines alone.
        parallel: a DataParallel.
        shards: a ShardSet, or another set with `records(split)`.
        config: whole; its data.crop and train.batch_size (a device's part, rounded up) say how photos are taken.
        judges: of `jaxcolor.perceptual`, whose values are asked for, too.
        losses: whether the task's own figures are measured; they need photos of the size that it was trained on.
    """

    def __init__(self, task, parallel, shards, config, judges=(), losses: bool = True):
        self.task, self.parallel, self.shards, self.config, self.losses = task, parallel, shards, config, losses
        self.judges = tuple(parallel.replicate(judge) for judge in judges)
        per_device = -(-config.train.batch_size // (parallel.device_count * config.train.accumulation_steps))
        self.batch_size = per_device * parallel.device_count // jax.process_count()
        self._of_network = parallel.map(self._network_on_device, outputs=(True, False))
        self._of_colors = parallel.map(self._colors_on_device, outputs=(True, False))

    @functools.cached_property
    def _predict(self):
        return jax.jit(self.task.predict, compiler_options=compiler_options())

    def measure(self, state, split: str) -> dict[str, float]:
        """Means over the photos of a split, each counted once: {name: value}, names as in report.TITLES."""
        return summary(*self.photos(state, self.batches(split)))

    def photos(self, state, batches, colors=None) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Measures of every photo, each once and in order.

        Args:
            batches: as `batches` gives them.
            colors: `colors(batch)` -> a*b* float32 (B, H, W, 2) to measure in place of the network's, as those of
                `jaxcolor.baselines`.

        Returns:
            {name: float32 (N,)} with 'label', int32, -1 for none; and the sums over all pixels that
            `metrics.error_by_color` and `metrics.chroma_by_lightness` give.
        """
        parts, totals = [], {}
        for batch in batches:
            arrays = {name: batch[name] for name in batch if name != 'name'}
            if colors is None:
                each, sums = self._of_network(state, self.parallel.shard(arrays), self.judges)
            else:
                arrays = {**{name: arrays[name] for name in ('lab', 'label', 'mask')}, 'ab': colors(batch)}
                each, sums = self._of_colors((), self.parallel.shard(arrays), self.judges)
            parts.append(_in_order(each))
            for name, value in jax.device_get(sums).items():
                totals[name] = totals.get(name, 0.0) + value.astype(np.float64)
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        mask = joined.pop('mask')
        return {name: values[mask] for name, values in joined.items()}, totals

    def grid(self, state, split: str, path, places) -> None:
        """Draws photos of a split: a column each, of gray, output, truth. Call it on one process.

        places: of the photos in the split, as `spread` or `worst` give them.
        """
        # The state's copy on one device of this process: no other process has to take part.
        state = jax.tree.map(lambda x: x.addressable_data(0), state)
        records = self.shards.records(split)
        lab = color.decode_lab(np.stack([center_crop(records[int(i)]['lab'], self.config.data.crop) for i in places]))
        ab = jax.device_get(self._predict(state, lab[..., :1], jax.random.PRNGKey(0)))
        rows = {
            'gray': color.lab_to_rgb(_with_ab(lab, np.zeros_like(ab))),
            'output': color.lab_to_rgb(_with_ab(lab, ab)),
            'truth': color.lab_to_rgb(lab),
        }
        save_grid(rows, path)

    def draw(self, state, split: str, path, photos) -> None:
        """Draws examples to PATH.png, and the largest errors of `photos`, as measured, to PATH_worst.png."""
        self.grid(state, split, f'{path}.png', self.spread(split))
        self.grid(state, split, f'{path}_worst.png', self.worst(photos))
        print(f'examples: {path}.png; the largest errors: {path}_worst.png\n', flush=True)

    def spread(self, split: str) -> np.ndarray:
        """Places of train.grid_photos photos of a split, evenly over it: shards hold one class after the other."""
        count = len(self.shards.records(split))
        return np.unique(np.linspace(0, count - 1, min(count, self.config.train.grid_photos)).round().astype(int))

    def worst(self, photos) -> np.ndarray:
        """Places of the train.grid_photos photos of the largest ab errors, as measured, worst first."""
        return np.argsort(-photos['ab_squared_error'])[: self.config.train.grid_photos]

    def batches(self, split: str):
        """This process's part of the photos of a split."""
        return pipeline.eval_batches(
            self.shards,
            split,
            batch_size=self.batch_size,
            crop=self.config.data.crop,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def _network_on_device(self, state, batch, judges):
        if self.losses:
            each, ab = self.task.eval_step(state, batch)
        else:
            each, ab = {}, self.task.predict(state, color.decode_lab(batch['lab'])[..., :1], jax.random.PRNGKey(0))
        return self._compare(each, batch, ab, judges)

    def _colors_on_device(self, state, batch, judges):
        del state
        return self._compare({}, batch, batch['ab'], judges)

    def _compare(self, each, batch, ab, judges):
        """-> (measures of each photo, sums over all devices)"""
        lab, mask = color.decode_lab(batch['lab']), batch['mask']
        output, truth = color.lab_to_rgb(_with_ab(lab, ab)), color.lab_to_rgb(lab)
        gray = color.lab_to_rgb(_with_ab(lab, jnp.zeros_like(ab)))
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
        for judge in judges:
            each |= judge(output, truth)
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


def summary(photos, sums) -> dict[str, float]:
    """What `Evaluator.photos` gives -> means over photos, {name: value}, names as in report.TITLES."""
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


def evaluate_run(
    run, data: str, splits, step: int | None = None, lpips: bool = False, fid: str = ''
) -> dict[str, dict[str, dict[str, float]]]:
    """Evaluates a run directory on the splits of a shard set, beside what needs no network.

    Prints a table a split; writes it to RUN/evaluation/SPLIT.md and .json, examples to SPLIT.png, the largest errors to
    SPLIT_worst.png, and how much of the truth's chroma is kept to SPLIT_chroma.png.

    Args:
        data: the shard set's folder; '' takes the one that the run was trained on.
        lpips: whether to measure that distance, too: it takes longer than all else.
        fid: Inception v3's weights, to measure that distance, too; '' does not.

    Returns:
        {split: {'network', 'gray', ...: {name: value}}}.

    Raises:
        UserError: no run, no checkpoint, no such shard set or split; a set of more classes; LPIPS or FID cannot be had.
    """
    judges = judges_of(lpips, fid)
    parallel = DataParallel(runs.read_config(run).train.mapping)
    config, task, state = runs.load(run, step, parallel.replicated)
    shards = shards_for(run, config, data)
    for split in splits:
        shards.records(split)  # a split that is not there should not wait for the others
    evaluator = Evaluator(task, parallel, shards, config, judges)
    rivals, folder = rivals_of(run, config, shards), runs.evaluation_folder(run)
    results = {}
    for split in splits:
        measured = {'network': evaluator.photos(state, evaluator.batches(split))}
        for name, colors in rivals.items():
            measured[name] = evaluator.photos(state, evaluator.batches(split), colors)
        about = {'run': str(run), 'step': int(state.step), 'photos': f'{shards.path}, {split}', **_named(judges)}
        results[split] = _tell(folder / split, about, measured, shards.classes)
        if jax.process_index() == 0:
            evaluator.draw(state, split, folder / split, measured['network'][0])
    return results


@pillow_unguarded()
def evaluate_protocol(
    run, protocol: str, photos, photo_list: str = '', step: int | None = None, lpips: bool = False, fid: str = ''
) -> dict[str, dict[str, float]]:
    """Evaluates a run directory on a folder of photos by a protocol, beside what needs no network.

    Writes what `evaluate_run` writes, under the protocol's name, and the list of the photos with hashes of their files to
    RUN/evaluation/PROTOCOL_files.csv.

    Args:
        protocol: key of `protocols.PROTOCOLS`.
        photos: the folder.
        photo_list: a file that names the photos to take, one a line; '' takes all.

    Returns:
        {'network', 'gray', ...: {name: value}}.

    Raises:
        UserError: no run, no checkpoint; no such protocol, folder or photos; a photo that is none; LPIPS or FID cannot
            be had.
    """
    photo_set = PhotoSet(photos, protocol, photo_list)
    judges = judges_of(lpips, fid)
    whole = not photo_set.protocol.size
    if whole and jax.process_count() > 1:
        raise UserError(f'--protocol={protocol} goes through photos of any size one by one: evaluate it with one process.')
    parallel = DataParallel(runs.read_config(run).train.mapping, jax.devices()[:1] if whole else None)
    config, task, state = runs.load(run, step, parallel.replicated)
    with config.unlocked():
        trained_size, config.data.crop = config.data.crop, photo_set.protocol.size or config.data.crop
    evaluator = Evaluator(task, parallel, photo_set, config, judges, losses=False)
    rivals = rivals_of(run, config)
    if whole:
        rivals.pop('nearest photo', None)  # it has no colours for photos of other shapes
        batches = photo_set.single
        of_network = colors_of(Colorizer(run, step, trained_size))
    else:
        batches, of_network = lambda: evaluator.batches(protocol), None
    out = runs.evaluation_folder(run)
    if jax.process_index() == 0:
        photo_set.write_list(out / f'{protocol}_files.csv')
    measured = {'network': evaluator.photos(state, batches(), of_network)}
    for name, colors in rivals.items():
        measured[name] = evaluator.photos(state, batches(), colors)
    about = {'run': str(run), 'step': int(state.step), 'photos': f'{photos} by protocol {protocol}', **_named(judges)}
    result = _tell(out / protocol, about, measured, ())
    if not whole and jax.process_index() == 0:
        evaluator.draw(state, protocol, out / protocol, measured['network'][0])
    return result


def colors_of(colorizer):
    """A Colorizer -> colours of an evaluation's batch, of photos of any one size, as `jaxcolor.colorize` gives them."""

    def of_photo(lab):
        H, W = lab.shape[:2]
        gray = color.decode_lab(lab) * np.array([1, 0, 0], np.float32)
        ab = colorizer.colors(colorizer.look(Image.fromarray(color.to_uint8(color.lab_to_rgb(gray)))))[0]
        planes = [Image.fromarray(np.ascontiguousarray(ab[..., i])) for i in range(2)]
        return np.stack([plane.resize((W, H), Image.Resampling.BICUBIC) for plane in planes], axis=-1)

    return lambda batch: np.stack([of_photo(lab) for lab in batch['lab']])


def judges_of(lpips: bool, fid: str) -> list:
    """The judges that were asked for; fid: Inception v3's weights, '' for none. Raises UserError."""
    return ([load_lpips()] if lpips else []) + ([load_inception(fid)] if fid else [])


def _named(judges):
    about = [judge.about for judge in judges if hasattr(judge, 'about')]
    return {'fid': about[0]} if about else {}


def _tell(path, about, measured, classes):
    """Writes and prints what was measured -> {column: {name: value}}."""
    rows = {name: summary(*of) for name, of in measured.items()}
    if jax.process_index() == 0:
        print(report.write(path, about, rows, measured, classes), flush=True)
    return rows


def trained_on(run, config) -> Path:
    """The shard set that a run was trained on."""
    return Path(config.data.shards or Path(run) / 'shards')


def shards_for(run, config, data: str):
    """The shard set at `data`; '' takes the one that the run was trained on. Raises UserError."""
    if not data and exported.is_exported(exported.folder_of(run)):
        raise UserError(f'{run} is an exported model without the photos of its training; name some, --data=SHARDS.')
    shards = open_shards(data or trained_on(run, config))
    runs.check_classes(config, shards)
    return shards


def rivals_of(run, config, shards=None):
    """{name: colours of a batch} of all baselines that can be had.

    shards: whose training photos stand for those of an exported model, which does not know its own.
    """
    rivals, photos = {'gray': baselines.gray}, trained_on(run, config)
    known = open_shards(photos) if (photos / SIDECAR).exists() else None
    if exported.is_exported(exported.folder_of(run)) and shards is not None and shards.counts.get('train'):
        known = shards
    if known:
        training = baselines.Training(known.records('train'), config.data.crop)
        rivals |= {'mean colour': training.mean_color, 'nearest photo': training.nearest}
    else:
        logging.warning('%s, the photos of the training, are gone: their mean and nearest are left out', photos)
    return rivals


def save_grid(rows: dict[str, np.ndarray], path) -> None:
    """Writes a PNG: a labelled row each of photos side by side, {label: float RGB (B, H, W, 3) in [0, 1]}."""
    widest = max(ImageDraw.Draw(Image.new('L', (1, 1))).textlength(label, font_size=16) for label in rows)
    margin = max(64, int(widest) + 12)
    B, H, W, _ = next(iter(rows.values())).shape
    sheet = Image.new('RGB', (margin + B * W, len(rows) * H), 'white')
    draw = ImageDraw.Draw(sheet)
    for y, (label, photos) in enumerate(rows.items()):
        draw.text((6, y * H + H // 2), label, fill='black', anchor='lm', font_size=16)
        for x, photo in enumerate(color.to_uint8(photos)):
            sheet.paste(Image.fromarray(photo), (margin + x * W, y * H))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix('.tmp.png')
    sheet.save(temporary)
    os.replace(temporary, path)


def _with_ab(lab, ab):
    """The photo's L* joined to an a*b*."""
    xp = jnp if isinstance(ab, jax.Array) else np
    return xp.concatenate([lab[..., :1], ab], axis=-1)
