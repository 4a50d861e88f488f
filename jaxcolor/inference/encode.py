"""Writes results to files: 8 or 16 bits a channel, with what the photo's file said beside its pixels."""

import io
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin

from jaxcolor.prepare.deep import SRGB, DeepImage, encode_png
from jaxcolor.prepare.file_metadata import Metadata

# Formats that hold IPTC records, and how many bytes of XMP and IPTC fit into a segment of a JPEG.
_HOLD_IPTC = ('JPEG', 'TIFF')
_MAX_SEGMENT = {'xmp': 65_502, 'iptc': 65_500}
_STRIP_BYTES = 2**18  # of a TIFF's strip, unpacked
_ASCII, _LONG, _UNDEFINED = 2, 4, 7  # types of TIFF
# Fields that the writer of TIFF sets itself.
_OWN_FIELDS = (ExifTags.Base.XResolution, ExifTags.Base.YResolution, ExifTags.Base.ResolutionUnit)
_XMP_TAG, _IPTC_TAG = 700, 33723


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
    path: Path,
    file_format: str,
    images: Sequence[Image.Image | DeepImage],
    exif: bytes,
    metadata: Metadata,
    options: Mapping[str, Any],
) -> None:
    """Writes a file, with the profile of sRGB.

    Args:
        path: of the file.
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
        _save_tiff(path, images, exif, metadata)
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
        path.write_bytes(_deep_png(images[0], options))
        return
    if len(images) > 1:
        options |= {'save_all': True, 'append_images': images[1:]}
    images[0].save(path, file_format, **options)


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


def _save_tiff(path, images, exif, metadata):
    """Deflate with differences of neighbors, which readers have known since 2002."""
    fields = Image.Exif()
    fields.load(exif)
    directories = {number: fields.get_ifd(number) for number in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)}
    directories = {number: directory for number, directory in directories.items() if directory}
    extra = [(code, *_as_field(value), False) for code, value in _base_fields(fields).items()]
    extra += [(int(number), _LONG, 1, 0, True) for number in directories]  # where they are follows below
    if metadata.xmp:
        extra.append((_XMP_TAG, 1, len(metadata.xmp), metadata.xmp, True))
    if metadata.iptc:
        extra.append((_IPTC_TAG, _UNDEFINED, len(metadata.iptc), metadata.iptc, True))
    with tifffile.TiffWriter(path, byteorder='<') as file:
        for image in images:
            channels, dtype = len(image.mode), np.uint16 if isinstance(image, DeepImage) else np.uint8
            rows = max(1, _STRIP_BYTES // (image.width * channels * np.dtype(dtype).itemsize))
            file.write(
                _strips(image, rows),
                shape=(image.height, image.width, channels),
                dtype=dtype,
                photometric='rgb',
                extrasamples=['unassalpha'] if channels == 4 else None,
                rowsperstrip=rows,
                compression='adobe_deflate',
                predictor=True,
                iccprofile=SRGB,
                resolution=metadata.dpi,
                resolutionunit='INCH' if metadata.dpi else None,
                software=str(fields[ExifTags.Base.Software]),
                description=_as_field(fields.get(ExifTags.Base.ImageDescription, b''))[2] or None,
                metadata=None,
                extratags=extra,
                maxworkers=1,  # photos are written in parallel
            )
    if directories:
        _append_directories(path, directories)


def _strips(image, rows):
    """Strips of rows, arrays (rows, W, C)."""
    for top in range(0, image.height, rows):
        bottom = min(image.height, top + rows)
        if isinstance(image, DeepImage):
            yield image.pixels[top:bottom]
        else:
            yield np.asarray(image.crop((0, top, image.width, bottom)))


def _base_fields(fields):
    """{tag: value} of the first directory that TIFF's writer takes as they are."""
    own = {*_OWN_FIELDS, ExifTags.Base.Software, ExifTags.Base.ImageDescription, *map(int, ExifTags.IFD)}
    return {code: value for code, value in fields.items() if code not in own}


def _as_field(value):
    """(type, count, value) of a field of text. Latin letters, such as those of names, are the bytes they were read from."""
    data = value if isinstance(value, bytes) else str(value).encode('latin-1', 'replace')
    return _ASCII, len(data) + 1, data


def _append_directories(path, directories):
    """Appends EXIF's other directories to a TIFF file, and says in the first where they are."""
    offsets = {}
    with open(path, 'r+b') as file:
        for number, values in directories.items():
            directory = TiffImagePlugin.ImageFileDirectory_v2(prefix=b'II*\0')
            for code, value in values.items():
                directory[code] = value
            offsets[int(number)] = file.seek(0, io.SEEK_END) + file.seek(0, io.SEEK_END) % 2
            file.seek(offsets[int(number)])
            file.write(directory.tobytes(offsets[int(number)]))
    with tifffile.TiffFile(path, mode='r+b') as tiff:
        for number, offset in offsets.items():
            tiff.pages[0].tags[number].overwrite(offset)
