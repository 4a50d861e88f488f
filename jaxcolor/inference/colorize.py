"""Colors files and folders of photos: reading, the network and writing overlap; a bad photo does not stop the others."""

import collections
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jaxcolor.errors import UserError
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.inference.photos import OUTPUT_FORMATS, read_exif, read_photo, write_photo
from jaxcolor.inference.recompose import join
from jaxcolor.prepare.decode import FORMATS, SUFFIXES, pillow_unguarded
from jaxcolor.runtime.logs import Progress

# Photos read ahead of the network, and as many written behind it.
_QUEUE_PHOTOS = min(8, os.cpu_count() or 1)
# Total pixels of the photos read ahead, of those waiting for a full batch, and of those being written; a single larger
# photo is let through. It bounds the memory that scans take.
_MAX_PIXELS = 2**27


def plan_outputs(inputs: Iterable[str | PathLike], out: str | PathLike) -> list[tuple[Path, Path]]:
    """Lists the photos and where their results go.

    Args:
        inputs: photos and folders, which are searched for photos.
        out: folder for the results. Photos of a folder keep their paths below it; formats that cannot be written become
            PNG.

    Returns:
        (photo, path of its result) of every photo.

    Raises:
        UserError: an input is missing, a folder has no photos, two results have one path, or a result would overwrite its
            photo.
    """
    out = Path(out)
    pairs: list[tuple[Path, Path]] = []
    for path in map(Path, inputs):
        if path.is_dir():
            photos = sorted(p for p in path.rglob('*') if p.suffix.lower() in SUFFIXES and not p.name.startswith('.'))
            if not photos:
                raise UserError(f'the folder {path} holds no photos ({", ".join(sorted(SUFFIXES))}).')
            pairs += [(photo, out / photo.relative_to(path)) for photo in photos]
        elif path.exists():
            pairs.append((path, out / path.name))
        else:
            raise UserError(f'{path} does not exist.')
    pairs = [(p, t if t.suffix.lower() in OUTPUT_FORMATS else t.with_name(f'{t.name}.png')) for p, t in pairs]
    photo_of: dict[Path, Path] = {}
    for photo, target in pairs:
        if target in photo_of:
            raise UserError(f'{photo_of[target]} and {photo} would both be written to {target}; color them separately.')
        photo_of[target] = photo
        if target.exists() and target.samefile(photo):
            raise UserError(f'{photo} would be overwritten; name another folder with --out.')
    return pairs


@pillow_unguarded()
def colorize(
    colorizer: Colorizer,
    pairs: Sequence[tuple[Path, Path]],
    *,
    style: np.ndarray | None = None,
    variants: int = 1,
    max_megapixels: float = 200.0,
    quiet: bool = False,
    batch_size: int | None = None,
) -> list[str]:
    """Colors photos, each independently of the others.

    Args:
        colorizer: the network.
        pairs: (photo, path of its result), from `plan_outputs`.
        style: `Colorizer.global_features` of another photo, float32 (1, G), for all photos.
        variants: results per photo; several are written to NAME-1, NAME-2, ...
        max_megapixels: refuses larger photos.
        quiet: hides the progress.
        batch_size: photos of one shape that the network colors together; leftovers go one by one.

    Returns:
        An error message for each photo that failed.

    Raises:
        UserError: several variants from a network that takes no noise.
    """
    if variants > 1 and not colorizer.task.takes_noise:
        raise UserError('--variants: this network has one result per photo; only a cgan takes noise and has several.')
    batch_size = batch_size or colorizer.batch_size
    progress = Progress(len(pairs), 'photos', quiet=quiet)
    failures: list[str] = []
    waiting = collections.defaultdict[tuple[int, ...], list[_Photo]](list)  # by the shape of the network's input
    writing = _Queue()

    def read(photo: Path, target: Path) -> _Photo:
        image = read_photo(photo, max_megapixels)
        return _Photo(photo, target, image, colorizer.preprocess(image))

    def write(photo: _Photo, predictions: Sequence[np.ndarray]) -> None:
        for number, ab in enumerate(predictions, start=1):
            path = photo.target if variants == 1 else photo.target.with_stem(f'{photo.target.stem}-{number}')
            write_photo(join(photo.image, ab), path, read_exif(photo.path))

    def result_of(future: Future) -> Any:
        """The result of a thread, or None if it failed."""
        try:
            return future.result()
        except UserError as error:
            failures.append(str(error))
            progress.say(f'jaxcolor: error: {error}')
            return None

    def finish(futures: Iterable[Future]) -> None:
        for future in futures:
            result_of(future)
            progress.update()

    def color(batch: list[_Photo]) -> None:
        lightness = np.concatenate([photo.lightness for photo in batch])
        predictions = [colorizer.predict_ab(lightness, style, variant) for variant in range(variants)]
        for i, photo in enumerate(batch):
            finish(writing.make_room(photo.pixels))
            writing.append((pool.submit(write, photo, [ab[i] for ab in predictions]), photo.pixels))

    def color_one_by_one() -> None:
        for photos in waiting.values():
            for photo in photos:
                color([photo])
        waiting.clear()

    with ThreadPoolExecutor(_QUEUE_PHOTOS) as pool:
        for future in _read_ahead(pool, read, pairs):
            photo = result_of(future)
            if photo is None:
                progress.update()
                continue
            group = waiting[photo.lightness.shape]
            group.append(photo)
            if len(group) == batch_size:
                color(group)
                group.clear()
            elif sum(photo.pixels for photos in waiting.values() for photo in photos) > _MAX_PIXELS:
                color_one_by_one()
        color_one_by_one()
        finish(writing.take_all())
    progress.close()
    return failures


class _Photo(NamedTuple):
    """A photo between reading and writing."""

    path: Path
    target: Path
    image: Image.Image
    lightness: np.ndarray  # the network's input, (1, h, w, 1)

    @property
    def pixels(self) -> int:
        return self.image.width * self.image.height


class _Queue(collections.deque[tuple[Future, int]]):
    """Photos being read or written in threads, oldest first: (future, pixels)."""

    def make_room(self, pixels: int) -> Iterator[Future]:
        """Removes and yields futures until a photo of so many pixels fits."""
        while self and (len(self) >= _QUEUE_PHOTOS or sum(size for _, size in self) + pixels > _MAX_PIXELS):
            yield self.popleft()[0]

    def take_all(self) -> Iterator[Future]:
        """Removes and yields all futures."""
        while self:
            yield self.popleft()[0]


def _read_ahead(pool, read, pairs):
    """Yields a future per photo, in order, while later photos are already being read."""
    reading = _Queue()
    for photo, target in pairs:
        pixels = _pixels(photo)
        yield from reading.make_room(pixels)
        reading.append((pool.submit(read, photo, target), pixels))
    yield from reading.take_all()


def _pixels(path):
    """The number of pixels in the header of a photo; 0 if it cannot be read."""
    try:
        with Image.open(path, formats=tuple(FORMATS)) as image:
            return image.width * image.height
    except Exception:  # reading the photo reports what is wrong with it
        return 0
