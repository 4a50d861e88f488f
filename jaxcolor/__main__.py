"""The program `jaxcolor COMMAND`, also as `python -m jaxcolor COMMAND`."""

import gc
import sys

from jaxcolor.cli import main
from jaxcolor.runtime.huge_pages import restart_with_huge_pages


def run() -> None:
    """What the program runs."""
    if sys.argv[1:2] == ['train']:  # photos of many sizes are colored as fast without
        restart_with_huge_pages()
    # JAX makes hundreds of thousands of objects, and nearly all stay: to look for the others takes a tenth of a second.
    gc.set_threshold(20_000)
    main()
    gc.freeze()  # Python looks once more when it ends


if __name__ == '__main__':
    run()
