"""Several optimizer steps in one call."""

import jax
import numpy as np
import pytest
from helpers import batch_of, small_recipe, state_of
from jax import lax

from jaxcolor import tasks
from jaxcolor.errors import UserError
from jaxcolor.runtime import logs
from jaxcolor.runtime.parallel import AXIS, DataParallel, in_turn
from jaxcolor.train import train


@pytest.mark.parametrize('mapping', ['shard_map', 'pmap'])
def test_each_step_gets_its_own_batch_and_the_state_before_it(mapping):
    parallel = DataParallel(mapping, jax.devices()[:2])

    def step(state, x, y):
        mean = lax.pmean(x.mean(), AXIS)
        return state * 2 + mean, {'mean': mean, 'state': state + y}

    batches = tuple(parallel.shard(np.arange(4, dtype=np.float32) + 10 * i) for i in range(3))
    state, y = parallel.replicate(np.float32(1)), parallel.replicate(np.float32(5))
    state, metrics = parallel.map(in_turn(step), donate_state=True)(state, batches, y)
    np.testing.assert_array_equal(metrics['mean'], [1.5, 11.5, 21.5])
    np.testing.assert_array_equal(metrics['state'], np.array([1, 3.5, 18.5]) + 5)
    assert float(state) == 58.5


@pytest.mark.slow
@pytest.mark.parametrize('mapping', ['shard_map', 'pmap'])
def test_steps_of_one_call_are_those_of_single_calls(mapping):
    """Within rounding: XLA compiles the step again inside the loop."""
    config = small_recipe('ltbc_compact')
    config.optimizer.update({'name': 'sgd', 'learning_rate': 1e-3, 'schedule': 'constant'})
    task, parallel = tasks.build(config), DataParallel(mapping, jax.devices()[:2])
    batches = tuple(parallel.shard(batch_of(4, 32, seed)) for seed in range(3))
    single = parallel.map(task.train_step, donate_state=True)
    state, expected = parallel.create(task.init, jax.random.PRNGKey(0)), []
    for batch in batches:
        state, metrics = single(state, batch)
        expected.append(jax.device_get(metrics))
    together = parallel.map(in_turn(task.train_step), donate_state=True)
    found_state, found = together(parallel.create(task.init, jax.random.PRNGKey(0)), batches)
    assert int(found_state.step) == 3
    for name, values in found.items():
        np.testing.assert_allclose(values, [row[name] for row in expected], rtol=1e-4, err_msg=name)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(found_state.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('placement', ['host', 'device'])
def test_a_training_by_threes(tiny_config, tmp_path, placement):
    """8 steps: calls of 3, 3 and 2. What is due inside a call comes at its end."""
    tiny_config.data.placement = placement
    tiny_config.optimizer.schedule = 'constant'
    tiny_config.train.update({'steps': 8, 'checkpoint_every': 4, 'eval_every': None, 'eval_splits': (), 'keep_best': 0})
    train(tiny_config, tmp_path / 'single')
    tiny_config.train.steps_per_call = 3
    train(tiny_config, tmp_path / 'threes')
    rows = {
        name: {r['step']: r['loss'] for r in logs.read_metrics(tmp_path / name) if 'loss' in r}
        for name in ('single', 'threes')
    }
    saved = sorted(int(path.name) for path in (tmp_path / 'threes' / 'checkpoints').iterdir())
    assert saved == [6, 8]
    states = [state_of(tmp_path / name, 8, tiny_config) for name in ('single', 'threes')]
    assert [int(state[0].step) for state in states] == [8, 8] and states[0][1] == states[1][
        1
    ]  # and the same photos are next
    # `single` logs each step but those before a save, whose line is a mean of two; `threes` the means of its calls.
    assert sorted(rows['threes']) == [6, 8]
    assert rows['threes'][8] == pytest.approx(rows['single'][8], rel=1e-3)


def test_no_step_is_refused(tiny_config, tmp_path):
    tiny_config.train.steps_per_call = 0
    with pytest.raises(UserError, match='train.steps_per_call must be at least 1'):
        train(tiny_config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
