"""A private Slurm cluster for the tests of `pytest -m cluster`, and a tiny training to run on it."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from conftest import FLAGS, ROOT
from helpers import TINY

from jaxcolor import tasks
from jaxcolor.runtime import logs
from jaxcolor.runtime.checkpoint import Checkpoints, abstract
from jaxcolor.weights import runs

STEPS = 120  # of a job on the cluster: a signal takes 2 s to come, in which a fast machine makes 40
COMPARED = 45  # of them, between different numbers of processes and devices
RECIPE = [
    *TINY,
    '--config.train.eval_splits=()',
    '--config.train.checkpoint_every=10',
    '--config.train.heartbeat=10',
    '--config.model.batch_norm=False',
    '--config.optimizer.schedule=constant',
]


def environment(devices=1):
    flags = f'{FLAGS} --xla_force_host_platform_device_count={devices}'
    return {**os.environ, 'XLA_FLAGS': flags, 'PYTHON': sys.executable, 'USER': 'root'}


def wait_until(condition, seconds, what):
    """Waits for `condition()` to be true -> its result, and the seconds that took."""
    start = time.monotonic()
    while not (result := condition()):
        if time.monotonic() - start > seconds:
            raise AssertionError(f'{what}: not within {seconds} s')
        time.sleep(0.1)
    return result, time.monotonic() - start


class Slurm:
    """The cluster of `tests/runtime/cluster/slurm.sh`, which runs as long as the context."""

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
            [ROOT / 'tests' / 'runtime' / 'cluster' / 'slurm.sh', *map(str, command)],
            cwd=ROOT,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f'{command}: {done.stdout}{done.stderr}'
        return done.stdout

    def submit(self, run, *flags, nodes=2, gpus=1):
        """-> the job's number"""
        output = self(
            'on',
            'ctl',
            'launch/slurm/submit.sh',
            f'--nodes={nodes}',
            f'--gpus={gpus}',
            '--time=10',
            *RECIPE,
            f'--config.train.steps={STEPS}',
            f'--workdir={run}',
            *flags,
        )
        job = int(re.search(r'^job: +(\d+) ', output, re.M).group(1))
        assert f'log:  {run}/slurm-{job}.out' in output and f'stop: launch/slurm/kill.sh {job}' in output
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
        """Starts a requeued job, which Slurm would hold for 121 s. Within 2 s slurmd would refuse its number."""
        time.sleep(3)
        self('on', 'ctl', 'scontrol', 'update', f'jobid={job}', 'StartTime=now')


def reached(run):
    """The last step in metrics.jsonl, 0 where there is none."""
    return max((row['step'] for row in logs.read_metrics(run)), default=0)


def losses(run):
    """{step: loss}, without the lines that are means over two steps, which come before a save."""
    rows = {row['step']: row['loss'] for row in logs.read_metrics(run) if 'loss' in row}
    return {step: loss for step, loss in rows.items() if step == 1 or step - 1 in rows}


def saved(run, step):
    """The whole state of a checkpoint, on the host."""
    shapes = jax.eval_shape(tasks.build(runs.read_config(run)).init, jax.random.PRNGKey(0))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with Checkpoints(Path(run) / 'checkpoints', read_only=True) as checkpoints:
        return jax.device_get(checkpoints.restore(step, abstract(shapes, sharding)))


def assert_same_losses(run, reference):
    """Equal to rounding, which grows from step to step (to 3e-2 at the last step when this was written).

    With other photos, losses would differ by half.
    """
    run, reference = losses(run), losses(reference)
    shared = [step for step in run if step in reference and step <= COMPARED]
    assert len(shared) > 0.6 * COMPARED
    for step in shared:
        assert run[step] == pytest.approx(reference[step], rel=2e-4 if step <= COMPARED / 2 else 5e-2), step


def train_undisturbed(slurm, run):
    """Trains over 2 nodes without an interruption."""
    start = time.monotonic()
    job = slurm.submit(run)
    slurm.wait_for_step(job, 5)
    status = slurm('on', 'ctl', 'launch/slurm/status.sh', job)
    assert re.search(rf'job {job} RUNNING \S+ n\[0-1\] {run}\n  step \d+, [\d.]+ images/s, loss [\d.]+', status), status
    slurm.wait_for_state(job, 'COMPLETED')
    print(f'\nundisturbed: {time.monotonic() - start:.1f} s')
    assert '2 x 2 cpu device(s) of 2 process(es)' in slurm.log(job)
    assert reached(run) == STEPS
