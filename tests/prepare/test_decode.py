"""Decoding photos: upright, in sRGB, shrunk by an area filter, within the pixel limit."""

import struct
import zlib

import numpy as np
import pytest
from odd_photos import FORMATS, STORED, encoded, quadrants, turned_file, turned_wrongly
from PIL import Image, PngImagePlugin

from jaxcolor.prepare.decode import RejectedError, open_photo, pillow_unguarded


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


@pytest.mark.parametrize('name', FORMATS)
@pytest.mark.parametrize('orientation', STORED)
def test_photos_are_turned_once(name, orientation):
    data = turned_file(name, orientation)
    photo = open_photo(data, max_megapixels=1)
    assert photo.size == (64, 48)
    assert turned_wrongly(photo, quadrants()) < 0.1
    assert open_photo(data, shorter_side=24, max_megapixels=1).size == (32, 24)


def test_orientation_behind_the_pixels_of_a_png():
    data = turned_file('PNG', 6)
    start = data.index(b'eXIf') - 4
    length = 12 + struct.unpack('>I', data[start : start + 4])[0]
    chunk, rest = data[start : start + length], data[:start] + data[start + length :]
    end = rest.index(b'IEND') - 4
    np.testing.assert_array_equal(np.asarray(open_photo(rest[:end] + chunk + rest[end:], max_megapixels=1)), quadrants())


@pytest.mark.parametrize('name', ['JPEG', 'PNG', 'WebP'])
def test_mutated_exif_does_not_reject_the_photo(name):
    """Every byte of the EXIF data is changed in turn, to the values that break offsets, types and counts."""
    exif = Image.Exif()
    exif[0x010E], exif[0x8769] = 'a photo', {0x9003: '2001:01:01 00:00:00', 0x829A: 0.5}
    upright = Image.fromarray(quadrants()[::4, ::4])
    block = exif.tobytes()
    for at in range(6, len(block), 3):
        for value in (0, 255, block[at] ^ 1):
            mutated = block[:at] + bytes([value]) + block[at + 1 :]
            with pillow_unguarded():
                photo = open_photo(encoded(upright, exif=mutated, **FORMATS[name]), max_megapixels=1)
            assert photo.size in ((16, 12), (12, 16))  # an orientation may come up, too


def test_large_texts_and_profiles_of_a_png():
    """Photoshop's history and profiles of printers have megabytes."""
    text = PngImagePlugin.PngInfo()
    text.add_text('comment', 3_000_000 * 'x', zip=True)
    text.add_itxt('XML:com.adobe.xmp', 3_000_000 * 'x', zip=True)
    for options in ({'pnginfo': text}, {'icc_profile': bytes(3_000_000)}):
        data = encoded(Image.fromarray(quadrants()), format='PNG', **options)
        with pillow_unguarded():
            np.testing.assert_array_equal(np.asarray(open_photo(data, max_megapixels=1)), quadrants())
