"""Training through a real Slurm and Open MPI:  pytest -m cluster --dist=loadfile

Needs root and Debian's slurmctld, slurmd, slurm-client, munge, openmpi-bin and iproute2. What is measured is printed
with -n 0 -s; launch/README.md has a table of it.
"""

import csv
import re
import shutil
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from helpers import assert_identical
from slurm_cluster import (
    COMPARED,
    RECIPE,
    STEPS,
    assert_same_losses,
    environment,
    reached,
    saved,
    wait_until,
)

pytestmark = pytest.mark.cluster


MPI = {'OMPI_ALLOW_RUN_AS_ROOT': '1', 'OMPI_ALLOW_RUN_AS_ROOT_CONFIRM': '1', 'HWLOC_COMPONENTS': '-gl'}


def run_here(run, *flags, devices=1, launcher=(), **environ):
    """Trains on this machine, without Slurm -> its stderr."""
    command = [*launcher] or [sys.executable, '-m', 'jaxcolor.main']
    done = subprocess.run(
        [*command, *RECIPE, f'--config.train.steps={COMPARED}', f'--workdir={run}', *flags],
        cwd=ROOT,
        env={**environment(devices), **environ},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_two_nodes_equal_one_process_with_two_devices(undisturbed, tmp_path):
    run_here(tmp_path / 'one', devices=2)
    assert_same_losses(tmp_path / 'one', undisturbed)


def test_other_processes_and_devices_go_on_with_the_same_training(slurm, undisturbed, tmp_path):
    """2 processes by mpirun, 1 with 4 devices, 2 nodes by Slurm until kill.sh, which saves and does not requeue."""
    run = tmp_path / 'run'
    output = run_here(run, '--config.train.steps=15', launcher=['launch/mpirun.sh', 'localhost:2'], **MPI)
    assert '2 x 2 cpu device(s) of 2 process(es)' in output
    output = run_here(run, '--config.train.steps=30', devices=4)
    assert 'at step 15' in output and '1 x 4 cpu device(s) of 1 process(es)' in output
    job = slurm.submit(run, '--config.train.steps=100000')
    slurm.wait_for_step(job, COMPARED)
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
    output = slurm.log(job)
    assert output.count('srun ended with 75') == 2, output
    stopped = [int(step) for step in re.findall(r'SIGTERM: step (\d+) is saved', output)]
    slurm.start_again(job)
    slurm.wait_for_state(job, 'COMPLETED')
    assert [int(step) for step in re.findall(r'resuming .* at step (\d+)', slurm.log(job))] == stopped
    assert_identical(saved(run, STEPS), saved(undisturbed, STEPS))


@pytest.mark.slow
def test_a_sweep_is_trained_as_an_array_and_tabulated(slurm, tmp_path, command):
    sweep = tmp_path / f'sweep-{tmp_path.name}.txt'
    line = ' '.join([*RECIPE, "--config.train.eval_splits=('train',)", '--config.train.steps=8'])
    sweep.write_text(f'# Two rates.\n{line}\n{line} --config.optimizer.learning_rate=1e-3\n')
    out = ROOT / 'runs' / sweep.stem
    try:
        options = ('--array=1-2', '--ntasks-per-node=1', '--gpus-per-node=1', '--time=5', f'--output={tmp_path}/%a.out')
        job = slurm('on', 'ctl', 'sbatch', '--parsable', *options, 'launch/slurm/array.sbatch', sweep).strip()
        wait_until(lambda: job not in slurm('on', 'ctl', 'squeue', '--noheader', '--format=%A %F'), 120, 'the end of all')
        code, output, err = command('sweep', sweep, f'--out={out}', '--collect')
        assert code == 0, err
        with open(out / 'table.csv', encoding='utf-8') as file:
            rows = [row for row in csv.DictReader(file) if row['number']]
        assert [row['result'] for row in rows] == ['of train'] * 2, (tmp_path / '1.out').read_text()
        assert rows[0]['psnr'] != rows[1]['psnr'] and rows[0]['steps'] == '8'
        # Nothing is left to train.
        assert command('sweep', sweep, f'--out={out}')[1].splitlines()[:2] == output.splitlines()[:2]
    finally:
        shutil.rmtree(out, ignore_errors=True)
