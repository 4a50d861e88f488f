"""A split -> one row of figures, and a grid of examples."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from PIL import Image, ImageDraw

from jaxcolor import color, metrics, runs
from jaxcolor.data import pipeline
from jaxcolor.data.shards import open_shards
from jaxcolor.parallel import AXIS, DataParallel, compiler_options

# What the table calls each figure, with its unit.
TITLES = {
    'photos': 'photos',
    'loss': 'loss',
    'color_loss': 'colour loss',
    'class_loss': 'class loss',
    'ab_rmse': 'ab RMSE',
    'psnr': 'PSNR (dB)',
    'psnr_gray': 'PSNR of gray (dB)',
    'ssim': 'SSIM',
    'ab_auc': 'AuC of ab errors',
    'larger_channel_agreement': 'larger-of-a,b agreement',
    'colorfulness': 'colourfulness',
    'colorfulness_true': 'colourfulness of the truth',
    'colorfulness_absolute': "colourfulness, DDColor's",
    'colorfulness_absolute_true': "colourfulness of the truth, DDColor's",
}


class Evaluator:
    """Evaluates a task's states on the splits of a shard set.

    Args:
        task: of `jaxcolor.tasks`.
        parallel: a DataParallel.
        shards: a ShardSet.
        config: whole; its data.crop and train.batch_size (a device's part, rounded up) say how photos are taken.
    """

    def __init__(self, task, parallel, shards, config):
        self.task, self.parallel, self.shards, self.config = task, parallel, shards, config
        per_device = -(-config.train.batch_size // (parallel.device_count * config.train.accumulation_steps))
        self.batch_size = per_device * parallel.device_count // jax.process_count()
        self._sums = parallel.map(self._sums_of_device, outputs=(False,))
        self._predict = jax.jit(task.predict, compiler_options=compiler_options())

    def measure(self, state, split: str) -> dict[str, float]:
        """Means over the photos of a split, each counted once: {name: value}, names as in TITLES."""
        totals = {}
        for batch in self._batches(split):
            photos = {name: batch[name] for name in batch if name != 'name'}
            (sums,) = self._sums(state, self.parallel.shard(photos))
            for name, value in jax.device_get(sums).items():
                totals[name] = totals.get(name, 0.0) + float(value)
        photos = totals.pop('photos')
        means = {name: value / photos for name, value in totals.items()}
        means['ab_rmse'] = means.pop('ab_squared_error') ** 0.5
        return {'photos': photos, **means}

    def grid(self, state, split: str, path, photos: int) -> None:
        """Draws the first photos of a split: a column each, of gray, output, truth. Call it on one process."""
        # The state's copy on one device of this process: no other process has to take part.
        state = jax.tree.map(lambda x: x.addressable_data(0), state)
        batch = next(pipeline.eval_batches(self.shards, split, batch_size=photos, crop=self.config.data.crop))
        lab = color.decode_lab(batch['lab'][batch['mask']])
        ab = jax.device_get(self._predict(state, lab[..., :1], jax.random.PRNGKey(0)))
        rows = {
            'gray': color.lab_to_rgb(_with_ab(lab, np.zeros_like(ab))),
            'output': color.lab_to_rgb(_with_ab(lab, ab)),
            'truth': color.lab_to_rgb(lab),
        }
        save_grid(rows, path)

    def _batches(self, split):
        return pipeline.eval_batches(
            self.shards,
            split,
            batch_size=self.batch_size,
            crop=self.config.data.crop,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def _sums_of_device(self, state, batch):
        """Sums over the global batch's real photos (mask True) of every measure, and their number."""
        lab = color.decode_lab(batch['lab'])
        each, ab = self.task.eval_step(state, batch)
        output, truth = color.lab_to_rgb(_with_ab(lab, ab)), color.lab_to_rgb(lab)
        gray = color.lab_to_rgb(_with_ab(lab, jnp.zeros_like(ab)))
        each |= {
            'ab_squared_error': metrics.ab_squared_error(ab, lab[..., 1:]),
            'psnr': metrics.psnr(output, truth),
            'psnr_gray': metrics.psnr(gray, truth),
            'ssim': metrics.ssim(output, truth),
            'ab_auc': metrics.ab_auc(ab, lab[..., 1:]),
            'larger_channel_agreement': metrics.larger_channel_agreement(ab, lab[..., 1:]),
            'colorfulness': metrics.colorfulness(output),
            'colorfulness_true': metrics.colorfulness(truth),
            'colorfulness_absolute': metrics.colorfulness_absolute(output),
            'colorfulness_absolute_true': metrics.colorfulness_absolute(truth),
            'photos': jnp.ones(lab.shape[0]),
        }
        # where, not a product: a blank photo's measure may be infinite.
        sums = {name: jnp.sum(jnp.where(batch['mask'], value, 0.0)) for name, value in each.items()}
        return (lax.psum(sums, AXIS),)


def evaluate_run(run, data: str, splits, step: int | None = None) -> dict[str, dict[str, float]]:
    """Evaluates a run directory on the splits of a shard set: prints a table, writes RUN/evaluation/*.png.

    Args:
        data: the shard set's folder; '' takes the one that the run was trained on.

    Raises:
        UserError: no run, no checkpoint, no such shard set or split.
    """
    parallel = DataParallel(runs.read_config(run).train.mapping)
    config, task, state = runs.load(run, step, parallel.replicated)
    shards = open_shards(data or config.data.shards or Path(run) / 'shards')
    evaluator = Evaluator(task, parallel, shards, config)
    results = {split: evaluator.measure(state, split) for split in splits}
    if jax.process_index() == 0:
        print(f'{run}, step {int(state.step)}, on {shards.path}:\n\n{table(results)}\n', flush=True)
        for split in splits:
            path = Path(run) / 'evaluation' / f'{split}.png'
            evaluator.grid(state, split, path, config.train.grid_photos)
            print(f'example grid: {path}', flush=True)
    return results


def table(results: dict[str, dict[str, float]]) -> str:
    """{split: {name: value}} -> a Markdown table, a row a figure and a column a split."""
    names = [name for name in TITLES if any(name in row for row in results.values())]
    names += sorted({name for row in results.values() for name in row} - set(names))
    width = max(len(TITLES.get(name, name)) for name in names)
    lines = [f'| {"":{width}} | ' + ' | '.join(f'{split:>10}' for split in results) + ' |']
    lines.append(f'|:{"-" * width}-|' + ''.join('-' * (max(10, len(split)) + 1) + ':|' for split in results))
    for name in names:
        cells = (f'{results[split].get(name, float("nan")):>{max(10, len(split))}.6g}' for split in results)
        lines.append(f'| {TITLES.get(name, name):{width}} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def save_grid(rows: dict[str, np.ndarray], path) -> None:
    """Writes a PNG: a labelled row each of photos side by side, {label: float RGB (B, H, W, 3) in [0, 1]}."""
    margin = 64
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
