"""Coloring photos: formats and modes, what results keep of their photos, bad input."""

import io
import os

import numpy as np
import pytest
from conftest import PHOTOS, assert_one_sentence
from PIL import ExifTags, Image, ImageCms

from jaxcolor import color
from jaxcolor.data.augment import center_crop
from jaxcolor.errors import UserError
from jaxcolor.inference import recompose
from jaxcolor.inference.colorize import colorize
from jaxcolor.inference.plan import plan_outputs
from jaxcolor.inference.recompose import join
from jaxcolor.prepare.decode import open_photo, pillow_unguarded

FISH = PHOTOS / 'train' / 'fish1.jpg'


def colored(colorizer, image, tmp_path, name, **save):
    """Saves an image as a file, colors the file, and returns the result."""
    source = tmp_path / 'in' / name
    source.parent.mkdir(exist_ok=True)
    image.save(source, **save)
    assert colorize(colorizer, plan_outputs([source], tmp_path / 'out'), quiet=True).failures == []
    (result,) = (tmp_path / 'out').iterdir()
    return Image.open(result)


@pytest.mark.parametrize('mode', ['L', 'RGB', 'P', '1', 'LA', 'RGBA', 'CMYK', 'I;16'])
def test_every_mode(colorizer, tmp_path, mode):
    photo = Image.open(FISH)
    if mode == 'I;16':
        photo = Image.fromarray(np.asarray(photo.convert('L')).astype(np.uint16) * 257)
    else:
        photo = photo.convert(mode)
    name = 'photo.tif' if mode == 'CMYK' else 'photo.png'
    result = colored(colorizer, photo, tmp_path, name)
    assert result.size == photo.size
    assert result.mode == ('RGBA' if mode in ('LA', 'RGBA') else 'RGB')
    assert ImageCms.getProfileDescription(_profile(result)).startswith('sRGB')


def _profile(image):
    return ImageCms.ImageCmsProfile(io.BytesIO(image.info['icc_profile']))


@pytest.mark.parametrize('name', ['a.jpg', 'a.jpeg', 'a.png', 'a.webp', 'a.tif', 'a.bmp', 'a.gif'])
def test_every_format(colorizer, tmp_path, name):
    result = colored(colorizer, Image.open(FISH).convert('L'), tmp_path, name)
    formats = {'jpg': 'JPEG', 'jpeg': 'JPEG', 'png': 'PNG', 'webp': 'WEBP', 'tif': 'TIFF', 'bmp': 'PNG', 'gif': 'PNG'}
    assert result.format == formats[name.split('.')[1]]


@pytest.mark.parametrize('size', [(2, 2), (3, 500), (500, 3), (33, 57), (640, 480)])
def test_any_size_and_aspect(colorizer, size):
    assert colorizer(Image.open(FISH).resize(size)).size == size


def test_lightness_is_kept_at_full_resolution(colorizer):
    """Where the color is inside sRGB, L* differs by 8-bit rounding only."""
    photo = Image.open(FISH)
    before = color.rgb_to_lab(np.asarray(photo))[..., 0]
    result = np.asarray(colorizer(photo))
    inside = ((result > 0) & (result < 255)).all(axis=-1)
    # Of the result half a step darker and half a step lighter, with a thousandth for float32.
    low, high = (color.rgb_to_lab((result + half) / np.float32(255))[..., 0] for half in np.float32([-0.5, 0.5]))
    assert inside.mean() > 0.7
    assert (low[inside] - 1e-3 < before[inside]).all() and (before[inside] < high[inside] + 1e-3).all()


def test_colors_of_the_input_are_ignored(colorizer):
    """A color photo and its gray version get the same colors."""
    photo = Image.open(FISH)
    lab = color.rgb_to_lab(np.asarray(photo))
    gray = Image.fromarray(color.to_uint8(color.lab_to_rgb(lab * np.array([1, 0, 0], np.float32))))
    difference = np.asarray(colorizer(photo), np.int32) - np.asarray(colorizer(gray), np.int32)
    assert np.abs(difference).mean() < 1


@pytest.mark.parametrize('side', [40, 64, 200])
def test_preprocess_matches_training_photos(colorizer, side):
    photo = Image.fromarray(np.random.default_rng(0).integers(80, 176, (side, side), np.uint8)).convert('RGB')
    data = io.BytesIO()
    photo.save(data, 'png')
    with pillow_unguarded():
        record = open_photo(data.getvalue(), shorter_side=colorizer.size, max_megapixels=1)
    lab = center_crop(color.encode_lab(color.rgb_to_lab(np.asarray(record))), colorizer.size)
    assert colorizer.size == 64
    # Three steps of L* in 8 bits: resizing rounds rows and then columns, here as RGB and there as Lab.
    np.testing.assert_allclose(colorizer.preprocess(photo)[0, ..., 0], color.decode_lab(lab)[..., 0], rtol=0, atol=300 / 255)


def test_results_have_color(colorizer):
    lab = color.rgb_to_lab(np.asarray(colorizer(Image.open(FISH).convert('L'))))
    assert np.abs(lab[..., 1:]).mean() > 1


def test_recompose_has_no_seams_between_strips(monkeypatch):
    photo = Image.open(FISH)
    ab = 60 * np.random.default_rng(0).standard_normal((16, 24, 2)).astype(np.float32)
    whole = np.asarray(join(photo, ab))
    for chunk in (photo.width * 7 + 5, photo.width // 3):
        monkeypatch.setattr('jaxcolor.inference.pixels.CHUNK', chunk)
        difference = np.asarray(join(photo, ab), np.int32) - whole
        assert np.abs(difference).max() <= 1


@pytest.mark.parametrize('height', [5, 16, 21, 16 * 7, 16 * 30 + 1])
def test_rows_are_mixed_as_pillow_does(height, monkeypatch):
    """Of an odd multiple, a row of each group lies on one of the network's, and takes it alone."""
    monkeypatch.setattr(recompose, '_PRODUCT', 2000)
    planes = np.random.default_rng(0).standard_normal((4, 16, 40)).astype(np.float32)
    weights = np.asarray(Image.fromarray(np.eye(16, dtype=np.float32)).resize((16, height), Image.Resampling.BICUBIC))
    mixed = np.full((4, height * 40 + 3), np.nan, np.float32)
    recompose._mix_rows(weights, planes, mixed)
    expected = [np.asarray(Image.fromarray(plane).resize((40, height), Image.Resampling.BICUBIC)) for plane in planes]
    np.testing.assert_allclose(mixed[:, :-3].reshape(4, height, 40), expected, rtol=0, atol=1e-5)


def test_recompose_with_the_true_colors_gives_the_photo():
    photo = Image.open(FISH)
    lab = color.rgb_to_lab(np.asarray(photo))
    assert (np.asarray(join(photo, lab[..., 1:])) == np.asarray(photo)).all()


def test_colors_end_where_the_photo_has_edges(monkeypatch):
    """Of a step whose sides differ in lightness and color, half the error of bicubic enlargement is left; ends stay."""
    side, size = 8, 12  # pixels of the photo to one of the network, which sees 12 x 12
    right = np.arange(size * side) >= 5 * side + 3  # the edge lies inside a pixel of the network
    photo = Image.fromarray(np.where(right, 190, 70).astype(np.uint8)[None].repeat(size * side, 0))
    truth = np.where(right[:, None], np.float32([30, -25]), np.float32([-20, 30]))  # (W, 2)
    ab = truth.reshape(size, side, 2).mean(axis=1)[None].repeat(size, 0)

    def error():
        found = color.rgb_to_lab(np.asarray(join(photo, ab)))[size * side // 2, :, 1:]
        return np.abs(found - truth)

    aware = error()
    monkeypatch.setattr('jaxcolor.inference.recompose.edge_model', lambda image, ab, _: (0 * ab, ab))
    bicubic = error()
    assert aware.mean() < 0.5 * bicubic.mean()
    assert aware[:16].max() < 3 and aware[-16:].max() < 3


def test_the_lightness_that_the_network_saw_is_not_computed_again(colorizer, monkeypatch):
    photo = Image.open(FISH)
    lightness = colorizer.preprocess(photo)
    ab = 20 * np.random.default_rng(0).standard_normal((*lightness.shape[1:3], 2)).astype(np.float32)
    expected, smaller = np.asarray(join(photo, ab)), np.asarray(join(photo, ab[::2, ::2]))
    np.testing.assert_array_equal(np.asarray(join(photo, ab[::2, ::2], lightness=lightness[0])), smaller)
    monkeypatch.delattr('jaxcolor.inference.recompose.resized')
    np.testing.assert_array_equal(np.asarray(join(photo, ab, lightness=lightness[0])), expected)


def test_coloring_in_place_gives_the_same():
    ab = 20 * np.random.default_rng(0).standard_normal((16, 24, 2)).astype(np.float32)
    for mode in ('L', 'RGB', 'RGBA'):
        photo = Image.open(FISH).convert(mode)
        expected = np.asarray(join(photo, ab))
        np.testing.assert_array_equal(np.asarray(join(photo, ab, in_place=True)), expected)


def test_transparency_is_kept(colorizer, tmp_path):
    photo = Image.open(FISH).convert('RGBA')
    alpha = Image.linear_gradient('L').resize(photo.size)
    photo.putalpha(alpha)
    result = colored(colorizer, photo, tmp_path, 'a.png')
    assert (np.asarray(result.getchannel('A')) == np.asarray(alpha)).all()


def test_rotated_photo_becomes_upright(colorizer, tmp_path):
    photo = Image.open(FISH)
    upright = np.asarray(colorizer(photo))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Artist] = 'A. Painter'
    result = colored(colorizer, photo.transpose(Image.Transpose.ROTATE_90), tmp_path, 'a.png', exif=exif)
    assert (np.asarray(result) == upright).all()
    assert result.getexif().get(ExifTags.Base.Artist) == 'A. Painter'
    assert ExifTags.Base.Orientation not in result.getexif()


def test_style_of_another_photo(colorizer):
    photo, other = Image.open(FISH), Image.open(PHOTOS / 'train' / 'farm_animals-horse.jpg')
    own = np.asarray(colorizer(photo), np.int32)
    assert np.abs(np.asarray(colorizer(photo, colorizer.global_features(photo)), np.int32) - own).max() <= 1
    assert np.abs(np.asarray(colorizer(photo, colorizer.global_features(other)), np.int32) - own).max() > 1


def test_folders_keep_their_structure(colorizer, tmp_path):
    (tmp_path / 'in' / 'deep').mkdir(parents=True)
    for name in ('a.jpg', 'deep/a.jpg', 'deep/b.png', 'notes.txt'):
        Image.open(FISH).save(tmp_path / 'in' / name, 'PNG' if name.endswith('png') else 'JPEG')
    assert colorize(colorizer, plan_outputs([tmp_path / 'in'], tmp_path / 'out'), quiet=True).failures == []
    assert {str(p.relative_to(tmp_path / 'out')) for p in (tmp_path / 'out').rglob('*.*')} == {
        'a.jpg',
        'deep/a.jpg',
        'deep/b.png',
    }


def test_outputs_that_would_overwrite_files_are_refused(tmp_path):
    for folder in ('one', 'two'):
        (tmp_path / folder).mkdir()
        Image.open(FISH).save(tmp_path / folder / 'a.jpg')
    with pytest.raises(UserError, match='would be overwritten'):
        plan_outputs([tmp_path / 'one'], tmp_path / 'one')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='holds no photos'):
        plan_outputs([tmp_path / 'empty'], tmp_path / 'out')


def test_batches_do_not_change_results(colorizer, tmp_path):
    photo = Image.open(FISH).convert('L')
    (tmp_path / 'in').mkdir()
    for i in range(5):
        photo.resize((90, 70) if i == 3 else (80, 80)).rotate(40 * i).save(tmp_path / 'in' / f'{i}.png')
    for batch_size in (1, 2):
        plan = plan_outputs([tmp_path / 'in'], tmp_path / f'out{batch_size}')
        assert colorize(colorizer, plan, quiet=True, batch_size=batch_size).failures == []
    for i in range(5):
        one, two = (np.asarray(Image.open(tmp_path / f'out{size}' / f'{i}.png'), np.int32) for size in (1, 2))
        assert np.abs(one - two).max() <= 1
        assert np.abs(one - one[..., :1]).max() > 1


def test_bad_photos_give_one_sentence_each_and_others_are_colored(trained, tmp_path, command):
    bad = tmp_path / 'bad'
    bad.mkdir()
    (bad / 'cut.jpg').write_bytes(FISH.read_bytes()[:3000])
    (bad / 'text.jpg').write_text('this is no photo')
    Image.new('L', (1, 1)).save(bad / 'dot.png')
    Image.new('L', (9000, 6000)).save(bad / 'huge.png')
    (bad / 'good.jpg').write_bytes(FISH.read_bytes())
    code, out, err = command('colorize', f'--model={trained}', bad, f'--out={tmp_path / "out"}', '--max-megapixels=50')
    assert code == 1
    assert 'Traceback' not in err
    lines = [line for line in err.splitlines() if line.startswith('jaxcolor: error: ')]
    assert len(lines) == 4
    for line, (name, reason) in zip(
        lines,
        [('cut.jpg', 'truncated'), ('dot.png', '1x1'), ('huge.png', '--max-megapixels'), ('text.jpg', 'not a photo')],
        strict=True,
    ):
        assert name in line and reason in line
    assert [p.name for p in (tmp_path / 'out').iterdir()] == ['good.jpg']
    assert '1 of 5' in out


def test_bad_commands_give_one_sentence(trained, tmp_path, cli):
    for arguments, part in [
        ([f'--model={trained}', tmp_path / 'none.jpg'], 'none.jpg'),
        ([f'--model={tmp_path}', FISH], 'no run directory'),
        ([f'--model={trained}', FISH, '--size=8'], '--size'),
        ([f'--model={trained}', FISH, '--out=/proc/none'], '/proc/none'),
    ]:
        code, _, err = cli('colorize', *arguments)
        assert_one_sentence(code, err, part)


def test_pillows_own_size_limit_does_not_apply(colorizer, tmp_path, monkeypatch):
    """Pillow refuses photos of twice its limit, a global variable shared by all threads."""
    (tmp_path / 'in').mkdir()
    for i in range(12):
        Image.open(FISH).save(tmp_path / 'in' / f'{i}.jpg')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    # One photo in each queue.
    monkeypatch.setattr('jaxcolor.inference.colorize._MAX_PIXELS', 1000)
    assert colorize(colorizer, plan_outputs([tmp_path / 'in'], tmp_path / 'out'), quiet=True).failures == []
    assert Image.MAX_IMAGE_PIXELS == 1000
    assert len(list((tmp_path / 'out').iterdir())) == 12


@pytest.mark.slow
def test_a_hundred_megapixels(colorizer, tmp_path):
    photo = Image.open(FISH).convert('L').resize((12_500, 8_000))
    with pillow_unguarded():
        assert colored(colorizer, photo, tmp_path, 'a.jpg').size == (12_500, 8_000)
    assert os.path.getsize(tmp_path / 'out' / 'a.jpg') > 1e6
