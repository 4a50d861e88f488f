"""Candidates -> shard files. A shard is made by one process and written whole or not at all, with a note beside it of
what it holds and what was left out."""

import collections
import dataclasses
import errno
import functools
import hashlib
import json
import os

import numpy as np
from PIL import Image

from jaxcolor import files
from jaxcolor.data import shards
from jaxcolor.errors import UserError
from jaxcolor.prepare.decode import RejectedError, is_gray, open_photo, pillow_unguarded
from jaxcolor.prepare.lab_table import LabEncoder
from jaxcolor.prepare.sources import Photo, read_range

_encode_lab = LabEncoder()  # of this process

WORK = '.preparing'  # the sub-folder with the notes, until the set is finished


@dataclasses.dataclass
class Task:
    """The candidates of one shard."""

    stem: str  # 'train-00003'
    split: str
    photos: list[Photo] = dataclasses.field(default_factory=list)
    spool: str | None = None  # the file that holds what came out of a stream, until the shard is made

    def fingerprint(self, options):
        """Tells whether a shard that is there was made of these candidates with these options."""
        digest = hashlib.blake2b(repr(options).encode(), digest_size=16)
        for photo in self.photos:
            digest.update(repr((photo.name, photo.number, photo.refused)).encode())
        return digest.hexdigest()


class Classes:
    """Class names and numbers: the source's own numbers where it has any, else in the order in which names come up."""

    def __init__(self):
        self._numbers, self._names = {}, {}

    def number(self, photo):
        """-1 for a photo without a class."""
        if photo.label is None:
            return -1
        number = photo.number
        if number is None:
            number = self._numbers.setdefault(photo.label, len(self._numbers))
        self._names[number] = photo.label
        return number

    def names(self):
        """The list that numbers index."""
        return [self._names.get(number, str(number)) for number in range(max(self._names, default=-1) + 1)]


def deal(photos, options, out):
    """Deals selected photos, whose numbers are set, out to tasks of `shard_photos` candidates of one split each.

    What comes out of a stream is written to a spool file on the way, so that memory holds one photo at a time.
    """
    filling, count = {}, collections.Counter()
    try:
        for photo in photos:
            if photo.split not in filling:
                filling[photo.split] = Task(f'{photo.split}-{count[photo.split]:05}', photo.split)
                count[photo.split] += 1
            task = filling[photo.split]
            if photo.data is not None:
                _spool(task, photo, out)
            task.photos.append(photo)
            if len(task.photos) == options.shard_photos:
                yield filling.pop(photo.split)
        while filling:
            yield filling.pop(next(iter(filling)))
    finally:
        for task in filling.values():
            drop_spool(task)


def _spool(task, photo, out):
    task.spool = task.spool or os.path.join(out, WORK, f'{task.stem}.spool')
    with open(task.spool, 'ab') as file:
        photo.load = functools.partial(read_range, task.spool, file.tell(), len(photo.data))
        file.write(photo.data)
    photo.data = None


def drop_spool(task):
    """Removes what was kept of a stream for this task."""
    if task.spool and os.path.exists(task.spool):
        os.unlink(task.spool)


def photo_to_lab(data, options, encode_lab):
    """A photo's file (bytes), or a photo that is uint8 Lab (H, W, 3) already -> uint8 Lab; raises RejectedError.

    `encode_lab` turns an RGB image into uint8 Lab.
    """
    if isinstance(data, np.ndarray):
        height, width = data.shape[:2]
        scale = options.size / min(height, width)
        if scale < 1:
            size = (round(width * scale), round(height * scale))
            data = np.asarray(Image.fromarray(data).resize(size, Image.Resampling.BOX))
        lab = data
    else:
        image = open_photo(data, shorter_side=options.size, max_megapixels=options.max_megapixels)
        if min(image.size) < options.min_size:
            raise RejectedError(f'too small: {image.width}x{image.height}')
        lab = encode_lab(image)
    if not options.keep_gray and is_gray(lab):
        raise RejectedError('gray: it has no colors to learn from')
    return lab


def make_shard(out, task, options, advance):
    """Writes `<stem>.arrayrecord` and its note; calls `advance()` after every photo.

    Raises:
        UserError: it cannot be written, for instance because the disk is full.
    """
    kept, rejected = 0, []

    def records():
        nonlocal kept
        for photo in task.photos:
            try:
                if photo.refused:
                    raise RejectedError(photo.refused)
                lab = photo_to_lab(photo.load(options.max_bytes), options, _encode_lab)
            except RejectedError as error:
                rejected.append((photo.name, str(error)))
            else:
                kept += 1
                yield shards.encode_record(photo.name, photo.number, lab, options.encoding)
            advance()

    final = out / f'{task.stem}.arrayrecord'
    try:
        with pillow_unguarded(), files.atomic(final, out / WORK) as temporary:
            shards.write_shard(temporary, records(), options.encoding)
        size = final.stat().st_size
        if not kept:
            final.unlink()
        note = {
            'shard': {'file': final.name, 'split': task.split, 'photos': kept, 'bytes': size},
            'candidates': task.fingerprint(options),
            'rejected': rejected,
        }
        files.write_json(note_path(out, task.stem), note)
    except (OSError, RuntimeError) as error:
        raise write_error(out, error) from error
    finally:
        drop_spool(task)


def note_path(out, stem):
    """Where the note of a shard is, until the set is finished."""
    return out / WORK / f'{stem}.json'


def is_made(out, task, options):
    """Whether the task's shard is there, whole and made of these very candidates and options."""
    try:
        note = json.loads(note_path(out, task.stem).read_text(encoding='utf-8'))
        shard = note['shard']
        if note['candidates'] != task.fingerprint(options):
            return False
        return not shard['photos'] or (out / shard['file']).stat().st_size == shard['bytes']
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_error(out, error):
    """An error of writing into the folder `out` -> the UserError to raise."""
    if getattr(error, 'errno', None) == errno.ENOSPC or 'No space left' in str(error):
        return UserError(f'the disk of {out} is full; make room and run the same command again, it goes on from here')
    return UserError(f'{out} cannot be written ({error}); mend that and run the same command again')
