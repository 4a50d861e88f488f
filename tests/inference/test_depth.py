"""16 bits a channel in, 16 bits out; and what files say beside their pixels."""

import io
import itertools
import struct

import numpy as np
import pytest
from odd_photos import STORED, color_quietly, encoded, quadrants
from PIL import ExifTags, Image, ImageCms, PngImagePlugin
from skimage.color import rgb2lab

from jaxcolor.inference import recompose
from jaxcolor.inference.photos import read_frames, write_photo
from jaxcolor.inference.tags import Tag, read_tag
from jaxcolor.prepare.decode import open_photo, pillow_unguarded
from jaxcolor.prepare.deep import DeepImage
from jaxcolor.prepare.frames import open_frames

imagecodecs, tifffile = pytest.importorskip('imagecodecs'), pytest.importorskip('tifffile')
TAG = Tag('0' * 64, 'f' * 32)
GRAYS = np.arange(65536, dtype=np.uint16).reshape(256, 256)
# A photo of all depths: smooth, so that its lowest bits count.
x, y = np.meshgrid(np.linspace(0, 1, 96), np.linspace(0, 1, 64))
COLORS = np.round(65535 * np.stack([x, y, (x + y) / 2], axis=-1) * 0.9 + 999).astype(np.uint16)
ALPHA = np.round(65535 * np.sqrt(x * y)).astype(np.uint16)[..., None]


def png(pixels):
    return imagecodecs.png_encode(np.ascontiguousarray(pixels))


def tiff(pixels, **options):
    file = io.BytesIO()
    options = {'photometric': 'minisblack' if pixels.ndim == 2 else 'rgb', 'metadata': None, **options}
    if pixels.shape[-1] == 4:
        options['extrasamples'] = [options.get('extrasamples', 'unassalpha')]
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def result_of(path):
    """uint16 (H, W, C) of a result."""
    if path.suffix == '.png':
        return imagecodecs.png_decode(path.read_bytes())
    return tifffile.imread(path)


def rewritten(tmp_path, data, name='a.png', result='result'):
    """Reads a photo and writes it without coloring it -> (the result, its notes)."""
    path = tmp_path / name
    path.write_bytes(data)
    path, result = path, tmp_path / f'{result}{path.suffix}'
    with pillow_unguarded():
        photo = read_frames(path, 10)
        images = [
            DeepImage(np.repeat(image.pixels, 3, axis=2)) if image.mode == 'L' and isinstance(image, DeepImage) else image
            for image in photo.images
        ]
        write_photo(photo, images, result, TAG, overwrite=True)
    assert read_tag(result) == TAG
    return result, photo.notes


# Reading and writing.


@pytest.mark.parametrize(
    ('name', 'data', 'expected'),
    [
        ('a.png', lambda: png(COLORS), COLORS),
        ('a.png', lambda: png(np.concatenate([COLORS, ALPHA], axis=2)), np.concatenate([COLORS, ALPHA], axis=2)),
        ('a.tif', lambda: tiff(COLORS), COLORS),
        ('a.tif', lambda: tiff(COLORS, byteorder='>', compression='lzw', predictor=True), COLORS),
        ('a.tif', lambda: tiff(np.moveaxis(COLORS, 2, 0), planarconfig='separate'), COLORS),
        ('a.tif', lambda: tiff(COLORS, compression='zlib', tile=(32, 32)), COLORS),
        ('a.tif', lambda: tiff(np.concatenate([COLORS, ALPHA], axis=2)), np.concatenate([COLORS, ALPHA], axis=2)),
        ('a.tif', lambda: tiff(COLORS // 16, extratags=[(281, 3, 3, (4095, 4095, 4095), True)]), COLORS // 16 * 16),
    ],
)
def test_colors_of_16_bits(tmp_path, name, data, expected):
    result, notes = rewritten(tmp_path, data(), name)
    assert notes == []
    pixels = result_of(result)
    assert pixels.dtype == np.uint16
    # 12 bits are scaled to the whole range.
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=16 if expected.max() % 16 == 0 else 0)


SHADES = np.linspace(0.02, 0.98, 96, dtype=np.float64)[None].repeat(4, axis=0)


@pytest.mark.parametrize(
    ('values', 'options'),
    [(np.float32(SHADES / SHADES.max() * white), {}) for white in (1.15, 2, 100, 290, 1000, 4095)]
    + [
        (np.uint32(SHADES / SHADES.max() * (2**32 - 1)), {}),
        (np.int16(SHADES / SHADES.max() * 32767), {}),
        (np.float32(2 * (SHADES - SHADES.min()) / np.ptp(SHADES) - 1), {'extratags': [(340, 11, 1, -1.0, True)]}),
        (np.uint16(SHADES * 4095)[..., None].repeat(3, axis=-1), {'extratags': [(281, 3, 3, (4095,) * 3, True)]}),
        (np.uint16(SHADES * 65535)[None].repeat(3, axis=0), {'planarconfig': 'separate', 'photometric': 'rgb'}),
    ],
    ids=lambda value: f'{value.dtype} {value.max():.4g}' if isinstance(value, np.ndarray) else '',
)
def test_ranges_of_tiffs_are_those_of_their_values(values, options):
    data = tiff(values, **options)
    with pillow_unguarded():
        frame = open_frames(data, max_megapixels=1).images[0].in_8_bits()
        shrunk = open_photo(data, max_megapixels=1)
    black = SHADES.min() if values.min() < 0 else 0
    white = SHADES.max() if values.ndim == 2 else 1
    expected = 255 * (SHADES - black) / (white - black)
    for photo in (frame, shrunk):
        assert np.abs(np.asarray(photo.convert('L')) - expected).max() <= 1  # rounded twice


def test_colors_that_are_multiplied_by_their_alpha(tmp_path):
    multiplied = np.round(COLORS * (ALPHA / 65535)).astype(np.uint16)
    result, notes = rewritten(
        tmp_path, tiff(np.concatenate([multiplied, ALPHA], axis=2), extrasamples='assocalpha'), 'a.tif'
    )
    pixels = result_of(result)
    assert notes == []
    np.testing.assert_array_equal(pixels[..., 3:], ALPHA)
    # As precise as the alpha leaves them.
    seen = ALPHA[..., 0] > 0
    assert (np.abs(pixels[..., :3] - COLORS.astype(float)) <= 0.6 + 32768 / np.maximum(ALPHA, 1))[seen].all()


@pytest.mark.parametrize(
    ('kind', 'suffix'),  # Pillow reads no gray TIFF with alpha
    [*itertools.product(['gray', 'RGB', 'RGBA'], ['png', 'tif']), ('gray and alpha', 'png')],
)
def test_a_colored_photo_keeps_its_depth_and_lightness(colorizer, tmp_path, suffix, kind):
    pixels = {'gray': COLORS[..., 0], 'RGB': COLORS, 'RGBA': np.concatenate([COLORS, ALPHA], axis=2)}
    pixels['gray and alpha'] = np.concatenate([COLORS[..., :1], ALPHA], axis=2)
    path = tmp_path / f'a.{suffix}'
    path.write_bytes((png if suffix == 'png' else tiff)(pixels[kind]))
    summary = color_quietly(colorizer, [path], tmp_path / 'out')
    assert summary.failures == [] and summary.notes == []
    result = result_of(tmp_path / 'out' / path.name)
    assert result.dtype == np.uint16 and result.shape[2] == (4 if 'A' in kind or 'alpha' in kind else 3)
    if result.shape[2] == 4:
        np.testing.assert_array_equal(result[..., 3:], ALPHA)
    rgb = COLORS if 'RGB' in kind else np.repeat(COLORS[..., :1], 3, axis=2)
    before, after = (rgb2lab(np.asarray(pixels / 65535)) for pixels in (rgb, result[..., :3]))
    # Half a step of 16 bits in each channel, and float32; half a step of 8 bits is 0.2.
    assert np.abs(before - after)[..., 0].max() < 2e-3
    assert np.abs(after[..., 1:]).mean() > 0.5


@pytest.mark.parametrize('ab', [(0, 0), (12, -20), (60, 60), (-90, 100)])
def test_a_gradient_of_65536_grays_keeps_its_steps(ab):
    """Of any color, in and out of sRGB, L* differs by the rounding of 16 bits."""
    plane = np.broadcast_to(np.float32(ab), (16, 16, 2))
    image = DeepImage(GRAYS[..., None])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recompose, 'edge_model', lambda image, ab, _: (0 * ab, ab))
        colored = recompose.join(image, plane).pixels.reshape(-1, 3)
    lightness = rgb2lab(colored[:, None] / 65535)[:, 0, 0]
    expected = rgb2lab(np.repeat(GRAYS.reshape(-1, 1, 1), 3, axis=2) / 65535)[:, 0, 0]
    half = [rgb2lab(np.clip((colored[:, None] + side) / 65535, 0, 1))[:, 0, 0] for side in (-0.5, 0.5)]
    noise = 4e-4  # of float32, and what lies outside sRGB by a third of a step in black; a step is 0.0014 to 0.014
    assert (half[0] - noise <= expected).all() and (expected <= half[1] + noise).all()
    if ab == (0, 0):
        # The matrices of IEC 61966-2-1 have six digits, so that their gray is off by 5e-5 of blue.
        np.testing.assert_allclose(colored, np.repeat(GRAYS.reshape(-1, 1), 3, axis=1), rtol=5e-5, atol=1)
    assert np.diff(lightness).min() > -noise - (half[1] - half[0]).max()


@pytest.mark.parametrize('orientation', STORED)
@pytest.mark.parametrize('kind', ['png', 'tif', 'gray tif'])
def test_turned_once(tmp_path, orientation, kind):
    upright = quadrants().astype(np.uint16) * 257
    upright = upright[..., 0] if kind == 'gray tif' else upright
    stored = np.ascontiguousarray(STORED[orientation](quadrants()).astype(np.uint16) * 257)
    stored = stored[..., 0] if kind == 'gray tif' else stored
    if kind == 'png':
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        shell = encoded(Image.new('RGB', (2, 2)), format='PNG', exif=exif)
        start = shell.index(b'eXIf') - 4
        data = png(stored)
        data = data[:33] + shell[start : start + 12 + struct.unpack('>I', shell[start : start + 4])[0]] + data[33:]
    else:
        data = tiff(stored, extratags=[(274, 3, 1, orientation, True)])
    result, _ = rewritten(tmp_path, data, 'a.png' if kind == 'png' else 'a.tif')
    np.testing.assert_array_equal(result_of(result), upright if upright.ndim == 3 else np.repeat(upright[..., None], 3, 2))


def test_pages_of_several_depths(colorizer, tmp_path):
    pages = [COLORS, COLORS[::2, ::2, 0], (COLORS // 257).astype(np.uint8)]
    with tifffile.TiffWriter(tmp_path / 'a.tif') as file:
        for page in pages:
            file.write(page, photometric='minisblack' if page.ndim == 2 else 'rgb', metadata=None)
    assert color_quietly(colorizer, [tmp_path / 'a.tif'], tmp_path / 'out').notes == []
    with tifffile.TiffFile(tmp_path / 'out' / 'a.tif') as file:
        results = [page.asarray() for page in file.pages]
    assert [result.dtype for result in results] == [np.uint16, np.uint16, np.uint8]
    assert [result.shape for result in results] == [(64, 96, 3), (32, 48, 3), (64, 96, 3)]


@pytest.mark.parametrize('kind', ['RGB', 'gray', 'gray of RGB', 'broken'])
def test_profiles_are_converted_in_16_bits(tmp_path, kind):
    """Held against the conversion in 8 bits, by another library's wrapper."""
    profile = bytes(imagecodecs.cms_profile('gray' if kind == 'gray' else 'adobergb', gamma=1.8 if kind == 'gray' else None))
    pixels = COLORS if kind in ('RGB', 'broken') else COLORS[..., 0]
    given = profile[:150] if kind == 'broken' else profile
    result, notes = rewritten(tmp_path, tiff(pixels, iccprofile=given), 'a.tif')
    assert notes == []
    image = Image.fromarray(((pixels.astype(np.int64) + 128) // 257).astype(np.uint8))
    image = image.convert('RGB') if kind == 'gray of RGB' else image
    source, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile('sRGB')
    expected = image if kind == 'broken' else ImageCms.profileToProfile(image, source, srgb, outputMode='RGB')
    difference = result_of(result) / 257 - np.asarray(expected).astype(float)
    # The rounding of the input to 8 bits, which the curves stretch in the dark, and that of the output.
    assert np.quantile(np.abs(difference), 0.95) < 1.5 and np.abs(difference).mean() < 0.6
    assert (result_of(result) % 257 != 0).mean() > 0.8


def test_gray_profiles_hold_for_gray_with_transparency():
    levels = np.arange(256, dtype=np.uint8)[None].repeat(4, axis=0)
    profile = bytes(imagecodecs.cms_profile('gray', gamma=1.0))
    gray = Image.fromarray(levels)
    images = [gray, Image.merge('LA', [gray, Image.new('L', gray.size, 255)])]
    files = [encoded(image, format='PNG', icc_profile=profile) for image in images]
    expected, found = (np.asarray(open_photo(file, max_megapixels=1)) for file in files)
    assert np.abs(expected.astype(int)[..., 0] - levels).max() > 50  # the profile counts
    np.testing.assert_array_equal(found, expected)
    kept = open_photo(files[1], max_megapixels=1, keep_alpha=True)
    np.testing.assert_array_equal(np.asarray(kept)[..., :3], expected)


@pytest.mark.parametrize('size', [(32, 24), (31, 23), (96, 64), (7, 5)])
def test_shrinking_by_strips(monkeypatch, size):
    monkeypatch.setattr(recompose, '_SHRUNK_PIXELS', 700)
    image = DeepImage(COLORS)
    expected = image.in_8_bits().resize(size, Image.Resampling.BOX)
    difference = np.asarray(recompose.resized(image, size, Image.Resampling.BOX), int) - np.asarray(expected)
    assert np.abs(difference).max() <= 1


# What cannot be kept in 16 bits is said.


def test_formats_of_8_bits(tmp_path):
    path = tmp_path / 'a.png'
    path.write_bytes(png(COLORS))
    with pillow_unguarded():
        photo = read_frames(path, 1)
        write_photo(photo, photo.images, tmp_path / 'b.jpg', TAG, overwrite=False)
    assert any('JPEG has 8 bits' in note for note in photo.notes)
    assert np.abs(np.asarray(Image.open(tmp_path / 'b.jpg')) - COLORS / 257).mean() < 2


@pytest.mark.parametrize('name', ['a.png', 'a.tif'])
def test_without_the_extra(tmp_path, name, monkeypatch):
    data = png(COLORS) if name == 'a.png' else tiff(COLORS)
    monkeypatch.delattr('jaxcolor.prepare.deep.imagecodecs')
    result, (note,) = rewritten(tmp_path, data, name)
    assert "pip install 'jaxcolor[formats]'" in note and name in note
    assert np.abs(np.asarray(Image.open(result)) - COLORS / 257).max() < 1.01


@pytest.mark.parametrize('name', ['a.png', 'a.tif'])
def test_what_the_library_cannot_read_is_read_in_8_bits(tmp_path, name, monkeypatch):
    def failing(*_, **__):
        raise ValueError('strange')

    monkeypatch.setattr(imagecodecs, 'png_decode', failing)
    monkeypatch.setattr(tifffile.TiffPage, 'asarray', failing)
    result, (note,) = rewritten(tmp_path, png(COLORS) if name == 'a.png' else tiff(COLORS), name)
    assert 'ValueError: strange' in note
    with Image.open(result) as image:
        assert image.mode == 'RGB'


# Beside the pixels.

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" dc:title="A"/></x:xmpmeta>'
IPTC = b'\x1c\x02\x50\x00\x0aA. Painter' + b'\x1c\x02\x78\x00\x05A cat'


def file_with_everything(name):
    """A photo with EXIF data, XMP, IPTC and a resolution, as far as its format holds them."""
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = 'A. Painter'
    directories = {
        ExifTags.IFD.Exif: {0x9003: '2001:01:01 00:00:00', 0x829A: 0.5, 0x927C: b'maker'},
        ExifTags.IFD.GPSInfo: {1: 'N', 2: (1.0, 2.0, 3.5)},
    }
    for number, fields in directories.items():
        exif[number] = fields
    image = Image.fromarray(quadrants())
    if name == 'a.tif':
        info = {700: XMP, 33723: IPTC, 315: 'A. Painter', 282: 300.0, 283: 300.0, 296: 2}
        info |= {int(number): fields for number, fields in directories.items()}
        return encoded(image, format='TIFF', tiffinfo=info)
    if name == 'a.jpg':
        block = b'Photoshop 3.0\0008BIM\x04\x04\0\0' + struct.pack('>I', len(IPTC)) + IPTC + bytes(len(IPTC) % 2)
        segment = b'\xff\xed' + struct.pack('>H', len(block) + 2) + block
        return encoded(image, format='JPEG', quality=95, exif=exif, xmp=XMP, extra=segment, dpi=(300, 300))
    if name == 'a.webp':
        exif[ExifTags.Base.XResolution] = exif[ExifTags.Base.YResolution] = 300.0
        exif[ExifTags.Base.ResolutionUnit] = 2
        return encoded(image, format='WEBP', exif=exif, xmp=XMP)
    text = PngImagePlugin.PngInfo()
    text.add_itxt('XML:com.adobe.xmp', XMP.decode())
    return encoded(image, format='PNG', exif=exif, pnginfo=text, dpi=(300, 300))


@pytest.mark.parametrize('name', ['a.tif', 'a.jpg', 'a.webp', 'a.png'])
@pytest.mark.parametrize('suffix', ['tif', 'jpg', 'webp', 'png'])
@pytest.mark.parametrize('deep', [False, True])
def test_metadata_are_kept(tmp_path, name, suffix, deep):
    path, result = tmp_path / name, tmp_path / f'result.{suffix}'
    path.write_bytes(file_with_everything(name))
    with pillow_unguarded():
        photo = read_frames(path, 1)
        images = [DeepImage(np.asarray(image).astype(np.uint16) * 257) for image in photo.images] if deep else photo.images
        write_photo(photo, images, result, TAG, overwrite=False)
    assert read_tag(result) == TAG
    with Image.open(result) as image:
        image.load()
        exif = image.getexif()
        assert exif[ExifTags.Base.Artist] == 'A. Painter'
        assert exif.get_ifd(ExifTags.IFD.Exif)[0x9003] == '2001:01:01 00:00:00'
        assert float(exif.get_ifd(ExifTags.IFD.Exif)[0x829A]) == 0.5
        assert exif.get_ifd(ExifTags.IFD.Exif)[0x927C] == b'maker'
        assert exif.get_ifd(ExifTags.IFD.GPSInfo)[1] == 'N'
        assert tuple(map(float, exif.get_ifd(ExifTags.IFD.GPSInfo)[2])) == (1.0, 2.0, 3.5)
        xmp = image.info['xmp']
        xmp = xmp.encode() if isinstance(xmp, str) else xmp
        assert b'dc:title="A"' in xmp and b'Orientation="6"' not in xmp  # upright now
        assert ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(image.info['icc_profile']))).startswith(
            'sRGB'
        )
        assert float(exif[ExifTags.Base.XResolution]) == pytest.approx(300, abs=0.02)  # PNG counts by the meter
        if suffix != 'webp':
            assert image.info['dpi'] == pytest.approx((300, 300), abs=0.02)
        if name in ('a.tif', 'a.jpg'):
            found = (
                image.info.get('photoshop', {}).get(0x0404) if suffix == 'jpg' else getattr(image, 'tag_v2', {}).get(33723)
            )
            assert (found == IPTC) == (suffix in ('tif', 'jpg'))
            assert any('IPTC' in note for note in photo.notes) == (suffix in ('webp', 'png'))


@pytest.mark.parametrize('order', '<>')
def test_iptc_as_words_of_32_bits(tmp_path, order):
    """As Photoshop writes it."""
    stored = IPTC + bytes(-len(IPTC) % 4)
    words = struct.unpack(f'{order}{len(stored) // 4}I', stored)
    file = io.BytesIO()
    tifffile.imwrite(file, quadrants(), byteorder=order, photometric='rgb', extratags=[(33723, 4, len(words), words, True)])
    with pillow_unguarded():
        photo = read_frames('a.tif', 1, file.getvalue())
        write_photo(photo, photo.images, tmp_path / 'result.tif', TAG, overwrite=False)
    with Image.open(tmp_path / 'result.tif') as image:
        assert image.tag_v2[33723] == stored


def test_xmp_that_a_jpeg_cannot_hold(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_itxt('XML:com.adobe.xmp', 70_000 * 'x')
    path = tmp_path / 'a.png'
    path.write_bytes(encoded(Image.fromarray(quadrants()), format='PNG', pnginfo=text))
    with pillow_unguarded():
        photo = read_frames(path, 1)
        write_photo(photo, photo.images, tmp_path / 'a.jpg', TAG, overwrite=False)
    (note,) = photo.notes
    assert 'XMP' in note and read_tag(tmp_path / 'a.jpg') == TAG


def test_tiff_results_are_compressed(tmp_path):
    """By a method that the usual readers know."""
    result, _ = rewritten(tmp_path, encoded(Image.new('RGB', (500, 400), (9, 99, 200)), format='TIFF'), 'a.tif')
    assert result.stat().st_size < 20_000
    with Image.open(result) as image:
        assert image.info['compression'] == 'tiff_adobe_deflate'
        assert image.getpixel((0, 0)) == (9, 99, 200)


@pytest.mark.parametrize('options', [{'metadata': {}}, {'imagej': True}, {'ome': True}], ids=['shaped', 'ImageJ', 'OME'])
def test_descriptions_of_the_stored_pixels_are_dropped(colorizer, tmp_path, options):
    """Programs of science write the shape of the array where others say what is to be seen."""
    path = tmp_path / 'a.tif'
    path.write_bytes(tiff(COLORS[..., 0], **{'photometric': 'minisblack', **options}))
    with tifffile.TiffFile(path) as file:
        assert file.pages[0].description
    assert color_quietly(colorizer, [path], tmp_path / 'out').failures == []
    with tifffile.TiffFile(tmp_path / 'out' / 'a.tif') as file:
        assert file.pages[0].description == ''
        assert file.asarray().shape == COLORS.shape
