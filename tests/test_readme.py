"""Every command that a README shows is one that the parsers take; the main path runs as the README prints it.

Fenced `sh` blocks are executed by a bash that has no programs: what it would have started is recorded, then parsed. A block
whose commands need what is not in the repository carries `<!-- needs: ... -->` in the line before it.
"""

import ast
import os
import re
import shlex
import subprocess
import sys
from typing import NamedTuple

import pytest
from commands import dry_run
from conftest import FLAGS, PHOTOS, ROOT

from jaxcolor import cli
from jaxcolor import config as fields

READMES = [ROOT / 'README.md']
READMES += sorted(path for top in ('configs', 'jaxcolor', 'launch', 'tests') for path in (ROOT / top).rglob('README.md'))
# `PHOTOS`, `RUN_B`, `THEIRS.ckpt`: what the reader puts there.
PLACEHOLDER = re.compile(r'(?<![\w$])[A-Z][A-Z_]+(?![a-z])')
# Programs of others, whose words are theirs.
OTHERS = {
    'apt-get',
    'bash',
    'curl',
    'git',
    'kubectl',
    'mpirun',
    'pip',
    'podman',
    'python',
    'python3',
    'ruff',
    'sbatch',
    'scancel',
    'scontrol',
    'sinfo',
    'squeue',
    'srun',
    'ssh',
}
MADE_UP = {'--field': 'temperature'}
SUFFIXES = ('.py', '.md', '.txt', '.sh', '.png', '.json', '.jsonl', '.safetensors')


class Block(NamedTuple):
    """A fenced block: where it stands, its text, and whether it says what it needs."""

    where: str
    text: str
    needs: bool


def blocks(path, language):
    """The fenced blocks of a language."""
    found, lines, start = [], path.read_text(encoding='utf-8').splitlines(), None
    for number, line in enumerate(lines, 1):
        if start is None and line.strip() == f'```{language}':
            start = number
        elif start is not None and line.strip() == '```':
            needs = start > 1 and lines[start - 2].startswith('<!-- needs: ')
            found.append(Block(f'{path.relative_to(ROOT)}:{start}', '\n'.join(lines[start : number - 1]), needs))
            start = None
    assert start is None, f'{path.relative_to(ROOT)}:{start}: the block does not end'
    return found


def inline_code(path):
    """[(where, code)] of the code between single backticks."""
    text = path.read_text(encoding='utf-8')
    text = re.sub(r'^```.*?^```', lambda block: re.sub(r'[^\n]', ' ', block[0]), text, flags=re.DOTALL | re.MULTILINE)
    return [
        (f'{path.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}', ' '.join(match[1].split()))
        for match in re.finditer(r'`([^`]+)`', text)
    ]


def commands_in(script, tmp_path):
    """The commands, as lists of words, that a shell script would start."""
    script = re.sub(r'\[((?:,|--|[A-Z])[^\]]*)\]', r'\1', script)  # [--optional=X]
    script = re.sub(r'(?<=[\w/=])\.\.\.|(?<=\s)\.\.\.', '', script)  # PHOTO...
    script = re.sub(r'(?<=[\w=])\|\w+(?=[|\w\s`]|$)(\|\w+)*', '', script)  # raw|jpeg: the first
    script = re.sub(r'\S*\.venv/bin/', '', script)
    script = re.sub(r'(?<!\S)launch/(\S+\.sh)', lambda match: match[0].replace('/', '__'), script)
    record = tmp_path / 'record'
    prelude = f'PATH=/nowhere; command_not_found_handle() {{ printf "%s\\0" "$@" "" >> {shlex.quote(str(record))}; }}\n'
    record.write_text('')
    subprocess.run(['/bin/bash', '--norc', '-c', prelude + script], cwd=tmp_path, capture_output=True, timeout=60)
    words = [part.split('\0') for part in record.read_text().split('\0\0')]
    return [[each[0].replace('__', '/'), *each[1:]] for each in words if each != ['']]


def mistake_in(words, is_whole=True):
    """What is wrong with a command; '' where nothing is.

    is_whole: False where text names a part of a command: arguments that it lacks are made up.
    """
    words = [_filled(word) for word in words if word not in ('FLAGS', '')]
    program = words[0]
    if program.endswith('.sh'):
        if not (ROOT / program).is_file():
            return f'there is no {program}'
        config = [word for word in words[1:] if word.startswith('--config')]
        return dry_run(['jaxcolor', 'train', *config])[1] if config else ''
    if program == 'python' and words[1] == '-m' and words[2].startswith('jaxcolor.') and words[2] != 'jaxcolor.main':
        path = ROOT.joinpath(*words[2].split('.')).with_suffix('.py')
        is_command = path.is_file() and "__name__ == '__main__'" in path.read_text(encoding='utf-8')
        return '' if is_command else f'{words[2]} is no command'
    if program != 'jaxcolor' and words[:2] != ['python', '-m']:
        return '' if program in OTHERS else f'{program!r} is no program that this test knows'
    if program == 'python' and words[2] not in ('jaxcolor', 'jaxcolor.main'):
        return ''  # pytest, venv
    for _ in range(3):
        args, error = dry_run(words)
        if args is not None or is_whole:
            break
        if missing := re.search(r'arguments are required: (.*?);', error):
            names = missing[1].split(', ')
            words += [f'{name}={MADE_UP.get(name, 1)}' if name.startswith('--') else 'WORD' for name in names]
        elif 'give a recipe' in error:
            words.append('--config=ltbc')
    return error


def _filled(word):
    """A word with its placeholders filled in where the parser or a recipe would refuse them."""
    word = re.sub(r'^(--config)=(RECIPE|NAME)?$', r'\1=ltbc', word)
    word = word.replace('--config.SECTION.FIELD=VALUE', '--config.train.steps=5').replace('HOST:PORT', 'host:1')
    return re.sub(r'(?<==)[NIX]$|^[NIX]$', '2', word)


def test_the_readmes_are_found():
    assert ROOT / 'README.md' in READMES
    assert len(READMES) > 3


@pytest.mark.parametrize('path', READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_blocks_parse(path, tmp_path):
    mistakes = []
    for block in blocks(path, 'sh'):
        commands = commands_in(block.text, tmp_path)
        if not commands:
            mistakes.append(f'{block.where}: no command')
        for words in commands:
            if error := mistake_in(words):
                mistakes.append(f'{block.where}: {shlex.join(words)}: {error.strip()}')
            unknown = [word for word in words[1:] if PLACEHOLDER.search(word)]
            if unknown and not block.needs:
                mistakes.append(f'{block.where}: {unknown[0]} is not there: say so by <!-- needs: ... --> before the block')
    assert not mistakes, '\n' + '\n'.join(dict.fromkeys(mistakes))


@pytest.mark.parametrize('path', READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_fields_in_the_text_are_known(path, tmp_path):
    mistakes = []
    for where, code in inline_code(path):
        if re.match(r'(jaxcolor|python -m jaxcolor\S*) (?!COMMAND)', code):
            for words in commands_in(code, tmp_path):
                if error := mistake_in(words, is_whole=False):
                    mistakes.append(f'{where}: {code}: {error.strip()}')
        elif match := re.match(r'(?:--config\.)?(model|extractor|task|optimizer|data|train)\.([a-z_0-9]+)(=|$)', code):
            section, field, _ = match.groups()
            if field not in fields_of(section) and not code.endswith(SUFFIXES):
                mistakes.append(f'{where}: {code}: the section {section} has no field {field}')
    assert not mistakes, '\n' + '\n'.join(mistakes)


def fields_of(section):
    """The fields that a section of any kind can have."""
    kinds = {
        'model': [fields.ltbc, fields.deepcolor, fields.vgg_fusion, fields.cgan, fields.deoldify],
        'task': list(fields.TASK_SECTIONS.values()),
    }
    return {field for kind in kinds.get(section) or [getattr(fields, section)] for field in kind()}


@pytest.mark.parametrize('path', READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere_and_python_is_python(path):
    text = path.read_text(encoding='utf-8')
    links = [link.partition('#')[0] for link in re.findall(r'\]\(([^)\s]+)\)', text) if '://' not in link]
    broken = [link for link in links if link and not (path.parent / link).exists()]
    assert not broken, f'{path.relative_to(ROOT)}: {broken}'
    for block in blocks(path, 'python'):
        ast.parse(block.text)


@pytest.mark.parametrize(
    ('script', 'part'),
    [
        ('jaxcolor colour PHOTO.jpg', 'invalid choice'),
        ('jaxcolor colorize PHOTO.jpg --colour=red', '--colour'),
        ('jaxcolor train --config=ltbx', 'no recipe'),
        ('for N in 1 2; do .venv/bin/python -m jaxcolor.main --config=ltbc --config.train.stepz=$N; done', 'stepz'),
        ('jaxcolor sweep configs/sweeps/none.txt --out=DIR', 'none.txt'),
        ('jaxcolor tune-inference --model=RUN --field=warmth --values=1', 'warmth'),
        ('python -m jaxcolor.exported RUN FOLDER', 'no command'),
        ('launch/slurm/submit.sh --nodes=2 --config=ltbc --config.train.batch=2', 'batch'),
        ('launch/slurm/start.sh', 'start.sh'),
        ('colorize PHOTO', 'colorize'),
    ],
)
def test_mistakes_are_seen(script, part, tmp_path):
    errors = [mistake_in(words) for words in commands_in(script, tmp_path)]
    assert any(part in error for error in errors), errors


# What makes a training of `ltbc` one of seconds.
TINY = [
    '--config.train.steps=2',
    '--config.train.batch_size=8',
    '--config.train.grid_photos=2',
    '--config.model.width=0.125',
    '--config.model.global_size=32',
    '--config.model.classes=0',
    '--config.data.crop=64',
]


@pytest.mark.slow
def test_the_main_path_runs_as_printed(tmp_path):
    """prepare, train, evaluate, colorize, export: the block of README.md, on the bundled photos, with a tiny network."""
    (block,) = [each for each in blocks(ROOT / 'README.md', 'sh') if 'jaxcolor prepare PHOTOS --out=SHARDS' in each.text]
    photo = next(iter(sorted((PHOTOS / 'validation').rglob('*.jpg'))))
    added = {'prepare': ['--size=74', '--quiet'], 'train': TINY}
    values = {'PHOTOS': str(PHOTOS), 'SHARDS': 'SHARDS', 'PHOTO_OR_FOLDER': str(photo), 'FOLDER': 'FOLDER'}
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'XLA_FLAGS': FLAGS}
    done = []
    for words in commands_in(block.text, tmp_path):
        assert words[0] == 'jaxcolor'
        words = [values.get(word, word) for word in words[1:]] + added.get(words[1], [])
        result = subprocess.run(
            [sys.executable, '-m', 'jaxcolor', *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert result.returncode == 0, f'{words}: {result.stderr}'
        done.append(words[0])
    assert done == ['prepare', 'train', 'evaluate', 'colorize', 'export']
    assert (tmp_path / 'runs' / 'ltbc' / 'curves.png').exists()
    assert (tmp_path / 'colored' / photo.name).exists()
    assert (tmp_path / 'FOLDER' / 'weights.safetensors').exists()


def test_all_commands_are_in_a_readme():
    text = '\n'.join(path.read_text(encoding='utf-8') for path in READMES)
    missing = [name for name in cli.COMMANDS if f'jaxcolor {name}' not in text]
    assert not missing, f'no README shows {missing}'
