"""Colors a film: decoding, the network, and encoding overlap; what is done stays done when the process is killed."""

import functools
import itertools
import os
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import av
import av.error
import numpy as np
from PIL import Image

from jaxcolor.errors import UserError, printable
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.runtime.logs import Progress
from jaxcolor.video.encode import KEY_FRAME_EVERY, add_stream, choose, is_taken, luma_of, painted
from jaxcolor.video.parts import Parts, join
from jaxcolor.video.planes import gray
from jaxcolor.video.source import Source, opened
from jaxcolor.video.steady import State, Steady

T = TypeVar('T')

# A part ends at a scene cut once it has so many frames, and at KEY_FRAME_EVERY, where encoders set a key frame anyway.
_MIN_PART = 60
_AHEAD = 8  # frames that wait between stages
_FORMAT = 4  # of the parts; another one cannot go on with them


class Summary(NamedTuple):
    """What became of a film."""

    frames: int
    notes: list[str]  # a sentence each


class _Gray(NamedTuple):
    """A decoded frame."""

    number: int
    frame: Any
    small: Image.Image


class _Colored(NamedTuple):
    """A frame with its colors."""

    number: int
    frame: Any
    small: Image.Image
    ab: np.ndarray  # (h, w, 2)
    starts: bool  # whether a part starts with it
    state: State | None  # what was carried to it, if one does


def color_film(
    colorizer: Colorizer,
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    temporal: float = 0.95,
    codec: str = '',
    quality: float | None = None,
    options: Mapping[str, str] | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Summary:
    """Colors a film; goes on where an earlier call with the same arguments was interrupted.

    Args:
        colorizer: the network.
        path: the film, in any container that FFmpeg reads.
        out: the result; its suffix is that of the container.
        temporal: how steady colors are, in [0, 1) (`Steady`); 0 colors every frame by itself.
        codec: FFmpeg's name of an encoder; '' takes the default of the container and depth.
        quality: its constant rate factor; None takes ours.
        options: further ones of the encoder.
        overwrite: replaces `out`, and starts anew.
        quiet: hides the progress.

    Returns:
        What became of it.

    Raises:
        UserError: the film cannot be read, the result cannot be written or is there, or an argument does not fit.
    """
    path, out = Path(path), Path(out)
    if not 0 <= temporal < 1:
        raise UserError(f'--temporal must be at least 0 and less than 1, not {temporal:g}.')
    if out.exists() and path.exists() and os.path.samefile(path, out):
        raise UserError(f'{out} is the film itself; give the result another name.')
    if out.is_dir():
        raise UserError(f'{out} is a folder; give the name of a film.')
    if out.exists() and not overwrite:
        raise UserError(f'{out} is there already; --overwrite replaces it.')
    source = Source(path)
    encoding = choose(source, out.suffix.lower(), codec, quality, options or {})
    parts = Parts(out, _job(source, colorizer, temporal, encoding), overwrite)
    try:
        count = _color(colorizer, source, encoding, parts, temporal, quiet)
        join(parts, source, out)
    except (OSError, av.error.FFmpegError) as error:
        parts.close()
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'{parts.folder} cannot be written ({reason}); what is there stays for the next run.') from None
    except BaseException:
        parts.close()
        raise
    parts.close(remove=True)
    return Summary(count, [printable(note) for note in source.notes])


def _job(source, colorizer, temporal, encoding):
    """What parts depend on."""
    found = source.path.stat() if source.path.exists() else None  # FFmpeg reads numbered pictures by a pattern
    film = [found.st_size, found.st_mtime_ns] if found else [source.frame_count]
    return {
        'film': film,
        'model': colorizer.digest,
        'temporal': temporal,
        'encoding': encoding.as_json,
        'format': [_FORMAT, av.__version__],
    }


def _color(colorizer, source, encoding, parts, temporal, quiet):
    """Makes the parts that lack -> the number of all frames."""
    done, state = parts.begin()
    progress = Progress(max(source.frame_count, done + 1), 'frames', start=done, quiet=quiet)
    if done:
        progress.say(f'jaxcolor: note: {done} frames were colored by an earlier run.')
    grays = _ahead(_decode(colorizer, source, encoding, done), _AHEAD)
    colored = _ahead(_predict(colorizer, grays, temporal, state), _AHEAD)
    try:
        done = _encode(colored, source, encoding, parts, done, progress)
    finally:
        colored.close()
        grays.close()
        progress.close()
    return done


def _decode(colorizer, source, encoding, start) -> Iterator[_Gray]:
    """Frames from number `start` on. Those before are decoded, too: no container's index is exact enough to jump."""
    size = None
    for number, frame in enumerate(source.frames()):
        if number < start:
            continue
        if (frame.width, frame.height) != (source.first.width, source.first.height):
            frame = frame.reformat(width=source.first.width, height=source.first.height)
        frame, luma = luma_of(frame, encoding)
        if size is None:
            size = colorizer.input_size(source.shown_size)
        small = gray(luma, encoding.layout, source.turn, size)
        yield _Gray(number, frame, small)


def _predict(colorizer, grays, temporal, state) -> Iterator[_Colored]:
    """Colors frames, batches of one size: the last frame fills up the last batch, so that all are computed alike."""
    steady = Steady(temporal, state) if temporal else None
    length, size = 0, colorizer.batch_size
    while batch := list(itertools.islice(grays, size)):
        ask = functools.cache(functools.partial(_predict_batch, colorizer, batch, size))
        for i, each in enumerate(batch):
            state, is_cut = steady.state if steady else None, False
            if steady:
                ab, is_cut = steady(np.asarray(each.small), functools.partial(_nth, ask, i))
            else:
                ab = _nth(ask, i)
            starts = length == 0 or length == KEY_FRAME_EVERY or (is_cut and length >= _MIN_PART)
            length = 1 if starts else length + 1
            yield _Colored(each.number, each.frame, each.small, ab, starts, state if starts else None)


def _predict_batch(colorizer, batch, size):
    """a*b* of frames, (size, h, w, 2): all of them where one is asked for, since a GPU takes a batch in the time of one."""
    lightness = [colorizer.preprocess(each.small) for each in batch]
    return colorizer.predict_ab(np.concatenate(lightness + lightness[-1:] * (size - len(batch))))


def _nth(ask, i):
    return ask()[i]


def _encode(colored, source, encoding, parts, done, progress):
    """Writes the parts -> the number of all frames."""
    part_format = 'nut' if is_taken('nut', encoding.codec) else 'matroska'  # that has thousandths of a second alone
    waiting = next(colored, None)
    while waiting is not None:
        first, pts = waiting.number, []
        with parts.writing(first) as temporary:
            with opened(temporary, 'w', part_format) as container:
                stream = add_stream(container, source, encoding)
                while True:
                    frame = painted(waiting.frame, encoding, waiting.small, waiting.ab, source)
                    pts.append(frame.pts)
                    duration = frame.duration
                    container.mux(stream.encode(frame))
                    done += 1
                    progress.update()
                    if done - progress.start == 1:
                        progress.restart_clock()  # compilation is behind us
                    waiting = next(colored, None)
                    if waiting is None or waiting.starts:
                        break
                container.mux(stream.encode())
            parts.write_note(first, pts, duration, None if waiting is None else waiting.state)
    return done


def _ahead(items: Iterable[T], depth: int) -> Iterator[T]:
    """Yields items that a thread of its own makes, up to `depth` ahead; its errors are raised here."""
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    stop = threading.Event()

    def put(item):
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work():
        try:
            for item in items:
                put((True, item))
                if stop.is_set():
                    return
            put((False, None))
        except BaseException as error:
            put((False, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            is_item, item = ready.get()
            if is_item:
                yield item
            elif item is None:
                return
            else:
                raise item
    finally:
        stop.set()
        thread.join()
