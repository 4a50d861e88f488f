"""Colors files and folders of photos: reading, the network and writing overlap; a bad photo does not stop the others."""

import collections
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jaxcolor import files
from jaxcolor.errors import UserError, counted, ordinary_errors, printable
from jaxcolor.inference import agreement
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.inference.hints import Hints
from jaxcolor.inference.photos import PhotoFile, check_target, read_file, read_frames, write_photo
from jaxcolor.inference.plan import Plan
from jaxcolor.inference.recompose import join
from jaxcolor.inference.tags import Tag, is_finished
from jaxcolor.prepare.decode import FORMATS, pillow_unguarded
from jaxcolor.runtime.logs import Progress

# Threads that read and write.
_THREADS = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
# Photos that are read ahead of the network, and that are written behind it: more than threads, since small photos are done
# before a large one is.
_QUEUE_PHOTOS = 4 * _THREADS
# Total pixels of the photos read ahead, of those waiting for a full batch, and of those being written; a single larger
# photo is let through. It bounds the memory that scans take.
_MAX_PIXELS = 2**26
_MAX_REASON = 200  # letters of an unexpected error's message


@dataclasses.dataclass
class Summary:
    """What became of the photos."""

    colored: int = 0
    finished: int = 0  # colored by an earlier run, in the same way
    failures: list[str] = dataclasses.field(default_factory=list)  # a sentence each
    notes: list[str] = dataclasses.field(default_factory=list)  # a sentence each


@pillow_unguarded()
def colorize(
    colorizer: Colorizer,
    plan: Plan,
    *,
    style: np.ndarray | None = None,
    hints: Hints | None = None,
    variants: int = 1,
    max_megapixels: float = 200.0,
    quiet: bool = False,
    batch_size: int | None = None,
    overwrite: bool = False,
    with_agreement: bool = False,
) -> Summary:
    """Colors photos, each independently of the others: whatever happens to one is a sentence, and the others go on.

    Args:
        colorizer: the network.
        plan: of `plan_outputs`.
        style: `Colorizer.global_features` of another photo, float32 (1, G), for all photos.
        hints: colors at places, for all photos and frames.
        variants: results per photo; several are written to NAME-1, NAME-2, ...
        max_megapixels: refuses larger photos.
        quiet: hides the progress.
        batch_size: photos of one shape that the network colors together; leftovers go one by one.
        overwrite: replaces files that this program did not make, and colors photos again that are finished.
        with_agreement: writes a picture beside each result (`agreement`), of a file's first frame.

    Returns:
        What became of the photos; the plan's problems are among the failures.

    Raises:
        UserError: several variants from a network that takes no noise.
    """
    if variants > 1 and not colorizer.task.takes_noise:
        raise UserError('--variants: this network has one result per photo; only a cgan takes noise and has several.')
    batch_size, faithful = batch_size or colorizer.batch_size, colorizer.faithful
    progress = Progress(len(plan.pairs), 'photos', quiet=quiet)
    summary = Summary()
    settings = settings_digest(colorizer, style, hints, variants)
    pictures = agreement.picture_paths(target for _, target in plan.pairs) if with_agreement else {}
    waiting = collections.defaultdict[tuple[int, ...], list[_Photo]](list)  # by the shape of the network's input
    writing = _Queue()

    def fail(sentence: str) -> None:
        summary.failures.append(printable(sentence))
        progress.say(f'jaxcolor: error: {summary.failures[-1]}')

    def note(sentence: str) -> None:
        summary.notes.append(printable(sentence))
        progress.say(f'jaxcolor: note: {summary.notes[-1]}')

    def paths_of(target: Path) -> list[Path]:
        if variants == 1:
            return [target]
        return [target.with_name(files.fit_name(target.stem, f'-{n}{target.suffix}')) for n in range(1, variants + 1)]

    @ordinary_errors()
    def read(path: Path, target: Path) -> _Photo | None:
        """Reads a photo; None if its results are there."""
        results = [*paths_of(target), *([pictures[target]] if with_agreement else [])]
        data = read_file(path)
        tag = Tag(hashlib.sha256(data).hexdigest(), settings)
        if not overwrite and all(is_finished(result, tag) for result in results):
            return None
        for result in results:
            check_target(result, overwrite)
        file = read_frames(path, max_megapixels, data, tag.source)
        return _Photo(file, target, tag, [colorizer.preprocess(image) for image in file.images])

    @ordinary_errors()
    def write(photo: _Photo, predictions: Sequence[Sequence[Any]]) -> None:
        """Writes a photo's results; predictions: a*b*, (h, w, 2), or `faithful` photos of every frame of every variant."""
        if with_agreement:  # first, since a photo is finished when its result is there
            first, path = photo.file.images[0], pictures[photo.target]
            found = agreement.measure(colorizer, first)
            agreement.write_picture(found, first.size, path, photo.tag, overwrite)
            photo.file.notes.append(f'{photo.path}: its predictions differ by {found.mean:.1f} units of a*b* ({path}).')
        for path, frames in zip(paths_of(photo.target), predictions, strict=True):
            parts = zip(photo.file.images, frames, photo.lightness, strict=True)
            images = frames if faithful else [join(image, ab, variants == 1, seen[0]) for image, ab, seen in parts]
            write_photo(photo.file, images, path, photo.tag, overwrite)

    def finish(task: _Task) -> None:
        """Waits for a photo to be written."""
        try:
            task.future.result()
        except Exception as error:
            fail(_sentence(task.path, error))
        else:
            summary.colored += 1
            for sentence in task.notes:
                note(sentence)
        progress.update()

    def write_later(photo: _Photo, predictions: Sequence[Sequence[Any]]) -> None:
        for task in writing.make_room(photo.pixels):
            finish(task)
        writing.append(_Task(pool.submit(write, photo, predictions), photo.path, photo.pixels, photo.file.notes))

    def color(batch: list[_Photo]) -> None:
        """Colors photos of one frame and one shape together."""
        try:
            lightness = np.concatenate([photo.lightness[0] for photo in batch])
            with ordinary_errors():
                predictions = [colorizer.predict_ab(lightness, style, variant) for variant in range(variants)]
        except Exception:  # which of them it is shows one by one
            for photo in batch:
                color_alone(photo)
            return
        for i, photo in enumerate(batch):
            write_later(photo, [[ab[i]] for ab in predictions])

    def color_alone(photo: _Photo) -> None:
        try:
            with ordinary_errors():
                predictions = [
                    [
                        faithful(image, hints)
                        if faithful
                        else colorizer.predict_with_hints(image, lightness, style, variant, hints)
                        for image, lightness in zip(photo.file.images, photo.lightness, strict=True)
                    ]
                    for variant in range(variants)
                ]
        except Exception as error:
            fail(_sentence(photo.path, error))
            progress.update()
        else:
            write_later(photo, predictions)

    def color_waiting() -> None:
        for photos in waiting.values():
            for photo in photos:
                color_alone(photo)
        waiting.clear()

    for sentence in plan.problems:
        fail(sentence)
    for sentence in plan.notes:
        note(sentence)
    with ThreadPoolExecutor(_THREADS) as pool:
        for task in _read_ahead(pool, read, plan.pairs):
            try:
                photo = task.future.result()
            except Exception as error:
                fail(_sentence(task.path, error))
                progress.update()
                continue
            if photo is None:
                summary.finished += 1
                progress.update()
                continue
            if len(photo.lightness) > 1 or hints is not None or faithful:
                color_alone(photo)
                continue
            group = waiting[photo.lightness[0].shape]
            group.append(photo)
            if len(group) == batch_size:
                color(group)
                group.clear()
            elif sum(photo.pixels for photos in waiting.values() for photo in photos) > _MAX_PIXELS:
                color_waiting()
        color_waiting()
        for task in writing.take_all():
            finish(task)
    progress.close()
    if summary.finished:
        was, them = ('was', 'it') if summary.finished == 1 else ('were', 'them')
        photos = counted(summary.finished, 'photo')
        note(f'{photos} {was} finished by an earlier run; --overwrite colors {them} again.')
    return summary


def settings_digest(colorizer: Colorizer, style: np.ndarray | None, hints: Hints | None, variants: int) -> str:
    """Tells apart what colors a photo differently; the arguments are `colorize`'s. 32 hex digits."""
    digest = hashlib.blake2b(f'{colorizer.digest} {variants}'.encode(), digest_size=16)
    digest.update(b'' if style is None else np.asarray(style).tobytes())
    digest.update(b'' if hints is None else hints.digest.encode())
    return digest.hexdigest()


def _sentence(path, error):
    """What happened to a photo, in one sentence."""
    if isinstance(error, UserError):
        return str(error)
    reason = ' '.join(str(error).split())[:_MAX_REASON]
    return f'{path} cannot be colored ({type(error).__name__}{": " if reason else ""}{reason}).'


class _Photo(NamedTuple):
    """A photo between reading and writing."""

    file: PhotoFile
    target: Path
    tag: Tag
    lightness: list[np.ndarray]  # the network's inputs, (1, h, w, 1), one a frame

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def pixels(self) -> int:
        return self.file.pixels


class _Task(NamedTuple):
    """A photo being read or written in a thread."""

    future: Future
    path: Path
    pixels: int
    notes: Sequence[str] = ()  # on the result, once it is written


class _Queue(collections.deque[_Task]):
    """Tasks, oldest first."""

    def make_room(self, pixels: int) -> Iterator[_Task]:
        """Removes and yields tasks until a photo of so many pixels fits."""
        while self and (len(self) >= _QUEUE_PHOTOS or sum(task.pixels for task in self) + pixels > _MAX_PIXELS):
            yield self.popleft()

    def take_all(self) -> Iterator[_Task]:
        """Removes and yields all tasks."""
        while self:
            yield self.popleft()


def _read_ahead(pool, read, pairs):
    """Yields a task per photo, in order, while later photos are already being read."""
    reading = _Queue()
    for photo, target in pairs:
        pixels = _pixels(photo)
        yield from reading.make_room(pixels)
        reading.append(_Task(pool.submit(read, photo, target), photo, pixels))
    yield from reading.take_all()


def _pixels(path):
    """The number of pixels in the headers of a photo's frames; 0 if they cannot be read."""
    try:
        with ordinary_errors(), Image.open(path, formats=tuple(FORMATS)) as image:
            return image.width * image.height * getattr(image, 'n_frames', 1)
    except Exception:  # reading the photo reports what is wrong with it
        return 0
