"""A film to color: what its streams are, and its frames."""

import contextlib
import os
import struct
from collections.abc import Generator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import av.error
from av.format import Flags
from av.sidedata.sidedata import Type
from av.stream import Disposition

from jaxcolor.errors import UserError
from jaxcolor.video.planes import Turn

# Transfer functions of high dynamic range (H.273): PQ and HLG.
_HDR = (16, 18)
# A film's times start again where they jump back by so many seconds; in containers that allow that, also ahead.
_JUMPS_BACK, _JUMPS_AHEAD = 1, 10
# Metadata that is not UTF-8 is no reason to refuse a film; PyAV 19 reads it without being told.
METADATA: dict[str, Any] = {} if int(av.__version__.partition('.')[0]) > 18 else {'metadata_errors': 'replace'}


class Source:
    """A film, open for reading.

    Args:
        path: of the film.

    Raises:
        UserError: it cannot be read, or has no video.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.notes: list[str] = []  # a sentence each
        # Seconds to add to the film's own times, one number for each time that these start again.
        self.offsets = [Fraction(0)]
        self.container, self.stream = _open(self.path)
        if (count := len(_films(self.container))) > 1:
            self.notes.append(f'{path} has {count} video streams; the first is colored, the others are copied.')
        with contextlib.closing(self.frames()) as frames:
            self.first: Any = next(frames, None)
        if self.first is None:
            raise UserError(f'{path} has no frame that can be decoded.')
        self.matrix = _display_matrix(self.first)
        self.turn = Turn.of(self.matrix)
        if self.first.interlaced_frame:
            self.notes.append(f'{path} is interlaced: it stays so, and both fields of a frame are colored as one picture.')
        if int(self.first.color_trc) in _HDR:
            self.notes.append(f'{path} has a high dynamic range; its gray is shown to the network as if it had not.')

    @property
    def rate(self) -> Fraction:
        """Frames per second, about; 25 where nothing is known."""
        return self.stream.average_rate or self.stream.guessed_rate or Fraction(25)

    @property
    def shown_size(self) -> tuple[int, int]:
        """(W, H) of the upright picture, of square pixels."""
        aspect = self.stream.sample_aspect_ratio or Fraction(1)
        width, height = max(1, round(self.first.width * aspect)), self.first.height
        return (height, width) if self.turn.transpose else (width, height)

    @property
    def seconds(self) -> float:
        """How long it says that it is; 0 where it says nothing."""
        if self.stream.duration:
            return float(self.stream.duration * self.stream.time_base)
        return (self.container.duration or 0) / av.time_base

    @property
    def frame_count(self) -> int:
        """How many frames it says that it has, about."""
        return self.stream.frames or max(1, round(self.seconds * self.rate))

    def frames(self) -> Generator[Any, None, None]:
        """Yields all frames (`av.VideoFrame`); what is damaged is left out.

        Their `pts` rise, in the stream's time base. Where the film's own start again, as in recordings and discs that were
        joined, they go on; `offsets` has all that was added to them when the last frame was yielded.
        """
        damaged, last = 0, None
        container, stream = _open(self.path)
        step = max(1, round(1 / (self.rate * stream.time_base)))
        is_joined = bool(container.format.flags & Flags.ts_discont.value)
        # Broadcasts and discs begin at any time.
        self.offsets = [-Fraction(container.start_time or 0, av.time_base) if is_joined else Fraction(0)]
        add, begin = round(self.offsets[0] / stream.time_base), None
        back, ahead = (round(seconds / stream.time_base) for seconds in (_JUMPS_BACK, _JUMPS_AHEAD))
        with container:
            packets = container.demux(stream)
            is_end = False
            while not is_end:
                try:
                    packet = next(packets, None)
                    is_end = packet is None
                    frames = stream.decode(packet) if packet else []
                except (av.error.FFmpegError, EOFError):
                    damaged += 1
                    continue
                if is_end and damaged:  # a reader that fails does not empty the decoder
                    with contextlib.suppress(av.error.FFmpegError, EOFError):
                        frames = stream.codec_context.decode(None)
                for frame in frames:
                    if frame.pts is None:
                        frame.pts = 0 if last is None else last + step
                    else:
                        frame.pts += add
                    if last is not None and (frame.pts < last - back or (is_joined and frame.pts > last + ahead)):
                        add += last + step - frame.pts
                        self.offsets.append(add * stream.time_base)
                        frame.pts = last + step
                    if last is not None and frame.pts <= last:  # broken timestamps: encoders want rising ones
                        frame.pts = last + 1
                    last = frame.pts
                    begin = last if begin is None else begin
                    yield frame
        there = 0.0 if last is None else float((last - begin) * self.stream.time_base + 1 / self.rate)
        self._say_what_lacks(damaged, there)

    def _say_what_lacks(self, damaged, there):
        """Notes what the film said that it has, and has not."""
        if damaged:
            self.notes.append(f'{self.path} is damaged: {damaged} of its packets cannot be decoded and are left out.')
        if len(self.offsets) > 1:
            self.notes.append(f'{self.path} has times that start again ({len(self.offsets) - 1}); in the result they go on.')
        if there < self.seconds - 1:  # Matroska says how long all of it is, not its picture: sound may go on alone
            self.notes.append(
                f'the picture of {self.path} ends after {there:.1f} of {self.seconds:.1f} seconds; what is there is colored.'
            )


def opened(path: str | os.PathLike[str], mode: Literal['r', 'w'] = 'r', container_name: str | None = None) -> Any:
    """A container (PyAV's), for reading or writing. FFmpeg would take `Part: 1.mkv` for an address of a protocol `Part`."""
    return av.open(os.path.abspath(path), mode, format=container_name, **METADATA)


def _open(path):
    """(a film's container, the video stream to color)."""
    try:
        container = opened(path)
    except av.error.FFmpegError as error:
        raise UserError(f'{path} cannot be read as a film ({error.strerror}).') from None
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror}).') from None
    films = _films(container)
    if not films:
        container.close()
        raise UserError(f'{path} has no video stream that can be decoded.')
    films[0].codec_context.thread_type = 'AUTO'
    return container, films[0]


def _films(container):
    """The video streams of a container that are no pictures of a cover."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    return [stream for stream in streams if stream.codec_context is not None]


def _display_matrix(frame):
    """The display matrix of a frame, 9 integers as FFmpeg's; None where it has none."""
    data = frame.side_data.get(Type.DISPLAYMATRIX)
    return None if data is None else struct.unpack('=9i', bytes(data)[:36])
