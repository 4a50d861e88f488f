"""Where recipes are found, and how their configs are read."""

import ast
import json
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxcolor import config as fields
from jaxcolor.allowed import OPTIMIZER_FIELDS
from jaxcolor.errors import UserError


def recipes_folder() -> Path:
    """The folder of the recipes that come with jaxcolor: in the package when installed, else beside it."""
    package = Path(__file__).parent
    return package / 'configs' if (package / 'configs').is_dir() else package.parent / 'configs'


def _split_variant(recipe):
    name, _, variant = recipe.rpartition(':')
    if not name or '/' in variant or '\\' in variant:  # no variant; the colon, if any, is a drive's: C:\\recipe.py
        return recipe, ''
    return name, variant


def find_recipe(recipe: str) -> str:
    """The file that a recipe stands for.

    Args:
        recipe: a path ('my/recipe.py', 'configs/ltbc.py') or a name ('ltbc'), and perhaps ':VARIANT'.

    Returns:
        The same with the path of an existing file: 'configs/ltbc.py:quickstart'.

    Raises:
        UserError: there is no such file and no such name.
    """
    name, variant = _split_variant(recipe)
    path = Path(name)
    if not path.is_file():
        # A recipe of jaxcolor's own may be called by its path in the checkout from anywhere.
        is_own = path.parent in (Path(), Path('configs')) and path.suffix in ('', '.py')
        path = recipes_folder() / f'{path.stem}.py'
        if not (is_own and path.is_file()):
            names = ', '.join(sorted(file.stem for file in recipes_folder().glob('*.py')))
            raise UserError(f'--config: there is no recipe {name!r}; give a path or one of {names}.')
    return f'{path}:{variant}' if variant else str(path)


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The config of a recipe.

    Args:
        recipe: a path or a name, as `find_recipe` takes it; or the folder of a run or an exported model, for its own config.
        overrides: '--config.SECTION.FIELD=VALUE', parsed by ml_collections.

    Raises:
        UserError: the recipe cannot be found or read; a field does not exist; a value is not of its type.
    """
    try:
        config = _of_model(Path(recipe)) if Path(recipe, 'config.json').is_file() else _run(find_recipe(recipe))
    except UserError:
        raise
    except Exception as error:  # whatever a recipe of the user's raises
        raise UserError(f'the recipe {recipe} cannot be read ({type(error).__name__}: {error}).') from None
    for word in overrides:
        if word.startswith('-') and not word.startswith('--config.'):
            raise UserError(f'{word.partition("=")[0]} is no argument here; fields are --config.SECTION.FIELD=VALUE.')
    name = config.get('optimizer', {}).get('name')
    values, words = flags.FlagValues(), ['jaxcolor', *overrides]
    try:
        config_flags.DEFINE_config_dict('config', config, flag_values=values, sys_argv=words)
        rest = values(words)
    except (AttributeError, KeyError) as error:
        field = ' '.join(ast.literal_eval(str(error)).split())
        raise UserError(f'the config has no field {field} (jaxcolor/config.py lists all).') from None
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(f'{str(error).rstrip(".")} (jaxcolor/config.py lists all fields).') from None
    _forget_other_optimizer(config, name, words)
    if len(rest) > 1:
        raise UserError(f'{rest[1]!r} is no argument here; fields are set by --config.SECTION.FIELD=VALUE.')
    return config


def _run(recipe):
    """The config of a recipe's file."""
    path, variant = _split_variant(recipe)
    # A recipe may import modules that lie beside it or in the working directory.
    sys.path.extend(folder for folder in (str(Path(path).parent.resolve()), os.getcwd()) if folder not in sys.path)
    get_config = runpy.run_path(path)['get_config']
    return get_config(variant) if variant else get_config()


def _of_model(folder):
    """The config of a trained model: fields of this version, with the values of its config.json."""
    written = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    config = fields.get_config()
    for name in ('model', 'task'):
        config[name] = getattr(fields, written[name]['name'])()
    for name, section in written.items():
        if isinstance(section, dict):
            values = {field: tuple(value) if isinstance(value, list) else value for field, value in section.items()}
            config[name].update({field: value for field, value in values.items() if field in config[name]})
        else:
            config[name] = section
    return config


def _forget_other_optimizer(config, name, words):
    """Where the overrides name another optimizer than the recipe, what the recipe set for its own is no longer meant."""
    if name is None or config.optimizer.name == name:
        return
    for field in OPTIMIZER_FIELDS:
        if not any(
            word.startswith((f'--config.optimizer.{field}=', f'--noconfig.optimizer.{field}'))
            or word == f'--config.optimizer.{field}'
            for word in words
        ):
            config.optimizer[field] = None
