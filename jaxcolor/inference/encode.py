"""Writes results to files: 8 or 16 bits a channel, with what the photo's file said beside its pixels."""

import io
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin, TiffTags

from jaxcolor.prepare.deep import DeepImage, encode_png
from jaxcolor.prepare.file_metadata import Metadata
from jaxcolor.prepare.profiles import SRGB

# Formats that hold IPTC records, and how many bytes of XMP and IPTC fit into a segment of a JPEG.
_HOLD_IPTC = ('JPEG', 'TIFF')
_MAX_SEGMENT = {'xmp': 65_502, 'iptc': 65_500}
_STRIP_BYTES = 2**18  # of a TIFF's strip, unpacked
# Tags of TIFF.
_STRIP_OFFSETS, _STRIP_SIZES, _XMP, _IPTC = 273, 279, 700, 33723


def fitting(metadata: Metadata, file_format: str) -> tuple[Metadata, list[str]]:
    """(the metadata without what a format cannot hold, the names of that)."""
    dropped = []
    if metadata.iptc and (
        file_format not in _HOLD_IPTC or (file_format == 'JPEG' and len(metadata.iptc) > _MAX_SEGMENT['iptc'])
    ):
        metadata = metadata._replace(iptc=b'')
        dropped.append('IPTC')
    if metadata.xmp and file_format in ('JPEG', 'MPO') and len(metadata.xmp) > _MAX_SEGMENT['xmp']:
        metadata = metadata._replace(xmp=b'')
        dropped.append('XMP')
    return metadata, dropped


def save(
    file: BinaryIO,
    file_format: str,
    images: Sequence[Image.Image | DeepImage],
    exif: bytes,
    metadata: Metadata,
    options: Mapping[str, Any],
) -> None:
    """Writes a file, with the profile of sRGB.

    Args:
        file: empty, seekable; an `Output`, or memory.
        file_format: Pillow's name; TIFF and PNG hold 16 bits, PNG of one frame.
        images: RGB or RGBA in sRGB, one a frame.
        exif: of `encode_exif`.
        metadata: of `fitting`.
        options: Pillow's, of the format.

    Raises:
        OSError: the file cannot be written.
        Exception: any, if the format cannot hold the EXIF data.
    """
    if file_format == 'TIFF':
        _save_tiff(file, images, exif, metadata)
        return
    options = {**options, 'icc_profile': SRGB, 'exif': exif}
    if metadata.dpi and file_format != 'WEBP':
        options['dpi'] = metadata.dpi
    if metadata.xmp and file_format == 'PNG':
        text = PngImagePlugin.PngInfo()
        text.add_itxt('XML:com.adobe.xmp', metadata.xmp.decode('utf-8', 'replace'))
        options['pnginfo'] = text
    elif metadata.xmp:
        options['xmp'] = metadata.xmp
    if metadata.iptc:
        options['extra'] = _iptc_segment(metadata.iptc)
    if isinstance(images[0], DeepImage):
        file.write(_deep_png(images[0], options))
        return
    if len(images) > 1:
        options |= {'save_all': True, 'append_images': images[1:]}
    images[0].save(file, file_format, **options)


class Output(io.BufferedRandom):
    """A file that is written by Python: where Pillow's encoders write it themselves, errors do not say what happened."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, 'w+'))

    def fileno(self) -> int:
        """Hides the descriptor from Pillow."""
        raise io.UnsupportedOperation


def _iptc_segment(iptc):
    """IPTC records as a JPEG's segment APP13: in a block of Photoshop's, without a name."""
    block = b'Photoshop 3.0\0' + b'8BIM\x04\x04\0\0' + struct.pack('>I', len(iptc)) + iptc + bytes(len(iptc) % 2)
    return b'\xff\xed' + struct.pack('>H', len(block) + 2) + block


def _deep_png(image, options):
    """A PNG of 16 bits: Pillow writes all but the pixels."""
    shell = io.BytesIO()
    Image.new(image.mode, (1, 1)).save(shell, 'PNG', **options)
    pixels = list(_chunks(encode_png(image)))
    own = {b'IHDR': pixels[:1], b'IDAT': [chunk for chunk in pixels if chunk[4:8] == b'IDAT']}
    chunks = [part for chunk in _chunks(shell.getvalue()) for part in own.get(chunk[4:8], [chunk])]
    return b''.join([shell.getvalue()[:8], *chunks])


def _chunks(png: bytes) -> Iterator[bytes]:
    at = 8
    while at < len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], 'big')
        yield png[at:end]
        at = end


def _save_tiff(file, images, exif, metadata):
    """Deflate with differences of neighbors, which readers have known since 2002. One strip is in memory at a time."""
    fields = Image.Exif()
    fields.load(exif)
    file.write(b'II*\0' + bytes(4))
    link = 4  # where the offset of the next page's directory belongs
    for image in images:
        directory, strips = _tiff_directory(image, fields, metadata)
        start = file.tell() + file.tell() % 2
        length = len(directory.tobytes(start))
        file.seek(start + length)
        # Pillow counts the strips' offsets from the end of the directory.
        offsets, sizes = [], []
        for strip in strips:
            offsets.append(file.tell() - start - length)
            sizes.append(file.write(strip))
        directory[_STRIP_OFFSETS], directory[_STRIP_SIZES] = tuple(offsets), tuple(sizes)
        end = file.tell()
        file.seek(start)
        file.write(directory.tobytes(start))
        file.seek(link)
        file.write(struct.pack('<I', start))
        link = start + 2 + 12 * len(directory)
        file.seek(end)


def _tiff_directory(image, fields, metadata):
    """(the directory of a page without the places of its strips, the strips)."""
    channels, bits = len(image.mode), 16 if isinstance(image, DeepImage) else 8
    rows = max(1, _STRIP_BYTES // (image.width * channels * bits // 8))
    places = (0,) * -(-image.height // rows)
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for code in (code for code in fields if code not in TiffTags.TAGS_V2_GROUPS):
        # Latin letters, such as those of names, are the bytes that they were read from.
        value = fields[code]
        directory[code] = value.encode('latin-1', 'replace') if isinstance(value, str) else value
        if isinstance(value, (str, bytes)):
            directory.tagtype[code] = TiffTags.ASCII
    for code in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        if code in fields:
            directory[code] = fields.get_ifd(code)
    layout: dict[str, Any] = {
        'ImageWidth': image.width,
        'ImageLength': image.height,
        'BitsPerSample': (bits,) * channels,
        'Compression': 8,
        'PhotometricInterpretation': 2,
        'StripOffsets': places,
        'SamplesPerPixel': channels,
        'RowsPerStrip': rows,
        'StripByteCounts': places,
        'PlanarConfiguration': 1,
        'Predictor': 2,
        **({'ExtraSamples': 2} if channels == 4 else {}),
    }
    for name, value in layout.items():
        directory[ExifTags.Base[name]] = value
    directory.tagtype[_STRIP_OFFSETS] = directory.tagtype[_STRIP_SIZES] = TiffTags.LONG
    for code, data, kind in [
        (ExifTags.Base.InterColorProfile, SRGB, TiffTags.UNDEFINED),
        (_XMP, metadata.xmp, TiffTags.BYTE),
        (_IPTC, metadata.iptc, TiffTags.UNDEFINED),
    ]:
        if data:
            directory.tagtype[code] = kind
            directory[code] = data
    return directory, _strips(image, rows)


def _strips(image, rows):
    """Compressed strips of rows, each pixel as its difference from the one before it in the row."""
    for top in range(0, image.height, rows):
        bottom = min(image.height, top + rows)
        if isinstance(image, DeepImage):
            strip = image.pixels[top:bottom]
        else:
            strip = np.asarray(image.crop((0, top, image.width, bottom)))
        differences = np.diff(strip, axis=1, prepend=np.zeros_like(strip[:, :1]))
        # Level 6 takes up to five times as long for 5 % less.
        yield zlib.compress(differences.astype(differences.dtype.newbyteorder('<')).tobytes(), level=1)
