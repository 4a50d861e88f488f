"""The program `jaxcolor COMMAND`, also as `python -m jaxcolor COMMAND`."""

import sys

from jaxcolor.cli import main
from jaxcolor.runtime.huge_pages import restart_with_huge_pages


def run() -> None:
    """What the program runs."""
    if sys.argv[1:2] == ['train']:  # photos of many sizes are colored as fast without
        restart_with_huge_pages()
    main()


if __name__ == '__main__':
    run()
