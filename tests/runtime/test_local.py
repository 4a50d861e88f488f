"""`jaxcolor train --processes=N` on this machine."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import FLAGS, ROOT, assert_one_sentence
from helpers import TINY
from test_cluster import wait_for

from jaxcolor.errors import UserError
from jaxcolor.runtime import cluster, local, logs
from jaxcolor.runtime.cluster import ProcessInfo

ALONE = ProcessInfo('none', 0, 1)


@pytest.mark.parametrize(('text', 'gpus', 'count'), [('auto', 8, 8), ('auto', 0, 1), ('2', 8, 2), ('3', 0, 3), ('1', 4, 1)])
def test_how_many_processes(text, gpus, count):
    assert local.count_processes(text, ALONE, gpus) == count


@pytest.mark.parametrize(
    ('text', 'process', 'words'),
    [
        ('3', ALONE, 'cannot share 8 GPUs evenly'),
        ('16', ALONE, 'cannot share 8 GPUs evenly'),
        ('0', ALONE, 'neither'),
        ('two', ALONE, 'neither'),
        ('auto', ProcessInfo('Slurm', 0, 2), 'Slurm has started this one'),
    ],
)
def test_numbers_that_do_not_fit_are_refused(text, process, words):
    with pytest.raises(UserError, match=words):
        local.count_processes(text, process, 8)


def test_each_process_takes_its_share_of_the_gpus():
    def ids(count, gpus):
        return [each.get('JAX_LOCAL_DEVICE_IDS') for each in local.environments(count, gpus, {'A': 'b'})]

    assert ids(4, range(4)) == ['0', '1', '2', '3'] and ids(2, [0, 1, 4, 5]) == ['0,1', '4,5'] and ids(2, []) == [None] * 2
    assert local.environments(2, [], {'A': 'b'}) == [{'A': 'b'}] * 2
    # What they are told makes each of them the process of its GPUs.
    environ = {**local.environments(2, [4, 5], {})[1]}
    assert cluster.detect_process('127.0.0.1:1', 2, 1, environ).local_device_ids == (5,)
    assert local.device_ids(ProcessInfo('none', 0, 1, None, (2, 3))) == [2, 3]


def start(run, shards, *flags):
    environment = {**os.environ, 'XLA_FLAGS': f'{FLAGS} --xla_force_host_platform_device_count=1'}
    command = [sys.executable, '-m', 'jaxcolor', 'train', *TINY, f'--data={shards}', f'--workdir={run}', *flags]
    return subprocess.Popen(
        [*command, '--processes=2'], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def children_of(process):
    found = []
    for folder in os.listdir('/proc'):
        if folder.isdigit():
            with open(f'/proc/{folder}/stat') as file:
                if int(file.read().rpartition(')')[2].split()[1]) == process.pid:
                    found.append(int(folder))
    return sorted(found)


@pytest.mark.slow
def test_two_processes_train_as_one_command(shards, tmp_path):
    process = start(tmp_path / 'run', shards, '--config.train.steps=4', '--config.train.eval_splits=()')
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert 'batch 4 = 2 x 2 cpu device(s) of 2 process(es)' in err
    assert out.count('Color a photo of yours') == 1 and err.count('Compiling.') == 1
    assert [row['step'] for row in logs.read_metrics(tmp_path / 'run') if 'loss' in row][-1] == 4


@pytest.mark.slow
def test_a_refusal_is_said_once(shards, tmp_path):
    process = start(tmp_path / 'run', shards, '--config.train.batch_size=13')
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert_one_sentence(process.returncode, err, 'multiple of 2')


def start_endless(run, shards):
    """The command and its two processes, once they have saved."""
    endless = ('--config.train.steps=1000000', '--config.train.eval_splits=()', '--config.train.checkpoint_every=2')
    process = start(run, shards, *endless)
    wait_for(process, 'saved step')
    children = children_of(process)
    assert len(children) == 2
    return process, children


@pytest.mark.slow
def test_a_sigterm_saves_and_ends_all(shards, tmp_path):
    process, children = start_endless(tmp_path, shards)
    process.send_signal(signal.SIGTERM)
    step = int(wait_for(process, r'SIGTERM: step (\d+) is saved').group(1))
    assert process.wait(timeout=60) == cluster.EXIT_PREEMPTED
    assert max(int(path.name) for path in (tmp_path / 'checkpoints').iterdir()) == step
    assert not any(os.path.exists(f'/proc/{child}') for child in children)


@pytest.mark.slow
@pytest.mark.parametrize('which', [0, 1])
def test_the_death_of_one_ends_all(shards, tmp_path, which):
    process, children = start_endless(tmp_path, shards)
    os.kill(children[which], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (128 + signal.SIGKILL, cluster.EXIT_FAULT, 128 + signal.SIGABRT)
    assert not any(os.path.exists(f'/proc/{child}') for child in children), err


@pytest.mark.slow
def test_the_processes_save_and_end_when_the_command_is_killed(shards, tmp_path):
    process, children = start_endless(tmp_path, shards)
    process.kill()
    step = int(wait_for(process, r'SIGTERM: step (\d+) is saved').group(1))
    for _ in range(600):
        if not any(os.path.exists(f'/proc/{child}') for child in children):
            break
        time.sleep(0.1)
    assert not any(os.path.exists(f'/proc/{child}') for child in children)
    assert max(int(path.name) for path in (tmp_path / 'checkpoints').iterdir()) == step
