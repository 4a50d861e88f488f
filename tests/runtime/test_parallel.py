"""A step gives the same gradients, statistics and metrics on any number of devices."""

import functools
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from conftest import small_config
from helpers import batch_of, norm

from jaxcolor import config as base
from jaxcolor import tasks
from jaxcolor.errors import UserError
from jaxcolor.runtime.parallel import DataParallel, compiler_options, has_fast_bfloat16


@pytest.fixture(scope='module')
def one_step(shards):
    """(batch_norm, cross_device, mapping, devices) -> (gradients, statistics, metrics) of one step on a fixed batch."""
    # Plain SGD: the change of the parameters is the gradient, with its scale. Adam would hide a wrong scale.
    config = small_config(shards)
    config.optimizer.update({'name': 'sgd', 'learning_rate': 1.0, 'schedule': 'constant', 'warmup_steps': 0})
    config.optimizer.weight_decay = 0.0
    config.model.update({'classes': 3, 'global_dropout': 0.25})
    config.task.update({'alpha': 0.1, 'kernel_l2': 1e-3})
    config.data.crop = 32
    batch = batch_of(16, 32)

    @functools.cache
    def run(batch_norm, cross_device, mapping, devices):
        config.model.batch_norm, config.train.cross_device_batch_norm = batch_norm, cross_device
        task, parallel = tasks.build(config), DataParallel(mapping, jax.devices()[:devices])
        state = jax.jit(task.init)(jax.random.PRNGKey(0))
        before = jax.device_get(state.params)
        step = parallel.map(task.train_step, donate_state=True)
        after, metrics = jax.device_get(step(parallel.replicate(state), parallel.shard(batch)))
        return jax.tree.map(np.subtract, before, after.params), after.model_state, metrics

    return run


@pytest.mark.parametrize('mapping', ['shard_map', 'pmap'])
@pytest.mark.parametrize('batch_norm', [False, True])
def test_eight_devices_equal_one(one_step, mapping, batch_norm):
    one, statistics_one, metrics_one = one_step(batch_norm, batch_norm, 'shard_map', 1)
    eight, statistics_eight, metrics_eight = one_step(batch_norm, batch_norm, mapping, 8)
    # By norms: single elements jump where rounding moves a pixel across the zero of a ReLU.
    whole = norm(jax.tree.leaves(one))
    assert whole > 1e-3
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(eight), strict=True):
        assert norm([a - b]) < 0.03 * norm([a]) + 1e-4 * whole, jax.tree_util.keystr(path)
    for a, b in zip(jax.tree.leaves(statistics_one), jax.tree.leaves(statistics_eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-3 * np.abs(a).max())
    assert metrics_one['class_loss'] > 0.1 * np.log(2)  # of three classes, before any training
    for name in metrics_one:
        np.testing.assert_allclose(metrics_one[name], metrics_eight[name], rtol=1e-3, err_msg=name)


def test_batch_norm_per_device_differs(one_step):
    """Without cross_device_batch_norm, statistics are per device: the test above can tell the two apart."""
    one, eight = one_step(True, True, 'shard_map', 1)[0], one_step(True, False, 'shard_map', 8)[0]
    difference = jax.tree.leaves(jax.tree.map(np.subtract, one, eight))
    assert norm(difference) > 0.1 * norm(jax.tree.leaves(one))


@pytest.mark.parametrize('mapping', ['shard_map', 'pmap'])
def test_split_outputs_keep_the_order_of_the_batch(mapping):
    parallel = DataParallel(mapping)
    mapped = parallel.map(lambda state, x: (x + state, jax.lax.psum(x.sum(), 'data')), outputs=(True, False))
    for size in (16, 8, 16):  # each size is compiled
        x = np.arange(size, dtype=np.float32)
        each, total = mapped(parallel.replicate(np.float32(1)), parallel.shard(x))
        np.testing.assert_array_equal(each, x + 1)
        assert float(total) == x.sum()


@pytest.mark.parametrize('mapping', ['shard_map', 'pmap'])
def test_steps_are_compiled_with_the_options(mapping, monkeypatch):
    monkeypatch.setattr('jaxcolor.runtime.parallel.compiler_options', lambda **_: {'no_such_option': True})
    parallel = DataParallel(mapping)
    mapped = parallel.map(lambda state, x: (state, x), outputs=(False, True))
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match='no_such_option'):
        mapped(parallel.replicate(np.float32(1)), parallel.shard(np.ones(8, np.float32)))


def test_determinism_is_an_option_of_gpus_that_jaxlib_knows(monkeypatch):
    compiler_options.cache_clear()
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    assert compiler_options() is None
    options = compiler_options(deterministic=True)
    monkeypatch.undo()
    compiler_options.cache_clear()
    jax.jit(lambda x: x + 1, compiler_options=options).lower(0.0).compile()  # refuses names that it does not know
    assert options == {'xla_gpu_deterministic_ops': True}


@pytest.mark.parametrize(
    ('device', 'expected'),
    [
        ({'platform': 'gpu', 'compute_capability': '9.0'}, True),
        ({'platform': 'gpu', 'compute_capability': '10.3'}, True),
        ({'platform': 'gpu', 'compute_capability': '7.5'}, False),
        ({'platform': 'gpu', 'compute_capability': 'gfx942'}, False),
        ({'platform': 'gpu'}, False),
        ({'platform': 'cpu'}, False),
    ],
)
def test_gpus_with_fast_bfloat16(device, expected):
    assert has_fast_bfloat16(SimpleNamespace(**device)) == expected


def test_unknown_mapping_is_refused():
    with pytest.raises(UserError, match='shard_map, pmap'):
        DataParallel('vmap')


def step_on_16_photos(config, devices):
    """(gradients, statistics, metrics) of a step on 16 fixed photos; the optimizer is plain SGD at rate 1."""
    task, parallel = tasks.build(config), DataParallel(devices=jax.devices()[:devices])
    rng = np.random.default_rng(0)
    # Photos of few patches differ from one another: where they are alike, batch norm magnifies what rounding does.
    lab = rng.integers(0, 256, (16, 4, 4, 3), np.uint8).repeat(config.data.crop // 4, 1).repeat(config.data.crop // 4, 2)
    batch = {'lab': lab, 'label': rng.integers(-1, 3, 16, np.int32)}
    state = parallel.create(task.init, jax.random.PRNGKey(0))
    after, metrics = jax.device_get(parallel.map(task.train_step)(state, parallel.shard(batch)))
    return jax.tree.map(np.subtract, jax.device_get(state.params), after.params), after.model_state, metrics


@pytest.mark.parametrize('task', ['regression', pytest.param('adversarial', marks=pytest.mark.slow)])
def test_accumulation_equals_more_devices(shards, task):
    """Gradients, batch statistics and metrics; batch norm sees 4 photos at a time in both cases."""
    config = small_config(shards)
    config.data.crop = 32
    if task == 'adversarial':
        config.model, config.task = base.cgan(), base.adversarial()
        config.model.update({'size': 32, 'width': 0.125, 'hidden_width': 8})
    config.optimizer.update({'name': 'sgd', 'learning_rate': 1.0, 'schedule': 'constant', 'warmup_steps': 0})
    config.optimizer.weight_decay = 0.0
    config.train.batch_size = 16
    many = step_on_16_photos(config, 4)
    config.train.accumulation_steps = 2
    few = step_on_16_photos(config, 2)
    if task == 'adversarial':  # the generator's step uses the updated discriminator, with its rounding errors
        many[0].pop('generator'), few[0].pop('generator')
    norm_of_gradients = optax.tree.norm(many[0])
    assert norm_of_gradients > 1e-4
    # Of the gradient, what rounding makes of it where it takes a pixel across a ReLU's zero.
    assert optax.tree.norm(jax.tree.map(np.subtract, many[0], few[0])) < 0.03 * norm_of_gradients
    for a, b in zip(*map(jax.tree.leaves, (many[1:], few[1:])), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-3 * np.abs(a).max())
