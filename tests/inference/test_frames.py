"""The shape of a file: pages and frames, durations and loops, transparency, formats and suffixes."""

import io
import struct

import numpy as np
import pytest
from conftest import assert_one_sentence
from odd_photos import encoded, quadrants
from PIL import Image, ImageSequence

from jaxcolor import color
from jaxcolor.inference.colorize import colorize
from jaxcolor.inference.plan import plan_outputs
from jaxcolor.prepare.decode import open_photo, pillow_unguarded

PHOTO = Image.fromarray(quadrants()).convert('L')
FRAMES = [PHOTO.rotate(90 * turn) for turn in range(3)]
DURATIONS = [100, 300, 50]


def colored(colorizer, path, data, out='out'):
    """Writes a file, colors it -> (the frames of the result as RGB(A), the result, the notes)."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    summary = colorize(colorizer, plan_outputs([path], path.parent / out), quiet=True)
    assert summary.failures == []
    (result,) = (path.parent / out).iterdir()
    with Image.open(result) as image:
        frames = []
        for frame in ImageSequence.Iterator(image):
            frame.load()
            frames.append((frame.convert('RGBA'), frame.info.get('duration')))
        return frames, Image.open(result), summary.notes


def error_of(result, photo):
    """The mean difference of L*."""
    a, b = (color.rgb_to_lab(np.asarray(image.convert('RGB')))[..., 0] for image in (result, photo))
    return np.abs(a - b).mean()


def has_color(image):
    return np.abs(color.rgb_to_lab(np.asarray(image.convert('RGB')))[..., 1:]).mean() > 0.5


ANIMATION = {'save_all': True, 'append_images': FRAMES[1:], 'duration': DURATIONS}


@pytest.mark.parametrize(
    ('name', 'options', 'format'),
    [
        ('a.tif', {'format': 'TIFF', 'save_all': True, 'append_images': FRAMES[1:]}, 'TIFF'),
        ('b.tif', {'format': 'TIFF', 'save_all': True, 'append_images': FRAMES[1:], 'compression': 'tiff_lzw'}, 'TIFF'),
        ('a.gif', {'format': 'GIF', 'loop': 2, **ANIMATION}, 'PNG'),
        ('a.webp', {'format': 'WEBP', 'loop': 2, 'lossless': True, **ANIMATION}, 'WEBP'),
        ('a.png', {'format': 'PNG', 'loop': 2, **ANIMATION}, 'PNG'),
        ('a.apng', {'format': 'PNG', 'loop': 2, **ANIMATION}, 'PNG'),
        ('a.jpg', {'format': 'MPO', 'save_all': True, 'append_images': FRAMES[1:], 'quality': 95}, 'MPO'),
        ('a.mpo', {'format': 'MPO', 'save_all': True, 'append_images': FRAMES[1:], 'quality': 95}, 'MPO'),
        ('b.jpg', {'format': 'PNG', 'loop': 2, **ANIMATION}, 'PNG'),
    ],
)
def test_all_frames_are_colored_and_kept(colorizer, tmp_path, name, options, format):
    frames, result, notes = colored(colorizer, tmp_path / name, encoded(FRAMES[0], **options))
    assert result.format == format and len(frames) == 3
    for (frame, _), photo in zip(frames, FRAMES, strict=True):
        assert has_color(frame)
        # Clipped colors move lightness a little; another frame's is 20 off.
        assert error_of(frame, photo) < 8
    assert not any('frames are in the result' in note for note in notes)
    if 'duration' in options:
        assert [duration for _, duration in frames] == DURATIONS
        assert result.info['loop'] == 2


def test_a_gif_that_plays_once(colorizer, tmp_path):
    _, result, _ = colored(colorizer, tmp_path / 'a.gif', encoded(FRAMES[0], format='GIF', **ANIMATION))
    assert result.info['loop'] == 1


@pytest.mark.parametrize('name', ['a.gif', 'a.webp', 'a.png'])
def test_long_durations(colorizer, tmp_path, name):
    """As long as the formats can say, in units of their own: GIF 1/100 s, WebP 1 ms, PNG a fraction of 16-bit numbers."""
    longest = {'a.gif': 655_350, 'a.webp': 2**24 - 1, 'a.png': 65_535_000}[name]
    options = {**ANIMATION, 'duration': [longest, 70, longest]}
    data = encoded(FRAMES[0], format=name[2:], **options)
    frames, _, _ = colored(colorizer, tmp_path / name, data)
    for (_, duration), expected in zip(frames, options['duration'], strict=True):
        assert duration == pytest.approx(expected, abs=1000 if expected > 1000 else 0)


def test_a_cover_of_an_animation_stays_one(colorizer, tmp_path):
    options = {**ANIMATION, 'duration': DURATIONS[1:], 'default_image': True}
    frames, result, _ = colored(colorizer, tmp_path / 'a.png', encoded(FRAMES[0], format='PNG', **options))
    assert len(frames) == 3 and result.info['default_image']
    assert [duration for _, duration in frames][1:] == DURATIONS[1:]


def test_pages_of_different_sizes(colorizer, tmp_path):
    pages = [PHOTO.resize((40 + 9 * i, 70)) for i in range(3)]
    data = encoded(pages[0], format='TIFF', save_all=True, append_images=pages[1:])
    frames, _, _ = colored(colorizer, tmp_path / 'a.tif', data)
    assert [frame.size for frame, _ in frames] == [page.size for page in pages]
    frames, _, notes = colored(colorizer, tmp_path / 'b' / 'a.png', data)
    assert [frame.size for frame, _ in frames] == [pages[0].size]
    assert any('1 of 3 frames' in note for note in notes)


def test_turned_pages(colorizer, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = [page.transpose(Image.Transpose.ROTATE_90) for page in FRAMES]
    data = encoded(stored[0], format='TIFF', save_all=True, append_images=stored[1:], exif=exif)
    frames, _, _ = colored(colorizer, tmp_path / 'a.tif', data)
    for (frame, _), photo in zip(frames, FRAMES, strict=True):
        assert frame.size == photo.size and error_of(frame, photo) < 8


def test_transparency_of_frames(colorizer, tmp_path):
    alphas = [Image.linear_gradient('L').resize(PHOTO.size).rotate(90 * turn) for turn in range(3)]
    frames = [Image.merge('LA', [photo, alpha]) for photo, alpha in zip(FRAMES, alphas, strict=True)]
    for name, options in [('a.png', {'format': 'PNG'}), ('a.webp', {'format': 'WEBP', 'lossless': True})]:
        data = encoded(frames[0], **options, save_all=True, append_images=frames[1:], duration=DURATIONS)
        results, _, _ = colored(colorizer, tmp_path / name[2:] / name, data)
        for (result, _), alpha in zip(results, alphas, strict=True):
            assert np.abs(np.asarray(result.getchannel('A'), np.int32) - np.asarray(alpha)).max() <= 1


def test_frames_that_are_cut_off(colorizer, tmp_path):
    noise = [Image.effect_noise((64, 48), 60 + i) for i in range(3)]
    data = encoded(noise[0], format='GIF', save_all=True, append_images=noise[1:], duration=DURATIONS)
    frames, _, notes = colored(colorizer, tmp_path / 'a.gif', data[: len(data) * 3 // 4])
    assert len(frames) == 2
    assert any('2 of 3 frames' in note for note in notes)


def test_small_copies_in_a_stereo_file(colorizer, tmp_path):
    """The depth map or gain map of a phone's photo is no photo."""
    data = encoded(PHOTO, format='MPO', save_all=True, append_images=[PHOTO.resize((32, 24))])
    frames, result, notes = colored(colorizer, tmp_path / 'a.jpg', data)
    assert len(frames) == 1 and result.format == 'JPEG'
    assert any('1 of 2 frames' in note for note in notes)


def test_too_many_frames(trained, tmp_path, cli):
    """They are refused before they are unpacked."""
    frames = [Image.new('L', (1000, 1000), i) for i in range(4)]
    frames[0].save(tmp_path / 'a.tif', save_all=True, append_images=frames[1:], compression='tiff_lzw')
    code, _, err = cli('colorize', f'--model={trained}', tmp_path / 'a.tif', f'--out={tmp_path}/out', '--max-megapixels=3')
    assert_one_sentence(code, err, '4 frames of 1000x1000', '--max-megapixels')


@pytest.mark.parametrize('format', ['PNG', 'WEBP', 'GIF', 'TIFF'])
@pytest.mark.parametrize('suffix', ['.jpg', '.JPEG', '.jfif'])
def test_transparency_under_the_name_of_a_jpeg(colorizer, tmp_path, format, suffix):
    photo = PHOTO.convert('RGBA')
    photo.putalpha(Image.linear_gradient('L').resize(PHOTO.size).point(lambda value: 255 * (value > 99)))
    frames, result, notes = colored(colorizer, tmp_path / f'web{suffix}', encoded(photo, format=format))
    assert result.filename.endswith(f'web{suffix}.png')
    assert (np.asarray(frames[0][0].getchannel('A')) == np.asarray(photo.getchannel('A'))).all()
    assert any('becomes a PNG' in note for note in notes)


def test_transparency_where_the_user_wants_a_jpeg(colorizer, tmp_path):
    photo = PHOTO.convert('RGBA')
    photo.putalpha(0)
    photo.save(tmp_path / 'a.png')
    summary = colorize(colorizer, plan_outputs([tmp_path / 'a.png'], tmp_path / 'b.jpg'), quiet=True)
    assert summary.colored == 1 and 'laid on white' in summary.notes[0]
    assert (np.asarray(Image.open(tmp_path / 'b.jpg')) == 255).all()


FILES = {
    'a.jfif': {'format': 'JPEG', 'quality': 95},
    'b.pgm': {'format': 'PPM'},
    'c.ppm': {'format': 'PPM'},
    'd.jp2': {'format': 'JPEG2000'},
    'e.tga': {'format': 'TGA'},
    'f.tga': {'format': 'TGA', 'compression': 'tga_rle'},
    'g.mpo': {'format': 'JPEG', 'quality': 95},
    'i.dib': {'format': 'BMP'},
    'j.jpf': {'format': 'JPEG2000'},
    'k.j2c': {'format': 'JPEG2000', 'no_jp2': True},
    'l.pcx': {'format': 'PCX'},
    'm.sgi': {'format': 'SGI'},
}


def test_formats_in_a_folder(colorizer, tmp_path):
    folder = tmp_path / 'in'
    folder.mkdir()
    for name, options in FILES.items():
        PHOTO.convert('RGB' if name == 'c.ppm' else 'L').save(folder / name, **options)
    PHOTO.convert('1').save(folder / 'h.pbm')
    summary = colorize(colorizer, plan_outputs([folder], tmp_path / 'out'), quiet=True)
    assert summary.failures == [] and summary.notes == []
    results = {path.name: Image.open(path) for path in (tmp_path / 'out').iterdir()}
    assert len(results) == len(FILES) + 1
    for name, image in results.items():
        assert image.size == PHOTO.size
        assert name.startswith('h.pbm') or error_of(image, PHOTO) < 8, name


def test_layers_are_no_frames(colorizer, tmp_path):
    """Photoshop stores what all layers look like together, too."""
    gray = np.asarray(PHOTO)
    pixels, channel = b'\0\0' + gray.tobytes(), struct.pack('>hI', 0, 2 + gray.size)
    layer = struct.pack('>4iH', 0, 0, *gray.shape, 1) + channel + b'8BIMnorm\xff\0\0\0' + bytes(4)
    layers = struct.pack('>h', 2) + 2 * layer + 2 * pixels
    layers += bytes(len(layers) % 2)
    head = b'8BPS\0\1' + bytes(6) + struct.pack('>HIIHH', 1, *gray.shape, 8, 1) + bytes(4) + bytes(4)
    section = struct.pack('>I', len(layers)) + layers
    data = head + struct.pack('>I', len(section)) + section + pixels
    assert Image.open(io.BytesIO(data)).n_frames == 2
    frames, _, notes = colored(colorizer, tmp_path / 'a.psd', data)
    assert len(frames) == 1 and notes == []
    assert error_of(frames[0][0], PHOTO) < 1


@pytest.mark.parametrize('text', ['no photo', '\0\0\2 is the head of a TGA', '\0\1\1' + 60 * '\x08'])
def test_text_under_every_name(colorizer, tmp_path, text):
    for name in (*FILES, 'i.heic', 'j.jxl', 'k.jpg', 'l.tif'):
        (tmp_path / name).write_text(text)
    summary = colorize(colorizer, plan_outputs([tmp_path], tmp_path / 'out'), quiet=True)
    assert summary.colored == 0 and len(summary.failures) == len(FILES) + 4


@pytest.mark.parametrize(('format', 'suffix', 'module'), [('HEIF', '.heic', 'pillow_heif'), ('JXL', '.jxl', 'pillow_jxl')])
def test_formats_of_the_extra(colorizer, tmp_path, format, suffix, module):
    """Both have an orientation of their own, which the decoder applies; that of EXIF does not count."""
    pytest.importorskip(module)
    exif = Image.Exif()
    exif[0x0112] = 6
    # The encoder of HEIF takes the orientation from EXIF to the format's own field, that of JPEG XL does not.
    stored = PHOTO.transpose(Image.Transpose.ROTATE_90) if format == 'HEIF' else PHOTO
    data = encoded(stored.convert('RGB'), format=format, quality=95, exif=exif.tobytes())
    frames, result, _ = colored(colorizer, tmp_path / f'a{suffix}', data)
    assert result.format == 'PNG'
    assert error_of(frames[0][0], PHOTO) < 8


def test_the_main_picture_of_several_comes_first(colorizer, tmp_path):
    pytest.importorskip('pillow_heif')
    frames = [frame.convert('RGB') for frame in FRAMES]
    options = {'save_all': True, 'append_images': frames[1:], 'primary_index': 1, 'quality': 95}
    results, _, _ = colored(colorizer, tmp_path / 'a.heic', encoded(frames[0], format='HEIF', **options))
    for (result, _), index in zip(results, (1, 0, 2), strict=True):
        assert error_of(result, FRAMES[index]) < 8


@pytest.mark.parametrize('start', [b'\0\0\0\x18ftypheic\0\0\0\0mif1', b'\xff\x0a\0\0', b'\0\0\0\x0cJXL \r\n\x87\n'])
def test_formats_of_the_extra_without_it(start, monkeypatch):
    monkeypatch.setattr('jaxcolor.prepare.decode.FORMATS', ['JPEG', 'PNG'])
    with pillow_unguarded(), pytest.raises(Exception, match=r"pip install 'jaxcolor\[formats\]'"):
        open_photo(io.BytesIO(start + bytes(100)).getvalue(), max_megapixels=1)
