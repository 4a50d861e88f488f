"""Training through a real Slurm, Open MPI and the faults of a cluster:  pytest -m cluster

Needs root and Debian's slurmctld, slurmd, slurm-client, munge, openmpi-bin and iproute2. What is measured is printed
with -s; launch/README.md has a table of it.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import FLAGS, ROOT

from jaxcolor import logs, runs, tasks
from jaxcolor.checkpoint import Checkpoints, abstract

pytestmark = pytest.mark.cluster

STEPS = 45
RECIPE = [
    '--config=configs/ltbc.py:quickstart', '--config.model.width=0.0625', '--config.model.global_size=32',
    '--config.data.crop=32', '--config.train.batch_size=4', '--config.train.log_every=1',
    '--config.train.eval_splits=()', '--config.train.checkpoint_every=10', '--config.train.heartbeat=10',
    '--config.model.batch_norm=False', '--config.optimizer.schedule=constant',
]  # fmt: skip


def environment(devices=1):
    flags = f'{FLAGS} --xla_force_host_platform_device_count={devices}'
    return {**os.environ, 'XLA_FLAGS': flags, 'PYTHON': sys.executable, 'USER': 'root'}


def wait_until(true, seconds, why):
    """Waits for `true()`, at most so long -> what it returned, and how many seconds that took."""
    start = time.monotonic()
    while not (found := true()):
        if time.monotonic() - start > seconds:
            raise AssertionError(f'{why} has not come in {seconds} s')
        time.sleep(0.1)
    return found, time.monotonic() - start


class Slurm:
    """A cluster of `tests/cluster/slurm.sh`, as long as the context."""

    def __init__(self, folder, nodes):
        name = f'j{os.getpid()}x{nodes}'
        self.environ = {**environment(), 'CLUSTER_DIR': str(folder), 'CLUSTER_NAME': name}
        self.nodes, self.jobs = nodes, {}

    def __enter__(self):
        try:
            self('up', self.nodes)
        except BaseException:
            self('down')
            raise
        return self

    def __exit__(self, *exception):
        self('down')

    def __call__(self, *command):
        done = subprocess.run(
            [ROOT / 'tests' / 'cluster' / 'slurm.sh', *map(str, command)],
            cwd=ROOT, env=self.environ, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, f'{command}: {done.stdout}{done.stderr}'
        return done.stdout

    def submit(self, run, *flags, nodes=2, gpus=1):
        """-> the job's number"""
        said = self(
            'on', 'ctl', 'launch/slurm/submit.sh', f'--nodes={nodes}', f'--gpus={gpus}', '--time=10', *RECIPE,
            f'--config.train.steps={STEPS}', f'--workdir={run}', *flags,
        )  # fmt: skip
        job = int(re.search(r'^job: +(\d+) ', said, re.M).group(1))
        assert f'log:  {run}/slurm-{job}.out' in said and f'stop: launch/slurm/kill.sh {job}' in said
        self.jobs[job] = run
        return job

    def log(self, job):
        path = Path(self.jobs[job]) / f'slurm-{job}.out'
        return path.read_text() if path.exists() else ''

    def state(self, job):
        return dict(re.findall(r'(\w+)=(\S*)', self('on', 'ctl', 'scontrol', 'show', 'job', job)))['JobState']

    def wait_for_state(self, job, *states, seconds=60):
        try:
            return wait_until(lambda: self.state(job) in states, seconds, states)[1]
        except AssertionError:
            raise AssertionError(f'job {job} is {self.state(job)}, not {states}:\n{self.log(job)}') from None

    def wait_for_step(self, job, step):
        run = self.jobs[job]
        wait_until(lambda: self.state(job) == 'RUNNING' and reached(run) >= step, 90, f'step {step} of {run}')

    def start_again(self, job):
        """A requeued job may start after 121 s. Within 2 s slurmd would refuse its number."""
        time.sleep(3)
        self('on', 'ctl', 'scontrol', 'update', f'jobid={job}', 'StartTime=now')


@pytest.fixture(scope='module')
def slurm(tmp_path_factory):
    missing = [name for name in ('slurmctld', 'slurmd', 'munged', 'mpirun', 'ip') if shutil.which(name) is None]
    assert os.getuid() == 0 and not missing, f'needs root and {missing}'
    with Slurm(tmp_path_factory.mktemp('slurm'), 2) as cluster:
        yield cluster


def reached(run):
    """The last step in metrics.jsonl, 0 where there is none."""
    return max((row['step'] for row in logs.read_metrics(run)), default=0)


def losses(run):
    """{step: loss}, but for lines that are the mean of two steps, as before a save."""
    rows = {row['step']: row['loss'] for row in logs.read_metrics(run) if 'loss' in row}
    return {step: loss for step, loss in rows.items() if step == 1 or step - 1 in rows}


def saved(run, step):
    """The whole state of a checkpoint, on the host."""
    shapes = jax.eval_shape(tasks.build(runs.read_config(run)).init, jax.random.PRNGKey(0))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with Checkpoints(Path(run) / 'checkpoints', read_only=True) as checkpoints:
        return jax.device_get(checkpoints.restore(step, abstract(shapes, sharding)))


def assert_identical(a, b):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


def assert_same_losses(run, reference):
    """To rounding, which grows from step to step: to 3e-2 at the last of them, when this was written. Other photos would
    make losses differ by half.
    """
    run, reference = losses(run), losses(reference)
    shared = [step for step in run if step in reference]
    assert len(shared) > 0.6 * STEPS
    for step in shared:
        assert run[step] == pytest.approx(reference[step], rel=2e-4 if step <= STEPS / 2 else 5e-2), step


def run_here(run, *flags, devices=1, launcher=(), **environ):
    """Trains on this machine, without Slurm -> what it said."""
    command = [*launcher] or [sys.executable, '-m', 'jaxcolor.main']
    done = subprocess.run(
        [*command, *RECIPE, f'--config.train.steps={STEPS}', f'--workdir={run}', *flags],
        cwd=ROOT, env={**environment(devices), **environ}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


MPI = {'OMPI_ALLOW_RUN_AS_ROOT': '1', 'OMPI_ALLOW_RUN_AS_ROOT_CONFIRM': '1', 'HWLOC_COMPONENTS': '-gl'}


@pytest.fixture(scope='module')
def undisturbed(slurm, tmp_path_factory):
    """The run directory of a training over 2 nodes that nothing happened to."""
    run = tmp_path_factory.mktemp('undisturbed') / 'run'
    start = time.monotonic()
    job = slurm.submit(run)
    slurm.wait_for_step(job, 5)
    status = slurm('on', 'ctl', 'launch/slurm/status.sh', job)
    assert re.search(rf'job {job} RUNNING \S+ n\[0-1\] {run}\n  step \d+, [\d.]+ images/s, loss [\d.]+', status), status
    slurm.wait_for_state(job, 'COMPLETED')
    print(f'\nundisturbed: {time.monotonic() - start:.1f} s')
    assert '2 x 2 cpu device(s) of 2 process(es)' in slurm.log(job)
    assert reached(run) == STEPS
    return run


def test_two_nodes_equal_one_process_with_two_devices(undisturbed, tmp_path):
    run_here(tmp_path / 'one', devices=2)
    assert_same_losses(tmp_path / 'one', undisturbed)


def test_other_processes_and_devices_go_on_with_the_same_training(slurm, undisturbed, tmp_path):
    """2 processes by mpirun, 1 with 4 devices, 2 nodes by Slurm until kill.sh, which saves and does not requeue."""
    run = tmp_path / 'run'
    said = run_here(run, '--config.train.steps=15', launcher=['launch/mpirun.sh', 'localhost:2'], **MPI)
    assert '2 x 2 cpu device(s) of 2 process(es)' in said
    said = run_here(run, '--config.train.steps=30', devices=4)
    assert 'at step 15' in said and '1 x 4 cpu device(s) of 1 process(es)' in said
    job = slurm.submit(run, '--config.train.steps=100000')
    slurm.wait_for_step(job, STEPS)
    assert 'at step 30' in slurm.log(job) and '2 x 2 cpu device(s) of 2 process(es)' in slurm.log(job)
    assert 'has saved and ended' in slurm('on', 'ctl', 'launch/slurm/kill.sh', job)
    assert slurm.state(job) == 'FAILED' and 'srun ended with 75' in slurm.log(job)
    step = int(re.search(r'SIGTERM: step (\d+) is saved', slurm.log(job)).group(1))
    state, position = saved(run, step)
    assert int(state.step) == step and position == {'global_next_index': 4 * step}  # no photo left out, none twice
    assert_same_losses(run, undisturbed)


def test_sigterm_and_preemption_change_nothing(slurm, undisturbed, tmp_path):
    run = tmp_path / 'run'
    job = slurm.submit(run)
    slurm.wait_for_step(job, 12)
    slurm('on', 'ctl', 'scancel', '--signal=TERM', job)
    print(f'\nSIGTERM: saved and requeued in {slurm.wait_for_state(job, "PENDING"):.1f} s')
    assert len(re.findall('SIGTERM: step \\d+ is saved', slurm.log(job))) == 1
    assert 'srun ended with 75' in slurm.log(job)
    slurm.start_again(job)
    slurm.wait_for_step(job, reached(run) + 8)
    start = time.monotonic()
    urgent = slurm(
        'on', 'ctl', 'sbatch', '--parsable', '-p', 'urgent', '-N', '2', '--exclusive', '-o', '/dev/null', '--wrap=true'
    )
    slurm.wait_for_state(int(urgent), 'COMPLETED')
    print(f'preemption: the urgent job had come and gone in {time.monotonic() - start:.1f} s')
    slurm.wait_for_state(job, 'PENDING')
    said = slurm.log(job)
    assert said.count('srun ended with 75') == 2, said
    stopped = [int(step) for step in re.findall(r'SIGTERM: step (\d+) is saved', said)]
    slurm.start_again(job)
    slurm.wait_for_state(job, 'COMPLETED')
    assert [int(step) for step in re.findall(r'resuming .* at step (\d+)', slurm.log(job))] == stopped
    assert_identical(saved(run, STEPS), saved(undisturbed, STEPS))


def rank_process(run, rank):
    """The process id of a rank of a run's job."""
    for process in Path('/proc').glob('[0-9]*'):
        try:
            words = (process / 'cmdline').read_bytes().split(b'\0')
            variables = (process / 'environ').read_bytes().split(b'\0')
        except OSError:
            continue
        is_ours = b'jaxcolor.main' in words and f'--workdir={run}'.encode() in words
        if is_ours and f'SLURM_PROCID={rank}'.encode() in variables:
            return int(process.name)
    raise AssertionError(f'no rank {rank} of {run}')


def last_saved(log):
    return max(int(step) for step in re.findall(r'saved step (\d+)', log))


def test_a_killed_rank_and_a_cut_cable_lose_nothing_that_was_saved(slurm, undisturbed, tmp_path):
    run = tmp_path / 'run'
    job = slurm.submit(run)
    slurm.wait_for_step(job, 12)
    os.kill(rank_process(run, 1), signal.SIGKILL)
    _, seconds = wait_until(lambda: 'srun ended with' in slurm.log(job), 15, 'the end of the step')
    slurm.wait_for_state(job, 'PENDING')
    print(f'\nSIGKILL of rank 1: all had ended in {seconds:.1f} s')
    before = last_saved(slurm.log(job))
    lost = reached(run) - before
    assert 'ends, as a step or a save of it failed' in slurm.log(job)
    slurm.start_again(job)
    slurm.wait_for_step(job, before + 12)
    resumed = int(re.findall(r'resuming .* at step (\d+)', slurm.log(job))[-1])
    assert resumed >= before
    print(f'  {lost} steps since the last checkpoint were made again')

    ranks = [rank_process(run, rank) for rank in (0, 1)]
    slurm('cut', 'n1')
    _, seconds = wait_until(lambda: not any(Path(f'/proc/{pid}').exists() for pid in ranks), 40, 'the end of both ranks')
    before = last_saved(slurm.log(job))
    seconds_more = slurm.wait_for_state(job, 'PENDING', 'REQUEUED', seconds=90)
    print(f'a cut cable: both processes had ended in {seconds:.1f} s, requeued in {seconds_more:.1f} s more')
    slurm('heal', 'n1')
    wait_until(lambda: 'idle' in slurm('on', 'ctl', 'sinfo', '-h', '-n', 'n1', '-p', 'batch', '-o', '%T'), 60, 'node n1')
    slurm.start_again(job)
    slurm.wait_for_state(job, 'COMPLETED')
    assert int(re.findall(r'resuming .* at step (\d+)', slurm.log(job))[-1]) >= before
    assert_identical(saved(run, STEPS), saved(undisturbed, STEPS))


def test_one_task_on_eight_gpus_is_refused_and_not_requeued(slurm, tmp_path):
    job = int(
        slurm(
            'on', 'ctl', 'sbatch', '--parsable', '--nodes=1', '--ntasks-per-node=1', '--gpus-per-node=8',
            f'--output={tmp_path}/slurm-%j.out', 'launch/slurm/train.sbatch', *RECIPE, f'--workdir={tmp_path / "run"}',
        )
    )  # fmt: skip
    slurm.jobs[job] = tmp_path
    slurm.wait_for_state(job, 'FAILED')
    assert 'this node has 8 GPUs for this job, and 1 process(es) on it would use 1' in slurm.log(job)
    assert not (tmp_path / 'run').exists()


def test_104_processes_know_who_and_where_they_are(tmp_path):
    """Without JAX: 104 of it are too much for this machine."""
    with Slurm(tmp_path / 'slurm', 13) as cluster:
        start = time.monotonic()
        job = cluster.submit(tmp_path / 'run', '--check', nodes=13, gpus=8)
        cluster.wait_for_state(job, 'COMPLETED')
        print(f'\n104 processes: {time.monotonic() - start:.1f} s')
        said = cluster.log(job)
    assert f'start 0 of job {job} on n[0-12]' in said
    assert {line for line in said.splitlines() if line.startswith('process')} == {
        f'process {rank} of 104 by Slurm on n{rank // 8}: GPU {rank % 8}' for rank in range(104)
    }


def test_killed_during_a_save_the_one_before_stands(tmp_path):
    """SIGKILL at five moments of the save of 100 MB: whole or not at all, and what a save left is cleaned up."""
    digests, whole, leftovers = {}, {}, 0
    for moment in (0.1, 0.3, 0.5, 0.7, 0.9):
        saver = subprocess.Popen(
            [sys.executable, ROOT / 'tests' / 'cluster' / 'save.py', tmp_path / 'run'],
            cwd=ROOT, env={**environment(), 'PYTHONPATH': str(ROOT)}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        for line in saver.stdout:
            said = json.loads(line)
            if 'restored' in said:  # what the life before this one saved
                assert said['digest'] == digests[said['restored']], said
                assert said['restored'] >= max(step for step, reported in whole.items() if reported), said
            if 'saving' in said:
                digests[said['saving']] = said['digest']
                if 'last_took' in said:
                    time.sleep(moment * said['last_took'])
                    break
        saver.kill()
        saver.wait()
        whole = {step: (tmp_path / 'run' / str(step)).exists() for step in digests}
        leftovers += len(list((tmp_path / 'run').glob('*.orbax-checkpoint-tmp')))
    print(f'\nfive kills during saves left {leftovers} unfinished folders')
    assert leftovers >= 1
    with Checkpoints(tmp_path / 'run') as checkpoints:
        assert whole[checkpoints.latest_step]
        wait_until(lambda: not list((tmp_path / 'run').glob('*tmp*')), 10, 'the clean-up, in the background,')


def test_the_jobset_is_valid_and_its_command_runs(tmp_path):
    import jsonschema
    import kubernetes_validate
    import yaml

    jobset = yaml.safe_load((ROOT / 'launch' / 'k8s' / 'jobset.yaml').read_text())
    jsonschema.validate(jobset, json.loads((ROOT / 'tests' / 'cluster' / 'jobset.schema.json').read_text()))
    (group,) = jobset['spec']['replicatedJobs']
    job = {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': 'workers'}, **group['template']}
    kubernetes_validate.validate(job, '1.30', strict=True)

    spec = job['spec']
    (container,) = spec['template']['spec']['containers']
    variables = {variable['name']: variable.get('value') for variable in container['env']}
    assert int(variables['NUM_PROCESSES']) == spec['parallelism'] == spec['completions']
    service = jobset['spec']['network']['subdomain']
    assert variables['COORDINATOR'].split(':')[0] == f'{jobset["metadata"]["name"]}-{group["name"]}-0-0.{service}'
    # As the two pods would run it, but for the host's name and the folders.
    variables['COORDINATOR'] = f'127.0.0.1:{20000 + os.getpid() % 10000}'
    pods = []
    for index in range(2):
        variables['PROCESS_ID'] = str(index)
        command = [re.sub(r'\$\((\w+)\)', lambda m: variables[m.group(1)], word) for word in container['command']]
        command = [word for word in command if not word.startswith(('--config=', '--config.data.shards='))]
        command = [word.replace('/runs/', f'{tmp_path}/') for word in command]
        command += [*RECIPE, '--config.train.steps=2']
        streams = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT}
        pods.append(subprocess.Popen(command, cwd=ROOT, env=environment(), text=True, **streams))
    said = [pod.communicate(timeout=120)[0] for pod in pods]
    assert [pod.returncode for pod in pods] == [0, 0], said
    assert '2 x 2 cpu device(s) of 2 process(es)' in said[0]
    assert reached(tmp_path / 'ltbc') == 2
