"""What photo files say beside their pixels: EXIF, XMP, IPTC, resolution."""

import re
from typing import Any, NamedTuple

from PIL import ExifTags, Image, TiffImagePlugin

_IPTC_TAG = 33723  # of TIFF
_IPTC_RESOURCE = 0x0404  # of Photoshop's blocks, in which JPEG has it
# What XMP repeats of the stored picture, which the decoder turns.
_XMP_ORIENTATION = re.compile(rb'(tiff:Orientation(?:\s*=\s*["\']|\s*>\s*))[1-8]')


class Metadata(NamedTuple):
    """What a photo file says beside its pixels, as far as it can be read."""

    exif: dict[int, dict[int, Any]]  # {directory: {tag: value}}; 0 is the first, others of Pillow's ExifTags.IFD; not empty
    exif_complete: bool  # whether all of EXIF could be read
    xmp: bytes  # a packet of XML, of an upright photo; empty if there is none
    iptc: bytes  # records of IPTC-IIM; empty if there are none
    dpi: tuple[float, float] | None  # pixels an inch, in x and y of the upright photo


def read_metadata(image: Image.Image) -> Metadata:
    """Reads what the file of an image that was decoded, at its first frame, says beside its pixels."""
    exif, exif_complete = _read_exif(image)
    xmp = image.info.get('xmp', b'')
    xmp = xmp.encode('utf-8', 'surrogateescape') if isinstance(xmp, str) else xmp
    xmp = _XMP_ORIENTATION.sub(rb'\g<1>1', xmp.rstrip(b'\0')) if isinstance(xmp, bytes) else b''
    try:
        iptc = _read_iptc(image)
    except Exception:  # broken files raise anything
        iptc = b''
    return Metadata(exif, exif_complete, xmp, iptc, _read_dpi(image, exif))


def _read_exif(image):
    """({directory: {tag: value}}, whether all of it could be read)."""
    directories, complete = {}, True
    for number in (0, ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        # Broken EXIF raises anything: struct.error, SyntaxError, KeyError, OverflowError, ...
        try:
            exif = image.getexif()
            if tags := dict(exif.get_ifd(number) if number else exif):
                directories[int(number)] = tags
        except Exception:
            complete = False
    return directories, complete


def _read_iptc(image):
    if image.format == 'TIFF':
        # As they are stored: many programs, Photoshop among them, say that these bytes are words of 32 bits.
        return TiffImagePlugin.ImageFileDirectory_v1.from_v2(image.tag_v2).tagdata.get(_IPTC_TAG, b'')
    value = (image.info.get('photoshop') or {}).get(_IPTC_RESOURCE, b'')
    return value if isinstance(value, bytes) else b''


def _read_dpi(image, exif):
    """Pixels an inch, in x and y; None if the file does not say, or says what no scanner does."""
    fields = exif.get(0, {})
    units = {2: 1.0, 3: 2.54}  # an inch, a centimeter
    try:
        scale = 1.0 if 'dpi' in image.info else units[fields[ExifTags.Base.ResolutionUnit]]
        given = image.info.get('dpi') or (fields[ExifTags.Base.XResolution], fields[ExifTags.Base.YResolution])
        x, y = (float(value) * scale for value in given)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    if not (1 <= x <= 65535 and 1 <= y <= 65535):
        return None
    return (y, x) if fields.get(ExifTags.Base.Orientation) in (5, 6, 7, 8) else (x, y)
