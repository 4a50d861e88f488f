"""Several processes: who is which, what is refused, and the same training however it is cut up."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import optax
import pytest
from conftest import FLAGS, ROOT, assert_one_sentence, small_config

from jaxcolor import config as base
from jaxcolor import files, tasks
from jaxcolor.data import pipeline
from jaxcolor.data import shards as sharding
from jaxcolor.errors import UserError
from jaxcolor.runtime import cluster, logs
from jaxcolor.runtime.cluster import Place, check_launch, find_place
from jaxcolor.runtime.parallel import DataParallel
from jaxcolor.tasks import optimizers

SLURM = {
    'SLURM_JOB_ID': '7',
    'SLURM_STEP_NODELIST': 'n[0-2]',
    'SLURM_PROCID': '11',
    'SLURM_STEP_NUM_TASKS': '20',
    'SLURM_LOCALID': '3',
    'SLURM_NODEID': '1',
    'SLURM_STEP_TASKS_PER_NODE': '8(x2),4',
    'SLURM_GPUS_ON_NODE': '8',
    'CUDA_VISIBLE_DEVICES': '0,1,2,3,4,5,6,7',
    'SLURM_NTASKS': '20',
}
MPI = {
    'OMPI_COMM_WORLD_RANK': '5',
    'OMPI_COMM_WORLD_SIZE': '8',
    'OMPI_COMM_WORLD_LOCAL_RANK': '1',
    'OMPI_COMM_WORLD_LOCAL_SIZE': '4',
    'OMPI_MCA_orte_hnp_uri': '1531576320.0;tcp://10.96.0.1:34911',
}


@pytest.mark.parametrize(
    ('arguments', 'environ', 'expected'),
    [
        ((), {}, Place('none', 0, 1)),
        ((), {'JAX_LOCAL_DEVICE_IDS': '0,2'}, Place('none', 0, 1, devices=(0, 2))),
        (('h:1', 4, 3), SLURM, Place('flags', 3, 4, 'h:1')),
        ((None, 4, 3), {'JAX_COORDINATOR_ADDRESS': 'h:1'}, Place('flags', 3, 4, 'h:1')),
        ((), SLURM, Place('Slurm', 11, 20, None, (3,), 8)),
        ((), {**SLURM, 'SLURM_NODEID': '2'}, Place('Slurm', 11, 20, None, (3,), 4)),
        ((), {**SLURM, 'JAX_LOCAL_DEVICE_IDS': '0,1'}, Place('Slurm', 11, 20, None, (0, 1), 8)),
        ((), {k: v for k, v in SLURM.items() if k != 'SLURM_STEP_NODELIST'}, Place('none', 0, 1)),
        ((), MPI, Place('Open MPI', 5, 8, None, (1,), 4)),
        ((), {**SLURM, **MPI, 'JAX_COORDINATOR_ADDRESS': 'h:1'}, Place('Open MPI', 5, 8, 'h:1', (1,), 4)),
    ],
)
def test_a_process_finds_its_place(arguments, environ, expected):
    assert find_place(*arguments, environ=environ) == expected


def test_half_a_place_is_refused():
    for arguments in [('h:1', 4, None), ('h:1', None, 0), (None, 4, 0), ('h:1', 4, 4), ('h:1', 4, -1)]:
        with pytest.raises(UserError, match='--process_id'):
            find_place(*arguments, environ={})
    with pytest.raises(UserError, match='JAX_COORDINATOR_ADDRESS'):
        find_place(environ={k: v for k, v in MPI.items() if 'orte' not in k})


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({}, None),
        ({'SLURM_NODEID': '2', 'SLURM_LOCALID': '3'}, '8 GPUs for this job, and 4 process'),
        ({'SLURM_STEP_TASKS_PER_NODE': '1(x3)', 'SLURM_LOCALID': '0'}, 'would use 1: start 8 a node'),
        ({'SLURM_STEP_TASKS_PER_NODE': '1(x3)', 'JAX_LOCAL_DEVICE_IDS': '0,1,2,3,4,5,6,7'}, None),
        ({'SLURM_STEP_TASKS_PER_NODE': '2(x3)', 'JAX_LOCAL_DEVICE_IDS': '0,1,2'}, 'would use 6'),
        ({'CUDA_VISIBLE_DEVICES': '3'}, 'is to take GPU 3 of its node and sees 1.*not --gpus-per-task'),
        ({'SLURM_GPUS_ON_NODE': '0', 'CUDA_VISIBLE_DEVICES': ''}, None),
    ],
)
def test_a_launch_that_leaves_gpus_unused_is_refused(changes, words):
    environ = {**SLURM, **changes}
    if words is None:
        check_launch(find_place(environ=environ), environ)
    else:
        with pytest.raises(UserError, match=words):
            check_launch(find_place(environ=environ), environ)


def test_a_launch_by_mpi_or_from_the_batch_script_is_checked_too():
    check_launch(find_place(environ=MPI), MPI, gpu_files=['nvidia0', 'nvidia1', 'nvidia2', 'nvidia3'])
    with pytest.raises(UserError, match='has 8 GPUs .* would use 4'):
        check_launch(find_place(environ=MPI), MPI, gpu_files=[f'nvidia{i}' for i in range(8)])
    batch = {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '16', 'SLURM_PROCID': '0'}
    with pytest.raises(UserError, match='16 tasks, and this process is none of them'):
        check_launch(find_place(environ=batch), batch)
    check_launch(find_place(environ={}), {}, gpu_files=['nvidia0', 'nvidia1'])  # one process takes all


def test_the_command_refuses_before_it_trains(command, tmp_path):
    environ = {**SLURM, 'SLURM_STEP_TASKS_PER_NODE': '1(x3)', 'SLURM_LOCALID': '0'}
    code, _, err = command('main', '--config=configs/ltbc.py', f'--workdir={tmp_path / "run"}', env=environ)
    assert_one_sentence(code, err, '8 GPUs', 'would use 1')
    assert not (tmp_path / 'run').exists()
    code, _, err = command('main', '--config=configs/ltbc.py', '--num_processes=2', f'--workdir={tmp_path / "run"}')
    assert_one_sentence(code, err, '--coordinator_address', '--process_id')


def one_step(config, devices):
    """(gradients, statistics, metrics) of a step on 16 fixed photos; the optimizer is plain SGD at rate 1."""
    task, parallel = tasks.build(config), DataParallel(devices=jax.devices()[:devices])
    rng = np.random.default_rng(0)
    # Photos of few patches differ from one another: where they are alike, batch norm magnifies what rounding does.
    lab = rng.integers(0, 256, (16, 4, 4, 3), np.uint8).repeat(config.data.crop // 4, 1).repeat(config.data.crop // 4, 2)
    batch = {'lab': lab, 'label': rng.integers(-1, 3, 16, np.int32)}
    state = parallel.create(task.init, jax.random.PRNGKey(0))
    after, measured = jax.device_get(parallel.map(task.train_step)(state, parallel.shard(batch)))
    return jax.tree.map(np.subtract, jax.device_get(state.params), after.params), after.model_state, measured


@pytest.mark.parametrize('task', ['regression', pytest.param('adversarial', marks=pytest.mark.slow)])
def test_accumulation_equals_as_many_times_the_devices(shards, task):
    """Gradients, batch statistics and metrics; batch norm sees the same 4 photos at a time on both sides."""
    config = small_config(shards)
    config.data.crop = 32
    if task == 'adversarial':
        config.model, config.task = base.cgan(), base.adversarial()
        config.model.update({'size': 32, 'width': 0.125, 'hidden_width': 8})
    config.optimizer.update({'name': 'sgd', 'learning_rate': 1.0, 'schedule': 'constant', 'warmup_steps': 0})
    config.optimizer.weight_decay = 0.0
    config.train.batch_size = 16
    many = one_step(config, 4)
    config.train.accumulation_steps = 2
    few = one_step(config, 2)
    if task == 'adversarial':  # the generator's step comes after, and sees what rounding did to the discriminator
        many[0].pop('generator'), few[0].pop('generator')
    whole = optax.tree.norm(many[0])
    assert whole > 1e-4
    # Of the gradient, what rounding makes of it where it takes a pixel across a ReLU's zero.
    assert optax.tree.norm(jax.tree.map(np.subtract, many[0], few[0])) < 0.03 * whole
    for a, b in zip(*map(jax.tree.leaves, (many[1:], few[1:])), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-3 * np.abs(a).max())


@pytest.mark.parametrize(('scaling', 'factor'), [('none', 1), ('linear', 16), ('sqrt', 4)])
def test_the_rate_is_scaled_after_a_warm_up(scaling, factor):
    config = base.optimizer()
    config.update({'learning_rate': 0.5, 'scaling': scaling, 'base_batch_size': 32, 'warmup_steps': 10})
    rate = optimizers.schedule(config, 100, 512)
    assert [float(rate(step)) for step in (0, 5, 10, 99)] == [0.0, 0.25 * factor, 0.5 * factor, 0.5 * factor]
    config.schedule = 'cosine'
    assert float(optimizers.schedule(config, 100, 512)(55)) == pytest.approx(0.25 * factor)


@pytest.mark.parametrize('name', ['lars', 'lamb'])
def test_lars_and_lamb_adapt_kernels_and_leave_biases(name):
    """A kernel's step has the norm that its own norm says, whatever the gradient's; a bias's follows the gradient."""
    config = base.optimizer()
    config.update({'name': name, 'learning_rate': 0.5, 'weight_decay': 0.0, 'momentum': 0.9, 'eps': 1e-12})
    optimizer = optimizers.build(config, 10, 32)
    params = {'kernel': np.full((3, 4), 2.0, np.float32), 'bias': np.full(4, 3.0, np.float32)}
    state = optimizer.init(params)
    for scale in (1.0, 100.0):
        grads = jax.tree.map(lambda x, scale=scale: np.full_like(x, scale), params)
        updates, _ = optimizer.update(grads, state, params)
        coefficient = {'lars': 0.001, 'lamb': 1.0}[name]
        np.testing.assert_allclose(updates['kernel'], -0.5 * coefficient * 2.0, rtol=1e-4)
        if name == 'lars':
            np.testing.assert_allclose(updates['bias'], -0.5 * scale, rtol=1e-5)


def test_every_photo_comes_once_an_epoch_whatever_the_processes(tmp_path, tiny_config):
    """2 processes, then 1, then 4, each going on where the ones before stood."""
    packed = [sharding.encode_record(str(i), i, np.full((8, 8, 3), i, np.uint8)) for i in range(24)]
    sharding.write_shard(tmp_path / 'train-00000.arrayrecord', packed, 'raw')
    size = (tmp_path / 'train-00000.arrayrecord').stat().st_size
    shard = {'file': 'train-00000.arrayrecord', 'split': 'train', 'photos': 24, 'bytes': size}
    meta = {'version': sharding.VERSION, 'counts': {'train': 24}, 'classes': [str(i) for i in range(24)], 'shards': [shard]}
    files.write_json(tmp_path / 'dataset.json', meta)
    opened = sharding.open_shards(tmp_path)
    tiny_config.data.crop = 8

    def stream(count, index):
        share = {'batch_size': 4 // count, 'process_index': index, 'process_count': count}
        return pipeline.train_batches(opened, data=tiny_config.data, seed=5, **share)

    whole, position, seen = stream(1, 0), None, []
    for count in (2, 1, 4):
        streams = [stream(count, index) for index in range(count)]
        for one in streams:
            if position:
                one.set_state(json.loads(position))
        for _ in range(4):
            labels = np.concatenate([next(one)['label'] for one in streams])
            np.testing.assert_array_equal(labels, next(whole)['label'])
            seen.append(labels)
        positions = {json.dumps(one.get_state()) for one in streams}
        assert len(positions) == 1
        position = positions.pop()
    for epoch in np.concatenate(seen).reshape(2, 24):
        assert sorted(epoch) == list(range(24))


@pytest.mark.parametrize(
    ('error', 'code', 'words'), [('UserError', 1, 'error: mend it'), ('RuntimeError', 70, 'process 1 of 2')]
)
def test_a_process_with_peers_leaves_at_once(error, code, words):
    """Not even what atexit holds is waited for, as JAX's barrier there would be."""
    program = f"""
import atexit, sys, time
from jaxcolor.runtime import cluster
from jaxcolor.errors import UserError
atexit.register(time.sleep, 100)
with cluster.leaves_at_once(cluster.Place('flags', 1, 2)):
    raise {error}('mend it')
"""
    done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert words in done.stderr and 'mend it' in done.stderr


def start(*arguments, devices=1, **environ):
    """Starts `python -m jaxcolor.main` with a tiny recipe."""
    flags = f'{FLAGS} --xla_force_host_platform_device_count={devices}'
    return subprocess.Popen(
        [
            sys.executable,
            '-m',
            'jaxcolor.main',
            '--config=configs/ltbc.py:quickstart',
            '--config.model.width=0.0625',
            '--config.model.global_size=32',
            '--config.data.crop=32',
            '--config.train.batch_size=4',
            '--config.train.log_every=1',
            '--config.train.eval_splits=()',
            *map(str, arguments),
        ],
        cwd=ROOT,
        env={**os.environ, 'XLA_FLAGS': flags, **environ},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process, pattern):
    """Reads what a process says until a line matches -> the match."""
    said = []
    for line in process.stderr:
        said.append(line)
        if match := re.search(pattern, line):
            return match
    raise AssertionError(''.join(said))


def test_a_suspended_process_goes_on_and_sigterm_saves_the_step_and_exits_75(shards, tmp_path):
    flags = ('--config.train.steps=1000000', '--config.train.heartbeat=1')
    process = start(f'--config.data.shards={shards}', *flags, f'--workdir={tmp_path}')
    while not logs.read_metrics(tmp_path):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGSTOP)
    time.sleep(4)  # many heartbeats
    process.send_signal(signal.SIGCONT)
    suspended_at = logs.read_metrics(tmp_path)[-1]['step']
    while logs.read_metrics(tmp_path)[-1]['step'] < suspended_at + 20:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    step = int(wait_for(process, r'SIGTERM: step (\d+) is saved').group(1))
    assert process.wait() == cluster.EXIT_PREEMPTED
    # A fast machine has come past a save of its own before.
    assert max(int(path.name) for path in (tmp_path / 'checkpoints').iterdir()) == step
    assert logs.read_metrics(tmp_path)[-1]['step'] == step
    assert json.loads((tmp_path / 'config.json').read_text())['train']['steps'] == 1000000
