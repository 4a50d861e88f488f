"""What a result keeps of its photo's EXIF data."""

import re
from collections.abc import Mapping
from typing import Any

from PIL import ExifTags, Image

from jaxcolor.inference.tags import Tag

_KEPT = [ExifTags.Base[name] for name in ('ImageDescription', 'Make', 'Model', 'DateTime', 'Artist', 'Copyright')]
# Descriptions that programs of science write about the stored pixels, which the result does not have.
_OF_PIXELS = re.compile(r'\s*(\{"shape":|ImageJ=|<\?xml[^>]*\?>.*<OME\b)', re.DOTALL)
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
        if (field in _KEPT and not _OF_PIXELS.match(str(value)) if number == 0 else field not in _LEFT_OUT.get(number, ()))
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
