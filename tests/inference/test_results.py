"""Results of earlier runs: they are no photos, cut-off ones are made again, edited ones stay."""

import shutil

import pytest
from odd_photos import FORMATS, color_quietly, encoded
from PIL import Image

from jaxcolor.errors import UserError
from jaxcolor.inference.plan import plan_outputs
from jaxcolor.inference.tags import read_tag

PHOTO = Image.effect_noise((96, 64), 90).convert('RGB')  # so that pixels are most of a file
# The kinds of results, and how their photos are written.
KINDS = {
    'a.jpg': FORMATS['JPEG'],
    'b.png': FORMATS['PNG'],
    'c.webp': FORMATS['WebP'],
    'd.tif': FORMATS['TIFF'],
    'e.tif': {**FORMATS['TIFF'], 'save_all': True, 'append_images': [PHOTO.rotate(90)]},
    'f.png': {**FORMATS['PNG'], 'save_all': True, 'append_images': [PHOTO.rotate(90)], 'duration': 50},
    'g.jpg': {'format': 'MPO', 'save_all': True, 'append_images': [PHOTO.rotate(90)]},
    'h.bmp': {'format': 'BMP'},
}


@pytest.fixture(scope='module')
def colored(colorizer, tmp_path_factory):
    """A folder of photos in `photos`, their results in `out`, and no more."""
    folder = tmp_path_factory.mktemp('colored')
    (folder / 'photos').mkdir()
    for name, options in KINDS.items():
        (folder / 'photos' / name).write_bytes(encoded(PHOTO, **options))
    assert color_quietly(colorizer, [folder / 'photos'], folder / 'out').colored == len(KINDS)
    return folder


@pytest.fixture
def folder(colored, tmp_path):
    """A copy of it."""
    return shutil.copytree(colored, tmp_path / 'copy')


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


# They are no photos.


def test_results_in_folders_are_left_out_whatever_the_folder_of_results_is(folder, tmp_path):
    for inputs, out in [([folder], tmp_path / 'other'), ([folder / 'photos', folder / 'out'], folder / 'photos' / 'new')]:
        plan = plan_outputs(inputs, out)
        assert sorted(photo.name for photo, _ in plan.pairs) == sorted(KINDS)
        assert all(photo.parent.name == 'photos' for photo, _ in plan.pairs) and plan.problems == []
        assert any(f'{len(KINDS)} results of earlier runs in' in note for note in plan.notes)
    with pytest.raises(UserError, match='results of jaxcolor alone'):
        plan_outputs([folder / 'out'], tmp_path / 'other')


def test_looking_for_results_decodes_no_photo(folder, tmp_path, monkeypatch):
    def fail(image):
        raise AssertionError(f'decodes {image.format}')

    for name in ('JpegImagePlugin.JpegImageFile', 'PngImagePlugin.PngImageFile', 'WebPImagePlugin.WebPImageFile'):
        monkeypatch.setattr(f'PIL.{name}.load', fail)
    assert len(plan_outputs([folder], tmp_path / 'other').pairs) == len(KINDS)


def test_a_shells_star_names_results_too(trained, folder, cli, monkeypatch):
    """All files and folders of a folder are named, once and again."""
    monkeypatch.chdir(folder)
    shutil.move('photos/b.png', 'b.png')
    shutil.move('out/a.jpg', 'a-colored.jpg')
    before, codes = contents(folder), []
    for _ in range(2):
        names = sorted(path.name for path in folder.iterdir())
        codes.append(cli('colorize', f'--model={trained}', *names, '--out=new'))
    assert [code for code, _, _ in codes] == [0, 0]
    assert '1 result of earlier runs among the photos was left out' in codes[0][2]
    assert 'new is the folder of the results' in codes[1][2]
    assert f'0 of {len(KINDS)} photos colored' in codes[1][1] and f'{len(KINDS)} photos were finished' in codes[1][2]
    assert before.items() <= contents(folder).items() and len(contents(folder)) == len(before) + len(KINDS)


def test_originals_in_the_folder_of_results_are_said(folder):
    shutil.copy(folder / 'photos' / 'b.png', folder / 'out' / 'original.png')
    plan = plan_outputs([folder / 'photos', folder / 'out'], folder / 'out')
    assert len(plan.pairs) == len(KINDS) and 'is also --out' in plan.problems[0]


def test_results_named_alone_are_colored(colorizer, folder):
    results = [folder / 'out' / 'a.jpg', folder / 'out' / 'b.png']
    summary = color_quietly(colorizer, results, folder / 'twice')
    assert summary.colored == 2 and summary.failures == []


def test_one_photo_is_one(trained, folder, cli):
    for text in ('1 of 1 photo colored', '1 photo was finished by an earlier run; --overwrite colors it again'):
        code, out, err = cli('colorize', f'--model={trained}', folder / 'photos' / 'b.png', f'--out={folder / "new"}')
        assert code == 0 and text in out + err


# Cut off, and edited.


@pytest.mark.parametrize('part', [0.6, 0.9])
def test_results_that_are_cut_off_are_made_again(colorizer, folder, part):
    before = contents(folder)
    for path in (folder / 'out').iterdir():
        data = path.read_bytes()
        path.write_bytes(data[: max(int(part * len(data)), len(data) - 3000)])
    summary = color_quietly(colorizer, [folder / 'photos'], folder / 'out')
    # A WebP has its EXIF data, and so the tag, at its end: it may be anybody's.
    (failure,) = summary.failures
    assert 'c.webp exists and is not a result of jaxcolor' in failure
    after = contents(folder)
    assert summary.colored == len(KINDS) - 1 and summary.finished == 0
    assert [name for name in before if before[name] != after[name]] == ['out/c.webp']


def edit(path):
    """Draws on a result, and keeps what it says of itself."""
    with Image.open(path) as image:
        options = {'format': image.format, 'exif': image.getexif(), 'icc_profile': image.info['icc_profile']}
        frames = []
        for index in range(getattr(image, 'n_frames', 1)):
            image.seek(index)
            frame = image.convert('RGB')
            frame.paste('black', (0, 0, 9, 9))
            frames.append(frame)
    if len(frames) > 1:
        options |= {'save_all': True, 'append_images': frames[1:]}
    frames[0].save(path, **options)


def test_edited_results_stay(colorizer, folder):
    for path in (folder / 'out').iterdir():
        edit(path)
        assert read_tag(path)
    before = contents(folder)
    assert color_quietly(colorizer, [folder / 'photos'], folder / 'out').finished == len(KINDS)
    (folder / 'photos' / 'b.png').write_bytes(encoded(PHOTO.rotate(180), format='PNG'))
    (failure,) = color_quietly(colorizer, [folder / 'photos'], folder / 'out').failures
    assert 'b.png exists and was changed since' in failure and '--overwrite' in failure
    assert contents(folder / 'out') == {name[4:]: data for name, data in before.items() if name.startswith('out/')}
    assert color_quietly(colorizer, [folder / 'photos'], folder / 'out', overwrite=True).colored == len(KINDS)


@pytest.mark.parametrize('name', ['a.jpg', 'c.webp', 'd.tif'])
def test_one_other_byte_is_an_edit(colorizer, tmp_path, name):
    """Programs write ratings and keywords into the padding of XMP: the size stays."""
    photo, result = tmp_path / name, tmp_path / 'out' / name
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">rating 0</x:xmpmeta>'
    options = {'tiffinfo': {700: xmp}} if name == 'd.tif' else {'xmp': xmp}
    photo.write_bytes(encoded(PHOTO, **KINDS[name], **options))
    assert color_quietly(colorizer, [photo], tmp_path / 'out').colored == 1
    rated = result.read_bytes().replace(b'rating 0', b'rating 5')
    assert rated != result.read_bytes()
    result.write_bytes(rated)
    photo.write_bytes(photo.read_bytes() + b'\0')
    (failure,) = color_quietly(colorizer, [photo], tmp_path / 'out').failures
    assert 'was changed since' in failure and result.read_bytes() == rated


def test_results_of_versions_without_a_checksum(colorizer, folder):
    """They are known, and replaced when their photo changes."""
    result, photo = folder / 'out' / 'a.jpg', folder / 'photos' / 'a.jpg'
    with Image.open(result) as image:
        exif = image.getexif()
        exif[305] = exif[305].split(', 0000')[0]
        image.convert('RGB').save(result, exif=exif)
    assert read_tag(result)
    assert color_quietly(colorizer, [photo], folder / 'out').finished == 1
    photo.write_bytes(photo.read_bytes() + b'\0')
    assert color_quietly(colorizer, [photo], folder / 'out').colored == 1
