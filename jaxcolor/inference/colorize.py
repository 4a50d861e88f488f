"""Coloring many photos: reading, the network and writing overlap; one bad photo stops none of the others."""

import collections
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image

from jaxcolor.errors import UserError
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.inference.photos import OUTPUT_FORMATS, read_exif, read_photo, write_photo
from jaxcolor.inference.recompose import join
from jaxcolor.prepare.decode import FORMATS, SUFFIXES, pillow_unguarded
from jaxcolor.runtime.logs import Progress

# Photos that are read ahead of the network, and as many that are written behind it.
_AHEAD = min(8, os.cpu_count() or 1)
# Pixels of the photos that are read ahead, that wait for others of their shape, and that are written: as many each,
# unless one photo has more. It bounds the memory that scans take.
_MOST_PIXELS = 2**27


def plan_outputs(inputs: Iterable[str | PathLike], out: str | PathLike) -> list[tuple[Path, Path]]:
    """Photos and folders -> (photo, path of its result) for every photo.

    Photos of a folder keep their paths below it. Formats that cannot be written become PNG.

    Raises:
        UserError: a missing input, a folder without photos, two results of one name, a result on top of its photo.
    """
    out, pairs = Path(out), []
    for given in map(Path, inputs):
        if given.is_dir():
            found = sorted(p for p in given.rglob('*') if p.suffix.lower() in SUFFIXES and not p.name.startswith('.'))
            if not found:
                raise UserError(f'the folder {given} holds no photos ({", ".join(sorted(SUFFIXES))}).')
            pairs += [(photo, out / photo.relative_to(given)) for photo in found]
        elif given.exists():
            pairs.append((given, out / given.name))
        else:
            raise UserError(f'{given} does not exist.')
    pairs = [(p, t if t.suffix.lower() in OUTPUT_FORMATS else t.with_name(f'{t.name}.png')) for p, t in pairs]
    source_of = {}
    for photo, target in pairs:
        if target in source_of:
            raise UserError(f'{source_of[target]} and {photo} would both be written to {target}; color them apart.')
        source_of[target] = photo
        if target.exists() and target.samefile(photo):
            raise UserError(f'{photo} would be written over; name another folder with --out.')
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
    """Colors photos, each independently of the others. They are read and written in threads beside the network.

    Args:
        pairs: (photo, path of its result), as `plan_outputs` gives them.
        style: `Colorizer.global_features` of another photo, for all of them.
        variants: results of a photo; several go to NAME-1, NAME-2, ...
        max_megapixels: larger photos are refused.
        quiet: no progress.
        batch_size: photos of one shape that go through the network together; the remaining ones go one by one.

    Returns:
        A sentence for each photo that failed.

    Raises:
        UserError: several variants are asked of a network that knows only one.
    """
    if variants > 1 and not colorizer.task.takes_noise:
        raise UserError('--variants: this network gives a photo one result; a cgan takes noise and gives many.')
    batch_size = batch_size or colorizer.batch_size
    progress = Progress(len(pairs), 'photos', quiet=quiet)
    failures = []
    waiting = collections.defaultdict(list)  # photos by the shape that the network sees them in
    written = _Queue()

    def read(pair):
        image = read_photo(pair[0], max_megapixels)
        return *pair, image, colorizer.preprocess(image)

    def write(photo, target, image, predictions):
        for number, ab in enumerate(predictions, start=1):
            name = target if variants == 1 else target.with_stem(f'{target.stem}-{number}')
            write_photo(join(image, ab), name, read_exif(photo))

    def settle(future):
        """The result of a thread, or None where it failed."""
        try:
            return future.result()
        except UserError as error:
            failures.append(str(error))
            progress.say(f'jaxcolor: error: {error}')
            return None

    def finish(futures):
        for future in futures:
            settle(future)
            progress.update()

    def color(group):
        lightness = np.concatenate([lightness for *_, lightness in group])
        predictions = [colorizer.predict_ab(lightness, style, variant) for variant in range(variants)]
        for i, (photo, target, image, _) in enumerate(group):
            pixels = image.width * image.height
            finish(written.that_make_room_for(pixels))
            written.append((pool.submit(write, photo, target, image, [ab[i] for ab in predictions]), pixels))
        group.clear()

    def color_one_by_one(groups):
        for group in groups.values():
            for photo in group:
                color([photo])
        groups.clear()

    with ThreadPoolExecutor(_AHEAD) as pool:
        for future in _ahead(pool, read, pairs):
            photo = settle(future)
            if photo is None:
                progress.update()
                continue
            group = waiting[photo[-1].shape]
            group.append(photo)
            if len(group) == batch_size:
                color(group)
            elif sum(image.width * image.height for group in waiting.values() for *_, image, _ in group) > _MOST_PIXELS:
                color_one_by_one(waiting)
        color_one_by_one(waiting)
        finish(written.all())
    progress.close()
    return failures


class _Queue(collections.deque):
    """Work under way in threads, oldest first: (future, pixels of its photo)."""

    def that_make_room_for(self, pixels):
        """Takes out and yields futures until one more photo fits."""
        while self and (len(self) >= _AHEAD or sum(size for _, size in self) + pixels > _MOST_PIXELS):
            yield self.popleft()[0]

    def all(self):
        """Takes out and yields every future."""
        while self:
            yield self.popleft()[0]


def _ahead(pool, read, pairs):
    """Futures of reading every photo, in order; some are under way before they are asked for."""
    under_way = _Queue()
    for pair in pairs:
        pixels = _pixels(pair[0])
        yield from under_way.that_make_room_for(pixels)
        under_way.append((pool.submit(read, pair), pixels))
    yield from under_way.all()


def _pixels(path):
    """How many pixels a photo will have, from the head of its file; 0 where that cannot be read."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.width * image.height
    except Exception:  # whatever is wrong with it, reading it will say so
        return 0
