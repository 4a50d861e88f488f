"""How this program knows its own results: by a tag in their EXIF data, and whether they still are as it wrote them."""

import os
import re
import zlib
from typing import BinaryIO, NamedTuple

from PIL import ExifTags, Image

from jaxcolor.prepare.decode import FORMATS

_FORMATS = [name for name in FORMATS if name in ('JPEG', 'MPO', 'PNG', 'WEBP', 'TIFF')]  # of results
_TAG = re.compile(
    r'jaxcolor, source sha256:([0-9a-f]{64}), settings ([0-9a-f]{32})(?:, (\d{12}) bytes, crc32:([0-9a-f]{8}))?'
)
_BLOCK = 2**20  # bytes that are read together


class Tag(NamedTuple):
    """How a result was made, written to its EXIF field Software."""

    source: str  # SHA-256 of the photo's file, 64 hex digits
    settings: str  # digest of the model and its settings, 32 hex digits

    def __str__(self) -> str:
        return self.sealed(0, 0)

    def sealed(self, size: int, checksum: int) -> str:
        """The text in a file: with its size in bytes, and the checksum of all but this text; 0 until both are known."""
        return f'jaxcolor, source sha256:{self.source}, settings {self.settings}, {size:012} bytes, crc32:{checksum:08x}'


def read_tag(path: str | os.PathLike) -> Tag | None:
    """The tag of a file that this program made, even if it was changed since; None of all other files.

    Only the file's header is read, but of a WebP, whose EXIF data are its end.
    """
    match = _match(path)
    return Tag(match[1], match[2]) if match else None


def _match(path):
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.format == 'PNG' and 'exif' not in image.info:
                return None  # Pillow would decode it: EXIF data may lie behind the pixels, but ours do not
            return _TAG.fullmatch(str(image.getexif().get(ExifTags.Base.Software)))
    except Exception:  # broken files raise anything
        return None


def is_finished(path: str | os.PathLike, tag: Tag) -> bool:
    """Whether the result of a tag is there, with its end: a copy may have been interrupted."""
    match = _match(path)
    return bool(match) and Tag(match[1], match[2]) == tag and not _is_cut_off(path, match)


def is_edited(path: str | os.PathLike) -> bool:
    """Whether somebody has worked on a result: a whole image is there, and it is not the file that was written.

    Of results of versions that did not write a checksum that cannot be told.
    """
    match = _match(path)
    if not match or not int(match[3] or 0):
        return False
    with open(path, 'rb') as file:
        is_same = _measure(file, match[0].encode()) == (int(match[3]), int(match[4], 16))
    return not is_same and not _is_cut_off(path, match)


def _is_cut_off(path, match):
    """Whether a result has lost its end: it is not as long as it was, and cannot be decoded."""
    if not int(match[3] or 0) or os.stat(path).st_size == int(match[3]):
        return False
    try:
        with Image.open(path, formats=_FORMATS) as image:
            for index in range(getattr(image, 'n_frames', 1)):
                image.seek(index)
                image.load()
    except Exception:  # as above
        return True
    return False


def seal(file: BinaryIO, tag: Tag) -> None:
    """Completes the tag of a result that is written: by its size and checksum. Raises OSError.

    Args:
        file: the result, in JPEG, PNG, WebP or TIFF; open for reading and writing.
        tag: that its EXIF data hold.
    """
    text = str(tag).encode()
    measured = _measure(file, text)
    (start, _), *checksums = _holes(file, text)
    file.seek(start)
    file.write(tag.sealed(*measured).encode())
    for at, _ in checksums:  # of the PNG's chunk: its type and content come before
        start = _chunk_at(file, start)[0]
        file.seek(start + 4)
        checksum = zlib.crc32(file.read(at - start - 4))
        file.seek(at)
        file.write(checksum.to_bytes(4, 'big'))
    file.seek(0, os.SEEK_END)


def _measure(file: BinaryIO, text: bytes) -> tuple[int, int]:
    """(the size of a file, the CRC-32 of all but the tag's text and what follows from it)."""
    checksum, at = 0, 0
    size = file.seek(0, os.SEEK_END)
    for start, end in [*_holes(file, text), (size, size)]:
        file.seek(at)
        while at < start:
            block = file.read(min(_BLOCK, start - at))
            if not block:
                break
            checksum, at = zlib.crc32(block, checksum), at + len(block)
        at = end
    return size, checksum


def _holes(file, text) -> list[tuple[int, int]]:
    """Where the text first is in a file, (start, end); and in a PNG the checksum of the chunk that holds it."""
    start, before, file_start = 0, b'', b''
    file.seek(0)
    while block := file.read(_BLOCK):
        file_start = file_start or block[:8]
        at = (before + block).find(text)
        if at >= 0:
            start += at - len(before)
            holes = [(start, start + len(text))]
            if file_start == b'\x89PNG\r\n\x1a\n':
                _, end = _chunk_at(file, start)
                holes.append((end - 4, end))
            return holes
        start, before = start + len(block), block[-len(text) :]
    return []


def _chunk_at(file: BinaryIO, position: int) -> tuple[int, int]:
    """(start, end) of the chunk of a PNG that holds a position."""
    start = end = 8
    while end <= position:
        start = end
        file.seek(start)
        end = start + 12 + int.from_bytes(file.read(4), 'big')
    return start, end
