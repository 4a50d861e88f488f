"""The command line: help whose examples parse, old and new spellings, mistakes in one sentence, recipes from anywhere."""

import json
import os
import shlex
import subprocess
import sys
import tarfile
import zipfile

import pytest
from commands import dry_run
from conftest import FLAGS, PHOTOS, ROOT, assert_one_sentence

from jaxcolor.cli import COMMANDS
from jaxcolor.errors import UserError
from jaxcolor.recipes import find_recipe, load_recipe

OWN_RECIPE = """
from jaxcolor import config

def get_config(variant=''):
    own = config.get_config()
    own.name = f'own{variant}'
    own.train.steps = 7
    return own
"""


# -- Help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', COMMANDS)
def test_help_ends_with_two_examples_that_parse(name, cli):
    code, out, err = cli(name, '--help')
    assert (code, err) == (0, '')
    examples = out[out.index('examples:\n') :].splitlines()[1:]
    assert len(examples) == 2 and all(line.startswith('  jaxcolor ') for line in examples)
    assert any(f'jaxcolor {name} ' in f'{line} ' for line in examples)
    for line in examples:
        args, error = dry_run(shlex.split(line))
        assert args is not None, f'{line}: {error}'


@pytest.mark.parametrize('words', [(), ('--help',)])
def test_help_lists_all_commands(words, cli):
    code, out, _ = cli(*words)
    assert code == 0
    lines = out[out.index('COMMAND\n') :].splitlines()
    assert [line.split()[0] for line in lines if line.startswith('    ') and line[4] != ' '] == [*COMMANDS]


# -- Spellings --------------------------------------------------------------------------------------------------------


def test_underscores_and_dashes_are_the_same():
    for flags in ('--num_processes=2 --process_id=1', '--num-processes=2 --process-id 1'):
        args, error = dry_run(shlex.split(f'jaxcolor train --config=ltbc {flags}'))
        assert not error
        assert (args.num_processes, args.process_id) == (2, 1)
    args, _ = dry_run(['jaxcolor', 'evaluate', '--model=RUN', '--photo_list=my_list.txt', '--protocol=val5k', 'my_photos'])
    assert (args.only, args.photos) == ('my_list.txt', 'my_photos')  # values keep theirs


def test_fields_take_both_forms():
    for words in (['--config.train.steps=5'], ['--config.train.steps', '5']):
        args, error = dry_run(['jaxcolor', 'train', '--config=ltbc', *words])
        assert not error
        assert load_recipe(args.config, args.fields).train.steps == 5


@pytest.mark.parametrize(
    ('by_main', 'by_command'),
    [
        ('--config=configs/ltbc.py', 'train --config=configs/ltbc.py'),
        (
            '--config=ltbc --workdir=RUN --config.train.steps=5 --coordinator_address=a:1 --num_processes=2 --process_id=0',
            'train --config=ltbc --workdir=RUN --config.train.steps=5 --coordinator-address=a:1 --num-processes=2 '
            '--process-id=0',
        ),
        ('--mode=train --config=ltbc:quickstart', 'train --config=ltbc:quickstart'),
        ('--mode=evaluate --workdir=RUN --splits=validation,test', 'evaluate --model=RUN --splits=validation,test'),
        ('--mode=evaluate --workdir=RUN --data=SHARDS --lpips', 'evaluate --model=RUN --data=SHARDS --lpips'),
        (
            '--mode=evaluate --workdir=RUN --protocol=val5k --photos=FOLDER --photo_list=LIST',
            'evaluate --model=RUN --protocol=val5k FOLDER --photo-list=LIST',
        ),
        ('--mode=evaluate --workdir=A --compare=B,C', 'evaluate --model=A --compare=B,C'),
        (
            '--mode=import --config=ltbc_pytorch --weights=FILE --workdir=RUN',
            'import --config=ltbc_pytorch --weights=FILE --out=RUN',
        ),
    ],
)
def test_main_is_the_commands_by_other_names(by_main, by_command):
    args, error = dry_run(['python', '-m', 'jaxcolor.main', *by_main.split()])
    others, other_error = dry_run(['jaxcolor', *by_command.split()])
    assert not error and not other_error
    assert vars(args) | {'run': None} == vars(others) | {'run': None}


def test_the_module_is_the_command(command):
    """`python -m jaxcolor` and `python -m jaxcolor.main`, as processes."""
    code, out, _ = command('models')
    assert code == 0 and '  ltbc-lite: ' in out
    code, _, err = command('main', '--mode=evaluate', '--workdir=nowhere')
    assert code == 1
    assert_one_sentence(code, err, 'nowhere is no run directory')


# -- Mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('words', 'parts'),
    [
        ('colour photo.jpg', ["'colour'", 'colorize']),
        ('--nonsense', ['COMMAND']),
        ('models --all', ["'--all'", 'jaxcolor models']),
        ('models ltbc', ["'ltbc'", 'jaxcolor models']),
        ('train --config=ltbc --work-dir=RUN', ["'--work-dir=RUN'", 'jaxcolor train']),
        ('sweep FILE --out=DIR --steps=3', ["'--steps=3'", 'jaxcolor sweep']),
        ('train --config=ltbc --num-processes=two', ['--num-processes', "'two'"]),
        ('colorize', ['PHOTO_OR_FOLDER']),
        ('export --model=RUN', ['--out']),
        ('prepare PHOTOS --out=SHARDS --source=flickr', ["'flickr'", 'celeba']),
        ('colorize photo.jpg --styl=other.jpg', ["'--styl=other.jpg'"]),  # flags are not abbreviated
    ],
)
def test_mistakes_in_words_are_one_sentence(words, parts, cli):
    code, out, err = cli(*words.split())
    assert (code, out) == (2, '')
    assert len(err.splitlines()) == 1
    assert_one_sentence(code, err, *parts, '--help')


@pytest.mark.parametrize(
    ('words', 'parts'),
    [
        ('train', ['give a recipe', '--config=']),
        ('train --config=ltbx', ["'ltbx'", 'ltbc_pytorch']),
        ('train --config=ltbc:slow', ['slow', 'quickstart']),
        ('train --config=ltbc --config.train.stepz=3', ['stepz']),
        ('train --config=ltbc --config.train.steps=many', ['steps', 'many']),
        ('evaluate --model=RUN --protocol=val5k', ['PHOTOS']),
        ('evaluate --model=RUN FOLDER', ['--protocol']),
        ('colorize photo.jpg --size=3', ['--size', '3']),
        ('colorize photo.jpg --variants=0', ['--variants', '0']),
        ('tune-inference --model=RUN --field=temperature --values=a,b', ['--values=a,b']),
    ],
)
def test_what_cannot_be_used_is_one_sentence(words, parts, cli):
    code, _, err = cli(*words.split())
    assert code == 1
    assert_one_sentence(code, err, *parts)


# -- Recipes ----------------------------------------------------------------------------------------------------------


def test_recipes_are_found_by_path_and_by_name(tmp_path, monkeypatch):
    own = ROOT / 'configs' / 'ltbc.py'
    monkeypatch.chdir(tmp_path)
    assert find_recipe(str(own)) == str(own)
    for name in ('ltbc', 'ltbc.py', 'configs/ltbc.py'):  # from any folder
        assert find_recipe(name) == str(own)
        assert find_recipe(f'{name}:quickstart') == f'{own}:quickstart'
    assert load_recipe('ltbc:quickstart').name == 'ltbc-quickstart'
    with pytest.raises(UserError, match='there is no recipe'):
        find_recipe('elsewhere/ltbc.py')


def test_a_model_s_own_config_is_a_recipe(tmp_path):
    folder = ROOT / 'jaxcolor' / 'pretrained' / 'ltbc-lite'
    config, written = load_recipe(str(folder), ['--config.train.epochs=2']), json.loads((folder / 'config.json').read_text())
    assert config.model.to_dict() == written['model'] and config.task.name == 'color_classes'
    assert (config.train.epochs, config.train.batch_size) == (2, written['train']['batch_size'])
    assert config.train.eval_splits == tuple(written['train']['eval_splits'])
    (tmp_path / 'config.json').write_text('{"model": {"name": "none"}}')
    with pytest.raises(UserError, match=f'the recipe {tmp_path} cannot be read'):
        load_recipe(str(tmp_path))


def test_a_recipe_of_the_user_s(tmp_path, monkeypatch):
    (tmp_path / 'mine.py').write_text(OWN_RECIPE)
    monkeypatch.chdir(tmp_path)
    for recipe, name in (('mine.py', 'own'), (f'{tmp_path}/mine.py:-blue', 'own-blue')):
        config = load_recipe(recipe, ['--config.train.batch_size=3'])
        assert (config.name, config.train.steps, config.train.batch_size) == (name, 7, 3)
    # A file of the user's wins over a recipe of the same name.
    (tmp_path / 'ltbc.py').write_text(OWN_RECIPE)
    assert load_recipe('ltbc.py').name == 'own'
    (tmp_path / 'broken.py').write_text('from jaxcolor import nothing_like_it\n')
    with pytest.raises(UserError, match='broken.py cannot be read'):
        load_recipe('broken.py')


# -- Installed --------------------------------------------------------------------------------------------------------


def _build(kind, out):
    """Builds a wheel or an sdist of the checkout (its files that Git knows, so that old builds don't matter)."""
    source = out / 'source'
    names = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, names.split('\0')):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    code = f'import setuptools.build_meta as build; print(build.build_{kind}({str(out)!r}))'
    done = subprocess.run([sys.executable, '-c', code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    return _build('wheel', tmp_path_factory.mktemp('wheel'))


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """Runs a command of the installed wheel in a folder, as a process -> (exit code, stdout, stderr)."""
    target = tmp_path_factory.mktemp('installed')
    subprocess.run(
        [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', f'--target={target}', str(wheel)],
        check=True,
    )
    environment = {**os.environ, 'PYTHONPATH': str(target), 'XLA_FLAGS': FLAGS}

    where = 'import jaxcolor; print(jaxcolor.__file__)'
    found = subprocess.run([sys.executable, '-c', where], cwd=target, env=environment, capture_output=True, text=True)
    assert found.stdout.strip() == str(target / 'jaxcolor' / '__init__.py')  # not the checkout's

    def run(folder, *words):
        done = subprocess.run(
            [sys.executable, '-m', *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.slow
def test_the_wheel_holds_what_it_needs_and_no_more(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if '.dist-info/' not in name}
        licenses = [name for name in file.namelist() if name.endswith('licenses/LICENSE')]
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / 'jaxcolor').rglob('*.py')}
    expected |= {path.relative_to(ROOT).as_posix() for path in PHOTOS.rglob('*.jpg')}
    expected |= {f'jaxcolor/configs/{path.name}' for path in (ROOT / 'configs').glob('*.py')}
    expected |= {f'jaxcolor/configs/sweeps/{path.name}' for path in (ROOT / 'configs' / 'sweeps').glob('*.txt')}
    models = [path.parent for path in (ROOT / 'jaxcolor' / 'pretrained').glob('*/config.json')]
    expected |= {
        (model / name).relative_to(ROOT).as_posix()
        for model in models
        for name in ('README.md', 'config.json', 'weights.safetensors')
    }
    of_rooms = [*(ROOT / 'jaxcolor/benchmark/targets').iterdir(), *(ROOT / 'jaxcolor/web/static').iterdir()]
    expected |= {path.relative_to(ROOT).as_posix() for path in of_rooms}
    expected |= {'jaxcolor/data/photos/manifest.csv', 'jaxcolor/evaluation/compare.html.j2', 'jaxcolor/py.typed'}
    assert names == expected
    assert licenses


@pytest.mark.slow
def test_a_wheel_of_the_sdist_is_the_same(wheel, tmp_path):
    sdist = _build('sdist', tmp_path)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / 'unpacked', filter='data')
    (folder,) = (tmp_path / 'unpacked').iterdir()
    code = f'import setuptools.build_meta as build; print(build.build_wheel({str(tmp_path)!r}))'
    done = subprocess.run([sys.executable, '-c', code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / done.stdout.splitlines()[-1]) as ours, zipfile.ZipFile(wheel) as theirs:
        assert sorted(ours.namelist()) == sorted(theirs.namelist())


TINY = (
    '--config.train.steps=2 --config.train.batch_size=8 --config.train.grid_photos=2 --config.model.width=0.125 '
    '--config.model.global_size=32 --config.data.crop=64 --config.model.classes=0'
)


@pytest.mark.slow
def test_the_installed_package_works_in_an_empty_folder(installed, tmp_path):
    code, out, err = installed(tmp_path, 'jaxcolor', 'train', '--config=ltbc:quickstart', *TINY.split())
    assert code == 0, err
    assert (tmp_path / 'runs' / 'ltbc-quickstart' / 'curves.png').exists()
    assert '--model=runs/ltbc-quickstart' in out
    (tmp_path / 'mine.py').write_text(OWN_RECIPE)
    code, _, err = installed(tmp_path, 'jaxcolor.main', '--config=mine.py:-tiny', '--workdir=mine', *TINY.split())
    assert code == 0, err
    assert (tmp_path / 'mine' / 'checkpoints' / '2').is_dir()
    photo = next(PHOTOS.rglob('*.jpg'))
    for model in ('mine', 'ltbc-lite'):
        code, _, err = installed(tmp_path, 'jaxcolor', 'colorize', str(photo), f'--model={model}', f'--out=colored-{model}')
        assert code == 0, err
        assert (tmp_path / f'colored-{model}' / photo.name).exists()
