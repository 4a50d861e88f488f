"""Published networks by name and by file: fetched, checked, converted once, and used as other models are."""

import dataclasses
import functools
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from conftest import PHOTOS, assert_one_sentence
from PIL import Image
from serving import serve
from torch_files import write_torch_zip
from zhang_files import state_dict

from jaxcolor import tasks
from jaxcolor.errors import UserError
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.weights import published, runs, store
from jaxcolor.weights.export import export
from jaxcolor.weights.published import library, zhang

FISH = PHOTOS / 'train' / 'fish1.jpg'
NAME = 'eccv16'


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('JAXCOLOR_CACHE', str(tmp_path / 'cache'))
    library._say.cache_clear()
    library._of_file.cache_clear()
    return tmp_path / 'cache'


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A narrow eccv16, in a file such as PyTorch writes."""
    monkeypatch.setitem(published.CONVERTERS, NAME, functools.partial(zhang.convert, width=1 / 16))
    path = tmp_path / 'served' / 'weights.pth'
    path.parent.mkdir()
    write_torch_zip(state_dict(NAME), path)
    return path


def set_source(monkeypatch, url, name=NAME, **fields):
    changed = dataclasses.replace(published.PUBLISHED[name], url=url, **{'sha256': '', 'md5': '', **fields})
    monkeypatch.setitem(published.PUBLISHED, name, changed)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize('digits', [64, 8, 0])
def test_the_first_use_downloads_and_converts(cache, file, monkeypatch, capsys, digits):
    with serve(file.parent) as (address, asked):
        set_source(monkeypatch, f'{address}/weights.pth', sha256=sha256(file)[:digits])
        for _ in range(2):
            config, _, state = runs.load(NAME)
    assert len(asked) == 1
    assert (cache / f'{NAME}.pth').read_bytes() == file.read_bytes()
    said = capsys.readouterr().err
    assert said.count('BSD-2-Clause') == said.count('The colors of its 313 classes') == 1
    assert config.name == NAME and config.data.crop == 256
    converted = published.convert(file)
    jax.tree.map(np.testing.assert_array_equal, state.params, converted.params)  # in full precision
    assert library.is_converted(NAME)


def test_two_at_once_convert_once(cache, file, monkeypatch):
    calls, convert = [], library.convert
    monkeypatch.setattr(library, 'convert', lambda path: calls.append(path) or convert(path))
    with serve(file.parent) as (address, asked):
        set_source(monkeypatch, f'{address}/weights.pth')
        with ThreadPoolExecutor(2) as pool:
            folders = list(pool.map(library.model_folder, [NAME, NAME]))
    assert folders[0] == folders[1] and store.is_exported(folders[0])
    assert len(calls) == len(asked) == 1


def test_another_file_is_not_kept(cache, file, monkeypatch):
    with serve(file.parent) as (address, _):
        for fields in ({'sha256': '0' * 64}, {'sha256': '0' * 8}, {'md5': '0' * 32}):
            set_source(monkeypatch, f'{address}/weights.pth', **fields)
            with pytest.raises(UserError, match='not the published file|hash'):
                runs.load(NAME)
            assert not list(cache.rglob('[!.]*.*'))


def test_offline_one_sentence_says_which_file_to_put_where(cache, monkeypatch, cli):
    set_source(monkeypatch, 'http://127.0.0.1:9/weights.pth')
    code, _, err = cli('colorize', FISH, f'--model={NAME}')
    assert_one_sentence(code, err, f'put http://127.0.0.1:9/weights.pth into {cache} as {NAME}.pth')


@pytest.mark.parametrize('name', [f'{NAME}.pth', 'weights.pth'])
def test_a_file_in_the_cache_folder_is_used(cache, file, monkeypatch, name):
    set_source(monkeypatch, 'http://127.0.0.1:9/weights.pth', sha256=sha256(file))
    cache.mkdir()
    (cache / name).write_bytes(file.read_bytes())
    assert runs.load(NAME)[0].name == NAME
    other = 'ddcolor-paper'
    set_source(monkeypatch, 'http://127.0.0.1:9/pytorch_model.bin', other)
    (cache / 'pytorch_model.bin').write_bytes(file.read_bytes())  # whose it is nobody knows
    with pytest.raises(UserError, match=f'as {other}.bin'):
        runs.load(other)
    set_source(monkeypatch, 'http://127.0.0.1:9/other.pth', sha256='12345678')
    library.shutil.rmtree(cache / 'published')
    (cache / f'{NAME}.pth').write_bytes(b'mine')
    with pytest.raises(UserError, match=r'is not the published file of eccv16: its SHA256 is \w+, not 12345678\.\.\.;'):
        runs.load(NAME)
    assert (cache / f'{NAME}.pth').read_bytes() == b'mine'  # it is the user's


def test_a_license_without_commercial_use_is_said_at_every_use(cache, file, monkeypatch, capsys, tmp_path):
    with serve(file.parent) as (address, _):
        set_source(monkeypatch, f'{address}/weights.pth', license='CC BY-NC-SA 4.0', noncommercial=True)
        library.write_model(file, tmp_path / 'imported')
        for model in (NAME, NAME, file, file, tmp_path / 'imported'):
            library._say.cache_clear()  # as in another process
            library._of_file.cache_clear()
            runs.load(model)
            assert 'CC BY-NC-SA 4.0' in (err := capsys.readouterr().err) and 'forbids commercial use' in err
            runs.load(model)
            assert not capsys.readouterr().err
    assert published.PUBLISHED['iizuka-places'].noncommercial and 'CC BY-NC-SA' in library._notice('iizuka')
    assert not library._notice('ddcolor')


def test_what_is_made_of_such_weights_stays_under_their_license(cache, file, monkeypatch, capsys, tmp_path, cli):
    def is_said(model):
        library._say.cache_clear()  # as in another process
        library.model_folder(model)
        return 'which forbids commercial use' in capsys.readouterr().err

    own, tuned = store.model_folder(store.model_names()[0]), tmp_path / 'tuned'
    assert not is_said(own)
    with serve(file.parent) as (address, _):
        set_source(monkeypatch, f'{address}/weights.pth', license='CC BY-NC-SA 4.0', noncommercial=True)
        code, out, err = cli('import', NAME, tmp_path / 'imported')
    assert code == 0 and 'CC BY-NC-SA 4.0' in out and 'forbids commercial use' in err
    assert is_said(export(tmp_path / 'imported', tmp_path / 'exported'))
    tuned.mkdir()
    for start in ('', NAME, 'FOLDER'):
        content = {'model': {'name': NAME}, 'train': {'init_from': start}}
        (tuned / 'config.json').write_text(json.dumps(content))
        assert is_said(tuned) == bool(start)
    (tuned / 'config.json').write_text('[')
    assert not is_said(tuned)  # whoever reads it says what is wrong


def test_a_file_is_a_model(cache, file, tmp_path, cli):
    for run in range(2):
        code, out, err = cli('colorize', FISH, f'--model={file}', f'--out={tmp_path / "out"}', '--size=64')
        assert code == 0, err
        assert f'{1 - run} of 1' in out
    assert len(list((cache / 'published').glob('[!.]*'))) == 1
    assert Image.open(tmp_path / 'out' / FISH.name).size == Image.open(FISH).size
    (tmp_path / 'text.pth').write_text('no weights')
    code, _, err = cli('colorize', FISH, f'--model={tmp_path / "text.pth"}', f'--out={tmp_path / "out"}')
    assert_one_sentence(code, err, 'text.pth', 'none of the kinds')


def test_files_that_are_no_models(cache, file, tmp_path, cli):
    """Cut short, with a layer too few or too many, or of no known network: one sentence each, and nothing is kept."""
    arrays = {key: array for key, array in state_dict(NAME).items() if array.ndim}
    (tmp_path / 'cut.pth').write_bytes(file.read_bytes()[:-3000])
    for name, change, part in (
        ('cut', None, 'is damaged or cut short'),
        ('few', lambda: arrays.pop('model4.2.bias'), 'differs is model4.2.bias (block_3/conv_1/bias): missing'),
        ('many', lambda: arrays.update({'model9.0.bias': np.zeros(2, np.float32)}), 'it has model9.0.bias of shape (2,)'),
        ('other', lambda: arrays.pop('model1.0.weight'), 'the first of which is model1.0.bias of shape (4,)'),
    ):
        if change is not None:
            change()
            write_torch_zip(arrays, tmp_path / f'{name}.pth')
        code, _, err = cli('colorize', FISH, f'--model={tmp_path / f"{name}.pth"}', f'--out={tmp_path / "out"}')
        assert_one_sentence(code, err, f'{name}.pth', part)
        if name == 'few':
            arrays['model4.2.bias'] = state_dict(NAME)['model4.2.bias']
    assert not list((cache / 'published').glob('[!.]*')) and not (tmp_path / 'out').exists()


@pytest.mark.parametrize('precision', ['float16', 'float32'])
def test_import_makes_an_exported_model(cache, file, tmp_path, cli, precision):
    out = tmp_path / 'mine'
    code, printed, err = cli('import', file, out, f'--precision={precision}')
    assert code == 0, err
    assert 'The colors of its 313 classes' in printed
    assert json.loads((out / 'config.json').read_text())['name'] == 'mine'
    converted, (config, _, state) = published.convert(file), runs.load(out)
    for found, expected in zip(jax.tree.leaves(state.params), jax.tree.leaves(converted.params), strict=True):
        np.testing.assert_array_equal(found, expected.astype(precision if expected.ndim > 1 else np.float32))
    # Training starts from it.
    fresh = jax.jit(tasks.build(config).init)(jax.random.PRNGKey(0))
    started = runs.init_from(out, fresh)
    jax.tree.map(np.testing.assert_array_equal, started.params, state.params)
    assert Colorizer(out).size == 256


def test_imports_that_cannot_be(cache, file, tmp_path, cli):
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'notes.txt').write_text('mine')
    for arguments, part in [
        ([], 'give a published file and a folder'),
        ([file], 'give a folder'),
        ([tmp_path / 'none.pth', tmp_path / 'out'], 'none.pth cannot be read'),
        ([file, tmp_path / 'full'], 'holds something else'),
        ([file, tmp_path / 'out', '--config=ltbc_pytorch'], 'are for checkpoints'),
        (['--config=ltbc_pytorch'], 'give a published file and a folder'),
    ]:
        code, _, err = cli('import', *arguments)
        assert_one_sentence(code, err, part)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['full', 'served']


def test_models_are_listed(cache, cli):
    code, out, err = cli('models')
    assert code == 0, err
    lines = out.splitlines()
    for name, each in published.PUBLISHED.items():
        (line,) = [line for line in lines if line.startswith(f'  {name}: ')]
        assert each.license in line and each.title in line and ('no commercial use' in line) == each.noncommercial
        after = lines[lines.index(line) + 1]
        assert after.strip() == (
            f'{each.figures} (not verified by us).' if each.figures else 'No published figures are known.'
        )
    assert 'FID 6.59' in published.PUBLISHED['deoldify-artistic'].figures
    assert f'  {store.model_names()[0]}: ' in out and '(not verified by us)' in out and str(cache) in out
