"""Commands as users write them, parsed by the real parser and checked, but not run."""

import argparse
import contextlib
import functools
import io
from unittest import mock

from conftest import ROOT

from jaxcolor import cli, main
from jaxcolor.benchmark.published import find_config
from jaxcolor.config import TASK_SECTIONS
from jaxcolor.errors import UserError
from jaxcolor.recipes import load_recipe
from jaxcolor.sweep import read_sweep


def dry_run(words: list[str]) -> tuple[argparse.Namespace | None, str]:
    """Parses a command, finds the recipe and sets the fields that it names.

    Args:
        words: ['jaxcolor', COMMAND, ...], ['python', '-m', 'jaxcolor', COMMAND, ...] or
            ['python', '-m', 'jaxcolor.main', ...].

    Returns:
        (what the command would be run with, ''), empty for `--help`; or (None, the error message). Relative paths are the
        checkout's.
    """
    seen = []

    def record(args):
        _check_names(args)
        seen.append(args)

    if words[:3] == ['python', '-m', 'jaxcolor.main']:
        command, words = main.main, words[3:]
    else:
        command, words = cli.main, words[3:] if words[:3] == ['python', '-m', 'jaxcolor'] else words[1:]
    commands = {name: each._replace(run=functools.wraps(each.run)(record)) for name, each in cli.COMMANDS.items()}
    errors = io.StringIO()
    with (
        mock.patch.object(cli, 'COMMANDS', commands),
        contextlib.redirect_stderr(errors),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.chdir(ROOT),
    ):
        try:
            command(words)
        except SystemExit as end:
            return (argparse.Namespace(), '') if not end.code else (None, errors.getvalue())
    return seen[0], ''


def _check_names(args):
    """Raises UserError where a recipe, a field or a sweep file does not exist."""
    if getattr(args, 'config', None):
        load_recipe(args.config, args.fields)
    for recipe in getattr(args, 'configs', None) or []:
        for mode in args.mode:
            find_config(recipe, mode)
    if getattr(args, 'sweep', None):
        for recipe, *fields in read_sweep(args.sweep):
            load_recipe(recipe.removeprefix('--config='), [*fields, *args.fields])
    if getattr(args, 'field', None):
        field = args.field.removeprefix('task.')
        if not any(field in section() for section in TASK_SECTIONS.values()):
            raise UserError(f'no task has a field {field!r}.')
