"""Decoding photos: upright, in sRGB, shrunk by an area filter, within the pixel limit."""

import io
import struct
import zlib

import numpy as np
import pytest
from odd_photos import FORMATS, STORED, encoded, quadrants, turned_file, turned_wrongly
from PIL import Image, ImageCms, PngImagePlugin

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


GRAY = np.linspace(0, 255, 64 * 48).reshape(48, 64)  # black to white


def tiff(values, **options):
    return encoded(Image.fromarray(values), format='TIFF', **options)


@pytest.mark.parametrize(
    ('scale', 'dtype'),
    [
        (65535, np.uint16),
        (65535, np.int32),
        (65535, np.float32),
        (4095, np.uint16),
        (255, np.uint16),
        (255, np.int32),
        (255, np.float32),
        (1, np.float32),
        (1e8, np.float32),
    ],
)
def test_depths_by_their_values(scale, dtype):
    data = tiff((GRAY * (scale / 255)).astype(dtype))
    gray = np.asarray(open_photo(data, max_megapixels=1))[..., 0].astype(int)
    assert np.abs(gray - GRAY).max() <= 1.5  # both conversions round


def test_floats_may_lie_a_little_outside():
    values = (GRAY / 255 * 1.04 - 0.02).astype(np.float32)  # -0.02 to 1.02
    gray = np.asarray(open_photo(tiff(values), max_megapixels=1))[..., 0].astype(int)
    assert np.abs(gray - np.clip(255 * values, 0, 255)).max() <= 0.5


def test_a_tag_keeps_a_dark_photo_dark():
    data = tiff((GRAY * (2047 / 255)).astype(np.uint16), tiffinfo={281: 4095})
    gray = np.asarray(open_photo(data, max_megapixels=1))[..., 0].astype(int)
    assert np.abs(gray - GRAY * 2047 / 4095).max() <= 1


def test_values_that_are_no_numbers_are_black():
    values = (GRAY / 255).astype(np.float32)
    values[0, :3], values[-1, -3:] = np.nan, (np.inf, -np.inf, np.nan)
    gray = np.asarray(open_photo(tiff(values), max_megapixels=1))[..., 0].astype(int)
    assert (gray[0, :3] == 0).all() and (gray[-1, -3:] == 0).all()
    assert np.abs(gray - GRAY)[1:-1].max() <= 1


def test_16_bits_whose_white_is_zero():
    data = tiff((GRAY * 257).astype(np.uint16))
    entry = struct.pack('<HHIHH', 262, 3, 1, 1, 0)
    assert data.count(entry) == 1
    gray = np.asarray(open_photo(data.replace(entry, struct.pack('<HHIHH', 262, 3, 1, 0, 0)), max_megapixels=1))[..., 0]
    assert np.abs(gray.astype(int) - (255 - GRAY)).max() <= 1


def linear_profile():
    """sRGB's profile with curves of gamma 1, and its name."""
    raw = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes())
    for i in range(struct.unpack('>I', raw[128:132])[0]):
        signature, start, _ = struct.unpack('>4sII', raw[132 + 12 * i : 144 + 12 * i])
        if signature in (b'rTRC', b'gTRC', b'bTRC'):
            raw[start : start + 12] = b'curv' + bytes(8)
            raw[140 + 12 * i : 144 + 12 * i] = struct.pack('>I', 12)
    return bytes(raw)


@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_a_profile_is_what_it_says_not_its_name(mode):
    profile = linear_profile()
    assert 'sRGB' in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    image = Image.fromarray(GRAY.astype(np.uint8)).convert(mode)
    photo = open_photo(encoded(image, format='PNG', icc_profile=profile), max_megapixels=1)
    light = np.asarray(image.convert('L')) / 255
    expected = 255 * np.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, 12.92 * light)
    assert np.abs(np.asarray(photo)[..., 0] - expected).max() <= 2
    same = encoded(image, format='PNG', icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes())
    np.testing.assert_array_equal(np.asarray(open_photo(same, max_megapixels=1)), np.asarray(image.convert('RGB')))


@pytest.mark.parametrize('stage', ['open', 'load'])
def test_a_decoder_that_panics_rejects_the_photo(monkeypatch, stage):
    class Panic(BaseException):
        pass

    def panic(*_, **__):
        raise Panic('index out of bounds')

    data = encoded(Image.fromarray(quadrants()), format='PNG')
    if stage == 'open':
        monkeypatch.setattr(Image, 'open', panic)
    else:
        monkeypatch.setattr(PngImagePlugin.PngImageFile, 'load', panic)
    with pytest.raises(RejectedError, match='cannot be read' if stage == 'open' else 'Panic: index out of bounds'):
        open_photo(data, max_megapixels=1)


def test_resize_is_an_area_filter():
    rgb = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    photo = open_photo(encoded(Image.fromarray(rgb), format='PNG'), shorter_side=32, max_megapixels=1)
    assert photo.size == (48, 32)
    means = rgb.reshape(32, 2, 48, 2, 3).mean(axis=(1, 3))
    assert np.abs(np.asarray(photo) - means).max() <= 1  # Pillow rounds after each direction


def png_bomb(side):
    """A one-bit PNG of side x side zeros: a few kilobytes."""
    packer = zlib.compressobj(9)
    rows = b''.join(packer.compress(bytes((side // 8 + 1) * 1000)) for _ in range(side // 1000)) + packer.flush()
    header = struct.pack('>IIBBBBB', side, side, 1, 0, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')


def chunk(kind, data):
    """A chunk of a PNG."""
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


@pytest.mark.parametrize('bits', [1, 2, 4, 8])
def test_transparent_grays_of_few_bits(bits):
    gray = np.arange(64).reshape(8, 8) % 2**bits
    rows = b''.join(
        b'\0' + np.packbits(np.unpackbits(row[:, None], axis=1)[:, -bits:]).tobytes() for row in gray.astype(np.uint8)
    )
    header, clear = struct.pack('>IIBBBBB', 8, 8, bits, 0, 0, 0, 0), 1
    parts = [(b'IHDR', header), (b'tRNS', struct.pack('>H', clear)), (b'IDAT', zlib.compress(rows)), (b'IEND', b'')]
    photo = open_photo(b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*part) for part in parts), max_megapixels=1, keep_alpha=True)
    np.testing.assert_array_equal(np.asarray(photo)[..., 3], np.where(gray == clear, 0, 255))
    np.testing.assert_array_equal(np.asarray(photo)[..., 0], gray * (255 // (2**bits - 1)))


def test_an_empty_fourth_channel_of_a_tga():
    """Of 32 bits, and of 16, where Pillow takes the highest one for transparency even if the header says that it is none."""
    rgb, shape = quadrants(), struct.pack('<HH', 64, 48)
    head = bytes([0, 0, 2, *bytes(9)]) + shape
    words = np.stack([rgb[..., 2], rgb[..., 1], rgb[..., 0], np.zeros_like(rgb[..., 0])], axis=-1)
    five = (rgb >> 3).astype(np.uint16)
    short = 0x8000 | five[..., 0] << 10 | five[..., 1] << 5 | five[..., 2]
    for data in (head + b'\x20\x20' + words.tobytes(), head + b'\x10\x20' + short.astype('<u2').tobytes()):
        photo = open_photo(data, max_megapixels=1, keep_alpha=True)
        assert photo.mode == 'RGB' and np.abs(np.asarray(photo).astype(int) - rgb).max() <= 8


def test_photos_of_kinds_that_are_not_read():
    header = struct.pack('>IIBBBBB', 8, 8, 3, 0, 0, 0, 0)  # grays of 3 bits
    for data in (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header), b'BM' + bytes(60), b'\xff\xd8\xff\xc3' + bytes(40)):
        with pytest.raises(RejectedError, match='broken, or of a kind that cannot be read'):
            open_photo(data, max_megapixels=1)


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


@pytest.mark.skipif('AVIF' not in Image.SAVE, reason='this Pillow is built without AVIF')
def test_xmp_does_not_turn_an_avif():
    """Its own boxes say how it is turned (ISO 23008-12, 6.5.10)."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    data = encoded(Image.fromarray(quadrants()), format='AVIF', quality=90, xmp=xmp)
    assert turned_wrongly(open_photo(data, max_megapixels=1), quadrants()) < 0.1


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
