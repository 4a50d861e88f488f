"""What several tests use."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcolor import config as base
from jaxcolor import models, tasks
from jaxcolor.models import extractors
from jaxcolor.recipes import load_recipe
from jaxcolor.runtime.checkpoint import Checkpoints, abstract
from jaxcolor.weights import runs

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


def network_shapes(name, size=(64, 64), dtype='float32', **fields):
    """(outputs, variables) of a network's first training step on two photos, as shapes."""
    network = models.build({**getattr(base, name)(), 'dtype': dtype, **fields})
    lightness = jnp.zeros((2, *size, 1))
    return jax.eval_shape(lambda: network.init_with_output(jax.random.key(0), lightness, train=True))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


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
    'ltbc': ('', {'model': {'global_size': 32, 'classes': 3}}),
    'ltbc_compact': ('', {'model': {'global_size': 32}}),
    'eccv16': ('', {'optimizer': {'learning_rate': 3e-3}}),
    'ddcolor': ('', {'model': {'layers': 3}, 'task': {'adversarial': 0.0}, 'optimizer': {'learning_rate': 3e-3}}),
    'ltbc_lite': ('', {'train': {'encoder_weights': 'random'}, 'optimizer': {'encoder_rate': 1.0}}),
}


# The extractor 'glance', for `extractors.NETWORKS`.
GLANCE = extractors.Network(Glance, 8, {'keras': lambda rgb: rgb})


def small_recipe(name, shards=''):
    """A network's own recipe, narrow, at 32 or 64 pixels, for 16 photos a step over 8 devices.

    Extractors are replaced by GLANCE, which the tests that run it register.
    """
    variant, changes = SMALL[name]
    config = load_recipe(f'{name}:{variant}')
    config.model.width = 0.0625
    if config.extractor.name:
        config.extractor.update({'name': 'glance', 'weights': 'random'})
    config.data.update({'shards': str(shards), 'crop': 32})
    config.train.update({'batch_size': 16, 'steps': 2 * HALF, 'eval_every': HALF, 'checkpoint_every': HALF})
    config.train.update({'epochs': None, 'eval_every_epochs': None})
    config.train.update({'log_every': 1, 'grid_photos': 1, 'keep_best': 2, 'eval_splits': ('train',)})
    config.train.cross_device_batch_norm = True
    for section, fields in changes.items():
        config[section].update(fields)
    return config


def first_gradients(name, parallel, folder, **model):
    """One step of a `small_recipe`, with fields of its model changed, on 16 fixed photos -> {'KIND/NAME': array}.

    KIND is gradients, statistics (of batch norm and the like), metrics, before (the parameters then) or changes (of them).

    The optimizer is SGD, whose momentum is the gradient itself after one step, with its scale, which Adam would hide.
    """
    config = small_recipe(name)
    config.model.update(model)
    config.optimizer.update({'name': 'sgd', 'learning_rate': 1e-3, 'momentum': 0.9, 'nesterov': False, 'warmup_steps': 0})
    config.optimizer.update({'schedule': 'constant', 'weight_decay': 0.0, 'clip_norm': 0.0})
    task = tasks.build(config)
    state = parallel.create(task.init, jax.random.PRNGKey(config.seed))
    state = state.replace(frozen=parallel.replicate(runs.load_extractor(folder, config)))
    own = 16 // jax.process_count()
    rows = slice(jax.process_index() * own, (jax.process_index() + 1) * own)
    batch = jax.tree.map(lambda x: x[rows], batch_of(16, config.data.crop))
    before = jax.device_get(state.params)
    after, measured = jax.device_get(parallel.map(task.train_step, donate_state=True)(state, parallel.shard(batch)))
    gradients = [gradient for _, gradient in optax.tree.get_all_with_path(after.opt_state, 'trace')]
    results = {'gradients': gradients, 'statistics': after.model_state, 'metrics': measured}
    results |= {'before': before, 'changes': jax.tree.map(np.subtract, before, after.params)}
    leaves = jax.tree_util.tree_leaves_with_path(results)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf) for path, leaf in leaves}
