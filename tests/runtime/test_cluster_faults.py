"""Processes that are killed, during a save too, and a cable that is cut:  pytest -m cluster"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from helpers import assert_identical
from slurm_cluster import STEPS, environment, reached, saved, wait_until

from jaxcolor.runtime.checkpoint import Checkpoints

pytestmark = pytest.mark.cluster


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
    wait_until(lambda: 'saved step 10' in slurm.log(job), 90, 'the first checkpoint')
    os.kill(rank_process(run, 1), signal.SIGKILL)
    _, seconds = wait_until(lambda: 'srun ended with' in slurm.log(job), 15, 'the end of the step')
    slurm.wait_for_state(job, 'PENDING')
    print(f'\nSIGKILL of rank 1: all had ended in {seconds:.1f} s')
    before = last_saved(slurm.log(job))
    lost = reached(run) - before
    assert 'exits: a step or a save failed' in slurm.log(job)
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


def test_killed_during_a_save_the_one_before_stands(tmp_path):
    """SIGKILL at five moments of the save of 100 MB: whole or not at all, and what a save left is cleaned up."""
    digests, whole, leftovers = {}, {}, 0
    for moment in (0.1, 0.3, 0.5, 0.7, 0.9):
        saver = subprocess.Popen(
            [sys.executable, ROOT / 'tests' / 'runtime' / 'cluster' / 'save.py', tmp_path / 'run'],
            cwd=ROOT,
            env={**environment(), 'PYTHONPATH': str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for line in saver.stdout:
            message = json.loads(line)
            if 'restored' in message:  # what the life before this one saved
                assert message['digest'] == digests[message['restored']], message
                assert message['restored'] >= max(step for step, reported in whole.items() if reported), message
            if 'saving' in message:
                digests[message['saving']] = message['digest']
                if 'last_took' in message:
                    time.sleep(moment * message['last_took'])
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
