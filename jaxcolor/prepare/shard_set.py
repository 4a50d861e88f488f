"""Makes a shard set from a source of photos.

The photos of each split are distributed, in a fixed order, over shards of a given number of candidates. The command can be
interrupted at any moment; run again, it makes the shards that are missing. Several commands, on several machines that share
a file system, make a part of the shards each; the one that comes to its end last finishes the set.
"""

import collections
import contextlib
import csv
import dataclasses
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import PIL

from jaxcolor import files
from jaxcolor.data import shards
from jaxcolor.errors import UserError, counted
from jaxcolor.prepare import datasets
from jaxcolor.prepare.selection import Options, largest_hashes, select
from jaxcolor.prepare.shard_tasks import (
    WORK_FOLDER,
    ClassLabels,
    Part,
    is_complete,
    manifest_path,
    parse_part,
    plan_shards,
    write_error,
)
from jaxcolor.prepare.sources import Photo
from jaxcolor.prepare.workers import make_shards
from jaxcolor.runtime.logs import Progress


def prepare(
    photos: str | os.PathLike, out: str | os.PathLike, *, workers: int = 0, quiet: bool = False, **options: Any
) -> shards.ShardSet:
    """Makes a shard set of photos, or continues an interrupted one. A finished one is left as it is.

    Args:
        photos: a folder or file that a source of `datasets.SOURCES` reads.
        out: the folder of the set; created if it does not exist.
        workers: processes; 0 or 1 works in this one.
        quiet: prints neither progress nor a summary.
        **options: fields of `selection.Options`.

    Returns:
        The set. Its bytes depend neither on `workers` nor on interruptions.

    Raises:
        UserError: invalid options, unusable photos, a folder that cannot be written or holds something else, a full disk.
    """
    prepare_part(photos, out, None, workers=workers, quiet=quiet, **options)
    return shards.open_shards(out)


def prepare_part(
    photos: str | os.PathLike,
    out: str | os.PathLike,
    part: str | None,
    *,
    workers: int = 0,
    quiet: bool = False,
    **options: Any,
) -> bool:
    """Makes one of several parts of a shard set; the set is the same, to the byte, as one that is made by one command.

    Args:
        photos, out, workers, quiet, **options: as for `prepare`, the same for all parts.
        part: '2/8' is part 2 of 8; None all of them.

    Returns:
        Whether the set is finished: all parts are.

    Raises:
        UserError: invalid options, unusable photos, a folder that cannot be written or holds something else, a full disk.
    """
    checked, this = Options(**options), parse_part(part)
    checked.check()
    photos, out = Path(photos), Path(out)
    if out.resolve().is_relative_to(photos.resolve()):
        raise UserError(f'{out} lies inside the photos, {photos}; give a folder outside them with --out')
    plan = json.loads(json.dumps({'photos': str(photos.resolve()), **dataclasses.asdict(checked)}))  # as read from a file
    if (out / shards.SIDECAR).exists():
        _check_same(out, shards.open_shards(out).meta['made'], plan)
        shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)
        summary = f'{out} is already finished\n'
    else:
        candidates = datasets.open_source(photos, checked.source, checked.max_bytes)
        largest = {}
        if checked.limit:
            if not quiet:
                print(f'choosing {checked.limit} photos of {photos}', file=sys.stderr, flush=True)
            largest = largest_hashes(datasets.open_source(photos, checked.source, checked.max_bytes), checked)
        try:
            first = next(candidates)  # before anything is written
        except StopIteration:
            raise UserError(f'there are no photos in {photos}') from None
        try:
            _create_or_check(out, plan, this)
            is_finished = _make(itertools.chain([first], candidates), largest, out, checked, plan, this, workers, quiet)
        except OSError as error:
            raise write_error(out, error) from error
        if not is_finished:
            if not quiet:
                print(f'{out}: part {part} is ready; the part that is ready last finishes the set', file=sys.stderr)
            return False
        summary = ''
    result = shards.open_shards(out)
    counts = ', '.join(f'{count} {split}' for split, count in result.counts.items())
    summary += f'{out}: photos: {counts}; classes: {len(result.classes)}'
    if rejected := result.meta['rejected']:
        summary += f'; {counted(rejected, "file")} rejected, see {out / "rejected.csv"}'
    if not quiet:
        print(summary, file=sys.stderr)
    return True


def _create_or_check(out, plan, part):
    """Creates the output folder, or checks that the same command was interrupted in it. Raises UserError, OSError."""
    if out.is_dir() and not (out / WORK_FOLDER).is_dir() and any(out.iterdir()):
        raise UserError(f'{out} is not empty and holds no shard set; give a new folder with --out')
    part.work_folder(out).mkdir(parents=True, exist_ok=True)
    plan_file = out / WORK_FOLDER / 'plan.json'
    if any(out.glob('*.arrayrecord')) or (part.parts > 1 and plan_file.exists()):
        try:
            _check_same(out, json.loads(plan_file.read_text(encoding='utf-8')), plan)
        except ValueError as error:
            raise UserError(f'{plan_file} cannot be read ({error}); remove {out} and prepare it again') from None
    files.write_json(plan_file, plan)


def _check_same(out, old, plan):
    """Raises UserError where a set was made with other photos or options."""
    if differing := [key for key in plan if old.get(key) != plan[key]]:
        changes = ', '.join(f'{key}: {old.get(key)}, now {plan[key]}' for key in differing)
        raise UserError(f'{out} holds a set made with other options ({changes}); remove it or give a new folder with --out')


def _make(
    candidates: Iterable[Photo],
    largest: Mapping[str, float],
    out: Path,
    options: Options,
    plan: dict,
    part: Part,
    workers: int,
    quiet: bool,
) -> bool:
    """Makes the part's shards that are missing, then finishes the set if all are there -> whether they are."""
    classes = ClassLabels()
    fingerprints: dict[str, str] = {}  # of all shards, by stem
    progress = Progress(0, 'photos', quiet=quiet)

    def labeled():
        for count, photo in enumerate(select(candidates, options, largest), 1):
            photo.label = classes.label(photo)
            progress.total = max(count, round(count / photo.position)) // part.parts
            if progress.bar is not None:
                progress.bar.total = progress.total
            yield photo

    def missing():
        for task in plan_shards(labeled(), options, out, part):
            fingerprints[task.stem] = task.fingerprint(options)
            if not task.is_own:
                continue
            if is_complete(out, task.stem, fingerprints[task.stem]):
                task.remove_spool()
                progress.start += len(task.photos)
                progress.update(len(task.photos))
            else:
                yield task

    folder = part.work_folder(out)
    with _locked(out, folder):
        for leftover in itertools.chain(folder.glob('*.tmp'), folder.glob('*.spool')):
            leftover.unlink()
        try:
            make_shards(missing(), out, options, workers, progress.update)
        finally:
            progress.close()
        if part.parts == 1:
            _finish(out, fingerprints, classes.names(), options, plan)
    if part.parts > 1 and not _finish_together(out, fingerprints, classes.names(), options, plan):
        return False
    shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)  # after unlocking: Windows does not remove open files
    return True


def _finish_together(out, fingerprints, classes, options, plan):
    """Finishes the set if the shards of all parts are there -> whether it is finished."""
    try:
        lock = filelock.FileLock(out / WORK_FOLDER / 'finish.lock').acquire()
    except FileNotFoundError:  # another part has finished the set and removed the folder
        return (out / shards.SIDECAR).exists()
    with lock:
        if (out / shards.SIDECAR).exists():
            return True
        if not all(is_complete(out, stem, fingerprint) for stem, fingerprint in fingerprints.items()):
            return False
        _finish(out, fingerprints, classes, options, plan)
    return True


@contextlib.contextmanager
def _locked(out: Path, folder: Path) -> Iterator[None]:
    """Locks a command's work folder against a second one."""
    try:
        lock = filelock.FileLock(folder / 'lock').acquire(blocking=False)
    except filelock.Timeout:
        raise UserError(f'another prepare command is working in {out}; wait for it or give another --out') from None
    with lock:
        yield


def _finish(out: Path, stems: Iterable[str], classes: list[str], options: Options, plan: dict) -> None:
    """Writes `rejected.csv` and `dataset.json` from the shards' manifests, and removes shards that are not among them."""
    counts: collections.Counter[str] = collections.Counter()
    kept, example, rejected = [], None, 0
    with (
        files.atomic(out / 'rejected.csv', out / WORK_FOLDER) as temporary,
        open(temporary, 'w', newline='', encoding='utf-8') as file,
    ):
        rows = csv.writer(file, lineterminator='\n')
        rows.writerow(['name', 'reason'])
        for stem in stems:
            manifest = json.loads(manifest_path(out, stem).read_text(encoding='utf-8'))
            rows.writerows(manifest['rejected'])
            rejected += len(manifest['rejected'])
            example = example or next(iter(manifest['rejected']), None)
            if manifest['shard']['photos']:
                kept.append(manifest['shard'])
                counts[manifest['shard']['split']] += manifest['shard']['photos']
        if not kept:
            reason = f'{counted(rejected, "file")} rejected, such as {": ".join(example)}' if example else 'none is selected'
            raise UserError(f'no photos of {plan["photos"]} can be used with these options: {reason}')
    for name in {file.name for file in out.glob('*.arrayrecord')} - {shard['file'] for shard in kept}:
        (out / name).unlink()  # of an interrupted run, when the source held more
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
