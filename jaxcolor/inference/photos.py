"""Reads photo files and writes the results."""

import os
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageCms

from jaxcolor import files
from jaxcolor.errors import UserError
from jaxcolor.prepare.decode import FORMATS, RejectedError, open_photo

# Formats of results, by suffix; other photos become PNG.
OUTPUT_FORMATS = {'.jpg': 'JPEG', '.jpeg': 'JPEG', '.png': 'PNG', '.webp': 'WEBP', '.tif': 'TIFF', '.tiff': 'TIFF'}
_MIN_SIDE = 2
_EXIF_KEPT = [ExifTags.Base[name] for name in ('ImageDescription', 'Make', 'Model', 'DateTime', 'Artist', 'Copyright')]
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()


def read_photo(path: str | os.PathLike, max_megapixels: float) -> Image.Image:
    """Reads a photo. Call it inside `pillow_unguarded()`.

    Args:
        path: of the file.
        max_megapixels: refuses larger photos.

    Returns:
        The upright photo in sRGB, mode RGB or RGBA.

    Raises:
        UserError: the file cannot be read, is not a photo, or is too large or too small.
    """
    try:
        image = open_photo(Path(path).read_bytes(), max_megapixels=max_megapixels, keep_alpha=True)
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror}).') from None
    except RejectedError as error:
        hint = '; raise --max-megapixels to allow it' if 'megapixels' in str(error) else ''
        raise UserError(f'{path} cannot be colored: {error}{hint}.') from None
    if min(image.size) < _MIN_SIDE:
        raise UserError(f'{path} cannot be colored: {image.width}x{image.height} is too small.')
    return image


def write_photo(image: Image.Image, path: str | os.PathLike, exif: bytes | None = None) -> None:
    """Writes a photo atomically.

    Args:
        image: RGB or RGBA in sRGB.
        path: with a suffix of OUTPUT_FORMATS, which sets the format.
        exif: encoded EXIF data of the file.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    file_format = OUTPUT_FORMATS[path.suffix.lower()]
    options: dict[str, Any] = {'quality': 95} if file_format in ('JPEG', 'WEBP') else {}
    if file_format == 'JPEG':
        options['subsampling'] = 0
    if exif:
        options['exif'] = exif
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic(path) as temporary:
            image.save(temporary, file_format, icc_profile=_SRGB, **options)
    except OSError as error:
        raise UserError(f'{path} cannot be written ({error.strerror or error}).') from None


def read_exif(path: str | os.PathLike) -> bytes | None:
    """The encoded EXIF data that hold for the result, too: author, date, camera, position; None if there are none.

    The others (orientation, sizes, offsets) would be wrong.
    """
    with Image.open(path, formats=tuple(FORMATS)) as image:
        exif, kept = image.getexif(), Image.Exif()
        kept.update({tag: exif[tag] for tag in _EXIF_KEPT if tag in exif})
        for directory in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            if entries := exif.get_ifd(directory):
                kept.get_ifd(directory).update(entries)
        return kept.tobytes() if kept else None
