"""Photo files as people have them: names and EXIF data of all kinds; one photo never ends a batch."""

import itertools
import os
import struct
import sys

import numpy as np
import pytest
from odd_photos import FORMATS, color_quietly, encoded, quadrants, turned_files
from PIL import ExifTags, Image, TiffImagePlugin

import jaxcolor.inference.colorize as stages
from jaxcolor import color
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.inference.photos import read_frames, write_photo
from jaxcolor.inference.tags import Tag, read_tag
from jaxcolor.prepare.decode import pillow_unguarded

TAG = Tag('0' * 64, 'f' * 32)
PHOTO = Image.fromarray(quadrants())


def rewritten(path, result):
    """Reads a photo and writes it without coloring it -> its notes."""
    with pillow_unguarded():
        photo = read_frames(path, 1)
        write_photo(photo, photo.images, result, TAG, overwrite=True)
    assert read_tag(result) == TAG
    return photo.notes


def lightness_error(result, photo):
    """The mean difference of L* of two images."""
    a, b = (color.rgb_to_lab(np.asarray(image.convert('RGB')))[..., 0] for image in (result, photo))
    return np.abs(a - b).mean()


# One photo never ends a batch.


class Panic(BaseException):
    """As decoders in Rust raise it."""


@pytest.mark.parametrize('stage', ['read_frames', 'preprocess', 'predict_ab', 'join', 'write_photo'])
@pytest.mark.parametrize('batch_size', [1, 2])
@pytest.mark.parametrize('is_panic', [False, True])
def test_whatever_is_raised_is_one_sentence(colorizer, tmp_path, monkeypatch, stage, batch_size, is_panic):
    errors = [ZeroDivisionError('a\nb'), MemoryError(), RecursionError('deep'), struct.error('short')]
    raised = itertools.cycle([Panic('index out of bounds')] if is_panic else errors)
    for i in range(4):
        PHOTO.rotate(90 * i).save(tmp_path / f'{i}.png')
    owner = colorizer if hasattr(colorizer, stage) else stages
    inner = getattr(owner, stage)
    bad = colorizer.preprocess(PHOTO.rotate(180))

    def is_bad(argument):
        """Whether a stage is about the photo 2.png."""
        if isinstance(argument, os.PathLike):
            return argument.name == '2.png'
        if isinstance(argument, np.ndarray):  # the network's input, one photo or a batch
            return any(np.array_equal(photo, bad[0]) for photo in argument)
        if isinstance(argument, Image.Image):
            return argument.tobytes() == PHOTO.rotate(180).tobytes()
        return argument.path.name == '2.png'

    def failing(*args, **kwargs):
        if is_bad(args[0]):
            raise next(raised)
        return inner(*args, **kwargs)

    monkeypatch.setattr(owner, stage, failing)
    summary = color_quietly(colorizer, [tmp_path], tmp_path / 'out', batch_size=batch_size)
    (failure,) = summary.failures
    assert '2.png cannot be colored' in failure and '\n' not in failure
    assert summary.colored == 3
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['0.png', '1.png', '3.png']


def test_the_command_says_it_and_exits_with_1(trained, tmp_path, cli, monkeypatch):
    for i in range(3):
        PHOTO.save(tmp_path / f'{i}.png')

    def failing(self, image):
        raise AttributeError('no such thing')

    monkeypatch.setattr(Colorizer, 'preprocess', failing)
    code, out, err = cli('colorize', f'--model={trained}', tmp_path, f'--out={tmp_path}/out')
    assert code == 1
    assert err.count('jaxcolor: error: ') == 3 and 'Traceback' not in err
    assert '0 of 3' in out


# EXIF data.


def exif_block(fields):
    """EXIF data with fields of any type: {field: (TIFF type, value)}."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for field, (kind, value) in fields.items():
        directory.tagtype[field] = kind
        directory[field] = value
    return directory


def with_exif(name, directory):
    """The file of a photo with EXIF data, in the format `name` of FORMATS."""
    if name.startswith('TIFF'):
        return encoded(PHOTO, tiffinfo=directory, **FORMATS[name])
    return encoded(PHOTO, exif=b'Exif\0\0II*\0\x08\0\0\0' + directory.tobytes(8), **FORMATS[name])


@pytest.mark.parametrize('name', ['JPEG', 'PNG', 'WebP', 'TIFF', 'AVIF'])
@pytest.mark.parametrize(
    ('kind', 'value'), [(5, 0.5), (10, -0.5), (11, 1.5), (12, 2.5), (3, 7), (4, 2**31), (7, b'\xff\0a')]
)
def test_text_fields_that_hold_no_text(tmp_path, name, kind, value):
    if name == 'AVIF' and 'AVIF' not in Image.SAVE:
        pytest.skip('this Pillow is built without AVIF')
    fields = {ExifTags.Base[field]: (kind, value) for field in ('ImageDescription', 'Make', 'Artist', 'Copyright')}
    path = tmp_path / f'a.{FORMATS[name]["format"].lower()}'
    path.write_bytes(with_exif(name, exif_block({**fields, ExifTags.Base.Model: (2, 'Camera')})))
    result = tmp_path / ('a.png' if name == 'AVIF' else f'result{path.suffix.replace("jpeg", "jpg")}')
    notes = rewritten(path, result)
    exif = Image.open(result).getexif()
    assert exif[ExifTags.Base.Model] == 'Camera'
    if kind in (5, 10, 11, 12):
        assert len(notes) == 1 and 'Artist' in notes[0]
        assert ExifTags.Base.Artist not in exif


@pytest.mark.parametrize('name', ['JPEG', 'PNG', 'WebP'])
def test_mutated_exif(tmp_path, name):
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = 'A. Painter'
    exif[ExifTags.IFD.Exif] = {0x9003: '2001:01:01 00:00:00', 0x829A: 0.5, 0x927C: b'maker'}
    exif[ExifTags.IFD.GPSInfo] = {1: 'N', 2: (1.0, 2.0, 3.5)}
    block, generator = exif.tobytes(), np.random.default_rng(0)
    path, result = tmp_path / 'a', tmp_path / f'r.{FORMATS[name]["format"].lower()}'
    for _ in range(300):
        mutated = bytearray(block)
        for at in generator.integers(6, len(block), 3):
            mutated[at] = generator.choice([0, 255, generator.integers(256)])
        path.write_bytes(encoded(PHOTO.resize((16, 12)), exif=bytes(mutated), **FORMATS[name]))
        rewritten(path, result)


@pytest.mark.parametrize('kind', [1, 7])
def test_a_jpeg_whose_exif_has_an_odd_resolution_is_opened(tmp_path, kind):
    entries = [(274, 3, 1, 6), (282, kind, 1, 72), (296, 3, 1, 2)]  # turned; the resolution is no fraction
    fields = b''.join(struct.pack('<HHII', *entry) for entry in entries)
    exif = b'Exif\0\0II*\0' + struct.pack('<IH', 8, len(entries)) + fields + bytes(4)
    path = tmp_path / 'a.jpg'
    path.write_bytes(encoded(PHOTO.resize((40, 24)), format='JPEG', exif=exif))
    with pytest.raises(OSError):
        Image.open(path)
    rewritten(path, tmp_path / 'b.jpg')
    assert Image.open(tmp_path / 'b.jpg').size == (24, 40)


def test_exif_larger_than_a_jpeg_allows(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = 'A. Painter'
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.MakerNote: bytes(80_000)}
    PHOTO.save(tmp_path / 'a.png', exif=exif)
    (note,) = rewritten(tmp_path / 'a.png', tmp_path / 'a.jpg')
    assert 'MakerNote' in note
    assert Image.open(tmp_path / 'a.jpg').getexif()[ExifTags.Base.Artist] == 'A. Painter'


def test_names_that_are_not_ascii_are_kept(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = 'Zoë'.encode()
    PHOTO.save(tmp_path / 'a.png', exif=exif)
    assert rewritten(tmp_path / 'a.png', tmp_path / 'b.png') == []
    assert Image.open(tmp_path / 'b.png').getexif()[ExifTags.Base.Artist].encode('latin-1').decode() == 'Zoë'


# Names.


@pytest.mark.parametrize('letter', ['a', 'é', '写'])
@pytest.mark.parametrize('suffix', ['.jpg', '.bmp'])
def test_long_names(colorizer, tmp_path, letter, suffix):
    (tmp_path / 'in').mkdir()
    lengths = range(249, 256)
    for length in lengths:
        room = length - len(suffix)
        stem = letter * (room // len(letter.encode())) + 'b' * (room % len(letter.encode()))
        PHOTO.save(tmp_path / 'in' / (stem + suffix))
    summary = color_quietly(colorizer, [tmp_path / 'in'], tmp_path / 'out')
    assert summary.failures == [] and summary.colored == len(set(os.listdir(tmp_path / 'in')))
    assert len(os.listdir(tmp_path / 'out')) == summary.colored


@pytest.mark.skipif(os.name != 'posix' or sys.platform == 'darwin', reason='such names are not allowed here')
def test_names_of_any_bytes(trained, tmp_path, command):
    folder = os.fsencode(tmp_path / 'in')
    os.mkdir(folder)
    data = encoded(PHOTO, format='PNG')
    for name in (b'a\nb.png', b'\xff\xfe.png', b'-rf.png', b"'\x1b[31m.png", b'cut\nhere.png', b'.png'):
        with open(os.path.join(folder, name), 'wb') as file:
            file.write(data[:60] if b'cut' in name else data)
    for out in (tmp_path / 'out', os.fsdecode(os.fsencode(tmp_path / 'b') + b'\xff')):
        code, stdout, stderr = command('colorize', f'--model={trained}', tmp_path / 'in', f'--out={out}')
        assert code == 1 and '4 of 5 photos' in stdout
        assert len(os.listdir(out)) == 4  # a name that starts with a dot is hidden
        (line,) = stderr.splitlines()
        assert line.startswith('jaxcolor: error: ') and 'cut\\nhere.png' in line


# Orientation.


def test_photos_are_turned_once(colorizer, tmp_path):
    """All eight EXIF orientations, in every format; lightness is the photo's."""
    turned_files(tmp_path / 'in')
    summary = color_quietly(colorizer, [tmp_path / 'in'], tmp_path / 'out')
    assert summary.failures == []
    upright = color.rgb_to_lab(quadrants())[..., :1]
    for path in (tmp_path / 'out').iterdir():
        lightness = color.rgb_to_lab(np.asarray(Image.open(path).convert('RGB')))[..., :1]
        assert lightness.shape == (48, 64, 1), path.name
        assert np.mean(np.abs(lightness - upright) > 15) < 0.25, path.name
