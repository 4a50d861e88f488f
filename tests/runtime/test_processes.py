"""Trainings by several processes and by some of the devices: the same numbers, by either mapping."""

import os
import signal
import socket
import subprocess
import sys

import jax
import pytest
from conftest import FLAGS, ROOT, assert_one_sentence
from helpers import TINY
from test_cluster import start, wait_for

from jaxcolor.errors import UserError
from jaxcolor.recipes import load_recipe
from jaxcolor.runtime import cluster, logs
from jaxcolor.runtime.parallel import choose_devices
from jaxcolor.train import train

# Batch statistics are of each device's photos, so runs on other numbers of devices are compared without.
RECIPE = [
    *TINY[1:],
    '--config.model.batch_norm=False',
    '--config.optimizer.schedule=constant',
    '--config.train.eval_every=4',
    "--config.train.eval_splits=('train',)",
    '--config.train.batch_size=12',
]


# What each of two processes of two devices runs: a step that knows nothing of them, by both mappings.
STEP = """
import sys
import jax, numpy as np
from jax.experimental.multihost_utils import process_allgather
from jaxcolor.runtime import cluster
from jaxcolor.runtime.parallel import AXIS, DataParallel, choose_devices

index = int(sys.argv[2])
cluster.join(cluster.detect_process(sys.argv[1], 2, index), heartbeat=100)
for mapping in ('shard_map', 'pmap'):
    for batch, devices in ((8, 4), (6, 2)):
        parallel = DataParallel(mapping, choose_devices(batch))
        assert parallel.device_count == devices
        step = lambda state, x, y: (state + jax.lax.pmean(x.mean(), AXIS), x * state + y + jax.lax.axis_index(AXIS))
        mapped = parallel.map(step, outputs=(False, True), donate_state=True)
        state, y = parallel.replicate(np.float32(1)), parallel.replicate(np.float32(10))
        x = np.arange(batch, dtype=np.float32)
        own = parallel.shard(x[index * batch // 2 : (index + 1) * batch // 2])
        for _ in range(2):
            old = state
            state, each = mapped(state, own, y)
            assert old.is_deleted()
        assert state.sharding == parallel.replicated and each.sharding == parallel.split
        assert float(state) == 1 + 2 * x.mean()
        expected = x * (1 + x.mean()) + 10 + np.arange(batch) // (batch // devices)
        np.testing.assert_allclose(process_allgather(each, tiled=True), expected, rtol=1e-6)
"""


def test_a_step_over_two_processes_is_mapped_alike():
    coordinator, flags = free_address(), f'{FLAGS} --xla_force_host_platform_device_count=2'
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', STEP, coordinator, str(i)],
            cwd=ROOT,
            env={**os.environ, 'XLA_FLAGS': flags},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors


def free_address():
    """HOST:PORT of this machine that nobody listens to."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return f'127.0.0.1:{free.getsockname()[1]}'


def start_two(run, *flags):
    """Starts two processes of four devices each."""
    flags = [*RECIPE, *flags, f'--coordinator_address={free_address()}', '--num_processes=2', f'--workdir={run}']
    return [start(*flags, f'--process_id={i}', devices=4) for i in range(2)]


@pytest.mark.slow
def test_processes_devices_and_mapping_may_change(shards, tmp_path, capsys):
    """2 processes by pmap on 6 of their 8 devices, then 1 process by shard_map on 4, equal 1 device all the way."""
    data = f'--config.data.shards={shards}'
    config = load_recipe('ltbc:quickstart', [*RECIPE, data, '--config.train.steps=8'])
    processes = start_two(tmp_path / 'run', data, '--config.train.steps=4', '--config.train.mapping=pmap')
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert 'batch 12 = 2 x 6 cpu device(s) of 2 process(es)' in errors[0]
    assert '6 of 8 devices share the batch' in errors[0] and 'a multiple of 8' in errors[0]
    assert (tmp_path / 'run' / 'samples' / 'train_0000004.png').exists()

    config.train.devices = 4
    results = train(config, tmp_path / 'run')
    said = capsys.readouterr().err
    assert 'from its checkpoint at step 4' in said and 'batch 12 = 3 x 4' in said and 'share the batch' not in said
    config.train.devices = 1
    expected = train(config, tmp_path / 'one')
    rows = [{r['step']: r['loss'] for r in logs.read_metrics(tmp_path / name) if 'loss' in r} for name in ('run', 'one')]
    assert len(rows[1]) >= 5
    # Adam makes a large change of a small gradient, rounding and all; with other photos, losses would differ by half.
    assert rows[0] == pytest.approx({step: rows[1].get(step) for step in rows[0]}, rel=1e-3)
    assert results['train']['psnr'] == pytest.approx(expected['train']['psnr'], abs=0.01)


@pytest.mark.slow
def test_a_sigterm_to_one_process_saves_the_step_of_all(shards, tmp_path):
    flags = (f'--config.data.shards={shards}', '--config.train.steps=1000000', '--config.train.eval_splits=()')
    processes = start_two(tmp_path, *flags, '--config.train.mapping=pmap', '--config.data.placement=device')
    wait_for(processes[0], 'saved step')
    processes[1].send_signal(signal.SIGTERM)
    step = int(wait_for(processes[0], r'SIGTERM: step (\d+) is saved').group(1))
    assert [process.wait(timeout=60) for process in processes] == [cluster.EXIT_PREEMPTED] * 2
    assert max(int(path.name) for path in (tmp_path / 'checkpoints').iterdir()) == step


@pytest.mark.slow
def test_processes_refuse_what_they_cannot_share_in_one_sentence(shards, tmp_path):
    for flag, words in [('batch_size=13', 'multiple of 2'), ('devices=3', 'each of which must use the same number')]:
        processes = start_two(tmp_path / 'run', f'--config.data.shards={shards}', f'--config.train.{flag}')
        error = processes[0].communicate(timeout=120)[1]
        assert_one_sentence(processes[0].wait(), error, words)
        processes[1].communicate(timeout=120)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('batch', 'parts', 'count', 'chosen'),
    [(128, 1, 0, 8), (50, 1, 0, 5), (5, 1, 0, 5), (7, 1, 0, 7), (11, 1, 0, 1), (24, 2, 0, 6), (12, 1, 4, 4), (11, 11, 0, 1)],
)
def test_as_many_devices_as_divide_the_batch(batch, parts, count, chosen):
    assert choose_devices(batch, parts, count) == jax.devices()[:chosen]


@pytest.mark.parametrize(
    ('batch', 'parts', 'count', 'words'),
    [
        (8, 1, 9, 'train.devices: 9 .* there are 8; 0 takes'),
        (12, 1, 8, r'12 photos .* by 8 device\(s\); take a multiple of 8'),
        (24, 2, 8, r'24 photos .* by 8 device\(s\) in 2 parts each; take a multiple of 16'),
        (5, 2, 0, r'5 photos .* by 1 device\(s\) in 2 parts each; take a multiple of 2'),
    ],
)
def test_devices_that_cannot_share_the_batch_are_refused(batch, parts, count, words):
    with pytest.raises(UserError, match=words):
        choose_devices(batch, parts, count)
