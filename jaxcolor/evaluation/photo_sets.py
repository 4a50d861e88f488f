"""Evaluation protocols: which files of a folder are measured and how they are cut, so that two people measure the same."""

import csv
import dataclasses
import functools
import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

from jaxcolor import files
from jaxcolor.errors import UserError
from jaxcolor.prepare.decode import SUFFIXES, RejectedError, open_photo
from jaxcolor.prepare.lab_table import LabEncoder


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Files are sorted by their names below the folder.

    most: takes the first so many.
    size: pixels of the side of the square that photos become; 0 leaves them as they are.
    crop: takes the center of the photo, its shorter side brought to `size`; otherwise the whole photo is squeezed.
    needs_list: takes the files that a list names.
    """

    most: int | None = None
    size: int = 256
    crop: bool = False
    needs_list: bool = False


PROTOCOLS = {
    # ImageNet's validation photos as DDColor's tables have them: colorfulness of the truth (DDColor's) 38.21 and 39.09.
    'val5k': Protocol(most=5000, crop=True),
    'val50k': Protocol(most=50_000),
    # 10,000 of ImageNet's validation photos, chosen by Larsson, Maire, Shakhnarovich 2016; their list is not ours to ship.
    'ctest10k': Protocol(needs_list=True),
    'native': Protocol(size=0),
}


class PhotoSet:
    """The photos of a protocol, to evaluate like a split of a shard set, inside `decode.pillow_unguarded()`.

    Args:
        folder: of the photos.
        name: key of PROTOCOLS.
        listed: a file with a photo's name below the folder on each line; only these are taken.

    Raises:
        UserError: no such protocol, folder or list; no photos; photos that the list names are not there.
    """

    classes = ()  # folders of photos are not taken for classes here

    def __init__(self, folder, name: str, listed: str = ''):
        if name not in PROTOCOLS:
            raise UserError(f'--protocol: there is no {name!r}; there are {", ".join(PROTOCOLS)}.')
        self.path, self.protocol = Path(folder), PROTOCOLS[name]
        if not self.path.is_dir():
            raise UserError(f'--photos: the folder {folder} does not exist.')
        if self.protocol.needs_list and not listed:
            raise UserError(f'--protocol={name} needs --photo_list=FILE, the names of its photos, one a line.')
        names = sorted(
            path.relative_to(self.path).as_posix() for path in self.path.rglob('*') if path.suffix.lower() in SUFFIXES
        )
        if listed:
            try:
                wanted = sorted(filter(None, map(str.strip, Path(listed).read_text(encoding='utf-8').splitlines())))
            except OSError as error:
                raise UserError(f'--photo_list: {listed} cannot be read ({error.strerror}).') from None
            if missing := sorted(set(wanted) - set(names)):
                raise UserError(f'--photo_list: {len(missing)} photos are not below {folder}, for example {missing[0]}.')
            names = wanted
        self.names = names[: self.protocol.most]
        if not self.names:
            raise UserError(f'--photos: the folder {folder} holds no photos.')

    def records(self, split=None):
        """The photos, as `ShardSet.records` gives them: {lab: uint8 (H, W, 3), label: -1, name: str}."""
        del split
        return _Records(self.path, self.names, self.protocol)

    def single(self):
        """Batches of one photo each, as `pipeline.eval_batches` yields them; for photos of different sizes."""
        for photo in map(self.records().__getitem__, range(len(self.names))):
            one = {'lab': photo['lab'][None], 'label': photo['label'][None], 'mask': np.ones(1, bool)}
            yield {**one, 'name': [photo['name']]}

    def write_list(self, path) -> None:
        """Writes the photos' names and the SHA-256 of their files, as CSV: what was measured."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator='\n')
        rows.writerow(['name', 'sha256'])
        for name in self.names:
            rows.writerow([name, hashlib.sha256((self.path / name).read_bytes()).hexdigest()])
        files.write_text(path, text.getvalue())


class _Records:
    """Decodes a photo when it is asked for."""

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
        lab = _encoder()(_cut(image, self._protocol))
        return {'lab': lab, 'label': np.int32(-1), 'name': name}


@functools.cache
def _encoder():
    return LabEncoder()


def _cut(image, protocol):
    """A photo -> the square of it that the protocol measures (bicubic, antialiased), or itself."""
    size = protocol.size
    if not size:
        return image
    box = None
    if protocol.crop:
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)
