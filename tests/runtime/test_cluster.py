"""Several processes: detection, launches that are refused, exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import FLAGS, ROOT, assert_one_sentence
from helpers import TINY

from jaxcolor.errors import UserError
from jaxcolor.runtime import cluster, logs
from jaxcolor.runtime.cluster import ProcessInfo, check_launch, detect_process

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
        ((), {}, ProcessInfo('none', 0, 1)),
        ((), {'JAX_LOCAL_DEVICE_IDS': '0,2'}, ProcessInfo('none', 0, 1, local_device_ids=(0, 2))),
        (('h:1', 4, 3), SLURM, ProcessInfo('flags', 3, 4, 'h:1')),
        ((None, 4, 3), {'JAX_COORDINATOR_ADDRESS': 'h:1'}, ProcessInfo('flags', 3, 4, 'h:1')),
        ((), SLURM, ProcessInfo('Slurm', 11, 20, None, (3,), 8)),
        ((), {**SLURM, 'SLURM_NODEID': '2'}, ProcessInfo('Slurm', 11, 20, None, (3,), 4)),
        ((), {**SLURM, 'JAX_LOCAL_DEVICE_IDS': '0,1'}, ProcessInfo('Slurm', 11, 20, None, (0, 1), 8)),
        ((), {k: v for k, v in SLURM.items() if k != 'SLURM_STEP_NODELIST'}, ProcessInfo('none', 0, 1)),
        ((), MPI, ProcessInfo('Open MPI', 5, 8, None, (1,), 4)),
        ((), {**SLURM, **MPI, 'JAX_COORDINATOR_ADDRESS': 'h:1'}, ProcessInfo('Open MPI', 5, 8, 'h:1', (1,), 4)),
    ],
)
def test_detects_the_process(arguments, environ, expected):
    assert detect_process(*arguments, environ=environ) == expected


def test_incomplete_flags_are_refused():
    for arguments in [('h:1', 4, None), ('h:1', None, 0), (None, 4, 0), ('h:1', 4, 4), ('h:1', 4, -1)]:
        with pytest.raises(UserError, match='--process_id'):
            detect_process(*arguments, environ={})
    with pytest.raises(UserError, match='JAX_COORDINATOR_ADDRESS'):
        detect_process(environ={k: v for k, v in MPI.items() if 'orte' not in k})


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({}, None),
        ({'SLURM_NODEID': '2', 'SLURM_LOCALID': '3'}, '8 GPUs for this job, and 4 process'),
        ({'SLURM_STEP_TASKS_PER_NODE': '1(x3)', 'SLURM_LOCALID': '0'}, 'would use 1: start 8 a node'),
        ({'SLURM_STEP_TASKS_PER_NODE': '1(x3)', 'JAX_LOCAL_DEVICE_IDS': '0,1,2,3,4,5,6,7'}, None),
        ({'SLURM_STEP_TASKS_PER_NODE': '2(x3)', 'JAX_LOCAL_DEVICE_IDS': '0,1,2'}, 'would use 6'),
        ({'CUDA_VISIBLE_DEVICES': '3'}, 'is to use GPU 3 of its node but sees 1.*not --gpus-per-task'),
        ({'SLURM_GPUS_ON_NODE': '0', 'CUDA_VISIBLE_DEVICES': ''}, None),
    ],
)
def test_a_launch_that_leaves_gpus_unused_is_refused(changes, words):
    environ = {**SLURM, **changes}
    if words is None:
        check_launch(detect_process(environ=environ), environ)
    else:
        with pytest.raises(UserError, match=words):
            check_launch(detect_process(environ=environ), environ)


def test_mpi_and_batch_script_launches_are_checked():
    check_launch(detect_process(environ=MPI), MPI, gpu_files=['nvidia0', 'nvidia1', 'nvidia2', 'nvidia3'])
    with pytest.raises(UserError, match='has 8 GPUs .* would use 4'):
        check_launch(detect_process(environ=MPI), MPI, gpu_files=[f'nvidia{i}' for i in range(8)])
    batch = {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '16', 'SLURM_PROCID': '0'}
    with pytest.raises(UserError, match='16 tasks, and this process is none of them'):
        check_launch(detect_process(environ=batch), batch)
    check_launch(detect_process(environ={}), {}, gpu_files=['nvidia0', 'nvidia1'])  # one process takes all


def test_the_command_refuses_before_it_trains(command, tmp_path):
    environ = {**SLURM, 'SLURM_STEP_TASKS_PER_NODE': '1(x3)', 'SLURM_LOCALID': '0'}
    code, _, err = command('main', '--config=configs/ltbc.py', f'--workdir={tmp_path / "run"}', env=environ)
    assert_one_sentence(code, err, '8 GPUs', 'would use 1')
    assert not (tmp_path / 'run').exists()
    code, _, err = command('main', '--config=configs/ltbc.py', '--num_processes=2', f'--workdir={tmp_path / "run"}')
    assert_one_sentence(code, err, '--coordinator_address', '--process_id')


@pytest.mark.parametrize(
    ('error', 'code', 'words'), [('UserError', 1, 'error: fix it'), ('RuntimeError', 70, 'process 1 of 2')]
)
def test_one_of_several_processes_exits_at_once_on_an_error(error, code, words):
    """It does not run atexit handlers, among them JAX's barrier."""
    program = f"""
import atexit, sys, time
from jaxcolor.runtime import cluster
from jaxcolor.errors import UserError
atexit.register(time.sleep, 100)
with cluster.abort_on_error(cluster.ProcessInfo('flags', 1, 2)):
    raise {error}('fix it')
"""
    done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert words in done.stderr and 'fix it' in done.stderr


def start(*arguments, devices=1, **environ):
    """Starts `python -m jaxcolor.main` with a tiny recipe."""
    flags = f'{FLAGS} --xla_force_host_platform_device_count={devices}'
    return subprocess.Popen(
        [
            sys.executable,
            '-m',
            'jaxcolor.main',
            *TINY,
            '--config.train.eval_splits=()',
            *map(str, arguments),
        ],
        cwd=ROOT,
        env={**os.environ, 'XLA_FLAGS': flags, **environ},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process, pattern):
    """Reads a process's stderr until a line matches -> the match."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if match := re.search(pattern, line):
            return match
    raise AssertionError(''.join(lines))


def test_a_suspended_process_resumes_and_sigterm_saves_and_exits_75(shards, tmp_path):
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
    # A fast machine has reached a regular checkpoint before.
    assert max(int(path.name) for path in (tmp_path / 'checkpoints').iterdir()) == step
    assert logs.read_metrics(tmp_path)[-1]['step'] == step
    assert json.loads((tmp_path / 'config.json').read_text())['train']['steps'] == 1000000
