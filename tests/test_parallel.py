"""One step over 8 devices equals one step on 1 device with the whole batch: gradients, not only losses."""

import jax
import numpy as np
import pytest

from jaxcolor import tasks
from jaxcolor.errors import UserError
from jaxcolor.parallel import DataParallel


def batch_of(size, crop, seed=0):
    rng = np.random.default_rng(seed)
    return {
        'lab': rng.integers(0, 256, (size, crop, crop, 3), dtype=np.uint8),
        'label': rng.integers(-1, 3, size, dtype=np.int32),
    }


def one_step(config, parallel, batch):
    """(state before, state after, metrics) of one step."""
    task = tasks.build(config)
    state = jax.jit(task.init)(jax.random.PRNGKey(0))
    before = jax.device_get(state)
    after, measured = parallel.map(task.train_step, donate_state=True)(parallel.replicate(state), parallel.shard(batch))
    return before, jax.device_get(after), jax.device_get(measured)


@pytest.fixture
def sgd_config(tiny_config):
    # Plain SGD: the change of the parameters is the gradient, with its scale. Adam would hide a wrong scale.
    tiny_config.optimizer.update({'name': 'sgd', 'learning_rate': 1.0, 'schedule': 'constant', 'warmup_steps': 0})
    tiny_config.optimizer.weight_decay = 0.0
    tiny_config.model.update({'classes': 3, 'batch_norm': False})
    tiny_config.task.update({'alpha': 0.1, 'kernel_l2': 1e-3})
    tiny_config.data.crop = 32
    return tiny_config


def gradients(before, after):
    return jax.tree.map(np.subtract, before.params, after.params)


@pytest.mark.parametrize('mapping', ['shard_map', 'pmap'])
@pytest.mark.parametrize('batch_norm', [False, True])
def test_eight_devices_equal_one(sgd_config, mapping, batch_norm):
    sgd_config.model.batch_norm = batch_norm
    sgd_config.train.cross_device_batch_norm = batch_norm
    batch = batch_of(16, 32)
    before, one, metrics_one = one_step(sgd_config, DataParallel(mapping, jax.devices()[:1]), batch)
    _, eight, metrics_eight = one_step(sgd_config, DataParallel(mapping), batch)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients(before, one)))
    assert scale > 1e-3
    for a, b in zip(
        jax.tree.leaves(gradients(before, one)), jax.tree.leaves(gradients(before, eight)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4 * scale)
    for a, b in zip(jax.tree.leaves(one.model_state), jax.tree.leaves(eight.model_state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    for name in metrics_one:
        np.testing.assert_allclose(metrics_one[name], metrics_eight[name], rtol=1e-4, err_msg=name)


def test_batch_norm_of_each_device_by_itself_differs(sgd_config):
    """Without the cross-device field the statistics are each device's: the test above can tell the two apart."""
    sgd_config.model.batch_norm = True
    batch = batch_of(16, 32)
    before, one, _ = one_step(sgd_config, DataParallel('shard_map', jax.devices()[:1]), batch)
    _, eight, _ = one_step(sgd_config, DataParallel('shard_map'), batch)
    differences = jax.tree.map(lambda a, b: np.abs(a - b).max(), gradients(before, one), gradients(before, eight))
    assert max(jax.tree.leaves(differences)) > 1e-2


def test_both_mappings_agree(sgd_config):
    sgd_config.model.batch_norm = True
    batch = batch_of(16, 32)
    _, by_shard_map, _ = one_step(sgd_config, DataParallel('shard_map'), batch)
    _, by_pmap, _ = one_step(sgd_config, DataParallel('pmap'), batch)
    for a, b in zip(jax.tree.leaves(by_shard_map), jax.tree.leaves(by_pmap), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('mapping', ['shard_map', 'pmap'])
def test_split_outputs_keep_the_order_of_the_batch(mapping):
    parallel = DataParallel(mapping)
    mapped = parallel.map(lambda state, x: (x + state, jax.lax.psum(x.sum(), 'data')), outputs=(True, False))
    x = np.arange(16.0, dtype=np.float32)
    each, total = mapped(parallel.replicate(np.float32(1)), parallel.shard(x))
    np.testing.assert_array_equal(each, x + 1)
    assert float(total) == x.sum()


def test_unknown_mapping_is_refused():
    with pytest.raises(UserError, match='shard_map, pmap'):
        DataParallel('vmap')
