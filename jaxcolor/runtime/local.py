"""`jaxcolor train --processes=N`: the processes of a training on one machine, one for each GPU or share of them.

One process that feeds eight GPUs reads, crops and dispatches for all of them on one interpreter.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxcolor.errors import UserError
from jaxcolor.runtime import cluster

# Seconds that the others have to report and end by themselves after one has failed: `cluster.abort_on_error` takes 2.
_GRACE = 5
_STARTER = 'JAXCOLOR_STARTER'  # the end of a pipe that is read to its end when the process that started this one has ended


def device_ids(process: cluster.ProcessInfo) -> list[int]:
    """The GPUs that this process may use: those of JAX_LOCAL_DEVICE_IDS, or all that it sees."""
    return list(range(cluster.visible_gpus()) if process.local_device_ids is None else process.local_device_ids)


def count_processes(text: str, process: cluster.ProcessInfo, gpus: int) -> int:
    """How many processes `--processes` asks for.

    Args:
        text: 'auto', one for each GPU and one without; or a number.
        process: this one, of `cluster.detect_process`.
        gpus: that this process may use.

    Raises:
        UserError: it is neither, a launcher has started this process, or the GPUs cannot be divided evenly.
    """
    if process.launcher != 'none':
        raise UserError(
            f'--processes starts the processes of one machine, and {process.launcher} has started this one: leave it out.'
        )
    if text == 'auto':
        return max(1, gpus)
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--processes: {text!r} is neither 'auto' nor a number of processes.")
    if gpus % int(text):
        raise UserError(f'--processes={text} cannot share {gpus} GPUs evenly; take a divisor, or auto for {gpus}.')
    return int(text)


def environments(count: int, gpus: Sequence[int], environ: Mapping[str, str]) -> list[dict[str, str]]:
    """The environment of each of `count` processes: which of the GPUs it takes; all see all of them, as under Slurm."""
    each = len(gpus) // count
    shares = [','.join(map(str, gpus[i * each : (i + 1) * each])) for i in range(count)]
    return [{**environ, **({'JAX_LOCAL_DEVICE_IDS': share} if share else {})} for share in shares]


def run_processes(arguments: Sequence[str], count: int, gpus: Sequence[int]) -> int:
    """Runs `jaxcolor ARGUMENTS...` as `count` processes that train together, until all have ended.

    Process 0 writes to this process's output; of the others, only what they say when they fail first is shown. SIGTERM goes
    to all, so that they save. When one fails, all end; when this one is killed, they save and end.

    Args:
        arguments: of the command, which takes --coordinator-address, --num-processes and --process-id.
        count: at least 2.
        gpus: that they share.

    Returns:
        The exit status: that of the first process that failed, or 0.
    """
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    shared = [f'--coordinator-address=127.0.0.1:{port}', f'--num-processes={count}']
    with contextlib.ExitStack() as stack:
        outputs = [None, *(stack.enter_context(tempfile.TemporaryFile()) for _ in range(count - 1))]
        processes: list[subprocess.Popen[bytes]] = []
        read, write = os.pipe()
        for end in (read, write):
            stack.callback(os.close, end)
        stack.callback(_end, processes)
        stack.enter_context(_forwarded(signal.SIGTERM, processes))
        for i, environment in enumerate(environments(count, gpus, os.environ)):
            command = [sys.executable, '-m', 'jaxcolor', *arguments, *shared, f'--process-id={i}']
            environment[_STARTER] = str(read)
            out = outputs[i]
            processes.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out, pass_fds=[read]))
        failed = _first_failed(processes)
        if failed is None:
            return 0
        code = processes[failed].returncode
        _await_all(processes, None if code == cluster.EXIT_PREEMPTED else _GRACE)
        if processes[0].returncode != code:  # it has not said the same
            _show(failed, outputs[failed], code)
        return _status(code)


def end_with_starter() -> None:
    """In a process of `run_processes`: sends it SIGTERM when the one that started it ends, even by SIGKILL."""
    if (pipe := os.environ.pop(_STARTER, None)) is None:
        return

    def wait() -> None:
        os.read(int(pipe), 1)  # nobody writes
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def _forwarded(number, processes) -> Iterator[None]:
    """Passes a signal on to the processes that have been started."""

    def forward(signum: int, frame: Any) -> None:
        for process in processes:
            process.send_signal(signum)

    before = signal.signal(number, forward)
    try:
        yield
    finally:
        signal.signal(number, before)


def _first_failed(processes):
    """Waits until a process fails -> its number, or None when all have ended well."""
    while True:
        codes = [process.poll() for process in processes]
        for i, code in enumerate(codes):
            if code not in (None, 0):
                return i
        if None not in codes:
            return None
        time.sleep(0.05)


def _await_all(processes, seconds):
    """Waits until all have ended, but no longer than so many seconds; None waits on."""
    deadline = None if seconds is None else time.monotonic() + seconds
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))


def _end(processes):
    """Kills those that still run: a SIGTERM would have them wait for the one that is gone, to save together."""
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()


def _status(code):
    """The exit status of a process, as a shell has it where a signal ended it."""
    return 128 - code if code < 0 else code


def _show(number, output, code):
    """What a process other than 0 said last."""
    output.seek(0)
    lines = output.read().decode(errors='replace').splitlines()[-20:]
    print('\n'.join([*lines, f'jaxcolor: process {number} ended first, with status {_status(code)}']), file=sys.stderr)
