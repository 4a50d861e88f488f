"""Command: photographs -> a shard set of uint8 Lab records.

The photos of each split are dealt out, in a fixed order, to shards of a stated number of candidates; workers make one
shard each at a time. The command can be interrupted at any moment, and the same command goes on with the shards that
are not there yet.
"""

import collections
import contextlib
import csv
import dataclasses
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import filelock
import numpy as np
import PIL

from jaxcolor import files
from jaxcolor.data import shards
from jaxcolor.errors import UserError
from jaxcolor.prepare import datasets
from jaxcolor.prepare.make_shards import WORK, Classes, deal, drop_spool, is_made, make_shard, note_path, write_error
from jaxcolor.prepare.selection import Options, select
from jaxcolor.runtime.logs import Progress


def prepare(
    photos: str | os.PathLike, out: str | os.PathLike, *, workers: int = 0, quiet: bool = False, **options
) -> shards.ShardSet:
    """Makes a shard set of the photos at `photos` in the folder `out`, goes on with one, or finds it finished.

    Args:
        photos: a folder or file that `data.datasets` can read.
        out: the folder of the set; made if need be.
        workers: processes; 0 or 1 works in this one.
        quiet: no progress and no summary.
        **options: the fields of `selection.Options`.

    Returns:
        The `shards.ShardSet`. Its bytes depend neither on the workers nor on interruptions.

    Raises:
        UserError: options or photos that cannot be used, a folder that cannot be written or holds something else, a
            full disk.
    """
    chosen = Options(**options)
    chosen.check()
    photos, out = Path(photos), Path(out)
    if out.resolve().is_relative_to(photos.resolve()):
        raise UserError(f'{out} lies inside the photos, {photos}; name a folder outside them with --out')
    plan = json.loads(json.dumps({'photos': str(photos.resolve()), **dataclasses.asdict(chosen)}))
    say = (lambda text: None) if quiet else lambda text: print(text, file=sys.stderr)
    if (out / shards.SIDECAR).exists():
        _check_same(out, shards.open_shards(out).meta['made'], plan)
        shutil.rmtree(out / WORK, ignore_errors=True)
        say(f'{out} is finished already')
    else:
        candidates = datasets.open_source(photos, chosen.source, chosen.max_bytes)
        try:
            first = next(candidates)  # before anything is written
        except StopIteration:
            raise UserError(f'there are no photos in {photos}') from None
        try:
            _claim(out, plan)
            _make(itertools.chain([first], candidates), out, chosen, plan, workers, quiet)
        except OSError as error:
            raise write_error(out, error) from error
    result = shards.open_shards(out)
    counts = ', '.join(f'{count} {split}' for split, count in result.counts.items())
    left_out = f'; {result.meta["rejected"]} files left out, see {out / "rejected.csv"}' * bool(result.meta['rejected'])
    say(f'{out}: photos: {counts}; classes: {len(result.classes)}{left_out}')
    return result


def _claim(out, plan):
    """Makes the output folder, or checks that this very command was interrupted in it; raises UserError, OSError."""
    if out.is_dir() and not (out / WORK).is_dir() and any(out.iterdir()):
        raise UserError(f'{out} is not empty and holds no shard set; name a new folder with --out')
    (out / WORK).mkdir(parents=True, exist_ok=True)
    plan_file = out / WORK / 'plan.json'
    if any(out.glob('*.arrayrecord')):
        try:
            _check_same(out, json.loads(plan_file.read_text(encoding='utf-8')), plan)
        except ValueError as error:
            raise UserError(f'{plan_file} cannot be read ({error}); remove {out} and prepare it again') from None
    files.write_json(plan_file, plan)


def _check_same(out, made, plan):
    if differing := [key for key in plan if made.get(key) != plan[key]]:
        was = ', '.join(f'{key}: {made.get(key)}, now {plan[key]}' for key in differing)
        raise UserError(f'{out} holds a set that was made otherwise ({was}); remove it or name a new folder with --out')


def _make(candidates, out, options, plan, workers, quiet):
    """Makes the shards that are not there yet, then finishes the set."""
    classes, stems = Classes(), []
    progress = Progress(0, 'photos', quiet=quiet)

    def numbered():
        for seen, photo in enumerate(select(candidates, options), 1):
            photo.number = classes.number(photo)
            progress.total = max(seen, round(seen / photo.position))
            if progress.bar is not None:
                progress.bar.total = progress.total
            yield photo

    def missing():
        for task in deal(numbered(), options, out):
            stems.append(task.stem)
            if is_made(out, task, options):
                drop_spool(task)
                progress.start += len(task.photos)
                progress.update(len(task.photos))
            else:
                yield task

    with _locked(out):
        for leftover in itertools.chain((out / WORK).glob('*.tmp'), (out / WORK).glob('*.spool')):
            leftover.unlink()
        try:
            _run(missing(), out, options, workers, progress)
        finally:
            progress.close()
        _finish(out, stems, classes.names(), options, plan)
    shutil.rmtree(out / WORK, ignore_errors=True)  # after the lock, since Windows removes no open file


@contextlib.contextmanager
def _locked(out):
    """Keeps a second command out of the folder."""
    try:
        held = filelock.FileLock(out / WORK / 'lock').acquire(blocking=False)
    except filelock.Timeout:
        raise UserError(f'another prepare command is working in {out}; wait for it or name another --out') from None
    with held:
        yield


def _run(tasks, out, options, workers, progress):
    """Makes the shards, `workers` at a time. Raises UserError where a worker was killed."""
    if workers <= 1:
        for task in tasks:
            make_shard(out, task, options, progress.update)
        return
    with _pool(workers) as (pool, photos_done):
        pending, shown = set(), 0
        while True:
            # One shard ahead of the workers and no more, since a stream's photos wait on the disk.
            while len(pending) <= workers and (task := next(tasks, None)):
                with _interrupts_held():
                    pending.add(pool.submit(_work, out, task, options))
            if not pending:
                break
            finished, pending = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
            total = photos_done.value
            progress.update(total - shown)
            shown = total
            for future in finished:
                future.result()


@contextlib.contextmanager
def _pool(workers):
    """A process pool, and the count of the photos that its workers have done. An exception ends the workers at once."""
    context = multiprocessing.get_context('spawn')  # a fork would not survive JAX's threads
    photos_done = context.Value('q', 0)
    theirs, ours = context.Pipe(duplex=False)
    with theirs, ours, ProcessPoolExecutor(workers, context, _start_worker, (theirs, photos_done)) as pool:
        try:
            yield pool, photos_done.get_obj()  # read without the lock, which a killed worker may hold
        except BrokenProcessPool:
            raise UserError(
                'a worker process was killed (out of memory?); run the same command again, maybe with fewer --workers'
            ) from None
        except BaseException:
            ours.close()  # ends the workers; otherwise the pool waits for the shards at work
            raise


@contextlib.contextmanager
def _interrupts_held():
    """Holds Ctrl-C back, also in processes that start meanwhile: one that still imports would print a traceback."""
    if not hasattr(signal, 'pthread_sigmask'):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_POLL_SECONDS = 0.2  # between two looks at how many photos the workers have done
_photos_done = None  # in a worker: the count that all workers share


def _start_worker(pipe, photos_done):
    """Sets a new worker up. It ends at once when the other end of `pipe` closes: the parent closes it, or dies."""
    global _photos_done
    _photos_done = photos_done
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to workers too; the parent ends them
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()


def _end_with(pipe):
    """Ends this process when the pipe does."""
    with contextlib.suppress(EOFError, OSError):
        pipe.recv_bytes()  # nothing is ever sent
    os._exit(1)


def _work(out, task, options):
    """Makes a shard in a worker."""
    make_shard(out, task, options, _count_photo)


def _count_photo():
    with _photos_done.get_lock():
        _photos_done.value += 1


def _finish(out, stems, classes, options, plan):
    """Writes `rejected.csv` and `dataset.json` from the notes of the shards, and removes shards that are not in it."""
    counts, kept, example, rejected = collections.Counter(), [], None, 0
    with (
        files.atomic(out / 'rejected.csv', out / WORK) as temporary,
        open(temporary, 'w', newline='', encoding='utf-8') as file,
    ):
        rows = csv.writer(file, lineterminator='\n')
        rows.writerow(['name', 'reason'])
        for stem in stems:
            note = json.loads(note_path(out, stem).read_text(encoding='utf-8'))
            rows.writerows(note['rejected'])
            rejected += len(note['rejected'])
            example = example or next(iter(note['rejected']), None)
            if note['shard']['photos']:
                kept.append(note['shard'])
                counts[note['shard']['split']] += note['shard']['photos']
        if not kept:
            reason = f'of {rejected} files none can be used, for example {": ".join(example)}' if example else 'no photos'
            raise UserError(f'there is nothing to prepare in {plan["photos"]} with these options: {reason}')
    for name in {file.name for file in out.glob('*.arrayrecord')} - {shard['file'] for shard in kept}:
        (out / name).unlink()  # the source held more when an interrupted run looked
    meta = {
        'version': shards.VERSION,
        'counts': dict(sorted(counts.items())),
        'classes': classes,
        'size': options.size,
        'color_space': 'uint8 CIE L*a*b*, D65: L* 255/100, a* + 128, b* + 128, rounded',
        'encoding': options.encoding,
        'rejected': rejected,
        'made': plan,
        'made_with': {'pillow': PIL.__version__, 'numpy': np.__version__},
        'shards': sorted(kept, key=lambda shard: shard['file']),
    }
    files.write_json(out / shards.SIDECAR, meta)
