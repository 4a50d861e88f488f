"""Decoding photos: upright, in sRGB, shrunk by an area filter, within the pixel limit."""

import io
import struct
import zlib

import numpy as np
import pytest
from conftest import PHOTOS
from PIL import Image

from jaxcolor.prepare.decode import RejectedError, open_photo, pillow_unguarded


def encoded(image, **options):
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def test_orientation_is_applied():
    upright = Image.open(PHOTOS / 'train' / 'fish1.jpg').resize((80, 60))
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        turned = open_photo(encoded(upright, format='PNG', exif=exif), max_megapixels=1)
        assert turned.size == (upright.size if orientation < 5 else upright.size[::-1])
    exif[0x0112] = 6  # the camera's top is on the right
    turned = open_photo(encoded(upright, format='PNG', exif=exif), max_megapixels=1)
    np.testing.assert_array_equal(np.asarray(turned), np.rot90(np.asarray(upright), -1))


def test_modes_become_srgb():
    rgb = Image.new('RGB', (40, 40), (200, 100, 50))
    clear = Image.new('RGBA', (40, 40), (10, 20, 30, 0))
    deep = Image.fromarray(np.full((40, 40), 51 * 257, np.uint16))
    for image, options, expected, tolerance in [
        (rgb.convert('P', palette=Image.Palette.ADAPTIVE), {'format': 'PNG'}, (200, 100, 50), 1),
        (rgb.convert('CMYK'), {'format': 'TIFF'}, (200, 100, 50), 2),
        (clear, {'format': 'PNG'}, (255, 255, 255), 0),
        (deep, {'format': 'PNG'}, (51, 51, 51), 1),
        (rgb.convert('L'), {'format': 'WEBP'}, (124, 124, 124), 2),
    ]:
        photo = open_photo(encoded(image, **options), max_megapixels=1)
        assert photo.mode == 'RGB'
        assert np.abs(np.asarray(photo).astype(int) - expected).max() <= tolerance


def test_resize_is_an_area_filter():
    rgb = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    photo = open_photo(encoded(Image.fromarray(rgb), format='PNG'), shorter_side=32, max_megapixels=1)
    assert photo.size == (48, 32)
    means = rgb.reshape(32, 2, 48, 2, 3).mean(axis=(1, 3))
    assert np.abs(np.asarray(photo) - means).max() <= 1  # Pillow rounds after each direction


def png_bomb(side):
    """A one-bit PNG of side x side zeros: a few kilobytes."""

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b''.join(packer.compress(bytes((side // 8 + 1) * 1000)) for _ in range(side // 1000)) + packer.flush()
    header = struct.pack('>IIBBBBB', side, side, 1, 0, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')


def test_decompression_bomb_is_rejected_before_it_is_unpacked():
    bomb = png_bomb(16_000)
    assert len(bomb) < 100_000
    small = png_bomb(3_000)
    with pillow_unguarded():
        with pytest.raises(RejectedError, match='16000x16000 is more than 200 megapixels'):
            open_photo(bomb, max_megapixels=200)
        with pytest.raises(RejectedError, match='more than 8 megapixels'):
            open_photo(small, max_megapixels=8)
        assert open_photo(small, shorter_side=30, max_megapixels=9).size == (30, 30)
