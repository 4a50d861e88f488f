"""Photo files as cameras, scanners and web pages write them, made in the test; and how tests color them."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from jaxcolor.inference.colorize import colorize
from jaxcolor.inference.plan import plan_outputs


def encoded(image, **options):
    """The bytes of an image's file."""
    file = io.BytesIO()
    # Copies: saving as JPEG leaves settings at an image of Pillow, which TIFF stumbles over.
    if 'append_images' in options:
        options['append_images'] = [frame.copy() for frame in options['append_images']]
    image.copy().save(file, **options)
    return file.getvalue()


def color_quietly(colorizer, inputs, out, **options):
    """Colors photos as the command does -> its summary."""
    return colorize(colorizer, plan_outputs(inputs, out), quiet=True, **options)


def forbid_folder(monkeypatch, name):
    """Makes folders of a name unreadable, to root as well."""
    listing = os.scandir

    def scandir(path):
        if str(path).endswith(name):
            raise PermissionError(13, 'Permission denied')
        return listing(path)

    monkeypatch.setattr(os, 'scandir', scandir)


# How each format is written, with an EXIF orientation or without.
FORMATS = {
    'JPEG': {'format': 'JPEG', 'quality': 95},
    'PNG': {'format': 'PNG'},
    'WebP': {'format': 'WEBP', 'lossless': True},
    'TIFF': {'format': 'TIFF'},
    'TIFF-LZW': {'format': 'TIFF', 'compression': 'tiff_lzw'},
    'AVIF': {'format': 'AVIF', 'quality': 90},
}


def quadrants():
    """Four areas of different colors, 64 x 48: every way to turn it gives another picture."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :32], pixels[:24, 32:], pixels[24:, :32] = (230, 60, 60), (60, 200, 60), (60, 60, 220)
    return pixels


# What a camera stores of an upright photo under each orientation (EXIF 2.3, tag 274), by NumPy.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


def turned_file(name, orientation):
    """A file of the format `name` whose stored pixels have to be turned by the EXIF orientation."""
    if name == 'AVIF' and 'AVIF' not in Image.SAVE:
        pytest.skip('this Pillow is built without AVIF')
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](quadrants()))
    return encoded(Image.fromarray(stored), exif=exif, **FORMATS[name])


def turned_files(folder):
    """Writes a file of every format and orientation to a folder."""
    folder.mkdir()
    for name in FORMATS:
        for orientation in STORED:
            suffix = FORMATS[name]['format'].lower()
            if suffix == 'avif' and 'AVIF' not in Image.SAVE:
                continue
            (folder / f'{name}-{orientation}.{suffix}').write_bytes(turned_file(name, orientation))


def turned_wrongly(rgb, upright):
    """The fraction of pixels that differ much: by a lossy format some at the edges of areas, at least half if turned."""
    return np.mean(np.abs(np.asarray(rgb, np.float32) - upright).max(axis=-1) > 60)
