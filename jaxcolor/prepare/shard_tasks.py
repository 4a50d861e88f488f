"""The work of one shard: the candidates that go into it, its file, and the manifest beside it.

A shard is made by one process and written whole or not at all. Its manifest says what it holds and what was rejected, and
lets an interrupted command find the shards that are complete.
"""

import collections
import dataclasses
import errno
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxcolor import files
from jaxcolor.data import shards
from jaxcolor.errors import UserError
from jaxcolor.prepare.decode import RejectedError, is_gray, open_photo, pillow_unguarded
from jaxcolor.prepare.lab_table import LabEncoder
from jaxcolor.prepare.selection import Options
from jaxcolor.prepare.sources import Photo, read_range

WORK_FOLDER = '.preparing'  # the subfolder with the manifests, until the set is finished
_encode_lab = LabEncoder()  # one per process


class Part(NamedTuple):
    """The part of the shards that one of several commands makes: every `parts`-th, from `number` (1, 2, ...) on."""

    number: int = 1
    parts: int = 1

    def has(self, shard: int) -> bool:
        """Whether a shard, counted from 0 in the order of the photos, is of this part."""
        return shard % self.parts == self.number - 1

    def work_folder(self, out: Path) -> Path:
        """The folder of what this part has begun; no other command uses it."""
        folder = out / WORK_FOLDER
        return folder / f'part-{self.number}-of-{self.parts}' if self.parts > 1 else folder


def parse_part(text: str | None) -> Part:
    """Parses '2/8', part 2 of 8; None is all. Raises UserError."""
    if text is None:
        return Part()
    match = re.fullmatch(r'(\d+)/(\d+)', text)
    part = Part(*map(int, match.groups())) if match else Part(0, 0)
    if not 1 <= part.number <= part.parts:
        raise UserError(f'--part={text} is invalid; give a number and how many parts there are, from 1/8 to 8/8')
    return part


@dataclasses.dataclass
class ShardTask:
    """The candidates of one shard."""

    stem: str  # 'train-00003'
    split: str
    folder: Path  # of what is not finished
    is_own: bool = True  # whether it is of the part that this command makes
    photos: list[Photo] = dataclasses.field(default_factory=list)
    spool: str | None = None  # the file that holds the photos of a stream until the shard is made

    def fingerprint(self, options: Options) -> str:
        """A digest of the candidates and options, to tell whether an existing shard was made from them."""
        digest = hashlib.blake2b(repr(options).encode(), digest_size=16)
        for photo in self.photos:
            digest.update(repr((photo.name, photo.label, photo.rejected)).encode())
        return digest.hexdigest()

    def remove_spool(self) -> None:
        """Removes the spool file, if there is one."""
        if self.spool:
            Path(self.spool).unlink(missing_ok=True)


class ClassLabels:
    """Numbers the classes: with the source's own numbers where it has them, else in the order in which they come up."""

    def __init__(self) -> None:
        self._labels: dict[str, int] = {}
        self._names: dict[int, str] = {}

    def label(self, photo: Photo) -> int:
        """The label of a photo; -1 where it has no class."""
        if photo.class_name is None:
            return -1
        label = photo.label
        if label is None:
            label = self._labels.setdefault(photo.class_name, len(self._labels))
        self._names[label] = photo.class_name
        return label

    def names(self) -> list[str]:
        """The class names, indexed by label."""
        return [self._names.get(label, str(label)) for label in range(max(self._names, default=-1) + 1)]


def plan_shards(photos: Iterable[Photo], options: Options, out: Path, part: Part) -> Iterator[ShardTask]:
    """Distributes selected, labeled photos over shards of `shard_photos` candidates of one split each.

    Photos of a stream are written to the shard's spool file, so that memory holds one of them at a time.
    """
    open_tasks: dict[str | None, ShardTask] = {}  # by split
    counts: collections.Counter[str | None] = collections.Counter()
    folder = part.work_folder(out)
    try:
        for photo in photos:
            if photo.split not in open_tasks:
                stem, is_own = f'{photo.split}-{counts[photo.split]:05}', part.has(counts.total())
                open_tasks[photo.split] = ShardTask(stem, str(photo.split), folder, is_own)
                counts[photo.split] += 1
            task = open_tasks[photo.split]
            if photo.data is not None:
                _spool(task, photo)
            task.photos.append(photo)
            if len(task.photos) == options.shard_photos:
                yield open_tasks.pop(photo.split)
        while open_tasks:
            yield open_tasks.pop(next(iter(open_tasks)))
    finally:
        for task in open_tasks.values():
            task.remove_spool()


def _spool(task, photo):
    if task.is_own:
        task.spool = task.spool or os.path.join(task.folder, f'{task.stem}.spool')
        with open(task.spool, 'ab') as file:
            photo.load = functools.partial(read_range, task.spool, file.tell(), len(photo.data))
            file.write(photo.data)
    photo.data = None


def _photo_to_lab(photo, options):
    """A photo's file (bytes), or a photo in uint8 Lab (H, W, 3) -> uint8 Lab, its shorter side at most `size`."""
    if isinstance(photo, np.ndarray):
        height, width = photo.shape[:2]
        scale = options.size / min(height, width)
        if scale < 1:
            size = (round(width * scale), round(height * scale))
            photo = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BOX))
        lab = photo
    else:
        image = open_photo(photo, shorter_side=options.size, max_megapixels=options.max_megapixels)
        if min(image.size) < options.min_size:
            raise RejectedError(f'too small: {image.width}x{image.height}')
        lab = _encode_lab(image)
    if not options.keep_gray and is_gray(lab):
        raise RejectedError('gray: it has no colors to learn from')
    return lab


def make_shard(out: Path, task: ShardTask, options: Options, on_photo: Callable[[], object]) -> None:
    """Writes a shard, `<stem>.arrayrecord`, and its manifest.

    Args:
        out: the folder of the set.
        task: the shard's candidates.
        options: of the set.
        on_photo: called after every candidate.

    Raises:
        UserError: the shard cannot be written, for instance because the disk is full.
    """
    count, rejected = 0, []

    def records():
        nonlocal count
        for photo in task.photos:
            try:
                lab = _photo_to_lab(photo.read(options.max_bytes), options)
            except RejectedError as error:
                rejected.append((photo.name, str(error)))
            else:
                count += 1
                yield shards.encode_record(photo.name, photo.label, lab, options.encoding)
            on_photo()

    path = out / f'{task.stem}.arrayrecord'
    try:
        with pillow_unguarded(), files.atomic(path, task.folder) as temporary:
            shards.write_shard(temporary, records(), options.encoding)
        size = path.stat().st_size
        if not count:
            path.unlink()
        manifest = {
            'shard': {'file': path.name, 'split': task.split, 'photos': count, 'bytes': size},
            'candidates': task.fingerprint(options),
            'rejected': rejected,
        }
        files.write_json(manifest_path(out, task.stem), manifest)
    except (OSError, RuntimeError) as error:
        raise write_error(out, error) from error
    finally:
        task.remove_spool()


def manifest_path(out: Path, stem: str) -> Path:
    """Where a shard's manifest is until the set is finished."""
    return out / WORK_FOLDER / f'{stem}.json'


def is_complete(out: Path, stem: str, fingerprint: str) -> bool:
    """Whether a task's shard exists, is whole, and was made from candidates and options of that fingerprint."""
    try:
        manifest = json.loads(manifest_path(out, stem).read_text(encoding='utf-8'))
        shard = manifest['shard']
        if manifest['candidates'] != fingerprint:
            return False
        return not shard['photos'] or (out / shard['file']).stat().st_size == shard['bytes']
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_error(out: Path, error: Exception) -> UserError:
    """The UserError for an error of writing into the folder `out`."""
    if getattr(error, 'errno', None) == errno.ENOSPC or 'No space left' in str(error):
        return UserError(f'the disk of {out} is full; free some space and run the same command again to continue')
    return UserError(f'{out} cannot be written ({error}); correct that and run the same command again')
