"""Command: photographs -> a shard set of uint8 Lab records.

The photos of each split are dealt out in a fixed order to shards of a stated number of candidates. A shard is made by
one worker, written under a temporary name and moved in place, together with a note of what it holds. So the command can
be interrupted at any time, and the same command goes on with the shards that are not there yet.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import csv
import dataclasses
import errno
import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import numpy as np
import PIL
from tqdm import tqdm

from jaxcolor import color
from jaxcolor.data import shards, sources
from jaxcolor.data.decode import RejectedError, is_gray, open_photo, pillow_unguarded
from jaxcolor.errors import UserError, one_line_errors

DEFAULT_SPLIT = 'train:0.9,validation:0.1'
_WORK = '.preparing'  # the sub-folder that holds the notes until the set is finished


@dataclasses.dataclass(frozen=True)
class Options:
    """What decides the bytes of a shard set, besides the photos."""

    size: int = 256
    encoding: str = 'raw'
    source: str = 'auto'
    split: str | None = None
    classes: tuple[str, ...] | None = None
    limit_per_class: int | None = None
    fraction: float = 1.0
    drop_duplicates: bool = False
    keep_gray: bool = False
    min_size: int = 32
    max_megapixels: float = 200
    max_file_mb: float = 256
    shard_photos: int = 1024

    def check(self):
        at_least_one = ('size', 'limit_per_class', 'min_size', 'max_megapixels', 'max_file_mb', 'shard_photos')
        for field in at_least_one:
            value = getattr(self, field)
            if value is not None and value < 1:
                raise UserError(f'--{field.replace("_", "-")} must be at least 1, not {value}')
        if not 0 < self.fraction <= 1:
            raise UserError(f'--fraction must lie in (0, 1], not {self.fraction}')
        if self.encoding not in shards.ENCODINGS:
            raise UserError(f'there is no encoding {self.encoding!r}; choose one of {", ".join(shards.ENCODINGS)}')
        parse_split(self.split or DEFAULT_SPLIT)


# Choosing the photos and their splits.


def _unit_hash(name, salt):
    """A name -> a number in [0, 1) that depends on nothing else."""
    digest = hashlib.blake2b(name.encode(errors='surrogateescape'), digest_size=7, salt=salt).digest()
    return int.from_bytes(digest) / 2**56


def parse_split(text):
    """'train:0.9,validation:0.1' -> {'train': 0.9, 'validation': 0.1}; raises UserError."""
    try:
        split = {name.strip(): float(part) for name, part in (field.split(':') for field in text.split(','))}
    except ValueError:
        split = {}
    good = all(name.isidentifier() and part > 0 for name, part in split.items())
    if not good or abs(sum(split.values()) - 1) > 1e-6:
        raise UserError(f'--split={text} is not understood; write names and parts that add up to 1, as {DEFAULT_SPLIT}')
    return split


def split_by_name(name, split):
    """The split that a photo's name falls into; never another one because of other photos."""
    draw = _unit_hash(name, b'split')
    for key, part in split.items():
        draw -= part
        if draw < 0:
            return key
    return key  # the fractions may add up to a rounding error less than 1


def select(photos, options):
    """The candidates that the options ask for, each with its split."""
    split = parse_split(options.split or DEFAULT_SPLIT)
    taken = collections.Counter()
    for photo in photos:
        if options.classes is not None and photo.label not in options.classes:
            continue
        if options.fraction < 1 and _unit_hash(photo.name, b'fraction') >= options.fraction:
            continue
        if options.split:
            photo.split = None
        if options.limit_per_class and not photo.refused:
            if taken[photo.split, photo.label] == options.limit_per_class:
                continue
            taken[photo.split, photo.label] += 1
        photo.split = photo.split or split_by_name(photo.name, split)
        yield photo


# One shard.


@dataclasses.dataclass
class Task:
    """The candidates of one shard."""

    stem: str  # 'train-00003'
    split: str
    photos: list[sources.Photo] = dataclasses.field(default_factory=list)

    def fingerprint(self):
        digest = hashlib.blake2b(digest_size=16)
        for photo in self.photos:
            digest.update(repr((photo.name, photo.label, photo.refused)).encode(errors='surrogateescape'))
        return digest.hexdigest()


def read_bytes(photo, limit_mb):
    """The bytes of a candidate's file; raises RejectedError where they are too many or cannot be read."""
    limit = int(limit_mb * 1e6)
    if photo.size is not None and photo.size > limit:
        raise RejectedError(f'its file of {photo.size / 1e6:.0f} MB is larger than {limit_mb:g} MB')
    try:
        with open(photo.path, 'rb') as file:
            file.seek(photo.offset)
            data = file.read(limit + 1 if photo.size is None else photo.size)
    except OSError as error:
        raise RejectedError(f'cannot be read: {error.strerror}') from None
    if len(data) > limit:
        raise RejectedError(f'its file is larger than {limit_mb:g} MB')
    return data


def photo_to_lab(data, options):
    """A photo's file -> uint8 Lab (H, W, 3); raises RejectedError."""
    image = open_photo(data, shorter_side=options.size, max_megapixels=options.max_megapixels)
    if min(image.size) < options.min_size:
        raise RejectedError(f'too small: {image.width}x{image.height}')
    lab = color.encode_lab(color.rgb_to_lab(np.asarray(image)))
    if not options.keep_gray and is_gray(lab):
        raise RejectedError('gray: it has no colours to learn from')
    return lab


def make_shard(out, task, options, advance):
    """Writes `<stem>.arrayrecord` and its note; calls `advance()` after every photo."""
    kept, rejected = 0, []

    def records():
        nonlocal kept
        for photo in task.photos:
            try:
                if photo.refused:
                    raise RejectedError(photo.refused)
                lab = photo_to_lab(read_bytes(photo, options.max_file_mb), options)
            except RejectedError as error:
                rejected.append((photo.name, str(error)))
            else:
                kept += 1
                yield shards.encode_record(photo.name, photo.label, lab, options.encoding)
            advance()

    final = out / f'{task.stem}.arrayrecord'
    temporary = out / f'{task.stem}.{os.getpid()}.tmp'
    try:
        with pillow_unguarded():
            shards.write_shard(temporary, records(), options.encoding)
        size = temporary.stat().st_size
        if kept:
            os.replace(temporary, final)
        shards.write_json(
            out / _WORK / f'{task.stem}.json',
            {
                'shard': {'file': final.name, 'split': task.split, 'photos': kept, 'bytes': size},
                'candidates': task.fingerprint(),
                'rejected': rejected,
            },
        )
    except (OSError, RuntimeError) as error:
        raise _write_error(out, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_error(out, error):
    if getattr(error, 'errno', None) == errno.ENOSPC or 'No space left' in str(error):
        return UserError(f'the disk of {out} is full; make room and run the same command again, it goes on from here')
    return UserError(f'{out} cannot be written ({error}); mend that and run the same command again')


# All shards.


def _label_number(label, classes):
    """A class's number; names are numbered as they come up."""
    if label is None:
        return -1
    return label if isinstance(label, int) else classes.setdefault(label, len(classes))


def tasks(photos, options, classes):
    """Deals the candidates out to shards. `classes` (a dict of name -> number) is filled on the way."""
    open_tasks, numbers = {}, collections.Counter()
    for photo in select(photos, options):
        task = open_tasks.get(photo.split)
        if task is None:
            task = open_tasks[photo.split] = Task(f'{photo.split}-{numbers[photo.split]:05}', photo.split)
            numbers[photo.split] += 1
        photo.label = _label_number(photo.label, classes)
        task.photos.append(photo)
        if len(task.photos) == options.shard_photos:
            yield open_tasks.pop(photo.split)
    yield from open_tasks.values()


def _note(out, task):
    """The note of a shard that is already there and made of these very candidates, or None."""
    try:
        note = json.loads((out / _WORK / f'{task.stem}.json').read_text())
        if note['candidates'] != task.fingerprint():
            return None
        shard = note['shard']
        return note if not shard['photos'] or (out / shard['file']).stat().st_size == shard['bytes'] else None
    except (OSError, ValueError, KeyError):
        return None


def _init_worker(counter):
    global _done
    _done = counter
    # A worker whose parent was killed must not go on by itself.
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def _advance_shared():
    with _done.get_lock():
        _done.value += 1


def _work(out, task, options):
    make_shard(out, task, options, _advance_shared)


def _run(out, todo, options, workers, progress):
    """Makes the shards of the tasks that `todo` yields."""
    if workers <= 1:
        for task in todo:
            make_shard(out, task, options, progress.advance)
        return
    # Spawned, not forked: JAX's threads do not survive a fork.
    context = multiprocessing.get_context('spawn')
    counter = context.Value('q', 0)
    pending = set()

    def wait(most):
        while len(pending) > most:
            done, _ = concurrent.futures.wait(pending, 0.5, concurrent.futures.FIRST_COMPLETED)
            progress.set(counter.value)
            for future in done:
                pending.remove(future)
                future.result()

    with concurrent.futures.ProcessPoolExecutor(workers, context, _init_worker, (counter,)) as pool:
        try:
            for task in todo:
                pending.add(pool.submit(_work, out, task, options))
                wait(workers)
            wait(0)
        except concurrent.futures.process.BrokenProcessPool:
            raise UserError(
                'a worker process was killed (out of memory?); run the same command again, maybe with fewer --workers'
            ) from None
        finally:
            for future in pending:
                future.cancel()


class _Progress:
    """A bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, quiet):
        self._quiet, self._terminal = quiet, sys.stderr.isatty()
        self._bar = tqdm(unit=' photos', disable=quiet or not self._terminal, dynamic_ncols=True, smoothing=0.05)
        self._total = self._made = self._skipped = 0
        self._start = self._line_at = time.monotonic()

    def seen(self, count, position):
        """`count` candidates were chosen on the first `position` (0 to 1) of the way through the source."""
        self._total = max(count, round(count / position))

    def skip(self, count):
        """An earlier run has made these."""
        self._skipped += count
        self._bar.initial += count
        self._show()

    def advance(self):
        self.set(self._made + 1)

    def set(self, made):
        self._made = made
        self._show()

    def _show(self):
        done, now = self._made + self._skipped, time.monotonic()
        self._bar.total = self._total
        self._bar.update(done - self._bar.n)
        if not self._quiet and not self._terminal and self._made and now - self._line_at >= 10:
            self._line_at = now
            rate = self._made / (now - self._start)
            left = tqdm.format_interval((self._total - done) / rate)
            print(f'{done}/{self._total} photos, {rate:.0f} photos/s, {left} left', file=sys.stderr)

    def close(self):
        self._bar.close()


# The folder as a whole.


def _claim(out, plan):
    """Makes or checks the output folder; returns whether the set in it is finished already.

    Raises UserError where the folder cannot be written, or holds other things or a set that another command made.
    """
    work = out / _WORK
    try:
        finished = (out / shards.SIDECAR).exists()
        if finished:
            made = shards.open_shards(out).meta['made']
        else:
            if out.is_dir() and not work.is_dir() and any(out.iterdir()):
                raise UserError(f'{out} is not empty and holds no shard set; name a new folder with --out')
            work.mkdir(parents=True, exist_ok=True)
            if not any(work.glob('*-*.json')):  # nothing is made yet
                shards.write_json(work / 'plan.json', plan)
            made = json.loads((work / 'plan.json').read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise _write_error(out, error) from None
    differing = [key for key in plan if made.get(key) != plan[key]]
    if differing:
        was = ', '.join(f'{key}: {made.get(key)}, now {plan[key]}' for key in differing)
        raise UserError(f'{out} holds a set that was made otherwise ({was}); remove it or name a new folder with --out')
    return finished


@contextlib.contextmanager
def _locked(out):
    """Keeps a second command out of the folder."""
    with open(out / _WORK / 'lock', 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f'another prepare command is working in {out}; wait for it or name another --out') from None
        yield


def _finish(out, stems, classes, options, plan):
    """Writes `rejected.csv` and `dataset.json` from the notes of the shards, then removes what no longer matters."""
    counts, kept, example, rejections = collections.Counter(), [], None, 0
    temporary = out / 'rejected.csv.tmp'
    with open(temporary, 'w', newline='', encoding='utf-8', errors='backslashreplace') as file:
        rows = csv.writer(file, lineterminator='\n')
        rows.writerow(['name', 'reason'])
        for stem in stems:
            note = json.loads((out / _WORK / f'{stem}.json').read_text(encoding='utf-8'))
            rows.writerows(note['rejected'])
            rejections += len(note['rejected'])
            example = example or next(iter(note['rejected']), None)
            if note['shard']['photos']:
                kept.append(note['shard'])
                counts[note['shard']['split']] += note['shard']['photos']
    os.replace(temporary, out / 'rejected.csv')
    if not kept:
        found = f'none of the {rejections} files can be used, for example {example[0]}: {example[1]}' if example else (
            'it holds no photos, or none that the options choose')
        shutil.rmtree(out / _WORK)
        raise UserError(f'nothing to prepare in {plan["photos"]}: {found}')
    for file in {file.name for file in out.glob('*-*.arrayrecord')} - {shard['file'] for shard in kept}:
        (out / file).unlink()  # the source held more in an earlier, interrupted run
    shards.write_json(
        out / shards.SIDECAR,
        {
            'version': shards.VERSION,
            'counts': dict(sorted(counts.items())),
            'classes': classes,
            'size': options.size,
            'color_space': 'uint8 CIE Lab, D65: L* 255/100, a* + 128, b* + 128',
            'encoding': options.encoding,
            'source': plan['photos'],
            'made': plan,
            'made_with': {'pillow': PIL.__version__, 'numpy': np.__version__},
            'rejected': rejections,
            'shards': sorted(kept, key=lambda shard: shard['file']),
        },
    )
    shutil.rmtree(out / _WORK)


def prepare(photos, out, *, workers=0, quiet=False, **options):
    """Makes a shard set of the photos at `photos` in the folder `out`, or goes on with one, or finds it finished.

    Args:
        photos: a folder or file that `data.sources` can read.
        out: the folder of the set; made if need be.
        workers: processes; 0 or 1 works in this one.
        quiet: no progress and no summary.
        **options: the fields of `Options`.

    Returns:
        The `shards.ShardSet`. Its bytes do not depend on the workers or on interruptions.

    Raises:
        UserError: options or photos that cannot be used, a folder that cannot be written or holds something else, a
            full disk.
    """
    options = Options(**options)
    options.check()
    photos, out = Path(photos), Path(out)
    if out.resolve().is_relative_to(photos.resolve()):
        raise UserError(f'{out} lies inside the photos, {photos}; name a folder outside them with --out')
    candidates = sources.open_source(photos, options.source)
    plan = {'photos': str(photos.resolve()), **dataclasses.asdict(options)}
    plan = json.loads(json.dumps(plan))  # as it will be read back
    if _claim(out, plan):
        shutil.rmtree(out / _WORK, ignore_errors=True)
        if not quiet:
            print(f'{out} is finished already', file=sys.stderr)
        return shards.open_shards(out)
    classes, stems, seen = {}, [], 0
    progress = _Progress(quiet)

    def todo():
        nonlocal seen
        for task in tasks(candidates, options, classes):
            stems.append(task.stem)
            seen += len(task.photos)
            progress.seen(seen, task.photos[-1].position)
            if _note(out, task):
                progress.skip(len(task.photos))
            else:
                yield task

    try:
        with _locked(out):
            for leftover in out.glob('*.tmp'):
                leftover.unlink()
            _run(out, todo(), options, workers, progress)
            progress.close()
            _finish(out, stems, list(classes), options, plan)
    except OSError as error:
        raise _write_error(out, error) from error
    finally:
        progress.close()
    result = shards.open_shards(out)
    if not quiet:
        counts = ', '.join(f'{count} {split}' for split, count in result.counts.items())
        print(
            f'{out}: {counts} photos in {len(result.classes)} classes; '
            f'{result.meta["rejected"]} files left out, see {out / "rejected.csv"}',
            file=sys.stderr,
        )
    return result


@one_line_errors
def main(argv=None):
    defaults = Options()
    parser = argparse.ArgumentParser('python -m jaxcolor.prepare', description='Photographs -> Lab shards.')
    add = parser.add_argument
    add('photos', metavar='PHOTOS', help='the folder or file that holds the photos')
    add('--out', required=True, metavar='SHARDS', help='the folder of the shard set')
    add('--size', type=int, default=defaults.size, help='shorter side in pixels; smaller photos stay (%(default)s)')
    add('--encoding', default=defaults.encoding, choices=shards.ENCODINGS, help='how records hold photos (%(default)s)')
    add('--source', default='auto', choices=['auto', *sources.SOURCES], help='what PHOTOS is (%(default)s)')
    own = f'; without it, the splits that PHOTOS has of its own, {DEFAULT_SPLIT} for photos that are in none'
    add('--split', metavar='NAME:PART,...', help='parts by a hash of the name' + own)
    add('--classes', type=lambda text: tuple(text.split(',')), metavar='NAME,...', help='only these')
    add('--limit-per-class', type=int, metavar='N', help='the first N of each class, in each split that PHOTOS has')
    add('--fraction', type=float, default=1.0, help='take this part, by a hash of the name (%(default)s)')
    add('--drop-duplicates', action='store_true', help='leave out files with the same content')
    add('--keep-gray', action='store_true', help='keep photos that have no colours')
    add('--min-size', type=int, default=defaults.min_size, help='leave out photos with a shorter side (%(default)s)')
    add('--max-megapixels', type=float, default=defaults.max_megapixels, help='leave out larger photos (%(default)s)')
    add('--max-file-mb', type=float, default=defaults.max_file_mb, help='leave out larger files (%(default)s)')
    add('--shard-photos', type=int, default=defaults.shard_photos, help='candidates a shard (%(default)s)')
    add('--workers', type=int, default=os.cpu_count(), help='processes (%(default)s)')
    add('--quiet', action='store_true', help='no progress')
    prepare(**vars(parser.parse_args(argv)))


if __name__ == '__main__':
    main()
