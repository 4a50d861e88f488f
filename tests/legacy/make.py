"""Steps of make.sh: photos to train on, what the code of that time computes from each model, archives.

make.py photos | expect MODEL [LEFT_OUT ...] | expect_resumed RUN RESUMED UNDISTURBED | pack OUT
"""

import json
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def photos():
    """Writes photos/SPLIT/CLASS/N.png: smooth two-colored photos, 40 x 48 or 48 x 40 pixels."""
    rng = np.random.default_rng(0)
    for split, count in (('train', 6), ('validation', 2)):
        for number in range(count):
            width, height = ((48, 40), (40, 48))[number % 2]
            y, x = np.mgrid[:height, :width] / 40.0
            one, other = rng.uniform(0, 255, (2, 3))
            waves = 0.5 + 0.5 * np.sin(5 * x * rng.uniform(0.5, 2) + 5 * y * rng.uniform(0.5, 2) + rng.uniform(0, 6))
            shade = 0.6 + 0.4 * np.cos(4 * (x - rng.uniform(0, 1)) ** 2 + 4 * (y - rng.uniform(0, 1)) ** 2)
            rgb = (one + (other - one) * waves[..., None]) * shade[..., None]
            folder = Path('photos', split, ('flower', 'sea')[number // 2 % 2])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rgb.round().clip(0, 255).astype(np.uint8)).save(folder / f'{number}.png')


def inputs():
    """A gray photo, uint8 (40, 48), and lightness, float32 (1, 32, 32, 1): ramps with an edge, without randomness."""
    y, x = np.mgrid[:40, :48]
    gray = ((4 * x + y) % 256 // 2 + 96 * ((x - 24) ** 2 + (y - 20) ** 2 < 120)).astype(np.uint8)
    y, x = np.mgrid[:32, :32]
    lightness = (20 + 1.5 * x + 0.5 * y + 20.0 * ((x // 8 + y // 8) % 2)).astype(np.float32)
    return gray, lightness[None, ..., None]


def expect(model, *left_out):
    """Writes expected/MODEL.npz: the inputs, and what comes of them.

    ab: float32 (1, 32, 32, 2), `task.predict` of lightness. colored: uint8 (40, 48, 3), the Colorizer's photo for gray.
    left_out: names of results that are not kept.
    """
    import jax

    import jaxcolor
    from jaxcolor import runs

    gray, lightness = inputs()
    _, task, state = runs.load(model)
    ab = jax.jit(task.predict)(state, lightness, jax.random.PRNGKey(0))
    colored = jaxcolor.load(model)(Image.fromarray(gray).convert('RGB'))
    found = {'gray': gray, 'lightness': lightness, 'ab': np.asarray(ab), 'colored': np.asarray(colored)}
    save(model, **{name: array for name, array in found.items() if name not in left_out})


def expect_resumed(run, resumed, undisturbed):
    """Adds to expected/RUN.npz what a resumed training came to, after checking that an undisturbed one comes to the same."""
    (step, leaves), (_, others) = (leaves_of(each) for each in (resumed, undisturbed))
    assert step == 14 and leaves.keys() == others.keys()
    for name, leaf in leaves.items():
        assert leaf.tobytes() == others[name].tobytes(), name
    sums = {name: (leaf.sum(dtype=np.float64), np.square(leaf, dtype=np.float64).sum()) for name, leaf in leaves.items()}
    kept = ('params/fusion/kernel', 'params/output/conv/kernel', 'ema/params/fusion/kernel', 'opt_state/0/mu/fusion/kernel')
    rows = [json.loads(line) for line in Path(resumed, 'metrics.jsonl').read_text().splitlines()]
    row = next(row for row in rows if row['step'] == step and 'loss' in row)
    evaluated = next(row for row in rows if row['step'] == step and 'validation/loss' in row)
    with np.load(f'expected/{run}.npz') as known:
        save(
            run,
            **known,
            resumed_step=step,
            resumed_names=np.array(list(sums)),
            resumed_sums=np.array(list(sums.values())),
            resumed_loss=row['loss'],
            resumed_validation_loss=evaluated['validation/loss'],
            **{f'resumed/{name}': leaves[name] for name in kept},
        )


def leaves_of(run):
    """The newest checkpoint of a run: (step, {'params/low_0/conv/kernel': array, ...})."""
    import jax
    from jaxcolor.checkpoint import Checkpoints, abstract

    from jaxcolor import runs, tasks

    task = tasks.build(runs.read_config(run))
    shapes = jax.eval_shape(task.init, jax.random.PRNGKey(0))
    with Checkpoints(Path(run, 'checkpoints'), read_only=True) as checkpoints:
        step = checkpoints.latest_step
        state, _ = checkpoints.restore(step, abstract(shapes, jax.sharding.SingleDeviceSharding(jax.devices()[0])))
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return step, {jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(x) for path, x in leaves}


def save(model, **arrays):
    Path('expected').mkdir(exist_ok=True)
    np.savez_compressed(Path('expected', f'{model}.npz'), **arrays)


def pack(out):
    """Writes what tests need into OUT: an archive of each run, of each exported model and of the shards; expected/."""
    out = Path(out)
    kept = {'regression', 'color_classes', 'cgan', 'deepcolor'}
    for name in [*sorted(kept), 'exported', 'ensemble', 'first_export', 'shards']:
        parts = ('config.json', 'metrics.jsonl', 'checkpoints') if name in kept else ('',)
        with tarfile.open(out / f'{name}.tar.xz', 'w:xz', preset=9) as archive:
            for part in parts:
                archive.add(Path(name, part), filter=nameless)
    for path in sorted(Path('expected').glob('*.npz')):
        shutil.copy(path, out / f'{path.stem}.npz')


def nameless(entry):
    """An archive's entry without its owner and time."""
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ''
    return entry


if __name__ == '__main__':
    {'photos': photos, 'expect': expect, 'expect_resumed': expect_resumed, 'pack': pack}[sys.argv[1]](*sys.argv[2:])
