"""`python -m jaxcolor.main`: trains a network as a config says; what clusters start.

    python -m jaxcolor.main --config=configs/ltbc.py [--config.train.batch_size=64 ...] [--workdir=RUN]
        [--coordinator_address=HOST:PORT --num_processes=N --process_id=I]
    python -m jaxcolor.main --mode=evaluate --workdir=RUN [--data=SHARDS] [--splits=validation,test]
    python -m jaxcolor.main --mode=import --config=configs/ltbc_pytorch.py --weights=PEER.ckpt [--workdir=RUN]

It is `jaxcolor train`, `jaxcolor evaluate --model=RUN` and `jaxcolor import --out=RUN` under the name that every flag-driven
JAX project has.
"""

import re
import sys
from collections.abc import Sequence

from jaxcolor import cli
from jaxcolor.errors import one_line_errors
from jaxcolor.recipes import load_recipe
from jaxcolor.runtime.huge_pages import restart_with_huge_pages

# What a command calls its run directory.
_WORKDIR = {'train': 'workdir', 'evaluate': 'model', 'import': 'out'}


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command of --mode. argv: `sys.argv[1:]` by default."""
    parser = cli.Parser('python -m jaxcolor.main', add_help=False, allow_abbrev=False)
    parser.add_argument('--mode', default='train', choices=_WORKDIR)
    parser.add_argument('--workdir')
    parser.add_argument('--photos')
    args, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    rest = [re.sub(r'^--(lpips)=(true|1)$', r'--\1', word, flags=re.IGNORECASE) for word in rest]
    if args.mode == 'evaluate':  # a recipe stands for the run directory that it trains by default
        recipes = [word.partition('=')[2] for word in rest if word.startswith('--config=')]
        rest = [word for word in rest if not word.startswith('--config')]
        args.workdir = args.workdir or (recipes and f'runs/{load_recipe(recipes[0]).name}')
    if args.workdir:
        rest.append(f'--{_WORKDIR[args.mode]}={args.workdir}')
    cli.main([args.mode, *rest, *([args.photos] if args.photos else [])])


if __name__ == '__main__':
    restart_with_huge_pages()
    main()
