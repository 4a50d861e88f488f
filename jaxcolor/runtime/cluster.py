"""Training by several processes: which one this is, joining the others, agreeing with them, exiting.

    python -m jaxcolor.runtime.cluster

prints what the launcher told this process, and refuses a launch that would leave GPUs unused. That command must not start
JAX, so JAX is imported inside the functions that use it.
"""

import contextlib
import dataclasses
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcolor.errors import UserError, one_line_errors

# Exit codes, from sysexits.h. After 1, a UserError, starting again would not help.
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: a checkpoint is saved, start again
EXIT_FAULT = 70  # EX_SOFTWARE: a step failed, for instance because another process died

# Seconds: the heartbeat timeout of a single process, which may sleep (a closed laptop, a stopped shell).
_NO_TIMEOUT = 10**8


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
    """Which process of how many this one is, as the launcher told it."""

    launcher: str  # 'Slurm', 'Open MPI', 'flags' or 'none'
    index: int  # of this process
    count: int  # of processes
    coordinator: str | None = None  # HOST:PORT of process 0; None: JAX asks the launcher
    local_device_ids: tuple[int, ...] | None = None  # of the devices it sees, the ones it uses; None: all
    processes_on_node: int | None = None  # None: unknown


def detect_process(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    environ: Mapping[str, str] | None = None,
) -> ProcessInfo:
    """Detects which process this is, from the command's flags or from the variables of Open MPI or Slurm.

    Args:
        coordinator: --coordinator_address, HOST:PORT of process 0.
        count: --num_processes.
        index: --process_id.
        environ: the environment, `os.environ` by default.

    Raises:
        UserError: only some of the flags are given, or the index is out of range.
    """
    environ = os.environ if environ is None else environ
    coordinator = coordinator or environ.get('JAX_COORDINATOR_ADDRESS')
    chosen = environ.get('JAX_LOCAL_DEVICE_IDS')
    device_ids = tuple(int(number) for number in chosen.split(',')) if chosen else None
    if count is not None or index is not None:
        if count is None or index is None or not coordinator:
            raise UserError('--coordinator_address=HOST:PORT, --num_processes and --process_id go together: give all.')
        if not 0 <= index < count:
            raise UserError(f'--process_id is {index}: with --num_processes={count} it counts from 0 to {count - 1}.')
        return ProcessInfo('flags', index, count, coordinator, device_ids)
    # Open MPI first: under Slurm its daemons are Slurm tasks, and all ranks of a node inherit the variables of one task.
    if 'OMPI_COMM_WORLD_SIZE' in environ:
        if not coordinator and 'OMPI_MCA_orte_hnp_uri' not in environ:
            raise UserError('set JAX_COORDINATOR_ADDRESS=HOST:PORT, of the host of rank 0: this Open MPI does not tell it.')
        rank, size, local_rank, local_size = (
            int(environ[f'OMPI_COMM_WORLD_{name}']) for name in ('RANK', 'SIZE', 'LOCAL_RANK', 'LOCAL_SIZE')
        )
        return ProcessInfo('Open MPI', rank, size, coordinator, device_ids or (local_rank,), local_size)
    if 'SLURM_STEP_NODELIST' in environ and 'SLURM_PROCID' in environ:
        tasks_per_node = _expand(environ['SLURM_STEP_TASKS_PER_NODE'])
        return ProcessInfo(
            'Slurm',
            int(environ['SLURM_PROCID']),
            int(environ['SLURM_STEP_NUM_TASKS']),
            coordinator,
            device_ids or (int(environ['SLURM_LOCALID']),),
            tasks_per_node[int(environ['SLURM_NODEID'])],
        )
    return ProcessInfo('none', 0, 1, None, device_ids)


def check_launch(
    process: ProcessInfo, environ: Mapping[str, str] | None = None, gpu_files: Sequence[Any] | None = None
) -> None:
    """Refuses a launch that would leave GPUs unused.

    Args:
        process: of `detect_process`.
        environ: the environment, `os.environ` by default.
        gpu_files: one for each GPU of this node, /dev/nvidia0, ... by default.

    Raises:
        UserError: the processes of this node would use fewer GPUs than the job has there, or this is Slurm's batch script
            instead of a task.
    """
    environ = os.environ if environ is None else environ
    if process.launcher == 'none' and int(environ.get('SLURM_NTASKS', 1)) > 1:
        raise UserError(
            f'this Slurm job has {environ["SLURM_NTASKS"]} tasks, and this process is none of them: '
            'start it by srun, as launch/slurm/train.sbatch does.'
        )
    on_node, device_ids = process.processes_on_node, process.local_device_ids
    if on_node is None or device_ids is None:
        return
    gpus, visible = _gpus(environ, gpu_files)
    if gpus and max(device_ids) >= visible:
        raise UserError(
            f'process {process.index} is to use GPU {max(device_ids)} of its node but sees {visible}: '
            'let all processes of a node see all its GPUs (--gpus-per-node, not --gpus-per-task).'
        )
    used = on_node * len(device_ids)
    if used < gpus:
        raise UserError(
            f'this node has {gpus} GPUs for this job, and {on_node} process(es) on it would use {used}: start '
            f'{gpus} a node (--ntasks-per-node={gpus}), or set JAX_LOCAL_DEVICE_IDS to the GPUs of each process.'
        )


def visible_gpus() -> int:
    """The number of GPUs that this process sees."""
    return _gpus(os.environ)[1]


def join(process: ProcessInfo, heartbeat: int) -> None:
    """Connects to the other processes. Call it before any other use of JAX.

    From then on SIGTERM does not end the process: it makes `is_preempted` true, at the same step in all processes.

    Args:
        process: of `detect_process`.
        heartbeat: seconds of silence after which a process counts as dead and the others exit. A single process has no
            limit.

    Raises:
        UserError: `check_launch` refuses; there are GPUs that JAX cannot use; the processes have different numbers of
            devices.
    """
    import jax

    check_launch(process)
    if heartbeat < 1:
        raise UserError(f'train.heartbeat must be at least 1 second, not {heartbeat}.')
    coordinator, bind = process.coordinator, None
    if process.launcher == 'none':
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            coordinator = f'127.0.0.1:{free.getsockname()[1]}'
    if coordinator and coordinator.startswith('127.'):
        bind = coordinator  # and not on all interfaces
    method = {'Slurm': 'slurm', 'Open MPI': 'ompi'}.get(process.launcher) if coordinator is None else 'deactivate'
    jax.distributed.initialize(
        coordinator_address=coordinator,
        num_processes=process.count,
        process_id=process.index,
        local_device_ids=process.local_device_ids,
        cluster_detection_method=method,
        coordinator_bind_address=bind,
        heartbeat_timeout_seconds=heartbeat if process.count > 1 else _NO_TIMEOUT,
    )
    if _gpus(os.environ)[0] and jax.default_backend() == 'cpu' and 'cpu' not in os.environ.get('JAX_PLATFORMS', ''):
        raise UserError("there are GPUs and this JAX has no CUDA: pip install 'jaxcolor[cuda]', or set JAX_PLATFORMS=cpu.")
    if jax.device_count() != jax.local_device_count() * process.count:
        raise UserError(
            f'{process.count} processes have {jax.device_count()} devices, and this one {jax.local_device_count()}: '
            'every process must have the same number.'
        )


def is_preempted(step: int) -> bool:
    """Whether any process got a SIGTERM: save this step and exit with EXIT_PREEMPTED. Ask at every step."""
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


def barrier(name: str) -> None:
    """Waits until every process has reached this barrier."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def broadcast(number: int) -> int:
    """The number of process 0, on every process."""
    import jax
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(number)) if jax.process_count() > 1 else number


def all_true(condition: bool) -> bool:
    """Whether the condition is true on every process."""
    import jax
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(condition).all()) if jax.process_count() > 1 else condition


def run_on_main(function: Callable[..., Any], *arguments: Any) -> None:
    """Calls `function(*arguments)` on process 0; the others wait for it.

    Raises:
        UserError: on all processes, if the function raises one.
    """
    import jax

    failure = None
    if jax.process_index() == 0:
        try:
            function(*arguments)
        except UserError as error:
            failure = error
    if not all_true(failure is None):
        raise failure or UserError('process 0 failed; see its error.')


@contextlib.contextmanager
def abort_on_error(process: ProcessInfo) -> Iterator[None]:
    """With several processes, reports an exception and exits the process at once. A single process just raises it.

    A normal exit would wait in JAX for all other processes to exit, and one may be dead or waiting for this one.
    """
    try:
        yield
    except BaseException as error:
        if process.count == 1 or isinstance(error, SystemExit):
            raise
        if isinstance(error, UserError):
            print(f'jaxcolor: error: {error}', file=sys.stderr)
            code = 1
            if process.index == 0:
                time.sleep(2)  # the exit of process 0 aborts the others, which may be about to report the same error
        else:
            traceback.print_exc()
            cause = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
            print(
                f'jaxcolor: process {process.index} of {process.count} ({socket.gethostname()}) exits: a step or a save '
                f'failed, most likely because another process died: {cause}',
                file=sys.stderr,
            )
            code = EXIT_FAULT
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _expand(counts: str) -> list[int]:
    """Slurm's '8(x2),4' -> [8, 8, 4]"""
    groups = re.findall(r'(\d+)(?:\(x(\d+)\))?', counts)
    return [int(count) for count, repeats in groups for _ in range(int(repeats or 1))]


def _gpus(environ: Mapping[str, str], gpu_files: Sequence[Any] | None = None) -> tuple[int, int]:
    """The number of GPUs that this job may use on this node, and how many of them this process sees."""
    if gpu_files is None:
        gpu_files = [path for path in Path('/dev').glob('nvidia*') if path.name[6:].isdigit()]
    if environ.get('JAX_PLATFORMS') == 'cpu':
        gpu_files = []
    cuda_devices = environ.get('CUDA_VISIBLE_DEVICES')
    visible = len(gpu_files) if cuda_devices is None else len([name for name in cuda_devices.split(',') if name])
    return int(environ.get('SLURM_GPUS_ON_NODE', visible)), visible


@one_line_errors
def main() -> None:
    """Prints one line: which process this is, on which host, with which GPUs."""
    process = detect_process()
    check_launch(process)
    names = os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',')
    gpus = ','.join(names[number] for number in process.local_device_ids or ()) if names != [''] else 'none'
    where = f'by {process.launcher} on {socket.gethostname()}'
    print(f'process {process.index} of {process.count} {where}: GPU {gpus}', flush=True)


if __name__ == '__main__':
    main()
