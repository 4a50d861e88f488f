"""`python -m jaxcolor COMMAND` is `jaxcolor COMMAND`."""

from jaxcolor.cli import main

if __name__ == '__main__':
    main()
