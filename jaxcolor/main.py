"""`python -m jaxcolor.main`: trains a network as a config says; what clusters start.

    python -m jaxcolor.main --config=configs/ltbc.py [--config.train.batch_size=64 ...] [--workdir=RUN]
        [--coordinator_address=HOST:PORT --num_processes=N --process_id=I]
    python -m jaxcolor.main --mode=evaluate --workdir=RUN [--data=SHARDS] [--splits=validation,test]
    python -m jaxcolor.main --mode=import --config=configs/ltbc_pytorch.py --weights=PEER.ckpt [--workdir=RUN]

It is `jaxcolor train`, `jaxcolor evaluate --model=RUN` and `jaxcolor import --out=RUN` under the name that every flag-driven
JAX project has.
"""

import argparse
import sys
from collections.abc import Sequence

from jaxcolor import cli

# What a command calls its run directory.
_WORKDIR = {'train': 'workdir', 'evaluate': 'model', 'import': 'out'}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command of --mode. argv: `sys.argv[1:]` by default."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--mode', default='train', choices=_WORKDIR)
    parser.add_argument('--workdir')
    parser.add_argument('--photos')
    args, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    if args.workdir:
        rest.append(f'--{_WORKDIR[args.mode]}={args.workdir}')
    cli.main([args.mode, *rest, *([args.photos] if args.photos else [])])


if __name__ == '__main__':
    main()
