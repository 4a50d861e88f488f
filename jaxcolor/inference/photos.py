"""Photo files: reading one for the network, writing the result."""

import os
from pathlib import Path

from PIL import ExifTags, Image, ImageCms

from jaxcolor import files
from jaxcolor.errors import UserError
from jaxcolor.prepare.decode import FORMATS, RejectedError, open_photo

# Formats that results keep, by suffix; others become PNG.
OUTPUT_FORMATS = {'.jpg': 'JPEG', '.jpeg': 'JPEG', '.png': 'PNG', '.webp': 'WEBP', '.tif': 'TIFF', '.tiff': 'TIFF'}
_MIN_SIDE = 2
_EXIF_KEPT = [ExifTags.Base[name] for name in ('ImageDescription', 'Make', 'Model', 'DateTime', 'Artist', 'Copyright')]
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()


def read_photo(path: str | os.PathLike, max_megapixels: float) -> Image.Image:
    """A file -> an upright photo in sRGB, RGB or RGBA. Call it inside `pillow_unguarded()`. Raises UserError."""
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
    """Writes a photo atomically, in the format of its suffix, one of OUTPUT_FORMATS. Raises UserError."""
    path = Path(path)
    kind = OUTPUT_FORMATS[path.suffix.lower()]
    options = {'quality': 95, 'subsampling': 0} if kind == 'JPEG' else {'quality': 95} if kind == 'WEBP' else {}
    if exif:
        options['exif'] = exif
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic(path) as temporary:
            image.save(temporary, kind, icc_profile=_SRGB, **options)
    except OSError as error:
        raise UserError(f'{path} cannot be written ({error.strerror or error}).') from None


def read_exif(path: str | os.PathLike) -> bytes | None:
    """The EXIF data to keep: who took the photo, when and with what; None where there is none.

    The rest (orientation, sizes, offsets) would be wrong for the result.
    """
    with Image.open(path, formats=FORMATS) as image:
        of_photo, kept = image.getexif(), Image.Exif()
        kept.update({tag: of_photo[tag] for tag in _EXIF_KEPT if tag in of_photo})
        for directory in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            if entries := of_photo.get_ifd(directory):
                kept.get_ifd(directory).update(entries)
        return kept.tobytes() if kept else None
