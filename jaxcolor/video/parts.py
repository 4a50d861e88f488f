"""The parts of a film that is being colored: encoded, whole or not there, in a folder beside the result; and joining."""

import contextlib
import io
import json
import math
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import filelock
import numpy as np
from av.stream import Disposition

from jaxcolor import files
from jaxcolor.errors import UserError
from jaxcolor.video.encode import CONTAINERS, TRANSPORTED
from jaxcolor.video.source import Source, opened
from jaxcolor.video.steady import State

# Says what a container's muxer writes of itself, or counts of the stream that was: not kept.
_STALE = ('encoder', 'duration', 'bps', 'number_of_', '_statistics', 'major_brand', 'minor_version', 'compatible_brands')


class Parts:
    """A folder of parts: NUMBER.nut with the encoded frames, NUMBER.npz with their timestamps and what the next part needs.

    NUMBER is that of the first frame. A part is there when its NUMBER.nut is.

    Args:
        out: the result; the folder lies beside it.
        job: what the parts depend on.
        overwrite: removes the parts of another job.

    Raises:
        UserError: the folder cannot be made, is another job's, or another process works in it.
    """

    def __init__(self, out: Path, job: dict[str, Any], overwrite: bool) -> None:
        self.folder = out.with_name(files.fit_name(out.name, '.parts'))
        note = self.folder / 'job.json'
        try:
            job = json.loads(json.dumps(job))
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = filelock.FileLock(self.folder / 'lock')
            self._lock.acquire(timeout=0)
            found = json.loads(note.read_text(encoding='utf-8')) if note.exists() else None
            if self.paths and (found != job or overwrite):
                if not overwrite:
                    found = found or {}
                    changed = ', '.join(key for key in job if found.get(key) != job[key]) or 'something'
                    raise UserError(f'{self.folder} holds parts of a run with another {changed}; --overwrite starts anew.')
                for path in (*self.folder.glob('[0-9]*.nut'), *self.folder.glob('[0-9]*.npz')):
                    path.unlink()
            elif found is None and any(path.name != 'lock' for path in self.folder.iterdir()):
                raise UserError(f'{self.folder} is in the way: it holds files that are no parts of a film.')
            for path in self.folder.glob('.*.tmp'):  # of a run that was killed
                path.unlink()
            files.write_json(note, job)
        except filelock.Timeout:
            raise UserError(f'{self.folder} is in use: another process colors to {out}.') from None
        except (OSError, ValueError) as error:
            raise UserError(f'{out} cannot be written ({getattr(error, "strerror", None) or error}).') from None

    @property
    def paths(self) -> list[Path]:
        """The parts, in order."""
        return sorted(self.folder.glob('[0-9]*.nut'))

    def begin(self) -> tuple[int, State | None]:
        """(number of frames that are done, what is carried to the next one)."""
        if not self.paths:
            return 0, None
        with np.load(self.paths[-1].with_suffix('.npz')) as saved:
            arrays = {name: saved[name] for name in State._fields if name in saved}
            state = State(**{**arrays, 'since': int(arrays['since'])}) if arrays else None
            return int(saved['first']) + len(saved['pts']), state

    @contextlib.contextmanager
    def writing(self, first: int) -> Iterator[Path]:
        """Yields a path for the encoded frames of a part, which is there when the block ends well."""
        with files.atomic(self.folder / f'{first:08d}.nut') as temporary:
            yield temporary

    def write_note(self, first: int, pts: list[int], duration: int, state: State | None) -> None:
        """Writes what belongs to a part, before the part is there.

        Args:
            first: its first frame's number.
            pts: its timestamps, in order, in the stream's time base.
            duration: of its last frame; 0 if not known.
            state: what is carried to the next part.
        """
        with files.atomic(self.folder / f'{first:08d}.npz') as temporary, open(temporary, 'wb') as file:
            np.savez(
                file,
                first=first,
                pts=np.array(pts, np.int64),
                duration=duration,
                **({} if state is None else state._asdict()),
            )

    def close(self, remove: bool = False) -> None:
        """Lets others work in the folder, or removes it; without parts it is of no use, either."""
        remove = remove or not self.paths
        self._lock.release()
        if remove:
            shutil.rmtree(self.folder, ignore_errors=True)

    def packets(self) -> Iterator[Any]:
        """Yields the encoded frames of all parts (`av.Packet`), with the film's timestamps, in the order of decoding."""
        everything: list[int] = []  # timestamps in the order of showing
        ranks, last = [], 0
        for path in self.paths:
            with np.load(path.with_suffix('.npz')) as saved:
                pts, last = saved['pts'], int(saved['duration'])
            order = np.argsort(np.argsort([packet.pts for packet in _packets_of(path)]))
            if len(order) != len(pts):
                raise UserError(
                    f'{path} is damaged: it has {len(order)} of {len(pts)} frames; remove it to color them again.'
                )
            ranks.append(order + len(everything))
            everything += pts.tolist()
        decoding = np.concatenate(ranks)
        durations = np.diff(everything, append=everything[-1] + (last or _usual(everything)))
        # Decoding times are presentation times, as many frames earlier as frames are out of order.
        delay = int((np.arange(len(decoding)) - decoding).max(initial=0))
        number, step = 0, _usual(everything)
        for path in self.paths:
            for packet in _packets_of(path):
                rank = int(decoding[number])
                packet.pts, packet.duration = everything[rank], int(durations[rank])
                early = number - delay
                packet.dts = everything[early] if early >= 0 else everything[0] + early * step
                number += 1
                yield packet


def _packets_of(path):
    """The packets of a part."""
    with opened(path) as container:
        yield from (packet for packet in container.demux(container.streams.video[0]) if packet.size)


def _usual(pts):
    """The usual step between timestamps; 1 where there is one alone."""
    return max(1, int(np.median(np.diff(pts)))) if len(pts) > 1 else 1


def join(parts: Parts, source: Source, out: Path) -> None:
    """Joins the parts to a film, with all that the source has beside them, without encoding anything again.

    Args:
        parts: all of them.
        source: the film that was colored.
        out: the result, written atomically.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with files.atomic(out, parts.folder) as temporary:
            _join(parts, source, temporary, CONTAINERS[out.suffix.lower()])
            _say_what_lacks(source, temporary)
    except (OSError, av.error.FFmpegError, ValueError) as error:
        raise UserError(f'{out} cannot be written ({getattr(error, "strerror", None) or error}).') from None


def _join(parts, source, path, container_name):
    with (
        opened(source.path) as film,
        opened(parts.paths[0]) as template,
        opened(path, 'w', container_name) as out,
    ):
        streams = {}
        for stream in film.streams:
            if stream.index == source.stream.index:
                made = out.add_stream_from_template(template.streams.video[0], opaque=True)
                made.time_base, made.codec_context.framerate = source.stream.time_base, source.rate
                made.metadata.update(_kept(stream.metadata))
                made.disposition = int(stream.disposition)
                if source.matrix is not None:
                    made.set_display_matrix(source.matrix)
                video = made
            elif copied := _copied(stream, out, container_name, source):
                streams[stream.index] = copied
        out.metadata.update(_kept(film.metadata))
        out.set_chapters(film.chapters())
        colored = parts.packets()
        now, last = 0.0, {}

        def put(packet):
            nonlocal now
            if packet is not None:
                packet.time_base, packet.stream = source.stream.time_base, video
                now = float(packet.dts * packet.time_base)
                out.mux_one(packet)

        # A colored packet takes the place of each gray one, so that streams are interleaved as they were.
        for packet in _demuxed(film):
            if packet.stream.index == source.stream.index:
                put(next(colored, None))
            elif packet.stream.index in streams:
                _move(packet, source.offsets, now, last)
                packet.stream = streams[packet.stream.index]
                out.mux_one(packet)
        for packet in colored:
            put(packet)


def _say_what_lacks(source, path):
    """Notes chapters and metadata that the container of a result did not take."""
    with opened(source.path) as film, opened(path) as out:
        there = {key.lower() for key in out.metadata}
        lost = [key for key in _kept(film.metadata) if key.lower() not in there]
        if len(film.chapters()) > len(out.chapters()):
            lost.insert(0, 'chapters')
    if lost:
        named = ', '.join(lost[:3]) + (f' and {len(lost) - 3} more' if len(lost) > 3 else '')
        source.notes.append(f'{source.path}: this container does not keep {named}; .mkv does.')


def _move(packet, offsets, now, last):
    """Gives a packet its time in the result, by the offset that brings it nearest to now, after those of its stream."""
    index, rises = packet.stream.index, packet.stream.type in ('video', 'audio')
    time = packet.dts * packet.time_base
    own = packet.dts + round(min(offsets, key=lambda offset: abs(time + offset - now)) / packet.time_base)
    if own < last.get(index, own - 1) + rises:  # broken timestamps: muxers want rising ones, in their own ticks
        own = last[index] + math.ceil(Fraction(1, 1000) / packet.time_base)
    last[index] = own
    packet.pts = None if packet.pts is None else packet.pts + last[index] - packet.dts
    packet.dts = last[index]


def _demuxed(film):
    """The packets of a film that can be muxed; a damaged end is an end."""
    packets = film.demux()
    with contextlib.suppress(av.error.FFmpegError, EOFError):
        for packet in packets:
            if packet.size and _is_cover(packet.stream):
                packet.pts = packet.dts = 0
            if packet.size and packet.dts is not None:
                yield packet


def _copied(stream, out, container_name, source):
    """A stream of the result for the packets of another; None where there is none, and a note where nothing is kept."""
    what = f'the {stream.type} stream {stream.index}'
    try:
        if _is_cover(stream) and container_name == 'matroska':
            _attach(stream, out, source)
            return None
        is_placed = container_name in (('mp4', 'mov') if _is_cover(stream) else ('matroska',))
        if stream.type == 'data' or ((stream.type == 'attachment' or _is_cover(stream)) and not is_placed):
            raise ValueError('data')
        if container_name == 'mpegts' and stream.codec_context.codec.canonical_name not in TRANSPORTED:
            raise ValueError('no type')
        with av.open(io.BytesIO(), 'w', format=container_name) as probe:  # some refuse a stream in their header alone
            probe.add_stream_from_template(stream, opaque=True)
            probe.start_encoding()
        made = out.add_stream_from_template(stream, opaque=True)
    except (ValueError, av.error.FFmpegError):
        source.notes.append(f'{source.path}: {what} does not go into this container and is left out; .mkv takes most.')
        return None
    made.metadata.update(_kept(stream.metadata))
    made.disposition = int(stream.disposition)
    return made


def _is_cover(stream):
    return stream.type == 'video' and bool(stream.disposition & Disposition.attached_pic)


def _attach(stream, out, source):
    """Matroska's covers are attachments."""
    with opened(source.path) as film:
        data = next(bytes(packet) for packet in film.demux(film.streams[stream.index]) if packet.size)
    kind = {'mjpeg': 'jpeg'}.get(stream.codec_context.name, stream.codec_context.name)
    name = stream.metadata.get('filename') or f'cover.{kind.replace("jpeg", "jpg")}'
    out.add_attachment(name, f'image/{kind}', data)


def _kept(metadata):
    """Metadata without what is no longer true."""
    return {key: value for key, value in metadata.items() if not key.lower().startswith(_STALE)}
