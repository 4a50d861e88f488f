"""Clusters: which of how many processes this one is, joining them, and leaving: preempted, or because a peer died.

    python -m jaxcolor.runtime.cluster

says, without starting JAX, what the launcher gave this process, and refuses what would leave GPUs unused.
"""

import contextlib
import dataclasses
import os
import re
import socket
import sys
import time
import traceback
from pathlib import Path

from jaxcolor.errors import UserError, one_line_errors

# Exit codes, from sysexits.h. 1, a UserError, is for the user to mend: starting again would not help.
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: everything is saved, start me again
EXIT_FAULT = 70  # EX_SOFTWARE: a step failed, for instance since a peer died


@dataclasses.dataclass(frozen=True)
class Place:
    """A process among its peers."""

    engine: str  # 'Slurm', 'Open MPI', 'flags' or 'none'
    index: int  # of this process
    count: int  # of processes
    coordinator: str | None = None  # HOST:PORT of process 0; None: JAX knows how to ask the engine
    devices: tuple[int, ...] | None = None  # of those that the process sees, the ones it takes; None: all
    on_node: int | None = None  # processes on this node; None: unknown


def find_place(coordinator=None, count=None, index=None, environ=None) -> Place:
    """Where this process stands: from the flags of main.py, or else from what Open MPI or Slurm put into the environment.

    Raises:
        UserError: only some of the flags are given, or they make no sense.
    """
    environ = os.environ if environ is None else environ
    coordinator = coordinator or environ.get('JAX_COORDINATOR_ADDRESS')
    own = environ.get('JAX_LOCAL_DEVICE_IDS')
    own = tuple(int(number) for number in own.split(',')) if own else None
    if count is not None or index is not None:
        if count is None or index is None or not coordinator:
            raise UserError('--coordinator_address=HOST:PORT, --num_processes and --process_id go together: give all.')
        if not 0 <= index < count:
            raise UserError(f'--process_id is {index}: with --num_processes={count} it counts from 0 to {count - 1}.')
        return Place('flags', index, count, coordinator, own)
    # Open MPI first: below Slurm its daemons are Slurm's tasks, and all ranks of a node inherit what one task was told.
    if 'OMPI_COMM_WORLD_SIZE' in environ:
        if not coordinator and 'OMPI_MCA_orte_hnp_uri' not in environ:
            raise UserError('set JAX_COORDINATOR_ADDRESS=HOST:PORT, of the host of rank 0: this Open MPI does not tell it.')
        place = [int(environ[f'OMPI_COMM_WORLD_{name}']) for name in ('RANK', 'SIZE')]
        local, on_node = (int(environ[f'OMPI_COMM_WORLD_LOCAL_{name}']) for name in ('RANK', 'SIZE'))
        return Place('Open MPI', *place, coordinator, own or (local,), on_node)
    if 'SLURM_STEP_NODELIST' in environ and 'SLURM_PROCID' in environ:
        tasks = _expand(environ['SLURM_STEP_TASKS_PER_NODE'])
        return Place(
            'Slurm',
            int(environ['SLURM_PROCID']),
            int(environ['SLURM_STEP_NUM_TASKS']),
            coordinator,
            own or (int(environ['SLURM_LOCALID']),),
            tasks[int(environ['SLURM_NODEID'])],
        )
    return Place('none', 0, 1, None, own)


def check_launch(place: Place, environ=None, gpu_files=None) -> None:
    """Refuses a launch that would leave GPUs unused and not say so.

    Raises:
        UserError: the processes of this node take fewer GPUs than it has for them; or this is Slurm's batch script, and
            no task of a step.
    """
    environ = os.environ if environ is None else environ
    if place.engine == 'none' and int(environ.get('SLURM_NTASKS', 1)) > 1:
        raise UserError(
            f'this Slurm job has {environ["SLURM_NTASKS"]} tasks, and this process is none of them: '
            'start it by srun, as launch/slurm/train.sbatch does.'
        )
    if place.on_node is None:
        return
    gpus, visible = _gpus(environ, gpu_files)
    if gpus and max(place.devices) >= visible:
        raise UserError(
            f'process {place.index} is to take GPU {max(place.devices)} of its node and sees {visible}: '
            'let all processes of a node see all its GPUs (--gpus-per-node, not --gpus-per-task).'
        )
    used = place.on_node * len(place.devices)
    if used < gpus:
        raise UserError(
            f'this node has {gpus} GPUs for this job, and {place.on_node} process(es) on it would use {used}: start '
            f'{gpus} a node (--ntasks-per-node={gpus}), or set JAX_LOCAL_DEVICE_IDS to the GPUs that each is to take.'
        )


# Seconds: the heartbeat of a process without peers.
_ALONE = 10**8


def join(place: Place, heartbeat: int) -> None:
    """Joins the other processes, before anything else is asked of JAX. From here on SIGTERM does not end this process:
    it makes `is_preempted` true, at the same step in all of them.

    Args:
        heartbeat: seconds without a sign of life after which a process counts as dead, and the others end. A process alone
            may sleep as long as it likes: in a laptop that is closed, in a shell that stopped it.

    Raises:
        UserError: `check_launch` refuses; there are GPUs, and JAX cannot use them; processes have unlike devices.
    """
    import jax

    check_launch(place)
    if heartbeat < 1:
        raise UserError(f'train.heartbeat must be at least 1 second, not {heartbeat}.')
    coordinator, bind = place.coordinator, None
    if place.engine == 'none':
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            coordinator = bind = f'127.0.0.1:{free.getsockname()[1]}'
    method = {'Slurm': 'slurm', 'Open MPI': 'ompi'}.get(place.engine) if coordinator is None else 'deactivate'
    jax.distributed.initialize(
        coordinator_address=coordinator,
        num_processes=place.count,
        process_id=place.index,
        local_device_ids=place.devices,
        cluster_detection_method=method,
        coordinator_bind_address=bind,
        heartbeat_timeout_seconds=heartbeat if place.count > 1 else _ALONE,
    )
    if _gpus(os.environ)[0] and jax.default_backend() == 'cpu' and 'cpu' not in os.environ.get('JAX_PLATFORMS', ''):
        raise UserError("there are GPUs and this JAX has no CUDA: pip install 'jaxcolor[cuda]', or set JAX_PLATFORMS=cpu.")
    if jax.device_count() != jax.local_device_count() * place.count:
        raise UserError(
            f'{place.count} processes have {jax.device_count()} devices, and this one {jax.local_device_count()}: '
            'every process must have as many.'
        )


def is_preempted(step: int) -> bool:
    """Whether to save this step and leave with EXIT_PREEMPTED, SIGTERM having come to any process. Ask at every step."""
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


def wait_for_all(why: str) -> None:
    """Waits until every process is here."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(why)


def from_first(number: int) -> int:
    """Process 0's number, on every process."""
    import jax
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(number)) if jax.process_count() > 1 else number


def all_say(yes: bool) -> bool:
    """Whether every process says yes."""
    import jax
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(yes).all()) if jax.process_count() > 1 else yes


def on_first(function, *arguments) -> None:
    """Calls a function on process 0 alone; the others wait.

    Raises:
        UserError: on all processes, when the function raises one.
    """
    import jax

    failure = None
    if jax.process_index() == 0:
        try:
            function(*arguments)
        except UserError as error:
            failure = error
    if not all_say(failure is None):
        raise failure or UserError('process 0 says what is wrong.')


@contextlib.contextmanager
def leaves_at_once(place: Place):
    """Where there are peers, an exception is told and ends the process here and now.

    At an ordinary exit JAX waits for all peers to come to theirs, and one may be dead, or waiting for this one.
    """
    try:
        yield
    except BaseException as error:
        if place.count == 1 or isinstance(error, SystemExit):
            raise
        if isinstance(error, UserError):
            print(f'jaxcolor: error: {error}', file=sys.stderr)
            code = 1
            if place.index == 0:
                time.sleep(2)  # its end aborts its peers, who may be about to say the same and to end with the same code
        else:
            traceback.print_exc()
            cause = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
            print(
                f'jaxcolor: process {place.index} of {place.count} ({socket.gethostname()}) ends, as a step or a save of '
                f'it failed, most likely since another process died: {cause}',
                file=sys.stderr,
            )
            code = EXIT_FAULT
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _expand(counts: str) -> list[int]:
    """Slurm's '8(x2),4' -> [8, 8, 4]"""
    found = re.findall(r'(\d+)(?:\(x(\d+)\))?', counts)
    return [int(count) for count, times in found for _ in range(int(times or 1))]


def _gpus(environ, gpu_files=None) -> tuple[int, int]:
    """GPUs that this job may use on this node, and those of them that this process sees."""
    if gpu_files is None:
        gpu_files = [path for path in Path('/dev').glob('nvidia*') if path.name[6:].isdigit()]
    if environ.get('JAX_PLATFORMS') == 'cpu':
        gpu_files = []  # nobody asked for them
    visible = environ.get('CUDA_VISIBLE_DEVICES')
    visible = len(gpu_files) if visible is None else len([name for name in visible.split(',') if name])
    return int(environ.get('SLURM_GPUS_ON_NODE', visible)), visible


@one_line_errors
def main():
    """Prints one line: which process this is, where, on which GPUs."""
    place = find_place()
    check_launch(place)
    names = os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',')
    gpus = ','.join(names[number] for number in place.devices or ()) if names != [''] else 'none'
    print(f'process {place.index} of {place.count} by {place.engine} on {socket.gethostname()}: GPU {gpus}', flush=True)


if __name__ == '__main__':
    main()
