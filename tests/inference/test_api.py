"""Coloring from Python: what goes in comes out, on every kind of photo, from threads, and compiled once a shape."""

import concurrent.futures
import io
import os
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FLAGS, PHOTOS, ROOT
from PIL import Image

import jaxcolor
from jaxcolor import color
from jaxcolor.errors import UserError
from jaxcolor.inference.agreement import Agreement
from jaxcolor.inference.api import PhotoColorizer, _resampled
from jaxcolor.inference.colorize import colorize
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.inference.plan import plan_outputs
from jaxcolor.tasks.regression import Regression

FISH = PHOTOS / 'train' / 'fish1.jpg'


@pytest.fixture(scope='module')
def loaded(trained):
    return jaxcolor.load(trained)


def saved(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def levels(shape, dtype, seed=0):
    """A photo as an array: noise that is even over 8 x 8 pixels."""
    H, W, *channels = shape
    blocks = np.random.default_rng(seed).random((-(-H // 8), -(-W // 8), *channels))
    values = blocks.repeat(8, axis=0).repeat(8, axis=1)[:H, :W]
    return values.astype(dtype) if np.dtype(dtype).kind == 'f' else np.round(values * np.iinfo(dtype).max).astype(dtype)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize('channels', [(), (1,), (3,), (4,)])
def test_arrays_come_back_as_they_went_in(loaded, dtype, channels):
    given = levels((40, 56, *channels), dtype)
    before = given.copy()
    result = loaded(given)
    assert result.dtype == dtype and result.shape == (40, 56, 4 if channels == (4,) else 3)
    np.testing.assert_array_equal(given, before)
    if channels == (4,):  # to half a step of 16 bits, and of the type
        np.testing.assert_allclose(result[..., 3], given[..., 3], atol=0 if result.dtype.kind == 'u' else 1e-5, rtol=1e-3)
    # The lightness is the photo's: its gray is within a step of 8 bits.
    if channels in ((), (1,)) and dtype != np.float16:
        white = np.iinfo(dtype).max if np.dtype(dtype).kind == 'u' else 1.0
        gray = np.repeat(given.reshape(40, 56, 1), 3, axis=2) / np.float32(white)
        lightness = [color.rgb_to_lab(np.float32(x))[..., 0] for x in (gray, result / np.float32(white))]
        assert np.abs(lightness[0] - lightness[1]).max() < 0.5


def test_kinds_of_an_array_agree(loaded):
    """The same photo in other types is the same photo."""
    deep = levels((40, 56), np.uint16)
    result = loaded(deep)
    np.testing.assert_array_equal(loaded(deep[..., None]), result)
    np.testing.assert_array_equal(loaded(np.repeat(deep[..., None], 3, axis=2)), result)
    np.testing.assert_allclose(loaded(deep / 65535), result / 65535, atol=1e-9)
    swapped = loaded(deep.astype('>u2'))
    assert swapped.dtype == np.dtype('>u2')
    np.testing.assert_array_equal(swapped, result)


@pytest.mark.parametrize('mode', ['L', 'RGB', 'RGBA', 'P', '1', 'LA', 'La', 'CMYK', 'YCbCr', 'I;16', 'F'])
def test_pillow_images_of_every_mode(loaded, mode):
    photo = Image.open(FISH).convert('RGB').resize((64, 48))
    if mode == 'I;16':
        photo = Image.fromarray(np.asarray(photo.convert('L')).astype(np.uint16) * 257)
    else:
        photo = photo.convert({'F': 'L', '1': 'L', 'La': 'LA'}.get(mode, 'RGB')).convert(mode)
    result = loaded(photo)
    assert isinstance(result, Image.Image) and result.size == photo.size
    assert result.mode == ('RGBA' if mode in ('LA', 'La', 'RGBA') else 'RGB')


def test_paths_give_pillow_images(loaded, tmp_path):
    Image.open(FISH).transpose(Image.Transpose.ROTATE_90).save(tmp_path / 'turned.jpg', exif=b'Exif\0\0' + turned_exif(6))
    size = Image.open(FISH).size
    for path in (FISH, str(FISH), tmp_path / 'turned.jpg'):
        result = loaded(path)
        assert isinstance(result, Image.Image) and result.mode == 'RGB' and result.size == size
    np.testing.assert_array_equal(loaded(FISH), loaded(Image.open(FISH)))


def turned_exif(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return exif.tobytes()


FILES = {
    'a.jpg': ('JPEG', {'exif': turned_exif(1)}),
    'b.png': ('PNG', {'dpi': (300, 300)}),
    'c.webp': ('WEBP', {}),
    'd.tif': ('TIFF', {}),
    'e.gif': ('GIF', {'save_all': True, 'append_images': [Image.new('L', (64, 48), 99)], 'duration': 50}),
    'f.bmp': ('BMP', {}),
}


@pytest.mark.parametrize('name', FILES)
def test_bytes_give_the_files_of_the_command(loaded, colorizer, tmp_path, name):
    file_format, options = FILES[name]
    path = tmp_path / 'in' / name
    path.parent.mkdir()
    Image.open(FISH).convert('L').resize((64, 48)).save(path, file_format, **options)
    assert not colorize(colorizer, plan_outputs([path], tmp_path / 'out'), quiet=True).failures
    (expected,) = (tmp_path / 'out').iterdir()
    assert loaded(path.read_bytes()) == expected.read_bytes()
    result = loaded.color_file(path.read_bytes(), name)
    assert result.data == expected.read_bytes() and result.name == expected.name


@pytest.mark.slow
def test_files_are_the_commands_with_its_options(loaded, trained, tmp_path, cli):
    hints, style = '20,30,#a03030;5,5,#3030a0', PHOTOS / 'train' / 'fish25.jpg'
    options = ['--chroma=1.25', '--size=96', f'--hints={hints}', f'--style={style}']
    code, _, err = cli('colorize', FISH, f'--out={tmp_path / "out.jpg"}', f'--model={trained}', *options)
    assert code == 0, err
    result = loaded(FISH.read_bytes(), chroma=1.25, size=96, hints=hints, style=style)
    assert result == (tmp_path / 'out.jpg').read_bytes()
    assert result != loaded(FISH.read_bytes())


def test_a_name_decides_the_format_of_a_file(loaded):
    opaque, clear = (Image.new(mode, (40, 40), color) for mode, color in (('L', 99), ('RGBA', (9, 9, 9, 9))))
    assert loaded.color_file(saved(opaque, 'PNG'), 'a.jpg').name == 'a.jpg'
    assert loaded.color_file(saved(clear, 'PNG'), '../b.JPG').name == 'b.JPG.png'
    assert loaded.color_file(saved(opaque, 'BMP'), 'c').data.startswith(b'\x89PNG')


def test_lists_of_any_kinds_and_sizes(loaded):
    photo = Image.open(FISH)
    given = [photo.resize((70, 50)), FISH.read_bytes(), levels((33, 47), np.uint8), photo.resize((70, 50)), FISH]
    results = loaded(given)
    assert [type(each) for each in results] == [Image.Image, bytes, np.ndarray, Image.Image, Image.Image]
    for one, result in zip(given, results, strict=True):
        alone = loaded(one)
        assert result == alone if isinstance(result, bytes) else np.array_equal(result, alone)
    assert loaded(tuple(given[:1]))[0] == results[0] and loaded([]) == []


@pytest.mark.slow
def test_lists_fill_batches(trained, monkeypatch):
    """As on a GPU: full batches of one shape go together, the rest alone; the colors are those of single photos."""
    monkeypatch.setattr('jaxcolor.inference.colorizer.Colorizer.batch_size', 2)
    colorizer = PhotoColorizer(Colorizer(trained))
    seen, predict_ab = [], colorizer.network.predict_ab

    def spy(lightness, *rest):
        seen.append(len(lightness))
        return predict_ab(lightness, *rest)

    photos = [levels((50, 70), np.uint8, seed) for seed in range(3)]
    monkeypatch.setattr(colorizer.network, 'predict_ab', spy)
    results = colorizer(photos)
    assert sorted(seen) == [1, 2]
    for photo, result in zip(photos, results, strict=True):
        assert np.abs(colorizer(photo).astype(int) - result).max() <= 1


@pytest.mark.slow
def test_arguments(loaded, tmp_path):
    photo = Image.open(FISH).convert('L')
    own = np.asarray(loaded(photo), int)
    gray = np.asarray(loaded(photo, chroma=0))
    assert np.ptp(gray.astype(int), axis=2).max() <= 1
    assert np.abs(np.asarray(loaded(photo, size=96), int) - own).max() > 1
    assert np.abs(np.asarray(loaded(photo, style=PHOTOS / 'train' / 'fish25.jpg'), int) - own).max() > 1
    hinted = np.asarray(loaded(photo, hints='60,40,#d02020'), int)[40, 60]
    assert hinted[0] > hinted[1] + 20
    result, agreement = loaded(photo, agreement=True)
    np.testing.assert_array_equal(result, own)
    assert isinstance(agreement, Agreement) and agreement.mean > 0
    assert loaded.network.chroma == 1 and loaded.size == loaded.config.data.crop


def test_variants(loaded, monkeypatch):
    photo = levels((40, 56), np.uint8)
    with pytest.raises(UserError, match='cgan'):
        loaded(photo, variants=2)
    monkeypatch.setattr(type(loaded.network.task), 'takes_noise', True)  # it has none, so the two are alike
    results = loaded([photo, photo], variants=2)
    assert [[each.shape for each in one] for one in results] == [[(40, 56, 3)] * 2] * 2


def test_arrays_of_jax_and_orientations_come_back(loaded):
    given = levels((40, 56), np.uint8)
    result = loaded(jnp.asarray(given))
    assert isinstance(result, jax.Array)
    np.testing.assert_array_equal(result, loaded(given))
    assert loaded([jnp.asarray(given, jnp.float32) / 255])[0].dtype == jnp.float32
    photo = Image.open(io.BytesIO(saved(Image.fromarray(given), 'JPEG', exif=turned_exif(6))))
    assert loaded(photo).getexif()[274] == 6 and loaded(photo).size == photo.size


def test_sizes_are_resampled_as_jax_does():
    planes = np.random.default_rng(0).uniform(-100, 100, (2, 50, 90, 2)).astype(np.float32)
    for H, W in ((64, 96), (32, 64), (50, 90)):
        expected = jax.image.resize(planes, (2, H, W, 2), 'linear', precision='highest')
        np.testing.assert_allclose(_resampled(planes, H, W), expected, atol=1e-4)  # float32, of values to 100


def test_ab(loaded):
    lightness = color.rgb_to_lab(np.asarray(Image.open(FISH).convert('RGB').resize((96, 64))))[..., 0]
    ab = loaded.ab(lightness)
    assert ab.shape == (64, 96, 2) and ab.dtype == np.float32
    np.testing.assert_array_equal(ab, loaded.network.predict_ab(lightness[None, ..., None])[0])
    np.testing.assert_array_equal(loaded.ab(lightness[..., None].astype(np.float64)), ab)
    assert loaded.ab(lightness[None, ..., None]).shape == (1, 64, 96, 2)
    assert loaded.ab(lightness[:50, :90]).shape == (50, 90, 2)
    np.testing.assert_array_equal(loaded.ab(jnp.asarray(lightness)), ab)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    for H, W in ((50, 91), (57, 90), (63, 95)):  # of the bucket of 64 x 96
        loaded.ab(lightness[:H, :W])
    assert not [name for name in compiled if 'compile' in name]
    loaded.ab(lightness[:, :40])  # of another: what counts, counts
    assert [name for name in compiled if 'compile' in name]
    for wrong in (lightness.astype(np.uint8), lightness[0], lightness + 90, lightness * np.nan):
        with pytest.raises(UserError, match='ab takes L'):
            loaded.ab(wrong)


WRONG = {
    'dict': ({}, {}, 'a path, bytes, a Pillow image or an array, not dict'),
    'no file': ('nowhere.jpg', {}, 'nowhere.jpg cannot be read'),
    'no name': ('a\0b.jpg', {}, 'cannot be read'),
    'no photo': (b'text', {}, 'the photo cannot be colored: not a photo'),
    'channels': (np.zeros((9, 9, 2), np.uint8), {}, r'not \(9, 9, 2\)'),
    'dimensions': (np.zeros((9,), np.uint8), {}, r'not \(9,\)'),
    'type': (np.zeros((9, 9), np.int32), {}, 'not of int32'),
    'bool': (np.zeros((9, 9), bool), {}, 'not of bool'),
    'above 1': (np.full((9, 9), 1.5), {}, 'from 0 to 1'),
    'nan': (np.full((9, 9), np.nan), {}, 'from 0 to 1'),
    'small': (np.zeros((1, 9), np.uint8), {}, '9x1 pixels is too small'),
    'empty': (np.zeros((0, 9), np.uint8), {}, r'not \(0, 9\)'),
    'chroma': (FISH, {'chroma': 11}, 'between 0 and 10, not 11'),
    'size': (FISH, {'size': 31}, 'at least 32 pixels, not 31'),
    'variants': (FISH, {'variants': 0}, 'at least 1, not 0'),
    'chroma of text': (FISH, {'chroma': '1'}, 'between 0 and 10, not 1'),
    'size of text': (FISH, {'size': '64'}, 'a whole number of at least 32 pixels, not 64'),
    'broken': (Image.open(io.BytesIO(FISH.read_bytes()[:2000])), {}, 'an image of Pillow cannot be read'),
    'hints': (FISH, {'hints': 'red'}, '--hints=red'),
    'hints of numbers': (FISH, {'hints': [(1, 2, 3)]}, 'hints are text .*, not list'),
    'a path as hints': (FISH, {'hints': FISH}, 'has no transparency'),
    'outside': (FISH, {'hints': '9999,0,#ff0000'}, 'outside the photo'),
}


@pytest.mark.parametrize('name', WRONG)
def test_what_cannot_be_used_is_a_user_error(loaded, name):
    photo, options, sentence = WRONG[name]
    with pytest.raises(UserError, match=sentence):
        loaded(photo, **options)


def test_a_shape_is_compiled_once_also_by_threads(trained, monkeypatch):
    """The network is traced once for every bucket of sizes, whatever colors it: counted where it is traced."""
    traced, predict = [], Regression.predict

    def counting(self, state, lightness, *rest, **named):
        traced.append(lightness.shape)
        return predict(self, state, lightness, *rest, **named)

    monkeypatch.setattr(Regression, 'predict', counting)
    colorizer = jaxcolor.load(trained)
    barrier = threading.Barrier(4)

    def color_one(size):
        barrier.wait()
        return colorizer(levels(size, np.uint8))

    # 64 pixels of the shorter side, in steps of 32: the first four photos are one bucket, the others another.
    wide, square = [(60, 90), (61, 90), (120, 180), (62, 94)], [(60, 60), (61, 63), (200, 190), (50, 50)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = [list(pool.map(color_one, sizes)) for sizes in (wide, square, wide)]
    assert sorted(traced) == [(1, 64, 64, 1), (1, 64, 96, 1)]
    colorizer(levels(wide[0], np.uint8), chroma=2.0)
    assert len(traced) == 2
    for size, result in zip(wide, together[0], strict=True):
        np.testing.assert_array_equal(result, colorizer(levels(size, np.uint8)))


def test_threads_decode_large_photos_together(loaded, monkeypatch):
    """Pillow's own limit is off as long as one of them decodes, and back afterwards."""
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(loaded, [FISH.read_bytes()] * 6))
    assert len(set(results)) == 1 and Image.MAX_IMAGE_PIXELS == 1000


def test_compiled_programs_are_kept_on_disk(trained, tmp_path, monkeypatch):
    chosen = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv('JAXCOLOR_CACHE', str(tmp_path))
    try:
        jax.config.update('jax_compilation_cache_dir', None)
        jaxcolor.load(trained)
        assert jax.config.jax_compilation_cache_dir.startswith(str(tmp_path))
    finally:
        jax.config.update('jax_compilation_cache_dir', chosen)


@pytest.mark.slow
def test_another_process_finds_what_was_compiled(tmp_path):
    program = (
        'import jax, jaxcolor; hits = []\n'
        'jax.monitoring.register_event_listener(lambda name, **_: hits.append(name.endswith("cache_hits")))\n'
        f'jaxcolor.load()({str(FISH)!r}); print(sum(hits))'
    )
    kept = {name: value for name, value in os.environ.items() if name != 'JAX_COMPILATION_CACHE_DIR'}
    environment = {**kept, 'JAXCOLOR_CACHE': str(tmp_path), 'XLA_FLAGS': FLAGS, 'PYTHONPATH': str(ROOT)}
    hits = []
    for _ in range(2):
        done = subprocess.run([sys.executable, '-c', program], env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        hits.append(int(done.stdout))
    assert hits[1] > hits[0]


@pytest.mark.slow
def test_the_example_of_the_readme_runs(trained, tmp_path, monkeypatch):
    text = (ROOT / 'jaxcolor' / 'inference' / 'README.md').read_text(encoding='utf-8')
    _, _, example = text.partition('## From Python')
    example = example.partition('```python\n')[2].partition('```')[0]
    assert example.count('\n') >= 35
    monkeypatch.chdir(tmp_path)
    Image.open(FISH).convert('L').save('gray.jpg')
    Image.open(PHOTOS / 'train' / 'fish25.jpg').save('mood.jpg')
    exec(compile(example.replace("'ltbc-lite'", repr(str(trained))), 'README.md', 'exec'), {})
    assert Image.open('color.jpg').mode == 'RGB' and (tmp_path / 'kept.jpg').read_bytes()[:2] == b'\xff\xd8'


@pytest.mark.slow
def test_types_follow_from_the_kind(tmp_path):
    """What a type checker makes of the kinds of photos: the last two lines are mistakes, and no others."""
    lines = [
        'import numpy as np',
        'from PIL import Image',
        'import jaxcolor',
        "c = jaxcolor.load('a', device='cpu')",
        "a: Image.Image = c('x.jpg')",
        "b: bytes = c(b'x', chroma=1.0)",
        "d: np.ndarray = c(np.zeros((2, 2)), hints='1,1,#ffffff')",
        'e: list[np.ndarray] = c([np.zeros((2, 2))])',
        "f: list[Image.Image] = c(['a', 'b'])",
        "g: list[bytes] = c([b'a'])",
        "h = c('x', variants=2, agreement=True)",
        "jaxcolor.train('ltbc', data='x')",
        "jaxcolor.prepare('a', 'b', size=4)",
        "jaxcolor.evaluate('x')",
        "i: bytes = c('x.jpg')",
        "c('x', chrom=1)",
    ]
    (tmp_path / 'user.py').write_text('\n'.join(lines))
    flags = ['--config-file=', '--ignore-missing-imports', '--follow-imports=silent', f'--cache-dir={tmp_path / "cache"}']
    words = [sys.executable, '-m', 'mypy', *flags, tmp_path / 'user.py']
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env={**os.environ, 'MYPYPATH': str(ROOT)})
    wrong = {int(line.split(':')[1]) for line in done.stdout.splitlines() if ': error: ' in line}
    assert wrong == {len(lines) - 1, len(lines)}, done.stdout
