"""Makes shards in worker processes. They end with the command, however it ends."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from jaxcolor.errors import UserError
from jaxcolor.prepare.selection import Options
from jaxcolor.prepare.shard_tasks import ShardTask, make_shard

_POLL_SECONDS = 0.2  # between two looks at the workers' counter
_counter = None  # in a worker: of photos, shared by all workers


def make_shards(
    tasks: Iterator[ShardTask], out: Path, options: Options, workers: int, on_photos: Callable[[int], object]
) -> None:
    """Makes the shards of `tasks`, several at a time.

    Args:
        tasks: consumed one shard ahead of the workers.
        out: the folder of the set.
        options: of the set.
        workers: processes; 0 or 1 works in this one.
        on_photos: called with the number of candidates processed since its last call.

    Raises:
        UserError: a shard cannot be written, or a worker was killed.
    """
    if workers <= 1:
        for task in tasks:
            make_shard(out, task, options, lambda: on_photos(1))
        return
    with _interrupts_collected() as interrupts, _pool(workers) as (pool, counter):
        pending: set[Future[None]] = set()
        reported = 0
        while True:
            if interrupts:
                raise KeyboardInterrupt
            # At most one shard ahead of the workers, since a stream's photos wait on the disk.
            for task in itertools.islice(tasks, max(0, workers + 1 - len(pending))):
                with _interrupts_blocked():
                    pending.add(pool.submit(_work, out, task, options))
            if not pending:
                break
            done, pending = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
            count = counter.value
            on_photos(count - reported)
            reported = count
            for future in done:
                future.result()


@contextlib.contextmanager
def _pool(workers):
    """Yields a process pool and its workers' counter of photos. An exception ends the workers at once."""
    context = multiprocessing.get_context('spawn')  # a fork would not survive JAX's threads
    counter = context.Value('q', 0)
    receiver, sender = context.Pipe(duplex=False)
    with receiver, sender, ProcessPoolExecutor(workers, context, _start_worker, (receiver, counter)) as pool:
        try:
            yield pool, counter.get_obj()  # read without the lock, which a killed worker may hold
        except BrokenProcessPool:
            raise UserError(
                'a worker process was killed (out of memory?); run the same command again, maybe with fewer --workers'
            ) from None
        except BaseException:
            sender.close()  # ends the workers; otherwise the pool waits for their shards
            raise


@contextlib.contextmanager
def _interrupts_collected():
    """Yields a list that grows with each Ctrl-C, to be looked at where it is safe to stop.

    Raised wherever it strikes, a KeyboardInterrupt would be lost inside a callback of the garbage collector (JAX has one).
    """
    interrupts: list[bool] = []
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        yield interrupts  # only the main thread may set handlers; a job in the background ignores Ctrl-C
        return
    handler = signal.signal(signal.SIGINT, lambda *_: interrupts.append(True))
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, handler)
    if interrupts:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _interrupts_blocked():
    """Blocks Ctrl-C in processes that are started inside: one that is still importing would print a traceback."""
    if not hasattr(signal, 'pthread_sigmask'):
        yield  # Windows has no masks
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _start_worker(receiver, counter):
    """Sets up a worker process. It exits when the sender closes: the parent closes it, or dies."""
    global _counter
    _counter = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to workers, too; the parent ends them
    threading.Thread(target=_exit_when_closed, args=(receiver,), daemon=True).start()


def _exit_when_closed(receiver):
    with contextlib.suppress(EOFError, OSError):
        receiver.recv_bytes()  # nothing is ever sent
    os._exit(1)


def _work(out, task, options):
    """Makes a shard in a worker process."""
    make_shard(out, task, options, _count_photo)


def _count_photo():
    with _counter.get_lock():
        _counter.value += 1
