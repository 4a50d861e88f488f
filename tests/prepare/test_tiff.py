"""TIFFs of all kinds, and what is guessed or lost: pages, overviews, white, layouts that Pillow cannot read."""

import io
import struct
import zlib

import numpy as np
import pytest
from odd_photos import encoded
from PIL import Image, ImageCms
from skimage.color import rgb2lab

from jaxcolor.prepare.decode import RejectedError, open_photo, pillow_unguarded
from jaxcolor.prepare.deep import DeepImage
from jaxcolor.prepare.frames import open_frames

imagecodecs, tifffile = pytest.importorskip('imagecodecs'), pytest.importorskip('tifffile')
GRAY = np.linspace(0, 1, 64 * 48).reshape(48, 64)
RGB = np.stack([GRAY, GRAY[::-1], GRAY[:, ::-1]], axis=-1)
BYTES, DEEP = (np.round(255 * GRAY).astype(np.uint8), np.round(65535 * GRAY).astype(np.uint16))


def tiff(*pages):
    """The file of pages: arrays, or (array, options of tifffile's)."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for page in pages:
            pixels, options = page if isinstance(page, tuple) else (page, {})
            writer.write(pixels, **{'photometric': 'minisblack', 'metadata': None, **options})
    return file.getvalue()


def frames_of(data):
    with pillow_unguarded():
        return open_frames(data, max_megapixels=1)


def in_8_bits(frame):
    return frame.in_8_bits() if isinstance(frame, DeepImage) else frame


def difference(frame, expected):
    """The largest difference of levels, 0 to 255, of a frame (or a Pillow image) and an array from 0 to 1."""
    found = np.asarray(in_8_bits(frame).convert('L' if expected.ndim == 2 else 'RGB'))
    return np.abs(found - 255.0 * expected).max()


# Layouts.


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
@pytest.mark.parametrize('expected', [GRAY, RGB], ids=['gray', 'RGB'])
def test_floats(dtype, expected):
    data = tiff((expected.astype(dtype), {'photometric': 'rgb' if expected.ndim == 3 else 'minisblack'}))
    frames = frames_of(data)
    assert isinstance(frames.images[0], DeepImage) and frames.notes == []
    assert difference(frames.images[0], expected) < 1
    assert difference(open_photo(data, max_megapixels=1), expected) < 1


@pytest.mark.parametrize(('kind', 'dtype'), [('cielab', np.uint8), ('cielab', np.uint16), ('icclab', np.uint8)])
def test_lab(kind, dtype):
    """Held against scikit-image; gray is gray under every white."""
    bits = 8 * dtype().itemsize
    lab = rgb2lab(np.repeat(GRAY[..., None], 3, axis=2))
    lightness = np.round(lab[..., :1] * ((2**bits - 1) / 100))
    neutral = np.full((*GRAY.shape, 2), 128 if kind == 'icclab' else 0)
    data = tiff((np.concatenate([lightness, neutral], axis=2).astype(dtype), {'photometric': kind}))
    for frame in (frames_of(data).images[0], open_photo(data, max_megapixels=1)):
        assert difference(frame, np.repeat(GRAY[..., None], 3, axis=2)) < (1 if bits == 16 else 2)


def test_lab_has_colors():
    """A color of L*a*b* under D50, by Little CMS."""
    lab = Image.new('LAB', (40, 40), (150, 40, 256 - 60))
    source, target = ImageCms.createProfile('LAB'), ImageCms.createProfile('sRGB')
    # Pillow's LAB is that of TIFF's CIELab: signed.
    expected = ImageCms.profileToProfile(lab, source, target, outputMode='RGB').getpixel((0, 0))
    data = tiff((np.asarray(lab).copy(), {'photometric': 'cielab'}))
    assert np.abs(np.subtract(open_photo(data, max_megapixels=1).getpixel((0, 0)), expected)).max() <= 1


@pytest.mark.parametrize('compression', ['jpeg2000', 'webp'])
def test_compressions_that_pillow_lacks(compression):
    rgb = np.round(255 * RGB).astype(np.uint8)
    data = tiff((rgb, {'photometric': 'rgb', 'compression': compression, 'compressionargs': {'level': 100}}))
    frames = frames_of(data)
    assert frames.images[0].mode == 'RGB'
    assert np.abs(np.asarray(frames.images[0]) - 255 * RGB).mean() < 4


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize('orientation', [1, 6])
def test_gray_with_alpha(dtype, orientation):
    top = 1 if dtype == np.float32 else np.iinfo(dtype).max
    alpha = GRAY[::-1]
    stored = [np.rot90(x) for x in (GRAY, alpha)] if orientation == 6 else [GRAY, alpha]
    pixels = np.round(np.stack(stored, axis=-1) * top, 0 if top > 1 else 9).astype(dtype)
    data = tiff((pixels, {'extrasamples': ['unassalpha'], 'extratags': [(274, 3, 1, orientation, True)]}))
    (frame,) = frames_of(data).images
    assert difference(frame, GRAY) < 1
    found = np.asarray(in_8_bits(frame).convert('RGBA').getchannel('A'))
    assert np.abs(found - 255 * alpha).max() < 1
    assert open_photo(data, max_megapixels=1, keep_alpha=True).mode == 'RGBA'


def test_signed_bytes():
    data = tiff(np.round(127 * GRAY).astype(np.int8))
    for photo in (frames_of(data).images[0], open_photo(data, max_megapixels=1)):
        assert difference(photo, GRAY) <= 1.5  # half a step of 127


def test_without_the_extra(monkeypatch):
    monkeypatch.delattr('jaxcolor.prepare.tiff.tifffile')
    with pytest.raises(RejectedError, match=r"pip install 'jaxcolor\[formats\]'"):
        open_photo(tiff(GRAY.astype(np.float16)), max_megapixels=1)
    with pytest.raises(RejectedError, match='of a kind that cannot be read'):
        open_photo(b'II*\0\x08\0\0\0' + bytes(40), max_megapixels=1)


def test_what_is_no_photo_is_one_sentence():
    for data in (
        tiff((np.zeros((48, 64, 20), np.uint16), {'planarconfig': 'contig'})),
        tiff((np.zeros((48, 64), np.complex64), {})),
    ):
        with pytest.raises(RejectedError):
            frames_of(data)


# Pages.


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_overviews_and_masks_are_no_pages(dtype):
    page = (GRAY * np.iinfo(dtype).max).astype(dtype)
    smaller = [(page[::step, ::step], {'subfiletype': 1}) for step in (2, 4, 48)]
    kinds = [struct.pack('<HHII', 254, 4, 1, kind) for kind in (2, 4)]  # tifffile writes no such masks
    for pages in ([page, *smaller, (BYTES, {'subfiletype': 2})], [smaller[1], page]):
        frames = frames_of(tiff(*pages).replace(*kinds))
        assert [frame.size for frame in frames.images] == [(64, 48)] and frames.total == 1 and frames.notes == []


def test_every_page_counts_with_its_own_size():
    large, small = np.zeros((700, 900), np.uint8), BYTES
    assert len(frames_of(tiff(large, *5 * [small])).images) == 6  # 0.65 megapixels
    for pages in ([small, *5 * [large]], [small, np.zeros((1100, 1000), np.uint8)]):
        with pytest.raises(RejectedError, match='megapixels'):
            frames_of(tiff(*pages))


def test_small_copies_of_a_large_stereo_photo_count_with_their_own_size():
    photo, copy = Image.new('L', (900, 700)), Image.new('L', (90, 70))
    assert len(frames_of(encoded(photo, format='MPO', save_all=True, append_images=[copy])).images) == 1


@pytest.mark.parametrize('part', [0.45, 0.8])
def test_pages_that_are_cut_off_are_said(part):
    noise = Image.effect_noise((64, 48), 60)
    data = encoded(noise, format='TIFF', save_all=True, append_images=[noise, noise])
    frames = frames_of(data[: int(part * len(data))])
    assert len(frames.images) == int(3 * part)
    assert len(frames.images) < frames.total or 'could not be read' in frames.notes[0]


# White.


@pytest.mark.parametrize('channels', [1, 3])
def test_pages_of_one_file_share_one_white(channels):
    pages = [(GRAY * white).astype(np.uint16) for white in (900, 5000, 60000)]
    options = {'photometric': 'rgb'} if channels == 3 else {}
    pages = [(np.repeat(page[..., None], 3, axis=2) if channels == 3 else page, options) for page in pages]
    frames = frames_of(tiff(*pages))
    for frame, white in zip(frames.images, (900, 5000, 60000), strict=True):
        assert difference(frame, np.repeat(GRAY[..., None], 3, axis=2) * (white / 65535)) < 1
    assert frames.notes == []


@pytest.mark.parametrize('dtype', [np.uint16, np.int32, np.float32])
def test_a_guess_of_white_is_said(dtype):
    (note,) = frames_of(tiff((3000 * GRAY).astype(dtype))).notes
    assert '3000 was taken' in note if dtype == np.float32 else '4095 was taken' in note
    assert 'brightest value is 3000' in note
    told = tiff(((3000 * GRAY).astype(dtype), {'extratags': [(281, 3, 1, 4095, True)]}))
    assert frames_of(told).notes == []


@pytest.mark.parametrize('bits', [10, 12, 14])
def test_packed_bits_say_what_white_is(bits):
    """Also of a dark photo."""
    values = np.round(GRAY * (2**bits // 20)).astype(np.uint16)
    frames = frames_of(tiff((values, {'bitspersample': bits})))
    assert frames.notes == [] and difference(frames.images[0], values / (2**bits - 1)) < 1


def test_16_bits_are_not_taken_for_fewer_than_they_use():
    frames = frames_of(tiff(np.round(4300 * GRAY).astype(np.uint16)))  # above 4095, if little
    assert difference(frames.images[0], GRAY * (4300 / 16383)) < 1


# Other formats.


@pytest.mark.parametrize('channels', [1, 3])
def test_transparent_colors_of_16_bits(channels):
    """A PNG may name one color that is transparent."""
    pixels = np.repeat(DEEP[..., None], channels, axis=2)
    clear = (int(DEEP[20, 20]),) * channels
    png = imagecodecs.png_encode(pixels if channels == 3 else pixels[..., 0])
    body = b'tRNS' + struct.pack(f'>{channels}H', *clear)
    png = png[:33] + struct.pack('>I', 2 * channels) + body + struct.pack('>I', zlib.crc32(body)) + png[33:]
    (frame,) = frames_of(png).images
    assert isinstance(frame, DeepImage) and frame.pixels.shape[2] == channels + 1
    np.testing.assert_array_equal(frame.pixels[..., -1] == 0, clear[0] == DEEP)
    np.testing.assert_array_equal(frame.pixels[..., :-1], pixels)


@pytest.mark.parametrize('extra', [True, False])
def test_transparent_grays_in_8_bits(monkeypatch, extra):
    if not extra:
        monkeypatch.delattr('jaxcolor.prepare.deep.imagecodecs')
    clear = int(DEEP[20, 20])
    data = encoded(Image.fromarray(DEEP), format='PNG', transparency=clear)
    photo = open_photo(data, max_megapixels=1, keep_alpha=True)
    np.testing.assert_array_equal(np.asarray(photo)[..., 3] == 0, clear == DEEP)
    assert np.asarray(open_photo(data, max_megapixels=1))[20, 20].min() == 255  # on white


def test_lost_bits_are_said():
    rgb = np.round(65535 * RGB).astype(np.uint16)
    files = [
        b'P6 64 48 65535\n' + rgb.astype('>u2').tobytes(),
        imagecodecs.jpeg2k_encode(rgb, level=0),
        tiff((np.concatenate([rgb, rgb[..., :1]], axis=2), {'photometric': 'separated'})),
    ]
    for data in files:
        (note,) = frames_of(data).notes
        assert 'more than 8 bits' in note
    for options in ({'format': 'PPM'}, {'format': 'JPEG2000'}):
        assert frames_of(encoded(Image.fromarray((rgb // 257).astype(np.uint8)), **options)).notes == []


@pytest.mark.parametrize('deep', [False, True])
@pytest.mark.parametrize('mode', ['L', 'RGB', 'RGBA'])
def test_the_gamma_of_a_png(deep, mode):
    channels = len(mode)
    pixels = np.repeat((DEEP if deep else BYTES)[..., None], channels, axis=2)
    pixels[..., 3:] = 65535 if deep else 255
    png = imagecodecs.png_encode(pixels if channels > 1 else pixels[..., 0])

    def with_chunks(**chunks):
        bodies = [name.encode() + body for name, body in chunks.items()]
        parts = [struct.pack('>I', len(body) - 4) + body + struct.pack('>I', zlib.crc32(body)) for body in bodies]
        return png[:33] + b''.join(parts) + png[33:]

    gamma = {gamma: struct.pack('>I', round(100_000 * gamma)) for gamma in (1, 0.45455)}
    srgb = np.where(GRAY > 0.0031308, 1.055 * GRAY ** (1 / 2.4) - 0.055, 12.92 * GRAY)
    bright = GRAY > 0.05  # below, steps of the input are many of the output
    for chunks, expected in [
        ({'gAMA': gamma[1]}, srgb),
        ({'gAMA': gamma[0.45455]}, GRAY),
        ({'sRGB': b'\0', 'gAMA': gamma[1]}, GRAY),
    ]:
        for photo in (frames_of(with_chunks(**chunks)).images[0], open_photo(with_chunks(**chunks), max_megapixels=1)):
            found = np.asarray(in_8_bits(photo).convert('RGB'))[..., 0]
            assert np.abs(found - 255 * expected)[bright].max() <= 3


@pytest.mark.parametrize('bits', [2, 4, 6])
@pytest.mark.parametrize('expected', [GRAY, RGB], ids=['gray', 'RGB'])
def test_packed_bits_of_less_than_a_byte(bits, expected):
    pixels = np.round((2**bits - 1) * expected).astype(np.uint8)
    data = tiff((pixels, {'photometric': 'rgb' if expected.ndim == 3 else 'minisblack', 'bitspersample': bits}))
    stored = pixels / (2**bits - 1)
    for photo in (frames_of(data).images[0], open_photo(data, max_megapixels=1)):
        assert difference(photo, stored) < 1


def test_gray_that_is_multiplied_by_its_alpha():
    alpha = np.maximum(GRAY[::-1], 0.5)
    pixels = np.round(255 * np.stack([GRAY * alpha, alpha], axis=-1)).astype(np.uint8)
    data = tiff((pixels, {'extrasamples': ['assocalpha']}))
    (frame,) = frames_of(data).images
    assert np.abs(np.asarray(frame)[..., 3] - 255 * alpha).max() < 1
    assert difference(frame, GRAY) <= 2  # a step of half the range is two
    assert open_photo(data, max_megapixels=1).mode == 'RGB'


@pytest.mark.parametrize(('dtype', 'photometric'), [(np.uint8, 'rgb'), (np.uint16, 'rgb'), (np.uint16, 'minisblack')])
def test_large_files_of_the_other_byte_order(dtype, photometric):
    file, expected = io.BytesIO(), RGB if photometric == 'rgb' else GRAY
    pixels = np.round(np.iinfo(dtype).max * expected).astype(dtype)
    with tifffile.TiffWriter(file, bigtiff=True, byteorder='>') as writer:
        for page in (pixels, pixels[:, ::-1]):
            writer.write(page, photometric=photometric, metadata=None)
    frames = frames_of(file.getvalue())
    assert len(frames.images) == 2 and isinstance(frames.images[0], DeepImage) == (dtype == np.uint16)
    assert difference(frames.images[0], expected) < 1 and difference(frames.images[1], expected[:, ::-1]) < 1


def test_thumbnails_before_the_photo():
    thumbnail = (BYTES[::4, ::4].copy(), {'subfiletype': 1})
    for page in (BYTES, DEEP, GRAY.astype(np.float16)):
        data = tiff(thumbnail, page)
        assert open_photo(data, max_megapixels=1).size == (64, 48)
        assert difference(open_photo(data, max_megapixels=1), GRAY) < 1
    assert open_photo(tiff(thumbnail, thumbnail), max_megapixels=1).size == (16, 12)


def test_32_bits_that_are_used():
    data = tiff(np.round((2**32 - 1) * 0.8 * GRAY).astype(np.uint32))
    assert difference(frames_of(data).images[0], 0.8 * GRAY) < 1 and frames_of(data).notes == []


def test_libraries_are_silent(capfd):
    """libtiff writes its errors to the terminal itself; tifffile and Pillow report them to loggers."""
    lzw, whole = encoded(Image.fromarray(BYTES), format='TIFF', compression='tiff_lzw'), tiff((BYTES, {'rowsperstrip': 8}))
    lzw = lzw[:8] + b'\xff' * 400 + lzw[408:]

    def said_elsewhere():
        with pytest.raises(OSError, match='decoder error'):
            Image.open(io.BytesIO(lzw)).load()
        return capfd.readouterr().err

    before = said_elsewhere()
    for data in (lzw, whole[: len(whole) // 2]):
        with pillow_unguarded(), pytest.raises(RejectedError):
            open_photo(data, max_megapixels=1)
    assert capfd.readouterr() == ('', '')
    assert said_elsewhere() == before
