"""What several tests use."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcolor import tasks
from jaxcolor.config import load_recipe
from jaxcolor.runtime.checkpoint import Checkpoints, abstract

# The arguments of a training of a few steps.
TINY = [
    '--config=configs/ltbc.py:quickstart',
    '--config.model.width=0.0625',
    '--config.model.global_size=32',
    '--config.data.crop=32',
    '--config.train.batch_size=4',
    '--config.train.log_every=1',
]


def batch_of(size, crop, seed=0):
    rng = np.random.default_rng(seed)
    return {
        'lab': rng.integers(0, 256, (size, crop, crop, 3), dtype=np.uint8),
        'label': rng.integers(-1, 3, size, dtype=np.int32),
    }


def norm(leaves):
    return np.sqrt(sum(np.square(leaf, dtype=np.float64).sum() for leaf in leaves))


def state_of(run, step, config):
    """The whole state of a checkpoint, on the host."""
    shapes = jax.eval_shape(tasks.build(config).init, jax.random.PRNGKey(0))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with Checkpoints(run / 'checkpoints') as checkpoints:
        return jax.device_get(checkpoints.restore(step, abstract(shapes, sharding)))


def assert_identical(a, b):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


class Glance(nn.Module):
    """In place of VGG16 and Inception-ResNet-v2, which take minutes here: one random layer over 8x8 pixels."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image):
        return nn.Dense(1000, name='predictions')(image.reshape(image.shape[0], -1))


HALF = 8  # steps
# Of each network: the variant of its recipe, and what makes it small.
SMALL = {
    'ltbc_pytorch': ('', {'model': {'global_size': 32}, 'optimizer': {'learning_rate': 3e-3}}),
    'ltbc_deconv': ('', {'model': {'global_size': 32}, 'optimizer': {'learning_rate': 1e-2}}),
    'vgg_fusion': ('', {'data': {'crop': 64}, 'optimizer': {'learning_rate': 3e-3}}),
    'deepcolor': ('base', {'optimizer': {'learning_rate': 3e-3}}),
    'cgan': ('stable', {'model': {'size': 32}, 'optimizer': {'learning_rate': 1e-3}}),
}


def small_recipe(name, shards=''):
    """A network's own recipe, narrow, at 32 or 64 pixels, for 16 photos a step over 8 devices.

    Extractors are replaced by one called 'glance', which the tests that run it define.
    """
    variant, changes = SMALL[name]
    config = load_recipe(f'{name}:{variant}')
    config.model.width = 0.0625
    if config.extractor.name:
        config.extractor.update({'name': 'glance', 'weights': 'random'})
    config.data.update({'shards': str(shards), 'crop': 32})
    config.train.update({'batch_size': 16, 'steps': 2 * HALF, 'eval_every': HALF, 'checkpoint_every': HALF})
    config.train.update({'log_every': 1, 'grid_photos': 1, 'keep_best': 2, 'eval_splits': ('train',)})
    config.train.cross_device_batch_norm = True
    for section, fields in changes.items():
        config[section].update(fields)
    return config
