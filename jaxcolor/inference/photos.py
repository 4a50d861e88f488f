"""Reads photo files and writes the results."""

import dataclasses
import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from jaxcolor import files
from jaxcolor.errors import UserError
from jaxcolor.inference import encode
from jaxcolor.inference.metadata import encode_exif
from jaxcolor.inference.tags import Tag, is_edited, read_tag, seal
from jaxcolor.prepare.decode import RejectedError, open_photo
from jaxcolor.prepare.deep import DeepImage
from jaxcolor.prepare.frames import Frames, open_frames

# Formats of results, by suffix; other photos become PNG.
OUTPUT_FORMATS = {'.jpg': 'JPEG', '.jpeg': 'JPEG', '.jpe': 'JPEG', '.jfif': 'JPEG', '.mpo': 'JPEG', '.png': 'PNG'}
OUTPUT_FORMATS |= {'.apng': 'PNG', '.webp': 'WEBP', '.tif': 'TIFF', '.tiff': 'TIFF'}
_MIN_SIDE = 2
_MAX_MS = {'PNG': 65_535_000.0, 'WEBP': 2.0**24 - 1}  # of a frame


@dataclasses.dataclass
class PhotoFile:
    """A photo file: its pages or frames, and what its result keeps beside them."""

    path: Path
    frames: Frames
    digest: str  # SHA-256 of the file, in hex
    notes: list[str] = dataclasses.field(default_factory=list)  # a sentence each on what its result does not keep

    @property
    def images(self) -> list[Image.Image | DeepImage]:
        """The frames: L, RGB or RGBA in sRGB, or of 16 bits; upright."""
        return self.frames.images

    @property
    def pixels(self) -> int:
        """Of all frames together."""
        return sum(image.width * image.height for image in self.images)


def read_photo(path: str | os.PathLike, max_megapixels: float, data: bytes | None = None) -> Image.Image:
    """Reads a photo, of several frames the first. Call it inside `pillow_unguarded()`.

    Args:
        path: of the file, or what to call it.
        max_megapixels: refuses larger photos.
        data: the bytes of the file; None reads them.

    Returns:
        The upright photo in sRGB, mode RGB or RGBA.

    Raises:
        UserError: the file cannot be read, is not a photo, or is too large or too small.
    """
    return _read(path, lambda data: open_photo(data, max_megapixels=max_megapixels, keep_alpha=True), data)[1]


def read_file(path: str | os.PathLike) -> bytes:
    """The bytes of a photo's file. Raises UserError: it cannot be read."""
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # a name may hold what no name can
        raise UserError(f'{path} cannot be read ({getattr(error, "strerror", None) or error}).') from None


def read_frames(path: str | os.PathLike, max_megapixels: float, data: bytes | None = None, digest: str = '') -> PhotoFile:
    """Reads a photo with all its frames. Call it inside `pillow_unguarded()`.

    Args:
        path: of the file, or what to call it.
        max_megapixels: refuses files of more, all frames together.
        data: the bytes of the file; None reads them.
        digest: their SHA-256, in hex, where it is known.

    Raises:
        UserError: as `read_photo`.
    """
    data, frames = _read(path, lambda data: open_frames(data, max_megapixels=max_megapixels), data)
    photo = PhotoFile(Path(path), frames, digest or hashlib.sha256(data).hexdigest())
    if not frames.metadata.exif_complete:
        photo.notes.append(f'{path}: EXIF data that cannot be read were dropped.')
    photo.notes += [f'{path}: {note}.' for note in frames.notes]
    return photo


def _read(path, decode, data=None):
    """(a photo file's bytes, what `decode` makes of them). Raises UserError."""
    data = read_file(path) if data is None else data
    try:
        decoded = decode(data)
    except RejectedError as error:
        hint = '; raise --max-megapixels to allow it' if 'megapixels' in str(error) else ''
        raise UserError(f'{path} cannot be colored: {error}{hint}.') from None
    first = decoded.images[0] if isinstance(decoded, Frames) else decoded
    if min(first.size) < _MIN_SIDE:
        raise UserError(f'{path} cannot be colored: {first.width}x{first.height} is too small.')
    if isinstance(decoded, Frames):  # of a scan, some pages may be
        decoded = decoded._replace(images=[image for image in decoded.images if min(image.size) >= _MIN_SIDE])
    return data, decoded


def check_target(path: str | os.PathLike, overwrite: bool) -> None:
    """Checks that a result may be written to a path.

    Args:
        path: of the result.
        overwrite: whether it may replace a file that this program did not make, or that was changed since.

    Raises:
        UserError: such a file is there.
    """
    if overwrite or not os.path.lexists(path):
        return
    reason = 'is not a result of jaxcolor' if not read_tag(path) else 'was changed since' if is_edited(path) else ''
    if reason:
        raise UserError(f'{path} exists and {reason}; name another folder with --out, or give --overwrite to replace it.')


def write_photo(
    photo: PhotoFile, images: Sequence[Image.Image | DeepImage], path: str | os.PathLike, tag: Tag, overwrite: bool
) -> None:
    """Writes a result atomically, in the format of its suffix. What it cannot hold is added to the photo's notes.

    Args:
        photo: the photo.
        images: its colored frames, RGB or RGBA in sRGB, or of 16 bits.
        path: of the result, with a suffix of OUTPUT_FORMATS.
        tag: says how it was made.
        overwrite: as in `check_target`.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic(path) as temporary:
            with encode.Output(temporary) as file:
                notes = _encode(photo, images, file, path.suffix, tag)
            check_target(path, overwrite)
            if (before := read_tag(path)) and before.source != tag.source:
                notes.append(f'{path} was the result of another photo, or of this one as it was before; it was replaced.')
    except OSError as error:
        raise UserError(f'{path} cannot be written ({error.strerror or error}).') from None
    photo.notes += [note for note in notes if note not in photo.notes]


def encode_photo(photo: PhotoFile, images: Sequence[Image.Image | DeepImage], suffix: str, tag: Tag) -> bytes:
    """The bytes that `write_photo` writes to a path of this suffix."""
    file = io.BytesIO()
    notes = _encode(photo, images, file, suffix, tag)
    photo.notes += [note for note in notes if note not in photo.notes]
    return file.getvalue()


def _encode(photo, images, file, suffix, tag):
    """Writes a result to an empty file -> notes, a sentence each."""
    notes = []
    file_format = OUTPUT_FORMATS[suffix.lower()]
    options: dict[str, Any] = {'quality': 95} if file_format in ('JPEG', 'WEBP') else {}
    images, file_format = _fitting_frames(photo.frames, images, file_format)
    if not (file_format == 'TIFF' or (file_format == 'PNG' and len(images) == 1)):
        if any(isinstance(image, DeepImage) for image in images):
            notes.append(f'{photo.path}: {file_format} has 8 bits a channel, not 16.')
        images = [image.in_8_bits() if isinstance(image, DeepImage) else image for image in images]
    if file_format in ('JPEG', 'MPO'):
        options['subsampling'] = 0
        if any(image.mode == 'RGBA' for image in images):
            notes.append(f'{photo.path}: JPEG has no transparency; it was laid on white.')
            images = [_on_white(image) for image in images]
    if len(images) < photo.frames.total:
        notes.append(f'{photo.path}: {len(images)} of {photo.frames.total} frames are in the result.')
    if len(images) > 1:
        options |= _animation(photo.frames, file_format)
    dropped = _save(photo, images, file, file_format, tag, options)
    seal(file, tag)
    if dropped:
        notes.append(f'{photo.path}: data that the result cannot hold were dropped ({", ".join(dropped)}).')
    return notes


def _on_white(image):
    return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA')).convert('RGB')


def _fitting_frames(frames, images, file_format):
    """(the frames that the format can hold, the format with which Pillow writes them)."""
    same_size = len({image.size for image in images}) == 1
    if len(images) == 1 or file_format == 'TIFF' or (file_format in ('PNG', 'WEBP') and same_size):
        return images, file_format
    if file_format == 'JPEG' and frames.format == 'MPO':
        return images, 'MPO'
    return images[:1], file_format


def _animation(frames, file_format):
    """Pillow's options for the durations and loops of an animation; pages of a scan are shown for a second each."""
    if file_format not in _MAX_MS:
        return {}
    durations = frames.durations or [1000.0] * len(frames.images)
    durations = [min(max(0.0, duration), _MAX_MS[file_format]) for duration in durations]
    if file_format == 'WEBP':
        return {'duration': [round(duration) for duration in durations], 'loop': min(frames.loop, 65535)}
    # PNG's are fractions of 16-bit numbers: long ones in whole seconds.
    durations = [duration if duration < 65_535 else 1000.0 * (duration // 1000) for duration in durations]
    cover = {'default_image': True} if frames.has_cover else {}
    return {'duration': durations[1:] if cover else durations, 'loop': frames.loop, **cover}


def _save(photo, images, file: BinaryIO, file_format, tag, options):
    """Saves images with as much of the photo's metadata as can be -> names of what was dropped."""
    metadata, dropped = encode.fitting(photo.frames.metadata, file_format)
    exif_options = (metadata.exif, tag, metadata.dpi)
    for with_maker_note, also_dropped in [(True, []), (False, ['MakerNote'])]:
        exif, fields = encode_exif(*exif_options, with_maker_note)
        try:
            encode.save(file, file_format, images, exif, metadata, options)
            return dropped + fields + also_dropped
        except OSError:
            raise
        except Exception:  # too much for the format, or values that it refuses: ValueError, struct.error, ...
            file.seek(0)
            file.truncate()
    encode.save(file, file_format, images, encode_exif({}, tag)[0], metadata, options)
    return [*dropped, 'all of EXIF']
