"""Command `jaxcolor`: the package's commands by name, and the models that come with it.

    jaxcolor colorize PHOTO...      is      python -m jaxcolor.colorize PHOTO...
    jaxcolor models
"""

import importlib
import os
import sys

from jaxcolor.weights import export
from jaxcolor.errors import UserError, one_line_errors

# What each command is for, and the module whose `main` it is.
COMMANDS = {
    'colorize': ('gray photographs -> colour', 'jaxcolor.colorize'),
    'models': ('the models that come with jaxcolor', __name__),
    'prepare': ('photographs -> Lab shards to train on', 'jaxcolor.prepare'),
    'tune': ('colourfulness against error, over what a trained network answers by', 'jaxcolor.tune'),
    'study': ('several trainings -> one table', 'jaxcolor.study'),
    'export': ('a trained run -> a small folder to hand on', 'jaxcolor.exported'),
    'benchmark': ('step times on this machine', 'jaxcolor.benchmark.__main__'),
}


@one_line_errors
def main():
    """Dispatches."""
    command = sys.argv[1] if len(sys.argv) > 1 else '--help'
    if {'-h', '--help'} & {command, *(sys.argv[1:] if command == 'models' else ())}:
        print('usage: jaxcolor COMMAND ...; jaxcolor COMMAND --help says more. Training is python -m jaxcolor.main.\n')
        print('\n'.join(f'  {name:10} {what}' for name, (what, _) in COMMANDS.items()))
    elif command == 'models':
        print('\n'.join(map(_line, exported.names())) or 'No models come with this jaxcolor.')
    elif command in COMMANDS:
        del sys.argv[1]
        sys.path.insert(0, os.getcwd())  # where recipes lie, as `python -m` would
        importlib.import_module(COMMANDS[command][1]).main()
    else:
        raise UserError(f'there is no command {command!r}; there are {", ".join(COMMANDS)}.')


def _line(name):
    about = exported.about(exported.folder_of(name))
    size = (exported.folder_of(name) / exported.WEIGHTS).stat().st_size / 2**20
    return f'{name}: {int(about["parameters"]):,} parameters, {size:.1f} MiB. {about["summary"]}'


if __name__ == '__main__':
    main()
