"""Evaluation protocols: which photos of a folder are evaluated, and how they are cropped and resized."""

import csv
import dataclasses
import functools
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from jaxcolor import files
from jaxcolor.errors import UserError
from jaxcolor.prepare.decode import RejectedError, is_photo, open_photo
from jaxcolor.prepare.lab_table import LabEncoder


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How photos are chosen and resized. They are sorted by their paths below the folder.

    Attributes:
        limit: takes the first so many photos; None takes all.
        size: pixels a side of the square that photos are resized to; 0 keeps their size.
        crop: crops the center square before resizing; otherwise the aspect ratio changes.
        needs_list: requires a list of the photos.
    """

    limit: int | None = None
    size: int = 256
    crop: bool = False
    needs_list: bool = False


PROTOCOLS = {
    # ImageNet's validation photos as in DDColor's tables, where the truth has DDColor colorfulness 38.21 and 39.09.
    'val5k': Protocol(limit=5000, crop=True),
    'val50k': Protocol(limit=50_000),
    # 10,000 of ImageNet's validation photos chosen by Larsson, Maire, Shakhnarovich 2016, whose list we cannot ship.
    'ctest10k': Protocol(needs_list=True),
    'native': Protocol(size=0),
}


class PhotoSet:
    """The photos of a protocol, evaluated like a split of a shard set. Use it inside `decode.pillow_unguarded()`."""

    classes = ()  # subfolders are not classes here

    def __init__(self, folder: str | os.PathLike, protocol: str, photo_list: str | os.PathLike = '') -> None:
        """Lists the photos.

        Args:
            folder: of the photos.
            protocol: a key of PROTOCOLS.
            photo_list: file with the photos to take, one path below the folder per line; '' takes all.

        Raises:
            UserError: the protocol, the folder, the list or a listed photo is missing; the folder has no photos.
        """
        if protocol not in PROTOCOLS:
            raise UserError(f'--protocol: there is no {protocol!r}; there are {", ".join(PROTOCOLS)}.')
        self.path, self.protocol = Path(folder), PROTOCOLS[protocol]
        if not self.path.is_dir():
            raise UserError(f'PHOTOS: the folder {folder} does not exist.')
        if self.protocol.needs_list and not photo_list:
            raise UserError(f'--protocol={protocol} needs --photo-list=FILE, with the name of a photo on each line.')
        found = list(files.walk(self.path))
        if lost := [file for file in found if file.is_lost]:
            raise UserError(f'PHOTOS: the folder {lost[0].path} {lost[0].problem}.')
        names = sorted('/'.join(file.parts) for file in found if is_photo(file.path) and not file.problem)
        if photo_list:
            try:
                listed = sorted(filter(None, map(str.strip, Path(photo_list).read_text(encoding='utf-8').splitlines())))
            except OSError as error:
                raise UserError(f'--photo-list: {photo_list} cannot be read ({error.strerror}).') from None
            if missing := sorted(set(listed) - set(names)):
                raise UserError(f'--photo-list: {len(missing)} photos are not in {folder}, for example {missing[0]}.')
            names = listed
        self.names = names[: self.protocol.limit]
        if not self.names:
            raise UserError(f'PHOTOS: the folder {folder} holds no photos.')
        if self.protocol.limit and len(self.names) < self.protocol.limit and not photo_list:
            few = f'is for {self.protocol.limit:,} photos, and {folder} has {len(self.names):,}'
            logging.warning('--protocol=%s %s: the figures do not compare with published ones', protocol, few)

    def records(self, split: str | None = None) -> Sequence[dict[str, Any]]:
        """The photos as `ShardSet.records` returns them: {lab: uint8 (H, W, 3), label: -1, name: str}."""
        del split
        return _Records(self.path, self.names, self.protocol)

    def batches_of_one(self) -> Iterable[dict[str, Any]]:
        """Batches of `pipeline.eval_batches` with one photo each, for photos of different sizes."""
        for photo in self.records():
            batch = {'lab': photo['lab'][None], 'label': photo['label'][None], 'mask': np.ones(1, bool)}
            yield {**batch, 'name': [photo['name']]}

    def write_list(self, path: str | os.PathLike) -> None:
        """Writes the names and SHA-256 of the photos as CSV, to document what was evaluated."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator='\n')
        rows.writerow(['name', 'sha256'])
        for name in self.names:
            rows.writerow([name, hashlib.sha256((self.path / name).read_bytes()).hexdigest()])
        files.write_text(path, text.getvalue())


class _Records(Sequence):
    """Decodes photos on access."""

    def __init__(self, folder, names, protocol):
        self._folder, self._names, self._protocol = folder, names, protocol

    def __len__(self):
        return len(self._names)

    def __getitem__(self, index):
        name = self._names[index]
        try:
            image = open_photo((self._folder / name).read_bytes(), max_megapixels=200)
        except (OSError, RejectedError) as error:
            raise UserError(f'{self._folder / name} cannot be evaluated: {error}.') from None
        lab = _encoder()(_resize(image, self._protocol))
        return {'lab': lab, 'label': np.int32(-1), 'name': name}


@functools.cache
def _encoder():
    return LabEncoder()


def _resize(image, protocol):
    """A photo -> the square that the protocol evaluates (bicubic, antialiased), or the photo itself."""
    size = protocol.size
    if not size:
        return image
    box = None
    if protocol.crop:
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)
