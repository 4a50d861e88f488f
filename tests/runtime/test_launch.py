"""What `launch/` starts: 104 processes, a launch that is refused, the JobSet:  pytest -m cluster"""

import json
import os
import re
import subprocess
import time

import pytest
from conftest import ROOT
from slurm_cluster import RECIPE, Slurm, environment, reached

pytestmark = pytest.mark.cluster


def test_one_task_on_eight_gpus_is_refused_and_not_requeued(slurm, tmp_path):
    job = int(
        slurm(
            'on',
            'ctl',
            'sbatch',
            '--parsable',
            '--nodes=1',
            '--ntasks-per-node=1',
            '--gpus-per-node=8',
            f'--output={tmp_path}/slurm-%j.out',
            'launch/slurm/train.sbatch',
            *RECIPE,
            f'--workdir={tmp_path / "run"}',
        )
    )
    slurm.jobs[job] = tmp_path
    slurm.wait_for_state(job, 'FAILED')
    assert 'this node has 8 GPUs for this job, and 1 process(es) on it would use 1' in slurm.log(job)
    assert not (tmp_path / 'run').exists()


def test_104_processes_detect_their_index_and_gpu(tmp_path):
    """Without JAX, of which 104 processes are too much for this machine."""
    with Slurm(tmp_path / 'slurm', 13) as cluster:
        start = time.monotonic()
        job = cluster.submit(tmp_path / 'run', '--check', nodes=13, gpus=8)
        cluster.wait_for_state(job, 'COMPLETED')
        print(f'\n104 processes: {time.monotonic() - start:.1f} s')
        output = cluster.log(job)
    assert f'start 0 of job {job} on n[0-12]' in output
    assert {line for line in output.splitlines() if line.startswith('process')} == {
        f'process {rank} of 104 by Slurm on n{rank // 8}: GPU {rank % 8}' for rank in range(104)
    }


def test_the_jobset_is_valid_and_its_command_runs(tmp_path):
    import jsonschema
    import kubernetes_validate
    import yaml

    jobset = yaml.safe_load((ROOT / 'launch' / 'k8s' / 'jobset.yaml').read_text())
    jsonschema.validate(jobset, json.loads((ROOT / 'tests' / 'runtime' / 'cluster' / 'jobset.schema.json').read_text()))
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
    output = [pod.communicate(timeout=120)[0] for pod in pods]
    assert [pod.returncode for pod in pods] == [0, 0], output
    assert '2 x 2 cpu device(s) of 2 process(es)' in output[0]
    assert reached(tmp_path / 'ltbc') == 2
