"""What a result keeps of its photo's EXIF data, and the tag by which this program knows its own results."""

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from PIL import ExifTags, Image

from jaxcolor.prepare.decode import FORMATS

_KEPT = [ExifTags.Base[name] for name in ('ImageDescription', 'Make', 'Model', 'DateTime', 'Artist', 'Copyright')]
_INCH = 2  # of the field ResolutionUnit
# Of the other directories all is kept but what may be wrong of the result: sizes, color space, and an offset.
_LEFT_OUT = {
    int(ExifTags.IFD.Exif): (
        ExifTags.Base.ExifImageWidth,
        ExifTags.Base.ExifImageHeight,
        ExifTags.Base.ColorSpace,
        ExifTags.Base.ExifInteroperabilityOffset,
    )
}
_TAG = re.compile(r'jaxcolor, source sha256:([0-9a-f]{64}), settings ([0-9a-f]{32})')


class Tag(NamedTuple):
    """How a result was made, written to its EXIF field Software."""

    source: str  # SHA-256 of the photo's file, 64 hex digits
    settings: str  # digest of the model and its settings, 32 hex digits

    def __str__(self) -> str:
        return f'jaxcolor, source sha256:{self.source}, settings {self.settings}'


def read_tag(path: str | os.PathLike) -> Tag | None:
    """The tag of a file that this program made; None of all other files."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            match = _TAG.fullmatch(str(image.getexif().get(ExifTags.Base.Software)))
    except Exception:  # broken files raise anything
        return None
    return Tag(*match.groups()) if match else None


def encode_exif(
    directories: Mapping[int, Mapping[int, Any]],
    tag: Tag,
    dpi: tuple[float, float] | None = None,
    with_maker_note: bool = True,
) -> tuple[bytes, list[str]]:
    """Encodes the EXIF data that hold for the result, too: author, date, camera, position, resolution; and the tag.

    Args:
        directories: of the photo's `Metadata`.
        tag: of the result.
        dpi: pixels an inch, in x and y.
        with_maker_note: whether the camera's own, unpublished data are kept; they can be larger than a JPEG allows.

    Returns:
        (the EXIF data, the names of fields that cannot be encoded and are dropped: they do not hold what EXIF says).
    """
    kept = {
        (number, field): _as_text(value) if number == 0 else value
        for number, fields in directories.items()
        for field, value in fields.items()
        if (field in _KEPT if number == 0 else field not in _LEFT_OUT.get(number, ()))
        and (with_maker_note or field != ExifTags.Base.MakerNote)
    }
    if dpi:
        resolution = {'XResolution': dpi[0], 'YResolution': dpi[1], 'ResolutionUnit': _INCH}
        kept |= {(0, ExifTags.Base[name]): value for name, value in resolution.items()}
    try:
        return _encode(kept, tag), []
    except Exception:  # Pillow raises anything on values of a wrong type; one by one they show which
        dropped = {key for key, value in kept.items() if not _can_be_encoded(key, value, tag)}
    kept = {key: value for key, value in kept.items() if key not in dropped}
    return _encode(kept, tag), sorted(_name(*key) for key in dropped)


def _as_text(value):
    """Text that is not ASCII, such as names, as the bytes that it was read from; Pillow would write question marks."""
    return value.encode('latin-1', 'replace') if isinstance(value, str) and not value.isascii() else value


def _encode(kept, tag):
    """{(directory, field): value} -> bytes."""
    exif = Image.Exif()
    for (number, field), value in kept.items():
        (exif.get_ifd(number) if number else exif)[field] = value
    exif[ExifTags.Base.Software] = str(tag)
    return exif.tobytes()


def _can_be_encoded(key, value, tag):
    try:
        return bool(_encode({key: value}, tag))
    except Exception:  # as above
        return False


def _name(number, field):
    names = ExifTags.GPSTAGS if number == ExifTags.IFD.GPSInfo else ExifTags.TAGS
    return names.get(field, f'{field:#06x}')
